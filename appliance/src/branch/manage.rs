//! Making, listing, opening, promoting and dropping branches.

use super::device::{BranchDevice, Leave};
use super::live::Runner;
use crate::appliance::{Appliance, ApplianceError};
use crate::history::{Base, HistoryError};
use crate::ingest::SessionError;
use crate::ingest::volume::Volume;
use crate::registry::Registry;
use crate::store::StoreError;
use afterimage_base::block::BlockDevice;
use afterimage_base::world;
use afterimage_format::manifest::{ForkKind, ForkMeta, Manifest, VolumeMeta};
use afterimage_format::record::MAX_NAME;
use std::sync::Arc;
use thiserror::Error;

/// Why something cannot be done with a branch.
#[derive(Debug, Error)]
pub enum BranchError {
    /// The name is not possible.
    #[error("a branch's name has 1 to 100 characters and neither a slash nor control characters")]
    Name,
    /// The name is taken.
    #[error("there is one of this name already: take another, or drop that one")]
    Taken,
    /// It is a volume with an agent, or an export.
    #[error("it is no branch")]
    None,
    /// Somebody reads or writes it.
    #[error("it is in use: end its exports first")]
    InUse,
    /// Others begin on it.
    #[error("other branches begin on it: {0}; drop or promote them first")]
    Parent(String),
    /// It is kept as it came.
    #[error("it is what an old primary had, and stays as it is: make a branch of it to write on")]
    Tail,
    /// It stands by itself already.
    #[error("it was promoted before")]
    Promoted,
    /// Retention was faster.
    #[error("the moment has just left the window of its volume")]
    Gone,
    /// Records are missing.
    #[error(
        "records of it, or of its volume before the fork, are missing: make a branch at a moment that can be chosen"
    )]
    Missing,
    /// It takes no writes.
    #[error("{0}")]
    Ended(SessionError),
    /// A request was not done.
    #[error("{0}")]
    Failed(afterimage_base::block::BlockError),
}

/// What there is to say of a branch.
#[derive(Debug, Clone)]
pub struct BranchInfo {
    /// Its full name, `VOLUME/NAME`.
    pub name: String,
    /// Its id.
    pub id: [u8; 16],
    /// The name of what it is a branch of.
    pub parent: String,
    /// Where it began.
    pub fork: ForkMeta,
    /// Time label of the fork, in nanoseconds since 1970.
    pub fork_time: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Its newest durable seq; that of the fork if nothing was written.
    pub seq: u64,
    /// Its time label.
    pub time: u64,
    /// Bytes that were written to it, before any reduction.
    pub logical_bytes: u64,
    /// Bytes in the segments that it wrote.
    pub stored_bytes: u64,
    /// Number of its points.
    pub points: usize,
    /// Whether somebody reads or writes it as a disk.
    pub open: bool,
    /// Why it takes no more writes, if so.
    pub failure: Option<String>,
}

fn refused(name: &str, why: BranchError) -> ApplianceError {
    ApplianceError::Branch(name.to_owned(), why)
}

fn of_history(volume: &Volume) -> impl Fn(HistoryError) -> ApplianceError {
    let name = volume.name.clone();
    move |e| ApplianceError::History(name.clone(), Box::new(e))
}

/// Whether a branch may begin at `seq` of a volume, by what the manifest says.
fn may_begin(m: &Manifest, parent: &[u8; 16], seq: u64) -> bool {
    let is_point = |v: &VolumeMeta| v.points.iter().any(|p| p.seq == seq);
    m.volume(parent).is_some_and(|v| seq >= v.first_seq || is_point(v) || m.fork_seqs(parent).any(|s| s == seq))
}

impl Registry {
    /// What a volume lies on, if it is a branch.
    pub(crate) fn base_of(
        meta: &VolumeMeta,
        others: &[Arc<Volume>],
    ) -> Result<Option<(Base, Arc<Volume>)>, ApplianceError> {
        let Some(fork) = meta.fork.filter(ForkMeta::leans) else { return Ok(None) };
        let parent = others.iter().find(|v| v.id == fork.parent);
        let parent = parent.ok_or_else(|| refused(&meta.name, BranchError::Missing))?;
        Ok(Some((Base { parent: Arc::clone(&parent.history), seq: fork.seq }, Arc::clone(parent))))
    }

    /// The volume that names of branches begin with.
    fn root_of(volumes: &[Arc<Volume>], of: &Arc<Volume>) -> String {
        let mut at = of;
        while let Some(fork) = at.fork().filter(ForkMeta::leans)
            && let Some(parent) = volumes.iter().find(|v| v.id == fork.parent)
        {
            at = parent;
        }
        at.name.clone()
    }

