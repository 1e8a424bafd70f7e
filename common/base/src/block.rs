//! The interface between a front end and the device behind it.
//!
//! A front end owns one [`Queue`] per thread (an NBD connection, a ublk queue), submits *checked* requests
//! to it and takes completions from it, in any order. Nothing behind this interface sees a bad range:
//! [`Geometry::check`] is called at the door.
//!
//! Completions reach the thread that submitted: either at once, as the return value of
//! [`Queue::submit`] (a write to the page cache, a read that hits it), or later from [`Queue::reap`] after
//! [`Queue::wake_fd`] became readable. There is no thread to hand over to and no lock between the two.

use crate::buf::AlignedBuf;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use thiserror::Error;

/// Why a request failed, in the words that front ends can pass on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BlockError {
    /// The range or the parameters are not allowed.
    #[error("invalid request: {0}")]
    Invalid(&'static str),
    /// The device does not do this.
    #[error("not supported by this device")]
    Unsupported,
    /// The device is read-only.
    #[error("the device is read-only")]
    ReadOnly,
    /// The disk behind the device is full.
    #[error("no space left on the disk behind the device")]
    NoSpace,
    /// The device is going away; a client may reconnect and try again.
    #[error("the device is shutting down")]
    Shutdown,
    /// The disk behind the device failed, with the system's error number.
    #[error("I/O error of the disk behind the device (errno {0})")]
    Io(i32),
}

impl From<std::io::Error> for BlockError {
    fn from(e: std::io::Error) -> Self {
        match e.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => BlockError::NoSpace,
            Some(libc::EOPNOTSUPP) => BlockError::Unsupported,
            Some(libc::EROFS) => BlockError::ReadOnly,
            Some(n) => BlockError::Io(n),
            None => BlockError::Io(libc::EIO),
        }
    }
}

/// What a device is and can do. Fixed while a queue is open, except that a device may grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Size in bytes.
    pub size: u64,
    /// Requests may have any alignment; those aligned to this are served without a detour. A power of two.
    pub preferred_block: u32,
    /// Longest read or write, in bytes. Trim and write-zeroes may be of any length.
    pub max_io: u32,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether several queues see one another's writes, and a flush on one covers writes completed on all.
    pub multi_queue: bool,
    /// Whether [`Request::Trim`] is worth sending.
    pub trim: bool,
    /// Whether write-zeroes is ever faster than writing zeroes, so that `fast` can be granted.
    pub fast_zero: bool,
    /// Whether the disk turns.
    pub rotational: bool,
}

impl Geometry {
    /// Checks a range against the size: a request with no bytes or past the end is refused.
    ///
    /// # Errors
    /// [`BlockError::Invalid`] with the reason.
    pub const fn check(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        match offset.checked_add(len) {
            _ if len == 0 => Err(BlockError::Invalid("the request covers no bytes")),
            Some(end) if end <= self.size => Ok(()),
            _ => Err(BlockError::Invalid("the request reaches past the end of the device")),
        }
    }
}

/// What a block device of the kernel says of itself besides size and abilities, so that those who use it choose as they
/// would on the real disk. All in bytes, and powers of two (0: nothing to say).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// Requests are whole multiples of this; at least 512.
    pub logical_block: u32,
    /// What the disk writes without reading first; at least the logical block.
    pub physical_block: u32,
    /// Smallest size of requests that is preferred.
    pub io_min: u32,
    /// Best size of requests; 0 if there is none.
    pub io_opt: u32,
    /// Requests longer than this are divided.
    pub max_io: u32,
    /// Trim gives space back in units of this.
    pub discard_granularity: u32,
}

impl Topology {
    /// Of a device that knows nothing special of its disk.
    #[must_use]
    pub const fn plain() -> Topology {
        Topology {
            logical_block: 512,
            physical_block: 4096,
            io_min: 4096,
            io_opt: 0,
            max_io: 1 << 20,
            discard_granularity: 4096,
        }
    }
}

/// The bytes of a write that are not in this process's memory yet.
pub trait Payload {
    /// Fills `to` with the bytes from `from` on, counted from the first byte of the write.
    ///
    /// # Errors
    /// If whoever has the bytes took the write back.
    fn fetch(&mut self, from: usize, to: &mut [u8]) -> Result<(), BlockError>;
}

