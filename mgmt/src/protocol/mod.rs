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
//! A connection may carry several requests, one after the other. Some requests change what it carries:
//!
//! * `nbd`: after the answer the client sends one byte, and from then on the same connection speaks NBD (server
//!   first, fixed newstyle), for one export;
//! * `agent-disk`: the same, and it carries the requests and answers of [`afterimage_format::failback`], each with its
//!   [header](afterimage_format::wire::Header);
//! * `export`: after a first answer with `more` the client passes a listening unix socket as a file descriptor
//!   ([`crate::fdpass`]); the server serves it and says so with a second answer. The export ends when
//!   the control connection does.
//!
//! A server that does not speak the request's version answers `version` and names its own. Fields may be
//! added within a version; readers ignore those that they do not know.

mod branch;
mod failure;
mod fence;
mod history;
mod members;
mod status;

pub use branch::{Access, BranchAsk, BranchKind, BranchList, BranchStatus};
pub use failure::{Code, Failure};
pub use fence::{AgentDisk, FenceAsk, FenceState, FenceStatus};
pub use history::{
    CompareBegun, DeviceResize, DiffEnd, Extents, GapInfo, PointInfo, PointList, Position, SizeChange, VolumePoint,
    Window,
};
pub use members::{ApiCall, ApiReply, Ca, Certified, CertifyRequest, Members, RevokeDone, TokenMade, TokenRequest};
pub use status::{GapNow, Role, State, Status, StoreStatus, SyncInfo, VolumeStatus};

use crate::attach::AttachOptions;
use crate::retention::{PointAction, RetentionChange};
use crate::verify::VerifyOptions;
use crate::when::When;
use serde::{Deserialize, Serialize};

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
        /// Whether it is to be app-consistent.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        app: bool,
    },
    /// Makes points of all volumes at one instant, waits until they are durable and answers with a list of [`VolumePoint`].
    CreatePoints {
        /// Name of the points.
        name: String,
    },
    /// Shows or changes what is kept of a volume, and answers [`Retention`](crate::retention::Retention).
    Retention {
        /// Name of the volume.
        volume: String,
        /// What is to be different.
        #[serde(default)]
        change: RetentionChange,
        /// Whether it is only tried out.
        #[serde(default)]
        dry_run: bool,
    },
    /// Pins, unpins or removes a point, and answers [`PointInfo`].
    ChangePoint {
        /// Name of the volume.
        volume: String,
        /// Name of the point.
        name: String,
        /// What is to become of it.
        action: PointAction,
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
    /// Makes a block device of a volume, or of a moment of it, and answers [`Attached`](crate::attach::Attached). It is there until it is detached.
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
        /// The volume that the earlier moment is of, if it is another: a branch and what it began on.
        #[serde(default)]
        base: Option<String>,
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
        /// Whether writes are taken, on a branch that is dropped with the connection.
        #[serde(default)]
        writable: bool,
        /// The volume is a branch, and is read and written as a disk: the moment does not count.
        #[serde(default)]
        branch: bool,
    },
    /// What there is to do with branches.
    Branch {
        /// That.
        #[serde(flatten)]
        ask: BranchAsk,
    },
    /// The fence of a volume: whether its agent may take writes. Answers [`FenceStatus`].
    Fence {
        /// That.
        #[serde(flatten)]
        ask: FenceAsk,
    },
    /// [`AgentDisk`]; after one byte of the client this connection carries requests about the disk of a fenced volume's agent, and their
    /// answers.
    AgentDisk {
        /// Name of the volume.
        volume: String,
    },
    /// What only mgmt can do, by its API; answers [`ApiReply`].
    Mgmt {
        /// That.
        #[serde(flatten)]
        call: ApiCall,
    },
    /// [`Position`] with `more`; then a listening socket is passed and served until this connection ends.
    Export {
        /// Name of the volume.
        volume: String,
        /// The moment.
        at: When,
        /// Whether writes are taken, on a branch that is dropped with the export.
        #[serde(default)]
        writable: bool,
        /// The volume is a branch, and is read and written as a disk: the moment does not count.
        #[serde(default)]
        branch: bool,
    },
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
