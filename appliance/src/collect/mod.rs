//! Retention and collection: what is older than the window is let go, and its room is given back.
//!
//! A round goes through these steps, in this order, beside ingest; it may be killed between and inside any of them:
//!
//! | step | what | durable before the next |
//! |---|---|---|
//! | window | moves the window's first seq on, drops points before it that the policy does not keep ([`thin`](crate::history::thin)) | manifest |
//! | flush | writes memory tables that the window has begun to leave to layers | layer, then manifest |
//! | merge | merges layers, dropping versions that no kept seq sees | layer, then manifest |
//! | condemn | takes segments with few or no live blocks out of the dedupe index, waits for batches under way | - |
//! | flush | writes memory tables to layers: no commit frame of a condemned segment is needed for replay | layer, then manifest |
//! | delete | removes condemned segments that nothing refers to | manifest, then the files |
//! | copy | copies live blocks of sparse segments to new segments, in disk order | segment, then manifest |
//! | relocate | rewrites the layers that refer to them | layer, then manifest |
//! | delete | as above | manifest, then the files |
//!
//! Segments with blocks that landed unreduced, because their sessions had no time ([`Pressure`](crate::ingest::pressure::Pressure)),
//! count as sparse while nothing presses: copying compresses.
//!
//! The window moves in the manifest before anything is dropped, so a seq that can be chosen can be read. Where a branch begins
//! stays readable, too: branches are made in the manifest, and only at what can be chosen then. References are
//! counted over all layers in force, memory tables, and the layers that open views hold (I10): a segment that an open
//! export needs stays until the export is closed and a later round finds it without references. A segment is looked at only
//! if the round before has seen it full already, so that no batch under way can know it but through the index. What lies in the
//! order of writing is brought into the order of the disk by [`order`], beside the rounds.

mod copy;
mod gather;
pub mod order;

use self::copy::Manner;
use crate::history::compact::Relocation;
use crate::history::retention::{Plan, PointRef, plan};
use crate::history::thin::{Candidate, Policy, thin};
use crate::history::{HistoryEdit, HistoryError, Keep, Pace};
use crate::ingest::progress::Progress;
use crate::ingest::volume::Volume;
use crate::ingest::{SessionError, Shared};
use crate::store::scan::Scan;
use crate::store::{StoreError, file_name};
use afterimage_base::clock::Clock;
use afterimage_format::BLOCK_SIZE;
use afterimage_format::manifest::{ForkMeta, Manifest, PointMeta, SegmentMeta, SegmentState, VolumeMeta};
use afterimage_format::segment::Codec;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use thiserror::Error;

/// Live blocks copied in one round: bounds its memory and what it writes beside ingest (64 MiB of blocks).
const MAX_COPIED: u64 = 16 << 10;
/// Merges of a volume in one round.
const MAX_MERGES: usize = 8;

/// Why a round ended early. Everything done before it holds; the next round goes on.
#[derive(Debug, Error)]
pub enum CollectError {
    /// A layer.
    #[error("volume {0}: {1}")]
    History(String, Box<HistoryError>),
    /// A segment or the manifest.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A flush.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// It was told to stop.
    #[error("stopped before the end")]
    Stopped,
}

impl From<crate::vault::VaultError> for CollectError {
    fn from(e: crate::vault::VaultError) -> Self {
        CollectError::Store(e.into())
    }
}

/// A step that a round is about to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Move the window in the manifest.
    Window,
    /// Name a merged layer in the manifest.
    Merge,
    /// Take segments out of the dedupe index.
    Condemn,
    /// Write memory tables to layers.
    Flush,
    /// Take segments out of the manifest.
    Forget,
    /// Remove the file of a segment.
    Unlink,
    /// Make or end a segment with copied blocks.
    Copy,
    /// Name layers with moved places in the manifest.
    Relocate,
}

