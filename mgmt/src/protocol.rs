//! Requests and replies of the control socket, which are also the shapes that `--json` prints.
//!
//! The socket is `DATA/control.sock`, mode 0600: who can open it may do everything. Each side sends one JSON
//! object per line, ended by a line feed.
//!
//! ```text
//! client:  {"v":1,"op":"points","volume":"disk0"}
//! server:  {"ok":{...}}                           the answer
//!          {"ok":{...},"more":true}               a part of it, more lines follow
//!          {"error":{"code":"not-found","message":"..."}}
//! ```
//!
//! A connection may carry several requests, one after the other. Two requests change what it carries:
//!
//! * `nbd`: after the answer the client sends one byte, and from then on the same connection speaks NBD (server
//!   first, fixed newstyle), for one export;
//! * `export`: after a first answer with `more` the client passes a listening unix socket as a file descriptor
//!   ([`crate::fdpass`]); the server serves it and says so with a second answer. The export ends when
//!   the control connection does.
//!
//! A server that does not speak the request's version answers `version` and names its own. Fields may be
//! added within a version; readers ignore those that they do not know.

use crate::attach::{AttachOptions, Attached};
use crate::units::Time;
use crate::verify::VerifyOptions;
use crate::when::When;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The version of the protocol and of the `--json` shapes.
pub const VERSION: u32 = 1;

/// A request with its version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// [`VERSION`].
    pub v: u32,
    /// What is asked.
    #[serde(flatten)]
    pub request: Request,
}

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Request {
    /// [`Status`], once.
    Status,
    /// [`Status`] every so often, each with `more`, until the client goes away.
    Watch {
        /// Milliseconds between two answers; at least 100 are used.
        interval_ms: u64,
    },
    /// [`PointList`].
    Points {
        /// Name of the volume.
        volume: String,
    },
    /// Makes a point, waits until it is durable and answers [`PointInfo`].
    CreatePoint {
        /// Name of the volume.
        volume: String,
        /// Name of the point.
        name: String,
    },
    /// Changes the size of a volume to that of its disk, or to a smaller one, and answers [`SizeChange`].
    ResizeVolume {
        /// Name of the volume.
        volume: String,
        /// Bytes; without it what the disk has.
        #[serde(default)]
        size: Option<u64>,
    },
    /// Has the whole disk compared with the appliance's copy, in a gap, and answers [`CompareBegun`].
    CompareVolume {
        /// Name of the volume.
        volume: String,
    },
    /// Makes a block device of a volume, or of a moment of it, and answers [`Attached`]. It is there until it is detached.
    Attach {
        /// Name of the volume.
        volume: String,
        /// What and how.
        #[serde(flatten)]
        options: AttachOptions,
    },
    /// Takes block devices away again and answers [`Detached`](crate::attach::Detached).
    Detach {
        /// Name of a volume (all its block devices), or a block device.
        what: String,
    },
    /// [`Position`] of a moment.
    Resolve {
        /// Name of the volume.
        volume: String,
        /// The moment.
        at: When,
    },
    /// Parts of [`Extents`] with `more`, then [`DiffEnd`].
    Diff {
        /// Name of the volume.
        volume: String,
        /// The earlier moment.
        from: When,
        /// The later one.
        to: When,
    },
    /// Parts of [`VerifyProgress`](crate::verify::VerifyProgress) with `more`, then
    /// [`VerifyReport`](crate::verify::VerifyReport). Ends when the client goes away.
    Verify {
        /// Name of the volume.
        volume: String,
        /// What and how.
        #[serde(flatten)]
        options: VerifyOptions,
    },
    /// [`Position`]; after one byte of the client this connection speaks NBD for the volume as it was.
    Nbd {
        /// Name of the volume.
        volume: String,
        /// The moment.
        at: When,
        /// Whether writes are taken, into a scratch layer that is dropped with the connection.
        #[serde(default)]
        writable: bool,
    },
    /// What only mgmt can do.
    Mgmt {
        /// That.
        #[serde(flatten)]
        ask: MgmtAsk,
    },
    /// [`Position`] with `more`; then a listening socket is passed and served until this connection ends.
    Export {
        /// Name of the volume.
        volume: String,
        /// The moment.
        at: When,
        /// Whether writes are taken, into a scratch layer that is dropped with the export.
        #[serde(default)]
        writable: bool,
    },
}

