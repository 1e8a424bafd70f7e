//! A failover, or a test of one, as a state machine: no I/O, no clock.
//!
//! A test:
//!
//! ```text
//! planned --fork--> forked --start--> started --release--> running --check...--> holding
//!     \________________\_________________\___________________\______________________/
//!                                        v  (done, stopped, failed, expired, its process lost)
//!                                      ending --kill--> killed --drop--> dropped --remove--> ended
//! ```
//!
//! A failover, whose disks are branches that stay and whose volumes are fenced:
//!
//! ```text
//! planned --(drain)--fence--> fenced --fork--> forked --start--> started --release--> running --check...--> holding
//!     |                         ^ |                |                 |                    |                   |  ^ commit
//!     |                         | +----------------+---(its process lost, its disks gone)-+-------------------+--+
//!     |                         |                                  v
//!     |                         +--kill------------------------ halting --kill--> down --start--> fenced
//!     v  (rolled back, or failed before the guest ever ran)
//!  ending --kill--> killed --drop--> dropped --lift--> lifted --remove--> ended
//! ```
//!
//! The guest runs only while all of its volumes are fenced (I13), and the fences are taken down only when it is gone. Once it has
//! run, nothing but a roll-back by hand takes it away: a job whose process is lost goes on from its branches, as a machine does behind a
//! power cut. Once it is committed, its end leaves branches and fences as they are.
//!
//! Each step is done first and saved then, and may have been done in part or whole when its process dies. What it makes has
//! a name that was saved before (forks), waits until it was saved (the guest's process, [`crate::target::process`]), or lies in the job's
//! folder (sockets, files). So `ending` knows all that may be there, and its steps can be done any number of times.

mod parts;

pub use parts::{
    CheckResult, End, Event, FAILOVER_STEPS, FailoverPlan, Fork, Illegal, Outcome, Phase, Plan, STEPS, Step, Times,
    Verdict,
};

use crate::failover::check::Check;
use crate::target::machine::Machine;
use crate::target::network::Purpose;
use crate::target::process::ProcessId;
use crate::units::Time;
use serde::{Deserialize, Serialize};

/// The version of a test's file.
pub const VERSION: u32 = 1;
/// The version of a failover's, which programs that know only tests must not end.
pub const FAILOVER_VERSION: u32 = 2;

