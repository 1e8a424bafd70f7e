//! The scheduler: real threads of which one runs at a time, in an order that a seed decides, on a clock that jumps.
//!
//! A thread holds the token from when it is chosen until it waits, sleeps, ends, or passes a point. Time goes on a little with each choice,
//! and jumps to the next deadline when nobody can run. A host that dies takes its threads with it: they are never chosen again, and
//! what they hold stays as it is, as the memory of a killed process would be gone.

use crate::disk::Disks;
use crate::rng::Rng;
use afterimage_base::world::At;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Nanoseconds of a second.
pub const SECOND: u64 = 1_000_000_000;
/// Nanoseconds of a millisecond.
pub const MILLI: u64 = 1_000_000;
/// Longest simulated time of a seed.
const LONGEST: u64 = 4 * 3600 * SECOND;

/// A simulated machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum Host {
    /// Where the seed's story is told. Never dies.
    Driver = 0,
    /// The protected side.
    Agent = 1,
    /// The appliance.
    Appliance = 2,
}

/// Number of hosts.
pub const HOSTS: usize = 3;

/// How a host dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// Its process is killed; what the page cache has stays.
    Kill,
    /// The machine loses power: what was not synced may be gone, in any part.
    PowerCut,
}

#[derive(Debug, Default)]
struct Parker {
    token: Mutex<bool>,
    passed: Condvar,
}

impl Parker {
    fn park(&self) {
        let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        while !*token {
            token = self.passed.wait(token).unwrap_or_else(PoisonError::into_inner);
        }
        *token = false;
    }

    fn unpark(&self) {
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.passed.notify_one();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// Can run.
    Ready,
    /// Waits for a key, a time, or both.
    Waiting { key: usize, until: Option<u64> },
    /// Has ended.
    Done,
    /// Its host died.
    Frozen,
}

/// Where a thread waits.
#[derive(Clone, Copy)]
enum Where {
    Point(&'static str),
    Wait(At),
}

impl std::fmt::Debug for Where {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Where::Point(name) => f.write_str(name),
            Where::Wait(at) => write!(f, "{}:{}", at.file(), at.line()),
        }
    }
}

struct Thread {
    name: String,
    host: Host,
    doing: Doing,
    notified: bool,
    at: Where,
    parker: Arc<Parker>,
}

/// A death to come.
#[derive(Debug, Clone, Copy)]
pub struct Doom {
    /// After so many steps (file operations and points).
    pub left: u64,
    /// Only these operations count as steps: the notes of file operations.
    pub only: Option<u8>,
    /// How it dies.
    pub death: Death,
}

/// What is known of a host.
#[derive(Debug, Clone)]
pub struct HostState {
    /// Whether its process runs.
    pub up: bool,
    /// Counts its lives.
    pub life: u64,
    /// How it will die.
    pub doom: Option<Doom>,
    /// How it died last.
    pub death: Option<Death>,
    /// The id of its boot.
    pub boot: u64,
    /// Its wall clock is so far from the simulation's time.
    pub skew: i64,
}

/// How threads are chosen in this seed.
#[derive(Debug, Clone, Copy)]
struct Policy {
    /// In how many of a thousand points another thread may go on.
    points: u64,
    /// In how many of a thousand choices the thread stays that was chosen last, if it can run.
    stay: u64,
    /// Threads whose number has this bit set run only when no other can, for a while.
    starve: Option<usize>,
}

/// Everything of one simulation. Locked by the thread that has the token, for moments.
pub struct State {
    /// Chance of everything but the story.
    pub rng: Rng,
    /// Nanoseconds since the beginning.
    pub now: u64,
    threads: Vec<Thread>,
    live: Vec<usize>,
    current: usize,
    /// The hosts.
    pub hosts: [HostState; HOSTS],
    /// The files of all hosts.
    pub disks: Disks,
    /// Counts of what happened, by name.
    pub counts: BTreeMap<&'static str, u64>,
    policy: Policy,
    steps: u64,
    hash: u64,
    /// Whether the trace is printed.
    pub print: bool,
}

