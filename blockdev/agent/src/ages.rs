//! How old a seq is, whatever the wall clock does.
//!
//! A record's label is a time of the wall clock, which may jump. The monotonic clock knows better, but is not in the record: so
//! now and then it is noted which seq came next. Between two notes the label decides, outside of them it is not believed. For what
//! is older than this process there is only the label, and how far the wall clock was from it at the start.

use afterimage_base::clock::Clock;
use std::collections::VecDeque;

/// Notes are at least so far apart in nanoseconds.
const APART: u64 = 200_000_000;
/// Notes that are kept; when there are more, every second one goes.
const MOST: usize = 2048;

/// Notes of (next seq, monotonic time), oldest first.
#[derive(Debug)]
pub(crate) struct Ages {
    wall_at_start: u64,
    start: u64,
    notes: VecDeque<(u64, u64)>,
}

impl Ages {
    pub(crate) fn new(clock: &dyn Clock) -> Ages {
        Ages { wall_at_start: clock.wall(), start: clock.monotonic(), notes: VecDeque::new() }
    }

    /// Notes that `next` is the next seq at `now`.
    pub(crate) fn note(&mut self, next: u64, now: u64) {
        // While nothing is written there are two notes: since when, and up to when.
        let idle = self.notes.iter().rev().take(2).filter(|n| n.0 == next).count() == 2;
        if idle && let Some(last) = self.notes.back_mut() {
            last.1 = now;
        } else if self.notes.back().is_none_or(|last| now.saturating_sub(last.1) >= APART) {
            self.notes.push_back((next, now));
        }
        if self.notes.len() > MOST {
            let mut odd = false;
            self.notes.retain(|_| {
                odd = !odd;
                odd
            });
        }
    }

    /// How long before the start of this process a label says that something was, in nanoseconds.
    pub(crate) fn before_start(&self, label: u64) -> u64 {
        self.wall_at_start.saturating_sub(label)
    }

    /// Age of the record `seq` with this label at these times of wall and monotonic clock, in nanoseconds.
    pub(crate) fn of_seq(&self, seq: u64, label: u64, wall: u64, now: u64) -> u64 {
        let at = self.notes.partition_point(|(next, _)| *next <= seq);
        let youngest = self.notes.get(at).map_or(0, |(_, t)| now.saturating_sub(*t));
        let oldest = match at.checked_sub(1).and_then(|i| self.notes.get(i)) {
            Some((_, t)) => now.saturating_sub(*t),
            None => now.saturating_sub(self.start) + self.before_start(label),
        };
        wall.saturating_sub(label).clamp(youngest.min(oldest), oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use afterimage_base::clock::ManualClock;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    proptest! {
        /// Whatever the wall clock does, a lag is right to within the distance of two notes.
        #[test]
        fn a_lag_is_what_really_passed(
            steps in proptest::collection::vec((1u64..2 * SECOND, -7200i64..7200, 0u64..4, any::<bool>()), 1..60),
            wanted: prop::sample::Index,
        ) {
            let clock = ManualClock::at(1_700_000_000 * SECOND);
            let mut ages = Ages::new(&clock);
            ages.note(1, clock.monotonic());
            let mut records = Vec::new();
            for (passes, jump, writes, jumps) in steps {
                clock.advance(passes);
                if jumps {
                    clock.jump_to(clock.wall().saturating_add_signed(jump * SECOND as i64));
                }
                records.extend((0..writes).map(|_| (clock.wall(), clock.monotonic())));
                ages.note(records.len() as u64 + 1, clock.monotonic());
            }
            prop_assume!(!records.is_empty());
            let i = wanted.index(records.len());
            let (label, at) = records[i];
            let (now, real) = (clock.monotonic(), clock.monotonic() - at);
            let age = ages.of_seq(i as u64 + 1, label, clock.wall(), now);
            prop_assert!(age.abs_diff(real) <= 2 * SECOND + APART, "{age} instead of {real}");
        }
    }

    #[test]
    fn what_is_older_than_the_process_has_only_its_label() {
        let clock = ManualClock::at(1000 * SECOND);
        let ages = Ages::new(&clock);
        clock.advance(5 * SECOND);
        assert_eq!(ages.of_seq(7, 990 * SECOND, clock.wall(), clock.monotonic()), 15 * SECOND);
        clock.jump_to(9000 * SECOND);
        assert_eq!(ages.of_seq(7, 990 * SECOND, clock.wall(), clock.monotonic()), 15 * SECOND);
    }
}
