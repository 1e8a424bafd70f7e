//! Segments: append-only files of sealed frames, written once and read by [`Place`].
//!
//! | module | what |
//! |---|---|
//! | [`segment`] | a segment file that is being written |
//! | [`scan`] | walking through one, recovery after a crash |
//! | [`read`] | blocks by place |
//! | [`cache`] | decompressed frames |
//!
//! Life of a segment: *open* while it is written (always by one stream: a volume's, or collection's); then a directory and a
//! footer make it *sealed*; if a write failed or the process died it is *closed* instead, and what counts is what
//! comes before its last whole commit frame. In neither state is it ever appended to again (I8).

pub mod cache;
pub mod read;
pub mod scan;
pub mod segment;

use afterimage_base::crashsafe;
use afterimage_format::place::Place;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

pub use read::{ReadFigures, Store};

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
        source: io::Error,
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
    /// Sealing failed.
    #[error(transparent)]
    Key(#[from] crate::keys::KeyError),
    /// The manifest could not be changed.
    #[error(transparent)]
    Vault(#[from] crate::vault::VaultError),
    /// A thread died.
    #[error("a reducer thread died; the log says where")]
    Worker,
}

impl StoreError {
    /// Whether the error passes when somebody makes room, as opposed to one that is final (I11).
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            StoreError::Io { source, .. } => crashsafe::is_full(source),
            StoreError::Vault(e) => matches!(e, crate::vault::VaultError::Full(_)),
            _ => false,
        }
    }
}

pub(crate) fn io_error(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_path_buf();
    move |source| StoreError::Io { path, what, source }
}

/// File name of a segment.
#[must_use]
pub fn file_name(number: u32) -> String {
    format!("{number:08x}.seg")
}

/// What the store is about to ask of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoOp {
    /// Make a segment file.
    Create,
    /// Write this many bytes to a segment.
    Write(usize),
    /// Make a segment durable.
    Sync,
    /// Write a layer.
    WriteLayer,
    /// Make a layer durable.
    SyncLayer,
    /// Replace the manifest.
    Manifest,
}

/// Called before each operation of the vault on its disk; an error is taken as the disk's answer. For
/// tests and simulation.
pub type IoHook = Arc<dyn Fn(IoOp) -> io::Result<()> + Send + Sync>;

/// Where blocks are read from by place.
pub trait BlockSource: Send + Sync {
    /// Fills `out` with the blocks at `places`, one after the other. `out` is `places.len()` blocks long.
    /// [`Place::ZERO`] gives zeroes. Places of one frame cost one decoding, and frames close to each other one read.
    ///
    /// # Errors
    /// [`StoreError`] naming segment and offset.
    fn read_blocks(&self, places: &[Place], out: &mut [u8]) -> Result<(), StoreError>;
}
