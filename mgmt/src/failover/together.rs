//! Machines that fail over together, planned: none of them runs here before the disks of all are drained. What one was told by another
//! before is then on the branches of both; and when one cannot be drained, all stay where they are.
//!
//! Each job says in its folder that it is drained ([`DRAINED`]). Whether they go on is decided once, for all: the first that sees all of
//! them drained, or gives up, makes a link in the folder of the first one, and a link that is there is not made anew; so all do the same,
//! whoever is killed.

use crate::failover::drive::Looked;
use crate::failover::job::{End, Job, Phase};
use crate::failover::store::{Jobs, StoreError};
use afterimage_base::{crashsafe, world};
use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// The file in a job's folder that says that its own disks are drained.
pub const DRAINED: &str = "drained";
/// The link that says what all of them do: its target is one of the words below.
const VERDICT: &str = "together";
const GO: &str = "go";
const STAY: &str = "stay";
/// Between two looks at the others.
const PACE: Duration = Duration::from_millis(200);

/// How far those are that begin together.
#[derive(Debug, Default)]
struct Stand {
    drained: u64,
    /// Machines that are not.
    missing: Vec<String>,
    /// One of these will not be.
    never: bool,
}

fn look(jobs: &Jobs, job: &Job) -> Result<Stand, StoreError> {
    let mut stand = Stand::default();
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
        let never = other.is_ending() && other.times.fenced_ms.is_none();
        if !never && (other.phase != Phase::Planned || jobs.folder_of(&id)?.join(DRAINED).exists()) {
            stand.drained += 1;
        } else {
            stand.missing.push(other.machine.name);
        }
        stand.never |= never;
    }
    Ok(stand)
}

/// What is decided, if anything is: whether they go on.
fn decided(place: &Path) -> io::Result<Option<bool>> {
    match std::fs::read_link(place.join(VERDICT)) {
        Ok(word) => Ok(Some(word == Path::new(GO))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Decides, unless it is decided. Whether they go on.
fn decide(place: &Path, go: bool) -> io::Result<bool> {
    let link = place.join(VERDICT);
    match std::os::unix::fs::symlink(if go { GO } else { STAY }, &link) {
        Ok(()) => crashsafe::sync_parent(&link).map(|()| go),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(decided(place)? == Some(true)),
        Err(e) => Err(e),
    }
}

/// Waits until all that begin together with this one, whose own disks are drained, are drained, too; not longer than until `limit`,
/// for one of them may never have been begun.
pub fn wait(jobs: &Jobs, job: &Job, limit: Instant, wanted: &dyn Fn() -> Option<End>) -> Looked<()> {
    waited(jobs, job, limit, wanted).unwrap_or_else(|why| {
        let text = format!("how far those are that fail over together with it cannot be told: {why}");
        Looked::Over(End::Failed(text))
    })
}

fn waited(jobs: &Jobs, job: &Job, limit: Instant, wanted: &dyn Fn() -> Option<End>) -> Result<Looked<()>, String> {
    if job.together == 0 || world::broken_by_request("alone") {
        return Ok(Looked::Done(()));
    }
    let failed = |e: StoreError| e.to_string();
    let text = |e: io::Error| e.to_string();
    let own = jobs.folder_of(&job.id).map_err(failed)?;
    // The first one's, whose id is the name of all.
    let place = jobs.folder_of(job.set.as_deref().unwrap_or(&job.id)).map_err(failed)?;
    File::create(own.join(DRAINED)).map_err(text)?;
    loop {
        let stand = look(jobs, job).map_err(failed)?;
        let end = wanted();
        let go = match decided(&place).map_err(text)? {
            Some(go) => Some(go),
            None if end.is_some() || stand.never => Some(decide(&place, false).map_err(text)?),
            None if stand.drained >= job.together => Some(decide(&place, true).map_err(text)?),
            None if Instant::now() > limit => Some(decide(&place, false).map_err(text)?),
            None => None,
        };
        match (end, go) {
            (Some(end), _) => return Ok(Looked::Over(end)),
            (None, Some(true)) => return Ok(Looked::Done(())),
            (None, Some(false)) => {
                let who = match stand.missing.is_empty() {
                    true => "a machine".to_owned(),
                    false => format!("machine {}", stand.missing.join(", ")),
                };
                let why = format!("{who}, which was to fail over together with this one, is not drained");
                return Ok(Looked::Over(End::Failed(why)));
            }
            (None, None) => std::thread::sleep(PACE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::job::{Event, FailoverPlan, Plan};
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

    /// With no time to wait, unless all are there at once.
    fn hurry(jobs: &Jobs, job: &Job) -> Looked<()> {
        wait(jobs, job, Instant::now().checked_sub(PACE).unwrap(), &|| None)
    }

    fn stays(looked: &Looked<()>, who: &str) -> bool {
        matches!(looked, Looked::Over(End::Failed(why)) if why.starts_with(who))
    }

    #[test]
    fn all_are_drained_or_none_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let jobs = Jobs::of(dir.path());
        let (a, b, alone) = (job("a", "a", 2), job("b", "a", 2), job("c", "other", 0));
        let _claims = [&a, &b, &alone].map(|job| jobs.create(job).unwrap());
        assert_eq!(hurry(&jobs, &alone), Looked::Done(()));
        // Both wait for one another, and go.
        let (until, all) = (Instant::now() + Duration::from_secs(60), &jobs);
        std::thread::scope(|scope| {
            let both = [&a, &b].map(|job| scope.spawn(move || wait(all, job, until, &|| None)));
            both.into_iter().for_each(|one| assert_eq!(one.join().unwrap(), Looked::Done(())));
        });
        // One that was killed and is asked again goes on as decided, whatever became of the other one.
        std::fs::remove_file(jobs.folder_of("b").unwrap().join(DRAINED)).unwrap();
        assert_eq!(hurry(&jobs, &a), Looked::Done(()));
    }

    #[test]
    fn who_gives_up_decides_for_all() {
        let dir = tempfile::tempdir().unwrap();
        let jobs = Jobs::of(dir.path());
        let (a, b) = (job("a", "a", 2), job("b", "a", 2));
        let _first = jobs.create(&a).unwrap();
        assert!(stays(&hurry(&jobs, &a), "a machine,"), "the other one was never begun");
        let _second = jobs.create(&b).unwrap();
        assert!(stays(&hurry(&jobs, &b), "a machine,"), "all are drained now, too late");

        // One that is on its way to its end without a fence was not drained; with one, it was.
        let (c, mut d) = (job("c", "c", 2), job("d", "c", 2));
        let _third = jobs.create(&c).unwrap();
        let claim = jobs.create(&d).unwrap();
        d.apply(Event::Over(End::Failed("not drained".to_owned()), Time(2))).unwrap();
        d.times.fenced_ms = Some(1);
        claim.save(&d).unwrap();
        assert_eq!(look(&jobs, &c).unwrap().drained, 1);
        d.times.fenced_ms = None;
        claim.save(&d).unwrap();
        let until = Instant::now() + Duration::from_secs(3600);
        assert!(stays(&wait(&jobs, &c, until, &|| None), "machine d,"), "at once");

        // Somebody takes one back: the other one stays, too.
        let (e, f) = (job("e", "e", 2), job("f", "e", 2));
        let _both = [&e, &f].map(|job| jobs.create(job).unwrap());
        let stop = End::Stopped { keep: false };
        assert_eq!(wait(&jobs, &e, until, &|| Some(stop.clone())), Looked::Over(stop.clone()));
        assert!(stays(&wait(&jobs, &f, until, &|| None), "a machine,"));
    }
}
