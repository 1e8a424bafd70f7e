//! Judges images of a disk that was written by one request at a time.
//!
//! The model is the disk itself in memory, brought forward request by request. An image is compared whole once; from
//! then on only the range of each further request is looked at again, so that finding "after how many writes was
//! the disk like this" costs as much as the writes themselves.

use super::journal::Entry;
use super::op::{Kind, Op};
use super::stamp;
use std::ops::Range;

/// The disk after a number of requests.
#[derive(Debug)]
pub struct Exact {
    seed: u64,
    ops: Vec<Op>,
    disk: Vec<u8>,
    done: usize,
}

fn range(op: &Op) -> Range<usize> {
    let at = |v: u64| usize::try_from(v).unwrap_or(usize::MAX);
    at(op.offset)..at(op.offset + op.len)
}

/// Does to `disk` what a request does; returns where.
fn apply(seed: u64, op: &Op, disk: &mut [u8]) -> Range<usize> {
    let range = range(op);
    match op.kind {
        Kind::Write => stamp::fill(seed, op.number, op.offset, &mut disk[range.clone()]),
        Kind::Trim | Kind::Zero => disk[range.clone()].fill(0),
    }
    range
}

fn differing(a: &[u8], b: &[u8]) -> usize {
    if a == b { 0 } else { a.iter().zip(b).filter(|(x, y)| x != y).count() }
}

impl Exact {
    /// The model before the first request. `initial` is what was on the disk then.
    #[must_use]
    pub fn new(seed: u64, entries: &[Entry], initial: Vec<u8>) -> Exact {
        Exact { seed, ops: entries.iter().map(|e| e.op).collect(), disk: initial, done: 0 }
    }

    /// Requests in all.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether nothing was submitted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    fn step(&mut self) -> Option<Range<usize>> {
        let op = *self.ops.get(self.done)?;
        self.done += 1;
        Some(apply(self.seed, &op, &mut self.disk))
    }

    /// The last count in `from..=to` after which the disk is like `image`, which it is after `from` requests. A write that is
    /// zeroed again, or one of few bytes that were there by chance, leaves the disk as it was.
    #[must_use]
    pub fn last_like(&self, image: &[u8], from: usize, to: usize) -> usize {
        let (mut disk, mut differ, mut last) = (image.to_vec(), 0, from);
        for (i, op) in self.ops[..to.min(self.ops.len())].iter().enumerate().skip(from) {
            let range = range(op);
            differ -= differing(&disk[range.clone()], &image[range.clone()]);
            apply(self.seed, op, &mut disk);
            differ += differing(&disk[range.clone()], &image[range]);
            last = if differ == 0 { i + 1 } else { last };
        }
        last
    }

    fn describe(&self, image: &[u8]) -> String {
        let differ = differing(&self.disk, image);
        let Some(at) = self.disk.iter().zip(image).position(|(a, b)| a != b) else {
            return format!("the image has {} bytes, the disk {}", image.len(), self.disk.len());
        };
        let owner = self.ops[..self.done].iter().rev().find(|op| range(op).contains(&at));
        let owner = owner.map_or_else(|| "nothing".to_owned(), |op| format!("request {} ({:?})", op.number, op.kind));
        let sector = at / 512 * 512;
        let found = image.get(sector..sector + 512).map(|b| stamp::read(self.seed, at as u64 / 512, b));
        format!(
            "{differ} bytes differ from the disk after {} requests, the first at byte {at}, last written by {owner}; its sector holds {found:?}",
            self.done
        )
    }

    /// Whether the image is the disk after exactly `count` requests. Counts may only rise from call to call.
    ///
    /// # Errors
    /// What differs.
    pub fn check_at(&mut self, count: usize, image: &[u8]) -> Result<(), String> {
        if count < self.done || count > self.ops.len() {
            return Err(format!(
                "an image after {count} requests cannot be judged: {} are done of {}",
                self.done,
                self.ops.len()
            ));
        }
        while self.done < count {
            self.step();
        }
        if self.disk == image { Ok(()) } else { Err(self.describe(image)) }
    }

    /// Up to how many requests the disk stays as it is now: some change nothing (zeroes over zeroes).
    #[must_use]
    pub fn unchanged_until(&self) -> usize {
        let changes_nothing = |op: &&Op| op.kind != Kind::Write && self.disk[range(op)].iter().all(|b| *b == 0);
        self.done + self.ops[self.done..].iter().take_while(changes_nothing).count()
    }

    /// Finds after how many requests, not fewer than at the last call, the disk was like this image.
    ///
    /// # Errors
    /// What differs, if it never was.
    pub fn find(&mut self, image: &[u8]) -> Result<usize, String> {
        if image.len() != self.disk.len() {
            return Err(self.describe(image));
        }
        let first = self.describe(image);
        let start = self.done;
        let mut differ = differing(&self.disk, image);
        while differ > 0 {
            let Some(next) = self.ops.get(self.done).map(range) else {
                return Err(format!("the disk never was like this from request {start} on; {first}"));
            };
            differ -= differing(&self.disk[next.clone()], &image[next.clone()]);
            self.step();
            differ += differing(&self.disk[next.clone()], &image[next]);
        }
        Ok(self.done)
    }
}

