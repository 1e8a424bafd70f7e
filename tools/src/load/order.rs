//! Judges images of a disk that was written by many at once.
//!
//! Known is which request was acknowledged before which other one was submitted; everything else may have
//! happened in either order. Let `T` be the latest time of submission of all writes seen in an image (and in images at
//! earlier seqs). Every write acknowledged before `T` must be part of the prefix that the image shows (I2), and so
//! must every write of which a part is seen: a write is there as a whole or not at all. So:
//!
//! 1. Every sector is zero or the whole stamp of a write that covers it.
//! 2. No sector shows a write that was acknowledged before the submission of another one to the same sector
//!    that must be there. A sector of zeroes must have a trim or zero request that can be newest, or nothing
//!    that must be there.
//! 3. What an image shows is part of every image at a later seq: rule 2 holds against it too.
//! 4. There is one order of the writes that explains which of two overlapping writes is seen where: no circle.
//!
//! For an image that must have everything acknowledged (the disk itself at the end) `T` is infinite.
//!
//! A server that is killed while its volume is in a gap has no record to finish a write from: what was in flight then may be on
//! the disk in part, as on any disk. [`Order::torn`] takes that as right, for requests of unknown fate only.

use super::journal::Entry;
use super::op::Kind;
use super::stamp::{self, Found, SECTOR};
use std::collections::{BTreeMap, BTreeSet};

/// The judge. Give it images at rising seqs.
#[derive(Debug)]
pub struct Order {
    seed: u64,
    entries: Vec<Entry>,
    /// For each sector the entries that cover it, by time of submission.
    covering: Vec<Vec<u32>>,
    /// For each sector the latest submission among the writes that must be there, plus one; 0 if none.
    floor: Vec<u64>,
    horizon: u64,
    torn: bool,
}

/// Sectors that a request covers.
fn sectors(e: &Entry) -> std::ops::Range<usize> {
    let at = |v: u64| usize::try_from(v / SECTOR).unwrap_or(usize::MAX);
    at(e.op.offset)..at(e.op.offset + e.op.len)
}

impl Order {
    /// A judge of a disk of `size` bytes that was all zeroes before the first request.
    ///
    /// # Errors
    /// If a request does not lie on whole sectors, or there are too many.
    pub fn new(seed: u64, size: u64, entries: Vec<Entry>) -> Result<Order, String> {
        let count = usize::try_from(size / SECTOR).map_err(|e| e.to_string())?;
        let mut covering = vec![Vec::new(); count];
        for (i, e) in entries.iter().enumerate() {
            if e.op.offset % SECTOR != 0 || e.op.len % SECTOR != 0 {
                return Err(format!(
                    "request {} does not lie on whole sectors: judge it with one request at a time",
                    e.op.number
                ));
            }
            let i = u32::try_from(i).map_err(|e| e.to_string())?;
            covering
                .get_mut(sectors(e))
                .ok_or("a request past the end of the disk")?
                .iter_mut()
                .for_each(|c| c.push(i));
        }
        Ok(Order { seed, entries, covering, floor: vec![0; count], horizon: 0, torn: false })
    }

    /// Whether requests of unknown fate may be there in part.
    #[must_use]
    pub fn torn(self, torn: bool) -> Order {
        Order { torn, ..self }
    }

    /// Whether all of a request must be there if a part of it is.
    const fn is_whole(&self, e: &Entry) -> bool {
        !self.torn || e.acked != u64::MAX
    }

    fn see(&self, image: &[u8]) -> Result<Vec<Found>, String> {
        if image.len() as u64 != self.covering.len() as u64 * SECTOR {
            return Err(format!(
                "the image has {} bytes, the disk {}",
                image.len(),
                self.covering.len() as u64 * SECTOR
            ));
        }
        let mut seen = Vec::with_capacity(self.covering.len());
        for (i, bytes) in image.chunks_exact(512).enumerate() {
            let found = stamp::read(self.seed, i as u64, bytes);
            match found {
                Found::Garbage => {
                    return Err(format!("sector {i} holds neither zeroes nor the whole stamp of a write"));
                }
                Found::Write(number) if !self.may_show(number, i) => {
                    return Err(format!("sector {i} shows write {number}, which did not write there"));
                }
                _ => seen.push(found),
            }
        }
        Ok(seen)
    }

    fn entry(&self, number: u64) -> Option<&Entry> {
        usize::try_from(number.checked_sub(1)?).ok().and_then(|i| self.entries.get(i))
    }

