//! The two processes: agent and appliance, started and looked at from the story.

use crate::client;
use crate::disk::Disk;
use crate::model::{Model, Tap};
use crate::net::{Dial, Door, Net};
use crate::sched::{Death, Host, MILLI, Sim};
use crate::world::WallClock;
use afterimage_agent::{Agent, AgentConfig, CacheMode, ForeignWrite, Volume, VolumeConfig, VolumeStatus};
use afterimage_appliance::{Appliance, ApplianceConfig};
use afterimage_base::world::{self, thread};
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often the agent's process tells how it is.
const REPORT: Duration = Duration::from_millis(40);

pub(crate) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Chosen for the whole seed.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Sizes of the volumes in bytes.
    pub sizes: Vec<usize>,
    /// Size of the rings.
    pub ring: u64,
    /// How the disks are used.
    pub cache: CacheMode,
    /// Queues of each volume.
    pub queues: u64,
    /// Operations of each volume, all in all.
    pub operations: u64,
    /// Longest operation.
    pub longest: usize,
    /// Longest time between two batches of a client, in nanoseconds.
    pub think: u64,
    /// Settings of the appliance.
    pub segment: u64,
    /// Its versions in memory.
    pub runs: usize,
    /// Its credit.
    pub credit: u64,
    /// Its window.
    pub window: Duration,
    /// How often it collects.
    pub collect: Duration,
    /// Bytes that it brings into disk order in a second.
    pub order: u64,
    /// Its threads.
    pub threads: usize,
}

/// What the processes leave for the story to read.
#[derive(Default)]
pub struct Board {
    /// The volumes of the running agent.
    pub volumes: Vec<Arc<Volume>>,
    /// Their figures.
    pub status: Vec<VolumeStatus>,
    /// The agent, and whether it shall stop in order.
    agent: Option<Arc<Agent>>,
    /// The running appliance.
    pub appliance: Option<Arc<Appliance>>,
    /// Why a process could not start.
    pub refused: Option<String>,
    /// Operations that clients have begun, by volume.
    pub begun: Vec<u64>,
    /// Client threads that still work.
    pub working: u64,
}

/// Everything of one seed.
pub struct Lab {
    /// The simulation.
    pub sim: &'static Sim,
    /// Its choices.
    pub setup: Setup,
    /// The model.
    pub model: Arc<Model>,
    /// The network.
    pub net: Arc<Net>,
    /// What the processes say.
    pub board: Mutex<Board>,
    /// Clients go on.
    pub load: std::sync::atomic::AtomicBool,
    /// The power failed since the disk was looked at last.
    pub dark: std::sync::atomic::AtomicBool,
}

/// Path of a volume's disk.
#[must_use]
pub fn image(volume: usize) -> PathBuf {
    PathBuf::from(format!("/disk{volume}.img"))
}

/// The vault's folder.
pub const VAULT: &str = "/vault";

