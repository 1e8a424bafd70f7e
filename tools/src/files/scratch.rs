//! A folder for the time of a command: `DATA/files/ID`. Its owner holds a lock; what a killed command left is removed by the next.

use crate::problem::Problem;
use afterimage_base::crashsafe;
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::path::{Path, PathBuf};

/// The folder, until it is dropped.
#[derive(Debug)]
pub struct Scratch {
    folder: tempfile::TempDir,
    _lock: Flock<File>,
}

fn lock(folder: &Path) -> Option<Flock<File>> {
    let file = File::options().create(true).truncate(false).write(true).open(folder.join("lock")).ok()?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()
}

impl Scratch {
    /// A new one, after removing those without an owner.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new(data: &Path) -> Result<Scratch, Problem> {
        let all = data.join("files");
        crashsafe::create_folders(&all).map_err(|e| Problem::file(&all, &e))?;
        // One that is being made or removed has the lock of the folder of folders: nobody meets one without an owner's lock.
        let whole = File::open(&all).map_err(|e| Problem::file(&all, &e))?;
        let whole = Flock::lock(whole, FlockArg::LockExclusive).map_err(|(_, e)| Problem::from(e))?;
        for entry in std::fs::read_dir(&all)?.flatten() {
            if let Some(_ours) = lock(&entry.path()) {
                std::fs::remove_dir_all(entry.path()).map_err(|e| Problem::file(&entry.path(), &e))?;
            }
        }
        // Short: sockets lie in it.
        let folder = tempfile::Builder::new().prefix("").rand_bytes(6).tempdir_in(&all)?;
        let lock = lock(folder.path()).ok_or_else(|| Problem::failed("a new folder is locked by somebody else"))?;
        drop(whole);
        Ok(Scratch { folder, _lock: lock })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A file in it.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_owner_any_more_is_removed() {
        let data = tempfile::tempdir().unwrap();
        let first = Scratch::new(data.path()).unwrap();
        let left = data.path().join("files/left");
        std::fs::create_dir(&left).unwrap();
        std::fs::write(left.join("initrd"), "x").unwrap();
        let second = Scratch::new(data.path()).unwrap();
        assert!(first.path().exists() && second.path().exists() && !left.exists());
        drop((first, second));
        assert_eq!(std::fs::read_dir(data.path().join("files")).unwrap().count(), 0);
    }
}
