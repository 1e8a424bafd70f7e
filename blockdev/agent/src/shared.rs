//! What the threads of one volume share besides the way of a write: mode, notes in volume.json, the link's state.
//!
//! Locks, in the order in which they are taken; no writer takes any of them:
//!
//! | lock | guards |
//! |---|---|
//! | `state` | mode and volume.json; held while the mode changes together with the ring (reopen, SyncEnd, a point's marker) |
//! | `epoch` | counts how often everything was marked; the sync takes marks away only if that did not happen meanwhile |
//! | `tail` | one thread at a time gives back places of the ring |

use crate::ages::Ages;
use crate::api::VolumeState;
use crate::asker::Asker;
use crate::breaks::Break;
use crate::continuity::{Base, Continuity, Held, judge};
use crate::device::Core;
use crate::machine::{self, Action, Event, Mode};
use crate::meta::{GapNote, Meta};
use crate::protect::Protection;
use crate::resize::Desk;
use afterimage_base::world;
use afterimage_base::world::sync::{LongGuard, LongMutex};
use afterimage_format::record::{FLAG_INITIAL, Kind};
use afterimage_format::wire::Welcome;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The ring is reopened when at most one part in so many is in use.
const REOPEN_SHARE: u64 = 4;
/// Wait between closing and reopening; doubled each time a sync does not get to its end.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A sync that was cut off so often by a full ring is said not to get to its end.
pub(crate) const MANY_CUTS: u32 = 3;

/// What the running sync has done.
#[derive(Default)]
pub(crate) struct SyncCounts {
    /// Bytes compared by hash.
    pub(crate) compared: AtomicU64,
    /// Bytes of blocks that were sent.
    pub(crate) sent: AtomicU64,
}
/// So many seqs are set aside in volume.json at a time, and more when so few are left.
const SEQ_STEP: u64 = 4 << 20;
const SEQ_MARGIN: u64 = 1 << 20;

/// The part behind the lock.
pub(crate) struct State {
    pub(crate) mode: Mode,
    pub(crate) since: u64,
    /// The same on the monotonic clock.
    pub(crate) entered: u64,
    pub(crate) meta: Meta,
    /// The sync cannot read a region, or volume.json cannot be written.
    pub(crate) disk_trouble: Option<String>,
    /// The appliance refused for good.
    pub(crate) refused: Option<String>,
    /// What the appliance says that will pass.
    pub(crate) appliance_note: Option<String>,
    /// Dirty bytes when the sync began,
    pub(crate) sync_total: u64,
    /// and when that was.
    pub(crate) sync_began: Instant,
    /// How often a full ring has cut a sync off since the volume was live.
    pub(crate) cuts: u32,
    /// Gaps that began, but for the initial sync.
    pub(crate) gaps: u64,
    pause: Duration,
    not_before: Instant,
}

impl State {
    /// The appliance takes records again.
    pub(crate) fn forgive(&mut self) {
        (self.refused, self.appliance_note) = (None, None);
    }
}

/// See the module.
pub(crate) struct Shared {
    pub(crate) core: Arc<Core>,
    pub(crate) p: Arc<Protection>,
    pub(crate) id: [u8; 16],
    pub(crate) meta_file: PathBuf,
    pub(crate) connected: AtomicBool,
    pub(crate) durable: AtomicU64,
    pub(crate) stop: AtomicBool,
    pub(crate) asker: Arc<Asker>,
    /// The seq with which the sync compares; 0 if it asks nothing.
    pub(crate) since: AtomicU64,
    pub(crate) counts: SyncCounts,
    /// Bytes a second that a sync may deal with; 0 for automatic.
    pub(crate) sync_rate: AtomicU64,
    state: LongMutex<State>,
    epoch: Mutex<u64>,
    tail: Mutex<()>,
    /// Version of the protocol that the appliance spoke last; 0 if it never did.
    pub(crate) peer: AtomicU16,
    /// What the keeper is asked for.
    pub(crate) desk: Mutex<Desk>,
    pub(crate) ages: Mutex<Ages>,
}

