//! A protected volume, as the tools see it.

use crate::api::{
    AgentConfig, AgentError, IntentConfig, PointError, RecoveryReport, SyncStatus, VolumeConfig, VolumeState,
    VolumeStatus,
};
use crate::device::{Core, Device};
use crate::fence::FencePolicy;
use crate::intent::{Intent, clear};
use crate::machine::Mode;
use crate::open::{self, Opened};
use crate::resize::{ResizeError, Resized};
use crate::shared::{MANY_CUTS, Shared, State};
use crate::sync::Sync;
use crate::{keeper, sender};
use afterimage_base::block::BlockDevice;
use afterimage_base::world;
use afterimage_base::world::thread::{self, JoinHandle};
use afterimage_format::record::{FLAG_AUTO, FLAG_NOTE, Kind, MAX_NAME};
use afterimage_format::wire::NOTE_VERSION;
use afterimage_journal::ReserveError;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a stop looks whether what it waits for has come.
const TICK: Duration = Duration::from_millis(5);
/// Name of the point made by a stop in order.
const LAST_POINT: &str = "shutdown";
/// Least time that a stop gives to writes in flight.
const SETTLE: Duration = Duration::from_secs(5);

/// A protected volume: a device in front, a ring behind, and two threads.
pub struct Volume {
    shared: Arc<Shared>,
    path: PathBuf,
    recovered: Option<RecoveryReport>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    stopped: AtomicBool,
}

/// Whether a point can have this name.
fn check_name(name: &str) -> Result<(), PointError> {
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(PointError::Name(name.to_owned()));
    }
    Ok(())
}

/// Writes the record of a point, under a closed gate.
fn point_record(shared: &Shared, name: &str, auto: bool) -> Result<(u64, u64), PointError> {
    let volume = || shared.p.name.clone();
    let flags = if auto { FLAG_AUTO } else { 0 };
    match shared.p.ring.reserve(Kind::Point, flags, 0, name.len() as u64, name.len()) {
        Ok(mut place) => {
            place.payload_mut().copy_from_slice(name.as_bytes());
            let time = shared.p.clock.wall();
            Ok((place.publish(time), time))
        }
        Err(ReserveError::Full) => Err(PointError::Full { volume: volume() }),
        Err(ReserveError::Closed) => Err(PointError::NotLive { volume: volume(), state: VolumeState::Dirty }),
        Err(ReserveError::Invalid(_)) => Err(PointError::Name(name.to_owned())),
    }
}

/// Points of several volumes of this machine at one instant, at which all of their gates are closed, for `limit` at most. Returns the seq
/// and time of each, in the order of the volumes.
///
/// # Errors
/// [`PointError`]: then no volume has a point of it that could be taken for one of all.
pub fn create_points(
    volumes: &[Arc<Volume>],
    name: &str,
    auto: bool,
    limit: Duration,
) -> Result<Vec<(u64, u64)>, PointError> {
    check_name(name)?;
    let mut holds = Vec::new();
    let mut made = Vec::new();
    let done = crate::barrier::at_one_instant(volumes, limit, &mut holds, &mut |volume| {
        made.push((volume.id(), point_record(&volume.shared, name, auto)?));
        Ok(())
    });
    drop(holds);
    volumes.iter().for_each(|v| v.shared.p.ring.wake_sender());
    if let Err(e) = done {
        // A note without text takes a point back.
        for (id, (seq, _)) in &made {
            let of = volumes.iter().find(|v| v.id() == *id);
            if let Some(Err(e)) = of.map(|v| v.note_point(*seq, "")) {
                tracing::warn!("point '{name}' at @{seq} could not be taken back: {e}");
            }
        }
        return Err(e);
    }
    let of = |v: &Arc<Volume>| made.iter().find(|(id, _)| *id == v.id()).map(|(_, at)| *at);
    Ok(volumes.iter().filter_map(of).collect())
}

