//! Copying live blocks into new segments, in disk order.

use super::gather::Live;
use super::{CollectError, Round, Step};
use crate::ingest::volume::{end_segment, new_segment};
use crate::reduce::frame::Scratch;
use crate::reduce::{FRAME_BLOCKS, FRAME_REACH, SCATTERED_FRAME_BLOCKS};
use crate::store::StoreError;
use crate::store::segment::{SegmentWriter, worst_case};
use afterimage_base::world;
use afterimage_format::BLOCK_SIZE;
use afterimage_format::manifest::SegmentState;
use afterimage_format::place::Place;
use afterimage_format::segment::Fingerprint;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Frames made durable at a time.
const BATCH_FRAMES: usize = 256;
/// Blocks read at a time, 32 MiB: much more than a frame of ingest reaches over, so that most are decoded once.
const PART: usize = 8192;

/// Owner of a segment with blocks of any volume, and of one that is not whole yet: a start removes it.
const NOBODY: [u8; 16] = [0; 16];

/// How blocks are copied.
pub(super) struct Manner<'a> {
    /// The volume that new segments count for.
    pub(super) owner: Option<[u8; 16]>,
    /// Whether rounds of collection must leave them alone until they are let go.
    pub(super) claim: bool,
    /// Called after so many bytes of blocks have been written; waits as long as that is worth.
    pub(super) pace: &'a mut dyn FnMut(u64),
}

/// A segment being filled.
struct Copy<'a, 'm> {
    round: &'a Round<'a>,
    manner: Manner<'m>,
    scratch: Scratch,
    writer: Option<SegmentWriter>,
    frames: Vec<Vec<u8>>,
    ahead: u64,
    reserved: u64,
    /// What lies in the segment.
    inside: Vec<(Fingerprint, Place)>,
    /// Old place, new place.
    moved: Vec<(Place, Place)>,
}

impl Round<'_> {
    /// Copies the blocks of `live` into new segments, durable and named in the manifest when this returns.
    pub(super) fn copy(&self, live: &[Live], manner: Manner<'_>) -> Result<Vec<(Place, Place)>, CollectError> {
        let no_memory = |e| {
            CollectError::Store(StoreError::Io {
                path: self.shared.vault.segments_dir(),
                what: "get memory for copying blocks in",
                source: e,
            })
        };
        let mut copy = Copy {
            round: self,
            manner,
            scratch: Scratch::new().map_err(no_memory)?,
            writer: None,
            frames: Vec::new(),
            ahead: 0,
            reserved: 0,
            inside: Vec::new(),
            moved: Vec::with_capacity(live.len()),
        };
        let mut blocks = Vec::new();
        let mut parts = live.chunks(PART);
        let copied = parts.try_for_each(|part| copy.part(part, &mut blocks)).and_then(|()| copy.finish());
        if let Err(e) = copied {
            copy.abandon();
            return Err(e);
        }
        Ok(copy.moved)
    }
}

impl Copy<'_, '_> {
    /// Copies a part: first what later points see, then what only points in between do.
    fn part(&mut self, part: &[Live], blocks: &mut Vec<u8>) -> Result<(), CollectError> {
        blocks.resize(part.len() * BLOCK_SIZE, 0);
        let places: Vec<Place> = part.iter().map(|l| l.place).collect();
        self.round.shared.store.read_to_copy(&places, blocks)?;
        for last in [true, false] {
            let mut frame: Vec<usize> = Vec::with_capacity(FRAME_BLOCKS);
            for (i, live) in part.iter().enumerate().filter(|(_, l)| l.last == last) {
                let far = frame.first().is_some_and(|f| live.block.abs_diff(part[*f].block) > FRAME_REACH);
                if frame.len() == FRAME_BLOCKS || (far && frame.len() >= SCATTERED_FRAME_BLOCKS) {
                    self.frame(part, blocks, &frame)?;
                    frame.clear();
                }
                frame.push(i);
            }
            if !frame.is_empty() {
                self.frame(part, blocks, &frame)?;
            }
        }
        Ok(())
    }

