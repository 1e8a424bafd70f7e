//! The appliance as its users see it.

use crate::branch::BranchError;
use crate::collect::order::{OrderConfig, OrderReport};
use crate::collect::{CollectError, CollectReport, Now};
use crate::config::ApplianceConfig;
use crate::export::ahead::Budget;
use crate::export::parallel::ReadPool;
use crate::fence::FenceError;
use crate::history::thin::Policy;
use crate::history::timeline::{Choices, Gap, Window, Wish, WishError};
use crate::history::{HistoryConfig, HistoryError, PageCache};
use crate::ingest::listen::{Acceptor, Doors, Listener, SocketAcceptor};
use crate::ingest::replay::{end_open_segments, rebuild_index};
use crate::ingest::session::Volumes;
use crate::ingest::volume::{Volume, seal_segments};
use crate::ingest::{Parts, SessionError, Shared};
use crate::owners::Owners;
use crate::reduce::index::DedupeIndex;
use crate::reduce::pool::Pool;
use crate::registry::{Keys, Registry, keep_in_order, maintain};
use crate::room::Room;
use crate::store::{Store, StoreError, file_name};
use crate::vault::{Upkeep, Vault, VaultError};
use afterimage_base::clock::Clock;
use afterimage_base::net::{Endpoint, StreamListener};
use afterimage_base::world;
use afterimage_base::world::channel::bounded;
use afterimage_base::world::sync::LongMutex;
use afterimage_base::world::thread::{self, JoinHandle};
use afterimage_format::manifest::{ForkKind, ForkMeta, GapMeta, Manifest, PointMeta, VolumeMeta};
use afterimage_trust::Trust;
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use thiserror::Error;

/// Full segments that may wait for their directory.
const SEALER_QUEUE: usize = 64;

/// Why an appliance does not start, or cannot do what was asked.
#[derive(Debug, Error)]
pub enum ApplianceError {
    /// The vault.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// Which machine owns which volume.
    #[error(
        "{0}: {1}: put a copy of it back, or remove it: every volume then belongs to the machine that comes with it first"
    )]
    Owners(PathBuf, std::io::Error),
    /// The segments.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The layers of a volume.
    #[error("volume {0}: {1}")]
    History(String, Box<HistoryError>),
    /// An address for agents.
    #[error("{0}: cannot listen there: {1}")]
    Listen(String, std::io::Error),
    /// Threads or memory.
    #[error("the system refuses {0}: {1}")]
    System(&'static str, std::io::Error),
    /// No such volume.
    #[error("there is no volume {0:?} in the vault; it has {1}")]
    NoVolume(String, String),
    /// No such seq or time.
    #[error("volume {0}: {1}")]
    When(String, WishError),
    /// No such point.
    #[error("volume {0} has no point '{1}': `afterimage point ls {0}` shows those it has")]
    NoPoint(String, String),
    /// Nothing may go.
    #[error("volume {0} is on hold: no point of it is removed; `afterimage volume retention {0} --release` ends that")]
    Held(String),
    /// A branch.
    #[error("branch {0}: {1}")]
    Branch(String, BranchError),
    /// A fence.
    #[error("volume {0}: {1}")]
    Fence(String, FenceError),
    /// A change could not be made durable.
    #[error("{0}")]
    Session(#[from] SessionError),
}

/// A running appliance.
pub struct Appliance {
    pub(crate) shared: Arc<Shared>,
    pub(crate) registry: Arc<Registry>,
    /// Help with the reads of exports.
    pub(crate) reads: Arc<ReadPool>,
    /// Memory for reading ahead.
    pub(crate) ahead: Arc<Budget>,
    pub(crate) doors: Arc<Doors>,
    pub(crate) clock: Arc<dyn Clock>,
    listeners: Vec<Listener>,
    addresses: Vec<Endpoint>,
    pub(crate) stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    sealer: Option<JoinHandle<()>>,
    trust: Option<Arc<Trust>>,
    /// What happened at start, for people.
    pub started: StartReport,
}

/// What a start found.
#[derive(Debug, Clone, Default)]
pub struct StartReport {
    /// Segments that were open when the last process died.
    pub open_segments: usize,
    /// Files that nothing named.
    pub removed_files: usize,
    /// Volumes with missing records.
    pub damaged_volumes: Vec<String>,
    /// The vault was made now: there is no history in it.
    pub created: bool,
}

impl std::fmt::Debug for Appliance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Appliance({:?})", self.shared.vault)
    }
}