impl Lab {
    /// Runs `f` on a host, and waits for its end. `None` if the host died, or `limit` nanoseconds passed.
    pub fn on<T: Send + 'static>(
        self: &Arc<Lab>,
        host: Host,
        name: &str,
        limit: u64,
        f: impl FnOnce(&Arc<Lab>) -> T + Send + 'static,
    ) -> Option<T> {
        let out: Arc<Mutex<Option<T>>> = Arc::default();
        let (result, lab) = (Arc::clone(&out), Arc::clone(self));
        let id = self.spawn(host, name, move || {
            let t = f(&lab);
            *lock(&result) = Some(t);
        });
        let (life, until) = {
            let s = self.sim.state();
            (s.hosts[host as usize].life, s.now + limit)
        };
        let _ = id;
        loop {
            if let Some(t) = lock(&out).take() {
                return Some(t);
            }
            let s = self.sim.state();
            if s.hosts[host as usize].life != life || s.now > until {
                return None;
            }
            drop(s);
            self.sim.wait(crate::sched::death_key(), Some(5 * MILLI), Location::caller());
        }
    }

    /// Starts a thread on a host.
    pub fn spawn(&self, host: Host, name: &str, f: impl FnOnce() + Send + 'static) -> usize {
        self.sim.spawn(host, name, Box::new(f))
    }

    /// A look at the content of a volume's disk.
    #[must_use]
    pub fn disk(&self, volume: usize) -> Vec<u8> {
        self.with_disk(Host::Agent, |d| d.content(&image(volume))).unwrap_or_default()
    }

    /// A look at a host's disk.
    pub fn with_disk<T>(&self, host: Host, f: impl FnOnce(&mut Disk) -> T) -> T {
        f(self.sim.state().disks.of(host))
    }

    /// Whether a host's process runs.
    #[must_use]
    pub fn up(&self, host: Host) -> bool {
        self.sim.state().hosts[host as usize].up
    }

    /// Begins a life of a host.
    fn boot(&self, host: Host) {
        let mut s = self.sim.state();
        s.hosts[host as usize].up = true;
        s.say(&format!("{host:?} starts"));
    }

    /// What the death of a host means outside of it. To be called when it is seen to be dead.
    pub fn bury(&self, host: Host) {
        let (death, up) = {
            let s = self.sim.state();
            (s.hosts[host as usize].death, s.hosts[host as usize].up)
        };
        let Some(death) = death.filter(|_| !up) else { return };
        self.sim.state().hosts[host as usize].death = None;
        self.net.died(host, death == Death::PowerCut);
        let mut board = lock(&self.board);
        if host == Host::Agent {
            // What a frozen process holds is not given back: its destructors do not run.
            std::mem::take(&mut board.volumes).into_iter().for_each(std::mem::forget);
            std::mem::forget(board.agent.take());
            board.status.clear();
            board.working = 0;
            if death == Death::PowerCut {
                self.dark.store(true, std::sync::atomic::Ordering::Relaxed);
            }
        } else {
            std::mem::forget(board.appliance.take());
        }
    }

    /// Starts the agent's process.
    pub fn start_agent(self: &Arc<Lab>) {
        self.bury(Host::Agent);
        self.boot(Host::Agent);
        let lab = Arc::clone(self);
        self.spawn(Host::Agent, "agent", move || lab.run_agent());
    }

    fn run_agent(self: &Arc<Lab>) {
        let model = Arc::clone(&self.model);
        let dial = Dial { net: Arc::clone(&self.net), tap: Arc::new(move || Tap::new(Arc::clone(&model))) };
        let agent = Arc::new(Agent::new(AgentConfig {
            state_dir: "/agent".into(),
            connector: Arc::new(dial),
            clock: Arc::new(WallClock(self.sim, Host::Agent)),
        }));
        let dark = self.dark.load(std::sync::atomic::Ordering::Relaxed);
        let mut volumes = Vec::new();
        for index in 0..self.setup.sizes.len() {
            let config = VolumeConfig {
                name: format!("v{index}"),
                path: image(index),
                ring_bytes: self.setup.ring,
                cache: self.setup.cache,
                foreign: ForeignWrite::default(),
                // The operator makes disks larger, and the agent may die before it hears of it.
                resize: true,
                adopt: None,
            };
            match agent.add_volume(config) {
                Ok(volume) => volumes.push(volume),
                Err(e) => {
                    lock(&self.board).refused = Some(e.to_string());
                    return;
                }
            }
            let disk = self.disk(index);
            let size = volumes.last().map_or(0, |v| usize::try_from(v.status().size).unwrap_or(0));
            let sound = self.model.with(index, |v| {
                v.came_back(size, disk.len())?;
                v.settle(&disk, dark)
            });
            if let Err(e) = sound {
                crate::fail(&e);
            }
        }
        // Not before: a death in between must not make anybody forget the power cut.
        self.dark.store(false, std::sync::atomic::Ordering::Relaxed);
        {
            let mut board = lock(&self.board);
            board.refused = None;
            board.agent = Some(agent);
            board.volumes.clone_from(&volumes);
        }
        client::start(self, &volumes);
        loop {
            let status: Vec<VolumeStatus> = volumes.iter().map(|v| v.status()).collect();
            let mut board = lock(&self.board);
            if board.agent.is_none() {
                return;
            }
            board.status = status;
            drop(board);
            world::sleep(REPORT);
        }
    }

    /// Stops the agent in order: clients first. False if it died in it.
    pub fn stop_agent(self: &Arc<Lab>) -> bool {
        let stopped = self.on(Host::Agent, "stop", 120_000 * MILLI, |lab| {
            let agent = lock(&lab.board).agent.clone();
            agent.map(|a| a.stop(Duration::from_secs(2)))
        });
        if stopped.is_none() {
            return false;
        }
        let mut board = lock(&self.board);
        board.agent = None;
        board.volumes.clear();
        board.status.clear();
        drop(board);
        // The process ends; what its threads hold is gone with it.
        self.sim.say("the agent has stopped");
        self.sim.die(Host::Agent, Death::Kill);
        true
    }

    /// Starts the appliance's process. Whether it did, or what it said.
    pub fn start_appliance(self: &Arc<Lab>) -> Option<Result<(), String>> {
        self.bury(Host::Appliance);
        self.boot(Host::Appliance);
        self.on(Host::Appliance, "appliance", 600_000 * MILLI, |lab| {
            let setup = &lab.setup;
            let mut config = ApplianceConfig::new(VAULT.into(), "/none".into());
            config.listen.clear();
            config.acceptor = Some(Arc::new(Door::open(&lab.net)));
            config.clock = Arc::new(WallClock(lab.sim, Host::Appliance));
            (config.window, config.collect_every) = (setup.window, setup.collect);
            (config.dedupe_bytes, config.cache_bytes, config.layer_cache_bytes) = (64 << 10, 1 << 20, 256 << 10);
            (config.threads, config.segment_size, config.credit) = (setup.threads, setup.segment, setup.credit);
            (config.memory_runs, config.read_threads) = (setup.runs, setup.threads);
            (config.order_rate, config.order_segments) = (setup.order, 2);
            let appliance = Appliance::start(config).map_err(|e| e.to_string())?;
            lock(&lab.board).appliance = Some(Arc::new(appliance));
            Ok(())
        })
    }

    /// Stops the appliance in order. False if it died in it.
    pub fn stop_appliance(self: &Arc<Lab>) -> bool {
        let Some(appliance) = lock(&self.board).appliance.take() else { return false };
        let stopped =
            self.on(Host::Appliance, "stop", 600_000 * MILLI, move |_| Arc::into_inner(appliance).map(Appliance::stop));
        if stopped.is_none() {
            return false;
        }
        self.sim.say("the appliance has stopped");
        self.sim.die(Host::Appliance, Death::Kill);
        true
    }

    /// Runs `f` with the appliance, on its host.
    pub fn ask<T: Send + 'static>(
        self: &Arc<Lab>,
        f: impl FnOnce(&Arc<Lab>, &Appliance) -> T + Send + 'static,
    ) -> Option<T> {
        let appliance = lock(&self.board).appliance.clone()?;
        self.on(Host::Appliance, "question", 600_000 * MILLI, move |lab| f(lab, &appliance))
    }

    /// The vault's folder.
    #[must_use]
    pub fn vault() -> &'static Path {
        Path::new(VAULT)
    }
}

/// Keeps threads with names in the hang reports.
pub fn named(name: &str, f: impl FnOnce() + Send + 'static) {
    if thread::spawn(name, f).is_err() {
        crate::fail("no more threads");
    }
}
