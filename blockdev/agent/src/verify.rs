//! Comparing the disk with the newest history, while the guest goes on.
//!
//! A chunk of the disk is claimed like a write, and the newest seq is noted with the stripes locked. When the writes before
//! it have reached the disk it is read and hashed, and the claim released. So the hashes are those of the chunk as it is after exactly
//! the writes up to that seq, and once the seq is durable the appliance is asked for the same: nothing in between can
//! differ but by a fault. A chunk that does differ is compared again, twice, before it is said to (the disk may just have refused
//! a write; that begins a gap, which ends the verification).
//!
//! Only a live volume can be verified: in a gap disk and history differ by design.
//!
//! Many chunks are under way at once: hashed ones wait for their seq to become durable, up to [`MAX_QUERIES`] of them are
//! asked about. Memory is bounded by that.

use crate::asker::{Answer, Reach, Ticket};
use crate::breaks::Break;
use crate::machine::Mode;
use crate::mailbox::{Mail, Mailbox};
use crate::pace::Pace;
use crate::ranges::Claim;
use crate::shared::Shared;
use crate::sync::is_zero;
use crate::volume::Volume;
use afterimage_base::block::BlockError;
use afterimage_base::buf::AlignedBuf;
use afterimage_base::world;
use afterimage_format::compare::{BlockHash, BlockHasher, MAX_HASHES, Told};
use afterimage_format::{BLOCK_SHIFT, BLOCK_SIZE};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use thiserror::Error;

#[cfg(doc)]
use afterimage_format::compare::MAX_QUERIES;

/// Bytes read under one claim: short enough that a write of the guest hardly waits.
const CHUNK: u64 = 256 << 10;
/// Chunks under way.
const WINDOW: usize = 256;
/// So often a chunk is compared before it counts as different.
const TRIES: u32 = 3;
/// Ranges of each kind that a report lists; the rest is counted.
const MAX_RANGES: usize = 10_000;
const TICK: Duration = Duration::from_millis(5);
/// Without an appliance for so long, the verification is given up.
const AWAY: Duration = Duration::from_secs(30);

/// What is to be verified, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyOptions {
    /// Bytes of the disk; all of it if `None`. Widened to whole blocks of 4 KiB.
    pub range: Option<Range<u64>>,
    /// Has what differs copied to the appliance: a gap begins, and a resync ends it.
    pub repair: bool,
    /// Bytes a second, at most; 0 gives way to the guest and is otherwise as fast as can be.
    pub rate: u64,
}

/// How far a verification is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Bytes compared, or found not to be comparable.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
    /// Bytes that differ, so far.
    pub differing: u64,
}

/// What a verification found. Ranges are in bytes of the disk, ascending, the first 10,000 of each kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Bytes that were to be compared.
    pub total: u64,
    /// Bytes that are equal.
    pub equal: u64,
    /// Bytes that differ.
    pub differing: u64,
    /// Where.
    pub differing_ranges: Vec<Range<u64>>,
    /// Bytes that could not be compared: the appliance cannot read or does not keep its copy.
    pub unknown: u64,
    /// Where.
    pub unknown_ranges: Vec<Range<u64>>,
    /// What differs was marked to be copied, and a gap has begun.
    pub repairing: bool,
    /// The newest seq that was compared with.
    pub seq: u64,
}

/// Why a verification came to no end.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// Disk and history differ by design now.
    #[error("volume {volume} is in state {state}: disk and history can be compared when it is live")]
    NotLive {
        /// The volume.
        volume: String,
        /// Its state.
        state: crate::VolumeState,
    },
    /// The range is not part of the disk.
    #[error("volume {volume} has {size} bytes, so {from} to {to} cannot be verified")]
    Range {
        /// The volume.
        volume: String,
        /// Its size.
        size: u64,
        /// First byte asked for.
        from: u64,
        /// Behind the last.
        to: u64,
    },
    /// The appliance is too old.
    #[error("volume {0}: the appliance speaks version 1 of the protocol and cannot be asked for hashes: update it")]
    Old(String),
    /// There is no appliance.
    #[error("volume {0}: the appliance has not been reached for half a minute")]
    Away(String),
    /// The disk cannot be read.
    #[error("volume {volume}: cannot read the disk at byte {offset}: {source}")]
    Disk {
        /// The volume.
        volume: String,
        /// Where.
        offset: u64,
        /// The error.
        source: BlockError,
    },
    /// The system has no descriptors or randomness left.
    #[error("volume {volume}: {source}")]
    System {
        /// The volume.
        volume: String,
        /// The error.
        source: std::io::Error,
    },
    /// The caller said so, or the volume stops.
    #[error("volume {0}: the verification was stopped before its end")]
    Cancelled(String),
}