    fn create(
        &self,
        (of, seq): (&Arc<Volume>, u64),
        name: &str,
        kind: (ForkKind, u64),
    ) -> Result<Arc<Volume>, ApplianceError> {
        self.create_in(&mut self.lock(), (of, seq), name, kind)
    }

    /// The same, in the list of volumes.
    pub(crate) fn create_in(
        &self,
        volumes: &mut Vec<Arc<Volume>>,
        (of, seq): (&Arc<Volume>, u64),
        name: &str,
        (kind, now): (ForkKind, u64),
    ) -> Result<Arc<Volume>, ApplianceError> {
        if name.is_empty() || name.chars().count() > 100 || name.contains('/') || name.chars().any(char::is_control) {
            return Err(refused(name, BranchError::Name));
        }
        let size = of.progress().size_at(seq);
        let time = of.history.record_at_seq(seq).map_err(of_history(of))?.map_or(0, |r| r.1);
        let no_chance = |e| ApplianceError::System("random bytes", e);
        let id: [u8; 16] = world::random_array().map_err(no_chance)?;
        let full = format!("{}/{name}", Self::root_of(volumes, of));
        if full.len() > MAX_NAME {
            return Err(refused(&full, BranchError::Name));
        }
        if volumes.iter().any(|v| v.name == full) {
            return Err(refused(&full, BranchError::Taken));
        }
        // What a branch has at its fork is its parent's.
        let on_fork = of.fork().filter(|f| f.leans() && f.seq == seq);
        let parent = on_fork.map_or(of.id, |f| f.parent);
        let mut meta = VolumeMeta::new(id, full.clone(), size);
        (meta.ring, meta.durable_seq, meta.durable_time, meta.layered_to) = (id, seq, time, seq);
        (meta.first_seq, meta.first_time) = (seq, time);
        if kind == ForkKind::Tail {
            // Its agent goes on with it as with the volume.
            let progress = of.progress();
            (meta.ring, meta.digest, meta.epoch) = (progress.ring, progress.digest, of.standing().epoch);
        }
        meta.fork = Some(ForkMeta { parent, seq, created: now, kind });
        let made = self.shared.vault.edit(|m| {
            let may = may_begin(m, &parent, seq);
            if may {
                m.volumes.push(meta.clone());
            }
            may
        });
        if !made.map_err(StoreError::from)? {
            return Err(refused(&full, BranchError::Gone));
        }
        let volume = self.open(&meta, volumes)?;
        volumes.push(Arc::clone(&volume));
        tracing::info!("branch {full}: begins behind @{seq} of {}", of.name);
        Ok(volume)
    }

    fn runner_of(&self, volume: &Arc<Volume>, appliance: &Appliance) -> Result<Arc<Runner>, ApplianceError> {
        let fork = volume.fork().ok_or_else(|| refused(&volume.name, BranchError::None))?;
        if fork.kind == ForkKind::Tail {
            return Err(refused(&volume.name, BranchError::Tail));
        }
        if volume.forked {
            return Err(refused(&volume.name, BranchError::Missing));
        }
        debug_assert!(fork.seq <= volume.progress().seq);
        let mut runners = self.runners.lock();
        runners.retain(|_, r| r.strong_count() > 0);
        if let Some(runner) = runners.get(&volume.id).and_then(std::sync::Weak::upgrade).filter(|r| r.runs()) {
            return Ok(runner);
        }
        let clock = Arc::clone(&appliance.clock);
        let runner = Runner::start(Arc::clone(&self.shared), Arc::clone(volume), clock)
            .map_err(|e| refused(&volume.name, BranchError::Ended(e)))?;
        runners.insert(volume.id, Arc::downgrade(&runner));
        Ok(runner)
    }

    fn is_open(&self, id: &[u8; 16]) -> bool {
        self.runners.lock().get(id).is_some_and(|r| r.strong_count() > 0)
    }

