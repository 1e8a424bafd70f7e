//! The volumes of a vault while it is open, and the work that goes on behind them.

use crate::appliance::ApplianceError;
use crate::branch::Runner;
use crate::collect::order::{OrderConfig, OrderReport, Orderer};
use crate::collect::{CollectError, CollectReport, Collector, Now, Round, Step};
use crate::fence::Standing;
use crate::history::thin::Policy;
use crate::history::timeline::Gap;
use crate::history::{HistoryConfig, LayerKeys, VolumeHistory};
use crate::ingest::replay::replay;
use crate::ingest::session::{Machine, Volumes};
use crate::ingest::volume::Volume;
use crate::ingest::{SessionError, Shared};
use crate::keys::VaultKey;
use crate::owners::Owners;
use crate::store::StoreError;
use afterimage_base::clock::Clock;
use afterimage_base::world::sync::LongMutex;
use afterimage_base::world::thread;
use afterimage_format::fence::Fence;
use afterimage_format::manifest::{GapMeta, VolumeMeta};
use afterimage_format::wire::{Hello, SIZE_VERSION};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// How often maintenance looks whether something is due.
const MAINTENANCE: Duration = Duration::from_millis(250);
/// How often collection has a turn while there is no room,
const SHORT_EVERY: Duration = Duration::from_secs(2);
/// while there is something to reduce and batches come,
const REDUCE_EVERY: Duration = Duration::from_secs(2);
/// and while none come.
const REDUCE_QUIET: Duration = Duration::from_secs(1);

/// The vault key as layers use it.
pub(crate) struct Keys(pub(crate) VaultKey);

impl LayerKeys for Keys {
    fn layer_key(&self, id: &[u8; 16]) -> [u8; 32] {
        self.0.layer_key(id)
    }
}

/// Volumes, found by id and name, and made on the first Hello.
pub(crate) struct Registry {
    pub(crate) volumes: Mutex<Vec<Arc<Volume>>>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) history: HistoryConfig,
    /// Held for a whole round, which waits for batches under way.
    pub(crate) collector: LongMutex<Collector>,
    /// Held while a run is brought into order.
    pub(crate) orderer: LongMutex<Orderer>,
    /// What is kept of volumes of which nobody has said more.
    pub(crate) retention: Policy,
    pub(crate) owners: Mutex<Owners>,
    /// Branches that are open as disks. Held while one is opened.
    pub(crate) runners: LongMutex<HashMap<[u8; 16], Weak<Runner>>>,
}

impl Registry {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Vec<Arc<Volume>>> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn all(&self) -> Vec<Arc<Volume>> {
        self.lock().clone()
    }

    /// Opens a volume; `others` are those that stand before it in the manifest, its parent among them if it is a branch.
    pub(crate) fn open(&self, meta: &VolumeMeta, others: &[Arc<Volume>]) -> Result<Arc<Volume>, ApplianceError> {
        let of_volume = |e| ApplianceError::History(meta.name.clone(), Box::new(e));
        let dir = self.shared.vault.layers_dir();
        let (base, parent) = Self::base_of(meta, others)?.unzip();
        let history = VolumeHistory::open_on(base, &dir, meta.id, &meta.layers, self.history.clone());
        let history = history.map_err(of_volume)?;
        let mut replayed = replay(&self.shared.vault, meta, &history);
        let fork = meta.leans_to();
        // What is missing of its parent before the fork is missing of the branch.
        if let Some(parent) = parent.filter(|p| p.progress().gaps.iter().any(|g| Gap::from(g).hides(fork))) {
            replayed.missing = true;
            if parent.in_part {
                replayed.unread = Some(format!("volume {} cannot be read up to where it begins", parent.name));
            }
            let from_time = meta.durable_time;
            let gap = GapMeta { from_seq: fork, from_time, to_seq: None, to_time: 0, initial: false };
            replayed.progress.gaps.insert(0, gap);
        }
        Ok(Arc::new(Volume::new(meta, history, replayed)))
    }
}

/// Whether another disk may take the place of this volume's. Before anything else: who comes too early must not end the session of the
/// agent that is still at work.
fn may_adopt(hello: &Hello, volume: Option<&Arc<Volume>>) -> Result<(), SessionError> {
    let Some(volume) = volume else {
        let id = uuid::Uuid::from_bytes(hello.volume);
        return Err(SessionError::Volume(format!("the vault has no volume {id} that a disk could take over")));
    };
    if volume.standing().state() == Fence::Closed {
        return Ok(());
    }
    Err(SessionError::Volume(format!(
        "a new disk can take over volume {} only while it is fenced, which a failover does: run that first (afterimage failover run)",
        volume.name
    )))
}

