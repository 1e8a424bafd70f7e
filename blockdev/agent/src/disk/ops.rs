//! Operations that block until they are done, whole: short reads and writes are gone on with, interrupted
//! calls repeated.

use super::Disk;
use afterimage_base::block::{BlockError, Extent};
use afterimage_base::buf::AlignedBuf;
use afterimage_base::world::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

/// How a range is made to read as zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ZeroMode {
    /// Space may be given back.
    Hole,
    /// Space stays allocated.
    Keep,
}

/// Longest piece of zeroes written at once where the file system has no better way.
const ZERO_PIECE: u64 = 1 << 20;

/// The end of a file where the disk should have gone on: somebody made it shorter.
const SHRUNK: BlockError = BlockError::Io(libc::EIO);

impl Disk {
    /// Fills `buf` from `offset`; in cache mode none both must be aligned.
    pub(crate) fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        #[cfg(test)]
        self.faults.check(Op::Read, offset, buf.len() as u64)?;
        let mut done = 0;
        while done < buf.len() {
            let rest = &mut buf[done..];
            let n = self.file.read_at(rest, offset + done as u64);
            match n {
                Ok(0) => return Err(SHRUNK),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Reads what is in the page cache; returns how many bytes that was.
    pub(crate) fn read_cached(&self, offset: u64, buf: &mut [u8]) -> usize {
        if !self.nowait.load(Ordering::Relaxed) {
            return 0;
        }
        #[cfg(test)]
        if self.faults.check(Op::Read, offset, buf.len() as u64).is_err() {
            return 0;
        }
        match self.file.read_cached_at(buf, offset) {
            Ok(n) => n,
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => 0,
            Err(_) => {
                // Not every file system can: the long way gives the true answer.
                self.nowait.store(false, Ordering::Relaxed);
                0
            }
        }
    }

    /// Writes `data` at `offset`; in cache mode none all must be aligned. With `durable` it survives a power cut.
    pub(crate) fn write_at(&self, offset: u64, data: &[u8], durable: bool) -> Result<(), BlockError> {
        #[cfg(test)]
        self.faults.check(Op::Write, offset, data.len() as u64)?;
        let mut done = 0;
        while done < data.len() {
            let rest = &data[done..];
            let at = offset + done as u64;
            let n = if durable { self.file.write_durable_at(rest, at) } else { self.file.write_at(rest, at) };
            match n {
                Ok(0) => return Err(SHRUNK),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Makes what was written durable.
    pub(crate) fn sync(&self) -> Result<(), BlockError> {
        #[cfg(test)]
        self.faults.check(Op::Sync, 0, 0)?;
        Ok(self.file.sync_data()?)
    }

    /// Makes durable what was written through any description of the disk, and says of every error since it was opened.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn sync_apart(&self) -> io::Result<()> {
        #[cfg(test)]
        self.faults.check(Op::Sync, 0, 0).map_err(io::Error::other)?;
        self.apart.sync_data()
    }

    fn fallocate(&self, mode: i32, offset: u64, len: u64) -> Result<(), i32> {
        loop {
            match self.file.fallocate(mode, offset, len) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map_err(|e| e.raw_os_error().unwrap_or(libc::EIO)),
            }
        }
    }

    /// Makes the range read as zeroes, always, whatever it takes.
    ///
    /// Block devices take fallocate as well: there a hole is a discard whose result is promised to read as
    /// zeroes, and is refused if the device does not promise it.
    pub(crate) fn zero_at(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<(), BlockError> {
        #[cfg(test)]
        self.faults.check(Op::Zero, offset, len)?;
        let align = if self.block_device { 4096 } else { 1 };
        let (start, end) = (offset.next_multiple_of(align), (offset + len) / align * align);
        if start >= end {
            return self.write_zeroes(offset, len);
        }
        let hole = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let zero = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        let ways: &[i32] = if mode == ZeroMode::Hole { &[hole, zero] } else { &[zero] };
        for flags in ways {
            match self.fallocate(*flags, start, end - start) {
                Ok(()) => {
                    self.write_zeroes(offset, start - offset)?;
                    return self.write_zeroes(end, offset + len - end);
                }
                Err(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL) => {}
                Err(e) => return Err(io::Error::from_raw_os_error(e).into()),
            }
        }
        self.write_zeroes(offset, len)
    }

    /// Whether [`zero_at`](Self::zero_at) is surely faster than writing.
    pub(crate) fn zeroes_fast(&self, mode: ZeroMode) -> bool {
        match mode {
            ZeroMode::Hole => self.punch,
            ZeroMode::Keep => self.zero_range,
        }
    }

    /// Writes `data` at `offset` whatever their alignment.
    pub(crate) fn write_any(&self, offset: u64, data: &[u8]) -> Result<(), BlockError> {
        let len = data.len() as u64;
        let aligned = data.as_ptr().addr().is_multiple_of(usize::try_from(self.align()).unwrap_or(1));
        if aligned && self.is_aligned(offset, len) {
            return self.write_at(offset, data, false);
        }
        let (from, to) = self.span(offset, len);
        let mut span = AlignedBuf::zeroed(usize::try_from(to - from).unwrap_or(usize::MAX));
        if (from, to) != (offset, offset + len) {
            self.read_at(from, &mut span)?;
        }
        let start = usize::try_from(offset - from).unwrap_or(usize::MAX);
        span[start..start + data.len()].copy_from_slice(data);
        self.write_at(from, &span, false)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        let (mut at, end) = (offset, offset + len);
        let zeroes = AlignedBuf::zeroed(usize::try_from(len.min(ZERO_PIECE)).unwrap_or(0));
        while at < end {
            // Pieces end at multiples of their length, so all but the first and last are aligned.
            let stop = (at + 1).next_multiple_of(ZERO_PIECE).min(end);
            self.write_any(at, &zeroes[..usize::try_from(stop - at).unwrap_or(0)])?;
            at = stop;
        }
        Ok(())
    }

    /// Asks for the range to be read ahead.
    pub(crate) fn will_need(&self, offset: u64, len: u64) {
        self.file.will_need(offset, len);
    }

    fn seek(&self, offset: u64, whence: i32) -> Result<u64, i32> {
        self.file.seek_to(offset, whence).map_err(|e| e.raw_os_error().unwrap_or(libc::EIO))
    }

    /// Which parts of `offset..offset + len` hold data and which are holes, at most `max` of them.
    pub(crate) fn extents(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>, BlockError> {
        let end = offset + len;
        let data = |len| Extent { len, zero: false, hole: false };
        if self.block_device {
            return Ok(vec![data(len)]);
        }
        let (mut at, mut out) = (offset, Vec::new());
        while at < end && out.len() < max.max(1) {
            let next = match self.seek(at, libc::SEEK_DATA) {
                Ok(next) => next.min(end),
                Err(libc::ENXIO) => end,
                Err(libc::EINVAL | libc::EOPNOTSUPP) => {
                    out.push(data(end - at));
                    break;
                }
                Err(e) => return Err(BlockError::Io(e)),
            };
            if next > at {
                out.push(Extent { len: next - at, zero: true, hole: true });
                at = next;
                continue;
            }
            // A file that is being changed may have no hole behind its data for a moment.
            let stop = self.seek(at, libc::SEEK_HOLE).map_or(end, |s| s.clamp(at + 1, end));
            out.push(data(stop - at));
            at = stop;
        }
        Ok(out)
    }
}

/// Whether the file system of a regular file is known to punch holes and to zero ranges without writing.
pub(crate) fn zero_abilities(file: &File) -> (bool, bool) {
    use nix::sys::statfs::{BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC, fstatfs};
    // A simulated file can do both.
    let Some(file) = file.real() else { return (true, true) };
    match fstatfs(file).map(|s| s.filesystem_type()) {
        Ok(BTRFS_SUPER_MAGIC | EXT4_SUPER_MAGIC | XFS_SUPER_MAGIC) => (true, true),
        Ok(TMPFS_MAGIC) => (true, false),
        _ => (false, false),
    }
}

/// The alignment that direct I/O needs, as the kernel (6.1 and later) tells it.
pub(crate) fn dio_align(file: &File) -> Option<u64> {
    let Some(file) = file.real() else { return Some(512) };
    // SAFETY: statx is plain numbers, for which all zeroes are a value.
    let mut x: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: an empty path with AT_EMPTY_PATH means the descriptor; the kernel fills the structure.
    let r =
        unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &raw mut x) };
    let known = r == 0 && x.stx_mask & libc::STATX_DIOALIGN != 0 && x.stx_dio_offset_align != 0;
    known.then(|| u64::from(x.stx_dio_offset_align.max(x.stx_dio_mem_align)))
}

/// What an injected fault is about.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Read,
    Write,
    Zero,
    Sync,
}

#[cfg(test)]
type Fault = Box<dyn Fn(Op, u64, u64) -> Option<i32> + Send + Sync>;

/// Errors of the disk that a test asks for.
#[cfg(test)]
#[derive(Default)]
pub(crate) struct Faults(std::sync::RwLock<Option<Fault>>, std::sync::atomic::AtomicBool);

#[cfg(test)]
impl Faults {
    pub(crate) fn set(&self, fault: Option<Fault>) {
        *self.0.write().unwrap() = fault;
    }

    pub(crate) fn forbid_uring(&self) {
        self.1.store(true, Ordering::Relaxed);
    }

    pub(crate) fn without_uring(&self) -> bool {
        self.1.load(Ordering::Relaxed)
    }

    pub(crate) fn check(&self, op: Op, offset: u64, len: u64) -> Result<(), BlockError> {
        match self.0.read().unwrap().as_ref().and_then(|f| f(op, offset, len)) {
            Some(e) => Err(io::Error::from_raw_os_error(e).into()),
            None => Ok(()),
        }
    }
}
