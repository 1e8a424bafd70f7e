//! The end of jobs whose process died: by whoever looks next, a command or a daemon.

use crate::failover::check::Check;
use crate::failover::drive::{DriveError, Hands, Looked, drive};
use crate::failover::job::{CheckResult, End, Event, Job};
use crate::failover::source::DiskSource;
use crate::failover::store::{Claim, Jobs, StoreError};
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
}

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
    let fixed = [QMP_SOCKET, SERIAL_SOCKET, AGENT_SOCKET, VARIABLES, "kvm-trial.img", "stop"].map(str::to_owned);
    for name in fixed.into_iter().chain((0..job.disks.len()).map(disk_socket)) {
        match std::fs::remove_file(folder.join(&name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(format!("{name} cannot be removed: {e}")),
            _ => {}
        }
    }
    Ok(())
}

/// Ends all jobs that nobody does, and returns their ids. Those that cannot be ended now are reported and left.
///
/// # Errors
/// If the jobs cannot be listed.
pub fn sweep(jobs: &Jobs, source: &dyn DiskSource) -> Result<Vec<String>, StoreError> {
    jobs.remove_rubbish()?;
    let mut ended = Vec::new();
    for id in jobs.ids()? {
        match sweep_one(jobs, &id, source) {
            Ok(true) => ended.push(id),
            Ok(false) | Err(SweepError::Store(StoreError::NotFound(_))) => {}
            Err(e) => tracing::warn!("a test failover could not be removed, and is tried again: {e}"),
        }
    }
    Ok(ended)
}

/// Ends a job, if nobody does it and it has not ended.
///
/// # Errors
/// If something of it remains.
pub fn sweep_one(jobs: &Jobs, id: &str, source: &dyn DiskSource) -> Result<bool, SweepError> {
    // Read before it is owned: so that a file of another version is reported and an ended job costs no lock.
    if jobs.load(id)?.has_ended() {
        return Ok(false);
    }
    let Some(claim) = jobs.claim(id)? else { return Ok(false) };
    let mut job = jobs.load(id)?;
    if job.has_ended() {
        return Ok(false);
    }
    job.apply(Event::Over(End::Lost)).map_err(DriveError::from)?;
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

    fn hold(&mut self, _: &Job, _: Time) -> End {
        End::Lost
    }

    fn kill(&mut self, job: &Job) -> Result<(), String> {
        job.process.as_ref().map_or(Ok(()), end_process)
    }

    fn drop_forks(&mut self, job: &Job) -> Result<(), String> {
        job.disks.iter().try_for_each(|fork| self.source.drop_fork(fork))
    }

    fn remove(&mut self, job: &Job) -> Result<Option<u64>, String> {
        remove_files(self.claim.folder(), job).map(|()| None)
    }

    fn now(&self) -> Time {
        Time(SystemClock::new().wall())
    }
}
