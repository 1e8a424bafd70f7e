//! What the control socket can do, done by agent and appliance of this process.

use crate::daemon::Settings;
use crate::problem::Problem;
use crate::show::now;
use afterimage_agent::{PointError, RecoveryReport, Volume, VolumeState};
use afterimage_appliance::history::timeline::{Wish, WishError};
use afterimage_appliance::{Appliance, ApplianceError, VolumeInfo};
use afterimage_base::block::BlockDevice;
use afterimage_mgmt::protocol::{
    Code, DiffEnd, Failure, GapInfo, GapNow, PointInfo, PointList, Position, State, Status, SyncInfo, VERSION,
    VolumeStatus, Window,
};
use afterimage_mgmt::schedule::{Schedule, Seen};
use afterimage_mgmt::server::{Opened, Site};
use afterimage_mgmt::units::Time;
use afterimage_mgmt::verify::{VerifyOptions, VerifyProgress, VerifyReport};
use afterimage_mgmt::when::{Timeline, When, check_point_name};
use afterimage_nbd::{Address, Export, ExportTable, Limits, Listen, Server, Stop, serve_connection};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a point may take to become durable before the user is told to look at the lag.
const POINT_WAIT: Duration = Duration::from_secs(60);

/// A volume that is served.
pub enum Served {
    /// With its journal.
    Protected(Arc<Volume>),
    /// Without (`--no-protect`).
    Plain {
        /// Its name.
        name: String,
        /// The disk.
        path: PathBuf,
        /// The disk as a device.
        device: Arc<dyn BlockDevice>,
    },
}

impl Served {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Served::Protected(volume) => volume.name(),
            Served::Plain { name, .. } => name,
        }
    }

    /// What the NBD server serves.
    #[must_use]
    pub fn device(&self) -> Arc<dyn BlockDevice> {
        match self {
            Served::Protected(volume) => volume.device(),
            Served::Plain { device, .. } => Arc::clone(device),
        }
    }
}

/// See the module.
pub struct Local {
    data: PathBuf,
    window: Duration,
    started: Time,
    clock: Instant,
    served: Vec<Served>,
    addresses: Vec<Address>,
    appliance: Mutex<Option<Arc<Appliance>>>,
    server: Mutex<Option<Arc<Server>>>,
    schedule: Mutex<Schedule>,
    stop: Stop,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Local {
    /// The site of these volumes.
    ///
    /// # Errors
    /// If the system has no file descriptor left.
    pub fn new(
        data: &Path,
        served: Vec<Served>,
        appliance: Option<Arc<Appliance>>,
        server: Arc<Server>,
        settings: &Settings,
    ) -> Result<Local, Problem> {
        let mut schedule = Schedule::new(settings.point_every);
        for volume in &served {
            if let Served::Protected(volume) = volume {
                let status = volume.status();
                // A volume that comes back has its last points; the next one is due when there is something new.
                if status.recovered.is_some() && status.state == VolumeState::Live {
                    schedule.made(Duration::ZERO, &status.name, status.seq_acked);
                }
            }
        }
        Ok(Local {
            data: data.to_owned(),
            window: settings.window,
            started: now(),
            clock: Instant::now(),
            served,
            addresses: server.addresses().to_vec(),
            appliance: Mutex::new(appliance),
            server: Mutex::new(Some(server)),
            schedule: Mutex::new(schedule),
            stop: Stop::new()?,
        })
    }

    /// What was found when the volume was opened.
    #[must_use]
    pub fn recovered(&self, name: &str) -> Option<RecoveryReport> {
        self.protected(name).ok().and_then(|v| v.status().recovered)
    }

    /// Lets go of the NBD server, and ends exports.
    pub fn stop_serving(&self) {
        lock(&self.server).take();
        self.stop.request(Duration::ZERO);
    }

    /// Gives the appliance away, to be stopped.
    #[must_use]
    pub fn take_appliance(&self) -> Option<Arc<Appliance>> {
        lock(&self.appliance).take()
    }

    fn appliance(&self) -> Result<Arc<Appliance>, Failure> {
        let none = || {
            Failure::new(
                Code::NotReady,
                "there is no history here: this process runs with --no-protect, or is stopping",
            )
        };
        lock(&self.appliance).clone().ok_or_else(none)
    }

    fn protected(&self, name: &str) -> Result<&Arc<Volume>, Failure> {
        match self.served.iter().find(|s| s.name() == name) {
            Some(Served::Protected(volume)) => Ok(volume),
            Some(Served::Plain { .. }) => {
                Err(Failure::new(Code::NotReady, format!("volume {name} is not protected (--no-protect)")))
            }
            None => Err(self.unknown(name)),
        }
    }

    fn unknown(&self, name: &str) -> Failure {
        let names: Vec<&str> = self.served.iter().map(Served::name).collect();
        let names =
            if names.is_empty() { "no disk is served".to_owned() } else { format!("served are {}", names.join(", ")) };
        Failure::new(Code::NotFound, format!("there is no volume '{name}' with a disk here: {names}"))
    }

    /// Makes the automatic points that are due.
    pub fn make_due_points(&self) {
        for served in &self.served {
            let Served::Protected(volume) = served else { continue };
            let status = volume.status();
            let seen =
                Seen { name: &status.name, consistent: status.state == VolumeState::Live, seq: status.seq_acked };
            let time = self.clock.elapsed();
            if !lock(&self.schedule).due(time, seen) {
                continue;
            }
            match volume.create_point(&format!("auto-{}", whole_seconds(now())), true) {
                Ok(seq) => lock(&self.schedule).made(time, &status.name, seq),
                Err(e) => {
                    tracing::warn!("no automatic point: {e}");
                    lock(&self.schedule).failed(time, &status.name);
                }
            }
        }
    }

    fn uris(&self, name: &str) -> Vec<String> {
        self.addresses.iter().map(|a| a.uri(name)).collect()
    }

    fn position(&self, appliance: &Appliance, volume: &str, at: &When) -> Result<Position, Failure> {
        let infos = appliance.volumes();
        let Some(info) = infos.iter().find(|v| v.name == volume) else {
            // The agent knows it, the appliance does not yet.
            return Err(match self.protected(volume) {
                Ok(_) => Failure::new(
                    Code::NotReady,
                    format!("volume {volume} has no history yet: the initial sync has just begun"),
                ),
                Err(_) => failure(appliance.points(volume).err()),
            });
        };
        let seq = at.resolve(&OfVolume { appliance, volume }, now())?;
        let points = appliance.points(volume).unwrap_or_default();
        let point = points.iter().find(|p| p.seq == seq).map(|p| Time(p.time));
        let time = match point {
            Some(time) => Some(time),
            None => appliance.time_of(volume, seq).map_err(|e| failure(Some(e)))?.map(Time),
        };
        Ok(Position { volume: volume.to_owned(), seq, time, size: info.size })
    }
}

/// For the names of points.
fn whole_seconds(t: Time) -> Time {
    Time(t.0 / 1_000_000_000 * 1_000_000_000)
}

struct OfVolume<'a> {
    appliance: &'a Appliance,
    volume: &'a str,
}

