//! `afterimage failover`: machines started from their history.
//!
//! `test` and `run` make jobs and start the processes that do them ([`keep`]); from then on it only looks on, so that its own end
//! changes nothing. What a killed process leaves is removed by the next command, or by the daemon ([`janitor`]).

pub mod args;
pub mod back;
pub mod conduct;
pub mod forks;
pub mod janitor;
pub mod keep;
pub mod plan;
pub mod plan_report;
pub mod report;
pub mod run;
pub mod unfence;

use crate::failover::args::{CleanupArgs, FailoverCommand, JobArgs, ListArgs, TestArgs};
use crate::failover::forks::Exports;
use crate::failover::run::Decision;
use crate::problem::Problem;
use crate::{screen, show, signals, target};
use afterimage_base::clock::{Clock, SystemClock};
use afterimage_mgmt::client::ControlClient;
use afterimage_mgmt::failover::check::Check;
use afterimage_mgmt::failover::job::{Job, Phase, Plan};
use afterimage_mgmt::failover::store::{Jobs, StoreError};
use afterimage_mgmt::failover::sweep::{sweep, sweep_one};
use afterimage_mgmt::target::machine::Machine;
use afterimage_mgmt::units::Time;
use afterimage_mgmt::when::When;
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
        FailoverCommand::Test(a) => test(&a),
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

/// The moment of each disk. Several disks need one instant, which the newest write of each is not.
fn moments(
    control: &mut ControlClient,
    machine: &Machine,
    at: &When,
    (several, now): (bool, Time),
) -> Result<Vec<(u64, Option<Time>)>, Problem> {
    let at = match at {
        When::Latest | When::Seq(_) if several => {
            return Err(Problem::usage(format!(
                "machine {} is not of one disk alone: name one instant with --at, such as -10s, a time, or a point that all have",
                machine.name
            )));
        }
        When::Ago(by) if several => When::Time(now.before(*by)),
        other => other.clone(),
    };
    let mut found = Vec::new();
    for disk in &machine.disks {
        let position = control.resolve(&disk.volume, &at)?;
        found.push((position.seq, position.time));
    }
    Ok(found)
}

fn test(a: &TestArgs) -> Result<(), Problem> {
    let what = match (&a.plan, &a.what) {
        (Some(file), _) => return plan::test(a, file),
        (None, Some(what)) => what,
        (None, None) => return Err(Problem::usage("name a machine, or a plan with --plan")),
    };
    let created = now();
    let signals = signals::watch()?;
    let data = folder(&a.data)?;
    let machine = target::find(&data, what)?;
    let mut control = ControlClient::connect(&data)?;
    let moments = moments(&mut control, &machine, &a.at, (machine.disks.len() > 1, created))?;
    drop(control);
    let jobs = Jobs::of(&data);
    look_after(&data, &jobs)?;
    let checks = if a.check.is_empty() { vec![Check::Boot] } else { a.check.clone() };
    let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let job = Job::new(Plan {
        id: new_id(created)?,
        created,
        machine,
        moments,
        checks,
        check_limit_ms: millis(a.check_limit),
        ttl_ms: millis(a.ttl),
        failover: None,
    });
    let claim = jobs.create(&job).map_err(failed)?;
    keep::start(&data, &claim, &job)?;
    drop(claim);
    let mut asked = false;
    let job = follow(&data, &jobs, &job.id, &mut |job| {
        if signals.try_recv().is_ok() {
            if asked {
                return Err(Problem::failed(format!("test failover {} is being removed", job.id)));
            }
            asked = true;
            jobs.ask_to_stop(&job.id).map_err(failed)?;
        }
        Ok(job.phase == Phase::Holding && !asked)
    })?;
    report::show(&job, &jobs.folder_of(&job.id).map_err(failed)?, a.json)?;
    report::verdict(&job)
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

fn list(a: &ListArgs) -> Result<(), Problem> {
    let jobs = Jobs::of(&folder(&a.data)?);
    let mut found = Vec::new();
    for id in jobs.ids().map_err(failed)? {
        let folder = jobs.folder_of(&id).map_err(failed)?;
        match jobs.load(&id) {
            Ok(job) => found.push((report::Listed::Job(Box::new(job)), folder)),
            Err(StoreError::NotFound(_)) => {
                let plan = plan::find(&jobs, &id)?;
                found.extend(plan.map(|p| (report::Listed::Plan(Box::new(p)), folder)));
            }
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
    let job = jobs.load(&a.id).map_err(failed)?;
    if job.is_failover() && job.committed.is_none() && !job.is_ending() {
        let id = &a.id;
        let text = format!("{id} is a failover that is not committed: `afterimage failover rollback {id}` ends it");
        return Err(Problem::usage(text));
    }
    if !job.has_ended() {
        jobs.ask_to_stop(&a.id).map_err(failed)?;
    }
    let start = Instant::now();
    let job = follow(&data, &jobs, &a.id, &mut |job| {
        if start.elapsed() < END {
            return Ok(false);
        }
        Err(Problem::failed(format!("{} {} does not end: look into its runner.log", report::kind(job), job.id)))
    })?;
    report::show(&job, &jobs.folder_of(&a.id).map_err(failed)?, a.json)
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
        if plan::find(&jobs, id)?.is_none() {
            jobs.load(id).map_err(failed)?;
        }
    }
    let mut done = Cleaned { ended: look_after(&data, &jobs)?, removed: vec![], running: vec![] };
    for id in jobs.ids().map_err(failed)?.into_iter().filter(|id| a.ids.is_empty() || a.ids.contains(id)) {
        let ended = match jobs.load(&id) {
            Ok(job) => job.has_ended(),
            Err(StoreError::NotFound(_)) => plan::find(&jobs, &id)?.is_none_or(|p| p.run.has_ended()),
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
