//! The dedupe stage: which blocks are new, and into which frames of which segment they go.
//!
//! Blocks are looked up in the order of the records, first among the batches that are under way, then in the index. Those
//! that are new go into frames in the order of the disk, not of time: whoever reads a disk that was written at
//! random places from its beginning to its end then uses up a frame while it is in the cache. What comes out depends
//! only on the input, not on threads.

use super::batch::{Batch, HashTask};
use super::volume::Volume;
use super::{SessionError, Shared};
use crate::reduce::frame::Scratch;
use crate::reduce::pool::{Task, Ticket};
use crate::reduce::{FRAME_BLOCKS, FRAME_REACH, SCATTERED_FRAME_BLOCKS};
use crate::store::StoreError;
use crate::store::segment::{OpenSegment, worst_case};
use afterimage_base::world;
use afterimage_format::place::Place;
use afterimage_format::segment::Fingerprint;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

/// Where the content of a block is, or will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Nowhere: zeroes.
    Zero,
    /// Durable already.
    Known(Place),
    /// New block `index` of batch number `batch`.
    New {
        /// The batch, counted in the session.
        batch: u64,
        /// Which of its new blocks.
        index: u32,
    },
}

/// A sealed frame.
#[derive(Debug, Default)]
pub struct Sealed {
    /// The frame with its padding.
    pub bytes: Vec<u8>,
    /// Length of header and body; 0 if sealing failed.
    pub len: u32,
}

/// A batch on its way to the segment. As a task, it compresses and seals its frames.
#[derive(Debug)]
pub struct Plan {
    /// The records.
    pub batch: Arc<Batch>,
    /// Its number in the session.
    pub number: u64,
    /// Where each block is, in the batch's order.
    pub targets: Vec<Target>,
    /// The new blocks: index in the batch, and fingerprint.
    pub new: Vec<(u32, Fingerprint)>,
    /// The segment it goes to.
    pub segment: Arc<OpenSegment>,
    /// Bytes reserved there.
    pub reserved: u64,
    /// Whether its frames are sealed as they are, and compressed when it is quiet.
    pub unreduced: bool,
    first_frame: u32,
    /// Where in `new` each frame begins, and the end of the last.
    cuts: Vec<usize>,
    frames: Vec<Mutex<Sealed>>,
}

impl Plan {
    /// Number of frames.
    #[must_use]
    pub const fn frames(&self) -> usize {
        self.frames.len()
    }

    /// Counter of its first frame.
    #[must_use]
    pub const fn first_frame(&self) -> u32 {
        self.first_frame
    }

    /// Takes frame `i`, when it is done.
    #[must_use]
    pub fn take(&self, i: usize) -> Sealed {
        std::mem::take(&mut *self.frames[i].lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The new blocks in frame `i`.
    #[must_use]
    pub fn blocks_of(&self, i: usize) -> &[(u32, Fingerprint)] {
        &self.new[self.cuts[i]..self.cuts[i + 1]]
    }
}

impl Task for Plan {
    fn run(&self, part: usize, scratch: &mut Scratch) {
        let mut sealed = self.frames[part].lock().unwrap_or_else(PoisonError::into_inner);
        let counter = self.first_frame + u32::try_from(part).unwrap_or(0);
        let (key, of_batch) = (self.segment.key(), |(i, _): &(u32, Fingerprint)| self.batch.block(*i as usize));
        let blocks = self.blocks_of(part).iter();
        let made = if !self.unreduced {
            scratch.data(key, counter, blocks.map(of_batch), &mut sealed.bytes)
        } else if world::broken("unreduced-order") {
            Scratch::unreduced(key, counter, blocks.rev().map(of_batch), &mut sealed.bytes)
        } else {
            Scratch::unreduced(key, counter, blocks.map(of_batch), &mut sealed.bytes)
        };
        match made {
            Ok(len) => sealed.len = len,
            Err(e) => tracing::error!("segment {}: {e}", self.segment.number),
        }
    }
}

/// A fingerprint is a hash already.
#[derive(Default)]
struct Prehashed(u64);

impl Hasher for Prehashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(word) = bytes.first_chunk::<8>() {
            self.0 = u64::from_le_bytes(*word);
        }
    }
}

#[derive(PartialEq, Eq)]
struct Key(Fingerprint);

impl std::hash::Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0);
    }
}

type UnderWay = HashMap<Key, (u64, u32), BuildHasherDefault<Prehashed>>;

/// The dedupe stage of a session.
pub struct Planner<'a> {
    shared: &'a Shared,
    volume: &'a Volume,
    under_way: UnderWay,
    next: u64,
    prints: Vec<Option<Fingerprint>>,
}

impl std::fmt::Debug for Planner<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Planner({} under way)", self.under_way.len())
    }
}

impl<'a> Planner<'a> {
    /// For a session of `volume`.
    #[must_use]
    pub fn new(shared: &'a Shared, volume: &'a Volume) -> Self {
        Self { shared, volume, under_way: UnderWay::default(), next: 0, prints: Vec::new() }
    }

    /// Forgets the new blocks of a batch that is durable: the index has them.
    pub fn finished(&mut self, plan: &Plan) {
        for (_, print) in &plan.new {
            if let Entry::Occupied(e) = self.under_way.entry(Key(*print))
                && e.get().0 == plan.number
            {
                e.remove();
            }
        }
    }

