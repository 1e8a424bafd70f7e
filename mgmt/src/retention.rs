//! What of a volume's history is kept, as the control socket speaks of it.

use crate::units::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is to be different. What is not said stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct RetentionChange {
    /// How far back any write can be chosen, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_seconds: Option<u64>,
    /// Of points before that: for how many hours the newest is kept,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hourly: Option<u32>,
    /// days,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub daily: Option<u32>,
    /// weeks,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weekly: Option<u32>,
    /// and months.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monthly: Option<u32>,
    /// Nothing goes, or (`false`) the policy decides again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold: Option<bool>,
    /// Back to what the appliance keeps of all volumes of which nobody has said more; the rest is not looked at then.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub reset: bool,
    /// By hand although mgmt says what is kept: it counts until mgmt says it again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

impl RetentionChange {
    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        Self { force: false, ..*self } == Self::default()
    }
}

/// What is kept, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Retention {
    /// Name of the volume.
    pub volume: String,
    /// How far back any write can be chosen, in seconds.
    pub window_seconds: u64,
    /// Of points before that: for how many hours the newest is kept,
    pub hourly: u32,
    /// days,
    pub daily: u32,
    /// weeks,
    pub weekly: u32,
    /// and months.
    pub monthly: u32,
    /// Nothing goes.
    pub hold: bool,
    /// Whether this was said for this volume; else it is what the appliance keeps of all.
    pub own: bool,
    /// The policies of mgmt that say what is kept: it is changed there, and not by hand.
    #[serde(default)]
    pub policies: Vec<String>,
    /// The group of mgmt that is on hold, and has nothing go; null if none is.
    #[serde(default)]
    pub held_by: Option<String>,
    /// Only tried out: nothing was changed.
    pub dry_run: bool,
    /// The window would begin here,
    pub first_seq: u64,
    /// at this time; null if it is longer than the history.
    pub first_time: Option<Time>,
    /// Every point, oldest first.
    pub points: Vec<PointFate>,
    /// What would be given back, if that was asked for.
    pub freed: Option<FreedBytes>,
}

/// What becomes of a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PointFate {
    /// Its name.
    pub name: String,
    /// The write after which it stands.
    pub seq: u64,
    /// When it was made.
    pub time: Time,
    /// Made by policy, not by a user.
    pub auto: bool,
    /// Why it stays: `window`, `hold`, `user`, `pin`, `hourly`, `daily`, `weekly`, `monthly`. Empty if it goes.
    pub kept: Vec<String>,
}

/// What would be given back. The room comes free bit by bit, as collection gets to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FreedBytes {
    /// Versions of blocks.
    pub blocks: u64,
    /// Their bytes before any reduction.
    pub bytes: u64,
    /// About what they take in the store.
    pub stored_bytes: u64,
}

/// A change of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PointAction {
    /// It stays, whatever the policy says.
    Pin,
    /// The policy decides again.
    Unpin,
    /// It goes.
    Remove,
}
