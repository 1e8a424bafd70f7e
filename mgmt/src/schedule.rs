//! When automatic points are due: a pure decision, with the clock outside.
//!
//! A point is due for a volume when it is consistent (live), has been written since its last point, and the last
//! point is at least the interval old. So an idle disk collects no points, and a volume gets its first point
//! as soon as its initial sync or resync has ended.

use std::collections::BTreeMap;
use std::time::Duration;

/// What the schedule needs to know of a volume.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether a point made now would be valid.
    pub consistent: bool,
    /// Its newest seq.
    pub seq: u64,
}

#[derive(Debug, Clone, Copy)]
struct Last {
    at: Duration,
    seq: u64,
}

/// The schedule of all volumes.
#[derive(Debug)]
pub struct Schedule {
    every: Option<Duration>,
    /// What a policy says of some volumes.
    policy: BTreeMap<String, Option<Duration>>,
    last: BTreeMap<String, Last>,
}

impl Schedule {
    /// Points every so often; `None` makes none.
    #[must_use]
    pub const fn new(every: Option<Duration>) -> Self {
        Self { every, policy: BTreeMap::new(), last: BTreeMap::new() }
    }

    /// For these volumes something else counts, and no more for others of which that was said before.
    pub fn set_policy(&mut self, policy: BTreeMap<String, Option<Duration>>) {
        self.policy = policy;
    }

    /// How often points of a volume are made.
    #[must_use]
    pub fn every(&self, volume: &str) -> Option<Duration> {
        self.policy.get(volume).copied().unwrap_or(self.every)
    }

    /// Whether a point is due for the volume at monotonic time `now`.
    #[must_use]
    pub fn due(&self, now: Duration, volume: Seen<'_>) -> bool {
        let Some(every) = self.every(volume.name) else { return false };
        volume.consistent
            && match self.last.get(volume.name) {
                None => true,
                Some(last) => volume.seq > last.seq && now.saturating_sub(last.at) >= every,
            }
    }

    /// Whether a point at shutdown is worth making: the volume has been written since the last one.
    #[must_use]
    pub fn due_at_shutdown(&self, volume: Seen<'_>) -> bool {
        self.every(volume.name).is_some()
            && volume.consistent
            && self.last.get(volume.name).is_none_or(|last| volume.seq > last.seq)
    }

    /// Notes that a point (of whatever kind) stands at `seq`.
    pub fn made(&mut self, now: Duration, name: &str, seq: u64) {
        self.last.insert(name.to_owned(), Last { at: now, seq });
    }

    /// Notes that a point was tried and failed: the next try is an interval later, not at once.
    pub fn failed(&mut self, now: Duration, name: &str) {
        let seq = self.last.get(name).map_or(0, |last| last.seq);
        self.last.insert(name.to_owned(), Last { at: now, seq });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_secs(60);

    fn seen(consistent: bool, seq: u64) -> Seen<'static> {
        Seen { name: "d", consistent, seq }
    }

    #[test]
    fn a_point_is_due_once_consistent_then_at_intervals_with_writes() {
        let mut s = Schedule::new(Some(5 * MIN));
        assert!(!s.due(MIN, seen(false, 5)), "not during the initial sync");
        assert!(s.due(MIN, seen(true, 6)), "as soon as it is live");
        s.made(MIN, "d", 7);
        assert!(!s.due(MIN, seen(true, 7)));
        assert!(!s.due(20 * MIN, seen(true, 7)), "nothing was written");
        assert!(!s.due(5 * MIN, seen(true, 8)), "too early");
        assert!(s.due(6 * MIN, seen(true, 8)));
        assert!(!s.due(6 * MIN, seen(false, 8)), "not while dirty");
        s.failed(6 * MIN, "d");
        assert!(!s.due(7 * MIN, seen(true, 8)));
        assert!(s.due(11 * MIN, seen(true, 8)));
    }

    #[test]
    fn what_a_policy_says_of_a_volume_counts_as_long_as_it_says_it() {
        let mut s = Schedule::new(Some(5 * MIN));
        s.made(MIN, "d", 7);
        s.set_policy([("d".to_owned(), Some(MIN)), ("e".to_owned(), None)].into());
        assert!(s.due(2 * MIN, seen(true, 8)) && !s.due(2 * MIN, Seen { name: "e", ..seen(true, 8) }));
        s.set_policy([("d".to_owned(), None)].into());
        assert!(!s.due(20 * MIN, seen(true, 8)) && !s.due_at_shutdown(seen(true, 8)));
        assert!(s.due(2 * MIN, Seen { name: "e", ..seen(true, 8) }));
        s.set_policy(BTreeMap::new());
        assert!(s.due(6 * MIN, seen(true, 8)) && !s.due(5 * MIN, seen(true, 8)));
    }

    #[test]
    fn shutdown_makes_one_if_there_is_something_new() {
        let mut s = Schedule::new(Some(5 * MIN));
        assert!(s.due_at_shutdown(seen(true, 3)));
        assert!(!s.due_at_shutdown(seen(false, 3)));
        s.made(MIN, "d", 4);
        assert!(!s.due_at_shutdown(seen(true, 4)));
        assert!(s.due_at_shutdown(seen(true, 5)));
        let off = Schedule::new(None);
        assert!(!off.due(MIN, seen(true, 3)) && !off.due_at_shutdown(seen(true, 3)));
    }
}