fn remove_rubbish(vault: &Vault) -> Result<usize, VaultError> {
    let (segments, layers): (BTreeSet<String>, BTreeSet<String>) = vault.read(|m: &Manifest| {
        let layers = m.volumes.iter().flat_map(|v| &v.layers);
        (m.segments.iter().map(|s| file_name(s.number)).collect(), layers.map(|l| l.file_name()).collect())
    });
    let mut gone = vault.remove_rubbish("segments", |n| segments.contains(n))?;
    gone += vault.remove_rubbish("layers", |n| layers.contains(n))?;
    Ok(gone)
}

/// Drops what writable exports of the last process have left.
fn drop_scratch(vault: &Vault) -> Result<(), VaultError> {
    let is_scratch = |v: &VolumeMeta| v.fork.is_some_and(|f| f.kind == ForkKind::Scratch);
    if vault.read(|m| m.volumes.iter().any(is_scratch)) {
        vault.edit(|m| m.volumes.retain(|v| !is_scratch(v)))?;
    }
    Ok(())
}

impl Appliance {
    /// Opens or makes the vault, brings every volume back, and listens.
    ///
    /// # Errors
    /// [`ApplianceError`] says with what and why; the vault is as it was.
    pub fn start(config: ApplianceConfig) -> Result<Appliance, ApplianceError> {
        let created = !world::fs::exists(&config.dir.join("MANIFEST"));
        let vault = Arc::new(Vault::open_or_create(&config.dir, &config.key)?);
        let open_segments = end_open_segments(&vault)?;
        let mut started = StartReport { open_segments, created, ..StartReport::default() };
        drop_scratch(&vault)?;
        started.removed_files = remove_rubbish(&vault)?;
        let system = |what| move |e| ApplianceError::System(what, e);
        let id = vault.read(|m| m.vault);
        let store = Arc::new(Store::new(vault.segments_dir(), id, vault.key().clone(), config.cache_bytes));
        let index = DedupeIndex::new(config.dedupe_bytes).map_err(system("memory for the dedupe index"))?;
        let pool = Pool::new(config.threads).map_err(system("threads"))?;
        let (sealer, full) = bounded(SEALER_QUEUE);
        let room = Arc::new(Room::new(&config.dir, config.min_free));
        vault.set_upkeep(Upkeep { hook: config.io_hook.clone(), room: Arc::clone(&room) });
        let parts = Parts { vault: Arc::clone(&vault), store, index, pool, sealer, room };
        let segment_size = config.segment_size.min(62 << 20);
        let shared = Arc::new(Shared::new(parts, segment_size, config.credit, config.io_hook.clone()));
        let mut history =
            HistoryConfig::new(PageCache::new(config.layer_cache_bytes), Arc::new(Keys(vault.key().clone())));
        history.memory_runs = config.memory_runs;
        history.hook.clone_from(&config.io_hook);
        let reads = Arc::new(ReadPool::new(config.read_threads).map_err(system("threads"))?);
        let registry = Arc::new(Registry {
            volumes: Mutex::default(),
            shared: Arc::clone(&shared),
            history,
            collector: LongMutex::default(),
            orderer: LongMutex::default(),
            retention: Policy {
                window: u64::try_from(config.window.as_nanos()).unwrap_or(u64::MAX),
                ..config.retention
            },
            runners: LongMutex::default(),
            owners: Mutex::new(
                Owners::load(&config.dir).map_err(|e| ApplianceError::Owners(config.dir.join("owners"), e))?,
            ),
        });
        let metas = vault.read(|m| m.volumes.clone());
        for meta in &metas {
            let others = registry.all();
            let volume = registry.open(meta, &others)?;
            if let Some((_, why)) = volume.history.damage() {
                tracing::error!("volume {}: {why}", volume.name);
            }
            if volume.forked || volume.in_part {
                started.damaged_volumes.push(volume.name.clone());
            }
            registry.lock().push(volume);
        }
        let sealing = Arc::clone(&vault);
        let seal = thread::spawn("sealer", move || seal_segments(&sealing, &full));
        let mut appliance = Appliance {
            shared,
            registry,
            reads,
            ahead: Budget::new(config.ahead_bytes),
            clock: Arc::clone(&config.clock),
            doors: Doors::new(config.per_address, config.trust.clone()),
            listeners: Vec::new(),
            addresses: Vec::new(),
            stop: Arc::default(),
            threads: Vec::new(),
            sealer: Some(seal.map_err(system("a thread"))?),
            trust: config.trust.clone(),
            started,
        };
        appliance.heed_revocations();
        appliance.start_threads(&config).map_err(system("a thread"))?;
        for endpoint in &config.listen {
            let failed = |e| ApplianceError::Listen(endpoint.to_string(), e);
            for acceptor in SocketAcceptor::bind(endpoint, appliance.trust.as_ref()).map_err(failed)? {
                appliance.addresses.push(acceptor.endpoint().map_err(failed)?);
                appliance.accept_from(Arc::new(acceptor))?;
            }
        }
        if let Some(acceptor) = config.acceptor {
            appliance.accept_from(acceptor)?;
        }
        Ok(appliance)
    }

