//! The writing stage: appends a batch with its commit frames, makes it durable, and tells index, history and agent.

use super::batch::push_run;
use super::plan::{Plan, Sealed, Target};
use super::progress::Committed;
use super::volume::Volume;
use super::{Flight, SessionError, Shared};
use crate::history::Run;
use crate::reduce::FRAME_BLOCKS;
use crate::reduce::frame::Scratch;
use crate::reduce::pool::Ticket;
use crate::store::StoreError;
use crate::store::segment::SegmentWriter;
use afterimage_format::commit::{BlockRun, CommitBuilder};
use afterimage_format::place::Place;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Batches whose places are remembered: more than can be between the dedupe stage and this one.
const REMEMBERED: usize = 8;

/// A planned batch on its way to the writing stage.
#[derive(Debug)]
pub struct Planned {
    /// The plan, which is being sealed.
    pub plan: Arc<Plan>,
    /// Waits for the sealing.
    pub ticket: Ticket,
    /// Keeps collection from segments that the batch refers to.
    pub flight: Flight,
}

/// The writing stage of a session.
pub struct BatchWriter<'a> {
    shared: &'a Shared,
    volume: &'a Volume,
    ring: [u8; 16],
    scratch: Scratch,
    places: VecDeque<(u64, Vec<Place>)>,
    builder: CommitBuilder,
    content: Vec<u8>,
    runs: Vec<Run>,
}

impl std::fmt::Debug for BatchWriter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BatchWriter({})", self.volume.name)
    }
}

impl<'a> BatchWriter<'a> {
    /// For a session of `volume` that comes from `ring`.
    ///
    /// # Errors
    /// If there is no memory for a compressor.
    pub fn new(shared: &'a Shared, volume: &'a Volume, ring: [u8; 16]) -> Result<Self, SessionError> {
        let scratch = Scratch::new().map_err(|e| SessionError::Failed(e.to_string()))?;
        let (builder, places) = (CommitBuilder::new(), VecDeque::new());
        Ok(Self { shared, volume, ring, scratch, places, builder, content: Vec::new(), runs: Vec::new() })
    }

    /// Makes a batch durable and visible. After an error the volume's segment takes no more.
    ///
    /// # Errors
    /// [`SessionError::Full`] or [`SessionError::Failed`].
    pub fn write(&mut self, plan: &Plan, ticket: &Ticket) -> Result<(), SessionError> {
        let obstacle = self.shared.obstacle().or_else(|| self.volume.failure().map(SessionError::Failed));
        let result = if let Some(obstacle) = obstacle {
            // What is being sealed has to be done with before the batch is dropped.
            let _ = ticket.wait();
            Err(obstacle)
        } else if ticket.wait() {
            self.try_write(plan)
        } else {
            Err(StoreError::Worker.into())
        };
        if let Err(e) = &result {
            self.volume.fail_stream(self.shared, e);
        }
        result
    }

    fn try_write(&mut self, plan: &Plan) -> Result<(), SessionError> {
        if let Some(full) = self.open(plan) {
            // What it holds is durable; sealing it can be done by somebody else, who may be busy.
            self.shared.seal(full);
        }
        let mut stream = self.volume.writer();
        let Some(writer) = &mut *stream else { return Err(StoreError::Worker.into()) };
        let sealed: Vec<Sealed> = (0..plan.frames()).map(|i| plan.take(i)).collect();
        let data = note_frames(plan, &sealed, writer)?;
        let places = new_places(plan, &sealed, writer)?;
        self.places.push_back((plan.number, places));
        if self.places.len() > REMEMBERED {
            self.places.pop_front();
        }
        let commits = self.commit_frames(plan, writer, data)?;
        let mut frames: Vec<&[u8]> = sealed.iter().map(|s| &s.bytes[..]).collect();
        frames.extend(commits.iter().map(|c| &c[..]));
        let last = plan.batch.records.last().map_or(0, |r| r.record.seq);
        writer.append(&frames, last, plan.reserved)?;
        drop(stream);
        if plan.unreduced {
            self.shared.pressure.left_over();
        }
        let bytes: usize = frames.iter().map(|f| f.len()).sum();
        self.shared.counters.ingested.fetch_add(bytes as u64, Ordering::Relaxed);
        self.shared.recycle(sealed.into_iter().map(|s| s.bytes));
        self.publish(plan)
    }

    /// Makes the plan's segment the one being written. Returns the one before, if that is another.
    fn open(&self, plan: &Plan) -> Option<SegmentWriter> {
        let mut stream = self.volume.writer();
        if stream.as_ref().is_some_and(|w| Arc::ptr_eq(w.segment(), &plan.segment)) {
            return None;
        }
        stream.replace(SegmentWriter::new(Arc::clone(&plan.segment)))
    }

