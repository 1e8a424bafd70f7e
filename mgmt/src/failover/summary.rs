//! A failover, a test of one, or a plan that is carried out, in a few words: what an appliance's host tells mgmt of it.

use crate::failover::job::{self, Job, Phase};
use crate::plan::record::Record;
use crate::plan::run;
use crate::units::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A machine that was started beside production.
    Test,
    /// A machine that runs here instead of its old primary.
    Failover,
    /// A plan whose machines are started beside production.
    TestPlan,
    /// A plan whose machines run here instead of their old primaries.
    FailoverPlan,
    /// Something of a newer version.
    #[serde(other)]
    Other,
}

impl What {
    /// All kinds that this version makes.
    pub const ALL: [What; 4] = [What::Test, What::Failover, What::TestPlan, What::FailoverPlan];

    /// The word used in JSON, as a label and in the catalogue.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            What::Test => "test",
            What::Failover => "failover",
            What::TestPlan => "test-plan",
            What::FailoverPlan => "failover-plan",
            What::Other => "other",
        }
    }

    /// What a word stands for.
    #[must_use]
    pub fn of(word: &str) -> What {
        What::ALL.into_iter().find(|what| what.as_str() == word).unwrap_or(What::Other)
    }

    /// For people.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            What::Test => "test failover of",
            What::Failover => "failover of",
            What::TestPlan => "test of plan",
            What::FailoverPlan => "failover by plan",
            What::Other => "job for",
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How far it is, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// On its way up: fences, forks, the guest's boot, its checks; a plan's steps.
    Starting,
    /// Its checks were made: it runs, until its time is over or somebody decides.
    Running,
    /// There is no guest; branches and fences are there.
    Down,
    /// What was made is being removed, or taken back.
    Ending,
    /// Nothing is left to be done.
    Ended,
    /// One of a newer version.
    #[serde(other)]
    Other,
}

impl Stage {
    /// All stages that this version knows.
    pub const ALL: [Stage; 5] = [Stage::Starting, Stage::Running, Stage::Down, Stage::Ending, Stage::Ended];

    /// The word used in JSON, as a label and in the catalogue.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Stage::Starting => "starting",
            Stage::Running => "running",
            Stage::Down => "down",
            Stage::Ending => "ending",
            Stage::Ended => "ended",
            Stage::Other => "other",
        }
    }

    /// What a word stands for.
    #[must_use]
    pub fn of(word: &str) -> Stage {
        Stage::ALL.into_iter().find(|stage| stage.as_str() == word).unwrap_or(Stage::Other)
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Recovery {
    /// Its ID at the host of its appliance.
    pub id: String,
    /// What it is.
    pub what: What,
    /// The name of the machine or plan.
    pub subject: String,
    /// How far it is.
    pub stage: Stage,
    /// How it went (`passed`, `failed`, `stopped`, `rolled-back`, `failed-back`); null if that is not known yet.
    pub outcome: Option<String>,
    /// Why it failed, or what is in the way.
    pub trouble: Option<String>,
    /// A failover that cannot be rolled back any more.
    pub committed: bool,
    /// What people have to do before it goes on; null if it waits for nobody.
    pub waits_for: Option<String>,
    /// The ID of what it belongs to together with others.
    pub part_of: Option<String>,
    /// When it was asked for.
    pub created: Time,
    /// Until when it stays, or when it commits itself.
    pub until: Option<Time>,
}

const fn stage(phase: Phase) -> Stage {
    match phase {
        Phase::Planned
        | Phase::Drained
        | Phase::Fenced
        | Phase::Forked
        | Phase::Started
        | Phase::Running
        | Phase::Restarting => Stage::Starting,
        Phase::Holding => Stage::Running,
        Phase::Halting | Phase::Down => Stage::Down,
        Phase::Ending | Phase::Killed | Phase::Dropped | Phase::Lifted => Stage::Ending,
        Phase::Ended => Stage::Ended,
    }
}

impl Recovery {
    /// Whether nothing is left to be done.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.stage == Stage::Ended
    }
}

impl From<&Job> for Recovery {
    fn from(job: &Job) -> Recovery {
        let (outcome, why) = match &job.outcome {
            None => (None, None),
            Some(job::Outcome::Passed) => (Some("passed"), None),
            Some(job::Outcome::Failed(why)) => (Some("failed"), Some(why)),
            Some(job::Outcome::Stopped) => (Some("stopped"), None),
            Some(job::Outcome::RolledBack) => (Some("rolled-back"), None),
            Some(job::Outcome::FailedBack) => (Some("failed-back"), None),
        };
        let decide = job.is_failover() && job.committed.is_none() && job.phase == Phase::Holding;
        Recovery {
            id: job.id.clone(),
            what: if job.is_failover() { What::Failover } else { What::Test },
            subject: job.machine.name.clone(),
            stage: stage(job.phase),
            outcome: outcome.map(str::to_owned),
            trouble: job.trouble.as_ref().or(why).cloned(),
            committed: job.committed.is_some(),
            waits_for: decide.then(|| format!("afterimage failover commit {0}, or rollback {0}", job.id)),
            part_of: job.set.clone(),
            created: job.created,
            until: job.until,
        }
    }
}

impl From<&Record> for Recovery {
    fn from(record: &Record) -> Recovery {
        let run = &record.run;
        let (outcome, why) = match &run.outcome {
            None => (None, None),
            Some(run::Outcome::Passed) => (Some("passed"), None),
            Some(run::Outcome::Failed(why)) => (Some("failed"), Some(why)),
            Some(run::Outcome::Stopped) => (Some("stopped"), None),
        };
        let by_hand = run.waits_for().map(|(_, text)| format!("{text}; then afterimage failover continue {}", run.id));
        Recovery {
            id: run.id.clone(),
            what: if record.is_test() { What::TestPlan } else { What::FailoverPlan },
            subject: run.plan.name.clone(),
            stage: match run.phase {
                run::Phase::Forward => Stage::Starting,
                run::Phase::Holding => Stage::Running,
                run::Phase::Undoing => Stage::Ending,
                run::Phase::Ended => Stage::Ended,
            },
            outcome: outcome.map(str::to_owned),
            trouble: why.cloned(),
            committed: false,
            waits_for: by_hand,
            part_of: None,
            created: record.created,
            until: run.until,
        }
    }
}