impl OfVolume<'_> {
    fn choose(&self, wish: Wish) -> Result<u64, Failure> {
        self.appliance.choose(self.volume, wish).map_err(|e| failure(Some(e)))
    }
}

impl Timeline for OfVolume<'_> {
    fn newest(&self) -> Result<u64, Failure> {
        self.choose(Wish::Latest)
    }

    fn at_time(&self, time: Time) -> Result<u64, Failure> {
        self.choose(Wish::Time(time.0))
    }

    fn point(&self, name: &str) -> Result<Option<u64>, Failure> {
        let points = self.appliance.points(self.volume).map_err(|e| failure(Some(e)))?;
        Ok(points.iter().rev().find(|p| p.name == name).map(|p| p.seq))
    }

    fn check(&self, seq: u64) -> Result<(), Failure> {
        self.choose(Wish::Seq(seq)).map(drop)
    }
}

/// The appliance's error in the words of the control socket.
fn failure(error: Option<ApplianceError>) -> Failure {
    let Some(error) = error else { return Failure::new(Code::Failed, "the appliance gave no answer") };
    let code = match &error {
        ApplianceError::NoVolume(..) => Code::NotFound,
        ApplianceError::When(_, WishError::InGap { .. }) => Code::Gap,
        ApplianceError::When(_, WishError::BeforeFirst { .. }) => Code::NotReady,
        ApplianceError::When(..) => Code::OutsideWindow,
        _ => Code::Failed,
    };
    Failure::new(code, error.to_string())
}

fn uuid(id: [u8; 16]) -> String {
    uuid::Uuid::from_bytes(id).to_string()
}

fn state(state: VolumeState) -> State {
    match state {
        VolumeState::InitialSync => State::InitialSync,
        VolumeState::Live => State::Live,
        VolumeState::Dirty => State::Dirty,
        VolumeState::Resync => State::Resync,
        VolumeState::Error => State::Error,
    }
}

/// A volume without figures.
fn blank(name: &str, path: &Path, size: u64, state: State) -> VolumeStatus {
    VolumeStatus {
        name: name.to_owned(),
        id: String::new(),
        path: path.display().to_string(),
        uri: Vec::new(),
        size,
        state,
        reason: None,
        connected: false,
        seq_acked: 0,
        seq_durable: 0,
        lag_seconds: 0.0,
        lag_bytes: 0,
        ring_bytes: 0,
        ring_used: 0,
        dirty_bytes: 0,
        sync: None,
        gap: None,
        points: 0,
        stored_bytes: 0,
        logical_bytes: 0,
        first_seq: None,
        first_time: None,
        durable_time: None,
    }
}