    fn may_show(&self, number: u64, sector: usize) -> bool {
        self.entry(number).is_some_and(|e| e.op.kind == Kind::Write && sectors(e).contains(&sector))
    }

    /// Judges an image. `complete` says that it must hold everything that was acknowledged.
    ///
    /// # Errors
    /// The rule that is broken, and where.
    pub fn check(&mut self, image: &[u8], complete: bool) -> Result<(), String> {
        let seen = self.see(image)?;
        let newest = seen.iter().filter_map(|f| match f {
            Found::Write(n) => self.entry(*n).map(|e| e.submitted),
            _ => None,
        });
        self.horizon = if complete { u64::MAX } else { newest.max().unwrap_or(0).max(self.horizon) };
        let mut shown = vec![false; self.entries.len()];
        for found in &seen {
            if let Found::Write(n) = found
                && let Some(e) = self.entry(*n).filter(|e| self.is_whole(e))
                && let Some(s) = usize::try_from(e.op.number - 1).ok().and_then(|i| shown.get_mut(i))
            {
                *s = true;
            }
        }
        for (sector, found) in seen.iter().enumerate() {
            self.check_sector(sector, *found, &shown)?;
        }
        self.check_circles(&seen)
    }

    fn check_sector(&mut self, sector: usize, found: Found, shown: &[bool]) -> Result<(), String> {
        let covering = &self.covering[sector];
        let all = || covering.iter().map(|i| &self.entries[*i as usize]);
        let must = |i: &&u32| self.entries[**i as usize].acked < self.horizon || shown[**i as usize];
        let newest = covering.iter().filter(must).map(|i| &self.entries[*i as usize]).max_by_key(|e| e.submitted);
        let floor = newest.map_or(0, |e| e.submitted + 1).max(self.floor[sector]);
        let stale = |e: &Entry| e.acked.saturating_add(1) < floor;
        let missing = || {
            let e = all().find(|e| e.submitted + 1 == floor);
            e.map_or_else(String::new, |e| format!("request {} ({:?})", e.op.number, e.op.kind))
        };
        match found {
            Found::Write(n) => {
                if let Some(e) = self.entry(n) {
                    if stale(e) {
                        return Err(format!(
                            "sector {sector} shows write {n}, which was acknowledged before {} was submitted, and that must be there",
                            missing()
                        ));
                    }
                    self.floor[sector] = floor.max(e.submitted + 1);
                }
            }
            _ if floor > 0 && !all().any(|e| e.op.kind != Kind::Write && !stale(e)) => {
                return Err(format!("sector {sector} is zero, but {} must be there", missing()));
            }
            _ => self.floor[sector] = floor,
        }
        Ok(())
    }

    /// Rule 4 among the writes that the image shows.
    fn check_circles(&self, seen: &[Found]) -> Result<(), String> {
        let shown: BTreeSet<u64> =
            seen.iter().filter_map(|f| if let Found::Write(n) = f { Some(*n) } else { None }).collect();
        let mut above: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        for (sector, found) in seen.iter().enumerate() {
            let Found::Write(top) = found else { continue };
            for i in &self.covering[sector] {
                let entry = &self.entries[*i as usize];
                let number = entry.op.number;
                if number != *top && shown.contains(&number) && self.is_whole(entry) {
                    above.entry(number).or_default().insert(*top);
                }
            }
        }
        let mut below: BTreeMap<u64, usize> = shown.iter().map(|n| (*n, 0)).collect();
        above.values().flatten().for_each(|n| *below.entry(*n).or_default() += 1);
        let mut free: Vec<u64> = below.iter().filter(|(_, n)| **n == 0).map(|(n, _)| *n).collect();
        let mut placed = 0;
        while let Some(n) = free.pop() {
            placed += 1;
            for next in above.get(&n).into_iter().flatten() {
                if let Some(count) = below.get_mut(next) {
                    *count -= 1;
                    if *count == 0 {
                        free.push(*next);
                    }
                }
            }
        }
        if placed == shown.len() {
            return Ok(());
        }
        let circle: Vec<_> = below.iter().filter(|(_, n)| **n > 0).map(|(n, _)| n).take(8).collect();
        Err(format!("no order of the writes explains the image: among {circle:?} each lies over another"))
    }
}

#[cfg(test)]
#[path = "order_tests.rs"]
mod tests;
