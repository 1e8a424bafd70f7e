//! Disks that mgmt asks an agent to protect, while it runs and from then on.
//!
//! They are kept in `DATA/agent/disks.json`, beside those of the configuration file, which counts more: a disk that is named there,
//! too, is opened as the file says. Only an agent whose owner has allowed it takes any (`take_disks`): who has mgmt could otherwise
//! have every disk of the host copied.

use super::{Local, Served};
use crate::up::parse_disk;
use afterimage_agent::{Agent, CacheMode, FencePolicy, ForeignWrite, VolumeConfig};
use afterimage_mgmt::members::DiskWish;
use afterimage_mgmt::protocol::{Code, Failure};
use afterimage_nbd::{Export, ExportTable};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The file, in the folder `agent`.
const TAKEN: &str = "disks.json";

/// A disk that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// The volume's name.
    pub name: String,
    /// The disk.
    pub path: PathBuf,
}

/// What is needed to take disks.
pub struct Taker {
    /// Who opens them.
    pub agent: Arc<Agent>,
    /// Where they are served.
    pub table: Arc<ExportTable>,
    /// The folder of the file.
    pub folder: PathBuf,
    /// Whether it is allowed.
    pub allowed: bool,
    /// Size of a new ring in bytes.
    pub ring: u64,
    /// How disks are used.
    pub cache: CacheMode,
    /// What follows when somebody else has written to one.
    pub foreign: ForeignWrite,
    /// What a fenced disk does.
    pub fence: FencePolicy,
    /// Bytes of a disk that a sync may deal with in a second; 0 for automatic.
    pub sync_rate: u64,
    /// One at a time.
    pub turn: Mutex<()>,
}

/// What was taken before.
///
/// # Errors
/// If the file is there and cannot be read: with what to do.
pub fn load(folder: &Path) -> Result<Vec<Taken>, String> {
    let path = folder.join(TAKEN);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(format!("{}: {e}", path.display())),
    };
    serde_json::from_slice(&text)
        .map_err(|e| format!("{} is damaged ({e}): name its disks in agent.toml, and remove it", path.display()))
}

fn bad(text: impl Into<String>) -> Failure {
    Failure::new(Code::BadRequest, text)
}

fn not_allowed() -> Failure {
    bad("this agent takes no disks from mgmt: add them to its agent.toml, or allow it there with take_disks = true")
}

fn named(wish: &DiskWish) -> Result<Taken, Failure> {
    let disk = match &wish.name {
        Some(name) => parse_disk(&format!("{name}={}", wish.path)),
        None => parse_disk(&wish.path),
    };
    let disk = disk.map_err(|e| bad(e.text))?;
    if !disk.path.is_absolute() {
        return Err(bad(format!("'{}' is no full path", wish.path)));
    }
    Ok(Taken { name: disk.name, path: disk.path })
}

impl Local {
    /// Says how disks are taken.
    pub fn take_with(&self, taker: Taker) {
        // There is one agent, which says it once.
        drop(self.taker.set(taker));
    }

    pub(crate) fn taker(&self) -> Option<&Taker> {
        self.taker.get()
    }

    /// Why this agent takes no disks, if it does not.
    #[must_use]
    pub fn takes_no_disks(&self) -> Option<String> {
        (!self.taker().is_some_and(|t| t.allowed)).then(|| not_allowed().message)
    }

    /// The volume that has this disk already.
    #[must_use]
    pub fn volume_of(&self, path: &Path) -> Option<String> {
        let same = |served: &Served| match served {
            Served::Protected(v) => same_file(&v.status().path, path),
            Served::Plain { path: p, .. } => same_file(p, path),
        };
        self.served().iter().find(|s| same(s)).map(|s| s.name().to_owned())
    }

    /// Protects these disks, now and from now on. Those that are protected already stay as they are.
    ///
    /// # Errors
    /// What is in the way, with the disk. Those before it are protected.
    pub fn take_disks(&self, wishes: &[DiskWish]) -> Result<Vec<String>, Failure> {
        let taker = self.taker().filter(|t| t.allowed).ok_or_else(not_allowed)?;
        let _turn = taker.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let disks = wishes.iter().map(named).collect::<Result<Vec<_>, _>>()?;
        let mut added = Vec::new();
        for disk in disks {
            if self.volume_of(&disk.path).is_some_and(|name| name == disk.name) {
                continue;
            }
            if let Some(name) = self.volume_of(&disk.path) {
                let text = format!("{} is volume {name} already", disk.path.display());
                return Err(Failure::new(Code::Conflict, text));
            }
            self.take(taker, &disk)?;
            added.push(disk.name);
        }
        Ok(added)
    }

    fn take(&self, taker: &Taker, disk: &Taken) -> Result<(), Failure> {
        let failed = |e: &dyn std::fmt::Display| Failure::new(Code::Failed, e.to_string());
        let mut all = load(&taker.folder).map_err(|e| failed(&e))?;
        all.retain(|t| t.name != disk.name);
        all.push(disk.clone());
        let text = serde_json::to_vec_pretty(&all).map_err(|e| failed(&e))?;
        let volume = taker
            .agent
            .add_volume(VolumeConfig {
                name: disk.name.clone(),
                path: disk.path.clone(),
                ring_bytes: taker.ring,
                cache: taker.cache,
                foreign: taker.foreign,
                resize: false,
                adopt: None,
            })
            .map_err(|e| failed(&e))?;
        volume.set_sync_rate(taker.sync_rate);
        volume.set_fence_policy(taker.fence);
        // Kept before it is served: a disk that a guest writes to must not come back unprotected. What cannot be kept does not stay
        // open: nobody would see it, and its name would be taken when this is tried again.
        let path = taker.folder.join(TAKEN);
        if let Err(e) = afterimage_base::crashsafe::replace(&path, &text) {
            drop(volume);
            taker.agent.remove_volume(&disk.name);
            return Err(failed(&format!(
                "disk {} is not protected, for {} cannot be written ({e}): see to that, and ask again",
                disk.path.display(),
                path.display()
            )));
        }
        let served = Served::Protected(volume);
        taker.table.insert(Export { name: disk.name.clone(), description: String::new(), device: served.device() });
        self.served.write().unwrap_or_else(PoisonError::into_inner).push(served);
        tracing::info!("volume {}: {} is protected from now on, as mgmt asked", disk.name, disk.path.display());
        Ok(())
    }
}

fn same_file(a: &Path, b: &Path) -> bool {
    a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}
