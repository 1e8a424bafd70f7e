//! What the tools give to the agent and read from it: settings, states, status, errors.

use crate::connect::Connector;
use crate::disk::{CacheMode, DiskError};
use afterimage_base::clock::Clock;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// Smallest ring: several records of the longest kind and their slots.
pub const MIN_RING_BYTES: u64 = 8 << 20;

/// Settings of an agent.
#[derive(Clone)]
pub struct AgentConfig {
    /// Folder for the state of the volumes, one subfolder each.
    pub state_dir: PathBuf,
    /// How to reach the appliance.
    pub connector: Arc<dyn Connector>,
    /// Where the time labels come from.
    pub clock: Arc<dyn Clock>,
}

/// Settings of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeConfig {
    /// Its name: letters, digits, `.`, `_`, `-`, at most 64 characters, not beginning with a dot.
    pub name: String,
    /// The raw image or block device.
    pub path: PathBuf,
    /// Size of the ring file's data area in bytes, at least [`MIN_RING_BYTES`]. A volume that has a ring keeps it.
    pub ring_bytes: u64,
    /// How the disk is used.
    pub cache: CacheMode,
    /// What follows when somebody else has written to the disk while the agent was not running.
    pub foreign: ForeignWrite,
    /// Take the size that the disk has now, if it is another one than it was.
    pub resize: bool,
    /// Id of a volume whose agent is gone: this disk takes the place of its disk, once the volume is fenced. Later starts may say it
    /// again.
    pub adopt: Option<[u8; 16]>,
}

/// What follows when somebody else has written to the disk while the agent was not running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ForeignWrite {
    /// The volume is not opened.
    Refuse,
    /// A gap begins and the whole disk is compared with the appliance's copy.
    #[default]
    Compare,
    /// Nothing: the history does not have those writes.
    Ignore,
}

/// How the write-intent map is kept: which regions may differ after a power cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntentConfig {
    /// Without it, the whole disk is compared after a power cut.
    pub on: bool,
    /// Size of a region in bytes, a power of two; small volumes get smaller ones. A volume that has a map keeps its own.
    pub region: u64,
    /// When more regions than this are marked, those that were not written to for longest lose their marks.
    pub hot: u64,
    /// Time between two looks at the marks.
    pub pass: Duration,
    /// After so many looks without a write a region may lose its mark if too many are marked,
    pub cool: u8,
    /// and after so many in any case.
    pub idle: u8,
    #[cfg(test)]
    pub(crate) wrap: crate::intent::Wrap,
}

impl Default for IntentConfig {
    fn default() -> Self {
        Self {
            on: true,
            region: 1 << 20,
            hot: 2048,
            pass: Duration::from_secs(5),
            cool: 2,
            idle: 60,
            #[cfg(test)]
            wrap: crate::intent::Wrap::default(),
        }
    }
}

/// What a volume is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    /// The first copy of the disk is on its way (or waits for the appliance).
    InitialSync,
    /// Every write is in the ring or at the appliance.
    Live,
    /// Writes are tracked in the dirty map only.
    Dirty,
    /// The dirty regions are being copied.
    Resync,
    /// Its machine runs elsewhere after a failover: the disk takes no writes here.
    Fenced,
    /// Somebody must look; the guest goes on. The reason says more.
    Error,
}

impl std::fmt::Display for VolumeState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            VolumeState::InitialSync => "initial-sync",
            VolumeState::Live => "live",
            VolumeState::Dirty => "dirty",
            VolumeState::Resync => "resync",
            VolumeState::Fenced => "fenced",
            VolumeState::Error => "error",
        })
    }
}

/// What was found and done when a volume was opened again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RecoveryReport {
    /// The last stop was in order.
    pub clean: bool,
    /// Writes that were in the ring and perhaps not on the disk, and were written again.
    pub redone: u64,
    /// Seqs taken by writers that died before they had written anything.
    pub voided: u64,
    /// The ring could not be used, and nobody knows what was written last: the whole disk is compared with the
    /// appliance's copy.
    pub whole_disk: bool,
    /// The ring could not be used: so many regions of the write-intent map may differ from the appliance's copy,
    pub intent_regions: u64,
    /// with so many bytes.
    pub intent_bytes: u64,
    /// Why the ring could not be used.
    pub reason: Option<String>,
    /// Somebody else has written to the disk meanwhile.
    pub foreign: bool,
}

/// How far an initial sync or a resync is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SyncStatus {
    /// Bytes of the disk that are done.
    pub done_bytes: u64,
    /// All bytes that were dirty when it began.
    pub total_bytes: u64,
    /// Bytes of the disk that were compared by hash.
    pub compared_bytes: u64,
    /// Bytes of blocks that were sent.
    pub sent_bytes: u64,
    /// Bytes of the disk done a second, since it began.
    pub rate: u64,
    /// How often a full ring has cut it off, since the volume was live.
    pub cuts: u32,
}

