//! The process that does a job: started by `failover test`, with the job's lock as its standard input.

use crate::failover::forks::Exports;
use crate::problem::Problem;
use crate::signals;
use afterimage_mgmt::failover::drive::{Moment, drive};
use afterimage_mgmt::failover::job::{End, Event, Phase, Step};
use afterimage_mgmt::failover::runner::{Outside, Runner};
use afterimage_mgmt::failover::store::{Claim, Jobs};
use nix::sys::signal::{Signal, raise};
use std::cell::Cell;
use std::path::Path;

/// Where tests have this process killed: `STEP:before`, `STEP:done` or `STEP:saved`.
pub const KILL: &str = "AFTERIMAGE_FAILOVER_KILL";

fn failed(e: impl std::fmt::Display) -> Problem {
    Problem::failed(e.to_string())
}

/// Does the job until it has ended.
///
/// # Errors
/// If something of it remains.
pub fn keep(data: &Path, id: &str) -> Result<(), Problem> {
    let signals = signals::watch()?;
    crate::screen::log("info");
    let jobs = Jobs::of(data);
    let claim = Claim::inherited(&jobs.folder_of(id).map_err(failed)?, std::io::stdin())?;
    std::env::set_current_dir(claim.folder())?;
    let mut job = jobs.load(id).map_err(failed)?;
    if job.phase != Phase::Planned {
        job.apply(Event::Over(End::Lost)).map_err(failed)?;
    }
    let source = Exports::of(data);
    let stopped = Cell::new(false);
    let stop = || {
        stopped.set(stopped.get() || signals.try_recv().is_ok());
        stopped.get()
    };
    let kill = std::env::var(KILL).ok();
    let pass = |step: Step, when: Moment| {
        let when = match when {
            Moment::Before => "before",
            Moment::Done => "done",
            Moment::Saved => "saved",
        };
        if kill.as_deref().and_then(|k| k.split_once(':')) == Some((step.word(), when)) {
            // It does not return.
            let _ = raise(Signal::SIGKILL);
        }
    };
    let outside = Outside { source: &source, jobs: jobs.folder(), stop: &stop, pass: &pass };
    // The guest dies with this thread, which is the process's first one.
    let mut runner = Runner::new(outside, &job);
    drive(&mut job, &mut runner, &mut |job| claim.save(job)).map_err(failed)
}