/// What a round did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CollectReport {
    /// Layers merged.
    pub merges: usize,
    /// Segments removed.
    pub removed_segments: usize,
    /// Bytes of those.
    pub removed_bytes: u64,
    /// Blocks copied forward.
    pub copied_blocks: usize,
}

/// The blocks in the data frames of a full segment.
#[derive(Debug, Clone, Copy)]
struct Filling {
    blocks: u64,
    /// Of these, how many landed unreduced.
    unreduced: u64,
}

/// What rounds remember: blocks of the segments that were full already, and the clocks of the windows.
#[derive(Debug, Default)]
pub struct Collector {
    full: HashMap<u32, Filling>,
    paces: HashMap<[u8; 16], Pace>,
    sight: HashMap<[u8; 16], Sight>,
}

/// The clock of when points were first seen: it goes on from the newest such time that is known, never backwards, and never
/// faster than time passes.
#[derive(Debug, Clone, Copy)]
struct Sight {
    now: u64,
    at: u64,
}

pub(crate) fn candidates(points: &[PointMeta]) -> Vec<Candidate> {
    let of = |p: &PointMeta| {
        let seen = if p.seen == 0 { p.time } else { p.seen };
        Candidate { seq: p.seq, time: p.time, seen, auto: p.auto, pinned: p.pinned }
    };
    points.iter().map(of).collect()
}

/// As of when a round applies the window.
#[derive(Clone, Copy)]
pub(crate) enum Now<'a> {
    /// Nanoseconds since 1970, as somebody says who knows.
    At(u64),
    /// Now, by clocks that may jump.
    Clock(&'a dyn Clock),
}

/// One round of collection.
pub(crate) struct Round<'a> {
    pub(crate) shared: &'a Shared,
    /// Every volume of the vault.
    pub(crate) volumes: &'a [Arc<Volume>],
    pub(crate) stop: &'a AtomicBool,
    /// Asked before each step; `false` ends the round as a kill would.
    pub(crate) hook: &'a dyn Fn(Step) -> bool,
}

/// The result of working on a volume; `None` if that volume has to be left out of the round.
fn passed_over<T>(volume: &Volume, result: Result<T, CollectError>) -> Result<Option<T>, CollectError> {
    match result {
        Ok(done) => return Ok(Some(done)),
        Err(CollectError::History(_, e)) if !matches!(*e, HistoryError::Stopped) => {
            if matches!(*e, HistoryError::Io { .. }) {
                volume.fail_unless_full(&e);
            }
            tracing::warn!("volume {}: left out of this round of collection: {e}", volume.name);
        }
        Err(CollectError::Session(e)) => {
            tracing::warn!("volume {}: left out of this round of collection: {e}", volume.name);
        }
        Err(e) => return Err(e),
    }
    Ok(None)
}

/// First seq of a volume's window, and the seqs at which branches of it begin.
fn window_of(m: &Manifest, volume: &Volume) -> (u64, Vec<u64>) {
    let forks =
        if afterimage_base::world::broken("branch-unpinned") { Vec::new() } else { m.fork_seqs(&volume.id).collect() };
    (m.volume(&volume.id).map_or(0, |v| v.first_seq), forks)
}

/// The first seq of a window that begins at `start`.
pub(crate) fn window_at(volume: &Volume, start: u64) -> Result<u64, HistoryError> {
    let history = &volume.history;
    // While a clock that was put back has not caught up, many writes have one label: they are as old as the youngest.
    let label = history.record_at_time(start)?.map_or(0, |r| r.1);
    let before = history.record_at_time(label.saturating_sub(1))?;
    Ok(before.filter(|_| label > 0).map_or(0, |r| r.0 + 1))
}

/// Points as [`plan`] sees them.
pub(crate) fn refs(policy: &Policy, window: u64, points: &[PointMeta]) -> Vec<PointRef> {
    let why = thin(policy, window, &candidates(points));
    points.iter().zip(why).map(|(p, why)| PointRef { seq: p.seq, stays: !why.is_empty() }).collect()
}