/// What a client asks of mgmt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum MgmtAsk {
    /// Makes a token and answers [`TokenMade`].
    CreateToken {
        /// `agent` or `appliance`.
        role: String,
        /// The member's name; that of its host without it.
        #[serde(default)]
        name: Option<String>,
        /// The member's id, to go on as one that was lost.
        #[serde(default)]
        id: Option<String>,
        /// For a machine: the name of its appliance.
        #[serde(default)]
        appliance: Option<String>,
        /// Takes the place of the member of this name.
        #[serde(default)]
        replace: bool,
        /// How long it lasts.
        ttl_seconds: u64,
    },
    /// What [`crate::groups::Groups`] does.
    Group {
        /// That.
        #[serde(flatten)]
        order: crate::groups::GroupAsk,
    },
    /// [`Members`].
    Members,
    /// The newest lines of the audit log.
    Audit {
        /// How many.
        most: u32,
    },
    /// Revokes a member or a certificate and answers [`RevokeDone`] once all who are connected have the list, or time is up.
    Revoke {
        /// Name or id of a member, or a serial number.
        what: String,
    },
    /// Makes a token of the API and answers [`ApiTokenMade`](crate::api::types::ApiTokenMade).
    CreateApiToken {
        /// What is asked for.
        new: crate::api::types::NewApiToken,
    },
    /// All tokens of the API: a list of [`ApiToken`](crate::api::types::ApiToken).
    ApiTokens,
    /// Lets a token of the API count no more.
    RevokeApiToken {
        /// Its number.
        id: i64,
    },
    /// The CA's certificate: [`Ca`].
    Ca,
    /// mgmt's metrics, and those of its members, as one text.
    Metrics,
    /// Certifies a key for NBD and answers [`Certified`].
    Certify {
        /// PKCS #10, DER, as hexadecimal digits.
        request: String,
        /// Its name.
        name: String,
        /// For a server: the names and addresses at which clients reach it. For a client: none.
        #[serde(default)]
        hosts: Vec<String>,
    },
}

/// mgmt's CA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ca {
    /// Its certificate, PEM: for curl and Prometheus.
    pub certificate: String,
    /// SHA-256 of it (DER), by which our own commands know it.
    pub pin: String,
}

/// A token that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenMade {
    /// The token itself. It is not kept.
    pub token: String,
    /// What one can join as with it.
    pub role: String,
    /// When it ends.
    pub expires: Time,
}

/// Who has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    /// Machines and appliances.
    pub members: Vec<crate::catalogue::Member>,
    /// Ids of those that are connected now.
    pub connected: Vec<String>,
    /// Certificates that have not expired.
    pub certificates: Vec<crate::catalogue::CertificateRow>,
    /// Tokens that can be used.
    pub tokens: Vec<crate::catalogue::TokenRow>,
}

/// What a revocation did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokeDone {
    /// Who was revoked.
    pub name: String,
    /// How many certificates that were valid.
    pub certificates: usize,
    /// Appliances that refuse them now.
    pub reached: Vec<String>,
    /// Appliances that will when they are connected again.
    pub waiting: Vec<String>,
}

/// A certificate for NBD.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certified {
    /// PEM.
    pub certificate: String,
    /// The CA's, PEM.
    pub authority: String,
}

/// A line of an answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Reply {
    /// It went well.
    Ok {
        /// The answer or a part of it.
        ok: serde_json::Value,
        /// Whether another line follows.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        more: bool,
    },
    /// It failed.
    Error {
        /// Why.
        error: Failure,
    },
}

/// The kind of a failure, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The request was not understood.
    BadRequest,
    /// The version of the request is not spoken.
    Version,
    /// Too many connections: try again.
    Busy,
    /// No such volume or point.
    NotFound,
    /// The moment is before the window or after the newest write.
    OutsideWindow,
    /// The moment lies in a gap of the history.
    Gap,
    /// Not now: the initial sync has not ended, or the volume is behind.
    NotReady,
    /// It contradicts what is there.
    Conflict,
    /// The other role has to be asked: the message says where.
    OtherRole,
    /// It was tried and failed.
    Failed,
    /// A code of a newer version.
    #[serde(other)]
    Other,
}

/// Why a request failed: the message is for people and stands on its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The kind.
    pub code: Code,
    /// What was wrong, with which object, and what to do.
    pub message: String,
}

impl Failure {
    /// A failure of this kind.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

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
    /// Name of the volume.
    pub volume: String,
    /// The earlier seq.
    pub from: u64,
    /// The later seq.
    pub to: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_what_the_module_says() {
        let line = r#"{"v":1,"op":"points","volume":"disk0"}"#;
        let request = Envelope { v: 1, request: Request::Points { volume: "disk0".to_owned() } };
        assert_eq!(serde_json::from_str::<Envelope>(line).unwrap(), request);
        assert_eq!(serde_json::to_string(&request).unwrap(), line);
        let line = r#"{"v":1,"op":"nbd","volume":"d","at":"-10m"}"#;
        assert!(matches!(
            serde_json::from_str::<Envelope>(line).unwrap().request,
            Request::Nbd { writable: false, at: When::Ago(_), .. }
        ));
        let line = r#"{"v":1,"op":"watch","interval-ms":500}"#;
        assert_eq!(serde_json::from_str::<Envelope>(line).unwrap().request, Request::Watch { interval_ms: 500 });
    }

    #[test]
    fn replies_are_what_the_module_says() {
        let ok = Reply::Ok { ok: serde_json::json!({"a": 1}), more: false };
        assert_eq!(serde_json::to_string(&ok).unwrap(), r#"{"ok":{"a":1}}"#);
        let error = r#"{"error":{"code":"not-found","message":"m"}}"#;
        let Reply::Error { error: failure } = serde_json::from_str(error).unwrap() else { panic!("an error") };
        assert_eq!(failure, Failure::new(Code::NotFound, "m"));
        let newer = r#"{"error":{"code":"from-the-future","message":"m"}}"#;
        let Reply::Error { error } = serde_json::from_str(newer).unwrap() else { panic!("an error") };
        assert_eq!(error.code, Code::Other);
    }
}
