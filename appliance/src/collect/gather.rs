//! Which blocks of some segments are referred to, in the order of the disk.
//!
//! Copies are written in this order, so it is what a reader of a point meets later: neighbours on the disk lie in one frame, and
//! the frames of a stretch of the disk side by side. Where blocks have many versions, that is done for one stretch of time after the
//! other.

use super::{CollectError, Round, of_volume};
use crate::history::compact::Relocation;
use afterimage_format::place::Place;
use std::collections::HashSet;

/// Set in the block number of what only other volumes refer to: it comes behind everything else.
const FOREIGN: u64 = 1 << 63;
/// References held before those to one place are made one.
const FIRST_LIMIT: usize = 64 << 10;

/// A block that is referred to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Live {
    /// Where on the disk its first reference is.
    pub(super) block: u64,
    /// Where it lies.
    pub(super) place: Place,
    /// No later version of its block is among those of its time: who looks at a later point sees this one, and not those.
    pub(super) last: bool,
}

/// References to some segments. A place may be referred to any number of times, so they are brought together now and then.
struct Found {
    /// Place, block, seq.
    all: Vec<(Place, u64, u64)>,
    limit: usize,
}

impl Found {
    fn push(&mut self, place: Place, block: u64, seq: u64) {
        if self.all.len() >= self.limit {
            self.settle();
            self.limit = FIRST_LIMIT.max(self.all.len() * 2);
        }
        self.all.push((place, block, seq));
    }

    /// Leaves the first reference to each place.
    fn settle(&mut self) {
        self.all.sort_unstable();
        self.all.dedup_by_key(|f| f.0);
    }

    fn in_disk_order(mut self) -> Vec<Live> {
        self.settle();
        let ends = self.epochs();
        // What other volumes have has other seqs: it stays together.
        let epoch =
            |f: &(Place, u64, u64)| if f.1 & FOREIGN == 0 { ends.partition_point(|e| *e <= f.2) } else { ends.len() };
        self.all.sort_unstable_by_key(|f| (epoch(f), f.1, f.2, f.0));
        let key = |f: &(Place, u64, u64)| (epoch(f), f.1);
        let next = self.all.iter().skip(1).map(|f| Some(key(f))).chain([None]);
        let live = |(f, next): (&(Place, u64, u64), Option<_>)| Live {
            block: f.1 & !FOREIGN,
            place: f.0,
            last: next != Some(key(f)),
        };
        self.all.iter().zip(next).map(live).collect()
    }

    /// The seqs at which to begin anew in disk order, so that between two of them a block has one version or so: who looks at an
    /// early point does not want what came later, and would find it in each frame.
    fn epochs(&mut self) -> Vec<u64> {
        self.all.sort_unstable_by_key(|f| f.1);
        let blocks = self.all.chunk_by(|a, b| a.1 == b.1).count().max(1);
        let count = self.all.len().div_ceil(blocks);
        if self.all.len() * 2 <= blocks * 3 {
            return Vec::new();
        }
        let mut seqs: Vec<u64> = self.all.iter().map(|f| f.2).collect();
        seqs.sort_unstable();
        (1..count).map(|i| seqs[i * seqs.len() / count]).collect()
    }
}

impl Round<'_> {
    /// The blocks in `segments` that layer files refer to and that have not been `moved`, in disk order: first those of the
    /// volume `first`, then what only others have.
    pub(super) fn gather(
        &self,
        segments: &HashSet<u32>,
        first: Option<[u8; 16]>,
        moved: &Relocation,
    ) -> Result<Vec<Live>, CollectError> {
        let mut found = Found { all: Vec::new(), limit: FIRST_LIMIT };
        for volume in self.volumes {
            let foreign = if first.is_none_or(|f| f == volume.id) { 0 } else { FOREIGN };
            for layer in volume.history.layers().iter().filter(|l| segments.iter().any(|s| l.refers_to(*s))) {
                let walked = layer.each_place(segments, |block, seq, place| {
                    if moved.get(place) == place {
                        found.push(place, block | foreign, seq);
                    }
                });
                walked.map_err(of_volume(volume))?;
            }
        }
        Ok(found.in_disk_order())
    }
}
