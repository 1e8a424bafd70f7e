//! Where the disks of a machine come from: forks of volumes, served over NBD.
//!
//! This crate knows no history: who has one implements these.

use crate::failover::job::Fork;
use crate::target::qemu::DiskPlace;
use std::path::Path;

/// Who forks volumes.
pub trait DiskSource: Send {
    /// Makes the fork and serves it; a socket, if that is where, is `socket`, relative to the working directory. The fork has the
    /// name that the job gave it, so that [`DiskSource::drop_fork`] finds it.
    ///
    /// # Errors
    /// Why that failed.
    fn fork(&self, fork: &Fork, socket: &Path) -> Result<Box<dyn Served>, String>;

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
