//! What the control socket can do, done by the roles of this process.
//!
//! A process with one role answers what that role knows; for the rest it says which other process to ask.

mod app;
mod branches;
mod devices;
pub(crate) mod failback;
mod fences;
mod figures;
mod kept;
mod managed;
mod past;
mod points;
mod policy;
mod quiet;
mod recoveries;
mod taking;

pub use taking::{Taken, Taker, load as load_taken};

use crate::app::AppSettings;
use crate::attached::Attachments;
use crate::problem::Problem;
use crate::show::now;
use afterimage_agent::{PointError, RecoveryReport, ResizeError, Volume, VolumeState};
use afterimage_appliance::Appliance;
use afterimage_base::block::BlockDevice;
use afterimage_mgmt::attach::{AttachOptions, Attached, Detached};
use afterimage_mgmt::protocol::{
    Access, AgentDisk, BranchAsk, Code, CompareBegun, DiffEnd, Failure, FenceAsk, FenceStatus, GapInfo, PointInfo,
    PointList, Position, Role, SizeChange, Status, VERSION, VolumePoint,
};
use afterimage_mgmt::retention::{PointAction, Retention, RetentionChange};
use afterimage_mgmt::schedule::Schedule;
use afterimage_mgmt::site::{Opened, Site};
use afterimage_mgmt::units::Time;
use afterimage_mgmt::verify::{VerifyOptions, VerifyProgress, VerifyReport};
use afterimage_mgmt::when::{When, check_point_name};
use afterimage_nbd::{Address, Export, ExportTable, Server, Stop};
use app::Apps;
use figures::{of_store, uuid, window};
use past::{OfVolume, Past, failure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

/// How long a point may take to become durable before the user is told to look at the lag.
const POINT_WAIT: Duration = Duration::from_secs(60);

/// A volume that is served.
#[derive(Clone)]
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

/// What this process is.
#[derive(Debug)]
pub struct About {
    /// Its role.
    pub role: Role,
    /// How far back any write can be chosen, if it has the history.
    pub window: Option<Duration>,
    /// Time between automatic points.
    pub point_every: Option<Duration>,
    /// The address of an appliance elsewhere.
    pub appliance: Option<String>,
    /// Whether NBD over TCP has TLS.
    pub nbd_tls: bool,
    /// How points of volumes are made app-consistent.
    pub apps: BTreeMap<String, AppSettings>,
}

/// See the module.
pub struct Local {
    data: PathBuf,
    about: About,
    started: Time,
    clock: Instant,
    served: RwLock<Vec<Served>>,
    addresses: Vec<Address>,
    appliance: Mutex<Option<Arc<Appliance>>>,
    server: Mutex<Option<Arc<Server>>>,
    schedule: Mutex<Schedule>,
    stop: Stop,
    attachments: OnceLock<Attachments>,
    /// For disks that come while it runs.
    taker: OnceLock<Taker>,
    apps: Apps,
    quiet: quiet::Sets,
    managed: managed::Book,
    recoveries: recoveries::Recoveries,
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
        server: Option<Arc<Server>>,
        mut about: About,
    ) -> Result<Local, Problem> {
        let mut schedule = Schedule::new(about.point_every);
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
            apps: Apps::new(std::mem::take(&mut about.apps)),
            about,
            started: now(),
            clock: Instant::now(),
            served: RwLock::new(served),
            addresses: server.as_ref().map_or_else(Vec::new, |s| s.addresses().to_vec()),
            appliance: Mutex::new(appliance),
            server: Mutex::new(server),
            schedule: Mutex::new(schedule),
            stop: Stop::new()?,
            attachments: OnceLock::new(),
            taker: OnceLock::new(),
            quiet: quiet::Sets::default(),
            managed: managed::Book::load(data),
            recoveries: recoveries::Recoveries::of(data),
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
        let none = || match &self.about.appliance {
            Some(address) => Failure::new(
                Code::OtherRole,
                format!(
                    "this is the agent's data folder, and its history is with the appliance at {address}: run the command \
                     there, with --data of the appliance"
                ),
            ),
            None => Failure::new(
                Code::NotReady,
                "there is no history here: this process runs with --no-protect, or is stopping",
            ),
        };
        lock(&self.appliance).clone().ok_or_else(none)
    }

    /// What is served now.
    fn served(&self) -> Vec<Served> {
        self.served.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn protected(&self, name: &str) -> Result<Arc<Volume>, Failure> {
        match self.served().into_iter().find(|s| s.name() == name) {
            Some(Served::Protected(volume)) => Ok(volume),
            Some(Served::Plain { .. }) => {
                Err(Failure::new(Code::NotReady, format!("volume {name} is not protected (--no-protect)")))
            }
            None if self.about.role == Role::Appliance => Err(Failure::new(
                Code::OtherRole,
                format!(
                    "this is the appliance's data folder, and the disk of volume {name} is with its agent: run the command \
                     there, with --data of the agent"
                ),
            )),
            None => Err(self.unknown(name)),
        }
    }

    fn unknown(&self, name: &str) -> Failure {
        let served = self.served();
        let names: Vec<&str> = served.iter().map(Served::name).collect();
        let names =
            if names.is_empty() { "no disk is served".to_owned() } else { format!("served are {}", names.join(", ")) };
        Failure::new(Code::NotFound, format!("there is no volume '{name}' with a disk here: {names}"))
    }

    /// Where disks are served.
    #[must_use]
    pub fn listens_at(&self) -> Vec<String> {
        self.addresses.iter().map(|a| a.uri("")).collect()
    }

    /// Checks the name of a new point.
    fn new_name(&self, name: &str, point: &str) -> Result<(), Failure> {
        check_point_name(point).map_err(|e| Failure::new(Code::BadRequest, e.to_string()))?;
        self.protected(name)?;
        let appliance = lock(&self.appliance).clone();
        let there = |p: &afterimage_appliance::PointMeta| p.name == point;
        if appliance.as_ref().is_some_and(|a| a.points(name).is_ok_and(|all| all.iter().any(there))) {
            let text = format!("volume {name} has a point '{point}' already: take another name");
            return Err(Failure::new(Code::Conflict, text));
        }
        Ok(())
    }

    /// Waits until `until` is durable at the appliance, which acknowledges a point when it can be chosen.
    fn wait_durable(volume: &Volume, until: u64, point: &str, seq: u64) -> Result<(), Failure> {
        let start = Instant::now();
        while volume.durable() < until {
            if start.elapsed() > POINT_WAIT {
                let text = format!(
                    "point '{point}' is in the journal at @{seq} and shows once the appliance has caught up: see `afterimage status`"
                );
                return Err(Failure::new(Code::NotReady, text));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn uris(&self, name: &str) -> Vec<String> {
        let scheme = |uri: String| match uri.strip_prefix("nbd://") {
            Some(rest) if self.about.nbd_tls => format!("nbds://{rest}"),
            _ => uri,
        };
        self.addresses.iter().map(|a| scheme(a.uri(name))).collect()
    }

    fn position(&self, appliance: &Appliance, volume: &str, at: &When) -> Result<Position, Failure> {
        let infos = appliance.volumes();
        if infos.iter().all(|v| v.name != volume) {
            // The agent knows it, the appliance does not yet.
            return Err(match self.protected(volume) {
                Ok(_) => Failure::new(
                    Code::NotReady,
                    format!("volume {volume} has no history yet: the initial sync has just begun"),
                ),
                Err(_) => failure(appliance.points(volume).err()),
            });
        }
        let seq = at.resolve(&OfVolume { appliance, volume }, now())?;
        let points = appliance.points(volume).unwrap_or_default();
        let point = points.iter().find(|p| p.seq == seq).map(|p| Time(p.time));
        let time = match point {
            Some(time) => Some(time),
            None => appliance.time_of(volume, seq).map_err(|e| failure(Some(e)))?.map(Time),
        };
        let size = appliance.size_at(volume, seq).map_err(|e| failure(Some(e)))?;
        Ok(Position { volume: volume.to_owned(), seq, time, size })
    }
}

/// For the names of points.
fn whole_seconds(t: Time) -> Time {
    Time(t.0 / 1_000_000_000 * 1_000_000_000)
}

impl Site for Local {
    fn status(&self) -> Result<Status, Failure> {
        let appliance = lock(&self.appliance).clone();
        Ok(Status {
            v: VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            data: self.data.display().to_string(),
            started: self.started,
            time: now(),
            role: self.about.role,
            appliance: self.about.appliance.clone(),
            listen: appliance
                .as_ref()
                .map_or_else(Vec::new, |a| a.addresses().iter().map(ToString::to_string).collect()),
            window_seconds: self.about.window.map_or(0, |w| w.as_secs()),
            store: appliance.as_ref().map(|a| of_store(&a.store())),
            // They are where the history is.
            recoveries: appliance.as_ref().map_or_else(Vec::new, |_| self.recoveries.now()),
            clients: lock(&self.server).as_ref().map_or(0, |s| s.stats().connections),
            volumes: self.volumes_now(appliance.as_deref()),
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
            points: points.map(kept::shown).collect(),
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
        let appliance = lock(&self.appliance).clone();
        if let Some(appliance) = appliance.filter(|a| a.branch(name).is_ok()) {
            return branches::point(&appliance, name, point);
        }
        self.new_name(name, point)?;
        let volume = self.protected(name)?;
        let (seq, time) = volume.create_point(point, false).map_err(|e| match e {
            PointError::Name(_) => Failure::new(Code::BadRequest, e.to_string()),
            _ => Failure::new(Code::NotReady, e.to_string()),
        })?;
        lock(&self.schedule).made(self.clock.elapsed(), name, seq);
        Self::wait_durable(&volume, seq, point, seq)?;
        Ok(PointInfo { name: point.to_owned(), seq, time: Time(time), auto: false, pinned: false, app: None })
    }

    fn create_points(&self, point: &str) -> Result<Vec<VolumePoint>, Failure> {
        self.points_of_all(point)
    }

    fn create_app_point(&self, name: &str, point: &str) -> Result<PointInfo, Failure> {
        self.new_name(name, point)?;
        self.app_point(name, point, false)
    }

    fn retention(&self, volume: &str, change: &RetentionChange, dry_run: bool) -> Result<Retention, Failure> {
        self.retain_by_hand(volume, change, dry_run)
    }

    fn change_point(&self, volume: &str, name: &str, action: PointAction) -> Result<PointInfo, Failure> {
        kept::change_point(&*self.appliance()?, volume, name, action)
    }

    fn resize_volume(&self, name: &str, size: Option<u64>) -> Result<SizeChange, Failure> {
        let done = self.protected(name)?.resize(size).map_err(|e| {
            let code = match &e {
                ResizeError::Disk { .. } | ResizeError::Appliance { .. } => Code::Conflict,
                ResizeError::Size { .. } => Code::BadRequest,
                ResizeError::Failed { .. } => Code::Failed,
            };
            Failure::new(code, e.to_string())
        })?;
        let devices = self.devices_resized(name);
        Ok(SizeChange { volume: name.to_owned(), from: done.from, to: done.to, gap: done.gap, devices })
    }

    fn compare_volume(&self, name: &str) -> Result<CompareBegun, Failure> {
        let volume = self.protected(name)?;
        volume.compare();
        Ok(CompareBegun { volume: name.to_owned(), bytes: volume.status().size })
    }

    fn attach(&self, volume: &str, options: &AttachOptions) -> Result<Attached, Failure> {
        self.attach_device(volume, options)
    }

    fn detach(&self, what: &str) -> Result<Detached, Failure> {
        self.detach_device(what)
    }

    fn resolve(&self, volume: &str, at: &When) -> Result<Position, Failure> {
        let appliance = self.appliance()?;
        self.position(&appliance, volume, at)
    }

    fn diff(&self, from: (&str, &When), to: (&str, &When)) -> Result<(DiffEnd, Vec<(u64, u64)>), Failure> {
        let appliance = self.appliance()?;
        let (from, to) = (self.position(&appliance, from.0, from.1)?, self.position(&appliance, to.0, to.1)?);
        if from.volume == to.volume && from.seq > to.seq {
            let text = format!("--from is @{} and --to @{}: the earlier moment goes first", from.seq, to.seq);
            return Err(Failure::new(Code::BadRequest, text));
        }
        let extents = appliance.diff_of((&from.volume, from.seq), (&to.volume, to.seq));
        let base = (from.volume != to.volume).then_some(from.volume);
        let end = DiffEnd { base, volume: to.volume, from: from.seq, to: to.seq };
        Ok((end, extents.map_err(|e| failure(Some(e)))?))
    }

    fn branch(&self, ask: &BranchAsk) -> Result<serde_json::Value, Failure> {
        self.of_branches(ask)
    }

    fn fence(&self, ask: &FenceAsk) -> Result<FenceStatus, Failure> {
        self.of_fences(ask)
    }

    fn agent_disk(&self, volume: &str) -> Result<(AgentDisk, Box<dyn Opened>), Failure> {
        self.lend(volume)
    }

    fn verify(
        &self,
        volume: &str,
        options: &VerifyOptions,
        each: &mut dyn FnMut(VerifyProgress) -> bool,
    ) -> Result<VerifyReport, Failure> {
        let volume = self.protected(volume)?;
        crate::verify::serve(&volume, options, each)
    }

    fn open(&self, volume: &str, at: &When, access: Access) -> Result<(Position, Box<dyn Opened>), Failure> {
        let appliance = self.appliance()?;
        let position = self.position(&appliance, volume, at)?;
        let device = match access {
            Access::Moment => appliance.open_at(volume, position.seq),
            Access::Scratch => appliance.open_scratch(volume, position.seq),
            Access::Branch => appliance.open_branch(volume),
        };
        let device = device.map_err(|e| failure(Some(e)))?;
        let description = match access {
            Access::Branch => format!("{volume}, a branch"),
            _ => format!("{volume} as it was after write @{}", position.seq),
        };
        let export = Export { name: volume.to_owned(), description, device };
        Ok((position, Box::new(Past { table: ExportTable::single(export), stop: self.stop.clone() })))
    }
}
