//! Waiting for other threads.

use super::simulated;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::panic::Location;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

/// As [`std::sync::Condvar`], for a `std` mutex; a poisoned mutex is taken as it is.
#[derive(Debug, Default)]
pub struct Condvar(std::sync::Condvar);

impl Condvar {
    /// A new one.
    #[must_use]
    pub const fn new() -> Self {
        Self(std::sync::Condvar::new())
    }

    fn key(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Gives `mutex` back, waits for a notification, and takes it again. `guard` is that of `mutex`.
    #[track_caller]
    pub fn wait<'a, T>(&self, mutex: &'a Mutex<T>, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        let Some(world) = simulated() else {
            return self.0.wait(guard).unwrap_or_else(PoisonError::into_inner);
        };
        drop(guard);
        world.wait(self.key(), None, Location::caller());
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`wait`](Self::wait), but not longer than `timeout`.
    #[track_caller]
    pub fn wait_timeout<'a, T>(
        &self,
        mutex: &'a Mutex<T>,
        guard: MutexGuard<'a, T>,
        timeout: Duration,
    ) -> MutexGuard<'a, T> {
        let Some(world) = simulated() else {
            return self.0.wait_timeout(guard, timeout).unwrap_or_else(PoisonError::into_inner).0;
        };
        drop(guard);
        world.wait(self.key(), Some(timeout), Location::caller());
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets one waiter go on.
    pub fn notify_one(&self) {
        match simulated() {
            Some(world) => world.notify(self.key(), false),
            None => self.0.notify_one(),
        }
    }

    /// Lets all waiters go on.
    pub fn notify_all(&self) {
        match simulated() {
            Some(world) => world.notify(self.key(), true),
            None => self.0.notify_all(),
        }
    }
}

/// A mutex that may be held while its holder blocks. A poisoned one is taken as it is.
#[derive(Debug, Default)]
pub struct LongMutex<T>(Mutex<T>);

/// Holds a [`LongMutex`].
#[derive(Debug)]
pub struct LongGuard<'a, T> {
    /// `None` only while it is dropped.
    guard: Option<MutexGuard<'a, T>>,
    key: usize,
}

impl<T> LongMutex<T> {
    /// A mutex around `value`.
    #[must_use]
    pub const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Takes it.
    #[track_caller]
    pub fn lock(&self) -> LongGuard<'_, T> {
        let key = std::ptr::from_ref(self).addr();
        let Some(world) = simulated() else {
            return LongGuard { guard: Some(self.0.lock().unwrap_or_else(PoisonError::into_inner)), key };
        };
        loop {
            match self.0.try_lock() {
                Ok(guard) => return LongGuard { guard: Some(guard), key },
                Err(TryLockError::Poisoned(e)) => return LongGuard { guard: Some(e.into_inner()), key },
                Err(TryLockError::WouldBlock) => world.wait(key, None, Location::caller()),
            };
        }
    }
}

impl<T> Deref for LongGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.guard {
            Some(guard) => guard,
            None => unreachable!("the guard is there until it is dropped"),
        }
    }
}

impl<T> DerefMut for LongGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        match &mut self.guard {
            Some(guard) => guard,
            None => unreachable!("the guard is there until it is dropped"),
        }
    }
}

impl<T> Drop for LongGuard<'_, T> {
    fn drop(&mut self) {
        self.guard = None;
        if let Some(world) = simulated() {
            world.notify(self.key, true);
        }
    }
}

/// An eventfd: other threads (or io_uring) ring it, one waits for it.
#[derive(Debug)]
pub struct Event(EventFd);

fn key_of(fd: BorrowedFd<'_>) -> usize {
    // Small and odd: no address of anything that is waited for.
    usize::try_from(fd.as_raw_fd()).unwrap_or(0) * 2 + 1
}

impl Event {
    /// One that has not been rung.
    ///
    /// # Errors
    /// If the system has no descriptors left.
    pub fn new() -> io::Result<Event> {
        Ok(Event(EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?))
    }

    /// Rings it.
    pub fn ring(&self) {
        // It can fail only when the counter is at its end, and then the eventfd is readable anyway.
        let _ = self.0.write(1);
        if let Some(world) = simulated() {
            world.notify(key_of(self.0.as_fd()), true);
        }
    }

    /// Takes back all rings.
    pub fn clear(&self) {
        // EAGAIN says that nothing was there.
        let _ = self.0.read();
    }

    /// Waits until it is rung, or for `timeout`; may return early.
    #[track_caller]
    pub fn wait(&self, timeout: Duration) {
        wait_readable(self.0.as_fd(), Some(timeout));
    }

    /// Readable while it is rung.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The number of [`fd`](Self::fd).
    #[must_use]
    pub fn raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Waits until `fd`, the descriptor of an [`Event`], is readable, or for `timeout`; may return early.
#[track_caller]
pub fn wait_readable(fd: BorrowedFd<'_>, timeout: Option<Duration>) {
    let limit = match timeout {
        // Rounded up: a wait that is cut to nothing would spin.
        Some(t) => PollTimeout::try_from(t.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX),
        None => PollTimeout::NONE,
    };
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    // An interrupted wait is a short wait: every caller looks again.
    let Some(world) = simulated() else {
        let _: Result<_, Errno> = poll(&mut fds, limit);
        return;
    };
    if !poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0) {
        world.wait(key_of(fd), timeout, Location::caller());
    }
}
