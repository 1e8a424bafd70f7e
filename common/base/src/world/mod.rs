//! Everything that blocks, tells time, is random, or touches files, in one place, so that a simulation can own it.
//!
//! In a normal process no world is set: each call is one relaxed load and then what the system offers. A simulation
//! [sets](set) a [`World`] before the first thread starts; time, chance, the order in which threads run and the files are then
//! the world's, and one seed gives one run. Agent, journal and appliance use these instead of the standard library's:
//!
//! | module | instead of |
//! |---|---|
//! | this one | `Instant::now`, `Instant::elapsed`, `thread::sleep`, random bytes, the boot id |
//! | [`sync`] | `Condvar`, eventfds that wake a thread, mutexes that are held while their holder blocks |
//! | [`channel`] | bounded channels |
//! | [`thread`] | `thread::Builder`, `thread::scope` |
//! | [`fs`] | `std::fs`, flock, mapped files |
//! | [`urgent`] | real-time scheduling |
//!
//! Sockets are simulated a level higher: agent and appliance take connections as traits.
//!
//! # Rules
//! - **Nobody reaches a blocking point while holding a mutex**, except the mutex that a condvar wait gives back. Blocking points
//!   are waits on condvars, channels, events, joins, sleeps, sockets and [`point`]. What has to be held all the same is a
//!   [`sync::LongMutex`]. In a simulation one thread runs at a time, so a plain mutex that is held by a thread which does not run
//!   would stop everything.
//! - **File operations are no blocking points**, and may be called under any lock. In a simulation they may fail, and the
//!   host may die in them: then the call does not return, as in a kill.
//! - Nothing may depend on the order of a `HashMap` or on addresses where the outside can see it (files, the wire, the order of waits).

pub mod channel;
pub mod fs;
pub mod sync;
pub mod thread;
mod urgent;

pub use urgent::urgent;

use std::io;
use std::panic::Location;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Where a thread waits, in the source.
pub type At = &'static Location<'static>;

/// What a simulation provides. All calls come from threads that it has started.
pub trait World: Send + Sync {
    /// Its monotonic time.
    fn now(&self) -> Instant;

    /// Lets the calling thread wait for `time`.
    fn sleep(&self, time: Duration, at: At);

    /// Fills `out` by chance.
    fn random(&self, out: &mut [u8]);

    /// The boot id of the calling thread's host.
    fn boot_id(&self) -> u128;

    /// A place where another thread may go on, or the host may die.
    fn point(&self, name: &'static str, at: At);

    /// Whether this run breaks something on purpose.
    fn broken(&self, name: &str) -> bool;

    /// Starts a thread on the host of the calling one. It runs when its turn comes; which thread of the system carries it is the
    /// world's business.
    fn spawn(&self, name: &str, f: Box<dyn FnOnce() + Send>) -> u64;

    /// Waits until a thread has ended.
    fn join(&self, thread: u64, at: At);

    /// Waits until the calling thread is unparked, or for `timeout`; may return early.
    fn park(&self, timeout: Duration, at: At);

    /// Ends the wait of a thread in [`park`](Self::park), now or (perhaps) the next one.
    fn unpark(&self, thread: u64);

    /// Waits until somebody notifies `key`, or for `timeout`. False if nobody has.
    fn wait(&self, key: usize, timeout: Option<Duration>, at: At) -> bool;

    /// Lets one or all go on that wait for `key`.
    fn notify(&self, key: usize, all: bool);

    /// Its files.
    fn files(&self) -> &dyn fs::Files;
}

static SIMULATED: AtomicBool = AtomicBool::new(false);
static WORLD: OnceLock<&'static dyn World> = OnceLock::new();

/// Sets the world of this process, for good. To be called before anything else of the project.
pub fn set(world: &'static dyn World) {
    // A second world cannot take the place of the first, which threads know already.
    assert!(WORLD.set(world).is_ok(), "this process has a world");
    SIMULATED.store(true, Ordering::SeqCst);
}

/// The world, if this is a simulation.
#[inline]
#[must_use]
pub fn simulated() -> Option<&'static dyn World> {
    if SIMULATED.load(Ordering::Relaxed) { WORLD.get().copied() } else { None }
}

/// Monotonic time.
#[inline]
#[must_use]
pub fn now() -> Instant {
    simulated().map_or_else(Instant::now, World::now)
}

/// Time since `then`.
#[inline]
#[must_use]
pub fn since(then: Instant) -> Duration {
    now().saturating_duration_since(then)
}

/// Waits for `time`.
#[track_caller]
pub fn sleep(time: Duration) {
    match simulated() {
        Some(world) => world.sleep(time, Location::caller()),
        None => std::thread::sleep(time),
    }
}

/// Fills `out` with bytes that nobody can guess.
///
/// # Errors
/// If the system's source of chance fails.
pub fn random(out: &mut [u8]) -> io::Result<()> {
    if let Some(world) = simulated() {
        world.random(out);
        return Ok(());
    }
    getrandom::fill(out).map_err(io::Error::from)
}

/// A random array.
///
/// # Errors
/// As [`random`].
pub fn random_array<const N: usize>() -> io::Result<[u8; N]> {
    let mut out = [0; N];
    random(&mut out)?;
    Ok(out)
}

/// The id of this boot of the machine.
///
/// # Errors
/// If the kernel does not tell it.
pub fn boot_id() -> io::Result<u128> {
    if let Some(world) = simulated() {
        return Ok(world.boot_id());
    }
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    u128::from_str_radix(&digits, 16).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// A place between two steps of which the outside could see the order: in a simulation another thread may go on here, or the host
/// may die. No mutex may be held.
#[inline]
#[track_caller]
pub fn point(name: &'static str) {
    if let Some(world) = simulated() {
        world.point(name, Location::caller());
    }
}

/// Whether this process is to break the rule `name` on purpose, so that a test of whole processes finds it: `AFTERIMAGE_BREAK` names it. In
/// no release.
#[must_use]
pub fn broken_by_request(name: &str) -> bool {
    cfg!(debug_assertions) && std::env::var_os("AFTERIMAGE_BREAK").is_some_and(|b| b == name)
}

/// Whether this run is to break the rule `name` on purpose, to see it caught. Always false outside of a simulation.
#[inline]
#[must_use]
pub fn broken(name: &str) -> bool {
    simulated().is_some_and(|world| world.broken(name))
}