fn with_agent(volume: &Volume) -> VolumeStatus {
    let s = volume.status();
    let mut out = blank(&s.name, &s.path, s.size, state(s.state));
    out.id = uuid(s.id);
    out.reason = s.reason;
    out.connected = s.connected;
    (out.seq_acked, out.seq_durable) = (s.seq_acked, s.seq_durable);
    (out.lag_seconds, out.lag_bytes) = (s.lag_seconds, s.lag_bytes);
    (out.ring_bytes, out.ring_used, out.dirty_bytes) = (s.ring_bytes, s.ring_used, s.dirty_bytes);
    out.sync = s.sync.map(|s| SyncInfo {
        done_bytes: s.done_bytes,
        total_bytes: s.total_bytes,
        compared_bytes: s.compared_bytes,
        sent_bytes: s.sent_bytes,
        bytes_per_second: s.rate,
        cuts: s.cuts,
    });
    out.gap = s.gap_since.map(|since| GapNow { since: Time(since), reason: s.gap_reason });
    out
}

fn with_history(out: &mut VolumeStatus, appliance: &Appliance, info: &VolumeInfo) {
    out.points = info.points as u64;
    (out.stored_bytes, out.logical_bytes) = (info.stored_bytes, info.logical_bytes);
    if info.durable_seq > 0 {
        out.durable_time = Some(Time(info.durable_time));
    }
    if let Some(w) = window(appliance, info) {
        out.first_seq = Some(w.first_seq);
        out.first_time = Some(w.first_time);
    }
    if let Some(text) = &info.failure {
        out.state = State::Error;
        out.reason = Some(format!("the appliance: {text}"));
    }
}

/// The window; `None` while nothing can be chosen.
fn window(appliance: &Appliance, info: &VolumeInfo) -> Option<Window> {
    let last_seq = appliance.choose(&info.name, Wish::Latest).ok()?;
    let gaps = appliance.gaps(&info.name).unwrap_or_default();
    let hidden = |seq: u64| gaps.iter().find(|g| seq >= g.from_seq && g.to_seq.is_none_or(|to| seq < to));
    let mut first = (info.first_seq.max(1), info.first_time);
    // A gap at the beginning of the window hides what is before its end.
    while let Some(gap) = hidden(first.0) {
        first = (gap.to_seq?, gap.to_time);
    }
    (first.0 <= last_seq).then_some(Window {
        first_seq: first.0,
        first_time: Time(first.1),
        last_seq,
        last_time: Time(info.durable_time),
    })
}

