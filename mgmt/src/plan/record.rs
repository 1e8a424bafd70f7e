//! What is kept of a plan that is carried out: `plan.json`, in a folder like that of a job ([`crate::failover::store`]).
//!
//! Machines and moments are settled when the run begins: later steps start from the same instant, whatever is described or written
//! meanwhile.

use super::run::Run;
use crate::failover::job::{self, FailoverPlan, Fork, Job};
use crate::target::machine::Machine;
use crate::units::Time;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// The version of the file.
pub const VERSION: u32 = 1;
/// How long the machine of a test stays at most if nobody ever looks at its run again.
const STAY: Duration = Duration::from_secs(7 * 86_400);

/// A machine, and where its disks begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// Its description.
    pub machine: Machine,
    /// The moment of each disk, and its time.
    pub moments: Vec<(u64, Option<Time>)>,
}

/// What the run makes of its machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// They are removed in the end.
    Test,
    /// They go on here.
    Failover {
        /// The name of their branches.
        branch: String,
        /// Each moment is the newest, once the volume is fenced.
        latest: bool,
        /// The old primaries are there, and nothing is to be lost.
        planned: bool,
        /// How long the draining of each may take.
        drain_limit_ms: u64,
    },
}

/// A plan that is carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// When it was asked for.
    pub created: Time,
    /// Test or failover.
    pub kind: Kind,
    /// The machines, by the names that the plan has for them.
    pub machines: BTreeMap<String, Prepared>,
    /// How many processes have carried it out, one after the other.
    #[serde(default)]
    pub lives: u32,
    /// How far it is.
    pub run: Run,
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

impl Record {
    /// The moments of all disks, as forks of this name. None if each begins at its newest write, whichever that is then.
    #[must_use]
    pub fn moments(&self, name: &str) -> Vec<Fork> {
        if let Kind::Failover { latest: true, .. } = self.kind {
            return Vec::new();
        }
        let forks = self.machines.values().flat_map(|prepared| {
            prepared.machine.disks.iter().zip(&prepared.moments).map(|(disk, (seq, time))| Fork {
                volume: disk.volume.clone(),
                seq: *seq,
                time: *time,
                name: name.to_owned(),
                latest: false,
                place: None,
            })
        });
        forks.collect()
    }

    /// Whether it is a test.
    #[must_use]
    pub const fn is_test(&self) -> bool {
        matches!(self.kind, Kind::Test)
    }

    /// The job that starts a machine of this step, under this name. Nothing if the plan has no such machine.
    #[must_use]
    pub fn job(&self, step: usize, machine: &str, name: &str, now: Time) -> Option<Job> {
        let (step, prepared) = (self.run.plan.steps.get(step)?, self.machines.get(machine)?);
        let failover = match &self.kind {
            Kind::Test => None,
            Kind::Failover { branch, latest, planned, drain_limit_ms } => Some(FailoverPlan {
                branch: branch.clone(),
                latest: *latest,
                planned: *planned,
                drain_limit_ms: *drain_limit_ms,
                commit_after_ms: None,
                set: Some(self.run.id.clone()),
                // Its order is what the plan says.
                together: 0,
            }),
        };
        Some(Job::new(job::Plan {
            id: name.to_owned(),
            created: now,
            machine: prepared.machine.clone(),
            moments: prepared.moments.clone(),
            checks: step.checks.clone(),
            check_limit_ms: millis(step.limit.0),
            ttl_ms: millis(self.run.test.unwrap_or_default() + STAY),
            failover,
        }))
    }
}
