//! The gate that every write passes before it takes its seq, and that a barrier closes.
//!
//! One word: the top bit says closed, the rest counts writers inside (passed, seq not yet taken). Passing an
//! open gate is one atomic addition; closing sets the bit and waits until the count is zero. From then until
//! the gate opens no writer can take a seq, so a marker appended now has all earlier writes before it and all
//! later ones behind it.

use crate::world;
use crate::world::sync::Condvar;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

const CLOSED: u64 = 1 << 63;

/// See the module.
#[derive(Debug, Default)]
pub struct Gate {
    word: AtomicU64,
    lock: Mutex<()>,
    changed: Condvar,
}

/// Proof that a writer is inside. Dropped once the writer has taken its seq.
#[derive(Debug)]
#[must_use]
pub struct Pass<'a>(&'a Gate);

/// Proof that the gate is closed and nobody is inside. Opens it when dropped.
#[derive(Debug)]
#[must_use]
pub struct Hold<'a>(&'a Gate);

impl Gate {
    /// An open gate.
    #[must_use]
    pub const fn new() -> Self {
        Self { word: AtomicU64::new(0), lock: Mutex::new(()), changed: Condvar::new() }
    }

    /// Goes inside, waiting while the gate is closed.
    pub fn enter(&self) -> Pass<'_> {
        loop {
            if self.word.fetch_add(1, Ordering::Acquire) & CLOSED == 0 {
                return Pass(self);
            }
            self.leave();
            let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            while self.word.load(Ordering::Acquire) & CLOSED != 0 {
                guard = self.changed.wait(&self.lock, guard);
            }
        }
    }

    fn leave(&self) {
        let before = self.word.fetch_sub(1, Ordering::Release);
        if before & CLOSED != 0 {
            // Whoever closes waits under the lock: taking it makes the wake-up impossible to miss.
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.changed.notify_all();
        }
    }

    /// Closes the gate and waits until nobody is inside. One closer at a time: a second waits for the first
    /// to open.
    pub fn close(&self) -> Hold<'_> {
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while self.word.load(Ordering::Acquire) & CLOSED != 0 {
            guard = self.changed.wait(&self.lock, guard);
        }
        self.word.fetch_or(CLOSED, Ordering::AcqRel);
        while self.word.load(Ordering::Acquire) != CLOSED {
            guard = self.changed.wait(&self.lock, guard);
        }
        drop(guard);
        Hold(self)
    }

    /// As [`close`](Self::close), but not for longer than until `limit`: then the gate is as it was, and the answer `None`.
    pub fn close_until(&self, limit: Instant) -> Option<Hold<'_>> {
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while self.word.load(Ordering::Acquire) & CLOSED != 0 {
            let left = limit.saturating_duration_since(world::now());
            if left.is_zero() {
                return None;
            }
            guard = self.changed.wait_timeout(&self.lock, guard, left);
        }
        self.word.fetch_or(CLOSED, Ordering::AcqRel);
        while self.word.load(Ordering::Acquire) != CLOSED {
            let left = limit.saturating_duration_since(world::now());
            if left.is_zero() {
                drop(guard);
                drop(Hold(self));
                return None;
            }
            guard = self.changed.wait_timeout(&self.lock, guard, left);
        }
        drop(guard);
        Some(Hold(self))
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let guard = self.0.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.word.fetch_and(!CLOSED, Ordering::Release);
        drop(guard);
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    #[test]
    fn who_waits_too_long_for_a_gate_leaves_it_open() {
        use std::time::Duration;
        let (gate, soon) = (Gate::new(), || Instant::now() + Duration::from_millis(20));
        let pass = gate.enter();
        assert!(gate.close_until(soon()).is_none());
        drop(pass);
        drop(gate.enter());
        let hold = gate.close_until(soon());
        assert!(hold.is_some() && gate.close_until(soon()).is_none());
        drop(hold);
        drop(gate.enter());
    }

    #[test]
    fn nobody_is_inside_while_it_is_held() {
        let gate = Gate::new();
        let (inside, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let pass = gate.enter();
                        inside.fetch_add(1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(pass);
                    }
                });
            }
            for _ in 0..2 {
                s.spawn(|| {
                    for _ in 0..500 {
                        let hold = gate.close();
                        assert_eq!(inside.load(Ordering::SeqCst), 0);
                        drop(hold);
                        thread::yield_now();
                    }
                    stop.store(true, Ordering::Relaxed);
                });
            }
        });
    }
}
