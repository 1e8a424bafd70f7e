//! The process that does a job, or carries a plan out: started by `failover test` or `failover run`, with the job's lock as its standard input.

use crate::failover::conduct;
use crate::failover::forks::Exports;
use crate::problem::Problem;
use crate::signals;
use afterimage_base::clock::{Clock, SystemClock};
use afterimage_mgmt::failover::drive::{Moment, drive};
use afterimage_mgmt::failover::job::{End, Event, Job, Phase, Step};
use afterimage_mgmt::failover::runner::{Outside, Runner};
use afterimage_mgmt::failover::store::{Claim, Jobs, StoreError};
use afterimage_mgmt::units::Time;
use nix::sys::signal::{Signal, raise};
use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

/// Where tests have this process killed: `STEP:before`, `STEP:done` or `STEP:saved`.
pub const KILL: &str = "AFTERIMAGE_FAILOVER_KILL";
/// Where tests have it stand still, as long as a file is there that it makes: `STEP:before:FILE`, with the same places.
pub const HALT: &str = "AFTERIMAGE_FAILOVER_HALT";

fn failed(e: impl std::fmt::Display) -> Problem {
    Problem::failed(e.to_string())
}

/// Starts the process for a job whose process was killed.
///
/// # Errors
/// If it cannot be started.
pub fn go_on(data: &Path, claim: &Claim, job: &Job) -> io::Result<()> {
    // One that a test has killed is not killed again.
    spawn(data, claim, &job.id, true)
}

/// Starts the process for a new job, which goes on when this one ends.
///
/// # Errors
/// If it cannot be started.
pub fn start(data: &Path, claim: &Claim, job: &Job) -> io::Result<()> {
    spawn(data, claim, &job.id, false)
}

/// Starts the process for the run of a plan, which goes on when this one ends.
///
/// # Errors
/// If it cannot be started.
pub fn start_plan(data: &Path, claim: &Claim, id: &str) -> io::Result<()> {
    spawn(data, claim, id, false)
}

/// Starts the process for the run of a plan whose process was killed.
///
/// # Errors
/// If it cannot be started.
pub fn go_on_plan(data: &Path, claim: &Claim, id: &str) -> io::Result<()> {
    spawn(data, claim, id, true)
}

fn spawn(data: &Path, claim: &Claim, id: &str, again: bool) -> io::Result<()> {
    let log = File::options().create(true).append(true).open(claim.folder().join("runner.log"))?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["failover", "keep", id, "--data"]).arg(data).env("NO_COLOR", "1");
    if again {
        command.env_remove(KILL).env_remove(HALT).env_remove(conduct::KILL);
    }
    // It has no terminal, so no signal of one reaches it.
    command.stdin(Stdio::from(claim.share()?)).stdout(log.try_clone()?).stderr(log).process_group(0);
    let mut child = command.spawn()?;
    // So that it is no zombie while this process looks on. How it ends is in the job's file.
    thread::Builder::new().name("wait".to_owned()).spawn(move || drop(child.wait()))?;
    Ok(())
}

/// Does the job until it has ended.
///
/// # Errors
/// If something of it remains.
pub fn keep(data: &Path, id: &str) -> Result<(), Problem> {
    let signals = signals::watch()?;
    crate::screen::log(crate::screen::INFO);
    let jobs = Jobs::of(data);
    let claim = Claim::inherited(&jobs.folder_of(id).map_err(failed)?, std::io::stdin())?;
    std::env::set_current_dir(claim.folder())?;
    let told = Cell::new(false);
    let signalled = || {
        told.set(told.get() || signals.try_recv().is_ok());
        told.get()
    };
    let mut job = match jobs.load(id) {
        Err(StoreError::NotFound(_)) => return conduct::conduct(data, &claim, id, &signalled),
        other => other.map_err(failed)?,
    };
    if job.phase != Phase::Planned {
        let now = Time(SystemClock::new().wall());
        job.apply(Event::Over(End::Lost, now)).map_err(failed)?;
        claim.save(&job)?;
    }
    let source = Exports::of(data);
    let failover = job.is_failover();
    let stop = || {
        if signalled() && failover {
            // Nobody has decided anything: the host shuts down, or the service is restarted. The guest dies with this process, and the
            // job goes on from its branches with the next one, as behind a kill.
            tracing::warn!(
                "failover {id}: this process was told to end; the failover goes on when somebody looks again"
            );
            std::process::exit(0);
        }
        signalled()
    };
    let (kill, halt) = (std::env::var(KILL).ok(), Cell::new(std::env::var(HALT).ok()));
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
        let place = format!("{}:{when}:", step.word());
        let wish = halt.take();
        let Some(file) = wish.as_deref().and_then(|h| h.strip_prefix(&place)).map(Path::new) else {
            return halt.set(wish);
        };
        // Once: behind a restart the step comes again.
        if File::create(file).is_ok() {
            while file.exists() {
                thread::sleep(Duration::from_millis(20));
            }
        }
    };
    let outside = Outside { source: &source, jobs: jobs.folder(), stop: &stop, pass: &pass };
    // The guest dies with this thread, which is the process's first one.
    let mut runner = Runner::new(outside, &job);
    drive(&mut job, &mut runner, &mut |job| claim.save(job)).map_err(failed)
}
