//! What a job is made of, what is done for it, and what can happen to it.

use crate::failover::check::Check;
use crate::target::machine::Machine;
use crate::target::process::ProcessId;
use crate::target::qemu::DiskPlace;
use crate::units::Time;
use serde::{Deserialize, Serialize};
use thiserror::Error;

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
    /// The moment is the newest that there is once the volume is fenced.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub latest: bool,
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
    /// The volumes take no writes any more, and all that their agents had is there.
    Drained,
    /// The volumes are fenced.
    Fenced,
    /// The disks are served.
    Forked,
    /// The guest's process is there and waits.
    Started,
    /// The guest runs, checks are made.
    Running,
    /// All checks were made; it stays for its time to live.
    Holding,
    /// The guest is being killed, to be started again.
    Restarting,
    /// The guest is being killed, or has ended.
    Halting,
    /// There is no guest; the branches and fences are there.
    Down,
    /// What was made is being removed: the guest first.
    Ending,
    /// The guest is gone.
    Killed,
    /// The forks are gone.
    Dropped,
    /// The fences are gone.
    Lifted,
    /// Nothing is left but the report.
    Ended,
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Have the volumes take no writes, and wait until all that their agents have is there.
    Drain,
    /// Put up the fences.
    Fence,
    /// Make the forks and serve them.
    Fork,
    /// Make the guest's process, which waits.
    Start,
    /// Let it run.
    Release,
    /// Make the check with this number.
    Check(usize),
    /// Wait until the time to live is over, or somebody wants something.
    Hold,
    /// Wait until somebody wants something, without a guest.
    Stay,
    /// Kill the guest.
    Kill,
    /// Drop the forks.
    Drop,
    /// Take down the fences.
    Lift,
    /// Remove sockets and files.
    Remove,
    /// Nothing any more.
    Nothing,
}

/// All kinds of steps of a test, by the words that [`Step::word`] gives.
pub const STEPS: [&str; 8] = ["fork", "start", "release", "check", "hold", "kill", "drop", "remove"];
/// Those of a failover that is rolled back.
pub const FAILOVER_STEPS: [&str; 11] =
    ["drain", "fence", "fork", "start", "release", "check", "hold", "kill", "drop", "lift", "remove"];

impl Step {
    /// A word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Step::Drain => "drain",
            Step::Fence => "fence",
            Step::Fork => "fork",
            Step::Start => "start",
            Step::Release => "release",
            Step::Check(_) => "check",
            Step::Hold => "hold",
            Step::Stay => "stay",
            Step::Kill => "kill",
            Step::Drop => "drop",
            Step::Lift => "lift",
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
    /// The volumes were fenced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fenced_ms: Option<u64>,
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
    /// A failover was rolled back: the old primary goes on.
    RolledBack,
    /// The machine went back: the old primary goes on with what was written here.
    FailedBack,
}

/// Why a job goes to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// A step failed, or what it stands on went away.
    Failed(String),
    /// Somebody wants it to stop; whether its branches are kept counts for a failover that is not committed.
    Stopped {
        /// They are.
        keep: bool,
    },
    /// What its disks are served by went away, and may come back.
    Gone(String),
    /// A failover is committed.
    Commit,
    /// The old primary has its disk again, as the branch is, and goes on.
    Back,
    /// Somebody wants a guest that is down to run again.
    Start,
    /// Its time to live is over.
    Expired,
    /// Its process died.
    Lost,
}

/// What happened. Times are milliseconds since the job was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// [`Step::Drain`] is done.
    Drained,
    /// [`Step::Fence`] is done.
    Fenced {
        /// Seq and time of each disk: where its branch begins.
        moments: Vec<(u64, Option<Time>)>,
        /// When.
        at_ms: u64,
    },
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
    Over(End, Time),
    /// [`Step::Kill`] is done.
    Killed,
    /// [`Step::Drop`] is done.
    Dropped,
    /// [`Step::Lift`] is done.
    Lifted,
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
    pub(super) job: String,
    pub(super) phase: Phase,
    pub(super) event: String,
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
    /// If it is a failover, and no test.
    pub failover: Option<FailoverPlan>,
}

/// What is asked for of a failover.
#[derive(Debug, Clone, Default)]
pub struct FailoverPlan {
    /// The name of its branches.
    pub branch: String,
    /// Each moment is the newest, once the volume is fenced.
    pub latest: bool,
    /// The old primary is there, and nothing is to be lost.
    pub planned: bool,
    /// How long the draining may take.
    pub drain_limit_ms: u64,
    /// It commits itself so long after its checks have passed.
    pub commit_after_ms: Option<u64>,
    /// What it belongs to together with others.
    pub set: Option<String>,
    /// How many of those begin together: planned, none of them runs before all are drained. 0: it waits for nobody.
    pub together: u64,
}
