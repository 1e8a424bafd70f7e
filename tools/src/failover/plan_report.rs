//! How a recovery plan goes, or went, for people and for programs.

use crate::failover::report::seconds;
use crate::problem::Problem;
use crate::show::{put, put_json};
use afterimage_mgmt::failover::job::{Job, Times};
use afterimage_mgmt::failover::store::Jobs;
use afterimage_mgmt::plan::record::{Kind, Record};
use afterimage_mgmt::plan::run::{At, Outcome, Phase, Place, Run, State};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::Path;

/// What `--json` prints of a part.
#[derive(Debug, Serialize)]
struct PartShown {
    step: String,
    what: String,
    #[serde(flatten)]
    state: State,
    failed: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    jobs: Vec<String>,
    /// Of the last of them, since it was begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    times: Option<Times>,
}

/// What `--json` prints of a plan.
#[derive(Debug, Serialize)]
pub struct PlanShown<'a> {
    id: &'a str,
    purpose: &'static str,
    kind: &'static str,
    plan: &'a str,
    phase: Phase,
    #[serde(flatten)]
    outcome: Option<&'a Outcome>,
    waits_for: Option<&'a str>,
    lives: u32,
    parts: Vec<PartShown>,
    folder: &'a Path,
}

/// What kind of run it is.
#[must_use]
pub const fn kind(record: &Record) -> &'static str {
    match record.kind {
        Kind::Test => "test",
        Kind::Failover { .. } => "failover",
    }
}

/// A phase in one word.
#[must_use]
pub const fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Forward => "running",
        Phase::Holding => "holding",
        Phase::Undoing => "undoing",
        Phase::Ended => "ended",
    }
}

/// An outcome in one word.
#[must_use]
pub const fn word(record: &Record) -> &'static str {
    match record.run.outcome {
        None => "-",
        Some(Outcome::Passed) => "passed",
        Some(Outcome::Failed(_)) => "failed",
        Some(Outcome::Stopped) => "stopped",
    }
}

/// The last job of a machine, if it is still there.
fn newest(run: &Run, at: At, folder: &Path) -> Option<Job> {
    Jobs::of(folder.parent()?.parent()?).load(&run.names(at).pop()?).ok()
}

/// What `--json` prints.
#[must_use]
pub fn shown<'a>(record: &'a Record, folder: &'a Path) -> PlanShown<'a> {
    let run = &record.run;
    let parts = run.parts().map(|(at, part)| PartShown {
        step: run.plan.steps.get(at.0).map(|s| s.name.clone()).unwrap_or_default(),
        what: run.label(at),
        state: part.state.clone(),
        failed: part.failed,
        jobs: run.names(at),
        times: newest(run, at, folder).map(|job| job.times),
    });
    PlanShown {
        id: &run.id,
        purpose: "plan",
        kind: kind(record),
        plan: &run.plan.name,
        phase: run.phase,
        outcome: run.outcome.as_ref(),
        waits_for: run.waits_for().map(|(_, text)| text),
        lives: record.lives,
        parts: parts.collect(),
        folder,
    }
}

/// Prints it.
///
/// # Errors
/// Those of standard output.
pub fn show(record: &Record, folder: &Path, json: bool) -> Result<(), Problem> {
    if json { put_json(&shown(record, folder)) } else { put(&text(record, folder)) }
}

fn text(record: &Record, folder: &Path) -> String {
    let run = &record.run;
    let mut out = format!("{} {} by plan {}\n", kind(record), run.id, run.plan.name);
    let mut step = None;
    // Writing to a string does not fail.
    for (at, part) in run.parts() {
        if step.replace(at.0) != Some(at.0) {
            let name = run.plan.steps.get(at.0).map_or("", |s| s.name.as_str());
            let _ = writeln!(out, "  {}. {name}", at.0 + 1);
        }
        let how = match &part.state {
            State::Waiting => "not begun".to_owned(),
            State::Begun { since } => format!("since {}", since.short()),
            State::Done => "done".to_owned(),
            State::Failed { why } => format!("FAILED: {why}"),
            State::Undone => "taken back".to_owned(),
        };
        let again = if part.failed > 0 { format!(" (failed {} times)", part.failed) } else { String::new() };
        let job = newest(run, at, folder).map_or_else(String::new, |job| measured(&job));
        let _ = writeln!(out, "     {}: {how}{again}{job}", run.label(at));
    }
    out.push_str(&standing(record, folder));
    out
}

/// What was measured of a machine.
fn measured(job: &Job) -> String {
    let t = &job.times;
    let mut out = String::new();
    for (what, ms) in
        [("first read", t.first_read_ms), ("running", t.running_ms), ("booted", t.booted_ms), ("checked", t.checked_ms)]
    {
        // Writing to a string does not fail.
        let _ = ms.map(|ms| write!(out, ", {what} after {}", seconds(ms)));
    }
    let _ = write!(out, ", job {}", job.id);
    out
}

/// Whether a machine of it was started and not taken back.
fn has_started(record: &Record) -> bool {
    record.run.parts().any(|(at, part)| matches!(at.1, Place::Machine(_)) && part.state == State::Done)
}

fn standing(record: &Record, folder: &Path) -> String {
    let (run, id) = (&record.run, &record.run.id);
    match (run.phase, &record.kind) {
        (Phase::Forward, _) => match run.waits_for() {
            Some((_, text)) => {
                format!("  by hand: {text}; when it is done: `afterimage failover continue {id}`\n")
            }
            None => format!("  running; `afterimage failover stop {id}` takes it back\n"),
        },
        (Phase::Holding, _) => {
            let until = run.until.map_or_else(String::new, |t| t.short());
            format!("  {}; machines run until {until}, or until `afterimage failover stop {id}`\n", word(record))
        }
        (Phase::Undoing, _) => format!("  {}; machines are taken back\n", word(record)),
        (Phase::Ended, Kind::Failover { .. }) if has_started(record) => format!(
            "  {}; its machines are failovers now: `afterimage failover commit {id}` keeps those that run, \
             `afterimage failover rollback {id}` takes them back\n",
            word(record)
        ),
        (Phase::Ended, _) => format!("  {}; its logs are in {}\n", word(record), folder.display()),
    }
}

/// What a person at a terminal sees meanwhile: what is being done, and for how long.
#[must_use]
pub fn progress(record: &Record) -> String {
    let run = &record.run;
    let begun = run.parts().filter(|(_, p)| matches!(p.state, State::Begun { .. }));
    let begun: Vec<String> = begun.map(|(at, _)| run.label(at)).collect();
    let (done, all) = (run.parts().filter(|(_, p)| p.state == State::Done).count(), run.parts().count());
    format!("plan {} {}: {done} of {all} done; {} {}", run.plan.name, run.id, phase(run.phase), begun.join(", "))
}

/// The exit code that goes with a run: an error if it did not pass.
///
/// # Errors
/// Why it did not.
pub fn verdict(record: &Record) -> Result<(), Problem> {
    let run = &record.run;
    match &run.outcome {
        Some(Outcome::Passed) => Ok(()),
        Some(Outcome::Failed(why)) => Err(Problem::failed(format!("plan {} failed: {why}", run.plan.name))),
        Some(Outcome::Stopped) => Err(Problem::failed(format!("plan {} was stopped", run.plan.name))),
        None => Err(Problem::failed(format!("plan {} has not ended", run.plan.name))),
    }
}
