//! Fences: a volume whose machine runs elsewhere takes nothing of its agent any more (I13).
//!
//! A fence is part of the manifest, with its owner and an epoch that each of them raises. What the agent brings meanwhile goes into a branch
//! of its own, the *tail*, which begins behind the last write that the volume received: the agent goes on as if that were the
//! volume, so what its ring and its dirty map hold arrives by the ways that are there for it. While a fence is *draining*, the
//! agent takes no writes either, and what it has still goes to the volume.
//!
//! | what | how it ends, whenever it is killed |
//! |---|---|
//! | put up | one edit of the manifest; what a session had received before counts, and nothing behind it |
//! | close (a draining one) | the same |
//! | take down | one edit, which also ends the tail: it takes no more |
//! | the tail | one edit, when the agent comes |
//!
//! *No session slips through.* A session looks at the fence when it has the turn of its volume ([`Volume::admits`]). Putting one up changes the
//! manifest, then what sessions look at, and then ends the session that has the turn: one that took it before is ended, one that takes
//! it later sees the fence. Behind that the volume is sealed, and refuses records whoever brings them ([`Volume::commit`]). A tail begins
//! no sooner: until then the session that is being ended may still bring something that the tail would lack.
//!
//! *One change at a time.* Whoever looks at the standing of a volume and changes it by what it finds holds the list of volumes.

use crate::appliance::{Appliance, ApplianceError};
use crate::ingest::SessionError;
use crate::ingest::volume::Volume;
use crate::registry::Registry;
use crate::store::StoreError;
use afterimage_format::fence::Fence;
use afterimage_format::manifest::{FenceMeta, ForkKind, ForkMeta, VolumeMeta};
use afterimage_format::record::MAX_NAME;
use afterimage_format::wire::{EPOCH_VERSION, Hello};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use thiserror::Error;

/// Why a fence is not put up or taken down.
#[derive(Debug, Error)]
pub enum FenceError {
    /// The manifest would not be read again with it.
    #[error("the owner of a fence is named in 1 to {MAX_NAME} bytes, and this one in {0}")]
    Owner(usize),
    /// It has one.
    #[error("it is fenced by {0}: commit or roll that back first")]
    Other(String),
    /// Nothing was ever received.
    #[error("it has no history that anything could run on")]
    Empty,
    /// No agent writes to it.
    #[error("it is a branch, which no agent writes to")]
    Branch,
    /// Its agent takes writes, or brings what it has.
    #[error("it is not fenced: its disk may be in use")]
    Open,
    /// Nobody is there.
    #[error("its agent is not connected: start it")]
    Away,
    /// The agent is of an older version.
    #[error(
        "its agent is too old for a failback over its connection: update it, or make its disk reachable here and say --to PATH"
    )]
    Old,
    /// It is borrowed.
    #[error("somebody else is writing to its agent's disk")]
    Lent,
}

/// What became of a fence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fenced {
    /// Epoch of the volume.
    pub epoch: u64,
    /// The last write that the volume received.
    pub seq: u64,
}

/// What sessions of a volume look at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Epoch of the volume; of a tail, that of its fence.
    pub epoch: u64,
    /// The fence, if there is one.
    pub fence: Option<FenceMeta>,
}

impl Standing {
    /// As the manifest says.
    #[must_use]
    pub fn of(meta: &VolumeMeta) -> Standing {
        Standing { epoch: meta.epoch, fence: meta.fence.clone() }
    }

    /// Whether the agent may take writes.
    #[must_use]
    pub fn state(&self) -> Fence {
        self.fence.as_ref().map_or(Fence::Open, |f| f.state)
    }
}

fn lock(standing: &Mutex<Standing>) -> MutexGuard<'_, Standing> {
    standing.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refused(name: &str, why: FenceError) -> ApplianceError {
    ApplianceError::Fence(name.to_owned(), why)
}

/// The name of a tail, behind that of its volume.
fn tail_name(epoch: u64) -> String {
    format!("tail-{epoch}")
}

impl Volume {
    /// Its epoch, and its fence.
    #[must_use]
    pub fn standing(&self) -> Standing {
        lock(&self.standing).clone()
    }

    /// Changes that, once the manifest says so.
    pub(crate) fn set_standing(&self, standing: Standing) {
        *lock(&self.standing) = standing;
    }