impl Site for Local {
    fn status(&self) -> Result<Status, Failure> {
        let appliance = lock(&self.appliance).clone();
        let infos = appliance.as_ref().map(|a| a.volumes()).unwrap_or_default();
        let mut volumes: Vec<VolumeStatus> = Vec::new();
        for served in &self.served {
            let mut v = match served {
                Served::Protected(volume) => with_agent(volume),
                Served::Plain { name, path, device } => blank(name, path, device.geometry().size, State::Unprotected),
            };
            v.uri = self.uris(&v.name);
            let info = infos.iter().find(|i| i.name == v.name && uuid(i.id) == v.id);
            if let (Some(appliance), Some(info)) = (&appliance, info) {
                with_history(&mut v, appliance, info);
            }
            volumes.push(v);
        }
        for info in &infos {
            if volumes.iter().all(|v| v.name != info.name)
                && let Some(appliance) = &appliance
            {
                let mut v = blank(&info.name, Path::new(""), info.size, State::Offline);
                v.id = uuid(info.id);
                (v.seq_acked, v.seq_durable) = (info.durable_seq, info.durable_seq);
                with_history(&mut v, appliance, info);
                volumes.push(v);
            }
        }
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Status {
            v: VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            data: self.data.display().to_string(),
            started: self.started,
            time: now(),
            window_seconds: self.window.as_secs(),
            clients: lock(&self.server).as_ref().map_or(0, |s| s.stats().connections),
            volumes,
        })
    }

    fn points(&self, volume: &str) -> Result<PointList, Failure> {
        let appliance = self.appliance()?;
        let empty = PointList { volume: volume.to_owned(), window: None, points: Vec::new(), gaps: Vec::new() };
        let infos = appliance.volumes();
        let Some(info) = infos.iter().find(|v| v.name == volume) else {
            return self.protected(volume).map(|_| empty).map_err(|_| failure(appliance.points(volume).err()));
        };
        let window = window(&appliance, info);
        let valid = |seq: u64| appliance.check_seq(volume, seq).is_ok();
        let points = appliance.points(volume).map_err(|e| failure(Some(e)))?.into_iter().filter(|p| valid(p.seq));
        let gaps = appliance.gaps(volume).map_err(|e| failure(Some(e)))?;
        // The initial sync is no hole in the history: there is nothing before it.
        let gaps = gaps
            .into_iter()
            .filter(|g| !g.initial && g.to_seq.is_none_or(|to| window.is_none_or(|w| to > w.first_seq)));
        Ok(PointList {
            window,
            points: points.map(|p| PointInfo { name: p.name, seq: p.seq, time: Time(p.time), auto: p.auto }).collect(),
            gaps: gaps
                .map(|g| GapInfo {
                    from_seq: g.from_seq,
                    from_time: Time(g.from_time),
                    to_seq: g.to_seq,
                    to_time: g.to_seq.map(|_| Time(g.to_time)),
                })
                .collect(),
            ..empty
        })
    }

    fn create_point(&self, name: &str, point: &str) -> Result<PointInfo, Failure> {
        let appliance = self.appliance()?;
        check_point_name(point).map_err(|e| Failure::new(Code::BadRequest, e.to_string()))?;
        let volume = self.protected(name)?;
        if appliance.points(name).is_ok_and(|all| all.iter().any(|p| p.name == point)) {
            let text = format!("volume {name} has a point '{point}' already: take another name");
            return Err(Failure::new(Code::Conflict, text));
        }
        let seq = volume.create_point(point, false).map_err(|e| match e {
            PointError::Name(_) => Failure::new(Code::BadRequest, e.to_string()),
            _ => Failure::new(Code::NotReady, e.to_string()),
        })?;
        lock(&self.schedule).made(self.clock.elapsed(), name, seq);
        let start = Instant::now();
        loop {
            let points = appliance.points(name).unwrap_or_default();
            if let Some(p) = points.iter().find(|p| p.seq == seq) {
                return Ok(PointInfo { name: p.name.clone(), seq, time: Time(p.time), auto: p.auto });
            }
            if start.elapsed() > POINT_WAIT {
                let text = format!(
                    "point '{point}' is in the journal at @{seq} and shows once the appliance has caught up: see `afterimage status`"
                );
                return Err(Failure::new(Code::NotReady, text));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn resolve(&self, volume: &str, at: &When) -> Result<Position, Failure> {
        let appliance = self.appliance()?;
        self.position(&appliance, volume, at)
    }

    fn diff(&self, volume: &str, from: &When, to: &When) -> Result<(DiffEnd, Vec<(u64, u64)>), Failure> {
        let appliance = self.appliance()?;
        let (from, to) = (self.position(&appliance, volume, from)?, self.position(&appliance, volume, to)?);
        if from.seq > to.seq {
            let text = format!("--from is @{} and --to @{}: the earlier moment goes first", from.seq, to.seq);
            return Err(Failure::new(Code::BadRequest, text));
        }
        let extents = appliance.diff(volume, from.seq, to.seq).map_err(|e| failure(Some(e)))?;
        Ok((DiffEnd { volume: volume.to_owned(), from: from.seq, to: to.seq }, extents))
    }

    fn verify(
        &self,
        volume: &str,
        options: &VerifyOptions,
        each: &mut dyn FnMut(VerifyProgress) -> bool,
    ) -> Result<VerifyReport, Failure> {
        crate::verify::serve(self.protected(volume)?, options, each)
    }

    fn open(&self, volume: &str, at: &When, writable: bool) -> Result<(Position, Box<dyn Opened>), Failure> {
        let appliance = self.appliance()?;
        let position = self.position(&appliance, volume, at)?;
        let device = if writable {
            appliance.open_scratch(volume, position.seq)
        } else {
            appliance.open_at(volume, position.seq)
        };
        let device = device.map_err(|e| failure(Some(e)))?;
        let description = format!("{volume} as it was after write @{}", position.seq);
        let export = Export { name: volume.to_owned(), description, device };
        Ok((position, Box::new(Past { table: ExportTable::single(export), stop: self.stop.clone() })))
    }
}

/// A volume as it was, ready to be served.
struct Past {
    table: ExportTable,
    stop: Stop,
}

impl Opened for Past {
    fn serve_stream(self: Box<Self>, stream: UnixStream) {
        if let Err(e) = serve_connection(stream.into(), Arc::new(self.table), &Limits::default(), &self.stop) {
            tracing::debug!("a connection to an export ended: {e}");
        }
    }

    fn serve_listener(self: Box<Self>, listener: UnixListener) -> Result<Box<dyn Send>, Failure> {
        let started = Server::start(vec![Listen::Fd(listener.into())], Arc::new(self.table), Limits::default());
        let server = started.map_err(|e| Failure::new(Code::Failed, format!("the export cannot be served: {e}")))?;
        Ok(Box::new(server))
    }
}
