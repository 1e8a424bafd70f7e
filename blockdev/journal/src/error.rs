//! Why a ring or a dirty map was refused. Each message names the file, what is wrong and what follows from it.

use afterimage_format::codec::DecodeError;
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Why a ring could not be made or opened.
#[derive(Debug, Error)]
pub enum RingError {
    /// The file is something else.
    #[error("{}: not a ring journal: {why}", path.display())]
    NotARing {
        /// The file.
        path: PathBuf,
        /// What gave it away.
        why: DecodeError,
    },
    /// The ring belongs to another volume.
    #[error("{}: the ring of another volume ({found}); start a new ring for {wanted}", path.display())]
    OtherVolume {
        /// The file.
        path: PathBuf,
        /// Volume that the file names.
        found: uuid::Uuid,
        /// Volume that was asked for.
        wanted: uuid::Uuid,
    },
    /// Written by another version of the program.
    #[error("{}: {why}; stop cleanly with the version that wrote it, then start a new ring", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The two versions.
        why: DecodeError,
    },
    /// The file is not as long as its header says.
    #[error("{}: {have} bytes long, its header says {need}; its records are lost, start a new ring and resync", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Length in bytes according to the header (or the least length of a header).
        need: u64,
        /// Length in bytes.
        have: u64,
    },
    /// A field of the header page is damaged.
    #[error("{}: the header is damaged ({what}); start a new ring and resync", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        what: &'static str,
    },
    /// A record is damaged.
    #[error("{}: record {seq} is damaged ({what}, byte {offset} of the file); start a new ring and resync", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Seq of the record.
        seq: u64,
        /// What does not fit.
        what: &'static str,
        /// Where in the file the damaged part begins, in bytes.
        offset: u64,
    },
    /// The machine was started again since, and the ring was not stopped cleanly.
    #[error("{}: the machine was restarted without a clean stop, the ring's content cannot be trusted; start a new ring and resync", path.display())]
    OtherBoot {
        /// The file.
        path: PathBuf,
    },
    /// Another process has it open.
    #[error("{}: in use by another process; stop it first", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The size asked for is not possible.
    #[error("ring size {bytes}: must be a multiple of 4096, at least 4 MiB and less than 8 TiB")]
    Size {
        /// Bytes asked for.
        bytes: u64,
    },
    /// The system refused.
    #[error("{}: cannot {doing}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

/// Why a dirty map could not be made or opened.
#[derive(Debug, Error)]
pub enum DirtyMapError {
    /// The file is something else.
    #[error("{}: not a dirty map: {why}", path.display())]
    NotAMap {
        /// The file.
        path: PathBuf,
        /// What gave it away.
        why: DecodeError,
    },
    /// The map belongs to another volume.
    #[error("{}: the dirty map of another volume ({found}); start a new map for {wanted}", path.display())]
    OtherVolume {
        /// The file.
        path: PathBuf,
        /// Volume that the file names.
        found: uuid::Uuid,
        /// Volume that was asked for.
        wanted: uuid::Uuid,
    },
    /// Written by another version of the program.
    #[error("{}: {why}; start a new map with every region marked", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The two versions.
        why: DecodeError,
    },
    /// The file is not as long as its header says.
    #[error("{}: {have} bytes long, its header says {need}; start a new map with every region marked", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Length in bytes according to the header (or the least length of a header).
        need: u64,
        /// Length in bytes.
        have: u64,
    },
    /// A field of the header page is damaged.
    #[error("{}: the header is damaged ({what}); start a new map with every region marked", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        what: &'static str,
    },
    /// A word of the map is damaged.
    #[error("{}: the marks from region {region} on are damaged (byte {offset} of the file); start a new map with every region marked", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// First region of the damaged word.
        region: u64,
        /// Byte offset of the word in the file.
        offset: u64,
    },
    /// The machine was started again since, and the map was not stopped cleanly.
    #[error("{}: the machine was restarted without a clean stop, the map cannot be trusted; start a new map with every region marked", path.display())]
    OtherBoot {
        /// The file.
        path: PathBuf,
    },
    /// Another process has it open.
    #[error("{}: in use by another process; stop it first", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Size or region asked for is not possible.
    #[error(
        "dirty map of {size} bytes in regions of {region}: the region must be a power of two of at least 512, with at most 2^32 regions"
    )]
    Size {
        /// Size of the volume in bytes.
        size: u64,
        /// Size of a region in bytes.
        region: u64,
    },
    /// The system refused.
    #[error("{}: cannot {doing}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

/// Why a write-intent map could not be made or opened.
#[derive(Debug, Error)]
pub enum IntentError {
    /// Neither copy of the header can be used.
    #[error("{}: {why}; after a power cut the whole disk is compared", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: DecodeError,
    },
    /// The map belongs to another volume.
    #[error("{}: the write-intent map of another volume ({found}, not {wanted})", path.display())]
    OtherVolume {
        /// The file.
        path: PathBuf,
        /// Volume that the file names.
        found: uuid::Uuid,
        /// Volume that was asked for.
        wanted: uuid::Uuid,
    },
    /// Written by another version of the program.
    #[error("{}: {why}; use the program that wrote it, or remove the file: then the whole disk is compared", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The two versions.
        why: DecodeError,
    },
    /// The file is not as long as its header says.
    #[error("{}: {have} bytes long, its header says {need}; after a power cut the whole disk is compared", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Length in bytes according to the header.
        need: u64,
        /// Length in bytes.
        have: u64,
    },
    /// Another process has it open.
    #[error("{}: in use by another process; stop it first", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Size or region asked for is not possible.
    #[error(
        "write-intent map of {size} bytes in regions of {region}: the region must be a power of two of at least 4096, with at most 2^28 regions"
    )]
    Size {
        /// Size of the volume in bytes.
        size: u64,
        /// Size of a region in bytes.
        region: u64,
    },
    /// The system refused.
    #[error("{}: cannot {doing}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

/// Why no place was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ReserveError {
    /// No room: the appliance is behind. Close the ring and go to dirty tracking.
    #[error("the ring is full")]
    Full,
    /// The ring is closed: dirty tracking is on.
    #[error("the ring is closed")]
    Closed,
    /// The record asked for cannot exist (length does not fit kind, or is too long).
    #[error("impossible record: {0}")]
    Invalid(&'static str),
}

/// Why the ring stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ReopenError {
    /// Not even the reserve for markers has a slot left.
    #[error("the ring is full")]
    Full,
    /// A jump in seq was asked for while records are held or looked at.
    #[error("the ring still holds records, its seq cannot jump")]
    NotEmpty,
    /// The ring is open.
    #[error("the ring is not closed")]
    NotClosed,
}

/// A closed ring: its history has a gap that has not been recorded yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// First seq that the gap takes the place of.
    pub seq: u64,
    /// When it was closed, in nanoseconds since 1970.
    pub time: u64,
}