/// What the disk has in a chunk.
enum Ours {
    Zero,
    /// Hashes made with the hasher of the session of that moment.
    Hashes(Vec<BlockHash>, Arc<BlockHasher>),
}

struct Chunk {
    bytes: Range<u64>,
    seq: u64,
    ours: Ours,
    ticket: Option<Ticket>,
    tries: u32,
}

struct Verifier<'a> {
    shared: &'a Shared,
    mailbox: Arc<Mailbox>,
    next_claim: u64,
    buf: AlignedBuf,
    pace: Pace,
    rate: u64,
    chunks: VecDeque<Chunk>,
    report: VerifyReport,
    away: Option<Instant>,
}

fn add(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    let full = ranges.len() >= MAX_RANGES;
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ if full => {}
        _ => ranges.push(range),
    }
}

impl Volume {
    /// Compares the disk with the newest history, beside the guest's writes. `each` hears of the progress, at least every second, and
    /// ends the verification by answering `false`.
    ///
    /// # Errors
    /// [`VerifyError`]; what differs is no error but part of the report.
    pub fn verify(
        &self,
        options: &VerifyOptions,
        each: &mut dyn FnMut(&VerifyProgress) -> bool,
    ) -> Result<VerifyReport, VerifyError> {
        let shared = self.shared();
        let size = shared.core.disk.size();
        let range = options.range.clone().unwrap_or(0..size);
        let volume = || shared.p.name.clone();
        if range.is_empty() || range.end > size {
            return Err(VerifyError::Range { volume: volume(), size, from: range.start, to: range.end });
        }
        let block = BLOCK_SIZE as u64;
        let range = range.start / block * block..range.end.next_multiple_of(block).min(size);
        let system = |source| VerifyError::System { volume: volume(), source };
        let mut verifier = Verifier {
            shared,
            mailbox: Arc::new(Mailbox::new().map_err(system)?),
            next_claim: shared.core.number() << 40,
            buf: AlignedBuf::zeroed(usize::try_from(CHUNK).unwrap_or(0)),
            pace: Pace::new(world::now()),
            rate: options.rate,
            chunks: VecDeque::new(),
            report: VerifyReport { total: range.end - range.start, ..VerifyReport::default() },
            away: None,
        };
        verifier.run(range, each)?;
        let mut report = verifier.report;
        if options.repair && !report.differing_ranges.is_empty() {
            for r in &report.differing_ranges {
                shared.p.map.mark(r.start, r.end - r.start);
            }
            shared.p.close(&format!("a verification found {} bytes that differ from the history", report.differing));
            report.repairing = true;
        }
        Ok(report)
    }
}

