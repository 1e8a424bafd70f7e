//! Groups and their points, as the API and `--json` show them.

use crate::app::AppPoint;
use crate::units::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A group to be made, or how one is to be from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NewGroup {
    /// Its name.
    pub name: String,
    /// Seconds between points; 0 makes them on demand only.
    pub every_seconds: u64,
    /// How long gates may be closed, in milliseconds.
    pub hold_ms: u32,
    /// Whether a point of some of the members is wanted if not all can be had.
    pub partial: bool,
    /// Minutes between app-consistent points; 0 makes them on demand only.
    pub app_every_minutes: u32,
    /// The policy that says all that but the hold, and what is kept.
    pub policy: Option<String>,
}

impl NewGroup {
    pub(crate) fn check(&self) -> Result<(), String> {
        let fine = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(fine) {
            return Err(format!(
                "'{}' is no name of a group: letters, digits, dots, dashes and underscores, at most 64",
                self.name
            ));
        }
        if self.every_seconds > 86_400 * 7 {
            return Err("the interval of a group is a week at most; 0 makes points on demand only".into());
        }
        if self.app_every_minutes > 60 * 24 * 7 {
            return Err(
                "the interval of a group's app-consistent points is a week at most; 0 makes them on demand only".into(),
            );
        }
        if !(1..=10_000).contains(&self.hold_ms) {
            return Err("gates are held for 1 ms to 10 s".into());
        }
        Ok(())
    }
}

impl std::fmt::Display for NewGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.policy, self.every_seconds) {
            (Some(policy), _) => return write!(f, "by policy {policy}, hold {} ms", self.hold_ms),
            (None, 0) => f.write_str("on demand")?,
            (None, n) => write!(f, "every {n} s")?,
        }
        if self.app_every_minutes > 0 {
            write!(f, ", app-consistent every {} min", self.app_every_minutes)?;
        }
        write!(f, ", hold {} ms, partial points {}", self.hold_ms, if self.partial { "wanted" } else { "not wanted" })
    }
}

/// A machine of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GroupMember {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Whether it has a session that knows of barriers.
    pub connected: bool,
}

/// A group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Group {
    /// Number in the catalogue.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// Seconds between points; 0: on demand only.
    pub every_seconds: u64,
    /// How long gates may be closed, in milliseconds.
    pub hold_ms: u32,
    /// Whether points of some are wanted.
    pub partial: bool,
    /// Minutes between app-consistent points; 0: on demand only.
    pub app_every_minutes: u32,
    /// The policy that says that, and what is kept; null if the group says it itself.
    pub policy: Option<String>,
    /// Nothing of it goes.
    pub on_hold: bool,
    /// The appliances are still to be told that it is not on hold any more.
    #[serde(skip)]
    pub released: bool,
    /// When it was made, seconds since 1970.
    pub created: i64,
    /// Its machines, by name.
    pub members: Vec<GroupMember>,
}

/// How a point stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PointState {
    /// All gates were closed at one instant; not every marker is durable yet, so it is no point yet.
    Settling,
    /// A point of all members.
    Complete,
    /// A point of those who are not missing.
    Partial,
    /// No point.
    Failed,
    /// It was one, and is not kept any more.
    Expired,
}

/// A member that has no part in a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Missing {
    /// Its name.
    pub machine: String,
    /// Why.
    pub why: String,
}

/// Where a point lies in one volume: `--at @SEQ` there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Restorable {
    /// The machine.
    pub machine: String,
    /// The appliance that has the history.
    pub appliance: Option<String>,
    /// The volume.
    pub volume: String,
    /// Its id.
    pub id: String,
    /// The seq: its prefix up to there is this volume's part of the point.
    pub seq: u64,
    /// When the agent wrote the marker, by its own clock.
    pub time: Time,
}

/// How a point was made app-consistent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GroupApp {
    /// `app`: applications were quiet on every machine while all gates were closed; else `crash`.
    pub consistency: String,
    /// Why it is not `app`; null if it is.
    pub reason: Option<String>,
    /// What each machine did.
    pub machines: Vec<MachineApp>,
}

/// What one machine did for an app-consistent point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MachineApp {
    /// Its name.
    pub machine: String,
    /// Why it did nothing; null if it did.
    pub error: Option<String>,
    /// Its volumes of which something says how applications become quiet, with each step and its result.
    pub volumes: Vec<VolumeApp>,
}

/// What was done for one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeApp {
    /// Its name.
    pub volume: String,
    /// What was done.
    pub made: AppPoint,
}

/// A point of a group, or what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Point {
    /// Number in the catalogue.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// How it stands.
    pub state: PointState,
    /// Made by the schedule.
    pub auto: bool,
    /// When its barrier began.
    pub time: Time,
    /// For a failed one that stands for several: when the last of them began.
    pub until: Time,
    /// How many it stands for.
    pub tries: u64,
    /// The longest that a gate was closed for it, in microseconds.
    pub held_us: u64,
    /// It stays until somebody unpins it.
    pub pinned: bool,
    /// How it was made app-consistent; null if nobody wanted that.
    pub app: Option<GroupApp>,
    /// Who has no part in it.
    pub missing: Vec<Missing>,
    /// Where it lies; empty unless it is complete or partial.
    pub volumes: Vec<Restorable>,
}

/// A time in which no point was tried though the interval wanted some.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Gap {
    /// From then,
    pub since: Time,
    /// to then.
    pub until: Time,
    /// Why.
    pub why: String,
}

/// The points of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Points {
    /// The group.
    pub group: String,
    /// The points, the newest last.
    pub points: Vec<Point>,
    /// The gaps between them.
    pub gaps: Vec<Gap>,
}

/// Which points of a group stay, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeptPoints {
    /// The group.
    pub group: String,
    /// By which policy; null without one.
    pub policy: Option<String>,
    /// Every point that can be restored, oldest first.
    pub points: Vec<KeptPoint>,
}

/// What becomes of a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeptPoint {
    /// Its name.
    pub name: String,
    /// When its barrier began.
    pub time: Time,
    /// Why it stays: `window`, `hold`, `user`, `pin`, `hourly`, `daily`, `weekly`, `monthly`. Empty if it goes.
    pub kept: Vec<String>,
}

/// A group with figures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GroupView {
    /// The group.
    pub group: Group,
    /// Its newest complete or partial point.
    pub last: Option<Point>,
    /// What the newest barrier came to.
    pub newest: Option<Point>,
    /// How long gates were closed, over the points counted, in microseconds: half of them at most,
    pub hold_p50_us: u64,
    /// 99 of 100 at most,
    pub hold_p99_us: u64,
    /// and the longest.
    pub hold_max_us: u64,
    /// How many points that are.
    pub counted: u64,
}