/// A simulation. One per process.
pub struct Sim {
    state: Mutex<State>,
    start: Instant,
    /// The rule that is broken on purpose.
    pub broken: Option<String>,
    /// The seed.
    pub seed: u64,
}

thread_local! {
    static THREAD: Cell<usize> = const { Cell::new(usize::MAX) };
}

impl Sim {
    /// A simulation whose first thread is the caller, on the driver's host.
    #[must_use]
    pub fn new(seed: u64, broken: Option<String>, print: bool) -> Sim {
        let mut rng = Rng::new(seed);
        let policy = Policy {
            points: [100, 300, 600, 1000][rng.index(4)],
            stay: [0, 0, 300, 800][rng.index(4)],
            starve: (rng.below(4) == 0).then(|| rng.index(5)),
        };
        let host = |boot| HostState { up: false, life: 0, doom: None, death: None, boot, skew: 0 };
        let hosts = [host(rng.word()), host(rng.word()), host(rng.word())];
        let disks = Disks::new(rng.fork());
        let main = Thread {
            name: "story".into(),
            host: Host::Driver,
            doing: Doing::Ready,
            notified: false,
            at: Where::Point("start"),
            parker: Arc::default(),
        };
        THREAD.set(0);
        let state = State {
            rng,
            now: SECOND,
            threads: vec![main],
            live: vec![0],
            current: 0,
            hosts,
            disks,
            counts: BTreeMap::new(),
            policy,
            steps: 0,
            hash: seed,
            print,
        };
        Sim { state: Mutex::new(state), start: Instant::now(), broken, seed }
    }

    /// The state, for a moment.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The instant of a simulated time.
    #[must_use]
    pub fn instant(&self, now: u64) -> Instant {
        self.start + std::time::Duration::from_nanos(now)
    }

    /// Says what happens, for the trace.
    pub fn say(&self, what: &str) {
        self.state().say(what);
    }

    /// The calling thread's host.
    #[must_use]
    pub fn host(&self) -> Host {
        self.state().host()
    }

    /// Makes a thread known; it can run from now on.
    pub fn register(&self, host: Host, name: &str) -> usize {
        let mut s = self.state();
        let id = s.threads.len();
        s.threads.push(Thread {
            name: name.to_owned(),
            host,
            doing: Doing::Ready,
            notified: false,
            at: Where::Point("begin"),
            parker: Arc::default(),
        });
        s.live.push(id);
        s.note(b's', id as u64);
        id
    }

    /// First call of a thread.
    pub fn begin(&self, id: usize) {
        THREAD.set(id);
        let parker = Arc::clone(&self.state().threads[id].parker);
        parker.park();
    }

    /// Last call of a thread.
    pub fn end(&self, id: usize) {
        let mut s = self.state();
        if s.threads[id].doing == Doing::Frozen {
            drop(s);
            self.freeze();
        }
        s.threads[id].doing = Doing::Done;
        s.live.retain(|t| *t != id);
        s.wake(join_key(id), true);
        let next = s.choose();
        let parker = Arc::clone(&s.threads[next].parker);
        drop(s);
        parker.unpark();
    }

    /// Waits for the end of a thread.
    pub fn join(&self, id: usize, at: At) {
        loop {
            let done = matches!(self.state().threads[id].doing, Doing::Done | Doing::Frozen);
            if done {
                return;
            }
            self.wait(join_key(id), None, at);
        }
    }

    /// Waits for a key, or for so many nanoseconds. Whether it was notified.
    pub fn wait(&self, key: usize, timeout: Option<u64>, at: At) -> bool {
        let mut s = self.state();
        let me = s.current;
        debug_assert_eq!(me, THREAD.get(), "a thread without the token waits");
        let until = timeout.map(|t| s.now.saturating_add(t));
        let thread = &mut s.threads[me];
        (thread.doing, thread.notified) = (Doing::Waiting { key, until }, false);
        s.threads[me].at = Where::Wait(at);
        self.hand_on(s);
        self.state().threads[me].notified
    }

