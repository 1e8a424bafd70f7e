//! `failover run`, `commit`, `rollback`, `again`: machines that run here from now on.
//!
//! What will happen is shown before it happens. Each machine is a job of its own; those that were asked for together have one moment
//! and one name (`set`), by which `commit` and `rollback` find them all.

use crate::failover::args::{DecideArgs, RunArgs};
use crate::failover::group::GroupPoint;
use crate::failover::moments::{Wanted, are_several};
use crate::failover::plan as recovery_plan;
use crate::failover::{failed, folder, follow, forks, group, keep, look_after, new_id, now, report};
use crate::problem::Problem;
use crate::{show, signals};
use afterimage_mgmt::client::ControlClient;
use afterimage_mgmt::failover::check::Check;
use afterimage_mgmt::failover::job::{FailoverPlan, Job, Phase, Plan};
use afterimage_mgmt::failover::runner::{AGAIN, COMMIT, KEEP};
use afterimage_mgmt::failover::store::{Jobs, StoreError};
use afterimage_mgmt::plan::file as recovery;
use afterimage_mgmt::plan::record::{Kind, Record, VERSION};
use afterimage_mgmt::plan::run::Run;
use afterimage_mgmt::protocol::{FenceAsk, FenceState};
use afterimage_mgmt::target::machine::Machine;
use afterimage_mgmt::units::{Time, format_duration};
use afterimage_mgmt::when::When;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a job may take to be decided, once it is asked to.
const DECIDE: Duration = Duration::from_secs(60);

/// A disk, and where its branch begins.
#[derive(Debug, Serialize)]
struct DiskPlan {
    machine: String,
    volume: String,
    branch: String,
    seq: u64,
    time: Option<Time>,
    /// The newest write that is here.
    newest_seq: u64,
    /// Its time.
    newest_time: Option<Time>,
    /// Whether the agent is connected now.
    connected: bool,
}

/// What would happen.
#[derive(Debug, Serialize)]
struct Whole {
    set: String,
    planned: bool,
    /// The point of a group at which all begins, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<GroupPoint>,
    disks: Vec<DiskPlan>,
    /// The recovery plan that is carried out, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<recovery::Plan>,
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

fn plan(
    control: &mut ControlClient,
    a: &RunArgs,
    machines: &[Machine],
    set: &str,
    wanted: &Wanted<'_>,
) -> Result<Whole, Problem> {
    let several = are_several(machines);
    let branch = branch(a, set);
    let status = control.status()?;
    let mut disks: Vec<DiskPlan> = Vec::new();
    for machine in machines {
        for disk in &machine.disks {
            if disks.iter().any(|d| d.volume == disk.volume) {
                return Err(Problem::usage(format!("volume {} is a disk of two machines here", disk.volume)));
            }
            let fence = control.fence(FenceAsk::Show { volume: disk.volume.clone() })?;
            if let (true, Some(owner)) = (fence.state != FenceState::Open, &fence.owner) {
                let text = format!("volume {} is fenced by {owner}: commit or roll that back first", disk.volume);
                return Err(Problem::failed(text));
            }
            let branch = format!("{}/{branch}", disk.volume);
            forks::is_free(control, &branch).map_err(Problem::failed)?;
            let at = wanted.moment(control, &disk.volume, several)?;
            let newest = control.resolve(&disk.volume, &When::Latest)?;
            let position = if at == When::Latest { newest.clone() } else { control.resolve(&disk.volume, &at)? };
            disks.push(DiskPlan {
                machine: machine.name.clone(),
                volume: disk.volume.clone(),
                branch,
                seq: position.seq,
                time: position.time,
                newest_seq: newest.seq,
                newest_time: newest.time,
                connected: status.volumes.iter().any(|v| v.name == disk.volume && v.connected),
            });
        }
    }
    Ok(Whole { set: set.to_owned(), planned: a.planned, group: wanted.group.cloned(), disks, plan: None })
}

fn text(whole: &Whole, now: Time) -> String {
    let mut out = whole.plan.as_ref().map_or_else(String::new, recovery::dry_run);
    out.extend(whole.group.iter().map(|group| group.text(whole.planned)));
    // Writing to a string does not fail.
    for d in &whole.disks {
        let time = d.time.map_or_else(String::new, |t| format!(", {}", t.short()));
        let _ = writeln!(
            out,
            "machine {}: disk {} goes on behind write @{}{time}, as {}",
            d.machine, d.volume, d.seq, d.branch
        );
        let behind = d.newest_seq.saturating_sub(d.seq);
        let since = d.time.map(|t| format_duration(Duration::from_nanos(now.0.saturating_sub(t.0))));
        if whole.planned {
            let _ =
                writeln!(out, "  its agent takes no writes from then on, and brings all that it has: nothing is lost");
        } else if behind > 0 {
            let _ =
                writeln!(out, "  {behind} newer writes are here, and stay in its history; they are not on the branch");
        } else {
            let age = since.map_or_else(String::new, |s| format!(", {s} ago"));
            let _ =
                writeln!(out, "  that is the newest write that is here{age}; what is not here is not on the branch");
        }
        let agent =
            if d.connected { "is connected, and is told at once" } else { "is away, and is told when it comes" };
        let _ = writeln!(
            out,
            "  its agent {agent}: it takes no writes any more, and what it has beyond is kept as a branch"
        );
    }
    out
}

/// Asks whoever sits before a terminal; nobody else is asked, and has to have said so.
///
/// # Errors
/// If it is not to happen.
pub fn agreed(yes: bool) -> Result<(), Problem> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Problem::usage("add --yes if that is to happen"));
    }
    eprint!("is that to happen? Type yes: ");
    drop(std::io::stderr().flush());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    if line.trim() == "yes" { Ok(()) } else { Err(Problem::failed("nothing was done")) }
}

