//! What mgmt asks agents and appliances over their sessions, and what they answer. JSON, so fields may be added.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum MemberAsk {
    /// The member's clock: [`Clock`].
    Clock,
    /// Whether an agent could protect these disks: [`Readiness`].
    Readiness {
        /// Paths of disks that it does not serve yet.
        #[serde(default)]
        disks: Vec<String>,
    },
    /// An appliance's [`crate::protocol::PointList`].
    Points {
        /// Name of the volume.
        volume: String,
    },
    /// Has an agent take these disks under protection now and from now on, and answers [`DisksTaken`].
    Protect {
        /// They.
        disks: Vec<DiskWish>,
    },
}

/// What a member's clock shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// Nanoseconds since 1970.
    pub time_ns: u64,
}

/// A disk to be protected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiskWish {
    /// The raw image or block device on the agent's host.
    pub path: String,
    /// The volume's name; from the path without it.
    #[serde(default)]
    pub name: Option<String>,
}

/// Disks that are protected now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisksTaken {
    /// Names of their volumes.
    pub volumes: Vec<String>,
}

/// What an agent finds of its own host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Readiness {
    /// Release of the kernel.
    pub kernel: String,
    /// Whether io_uring can be used.
    pub io_uring: bool,
    /// Whether the ublk driver is there.
    pub ublk: bool,
    /// Whether the kernel's NBD client is there.
    pub nbd: bool,
    /// Bytes free where the agent keeps its rings.
    pub free: u64,
    /// Bytes that a new ring takes.
    pub ring: u64,
    /// Where disks are served.
    pub listen: Vec<String>,
    /// The way to the appliance.
    pub appliance: Option<Way>,
    /// Network interfaces that are up, without loopback.
    pub networks: Vec<Interface>,
    /// The disks that were asked about.
    pub disks: Vec<DiskFound>,
}

/// The way to an appliance, as measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Way {
    /// Its address.
    pub address: String,
    /// Milliseconds until a connection with TLS stood; null if none did.
    pub connect_ms: Option<u64>,
    /// Bytes a second that went there; null if that cannot be measured.
    pub bytes_per_second: Option<u64>,
    /// Why not.
    pub error: Option<String>,
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its addresses, with prefix length.
    pub addresses: Vec<String>,
}

/// A disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskFound {
    /// The path that was asked about.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// The volume that it is already, if it is one.
    pub volume: Option<String>,
    /// Who uses it: mount points, holders.
    pub used_by: Vec<String>,
    /// Why it cannot be protected.
    pub error: Option<String>,
}