impl Volume {
    pub(crate) fn start(
        config: &AgentConfig,
        volume: &VolumeConfig,
        intent: &IntentConfig,
    ) -> Result<Volume, AgentError> {
        let opened = open::open(&config.state_dir, volume, intent, Arc::clone(&config.clock))?;
        let Opened { disk, protection, meta, meta_file, mode, recovered } = opened;
        let path = meta.path.clone();
        let core = Core::new(disk, Some(Arc::clone(&protection)));
        if let Some(fence) = &meta.fence {
            core.fence(true);
            tracing::error!("volume {}: FENCED, epoch {}: its disk takes no writes here", meta.name, fence.epoch);
        }
        let shared = Arc::new(Shared::new(core, protection, meta, meta_file, mode));
        let volume = Volume {
            shared: Arc::clone(&shared),
            path,
            recovered,
            threads: Mutex::new(Vec::new()),
            stopped: AtomicBool::new(false),
        };
        volume.spawn(config).map_err(|source| AgentError::System { name: volume.name().to_owned(), source })?;
        Ok(volume)
    }

    fn spawn(&self, config: &AgentConfig) -> io::Result<()> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let mut start = |name: &str, f: Box<dyn FnOnce() + Send>| -> io::Result<()> {
            threads.push(thread::spawn(name, f)?);
            Ok(())
        };
        let sync = Sync::new(Arc::clone(&self.shared))?;
        let shared = Arc::clone(&self.shared);
        start("keeper", Box::new(move || keeper::run(&shared, sync)))?;
        let (shared, connector) = (Arc::clone(&self.shared), Arc::clone(&config.connector));
        start("sender", Box::new(move || sender::run(&shared, &*connector)))?;
        if self.shared.p.intent.is_some() {
            let shared = Arc::clone(&self.shared);
            start("intent", Box::new(move || shared.p.intent.iter().for_each(Intent::run)))?;
            let shared = Arc::clone(&self.shared);
            start("intent-clear", Box::new(move || clear::run(&shared)))?;
        }
        let shared = Arc::clone(&self.shared);
        let touch = move || {
            if let Err(e) = shared.p.ring.prefault(&shared.stop) {
                tracing::debug!("volume {}: the ring's pages are touched when they are used: {e}", shared.p.name);
            }
        };
        start("prefault", Box::new(touch))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.p.name
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> [u8; 16] {
        self.shared.id
    }

    /// The disk for front ends, with every write protected.
    #[must_use]
    pub fn device(&self) -> Arc<dyn BlockDevice> {
        Arc::new(Device(Arc::clone(&self.shared.core)))
    }

    /// Makes a recovery point at this instant and returns its seq and time. It can be shown once that seq is durable.
    ///
    /// # Errors
    /// [`PointError`]: between a gap and its end there is no consistent point to be made (I6).
    pub fn create_point(&self, name: &str, auto: bool) -> Result<(u64, u64), PointError> {
        check_name(name)?;
        let shared = &self.shared;
        // Before the gate: whoever holds it may be waiting for a disk, and then the guest must not wait too.
        let state = shared.state();
        let volume = || shared.p.name.clone();
        if state.mode != Mode::Live {
            return Err(PointError::NotLive { volume: volume(), state: shared.shown(&state) });
        }
        let hold = shared.p.gate.close();
        let made = point_record(shared, name, auto)?;
        drop(hold);
        drop(state);
        shared.p.ring.wake_sender();
        Ok(made)
    }

    /// Adds a note to the point at `seq`: how it was made. An empty one takes the point away. Returns its seq; `None` if the appliance
    /// is too old to keep notes, or a gap has begun: then the point stays as it is.
    ///
    /// # Errors
    /// [`PointError::Name`] if the note is too long, [`PointError::Full`] if the ring has no room.
    pub fn note_point(&self, seq: u64, note: &str) -> Result<Option<u64>, PointError> {
        let shared = &self.shared;
        let version = shared.peer.load(Ordering::Acquire);
        if version != 0 && version < NOTE_VERSION {
            tracing::warn!("volume {}: the appliance is too old to keep how a point was made", shared.p.name);
            return Ok(None);
        }
        // Not under the gate: it is no cut through the writes.
        match shared.p.ring.reserve(Kind::Point, FLAG_NOTE, seq, note.len() as u64, note.len()) {
            Ok(mut place) => {
                place.payload_mut().copy_from_slice(note.as_bytes());
                let own = place.publish(shared.p.clock.wall());
                shared.p.ring.wake_sender();
                Ok(Some(own))
            }
            Err(ReserveError::Full) => Err(PointError::Full { volume: shared.p.name.clone() }),
            Err(ReserveError::Closed) => Ok(None),
            Err(ReserveError::Invalid(_)) => Err(PointError::Name(note.to_owned())),
        }
    }

