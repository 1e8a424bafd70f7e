//! The dedupe index: from the fingerprint of a block to its place, in memory of a fixed size.
//!
//! A table of buckets of eight 24-byte entries (16 of fingerprint, 8 of place). A full bucket lets its oldest
//! entry go: what is lost is ratio, never correctness. The table is anonymous memory that the system gives page by page when
//! first touched, so an empty one costs nothing. Locks are striped over groups of buckets.
//!
//! An entry is a hint about something durable: it is inserted after the frame was synced, and every entry of a
//! segment is removed before the segment is collected.

use afterimage_format::place::Place;
use afterimage_format::segment::Fingerprint;
use memmap2::MmapMut;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of an entry.
const ENTRY: usize = 24;
/// Entries in a bucket: 192 bytes, three cache lines.
const WAYS: usize = 8;
const BUCKET: usize = ENTRY * WAYS;
/// Stripes, each with its own lock and memory.
const STRIPES: usize = 64;

/// See the module.
#[derive(Debug)]
pub struct DedupeIndex {
    stripes: Vec<Mutex<MmapMut>>,
    buckets: usize,
}

impl DedupeIndex {
    /// An empty index of about `bytes` bytes (at least one bucket in each stripe).
    ///
    /// # Errors
    /// If the system does not give the address space.
    pub fn new(bytes: usize) -> std::io::Result<Self> {
        let buckets = (bytes / STRIPES / BUCKET).max(1);
        let stripes =
            (0..STRIPES).map(|_| MmapMut::map_anon(buckets * BUCKET).map(Mutex::new)).collect::<Result<_, _>>()?;
        Ok(Self { stripes, buckets })
    }

    fn bucket(&self, f: &Fingerprint) -> (MutexGuard<'_, MmapMut>, usize) {
        let mut low = [0; 8];
        low.copy_from_slice(&f[..8]);
        let word = u64::from_le_bytes(low);
        let stripe = usize::from(f[8]) % STRIPES;
        // Multiplying maps the hash onto the buckets without a division; the result is below `buckets`.
        let bucket = (u128::from(word) * self.buckets as u128) >> 64;
        let guard = self.stripes[stripe].lock().unwrap_or_else(PoisonError::into_inner);
        (guard, usize::try_from(bucket).unwrap_or(0) * BUCKET)
    }

    /// Where a block with this fingerprint is, if that is known.
    #[must_use]
    pub fn lookup(&self, f: &Fingerprint) -> Option<Place> {
        let (stripe, at) = self.bucket(f);
        let bucket = &stripe[at..at + BUCKET];
        bucket.chunks_exact(ENTRY).find(|e| e[..16] == *f && place_of(e) != 0).and_then(|e| {
            let place = Place::from_word(place_of(e)).ok()?;
            (!place.is_zero()).then_some(place)
        })
    }

    /// Remembers a place. The newest entry is first in its bucket, the last one falls out.
    pub fn insert(&self, f: &Fingerprint, place: Place) {
        let (mut stripe, at) = self.bucket(f);
        let bucket = &mut stripe[at..at + BUCKET];
        let same = bucket.chunks_exact(ENTRY).position(|e| e[..16] == *f || place_of(e) == 0);
        let upto = same.unwrap_or(WAYS - 1) * ENTRY;
        bucket.copy_within(..upto, ENTRY);
        bucket[..16].copy_from_slice(f);
        bucket[16..ENTRY].copy_from_slice(&place.word().to_le_bytes());
    }

    /// Remembers a place only if there is room: for rebuilding, newest segment first.
    pub fn insert_older(&self, f: &Fingerprint, place: Place) {
        let (mut stripe, at) = self.bucket(f);
        let bucket = &mut stripe[at..at + BUCKET];
        for e in bucket.chunks_exact_mut(ENTRY) {
            if place_of(e) == 0 {
                e[..16].copy_from_slice(f);
                e[16..].copy_from_slice(&place.word().to_le_bytes());
                return;
            }
            if e[..16] == *f {
                return;
            }
        }
    }

