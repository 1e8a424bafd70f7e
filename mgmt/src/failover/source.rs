//! Where the disks of a machine come from: forks of volumes, served over NBD; and the fences of those volumes.
//!
//! This crate knows no history: who has one implements these.

use crate::failover::job::Fork;
use crate::target::qemu::DiskPlace;
use crate::units::Time;
use std::path::Path;

/// Who forks volumes.
pub trait DiskSource: Send {
    /// Makes the fork and serves it; a socket, if that is where, is `socket`, relative to the working directory. The fork has the
    /// name that the job gave it, so that [`DiskSource::drop_fork`] finds it.
    ///
    /// # Errors
    /// Why that failed.
    fn fork(&self, fork: &Fork, socket: &Path) -> Result<Box<dyn Served>, String>;

    /// Whether there is somebody to ask.
    fn is_there(&self) -> bool;

    /// Puts up the fence of a volume, draining or closed. Done again it changes nothing.
    ///
    /// # Errors
    /// Why that failed.
    fn fence(&self, volume: &str, owner: &str, drain: bool) -> Result<(), String>;

    /// Takes down the fence of this owner, if it is up.
    ///
    /// # Errors
    /// Why it remains.
    fn lift(&self, volume: &str, owner: &str) -> Result<(), String>;

    /// The newest moment of a volume that can be chosen.
    ///
    /// # Errors
    /// Why there is none.
    fn latest(&self, volume: &str) -> Result<(u64, Option<Time>), String>;

    /// Whether the agent has brought all that it had when the fence went up: the last that the volume has is the point of that name.
    ///
    /// # Errors
    /// Why that cannot be told.
    fn is_drained(&self, volume: &str) -> Result<bool, String>;

    /// Sees to it that there is no branch of this name yet.
    ///
    /// # Errors
    /// If there is one, or it cannot be told.
    fn is_free(&self, fork: &Fork) -> Result<(), String>;

    /// Makes the branch, if it is not there, and serves it like a fork. It stays when it is served no more. To be called once the
    /// name was free.
    ///
    /// # Errors
    /// Why that failed.
    fn branch(&self, fork: &Fork, socket: &Path) -> Result<Box<dyn Served>, String>;

    /// Drops a branch, if it is there and begins where this one does: with all that was written on it.
    ///
    /// # Errors
    /// Why it remains.
    fn drop_branch(&self, fork: &Fork) -> Result<(), String>;

    /// Drops a fork, if it is there: with all that was written on it.
    ///
    /// # Errors
    /// Why it remains.
    fn drop_fork(&self, fork: &Fork) -> Result<(), String>;
}

/// A fork that is served until this is dropped.
pub trait Served: Send {
    /// Where.
    fn place(&self) -> DiskPlace;

    /// Reads the first bytes of it, as a guest would.
    ///
    /// # Errors
    /// Why that failed.
    fn read_first(&self) -> Result<(), String>;

    /// Why it is served no more, if so.
    fn gone(&self) -> Option<String>;
}
