//! The disk as one queue uses it.
//!
//! | operation | cache mode writeback | cache mode none |
//! |---|---|---|
//! | read | what is cached at once (`RWF_NOWAIT`), the rest by io_uring | io_uring |
//! | write | at once, inline: io_uring would hand every buffered write on ext4 to a worker | io_uring |
//! | write with FUA, flush | io_uring | io_uring |
//! | trim, zeroes | pool: io_uring would hand them to a worker too, and has no fallback for them | pool |
//!
//! Where io_uring is not to be had, the pool takes its place. Short results are gone on with here.

use super::ops::ZeroMode;
use super::pool::Pool;
use super::uring::{ENTRIES, Raw, Uring};
use super::{CacheMode, Disk};
use crate::mailbox::{Mail, Mailbox};
use crate::slab::Slab;
use afterimage_base::block::BlockError;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// One operation. Memory is named by address: whoever starts it keeps it in place until it has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Io {
    Read { ptr: *mut u8, len: usize, offset: u64 },
    Write { ptr: *const u8, len: usize, offset: u64, durable: bool },
    Zero { offset: u64, len: u64, mode: ZeroMode, durable: bool },
    Sync,
}

// SAFETY: an operation is a request and an address; that the memory is there and not otherwise used is promised by
// whoever starts it, on whichever thread it runs.
unsafe impl Send for Io {}

struct Operation {
    io: Io,
    job: usize,
}

/// See the module.
pub(crate) struct Engine {
    disk: Arc<Disk>,
    pool: Arc<Pool>,
    mailbox: Arc<Mailbox>,
    uring: Option<Uring>,
    operations: Slab<Operation>,
    in_uring: u32,
    waiting: VecDeque<usize>,
}

static SAID: AtomicBool = AtomicBool::new(false);

impl Engine {
    pub(crate) fn new(disk: Arc<Disk>, pool: Arc<Pool>, mailbox: Arc<Mailbox>) -> Engine {
        let uring = match disk.fd().map(|fd| Uring::new(fd, mailbox.raw_fd())) {
            None => None,
            Some(Ok(uring)) => Some(uring),
            Some(Err(e)) => {
                if !SAID.swap(true, Ordering::Relaxed) {
                    tracing::warn!("io_uring cannot be used ({e}): threads take its place, direct I/O is slower");
                }
                None
            }
        };
        #[cfg(test)]
        let uring = uring.filter(|_| !disk.faults.without_uring());
        let (operations, waiting) = (Slab::new(), VecDeque::new());
        Engine { disk, pool, mailbox, uring, operations, in_uring: 0, waiting }
    }

    /// Starts `io` for `job`. `Some` if it has ended already.
    ///
    /// # Safety
    /// The memory that `io` names must stay valid, and for reads untouched, until it has ended; this engine must not
    /// be dropped before.
    pub(crate) unsafe fn start(&mut self, io: Io, job: usize) -> Option<Result<(), BlockError>> {
        #[cfg(test)]
        if let Err(e) = self.injected(&io) {
            return Some(Err(e));
        }
        let io = match io {
            Io::Write { ptr, len, offset, durable: false } if self.disk.cache() == CacheMode::Writeback => {
                // SAFETY: the caller says that the memory is valid.
                let data = unsafe { std::slice::from_raw_parts(ptr, len) };
                return Some(self.disk.write_at(offset, data, false));
            }
            Io::Read { ptr, len, offset } => {
                // SAFETY: the caller says that the memory is valid and nobody else's.
                let n = self.disk.read_cached(offset, unsafe { std::slice::from_raw_parts_mut(ptr, len) });
                if n == len {
                    return Some(Ok(()));
                }
                Io::Read { ptr: ptr.wrapping_add(n), len: len - n, offset: offset + n as u64 }
            }
            io => io,
        };
        let op = self.operations.insert(Operation { io, job });
        match self.dispatch(op) {
            Ok(()) => None,
            Err(e) => {
                self.operations.remove(op);
                Some(Err(e.into()))
            }
        }
    }

    #[cfg(test)]
    fn injected(&self, io: &Io) -> Result<(), BlockError> {
        use super::ops::Op;
        match *io {
            Io::Read { len, offset, .. } => self.disk.faults.check(Op::Read, offset, len as u64),
            Io::Write { len, offset, .. } => self.disk.faults.check(Op::Write, offset, len as u64),
            Io::Zero { .. } | Io::Sync => Ok(()),
        }
    }

    fn dispatch(&mut self, op: usize) -> io::Result<()> {
        let Some(io) = self.operations.get_mut(op).map(|o| o.io) else { return Ok(()) };
        let (Some(uring), Some(raw)) = (self.uring.as_mut(), raw(io)) else { return self.to_pool(op, io) };
        if self.in_uring == ENTRIES {
            self.waiting.push_back(op);
            return Ok(());
        }
        // SAFETY: as promised to `start`; the number in the ring is limited just above.
        unsafe { uring.push(raw, op as u64) }?;
        self.in_uring += 1;
        Ok(())
    }