    /// Lets others go on, perhaps.
    pub fn point(&self, name: &'static str) {
        let mut s = self.state();
        s.step(b'p');
        if !s.alive() {
            drop(s);
            self.freeze();
        }
        let points = s.policy.points;
        if s.rng.permille(points) {
            let me = s.current;
            s.threads[me].at = Where::Point(name);
            self.hand_on(s);
        }
    }

    /// Lets those go on that wait for `key`.
    pub fn notify(&self, key: usize, all: bool) {
        self.state().wake(key, all);
    }

    /// Gives the token to the thread that is chosen next, and waits until it is the caller.
    fn hand_on(&self, mut s: MutexGuard<'_, State>) {
        let me = s.current;
        let next = s.choose();
        if next == me {
            return;
        }
        let (mine, other) = (Arc::clone(&s.threads[me].parker), Arc::clone(&s.threads[next].parker));
        drop(s);
        other.unpark();
        mine.park();
    }

    /// The calling thread has died with its host: hands the token on and does nothing any more.
    pub fn freeze(&self) -> ! {
        let mut s = self.state();
        let me = THREAD.get();
        if s.current == me {
            let next = s.choose();
            let parker = Arc::clone(&s.threads[next].parker);
            drop(s);
            parker.unpark();
        } else {
            drop(s);
        }
        loop {
            std::thread::park();
        }
    }

    /// A host dies. Does not return if it is the caller's.
    pub fn die(&self, host: Host, death: Death) {
        let mut s = self.state();
        s.die(host, death);
        let alive = s.alive();
        drop(s);
        if !alive {
            self.freeze();
        }
    }

    /// Where every thread stands, if nobody is just looking.
    #[must_use]
    pub fn threads(&self) -> String {
        self.state.try_lock().map_or_else(|_| "somebody holds the state".into(), |s| s.threads())
    }
}

fn join_key(id: usize) -> usize {
    // Even, and far from any address.
    usize::MAX - 1 - id * 2
}

impl State {
    /// Where every thread stands.
    #[must_use]
    pub fn threads(&self) -> String {
        let mut out = format!("simulated time {} ms, {} steps\n", self.now / MILLI, self.steps);
        for (id, t) in self.threads.iter().enumerate() {
            if matches!(t.doing, Doing::Done | Doing::Frozen) {
                continue;
            }
            let current = if id == self.current { " <- runs" } else { "" };
            out.push_str(&format!("  {id:4} {:?} {:<12} {:?} {:?}{current}\n", t.host, t.name, t.doing, t.at));
        }
        out
    }

    /// The host of the running thread.
    #[must_use]
    pub fn host(&self) -> Host {
        self.threads[self.current].host
    }

    /// Whether the running thread's host lives.
    #[must_use]
    pub fn alive(&self) -> bool {
        self.threads[self.current].doing != Doing::Frozen
    }

    /// Counts something.
    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Takes something into the trace's hash.
    pub fn note(&mut self, what: u8, value: u64) {
        let mut b = [0; 17];
        b[0] = what;
        b[1..9].copy_from_slice(&value.to_le_bytes());
        b[9..].copy_from_slice(&self.now.to_le_bytes());
        self.hash = xxh3_64_with_seed(&b, self.hash);
    }

    /// The trace's hash so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Says what happens.
    pub fn say(&mut self, what: &str) {
        self.hash = xxh3_64_with_seed(what.as_bytes(), self.hash);
        if self.print {
            let t = &self.threads[self.current];
            println!("{:>12.6} {:?}/{}: {what}", self.now as f64 / 1e9, t.host, t.name);
        }
    }

    /// One step of the running thread's host, at which it may be doomed.
    pub fn step(&mut self, what: u8) {
        let host = self.host();
        self.steps += 1;
        let state = &mut self.hosts[host as usize];
        if let Some(doom) = &mut state.doom
            && doom.only.is_none_or(|only| only == what)
        {
            let (left, death) = (doom.left, doom.death);
            doom.left = left.saturating_sub(1);
            if left == 0 && state.up {
                self.die(host, death);
            }
        }
    }