#[cfg(test)]
mod tests {
    use super::super::op::{Chooser, Next, Shape};
    use super::*;

    fn history(align: u64) -> (Vec<Entry>, Vec<Vec<u8>>) {
        let shape = Shape { mix: "8,1,1,0".parse().unwrap(), align, max_len: 8192, span: 64 << 10 };
        let mut chooser = Chooser::new(shape, 3);
        let mut disk = vec![0; 64 << 10];
        let (mut entries, mut images) = (vec![], vec![disk.clone()]);
        for number in 1..=100 {
            let Next::Change(kind, offset, len) = chooser.choose() else { unreachable!() };
            let op = Op { number, kind, offset, len };
            match kind {
                Kind::Write => stamp::fill(1, number, offset, &mut disk[range(&op)]),
                _ => disk[range(&op)].fill(0),
            }
            entries.push(Entry { op, submitted: number * 2, acked: number * 2 + 1 });
            images.push(disk.clone());
        }
        (entries, images)
    }

    #[test]
    fn every_image_of_a_history_is_found_in_its_order() {
        for align in [1, 512] {
            let (entries, images) = history(align);
            let mut by_count = Exact::new(1, &entries, images[0].clone());
            let mut found = Exact::new(1, &entries, images[0].clone());
            for (count, image) in images.iter().enumerate() {
                by_count.check_at(count, image).unwrap();
                let n = found.find(image).unwrap();
                assert!(n <= count && count <= found.unchanged_until() && images[n] == *image);
            }
            assert!(found.find(&images[50]).unwrap_err().contains("never was"), "time does not go back");
            assert!(by_count.check_at(50, &images[50]).is_err());
        }
    }

    #[test]
    fn an_image_that_comes_back_is_found_at_its_last_place() {
        let op = |number, kind, offset| Op { number, kind, offset, len: 512 };
        let ops = [
            op(1, Kind::Write, 0),
            op(2, Kind::Write, 1024),
            op(3, Kind::Zero, 1024),
            op(4, Kind::Trim, 2048),
            op(5, Kind::Write, 0),
        ];
        let entries: Vec<Entry> = ops.iter().map(|op| Entry { op: *op, submitted: 1, acked: 2 }).collect();
        let exact = Exact::new(1, &entries, vec![0; 4096]);
        let mut after_first = vec![0; 4096];
        stamp::fill(1, 1, 0, &mut after_first[..512]);
        assert_eq!(exact.last_like(&after_first, 1, 5), 4, "written and zeroed, zeroes over zeroes");
        assert_eq!(exact.last_like(&after_first, 1, 2), 1);
    }

    #[test]
    fn a_broken_image_is_caught() {
        let (entries, images) = history(1);
        for (flip, count) in [(0, 10), (5000, 50), (65_535, 100)] {
            let mut bad = images[count].clone();
            bad[flip] ^= 1;
            let mut exact = Exact::new(1, &entries, images[0].clone());
            assert!(exact.check_at(count, &bad).unwrap_err().contains(&format!("first at byte {flip}")));
            assert!(Exact::new(1, &entries, images[0].clone()).find(&bad).is_err());
        }
        // A write is missing: what came after it is there.
        let op = entries[49].op;
        let mut bad = images[50].clone();
        bad[range(&op)].copy_from_slice(&images[49][range(&op)]);
        let later = entries[50].op;
        stamp::fill(1, later.number, later.offset, &mut bad[range(&later)]);
        assert!(Exact::new(1, &entries, images[0].clone()).find(&bad).is_err());
        assert!(Exact::new(1, &entries, images[0].clone()).check_at(49, &images[50]).is_err(), "one write too many");
        assert!(Exact::new(1, &entries, images[0].clone()).find(&images[0][1..]).is_err(), "another length");
    }
}