/// A volume's figures at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: [u8; 16],
    /// The disk behind it.
    pub path: PathBuf,
    /// Size in bytes.
    pub size: u64,
    /// What it is doing.
    pub state: VolumeState,
    /// Since when, in nanoseconds since 1970.
    pub state_since: u64,
    /// Why it is not live, in words.
    pub reason: Option<String>,
    /// The newest seq taken.
    pub seq_acked: u64,
    /// Everything up to this seq is durable at the appliance.
    pub seq_durable: u64,
    /// Age of the oldest write that the appliance does not have, in seconds; 0 if it has all.
    pub lag_seconds: f64,
    /// Bytes that the appliance does not have: in the ring and in dirty regions.
    pub lag_bytes: u64,
    /// Size of the ring.
    pub ring_bytes: u64,
    /// Bytes of the ring in use.
    pub ring_used: u64,
    /// Bytes in regions marked dirty.
    pub dirty_bytes: u64,
    /// Bytes in regions of the write-intent map that are marked: what a power cut now would cost to compare.
    pub intent_bytes: u64,
    /// How often the write-intent map was synced since the start of the agent.
    pub intent_syncs: u64,
    /// Bytes of the running sync that are done.
    pub sync_done_bytes: u64,
    /// Bytes of the running sync, all in all.
    pub sync_total_bytes: u64,
    /// The sync that goes on now.
    pub sync: Option<SyncStatus>,
    /// When the gap began that goes on now, in nanoseconds since 1970.
    pub gap_since: Option<u64>,
    /// Why it began.
    pub gap_reason: Option<String>,
    /// Whether the appliance is connected.
    pub connected: bool,
    /// Gaps that have begun since the volume was opened, the initial sync not counted.
    pub gaps: u64,
    /// Guest writes (trims and zeroes too) since the start of the agent.
    pub writes: u64,
    /// Bytes of data that they carried.
    pub write_bytes: u64,
    /// The highest epoch that the appliance has told.
    pub epoch: u64,
    /// Since when it is fenced, if it is, in nanoseconds since 1970.
    pub fenced_since: Option<u64>,
    /// What the opening found, if the volume was there before.
    pub recovered: Option<RecoveryReport>,
}

/// Why a volume cannot be opened.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The name is not allowed.
    #[error("volume name {0:?} is not allowed: use 1 to 64 letters, digits, '.', '_' or '-', and no dot in front")]
    Name(String),
    /// A volume of this name is open in this agent.
    #[error("volume {0} is already open: give the disk another name with NAME=PATH")]
    Duplicate(String),
    /// The ring size is too small.
    #[error("volume {name}: a ring of {bytes} bytes is too small, use at least {MIN_RING_BYTES}")]
    RingSize {
        /// The volume.
        name: String,
        /// What was asked for.
        bytes: u64,
    },
    /// The disk cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The volume is known under this name with another disk.
    #[error("volume {name} belongs to {known}, not to {given}: use another name, or remove {state} to start anew")]
    OtherPath {
        /// The volume.
        name: String,
        /// The path it was made with.
        known: PathBuf,
        /// The path given now.
        given: PathBuf,
        /// Its state folder.
        state: PathBuf,
    },
    /// The disk at this path is not the one that the volume was made with.
    #[error(
        "volume {name}: {path} is not the disk that it was ({what}): put the old one back, or use another name, \
         or remove {state} to start anew"
    )]
    OtherDisk {
        /// The volume.
        name: String,
        /// The path.
        path: PathBuf,
        /// What differs.
        what: String,
        /// Its state folder.
        state: PathBuf,
    },
    /// The disk has another size than it had.
    #[error(
        "volume {name}: {path} had {was} bytes and has {now}: if that is meant, start with --resize once. (With the \
         volume running, use `afterimage volume resize {name}`, before the disk is made smaller or after it is made larger)"
    )]
    OtherSize {
        /// The volume.
        name: String,
        /// The path.
        path: PathBuf,
        /// Size that is known.
        was: u64,
        /// Size that it has.
        now: u64,
    },
    /// It is to adopt a volume, and is one already.
    #[error(
        "volume {name} is {known} and cannot adopt {given} as well: leave the adoption out, or use another name, or remove \
         {state} to start anew"
    )]
    OtherId {
        /// The volume.
        name: String,
        /// Its id.
        known: uuid::Uuid,
        /// The id of the volume to be adopted.
        given: uuid::Uuid,
        /// Its state folder.
        state: PathBuf,
    },
    /// Somebody else has written to the disk, and that is refused.
    #[error(
        "volume {name}: {path} was written to by somebody else while the agent was not running: start with \
         --on-foreign-write compare to take that over, in a gap, or ignore to leave it out of the history"
    )]
    Foreign {
        /// The volume.
        name: String,
        /// The path.
        path: PathBuf,
    },
    /// A state file cannot be read, written or understood.
    #[error("volume {name}: {file}: {problem}")]
    State {
        /// The volume.
        name: String,
        /// The file.
        file: PathBuf,
        /// What was wrong and what to do.
        problem: String,
    },
    /// The system has no threads or memory left.
    #[error("volume {name}: {source}")]
    System {
        /// The volume.
        name: String,
        /// The error.
        source: std::io::Error,
    },
    /// The agent is stopping.
    #[error("the agent is stopping")]
    Stopping,
}

/// Why a point cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PointError {
    /// The name is empty, too long or has control characters.
    #[error("{0:?} cannot be the name of a point: use 1 to 255 bytes without control characters")]
    Name(String),
    /// Between a gap and its end no point is consistent (I6).
    #[error("volume {volume} is in state {state}: points can be made when it is live again")]
    NotLive {
        /// The volume.
        volume: String,
        /// Its state.
        state: VolumeState,
    },
    /// Others hold its gate, or a write does not get on.
    #[error("volume {volume}: its gate could not be closed in time")]
    Gate {
        /// The volume.
        volume: String,
    },
    /// There is no room in the ring for the marker.
    #[error("volume {volume}: the ring is full, try again when the appliance has caught up")]
    Full {
        /// The volume.
        volume: String,
    },
}
