//! What mgmt asks agents and appliances over their sessions, and what they answer. JSON, so fields may be added.

use crate::retention::{PointAction, RetentionChange};
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
    /// Has an agent make a point of a volume; answers its [`crate::protocol::PointInfo`] when it is durable.
    CreatePoint {
        /// Name of the volume.
        volume: String,
        /// The point's name.
        name: String,
        /// With applications quiet around it, as the agent's settings say.
        app: bool,
    },
    /// Has an appliance pin, unpin or remove a point: its [`crate::protocol::PointInfo`].
    ChangePoint {
        /// Name of the volume.
        volume: String,
        /// The point's name.
        name: String,
        /// What is to become of it.
        action: PointAction,
    },
    /// Has an agent make applications quiet for a point of its group: what comes before freezing. Answers [`Quieted`].
    Quiet {
        /// The point's name.
        point: String,
    },
    /// Has it freeze, and answers [`Quieted`] when that is done or has failed.
    Freeze {
        /// Which: [`Quieted::id`].
        id: String,
    },
    /// Has it thaw, and answers with a list of [`crate::groups::VolumeApp`] when everything is over.
    Thaw {
        /// Which.
        id: String,
    },
    /// Tells an agent how often points are made of its volumes, by policy: [`Done`].
    Schedule {
        /// Volumes that are not named do as the agent's own settings say.
        volumes: Vec<VolumeSchedule>,
    },
    /// Tells an appliance what is kept of volumes, by policy. Answers [`Done`].
    Retain {
        /// Of which.
        volumes: Vec<VolumeRetention>,
        /// The ids of all volumes of which mgmt says anything: others are changed by hand.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        all: Option<Vec<String>>,
    },
    /// What an appliance would keep of a volume: [`crate::retention::Retention`].
    Kept {
        /// The volume's id.
        id: String,
        /// By these rules.
        change: RetentionChange,
    },
    /// Tells an appliance which seqs points of groups need, and which no more. Answers [`Done`], with those that it does not have any more.
    Keep {
        /// In which volumes.
        volumes: Vec<VolumeSeqs>,
    },
    /// Has an agent take these disks under protection now and from now on, and answers [`DisksTaken`].
    Protect {
        /// They.
        disks: Vec<DiskWish>,
    },
}

/// Applications of a machine on their way to quiet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quieted {
    /// Names it until it is thawed.
    pub id: String,
    /// How many volumes take part.
    pub volumes: usize,
}

/// How often points are made of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSchedule {
    /// Its id.
    pub id: String,
    /// Seconds between points that are consistent for a crash; 0 makes none.
    pub crash_seconds: u32,
    /// Minutes between those that are consistent for applications; 0 makes none.
    pub app_minutes: u32,
}

/// What is kept of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRetention {
    /// Its id.
    pub id: String,
    /// What is to be different.
    pub change: RetentionChange,
    /// Who says so.
    #[serde(default)]
    pub by: Managed,
}

/// Whose word it is what is kept of a volume: by hand that is not changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Managed {
    /// The policies, by name; none if they say nothing of it.
    pub policies: Vec<String>,
    /// The group that is on hold, so that nothing goes.
    pub on_hold: Option<String>,
}

/// Seqs of a volume that points of groups need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSeqs {
    /// Its id.
    pub id: String,
    /// Those that are needed from now on.
    pub keep: Vec<SeqKept>,
    /// Those that are needed no more.
    pub drop: Vec<u64>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeqKept {
    /// It.
    pub seq: u64,
    /// Its time, nanoseconds since 1970.
    pub time: u64,
    /// GROUP/POINT.
    pub name: String,
}

/// What was not done, because it could not be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Done {
    /// Ids of volumes that are not known.
    pub unknown: Vec<String>,
    /// Seqs that are not there any more.
    pub gone: Vec<(String, u64)>,
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
