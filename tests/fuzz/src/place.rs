//! Scratch folders: in memory where the system has such a place, since targets write files thousands of times a second.
//!
//! What a target keeps for its whole process is not dropped at the end: whoever starts the process gives it a folder in
//! `AFTERIMAGE_FUZZ_SCRATCH`, and removes that one.

use std::path::PathBuf;
use tempfile::TempDir;

/// The folder for scratch folders.
#[must_use]
pub fn base() -> PathBuf {
    std::env::var_os("AFTERIMAGE_FUZZ_SCRATCH").map_or_else(|| "/dev/shm".into(), PathBuf::from)
}

/// A folder of its own, gone when dropped.
#[must_use]
pub fn folder() -> TempDir {
    let made = tempfile::Builder::new().prefix("afterimage-fuzz-").tempdir_in(base());
    made.or_else(|_| tempfile::tempdir()).unwrap()
}
