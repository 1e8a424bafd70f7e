//! Copies dirty regions through the ring, in order with live writes.
//!
//! Where the appliance can be asked for hashes, regions are compared, and only blocks that differ are sent
//! ([`crate::compare`]). Everything else is sent as it is:
//!
//! A chunk is first read without any lock, to see which of its 4 KiB blocks are zero. Then its range is claimed
//! like a write's, and seqs are taken while the stripes are locked: Write records for the blocks with data, Zero records
//! for the rest. When the writes before it have reached the disk, the chunk is read again, data straight into the ring, and
//! published. Live writes that overlap have later seqs and wait for the claim, so no block is overtaken by
//! an older copy of itself. A block that was zero at first and is not any more gets its Zero record all the same, and
//! its region stays marked for another round: until the SyncEnd nobody may look.
//!
//! The mark is taken away behind the publication, with the stripes locked, and only if no dirty writer stands behind
//! the claim and nobody has marked everything meanwhile.

use crate::breaks::Break;
use crate::compare::{Ahead, Compared, Plan};
use crate::mailbox::{Mail, Mailbox};
use crate::pace::Pace;
use crate::ranges::Claim;
use crate::shared::Shared;
use afterimage_base::block::BlockError;
use afterimage_base::buf::AlignedBuf;
use afterimage_base::world;
use afterimage_format::BLOCK_SIZE;
use afterimage_format::record::{FLAG_SYNC, Kind};
use afterimage_journal::Reservation;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Regions with data copied as one chunk: long enough for batches, short enough that a live write hardly waits.
pub(crate) const CHUNK_REGIONS: u64 = 4;
/// Regions of a hole sent as one record.
const HOLE_REGIONS: u64 = 1 << 14;
const WAIT_TICK: Duration = Duration::from_millis(200);

/// What became of a step.
#[derive(Debug)]
pub(crate) enum Step {
    /// A chunk was copied.
    Copied,
    /// There is no room in the ring now, dirty writers have not left yet, or an answer of the appliance is not there.
    Wait,
    /// It gives way to the guest for so long.
    Pause(Duration),
    /// Nothing is marked.
    Empty,
    /// The disk cannot be read there; the region stays marked.
    Failed,
}

/// See the module.
pub(crate) struct Sync {
    shared: Arc<Shared>,
    pub(crate) mailbox: Arc<Mailbox>,
    next_claim: u64,
    at: u64,
    failed: bool,
    pub(crate) buf: AlignedBuf,
    ahead: Ahead,
    /// A chunk that live writes came to while it was compared.
    contended: Option<Range<u64>>,
    pace: Pace,
}

/// Neighbouring blocks with data, or without.
pub(crate) struct Run {
    pub(crate) bytes: Range<u64>,
    pub(crate) zero: bool,
}

impl Sync {
    pub(crate) fn new(shared: Arc<Shared>) -> io::Result<Sync> {
        let chunk = usize::try_from(CHUNK_REGIONS * shared.p.map.region()).unwrap_or(usize::MAX);
        Ok(Sync {
            mailbox: Arc::new(Mailbox::new()?),
            next_claim: shared.core.number() << 40,
            at: 0,
            failed: false,
            buf: AlignedBuf::zeroed(chunk),
            ahead: Ahead::default(),
            contended: None,
            pace: Pace::new(world::now()),
            shared,
        })
    }