    fn drop_branch(&self, id: &[u8; 16]) -> Result<(), ApplianceError> {
        // No round is at work with it meanwhile.
        let _turn = self.collector.lock();
        let open = self.is_open(id);
        let volume = {
            let mut volumes = self.lock();
            let Some(at) = volumes.iter().position(|v| v.id == *id) else { return Ok(()) };
            let volume = Arc::clone(&volumes[at]);
            let leans = |v: &&Arc<Volume>| v.fork().is_some_and(|f| f.leans() && f.parent == *id);
            let children: Vec<&str> = volumes.iter().filter(leans).map(|v| v.name.as_str()).collect();
            if !children.is_empty() {
                return Err(refused(&volume.name, BranchError::Parent(children.join(", "))));
            }
            if volume.fork().is_none() {
                return Err(refused(&volume.name, BranchError::None));
            }
            if open || volume.has_session() || !volume.history.retire(true) {
                return Err(refused(&volume.name, BranchError::InUse));
            }
            if let Err(e) = self.shared.vault.edit(|m| m.volumes.retain(|v| v.id != *id)) {
                volume.history.retire(false);
                return Err(StoreError::from(e).into());
            }
            if let Some(fork) = volume.fork().filter(ForkMeta::leans) {
                volumes.iter().filter(|v| v.id == fork.parent).for_each(|v| v.history.thin_again());
            }
            volumes.remove(at)
        };
        volume.close();
        volume.leave_segment(&self.shared);
        volume.history.remove_files();
        tracing::info!("branch {}: dropped", volume.name);
        Ok(())
    }
}

impl Appliance {
    /// Makes a branch `NAME` of a volume (or of a branch) behind its write `seq`. Its full name is `VOLUME/NAME`.
    ///
    /// # Errors
    /// [`ApplianceError::When`] if the seq cannot be chosen; [`ApplianceError::Branch`] if the name cannot.
    pub fn create_branch(&self, volume: &str, seq: u64, name: &str) -> Result<BranchInfo, ApplianceError> {
        let made = self.fork(volume, seq, name, ForkKind::Branch)?;
        self.branch_info(&made).ok_or_else(|| refused(name, BranchError::None))
    }

    fn fork(&self, of: &str, seq: u64, name: &str, kind: ForkKind) -> Result<Arc<Volume>, ApplianceError> {
        self.check_seq(of, seq)?;
        let of = self.volume(of)?;
        if of.fork().is_some_and(|f| f.kind == ForkKind::Scratch) {
            return Err(refused(&of.name, BranchError::None));
        }
        self.registry.create((&of, seq), name, (kind, self.clock.wall()))
    }

    fn branch_info(&self, volume: &Volume) -> Option<BranchInfo> {
        let fork = volume.fork()?;
        let parent = self.registry.all().iter().find(|v| v.id == fork.parent).map(|v| v.name.clone());
        let info = self.info(volume);
        let fork_time = volume.history.record_at_seq(fork.seq).ok().flatten().map_or(0, |r| r.1);
        Some(BranchInfo {
            name: volume.name.clone(),
            id: volume.id,
            parent: parent.unwrap_or_default(),
            fork,
            fork_time,
            size: info.size,
            seq: info.durable_seq,
            time: info.durable_time,
            logical_bytes: info.logical_bytes,
            stored_bytes: info.stored_bytes,
            points: info.points,
            open: self.registry.is_open(&volume.id),
            failure: info.failure.or_else(|| volume.forked.then(|| BranchError::Missing.to_string())),
        })
    }

    /// All branches, also those that were promoted.
    #[must_use]
    pub fn branches(&self) -> Vec<BranchInfo> {
        self.registry.all().iter().filter_map(|v| self.branch_info(v)).collect()
    }

    /// The branch with this full name.
    ///
    /// # Errors
    /// [`ApplianceError::NoVolume`], or [`ApplianceError::Branch`] if it is no branch.
    pub fn branch(&self, name: &str) -> Result<BranchInfo, ApplianceError> {
        let volume = self.volume(name)?;
        self.branch_info(&volume).ok_or_else(|| refused(name, BranchError::None))
    }

    /// A branch as a disk. What is written to it is durable with the next flush; all devices of a branch are one disk.
    ///
    /// # Errors
    /// [`ApplianceError::Branch`] if it takes no writes.
    pub fn open_branch(&self, name: &str) -> Result<Arc<dyn BlockDevice>, ApplianceError> {
        let volume = self.volume(name)?;
        self.device_of(&volume, None)
    }

    fn device_of(&self, volume: &Arc<Volume>, leave: Option<Leave>) -> Result<Arc<dyn BlockDevice>, ApplianceError> {
        let runner = self.registry.runner_of(volume, self)?;
        Ok(self.parallel(Arc::new(BranchDevice::new(runner, leave))))
    }

