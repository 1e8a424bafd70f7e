//! The scheduler: threads of which one runs at a time, in an order that a seed decides, on a clock that jumps.
//!
//! A thread holds the token from when it is chosen until it waits, sleeps, ends, or passes a point. Time goes on a little with each choice,
//! and jumps to the next deadline when nobody can run. A host that dies takes its threads with it: they are never chosen again, and
//! what they hold stays as it is, as the memory of a killed process would be gone.

mod state;

use crate::disk::Disks;
use crate::rng::Rng;
use crate::strand::{Stack, Strand};
use afterimage_base::world::At;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

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
    strand: Strand,
    /// What it does, until it has begun.
    start: Option<Box<dyn FnOnce() + Send>>,
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
    /// Of threads that have ended.
    stacks: Vec<Stack>,
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
            strand: Strand::running(),
            start: None,
        };
        let state = State {
            rng,
            now: SECOND,
            threads: vec![main],
            live: vec![0],
            current: 0,
            stacks: Vec::new(),
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

    /// Starts a thread; it runs when it is chosen.
    pub fn spawn(&self, host: Host, name: &str, f: Box<dyn FnOnce() + Send>) -> usize {
        let mut s = self.state();
        let id = s.threads.len();
        let stack = s.stacks.pop().unwrap_or_default();
        s.threads.push(Thread {
            name: name.to_owned(),
            host,
            doing: Doing::Ready,
            notified: false,
            at: Where::Point("begin"),
            strand: Strand::new(stack, begin),
            start: Some(f),
        });
        s.live.push(id);
        s.note(b's', id as u64);
        id
    }

    /// The calling thread has done what it was started for.
    fn end(&self) -> ! {
        let mut s = self.state();
        let me = s.current;
        if s.alive() {
            s.threads[me].doing = Doing::Done;
            s.live.retain(|t| *t != me);
            s.wake(join_key(me), true);
            // Whoever gets it begins after this strand was left for good.
            let stack = s.threads[me].strand.end();
            s.stacks.extend(stack);
        }
        self.leave(s)
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

    /// Goes on with the thread that is chosen next; returns when it is the caller's turn.
    fn hand_on(&self, mut s: MutexGuard<'_, State>) {
        let me = s.current;
        let next = s.choose();
        if next == me {
            return;
        }
        let (mine, other) = (s.place(me), s.place(next));
        drop(s);
        // SAFETY: `mine` runs, `other` waits in a call like this one or has not begun. Threads are never taken off the list, and
        // the whole simulation runs on one thread of the system.
        unsafe { other.switch_from(mine) };
    }

    /// Goes on with others for good.
    fn leave(&self, mut s: MutexGuard<'_, State>) -> ! {
        let me = s.current;
        let next = s.choose();
        let (mine, other) = (s.place(me), s.place(next));
        drop(s);
        // SAFETY: as in `hand_on`; the caller is dead or done, and not chosen again.
        unsafe { other.switch_from(mine) };
        crate::fail("a thread that has ended was chosen")
    }

    /// The calling thread has died with its host: it does nothing any more.
    pub fn freeze(&self) -> ! {
        self.leave(self.state())
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

/// Where every thread but the first begins.
extern "C" fn begin() -> ! {
    let sim = crate::sim();
    let start = {
        let mut s = sim.state();
        let me = s.current;
        s.threads[me].start.take()
    };
    if let Some(f) = start {
        f();
    }
    sim.end()
}

fn join_key(id: usize) -> usize {
    // Even, and far from any address.
    usize::MAX - 1 - id * 2
}

/// What a parked thread waits for.
#[must_use]
pub fn park_key(thread: usize) -> usize {
    (usize::MAX >> 1) - 1 - thread * 2
}

/// What is notified when a host dies.
#[must_use]
pub fn death_key() -> usize {
    3 << 60
}