    /// Whether a session that has the turn may go on: to be asked behind taking it, as the fence may have gone up meanwhile.
    ///
    /// # Errors
    /// [`SessionError::Superseded`]: the agent comes again, and is told.
    pub fn admits(&self) -> Result<(), SessionError> {
        if lock(&self.standing).state() != Fence::Closed {
            return Ok(());
        }
        Err(SessionError::Superseded(format!("volume {} was fenced, or its fence taken down, meanwhile", self.name)))
    }

    /// From now on no record is taken.
    pub(crate) fn seal(&self) {
        self.sealed.store(true, Ordering::Release);
    }

    pub(crate) fn unseal(&self) {
        self.sealed.store(false, Ordering::Release);
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }
}

impl Registry {
    /// Where the records of this agent go: into the volume, or into its tail.
    pub(crate) fn behind_fence(
        &self,
        volumes: &mut Vec<Arc<Volume>>,
        volume: &Arc<Volume>,
        hello: &Hello,
    ) -> Result<Arc<Volume>, SessionError> {
        let mut standing = volume.standing();
        if hello.epoch > standing.epoch {
            // The vault is an older copy, or was put back to one: epochs only grow.
            standing = self.raise_epoch(volume, hello.epoch)?;
        }
        let Some(fence) = &standing.fence else { return Ok(Arc::clone(volume)) };
        if hello.newest < EPOCH_VERSION {
            return Err(SessionError::Fenced(format!(
                "volume {} runs elsewhere (fenced by {}), and this agent is too old to refuse writes: stop what runs on its disk, \
                 and update the agent, which then brings what the volume has not",
                volume.name, fence.owner
            )));
        }
        if fence.state != Fence::Closed {
            return Ok(Arc::clone(volume));
        }
        if !volume.is_sealed() {
            return Err(SessionError::Superseded(format!(
                "volume {} is being fenced, and what an earlier session brought is still on its way",
                volume.name
            )));
        }
        let name = tail_name(standing.epoch);
        let full = format!("{}/{name}", volume.name);
        if let Some(tail) = volumes.iter().find(|v| v.name == full) {
            return Ok(Arc::clone(tail));
        }
        let of = (volume, volume.progress().seq);
        let tail = self.create_in(volumes, of, &name, (ForkKind::Tail, fence.since));
        let tail = tail.map_err(|e| SessionError::Failed(e.to_string()))?;
        tracing::warn!(
            "volume {}: its old primary has returned; what it had beyond @{} is kept as {full}",
            volume.name,
            of.1
        );
        Ok(tail)
    }

    /// What an agent that brings nothing now is told: where its records would go, and the fence that is up. `None` if there is none, if it
    /// is too old, or if the vault knows less than it does.
    pub(crate) fn told_of_fence(&self, volume: Arc<Volume>, hello: &Hello) -> Option<(Arc<Volume>, Standing)> {
        let standing = volume.standing();
        let fence = standing.fence.as_ref()?;
        if hello.newest < EPOCH_VERSION || hello.epoch > standing.epoch {
            return None;
        }
        // A tail that has not come begins where the volume stands.
        let tail = (fence.state == Fence::Closed).then(|| self.tail_of(&volume)).flatten();
        Some((tail.unwrap_or(volume), standing))
    }

    /// With the list of volumes held.
    fn raise_epoch(&self, volume: &Volume, to: u64) -> Result<Standing, SessionError> {
        let (id, mut standing) = (volume.id, volume.standing());
        standing.epoch = standing.epoch.max(to);
        let epoch = standing.epoch;
        let edited =
            self.shared.vault.edit(|m| m.volumes.iter_mut().filter(|v| v.id == id).for_each(|v| v.epoch = epoch));
        edited.map_err(StoreError::from)?;
        volume.set_standing(standing.clone());
        Ok(standing)
    }

    /// The tail that takes the records of a fenced volume's agent, if it has come.
    pub(crate) fn tail_of(&self, volume: &Volume) -> Option<Arc<Volume>> {
        let standing = volume.standing();
        standing.fence.as_ref()?;
        let name = format!("{}/{}", volume.name, tail_name(standing.epoch));
        self.lock().iter().find(|v| v.name == name).cloned()
    }
}

