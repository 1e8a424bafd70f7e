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
///
/// **Laps.** The page counter divided by `pages` is the lap, the remainder the position. A record lies at the position of its
/// counter. As long as the appliance keeps up, laps end early ([`WARM`]): the pages at the front are used again while they are in the
/// processor's caches, mapped for writing, and dirty anyway, instead of walking through the whole file. What is behind the
/// early end is not lost: when the front of the new lap meets the records of the older one that are still held, it goes on behind the
/// older lap's end. So records of two laps at most are held, and never more pages than there are.
///
/// ```text
/// position   0        h      t            w                pages
///            | newer  | free |   older    |       free       |     h: head, t: first that is held, w: end of the older lap
///            | newer         |   older    | newer   h | free |     the same when no room was left before t
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) slots: u64,
    pub(crate) pages: u64,
}

/// Slots and pages that data may not use, so that a full ring can still take a point or the end of a gap.
const MARKER_SLOTS: u64 = 64;
const MARKER_PAGES: u64 = 16;
/// Pages of a lap that ends early at the least: 8 MiB, more than is usually on its way to the appliance, less than a processor's last cache.
const WARM: u64 = 2048;

impl Shape {
    /// The number of the slot of a seq.
    pub(crate) const fn slot(self, seq: u64) -> u64 {
        seq & (self.slots - 1)
    }

    /// The counter at the beginning of the lap that `counter` is in.
    pub(crate) const fn lap(self, counter: u64) -> u64 {
        counter - counter % self.pages
    }

    /// Where the lap before the one that begins at `base` ended, as a position. `lap_end` is the greatest counter at which a lap has
    /// ended or was about to: if it is not of that lap, nothing is known, and what lies behind it is left alone.
    fn end_before(self, base: u64, lap_end: u64) -> u64 {
        if lap_end < base && lap_end + self.pages > base { lap_end + self.pages - base } else { self.pages }
    }

    /// The page counter behind a record of `n` pages (not 0) that is reserved at `at`, everything before `limit` being free;
    /// `None` if there is no room.
    pub(crate) fn place(self, limit: u64, at: u64, lap_end: u64, n: u64) -> Option<u64> {
        let (base, index) = (self.lap(at), at % self.pages);
        if limit >= base {
            let free_before = limit - base;
            let enough = n <= free_before;
            let early = (self.warm()..=self.half()).contains(&index) && free_before >= index / 2 && enough;
            return if index + n <= self.pages && !early {
                Some(at + n)
            } else {
                enough.then_some(base + self.pages + n)
            };
        }
        // Two laps are held already, and the newer one is at its end.
        let tail = (limit + self.pages).checked_sub(base)?;
        let end = self.end_before(base, lap_end);
        if index >= end {
            (index + n <= self.pages).then_some(at + n)
        } else if index + n <= tail {
            Some(at + n)
        } else {
            // Not for the few pages behind a lap that ended by itself: what is before them could not be used then until all the
            // records at the front are free.
            (end <= self.half() && end + n <= self.pages).then_some(base + end + n)
        }
    }

    /// The counter at which a lap ends with the record of `n` pages reserved at `at` that ends at `end`, if one does.
    pub(crate) fn lap_end_with(self, at: u64, end: u64, n: u64) -> Option<u64> {
        if n == 0 {
            None
        } else if end.is_multiple_of(self.pages) {
            // Up to the very last page: nothing lies behind it.
            Some(end)
        } else {
            (self.lap(end - n) > self.lap(at)).then_some(at)
        }
    }

    /// From which position on a lap may end early. When the appliance goes away, up to half of such a lap stays unused until records
    /// are freed again: little of any ring.
    fn warm(self) -> u64 {
        WARM.min((self.pages / 8).max(1))
    }

    /// A lap that ends early does so in its first half, and only behind such a lap the next one goes on. Two laps of a huge ring could not
    /// be told apart by the head's counter: its laps never end early.
    const fn half(self) -> u64 {
        if self.pages < 1 << 30 { self.pages / 2 } else { 0 }
    }

    /// Pages that are in use between `limit` and `at`.
    pub(crate) fn used(self, limit: u64, at: u64, lap_end: u64) -> u64 {
        // A counter at the very end of a lap belongs to that lap.
        let base = if at > limit && at.is_multiple_of(self.pages) { at - self.pages } else { self.lap(at) };
        if limit >= base {
            return at.saturating_sub(limit).min(self.pages);
        }
        let Some(tail) = (limit + self.pages).checked_sub(base) else { return self.pages };
        let (index, end) = (at - base, self.end_before(base, lap_end));
        let newer = if index <= tail { index } else { tail + index.saturating_sub(end) };
        (newer + end.saturating_sub(tail)).min(self.pages)
    }

