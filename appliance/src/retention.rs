//! What is kept of a volume, and what somebody wants to be kept: seen, tried out, and changed, while everything runs.

use crate::appliance::{Appliance, ApplianceError};
use crate::collect::{Now, refs, window_at};
use crate::history::preview::references;
use crate::history::retention::plan;
use crate::history::thin::{Policy, Why, thin};
use crate::ingest::SessionError;
use crate::ingest::volume::Volume;
use crate::store::StoreError;
use afterimage_format::BLOCK_SIZE;
use afterimage_format::manifest::{PointMeta, VolumeMeta};
use std::collections::{HashMap, HashSet};

/// What a policy keeps and lets go.
#[derive(Debug, Clone)]
pub struct Kept {
    /// The policy.
    pub policy: Policy,
    /// Somebody said so for this volume; else it is what the appliance keeps of all.
    pub own: bool,
    /// The window begins here,
    pub first_seq: u64,
    /// at this time, in nanoseconds since 1970; 0 if it is longer than the history.
    pub first_time: u64,
    /// Every point, oldest first, and why it stays; nothing for those that go.
    pub points: Vec<(PointMeta, Vec<Why>)>,
}

/// What would be given back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Freed {
    /// Versions of blocks.
    pub blocks: u64,
    /// Their bytes before any reduction.
    pub bytes: u64,
    /// What they take in the store, as far as that can be divided: blocks of a frame share its bytes.
    pub stored_bytes: u64,
}

/// A change of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointChange {
    /// It stays, whatever the policy says.
    Pin,
    /// The policy decides again.
    Unpin,
    /// It goes.
    Remove,
}

impl Appliance {
    /// The policy of a volume, and whether it is its own.
    ///
    /// # Errors
    /// [`ApplianceError::NoVolume`].
    pub fn retention(&self, volume: &str) -> Result<(Policy, bool), ApplianceError> {
        let volume = self.volume(volume)?;
        let own = self.shared.vault.read(|m| m.volume(&volume.id).and_then(|v| v.retention));
        Ok((own.unwrap_or(self.registry.retention), own.is_some()))
    }

    /// What is kept of volumes of which nobody has said more.
    #[must_use]
    pub fn default_retention(&self) -> Policy {
        self.registry.retention
    }

    /// What `policy`, or the one that the volume has, keeps now.
    ///
    /// # Errors
    /// [`ApplianceError::NoVolume`], or [`ApplianceError::History`] if a layer cannot be read.
    pub fn kept(&self, volume: &str, policy: Option<Policy>) -> Result<Kept, ApplianceError> {
        let (current, own) = self.retention(volume)?;
        let volume = self.volume(volume)?;
        let policy = policy.unwrap_or(current);
        let (wanted, window) = self.window_of(&volume, &policy)?;
        let points = volume.progress().points;
        let why = thin(&policy, wanted, &crate::collect::candidates(&points));
        let time = volume.history.record_at_seq(window).map_err(|e| of(&volume, e))?.map_or(0, |r| r.1);
        let points = points.into_iter().zip(why.into_iter().map(|w| w.into_iter().collect())).collect();
        Ok(Kept { policy, own, first_seq: window, first_time: time, points })
    }

    /// What `policy` would give back of what is there now. Reads all layers of the volume once.
    ///
    /// # Errors
    /// As [`Appliance::kept`].
    pub fn freed(&self, volume: &str, policy: &Policy) -> Result<Freed, ApplianceError> {
        let volume = self.volume(volume)?;
        let (wanted, window) = self.window_of(&volume, policy)?;
        let progress = volume.progress();
        let keep =
            plan(window, window, progress.seq, &refs(policy, wanted, &progress.points), &self.pins(&volume)).keep;
        let layers = volume.history.layers();
        let after = references(&layers, &keep, &self.stop).map_err(|e| of(&volume, e))?;
        let mut before: HashMap<u32, u64> = HashMap::new();
        for (segment, blocks) in layers.iter().flat_map(|l| l.segments()) {
            *before.entry(*segment).or_default() += blocks;
        }
        let mut all: HashMap<u32, u64> = HashMap::new();
        let mut seen = HashSet::new();
        self.registry.all().iter().for_each(|v| v.history.count_segments(&mut all, &mut seen));
        let metas = self.shared.vault.read(|m| m.segments.clone());
        let lengths: HashMap<u32, u64> = metas.iter().map(|m| (m.number, self.segment_bytes(m))).collect();
        let mut freed = Freed::default();
        for (segment, blocks) in before {
            let gone = blocks.saturating_sub(after.get(&segment).copied().unwrap_or(0));
            let (length, shared) =
                (lengths.get(&segment).copied().unwrap_or(0), all.get(&segment).copied().unwrap_or(1));
            freed.blocks += gone;
            let share = u128::from(length) * u128::from(gone) / u128::from(shared.max(1));
            freed.stored_bytes += u64::try_from(share).unwrap_or(u64::MAX);
        }
        freed.bytes = freed.blocks * BLOCK_SIZE as u64;
        Ok(freed)
    }

    /// Seqs that stay readable besides points: where branches begin.
    fn pins(&self, volume: &Volume) -> Vec<u64> {
        self.shared.vault.read(|m| m.fork_seqs(&volume.id).collect())
    }

