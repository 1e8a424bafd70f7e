//! The end of jobs whose process died: by whoever looks next, a command or a daemon.

use crate::failover::check::Check;
use crate::failover::drive::{DriveError, Hands, Looked, Moments, drive};
use crate::failover::job::{CheckResult, End, Event, Job};
use crate::failover::runner::{AGAIN, BACK, COMMIT, HALT, KEEP};
use crate::failover::source::DiskSource;
use crate::failover::store::{Claim, Jobs, StoreError};
use crate::failover::together::DRAINED;
use crate::target::process::ProcessId;
use crate::target::qemu::{AGENT_SOCKET, DiskPlace, QMP_SOCKET, SERIAL_SOCKET, VARIABLES};
use crate::units::Time;
use afterimage_base::clock::{Clock, SystemClock};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};
use thiserror::Error;

/// How long the kernel may take to end a killed process: one that waits for a disk ends after the disk's server.
const END: Duration = Duration::from_secs(20);

/// Why a job could not be ended.
#[derive(Debug, Error)]
pub enum SweepError {
    /// Its files.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something of it remains.
    #[error(transparent)]
    Drive(#[from] DriveError),
    /// Nobody can be started who does it.
    #[error("no process can be started for it: {0}")]
    GoOn(io::Error),
}

/// Starts somebody who does a job that is claimed.
pub type GoOn<'a> = dyn Fn(&Claim, &Job) -> io::Result<()> + 'a;

/// Kills a process and waits until it is gone.
///
/// # Errors
/// If it does not go.
pub fn end_process(process: &ProcessId) -> Result<(), String> {
    let failed = |e: io::Error| format!("the guest's process {} cannot be killed: {e}", process.pid);
    process.kill().map_err(failed)?;
    let start = Instant::now();
    while process.is_alive().map_err(failed)? {
        if start.elapsed() > END {
            return Err(format!("the guest's process {} was killed and does not end", process.pid));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The name of the socket of the n-th disk in the job's folder.
#[must_use]
pub fn disk_socket(n: usize) -> String {
    format!("disk{n}.sock")
}

/// Removes what is of no use without the guest.
///
/// # Errors
/// The first file that remains, and why.
pub fn remove_files(folder: &Path, job: &Job) -> Result<(), String> {
    let fixed = [VARIABLES, "kvm-trial.img", "stop", COMMIT, KEEP, AGAIN, HALT, BACK, DRAINED].map(str::to_owned);
    remove_all(folder, fixed.into_iter().chain(sockets(job)))
}

/// The sockets of a guest and its disks, which somebody else may have left.
fn sockets(job: &Job) -> impl Iterator<Item = String> {
    let fixed = [QMP_SOCKET, SERIAL_SOCKET, AGENT_SOCKET].map(str::to_owned);
    fixed.into_iter().chain((0..job.disks.len()).map(disk_socket))
}

/// Removes the sockets that are left of an earlier guest of the job in this folder.
///
/// # Errors
/// The first that remains, and why.
pub fn remove_sockets(job: &Job) -> Result<(), String> {
    remove_all(Path::new("."), sockets(job))
}

fn remove_all(folder: &Path, names: impl Iterator<Item = String>) -> Result<(), String> {
    for name in names {
        match std::fs::remove_file(folder.join(&name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(format!("{name} cannot be removed: {e}")),
            _ => {}
        }
    }
    Ok(())
}

/// Drops the disks of a job, if they are there, unless they are kept.
///
/// # Errors
/// Why one remains.
pub fn drop_disks(source: &dyn DiskSource, job: &Job) -> Result<(), String> {
    if !job.is_failover() {
        return job.disks.iter().try_for_each(|fork| source.drop_fork(fork));
    }
    if job.drops_branches() {
        job.disks.iter().try_for_each(|fork| source.drop_branch(fork))?;
    }
    Ok(())
}

/// Takes down the fences of a job, unless it is committed and has not gone back.
///
/// # Errors
/// Why one remains.
pub fn lift(source: &dyn DiskSource, job: &Job) -> Result<(), String> {
    if !job.lifts_fences() {
        return Ok(());
    }
    job.disks.iter().try_for_each(|disk| source.lift(&disk.volume, &job.id))
}

/// Ends all tests that nobody does, has all failovers go on that nobody does, and returns their ids. Those that cannot be ended now are reported and left.
///
/// # Errors
/// If the jobs cannot be listed.
pub fn sweep(jobs: &Jobs, source: &dyn DiskSource, go_on: &GoOn<'_>) -> Result<Vec<String>, StoreError> {
    jobs.remove_rubbish()?;
    let mut ended = Vec::new();
    for id in jobs.ids()? {
        match sweep_one(jobs, &id, source, go_on) {
            Ok(true) => ended.push(id),
            Ok(false) | Err(SweepError::Store(StoreError::NotFound(_))) => {}
            Err(e) => tracing::warn!("a failover could not be looked after, and is tried again: {e}"),
        }
    }
    Ok(ended)
}

/// Ends a test, or has a failover go on, if nobody does it and it has not ended.
///
/// # Errors
/// If something of it remains.
pub fn sweep_one(jobs: &Jobs, id: &str, source: &dyn DiskSource, go_on: &GoOn<'_>) -> Result<bool, SweepError> {
    // Read before it is owned: so that a file of another version is reported and an ended job costs no lock.
    if jobs.load(id)?.has_ended() {
        return Ok(false);
    }
    let Some(claim) = jobs.claim(id)? else { return Ok(false) };
    let mut job = jobs.load(id)?;
    if job.has_ended() {
        return Ok(false);
    }
    if job.is_failover() {
        tracing::warn!("failover {id} of {}: its process was killed; it goes on", job.machine.name);
        go_on(&claim, &job).map_err(SweepError::GoOn)?;
        return Ok(false);
    }
    let now = Time(SystemClock::new().wall());
    job.apply(Event::Over(End::Lost, now)).map_err(DriveError::from)?;
    tracing::warn!("test failover {id} of {}: its process was killed; what it left is removed", job.machine.name);
    drive(&mut job, &mut Undo { claim: &claim, source }, &mut |job| claim.save(job))?;
    Ok(true)
}

/// Hands that only remove.
struct Undo<'a> {
    claim: &'a Claim,
    source: &'a dyn DiskSource,
}

const ONLY_ENDS: &str = "this process only ends jobs";

impl Hands for Undo<'_> {
    fn drain(&mut self, _: &Job) -> Looked<()> {
        Looked::Over(End::Lost)
    }

    fn fence(&mut self, _: &Job) -> Result<(Moments, u64), String> {
        Err(ONLY_ENDS.to_owned())
    }

    fn fork(&mut self, _: &Job) -> Result<(Vec<DiskPlace>, u64, u64), String> {
        Err(ONLY_ENDS.to_owned())
    }

    fn start(&mut self, _: &Job) -> Result<(ProcessId, bool, u64), String> {
        Err(ONLY_ENDS.to_owned())
    }

    fn release(&mut self, _: &Job) -> Result<u64, String> {
        Err(ONLY_ENDS.to_owned())
    }

    fn check(&mut self, _: &Job, _: &Check) -> Looked<CheckResult> {
        Looked::Over(End::Lost)
    }

    fn hold(&mut self, _: &Job, _: Option<Time>) -> End {
        End::Lost
    }

    fn stay(&mut self, _: &Job) -> End {
        End::Lost
    }

    fn lift(&mut self, job: &Job) -> Result<(), String> {
        lift(self.source, job)
    }

    fn kill(&mut self, job: &Job) -> Result<(), String> {
        job.process.as_ref().map_or(Ok(()), end_process)
    }

    fn drop_forks(&mut self, job: &Job) -> Result<(), String> {
        drop_disks(self.source, job)
    }

    fn remove(&mut self, job: &Job) -> Result<Option<u64>, String> {
        remove_files(self.claim.folder(), job).map(|()| None)
    }

    fn now(&self) -> Time {
        Time(SystemClock::new().wall())
    }
}
