//! Branches.

use crate::units::Time;
use crate::when::When;
use serde::{Deserialize, Serialize};

/// As what a volume is opened over NBD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// As it was, read-only.
    Moment,
    /// As it was, on a branch that is dropped at the end.
    Scratch,
    /// A branch, to be read and written.
    Branch,
}

impl Access {
    /// As a request says it.
    #[must_use]
    pub const fn of(writable: bool, branch: bool) -> Access {
        match (writable, branch) {
            (_, true) => Access::Branch,
            (true, false) => Access::Scratch,
            (false, false) => Access::Moment,
        }
    }

    /// As a request says it: `writable` and `branch`.
    #[must_use]
    pub const fn flags(self) -> (bool, bool) {
        (matches!(self, Access::Scratch), matches!(self, Access::Branch))
    }
}

/// What a client asks about branches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum BranchAsk {
    /// Makes a branch and answers [`BranchStatus`].
    Create {
        /// The volume, or a branch.
        volume: String,
        /// Where it begins.
        at: When,
        /// Its name, without that of the volume.
        name: String,
    },
    /// [`BranchList`].
    List,
    /// [`BranchStatus`].
    Show {
        /// Its full name.
        name: String,
    },
    /// Makes a point and answers [`PointInfo`](super::PointInfo).
    Point {
        /// Full name of the branch.
        name: String,
        /// Name of the point.
        point: String,
    },
    /// Makes a volume of it that needs its parent no more, and answers [`BranchStatus`].
    Promote {
        /// Its full name.
        name: String,
    },
    /// Drops it and answers [`BranchStatus`] as it was.
    Drop {
        /// Its full name.
        name: String,
    },
}

/// What a branch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BranchKind {
    /// A branch, which reads through to its parent.
    Branch,
    /// The same for a writable export: it goes with that.
    Export,
    /// It stands by itself.
    Promoted,
    /// What an old primary had beyond its volume.
    Tail,
    /// A kind of a newer version.
    #[serde(other)]
    Other,
}

/// A branch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchStatus {
    /// Its full name: `VOLUME/NAME`.
    pub name: String,
    /// Its id.
    pub id: String,
    /// What it is.
    pub kind: BranchKind,
    /// What it is a branch of.
    pub parent: String,
    /// The last seq that it has of its parent.
    pub fork_seq: u64,
    /// Time of that write.
    pub fork_time: Time,
    /// When it was made.
    pub created: Time,
    /// Size in bytes.
    pub size: u64,
    /// Its newest durable seq; that of the fork if nothing was written to it.
    pub seq: u64,
    /// Time of that write.
    pub time: Time,
    /// Bytes that were written to it.
    pub logical_bytes: u64,
    /// Bytes that this takes in the store, as far as it shares them with nothing older.
    pub stored_bytes: u64,
    /// Number of its recovery points.
    pub points: u64,
    /// Whether somebody reads or writes it as a disk.
    pub open: bool,
    /// Why it takes no writes, if so.
    pub reason: Option<String>,
}

/// All branches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchList {
    /// By name.
    pub branches: Vec<BranchStatus>,
}
