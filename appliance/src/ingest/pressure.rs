//! When there is no time to reduce.
//!
//! Compressing takes nine tenths of what the appliance does with a new block. If guests write faster than it compresses, their rings
//! fill up, and a ring that is full means a gap and a resync. So an agent says how full its ring is
//! ([`Fill`](afterimage_format::wire::Fill)), and from [`PRESSED_FROM`] on the frames of its session are sealed as the blocks came:
//! found zero or known, hashed, encrypted, durable, but not compressed. Their segments say in their footers how many
//! blocks that are. When nothing presses any more, collection copies those blocks like those of any sparse segment, and
//! copying compresses. Nothing else differs: what a kill leaves at any moment is what it leaves of collection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// From so many sixteenths of the agent's ring on, frames land unreduced. A sync alone fills half of it.
pub const PRESSED_FROM: u8 = 10;
/// Until there are fewer than these.
pub const PRESSED_UNTIL: u8 = 6;

/// See the module.
#[derive(Debug, Default)]
pub struct Pressure {
    sessions: Arc<AtomicUsize>,
    left_over: AtomicBool,
}

/// A session that has no time, until it is dropped.
#[derive(Debug)]
pub struct Pressed(Arc<AtomicUsize>);

impl Drop for Pressed {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pressure {
    /// Counts a session.
    #[must_use]
    pub fn press(&self) -> Pressed {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        Pressed(Arc::clone(&self.sessions))
    }

    /// Whether a session has no time.
    #[must_use]
    pub fn any(&self) -> bool {
        self.sessions.load(Ordering::Relaxed) > 0
    }

    /// Notes that there is something to be reduced later.
    pub fn left_over(&self) {
        self.left_over.store(true, Ordering::Relaxed);
    }

    /// Whether there was when a round of collection looked last, or has come since.
    #[must_use]
    pub fn has_left_over(&self) -> bool {
        self.left_over.load(Ordering::Relaxed)
    }

    /// A round of collection begins to look.
    pub fn begin(&self) {
        self.left_over.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[path = "pressure_tests.rs"]
mod tests;