    fn to_pool(&self, op: usize, io: Io) -> io::Result<()> {
        let (disk, mailbox) = (Arc::clone(&self.disk), Arc::clone(&self.mailbox));
        self.pool.run(move || {
            let errno = match run(&disk, io) {
                Ok(()) => 0,
                Err(BlockError::NoSpace) => libc::ENOSPC,
                Err(BlockError::Unsupported) => libc::EOPNOTSUPP,
                Err(BlockError::ReadOnly) => libc::EROFS,
                Err(BlockError::Io(e)) => e,
                Err(BlockError::Invalid(_) | BlockError::Shutdown) => libc::EIO,
            };
            mailbox.post(Mail::Finished { op, errno });
        })
    }

    /// Hands what was started to the kernel.
    pub(crate) fn kick(&mut self) {
        if let Some(uring) = &mut self.uring
            && let Err(e) = uring.submit()
        {
            // What was not taken stays in the ring and is offered again by the next call.
            tracing::error!("{}: io_uring does not take operations: {e}", self.disk.path().display());
        }
    }

    /// Adds the jobs whose operation has ended, with its result.
    pub(crate) fn reap(&mut self, out: &mut Vec<(usize, Result<(), BlockError>)>) {
        let Some(uring) = &mut self.uring else { return };
        let mut results = Vec::new();
        uring.reap(|op, result| results.push((op, result)));
        for (op, result) in results {
            self.in_uring -= 1;
            let op = usize::try_from(op).unwrap_or(usize::MAX);
            self.ended(op, result, out);
        }
        while self.in_uring < ENTRIES
            && let Some(op) = self.waiting.pop_front()
        {
            if let Err(e) = self.dispatch(op) {
                self.ended(op, -e.raw_os_error().unwrap_or(libc::EIO), out);
            }
        }
        self.kick();
    }

    /// An operation of the pool has ended.
    pub(crate) fn finished(&mut self, op: usize, errno: i32, out: &mut Vec<(usize, Result<(), BlockError>)>) {
        if let Some(o) = self.operations.remove(op) {
            out.push((o.job, if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno).into()) }));
        }
    }

    fn ended(&mut self, op: usize, result: i32, out: &mut Vec<(usize, Result<(), BlockError>)>) {
        let Some(operation) = self.operations.get_mut(op) else { return };
        let rest = match (&mut operation.io, usize::try_from(result)) {
            (_, Err(_)) if matches!(-result, libc::EINTR | libc::EAGAIN) => true,
            (_, Err(_)) => return self.finished(op, -result, out),
            // The end of the file where the disk should go on: somebody made it shorter.
            (Io::Read { .. } | Io::Write { .. }, Ok(0)) => return self.finished(op, libc::EIO, out),
            (Io::Read { ptr, len, offset }, Ok(n)) => {
                *ptr = ptr.wrapping_add(n);
                *len -= n.min(*len);
                *offset += n as u64;
                *len != 0
            }
            (Io::Write { ptr, len, offset, .. }, Ok(n)) => {
                *ptr = ptr.wrapping_add(n);
                *len -= n.min(*len);
                *offset += n as u64;
                *len != 0
            }
            (Io::Zero { .. } | Io::Sync, Ok(_)) => false,
        };
        if !rest {
            self.finished(op, 0, out);
        } else if let Err(e) = self.dispatch(op) {
            self.finished(op, e.raw_os_error().unwrap_or(libc::EIO), out);
        }
    }
}

/// The operation in io_uring's terms; None for what goes to the pool.
fn raw(io: Io) -> Option<Raw> {
    match io {
        Io::Read { ptr, len, offset } => Some(Raw::Read { ptr, len: u32::try_from(len).ok()?, offset }),
        Io::Write { ptr, len, offset, durable } => {
            Some(Raw::Write { ptr, len: u32::try_from(len).ok()?, offset, durable })
        }
        Io::Sync => Some(Raw::Sync),
        Io::Zero { .. } => None,
    }
}

fn run(disk: &Disk, io: Io) -> Result<(), BlockError> {
    match io {
        Io::Read { ptr, len, offset } => {
            // SAFETY: whoever started the operation keeps the memory until its end, for it alone.
            disk.read_at(offset, unsafe { std::slice::from_raw_parts_mut(ptr, len) })
        }
        Io::Write { ptr, len, offset, durable } => {
            // SAFETY: whoever started the operation keeps the memory until its end.
            disk.write_at(offset, unsafe { std::slice::from_raw_parts(ptr, len) }, durable)
        }
        Io::Zero { offset, len, mode, durable } => {
            disk.zero_at(offset, len, mode)?;
            if durable { disk.sync() } else { Ok(()) }
        }
        Io::Sync => disk.sync(),
    }
}
