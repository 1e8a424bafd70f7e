//! What is kept: a pure policy, and the question that merging asks it.

/// The seqs that must stay readable: all from `window` on, and those pinned.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Keep {
    window: u64,
    pins: Vec<u64>,
}

impl Keep {
    /// Everything.
    #[must_use]
    pub const fn all() -> Self {
        Self { window: 0, pins: Vec::new() }
    }

    /// Every seq from `window` on, and those in `pins`.
    #[must_use]
    pub fn new(window: u64, pins: impl IntoIterator<Item = u64>) -> Self {
        let mut pins: Vec<u64> = pins.into_iter().filter(|p| *p < window).collect();
        pins.sort_unstable();
        pins.dedup();
        Self { window, pins }
    }

    /// First seq of the window.
    #[must_use]
    pub fn window(&self) -> u64 {
        self.window
    }

    /// Whether this seq stays readable.
    #[must_use]
    pub fn keeps(&self, seq: u64) -> bool {
        seq >= self.window || self.pins.binary_search(&seq).is_ok()
    }

    /// Whether a version of `seq`, followed by the next version of `next`, is seen at any kept seq.
    #[must_use]
    pub fn sees(&self, seq: u64, next: u64) -> bool {
        self.first_from(seq) < next
    }

    /// The first kept seq at or after `seq`: a version of `seq` that is seen at all is seen just the same if it is
    /// dated there. Old versions then share their seqs, which makes old layers small.
    #[must_use]
    pub fn first_from(&self, seq: u64) -> u64 {
        if seq >= self.window {
            return seq;
        }
        let at = self.pins.partition_point(|p| *p < seq);
        self.pins.get(at).map_or(self.window, |p| *p)
    }
}

/// The clock of a volume's window: it follows the labels of the writes, and never runs faster than time passes.
///
/// A window that followed the wall clock would let go of an hour of history when that clock jumps by an hour, here or at the
/// agent. So the newest label that was seen first counts, and from then on what the monotonic clock says. Where labels
/// fall behind that, because the agent's clock was put back, it falls back to them, and stays there when they jump forward
/// again. The wall clock can hold the window back, and not push it. While the appliance does not run, the window stands
/// still: history is kept longer by all that, and never shorter than by the time between two rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// What time it was for the window, and when on the monotonic clock.
    now: u64,
    at: u64,
    /// The newest label, and when it was seen first.
    label: u64,
    seen: u64,
}

impl Pace {
    /// Begins with the newest label of a volume, at a time of the monotonic clock.
    #[must_use]
    pub const fn new(label: u64, monotonic: u64) -> Pace {
        Pace { now: label, at: monotonic, label, seen: monotonic }
    }

    /// What time it is for the window, when `label` is the newest. All in nanoseconds.
    pub fn now(&mut self, label: u64, wall: u64, monotonic: u64) -> u64 {
        if label != self.label {
            (self.label, self.seen) = (label, monotonic);
        }
        let run = self.now.saturating_add(monotonic.saturating_sub(self.at));
        let by_label = label.saturating_add(monotonic.saturating_sub(self.seen));
        (self.now, self.at) = (run.min(by_label), monotonic);
        self.now.min(wall)
    }
}

/// A point as retention sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PointRef {
    /// The seq that the volume is at.
    pub seq: u64,
    /// Stays, wherever the window begins: [`thin`](super::thin) decides.
    pub stays: bool,
}

/// What retention decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What stays readable.
    pub keep: Keep,
    /// Seqs of points that fall out of the window and are dropped.
    pub dropped: Vec<u64>,
}

/// Decides what is kept. `window_seq` is the newest seq at the beginning of the window (0 if the window is
/// longer than the history), `first_seq` the first seq of the window up to now (a window never grows
/// backwards: what was dropped stays dropped), `newest` the newest seq, `pins` what exports and users hold.
#[must_use]
pub fn plan(window_seq: u64, first_seq: u64, newest: u64, points: &[PointRef], pins: &[u64]) -> Plan {
    let window = window_seq.max(first_seq).min(newest);
    let stays = |p: &&PointRef| p.seq >= window || p.stays;
    let dropped = points.iter().filter(|p| !stays(p)).map(|p| p.seq).collect();
    let kept = points.iter().filter(stays).map(|p| p.seq);
    Plan { keep: Keep::new(window, kept.chain(pins.iter().copied())), dropped }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever both clocks do, no write goes before it is as old as the window.
        #[test]
        fn a_window_is_never_shorter_than_time(
            steps in proptest::collection::vec((1u64..1000, -5000i64..5000, -5000i64..5000), 1..50),
            window in 1u64..3000,
        ) {
            // Real time, and the two wall clocks' errors; a write at each step.
            let (mut real, mut here, mut there) = (100_000u64, 0i64, 0i64);
            let (mut writes, mut label) = (vec![(real, real)], real);
            let mut pace = Pace::new(label, real);
            for (passes, jump_here, jump_there) in steps {
                real += passes;
                (here, there) = (here + jump_here, there + jump_there);
                label = label.max(real.saturating_add_signed(there));
                writes.push((real, label));
                let start = pace.now(label, real.saturating_add_signed(here), real).saturating_sub(window);
                // The window begins with the newest label at or before its start, and all writes that have it.
                let last = writes.iter().rposition(|w| w.1 <= start).unwrap_or(0);
                let first = writes.iter().position(|w| w.1 == writes[last].1).unwrap_or(0);
                for (at, _) in &writes[..first] {
                    prop_assert!(real - at >= window, "a write of {} ago is gone, the window is {}", real - at, window);
                }
            }
        }

        #[test]
        fn keep_behaves_like_a_set(window in 0u64..30, pins in proptest::collection::vec(0u64..40, 0..6)) {
            let keep = Keep::new(window, pins.clone());
            let kept: Vec<u64> = (0..50).filter(|s| *s >= window || pins.contains(s)).collect();
            for seq in 0..45 {
                prop_assert_eq!(keep.keeps(seq), kept.contains(&seq));
                prop_assert_eq!(keep.first_from(seq), *kept.iter().find(|k| **k >= seq).unwrap());
                for next in seq..48 {
                    prop_assert_eq!(keep.sees(seq, next), kept.iter().any(|k| *k >= seq && *k < next));
                }
            }
        }

        #[test]
        fn a_plan_keeps_the_window_the_pins_and_the_users_points(
            window_seq in 0u64..30, first in 0u64..30, more in 0u64..20,
            points in proptest::collection::vec((1u64..40, any::<bool>()), 0..8), pins in proptest::collection::vec(1u64..40, 0..3),
        ) {
            let newest = first.max(window_seq) + more;
            let points: Vec<PointRef> = points.into_iter().map(|(seq, stays)| PointRef { seq, stays }).collect();
            let plan = plan(window_seq, first, newest, &points, &pins);
            for seq in 1..=newest {
                let wanted = seq >= window_seq.max(first)
                    || pins.contains(&seq)
                    || points.iter().any(|p| p.seq == seq && p.stays);
                prop_assert_eq!(plan.keep.keeps(seq), wanted, "seq {}", seq);
            }
            for p in &points {
                prop_assert_eq!(plan.dropped.contains(&p.seq), !plan.keep.keeps(p.seq) ||
                    points.iter().any(|q| q.seq == p.seq && !q.stays && q.seq < plan.keep.window()));
            }
        }
    }
}
