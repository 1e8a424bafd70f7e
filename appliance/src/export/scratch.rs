//! A volume as it was at a seq, with an overlay that takes writes.
//!
//! What is written goes to a sparse file without a name, at the same offset as on the disk, and is gone when the device
//! is dropped or the process dies. Which blocks are there is kept as ranges in memory, so that zeroing a whole disk is one entry.

use super::point::PointDevice;
use crate::history::interval::{IntervalMap, Span};
use afterimage_base::block::{BlockError, Extent, Geometry};
use afterimage_base::simple::SimpleDevice;
use afterimage_format::{BLOCK_SHIFT, BLOCK_SIZE};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// What the overlay holds of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    Data,
    Zero,
}

impl Span for Over {
    fn shifted(self, _by: u64) -> Self {
        self
    }
}

/// See the module.
#[derive(Debug)]
pub struct ScratchDevice {
    base: PointDevice,
    file: File,
    over: RwLock<IntervalMap<Over>>,
}

/// A file without a name in `dir`.
fn nameless(dir: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    let made = options.clone().custom_flags(libc::O_TMPFILE).open(dir);
    if !matches!(&made, Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::ENOENT))) {
        return made;
    }
    // The file system knows no files without a name: make one and take its name away.
    let path = dir.join(format!("scratch-{}", uuid::Uuid::new_v4()));
    let file = options.create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

const fn block_of(offset: u64) -> u64 {
    offset >> BLOCK_SHIFT
}

impl ScratchDevice {
    /// Puts an overlay over `base`, in a file without a name in `dir`.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn new(base: PointDevice, dir: &Path) -> io::Result<Self> {
        Ok(Self { base, file: nameless(dir)?, over: RwLock::new(IntervalMap::new()) })
    }

    fn shared(&self) -> RwLockReadGuard<'_, IntervalMap<Over>> {
        self.over.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn exclusive(&self) -> RwLockWriteGuard<'_, IntervalMap<Over>> {
        self.over.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pieces of `offset..offset + len` in bytes, with what the overlay holds of them.
    fn pieces(over: &IntervalMap<Over>, offset: u64, len: u64) -> Vec<(u64, u64, Option<Over>)> {
        let end = offset + len;
        let mut out = Vec::new();
        over.pieces(block_of(offset), end.div_ceil(BLOCK_SIZE as u64), |s, e, v| {
            out.push(((s << BLOCK_SHIFT).max(offset), (e << BLOCK_SHIFT).min(end), v));
        });
        out
    }

    fn read_under(&self, over: &IntervalMap<Over>, offset: u64, mut buf: &mut [u8]) -> Result<(), BlockError> {
        for (start, end, what) in Self::pieces(over, offset, buf.len() as u64) {
            let n = usize::try_from(end - start).unwrap_or(usize::MAX).min(buf.len());
            let (head, tail) = std::mem::take(&mut buf).split_at_mut(n);
            buf = tail;
            match what {
                None => self.base.read_at(start, head)?,
                Some(Over::Zero) => head.fill(0),
                Some(Over::Data) => self.file.read_exact_at(head, start)?,
            }
        }
        Ok(())
    }

    /// Makes the block that holds `offset` whole in the overlay, unless it is there or `offset` is its beginning.
    fn complete(&self, over: &mut IntervalMap<Over>, offset: u64) -> Result<(), BlockError> {
        let start = block_of(offset) << BLOCK_SHIFT;
        let size = self.base.geometry().size;
        if start == offset || offset >= size {
            return Ok(());
        }
        let there = matches!(Self::pieces(over, start, 1).first(), Some((_, _, Some(Over::Data))));
        if there {
            return Ok(());
        }
        let mut block = [0; BLOCK_SIZE];
        let n = usize::try_from(size - start).unwrap_or(BLOCK_SIZE).min(BLOCK_SIZE);
        self.read_under(over, start, &mut block[..n])?;
        self.file.write_all_at(&block, start)?;
        over.set(block_of(start), block_of(start) + 1, Over::Data);
        Ok(())
    }
}

impl SimpleDevice for ScratchDevice {
    fn geometry(&self) -> Geometry {
        Geometry { read_only: false, trim: true, fast_zero: true, ..self.base.geometry() }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        self.geometry().check(offset, buf.len() as u64)?;
        self.read_under(&self.shared(), offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), BlockError> {
        self.geometry().check(offset, data.len() as u64)?;
        let end = offset + data.len() as u64;
        let mut over = self.exclusive();
        self.complete(&mut over, offset)?;
        self.complete(&mut over, end)?;
        self.file.write_all_at(data, offset)?;
        over.set(block_of(offset), end.div_ceil(BLOCK_SIZE as u64), Over::Data);
        Ok(())
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        self.geometry().check(offset, len)?;
        let end = offset + len;
        let size = self.base.geometry().size;
        let first = offset.div_ceil(BLOCK_SIZE as u64);
        let last = if end == size { end.div_ceil(BLOCK_SIZE as u64) } else { block_of(end) };
        if last > first {
            let mut over = self.exclusive();
            // Under the lock: a write that comes behind must not be punched away.
            punch(&self.file, first << BLOCK_SHIFT, (last - first) << BLOCK_SHIFT);
            over.set(first, last, Over::Zero);
        }
        let zeroes = [0; BLOCK_SIZE];
        let head_end = end.min(first << BLOCK_SHIFT);
        if offset < head_end {
            self.write_at(offset, &zeroes[..usize::try_from(head_end - offset).unwrap_or(0)])?;
        }
        let tail = (last << BLOCK_SHIFT).max(head_end);
        if tail < end {
            self.write_at(tail, &zeroes[..usize::try_from(end - tail).unwrap_or(0)])?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), BlockError> {
        // The overlay does not outlive the process; there is nothing to make durable.
        Ok(())
    }

    fn block_status(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>, BlockError> {
        self.geometry().check(offset, len)?;
        let over = self.shared();
        let mut out: Vec<Extent> = Vec::new();
        for (start, end, what) in Self::pieces(&over, offset, len) {
            let found = match what {
                None => self.base.block_status(start, end - start, max)?,
                Some(o) => vec![Extent { len: end - start, zero: o == Over::Zero, hole: o == Over::Zero }],
            };
            let said: u64 = found.iter().map(|e| e.len).sum();
            for e in found {
                let full = out.len() >= max.max(1);
                match out.last_mut() {
                    Some(last) if (last.zero, last.hole) == (e.zero, e.hole) => last.len += e.len,
                    _ if full => return Ok(out),
                    _ => out.push(e),
                }
            }
            if said < end - start {
                break;
            }
        }
        Ok(out)
    }
}

/// Gives room back where the file system can. The overlay knows that the range is zero in any case.
fn punch(file: &File, offset: u64, len: u64) {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else { return };
    use nix::fcntl::FallocateFlags;
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    if let Err(e) = nix::fcntl::fallocate(file, flags, offset, len) {
        tracing::debug!("the overlay keeps the room of what was zeroed: {e}");
    }
}

#[cfg(test)]
#[path = "export_tests.rs"]
mod tests;