/// `failover run`.
///
/// # Errors
/// If a machine does not run, or a check failed.
pub fn run(a: &RunArgs) -> Result<(), Problem> {
    let created = now();
    let signals = signals::watch()?;
    let data = folder(&a.data)?;
    let file = a.plan.as_deref().map(recovery_plan::read).transpose()?;
    let mut control = ControlClient::connect(&data)?;
    let group = group::find(&a.group, &a.at, created, &mut control)?;
    file.iter().try_for_each(|file| recovery_plan::is_possible(&data, group.as_ref(), file))?;
    let machines = match &file {
        Some(file) => group::machines_of(&data, group.as_ref(), file)?,
        None => group::machines(&data, group.as_ref(), &a.what)?,
    };
    let set = new_id(created)?;
    let wanted = Wanted { at: &a.at, place: &a.place, group: group.as_ref(), planned: a.planned, created };
    let whole = Whole { plan: file, ..plan(&mut control, a, &machines, &set, &wanted)? };
    drop(control);
    if a.dry_run {
        return if a.json { show::put_json(&whole) } else { show::put(&text(&whole, created)) };
    }
    if !a.json {
        show::put(&text(&whole, created))?;
    }
    agreed(a.yes)?;
    if let Some(file) = &whole.plan {
        let record = record(a, file, machines, (&whole, created));
        return recovery_plan::begin(&data, &record, &signals, a.json);
    }
    let jobs = Jobs::of(&data);
    look_after(&data, &jobs)?;
    let ids = begin(&data, &jobs, a, machines, (&whole, created))?;
    let mut shown = Vec::new();
    for id in &ids {
        let job = follow(&data, &jobs, id, &mut |job| {
            // The jobs go on without this command.
            if signals.try_recv().is_ok() {
                return Err(Problem::failed(format!(
                    "failover {id} goes on: `afterimage failover show {id}` tells how far it is"
                )));
            }
            Ok(matches!(job.phase, Phase::Holding | Phase::Down))
        })?;
        shown.push((job, jobs.folder_of(id).map_err(failed)?));
    }
    report::show_all(&shown, a.json)?;
    shown.iter().try_for_each(|(job, _)| report::verdict(job))
}

/// The run of a plan that begins at these moments.
fn record(a: &RunArgs, file: &recovery::Plan, machines: Vec<Machine>, (whole, created): (&Whole, Time)) -> Record {
    let moments = whole.disks.iter().map(|d| (d.seq, d.time));
    let kind = Kind::Failover {
        branch: branch(a, &whole.set),
        latest: is_latest(a),
        planned: a.planned,
        drain_limit_ms: millis(a.drain_limit),
    };
    let machines = recovery_plan::prepared(file, machines, moments);
    Record { version: VERSION, created, kind, machines, lives: 0, run: Run::new(whole.set.clone(), file.clone(), None) }
}

fn branch(a: &RunArgs, set: &str) -> String {
    a.branch.clone().unwrap_or_else(|| format!("failover-{set}"))
}

/// Whether each disk begins at its newest write, whichever that is when it is fenced.
fn is_latest(a: &RunArgs) -> bool {
    a.planned || a.at == When::Latest && a.place.is_empty() && a.group.group.is_none()
}

/// Makes the jobs and starts who does them.
fn begin(
    data: &Path,
    jobs: &Jobs,
    a: &RunArgs,
    machines: Vec<Machine>,
    (whole, created): (&Whole, Time),
) -> Result<Vec<String>, Problem> {
    let count = machines.len();
    let several = count > 1;
    let mut disks = whole.disks.iter();
    let mut ids = Vec::new();
    for (n, machine) in machines.into_iter().enumerate() {
        let moments = disks.by_ref().take(machine.disks.len()).map(|d| (d.seq, d.time)).collect();
        let job = Job::new(Plan {
            id: if n == 0 { whole.set.clone() } else { format!("{}-{n}", whole.set) },
            created,
            machine,
            moments,
            checks: if a.check.is_empty() { vec![Check::Boot] } else { a.check.clone() },
            check_limit_ms: millis(a.check_limit),
            ttl_ms: 0,
            failover: Some(FailoverPlan {
                branch: branch(a, &whole.set),
                latest: is_latest(a),
                planned: a.planned,
                drain_limit_ms: millis(a.drain_limit),
                commit_after_ms: a.commit_after.map(millis),
                set: several.then(|| whole.set.clone()),
                together: if several && a.planned { count as u64 } else { 0 },
            }),
        });
        let claim = jobs.create(&job).map_err(failed)?;
        keep::start(data, &claim, &job)?;
        ids.push(job.id);
    }
    Ok(ids)
}

