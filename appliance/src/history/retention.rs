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

/// A point as retention sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PointRef {
    /// The seq that the volume is at.
    pub seq: u64,
    /// Made by policy: goes with the window. Others stay until they are deleted.
    pub auto: bool,
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
    let stays = |p: &&PointRef| p.seq >= window || !p.auto;
    let dropped = points.iter().filter(|p| !stays(p)).map(|p| p.seq).collect();
    let kept = points.iter().filter(stays).map(|p| p.seq);
    Plan { keep: Keep::new(window, kept.chain(pins.iter().copied())), dropped }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
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
            let points: Vec<PointRef> = points.into_iter().map(|(seq, auto)| PointRef { seq, auto }).collect();
            let plan = plan(window_seq, first, newest, &points, &pins);
            for seq in 1..=newest {
                let wanted = seq >= window_seq.max(first)
                    || pins.contains(&seq)
                    || points.iter().any(|p| p.seq == seq && !p.auto);
                prop_assert_eq!(plan.keep.keeps(seq), wanted, "seq {}", seq);
            }
            for p in &points {
                prop_assert_eq!(plan.dropped.contains(&p.seq), !plan.keep.keeps(p.seq) ||
                    points.iter().any(|q| q.seq == p.seq && q.auto && q.seq < plan.keep.window()));
            }
        }
    }
}
