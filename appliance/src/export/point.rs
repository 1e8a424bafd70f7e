//! A volume as it was at a seq, read-only.
//!
//! The device holds its view, and the view its layers, so nothing that it can read is collected while it is open (I10).
//! A read of one block is one look-up and one part of a frame. Block status walks through runs of the layers and never block by
//! block, so an empty disk of any size is described at once.

use super::places::Places;
use crate::history::{HistoryError, View};
use crate::store::BlockSource;
use afterimage_base::block::{BlockError, Extent, Geometry};
use afterimage_base::simple::SimpleDevice;
use afterimage_format::place::Place;
use afterimage_format::{BLOCK_SHIFT, BLOCK_SIZE};
use std::cell::RefCell;
use std::sync::Arc;

/// Blocks whose places are resolved at a time.
const BATCH: u64 = 512;
/// Runs looked at for one answer of block status: bounds the time of a call.
const MAX_RUNS: usize = 64 << 10;

thread_local! {
    // What a reading thread keeps between requests: places of a batch as runs and one by one, and a block.
    static SCRATCH: RefCell<Buffers> = RefCell::default();
}

#[derive(Default)]
struct Buffers {
    runs: Vec<(u64, Place)>,
    places: Vec<Place>,
    block: Vec<u8>,
}

/// A volume as it was at a seq.
pub struct PointDevice {
    places: Places,
    source: Arc<dyn BlockSource>,
    size: u64,
    name: String,
}

impl std::fmt::Debug for PointDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PointDevice({} at seq {})", self.name, self.seq())
    }
}

impl PointDevice {
    /// The volume `name` of `size` bytes as `view` shows it, with its blocks in `source`.
    #[must_use]
    pub fn new(name: &str, view: Arc<View>, source: Arc<dyn BlockSource>, size: u64) -> Self {
        Self { places: Places::new(view), source, size, name: name.to_owned() }
    }

    /// The seq that it shows.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.places.view().seq()
    }

    /// Logs why a read failed, which a client only sees as an I/O error.
    fn failed(&self, what: &dyn std::fmt::Display) -> BlockError {
        tracing::error!("volume {} at seq {}: {what}", self.name, self.seq());
        BlockError::Io(libc::EIO)
    }

    /// Fills `out` (whole blocks) from block `block` on.
    fn read_blocks(&self, mut block: u64, mut out: &mut [u8], buffers: &mut Buffers) -> Result<(), BlockError> {
        while !out.is_empty() {
            let count = ((out.len() / BLOCK_SIZE) as u64).min(BATCH);
            buffers.runs.clear();
            let resolved = match count {
                1 => self.places.of(block).map(|place| buffers.runs.push((1, place))),
                _ => self.places.view().resolve(block, count, &mut buffers.runs),
            };
            resolved.map_err(|e| self.failed(&e))?;
            let n = usize::try_from(count).unwrap_or(usize::MAX).saturating_mul(BLOCK_SIZE).min(out.len());
            let (head, tail) = std::mem::take(&mut out).split_at_mut(n);
            out = tail;
            if buffers.runs.iter().all(|(_, place)| place.is_zero()) {
                head.fill(0);
            } else {
                buffers.places.clear();
                for (count, place) in &buffers.runs {
                    buffers.places.extend((0..*count).map_while(|i| place.advance(i)));
                }
                if buffers.places.len() * BLOCK_SIZE != head.len() {
                    return Err(
                        self.failed(&format!("the places of blocks {block} and behind it are no run of a frame"))
                    );
                }
                // All at once: a frame is decoded once, and frames that lie together are read together.
                self.source.read_blocks(&buffers.places, head).map_err(|e| self.failed(&e))?;
            }
            block += count;
        }
        Ok(())
    }

    fn read_part(&self, block: u64, from: usize, out: &mut [u8], buffers: &mut Buffers) -> Result<(), BlockError> {
        let mut whole = std::mem::take(&mut buffers.block);
        whole.resize(BLOCK_SIZE, 0);
        let read = self.read_blocks(block, &mut whole, buffers);
        out.copy_from_slice(&whole[from..from + out.len()]);
        buffers.block = whole;
        read
    }

    fn read(&self, offset: u64, out: &mut [u8], buffers: &mut Buffers) -> Result<(), BlockError> {
        let block = offset >> BLOCK_SHIFT;
        let within = usize::try_from(offset & (BLOCK_SIZE as u64 - 1)).unwrap_or(0);
        let head = if within == 0 { 0 } else { (BLOCK_SIZE - within).min(out.len()) };
        let (first, rest) = out.split_at_mut(head);
        if head > 0 {
            self.read_part(block, within, first, buffers)?;
        }
        let block = block + u64::from(head > 0);
        let (middle, last) = rest.split_at_mut(rest.len() / BLOCK_SIZE * BLOCK_SIZE);
        let after = block + (middle.len() / BLOCK_SIZE) as u64;
        self.read_blocks(block, middle, buffers)?;
        if !last.is_empty() {
            self.read_part(after, 0, last, buffers)?;
        }
        Ok(())
    }
}

impl SimpleDevice for PointDevice {
    fn geometry(&self) -> Geometry {
        Geometry {
            size: self.size,
            preferred_block: 4096,
            max_io: 32 << 20,
            read_only: true,
            multi_queue: true,
            trim: false,
            fast_zero: false,
            rotational: false,
        }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        self.geometry().check(offset, buf.len() as u64)?;
        // Taken and put back: whoever reads while this read is under way on the same thread finds none, and makes its own.
        let mut buffers = SCRATCH.take();
        let read = self.read(offset, buf, &mut buffers);
        SCRATCH.set(buffers);
        read
    }

    fn write_at(&self, _offset: u64, _data: &[u8]) -> Result<(), BlockError> {
        Err(BlockError::ReadOnly)
    }

    fn zero_at(&self, _offset: u64, _len: u64) -> Result<(), BlockError> {
        Err(BlockError::ReadOnly)
    }

    fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }

    fn block_status(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>, BlockError> {
        self.geometry().check(offset, len)?;
        extents(self.places.view(), (offset, len), max).map_err(|e| self.failed(&e))
    }
}

/// What a view holds in `len` bytes from `offset`, in at most `max` extents.
pub(crate) fn extents(view: &View, (offset, len): (u64, u64), max: usize) -> Result<Vec<Extent>, HistoryError> {
    let stop = offset + len;
    let mut cursor = view.cursor(offset >> BLOCK_SHIFT, stop.div_ceil(BLOCK_SIZE as u64))?;
    let (mut extents, mut at): (Vec<Extent>, u64) = (Vec::new(), offset);
    for _ in 0..MAX_RUNS {
        let Some(run) = cursor.next_run()? else { break };
        let end = run.end.saturating_mul(BLOCK_SIZE as u64).min(stop);
        let (len, zero) = (end - at, run.place.is_zero());
        let full = extents.len() >= max.max(1);
        match extents.last_mut() {
            Some(e) if e.zero == zero => e.len += len,
            _ if full => break,
            _ => extents.push(Extent { len, zero, hole: zero }),
        }
        at = end;
    }
    Ok(extents)
}

#[cfg(test)]
#[path = "export_tests.rs"]
mod tests;
