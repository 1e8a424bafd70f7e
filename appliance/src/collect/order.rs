//! Ordering: the blocks of older segments are brought into disk order, in the background.
//!
//! Ingest writes what comes, when it comes. A disk that is written at random places therefore lies in its segments in the order
//! of time, but for a batch, and who reads a point from front to back needs a read and a decoding for every few
//! blocks. So a number of full segments of one volume (a *run*) is read, and what layers refer to is written again by place
//! on the disk: neighbours in one frame, frames side by side. What a later version of the same run hides comes in frames of
//! its own behind the others of its stretch, so that later points need not read over it. A point then meets a few runs, and
//! each of them in order.
//!
//! | step | what | a kill behind it leaves |
//! |---|---|---|
//! | choose | segments that a session wrote, oldest first | - |
//! | copy | new segments, sealed and named in the manifest, in the dedupe index | segments that nothing refers to: collection removes them |
//! | condemn | takes the old ones out of the index, waits for batches under way | the same |
//! | flush | memory tables that refer to the old ones become layers | the same |
//! | copy | what was referred to only since | the same |
//! | relocate | rewrites the layers that refer to the run, a volume at a time | both are referred to |
//!
//! Nothing is removed here: the old segments have no references any more, and collection finds them so (I10). Until then
//! both are *claimed*, which keeps rounds of collection away from them. Every block is written again for its order once: a
//! segment of copies has no commit frames (`last_seq` is 0 in the manifest), and is not chosen. What lies in order already (an
//! initial sync) is left where it is.
//!
//! The work is paced: so many bytes of blocks in a second, an eighth of that while batches of ingest are under way. On a
//! full disk it waits.

use super::copy::Manner;
use super::gather::Live;
use super::{CollectError, Round, Step, of_volume, window_of};
use crate::history::Keep;
use crate::history::compact::Relocation;
use crate::history::retention::{PointRef, plan};
use crate::ingest::Shared;
use crate::ingest::volume::Volume;
use crate::reduce::FRAME_BLOCKS;
use afterimage_base::world;
use afterimage_base::world::sync::LongMutex;
use afterimage_format::manifest::{SegmentMeta, SegmentState};
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Segments of a run at most: bounds the room that it takes for a while.
const MAX_SEGMENTS: usize = 16;
/// Blocks of a run at most (2 GiB): bounds its memory, some 40 bytes for each.
const MAX_BLOCKS: u64 = 512 << 10;
/// While ingest is busy the rate is this part of the usual.
const BUSY_SHARE: f64 = 0.125;
/// How long a pause is at a time.
const NAP: Duration = Duration::from_millis(20);

/// How ordering goes about it.
#[derive(Debug, Clone, Copy)]
pub struct OrderConfig {
    /// Bytes of blocks that are copied in a second; 0 for as many as it can.
    pub rate: u64,
    /// Segments that a run has at least.
    pub segments: usize,
}

/// What ordering a run did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OrderReport {
    /// Segments of the run.
    pub segments: usize,
    /// Blocks copied; 0 if they lay in order.
    pub blocks: usize,
}

/// What ordering remembers.
#[derive(Debug, Default)]
pub struct Orderer {
    /// Segments that need nothing, or that cannot be read.
    settled: HashSet<u32>,
}

/// The segments of a volume that are brought into order together.
struct Chosen {
    owner: [u8; 16],
    segments: HashSet<u32>,
    bytes: u64,
}

/// Keeps the segments of a run and their copies from collection while it lives.
struct Claim<'a>(&'a Shared);

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.0.let_go();
    }
}

impl Orderer {
    /// Brings the next run into order, if there is one. `collector` is taken for the end of the work.
    ///
    /// # Errors
    /// [`CollectError`]: everything is as it was, but for copies that collection will remove.
    pub(crate) fn run<T>(
        &mut self,
        round: &Round<'_>,
        collector: &LongMutex<T>,
        config: &OrderConfig,
    ) -> Result<Option<OrderReport>, CollectError> {
        let Some(chosen) = self.choose(round, config)? else { return Ok(None) };
        let worked = order(round, collector, config, &chosen);
        match &worked {
            Err(CollectError::Stopped | CollectError::Session(_)) => {}
            Err(CollectError::Store(e)) if e.is_full() => {}
            Err(CollectError::History(_, e)) if e.is_full() => {}
            // In order now, or beyond help: it is not looked at again.
            Ok(_) | Err(_) => self.settled.extend(&chosen.segments),
        }
        worked.map(Some)
    }

    /// The oldest segments of a volume that are not known to be in order, if there are enough of them.
    fn choose(&mut self, round: &Round<'_>, config: &OrderConfig) -> Result<Option<Chosen>, CollectError> {
        // Where references are not known, nothing may be taken for moved.
        if round.volumes.iter().any(|v| v.in_part) {
            return Ok(None);
        }
        let shared = round.shared;
        let metas: Vec<SegmentMeta> = shared.vault.read(|m| m.segments.clone());
        let there: HashSet<u32> = metas.iter().map(|m| m.number).collect();
        self.settled.retain(|s| there.contains(s));
        let live = round.count_in_force();
        let mut by_volume: BTreeMap<[u8; 16], Vec<&SegmentMeta>> = BTreeMap::new();
        for meta in metas.iter().filter(|m| is_stream(m)) {
            let referred = live.get(&meta.number).is_some_and(|n| *n > 0);
            if referred && !self.settled.contains(&meta.number) {
                by_volume.entry(meta.volume).or_default().push(meta);
            }
        }
        let healthy = |id: &[u8; 16]| round.volumes.iter().any(|v| v.id == *id && v.failure().is_none());
        by_volume.retain(|owner, all| all.len() >= config.segments.max(1) && healthy(owner));
        let due = by_volume.values().flatten().map(|m| m.length).sum();
        shared.counters.unordered.store(due, Ordering::Relaxed);
        if let Some((owner, all)) = by_volume.into_iter().next() {
            let (mut segments, mut blocks, mut bytes) = (HashSet::new(), 0, 0);
            for meta in all.into_iter().take(MAX_SEGMENTS) {
                blocks += round.filling_of(meta)?.blocks;
                if blocks > MAX_BLOCKS && !segments.is_empty() {
                    break;
                }
                segments.insert(meta.number);
                bytes += meta.length;
            }
            return Ok(Some(Chosen { owner, segments, bytes }));
        }
        Ok(None)
    }
}

