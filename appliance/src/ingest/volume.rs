//! A volume of the vault: what is known of it between sessions.

use super::failback::Reach;
use super::progress::{Committed, Progress};
use super::replay::Replayed;
use super::{SessionError, Shared};
use crate::fence::Standing;
use crate::history::{HistoryError, Run, VolumeHistory};
use crate::store::segment::{OpenSegment, SegmentWriter};
use crate::store::{StoreError, file_name};
use crate::vault::VaultError;
use afterimage_base::world::channel::Receiver;
use afterimage_base::world::sync::{Condvar, LongMutex};
use afterimage_format::fence::Fence;
use afterimage_format::manifest::{ForkKind, ForkMeta, Manifest, SegmentMeta, SegmentState, VolumeMeta};
use afterimage_format::wire::Quiet;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Stops the reading side of a session's connection.
pub type Interrupt = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Turn {
    interrupt: Option<Interrupt>,
    superseded: bool,
    closed: bool,
    /// Of the newest session that has asked.
    number: u64,
    /// Of the one that has the turn, or had it last.
    holder: u64,
}

/// See the module.
pub struct Volume {
    /// Its id.
    pub id: [u8; 16],
    /// Its name.
    pub name: String,
    /// Its history.
    pub history: Arc<VolumeHistory>,
    progress: Mutex<Progress>,
    /// Held from when what the manifest is to say of points and gaps is looked up until it says so. Otherwise a flush could write what
    /// was true before somebody else's change, which the next start would not know then.
    pub(crate) telling: LongMutex<()>,
    fork: Mutex<Option<ForkMeta>>,
    /// See [`crate::fence`].
    pub(crate) standing: Mutex<Standing>,
    /// It takes no records, whoever brings them (I13).
    pub(crate) sealed: AtomicBool,
    /// The last records were found damaged at start: the agent has to begin a gap.
    pub forked: bool,
    /// Some of its history could not be read at start: what it refers to is not known.
    pub in_part: bool,
    failed: Mutex<Option<String>>,
    current: Mutex<Option<Arc<OpenSegment>>>,
    writer: Mutex<Option<SegmentWriter>>,
    turn: Mutex<Turn>,
    free: Condvar,
    agent_disk: Mutex<Reach>,
    /// What the agent said last of a time without writes.
    quiet: Mutex<Option<Quiet>>,
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Volume({})", self.name)
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The one session of a volume; others may begin when it is dropped.
#[derive(Debug)]
pub struct SessionTurn<'a>(&'a Volume);

impl SessionTurn<'_> {
    /// Whether another session waits for this one to end.
    #[must_use]
    pub fn superseded(&self) -> bool {
        lock(&self.0.turn).superseded
    }
}

impl Drop for SessionTurn<'_> {
    fn drop(&mut self) {
        let mut turn = lock(&self.0.turn);
        (turn.interrupt, turn.superseded) = (None, false);
        self.0.free.notify_all();
    }
}

impl Volume {
    /// A volume as manifest and replay have left it.
    #[must_use]
    pub fn new(meta: &VolumeMeta, history: Arc<VolumeHistory>, replayed: Replayed) -> Self {
        let Replayed { progress, missing: forked, unread } = replayed;
        let unread = unread.map(|why| {
            format!("its newest records cannot be read: {why}. It takes no more until the appliance is started again and can read them")
        });
        let failed = history.damage().map(|(upto, why)| {
            format!("its history can be read up to seq {upto} only: {why}. It takes no more; `afterimage check` says what is hit")
        });
        Self {
            id: meta.id,
            name: meta.name.clone(),
            progress: Mutex::new(progress),
            telling: LongMutex::new(()),
            fork: Mutex::new(meta.fork),
            standing: Mutex::new(Standing::of(meta)),
            sealed: AtomicBool::new(meta.fence.as_ref().is_some_and(|f| f.state == Fence::Closed)),
            forked,
            in_part: history.damage().is_some() || unread.is_some(),
            history,
            failed: Mutex::new(failed.or(unread)),
            current: Mutex::default(),
            writer: Mutex::default(),
            turn: Mutex::default(),
            free: Condvar::new(),
            agent_disk: Mutex::default(),
            quiet: Mutex::default(),
        }
    }

    /// Up to when nothing is newer than `newest`, the last record that is durable here, in nanoseconds since 1970; if its agent has said so.
    pub(crate) fn quiet_until(&self, newest: u64) -> Option<u64> {
        lock(&self.quiet).filter(|quiet| quiet.seq == newest).map(|quiet| quiet.time)
    }

    /// What its agent says of a time without writes.
    pub(super) fn set_quiet(&self, quiet: Quiet) {
        *lock(&self.quiet) = Some(quiet);
    }

    /// Whether the disk of its agent can be reached; for tails.
    pub(crate) fn agent_disk(&self) -> Reach {
        lock(&self.agent_disk).clone()
    }

    /// By the session that has the turn.
    pub(super) fn set_agent_disk(&self, reach: Reach) {
        *lock(&self.agent_disk) = reach;
    }

