//! The state of a process and its volumes.

use super::FenceStatus;
use crate::attach::Attached;
use crate::failover::summary::Recovery;
use crate::units::Time;
use serde::{Deserialize, Serialize};
use std::fmt;

/// State of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// What is on the disk is being copied for the first time; there are no points yet.
    InitialSync,
    /// Every write is journalled and forwarded.
    Live,
    /// The journal could not take the writes: regions are marked, no points are made.
    Dirty,
    /// Marked regions are being copied; no points yet.
    Resync,
    /// Its machine runs elsewhere after a failover: the disk takes no writes here.
    Fenced,
    /// Something failed for good; `reason` says what.
    Error,
    /// Served without protection (`--no-protect`).
    Unprotected,
    /// Its history is here, its disk is not: it can be restored and exported.
    Offline,
}

impl State {
    /// The word used in JSON and on the screen.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            State::InitialSync => "initial-sync",
            State::Live => "live",
            State::Dirty => "dirty",
            State::Resync => "resync",
            State::Fenced => "fenced",
            State::Error => "error",
            State::Unprotected => "unprotected",
            State::Offline => "offline",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Everything (`afterimage up`).
    #[default]
    All,
    /// It protects disks (`afterimage agent`).
    Agent,
    /// It keeps their history (`afterimage appliance`).
    Appliance,
    /// It coordinates (`afterimage mgmt`).
    Mgmt,
    /// A role of a newer version.
    #[serde(other)]
    Other,
}

/// The whole process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`VERSION`].
    pub v: u32,
    /// Version of the program.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// The data folder.
    pub data: String,
    /// When the process started.
    pub started: Time,
    /// When this was taken.
    pub time: Time,
    /// What the process does.
    #[serde(default)]
    pub role: Role,
    /// For an agent, the address of its appliance.
    #[serde(default)]
    pub appliance: Option<String>,
    /// For an appliance, where agents connect.
    #[serde(default)]
    pub listen: Vec<String>,
    /// How far back any write can be chosen, in seconds; 0 for an agent, which has no history.
    pub window_seconds: u64,
    /// NBD connections to the volumes open now.
    pub clients: u64,
    /// For an appliance, what its store has done.
    #[serde(default)]
    pub store: Option<StoreStatus>,
    /// Failovers, tests and plans on this host: those that have not ended, and the last that have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recoveries: Vec<Recovery>,
    /// The volumes, by name.
    pub volumes: Vec<VolumeStatus>,
}

/// What a store has done since the process started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoreStatus {
    /// Bytes that agents' streams have become.
    pub ingested_bytes: u64,
    /// Bytes that were there already and were written again, by collection and to bring them into disk order.
    pub rewritten_bytes: u64,
    /// Bytes that wait to be brought into disk order; null if nobody has looked yet, or it is switched off.
    pub unordered_bytes: Option<u64>,
    /// Bytes of blocks that were read from it.
    pub served_bytes: u64,
    /// Reads that this took.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Frames that were decoded.
    pub frames: u64,
}

/// One volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// Its id (UUID).
    pub id: String,
    /// The disk or image behind it.
    pub path: String,
    /// Where it is served; one URI for each address.
    pub uri: Vec<String>,
    /// Bytes.
    pub size: u64,
    /// What it is doing.
    pub state: State,
    /// Since when; null if that is not known.
    #[serde(default)]
    pub state_since: Option<Time>,
    /// Why it is not live, when the gap began; null when live.
    pub reason: Option<String>,
    /// Whether the agent has a session with the appliance.
    pub connected: bool,
    /// Seq of the newest write.
    pub seq_acked: u64,
    /// Seq up to which everything survives a power cut of the appliance.
    pub seq_durable: u64,
    /// Age of the oldest write that is not durable at the appliance, in seconds: the RPO now.
    pub lag_seconds: f64,
    /// Bytes of the writes that are not durable at the appliance.
    pub lag_bytes: u64,
    /// Size of the ring's data area.
    pub ring_bytes: u64,
    /// Bytes of it in use.
    pub ring_used: u64,
    /// Bytes that the initial sync or resync has still to copy.
    pub dirty_bytes: u64,
    /// The initial sync or resync that goes on; null if none does.
    #[serde(default)]
    pub sync: Option<SyncInfo>,
    /// The gap that goes on; null if none does.
    #[serde(default)]
    pub gap: Option<GapNow>,
    /// Gaps that have begun since the agent started, the initial sync not counted.
    #[serde(default)]
    pub gaps: u64,
    /// Recovery points that can be chosen.
    pub points: u64,
    /// Bytes that the history takes in the store.
    pub stored_bytes: u64,
    /// Bytes of the writes in the history.
    pub logical_bytes: u64,
    /// First seq that can be chosen; null before the initial sync ended.
    pub first_seq: Option<u64>,
    /// Its time.
    pub first_time: Option<Time>,
    /// Time of the newest durable write.
    pub durable_time: Option<Time>,
    /// Block devices that show it.
    #[serde(default)]
    pub devices: Vec<Attached>,
    /// Its epoch, which each fence raises, and each end of one.
    #[serde(default)]
    pub epoch: u64,
    /// Its fence, as the appliance knows it; null if there is none.
    #[serde(default)]
    pub fence: Option<FenceStatus>,
}

/// How far an initial sync or a resync is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncInfo {
    /// Bytes of the disk that are done.
    pub done_bytes: u64,
    /// All bytes that were dirty when it began.
    pub total_bytes: u64,
    /// Bytes of the disk that were compared with the appliance's by hash.
    pub compared_bytes: u64,
    /// Bytes of blocks that were sent.
    pub sent_bytes: u64,
    /// Bytes of the disk done a second, since it began.
    pub bytes_per_second: u64,
    /// How often a full ring has cut it off since the volume was live.
    pub cuts: u32,
}

/// The gap that goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapNow {
    /// When it began.
    pub since: Time,
    /// Why; null if that is not known any more.
    pub reason: Option<String>,
}