/// Names in the manifest the points that the window leaves behind, although their records may still be replayed: what a replay
/// finds before the window is a point only if the manifest says so.
fn name_points(v: &VolumeMeta, known: &mut Progress, progress: &Progress) {
    for p in progress.points.iter().filter(|p| p.seq < v.first_seq) {
        match known.points.iter_mut().find(|k| k.seq == p.seq) {
            Some(k) => k.clone_from(p),
            None => known.points.push(p.clone()),
        }
    }
    known.points.sort_by_key(|p| p.seq);
}

fn of_volume(volume: &Volume) -> impl FnOnce(HistoryError) -> CollectError {
    let name = volume.name.clone();
    move |e| match e {
        HistoryError::Stopped => CollectError::Stopped,
        e => CollectError::History(name, Box::new(e)),
    }
}

impl Collector {
    /// Runs a round. `now` is the wall clock and `policy` what is kept of volumes of which nobody has said more.
    ///
    /// A volume that cannot be worked on is left out, and the others go on. On a full disk the reserve is given up for the
    /// round, and what still finds no room is left for later: what can be removed without it is removed.
    pub(crate) fn round(
        &mut self,
        round: &Round<'_>,
        now: Now<'_>,
        policy: &Policy,
    ) -> Result<CollectReport, CollectError> {
        if round.shared.room.short().is_some() {
            round.shared.room.give_up();
        }
        let done = self.work(round, now, policy);
        round.shared.room.look();
        done
    }

    /// What time it is for the window of a volume.
    pub(crate) fn now(&mut self, volume: &Volume, now: Now<'_>) -> u64 {
        match now {
            Now::At(now) => now,
            Now::Clock(clock) => match volume.progress().time {
                0 => 0,
                label => {
                    let pace = self.paces.entry(volume.id).or_insert_with(|| Pace::new(label, clock.monotonic()));
                    pace.now(label, clock.wall(), clock.monotonic())
                }
            },
        }
    }

    /// Says of points that are new when they were seen.
    fn look(&mut self, volume: &Volume, now: Now<'_>) {
        let points = volume.progress().points;
        let newest = points.iter().map(|p| p.seen).max().unwrap_or(0);
        let first = points.iter().find(|p| p.seen == 0).map(|p| p.time);
        let time = match now {
            Now::At(now) => now.max(newest),
            Now::Clock(clock) => {
                let monotonic = clock.monotonic();
                let begin = || Sight { now: if newest == 0 { first.unwrap_or(0) } else { newest }, at: monotonic };
                let sight = self.sight.entry(volume.id).or_insert_with(begin);
                sight.now = sight.now.saturating_add(monotonic.saturating_sub(sight.at)).max(newest);
                sight.at = monotonic;
                sight.now
            }
        };
        if first.is_some() {
            volume.edit_progress(|p| p.points.iter_mut().filter(|p| p.seen == 0).for_each(|p| p.seen = time));
        }
    }

