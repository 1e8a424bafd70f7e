//! Points, moments and differences of a volume.

use crate::app::AppPoint;
use crate::units::Time;
use serde::{Deserialize, Serialize};

/// Recovery points of a volume, and the window within which any write can be chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointList {
    /// Name of the volume.
    pub volume: String,
    /// The window; null before the initial sync ended.
    pub window: Option<Window>,
    /// Points, oldest first.
    pub points: Vec<PointInfo>,
    /// Gaps in the window, oldest first.
    pub gaps: Vec<GapInfo>,
}

/// From when to when any write can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// First seq.
    pub first_seq: u64,
    /// Its time.
    pub first_time: Time,
    /// Last seq.
    pub last_seq: u64,
    /// Its time.
    pub last_time: Time,
}

/// A recovery point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointInfo {
    /// Its name.
    pub name: String,
    /// The write after which it stands.
    pub seq: u64,
    /// When it was made.
    pub time: Time,
    /// Made by policy, not by a user.
    pub auto: bool,
    /// Kept, whatever the policy says, because somebody said so.
    #[serde(default)]
    pub pinned: bool,
    /// How it was made, if that was to be app-consistent; null if not: the point is crash-consistent.
    #[serde(default)]
    pub app: Option<AppPoint>,
}

/// A hole in the history: no seq from `from_seq` on and before `to_seq` can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapInfo {
    /// First seq that cannot be chosen.
    pub from_seq: u64,
    /// When the gap began.
    pub from_time: Time,
    /// First seq that can be chosen again; null while the gap is open.
    pub to_seq: Option<u64>,
    /// Its time.
    pub to_time: Option<Time>,
}

/// A change of a volume's size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeChange {
    /// Name of the volume.
    pub volume: String,
    /// Bytes before.
    pub from: u64,
    /// Bytes now.
    pub to: u64,
    /// The history has a gap until the new part of the disk is copied.
    pub gap: bool,
}

/// A comparison that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompareBegun {
    /// Name of the volume.
    pub volume: String,
    /// Bytes to compare.
    pub bytes: u64,
}

/// A moment, resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Name of the volume.
    pub volume: String,
    /// The write after which the volume is shown.
    pub seq: u64,
    /// Its time.
    pub time: Option<Time>,
    /// Size of the volume in bytes.
    pub size: u64,
}

/// Changed ranges, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extents {
    /// Offset and length in bytes.
    pub extents: Vec<(u64, u64)>,
}

/// The end of a diff.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffEnd {
    /// The volume that the earlier moment is of, if it is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Name of the volume.
    pub volume: String,
    /// The earlier seq.
    pub from: u64,
    /// The later seq.
    pub to: u64,
}

/// A point that was made of one of several volumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumePoint {
    /// The volume.
    pub volume: String,
    /// The point.
    pub point: PointInfo,
}
