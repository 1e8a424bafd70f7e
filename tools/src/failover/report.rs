//! How test failovers went, for people and for programs.

use crate::problem::Problem;
use crate::show::{put, put_json, table};
use afterimage_mgmt::failover::job::{Job, Outcome, Phase, Verdict};
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

fn seconds(ms: u64) -> String {
    format!("{}.{:02} s", ms / 1000, ms % 1000 / 10)
}

/// Prints a job.
///
/// # Errors
/// Those of standard output.
pub fn show(job: &Job, folder: &Path, json: bool) -> Result<(), Problem> {
    if json { put_json(&Shown { job, folder }) } else { put(&text(job, folder)) }
}

/// Prints jobs.
///
/// # Errors
/// Those of standard output.
pub fn list(jobs: &[(Job, std::path::PathBuf)], json: bool) -> Result<(), Problem> {
    if json {
        return put_json(&jobs.iter().map(|(job, folder)| Shown { job, folder }).collect::<Vec<_>>());
    }
    let head = ["ID", "MACHINE", "PHASE", "OUTCOME", "UNTIL"].map(str::to_owned).to_vec();
    let rows = jobs.iter().map(|(job, _)| {
        let until = job.until.filter(|_| job.phase == Phase::Holding).map_or_else(|| "-".to_owned(), |t| t.short());
        vec![job.id.clone(), job.machine.name.clone(), phase(job.phase).to_owned(), word(job).to_owned(), until]
    });
    put(&table(&std::iter::once(head).chain(rows).collect::<Vec<_>>()))
}

const fn word(job: &Job) -> &'static str {
    match &job.outcome {
        None => "-",
        Some(Outcome::Passed) => "passed",
        Some(Outcome::Failed(_)) => "failed",
        Some(Outcome::Stopped) => "stopped",
    }
}

/// A phase in one word.
#[must_use]
pub const fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Planned => "planned",
        Phase::Forked => "forked",
        Phase::Started => "started",
        Phase::Running => "running",
        Phase::Holding => "holding",
        Phase::Ending | Phase::Killed | Phase::Dropped => "ending",
        Phase::Ended => "ended",
    }
}

fn text(job: &Job, folder: &Path) -> String {
    let mut out = format!("test failover {} of {}\n", job.id, job.machine.name);
    // Writing to a string does not fail.
    for disk in &job.disks {
        let time = disk.time.map_or_else(String::new, |t| format!(" ({})", t.short()));
        let _ = writeln!(out, "  disk {} as it was after write @{}{time}", disk.volume, disk.seq);
    }
    let t = &job.times;
    let how = if job.kvm == Some(true) { "with KVM" } else { "emulated" };
    for (name, ms) in [
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

/// The exit code that goes with a job: an error if it did not pass.
///
/// # Errors
/// Why it did not.
pub fn verdict(job: &Job) -> Result<(), Problem> {
    let id = &job.id;
    match &job.outcome {
        Some(Outcome::Passed) => Ok(()),
        Some(Outcome::Failed(why)) => Err(Problem::failed(format!("test failover {id} failed: {why}"))),
        Some(Outcome::Stopped) => Err(Problem::failed(format!("test failover {id} was stopped"))),
        None => Err(Problem::failed(format!("test failover {id} has not ended"))),
    }
}
