//! A map from disjoint ranges of blocks to values.
//!
//! Used for the newest places of the memory table and for what is under way on a branch.

use std::collections::BTreeMap;

/// A value that a range of blocks has; a part of the range has the value shifted.
pub trait Span: Copy + PartialEq {
    /// The value of the block `by` blocks after the first.
    #[must_use]
    fn shifted(self, by: u64) -> Self;
}

/// Disjoint ranges of blocks with a value each.
#[derive(Debug)]
pub struct IntervalMap<V> {
    /// From first block to (block behind the last, value of the first).
    ranges: BTreeMap<u64, (u64, V)>,
}

impl<V> Default for IntervalMap<V> {
    fn default() -> Self {
        Self { ranges: BTreeMap::new() }
    }
}

impl<V: Span> IntervalMap<V> {
    /// An empty map.
    #[must_use]
    pub const fn new() -> Self {
        Self { ranges: BTreeMap::new() }
    }

    /// Number of ranges.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether no block has a value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Gives the blocks `start..end` the value `v`, whatever they had. Neighbours that carry on are joined.
    pub fn set(&mut self, mut start: u64, mut end: u64, mut v: V) {
        while let Some((&s, &(e, old))) = self.ranges.range(..end).next_back() {
            if e <= start {
                break;
            }
            self.ranges.remove(&s);
            if e > end {
                self.ranges.insert(end, (e, old.shifted(end - s)));
            }
            if s < start {
                self.ranges.insert(s, (start, old));
            }
        }
        if let Some((&s, &(e, before))) = self.ranges.range(..start).next_back()
            && e == start
            && Self::joins(before, start - s, v)
        {
            (start, v) = (s, before);
        }
        if let Some(&(e, after)) = self.ranges.get(&end)
            && Self::joins(v, end - start, after)
        {
            self.ranges.remove(&end);
            end = e;
        }
        self.ranges.insert(start, (end, v));
    }

    /// Only values that stay the same when shifted are joined: others could outgrow what they describe.
    fn joins(v: V, by: u64, next: V) -> bool {
        v.shifted(by) == v && next == v
    }

    /// Calls `each` with (start, end, value) for the pieces that make up `start..end`, in order; blocks without a
    /// value have `None`.
    pub fn pieces(&self, start: u64, end: u64, mut each: impl FnMut(u64, u64, Option<V>)) {
        let mut at = start;
        let before = self.ranges.range(..start).next_back().filter(|(_, (e, _))| *e > start);
        for (&s, &(e, v)) in before.into_iter().chain(self.ranges.range(start..end)) {
            if s > at {
                each(at, s, None);
                at = s;
            }
            let stop = e.min(end);
            each(at, stop, Some(v.shifted(at - s)));
            at = stop;
        }
        if at < end {
            each(at, end, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// Odd values move on with the block, even ones stay.
    #[derive(Debug, Clone, Copy, PartialEq)]
    struct V(u64);

    impl Span for V {
        fn shifted(self, by: u64) -> Self {
            if self.0.is_multiple_of(2) { self } else { V(self.0 + 2 * by) }
        }
    }

    proptest! {
        #[test]
        fn behaves_like_a_table(sets in proptest::collection::vec((0u64..60, 1u64..20, 0u64..4), 0..40)) {
            let (mut map, mut model) = (IntervalMap::new(), HashMap::new());
            for (start, len, v) in sets {
                map.set(start, start + len, V(v));
                for b in start..start + len {
                    model.insert(b, V(v).shifted(b - start));
                }
                let mut at = 0;
                map.pieces(0, 90, |s, e, v| {
                    assert!(s == at && e > s, "pieces are in order and not empty");
                    for b in s..e {
                        assert_eq!(v.map(|v| v.shifted(b - s)), model.get(&b).copied());
                    }
                    at = e;
                });
                prop_assert_eq!(at, 90);
            }
        }
    }

    #[test]
    fn neighbours_of_one_value_are_one_range() {
        let mut map = IntervalMap::new();
        for b in [1, 3, 2, 0, 4] {
            map.set(b, b + 1, V(2));
        }
        assert_eq!(map.len(), 1);
    }
}