    /// Makes a frame of the blocks of `part` with these numbers.
    fn frame(&mut self, part: &[Live], blocks: &[u8], which: &[usize]) -> Result<(), CollectError> {
        if self.round.stop.load(Ordering::Relaxed) {
            return Err(CollectError::Stopped);
        }
        let shared = self.round.shared;
        let needed = worst_case(which.len() as u64, 1, 0);
        let fits = self.writer.as_ref().is_some_and(|w| w.segment().reserve(needed, shared.segment_size));
        if !fits {
            self.finish()?;
            self.begin(needed)?;
        }
        let Some(writer) = &mut self.writer else { return Err(StoreError::Worker.into()) };
        let segment = Arc::clone(writer.segment());
        let mut frame = Vec::new();
        let each = which.iter().map(|i| &blocks[i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE]);
        let sealed = self.scratch.data(segment.key(), segment.next_frames(1), each.clone(), &mut frame);
        let len = sealed.map_err(StoreError::from)?;
        let first = writer.place(self.ahead, len)?;
        let prints: Vec<Fingerprint> = each.map(|b| shared.fingerprinter.of(b)).collect();
        let slots = (0u64..).map_while(|slot| first.advance(slot));
        for ((i, new), print) in which.iter().zip(slots).zip(&prints) {
            self.moved.push((part[*i].place, new));
            self.inside.push((*print, new));
        }
        writer.note_data(first, len, prints);
        self.ahead += frame.len() as u64;
        self.reserved += needed;
        self.frames.push(frame);
        if self.frames.len() >= BATCH_FRAMES { self.append() } else { Ok(()) }
    }

    /// Begins a segment.
    fn begin(&mut self, needed: u64) -> Result<(), CollectError> {
        self.round.step(Step::Copy)?;
        let shared = self.round.shared;
        let segment = new_segment(shared, self.manner.owner.unwrap_or(NOBODY), NOBODY)?;
        if self.manner.claim {
            shared.claim([segment.number]);
        }
        // An empty segment takes any frame.
        let _ = segment.reserve(needed, shared.segment_size);
        self.writer = Some(SegmentWriter::new(segment));
        Ok(())
    }

    /// Makes the frames so far durable.
    fn append(&mut self) -> Result<(), CollectError> {
        let Some(writer) = self.writer.as_mut().filter(|_| !self.frames.is_empty()) else { return Ok(()) };
        let frames: Vec<&[u8]> = self.frames.iter().map(Vec::as_slice).collect();
        writer.append(&frames, 0, self.reserved)?;
        self.round.shared.counters.rewritten.fetch_add(self.ahead, Ordering::Relaxed);
        let blocks = self.frames.len() * FRAME_BLOCKS * BLOCK_SIZE;
        self.frames.clear();
        (self.ahead, self.reserved) = (0, 0);
        (self.manner.pace)(blocks as u64);
        Ok(())
    }

    /// Seals the segment, if there is one. What is in it can be found by its content from then on.
    fn finish(&mut self) -> Result<(), CollectError> {
        self.append()?;
        let Some(writer) = &mut self.writer else { return Ok(()) };
        self.round.step(Step::Copy)?;
        let length = writer.seal(&mut self.scratch)?;
        let number = writer.segment().number;
        let owner = self.manner.owner.unwrap_or(NOBODY);
        // Broken on purpose: layers will name a segment that the manifest does not know as whole.
        if !world::broken("copy-unnamed") {
            self.round.shared.vault.edit(|m| {
                end_segment(m, number, SegmentState::Sealed, length, 0);
                m.segments.iter_mut().filter(|s| s.number == number).for_each(|s| s.volume = owner);
            })?;
        }
        self.writer = None;
        for (print, place) in self.inside.drain(..) {
            self.round.shared.index.insert(&print, place);
        }
        Ok(())
    }

    /// Gives up a segment half written: nothing refers to it, a later round removes it.
    fn abandon(&mut self) {
        let Some(writer) = self.writer.take() else { return };
        let (number, length) = (writer.segment().number, writer.committed());
        let ended = self.round.shared.vault.edit(|m| end_segment(m, number, SegmentState::Closed, length, 0));
        if let Err(e) = ended {
            tracing::warn!("segment {number}, half copied, stays open in the manifest until the next start: {e}");
        }
    }
}