/// A checked request. Offsets and lengths are in bytes, inside the device, and not empty.
#[derive(Debug)]
pub enum Request<'a> {
    /// Fills the whole of `buf` from `offset`. The buffer comes back in the [`Completion`].
    Read {
        /// First byte.
        offset: u64,
        /// Where to put the bytes; its length is the length of the request.
        buf: AlignedBuf,
    },
    /// Writes `data`. The slice is borrowed during [`Queue::submit`] only: a device that needs it longer copies it.
    Write {
        /// First byte.
        offset: u64,
        /// The bytes.
        data: &'a [u8],
        /// Durable before the completion.
        fua: bool,
    },
    /// Makes every write completed before this was submitted, on any queue, durable.
    Flush,
    /// The range is no longer needed. Afterimage makes it read as zeroes, so that disk and history agree.
    Trim {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Durable before the completion.
        fua: bool,
    },
    /// The range reads as zeroes afterwards.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Durable before the completion.
        fua: bool,
        /// Space stays allocated.
        no_hole: bool,
        /// Fail with [`BlockError::Unsupported`] at once if it would be as slow as writing.
        fast: bool,
    },
    /// The range will be read soon.
    Cache {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
}

impl Request<'_> {
    /// Whether the request changes the device.
    #[must_use]
    pub const fn is_write(&self) -> bool {
        matches!(self, Request::Write { .. } | Request::Trim { .. } | Request::WriteZeroes { .. })
    }
}

/// A finished request.
#[derive(Debug)]
pub struct Completion {
    /// The tag given at submission.
    pub tag: u64,
    /// How it went.
    pub result: Result<(), BlockError>,
    /// The buffer of a read (also of a failed one), for reuse.
    pub buf: Option<AlignedBuf>,
}

/// What became of a submitted request.
#[derive(Debug)]
#[must_use]
pub enum Submitted {
    /// It has ended; it is not reported again.
    Done(Completion),
    /// [`Queue::reap`] will report it.
    Pending,
}

/// Whether a range holds data, for block status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, not 0.
    pub len: u64,
    /// Reads as zeroes.
    pub zero: bool,
    /// Takes no space.
    pub hole: bool,
}

/// A block device as front ends see it. Shared by all its queues.
pub trait BlockDevice: Send + Sync {
    /// Size and abilities, now.
    fn geometry(&self) -> Geometry;

    /// How requests should look, for front ends that show a block device of the kernel.
    fn topology(&self) -> Topology {
        Topology::plain()
    }

    /// Opens a queue for the calling thread.
    ///
    /// # Errors
    /// If the system has no resources for it, or the device is shutting down.
    fn open_queue(self: Arc<Self>) -> Result<Box<dyn Queue>, BlockError>;

    /// Describes `len` bytes from `offset` (a checked range) by at most `max` extents that begin at `offset`.
    /// May stop early, but says at least one extent. The last one may not reach past the range.
    ///
    /// # Errors
    /// If the disk cannot be asked. A device that knows nothing answers one extent of data.
    fn block_status(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>, BlockError> {
        let _ = (offset, max);
        Ok(vec![Extent { len, zero: false, hole: false }])
    }
}

/// One thread's way into a device.
///
/// Dropping a queue waits for what it has in flight.
pub trait Queue: Send {
    /// Starts a request. `tag` is the caller's, unique among its requests in flight.
    /// Never waits for the disk on behalf of requests that can go on without it, except for
    /// a gate that a barrier holds (bounded) and for room in the kernel's queue.
    fn submit(&mut self, tag: u64, request: Request<'_>) -> Submitted;

    /// Starts a write of `len` bytes at `offset`, whose bytes are fetched during this call: a device that keeps what is
    /// written has them put into their place at once. If they cannot be fetched, the write fails with that error.
    fn submit_write_of(
        &mut self,
        tag: u64,
        (offset, len, fua): (u64, usize, bool),
        payload: &mut dyn Payload,
    ) -> Submitted {
        let mut data = AlignedBuf::zeroed(len);
        match payload.fetch(0, &mut data) {
            Ok(()) => self.submit(tag, Request::Write { offset, data: &data, fua }),
            Err(e) => Submitted::Done(Completion { tag, result: Err(e), buf: None }),
        }
    }

    /// Hands to the kernel what `submit` has collected: one system call for a batch. To be called after
    /// the last submit of a batch and before waiting.
    fn kick(&mut self);

    /// Appends finished requests to `out` without waiting.
    fn reap(&mut self, out: &mut Vec<Completion>);

    /// Readable while `reap` may have something; `None` if this queue never answers [`Submitted::Pending`].
    /// `reap` clears it.
    fn wake_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Requests submitted and not yet reaped.
    fn in_flight(&self) -> usize;
}