    /// Everything up to this seq is durable at the appliance.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.shared.durable.load(Ordering::Acquire)
    }

    /// Changes its size to `size` bytes, or to what the disk has now. New clients see the new size; those that are
    /// connected go on with the old one, within what there is.
    ///
    /// # Errors
    /// [`ResizeError`]; the size is then as it was.
    pub fn resize(&self, size: Option<u64>) -> Result<Resized, ResizeError> {
        self.shared.ask_resize(size)
    }

    /// Begins a gap in which the whole disk is compared with the appliance's copy.
    pub fn compare(&self) {
        self.shared.compare("the whole disk is compared because somebody asked for it");
    }

    /// Its figures now.
    #[must_use]
    pub fn status(&self) -> VolumeStatus {
        let shared = &self.shared;
        let (p, ring) = (&shared.p, &shared.p.ring);
        let state = shared.state();
        let shown = shared.shown(&state);
        let (writes, write_bytes) = p.counted();
        let (ring_used, dirty_bytes) = (ring.used_bytes(), p.map.dirty_bytes());
        let seq_acked = ring.next().saturating_sub(1);
        let seq_durable = shared.durable.load(Ordering::Acquire).min(seq_acked);
        let sync = self.sync_status(&state, dirty_bytes);
        let gap = shared.gap(&state).filter(|_| shown != VolumeState::Live);
        VolumeStatus {
            name: p.name.clone(),
            id: shared.id,
            path: self.path.clone(),
            size: shared.core.disk.size(),
            state: shown,
            state_since: state.since,
            reason: reason(&state, shown, p.reason(), p.intent.as_ref().and_then(Intent::trouble)),
            seq_acked,
            seq_durable,
            lag_seconds: self.lag(&state, seq_durable, seq_acked),
            lag_bytes: ring_used + dirty_bytes,
            ring_bytes: ring.capacity_bytes(),
            ring_used,
            dirty_bytes,
            intent_bytes: p.intent.as_ref().map_or(0, |i| (i.map().marked() * i.map().region()).min(i.map().size())),
            intent_syncs: p.intent.as_ref().map_or(0, |i| i.map().syncs()),
            sync_done_bytes: if state.mode == Mode::Sync { state.sync_total.saturating_sub(dirty_bytes) } else { 0 },
            sync_total_bytes: if state.mode == Mode::Sync { state.sync_total } else { 0 },
            sync,
            gap_since: gap.as_ref().map(|g| g.since),
            gap_reason: gap.and_then(|g| g.why),
            connected: shared.connected.load(Ordering::Acquire),
            gaps: state.gaps,
            writes,
            write_bytes,
            epoch: state.meta.epoch,
            fenced_since: state.meta.fence.map(|f| f.since),
            recovered: self.recovered.clone(),
        }
    }

    /// Bytes of the disk that a sync may deal with in a second; 0 lets it find out by itself how much the guest leaves it.
    pub fn set_sync_rate(&self, bytes_per_second: u64) {
        self.shared.sync_rate.store(bytes_per_second, Ordering::Relaxed);
    }

    /// What it does while it is fenced.
    pub fn set_fence_policy(&self, policy: FencePolicy) {
        self.shared.core.set_fence_policy(policy);
    }

    fn sync_status(&self, state: &State, dirty: u64) -> Option<SyncStatus> {
        if state.mode != Mode::Sync {
            return None;
        }
        let (done, counts) = (state.sync_total.saturating_sub(dirty), &self.shared.counts);
        let nanos = world::since(state.sync_began).as_nanos().max(1);
        Some(SyncStatus {
            done_bytes: done,
            total_bytes: state.sync_total,
            compared_bytes: counts.compared.load(Ordering::Relaxed),
            sent_bytes: counts.sent.load(Ordering::Relaxed),
            rate: u64::try_from(u128::from(done) * 1_000_000_000 / nanos).unwrap_or(u64::MAX),
            cuts: state.cuts,
        })
    }

    /// Age in seconds of the oldest thing that the appliance lacks. The labels of records and gaps are believed only as
    /// far as the monotonic clock allows.
    #[expect(clippy::cast_precision_loss, reason = "seconds of a lag need no 53 bits")]
    fn lag(&self, state: &State, durable: u64, acked: u64) -> f64 {
        let (ring, clock) = (&self.shared.p.ring, &self.shared.p.clock);
        let ages = self.shared.ages.lock().unwrap_or_else(PoisonError::into_inner);
        let (wall, now) = (clock.wall(), clock.monotonic());
        let record =
            (durable < acked).then(|| ring.record(durable + 1).ok().flatten().map(|r| r.record.time)).flatten();
        let record = record.map(|label| ages.of_seq(durable + 1, label, wall, now));
        let entered = now.saturating_sub(state.entered);
        let gap = match (ring.closed(), state.mode) {
            (Some(closed), _) => Some(entered + ages.before_start(closed.time)),
            (None, Mode::Live) => None,
            (None, _) => Some(entered),
        };
        record.into_iter().chain(gap).max().map_or(0.0, |age| age as f64 / 1e9)
    }

    /// Stops in order: no more writes, a last point, time until `deadline` for the appliance to get everything, files
    /// marked as clean. True if the appliance has everything.
    pub(crate) fn stop(&self, deadline: Instant) -> bool {
        if self.stopped.swap(true, Ordering::AcqRel) {
            return true;
        }
        let shared = &self.shared;
        shared.core.stop();
        let settled = self.wait_for_writes(deadline.max(world::now() + SETTLE));
        // What a fenced volume brings ends with a point of its own, and nothing has been written since.
        let fenced = shared.state().meta.fence.is_some();
        match (!fenced).then(|| self.create_point(LAST_POINT, true)) {
            Some(Ok((seq, _))) => tracing::debug!("volume {}: point {LAST_POINT} at seq {seq}", self.name()),
            Some(Err(e)) => tracing::warn!("volume {}: no last point: {e}", self.name()),
            None => {}
        }
        let complete = || shared.durable.load(Ordering::Acquire) + 1 >= shared.p.ring.next();
        while !complete() && shared.connected.load(Ordering::Acquire) && world::now() < deadline {
            world::sleep(TICK);
        }
        let done = complete() && shared.state().mode == Mode::Live;
        self.halt();
        if settled {
            // A clean mark says that disk and ring belong together, also after a power cut right behind it.
            let synced = shared.core.disk.sync_apart();
            if synced.is_ok() {
                self.stamp();
            }
            let marked = synced.and_then(|()| shared.p.map.mark_clean()).and_then(|()| shared.p.ring.mark_clean());
            if let Err(e) = marked {
                tracing::error!("volume {}: cannot mark the journal as clean: {e}", self.name());
            }
        } else {
            tracing::warn!("volume {}: writes were still in flight at the stop", self.name());
        }
        done
    }

    /// Notes what the disk's file looks like now that all is on the disk and nothing writes to it any more.
    fn stamp(&self) {
        let shared = &self.shared;
        let mut state = shared.state();
        state.meta.stamp = shared.core.disk.stamp();
        shared.store(&mut state);
    }

    fn wait_for_writes(&self, until: Instant) -> bool {
        while !self.shared.core.ranges.is_empty() {
            if world::now() >= until {
                return false;
            }
            world::sleep(TICK);
        }
        true
    }

    /// Ends the threads.
    fn halt(&self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.p.bell.ring();
        self.shared.p.intent.iter().for_each(Intent::end);
        self.shared.p.ring.wake_sender();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("volume {}: one of its threads has panicked", self.name());
            }
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