    fn work(&mut self, round: &Round<'_>, now: Now<'_>, policy: &Policy) -> Result<CollectReport, CollectError> {
        let mut report = CollectReport::default();
        let mut keeps: HashMap<[u8; 16], Keep> = HashMap::new();
        // Where the references of a volume are not known, no segment can be called unused (I10).
        let mut unknown = false;
        for volume in round.volumes {
            unknown |= volume.in_part;
            if volume.failure().is_some() {
                continue;
            }
            self.look(volume, now);
            let policy = round.policy(volume, policy);
            let start = self.now(volume, now).saturating_sub(policy.window);
            let kept = round.retain(volume, start, &policy);
            let Some(keep) = passed_over(volume, kept)? else { continue };
            // Merging lets go of what is in files: what the window has left behind in memory is written to one first. A
            // volume of few large writes fills the disk long before its memory.
            let leans_to = volume.fork().filter(ForkMeta::leans).map_or(0, |f| f.seq);
            let in_files =
                volume.history.layers().iter().rev().find(|l| !l.in_memory()).map_or(leans_to, |l| l.meta().last_seq);
            if keep.window() > in_files + 1 {
                round.step(Step::Flush)?;
                let flushed = volume.flush(round.shared).map_err(CollectError::from);
                if passed_over(volume, flushed)?.is_none() {
                    continue;
                }
            }
            let merged = round.merge(volume, &keep);
            report.merges += passed_over(volume, merged)?.unwrap_or(0);
            keeps.insert(volume.id, keep);
        }
        if unknown {
            return Ok(report);
        }
        let candidates = self.candidates(round)?;
        if candidates.is_empty() {
            return Ok(report);
        }
        round.step(Step::Condemn)?;
        round.shared.condemn(&candidates.keys().copied().collect());
        for volume in round.volumes.iter().filter(|v| v.failure().is_none()) {
            round.step(Step::Flush)?;
            passed_over(volume, volume.flush(round.shared).map_err(CollectError::from))?;
        }
        self.delete(round, &candidates, &mut report)?;
        let sparse = self.sparse(round, &candidates);
        if !sparse.is_empty() {
            round.move_blocks(&sparse, &keeps, &mut report)?;
            self.forget_unreduced(|n| sparse.contains(n));
            self.delete(round, &candidates, &mut report)?;
        }
        Ok(report)
    }

    /// Full segments of which less than half is referred to, or that hold what landed unreduced when nothing presses, and
    /// that the round before has seen full.
    fn candidates(&mut self, round: &Round<'_>) -> Result<HashMap<u32, SegmentMeta>, CollectError> {
        round.shared.pressure.begin();
        let metas: Vec<SegmentMeta> = round.shared.vault.read(|m| m.segments.clone());
        let counts = round.count();
        let claimed = round.shared.claimed();
        let mut out = HashMap::new();
        let mut full = HashMap::new();
        for meta in metas.into_iter().filter(|m| m.state != SegmentState::Open && !claimed.contains(&m.number)) {
            let seen = self.full.get(&meta.number).copied();
            let filling = seen.map_or_else(|| round.filling_of(&meta), Ok)?;
            full.insert(meta.number, filling);
            let live = counts.get(&meta.number).copied().unwrap_or(0);
            let unreduced = filling.unreduced > 0 && live > 0;
            if unreduced {
                round.shared.pressure.left_over();
            }
            let to_reduce = unreduced && !round.shared.pressure.any();
            if seen.is_some() && (live == 0 || live * 2 < filling.blocks || to_reduce) {
                out.insert(meta.number, meta);
            }
        }
        self.full = full;
        Ok(out)
    }

    /// Removes the candidates that nothing refers to and no replay needs.
    fn delete(
        &mut self,
        round: &Round<'_>,
        candidates: &HashMap<u32, SegmentMeta>,
        report: &mut CollectReport,
    ) -> Result<(), CollectError> {
        let counts = round.count();
        let layered: HashMap<[u8; 16], u64> =
            round.shared.vault.read(|m| m.volumes.iter().map(|v| (v.id, v.layered_to)).collect());
        let replayed = |m: &SegmentMeta| m.last_seq <= layered.get(&m.volume).copied().unwrap_or(u64::MAX);
        let dead = candidates.values().filter(|m| self.full.contains_key(&m.number));
        let dead: BTreeMap<u32, u64> = dead
            .filter(|m| {
                counts.get(&m.number).copied().unwrap_or(0) == 0 || afterimage_base::world::broken("collect-live")
            })
            .filter(|m| replayed(m))
            .map(|m| (m.number, m.length))
            .collect();
        if dead.is_empty() {
            return Ok(());
        }
        round.step(Step::Forget)?;
        round.shared.vault.edit(|m| m.segments.retain(|s| !dead.contains_key(&s.number)))?;
        for (number, length) in dead {
            round.step(Step::Unlink)?;
            self.full.remove(&number);
            round.shared.store.forget(number);
            let path = round.shared.vault.segments_dir().join(file_name(number));
            if let Err(e) = afterimage_base::world::fs::remove_file(&path) {
                tracing::warn!("{}: cannot be removed; the next start will: {e}", path.display());
            }
            round.shared.condemned_are_gone([number].iter());
            report.removed_segments += 1;
            report.removed_bytes += length;
        }
        Ok(())
    }