/// A failover, or a test of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// [`VERSION`] or [`FAILOVER_VERSION`].
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
    /// The old primary is there, and nothing is to be lost.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub planned: bool,
    /// How long the draining may take.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub drain_limit_ms: u64,
    /// It commits itself so long after its checks have passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit_after_ms: Option<u64>,
    /// When it was committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed: Option<Time>,
    /// Its branches stay although it is rolled back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep: bool,
    /// The old primary goes on with what was written here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub back: bool,
    /// How often it went on from its branches.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub restarts: u64,
    /// What it belongs to together with others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<String>,
    /// How many jobs of that begin together: planned, none of them runs before all are drained.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub together: u64,
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

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
const fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Job {
    /// A job of which nothing was done.
    #[must_use]
    pub fn new(plan: Plan) -> Job {
        let (version, purpose) = match plan.failover {
            Some(_) => (FAILOVER_VERSION, Purpose::Failover),
            None => (VERSION, Purpose::Test),
        };
        let failover =
            plan.failover.unwrap_or_else(|| FailoverPlan { branch: plan.id.clone(), ..FailoverPlan::default() });
        let disks = plan.machine.disks.iter().zip(plan.moments).map(|(disk, (seq, time))| Fork {
            volume: disk.volume.clone(),
            seq,
            time,
            name: failover.branch.clone(),
            latest: failover.latest,
            place: None,
        });
        Job {
            version,
            purpose,
            disks: disks.collect(),
            id: plan.id,
            created: plan.created,
            machine: plan.machine,
            checks: plan.checks,
            check_limit_ms: plan.check_limit_ms,
            ttl_ms: plan.ttl_ms,
            planned: failover.planned,
            drain_limit_ms: failover.drain_limit_ms,
            commit_after_ms: failover.commit_after_ms,
            committed: None,
            keep: false,
            back: false,
            restarts: 0,
            set: failover.set,
            together: failover.together,
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

    /// Whether it is a failover, and no test.
    #[must_use]
    pub const fn is_failover(&self) -> bool {
        matches!(self.purpose, Purpose::Failover)
    }

    /// What is to be done next.
    #[must_use]
    pub fn next(&self) -> Step {
        match self.phase {
            Phase::Planned if self.is_failover() && self.planned => Step::Drain,
            Phase::Planned if self.is_failover() => Step::Fence,
            Phase::Drained => Step::Fence,
            Phase::Planned | Phase::Fenced => Step::Fork,
            Phase::Forked => Step::Start,
            Phase::Started => Step::Release,
            Phase::Running => Step::Check(self.results.len()),
            Phase::Holding => Step::Hold,
            Phase::Down => Step::Stay,
            Phase::Restarting | Phase::Halting | Phase::Ending => Step::Kill,
            Phase::Killed => Step::Drop,
            Phase::Dropped if self.is_failover() => Step::Lift,
            Phase::Dropped | Phase::Lifted => Step::Remove,
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
        matches!(self.phase, Phase::Ending | Phase::Killed | Phase::Dropped | Phase::Lifted | Phase::Ended)
    }

    /// Whether its branches are dropped at its end. Their names were seen to be free before the fences were up: one that is there
    /// without that is somebody else's.
    #[must_use]
    pub const fn drops_branches(&self) -> bool {
        (!self.is_failover() || self.times.fenced_ms.is_some()) && self.committed.is_none() && !self.keep && !self.back
    }

    /// Whether its fences are taken down at its end.
    #[must_use]
    pub const fn lifts_fences(&self) -> bool {
        self.committed.is_none() || self.back
    }

    /// Whether it goes on although its file could not be written: what the file lacks is found out again.
    #[must_use]
    pub const fn goes_on_unsaved(&self) -> bool {
        self.is_failover() && matches!(self.phase, Phase::Running | Phase::Holding | Phase::Down)
    }

    /// Whether the guest has ever run.
    const fn has_run(&self) -> bool {
        self.times.running_ms.is_some()
    }

    /// Takes an event. On an error nothing has changed.
    ///
    /// # Errors
    /// If it cannot happen now.
    pub fn apply(&mut self, event: Event) -> Result<(), Illegal> {
        match (self.phase, event) {
            (Phase::Planned, Event::Drained) if self.is_failover() => self.phase = Phase::Drained,
            (Phase::Planned | Phase::Drained, Event::Fenced { moments, at_ms })
                if self.is_failover() && moments.len() == self.disks.len() =>
            {
                for (disk, (seq, time)) in self.disks.iter_mut().zip(moments) {
                    (disk.seq, disk.time) = (seq, time);
                }
                self.times.fenced_ms = Some(at_ms);
                self.phase = Phase::Fenced;
            }
            (phase, Event::Forked { places, forked_ms, first_read_ms })
                if places.len() == self.disks.len()
                    && phase == if self.is_failover() { Phase::Fenced } else { Phase::Planned } =>
            {
                for (disk, place) in self.disks.iter_mut().zip(places) {
                    disk.place = Some(place);
                }
                self.times.forked_ms.get_or_insert(forked_ms);
                self.times.first_read_ms.get_or_insert(first_read_ms);
                self.phase = Phase::Forked;
            }
            (Phase::Forked, Event::Started { process, kvm, at_ms }) => {
                (self.process, self.kvm) = (Some(process), Some(kvm));
                self.times.started_ms.get_or_insert(at_ms);
                self.phase = Phase::Started;
            }
            (Phase::Started, Event::Released { at_ms }) => {
                self.times.running_ms.get_or_insert(at_ms);
                self.trouble = None;
                let checked = self.times.checked_ms.is_some();
                self.phase = if checked { Phase::Holding } else { Phase::Running };
            }
            (Phase::Running, Event::Checked(result, now)) if self.results.len() < self.checks.len() => {
                self.checked(result, now);
            }
            // What is on its way to its end stays so, and why it first went there counts.
            (_, Event::Over(..)) if self.is_ending() => {}
            (_, Event::Over(end, now)) if self.is_failover() => self.over_failover(end, now),
            (_, Event::Over(end, _)) => self.over(end),
            (Phase::Ending, Event::Killed) => self.phase = Phase::Killed,
            (Phase::Restarting | Phase::Halting, Event::Killed) => {
                self.process = None;
                self.phase = if self.phase == Phase::Halting { Phase::Down } else { Phase::Fenced };
            }
            (Phase::Killed, Event::Dropped) => self.phase = Phase::Dropped,
            (Phase::Dropped, Event::Lifted) if self.is_failover() => self.phase = Phase::Lifted,
            (phase, Event::Removed { at_ms })
                if phase == if self.is_failover() { Phase::Lifted } else { Phase::Dropped } =>
            {
                self.times.ended_ms = at_ms;
                self.phase = Phase::Ended;
            }
            (phase, event) => {
                return Err(Illegal { job: self.id.clone(), phase, event: format!("{event:?}") });
            }
        }
        Ok(())
    }

    /// What a failover does when something is in its way, or somebody wants something.
    fn over_failover(&mut self, end: End, now: Time) {
        let guest = matches!(self.phase, Phase::Forked | Phase::Started | Phase::Running | Phase::Holding);
        match end {
            End::Commit if self.has_run() => {
                self.committed.get_or_insert(now);
                self.until = None;
            }
            End::Start if self.phase == Phase::Down => self.phase = Phase::Fenced,
            End::Back => {
                (self.back, self.outcome) = (true, Some(Outcome::FailedBack));
                self.phase = Phase::Ending;
            }
            End::Commit | End::Start | End::Expired => {}
            // Its steps up to the fence can be done again; behind it there may be a guest without a parent.
            End::Lost | End::Gone(_) if guest || self.phase == Phase::Fenced => {
                self.restarts += u64::from(guest);
                if self.phase == Phase::Started {
                    // That it was let run is saved behind that: it may have run, and written, for long.
                    self.times.running_ms.get_or_insert(now.0.saturating_sub(self.created.0) / 1_000_000);
                }
                if self.times.checked_ms.is_none() {
                    self.results.clear();
                }
                if let End::Gone(why) = end {
                    self.trouble = Some(why);
                }
                self.phase = Phase::Restarting;
            }
            End::Lost => {}
            End::Gone(why) | End::Failed(why) => {
                self.trouble = Some(why.clone());
                if self.has_run() {
                    self.phase = Phase::Halting;
                } else {
                    self.outcome = Some(Outcome::Failed(why));
                    self.phase = Phase::Ending;
                }
            }
            End::Stopped { keep } => {
                self.keep |= keep;
                if self.committed.is_none() {
                    self.outcome = Some(Outcome::RolledBack);
                }
                self.phase = Phase::Ending;
            }
        }
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
        let later = |ms: u64| Time(now.0.saturating_add(ms.saturating_mul(1_000_000)));
        if self.is_failover() {
            self.until = self.commit_after_ms.filter(|_| self.outcome == Some(Outcome::Passed)).map(later);
            self.phase = Phase::Holding;
        } else {
            self.until = Some(later(self.ttl_ms));
            self.phase = if self.ttl_ms == 0 { Phase::Ending } else { Phase::Holding };
        }
    }

    fn over(&mut self, end: End) {
        let why = match &end {
            End::Failed(why) | End::Gone(why) => Some(why.clone()),
            End::Lost => Some("the process that did this job was killed".to_owned()),
            End::Stopped { .. } | End::Expired | End::Commit | End::Start | End::Back => None,
        };
        self.outcome.get_or_insert_with(|| match &end {
            End::Stopped { .. } => Outcome::Stopped,
            _ => Outcome::Failed(why.clone().unwrap_or_else(|| "its time was over".to_owned())),
        });
        self.trouble = why;
        self.phase = Phase::Ending;
    }
}

#[cfg(test)]
#[path = "job_tests.rs"]
mod tests;