/// Whether a segment was written by a session, and not by copying.
const fn is_stream(meta: &SegmentMeta) -> bool {
    !matches!(meta.state, SegmentState::Open) && meta.last_seq > 0
}

/// Whether the blocks lie in their frames as copying would put them, or nearly so.
fn in_order(live: &[Live]) -> bool {
    let frames = 1 + live.windows(2).filter(|w| w[0].place.frame() != w[1].place.frame()).count();
    frames <= 2 * live.len().div_ceil(FRAME_BLOCKS)
}

fn order<T>(
    round: &Round<'_>,
    collector: &LongMutex<T>,
    config: &OrderConfig,
    chosen: &Chosen,
) -> Result<OrderReport, CollectError> {
    let shared = round.shared;
    let mut report = OrderReport { segments: chosen.segments.len(), blocks: 0 };
    shared.claim(chosen.segments.iter().copied());
    let _claim = Claim(shared);
    // Every batch of these segments has landed then, and no session that plans one later knows its blocks but from the
    // index: so condemning leaves no way to them.
    shared.flights.wait_for_earlier();
    let live = round.gather(&chosen.segments, Some(chosen.owner), &Relocation::default())?;
    if in_order(&live) {
        return Ok(report);
    }
    if !shared.room.has(chosen.bytes.saturating_mul(2)) {
        return Err(CollectError::Stopped);
    }
    let mut pace = Pace::new(shared, config.rate, round.stop);
    let mut copy = |live: &[Live]| {
        let owner = Some(chosen.owner);
        round.copy(live, Manner { owner, claim: true, pace: &mut |bytes| pace.after(bytes) })
    };
    let mut moved = copy(&live)?;
    drop(live);
    // From here on rounds of collection wait.
    let _turn = collector.lock();
    round.step(Step::Condemn)?;
    shared.condemn(&chosen.segments.iter().copied().collect());
    for volume in round.volumes.iter().filter(|v| v.failure().is_none()) {
        round.step(Step::Flush)?;
        volume.flush(shared)?;
    }
    let so_far = Relocation::new(moved.clone());
    let late = round.gather(&chosen.segments, Some(chosen.owner), &so_far)?;
    drop(so_far);
    if !late.is_empty() {
        moved.extend(copy(&late)?);
    }
    report.blocks = moved.len();
    let moved = Relocation::new(moved);
    for volume in round.volumes {
        let edit = volume.history.relocate(&moved, &round.kept(volume), round.stop).map_err(of_volume(volume))?;
        if let Some(edit) = edit {
            round.apply(volume, edit, Step::Relocate)?;
        }
    }
    shared.flights.wait_for_earlier();
    Ok(report)
}

impl Round<'_> {
    /// What is kept of a volume, as the manifest has it.
    fn kept(&self, volume: &Volume) -> Keep {
        let (first, forks) = self.shared.vault.read(|m| window_of(m, volume));
        let progress = volume.progress();
        // What retention lets go is not among them any more.
        let points: Vec<PointRef> = progress.points.iter().map(|p| PointRef { seq: p.seq, stays: true }).collect();
        plan(first, first, progress.seq, &points, &forks).keep
    }
}

/// Lets time pass, so that no more than a rate is done in it.
struct Pace<'a> {
    shared: &'a Shared,
    stop: &'a AtomicBool,
    rate: f64,
    /// Bytes that may still be done, below 0 if there were too many.
    budget: f64,
    at: Instant,
}

impl<'a> Pace<'a> {
    #[expect(clippy::cast_precision_loss, reason = "a rate in bytes, far below 2^52")]
    fn new(shared: &'a Shared, rate: u64, stop: &'a AtomicBool) -> Self {
        Self { shared, stop, rate: rate as f64, budget: 0.0, at: world::now() }
    }

    /// What the time since the last look is worth. Nothing is saved up: a pause is no reason for a burst.
    fn look(&mut self) {
        let passed = world::since(self.at).as_secs_f64();
        self.at = world::now();
        let rate = if self.shared.flights.any() { self.rate * BUSY_SHARE } else { self.rate };
        self.budget = (self.budget + passed * rate).min(0.0);
    }

    #[expect(clippy::cast_precision_loss, reason = "bytes of a few frames")]
    fn after(&mut self, bytes: u64) {
        if self.rate <= 0.0 {
            return;
        }
        self.budget -= bytes as f64;
        self.look();
        while self.budget < 0.0 && !self.stop.load(Ordering::Relaxed) {
            world::sleep(NAP);
            self.look();
        }
    }
}

#[cfg(test)]
#[path = "order_tests.rs"]
mod tests;