    /// Nothing in these segments is to be reduced any more.
    fn forget_unreduced(&mut self, which: impl Fn(&u32) -> bool) {
        self.full.iter_mut().filter(|(n, _)| which(n)).for_each(|(_, filling)| filling.unreduced = 0);
    }

    /// The candidates to copy forward: those with the fewest live blocks first, as many as a round may copy.
    fn sparse(&mut self, round: &Round<'_>, candidates: &HashMap<u32, SegmentMeta>) -> HashSet<u32> {
        let counts = round.count_in_force();
        let live = |n: &u32| counts.get(n).copied().unwrap_or(0);
        let mut numbers: Vec<u32> = candidates.keys().copied().filter(|n| self.full.contains_key(n)).collect();
        // What only open views refer to is not copied: it goes when they are closed.
        self.forget_unreduced(|n| candidates.contains_key(n) && live(n) == 0);
        numbers.retain(|n| live(n) > 0);
        numbers.sort_unstable_by_key(|n| (live(n), *n));
        // Copies take room before they give some: on a full disk at most half of what there is.
        let half = round.shared.room.space().map_or(u64::MAX, |s| s.free / 2 / BLOCK_SIZE as u64);
        let mut room = if round.shared.room.short().is_some() { MAX_COPIED.min(half) } else { MAX_COPIED };
        let fits = |n: &u32| {
            let fits = live(n) <= room;
            room = room.saturating_sub(live(n));
            fits
        };
        numbers.into_iter().take_while(fits).collect()
    }
}

