//! The shapes of the API. Their schemas are in docs/openapi.json, which is made from them.
//!
//! Fields may be added within /v1; readers ignore those that they do not know. What a caller sends is taken literally: a field
//! that is not known is an error, so that a misspelt one does not go by unseen.

use crate::app::AppPoint;
use crate::catalogue::{ApiRole, PolicySettings, Severity};
use crate::members::DiskWish;
use crate::units::Time;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

impl JsonSchema for Time {
    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "date-time", "description": "RFC 3339, UTC" })
    }
}

/// A list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct List<T> {
    /// What is in it.
    pub items: Vec<T>,
}

/// An error, as RFC 9457 has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProblemBody {
    /// The kind of error, for programs: `urn:afterimage:not-found`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind, for people.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What was wrong, with which object, and what to do.
    pub detail: String,
    /// For a machine that is not ready: why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
}

/// mgmt itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MgmtStatus {
    /// Version of the program.
    pub version: String,
    /// The clock of mgmt.
    pub time: Time,
    /// Agents that have joined and are not revoked.
    pub agents: u64,
    /// Of those, connected.
    pub agents_connected: u64,
    /// Appliances that have joined and are not revoked.
    pub appliances: u64,
    /// Of those, connected.
    pub appliances_connected: u64,
    /// Who the caller is.
    pub caller: String,
    /// What the caller may do.
    pub role: ApiRole,
}

/// What a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MachineKind {
    /// The host of an agent.
    Host,
    /// One of several whose disks one agent serves.
    Guest,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// What it is.
    pub kind: MachineKind,
    /// The name of its agent.
    pub agent: String,
    /// The host that joined with that agent.
    pub host: String,
    /// The name of the appliance that it belongs to.
    pub appliance: String,
    /// Whether the agent is connected to mgmt.
    pub connected: bool,
    /// The worst state of its volumes: `live`, `initial-sync`, `resync`, `dirty`, `error`, `away` or `none`.
    pub state: String,
    /// How many volumes it has.
    pub volumes: u64,
    /// Their bytes.
    pub size: u64,
    /// Age of the oldest write that is not durable, of all its volumes; null if that is not known now.
    pub lag_seconds: Option<f64>,
    /// Bytes that are not durable; null if that is not known now.
    pub lag_bytes: Option<u64>,
    /// The policy that protects it; null if none does.
    pub policy: Option<String>,
    /// What it becomes elsewhere; null if it is not protected.
    pub target: Option<Target>,
    /// When its agent joined, or when it was named.
    pub created: Time,
    /// Since when its certificates count no more.
    pub revoked: Option<Time>,
}

/// Names a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewMachine {
    /// Its name.
    pub name: String,
    /// The machine whose agent serves its disks.
    pub agent: String,
    /// Names of its volumes.
    #[serde(default)]
    pub volumes: Vec<String>,
}

/// Which network of the source becomes which one elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkMap {
    /// The interface at the source.
    pub source: String,
    /// The network where it runs after a failover.
    pub target: String,
}

/// What a machine becomes elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Target {
    /// The appliance that keeps the history.
    pub appliance: String,
    /// Where there.
    pub store: String,
    /// Where a failover would run.
    pub failover_host: String,
    /// As what.
    pub failover_name: String,
    /// With which networks.
    pub network: Vec<NetworkMap>,
}

/// Asks to protect a machine. What is left out is chosen from the machine's own settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ProtectRequest {
    /// The policy; `default` without it, which is made if there is none.
    pub policy: Option<String>,
    /// Only say what was found and what would be made.
    pub dry_run: bool,
    /// Go on although something was found that speaks against it.
    pub force: bool,
    /// Disks that the agent is to take under protection, beside those that it serves already.
    pub disks: Vec<DiskWish>,
    /// Where the appliance keeps the history.
    pub store: Option<String>,
    /// Where a failover would run.
    pub failover_host: Option<String>,
    /// As what.
    pub failover_name: Option<String>,
    /// With which networks: what is not named here is mapped by name.
    pub network: Vec<NetworkMap>,
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, less well than it could.
    Warning,
    /// It does not work like this.
    Error,
}

/// Something that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// Counts from 1.
    pub number: u32,
    /// What was looked at: `agent`, `kernel`, `space`, `ports`, `clock`, `disk`, `throughput`, `network`.
    pub check: String,
    /// How much it matters.
    pub level: Level,
    /// What was found.
    pub text: String,
    /// What to do about it; null if it is fine.
    pub remedy: Option<String>,
}

