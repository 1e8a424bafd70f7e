//! All roles in one process: started in the order in which they need one another, stopped in the reverse.
//!
//! ```text
//! appliance  (DATA/vault, listens at DATA/appliance.sock)
//! agent      (DATA/agent, dials there)
//! NBD server (one export per volume)
//! control    (DATA/control.sock)
//! ```

use crate::data::DataDir;
use crate::problem::Problem;
use crate::site::{Local, Served};
use crate::up::DiskArg;
use afterimage_agent::{Agent, AgentConfig, CacheMode, PlainDisk, RecoveryReport, VolumeConfig, unix_connector};
use afterimage_appliance::{Appliance, ApplianceConfig, KeySource};
use afterimage_base::block::BlockDevice;
use afterimage_base::clock::SystemClock;
use afterimage_mgmt::protocol::Status;
use afterimage_mgmt::server::{ControlServer, Site};
use afterimage_nbd::{Export, ExportTable, Limits, Listen, Server};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// How long NBD requests in flight may take at a stop.
const NBD_GRACE: Duration = Duration::from_secs(5);
/// How long the appliance may take at a stop to get what it lacks.
const DRAIN: Duration = Duration::from_secs(30);
/// How long answers of the control socket that are under way may hold up the stop.
const CONTROL_GRACE: Duration = Duration::from_secs(10);

/// What is to be run.
#[derive(Debug)]
pub struct Settings {
    /// The disks.
    pub disks: Vec<DiskArg>,
    /// Where to serve them.
    pub listen: Vec<Listen>,
    /// How far back any write can be chosen.
    pub window: Duration,
    /// Size of each new ring.
    pub ring: u64,
    /// How the disks are used.
    pub cache: CacheMode,
    /// Bytes of a disk that a sync may deal with in a second; 0 for automatic.
    pub sync_rate: u64,
    /// Time between automatic points.
    pub point_every: Option<Duration>,
    /// Whether there is a journal and an appliance at all.
    pub protect: bool,
    /// Where the vault key comes from.
    pub key: KeySource,
}

/// The running roles.
pub struct Daemon {
    site: Arc<Local>,
    agent: Option<Arc<Agent>>,
    server: Arc<Server>,
    control: ControlServer,
    /// Last, so that the folder's lock is given back when all is over.
    data: DataDir,
}

fn start_appliance(data: &DataDir, settings: &Settings) -> Result<(Appliance, PathBuf), Problem> {
    let socket = data.path().join("appliance.sock");
    let mut config = ApplianceConfig::new(data.path().join("vault"), socket.clone());
    config.key = settings.key.clone();
    config.window = settings.window;
    let appliance = Appliance::start(config).map_err(|e| Problem::failed(e.to_string()))?;
    let found = &appliance.started;
    if found.open_segments > 0 {
        tracing::info!(
            "the vault was not closed last time: {} segments ended, their records kept",
            found.open_segments
        );
    }
    for name in &found.damaged_volumes {
        tracing::warn!("volume {name}: records are missing in the vault; `afterimage check` says which");
    }
    Ok((appliance, socket))
}

fn open_protected(data: &DataDir, settings: &Settings, socket: PathBuf) -> Result<(Arc<Agent>, Vec<Served>), Problem> {
    let agent = Arc::new(Agent::new(AgentConfig {
        state_dir: data.path().join("agent"),
        connector: unix_connector(socket),
        clock: Arc::new(SystemClock::new()),
    }));
    let mut served = Vec::new();
    for disk in &settings.disks {
        let config = VolumeConfig {
            name: disk.name.clone(),
            path: disk.path.clone(),
            ring_bytes: settings.ring,
            cache: settings.cache,
        };
        let volume = agent.add_volume(config).map_err(|e| Problem::failed(e.to_string()))?;
        volume.set_sync_rate(settings.sync_rate);
        served.push(Served::Protected(volume));
    }
    Ok((agent, served))
}

fn open_plain(settings: &Settings) -> Result<Vec<Served>, Problem> {
    let open = |disk: &DiskArg| {
        let device = PlainDisk::open(&disk.path, settings.cache).map_err(|e| Problem::failed(e.to_string()))?;
        Ok(Served::Plain { name: disk.name.clone(), path: disk.path.clone(), device })
    };
    settings.disks.iter().map(open).collect()
}

impl Daemon {
    /// Starts everything; when this returns, volumes and control socket can be used.
    ///
    /// # Errors
    /// What is in the way, with its object.
    pub fn start(data: DataDir, mut settings: Settings) -> Result<Daemon, Problem> {
        let (mut appliance, mut agent, served);
        if settings.protect {
            let (started, socket) = start_appliance(&data, &settings)?;
            let (opened, volumes) = open_protected(&data, &settings, socket)?;
            (appliance, agent, served) = (Some(Arc::new(started)), Some(opened), volumes);
        } else {
            (appliance, agent, served) = (None, None, open_plain(&settings)?);
        }
        let table = Arc::new(ExportTable::new());
        for volume in &served {
            let device: Arc<dyn BlockDevice> = volume.device();
            table.insert(Export { name: volume.name().to_owned(), description: String::new(), device });
        }
        if let [only] = &served[..] {
            table.set_default(Some(only.name().to_owned()));
        }
        let listen = std::mem::take(&mut settings.listen);
        let server = Arc::new(Server::start(listen, table, Limits::default())?);
        let site = Arc::new(Local::new(data.path(), served, appliance.take(), Arc::clone(&server), &settings)?);
        let control = data.path().join("control.sock");
        let control = ControlServer::start(&control, Arc::clone(&site) as Arc<dyn Site>)
            .map_err(|e| Problem::failed(format!("{}: {e}", control.display())))?;
        Ok(Daemon { site, agent: agent.take(), server, control, data })
    }

    /// What `status` shows.
    ///
    /// # Errors
    /// As [`Site::status`].
    pub fn status(&self) -> Result<Status, Problem> {
        Ok(self.site.status()?)
    }

    /// What was found when the volume was opened.
    #[must_use]
    pub fn recovered(&self, volume: &str) -> Option<RecoveryReport> {
        self.site.recovered(volume)
    }

    /// The data folder.
    #[must_use]
    pub const fn data(&self) -> &DataDir {
        &self.data
    }

    /// Makes the automatic points that are due. To be called about every second.
    pub fn tick(&self) {
        self.site.make_due_points();
    }

    /// Stops in order. True if the appliance has everything.
    #[must_use]
    pub fn stop(self) -> bool {
        let Daemon { site, agent, server, mut control, data } = self;
        site.stop_serving();
        let server = sole(server, CONTROL_GRACE);
        if let Some(server) = server {
            server.stop(NBD_GRACE);
        }
        let complete = agent.is_none_or(|agent| agent.stop(DRAIN));
        control.stop();
        let appliance = site.take_appliance();
        drop(site);
        if let Some(appliance) = appliance.and_then(|a| sole(a, CONTROL_GRACE)) {
            appliance.stop();
        }
        drop(data);
        complete
    }
}

/// Waits until nobody else holds the thing.
fn sole<T>(mut shared: Arc<T>, most: Duration) -> Option<T> {
    let start = Instant::now();
    loop {
        match Arc::try_unwrap(shared) {
            Ok(own) => return Some(own),
            Err(again) if start.elapsed() < most => shared = again,
            Err(_) => return None,
        }
        thread::sleep(Duration::from_millis(5));
    }
}