impl Round<'_> {
    fn step(&self, step: Step) -> Result<(), CollectError> {
        if self.stop.load(Ordering::Relaxed) || !(self.hook)(step) {
            return Err(CollectError::Stopped);
        }
        Ok(())
    }

    /// What is to be kept of a volume.
    fn policy(&self, volume: &Volume, default: &Policy) -> Policy {
        let own = self.shared.vault.read(|m| m.volume(&volume.id).and_then(|v| v.retention));
        own.unwrap_or(*default)
    }

    /// Moves the window of a volume to the newest seq at `start`; answers what is kept.
    fn retain(&self, volume: &Volume, start: u64, policy: &Policy) -> Result<Keep, CollectError> {
        let history = &volume.history;
        let window = if policy.hold { 0 } else { window_at(volume, start).map_err(of_volume(volume))? };
        let (first, mut forks) = self.shared.vault.read(|m| window_of(m, volume));
        let _telling = volume.telling.lock();
        let progress = volume.progress();
        // By the window that is wanted: where it has become wider, points that it would have kept stay.
        let points = refs(policy, window.min(progress.seq), &progress.points);
        let Plan { mut keep, dropped } = plan(window, first, progress.seq, &points, &forks);
        let dropped: BTreeSet<u64> = dropped.into_iter().collect();
        if keep.window() == first && dropped.is_empty() {
            return Ok(keep);
        }
        let time = history.record_at_seq(keep.window()).map_err(of_volume(volume))?.map_or(0, |r| r.1);
        self.step(Step::Window)?;
        let goes = |seq: u64| dropped.contains(&seq);
        self.shared.vault.edit(|m| {
            // A branch begins only where the window of the manifest allows it, so all that will are known when it moves.
            forks = window_of(m, volume).1;
            keep = plan(window, first, progress.seq, &points, &forks).keep;
            if let Some(v) = m.volumes.iter_mut().find(|v| v.id == volume.id) {
                (v.first_seq, v.first_time) = (keep.window(), time);
                let mut known = Progress::of(v);
                name_points(v, &mut known, &progress);
                known.forget(&keep, goes);
                known.store(v);
            }
        })?;
        // Not before the window has moved: a gap that is forgotten too early would be shown (the disk may be full).
        volume.edit_progress(|p| p.forget(&keep, goes));
        Ok(keep)
    }

    fn merge(&self, volume: &Volume, keep: &Keep) -> Result<usize, CollectError> {
        for merges in 0..MAX_MERGES {
            let edit = volume.history.merge_step(keep, self.stop).map_err(of_volume(volume))?;
            let Some(edit) = edit else { return Ok(merges) };
            self.apply(volume, edit, Step::Merge)?;
        }
        Ok(MAX_MERGES)
    }

    /// Names the layers of an edit in the manifest, then puts it in force.
    fn apply(&self, volume: &Volume, edit: HistoryEdit, step: Step) -> Result<(), CollectError> {
        self.step(step)?;
        self.shared.vault.edit(|m| {
            if let Some(v) = m.volumes.iter_mut().find(|v| v.id == volume.id) {
                v.layers.clone_from(&edit.layers);
                v.layered_to = edit.layered_to;
            }
        })?;
        self.step(step)?;
        volume.history.applied(edit);
        Ok(())
    }

    /// References to segments, those of open views included.
    fn count(&self) -> HashMap<u32, u64> {
        let (mut counts, mut seen) = (HashMap::new(), HashSet::new());
        for volume in self.volumes {
            volume.history.count_segments(&mut counts, &mut seen);
        }
        counts
    }

    /// References to segments from the layers that a new view would read.
    fn count_in_force(&self) -> HashMap<u32, u64> {
        let mut counts: HashMap<u32, u64> = HashMap::new();
        for layer in self.volumes.iter().flat_map(|v| v.history.layers()) {
            for (segment, blocks) in layer.segments() {
                *counts.entry(*segment).or_default() += blocks;
            }
        }
        counts
    }

    /// Blocks in the data frames of a full segment.
    fn filling_of(&self, meta: &SegmentMeta) -> Result<Filling, CollectError> {
        let path = self.shared.vault.segments_dir().join(file_name(meta.number));
        let mut scan = Scan::open(&path, meta.number, meta.length)?;
        if let Some(footer) = scan.footer() {
            return Ok(Filling { blocks: u64::from(footer.blocks), unreduced: u64::from(footer.unreduced) });
        }
        let mut filling = Filling { blocks: 0, unreduced: 0 };
        scan.restart();
        // A damaged frame ends the walk: the segment counts as smaller and is copied later; check names the damage.
        while let Ok(Some(found)) = scan.next_unread() {
            filling.blocks += u64::from(found.header.blocks);
            // Nothing tells here whether it was tried; copies, which were, always have a footer.
            if found.header.codec == Codec::None {
                filling.unreduced += u64::from(found.header.blocks);
            }
        }
        Ok(filling)
    }

    /// Copies the live blocks of `segments` and rewrites the layers that refer to them.
    fn move_blocks(
        &self,
        segments: &HashSet<u32>,
        keeps: &HashMap<[u8; 16], Keep>,
        report: &mut CollectReport,
    ) -> Result<(), CollectError> {
        let live = self.gather(segments, None, &Relocation::default())?;
        let moved = self.copy(&live, Manner { owner: None, claim: false, pace: &mut |_| {} })?;
        report.copied_blocks += moved.len();
        let moved = Relocation::new(moved);
        for volume in self.volumes {
            let keep = keeps.get(&volume.id).cloned().unwrap_or_default();
            let edit = volume.history.relocate(&moved, &keep, self.stop).map_err(of_volume(volume))?;
            if let Some(edit) = edit {
                self.apply(volume, edit, Step::Relocate)?;
            }
        }
        // Whoever has looked up a place in the layers before is done with it (partial blocks of writes).
        self.shared.flights.wait_for_earlier();
        Ok(())
    }
}

#[cfg(test)]
#[path = "collect_tests.rs"]
mod tests;