    /// Whoever's certificate is revoked is sent away at once.
    fn heed_revocations(&self) {
        if let Some(trust) = &self.trust {
            let doors = Arc::downgrade(&self.doors);
            trust.on_revoked(Box::new(move || {
                if let Some(doors) = doors.upgrade() {
                    doors.dismiss_revoked();
                }
            }));
        }
    }

    fn accept_from(&mut self, acceptor: Arc<dyn Acceptor>) -> Result<(), ApplianceError> {
        let volumes: Arc<dyn Volumes> = Arc::clone(&self.registry) as _;
        let listener = Listener::start(acceptor, Arc::clone(&self.doors), Arc::clone(&self.shared), volumes);
        self.listeners.push(listener.map_err(|e| ApplianceError::System("a thread", e))?);
        Ok(())
    }

    /// Takes agents at a socket that somebody else made, too.
    ///
    /// # Errors
    /// [`ApplianceError::Listen`] if it is no socket that listens.
    pub fn listen_at(&mut self, socket: OwnedFd) -> Result<(), ApplianceError> {
        let failed = |e| ApplianceError::Listen("a socket passed in".to_owned(), e);
        let acceptor = StreamListener::adopt(socket)
            .and_then(|s| SocketAcceptor::new(s, None, self.trust.clone()))
            .map_err(failed)?;
        self.addresses.push(acceptor.endpoint().map_err(failed)?);
        self.accept_from(Arc::new(acceptor))
    }

    /// Where agents can connect.
    #[must_use]
    pub fn addresses(&self) -> &[Endpoint] {
        &self.addresses
    }

    fn start_threads(&mut self, config: &ApplianceConfig) -> std::io::Result<()> {
        let (shared, stop) = (Arc::clone(&self.shared), Arc::clone(&self.stop));
        let rebuild = thread::spawn("index", move || rebuild_index(&shared, &stop))?;
        self.threads.push(rebuild);
        let (registry, stop) = (Arc::clone(&self.registry), Arc::clone(&self.stop));
        let (clock, every) = (Arc::clone(&config.clock), config.collect_every);
        let maintain = thread::spawn("maintenance", move || maintain(&registry, &stop, every, &*clock))?;
        self.threads.push(maintain);
        if config.order_rate > 0 {
            let (registry, stop) = (Arc::clone(&self.registry), Arc::clone(&self.stop));
            let how = OrderConfig { rate: config.order_rate, segments: config.order_segments };
            self.threads.push(thread::spawn("order", move || keep_in_order(&registry, &stop, &how))?);
        }
        Ok(())
    }

    pub(crate) fn volume(&self, name: &str) -> Result<Arc<Volume>, ApplianceError> {
        let all = self.registry.all();
        all.iter().find(|v| v.name == name).cloned().ok_or_else(|| {
            let names: Vec<&str> = all.iter().map(|v| v.name.as_str()).collect();
            let names = if names.is_empty() { "none".to_string() } else { names.join(", ") };
            ApplianceError::NoVolume(name.into(), names)
        })
    }

    /// The points of a volume, oldest first.
    ///
    /// # Errors
    /// [`ApplianceError::NoVolume`].
    pub fn points(&self, volume: &str) -> Result<Vec<PointMeta>, ApplianceError> {
        Ok(self.volume(volume)?.progress().points)
    }

    /// The gaps of a volume, oldest first.
    ///
    /// # Errors
    /// [`ApplianceError::NoVolume`].
    pub fn gaps(&self, volume: &str) -> Result<Vec<GapMeta>, ApplianceError> {
        Ok(self.volume(volume)?.progress().gaps)
    }

