//! How test failovers went, for people and for programs.

use crate::failover::plan_report;
use crate::problem::Problem;
use crate::show::{put, put_json, table};
use afterimage_mgmt::api::recoveries::RecoveryView;
use afterimage_mgmt::failover::job::{Job, Outcome, Phase, Verdict};
use afterimage_mgmt::plan::record::Record;
use serde::Serialize;
use std::fmt::Write as _;
use std::path::Path;

/// What `--json` prints: the job, and where its files are.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    job: &'a Job,
    folder: &'a Path,
}

/// Milliseconds, as people read them.
#[must_use]
pub fn seconds(ms: u64) -> String {
    format!("{}.{:02} s", ms / 1000, ms % 1000 / 10)
}

/// Prints a job.
///
/// # Errors
/// Those of standard output.
pub fn show(job: &Job, folder: &Path, json: bool) -> Result<(), Problem> {
    if json { put_json(&Shown { job, folder }) } else { put(&text(job, folder)) }
}

/// Prints jobs that were asked for together.
///
/// # Errors
/// Those of standard output.
pub fn show_all(jobs: &[(Job, std::path::PathBuf)], json: bool) -> Result<(), Problem> {
    match jobs {
        [(job, folder)] => show(job, folder, json),
        _ if json => put_json(&jobs.iter().map(|(job, folder)| Shown { job, folder }).collect::<Vec<_>>()),
        _ => jobs.iter().try_for_each(|(job, folder)| put(&text(job, folder))),
    }
}

/// What a job is.
#[must_use]
pub const fn kind(job: &Job) -> &'static str {
    if job.is_failover() { "failover" } else { "test failover" }
}

/// A line of the list.
pub enum Listed {
    /// A machine.
    Job(Box<Job>),
    /// A plan.
    Plan(Box<Record>),
}

fn row(listed: &Listed) -> Vec<String> {
    match listed {
        Listed::Job(job) => {
            let until = job.until.filter(|_| job.phase == Phase::Holding).map(|t| t.short());
            let until = until.unwrap_or_else(|| if job.committed.is_some() { "committed" } else { "-" }.to_owned());
            let what = if job.is_failover() { "failover" } else { "test" };
            [&job.id, what, &job.machine.name, phase(job.phase), word(job), &until].map(str::to_owned).to_vec()
        }
        Listed::Plan(record) => {
            let run = &record.run;
            let until = run.until.filter(|_| !run.has_ended()).map_or_else(|| "-".to_owned(), |t| t.short());
            let name = format!("plan {}", run.plan.name);
            let (phase, word) = (plan_report::phase(run.phase), plan_report::word(record));
            [&run.id, plan_report::kind(record), &name, phase, word, &until].map(str::to_owned).to_vec()
        }
    }
}

/// Prints jobs and plans.
///
/// # Errors
/// Those of standard output.
pub fn list(all: &[(Listed, std::path::PathBuf)], json: bool) -> Result<(), Problem> {
    if json {
        let value = |(listed, folder): &(Listed, std::path::PathBuf)| match listed {
            Listed::Job(job) => serde_json::to_value(Shown { job, folder }),
            Listed::Plan(record) => serde_json::to_value(plan_report::shown(record, folder)),
        };
        return put_json(&all.iter().map(value).collect::<Result<Vec<_>, _>>()?);
    }
    let head = ["ID", "WHAT", "MACHINE", "PHASE", "OUTCOME", "UNTIL"].map(str::to_owned).to_vec();
    let rows = all.iter().map(|(listed, _)| row(listed));
    put(&table(&std::iter::once(head).chain(rows).collect::<Vec<_>>()))
}

/// Prints what mgmt knows of all appliances.
///
/// # Errors
/// Those of standard output.
pub fn list_all(all: &[RecoveryView], json: bool) -> Result<(), Problem> {
    if json {
        return put_json(&all);
    }
    let head = ["APPLIANCE", "ID", "WHAT", "OF", "STAGE", "OUTCOME", "CHANGED", ""].map(str::to_owned).to_vec();
    let line = |v: &RecoveryView| {
        let r = &v.recovery;
        let outcome = r.outcome.as_deref().unwrap_or(if r.committed { "committed" } else { "-" });
        let away = if v.connected { "" } else { "the appliance is away" };
        let more = r.waits_for.as_deref().or(r.trouble.as_deref()).unwrap_or(away);
        let changed = v.changed.short();
        [&*v.appliance, &r.id, r.what.as_str(), &r.subject, r.stage.as_str(), outcome, &changed, more]
            .map(str::to_owned)
            .to_vec()
    };
    put(&table(&std::iter::once(head).chain(all.iter().map(line)).collect::<Vec<_>>()))
}

const fn word(job: &Job) -> &'static str {
    match &job.outcome {
        None => "-",
        Some(Outcome::Passed) => "passed",
        Some(Outcome::Failed(_)) => "failed",
        Some(Outcome::Stopped) => "stopped",
        Some(Outcome::RolledBack) => "rolled back",
        Some(Outcome::FailedBack) => "gone back",
    }
}

