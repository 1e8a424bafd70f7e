//! A test failover as a state machine: no I/O, no clock.
//!
//! ```text
//! planned --fork--> forked --start--> started --release--> running --check...--> holding
//!     \________________\_________________\___________________\______________________/
//!                                        v  (done, stopped, failed, expired, its process lost)
//!                                      ending --kill--> killed --drop--> dropped --remove--> ended
//! ```
//!
//! Each step is done first and saved then, and may have been done in part or whole when its process dies. What it makes has
//! a name that was saved before (forks), waits until it was saved (the guest's process, [`crate::target::process`]), or lies in the job's
//! folder (sockets, files). So `ending` knows all that may be there, and its steps can be done any number of times.

use crate::failover::check::Check;
use crate::target::machine::Machine;
use crate::target::network::Purpose;
use crate::target::process::ProcessId;
use crate::target::qemu::DiskPlace;
use crate::units::Time;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The version of the file.
pub const VERSION: u32 = 1;

/// A disk of the job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fork {
    /// The volume.
    pub volume: String,
    /// The moment: after this write.
    pub seq: u64,
    /// When that was, if it is known.
    #[serde(default)]
    pub time: Option<Time>,
    /// The name of the fork: no other job uses it.
    pub name: String,
    /// Where it is served, once it is.
    #[serde(default)]
    pub place: Option<DiskPlace>,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Nothing was made.
    Planned,
    /// The disks are served.
    Forked,
    /// The guest's process is there and waits.
    Started,
    /// The guest runs, checks are made.
    Running,
    /// All checks were made; it stays for its time to live.
    Holding,
    /// What was made is being removed: the guest first.
    Ending,
    /// The guest is gone.
    Killed,
    /// The forks are gone.
    Dropped,
    /// Nothing is left but the report.
    Ended,
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Make the forks and serve them.
    Fork,
    /// Make the guest's process, which waits.
    Start,
    /// Let it run.
    Release,
    /// Make the check with this number.
    Check(usize),
    /// Wait until the time to live is over.
    Hold,
    /// Kill the guest.
    Kill,
    /// Drop the forks.
    Drop,
    /// Remove sockets and files.
    Remove,
    /// Nothing any more.
    Nothing,
}

/// All kinds of steps, by the words that [`Step::word`] gives.
pub const STEPS: [&str; 8] = ["fork", "start", "release", "check", "hold", "kill", "drop", "remove"];

impl Step {
    /// A word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Step::Fork => "fork",
            Step::Start => "start",
            Step::Release => "release",
            Step::Check(_) => "check",
            Step::Hold => "hold",
            Step::Kill => "kill",
            Step::Drop => "drop",
            Step::Remove => "remove",
            Step::Nothing => "nothing",
        }
    }
}

/// How a check ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "result", content = "why")]
pub enum Verdict {
    /// As it should be.
    Passed,
    /// Not so, and what was seen instead.
    Failed(String),
    /// Not made, since an earlier one had failed.
    Skipped,
}

/// A check that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckResult {
    /// What was looked at.
    pub check: Check,
    /// How it ended.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// When, in milliseconds since the job was asked for.
    pub at_ms: u64,
    /// More about it: a file that was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// When what was reached, in milliseconds since the job was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Times {
    /// The disks were served.
    pub forked_ms: Option<u64>,
    /// The first bytes of each disk were read.
    pub first_read_ms: Option<u64>,
    /// The guest's process was there.
    pub started_ms: Option<u64>,
    /// The guest ran its first instruction.
    pub running_ms: Option<u64>,
    /// It had booted: the check `boot` passed.
    pub booted_ms: Option<u64>,
    /// All checks were made.
    pub checked_ms: Option<u64>,
    /// Nothing was left.
    pub ended_ms: Option<u64>,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "outcome", content = "why")]
pub enum Outcome {
    /// Every check passed.
    Passed,
    /// A check failed, or something before it.
    Failed(String),
    /// Somebody stopped it before all checks were made.
    Stopped,
}

/// Why a job goes to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// A step failed, or what it stands on went away.
    Failed(String),
    /// Somebody wants it to stop.
    Stopped,
    /// Its time to live is over.
    Expired,
    /// Its process died.
    Lost,
}

