//! One io_uring, used by one queue: operations go in as a batch, completions ring the queue's eventfd.
//!
//! At most [`ENTRIES`] operations are in it, half of what its completion queue holds, so neither of its queues overflows.

use io_uring::{IoUring, opcode, squeue, types};
use std::io;
use std::os::fd::RawFd;

/// Operations in the ring at one time. More depth gains nothing on any disk.
pub(crate) const ENTRIES: u32 = 128;

/// An operation on the disk, in the kernel's terms.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Raw {
    Read { ptr: *mut u8, len: u32, offset: u64 },
    Write { ptr: *const u8, len: u32, offset: u64, durable: bool },
    Sync,
}

/// See the module.
pub(crate) struct Uring {
    ring: IoUring,
    fd: RawFd,
    unsubmitted: bool,
}

impl Uring {
    /// A ring for the file `fd`, which must stay open, that signals `event`.
    pub(crate) fn new(fd: RawFd, event: RawFd) -> io::Result<Uring> {
        // Completions need no interrupt of the thread: it looks for them when it comes by.
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_clamp()
            .build(ENTRIES)
            .or_else(|_| IoUring::builder().build(ENTRIES))?;
        ring.submitter().register_eventfd(event)?;
        Ok(Uring { ring, fd, unsubmitted: false })
    }

    /// Adds an operation; `user` comes back with its completion.
    ///
    /// # Safety
    /// The memory named by `raw` must stay valid (and, for reads, unused) until the completion was reaped.
    /// Not more than [`ENTRIES`] operations may be in the ring.
    pub(crate) unsafe fn push(&mut self, raw: Raw, user: u64) -> io::Result<()> {
        let fd = types::Fd(self.fd);
        let entry: squeue::Entry = match raw {
            Raw::Read { ptr, len, offset } => opcode::Read::new(fd, ptr, len).offset(offset).build(),
            Raw::Write { ptr, len, offset, durable } => {
                let flags = if durable { libc::RWF_DSYNC } else { 0 };
                opcode::Write::new(fd, ptr, len).offset(offset).rw_flags(flags).build()
            }
            Raw::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
        };
        let entry = entry.user_data(user);
        self.unsubmitted = true;
        // SAFETY: the caller keeps the memory valid.
        unsafe { self.ring.submission().push(&entry) }.map_err(|_| io::Error::from_raw_os_error(libc::EBUSY))
    }

    /// Hands over what was added: one system call, none if there is nothing.
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        while self.unsubmitted {
            match self.ring.submit() {
                Ok(_) => self.unsubmitted = !self.ring.submission().is_empty(),
                Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Passes finished operations to `each`: its user data and its result (bytes, or a negative error number).
    pub(crate) fn reap(&mut self, mut each: impl FnMut(u64, i32)) {
        for entry in self.ring.completion() {
            each(entry.user_data(), entry.result());
        }
    }
}
