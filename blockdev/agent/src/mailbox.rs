//! How other threads reach a queue: a list and an eventfd, which is also the queue's `wake_fd`.
//!
//! Writers of the list ring the eventfd while they hold the list's lock, so whoever has emptied the list and
//! cleared the eventfd is not woken for something it has already seen.

use afterimage_base::world::sync::Event;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What another thread has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mail {
    /// The range that this job waited for is its own now.
    Granted(usize),
    /// The regions that this job waited for are marked in the write-intent map.
    Marked(usize),
    /// This operation of the disk has ended, with 0 or an error number.
    Finished {
        /// Index of the operation.
        op: usize,
        /// 0 or an error number.
        errno: i32,
    },
}

/// See the module.
pub(crate) struct Mailbox {
    list: Mutex<Vec<Mail>>,
    event: Event,
}

impl Mailbox {
    pub(crate) fn new() -> io::Result<Mailbox> {
        Ok(Mailbox { list: Mutex::new(Vec::new()), event: Event::new()? })
    }

    pub(crate) fn post(&self, mail: Mail) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.push(mail);
        self.event.ring();
    }

    /// Clears the eventfd and moves what has arrived to `out`. In this order: what arrives in between
    /// leaves the eventfd readable.
    pub(crate) fn take(&self, out: &mut Vec<Mail>) {
        self.event.clear();
        out.append(&mut self.list.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits until something may have arrived, or for `timeout`.
    pub(crate) fn wait(&self, timeout: Duration) {
        self.event.wait(timeout);
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.event.fd()
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.event.raw_fd()
    }
}