    /// Copies the next dirty chunk.
    pub(crate) fn step(&mut self) -> Step {
        let shared = Arc::clone(&self.shared);
        let (ring, map) = (&shared.p.ring, &shared.p.map);
        let began = world::now();
        if let Some(rest) = self.pace.pause(began) {
            return Step::Pause(rest);
        }
        let room = self.pace.room(ring.capacity_bytes(), shared.p.requests(), began);
        if shared.p.dirty_writers() != 0 || ring.used_bytes() > room {
            return Step::Wait;
        }
        let Some(run) = map.run_dirty(self.at, HOLE_REGIONS) else {
            let empty = self.at == 0;
            self.at = 0;
            self.ahead.restart();
            if !std::mem::take(&mut self.failed) {
                shared.state().disk_trouble = None;
                return if empty { Step::Empty } else { self.step_from_start() };
            }
            return Step::Failed;
        };
        let plan = match self.contended.take().filter(|c| c.contains(&run.start)) {
            Some(c) => Plan::Send(run.start..run.end.min(c.end)),
            None => self.ahead.plan(&shared, &run),
        };
        let (chunk, result) = match plan {
            Plan::Wait => return Step::Wait,
            Plan::Compare(chunk, theirs) => (chunk.clone(), self.compare(&shared, &chunk, &theirs)),
            Plan::Send(run) => {
                let chunk = self.chunk(run);
                let copied = self.copy(&shared, chunk.clone());
                (chunk, copied.map(|there| if there { Compared::Done } else { Compared::NoRoom }))
            }
        };
        self.at = chunk.end;
        match result {
            Ok(Compared::Done) => {
                let bytes = map.region_range(chunk.end - 1).end - map.region_range(chunk.start).start;
                self.pace.done(
                    bytes,
                    began,
                    world::now(),
                    shared.p.requests(),
                    shared.sync_rate.load(Ordering::Relaxed),
                );
                Step::Copied
            }
            Ok(Compared::Contended) => {
                self.at = chunk.start;
                self.contended = Some(chunk);
                Step::Copied
            }
            Ok(Compared::NoRoom) => {
                self.at = chunk.start;
                Step::Wait
            }
            Err(e) => {
                let what = format!("cannot read the disk for the sync, in regions up to {}: {e}", self.at);
                tracing::error!("volume {}: {what}", shared.p.name);
                shared.state().disk_trouble = Some(what);
                self.failed = true;
                Step::Copied
            }
        }
    }

    /// A sync begins (again).
    pub(crate) fn begin(&mut self) {
        (self.at, self.failed) = (0, false);
        self.ahead.restart();
        self.pace.begin(world::now());
    }

    fn step_from_start(&self) -> Step {
        if self.shared.p.map.next_dirty(0).is_none() { Step::Empty } else { Step::Copied }
    }

    /// The first part of a dirty run that is copied in one go: a hole, or a few regions.
    fn chunk(&self, run: Range<u64>) -> Range<u64> {
        let map = &self.shared.p.map;
        let bytes = map.region_range(run.start).start..map.region_range(run.end - 1).end;
        let hole = match self.shared.core.disk.extents(bytes.start, bytes.end - bytes.start, 1) {
            Ok(e) => e.first().filter(|e| e.hole).map_or(0, |e| e.len),
            Err(_) => 0,
        };
        let whole = if hole == bytes.end - bytes.start { run.end - run.start } else { hole / map.region() };
        run.start..run.end.min(run.start + whole.max(CHUNK_REGIONS))
    }

    /// Reads a chunk for a look: its runs of blocks with and without data.
    fn look(&mut self, bytes: &Range<u64>) -> Result<Vec<Run>, BlockError> {
        let len = bytes.end - bytes.start;
        if len > self.buf.capacity() as u64 {
            return Ok(vec![Run { bytes: bytes.clone(), zero: true }]);
        }
        let shared = Arc::clone(&self.shared);
        self.read(&shared, bytes)?;
        let mut runs: Vec<Run> = Vec::new();
        let mut at = bytes.start;
        for block in self.buf.chunks(BLOCK_SIZE) {
            let (zero, end) = (is_zero(block), at + block.len() as u64);
            match runs.last_mut() {
                Some(run) if run.zero == zero => run.bytes.end = end,
                _ => runs.push(Run { bytes: at..end, zero }),
            }
            at = end;
        }
        Ok(runs)
    }

    /// Fills the buffer with these bytes of the disk, at most a chunk.
    pub(crate) fn read(&mut self, shared: &Shared, bytes: &Range<u64>) -> Result<(), BlockError> {
        self.buf.set_len(usize::try_from(bytes.end - bytes.start).unwrap_or(0));
        shared.core.disk.read_at(bytes.start, &mut self.buf)
    }

    pub(crate) fn next_claim(&mut self, start: u64, end: u64) -> Claim {
        self.next_claim += 1;
        Claim { id: self.next_claim, start, end, dirty: false }
    }

