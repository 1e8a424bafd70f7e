//! The whole system in one process, on simulated time, network and disks, driven by seeds.
//!
//! Agent, journal and appliance are the real ones; below them lies the [`world`] of this crate. One seed is one run, in a process of
//! its own: the same seed gives the same trace, byte for byte. See docs/testing.md.
//!
//! | module | what |
//! |---|---|
//! | [`sched`] | threads, of which one runs at a time; time; deaths of hosts |
//! | [`strand`] | what a thread is made of |
//! | [`disk`] | files: page cache and durable part, faults, power cuts |
//! | [`net`] | connections and what goes wrong with them |
//! | [`world`] | the three as the world of the product |
//! | [`model`] | what must be on the disk, and what the appliance must show |
//! | [`client`] | the load |
//! | [`hosts`] | the processes |
//! | [`story`] | one seed from the beginning to the end |
//! | [`runner`] | many seeds, each in a process |
//! | [`summary`] | what they gave, added up |

pub mod client;
pub mod disk;
pub mod hosts;
pub mod model;
pub mod net;
pub mod rng;
pub mod runner;
pub mod sched;
pub mod story;
pub mod strand;
pub mod summary;
pub mod world;

use sched::Sim;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

static SIM: OnceLock<&'static Sim> = OnceLock::new();
static FAILED: AtomicBool = AtomicBool::new(false);

/// The simulation of this process.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn sim() -> &'static Sim {
    SIM.get().copied().unwrap_or_else(|| fail("there is no simulation"))
}

/// What is asked of each seed beyond itself.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// The rule that is broken on purpose.
    pub broken: Option<String>,
    /// The only thing that its story is about.
    pub about: Option<story::About>,
    /// Everything that happens is printed.
    pub trace: bool,
}

/// Runs one seed in this process, which ends with it.
pub fn run(seed: u64, wish: Wish) -> ! {
    keep_memory();
    // On a thread that has no past: what the standard library keeps for each thread then comes from the seed too.
    match std::thread::Builder::new().spawn(move || tell(seed, wish)) {
        Ok(thread) => match thread.join() {
            Ok(never) => never,
            Err(_) => exit(1),
        },
        Err(e) => fail(&format!("no thread: {e}")),
    }
}

/// Memory that the heap of a seed begins with.
const HEAP: usize = 96 << 20;
/// Bytes of a large page.
const LARGE_PAGE: usize = 2 << 20;

/// Memory comes from one heap that is not given back: the process lives for a moment only. Most of what it would cost is the first
/// touch of each page, so they are large ones where the system has them.
fn keep_memory() {
    let settings = [
        (libc::M_ARENA_MAX, 1),
        // More the allocator does not take.
        (libc::M_MMAP_THRESHOLD, 32 << 20),
        (libc::M_TRIM_THRESHOLD, 1 << 30),
        (libc::M_TOP_PAD, i32::try_from(HEAP).unwrap_or(i32::MAX)),
    ];
    for (what, value) in settings {
        // SAFETY: a setting of the allocator.
        let taken = unsafe { libc::mallopt(what, value) };
        assert_eq!(taken, 1, "the allocator does not take a setting");
    }
    // More than what is free so far, so that the heap grows now.
    drop(std::hint::black_box(Vec::<u8>::with_capacity(LARGE_PAGE)));
    // SAFETY: asks where the heap ends.
    let end = unsafe { libc::sbrk(0) };
    let first = (end.addr() - HEAP).next_multiple_of(LARGE_PAGE);
    let start = end.with_addr(first);
    // SAFETY: advice on memory of the heap, whose content stays. Nothing is lost if the system does not take it.
    unsafe { libc::madvise(start, end.addr() - first, libc::MADV_HUGEPAGE) };
}

fn tell(seed: u64, wish: Wish) -> ! {
    let sim: &'static Sim = Box::leak(Box::new(Sim::new(seed, wish.broken, wish.trace)));
    let _ = SIM.set(sim);
    afterimage_base::world::set(sim);
    std::panic::set_hook(Box::new(|info| {
        let trace = std::backtrace::Backtrace::force_capture();
        fail(&format!("panic: {info}\n{trace}"));
    }));
    // SAFETY: the handler only looks at the simulation, in a process that is about to be killed.
    unsafe { libc::signal(libc::SIGUSR1, tell_threads as *const () as libc::sighandler_t) };
    story::tell(sim, wish.about);
    let s = sim.state();
    let counts: Vec<String> = s.counts.iter().map(|(what, n)| format!("{n} {what}")).collect();
    say(&format!("ok {seed} {:016x} {}", s.hash(), counts.join(", ")));
    exit(0)
}

/// For the watchdog: where every thread stands.
extern "C" fn tell_threads(_: libc::c_int) {
    println!("{}", sim().threads());
}

fn say(line: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    // Whoever started this has gone if it cannot be written.
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

/// Ends the process without any destructor: frozen threads hold what they hold.
fn exit(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

/// The seed has failed.
pub fn fail(why: &str) -> ! {
    if FAILED.swap(true, Ordering::SeqCst) {
        exit(1);
    }
    say(&format!("FAILED: {why}"));
    exit(1)
}

/// The standard library and others take their randomness from here: with it, the order of a `HashMap` comes from the seed too.
///
/// # Safety
/// As getrandom(2): `buf` has room for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buf: *mut u8, len: usize, flags: u32) -> isize {
    if afterimage_base::world::simulated().is_some() {
        // SAFETY: the caller says so.
        let out = unsafe { std::slice::from_raw_parts_mut(buf, len) };
        afterimage_base::world::World::random(sim(), out);
        return isize::try_from(len).unwrap_or(isize::MAX);
    }
    // SAFETY: the caller's own arguments.
    let n = unsafe { libc::syscall(libc::SYS_getrandom, buf, len, flags) };
    isize::try_from(n).unwrap_or(-1)
}
