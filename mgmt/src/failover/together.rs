//! Machines that fail over together, planned: none of them runs here before the disks of all are drained. What one was told by another
//! before is then on the branches of both; and when one cannot be drained, all stay where they are.

use crate::failover::job::{Job, Phase};
use crate::failover::store::{Jobs, StoreError};
use std::fs::File;
use std::io;
use std::path::Path;

/// The file in a job's folder that says that its own disks are drained.
pub const DRAINED: &str = "drained";

/// How far those are that begin together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stand {
    /// All are drained.
    All,
    /// Some are not yet.
    Waits,
    /// This machine will not be.
    Never(String),
}

/// Says of the job in this folder that its own disks are drained.
///
/// # Errors
/// If that cannot be written.
pub fn say_drained(folder: &Path) -> io::Result<()> {
    File::create(folder.join(DRAINED)).map(drop)
}

/// How far the jobs are that begin together with this one.
///
/// # Errors
/// If one of them cannot be read.
pub fn look(jobs: &Jobs, job: &Job) -> Result<Stand, StoreError> {
    if job.together == 0 {
        return Ok(Stand::All);
    }
    let mut drained = 0;
    for id in jobs.ids()? {
        let other = match jobs.load(&id) {
            Ok(other) => other,
            // A plan, one that was removed a moment ago, or somebody else's trouble: if it is one of those, there are too few.
            Err(StoreError::NotFound(_) | StoreError::Damaged { .. }) => continue,
            Err(e) => return Err(e),
        };
        if other.set != job.set {
            continue;
        }
        if other.is_ending() && other.times.fenced_ms.is_none() {
            return Ok(Stand::Never(other.machine.name));
        }
        drained += u64::from(other.phase != Phase::Planned || jobs.folder_of(&id)?.join(DRAINED).exists());
    }
    Ok(if drained < job.together { Stand::Waits } else { Stand::All })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::job::{End, Event, FailoverPlan, Plan};
    use crate::target::machine::Machine;
    use crate::units::Time;

    fn job(id: &str, set: &str, together: u64) -> Job {
        let failover = FailoverPlan {
            branch: "b".to_owned(),
            planned: true,
            set: Some(set.to_owned()),
            together,
            ..FailoverPlan::default()
        };
        Job::new(Plan {
            id: id.to_owned(),
            created: Time(1),
            machine: Machine::of_volume(id),
            moments: vec![(5, None)],
            checks: Vec::new(),
            check_limit_ms: 1,
            ttl_ms: 0,
            failover: Some(failover),
        })
    }

    #[test]
    fn all_are_drained_or_none_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let jobs = Jobs::of(dir.path());
        let (a, mut b, alone) = (job("a", "s", 2), job("b", "s", 2), job("c", "other", 0));
        let stand = |job: &Job| look(&jobs, job).unwrap();
        let claim = jobs.create(&a).unwrap();
        drop(jobs.create(&alone).unwrap());
        assert_eq!((stand(&a), stand(&alone)), (Stand::Waits, Stand::All));
        say_drained(claim.folder()).unwrap();
        assert_eq!(stand(&a), Stand::Waits, "the other one is not there yet");
        let other = jobs.create(&b).unwrap();
        assert_eq!((stand(&a), stand(&b)), (Stand::Waits, Stand::Waits));
        // Without its file it is known by its phase: the file goes when a job has ended.
        let drained = Job { phase: Phase::Drained, ..b.clone() };
        other.save(&drained).unwrap();
        assert_eq!((stand(&a), stand(&b)), (Stand::All, Stand::All));
        b.apply(Event::Over(End::Failed("not drained".to_owned()), Time(2))).unwrap();
        other.save(&b).unwrap();
        assert_eq!(stand(&a), Stand::Never("b".to_owned()));
        // Behind its fence it was drained, however it ends.
        b.times.fenced_ms = Some(1);
        other.save(&b).unwrap();
        assert_eq!(stand(&a), Stand::All);
    }
}