impl Shared {
    pub(crate) fn new(core: Arc<Core>, p: Arc<Protection>, meta: Meta, meta_file: PathBuf, mode: Mode) -> Shared {
        // What the ring holds is in history before anything that comes now, so a sync that goes on compares with its end.
        let since = if mode == Mode::Sync { p.ring.next().saturating_sub(1) } else { 0 };
        if let Some(gap) = meta.gap.as_ref().filter(|_| mode != Mode::Live && p.reason().is_none()) {
            p.set_reason(gap.why.clone());
        }
        let state = State {
            mode,
            since: p.clock.wall(),
            entered: p.clock.monotonic(),
            disk_trouble: None,
            refused: None,
            appliance_note: None,
            sync_total: p.map.dirty_bytes(),
            sync_began: world::now(),
            cuts: 0,
            gaps: 0,
            pause: FIRST_PAUSE,
            not_before: world::now(),
            meta,
        };
        Shared {
            id: *state.meta.id.as_bytes(),
            meta_file,
            connected: AtomicBool::new(false),
            durable: AtomicU64::new(p.ring.last_freed().0),
            stop: AtomicBool::new(false),
            asker: Arc::new(Asker::new()),
            since: AtomicU64::new(since),
            counts: SyncCounts::default(),
            sync_rate: AtomicU64::new(0),
            state: LongMutex::new(state),
            epoch: Mutex::new(0),
            tail: Mutex::new(()),
            peer: AtomicU16::new(0),
            desk: Mutex::default(),
            ages: Mutex::new(Ages::new(&*p.clock)),
            core,
            p,
        }
    }

    /// Notes what has to be known later: how old seqs are, and up to which seq they may have been given out.
    pub(crate) fn keep_books(&self) {
        let next = self.p.ring.next();
        let now = self.p.clock.monotonic();
        self.ages.lock().unwrap_or_else(PoisonError::into_inner).note(next, now);
        if next + SEQ_MARGIN < self.state().meta.seq_limit {
            return;
        }
        let mut state = self.state();
        let before = state.meta.seq_limit;
        state.meta.seq_limit = next + SEQ_STEP;
        if !self.store(&mut state) {
            state.meta.seq_limit = before;
        }
    }

    /// Begins a gap in which the whole disk is compared with the appliance's copy.
    pub(crate) fn compare(&self, why: &str) {
        let mut state = self.state();
        if state.meta.mark_again() {
            self.store(&mut state);
        }
        let mut epoch = self.epoch();
        *epoch += 1;
        self.p.close(why);
        self.p.map.mark_all();
        drop(epoch);
        // Also after a power cut the whole disk has to be compared.
        if let Some(intent) = &self.p.intent {
            intent.mark_all();
        }
        self.p.set_reason(Some(why.to_owned()));
        let (mode, _) = machine::step(state.mode, Event::Closed);
        state.not_before = world::now();
        self.enter(&mut state, mode);
        drop(state);
        self.p.bell.ring();
    }