/// What somebody decides about a failover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It stays.
    Commit,
    /// The old primary goes on.
    RollBack,
    /// A guest that is down runs again.
    Again,
}

/// The jobs of this name: one, or all that were asked for together.
///
/// # Errors
/// If there is none.
pub fn named(jobs: &Jobs, name: &str) -> Result<Vec<Job>, Problem> {
    let mut found = Vec::new();
    for id in jobs.ids().map_err(failed)? {
        match jobs.load(&id) {
            Ok(job) if job.id == name || job.set.as_deref() == Some(name) => found.push(job),
            Ok(_) | Err(StoreError::NotFound(_)) => {}
            Err(e) => eprintln!("afterimage: {e}"),
        }
    }
    // Of a plan there are attempts that have ended, beside those that run.
    if found.iter().any(|job| !job.has_ended()) {
        found.retain(|job| !job.has_ended() || job.id == name);
    }
    if found.is_empty() { Err(failed(StoreError::NotFound(name.to_owned()))) } else { Ok(found) }
}

/// `failover commit`, `rollback` and `again`.
///
/// # Errors
/// If a job of that name is in no state for it.
pub fn decide(a: &DecideArgs, what: Decision) -> Result<(), Problem> {
    let data = folder(&a.data)?;
    let jobs = Jobs::of(&data);
    if let Some(record) = recovery_plan::find(&jobs, &a.id)?.filter(|r| !r.run.has_ended()) {
        if what != Decision::RollBack || a.keep_branch {
            let text = format!(
                "plan {} is not at its end: `afterimage failover show {}` tells how far it is",
                record.run.plan.name, a.id
            );
            return Err(Problem::failed(text));
        }
        if !a.json {
            show::put(&format!(
                "roll-back of plan {}: machines that it has started are killed, what was written is dropped, and their old primaries \
                 take writes again\n",
                record.run.plan.name
            ))?;
        }
        agreed(a.yes)?;
        return recovery_plan::stop(&data, &jobs, &a.id, a.json);
    }
    let found = named(&jobs, &a.id)?;
    for job in &found {
        let id = &job.id;
        if !job.is_failover() {
            return Err(Problem::usage(format!("{id} is a test: `afterimage failover stop {id}` ends it")));
        }
        if job.has_ended() {
            return Err(Problem::failed(format!("failover {id} has ended")));
        }
        match what {
            Decision::RollBack if job.committed.is_some() => {
                return Err(Problem::failed(format!(
                    "failover {id} is committed: `afterimage failover stop {id}` ends the machine, and leaves its branches"
                )));
            }
            Decision::Again if job.phase != Phase::Down => {
                return Err(Problem::failed(format!("the machine of failover {id} is not down")));
            }
            Decision::Commit
                if !matches!(job.phase, Phase::Holding | Phase::Down | Phase::Restarting | Phase::Running) =>
            {
                return Err(Problem::failed(format!(
                    "failover {id} is {}: its machine has not run yet",
                    report::phase(job.phase)
                )));
            }
            _ => {}
        }
    }
    if what == Decision::RollBack {
        let machines: Vec<&str> = found.iter().map(|j| j.machine.name.as_str()).collect();
        let gone = if a.keep_branch { "what was written stays on its branches" } else { "what was written is dropped" };
        if !a.json {
            show::put(&format!(
                "roll-back of {}: the machine is killed, {gone}, and the old primary takes writes again\n",
                machines.join(", ")
            ))?;
        }
        agreed(a.yes)?;
    }
    let mut shown = Vec::new();
    for job in &found {
        let id = &job.id;
        match what {
            Decision::Commit => jobs.ask(id, COMMIT).map_err(failed)?,
            Decision::Again => jobs.ask(id, AGAIN).map_err(failed)?,
            Decision::RollBack => {
                if a.keep_branch {
                    jobs.ask(id, KEEP).map_err(failed)?;
                }
                jobs.ask_to_stop(id).map_err(failed)?;
            }
        }
        let start = Instant::now();
        let job = follow(&data, &jobs, id, &mut |job| {
            let done = match what {
                Decision::Commit => job.committed.is_some(),
                Decision::Again => job.phase == Phase::Holding,
                Decision::RollBack => false,
            };
            if done || start.elapsed() < DECIDE {
                return Ok(done);
            }
            Err(Problem::failed(format!("failover {id} is {}: look into its runner.log", report::phase(job.phase))))
        })?;
        shown.push((job, jobs.folder_of(id).map_err(failed)?));
    }
    report::show_all(&shown, a.json)
}