impl Volumes for Registry {
    fn of_hello(&self, hello: &Hello, machine: Option<&Machine>) -> Result<Arc<Volume>, SessionError> {
        let mut volumes = self.lock();
        let claim = || match machine {
            Some(machine) => self.claim(hello, machine),
            None => Ok(()),
        };
        let known = volumes.iter().find(|v| v.id == hello.volume);
        if hello.adopts {
            may_adopt(hello, known)?;
        }
        if let Some(volume) = known {
            claim()?;
            if volume.fork().is_some_and(|f| f.leans()) {
                return Err(SessionError::Volume(format!(
                    "{} is a branch: promote it before an agent goes on with it",
                    volume.name
                )));
            }
            let size = volume.progress().size();
            if size != hello.size && hello.newest < SIZE_VERSION {
                return Err(SessionError::Volume(format!(
                    "volume {} has {size} bytes in the vault and {} at the agent, which cannot say when it changed: use \
                     a newer agent",
                    volume.name, hello.size
                )));
            }
            let volume = Arc::clone(volume);
            return self.behind_fence(&mut volumes, &volume, hello);
        }
        if volumes.iter().any(|v| v.name == hello.name) {
            return Err(SessionError::Volume(format!(
                "the vault has another volume with the name {}: its id is a different one. Give this disk another \
                 name, or bring back the agent's data of the old one",
                hello.name
            )));
        }
        claim()?;
        let meta = VolumeMeta::new(hello.volume, hello.name.clone(), hello.size);
        let added = self.shared.vault.edit(|m| m.volumes.push(meta.clone()));
        added.map_err(StoreError::from)?;
        let volume = self.open(&meta, &volumes).map_err(|e| SessionError::Failed(e.to_string()))?;
        tracing::info!("volume {}: registered, {} bytes", volume.name, hello.size);
        volumes.push(Arc::clone(&volume));
        Ok(volume)
    }

    fn fenced(&self, hello: &Hello, machine: Option<&Machine>) -> Option<(Arc<Volume>, Standing)> {
        let may_hear = |v: &&Arc<Volume>| v.id == hello.volume && machine.is_none_or(|m| self.is_owner(&v.id, m));
        let volume = self.lock().iter().find(may_hear).cloned()?;
        self.told_of_fence(volume, hello)
    }
}

impl Registry {
    fn is_owner(&self, volume: &[u8; 16], machine: &Machine) -> bool {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner).is_owner(volume, machine)
    }

    fn claim(&self, hello: &Hello, machine: &Machine) -> Result<(), SessionError> {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners.claim(hello.volume, &hello.name.escape_debug().to_string(), machine)
    }

    /// A round of retention and collection; see [`crate::collect`].
    pub(crate) fn collect(
        &self,
        now: Now<'_>,
        stop: &AtomicBool,
        hook: &dyn Fn(Step) -> bool,
    ) -> Result<CollectReport, CollectError> {
        let mut collector = self.collector.lock();
        let volumes = self.all();
        collector.round(&Round { shared: &self.shared, volumes: &volumes, stop, hook }, now, &self.retention)
    }
}

impl Registry {
    /// Brings a run of segments into disk order; see [`crate::collect::order`].
    pub(crate) fn order(
        &self,
        config: &OrderConfig,
        stop: &AtomicBool,
        hook: &dyn Fn(Step) -> bool,
    ) -> Result<Option<OrderReport>, CollectError> {
        let mut orderer = self.orderer.lock();
        let volumes = self.all();
        orderer.run(&Round { shared: &self.shared, volumes: &volumes, stop, hook }, &self.collector, config)
    }
}

/// How often ordering looks whether there is a run, and how long it leaves alone what did not work.
const ORDER_EVERY: Duration = Duration::from_secs(1);
const ORDER_AGAIN: Duration = Duration::from_secs(60);

/// Brings segments into disk order until `stop` is set.
pub(crate) fn keep_in_order(registry: &Registry, stop: &AtomicBool, config: &OrderConfig) {
    let mut pause = Duration::ZERO;
    while !stop.load(Ordering::Acquire) {
        if pause.is_zero() && registry.shared.room.short().is_none() {
            pause = match registry.order(config, stop, &|_| true) {
                Ok(Some(report)) => {
                    tracing::debug!(?report, "ordering");
                    continue;
                }
                Ok(None) => ORDER_EVERY,
                Err(CollectError::Stopped) => ORDER_AGAIN,
                Err(e) => {
                    tracing::warn!("bringing segments into order ended early: {e}");
                    ORDER_AGAIN
                }
            };
        }
        thread::park_timeout(MAINTENANCE);
        pause = pause.saturating_sub(MAINTENANCE);
    }
}

/// Flushes, merges and collects until `stop` is set.
pub(crate) fn maintain(registry: &Registry, stop: &AtomicBool, every: Duration, clock: &dyn Clock) {
    let (mut waited, mut tried) = (Duration::ZERO, Duration::ZERO);
    while !stop.load(Ordering::Acquire) {
        for volume in registry.all() {
            if volume.history.wants_flush()
                && volume.failure().is_none()
                && let Err(e) = volume.flush(&registry.shared)
            {
                tracing::warn!("volume {}: layers cannot be written now: {e}", volume.name);
            }
        }
        // On a full disk collection is the way out, and comes more often.
        let short = registry.shared.room.short().is_some() && every != Duration::MAX && tried >= SHORT_EVERY;
        let shared = &registry.shared;
        let pause = if shared.flights.any() { REDUCE_EVERY } else { REDUCE_QUIET };
        let reduce =
            shared.pressure.has_left_over() && !shared.pressure.any() && every != Duration::MAX && tried >= pause;
        if waited >= every || short || reduce {
            (waited, tried) = (Duration::ZERO, Duration::ZERO);
            match registry.collect(Now::Clock(clock), stop, &|_| true) {
                Ok(report) if report != CollectReport::default() => tracing::info!(?report, "collection"),
                Ok(_) | Err(CollectError::Stopped) => {}
                Err(e) => tracing::warn!("collection ended early and tries again in {every:?}: {e}"),
            }
        }
        thread::park_timeout(MAINTENANCE);
        (waited, tried) = (waited.saturating_add(MAINTENANCE), tried.saturating_add(MAINTENANCE));
    }
}