    fn die(&mut self, host: Host, death: Death) {
        let state = &mut self.hosts[host as usize];
        if !state.up {
            return;
        }
        (state.up, state.doom, state.death) = (false, None, Some(death));
        state.life += 1;
        if death == Death::PowerCut {
            state.boot = self.rng.word();
        }
        self.count(match (host, death) {
            (Host::Agent, Death::Kill) => "kill of the agent",
            (Host::Agent, Death::PowerCut) => "power cut of the agent's host",
            (_, Death::Kill) => "kill of the appliance",
            (_, Death::PowerCut) => "power cut of the appliance's host",
        });
        self.say(&format!("{host:?} dies: {death:?}"));
        for t in self.threads.iter_mut().filter(|t| t.host == host && t.doing != Doing::Done) {
            t.doing = Doing::Frozen;
        }
        let threads = &self.threads;
        self.live.retain(|t| threads[*t].doing != Doing::Frozen);
        if death == Death::PowerCut {
            self.disks.power_cut(host);
        }
        let life = self.hosts[host as usize].life;
        self.disks.forget_locks(host, life);
        self.wake(death_key(), true);
        let frozen: Vec<usize> = (0..self.threads.len()).filter(|t| self.threads[*t].doing == Doing::Frozen).collect();
        frozen.into_iter().for_each(|t| self.wake(join_key(t), true));
    }

    fn wake(&mut self, key: usize, all: bool) {
        let waits = |t: &Thread| matches!(t.doing, Doing::Waiting { key: k, .. } if k == key);
        let mut woken: Vec<usize> = self.live.iter().copied().filter(|t| waits(&self.threads[*t])).collect();
        if !all && woken.len() > 1 {
            let one = self.rng.index(woken.len());
            woken = vec![woken[one]];
        }
        for t in woken {
            let t = &mut self.threads[t];
            (t.doing, t.notified) = (Doing::Ready, true);
        }
    }

    /// Chooses who runs next, letting time pass if nobody can.
    fn choose(&mut self) -> usize {
        self.now += 200 + self.rng.below(1500);
        let mut ready = [0; 64];
        loop {
            let (mut n, mut next) = (0, u64::MAX);
            for id in &self.live {
                let can = match self.threads[*id].doing {
                    Doing::Ready => true,
                    Doing::Waiting { until: Some(until), .. } => {
                        next = next.min(until);
                        until <= self.now
                    }
                    _ => false,
                };
                if can && n < ready.len() {
                    ready[n] = *id;
                    n += 1;
                }
            }
            if n > 0 {
                let chosen = self.pick(&ready[..n]);
                self.threads[chosen].doing = Doing::Ready;
                self.current = chosen;
                self.note(b'r', chosen as u64);
                return chosen;
            }
            if next == u64::MAX || next > LONGEST {
                println!("{}", self.threads());
                crate::fail("nothing can go on any more: every thread waits for another one");
            }
            self.now = next;
        }
    }

    fn pick(&mut self, ready: &[usize]) -> usize {
        let stay = self.policy.stay;
        if ready.contains(&self.current) && self.rng.permille(stay) {
            return self.current;
        }
        if self.rng.permille(5) {
            self.policy.starve = (self.rng.below(4) == 0).then(|| self.rng.index(5));
        }
        let chosen = ready[self.rng.index(ready.len())];
        match self.policy.starve {
            Some(bit) if chosen >> bit & 1 == 1 => ready.iter().copied().find(|t| t >> bit & 1 == 0).unwrap_or(chosen),
            _ => chosen,
        }
    }
}

/// What a parked thread waits for.
#[must_use]
pub fn park_key(thread: usize) -> usize {
    (usize::MAX >> 1) - 1 - thread * 2
}

/// Number of the calling thread.
#[must_use]
pub fn current() -> usize {
    THREAD.get()
}

/// What is notified when a host dies.
#[must_use]
pub fn death_key() -> usize {
    3 << 60
}