    /// Whether a ring that is free up to `limit` may take a record at `at` whose pages end at `end`, so that
    /// enough is left for markers.
    pub(crate) fn has_room(self, limit: Point, at: Point, end: u64, lap_end: u64, marker: bool) -> bool {
        let (slots, pages) =
            if marker { (0, 0) } else { (MARKER_SLOTS.min(self.slots / 8), MARKER_PAGES.min(self.pages / 8)) };
        let slot_left = at.seq - limit.seq < self.slots - slots;
        slot_left && (end == at.pages || self.used(limit.pages, end, lap_end) <= self.pages - pages)
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
        fn pages_in_use_are_never_given_out_again(pages in 5u64..80, steps in prop::collection::vec((0u8..4, 1u64..9), 1..400)) {
            prop_assert_eq!(run(pages, &steps, false), Ok(()));
        }
    }

    /// Records in the order of their seqs, as (first counter, end), in a ring of so many pages; what a record gets must lie
    /// in pages that no other holds. `deaf` breaks a rule: the end of the lap before is not known but guessed.
    fn run(pages: u64, steps: &[(u8, u64)], deaf: bool) -> Result<(), String> {
        let shape = Shape { slots: 1 << 20, pages };
        let (mut held, mut limit, mut at, mut lap_end) = (std::collections::VecDeque::new(), 0, 0, 0u64);
        for (what, n) in steps {
            let n = (*n).min(pages);
            if *what == 0 {
                for _ in 0..n {
                    held.pop_front();
                }
                limit = held.front().map_or(at, |(begin, _)| *begin);
                continue;
            }
            let guess = if deaf { shape.lap(at).saturating_sub(pages / 2) } else { lap_end };
            let in_use: u64 = held.iter().map(|(begin, end)| end - begin).sum();
            let said = shape.used(limit, at, lap_end);
            if said < in_use || said > pages {
                return Err(format!("{in_use} pages are in use, it says {said}"));
            }
            let Some(end) = shape.place(limit, at, guess, n) else {
                // Each of the two laps may have left room at its end that was too small for a record.
                let lost = 2 * 8 + pages / 2 + 8;
                if in_use + n + lost <= pages || in_use == 0 && n <= pages / 2 {
                    return Err(format!("full with {in_use} of {pages} in use and {n} asked for"));
                }
                continue;
            };
            let first = (end - n) % pages;
            let crosses = |(begin, end): &(u64, u64)| {
                let (other, m) = (begin % pages, end - begin);
                first < other + m && other < first + n
            };
            if end - n < at || first + n > pages || held.iter().any(crosses) {
                return Err(format!("{n} pages at {first} in lap {} overlap what is held", (end - n) / pages));
            }
            lap_end = shape.lap_end_with(at, end, n).map_or(lap_end, |e| lap_end.max(e));
            held.push_back((end - n, end));
            at = end;
        }
        Ok(())
    }

    #[test]
    fn broken_on_purpose_the_end_of_a_lap_is_guessed() {
        let steps: Vec<_> = (0..4000u64).map(|i| ((i * i % 7 != 0).into(), 1 + i % 5)).collect();
        assert_eq!(run(40, &steps, false), Ok(()));
        assert!(run(40, &steps, true).is_err(), "the check sees pages given out twice");
    }

    #[test]
    fn a_ring_whose_records_are_freed_stays_in_its_first_pages() {
        let shape = Shape { slots: 1 << 20, pages: 1 << 18 };
        let (mut at, mut lap_end, mut furthest) = (0u64, 0u64, 0);
        let mut ends = std::collections::VecDeque::from([0]);
        for _ in 0..100_000 {
            // A thousand records are on their way.
            let limit = if ends.len() > 1000 { ends.pop_front().unwrap() } else { 0 };
            let end = shape.place(limit, at, lap_end, 1).unwrap();
            lap_end = shape.lap_end_with(at, end, 1).map_or(lap_end, |e| lap_end.max(e));
            furthest = furthest.max((end - 1) % shape.pages);
            ends.push_back(end);
            at = end;
        }
        assert!((WARM - 1..2 * WARM).contains(&furthest), "{furthest}");
        // The appliance goes away: the rest of the ring is there all the same.
        let (limit, mut more) = (ends[0], 0);
        while let Some(end) = shape.place(limit, at, lap_end, 1) {
            (at, more) = (end, more + 1);
        }
        assert!(more > shape.pages - 2 * WARM, "{more}");
    }
}
