//! Where a guest's files are while it lives, and the removal of those whose test was killed.

use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::path::Path;
use std::sync::Once;
use std::time::Duration;

const PREFIX: &str = "afterimage-guest-";

/// A guest's own folder, with a lock that its owner holds.
#[derive(Debug)]
pub(super) struct Folder {
    path: tempfile::TempDir,
    _lock: Flock<File>,
}

impl Folder {
    /// A new one; the first of this process removes those that nobody holds.
    pub(super) fn new() -> Folder {
        static SWEPT: Once = Once::new();
        SWEPT.call_once(sweep);
        let path = tempfile::Builder::new().prefix(PREFIX).tempdir().expect("make a folder");
        let lock = File::create(path.path().join("lock")).expect("make a lock file");
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).expect("lock a folder of one's own");
        Folder { path, _lock: lock }
    }

    pub(super) fn path(&self) -> &Path {
        self.path.path()
    }
}

/// Removes the folders of guests whose test was killed: nobody holds their locks. A new one may not be locked yet.
fn sweep() {
    let is_old = |path: &Path| {
        let age = path.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
        age.is_some_and(|a| a > Duration::from_secs(60))
    };
    let found = std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten().map(|e| e.path());
    for folder in found.filter(|p| p.to_string_lossy().contains(PREFIX) && is_old(p)) {
        let Ok(file) = File::open(folder.join("lock")) else { continue };
        if let Ok(_lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            let _ = std::fs::remove_dir_all(&folder);
        }
    }
}
