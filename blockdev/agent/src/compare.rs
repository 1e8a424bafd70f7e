//! The sync by comparison: only blocks that the appliance does not have travel.
//!
//! Dirty regions are asked about ahead of the copy, several questions at a time, so the latency of the link does
//! not add up. When the answer for a chunk is there, its range is claimed like a write's; with the claim granted it is read and
//! hashed; then, with the stripes locked, seqs are taken for the blocks that differ, and those are published.
//!
//! # Why no stale block is left at the appliance
//! Let G be the *reference seq*: the Gap's, or after a restart inside a sync the newest seq of the ring, taken before any
//! write got in. A block is left out if its hash under the claim is that of history at G. Look at one byte of it:
//! * If a record behind G covers the byte, the newest such record up to the claim carries what the disk has. For since G the ring has
//!   been open, and so every change of the disk is a record: a live write, in the order in which the disk got them (I1), or a copy
//!   of the sync, which carries the disk's bytes as they were under its claim. So history has the byte that the disk has.
//! * If none does, history still has the byte of G, and the hash says that the disk has the same.
//!
//! So no memory of what was written during a sync is needed. What must hold is that the disk at the claim holds all writes
//! before it, and that no change of the disk since G is without a record:
//! * Writes in flight are waited for, as by any claim; the sync does not begin before the dirty writers of the gap have left.
//! * A write that the disk refuses has a record that the disk does not follow, and a write that finds the ring closed has none. Both
//!   close the ring, or find it closed, before their claim is given up. So if the ring is closed when a chunk has been
//!   compared, the comparison does not count: the mark stays, and the next gap's Gap is the new reference. A dirty
//!   writer that comes behind the claim keeps the mark.
//!
//! # Why no stale block is shown or overtakes a newer one
//! Blocks that differ get their seqs after they were read. A live write that came behind the claim meanwhile has a lower seq and newer
//! data. So if there is one, nothing is sent: the next round sends the chunk as it is, with seqs taken before the claim
//! is granted. A write that comes later has a higher seq and waits for the claim. Until SyncEnd no seq can be chosen.
//!
//! What the answer depends on cannot change behind the sync's back: history at a durable seq is immutable, and another appliance or an
//! older copy of the store is a fork, whose Gap is a new reference.

use crate::asker::{Answer, Reach, Ticket};
use crate::breaks::Break;
use crate::ranges::Claim;
use crate::shared::Shared;
use crate::sync::{CHUNK_REGIONS, Run, Sync, is_zero, reserve};
use afterimage_base::block::BlockError;
use afterimage_format::BLOCK_SIZE;
use afterimage_format::compare::{BlockHash, BlockHasher, MAX_QUERIES, Told};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Regions of one question: 1 MiB.
const QUERY_REGIONS: u64 = 16;
/// Places looked at in one go for something to ask.
const LOOKS: usize = 64;

/// What to do with the beginning of a dirty run.
pub(crate) enum Plan {
    /// Send it as it is.
    Send(Range<u64>),
    /// Send what differs from these blocks of the appliance.
    Compare(Range<u64>, Theirs),
    /// The answer is not there yet.
    Wait,
}

/// The appliance's blocks of a range of regions.
pub(crate) struct Theirs {
    /// None if all are zero.
    hashes: Option<Vec<BlockHash>>,
    hasher: Arc<BlockHasher>,
}

impl Theirs {
    fn has(&self, index: usize, block: &[u8]) -> bool {
        match &self.hashes {
            None => is_zero(block),
            Some(hashes) => hashes.get(index).is_some_and(|h| *h == self.hasher.hash(block)),
        }
    }
}

/// What became of a chunk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Compared {
    Done,
    /// The ring has no room, or is closed.
    NoRoom,
    /// A live write came in between: another round sends the chunk as it is.
    Contended,
}

struct Wanted {
    regions: Range<u64>,
    ticket: Ticket,
}

/// Questions ahead of the copy, in the order of the disk.
#[derive(Default)]
pub(crate) struct Ahead {
    wanted: VecDeque<Wanted>,
    at: u64,
    since: u64,
}

impl Ahead {
    /// The copy begins at the start of the disk again.
    pub(crate) fn restart(&mut self) {
        self.wanted.clear();
        self.at = 0;
    }

    /// What to do with the beginning of the dirty run.
    pub(crate) fn plan(&mut self, shared: &Shared, run: &Range<u64>) -> Plan {
        let since = shared.since.load(Ordering::Acquire);
        if since != self.since {
            self.restart();
            self.since = since;
        }
        match shared.asker.reach() {
            _ if since == 0 => return Plan::Send(run.clone()),
            Reach::Old => return Plan::Send(run.clone()),
            Reach::Away => return Plan::Wait,
            Reach::Open if shared.durable.load(Ordering::Acquire) < since => return Plan::Wait,
            Reach::Open => {}
        }
        while self.wanted.front().is_some_and(|w| w.regions.end <= run.start) {
            self.wanted.pop_front();
        }
        self.ask(shared, run.start);
        let Some(front) = self.wanted.front() else { return Plan::Send(run.clone()) };
        if !front.regions.contains(&run.start) {
            return Plan::Send(run.start..run.end.min(front.regions.start));
        }
        let end = run.end.min(front.regions.end).min(run.start + CHUNK_REGIONS);
        match front.ticket.look() {
            Answer::Pending => Plan::Wait,
            Answer::Lost => {
                self.restart();
                Plan::Wait
            }
            Answer::Told(Told::Nothing) => Plan::Send(run.start..end),
            Answer::Told(told) => {
                let hashes = part(shared, told, front.regions.start, &(run.start..end));
                Plan::Compare(run.start..end, Theirs { hashes, hasher: Arc::clone(&front.ticket.hasher) })
            }
        }
    }

