//! The roles of a process, one or both: started in the order in which they need one another, stopped in the reverse.
//!
//! ```text
//! appliance  (DATA/vault, listens at DATA/appliance.sock)
//! agent      (DATA/agent, dials there)
//! NBD server (one export per volume)
//! control    (DATA/control.sock)
//! ```

use crate::app::AppSettings;
use crate::cmd::retention::TierArgs;
use crate::data::DataDir;
use crate::duty::Duty;
use crate::failover::janitor::Janitor;
use crate::problem::Problem;
use crate::site::{About, Local, Served, Taker};
use afterimage_agent::barrier::Barriers;
use afterimage_agent::{
    Agent, AgentConfig, CacheMode, Connector, FencePolicy, ForeignWrite, PlainDisk, RecoveryReport, VolumeConfig,
    connector, secure_connector,
};
use afterimage_appliance::{Appliance, ApplianceConfig, ApplianceError, KeySource, MinFree, Policy};
use afterimage_base::block::BlockDevice;
use afterimage_base::clock::SystemClock;
use afterimage_base::net::Endpoint;
use afterimage_mgmt::protocol::{Role, Status};
use afterimage_mgmt::server::ControlServer;
use afterimage_mgmt::site::Site;
use afterimage_nbd::{Export, ExportTable, Limits, Listen, Server};
use afterimage_trust::Trust;
use afterimage_trust::session::{Attendant, Duties, Session};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long an app-consistent point that is being made may hold up a stop.
const APP_GRACE: Duration = Duration::from_secs(10);
/// How long NBD requests in flight may take at a stop.
const NBD_GRACE: Duration = Duration::from_secs(5);
/// How long the appliance may take at a stop to get what it lacks.
const DRAIN: Duration = Duration::from_secs(30);
/// How long answers of the control socket that are under way may hold up the stop.
const CONTROL_GRACE: Duration = Duration::from_secs(10);

/// A disk to be protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The volume's name.
    pub name: String,
    /// The raw image or block device.
    pub path: PathBuf,
    /// Size of a new ring in bytes.
    pub ring: u64,
    /// How the disk is used.
    pub cache: CacheMode,
    /// Id of the volume whose lost disk it takes the place of.
    pub adopt: Option<Uuid>,
}

/// Where the protected side sends its writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// Nowhere: disks are served without protection.
    Nowhere,
    /// To the appliance in this process.
    Here,
    /// To an appliance elsewhere.
    At {
        /// Its address.
        endpoint: Endpoint,
        /// Never to another machine.
        local_only: bool,
    },
    /// To an appliance elsewhere, with TLS and this agent's certificate.
    Secure {
        /// Its address.
        endpoint: Endpoint,
        /// Who this agent is, or why that cannot be told: its disks are served all the same.
        trust: Result<Trusted, String>,
    },
}

/// Credentials in use, shared by all that need them.
#[derive(Debug, Clone)]
pub struct Trusted(pub Arc<Trust>);