    /// Where it is now.
    #[must_use]
    pub fn progress(&self) -> Progress {
        lock(&self.progress).clone()
    }

    /// Where it began, if it is a branch.
    #[must_use]
    pub fn fork(&self) -> Option<ForkMeta> {
        *lock(&self.fork)
    }

    /// What it has become, once the manifest says so.
    pub(crate) fn set_fork_kind(&self, kind: ForkKind) {
        if let Some(fork) = &mut *lock(&self.fork) {
            fork.kind = kind;
        }
    }

    /// Changes the catalogue of points and gaps, as retention does; the next flush makes it durable.
    pub fn edit_progress(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut lock(&self.progress));
    }

    /// Why it takes no more until the next start, if so (I11).
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        lock(&self.failed).clone()
    }

    /// Takes the volume for a session, ending the one that has it. Of several that wait, the last to ask has it.
    ///
    /// # Errors
    /// [`SessionError::Superseded`] if the appliance is stopping, or a newer session has asked meanwhile.
    pub fn take_turn(&self, interrupt: Interrupt) -> Result<SessionTurn<'_>, SessionError> {
        let mut turn = lock(&self.turn);
        turn.number += 1;
        let number = turn.number;
        while turn.interrupt.is_some() && !turn.closed && turn.number == number {
            turn.superseded = true;
            if let Some(interrupt) = &turn.interrupt {
                interrupt();
            }
            turn = self.free.wait(&self.turn, turn);
        }
        if turn.closed {
            return Err(SessionError::Superseded("the appliance is stopping".into()));
        }
        if turn.number != number {
            return Err(SessionError::Superseded("a newer session of this volume was there first".into()));
        }
        (turn.interrupt, turn.holder) = (Some(interrupt), number);
        drop(turn);
        Ok(SessionTurn(self))
    }

    /// Whether a session has the volume.
    #[must_use]
    pub fn has_session(&self) -> bool {
        lock(&self.turn).interrupt.is_some()
    }

    /// Ends the session that goes on, if one does, and waits until it has ended. Others may begin.
    pub(crate) fn dismiss(&self) {
        let mut turn = lock(&self.turn);
        let holder = turn.holder;
        // One that was waiting for the end of this one is another.
        while turn.interrupt.is_some() && turn.holder == holder {
            turn.superseded = true;
            if let Some(interrupt) = &turn.interrupt {
                interrupt();
            }
            turn = self.free.wait(&self.turn, turn);
        }
    }

    /// Ends the session and lets none begin.
    pub fn close(&self) {
        let mut turn = lock(&self.turn);
        turn.closed = true;
        while turn.interrupt.is_some() {
            turn.superseded = true;
            if let Some(interrupt) = &turn.interrupt {
                interrupt();
            }
            turn = self.free.wait(&self.turn, turn);
        }
        self.free.notify_all();
    }

    /// The segment in which `bytes` have been reserved: the one being written, or a new one.
    ///
    /// # Errors
    /// If a new one cannot be made.
    pub fn segment_for(&self, shared: &Shared, bytes: u64) -> Result<Arc<OpenSegment>, StoreError> {
        let mut current = lock(&self.current);
        if let Some(segment) = current.as_ref().filter(|s| s.reserve(bytes, shared.segment_size)) {
            return Ok(Arc::clone(segment));
        }
        let segment = new_segment(shared, self.id, self.id)?;
        // An empty segment takes any batch.
        let _ = segment.reserve(bytes, shared.segment_size);
        *current = Some(Arc::clone(&segment));
        Ok(segment)
    }

    /// The writing stage's side of the open segment.
    pub fn writer(&self) -> MutexGuard<'_, Option<SegmentWriter>> {
        lock(&self.writer)
    }

    /// A write to the open segment failed: it takes no more, and neither does the volume if the error is final.
    pub fn fail_stream(&self, shared: &Shared, error: &SessionError) {
        let full = matches!(error, SessionError::Full(_));
        *lock(&self.current) = None;
        let writer = self.writer().take();
        if let Some(writer) = writer {
            // After a write error nothing is asked of the file any more (I11); cutting it makes room when the disk is full.
            if full {
                writer.close();
            }
            let (number, length, last) = (writer.segment().number, writer.committed(), writer.last_seq());
            if let Err(e) = shared.vault.edit(|m| end_segment(m, number, SegmentState::Closed, length, last)) {
                tracing::warn!("segment {number} stays open in the manifest: {e}");
            }
        }
        if full {
            tracing::warn!("volume {}: {error}; it goes on when there is room", self.name);
        } else {
            tracing::error!("volume {}: {error}; it takes no more until the appliance is started again", self.name);
            *lock(&self.failed) = Some(error.to_string());
        }
    }

    /// After a layer could not be written or made durable the volume takes no more (I11), unless the disk was merely full.
    pub fn fail_unless_full(&self, e: &HistoryError) {
        if !matches!(e, HistoryError::Stopped) && !e.is_full() {
            tracing::error!("volume {}: {e}; it takes no more until the appliance is started again", self.name);
            lock(&self.failed).get_or_insert(e.to_string());
        }
    }

    /// Takes durable records into history and catalogue. What is acknowledged next has been through here.
    ///
    /// # Errors
    /// [`SessionError::Failed`] if history does not take them.
    pub fn commit<'a>(
        &self,
        records: impl Iterator<Item = Committed<'a>> + Clone,
        runs: &[Run],
        ring: [u8; 16],
        digest: u64,
        logical: u64,
    ) -> Result<(), SessionError> {
        if self.is_sealed() {
            return Err(SessionError::Failed(format!(
                "volume {} is fenced, and a record came that would change it (I13)",
                self.name
            )));
        }
        let times: Vec<(u64, u64)> = records.clone().map(|r| (r.seq, r.time)).collect();
        let mut progress = lock(&self.progress);
        // Under the lock, so that whoever has seen a record in history finds it in the progress as well.
        self.history.append(&times, runs)?;
        for r in records {
            progress.note(&r);
        }
        if let Some((seq, time)) = times.last() {
            (progress.seq, progress.time, progress.ring, progress.digest) = (*seq, *time, ring, digest);
            progress.logical += logical;
        }
        Ok(())
    }

    /// Writes what history has only in memory to a layer, and notes it in the manifest together with `change`.
    ///
    /// # Errors
    /// [`SessionError::Full`] can pass; otherwise nothing more can be flushed.
    pub fn flush(&self, shared: &Shared) -> Result<(), SessionError> {
        if let Some(why) = self.failure() {
            return Err(SessionError::Failed(why));
        }
        let _telling = self.telling.lock();
        let flushed = self.history.flush();
        if let Err(e) = &flushed {
            self.fail_unless_full(e);
        }
        let edit = flushed?;
        let progress = self.progress();
        let id = self.id;
        let written = shared.vault.edit(|m| {
            let Some(v) = m.volumes.iter_mut().find(|v| v.id == id) else { return };
            progress.store(v);
            if let Some(edit) = &edit {
                v.layers.clone_from(&edit.layers);
                v.layered_to = edit.layered_to;
            }
        });
        written.map_err(StoreError::from)?;
        if let Some(edit) = edit {
            self.history.applied(edit);
        }
        Ok(())
    }

    /// Leaves the open segment, which is sealed: after a session that failed, because frames may have been
    /// counted that were never written, and at a clean stop.
    pub fn leave_segment(&self, shared: &Shared) {
        *lock(&self.current) = None;
        let writer = self.writer().take();
        if let Some(writer) = writer {
            shared.seal(writer);
        }
    }
}

