//! Arithmetic of the ring's head and pages, without any memory.
//!
//! The head is one word: bit 63 *closed*, bits 32..63 the low 31 bits of the page counter, bits 0..32 the low half
//! of the next seq. Both counters only grow; full values are found by adding to the limit (the point up to which
//! everything is free) what the head is ahead of it, which is never more than the ring holds.
//!
//! A compare-and-swap of the head could be fooled only if, between its load and its swap, exactly a multiple
//! of 2^32 records and of 2^31 pages went by: at a million writes a second that takes over an hour in one
//! thread's pause and the exact count. The page counter makes it rarer still.

/// The closed bit.
pub(crate) const CLOSED: u64 = 1 << 63;
const PAGES_MASK: u64 = (1 << 31) - 1;
const SEQ_MASK: u64 = (1 << 32) - 1;

/// A point in the ring: a seq, and the pages used before it since the ring was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) seq: u64,
    pub(crate) pages: u64,
}

impl Point {
    /// The head word of an open ring whose next record begins here.
    pub(crate) const fn pack(self) -> u64 {
        (self.pages & PAGES_MASK) << 32 | (self.seq & SEQ_MASK)
    }

    /// The point that a head word means, `self` being the limit and not ahead of it.
    pub(crate) const fn expand(self, head: u64) -> Point {
        Point {
            seq: self.seq + (head.wrapping_sub(self.seq) & SEQ_MASK),
            pages: self.pages + ((head >> 32).wrapping_sub(self.pages) & PAGES_MASK),
        }
    }
}

/// Sizes of a ring, and what of them is kept for markers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) slots: u64,
    pub(crate) pages: u64,
}

/// Slots and pages that data may not use, so that a full ring can still take a point or the end of a gap.
const MARKER_SLOTS: u64 = 64;
const MARKER_PAGES: u64 = 16;

impl Shape {
    /// The number of the slot of a seq.
    pub(crate) const fn slot(self, seq: u64) -> u64 {
        seq & (self.slots - 1)
    }

    /// The page counter behind a record of `n` pages that is reserved when `used` pages have been: pages at the end
    /// of the area that are too few for it are skipped.
    pub(crate) const fn end(self, used: u64, n: u64) -> u64 {
        if n == 0 {
            return used;
        }
        let index = used % self.pages;
        if index + n > self.pages { used + (self.pages - index) + n } else { used + n }
    }

    /// Whether the ring, free up to `limit`, has room for a record at `at` whose pages end at `end`.
    pub(crate) fn has_room(self, limit: Point, at: Point, end: u64, marker: bool) -> bool {
        let (slots, pages) =
            if marker { (0, 0) } else { (MARKER_SLOTS.min(self.slots / 8), MARKER_PAGES.min(self.pages / 8)) };
        at.seq - limit.seq < self.slots - slots && end - limit.pages <= self.pages - pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_head_expands_to_what_was_packed(seq in 1u64..1 << 48, pages in 0u64..1 << 47, ds in 0u64..1 << 31, dp in 0u64..1 << 31) {
            let limit = Point { seq, pages };
            let at = Point { seq: seq + ds, pages: pages + dp };
            prop_assert_eq!(at.pack() & CLOSED, 0);
            prop_assert_eq!(limit.expand(at.pack()), at);
            prop_assert_eq!(limit.expand(at.pack() | CLOSED), at);
        }

        #[test]
        fn pages_of_a_record_are_consecutive_and_new(used in 0u64..1 << 40, n in 0u64..20, pages in 20u64..100) {
            let shape = Shape { slots: 64, pages };
            let end = shape.end(used, n);
            prop_assert!(end >= used + n && end < used + n + pages.min(n.max(1)));
            if n > 0 {
                prop_assert!((end - n) % pages + n <= pages, "does not wrap");
            }
        }
    }
}
