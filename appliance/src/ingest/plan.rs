//! The dedupe stage: which blocks are new, and into which frames of which segment they go.
//!
//! Blocks are looked up in the order of the records, first among the batches that are under way, then in the index. A
//! block that is new is given to the next frame. What comes out depends only on the input, not on threads.

use super::batch::{Batch, HashTask};
use super::volume::Volume;
use super::{SessionError, Shared};
use crate::reduce::FRAME_BLOCKS;
use crate::reduce::frame::Scratch;
use crate::reduce::pool::{Task, Ticket};
use crate::store::StoreError;
use crate::store::segment::{OpenSegment, worst_case};
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
    first_frame: u32,
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
        &self.new[i * FRAME_BLOCKS..((i + 1) * FRAME_BLOCKS).min(self.new.len())]
    }
}

impl Task for Plan {
    fn run(&self, part: usize, scratch: &mut Scratch) {
        let mut sealed = self.frames[part].lock().unwrap_or_else(PoisonError::into_inner);
        let blocks = self.blocks_of(part).iter().map(|(i, _)| self.batch.block(*i as usize));
        let counter = self.first_frame + u32::try_from(part).unwrap_or(0);
        match scratch.data(self.segment.key(), counter, blocks, &mut sealed.bytes) {
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

    /// Plans a batch whose fingerprints are done, and starts its sealing.
    ///
    /// # Errors
    /// If a new segment is needed and cannot be made.
    pub fn plan(&mut self, hashes: &HashTask) -> Result<(Arc<Plan>, Ticket), SessionError> {
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
        let frames = new.len().div_ceil(FRAME_BLOCKS);
        let commit = commit_bound(&batch);
        let reserved = worst_case(new.len() as u64, frames as u64, commit);
        let segment = self.volume.segment_for(self.shared, reserved).map_err(SessionError::from)?;
        let first_frame = segment.next_frames(u32::try_from(frames).unwrap_or(0));
        let frames = (0..frames).map(|_| Mutex::new(Sealed { bytes: self.shared.buffer(), len: 0 })).collect();
        let plan = Arc::new(Plan { batch, number, targets, new, segment, reserved, first_frame, frames });
        let ticket = self.shared.pool.start(&plan, plan.frames());
        Ok((plan, ticket))
    }
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