    /// A writable device of a volume at `seq`, of which nothing is left when it is dropped.
    ///
    /// # Errors
    /// As [`Appliance::create_branch`] and [`Appliance::open_branch`].
    pub fn open_scratch(&self, volume: &str, seq: u64) -> Result<Arc<dyn BlockDevice>, ApplianceError> {
        let no_chance = |e| ApplianceError::System("random bytes", e);
        let word = u64::from_le_bytes(world::random_array().map_err(no_chance)?);
        let made = self.fork(volume, seq, &format!("export-{word:016x}"), ForkKind::Scratch)?;
        let (id, registry) = (made.id, Arc::downgrade(&self.registry));
        let leave: Leave = Box::new(move || {
            if let Some(registry) = registry.upgrade()
                && let Err(e) = registry.drop_branch(&id)
            {
                tracing::warn!("what was written to an export stays until the next start: {e}");
            }
        });
        self.device_of(&made, Some(leave)).inspect_err(|_| drop(self.registry.drop_branch(&id)))
    }

    /// Makes a point at the newest write of a branch, durably; answers its seq and time.
    ///
    /// # Errors
    /// [`ApplianceError::Branch`] if it takes no writes, or there is a point of that name.
    pub fn point_of_branch(&self, name: &str, point: &str) -> Result<(u64, u64), ApplianceError> {
        let volume = self.volume(name)?;
        if volume.progress().points.iter().any(|p| p.name == point) {
            return Err(refused(name, BranchError::Taken));
        }
        let runner = self.registry.runner_of(&volume, self)?;
        runner.live.point(point).map_err(|e| refused(name, BranchError::Failed(e)))
    }

    /// Makes a volume of a branch that needs its parent no more. It keeps its name, seqs and points, and may be in use.
    ///
    /// # Errors
    /// [`ApplianceError::Branch`] if it is none; nothing has changed then.
    pub fn promote_branch(&self, name: &str) -> Result<BranchInfo, ApplianceError> {
        let volume = self.volume(name)?;
        match volume.fork().map(|f| f.kind) {
            Some(ForkKind::Branch) => {}
            Some(ForkKind::Promoted) => return Err(refused(name, BranchError::Promoted)),
            Some(ForkKind::Tail) => return Err(refused(name, BranchError::Tail)),
            Some(ForkKind::Scratch) | None => return Err(refused(name, BranchError::None)),
        }
        if let Some(why) = volume.failure() {
            return Err(SessionError::Failed(why).into());
        }
        if volume.forked {
            return Err(refused(name, BranchError::Missing));
        }
        let ground = volume.history.ground(&self.stop).inspect_err(|e| volume.fail_unless_full(e));
        let Some((edit, view)) = ground.map_err(of_history(&volume))? else {
            return Err(refused(name, BranchError::Promoted));
        };
        let written = self.shared.vault.edit(|m| {
            let Some(v) = m.volumes.iter_mut().find(|v| v.id == volume.id) else { return false };
            v.layers.clone_from(&edit.layers);
            v.layered_to = edit.layered_to;
            if let Some(fork) = &mut v.fork {
                fork.kind = ForkKind::Promoted;
            }
            true
        });
        if !written.map_err(StoreError::from)? {
            return Err(refused(name, BranchError::None));
        }
        volume.history.applied(edit);
        volume.set_fork_kind(ForkKind::Promoted);
        // Until here it held what the new layer refers to.
        drop(view);
        tracing::info!("branch {name}: promoted");
        self.branch(name)
    }

    /// Drops a branch that nobody uses: what only it had is given back by collection.
    ///
    /// # Errors
    /// [`ApplianceError::Branch`] if it is in use, or none, or others begin on it.
    pub fn drop_branch(&self, name: &str) -> Result<(), ApplianceError> {
        let volume = self.volume(name)?;
        self.registry.drop_branch(&volume.id)
    }

    /// Up to which seq two volumes have one history; 0 if they have nothing in common. Each is given with the seq at which it is seen.
    pub(crate) fn common(&self, a: (&Volume, u64), b: (&Volume, u64)) -> u64 {
        let all = self.registry.all();
        let line = |(volume, seq): (&Volume, u64)| {
            let mut line = vec![(volume.id, seq)];
            let mut fork = volume.fork();
            while let Some(f) = fork.filter(ForkMeta::leans) {
                line.push((f.parent, f.seq.min(seq)));
                fork = all.iter().find(|v| v.id == f.parent).and_then(|v| v.fork());
            }
            line
        };
        let (a, b) = (line(a), line(b));
        let shared = a.iter().find_map(|(id, seq)| b.iter().find(|o| o.0 == *id).map(|o| o.1.min(*seq)));
        shared.unwrap_or(0)
    }
}
