//! Time as an injected thing, so that a simulation can own it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A source of time.
pub trait Clock: Send + Sync {
    /// Nanoseconds since 1970. May jump either way.
    fn wall(&self) -> u64;

    /// Nanoseconds from an arbitrary start; never goes back.
    fn monotonic(&self) -> u64;
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts now.
    #[must_use]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

fn nanos(d: std::time::Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

impl Clock for SystemClock {
    fn wall(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, nanos)
    }

    fn monotonic(&self) -> u64 {
        nanos(self.start.elapsed())
    }
}

/// A clock that a test moves by hand.
#[derive(Debug, Default)]
pub struct ManualClock {
    wall: AtomicU64,
    monotonic: AtomicU64,
}

impl ManualClock {
    /// A clock that shows `wall` nanoseconds since 1970.
    #[must_use]
    pub const fn at(wall: u64) -> Self {
        Self { wall: AtomicU64::new(wall), monotonic: AtomicU64::new(0) }
    }

    /// Lets `by` nanoseconds pass.
    pub fn advance(&self, by: u64) {
        self.wall.fetch_add(by, Ordering::Relaxed);
        self.monotonic.fetch_add(by, Ordering::Relaxed);
    }

    /// Sets the wall clock, as an administrator or a bad time server would.
    pub fn jump_to(&self, wall: u64) {
        self.wall.store(wall, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn wall(&self) -> u64 {
        self.wall.load(Ordering::Relaxed)
    }

    fn monotonic(&self) -> u64 {
        self.monotonic.load(Ordering::Relaxed)
    }
}
