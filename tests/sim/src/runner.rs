//! Many seeds: each in a child of its own, some at a time, with a watchdog.

use crate::Wish;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// A seed that has worked for so long, or slept, counts as hanging. Time in which others had the processors does not count, nor
/// does time in which it was stopped.
const PATIENCE: Duration = Duration::from_secs(60);
/// So young a child is not looked at.
const YOUNG: Duration = Duration::from_secs(20);

/// How a seed went.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Whether it was good.
    pub good: bool,
    /// What it said last.
    pub text: String,
}

/// What many seeds gave.
#[derive(Debug, Default)]
pub struct Summary {
    /// Seeds run.
    pub seeds: u64,
    /// Those that failed.
    pub failures: Vec<Outcome>,
    /// Counts of what happened.
    pub counts: BTreeMap<String, u64>,
}

struct Child {
    seed: u64,
    pid: Pid,
    slot: usize,
    out: File,
    started: Instant,
    /// When it was looked at last, and how long it had slept by then.
    looked: Instant,
    slept: Duration,
}

impl Child {
    /// Whether it gets nowhere. A seed waits for nothing in real time: whoever sleeps waits for ever.
    fn hangs(&mut self) -> bool {
        let since = std::mem::replace(&mut self.looked, Instant::now());
        if self.started.elapsed() < YOUNG {
            return false;
        }
        let process = format!("/proc/{}", self.pid);
        let threads = std::fs::read_dir(format!("{process}/task")).into_iter().flatten().flatten();
        if threads.filter_map(|t| Stat::of(&t.path())).all(|t| matches!(t.state, 'S' | 'D')) {
            self.slept += since.elapsed();
        }
        let worked = Stat::of(Path::new(&process)).map_or(Duration::ZERO, |s| s.worked);
        worked > PATIENCE || self.slept > PATIENCE
    }
}

/// What the kernel tells of a process or thread.
struct Stat {
    state: char,
    worked: Duration,
}

impl Stat {
    /// `None` if it has gone.
    fn of(folder: &Path) -> Option<Stat> {
        let text = std::fs::read_to_string(folder.join("stat")).ok()?;
        // Behind the name, which may hold anything: state, then ten others, then the hundredths of a second out of the kernel and in it.
        let mut fields = text.rsplit(')').next()?.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let ticks: u64 = fields.skip(10).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
        Some(Stat { state, worked: Duration::from_millis(ticks * 10) })
    }
}

/// Runs one seed in a child.
fn start(seed: u64, slot: usize, wish: &Wish) -> std::io::Result<Child> {
    let out = memory()?;
    // SAFETY: this process has one thread.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            let now = Instant::now();
            Ok(Child { seed, pid: child, slot, out, started: now, looked: now, slept: Duration::ZERO })
        }
        ForkResult::Child => {
            // SAFETY: the descriptors are ours.
            unsafe { libc::dup2(out.as_raw_fd(), 1) };
            pin(slot);
            crate::run(seed, wish.clone())
        }
    }
}

/// Keeps a child on one core: handing the token on is then much cheaper. Without it nothing is lost but time.
fn pin(slot: usize) {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut set = nix::sched::CpuSet::new();
    let _ = set.set(slot % cores).and_then(|()| nix::sched::sched_setaffinity(Pid::from_raw(0), &set));
}

/// The signal that tells of a child's end, kept for [`await_child`] to find.
fn child_signal() -> SigSet {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    set
}

/// Waits until a child ends, or for a while.
fn await_child() {
    let (set, limit) = (child_signal(), libc::timespec { tv_sec: 0, tv_nsec: 200_000_000 });
    // SAFETY: a set and a time of ours; what is told of the signal is not asked for.
    unsafe { libc::sigtimedwait(set.as_ref(), std::ptr::null_mut(), &raw const limit) };
}

fn memory() -> std::io::Result<File> {
    let fd = nix::sys::memfd::memfd_create(c"seed", nix::sys::memfd::MFdFlags::empty())?;
    Ok(File::from(fd))
}

fn finish(mut child: Child, status: Option<WaitStatus>) -> Outcome {
    let mut text = String::new();
    let read = child.out.seek(SeekFrom::Start(0)).and_then(|_| child.out.read_to_string(&mut text));
    if let Err(e) = read {
        text = format!("its output cannot be read: {e}");
    }
    let good = matches!(status, Some(WaitStatus::Exited(_, 0)));
    match status {
        Some(WaitStatus::Exited(..)) => {}
        Some(other) => text.push_str(&format!("FAILED: it ended with {other:?}")),
        None => text.push_str("FAILED: it hangs"),
    }
    Outcome { seed: child.seed, good, text }
}

/// Runs seeds one after the other, `jobs` at a time; `each` is told of every one and says whether to go on. To be called in a
/// process with one thread.
///
/// # Errors
/// If the system refuses a child.
pub fn run(
    seeds: std::ops::Range<u64>,
    jobs: usize,
    wish: &Wish,
    each: &mut dyn FnMut(&Outcome, &Summary) -> bool,
) -> std::io::Result<Summary> {
    let mut summary = Summary::default();
    child_signal().thread_block()?;
    let (mut next, mut running, mut go_on): (u64, Vec<Child>, bool) = (seeds.start, Vec::new(), true);
    loop {
        while running.len() < jobs.max(1) && next < seeds.end && go_on {
            let slot = (0..jobs.max(1)).find(|s| running.iter().all(|c: &Child| c.slot != *s)).unwrap_or(0);
            running.push(start(next, slot, wish)?);
            next += 1;
        }
        if running.is_empty() {
            return Ok(summary);
        }
        let mut ended = Vec::new();
        for (i, child) in running.iter_mut().enumerate() {
            match waitpid(child.pid, Some(WaitPidFlag::WNOHANG))? {
                WaitStatus::StillAlive if child.hangs() => {
                    kill(child.pid, Signal::SIGUSR1)?;
                    std::thread::sleep(Duration::from_millis(300));
                    kill(child.pid, Signal::SIGKILL)?;
                    waitpid(child.pid, None)?;
                    ended.push((i, None));
                }
                WaitStatus::StillAlive => {}
                status => ended.push((i, Some(status))),
            }
        }
        if ended.is_empty() {
            await_child();
        }
        for (i, status) in ended.into_iter().rev() {
            let outcome = finish(running.remove(i), status);
            summary.seeds += 1;
            note(&mut summary.counts, &outcome.text);
            if !outcome.good {
                summary.failures.push(outcome.clone());
            }
            go_on &= each(&outcome, &summary);
        }
    }
}

fn note(counts: &mut BTreeMap<String, u64>, text: &str) {
    let Some(line) = text.lines().rev().find(|l| l.starts_with("ok ")) else { return };
    let list = line.splitn(4, ' ').nth(3).unwrap_or_default();
    for part in list.split(", ") {
        if let Some((n, what)) = part.split_once(' ') {
            *counts.entry(what.to_owned()).or_default() += n.parse::<u64>().unwrap_or(0);
        }
    }
}