    pub(crate) fn state(&self) -> LongGuard<'_, State> {
        self.state.lock()
    }

    pub(crate) fn epoch(&self) -> MutexGuard<'_, u64> {
        self.epoch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    pub(crate) fn shown(&self, state: &State) -> VolumeState {
        let intent = self.p.intent.as_ref().is_some_and(|i| i.map().has_failed());
        let failed = state.disk_trouble.is_some() || state.refused.is_some() || intent;
        // A writer may have closed the ring before the keeper came by.
        let mode = if self.p.ring.is_closed() { Mode::Dirty } else { state.mode };
        match machine::shown(mode, state.meta.initial, failed) {
            VolumeState::Error => VolumeState::Error,
            _ if state.meta.fence.is_some() => VolumeState::Fenced,
            shown => shown,
        }
    }

    fn enter(&self, state: &mut State, mode: Mode) {
        if state.mode != mode {
            state.gaps += u64::from(mode == Mode::Dirty && !state.meta.initial);
            (state.since, state.entered) = (self.p.clock.wall(), self.p.clock.monotonic());
            state.mode = mode;
        }
    }

    /// Gives back what the appliance has up to `seq` and the disk has too.
    pub(crate) fn free(&self, seq: u64) {
        let _guard = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        self.p.ring.set_durable(seq);
    }

    pub(crate) fn store(&self, state: &mut State) -> bool {
        match state.meta.store(&self.meta_file) {
            Ok(()) => {
                state.disk_trouble = None;
                true
            }
            Err(e) => {
                state.disk_trouble = Some(format!("cannot write {}: {e}", self.meta_file.display()));
                false
            }
        }
    }

    /// Looks whether a writer has closed the ring.
    pub(crate) fn notice_closed(&self) {
        if !self.p.ring.is_closed() {
            return;
        }
        let mut state = self.state();
        if state.mode != Mode::Dirty {
            self.count_cut(&mut state);
            let (mode, _) = machine::step(state.mode, Event::Closed);
            state.pause = (state.pause * 2).min(LONGEST_PAUSE);
            state.not_before = world::now() + state.pause;
            self.enter(&mut state, mode);
        }
    }

    /// A ring that was never used stands where another was lost: whether the write-intent map knows the history, so that
    /// only what it has marked can differ. None if that is not the question.
    fn adopt(&self, w: &Welcome) -> Option<Continuity> {
        let intent = self.p.intent.as_ref()?;
        let mut state = self.state();
        let ring = &self.p.ring;
        let unused = ring.first() == ring.next() && ring.last_freed().1 == 0 && ring.is_closed();
        if !unused || state.meta.base.is_some_and(|b| b.is(w)) {
            return None;
        }
        let accepted = intent.map().accepts(w.ring, w.durable, w.digest);
        if !accepted && !self.p.breaks.has(Break::IgnoreRelied) {
            return Some(Continuity::Forked);
        }
        if w.durable == 0 && state.meta.initial {
            return None;
        }
        tracing::info!("volume {}: the appliance's history up to seq {} is gone on with", self.p.name, w.durable);
        state.meta.base = Some(Base::of(w));
        self.store(&mut state);
        Some(Continuity::AtNextGap)
    }

    /// A sync under way is cut off. Said when it happens again and again: then the guest writes faster than the appliance
    /// takes, and no order of things will end the sync before that changes.
    fn count_cut(&self, state: &mut State) {
        if state.mode != Mode::Sync {
            return;
        }
        state.cuts = state.cuts.saturating_add(1);
        if state.cuts >= MANY_CUTS && state.cuts.is_power_of_two() || state.cuts == MANY_CUTS {
            tracing::warn!(
                "volume {}: the ring was full {} times before the resync could end: the guest writes faster than the \
                 appliance takes. It goes on, and ends when the writes become fewer or the link faster",
                self.p.name,
                state.cuts
            );
        }
    }

    /// When and why the gap began that goes on now.
    pub(crate) fn gap(&self, state: &State) -> Option<GapNote> {
        let closed = self.p.ring.closed();
        let now = closed.map(|c| GapNote { since: c.time, why: self.p.reason() });
        match (&state.meta.gap, now) {
            (Some(gap), _) => Some(gap.clone()),
            (None, now) => now,
        }
    }

    /// What the ring and volume.json say to a Welcome.
    pub(crate) fn judge(&self, w: &Welcome) -> Continuity {
        // What was acknowledged but looked at when that came is given back now, so that nobody relies on it.
        self.free(0);
        if let Some(known) = self.adopt(w) {
            return known;
        }
        let ring = &self.p.ring;
        let digest = ring.record(w.durable).ok().flatten().map(|r| r.record.digest());
        let resized = self.state().meta.resized;
        let held = Held {
            resized,
            ring: ring.id(),
            first: ring.first(),
            freed: ring.last_freed(),
            digest,
            base: self.state().meta.base,
        };
        judge(w, &held)
    }

    /// Starts over: the ring is closed and emptied, everything is marked.
    pub(crate) fn start_over(&self, why: &str, base: Option<Base>) {
        let mut state = self.state();
        let (mode, action) = machine::step(state.mode, Event::Fork);
        debug_assert_eq!(action, Action::StartOver);
        let mut epoch = self.epoch();
        *epoch += 1;
        self.p.close(why);
        self.p.map.mark_all();
        drop(epoch);
        if let Some(intent) = &self.p.intent {
            intent.mark_all();
        }
        self.p.set_reason(Some(why.to_owned()));
        self.free(self.p.ring.next().saturating_sub(1));
        state.meta.base = base;
        state.meta.mark_again();
        state.not_before = world::now();
        self.enter(&mut state, mode);
        self.store(&mut state);
        drop(state);
        self.p.bell.ring();
    }

    /// Opens the ring again if the time has come: true if it did.
    pub(crate) fn try_reopen(&self) -> bool {
        let ring = &self.p.ring;
        let mut state = self.state();
        let ready = self.connected.load(Ordering::Acquire)
            && world::now() >= state.not_before
            && ring.used_bytes() <= ring.capacity_bytes() / REOPEN_SHARE;
        let Some(closed) = ring.closed().filter(|_| ready) else { return false };
        let (mode, action) = machine::step(state.mode, Event::Ready);
        if action != Action::Reopen {
            return false;
        }
        // Behind a fork the Gap follows on what the appliance has, whatever that is, and nothing is sent before it.
        let fork = state.meta.base.filter(|b| b.gap.is_none());
        let at_least = fork.map_or(0, |b| b.durable + 1);
        if fork.is_some() {
            self.free(closed.seq.saturating_sub(1));
        }
        let initial = state.meta.initial || fork.is_some_and(|b| b.durable == 0);
        // An appliance that has nothing need not be asked what it has.
        let theirs = fork.map_or_else(|| self.durable.load(Ordering::Acquire), |b| b.durable);
        let gap = self.gap(&state);
        let before = state.meta.clone();
        (state.meta.syncing, state.meta.gap) = (true, gap);
        if let Some(base) = state.meta.base.as_mut().filter(|_| fork.is_some()) {
            base.gap = Some(closed.seq.max(at_least));
        }
        if !self.store(&mut state) {
            state.meta = before;
            return false;
        }
        self.since.store(0, Ordering::Release);
        let size = state.meta.resized.then(|| self.core.disk.size());
        match ring.reopen(if initial { FLAG_INITIAL } else { 0 }, self.p.clock.wall(), at_least, size) {
            Ok(seq) => {
                let how = if theirs == 0 { "copying" } else { "comparing" };
                if theirs != 0 {
                    self.since.store(seq, Ordering::Release);
                }
                (state.sync_total, state.sync_began) = (self.p.map.dirty_bytes(), world::now());
                self.counts.compared.store(0, Ordering::Relaxed);
                self.counts.sent.store(0, Ordering::Relaxed);
                tracing::info!("volume {}: {how} {} dirty bytes, from seq {seq}", self.p.name, state.sync_total);
                self.enter(&mut state, mode);
                ring.wake_sender();
                true
            }
            Err(e) => {
                tracing::debug!("volume {}: not yet: {e}", self.p.name);
                state.meta = before;
                false
            }
        }
    }

    /// Ends the sync with its marker, if nothing is dirty: true if it did.
    pub(crate) fn try_end_sync(&self) -> bool {
        let mut state = self.state();
        if self.p.dirty_writers() != 0 || self.p.map.next_dirty(0).is_some() {
            return false;
        }
        let (mode, action) = machine::step(state.mode, Event::MapEmpty);
        if action != Action::EndSync {
            return false;
        }
        // A ring that was closed meanwhile refuses, so a mark made since the look above is not forgotten.
        let Ok(place) = self.p.ring.reserve(Kind::SyncEnd, 0, 0, 0, 0) else { return false };
        let seq = place.publish(self.p.clock.wall());
        self.p.ring.wake_sender();
        self.enter(&mut state, mode);
        (state.pause, state.cuts) = (FIRST_PAUSE, 0);
        self.p.set_reason(None);
        tracing::info!(
            "volume {}: live, every write from seq {seq} on can be chosen; {} bytes compared, {} sent",
            self.p.name,
            self.counts.compared.load(Ordering::Relaxed),
            self.counts.sent.load(Ordering::Relaxed)
        );
        (state.meta.syncing, state.meta.initial, state.meta.gap) = (false, false, None);
        self.store(&mut state);
        true
    }
}