impl PartialEq for Trusted {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Trusted {}

/// The protected side.
#[derive(Debug)]
pub struct AgentSettings {
    /// The disks.
    pub disks: Vec<Disk>,
    /// Where to serve them.
    pub listen: Vec<Listen>,
    /// Bytes of a disk that a sync may deal with in a second; 0 for automatic.
    pub sync_rate: u64,
    /// Time between automatic points.
    pub point_every: Option<Duration>,
    /// What follows when somebody else has written to a disk meanwhile.
    pub foreign: ForeignWrite,
    /// What a fenced disk does.
    pub fence: FencePolicy,
    /// Take the size that a disk has now.
    pub resize: bool,
    /// How points of volumes are made app-consistent.
    pub apps: BTreeMap<String, AppSettings>,
    /// TLS of the NBD server.
    pub tls: afterimage_nbd::Tls,
    /// Whether mgmt may have it protect more disks.
    pub take_disks: bool,
    /// Size of a new ring in bytes, and how disks are used, for those.
    pub new_disks: (u64, CacheMode),
    /// Its appliance.
    pub reach: Reach,
}

/// The appliance.
#[derive(Debug)]
pub struct ApplianceSettings {
    /// Where agents connect; if nothing is named and nothing passed, at a unix socket in the data folder.
    pub listen: Vec<Endpoint>,
    /// Sockets that somebody else made, where they connect too.
    pub passed: Vec<OwnedFd>,
    /// Connections from one address at most; `None` for the default.
    pub per_address: Option<usize>,
    /// How far back any write can be chosen.
    pub window: Duration,
    /// Points before the window, of volumes of which nobody has said more.
    pub tiers: TierArgs,
    /// How much of the vault's disk has to be free.
    pub min_free: MinFree,
    /// Where the vault key comes from.
    pub key: KeySource,
    /// Who this appliance is, if it has joined.
    pub trust: Option<Trusted>,
    /// Threads that hash, compress and seal; `None` for one per processor.
    pub threads: Option<usize>,
    /// Memory of the dedupe index, for decompressed frames, for pages of layers, and for what is read ahead, in bytes; `None` for
    /// the default.
    pub memory: [Option<usize>; 4],
    /// Bytes of blocks that are brought into disk order in a second; `None` for the default.
    pub order_rate: Option<u64>,
    /// Time between rounds of collection; `None` for the default.
    pub collect_every: Option<Duration>,
}

impl ApplianceSettings {
    /// At the data folder's own socket, with defaults.
    #[must_use]
    pub const fn new(window: Duration, key: KeySource) -> ApplianceSettings {
        ApplianceSettings {
            listen: Vec::new(),
            passed: Vec::new(),
            per_address: None,
            window,
            tiers: TierArgs { hourly: None, daily: None, weekly: None, monthly: None },
            min_free: MinFree::Auto,
            key,
            trust: None,
            threads: None,
            memory: [None; 4],
            order_rate: None,
            collect_every: None,
        }
    }
}

/// What is to be run: one role, or both.
#[derive(Debug)]
pub struct Settings {
    /// The protected side.
    pub agent: Option<AgentSettings>,
    /// The appliance.
    pub appliance: Option<ApplianceSettings>,
}

impl Settings {
    /// What this process is called.
    #[must_use]
    pub const fn role(&self) -> Role {
        match (&self.agent, &self.appliance) {
            (Some(AgentSettings { reach: Reach::At { .. } | Reach::Secure { .. }, .. }), None) => Role::Agent,
            (None, Some(_)) => Role::Appliance,
            _ => Role::All,
        }
    }
}

/// The running roles.
pub struct Daemon {
    site: Arc<Local>,
    agent: Option<Arc<Agent>>,
    server: Option<Arc<Server>>,
    control: ControlServer,
    _janitor: Janitor,
    /// With mgmt.
    sessions: Vec<Session>,
    /// This machine's part in barriers.
    barriers: Option<Arc<Barriers>>,
    /// Last, so that the folder's lock is given back when all is over.
    data: DataDir,
}

fn local_socket(data: &DataDir) -> PathBuf {
    data.path().join("appliance.sock")
}

fn start_appliance(data: &DataDir, settings: ApplianceSettings) -> Result<Appliance, Problem> {
    let mut config = ApplianceConfig::new(data.path().join("vault"), local_socket(data));
    (config.key, config.window, config.min_free) = (settings.key, settings.window, settings.min_free);
    let tier = |n: Option<u32>| n.unwrap_or(0);
    config.retention = Policy {
        hourly: tier(settings.tiers.hourly),
        daily: tier(settings.tiers.daily),
        weekly: tier(settings.tiers.weekly),
        monthly: tier(settings.tiers.monthly),
        ..Policy::window(0)
    };
    config.per_address = settings.per_address.unwrap_or(config.per_address);
    if !settings.listen.is_empty() || !settings.passed.is_empty() {
        config.listen = settings.listen;
    }
    config.trust = settings.trust.map(|t| t.0);
    config.threads = settings.threads.unwrap_or(config.threads);
    let [dedupe, frames, layers, ahead] = settings.memory;
    config.dedupe_bytes = dedupe.unwrap_or(config.dedupe_bytes);
    config.cache_bytes = frames.unwrap_or(config.cache_bytes);
    config.layer_cache_bytes = layers.unwrap_or(config.layer_cache_bytes);
    config.ahead_bytes = ahead.unwrap_or(config.ahead_bytes);
    config.order_rate = settings.order_rate.unwrap_or(config.order_rate);
    config.collect_every = settings.collect_every.unwrap_or(config.collect_every);
    let failed = |e: ApplianceError| Problem::failed(e.to_string());
    let mut appliance = Appliance::start(config).map_err(failed)?;
    for socket in settings.passed {
        appliance.listen_at(socket).map_err(failed)?;
    }
    let found = &appliance.started;
    if found.open_segments > 0 {
        tracing::info!(
            "the vault was not closed last time: {} segments ended, their records kept",
            found.open_segments
        );
    }
    for name in &found.damaged_volumes {
        tracing::error!("volume {name}: something is missing in the vault; `afterimage check` says what");
    }
    if found.created && data.path().join("agent").is_dir() {
        tracing::error!(
            "the vault in {} was made now, but volumes were protected here before: if it was lost or moved, so is their \
             history, and they are copied again as for the first time. Stop and put the old one back, if there is one",
            data.path().join("vault").display()
        );
    }
    Ok(appliance)
}

fn open_protected(
    data: &DataDir,
    disks: Vec<Disk>,
    (sync_rate, foreign, fence, resize): (u64, ForeignWrite, FencePolicy, bool),
    connector: Arc<dyn Connector>,
) -> Result<(Arc<Agent>, Vec<Served>), Problem> {
    let agent = Arc::new(Agent::new(AgentConfig {
        state_dir: data.path().join("agent"),
        connector,
        clock: Arc::new(SystemClock::new()),
    }));
    let mut served = Vec::new();
    for Disk { name, path, ring, cache, adopt } in disks {
        let adopt = adopt.map(Uuid::into_bytes);
        let config = VolumeConfig { name, path, ring_bytes: ring, cache, foreign, resize, adopt };
        let volume = agent.add_volume(config).map_err(|e| Problem::failed(e.to_string()))?;
        volume.set_sync_rate(sync_rate);
        volume.set_fence_policy(fence);
        served.push(Served::Protected(volume));
    }
    Ok((agent, served))
}

fn open_plain(disks: Vec<Disk>) -> Result<Vec<Served>, Problem> {
    let open = |disk: Disk| {
        let device = PlainDisk::open(&disk.path, disk.cache).map_err(|e| Problem::failed(e.to_string()))?;
        Ok(Served::Plain { name: disk.name, path: disk.path, device })
    };
    disks.into_iter().map(open).collect()
}

/// What serves disks, and the table of them.
type Serving = (Arc<Server>, Arc<ExportTable>);

fn serve(listen: Vec<Listen>, served: &[Served], tls: afterimage_nbd::Tls) -> Result<Serving, Problem> {
    let table = Arc::new(ExportTable::new());
    for volume in served {
        let device: Arc<dyn BlockDevice> = volume.device();
        table.insert(Export { name: volume.name().to_owned(), description: String::new(), device });
    }
    if let [only] = served {
        table.set_default(Some(only.name().to_owned()));
    }
    let exports = Arc::clone(&table) as Arc<dyn afterimage_nbd::Exports>;
    Ok((Arc::new(Server::start(listen, exports, Limits { tls, ..Limits::default() })?), table))
}

fn session(trust: &Arc<Trust>, duty: &Arc<Duty>) -> Result<Session, Problem> {
    let duties = Some(Arc::clone(duty) as Arc<dyn Duties>);
    Session::with_duties(Arc::clone(trust), duties, None).map_err(|e| Problem::failed(e.to_string()))
}

impl Daemon {
    /// Starts everything; when this returns, volumes and control socket can be used.
    ///
    /// # Errors
    /// What is in the way, with its object.
    pub fn start(data: DataDir, settings: Settings) -> Result<Daemon, Problem> {
        let role = settings.role();
        let mut about = About {
            role,
            window: settings.appliance.as_ref().map(|a| a.window),
            point_every: settings.agent.as_ref().and_then(|a| a.point_every),
            appliance: None,
            nbd_tls: false,
            apps: BTreeMap::new(),
        };
        // Sessions with mgmt begin at once: lists of revocations come over them, and what there is to report comes when it is there.
        let (mut sessions, duty) = (Vec::new(), Arc::new(Duty::default()));
        if let Some(trust) = settings.appliance.as_ref().and_then(|a| a.trust.as_ref()) {
            sessions.push(session(&trust.0, &duty)?);
        }
        let appliance = settings.appliance.map(|s| start_appliance(&data, s)).transpose()?;
        let (mut agent, mut served, mut server, mut taker) = (None, Vec::new(), None, None);
        let (mut barriers, mut of_agent) = (None, None);
        if let Some(AgentSettings {
            disks,
            listen,
            sync_rate,
            foreign,
            fence,
            resize,
            reach,
            tls,
            take_disks,
            new_disks,
            apps,
            ..
        }) = settings.agent
        {
            duty.reaches(&reach);
            about.apps = apps;
            let to = match reach {
                Reach::Nowhere => None,
                Reach::Here => Some(connector(Endpoint::Unix(local_socket(&data)), true)),
                Reach::At { endpoint, local_only } => {
                    about.appliance = Some(endpoint.to_string());
                    Some(connector(endpoint, local_only))
                }
                Reach::Secure { endpoint, trust } => {
                    about.appliance = Some(endpoint.to_string());
                    match &trust {
                        Ok(trust) => of_agent = Some(Arc::clone(&trust.0)),
                        Err(e) => tracing::error!("the disks are served, and nothing reaches the appliance: {e}"),
                    }
                    Some(secure_connector(endpoint, trust.map(|t| t.0)))
                }
            };
            match to {
                None => served = open_plain(disks)?,
                Some(to) => {
                    let (opened, volumes) = open_protected(&data, disks, (sync_rate, foreign, fence, resize), to)?;
                    // When all volumes are there: a barrier marks all of them.
                    if let Some(trust) = of_agent {
                        let part = Arc::new(Barriers::start(&opened)?);
                        barriers = Some(Arc::clone(&part));
                        let part: Arc<dyn Attendant> = part;
                        let duties = Some(Arc::clone(&duty) as Arc<dyn Duties>);
                        let session = Session::with_duties(trust, duties, Some(part));
                        sessions.push(session.map_err(|e| Problem::failed(e.to_string()))?);
                    }
                    (agent, served) = (Some(opened), volumes);
                }
            }
            about.nbd_tls = !matches!(tls, afterimage_nbd::Tls::Off);
            let (serving, table) = serve(listen, &served, tls)?;
            server = Some(serving);
            taker = agent.clone().map(|agent| Taker {
                agent,
                table,
                folder: data.path().join("agent"),
                allowed: take_disks,
                ring: new_disks.0,
                cache: new_disks.1,
                foreign,
                fence,
                sync_rate,
                turn: Mutex::new(()),
            });
        }
        let site = Arc::new(Local::new(data.path(), served, appliance.map(Arc::new), server.clone(), about)?);
        if let Some(taker) = taker {
            site.take_with(taker);
        }
        duty.begins(&site);
        site.attach_again();
        site.end_leftovers();
        let control = data.path().join("control.sock");
        let control = ControlServer::start(&control, Arc::clone(&site) as Arc<dyn Site>)
            .map_err(|e| Problem::failed(format!("{}: {e}", control.display())))?;
        let janitor = Janitor::start(data.path())?;
        Ok(Daemon { site, agent, server, control, _janitor: janitor, sessions, barriers, data })
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
        self.site.make_due_app_points();
    }

    /// Stops in order. True if the appliance has everything.
    #[must_use]
    pub fn stop(self) -> bool {
        let Daemon { site, agent, server, mut control, _janitor: janitor, sessions, barriers, data } = self;
        drop(janitor);
        site.finish_app_points(APP_GRACE);
        // No barrier from here on.
        drop((sessions, barriers));
        site.stop_serving();
        // Whoever uses a device that is left waits until the next process goes on with it: nothing holds that up. What the
        // appliance lacks stays in the journal.
        let left = site.leave_devices();
        let drain = if left { Duration::ZERO } else { DRAIN };
        if let Some(server) = server.and_then(|s| sole(s, CONTROL_GRACE)) {
            server.stop(NBD_GRACE);
        }
        let complete = agent.is_none_or(|agent| agent.stop(drain));
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