    /// Asks as far ahead as is allowed. Holes are not asked about: they cost one record.
    fn ask(&mut self, shared: &Shared, from: u64) {
        let (map, mut asked) = (&shared.p.map, false);
        self.at = self.at.max(from);
        for _ in 0..LOOKS {
            if self.wanted.len() >= MAX_QUERIES {
                break;
            }
            let Some(run) = map.run_dirty(self.at, QUERY_REGIONS) else { break };
            let hole = hole(shared, &run);
            if hole > 0 {
                self.at = run.start + hole;
                continue;
            }
            let bytes = map.region_range(run.start).start..map.region_range(run.end - 1).end;
            let seq = if shared.p.breaks.has(Break::WrongSeq) { 1 } else { self.since };
            let Some(ticket) = shared.asker.ask(seq, bytes) else { break };
            (self.at, asked) = (run.end, true);
            self.wanted.push_back(Wanted { regions: run, ticket });
        }
        if asked {
            shared.p.ring.wake_sender();
        }
    }
}

/// Regions that are a hole of the disk, from the beginning of the run on.
fn hole(shared: &Shared, run: &Range<u64>) -> u64 {
    let map = &shared.p.map;
    let bytes = map.region_range(run.start).start..map.region_range(run.end - 1).end;
    let len = bytes.end - bytes.start;
    let first = shared.core.disk.extents(bytes.start, len, 1).ok().and_then(|e| e.first().copied());
    match first.filter(|e| e.hole).map_or(0, |e| e.len) {
        all if all >= len => run.end - run.start,
        hole => hole / map.region(),
    }
}

/// The hashes of some regions out of an answer that begins with region `from`; None if all are zero.
fn part(shared: &Shared, told: Told, from: u64, regions: &Range<u64>) -> Option<Vec<BlockHash>> {
    let Told::Each(hashes) = told else { return None };
    let blocks = shared.p.map.region() / BLOCK_SIZE as u64;
    let at = |region: u64| usize::try_from((region - from) * blocks).unwrap_or(usize::MAX).min(hashes.len());
    Some(hashes[at(regions.start)..at(regions.end)].to_vec())
}

impl Sync {
    /// Sends what differs in a chunk.
    pub(crate) fn compare(
        &mut self,
        shared: &Shared,
        regions: &Range<u64>,
        theirs: &Theirs,
    ) -> Result<Compared, BlockError> {
        let (p, map) = (&shared.p, &shared.p.map);
        let bytes = map.region_range(regions.start).start..map.region_range(regions.end - 1).end;
        let epoch = *shared.epoch();
        let (start, end) = shared.core.disk.span(bytes.start, bytes.end - bytes.start);
        let claim = self.next_claim(start, end);
        let mut locked = shared.core.ranges.lock(start, end);
        if p.ring.is_closed() {
            return Ok(Compared::NoRoom);
        }
        let granted = locked.register(claim, &self.mailbox, 0);
        drop(locked);
        if !granted && !p.breaks.has(Break::CompareUnclaimed) {
            self.wait_for_claim();
        }
        let result = self.send_differing(shared, &bytes, &claim, theirs);
        let mut locked = shared.core.ranges.lock(start, end);
        let unchanged = shared.epoch();
        if matches!(result, Ok(Compared::Done)) && *unchanged == epoch && !locked.dirty_behind(&claim) {
            regions.clone().for_each(|r| map.clear(r));
        }
        drop(unchanged);
        drop(locked);
        shared.core.ranges.release(&claim);
        p.ring.wake_sender();
        result
    }

    fn send_differing(
        &mut self,
        shared: &Shared,
        bytes: &Range<u64>,
        claim: &Claim,
        theirs: &Theirs,
    ) -> Result<Compared, BlockError> {
        let p = &shared.p;
        self.read(shared, bytes)?;
        let runs = differing(&self.buf, bytes.start, theirs);
        shared.counts.compared.fetch_add(bytes.end - bytes.start, Ordering::Relaxed);
        if runs.is_empty() {
            let counts = !p.ring.is_closed() || p.breaks.has(Break::ClosedIgnored);
            return Ok(if counts { Compared::Done } else { Compared::NoRoom });
        }
        let mut locked = shared.core.ranges.lock(claim.start, claim.end);
        if locked.behind(claim) && !p.breaks.has(Break::OvertakeWrites) {
            return Ok(Compared::Contended);
        }
        let Some(places) = reserve(shared, &runs) else { return Ok(Compared::NoRoom) };
        drop(locked);
        for (run, mut place) in runs.iter().zip(places) {
            if !run.zero {
                let from = usize::try_from(run.bytes.start - bytes.start).unwrap_or(0);
                let to = place.payload_mut();
                to.copy_from_slice(&self.buf[from..from + to.len()]);
            }
            place.publish(p.clock.wall());
        }
        Ok(Compared::Done)
    }
}

/// Runs of blocks that the appliance does not have.
fn differing(buf: &[u8], start: u64, theirs: &Theirs) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut at = start;
    for (index, block) in buf.chunks(BLOCK_SIZE).enumerate() {
        let end = at + block.len() as u64;
        if !theirs.has(index, block) {
            let zero = is_zero(block);
            match runs.last_mut() {
                Some(run) if run.zero == zero && run.bytes.end == at => run.bytes.end = end,
                _ => runs.push(Run { bytes: at..end, zero }),
            }
        }
        at = end;
    }
    runs
}
