//! How fast a sync or a verification goes: out of the guest's way, and yet always on.
//!
//! | | ring that it may fill | pause after a chunk |
//! |---|---|---|
//! | the guest is idle | half | none |
//! | the guest is busy (a request in the last 200 ms) | an eighth | three times what the chunk took, at most 100 ms |
//! | nothing was copied for a second | three quarters | - |
//! | a rate is set | as above | what the rate says |
//!
//! So beside a busy guest it takes a quarter of one thread's time, live writes find most of the ring empty, and a ring that
//! never drains does not stop it altogether.

use std::time::{Duration, Instant};

/// A guest's request counts for so long.
const BUSY: Duration = Duration::from_millis(200);
/// Beside a busy guest, work of one part is followed by a pause of so many.
const GIVE_WAY: u32 = 3;
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// Without progress for so long the share of the ring does not count.
const STARVED: Duration = Duration::from_secs(1);
/// One part in so many of the ring, with an idle guest
const IDLE_SHARE: u64 = 2;
/// and with a busy one.
const BUSY_SHARE: u64 = 8;

/// See the module.
pub(crate) struct Pace {
    seen: u64,
    busy_until: Option<Instant>,
    not_before: Option<Instant>,
    last: Instant,
}

impl Pace {
    pub(crate) fn new(now: Instant) -> Pace {
        Pace { seen: 0, busy_until: None, not_before: None, last: now }
    }

    /// What is left of a pause.
    pub(crate) fn pause(&self, now: Instant) -> Option<Duration> {
        self.not_before.and_then(|t| t.checked_duration_since(now)).filter(|d| !d.is_zero())
    }

    /// Whether the guest is busy, which has made `requests` so far.
    fn busy(&mut self, requests: u64, now: Instant) -> bool {
        if requests != self.seen {
            self.seen = requests;
            self.busy_until = Some(now + BUSY);
        }
        self.busy_until.is_some_and(|t| now < t)
    }

    /// How much of a ring of `capacity` bytes may be in use for another chunk to go in.
    pub(crate) fn room(&mut self, capacity: u64, requests: u64, now: Instant) -> u64 {
        if now.saturating_duration_since(self.last) >= STARVED {
            return capacity / 4 * 3;
        }
        capacity / if self.busy(requests, now) { BUSY_SHARE } else { IDLE_SHARE }
    }

    /// Notes that `bytes` were dealt with, from `began` on. `rate` is in bytes a second, 0 for automatic.
    pub(crate) fn done(&mut self, bytes: u64, began: Instant, now: Instant, requests: u64, rate: u64) {
        let took = now.saturating_duration_since(began);
        self.last = now;
        let pause = if rate != 0 {
            let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
            // What a pause was too long for the last time is made up for: it is counted from when it should have ended.
            let from = self.not_before.filter(|t| now.saturating_duration_since(*t) < LONGEST_PAUSE).unwrap_or(began);
            self.not_before = Some(from + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)));
            return;
        } else if self.busy(requests, now) {
            (took * GIVE_WAY).min(LONGEST_PAUSE)
        } else {
            Duration::ZERO
        };
        self.not_before = Some(now + pause);
    }

    /// A new sync begins.
    pub(crate) fn begin(&mut self, now: Instant) {
        (self.last, self.not_before) = (now, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn every_row() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert_eq!(pace.room(800, 0, start), 400, "idle");
        pace.done(1, start, start + MS, 0, 0);
        assert_eq!(pace.pause(start + MS), None);
        let now = start + 2 * MS;
        assert_eq!(pace.room(800, 5, now), 100, "busy");
        pace.done(1, now, now + MS, 6, 0);
        assert_eq!(pace.pause(now + MS), Some(3 * MS));
        pace.done(1, now, now + 1000 * MS, 7, 0);
        assert_eq!(pace.pause(now + 1000 * MS), Some(LONGEST_PAUSE));
        let late = now + 1000 * MS + BUSY;
        assert_eq!(pace.room(800, 7, late), 400, "idle again");
        assert_eq!(pace.room(800, 7, late + STARVED), 600, "starved");
        pace.begin(late + STARVED);
        assert_eq!(pace.room(800, 7, late + STARVED), 400);
    }

    #[test]
    fn a_rate_is_kept_over_many_chunks() {
        let start = Instant::now();
        let (mut now, mut pace) = (start, Pace::new(start));
        for _ in 0..100 {
            // Each wait is a little too long.
            now += pace.pause(now).map_or(Duration::ZERO, |d| d + MS);
            pace.done(1 << 20, now, now + MS / 2, 0, 100 << 20);
            now += MS / 2;
        }
        let took = now.duration_since(start);
        assert!((Duration::from_millis(980)..Duration::from_millis(1010)).contains(&took), "{took:?}");
    }
}