/// Whether a machine can be protected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReadinessReport {
    /// The machine.
    pub machine: String,
    /// Whether nothing speaks against it.
    pub ready: bool,
    /// What was looked at.
    pub findings: Vec<Finding>,
}

/// Which disks to look at, beside those that are served already.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ReadinessRequest {
    /// Their paths on the agent's host.
    pub disks: Vec<String>,
}

/// What protecting a machine did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Protected {
    /// The machine.
    pub machine: String,
    /// False if it was only tried.
    pub done: bool,
    /// Its policy.
    pub policy: String,
    /// What it becomes elsewhere.
    pub target: Target,
    /// Volumes that were added.
    pub added: Vec<String>,
    /// What was looked at.
    pub findings: Vec<Finding>,
    /// The job's number; null if it was only tried.
    pub job: Option<i64>,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeView {
    /// Its name, one of a kind for its agent.
    pub name: String,
    /// Its id.
    pub id: String,
    /// The machine that it belongs to.
    pub machine: String,
    /// The name of the agent that serves it.
    pub agent: String,
    /// The appliance that keeps its history.
    pub appliance: String,
    /// The disk behind it.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// What it is doing; `away` while its agent is not connected to mgmt, `gone` when the agent serves it no more.
    pub state: String,
    /// The last state that mgmt knows of.
    pub last_state: String,
    /// Since when mgmt has known it in that one.
    pub since: Time,
    /// Why it is not live.
    pub reason: Option<String>,
    /// What the agent says now; null while it is away.
    pub now: Option<VolumeNow>,
    /// What the appliance says now; null while it is away.
    pub history: Option<VolumeHistory>,
}

/// A volume, as its agent says now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeNow {
    /// Whether the agent is connected to the appliance.
    pub connected: bool,
    /// Seq of the newest write.
    pub seq_acked: u64,
    /// Seq up to which everything is durable.
    pub seq_durable: u64,
    /// Age of the oldest write that is not durable.
    pub lag_seconds: f64,
    /// Bytes that are not durable.
    pub lag_bytes: u64,
    /// Size of the ring.
    pub ring_bytes: u64,
    /// Bytes of it in use.
    pub ring_used: u64,
    /// Bytes that are still to be copied.
    pub dirty_bytes: u64,
    /// Bytes a second of the sync that goes on; null if none does.
    pub sync_bytes_per_second: Option<u64>,
    /// Where it is served.
    pub uri: Vec<String>,
}

/// A volume, as its appliance says now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeHistory {
    /// Recovery points that can be chosen.
    pub points: u64,
    /// Bytes that the history takes.
    pub stored_bytes: u64,
    /// Bytes of the writes in the history.
    pub logical_bytes: u64,
    /// From when on any write can be chosen.
    pub first_time: Option<Time>,
    /// The newest durable write.
    pub durable_time: Option<Time>,
}

/// A recovery point of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PointView {
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

/// Recovery points of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumePoints {
    /// The volume's name.
    pub volume: String,
    /// From when on any write can be chosen; null if nothing can.
    pub first_time: Option<Time>,
    /// Until when.
    pub last_time: Option<Time>,
    /// Points, oldest first.
    pub points: Vec<PointView>,
    /// Holes in the history, oldest first.
    pub gaps: Vec<GapView>,
}

/// A hole in the history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GapView {
    /// First seq that cannot be chosen.
    pub from_seq: u64,
    /// When it began.
    pub from_time: Time,
    /// First seq that can be chosen again; null while it is open.
    pub to_seq: Option<u64>,
    /// When it ended.
    pub to_time: Option<Time>,
}