    /// True if the chunk is in the ring, false if there is no room.
    fn copy(&mut self, shared: &Shared, regions: Range<u64>) -> Result<bool, BlockError> {
        let (p, map) = (&shared.p, &shared.p.map);
        let bytes = map.region_range(regions.start).start..map.region_range(regions.end - 1).end;
        let runs = self.look(&bytes)?;
        world::point("sync looked");
        if p.breaks.has(Break::ClearEarly) {
            regions.clone().for_each(|r| map.clear(r));
        }
        let epoch = *shared.epoch();
        let (start, end) = shared.core.disk.span(bytes.start, bytes.end - bytes.start);
        let claim = self.next_claim(start, end);
        let mut locked = shared.core.ranges.lock(start, end);
        let Some(places) = reserve(shared, &runs) else { return Ok(false) };
        let granted = locked.register(claim, &self.mailbox, 0);
        drop(locked);
        world::point("sync claimed");
        if !granted && !p.breaks.has(Break::SyncUnlocked) {
            self.wait_for_claim();
        }
        let copied = self.fill(shared, &bytes, &runs, places);
        world::point("sync copied");
        let mut locked = shared.core.ranges.lock(start, end);
        let unchanged = shared.epoch();
        if matches!(copied, Ok(true)) && *unchanged == epoch && !locked.dirty_behind(&claim) {
            regions.for_each(|r| map.clear(r));
        }
        drop(unchanged);
        drop(locked);
        shared.core.ranges.release(&claim);
        p.ring.wake_sender();
        copied.map(|_| true)
    }

    pub(crate) fn wait_for_claim(&self) {
        let mut mail = Vec::new();
        while !mail.contains(&Mail::Granted(0)) {
            self.mailbox.wait(WAIT_TICK);
            self.mailbox.take(&mut mail);
        }
    }

    /// Reads the claimed chunk into its places and publishes them. False if a block is not zero any more. Places that are
    /// not published because of an error become Void.
    fn fill(
        &mut self,
        shared: &Shared,
        bytes: &Range<u64>,
        runs: &[Run],
        places: Vec<Reservation<'_>>,
    ) -> Result<bool, BlockError> {
        let disk = &shared.core.disk;
        let mut still_zero = true;
        for (run, mut place) in runs.iter().zip(places) {
            let from = usize::try_from(run.bytes.start - bytes.start).unwrap_or(0);
            if run.zero {
                still_zero &= self.reads_zero(shared, &run.bytes, from)?;
            } else if shared.p.breaks.has(Break::SyncUnlocked) {
                let to = place.payload_mut();
                let len = to.len();
                to.copy_from_slice(&self.buf[from..from + len]);
            } else {
                disk.read_at(run.bytes.start, place.payload_mut())?;
            }
            place.publish(shared.p.clock.wall());
        }
        Ok(still_zero)
    }

    fn reads_zero(&mut self, shared: &Shared, bytes: &Range<u64>, from: usize) -> Result<bool, BlockError> {
        let len = bytes.end - bytes.start;
        if len > self.buf.capacity() as u64 {
            let extents = shared.core.disk.extents(bytes.start, len, 1)?;
            return Ok(extents.first().is_some_and(|e| e.hole && e.len == len));
        }
        let part = &mut self.buf[from..from + usize::try_from(len).unwrap_or(0)];
        shared.core.disk.read_at(bytes.start, part)?;
        Ok(is_zero(part))
    }
}

/// Seqs and places for copies, with the stripes of their range locked; all or none.
pub(crate) fn reserve<'a>(shared: &'a Shared, runs: &[Run]) -> Option<Vec<Reservation<'a>>> {
    let mut places = Vec::with_capacity(runs.len());
    for run in runs {
        let len = run.bytes.end - run.bytes.start;
        let (kind, payload) = if run.zero { (Kind::Zero, 0) } else { (Kind::Write, usize::try_from(len).ok()?) };
        places.push(shared.p.ring.reserve(kind, FLAG_SYNC, run.bytes.start, len, payload).ok()?);
    }
    for run in runs {
        let len = run.bytes.end - run.bytes.start;
        shared.counts.sent.fetch_add(if run.zero { 0 } else { len }, Ordering::Relaxed);
    }
    Some(places)
}

pub(crate) fn is_zero(block: &[u8]) -> bool {
    // SAFETY: any bytes are a valid u128.
    let (head, middle, tail) = unsafe { block.align_to::<u128>() };
    head.iter().all(|b| *b == 0) && middle.iter().all(|w| *w == 0) && tail.iter().all(|b| *b == 0)
}