impl Verifier<'_> {
    fn run(&mut self, range: Range<u64>, each: &mut dyn FnMut(&VerifyProgress) -> bool) -> Result<(), VerifyError> {
        let mut at = range.start;
        self.live()?;
        while at < range.end || !self.chunks.is_empty() {
            let now = world::now();
            let room = self.chunks.len() < WINDOW && at < range.end;
            let read = room && self.pace.pause(now).is_none();
            if read {
                let bytes = self.next_chunk(at, range.end);
                at = bytes.end;
                let chunk = self.hash(bytes.clone(), 1)?;
                self.chunks.push_back(chunk);
                let requests = self.shared.p.requests();
                self.pace.done(bytes.end - bytes.start, now, world::now(), requests, self.rate);
            }
            self.ask();
            let settled = self.settle()?;
            if settled || !read {
                let r = &self.report;
                let done = r.equal + r.differing + r.unknown;
                if !each(&VerifyProgress { done, total: r.total, differing: r.differing }) || self.shared.stopping() {
                    return Err(VerifyError::Cancelled(self.name()));
                }
            }
            if !settled && !read {
                self.wait_for_answers()?;
            }
        }
        Ok(())
    }

    fn name(&self) -> String {
        self.shared.p.name.clone()
    }

    /// Neither settled nor read: something must come from the appliance, or a pause must end.
    fn wait_for_answers(&mut self) -> Result<(), VerifyError> {
        match self.shared.asker.reach() {
            Reach::Old => return Err(VerifyError::Old(self.name())),
            Reach::Open => self.away = None,
            Reach::Away => {
                if world::since(*self.away.get_or_insert_with(world::now)) > AWAY {
                    return Err(VerifyError::Away(self.name()));
                }
            }
        }
        self.live()?;
        if self.chunks.is_empty() {
            world::sleep(self.pace.pause(world::now()).map_or(TICK, |p| p.min(Duration::from_millis(200))));
        } else {
            self.shared.asker.wait(TICK);
        }
        Ok(())
    }

    fn live(&self) -> Result<(), VerifyError> {
        let state = self.shared.state();
        if state.mode == Mode::Live && !self.shared.p.ring.is_closed() {
            return Ok(());
        }
        Err(VerifyError::NotLive { volume: self.name(), state: self.shared.shown(&state) })
    }

    /// Data up to [`CHUNK`], or a hole up to what one question may ask for.
    fn next_chunk(&self, at: u64, end: u64) -> Range<u64> {
        let most = (end - at).min((MAX_HASHES as u64) << BLOCK_SHIFT);
        let hole = match self.shared.core.disk.extents(at, most, 1) {
            Ok(e) => e.first().filter(|e| e.hole).map_or(0, |e| e.len),
            Err(_) => 0,
        };
        let hole = if hole == most { hole } else { hole >> BLOCK_SHIFT << BLOCK_SHIFT };
        at..at + hole.max(CHUNK.min(most))
    }

    /// Hashes the chunk as it is after exactly the writes up to a seq.
    fn hash(&mut self, bytes: Range<u64>, tries: u32) -> Result<Chunk, VerifyError> {
        let shared = self.shared;
        let (start, end) = shared.core.disk.span(bytes.start, bytes.end - bytes.start);
        self.next_claim += 1;
        let claim = Claim { id: self.next_claim, start, end, dirty: false };
        // The state before the stripes: whoever holds it may wait for writers, and those for stripes.
        let state = shared.state();
        if state.mode != Mode::Live || shared.p.ring.is_closed() {
            return Err(VerifyError::NotLive { volume: self.name(), state: shared.shown(&state) });
        }
        let mut locked = shared.core.ranges.lock(start, end);
        let seq = shared.p.ring.next().saturating_sub(1);
        let granted = locked.register(claim, &self.mailbox, 0);
        drop(locked);
        drop(state);
        if !granted {
            self.wait_for_claim();
        }
        let ours = self.read(&bytes);
        shared.core.ranges.release(&claim);
        let volume = || shared.p.name.clone();
        let ours = ours.map_err(|source| VerifyError::Disk { volume: volume(), offset: bytes.start, source })?;
        let seq = if shared.p.breaks.has(Break::WrongSeq) { seq.saturating_sub(64).max(1) } else { seq };
        Ok(Chunk { bytes, seq, ours, ticket: None, tries })
    }

    fn wait_for_claim(&self) {
        let mut mail = Vec::new();
        while !mail.contains(&Mail::Granted(0)) {
            self.mailbox.wait(Duration::from_millis(200));
            self.mailbox.take(&mut mail);
        }
    }

    fn read(&mut self, bytes: &Range<u64>) -> Result<Ours, BlockError> {
        let (shared, len) = (self.shared, bytes.end - bytes.start);
        let extents = shared.core.disk.extents(bytes.start, len, 1)?;
        if extents.first().is_some_and(|e| e.hole && e.len == len) {
            return Ok(Ours::Zero);
        }
        let hasher = shared.asker.hasher();
        let mut hashes = Vec::new();
        // A hole that is none any more is longer than a chunk.
        let mut at = bytes.start;
        while at < bytes.end {
            let part = CHUNK.min(bytes.end - at);
            self.buf.set_len(usize::try_from(part).unwrap_or(0));
            shared.core.disk.read_at(at, &mut self.buf)?;
            hashes.extend(self.buf.chunks(BLOCK_SIZE).map(|b| if is_zero(b) { hasher.zero() } else { hasher.hash(b) }));
            at += part;
        }
        Ok(Ours::Hashes(hashes, hasher))
    }

    /// Asks about the chunks whose seqs are durable, in their order.
    fn ask(&mut self) {
        let durable = self.shared.durable.load(Ordering::Acquire);
        let mut asked = false;
        for chunk in self.chunks.iter_mut().filter(|c| c.ticket.is_none()) {
            if chunk.seq > durable {
                break;
            }
            // History begins with the first record; before it there is nothing to ask for.
            chunk.ticket = self.shared.asker.ask(chunk.seq.max(1), chunk.bytes.clone());
            if chunk.ticket.is_none() {
                break;
            }
            asked = true;
        }
        if asked {
            self.shared.p.ring.wake_sender();
        }
    }

    /// Takes the answer for the first chunk, if it is there. True if it is done with.
    fn settle(&mut self) -> Result<bool, VerifyError> {
        let Some(chunk) = self.chunks.front_mut() else { return Ok(false) };
        let Some(ticket) = &chunk.ticket else { return Ok(false) };
        let told = match ticket.look() {
            Answer::Pending => return Ok(false),
            Answer::Told(told) => told,
            Answer::Lost => {
                self.chunks.iter_mut().for_each(|c| c.ticket = None);
                return Ok(false);
            }
        };
        let same_key = match &chunk.ours {
            Ours::Zero => true,
            Ours::Hashes(_, hasher) => hasher.key() == ticket.hasher.key(),
        };
        let hasher = Arc::clone(&ticket.hasher);
        let Some(mut chunk) = self.chunks.pop_front() else { return Ok(false) };
        let len = chunk.bytes.end - chunk.bytes.start;
        if told == Told::Nothing {
            self.report.unknown += len;
            add(&mut self.report.unknown_ranges, chunk.bytes);
            return Ok(true);
        }
        let differing = if same_key { differing(&chunk, &told, &hasher) } else { Vec::new() };
        let again = !same_key || (!differing.is_empty() && chunk.tries < TRIES);
        if again {
            // Another session has another key; and what differs may have been a write that the disk refused.
            chunk = self.hash(chunk.bytes, chunk.tries + u32::from(same_key))?;
            self.chunks.push_front(chunk);
            return Ok(false);
        }
        self.report.seq = self.report.seq.max(chunk.seq);
        let bytes: u64 = differing.iter().map(|r| r.end - r.start).sum();
        self.report.differing += bytes;
        self.report.equal += len - bytes;
        differing.into_iter().for_each(|r| add(&mut self.report.differing_ranges, r));
        Ok(true)
    }
}

/// Blocks of the chunk that are not what the appliance told.
fn differing(chunk: &Chunk, told: &Told, hasher: &BlockHasher) -> Vec<Range<u64>> {
    let mut out = Vec::new();
    let blocks = (chunk.bytes.end - chunk.bytes.start).div_ceil(BLOCK_SIZE as u64);
    let zero = hasher.zero();
    for i in 0..blocks {
        let at = usize::try_from(i).unwrap_or(usize::MAX);
        let ours = match &chunk.ours {
            Ours::Zero => Some(&zero),
            Ours::Hashes(hashes, _) => hashes.get(at),
        };
        let theirs = match told {
            Told::Each(hashes) => hashes.get(at),
            Told::Zero => Some(&zero),
            Told::Nothing => None,
        };
        if ours != theirs || ours.is_none() {
            let start = chunk.bytes.start + (i << BLOCK_SHIFT);
            add(&mut out, start..(start + BLOCK_SIZE as u64).min(chunk.bytes.end));
        }
    }
    out
}