    /// Where the window of a volume is wanted to begin, and where it would: it never grows backwards.
    fn window_of(&self, volume: &Volume, policy: &Policy) -> Result<(u64, u64), ApplianceError> {
        let first = self.shared.vault.read(|m| m.volume(&volume.id).map_or(0, |v| v.first_seq));
        if policy.hold {
            return Ok((0, first));
        }
        let now = self.registry.collector.lock().now(volume, Now::Clock(&*self.clock));
        let window = window_at(volume, now.saturating_sub(policy.window)).map_err(|e| of(volume, e))?;
        let newest = volume.progress().seq;
        Ok((window.min(newest), window.max(first).min(newest)))
    }

    /// Changes what is kept of a volume; `None` for what the appliance keeps of all. The next round of collection goes by it.
    ///
    /// # Errors
    /// [`ApplianceError::NoVolume`], or [`ApplianceError::Session`] if the manifest cannot be written.
    pub fn set_retention(&self, volume: &str, policy: Option<Policy>) -> Result<(), ApplianceError> {
        self.change(volume, |v| v.retention = policy)?;
        tracing::info!("volume {volume}: what is kept is changed: {policy:?}");
        Ok(())
    }

    /// Changes the newest point of a name. A removed one goes from the list at once, and its room with the next rounds of collection,
    /// if it is before the window.
    ///
    /// # Errors
    /// [`ApplianceError::NoVolume`] or [`ApplianceError::NoPoint`]; [`ApplianceError::Held`] while the volume is on hold.
    pub fn change_point(&self, volume: &str, point: &str, change: PointChange) -> Result<PointMeta, ApplianceError> {
        let v = self.volume(volume)?;
        // A round that is under way has its own idea of what stays.
        let _turn = self.registry.collector.lock();
        if change == PointChange::Remove && self.retention(volume)?.0.hold {
            return Err(ApplianceError::Held(volume.to_owned()));
        }
        let find = |points: &[PointMeta]| points.iter().rev().find(|p| p.name == point).cloned();
        let missing = || ApplianceError::NoPoint(volume.to_owned(), point.to_owned());
        let mut found = find(&v.progress().points).ok_or_else(missing)?;
        // From here on its record is in the layers, and no replay finds it again.
        v.flush(&self.shared)?;
        let _telling = v.telling.lock();
        found.pinned = change == PointChange::Pin;
        let apply = |points: &mut Vec<PointMeta>| match change {
            PointChange::Remove => points.retain(|p| p.seq != found.seq),
            _ => points.iter_mut().filter(|p| p.seq == found.seq).for_each(|p| p.pinned = found.pinned),
        };
        // Taken from what can be chosen before its room is given back, and pinned where retention looks before anybody is told.
        self.change(volume, |v| apply(&mut v.points))?;
        v.edit_progress(|p| apply(&mut p.points));
        tracing::info!("volume {volume}: point '{point}' at @{}: {change:?}", found.seq);
        Ok(found)
    }

    /// Keeps what `keep` names readable in the volume with this id, as pinned points, and lets go of the seqs in `drop` that were kept so. For
    /// groups, whose points lie where no volume has one of its own. Returns the seqs that cannot be kept any more.
    ///
    /// # Errors
    /// [`ApplianceError::NoVolume`], or [`ApplianceError::Session`] if the manifest cannot be written.
    pub fn keep_seqs(&self, id: &[u8; 16], keep: Vec<PointMeta>, drop: &[u64]) -> Result<Vec<u64>, ApplianceError> {
        let all = self.registry.all();
        let none = || ApplianceError::NoVolume(uuid::Uuid::from_bytes(*id).to_string(), String::new());
        let v = all.iter().find(|v| v.id == *id).ok_or_else(none)?;
        // A round that is under way has its own idea of what stays.
        let _turn = self.registry.collector.lock();
        let (mut new, mut refused) = (Vec::new(), Vec::new());
        for point in keep {
            let there = v.progress().points.iter().any(|p| p.seq == point.seq && p.pinned);
            match self.check_seq(&v.name, point.seq) {
                Ok(()) if there => {}
                Ok(()) => new.push(PointMeta { auto: true, pinned: true, ..point }),
                Err(ApplianceError::When(..)) => refused.push(point.seq),
                Err(e) => return Err(e),
            }
        }
        let goes = |p: &PointMeta| p.auto && p.pinned && !p.note.is_empty() && drop.contains(&p.seq);
        let unchanged = new.is_empty() && !v.progress().points.iter().any(goes);
        if unchanged {
            return Ok(refused);
        }
        let apply = |points: &mut Vec<PointMeta>| {
            points.retain(|p| !goes(p) && new.iter().all(|n| n.seq != p.seq));
            points.extend(new.iter().cloned());
            points.sort_by_key(|p| p.seq);
        };
        let _telling = v.telling.lock();
        self.change(&v.name, |meta| apply(&mut meta.points))?;
        v.edit_progress(|p| apply(&mut p.points));
        Ok(refused)
    }

    fn change(&self, volume: &str, change: impl FnOnce(&mut VolumeMeta)) -> Result<(), ApplianceError> {
        let id = self.volume(volume)?.id;
        let done = self.shared.vault.edit(|m| m.volumes.iter_mut().find(|v| v.id == id).map(change));
        done.map(drop).map_err(|e| SessionError::from(StoreError::from(e)).into())
    }
}

fn of(volume: &Volume, e: crate::history::HistoryError) -> ApplianceError {
    ApplianceError::History(volume.name.clone(), Box::new(e))
}

#[cfg(test)]
#[path = "retention_tests.rs"]
mod tests;
