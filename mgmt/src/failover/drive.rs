//! The loop of a job: what is next, do it, apply, save.

use crate::failover::check::Check;
use crate::failover::job::{CheckResult, End, Event, Illegal, Job, Step};
use crate::target::process::ProcessId;
use crate::target::qemu::DiskPlace;
use crate::units::Time;
use std::io;
use thiserror::Error;

/// Why a job is not brought to its end.
#[derive(Debug, Error)]
pub enum DriveError {
    /// Something cannot be removed now; it is tried again later.
    #[error("job {job}: {why}")]
    Remains {
        /// The job.
        job: String,
        /// What remains, and why.
        why: String,
    },
    /// The job's file cannot be written. All was removed that could be.
    #[error("the file of job {job} cannot be written: {source}")]
    Save {
        /// The job.
        job: String,
        /// Why.
        source: io::Error,
    },
    /// A fault of the program.
    #[error(transparent)]
    Illegal(#[from] Illegal),
}

/// What came of a step that looks and waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Looked<T> {
    /// This.
    Done(T),
    /// The job is to end.
    Over(End),
}

/// Where the disks of a job begin: seqs, and their times.
pub type Moments = Vec<(u64, Option<Time>)>;

/// Who does the steps.
pub trait Hands {
    /// Has the volumes take no writes, and waits until all that their agents have is there.
    fn drain(&mut self, job: &Job) -> Looked<()>;
    /// Puts up the fences: the moment of each disk, and when.
    ///
    /// # Errors
    /// Why that failed.
    fn fence(&mut self, job: &Job) -> Result<(Moments, u64), String>;
    /// Makes the forks and serves them: places, and when they were served and read.
    ///
    /// # Errors
    /// Why that failed.
    fn fork(&mut self, job: &Job) -> Result<(Vec<DiskPlace>, u64, u64), String>;
    /// Makes the guest's process, which waits: the process, whether with KVM, and when.
    ///
    /// # Errors
    /// Why that failed.
    fn start(&mut self, job: &Job) -> Result<(ProcessId, bool, u64), String>;
    /// Lets it run, and says when.
    ///
    /// # Errors
    /// Why that failed.
    fn release(&mut self, job: &Job) -> Result<u64, String>;
    /// Makes a check.
    fn check(&mut self, job: &Job, check: &Check) -> Looked<CheckResult>;
    /// Waits until the time to live is over, or somebody wants something.
    fn hold(&mut self, job: &Job, until: Option<Time>) -> End;
    /// Waits until somebody wants something.
    fn stay(&mut self, job: &Job) -> End;
    /// Takes down the fences that are up.
    ///
    /// # Errors
    /// Why one remains.
    fn lift(&mut self, job: &Job) -> Result<(), String>;
    /// Kills the guest, if it is there.
    ///
    /// # Errors
    /// Why it remains.
    fn kill(&mut self, job: &Job) -> Result<(), String>;
    /// Drops the forks that are there.
    ///
    /// # Errors
    /// Why one remains.
    fn drop_forks(&mut self, job: &Job) -> Result<(), String>;
    /// Removes sockets and files, and says when.
    ///
    /// # Errors
    /// Why one remains.
    fn remove(&mut self, job: &Job) -> Result<Option<u64>, String>;
    /// The time of day.
    fn now(&self) -> Time;
    /// A place between two steps: a test kills the process here.
    fn pass(&mut self, _step: Step, _when: Moment) {}
}

/// Where in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Nothing was done.
    Before,
    /// It was done and not saved.
    Done,
    /// It was saved.
    Saved,
}

/// Brings a job to its end.
///
/// # Errors
/// [`DriveError`]; the job's file then says how far it is.
pub fn drive(
    job: &mut Job,
    hands: &mut dyn Hands,
    save: &mut dyn FnMut(&Job) -> io::Result<()>,
) -> Result<(), DriveError> {
    let mut unsaved = None;
    while !job.has_ended() {
        let step = job.next();
        hands.pass(step, Moment::Before);
        match perform(job, step, hands) {
            Ok(event) => {
                hands.pass(step, Moment::Done);
                job.apply(event)?;
            }
            Err(why) => {
                job.trouble = Some(why.clone());
                // What counts is what remains.
                drop(save(job));
                return Err(DriveError::Remains { job: job.id.clone(), why });
            }
        }
        if let Err(e) = save(job) {
            if job.goes_on_unsaved() {
                tracing::error!("the file of job {} cannot be written: {e}", job.id);
                continue;
            }
            // Nothing may be made whose name is in no file; what was made is removed all the same.
            job.apply(Event::Over(End::Failed(format!("the job's file cannot be written: {e}")), hands.now()))?;
            unsaved.get_or_insert(e);
        }
        hands.pass(step, Moment::Saved);
    }
    unsaved.map_or(Ok(()), |source| Err(DriveError::Save { job: job.id.clone(), source }))
}

/// Does a step. An error means that something remains.
fn perform(job: &Job, step: Step, hands: &mut dyn Hands) -> Result<Event, String> {
    let now = hands.now();
    let over = |end| Event::Over(end, now);
    let failed = |why| over(End::Failed(why));
    Ok(match step {
        Step::Drain => match hands.drain(job) {
            Looked::Done(()) => Event::Drained,
            Looked::Over(end) => over(end),
        },
        Step::Fence => match hands.fence(job) {
            Ok((moments, at_ms)) => Event::Fenced { moments, at_ms },
            Err(why) => failed(why),
        },
        Step::Fork => match hands.fork(job) {
            Ok((places, forked_ms, first_read_ms)) => Event::Forked { places, forked_ms, first_read_ms },
            Err(why) => failed(why),
        },
        Step::Start => match hands.start(job) {
            Ok((process, kvm, at_ms)) => Event::Started { process, kvm, at_ms },
            Err(why) => failed(why),
        },
        Step::Release => hands.release(job).map_or_else(failed, |at_ms| Event::Released { at_ms }),
        Step::Check(n) => match job.checks.get(n) {
            Some(check) => match hands.check(job, check) {
                Looked::Done(result) => Event::Checked(result, hands.now()),
                Looked::Over(end) => over(end),
            },
            None => failed("it has nothing to check".to_owned()),
        },
        Step::Hold => {
            let end = hands.hold(job, job.until);
            Event::Over(end, hands.now())
        }
        Step::Stay => {
            let end = hands.stay(job);
            Event::Over(end, hands.now())
        }
        Step::Kill => hands.kill(job).map(|()| Event::Killed)?,
        Step::Drop => hands.drop_forks(job).map(|()| Event::Dropped)?,
        Step::Lift => hands.lift(job).map(|()| Event::Lifted)?,
        Step::Remove | Step::Nothing => hands.remove(job).map(|at_ms| Event::Removed { at_ms })?,
    })
}
