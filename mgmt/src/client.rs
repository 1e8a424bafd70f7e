//! The command's end of the control socket.

use crate::attach::{AttachOptions, Attached, Detached};
use crate::fdpass;
use crate::lines::{LineError, LineReader, MAX_REPLY, write_line};
use crate::protocol::{
    Access, AgentDisk, ApiCall, ApiReply, BranchAsk, CompareBegun, DiffEnd, Envelope, Extents, Failure, FenceAsk,
    FenceStatus, PointInfo, PointList, Position, Reply, Request, SizeChange, Status, VERSION, VolumePoint,
};
use crate::retention::{PointAction, Retention, RetentionChange};
use crate::verify::{VerifyOptions, VerifyProgress, VerifyReport};
use crate::when::When;
use serde::de::DeserializeOwned;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;

/// How long an answer may take: a point waits for the appliance, a diff reads layers.
const ANSWER: Duration = Duration::from_secs(120);

/// Why a request brought no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no afterimage is running on data folder {0}: start one with `afterimage up` (or agent, or appliance), or name its folder with --data"
    )]
    NotRunning(PathBuf),
    /// The socket cannot be reached.
    #[error("the control socket {0} cannot be opened: {1}")]
    Connect(PathBuf, #[source] io::Error),
    /// The connection failed.
    #[error(transparent)]
    Line(#[from] LineError),
    /// The daemon went away before it answered.
    #[error("the afterimage process closed the control connection before it answered: is it stopping?")]
    Closed,
    /// The daemon said no.
    #[error(transparent)]
    Refused(#[from] Failure),
    /// The daemon answered something else.
    #[error("the afterimage process gave an answer that was not understood: {0}; is it of another version?")]
    Answer(serde_json::Error),
}

impl From<io::Error> for ClientError {
    fn from(e: io::Error) -> Self {
        ClientError::Line(LineError::Io(e))
    }
}

/// A connection to the daemon that owns a data folder.
#[derive(Debug)]
pub struct ControlClient {
    stream: UnixStream,
    lines: LineReader<UnixStream>,
}

impl ControlClient {
    /// Connects to `DATA/control.sock`.
    ///
    /// # Errors
    /// [`ClientError::NotRunning`] if nobody listens.
    pub fn connect(data: &Path) -> Result<Self, ClientError> {
        let path = data.join("control.sock");
        let stream = UnixStream::connect(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NotRunning(data.to_owned()),
            _ => ClientError::Connect(path, e),
        })?;
        Self::over(stream)
    }

    /// Speaks over a connection that is there already.
    ///
    /// # Errors
    /// If it cannot be set up.
    pub fn over(stream: UnixStream) -> Result<Self, ClientError> {
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        let lines = LineReader::new(stream.try_clone()?, MAX_REPLY);
        Ok(Self { stream, lines })
    }

    fn send(&self, request: Request) -> Result<(), ClientError> {
        Ok(write_line(&self.stream, &Envelope { v: VERSION, request })?)
    }

    fn receive<T: DeserializeOwned>(&mut self) -> Result<(T, bool), ClientError> {
        let (value, more) = self.receive_value()?;
        Ok((serde_json::from_value(value).map_err(ClientError::Answer)?, more))
    }

    fn receive_value(&mut self) -> Result<(serde_json::Value, bool), ClientError> {
        match self.lines.read::<Reply>() {
            Ok(Some(Reply::Ok { ok, more })) => Ok((ok, more)),
            Ok(Some(Reply::Error { error })) => Err(error.into()),
            Ok(None) => Err(ClientError::Closed),
            Err(LineError::Json(e)) => Err(ClientError::Answer(e)),
            Err(e) => Err(e.into()),
        }
    }

    fn call<T: DeserializeOwned>(&mut self, request: Request) -> Result<T, ClientError> {
        // A daemon that is busy says so and closes, perhaps before the request is sent: its reason counts, not the broken pipe.
        let sent = self.send(request);
        match self.receive() {
            Err(ClientError::Refused(why)) => Err(ClientError::Refused(why)),
            answer => sent.and(answer).map(|(value, _)| value),
        }
    }

    /// See [`Request::Fence`].
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub fn fence(&mut self, ask: FenceAsk) -> Result<FenceStatus, ClientError> {
        self.call(Request::Fence { ask })
    }

    /// See [`Request::Mgmt`].
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub fn mgmt(&mut self, call: ApiCall) -> Result<ApiReply, ClientError> {
        self.call(Request::Mgmt { call })
    }

    /// See [`Request::Status`].
    ///
    /// # Errors
    /// As [`ClientError`] says; so for all that follow.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        self.call(Request::Status)
    }

    /// Calls `each` with every status until it says stop (`false`) or the daemon goes away.
    ///
    /// # Errors
    /// [`ClientError::Closed`] when the daemon ends.
    pub fn watch(mut self, interval: Duration, mut each: impl FnMut(Status) -> bool) -> Result<(), ClientError> {
        let interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        self.send(Request::Watch { interval_ms })?;
        while each(self.receive()?.0) {}
        Ok(())
    }

    /// See [`Request::Points`].
    ///
    /// # Errors
    /// If there is no such volume.
    pub fn points(&mut self, volume: &str) -> Result<PointList, ClientError> {
        self.call(Request::Points { volume: volume.to_owned() })
    }

    /// See [`Request::CreatePoint`].
    ///
    /// # Errors
    /// If the volume is in no state to make points.
    pub fn create_point(&mut self, volume: &str, name: &str) -> Result<PointInfo, ClientError> {
        self.call(Request::CreatePoint { volume: volume.to_owned(), name: name.to_owned(), app: false })
    }

    /// See [`Request::CreatePoints`].
    ///
    /// # Errors
    /// If one of the volumes is in no state to make points.
    pub fn create_points(&mut self, name: &str) -> Result<Vec<VolumePoint>, ClientError> {
        self.call(Request::CreatePoints { name: name.to_owned() })
    }

    /// The same as [`ControlClient::create_point`], app-consistent.
    ///
    /// # Errors
    /// If nothing says how, or a step failed and that ends it.
    pub fn create_app_point(&mut self, volume: &str, name: &str) -> Result<PointInfo, ClientError> {
        self.call(Request::CreatePoint { volume: volume.to_owned(), name: name.to_owned(), app: true })
    }

    /// See [`Request::Retention`].
    ///
    /// # Errors
    /// If there is no such volume.
    pub fn retention(
        &mut self,
        volume: &str,
        change: RetentionChange,
        dry_run: bool,
    ) -> Result<Retention, ClientError> {
        self.call(Request::Retention { volume: volume.to_owned(), change, dry_run })
    }

    /// See [`Request::ChangePoint`].
    ///
    /// # Errors
    /// If there is no such point.
    pub fn change_point(&mut self, volume: &str, name: &str, action: PointAction) -> Result<PointInfo, ClientError> {
        self.call(Request::ChangePoint { volume: volume.to_owned(), name: name.to_owned(), action })
    }

    /// See [`Request::ResizeVolume`].
    ///
    /// # Errors
    /// If the disk has not so many bytes.
    pub fn resize_volume(&mut self, volume: &str, size: Option<u64>) -> Result<SizeChange, ClientError> {
        self.call(Request::ResizeVolume { volume: volume.to_owned(), size })
    }

    /// See [`Request::CompareVolume`].
    ///
    /// # Errors
    /// If there is no such volume.
    pub fn compare_volume(&mut self, volume: &str) -> Result<CompareBegun, ClientError> {
        self.call(Request::CompareVolume { volume: volume.to_owned() })
    }

    /// See [`Request::Attach`].
    ///
    /// # Errors
    /// If the kernel or a program that is needed is missing.
    pub fn attach(&mut self, volume: &str, options: AttachOptions) -> Result<Attached, ClientError> {
        self.call(Request::Attach { volume: volume.to_owned(), options })
    }

    /// See [`Request::Detach`].
    ///
    /// # Errors
    /// If there is no such device, or somebody uses it.
    pub fn detach(&mut self, what: &str) -> Result<Detached, ClientError> {
        self.call(Request::Detach { what: what.to_owned() })
    }

    /// See [`Request::Resolve`].
    ///
    /// # Errors
    /// If the moment cannot be chosen.
    pub fn resolve(&mut self, volume: &str, at: &When) -> Result<Position, ClientError> {
        self.call(Request::Resolve { volume: volume.to_owned(), at: at.clone() })
    }

    /// See [`Request::Diff`]. `each` gets every changed range (offset, length), in order.
    ///
    /// # Errors
    /// If a moment cannot be chosen.
    pub fn diff(
        &mut self,
        (base, from): (Option<&str>, &When),
        (volume, to): (&str, &When),
        mut each: impl FnMut(u64, u64),
    ) -> Result<DiffEnd, ClientError> {
        let (volume, base) = (volume.to_owned(), base.map(str::to_owned));
        self.send(Request::Diff { volume, base, from: from.clone(), to: to.clone() })?;
        loop {
            let (value, more) = self.receive_value()?;
            if !more {
                return serde_json::from_value(value).map_err(ClientError::Answer);
            }
            let part: Extents = serde_json::from_value(value).map_err(ClientError::Answer)?;
            part.extents.iter().for_each(|(offset, len)| each(*offset, *len));
        }
    }

    /// See [`BranchAsk`].
    ///
    /// # Errors
    /// What the appliance says.
    pub fn branch<T: serde::de::DeserializeOwned>(&mut self, ask: BranchAsk) -> Result<T, ClientError> {
        self.call(Request::Branch { ask })
    }

    /// See [`Request::Verify`]. `each` gets the progress.
    ///
    /// # Errors
    /// If the volume cannot be verified now.
    pub fn verify(
        &mut self,
        volume: &str,
        options: VerifyOptions,
        mut each: impl FnMut(VerifyProgress),
    ) -> Result<VerifyReport, ClientError> {
        self.send(Request::Verify { volume: volume.to_owned(), options })?;
        loop {
            let (value, more) = self.receive_value()?;
            if !more {
                return serde_json::from_value(value).map_err(ClientError::Answer);
            }
            each(serde_json::from_value(value).map_err(ClientError::Answer)?);
        }
    }

    /// See [`Request::Nbd`]: the connection that is returned speaks NBD.
    ///
    /// # Errors
    /// If the moment cannot be opened.
    pub fn nbd(mut self, volume: &str, at: &When, access: Access) -> Result<(Position, UnixStream), ClientError> {
        let (volume, (writable, branch)) = (volume.to_owned(), access.flags());
        let position = self.call(Request::Nbd { volume, at: at.clone(), writable, branch })?;
        Ok((position, self.handed_over()?))
    }

    /// See [`Request::AgentDisk`]: the connection that is returned carries requests and answers about that disk.
    ///
    /// # Errors
    /// If the disk cannot be reached.
    pub fn agent_disk(mut self, volume: &str) -> Result<(AgentDisk, UnixStream), ClientError> {
        let disk = self.call(Request::AgentDisk { volume: volume.to_owned() })?;
        Ok((disk, self.handed_over()?))
    }

    /// The connection, from here on for something else.
    fn handed_over(self) -> Result<UnixStream, ClientError> {
        // The server may speak first, as in NBD, and waits for this byte so that nothing of it is in our buffer.
        let Some(mut stream) = self.lines.into_inner() else { return Err(ClientError::Closed) };
        stream.write_all(b"G")?;
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        Ok(stream)
    }

    /// See [`Request::Export`]: `listener` is served until the returned guard is dropped.
    ///
    /// # Errors
    /// If the moment cannot be opened or the listener is not taken.
    pub fn export(
        mut self,
        volume: &str,
        at: &When,
        access: Access,
        listener: &UnixListener,
    ) -> Result<(Position, ExportGuard), ClientError> {
        let (volume, (writable, branch)) = (volume.to_owned(), access.flags());
        self.send(Request::Export { volume, at: at.clone(), writable, branch })?;
        self.receive_value()?;
        fdpass::send(&self.stream, listener.as_fd())?;
        let (position, _) = self.receive()?;
        self.stream.set_read_timeout(None)?;
        Ok((position, ExportGuard(self.stream)))
    }
}

/// Keeps an export alive.
#[derive(Debug)]
pub struct ExportGuard(UnixStream);

impl ExportGuard {
    /// The control connection: readable (at its end) when the daemon has gone away.
    #[must_use]
    pub const fn connection(&self) -> &UnixStream {
        &self.0
    }
}
