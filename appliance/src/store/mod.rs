//! Segments: append-only files of sealed frames, written once and read by [`Place`].

use afterimage_format::place::Place;
use std::path::PathBuf;
use thiserror::Error;

/// Why the store could not do what was asked.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The system refused an operation on a file.
    #[error("{path}: cannot {what}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A frame's bytes are not what was written.
    #[error("segment {segment}, frame at byte {offset}: {what}; run `afterimage check` to see which volumes it hits")]
    Damaged {
        /// Segment number.
        segment: u32,
        /// Byte offset of the frame.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// A segment was poisoned by an earlier write or sync error (I11).
    #[error("segment {0} failed on an earlier write and takes no more; see the log for the error and check the disk")]
    Poisoned(u32),
}

/// Where blocks are read from by place.
pub trait BlockSource: Send + Sync {
    /// Fills `out` with the blocks at `places`, one after the other. `out` is `places.len()` blocks long.
    /// [`Place::ZERO`] gives zeroes. Neighbouring places of one frame cost one read.
    ///
    /// # Errors
    /// [`StoreError`] naming segment and offset.
    fn read_blocks(&self, places: &[Place], out: &mut [u8]) -> Result<(), StoreError>;
}