/// Makes a segment and names it in the manifest. Its owner is a volume, or zero for collection. `named` is the owner in the
/// manifest: zero for copies that are not whole yet, which a start removes.
///
/// # Errors
/// Any step; the file is then removed again if that works, and rubbish if not.
pub fn new_segment(shared: &Shared, owner: [u8; 16], named: [u8; 16]) -> Result<Arc<OpenSegment>, StoreError> {
    let number = shared.next_segment()?;
    let (dir, vault) = (shared.vault.segments_dir(), shared.vault.read(|m| m.vault));
    let made = OpenSegment::create(&dir, vault, number, owner, shared.vault.key(), shared.hook.clone());
    let done = made.and_then(|segment| {
        let meta = SegmentMeta { number, volume: named, state: SegmentState::Open, length: 0, last_seq: 0 };
        shared.vault.edit(|m| {
            m.segments.push(meta);
            m.segments.sort_by_key(|s| s.number);
            m.next_segment = m.next_segment.max(number.saturating_add(1));
        })?;
        Ok(segment)
    });
    if done.is_err() {
        drop(afterimage_base::world::fs::remove_file(&dir.join(file_name(number))));
    }
    done
}

/// Notes the end of a segment in a manifest.
pub fn end_segment(m: &mut Manifest, number: u32, state: SegmentState, length: u64, last_seq: u64) {
    if let Some(s) = m.segments.iter_mut().find(|s| s.number == number) {
        (s.state, s.length, s.last_seq) = (state, length, last_seq);
    }
}

/// Seals full segments as they come, until the last sender is gone.
pub fn seal_segments(vault: &crate::vault::Vault, full: &Receiver<SegmentWriter>) {
    let Ok(mut scratch) = crate::reduce::frame::Scratch::new() else { return };
    while let Ok(mut writer) = full.recv() {
        let (number, last) = (writer.segment().number, writer.last_seq());
        let (state, length) = match writer.seal(&mut scratch) {
            Ok(length) => (SegmentState::Sealed, length),
            Err(e) => {
                tracing::warn!("segment {number} stays without directory: {e}");
                (SegmentState::Closed, writer.committed())
            }
        };
        if let Err(e @ VaultError::Io { .. }) = vault.edit(|m| end_segment(m, number, state, length, last)) {
            tracing::error!("segment {number} stays open in the manifest: {e}");
        }
    }
}
