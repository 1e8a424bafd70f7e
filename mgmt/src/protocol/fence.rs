//! Fences of volumes.

use crate::units::Time;
use serde::{Deserialize, Serialize};

/// What a client asks about the fence of a volume. Answered with [`FenceStatus`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum FenceAsk {
    /// Has its agent take no more writes. Done again it changes nothing.
    Up {
        /// Name of the volume.
        volume: String,
        /// Whose fence it is: a job.
        owner: String,
        /// What the agent still has goes to the volume; else it is kept apart.
        #[serde(default)]
        drain: bool,
    },
    /// Lets its agent take writes again. Done again it changes nothing.
    Down {
        /// Name of the volume.
        volume: String,
        /// Whose fence it is.
        owner: String,
    },
    /// Only tells.
    Show {
        /// Name of the volume.
        volume: String,
    },
}

/// Whether the agent of a volume may take writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FenceState {
    /// It may.
    Open,
    /// It may not, and brings what it has.
    Draining,
    /// It may not, and what it brings is kept apart.
    Closed,
}

/// The fence of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceStatus {
    /// Name of the volume.
    pub volume: String,
    /// Its epoch, which each fence raises, and each end of one.
    pub epoch: u64,
    /// Whether its agent may take writes.
    pub state: FenceState,
    /// Whose fence it is: a job.
    pub owner: Option<String>,
    /// Since when.
    pub since: Option<Time>,
    /// The branch that keeps what its agent had beyond what the volume received; null if the agent has not come.
    pub tail: Option<String>,
    /// The last write that the volume received.
    pub seq: u64,
}

/// The disk of a fenced volume's agent, reached through its session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentDisk {
    /// Name of the volume.
    pub volume: String,
    /// Epoch of the fence.
    pub epoch: u64,
    /// Size of the disk in bytes.
    pub size: u64,
}
