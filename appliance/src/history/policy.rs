//! Which layers are merged when: pure functions over their sizes.
//!
//! Sizes are put into levels, each `fan_out` times the one before. Neighbours up to a level are merged when together
//! they are sure to be of the next one, and a layer smaller than the one behind it is merged into that. So every version
//! is rewritten about once per level, levels fall from the oldest layer to the newest, and the number of layers
//! grows with the logarithm of the history. Layers that have fallen behind the window are merged when a
//! quarter of them has, so that what retention lets go takes a third more space at most.

use std::ops::Range;

/// What the policy knows of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Tokens and records.
    pub weight: u64,
    /// The layer begins behind this seq.
    pub after_seq: u64,
    /// The layer ends with this seq.
    pub last_seq: u64,
    /// The window at which it was last thinned.
    pub collapsed_to: u64,
}

/// Layers up to this weight are of level 0.
const LEVEL_0: u64 = 1024;

fn level(weight: u64, fan_out: u64) -> u32 {
    let (mut level, mut limit) = (0, LEVEL_0);
    while weight > limit {
        limit = limit.saturating_mul(fan_out);
        level += 1;
    }
    level
}

fn limit(level: u32, fan_out: u64) -> u64 {
    LEVEL_0.saturating_mul(fan_out.saturating_pow(level))
}

/// The neighbours (of `sizes`, oldest first) to merge next, if any.
#[must_use]
pub fn choose(sizes: &[Size], fan_out: usize, window: u64) -> Option<Range<usize>> {
    let fan_out = fan_out.max(2);
    tiers(sizes, fan_out).or_else(|| beyond_window(sizes, window))
}

fn tiers(sizes: &[Size], fan_out: usize) -> Option<Range<usize>> {
    let fan = fan_out as u64;
    let levels: Vec<u32> = sizes.iter().map(|s| level(s.weight, fan)).collect();
    let top = levels.iter().copied().max()?;
    for l in 0..=top {
        let mut start = 0;
        while start < sizes.len() {
            let len = levels[start..].iter().take_while(|x| **x <= l).count();
            let sum = sizes[start..start + len].iter().map(|s| s.weight).fold(0, u64::saturating_add);
            let many = levels[start..start + len].iter().filter(|x| **x == l).count() >= 2 * fan_out;
            if len >= 2 && (many || sum > limit(l, fan).saturating_mul(fan - 1)) {
                return Some(start..start + len);
            }
            start += len.max(1);
        }
    }
    let behind = levels.windows(2).position(|w| w[0] < w[1])?;
    let start = levels[..=behind].iter().rposition(|l| *l >= levels[behind + 1]).map_or(0, |i| i + 1);
    Some(start..behind + 2)
}

/// The oldest layers, if merging them would let go of about a quarter of them.
fn beyond_window(sizes: &[Size], window: u64) -> Option<Range<usize>> {
    let (mut best, mut sum, mut gone) = (None, 0u64, 0u64);
    for (i, s) in sizes.iter().enumerate().take_while(|(_, s)| s.after_seq < window) {
        sum = sum.saturating_add(s.weight);
        gone = gone.saturating_add(share_behind(s, window));
        if gone > 0 && gone >= sum / 4 {
            best = Some(0..i + 1);
        }
    }
    best
}

/// The weight of the part that has fallen behind the window since the layer was last thinned.
fn share_behind(s: &Size, window: u64) -> u64 {
    let span = u128::from(s.last_seq.saturating_sub(s.after_seq)).max(1);
    let from = s.collapsed_to.max(s.after_seq);
    let behind = u128::from(window.min(s.last_seq).saturating_sub(from));
    u64::try_from(u128::from(s.weight) * behind / span).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn merge(sizes: &mut Vec<Size>, range: Range<usize>, window: u64) -> u64 {
        let parts = &sizes[range.clone()];
        let weight = parts.iter().map(|s| s.weight).sum();
        let (after_seq, last_seq) = (parts[0].after_seq, parts[parts.len() - 1].last_seq);
        sizes.splice(range, [Size { weight, after_seq, last_seq, collapsed_to: window }]);
        weight
    }

    proptest! {
        #[test]
        fn layers_stay_few_and_work_stays_small(flushes in proptest::collection::vec(1u64..300_000, 1..400), fan_out in 2usize..9) {
            let (mut sizes, mut seq, mut total, mut work) = (Vec::new(), 0, 0, 0);
            let tiny = flushes.len() as u64 * LEVEL_0;
            for weight in flushes {
                sizes.push(Size { weight, after_seq: seq, last_seq: seq + weight, collapsed_to: 0 });
                (seq, total) = (seq + weight, total + weight);
                let mut steps = 0;
                while let Some(range) = choose(&sizes, fan_out, 0) {
                    work += merge(&mut sizes, range, 0);
                    steps += 1;
                    prop_assert!(steps < 20, "merging comes to an end");
                }
                let levels = u64::from(level(total, fan_out as u64)) + 1;
                prop_assert!(sizes.len() as u64 <= levels * 2 * fan_out as u64, "{} layers", sizes.len());
            }
            let levels = u64::from(level(total, fan_out as u64)) + 1;
            prop_assert!(work <= total * (levels + 2) + tiny, "{work} rewritten for {total}");
        }

        #[test]
        fn what_is_behind_the_window_goes(weights in proptest::collection::vec(1u64..100_000, 1..20)) {
            let (mut sizes, mut seq) = (Vec::new(), 0);
            for weight in weights {
                sizes.push(Size { weight, after_seq: seq, last_seq: seq + 100, collapsed_to: 0 });
                seq += 100;
            }
            for window in (0..=seq).step_by(50) {
                let mut steps = 0;
                while let Some(range) = choose(&sizes, 4, window) {
                    prop_assert!(range.end > range.start && range.end <= sizes.len());
                    merge(&mut sizes, range, window);
                    steps += 1;
                    prop_assert!(steps < 30, "merging comes to an end");
                }
                let old: Vec<&Size> = sizes.iter().filter(|s| s.after_seq < window).collect();
                let behind: u64 = old.iter().map(|s| share_behind(s, window)).sum();
                let all: u64 = old.iter().map(|s| s.weight).sum();
                prop_assert!(behind <= all / 4, "{behind} of {all} should be gone");
            }
        }
    }
}