/// `intent` is what is wrong with the write-intent map: like trouble of the disk it goes before why a gap began.
fn reason(state: &State, shown: VolumeState, closed: Option<String>, intent: Option<String>) -> Option<String> {
    let cuts = (state.cuts >= MANY_CUTS).then(|| {
        format!(
            "the ring was full {} times before the resync could end: the guest writes faster than the appliance takes",
            state.cuts
        )
    });
    let closed = match (closed, cuts) {
        (Some(a), Some(b)) => Some(format!("{a}; {b}")),
        (a, b) => a.or(b),
    };
    let trouble = state.disk_trouble.clone().or_else(|| state.refused.clone()).or(intent);
    let closed = state.meta.fence.map_or(closed, |fence| {
        let (epoch, end) = (fence.epoch, if fence.marked { "" } else { "; what the appliance has not goes there now" });
        Some(format!("its machine runs elsewhere after a failover (epoch {epoch}): its disk takes no writes here{end}"))
    });
    let why = if shown == VolumeState::Live { None } else { closed };
    trouble.or_else(|| match (why, state.appliance_note.clone()) {
        (Some(a), Some(b)) => Some(format!("{a}; {b}")),
        (a, b) => a.or(b),
    })
}

impl Drop for Volume {
    fn drop(&mut self) {
        self.halt();
    }
}