    /// The seq that a wish means.
    ///
    /// # Errors
    /// [`ApplianceError::When`] names what can be chosen instead.
    pub fn choose(&self, volume: &str, wish: Wish) -> Result<u64, ApplianceError> {
        let v = self.volume(volume)?;
        let (progress, info) = (v.progress(), self.info(&v));
        let gaps: Vec<Gap> = progress.gaps.iter().map(Gap::from).collect();
        // What a branch has at its fork stays as long as the branch does.
        let fork = v.fork().filter(ForkMeta::leans).map(|f| f.seq);
        // Before the window the manifest says which points are there: it changes together with the window.
        let kept = self.shared.vault.read(|m| {
            let (first, named) = m.volume(&v.id).map_or((0, &[][..]), |v| (v.first_seq, &v.points[..]));
            let named = named.iter().filter(|p| p.seq < first);
            let own = progress.points.iter().filter(|p| p.seq >= first);
            fork.into_iter().chain(named.chain(own).map(|p| p.seq)).collect::<Vec<u64>>()
        });
        let window = Window {
            first_seq: info.first_seq,
            first_time: info.first_time,
            last_seq: progress.seq,
            last_time: progress.time,
        };
        let until = v.quiet_until(progress.seq).unwrap_or(progress.time);
        let choices = Choices { window, until, gaps: &gaps, kept: &kept };
        let at = |time| v.history.record_at_time(time).map(|r| r.map(|(seq, _)| seq));
        let chosen = choices.choose(wish, at);
        chosen
            .map_err(|e| ApplianceError::History(v.name.clone(), Box::new(e)))?
            .map_err(|e| ApplianceError::When(v.name.clone(), e))
    }

    /// The newest seq at a time, in nanoseconds since 1970.
    ///
    /// # Errors
    /// As [`Appliance::choose`].
    pub fn resolve_time(&self, volume: &str, time: u64) -> Result<u64, ApplianceError> {
        self.choose(volume, Wish::Time(time))
    }

    /// When the newest record at or before `seq` was written, in nanoseconds since 1970; `None` if none is kept.
    ///
    /// # Errors
    /// [`ApplianceError::NoVolume`], or [`ApplianceError::History`] if a layer cannot be read or is damaged.
    pub fn time_of(&self, volume: &str, seq: u64) -> Result<Option<u64>, ApplianceError> {
        let v = self.volume(volume)?;
        let record = v.history.record_at_seq(seq);
        record.map(|r| r.map(|(_, time)| time)).map_err(|e| ApplianceError::History(v.name.clone(), Box::new(e)))
    }

    /// Size of the volume in bytes as it was at `seq`.
    ///
    /// # Errors
    /// [`ApplianceError::NoVolume`].
    pub fn size_at(&self, volume: &str, seq: u64) -> Result<u64, ApplianceError> {
        Ok(self.volume(volume)?.progress().size_at(seq))
    }

    /// Whether the volume can be shown at `seq`.
    ///
    /// # Errors
    /// As [`Appliance::choose`].
    pub fn check_seq(&self, volume: &str, seq: u64) -> Result<(), ApplianceError> {
        self.choose(volume, Wish::Seq(seq)).map(drop)
    }

    /// Applies the retention window as of `now` (nanoseconds since 1970) and gives back the room of what it lets go. Also done
    /// by itself every [`ApplianceConfig::collect_every`].
    ///
    /// # Errors
    /// [`CollectError`]; everything done before it holds.
    pub fn collect(&self, now: u64) -> Result<CollectReport, CollectError> {
        self.registry.collect(Now::At(now), &self.stop, &|_| true)
    }

    /// Brings the next segments of a volume into disk order, if it has at least `segments` full ones that are not; `None` if there are none. Also
    /// done by itself, [`ApplianceConfig::order_rate`] bytes a second; this does not wait.
    ///
    /// # Errors
    /// [`CollectError`]; nothing that can be read has changed then.
    pub fn order(&self, segments: usize) -> Result<Option<OrderReport>, CollectError> {
        self.registry.order(&OrderConfig { rate: 0, segments }, &self.stop, &|_| true)
    }

    /// Ends all sessions, seals the open segments, writes the layers, and closes the vault.
    pub fn stop(mut self) {
        let volumes = self.registry.all();
        self.halt();
        for volume in &volumes {
            volume.leave_segment(&self.shared);
            if let Err(e) = volume.flush(&self.shared) {
                tracing::warn!("volume {}: its last records stay in the segments and are replayed: {e}", volume.name);
            }
        }
    }

    /// Ends sessions and background work.
    fn halt(&mut self) {
        self.stop.store(true, Ordering::Release);
        for volume in self.registry.all() {
            volume.close();
        }
        self.listeners.clear();
        // Those still in their handshake are cut off; sessions have been ended by the volumes.
        self.doors.empty();
        for thread in self.threads.drain(..) {
            // Maintenance need not wait for its next look.
            thread.unpark();
            drop(thread.join());
        }
    }
}

impl Drop for Appliance {
    /// Like a kill in that nothing is flushed; threads are ended.
    fn drop(&mut self) {
        self.halt();
        self.shared.close_sealer();
        if let Some(sealer) = self.sealer.take() {
            drop(sealer.join());
        }
    }
}