/// An appliance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ApplianceView {
    /// Its name.
    pub name: String,
    /// Its id, which is its vault's.
    pub id: String,
    /// The host that joined.
    pub host: String,
    /// Whether it is connected to mgmt.
    pub connected: bool,
    /// Version of its program; null while it is away.
    pub version: Option<String>,
    /// Where agents connect; empty while it is away.
    pub listen: Vec<String>,
    /// Volumes that it keeps the history of; null while it is away.
    pub volumes: Option<u64>,
    /// Bytes that their history takes.
    pub stored_bytes: Option<u64>,
    /// Bytes of the writes in it.
    pub logical_bytes: Option<u64>,
    /// How far back any write can be chosen, in seconds.
    pub window_seconds: Option<u64>,
    /// When it joined.
    pub created: Time,
    /// Since when its certificates count no more.
    pub revoked: Option<Time>,
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Policy {
    /// Its name.
    pub name: String,
    /// What it says.
    pub settings: PolicySettings,
    /// Machines that it protects.
    pub machines: Vec<String>,
    /// Groups that go by it.
    #[serde(default)]
    pub groups: Vec<String>,
    /// When it was made.
    pub created: Time,
    /// When it was changed.
    pub changed: Time,
}

/// A policy to be made. What is left out is as with the policy `default`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPolicy {
    /// Its name.
    pub name: String,
    /// What it says.
    #[serde(default)]
    pub settings: PolicyChange,
}

/// What is to change in a policy: what is left out stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyChange {
    /// How far back any write can be chosen, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_seconds: Option<u64>,
    /// Hourly points that are kept beyond the window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hourly: Option<u32>,
    /// Daily ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub daily: Option<u32>,
    /// Weekly ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weekly: Option<u32>,
    /// Monthly ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monthly: Option<u32>,
    /// Time between points that are consistent for a crash, in seconds; 0 makes none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crash_interval_seconds: Option<u32>,
    /// Time between points that are consistent for applications, in minutes; 0 makes none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_interval_minutes: Option<u32>,
    /// Whether a group's point is kept without members that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_partial: Option<bool>,
}

impl PolicyChange {
    /// Makes the change.
    pub fn apply(&self, s: &mut PolicySettings) {
        s.window_seconds = self.window_seconds.unwrap_or(s.window_seconds);
        s.hourly = self.hourly.unwrap_or(s.hourly);
        s.daily = self.daily.unwrap_or(s.daily);
        s.weekly = self.weekly.unwrap_or(s.weekly);
        s.monthly = self.monthly.unwrap_or(s.monthly);
        s.crash_interval_seconds = self.crash_interval_seconds.unwrap_or(s.crash_interval_seconds);
        s.app_interval_minutes = self.app_interval_minutes.unwrap_or(s.app_interval_minutes);
        s.allow_partial = self.allow_partial.unwrap_or(s.allow_partial);
    }
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Job {
    /// Its number.
    pub id: i64,
    /// What.
    pub kind: String,
    /// To what.
    pub object: String,
    /// Who asked for it.
    pub who: String,
    /// `running`, `done` or `failed`.
    pub state: String,
    /// How it goes or went.
    pub text: String,
    /// When it began.
    pub created: Time,
    /// When it ended.
    pub ended: Option<Time>,
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Grows with every event.
    pub id: i64,
    /// When.
    pub time: Time,
    /// How much it matters.
    pub severity: Severity,
    /// Its kind: `change`, `connected`, `away`, `volume-state`, `volume-size`, `volume-gone`, `policy`, `job`.
    pub kind: String,
    /// What it is about.
    pub object: String,
    /// What happened.
    pub text: String,
}

/// Events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Events {
    /// They, oldest first.
    pub events: Vec<Event>,
    /// What to give as `after` to get those that follow.
    pub next: i64,
}

/// A line of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditLine {
    /// Grows by one.
    pub id: i64,
    /// When.
    pub time: Time,
    /// Who.
    pub who: String,
    /// Did what.
    pub action: String,
    /// To what.
    pub object: String,
    /// More of it.
    pub detail: String,
}

/// A token of the API, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApiToken {
    /// Its number.
    pub id: i64,
    /// Whose it is.
    pub name: String,
    /// What its owner may do.
    pub role: ApiRole,
    /// When it was made.
    pub created: Time,
    /// When it ends.
    pub expires: Time,
    /// When it was revoked.
    pub revoked: Option<Time>,
}

/// A token of the API to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewApiToken {
    /// Whose it is: the audit log names it.
    pub name: String,
    /// What its owner may do.
    pub role: ApiRole,
    /// How long it lasts, in seconds.
    pub ttl_seconds: u64,
}

/// A token of the API that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApiTokenMade {
    /// The token itself. It is not kept.
    pub token: String,
    /// Its number.
    pub id: i64,
    /// Whose it is.
    pub name: String,
    /// What its owner may do.
    pub role: ApiRole,
    /// When it ends.
    pub expires: Time,
}