    /// Plans a batch whose fingerprints are done, and starts its sealing: `unreduced` if there is no time for more.
    ///
    /// # Errors
    /// If a new segment is needed and cannot be made.
    pub fn plan(&mut self, hashes: &HashTask, unreduced: bool) -> Result<(Arc<Plan>, Ticket), SessionError> {
        hashes.collect(&mut self.prints);
        let number = self.next;
        self.next += 1;
        let mut targets = Vec::with_capacity(self.prints.len());
        let mut new: Vec<(u32, Fingerprint)> = Vec::new();
        for (i, print) in (0u32..).zip(&self.prints) {
            let Some(print) = print else {
                targets.push(Target::Zero);
                continue;
            };
            let index = u32::try_from(new.len()).unwrap_or(u32::MAX);
            targets.push(match self.under_way.entry(Key(*print)) {
                Entry::Occupied(e) => Target::New { batch: e.get().0, index: e.get().1 },
                Entry::Vacant(e) => match self.shared.index.lookup(print) {
                    Some(place) => Target::Known(place),
                    None => {
                        e.insert((number, index));
                        new.push((i, *print));
                        Target::New { batch: number, index }
                    }
                },
            });
        }
        let batch = Arc::clone(hashes.batch());
        let on_disk = batch.disk_blocks();
        self.put_in_disk_order(number, &on_disk, &mut new, &mut targets);
        let cuts = cut(&new, &on_disk);
        let frames = cuts.len() - 1;
        let commit = commit_bound(&batch);
        let reserved = worst_case(new.len() as u64, frames as u64, commit);
        let segment = self.volume.segment_for(self.shared, reserved).map_err(SessionError::from)?;
        let first_frame = segment.next_frames(u32::try_from(frames).unwrap_or(0));
        let frames = (0..frames).map(|_| Mutex::new(Sealed { bytes: self.shared.buffer(), len: 0 })).collect();
        let plan =
            Arc::new(Plan { batch, number, targets, new, segment, reserved, unreduced, first_frame, cuts, frames });
        let ticket = self.shared.pool.start(&plan, plan.frames());
        Ok((plan, ticket))
    }
}

impl Planner<'_> {
    /// Sorts the new blocks of batch `number` by where they lie on the disk, and what refers to them with them.
    fn put_in_disk_order(
        &mut self,
        number: u64,
        on_disk: &[u64],
        new: &mut Vec<(u32, Fingerprint)>,
        targets: &mut [Target],
    ) {
        let block_of = |n: &(u32, Fingerprint)| on_disk.get(n.0 as usize).copied().unwrap_or(u64::MAX);
        if new.is_sorted_by_key(block_of) {
            return;
        }
        let mut order: Vec<u32> = (0..u32::try_from(new.len()).unwrap_or(u32::MAX)).collect();
        // Stable: versions of one block stay in the order of time.
        order.sort_by_key(|i| block_of(&new[*i as usize]));
        let mut rank = vec![0; new.len()];
        for (to, from) in (0u32..).zip(&order) {
            rank[*from as usize] = to;
            self.under_way.insert(Key(new[*from as usize].1), (number, to));
        }
        *new = order.iter().map(|from| new[*from as usize]).collect();
        for target in targets {
            if let Target::New { batch, index } = target
                && *batch == number
            {
                *index = rank[*index as usize];
            }
        }
    }
}

/// Cuts sorted new blocks into frames: answers where each begins, and the end of the last.
fn cut(new: &[(u32, Fingerprint)], on_disk: &[u64]) -> Vec<usize> {
    let block_of = |i: usize| on_disk.get(new[i].0 as usize).copied().unwrap_or(0);
    let (mut cuts, mut from) = (vec![0], 0);
    for i in 1..new.len() {
        let far = i - from >= SCATTERED_FRAME_BLOCKS && block_of(i) - block_of(from) > FRAME_REACH;
        if far || i - from == FRAME_BLOCKS {
            cuts.push(i);
            from = i;
        }
    }
    if !new.is_empty() {
        cuts.push(new.len());
    }
    cuts
}

/// Upper bound of a batch's commit frames: LEB128 numbers of at most 10 bytes, three of them in a run.
fn commit_bound(batch: &Batch) -> u64 {
    let names: usize = batch.records.iter().map(|r| r.name.len() + 2).sum();
    let runs = batch.blocks() + batch.pieces.len();
    (batch.records.len() * 52 + runs * 30 + names + 4096) as u64 * 17 / 16
}

impl From<StoreError> for SessionError {
    fn from(e: StoreError) -> Self {
        if e.is_full() { SessionError::Full(e.to_string()) } else { SessionError::Failed(e.to_string()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_frames_stay_within_reach_and_those_that_do_not_are_small() {
        let print = [0; afterimage_format::segment::FINGERPRINT_LEN];
        for (gap, full) in [(1, FRAME_BLOCKS), (FRAME_REACH / 20, FRAME_BLOCKS), (FRAME_REACH / 8, 9), (1 << 20, 4)] {
            let on_disk: Vec<u64> = (0..100).map(|i| i * gap).collect();
            let new: Vec<(u32, Fingerprint)> = (0..100).map(|i| (i, print)).collect();
            let cuts = cut(&new, &on_disk);
            assert_eq!((cuts[0], cuts.last()), (0, Some(&100)));
            let sizes: Vec<usize> = cuts.windows(2).map(|w| w[1] - w[0]).collect();
            assert!(sizes[..sizes.len() - 1].iter().all(|s| *s == full), "gap {gap}: {sizes:?}");
            assert!((1..=full).contains(&sizes[sizes.len() - 1]), "gap {gap}: {sizes:?}");
        }
        assert_eq!(cut(&[], &[]), [0], "no frames of nothing");
    }
}
