//! A branch as a block device.
//!
//! What was written and is not durable yet is in batches, newest first; what they do not know is in history, and what that
//! does not know in the parent's. All devices of a branch share one [`Runner`]: what one writes the others read at once, and a flush
//! on any of them makes everything durable, whoever wrote it.

use super::live::{Live, Runner, Then};
use crate::ingest::batch::{Batch, Newest};
use crate::store::BlockSource;
use afterimage_base::block::{BlockError, Extent, Geometry};
use afterimage_base::simple::SimpleDevice;
use afterimage_format::place::Place;
use afterimage_format::{BLOCK_SHIFT, BLOCK_SIZE};
use std::sync::Arc;

/// Blocks whose places are resolved at a time.
const BATCH: u64 = 512;
const BLOCK: u64 = BLOCK_SIZE as u64;

/// Called when the last device of a branch is gone.
pub(super) type Leave = Box<dyn FnOnce() + Send + Sync>;

/// See the module.
pub(super) struct BranchDevice {
    runner: Option<Arc<Runner>>,
    leave: Option<Leave>,
}

impl Drop for BranchDevice {
    fn drop(&mut self) {
        // First the runner, which writes what is there.
        drop(self.runner.take());
        if let Some(leave) = self.leave.take() {
            leave();
        }
    }
}

/// Copies what a batch holds of the `holes`; answers those that it does not know. `first` is the block of the first byte of `out`.
fn fill(batch: &Batch, holes: &[(u64, u64)], first: u64, out: &mut [u8]) -> Vec<(u64, u64)> {
    let mut left: Vec<(u64, u64)> = Vec::new();
    for (start, end) in holes {
        batch.pieces_of(*start, *end, |s, e, held| {
            let bytes = range(first, s, e);
            match held {
                None => match left.last_mut() {
                    Some(last) if last.1 == s => last.1 = e,
                    _ => left.push((s, e)),
                },
                Some(Newest::Zero) => out[bytes].fill(0),
                Some(Newest::Bytes(held)) => out[bytes].copy_from_slice(held),
            }
        });
    }
    left
}

fn range(first: u64, start: u64, end: u64) -> std::ops::Range<usize> {
    let at = |block: u64| usize::try_from((block - first) << BLOCK_SHIFT).unwrap_or(usize::MAX);
    at(start)..at(end)
}

impl BranchDevice {
    pub(super) fn new(runner: Arc<Runner>, leave: Option<Leave>) -> BranchDevice {
        BranchDevice { runner: Some(runner), leave }
    }

    fn live(&self) -> Result<&Live, BlockError> {
        self.runner.as_ref().map(|r| &*r.live).ok_or(BlockError::Shutdown)
    }

    /// Fills `out` (whole blocks) from block `first` on.
    fn read_blocks(&self, first: u64, out: &mut [u8]) -> Result<(), BlockError> {
        let live = self.live()?;
        let end = first + (out.len() / BLOCK_SIZE) as u64;
        let (mut holes, under_way) = live.pending(|open| fill(open, &[(first, end)], first, out));
        for batch in &under_way {
            if holes.is_empty() {
                return Ok(());
            }
            holes = fill(batch, &holes, first, out);
        }
        let failed = |e: &dyn std::fmt::Display| {
            tracing::error!("branch {}: {e}", live.volume.name);
            BlockError::Io(libc::EIO)
        };
        let (mut runs, mut places): (Vec<(u64, Place)>, Vec<Place>) = (Vec::new(), Vec::new());
        for (mut start, end) in holes {
            while start < end {
                let count = (end - start).min(BATCH);
                runs.clear();
                places.clear();
                // Keeps collection from removing the blocks between the look-up and the read.
                let _flight = live.shared.flights.start();
                live.volume.history.newest(start, count, &mut runs).map_err(|e| failed(&e))?;
                places.extend(runs.iter().flat_map(|(n, place)| (0..*n).map_while(|i| place.advance(i))));
                let to = &mut out[range(first, start, start + count)];
                if places.len() as u64 != count {
                    return Err(failed(&format!("the places of blocks {start} and behind it are no run of a frame")));
                }
                live.shared.store.read_blocks(&places, to).map_err(|e| failed(&e))?;
                start += count;
            }
        }
        Ok(())
    }
}

impl SimpleDevice for BranchDevice {
    fn geometry(&self) -> Geometry {
        Geometry {
            size: self.live().map_or(0, Live::size),
            preferred_block: 4096,
            max_io: 32 << 20,
            read_only: false,
            multi_queue: true,
            trim: true,
            fast_zero: true,
            rotational: false,
        }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        self.geometry().check(offset, buf.len() as u64)?;
        let (first, end) = (offset / BLOCK, (offset + buf.len() as u64).div_ceil(BLOCK));
        if offset.is_multiple_of(BLOCK) && buf.len().is_multiple_of(BLOCK_SIZE) {
            return self.read_blocks(first, buf);
        }
        let mut whole = vec![0; range(first, first, end).end];
        self.read_blocks(first, &mut whole)?;
        let from = usize::try_from(offset % BLOCK).unwrap_or(0);
        buf.copy_from_slice(&whole[from..from + buf.len()]);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), BlockError> {
        self.geometry().check(offset, data.len() as u64)?;
        self.live()?.write(offset, data)
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        self.geometry().check(offset, len)?;
        self.live()?.zero(offset, len)
    }

    fn flush(&self) -> Result<(), BlockError> {
        self.live()?.flush()
    }

    fn flush_then(&self, then: Then) {
        match self.live() {
            Ok(live) => live.flush_then(then),
            Err(e) => then(Err(e)),
        }
    }

    fn block_status(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>, BlockError> {
        self.geometry().check(offset, len)?;
        let live = self.live()?;
        // What is under way is described when it is in the history.
        live.flush()?;
        let history = &live.volume.history;
        let failed = |e: crate::history::HistoryError| {
            tracing::error!("branch {}: {e}", live.volume.name);
            BlockError::Io(libc::EIO)
        };
        let view = history.view(history.newest_seq()).map_err(failed)?;
        crate::export::point::extents(&view, (offset, len), max).map_err(failed)
    }
}
