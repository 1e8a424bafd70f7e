//! Scratch folders: in memory where the system has such a place, since targets write files thousands of times a second.

use std::path::Path;
use tempfile::TempDir;

/// A folder of its own, gone when dropped.
#[must_use]
pub fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = tempfile::Builder::new().prefix("afterimage-fuzz-").tempdir_in(memory);
    made.or_else(|_| tempfile::tempdir()).unwrap()
}