/// What happened. Times are milliseconds since the job was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// [`Step::Fork`] is done: where the disks are, in order.
    Forked {
        /// Where.
        places: Vec<DiskPlace>,
        /// When they were served.
        forked_ms: u64,
        /// When all had been read from.
        first_read_ms: u64,
    },
    /// [`Step::Start`] is done.
    Started {
        /// The process.
        process: ProcessId,
        /// Whether with KVM.
        kvm: bool,
        /// When.
        at_ms: u64,
    },
    /// [`Step::Release`] is done.
    Released {
        /// When the guest ran.
        at_ms: u64,
    },
    /// [`Step::Check`] is done.
    Checked(CheckResult, Time),
    /// [`Step::Hold`] is done, or something is in the way.
    Over(End),
    /// [`Step::Kill`] is done.
    Killed,
    /// [`Step::Drop`] is done.
    Dropped,
    /// [`Step::Remove`] is done.
    Removed {
        /// When; not known if another process did it.
        at_ms: Option<u64>,
    },
}

/// An event that cannot happen in this phase: a fault of the program.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("job {job} is {phase:?}, and {event} cannot happen then")]
pub struct Illegal {
    job: String,
    phase: Phase,
    event: String,
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Plan {
    /// An id that no other job has.
    pub id: String,
    /// When it was asked for.
    pub created: Time,
    /// The machine.
    pub machine: Machine,
    /// Volumes, moments and their times, in the order of the machine's disks.
    pub moments: Vec<(u64, Option<Time>)>,
    /// What is looked at.
    pub checks: Vec<Check>,
    /// How long each check may take.
    pub check_limit_ms: u64,
    /// How long it stays after that.
    pub ttl_ms: u64,
}

/// A test failover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// [`VERSION`].
    pub version: u32,
    /// Its id.
    pub id: String,
    /// When it was asked for.
    pub created: Time,
    /// What it is for.
    pub purpose: Purpose,
    /// The machine, as it was described then.
    pub machine: Machine,
    /// Its disks, in the machine's order.
    pub disks: Vec<Fork>,
    /// What is looked at.
    pub checks: Vec<Check>,
    /// How long each check may take.
    pub check_limit_ms: u64,
    /// How long it stays after that.
    pub ttl_ms: u64,
    /// How far it is.
    pub phase: Phase,
    /// The guest's process.
    #[serde(default)]
    pub process: Option<ProcessId>,
    /// Whether it runs with KVM.
    #[serde(default)]
    pub kvm: Option<bool>,
    /// Until when it stays.
    #[serde(default)]
    pub until: Option<Time>,
    /// Checks that were made.
    #[serde(default)]
    pub results: Vec<CheckResult>,
    /// When what was reached.
    #[serde(default)]
    pub times: Times,
    /// How it went; known before it has ended.
    #[serde(default, flatten)]
    pub outcome: Option<Outcome>,
    /// What was in the way of the end, or why it came early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

impl Job {
    /// A job of which nothing was done.
    #[must_use]
    pub fn new(plan: Plan) -> Job {
        let disks = plan.machine.disks.iter().zip(plan.moments).map(|(disk, (seq, time))| Fork {
            volume: disk.volume.clone(),
            seq,
            time,
            name: plan.id.clone(),
            place: None,
        });
        Job {
            version: VERSION,
            purpose: Purpose::Test,
            disks: disks.collect(),
            id: plan.id,
            created: plan.created,
            machine: plan.machine,
            checks: plan.checks,
            check_limit_ms: plan.check_limit_ms,
            ttl_ms: plan.ttl_ms,
            phase: Phase::Planned,
            process: None,
            kvm: None,
            until: None,
            results: Vec::new(),
            times: Times::default(),
            outcome: None,
            trouble: None,
        }
    }

    /// What is to be done next.
    #[must_use]
    pub fn next(&self) -> Step {
        match self.phase {
            Phase::Planned => Step::Fork,
            Phase::Forked => Step::Start,
            Phase::Started => Step::Release,
            Phase::Running => Step::Check(self.results.len()),
            Phase::Holding => Step::Hold,
            Phase::Ending => Step::Kill,
            Phase::Killed => Step::Drop,
            Phase::Dropped => Step::Remove,
            Phase::Ended => Step::Nothing,
        }
    }

