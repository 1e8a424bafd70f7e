//! Devices that answer at once, and callers that wait.

use crate::block::{BlockDevice, BlockError, Completion, Extent, Geometry, Queue, Request, Submitted};
use crate::buf::AlignedBuf;
use crate::world::sync::wait_readable;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// A device whose operations block until they are done. Wrap it in [`Simple`] to serve it.
pub trait SimpleDevice: Send + Sync + 'static {
    /// Size and abilities.
    fn geometry(&self) -> Geometry;

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// As [`BlockError`] says.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError>;

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// As [`BlockError`] says.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), BlockError>;

    /// Makes the range read as zeroes.
    ///
    /// # Errors
    /// As [`BlockError`] says.
    fn zero_at(&self, offset: u64, len: u64) -> Result<(), BlockError>;

    /// Makes completed writes durable.
    ///
    /// # Errors
    /// As [`BlockError`] says.
    fn flush(&self) -> Result<(), BlockError>;

    /// Makes completed writes durable and calls `then` when that is done: at once, or later from another thread.
    fn flush_then(&self, then: Box<dyn FnOnce(Result<(), BlockError>) + Send>) {
        then(self.flush());
    }

    /// See [`BlockDevice::block_status`].
    ///
    /// # Errors
    /// As [`BlockError`] says.
    fn block_status(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>, BlockError> {
        let _ = (offset, max);
        Ok(vec![Extent { len, zero: false, hole: false }])
    }
}

/// A [`SimpleDevice`] as a [`BlockDevice`].
#[derive(Debug)]
pub struct Simple<D>(pub Arc<D>);

impl<D: SimpleDevice> BlockDevice for Simple<D> {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn open_queue(self: Arc<Self>) -> Result<Box<dyn Queue>, BlockError> {
        Ok(Box::new(SimpleQueue(Arc::clone(&self.0))))
    }

    fn block_status(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>, BlockError> {
        self.0.block_status(offset, len, max)
    }
}

struct SimpleQueue<D>(Arc<D>);

/// Does what `request` asks before it returns; also gives the buffer of a read.
pub fn run_simple(device: &dyn SimpleDevice, request: Request<'_>) -> (Result<(), BlockError>, Option<AlignedBuf>) {
    if request.is_write() && device.geometry().read_only {
        return (Err(BlockError::ReadOnly), None);
    }
    let (result, fua) = match request {
        Request::Read { offset, mut buf } => return (device.read_at(offset, &mut buf), Some(buf)),
        Request::Write { offset, data, fua } => (device.write_at(offset, data), fua),
        Request::Trim { offset, len, fua } | Request::WriteZeroes { offset, len, fua, .. } => {
            (device.zero_at(offset, len), fua)
        }
        Request::Flush => (Ok(()), true),
        Request::Cache { .. } => (Ok(()), false),
    };
    (result.and_then(|()| if fua { device.flush() } else { Ok(()) }), None)
}

impl<D: SimpleDevice> Queue for SimpleQueue<D> {
    fn submit(&mut self, tag: u64, request: Request<'_>) -> Submitted {
        let (result, buf) = run_simple(&*self.0, request);
        Submitted::Done(Completion { tag, result, buf })
    }

    fn kick(&mut self) {}

    fn reap(&mut self, _out: &mut Vec<Completion>) {}

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn in_flight(&self) -> usize {
        0
    }
}

/// Submits one request and waits for its end. For tools and tests; the queue must be otherwise idle.
///
/// # Errors
/// The request's own error, with the buffer of a read lost.
pub fn call(queue: &mut dyn Queue, request: Request<'_>) -> Result<Option<AlignedBuf>, BlockError> {
    if let Submitted::Done(c) = queue.submit(0, request) {
        return c.result.map(|()| c.buf);
    }
    queue.kick();
    let mut done = Vec::new();
    loop {
        queue.reap(&mut done);
        if let Some(c) = done.pop() {
            return c.result.map(|()| c.buf);
        }
        let Some(fd) = queue.wake_fd() else {
            return Err(BlockError::Io(libc::EIO));
        };
        wait_readable(fd, None);
    }
}

/// A disk in memory, for tests and for measuring front ends alone.
pub struct MemoryDevice {
    geometry: Geometry,
    bytes: std::sync::RwLock<Vec<u8>>,
}

impl MemoryDevice {
    /// A zeroed disk of `size` bytes.
    #[must_use]
    pub fn new(size: usize) -> Self {
        let geometry = Geometry {
            size: size as u64,
            preferred_block: 4096,
            max_io: 32 << 20,
            read_only: false,
            multi_queue: true,
            trim: true,
            fast_zero: true,
            rotational: false,
        };
        Self { geometry, bytes: std::sync::RwLock::new(vec![0; size]) }
    }

    /// The same, refusing writes from now on.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.geometry.read_only = true;
        self
    }

    fn range(offset: u64, len: usize) -> Result<std::ops::Range<usize>, BlockError> {
        let start = usize::try_from(offset).map_err(|_| BlockError::Invalid("offset"))?;
        Ok(start..start.checked_add(len).ok_or(BlockError::Invalid("length"))?)
    }
}

const PAST_END: BlockError = BlockError::Invalid("the request reaches past the end of the device");

impl SimpleDevice for MemoryDevice {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        let range = Self::range(offset, buf.len())?;
        let bytes = self.bytes.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        buf.copy_from_slice(bytes.get(range).ok_or(PAST_END)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), BlockError> {
        let range = Self::range(offset, data.len())?;
        let mut bytes = self.bytes.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        bytes.get_mut(range).ok_or(PAST_END)?.copy_from_slice(data);
        Ok(())
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        let range = Self::range(offset, usize::try_from(len).map_err(|_| PAST_END)?)?;
        let mut bytes = self.bytes.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        bytes.get_mut(range).ok_or(PAST_END)?.fill(0);
        Ok(())
    }

    fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }

    fn block_status(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>, BlockError> {
        let range = Self::range(offset, usize::try_from(len).map_err(|_| PAST_END)?)?;
        let bytes = self.bytes.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut out: Vec<Extent> = Vec::new();
        for chunk in bytes.get(range).ok_or(PAST_END)?.chunks(4096) {
            let zero = chunk.iter().all(|b| *b == 0);
            let full = out.len() == max;
            match out.last_mut() {
                Some(e) if e.zero == zero => e.len += chunk.len() as u64,
                _ if full => break,
                _ => out.push(Extent { len: chunk.len() as u64, zero, hole: zero }),
            }
        }
        Ok(out)
    }
}
