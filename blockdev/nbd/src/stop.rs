//! The word to stop, which wakes every thread that waits.

use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Tells connections to end. Clones share one state; once asked for, a stop cannot be taken back.
#[derive(Debug, Clone)]
pub struct Stop(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Readable from the stop on; nobody reads it, so all waiters see it.
    event: EventFd,
    deadline: OnceLock<Instant>,
}

impl Stop {
    /// A stop that nobody has asked for yet.
    ///
    /// # Errors
    /// If the system has no file descriptor left.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self(Arc::new(Inner { event, deadline: OnceLock::new() })))
    }

    /// Asks for the stop: requests in flight may end within `grace`. The first call counts.
    pub fn request(&self, grace: Duration) {
        let now = Instant::now();
        let deadline = now.checked_add(grace).unwrap_or(now);
        if self.0.deadline.set(deadline).is_ok()
            && let Err(e) = self.0.event.write(1)
        {
            tracing::error!("cannot wake the threads that should stop: {e}");
        }
    }

    /// When requests in flight must have ended, if the stop was asked for.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.0.deadline.get().copied()
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}