    /// What is durable now becomes known: to the index, the history, the next session.
    fn publish(&mut self, plan: &Plan) -> Result<(), SessionError> {
        if let Some((_, places)) = self.places.back() {
            for ((_, print), place) in plan.new.iter().zip(places) {
                self.shared.index.insert(print, *place);
            }
        }
        let records = plan.batch.records.iter().map(|r| Committed {
            kind: r.record.kind,
            flags: r.record.flags,
            seq: r.record.seq,
            time: r.time,
            offset: r.record.offset,
            size: r.record.new_size(),
            name: &r.name,
        });
        let digest = plan.batch.records.last().map_or(0, |r| r.record.digest());
        self.volume.commit(records, &self.runs, self.ring, digest, plan.batch.logical)
    }

    /// Seals the commit frames of a batch; `ahead` bytes of data frames come before them. Leaves the runs in `self.runs`.
    fn commit_frames(
        &mut self,
        plan: &Plan,
        writer: &mut SegmentWriter,
        mut ahead: u64,
    ) -> Result<Vec<Vec<u8>>, SessionError> {
        self.runs.clear();
        self.builder.clear();
        let (mut out, mut record_runs) = (Vec::new(), Vec::new());
        for (i, r) in plan.batch.records.iter().enumerate() {
            let first = self.runs.len();
            for piece in &plan.batch.pieces[r.pieces.clone()] {
                self.resolve(plan, r.record.seq, piece)?;
            }
            record_runs.clear();
            let runs = &self.runs[first..];
            record_runs.extend(runs.iter().map(|r| BlockRun { block: r.block, count: r.count, place: r.place }));
            self.builder.push(&r.record, r.time, &r.name, &record_runs);
            if self.builder.is_full() || i + 1 == plan.batch.records.len() {
                self.builder.finish(&self.volume.id, &self.ring, &mut self.content);
                let (mut frame, seqs) = (self.shared.buffer(), (self.builder.first, self.builder.last));
                writer.seal_commit(&mut self.scratch, &self.content, seqs, ahead, &mut frame)?;
                ahead += frame.len() as u64;
                out.push(frame);
                self.builder.clear();
            }
        }
        Ok(out)
    }

    fn resolve(&mut self, plan: &Plan, seq: u64, piece: &super::batch::Piece) -> Result<(), SessionError> {
        let Some(first) = piece.first else {
            push_run(&mut self.runs, Run { block: piece.block, count: piece.count, seq, place: Place::ZERO });
            return Ok(());
        };
        for i in 0..piece.count {
            let target = plan.targets[first + usize::try_from(i).unwrap_or(0)];
            let place = match target {
                Target::Zero => Place::ZERO,
                Target::Known(place) => place,
                Target::New { batch, index } => self.place_of(batch, index)?,
            };
            push_run(&mut self.runs, Run { block: piece.block + i, count: 1, seq, place });
        }
        Ok(())
    }

    fn place_of(&self, batch: u64, index: u32) -> Result<Place, SessionError> {
        let of_batch = self.places.iter().rev().find(|(n, _)| *n == batch);
        let place = of_batch.and_then(|(_, places)| places.get(index as usize));
        place.copied().ok_or_else(|| SessionError::Failed(format!("the places of batch {batch} are forgotten")))
    }
}

/// Notes the data frames for the directory; returns how many bytes they take.
fn note_frames(plan: &Plan, sealed: &[Sealed], writer: &mut SegmentWriter) -> Result<u64, SessionError> {
    let mut ahead = 0;
    if plan.first_frame() != writer.data_frames() {
        return Err(SessionError::Failed(format!("frames of segment {} were lost on their way", plan.segment.number)));
    }
    for (i, frame) in sealed.iter().enumerate() {
        if frame.len == 0 {
            return Err(StoreError::Worker.into());
        }
        let place = writer.place(ahead, frame.len)?;
        writer.note_data(place, frame.len, plan.blocks_of(i).iter().map(|(_, print)| *print).collect());
        ahead += frame.bytes.len() as u64;
    }
    if plan.unreduced {
        writer.note_unreduced(u32::try_from(plan.new.len()).unwrap_or(u32::MAX));
    }
    Ok(ahead)
}

/// The places of a batch's new blocks.
fn new_places(plan: &Plan, sealed: &[Sealed], writer: &SegmentWriter) -> Result<Vec<Place>, SessionError> {
    let (mut places, mut ahead) = (Vec::with_capacity(plan.new.len()), 0);
    for (i, frame) in sealed.iter().enumerate() {
        let first = writer.place(ahead, frame.len)?;
        debug_assert!(plan.blocks_of(i).len() <= FRAME_BLOCKS);
        places.extend((0..plan.blocks_of(i).len() as u64).filter_map(|slot| first.advance(slot)));
        ahead += frame.bytes.len() as u64;
    }
    Ok(places)
}