    /// Whether something may be there that has to be removed.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended)
    }

    /// Whether it is on its way to the end.
    #[must_use]
    pub const fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Ending | Phase::Killed | Phase::Dropped | Phase::Ended)
    }

    /// Takes an event. On an error nothing has changed.
    ///
    /// # Errors
    /// If it cannot happen now.
    pub fn apply(&mut self, event: Event) -> Result<(), Illegal> {
        match (self.phase, event) {
            (Phase::Planned, Event::Forked { places, forked_ms, first_read_ms })
                if places.len() == self.disks.len() =>
            {
                for (disk, place) in self.disks.iter_mut().zip(places) {
                    disk.place = Some(place);
                }
                (self.times.forked_ms, self.times.first_read_ms) = (Some(forked_ms), Some(first_read_ms));
                self.phase = Phase::Forked;
            }
            (Phase::Forked, Event::Started { process, kvm, at_ms }) => {
                (self.process, self.kvm, self.times.started_ms) = (Some(process), Some(kvm), Some(at_ms));
                self.phase = Phase::Started;
            }
            (Phase::Started, Event::Released { at_ms }) => {
                self.times.running_ms = Some(at_ms);
                self.phase = Phase::Running;
            }
            (Phase::Running, Event::Checked(result, now)) if self.results.len() < self.checks.len() => {
                self.checked(result, now);
            }
            // What is on its way to its end stays so, and why it first went there counts.
            (_, Event::Over(_)) if self.is_ending() => {}
            (_, Event::Over(end)) => self.over(end),
            (Phase::Ending, Event::Killed) => self.phase = Phase::Killed,
            (Phase::Killed, Event::Dropped) => self.phase = Phase::Dropped,
            (Phase::Dropped, Event::Removed { at_ms }) => {
                self.times.ended_ms = at_ms;
                self.phase = Phase::Ended;
            }
            (phase, event) => {
                return Err(Illegal { job: self.id.clone(), phase, event: format!("{event:?}") });
            }
        }
        Ok(())
    }

    fn checked(&mut self, result: CheckResult, now: Time) {
        let at_ms = result.at_ms;
        if result.check == Check::Boot && result.verdict == Verdict::Passed {
            self.times.booted_ms = Some(at_ms);
        }
        self.results.push(result);
        let failed = self.results.iter().any(|r| matches!(r.verdict, Verdict::Failed(_)));
        // A picture tells why the others failed: it is always taken.
        while let Some(check) = self.checks.get(self.results.len()).filter(|c| failed && **c != Check::Screenshot) {
            self.results.push(CheckResult { check: check.clone(), verdict: Verdict::Skipped, at_ms, note: None });
        }
        if self.results.len() < self.checks.len() {
            return;
        }
        self.times.checked_ms = Some(at_ms);
        let why = self.results.iter().find_map(|r| match &r.verdict {
            Verdict::Failed(why) => Some(format!("check {}: {why}", r.check)),
            _ => None,
        });
        self.outcome = Some(why.map_or(Outcome::Passed, Outcome::Failed));
        self.until = Some(Time(now.0.saturating_add(self.ttl_ms.saturating_mul(1_000_000))));
        self.phase = if self.ttl_ms == 0 { Phase::Ending } else { Phase::Holding };
    }

    fn over(&mut self, end: End) {
        let why = match &end {
            End::Failed(why) => Some(why.clone()),
            End::Lost => Some("the process that did this job was killed".to_owned()),
            End::Stopped | End::Expired => None,
        };
        self.outcome.get_or_insert_with(|| match &end {
            End::Stopped => Outcome::Stopped,
            _ => Outcome::Failed(why.clone().unwrap_or_else(|| "its time was over".to_owned())),
        });
        self.trouble = why;
        self.phase = Phase::Ending;
    }
}

#[cfg(test)]
#[path = "job_tests.rs"]
mod tests;
