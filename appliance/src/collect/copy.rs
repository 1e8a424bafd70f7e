//! Copying live blocks into new segments.

use super::{CollectError, Round, Step};
use crate::ingest::volume::{end_segment, new_segment};
use crate::reduce::FRAME_BLOCKS;
use crate::reduce::frame::Scratch;
use crate::store::segment::{SegmentWriter, worst_case};
use crate::store::{BlockSource, StoreError};
use afterimage_format::BLOCK_SIZE;
use afterimage_format::manifest::SegmentState;
use afterimage_format::place::Place;
use afterimage_format::segment::Fingerprint;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Frames made durable at a time.
const BATCH_FRAMES: usize = 64;

/// Owner of a segment with blocks of any volume.
const NOBODY: [u8; 16] = [0; 16];

/// A segment being filled.
struct Copy<'a> {
    round: &'a Round<'a>,
    scratch: Scratch,
    writer: Option<SegmentWriter>,
    frames: Vec<Vec<u8>>,
    ahead: u64,
    reserved: u64,
    /// Old place, new place, fingerprint.
    moved: Vec<(Place, Place, Fingerprint)>,
}

impl Round<'_> {
    /// Copies the blocks at `places` into new segments, durable and named in the manifest when this returns.
    pub(super) fn copy(&self, places: &[Place]) -> Result<Vec<(Place, Place)>, CollectError> {
        let no_memory = |e| {
            CollectError::Store(StoreError::Io {
                path: self.shared.vault.segments_dir(),
                what: "get memory for copying blocks in",
                source: e,
            })
        };
        let mut copy = Copy {
            round: self,
            scratch: Scratch::new().map_err(no_memory)?,
            writer: None,
            frames: Vec::new(),
            ahead: 0,
            reserved: 0,
            moved: Vec::with_capacity(places.len()),
        };
        let copied = places.chunks(FRAME_BLOCKS).try_for_each(|group| copy.frame(group)).and_then(|()| copy.finish());
        if let Err(e) = copied {
            copy.abandon();
            return Err(e);
        }
        for (_, place, print) in &copy.moved {
            self.shared.index.insert(print, *place);
        }
        Ok(copy.moved.into_iter().map(|(old, new, _)| (old, new)).collect())
    }
}

impl Copy<'_> {
    fn frame(&mut self, places: &[Place]) -> Result<(), CollectError> {
        if self.round.stop.load(Ordering::Relaxed) {
            return Err(CollectError::Stopped);
        }
        let shared = self.round.shared;
        let mut blocks = vec![0; places.len() * BLOCK_SIZE];
        shared.store.read_blocks(places, &mut blocks)?;
        let needed = worst_case(places.len() as u64, 1, 0);
        let fits = self.writer.as_ref().is_some_and(|w| w.segment().reserve(needed, shared.segment_size));
        if !fits {
            self.finish()?;
            self.round.step(Step::Copy)?;
            let segment = new_segment(shared, NOBODY)?;
            // An empty segment takes any frame.
            let _ = segment.reserve(needed, shared.segment_size);
            self.writer = Some(SegmentWriter::new(segment));
        }
        let Some(writer) = &mut self.writer else { return Err(StoreError::Worker.into()) };
        let segment = Arc::clone(writer.segment());
        let mut frame = Vec::new();
        let each = blocks.chunks_exact(BLOCK_SIZE);
        let sealed = self.scratch.data(segment.key(), segment.next_frames(1), each.clone(), &mut frame);
        let len = sealed.map_err(StoreError::from)?;
        let first = writer.place(self.ahead, len)?;
        let prints: Vec<Fingerprint> = each.map(|b| shared.fingerprinter.of(b)).collect();
        let slots = (0u64..).map_while(|slot| first.advance(slot));
        self.moved.extend(places.iter().zip(slots).zip(&prints).map(|((old, new), print)| (*old, new, *print)));
        writer.note_data(first, len, prints);
        self.ahead += frame.len() as u64;
        self.reserved += needed;
        self.frames.push(frame);
        if self.frames.len() >= BATCH_FRAMES { self.append() } else { Ok(()) }
    }

    /// Makes the frames so far durable.
    fn append(&mut self) -> Result<(), CollectError> {
        let Some(writer) = self.writer.as_mut().filter(|_| !self.frames.is_empty()) else { return Ok(()) };
        let frames: Vec<&[u8]> = self.frames.iter().map(Vec::as_slice).collect();
        writer.append(&frames, 0, self.reserved)?;
        self.frames.clear();
        (self.ahead, self.reserved) = (0, 0);
        Ok(())
    }

    /// Seals the segment, if there is one.
    fn finish(&mut self) -> Result<(), CollectError> {
        self.append()?;
        let Some(writer) = &mut self.writer else { return Ok(()) };
        self.round.step(Step::Copy)?;
        let length = writer.seal(&mut self.scratch)?;
        let number = writer.segment().number;
        self.round.shared.vault.edit(|m| end_segment(m, number, SegmentState::Sealed, length, 0))?;
        self.writer = None;
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