/// A phase in one word.
#[must_use]
pub const fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Planned => "planned",
        Phase::Drained => "drained",
        Phase::Fenced => "fenced",
        Phase::Forked => "forked",
        Phase::Started => "started",
        Phase::Running => "running",
        Phase::Holding => "holding",
        Phase::Restarting => "restarting",
        Phase::Halting | Phase::Down => "down",
        Phase::Ending | Phase::Killed | Phase::Dropped | Phase::Lifted => "ending",
        Phase::Ended => "ended",
    }
}

fn text(job: &Job, folder: &Path) -> String {
    let mut out = format!("{} {} of {}\n", kind(job), job.id, job.machine.name);
    // Writing to a string does not fail.
    for disk in &job.disks {
        let time = disk.time.map_or_else(String::new, |t| format!(" ({})", t.short()));
        let branch =
            if job.is_failover() { format!(", on branch {}/{}", disk.volume, disk.name) } else { String::new() };
        let _ = writeln!(out, "  disk {} as it was after write @{}{time}{branch}", disk.volume, disk.seq);
    }
    let t = &job.times;
    let how = if job.kvm == Some(true) { "with KVM" } else { "emulated" };
    for (name, ms) in [
        ("fenced".to_owned(), t.fenced_ms),
        ("first read".to_owned(), t.first_read_ms),
        (format!("running, {how}"), t.running_ms),
        ("booted".to_owned(), t.booted_ms),
    ] {
        let _ = ms.map(|ms| writeln!(out, "  {name} after {}", seconds(ms)));
    }
    for result in &job.results {
        let note = result.note.as_ref().map_or_else(String::new, |n| format!(", {n}"));
        let _ = match &result.verdict {
            Verdict::Passed => writeln!(out, "  {} passed after {}{note}", result.check, seconds(result.at_ms)),
            Verdict::Failed(why) => writeln!(out, "  {} FAILED after {}: {why}", result.check, seconds(result.at_ms)),
            Verdict::Skipped => writeln!(out, "  {} skipped", result.check),
        };
    }
    if job.is_failover() {
        out.push_str(&standing(job, folder));
        return out;
    }
    let _ = match (job.phase, &job.outcome, &job.trouble) {
        (Phase::Ended, _, _) => {
            writeln!(out, "  {}; nothing is left but logs and report in {}", word(job), folder.display())
        }
        (Phase::Holding, _, _) => {
            let until = job.until.map_or_else(String::new, |t| t.short());
            writeln!(
                out,
                "  {}; it runs until {until}, or until `afterimage failover stop {}`; its logs are in {}",
                word(job),
                job.id,
                folder.display()
            )
        }
        (_, _, Some(trouble)) => writeln!(out, "  {}: {trouble}", phase(job.phase)),
        _ => writeln!(out, "  {}", phase(job.phase)),
    };
    out
}

/// How a failover stands, and what can be done.
fn standing(job: &Job, folder: &Path) -> String {
    let (id, mut out) = (&job.id, String::new());
    // Writing to a string does not fail.
    if job.restarts > 0 {
        let _ = writeln!(out, "  went on from its branches {} times", job.restarts);
    }
    if let Some(trouble) = &job.trouble {
        let _ = writeln!(out, "  {trouble}");
    }
    let decide = format!("`afterimage failover commit {id}` keeps it, `afterimage failover rollback {id}` ends it");
    let _ = match (job.phase, job.committed, job.until) {
        (Phase::Ended, ..) if job.back => {
            writeln!(out, "  gone back; its branches are there, the old primary takes writes")
        }
        (Phase::Ended, Some(_), _) => {
            let free = "`afterimage failover unfence VOLUME` lets it take writes";
            writeln!(out, "  ended; its branches are there, and the old primary stays fenced: {free}")
        }
        (Phase::Ended, None, _) if job.keep => {
            writeln!(out, "  {}; its branches are there, the old primary takes writes", word(job))
        }
        (Phase::Ended, None, _) => {
            writeln!(out, "  {}; nothing is left but logs and report in {}", word(job), folder.display())
        }
        (Phase::Down, committed, _) => {
            let rest = if committed.is_some() { String::new() } else { format!("; {decide}") };
            writeln!(out, "  the machine is down: `afterimage failover again {id}` starts it{rest}")
        }
        (Phase::Holding, Some(at), _) => writeln!(out, "  {}; runs, committed {}", word(job), at.short()),
        (Phase::Holding, None, Some(at)) => {
            writeln!(out, "  {}; runs, commits itself {}; {decide}", word(job), at.short())
        }
        (Phase::Holding, None, None) => writeln!(out, "  {}; runs; {decide}", word(job)),
        (other, ..) => writeln!(out, "  {}", phase(other)),
    };
    out
}

/// The exit code that goes with a job: an error if it did not pass.
///
/// # Errors
/// Why it did not.
pub fn verdict(job: &Job) -> Result<(), Problem> {
    let (id, kind) = (&job.id, kind(job));
    match &job.outcome {
        Some(Outcome::Passed | Outcome::FailedBack) => Ok(()),
        Some(Outcome::Failed(why)) => Err(Problem::failed(format!("{kind} {id} failed: {why}"))),
        Some(Outcome::Stopped) => Err(Problem::failed(format!("{kind} {id} was stopped"))),
        Some(Outcome::RolledBack) => Err(Problem::failed(format!("{kind} {id} was rolled back"))),
        None => Err(Problem::failed(format!("{kind} {id} has not ended"))),
    }
}
