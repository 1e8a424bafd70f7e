//! The usual setting of a test: one empty disk, protected, in a folder of its own.

use crate::daemon::{Daemon, daemon};
use crate::data;
use std::path::{Path, PathBuf};

/// The name of the only volume.
pub const DISK: &str = "disk";

/// A protected disk. What is dropped first is named first: the daemon, then its folder.
#[derive(Debug)]
pub struct Lab {
    /// The daemon that protects it.
    pub daemon: Daemon,
    /// The real disk: a raw image.
    pub image: PathBuf,
    dir: tempfile::TempDir,
}

/// With `AFTERIMAGE_KEEP` set, the folder of a failed test stays, to be looked at.
impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("AFTERIMAGE_KEEP").is_some() {
            self.dir.disable_cleanup(true);
            eprintln!("kept: {}", self.dir.path().display());
        }
    }
}

impl Lab {
    /// Protects an empty disk of this size and waits until it is live.
    ///
    /// # Panics
    /// If it never is.
    #[must_use]
    #[track_caller]
    pub fn new(size: u64) -> Self {
        Self::with(size, &[])
    }

    /// The same with options of `up`.
    ///
    /// # Panics
    /// If it never becomes live.
    #[must_use]
    #[track_caller]
    pub fn with(size: u64, options: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("afterimage-lab-").tempdir().expect("make a folder");
        let image = dir.path().join("disk.raw");
        data::sparse(&image, size);
        let daemon = daemon(dir.path()).volume(DISK, &image).options(options.iter().copied()).start();
        daemon.wait_live(DISK);
        Self { daemon, image, dir }
    }

    /// A path in the test's own folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where the disk is served.
    ///
    /// # Panics
    /// If the daemon does not say.
    #[must_use]
    #[track_caller]
    pub fn uri(&self) -> String {
        self.daemon.uri(DISK)
    }

    /// Once all is durable at the appliance, the newest image restored from there must be what the disk holds.
    ///
    /// # Panics
    /// If it is not.
    #[track_caller]
    pub fn assert_history_is_the_disk(&self) {
        let seq = self.daemon.wait_durable(DISK);
        let restored = self.path("restored-latest");
        self.daemon.restore(DISK, &format!("@{seq}"), &restored);
        data::assert_same(&self.image, &restored);
        std::fs::remove_file(&restored).expect("remove a restored image");
    }
}
