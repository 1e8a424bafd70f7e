//! `afterimage failover`: machines started from their history.
//!
//! `test` and `run` make jobs and start the processes that do them ([`keep`]); from then on it only looks on, so that its own end
//! changes nothing. What a killed process leaves is removed by the next command, or by the daemon ([`janitor`]).

pub mod args;
pub mod back;
pub mod conduct;
pub mod forks;
pub mod group;
pub mod janitor;
pub mod keep;
pub mod moments;
pub mod plan;
pub mod plan_report;
pub mod report;
pub mod run;
pub mod test;
pub mod unfence;

use crate::failover::args::{CleanupArgs, FailoverCommand, JobArgs, ListArgs};
use crate::failover::forks::Exports;
use crate::failover::report::Listed;
use crate::failover::run::Decision;
use crate::problem::Problem;
use crate::remote::Way;
use crate::{screen, show};
use afterimage_base::clock::{Clock, SystemClock};
use afterimage_mgmt::api::recoveries::RecoveryView;
use afterimage_mgmt::api::types::List;
use afterimage_mgmt::failover::job::{Job, Phase};
use afterimage_mgmt::failover::store::{Jobs, StoreError};
use afterimage_mgmt::failover::sweep::{sweep, sweep_one};
use afterimage_mgmt::units::Time;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks at a job.
const PACE: Duration = Duration::from_millis(50);
/// Between two looks whether its process lives.
const ALIVE: Duration = Duration::from_secs(1);
/// How long a job may take to end, once it is asked to.
const END: Duration = Duration::from_secs(60);

fn failed(e: impl std::fmt::Display) -> Problem {
    Problem::failed(e.to_string())
}

fn folder(args: &crate::cli::DataArgs) -> Result<PathBuf, Problem> {
    let folder = args.folder()?;
    std::fs::canonicalize(&folder).map_err(|e| Problem::file(&folder, &e))
}

/// Runs the command.
///
/// # Errors
/// As the command says.
pub fn run(command: FailoverCommand) -> Result<(), Problem> {
    match command {
        FailoverCommand::Test(a) => test::test(&a),
        FailoverCommand::Run(a) => run::run(&a),
        FailoverCommand::Commit(a) => run::decide(&a, Decision::Commit),
        FailoverCommand::Rollback(a) => run::decide(&a, Decision::RollBack),
        FailoverCommand::Failback(a) => back::failback(&a),
        FailoverCommand::Again(a) => run::decide(&a, Decision::Again),
        FailoverCommand::Unfence(a) => unfence::unfence(&a),
        FailoverCommand::Plan(a) => plan::plan(&a),
        FailoverCommand::Continue(a) => plan::go_on(&a),
        FailoverCommand::Ls(a) => list(&a),
        FailoverCommand::Show(a) => {
            let jobs = Jobs::of(&folder(&a.data)?);
            if let Some(record) = plan::find(&jobs, &a.id)? {
                return plan_report::show(&record, &jobs.folder_of(&a.id).map_err(failed)?, a.json);
            }
            let job = jobs.load(&a.id).map_err(failed)?;
            report::show(&job, &jobs.folder_of(&a.id).map_err(failed)?, a.json)
        }
        FailoverCommand::Stop(a) => stop(&a),
        FailoverCommand::Cleanup(a) => cleanup(&a),
        FailoverCommand::Keep(a) => keep::keep(&folder(&a.data)?, &a.id),
    }
}

fn now() -> Time {
    Time(SystemClock::new().wall())
}

/// Ids sort by time: day, time of day, 65,536ths of a second, and a byte of chance.
fn new_id(created: Time) -> Result<String, Problem> {
    let digits: String = created.to_string().chars().filter(char::is_ascii_digit).collect();
    let [chance] = afterimage_base::world::random_array::<1>()?;
    let part = created.0 % 1_000_000_000 * 65_536 / 1_000_000_000;
    let (day, time) = (digits.get(..8).unwrap_or("0"), digits.get(8..14).unwrap_or("0"));
    Ok(format!("{day}-{time}-{part:04x}{chance:02x}"))
}

/// Ends tests, and has failovers go on, that nobody does; answers which tests.
fn look_after(data: &Path, jobs: &Jobs) -> Result<Vec<String>, Problem> {
    let ended = sweep(jobs, &Exports::of(data), &|claim, job| keep::go_on(data, claim, job)).map_err(failed)?;
    conduct::sweep_plans(data, jobs).map_err(failed)?;
    Ok(ended)
}

