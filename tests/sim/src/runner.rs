//! Many seeds: each in a child of its own, some at a time, with a watchdog.

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// Real time after which a seed counts as hanging.
const PATIENCE: Duration = Duration::from_secs(120);

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
}

/// Runs one seed in a child; `text` is what it printed.
fn start(seed: u64, slot: usize, broken: Option<&str>, print: bool) -> std::io::Result<Child> {
    let out = memory()?;
    // SAFETY: this process has one thread.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(Child { seed, pid: child, slot, out, started: Instant::now() }),
        ForkResult::Child => {
            // SAFETY: the descriptors are ours.
            unsafe { libc::dup2(out.as_raw_fd(), 1) };
            pin(slot);
            crate::run(seed, broken.map(str::to_owned), print)
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
        None => text.push_str("FAILED: it hangs in real time"),
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
    broken: Option<&str>,
    print: bool,
    each: &mut dyn FnMut(&Outcome, &Summary) -> bool,
) -> std::io::Result<Summary> {
    let mut summary = Summary::default();
    child_signal().thread_block()?;
    let (mut next, mut running, mut go_on): (u64, Vec<Child>, bool) = (seeds.start, Vec::new(), true);
    loop {
        while running.len() < jobs.max(1) && next < seeds.end && go_on {
            let slot = (0..jobs.max(1)).find(|s| running.iter().all(|c: &Child| c.slot != *s)).unwrap_or(0);
            running.push(start(next, slot, broken, print)?);
            next += 1;
        }
        if running.is_empty() {
            return Ok(summary);
        }
        let mut ended = Vec::new();
        for (i, child) in running.iter().enumerate() {
            match waitpid(child.pid, Some(WaitPidFlag::WNOHANG))? {
                WaitStatus::StillAlive if child.started.elapsed() > PATIENCE => {
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
