//! What the control socket asks of the daemon behind it.

use crate::attach::{AttachOptions, Attached, Detached};
use crate::protocol::{
    Access, AgentDisk, ApiCall, ApiReply, BranchAsk, Code, CompareBegun, DiffEnd, Failure, FenceAsk, FenceStatus,
    PointInfo, PointList, Position, SizeChange, Status, VolumePoint,
};
use crate::retention::{PointAction, Retention, RetentionChange};
use crate::verify::{VerifyOptions, VerifyProgress, VerifyReport};
use crate::when::When;
use std::os::unix::net::{UnixListener, UnixStream};

/// What the daemon can do. Called from many threads at once.
pub trait Site: Send + Sync + 'static {
    /// Everything that `status` shows.
    ///
    /// # Errors
    /// As [`Failure`] says.
    fn status(&self) -> Result<Status, Failure>;

    /// Points, gaps and window of a volume.
    ///
    /// # Errors
    /// [`Code::NotFound`] if there is no such volume.
    fn points(&self, volume: &str) -> Result<PointList, Failure>;

    /// Makes a point and waits until it is durable at the appliance.
    ///
    /// # Errors
    /// [`Code::NotReady`] if the volume is in no state to make points.
    fn create_point(&self, volume: &str, name: &str) -> Result<PointInfo, Failure>;

    /// Makes points of all volumes with a disk here at one instant, and waits until they are durable.
    ///
    /// # Errors
    /// [`Code::NotReady`] if one of the volumes is in no state to make points: then none has one.
    fn create_points(&self, name: &str) -> Result<Vec<VolumePoint>, Failure> {
        let _ = name;
        Err(Failure::new(Code::OtherRole, "no disks are here: run the command with --data of the agent"))
    }

    /// Makes an app-consistent point and waits until it is durable at the appliance.
    ///
    /// # Errors
    /// [`Code::BadRequest`] if nothing says how, [`Code::Failed`] with the step that failed.
    fn create_app_point(&self, volume: &str, name: &str) -> Result<PointInfo, Failure> {
        let _ = name;
        Err(Failure::new(Code::OtherRole, format!("the disk of volume {volume} is not here")))
    }

    /// Shows or changes what is kept of a volume.
    ///
    /// # Errors
    /// [`Code::OtherRole`] if the history is elsewhere.
    fn retention(&self, volume: &str, change: &RetentionChange, dry_run: bool) -> Result<Retention, Failure> {
        let _ = (change, dry_run);
        Err(Failure::new(Code::OtherRole, format!("the history of volume {volume} is not here")))
    }

    /// Pins, unpins or removes a point.
    ///
    /// # Errors
    /// [`Code::NotFound`] if there is no such point.
    fn change_point(&self, volume: &str, name: &str, action: PointAction) -> Result<PointInfo, Failure> {
        let _ = (name, action);
        Err(Failure::new(Code::OtherRole, format!("the history of volume {volume} is not here")))
    }

    /// Changes the size of a volume.
    ///
    /// # Errors
    /// [`Code::Conflict`] if the disk has not so many bytes.
    fn resize_volume(&self, volume: &str, size: Option<u64>) -> Result<SizeChange, Failure>;

    /// Begins to compare the whole disk of a volume with the appliance's copy.
    ///
    /// # Errors
    /// [`Code::NotFound`] if there is no such volume here.
    fn compare_volume(&self, volume: &str) -> Result<CompareBegun, Failure>;

    /// Makes a block device.
    ///
    /// # Errors
    /// [`Code::Failed`] if the kernel or a program that is needed is missing; the message names it.
    fn attach(&self, volume: &str, options: &AttachOptions) -> Result<Attached, Failure> {
        let _ = options;
        Err(Failure::new(Code::Failed, format!("this process makes no block device of volume {volume}")))
    }

    /// Takes block devices away.
    ///
    /// # Errors
    /// [`Code::NotFound`] if there is none, [`Code::Conflict`] if somebody uses it.
    fn detach(&self, what: &str) -> Result<Detached, Failure> {
        Err(Failure::new(Code::NotFound, format!("{what} is not attached here")))
    }

    /// What a moment means.
    ///
    /// # Errors
    /// As [`When::resolve`].
    fn resolve(&self, volume: &str, at: &When) -> Result<Position, Failure>;

    /// Ranges (offset, length) that may differ between two moments, of one volume or of two, in order.
    ///
    /// # Errors
    /// As [`When::resolve`], or if the store cannot be read.
    fn diff(&self, from: (&str, &When), to: (&str, &When)) -> Result<(DiffEnd, Vec<(u64, u64)>), Failure>;

    /// What there is to do with branches.
    ///
    /// # Errors
    /// [`Code::OtherRole`] if the history is elsewhere; otherwise what the appliance says.
    fn branch(&self, ask: &BranchAsk) -> Result<serde_json::Value, Failure> {
        let _ = ask;
        Err(Failure::new(
            Code::OtherRole,
            "branches are with the appliance: run the command with --data of `afterimage appliance`",
        ))
    }

    /// Puts up, takes down or shows the fence of a volume.
    ///
    /// # Errors
    /// [`Code::OtherRole`] if the history is elsewhere; [`Code::Conflict`] if the fence is another's.
    fn fence(&self, ask: &FenceAsk) -> Result<FenceStatus, Failure> {
        let _ = ask;
        Err(Failure::new(
            Code::OtherRole,
            "fences are with the appliance: run the command with --data of `afterimage appliance`",
        ))
    }

    /// Reaches for the disk of a fenced volume's agent, for a failback: what is opened carries its requests and answers.
    ///
    /// # Errors
    /// [`Code::OtherRole`] if the history is elsewhere; [`Code::NotReady`] if the agent is not there; [`Code::Conflict`] if the volume is
    /// not fenced, or somebody is writing to that disk.
    fn agent_disk(&self, volume: &str) -> Result<(AgentDisk, Box<dyn Opened>), Failure> {
        let _ = volume;
        Err(Failure::new(
            Code::OtherRole,
            "agents bring and fetch at the appliance: run the command with --data of `afterimage appliance`",
        ))
    }

    /// Compares disk and newest history while the guest goes on. `each` hears of the progress and ends it with `false`.
    ///
    /// # Errors
    /// [`Code::NotReady`] if the volume is not live, or there is no disk or no appliance here.
    fn verify(
        &self,
        volume: &str,
        options: &VerifyOptions,
        each: &mut dyn FnMut(VerifyProgress) -> bool,
    ) -> Result<VerifyReport, Failure> {
        let _ = (options, each);
        Err(Failure::new(Code::NotReady, format!("this process has no disk of volume {volume} to verify")))
    }

    /// What only mgmt can do, for `who`.
    ///
    /// # Errors
    /// [`Code::OtherRole`] if this is another role.
    fn mgmt(&self, who: &str, call: &ApiCall) -> Result<ApiReply, Failure> {
        let _ = (who, call);
        Err(Failure::new(
            Code::OtherRole,
            "this is not mgmt: run the command with --data of `afterimage mgmt`, or with --mgmt and a token",
        ))
    }

    /// Opens a volume as it was, or a branch, to be served.
    ///
    /// # Errors
    /// As [`When::resolve`], or if the store cannot be read.
    fn open(&self, volume: &str, at: &When, access: Access) -> Result<(Position, Box<dyn Opened>), Failure>;
}

/// What a connection was opened for, mostly a volume as it was that is served over NBD. Dropping it closes it.
pub trait Opened: Send {
    /// Speaks on this connection until it ends.
    fn serve_stream(self: Box<Self>, stream: UnixStream);

    /// Serves all who connect, until the returned guard is dropped.
    ///
    /// # Errors
    /// If the server cannot start.
    fn serve_listener(self: Box<Self>, listener: UnixListener) -> Result<Box<dyn Send>, Failure>;
}