/// Looks on until the job has ended, or `enough` says so.
fn follow(
    data: &Path,
    jobs: &Jobs,
    id: &str,
    enough: &mut dyn FnMut(&Job) -> Result<bool, Problem>,
) -> Result<Job, Problem> {
    let mut looked = Instant::now();
    loop {
        let job = jobs.load(id).map_err(failed)?;
        if job.has_ended() || enough(&job)? {
            screen::live(None);
            return Ok(job);
        }
        if screen::is_live() {
            let check = job.checks.get(job.results.len()).filter(|_| job.phase == Phase::Running);
            let check = check.map_or_else(String::new, |c| format!(", looks at {c}"));
            screen::live(Some(format!("{} {id}: {}{check}", report::kind(&job), report::phase(job.phase))));
        }
        if looked.elapsed() > ALIVE {
            looked = Instant::now();
            if let Err(e) = sweep_one(jobs, id, &Exports::of(data), &|claim, job| keep::go_on(data, claim, job)) {
                screen::live(None);
                return Err(failed(e));
            }
        }
        thread::sleep(PACE);
    }
}

/// A job or a plan; nothing if it is neither any more.
fn open(jobs: &Jobs, id: &str) -> Result<Option<Listed>, Problem> {
    match jobs.load(id) {
        Ok(job) => Ok(Some(Listed::Job(Box::new(job)))),
        Err(StoreError::NotFound(_)) => Ok(plan::find(jobs, id)?.map(|plan| Listed::Plan(Box::new(plan)))),
        Err(e) => Err(failed(e)),
    }
}

fn list(a: &ListArgs) -> Result<(), Problem> {
    if a.all {
        let all: List<RecoveryView> = Way::of(&a.mgmt.way())?.get("/v1/recoveries?limit=1000")?;
        return report::list_all(&all.items, a.json);
    }
    let jobs = Jobs::of(&folder(&a.data)?);
    let mut found = Vec::new();
    for id in jobs.ids().map_err(failed)? {
        let folder = jobs.folder_of(&id).map_err(failed)?;
        match open(&jobs, &id) {
            Ok(Some(listed)) => found.push((listed, folder)),
            Ok(None) => {}
            Err(e) => eprintln!("afterimage: {e}"),
        }
    }
    report::list(&found, a.json)
}

fn stop(a: &JobArgs) -> Result<(), Problem> {
    let data = folder(&a.data)?;
    let jobs = Jobs::of(&data);
    if plan::find(&jobs, &a.id)?.is_some() {
        return plan::stop(&data, &jobs, &a.id, a.json);
    }
    let found = run::named(&jobs, &a.id)?;
    for job in &found {
        if job.is_failover() && job.committed.is_none() && !job.is_ending() {
            let id = &job.id;
            let text = format!("{id} is a failover that is not committed: `afterimage failover rollback {id}` ends it");
            return Err(Problem::usage(text));
        }
    }
    found.iter().filter(|job| !job.has_ended()).try_for_each(|job| jobs.ask_to_stop(&job.id)).map_err(failed)?;
    let start = Instant::now();
    let mut shown = Vec::new();
    for Job { id, .. } in &found {
        let job = follow(&data, &jobs, id, &mut |job| {
            if start.elapsed() < END {
                return Ok(false);
            }
            Err(Problem::failed(format!("{} {} does not end: look into its runner.log", report::kind(job), job.id)))
        })?;
        shown.push((job, jobs.folder_of(id).map_err(failed)?));
    }
    report::show_all(&shown, a.json)
}

/// What `cleanup` did.
#[derive(Debug, Serialize)]
struct Cleaned {
    /// Jobs that a killed process had left.
    ended: Vec<String>,
    /// Jobs of which nothing is left now.
    removed: Vec<String>,
    /// Jobs that are not over.
    running: Vec<String>,
}

fn cleanup(a: &CleanupArgs) -> Result<(), Problem> {
    let data = folder(&a.data)?;
    let jobs = Jobs::of(&data);
    for id in &a.ids {
        open(&jobs, id)?.ok_or_else(|| failed(StoreError::NotFound(id.clone())))?;
    }
    let mut done = Cleaned { ended: look_after(&data, &jobs)?, removed: vec![], running: vec![] };
    for id in jobs.ids().map_err(failed)?.into_iter().filter(|id| a.ids.is_empty() || a.ids.contains(id)) {
        let ended = match open(&jobs, &id) {
            Ok(Some(Listed::Job(job))) => job.has_ended(),
            Ok(Some(Listed::Plan(plan))) => plan.run.has_ended(),
            Ok(None) => true,
            Err(e) => {
                eprintln!("afterimage: {e}");
                continue;
            }
        };
        match jobs.claim(&id).map_err(failed)? {
            Some(claim) if ended => {
                claim.remove().map_err(failed)?;
                done.removed.push(id);
            }
            _ => done.running.push(id),
        }
    }
    if a.json {
        return show::put_json(&done);
    }
    let mut out = String::new();
    for (ids, what) in
        [(&done.ended, "had been killed, and is ended"), (&done.removed, "removed"), (&done.running, "is not over")]
    {
        ids.iter().for_each(|id| out.push_str(&format!("job {id} {what}\n")));
    }
    show::put(&out)
}