impl Appliance {
    /// Puts up the fence of a volume for `owner`, or closes a draining one. Done again it changes nothing.
    ///
    /// # Errors
    /// [`ApplianceError::Fence`] if there is another's, or nothing to fence, or if the owner's name is not possible.
    pub fn fence(&self, name: &str, owner: &str, state: Fence) -> Result<Fenced, ApplianceError> {
        let volume = self.volume(name)?;
        if volume.fork().is_some_and(|f| f.leans()) {
            return Err(refused(name, FenceError::Branch));
        }
        if !(1..=MAX_NAME).contains(&owner.len()) {
            return Err(refused(name, FenceError::Owner(owner.len())));
        }
        let volumes = self.registry.lock();
        let mut standing = volume.standing();
        if let Some(other) = standing.fence.as_ref().filter(|f| f.owner != owner) {
            return Err(refused(name, FenceError::Other(other.owner.clone())));
        }
        if volume.progress().seq == 0 {
            return Err(refused(name, FenceError::Empty));
        }
        if standing.state() != Fence::Closed && standing.state() != state {
            standing.epoch += u64::from(standing.fence.is_none());
            let since = standing.fence.as_ref().map_or_else(|| self.clock.wall(), |f| f.since);
            standing.fence = Some(FenceMeta { state, owner: owner.to_owned(), since });
            self.stand(&volume, &standing)?;
            tracing::warn!("volume {name}: fenced by {owner}, epoch {}", standing.epoch);
        }
        drop(volumes);
        // Also when it was up before: who put it up may have died before this.
        if state == Fence::Closed {
            volume.dismiss();
            // Unless it was taken down meanwhile.
            let _volumes = self.registry.lock();
            if volume.standing().fence == standing.fence {
                volume.seal();
            }
        } else if !volume.is_sealed() {
            volume.dismiss();
        }
        Ok(Fenced { epoch: standing.epoch, seq: volume.progress().seq })
    }

    /// Takes down the fence of `owner`: the agent may take writes again. Its tail stays, and takes no more. Done again it changes nothing.
    ///
    /// # Errors
    /// [`ApplianceError::Fence`] if there is another's.
    pub fn lift_fence(&self, name: &str, owner: &str) -> Result<u64, ApplianceError> {
        let volume = self.volume(name)?;
        // Also for an agent that comes: it has its tail by now, or finds the fence gone.
        let volumes = self.registry.lock();
        let mut standing = volume.standing();
        let Some(fence) = standing.fence.take() else { return Ok(standing.epoch) };
        if fence.owner != owner {
            return Err(refused(name, FenceError::Other(fence.owner.clone())));
        }
        let tail = format!("{name}/{}", tail_name(standing.epoch));
        standing.epoch += 1;
        let was = volume.is_sealed();
        volume.unseal();
        if let Err(e) = self.stand(&volume, &standing) {
            if was {
                volume.seal();
            }
            return Err(e);
        }
        let tail = volumes.iter().find(|v| v.name == tail).cloned();
        drop(volumes);
        if let Some(tail) = &tail {
            let sealed = FenceMeta { state: Fence::Closed, ..fence };
            self.stand(tail, &Standing { epoch: tail.standing().epoch, fence: Some(sealed) })?;
            tail.dismiss();
            tail.seal();
        }
        // A draining fence has left the session with the volume, whose agent has to be told.
        volume.dismiss();
        tracing::warn!("volume {name}: the fence of {owner} is taken down, epoch {}", standing.epoch);
        Ok(standing.epoch)
    }

    /// The fence of a volume, and its tail if its agent has come.
    ///
    /// # Errors
    /// [`ApplianceError::NoVolume`].
    pub fn standing(&self, name: &str) -> Result<(Standing, Option<String>), ApplianceError> {
        let volume = self.volume(name)?;
        Ok((volume.standing(), self.registry.tail_of(&volume).map(|t| t.name.clone())))
    }

    /// First the manifest, then what sessions look at. With the list of volumes held, unless nobody else changes this one.
    fn stand(&self, volume: &Volume, standing: &Standing) -> Result<(), ApplianceError> {
        let id = volume.id;
        let edited = self.shared.vault.edit(|m| {
            for v in m.volumes.iter_mut().filter(|v| v.id == id) {
                (v.epoch, v.fence) = (standing.epoch, standing.fence.clone());
            }
        });
        edited.map_err(StoreError::from)?;
        volume.set_standing(standing.clone());
        Ok(())
    }
}

/// Whether a volume is a tail.
pub(crate) fn is_tail(fork: Option<ForkMeta>) -> bool {
    fork.is_some_and(|f| f.kind == ForkKind::Tail)
}

#[cfg(test)]
#[path = "fence_tests.rs"]
mod tests;