    /// Forgets every place in these segments; `segments` is asked by number.
    pub fn remove_segments(&self, segments: impl Fn(u32) -> bool) {
        for stripe in &self.stripes {
            let mut stripe = stripe.lock().unwrap_or_else(PoisonError::into_inner);
            for bucket in stripe.chunks_exact_mut(BUCKET) {
                remove_from(bucket, &segments);
            }
        }
    }

    /// How many entries there are. Walks the table.
    #[must_use]
    pub fn entries(&self) -> usize {
        let count = |s: &Mutex<MmapMut>| {
            let stripe = s.lock().unwrap_or_else(PoisonError::into_inner);
            stripe.chunks_exact(ENTRY).filter(|e| place_of(e) != 0).count()
        };
        self.stripes.iter().map(count).sum()
    }
}

fn place_of(entry: &[u8]) -> u64 {
    entry[16..].iter().rev().fold(0, |w, b| w << 8 | u64::from(*b))
}

/// Removes entries and closes the ranks: an empty entry ends the search for a free one.
fn remove_from(bucket: &mut [u8], segments: &impl Fn(u32) -> bool) {
    // Reading only, most buckets are left as they are and untouched pages stay unallocated.
    let hit = |e: &[u8]| Place::from_word(place_of(e)).is_ok_and(|p| !p.is_zero() && segments(p.segment()));
    if !bucket.chunks_exact(ENTRY).any(hit) {
        return;
    }
    let mut kept = 0;
    for i in 0..WAYS {
        let entry = i * ENTRY..(i + 1) * ENTRY;
        if !hit(&bucket[entry.clone()]) {
            bucket.copy_within(entry, kept * ENTRY);
            kept += 1;
        }
    }
    bucket[kept * ENTRY..].fill(0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn place(segment: u32, n: u32) -> Place {
        Place::new(segment, u64::from(n) * 16, 100, 0).unwrap()
    }

    fn print(n: u32) -> Fingerprint {
        let mut f = [0; 16];
        f.copy_from_slice(&blake3::hash(&n.to_le_bytes()).as_bytes()[..16]);
        f
    }

    proptest! {
        /// Against a plain map: what is found is what was put there last; too small a table only forgets.
        #[test]
        fn it_is_a_map_that_may_forget(ops in proptest::collection::vec((0u8..12, 0u32..400, 1u32..6), 1..600), bytes in prop_oneof![Just(0usize), Just(1 << 20)]) {
            let index = DedupeIndex::new(bytes).unwrap();
            let mut model: HashMap<u32, Place> = HashMap::new();
            for (op, n, segment) in ops {
                match op {
                    0 => {
                        index.remove_segments(|s| s == segment);
                        model.retain(|_, p| p.segment() != segment);
                    }
                    1..6 => {
                        index.insert(&print(n), place(segment, n));
                        model.insert(n, place(segment, n));
                    }
                    6 => {
                        index.insert_older(&print(n), place(segment, n));
                        if bytes > 0 {
                            model.entry(n).or_insert_with(|| place(segment, n));
                        } else if index.lookup(&print(n)) == Some(place(segment, n)) {
                            model.insert(n, place(segment, n));
                        }
                    }
                    _ => {
                        let found = index.lookup(&print(n));
                        if bytes > 0 || found.is_some() {
                            prop_assert_eq!(found, model.get(&n).copied());
                        }
                    }
                }
            }
            if bytes > 0 {
                prop_assert_eq!(index.entries(), model.len());
            }
        }
    }

    #[test]
    fn a_full_bucket_forgets_its_oldest() {
        let index = DedupeIndex::new(0).unwrap();
        for n in 0..100_000 {
            index.insert(&print(n), place(1, n));
        }
        assert_eq!(index.entries(), STRIPES * WAYS);
        assert_eq!(index.lookup(&print(99_999)), Some(place(1, 99_999)));
        assert_eq!(index.lookup(&print(0)), None);
    }
}
