//! What goes wrong with files, and with which.

use std::ffi::OsStr;
use std::path::Path;

/// What a file is for; faults are chosen by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// The protected disk.
    Disk,
    /// A ring of the agent.
    Ring,
    /// A dirty map of the agent.
    Dirty,
    /// A write-intent map of the agent.
    Intent,
    /// What the agent knows of a volume.
    Meta,
    /// A segment.
    Segment,
    /// A layer.
    Layer,
    /// The manifest.
    Manifest,
    /// Anything else.
    Other,
}

impl Tag {
    pub(super) fn of(path: &Path) -> Tag {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        match path.extension().and_then(OsStr::to_str) {
            Some("img") => Tag::Disk,
            Some("seg") => Tag::Segment,
            Some("layer") => Tag::Layer,
            _ if name.starts_with("MANIFEST") => Tag::Manifest,
            _ if name.starts_with("ring") => Tag::Ring,
            _ if name.starts_with("dirty") => Tag::Dirty,
            _ if name.starts_with("intent") => Tag::Intent,
            _ if name.starts_with("volume.json") => Tag::Meta,
            _ if path.components().any(|c| c.as_os_str() == "layers") => Tag::Layer,
            _ => Tag::Other,
        }
    }
}

/// What goes wrong on a host's disk, in so many of a thousand operations.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Reads that fail.
    pub read: u64,
    /// Writes that fail.
    pub write: u64,
    /// Syncs that fail; what they should have written is lost.
    pub sync: u64,
    /// Writes that take only a part.
    pub short: u64,
    /// Writes of which a bit is flipped.
    pub flip: u64,
    /// Writes that land elsewhere in the file.
    pub stray: u64,
    /// There is no room.
    pub full: bool,
    /// Only files of this kind.
    pub only: Option<Tag>,
}
