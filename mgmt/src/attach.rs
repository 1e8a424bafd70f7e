//! Volumes, and moments of them, as block devices of the machine that the process runs on.

use crate::when::When;
use serde::{Deserialize, Serialize};

/// How a block device comes about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Front {
    /// The kernel's ublk driver: `/dev/ublkbN`.
    Ublk,
    /// The kernel's NBD client: `/dev/nbdN`.
    Nbd,
    /// One of a newer version.
    #[serde(other)]
    Other,
}

impl Front {
    /// The word used in JSON and on the screen.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Front::Ublk => "ublk",
            Front::Nbd => "nbd",
            Front::Other => "other",
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AttachOptions {
    /// The moment; without it, the disk itself.
    #[serde(default)]
    pub at: Option<When>,
    /// How; without it, ublk if there is one, else NBD.
    #[serde(default)]
    pub front: Option<Front>,
    /// Whether a moment takes writes, which are forgotten when it is detached.
    #[serde(default)]
    pub writable: bool,
    /// Queues, each with a thread; without it, one.
    #[serde(default)]
    pub queues: Option<u16>,
    /// Whether it is for one mount, and goes away with it.
    #[serde(default)]
    pub once: bool,
}

/// A block device that shows a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// Name of the volume.
    pub volume: String,
    /// The block device.
    pub device: String,
    /// How it comes about.
    pub front: Front,
    /// The write after which the volume is shown; null for the disk itself.
    pub seq: Option<u64>,
    /// Whether it takes writes.
    pub writable: bool,
    /// Its queues.
    pub queues: u16,
    /// Why it is not served; null if it is.
    pub trouble: Option<String>,
    /// What would be better, and this kernel cannot do.
    pub lacks: Vec<String>,
    /// It goes away with the mount that it was made for.
    #[serde(default)]
    pub once: bool,
}

/// What was detached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detached {
    /// The block devices that are gone.
    pub devices: Vec<String>,
}
