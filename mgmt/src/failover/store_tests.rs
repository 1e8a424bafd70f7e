use super::*;
use crate::failover::job::{Event, Fork, Phase, Plan};
use crate::failover::source::{DiskSource, Served};
use crate::failover::sweep::sweep;
use crate::target::machine::Machine;
use crate::units::Time;
use std::sync::Mutex;

fn job(id: &str) -> Job {
    Job::new(Plan {
        id: id.to_owned(),
        created: Time(1),
        machine: Machine::of_volume("disk"),
        moments: vec![(5, None)],
        checks: Vec::new(),
        check_limit_ms: 1,
        ttl_ms: 0,
        failover: None,
    })
}

fn nobody(_: &Claim, _: &Job) -> std::io::Result<()> {
    unreachable!("there are tests only")
}

#[derive(Default)]
struct Dropped(Mutex<Vec<String>>);

impl DiskSource for Dropped {
    fn is_there(&self) -> bool {
        true
    }

    fn fence(&self, _: &str, _: &str, _: bool) -> Result<(), String> {
        unreachable!("a sweep only drops")
    }

    fn lift(&self, _: &str, _: &str) -> Result<(), String> {
        unreachable!("a sweep leaves failovers to others")
    }

    fn latest(&self, _: &str) -> Result<(u64, Option<Time>), String> {
        unreachable!("a sweep only drops")
    }

    fn is_drained(&self, _: &str) -> Result<bool, String> {
        unreachable!("a sweep only drops")
    }

    fn is_free(&self, _: &Fork) -> Result<(), String> {
        unreachable!("a sweep only drops")
    }

    fn branch(&self, _: &Fork, _: &Path) -> Result<Box<dyn Served>, String> {
        unreachable!("a sweep only drops")
    }

    fn drop_branch(&self, _: &Fork) -> Result<(), String> {
        unreachable!("a sweep leaves failovers to others")
    }

    fn fork(&self, _: &Fork, _: &Path) -> Result<Box<dyn Served>, String> {
        Err("not here".to_owned())
    }

    fn drop_fork(&self, fork: &Fork) -> Result<(), String> {
        self.0.lock().unwrap().push(fork.name.clone());
        Ok(())
    }
}

#[test]
fn a_job_has_one_owner_until_the_last_copy_of_its_lock_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = Jobs::of(dir.path());
    let claim = jobs.create(&job("t1")).unwrap();
    let copy = claim.share().unwrap();
    assert!(jobs.claim("t1").unwrap().is_none());
    let folder = claim.folder().to_owned();
    drop(claim);
    assert!(jobs.claim("t1").unwrap().is_none(), "the copy still owns it");
    let inherited = Claim::inherited(&folder, &copy).unwrap();
    drop(copy);
    assert!(jobs.claim("t1").unwrap().is_none());
    assert!(sweep(&jobs, &Dropped::default(), &nobody).unwrap().is_empty(), "a job that is done is nobody's to end");
    drop(inherited);
    let other = jobs.create(&job("t2")).unwrap();
    assert!(Claim::inherited(&folder, other.share().unwrap()).is_err(), "the lock of another job");
    assert!(jobs.claim("t1").unwrap().is_some());
    assert_eq!(jobs.ids().unwrap(), ["t1", "t2"]);
}

#[test]
fn what_a_dead_process_left_is_removed_once() {
    let dir = tempfile::tempdir().unwrap();
    let (jobs, source) = (Jobs::of(dir.path()), Dropped::default());
    drop(jobs.create(&job("t1")).unwrap());
    let folder = jobs.folder_of("t1").unwrap();
    for name in ["qmp.sock", "disk0.sock", "stop", "serial.log"] {
        std::fs::write(folder.join(name), "").unwrap();
    }
    assert_eq!(sweep(&jobs, &source, &nobody).unwrap(), ["t1"]);
    assert!(sweep(&jobs, &source, &nobody).unwrap().is_empty());
    assert_eq!(*source.0.lock().unwrap(), ["t1"]);
    let mut left: Vec<_> =
        std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert_eq!(left, ["job.json", "lock", "serial.log"]);
    assert_eq!(jobs.load("t1").unwrap().phase, Phase::Ended);
    jobs.claim("t1").unwrap().unwrap().remove().unwrap();
    assert!(matches!(jobs.load("t1"), Err(StoreError::NotFound(_))));
}

#[test]
fn files_that_are_no_job_are_refused_and_left() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = Jobs::of(dir.path());
    let claim = jobs.create(&job("t1")).unwrap();
    let path = claim.folder().join("job.json");
    let whole = std::fs::read_to_string(&path).unwrap();
    drop(claim);
    for (text, says) in [
        ("{", "no job"),
        ("{}", "version is none"),
        (&whole.replacen("\"version\": 1", "\"version\": 3", 1), "version is 3"),
        (&whole.replacen("\"planned\"", "\"flying\"", 1), "flying"),
        (&whole.replacen("\"id\": \"t1\"", "\"id\": \"t2\"", 1), "job t2"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = jobs.load("t1").unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert!(sweep(&jobs, &Dropped::default(), &nobody).unwrap().is_empty());
    }
    for id in ["", "..", "a/b", ".new-x"] {
        assert!(matches!(jobs.load(id), Err(StoreError::NotFound(_))), "{id}");
    }
}

#[test]
fn a_job_comes_back_from_its_file_in_every_phase() {
    let dir = tempfile::tempdir().unwrap();
    let (jobs, mut job) = (Jobs::of(dir.path()), job("t1"));
    let claim = jobs.create(&job).unwrap();
    job.apply(Event::Over(crate::failover::job::End::Stopped { keep: false }, Time(2))).unwrap();
    for event in [Event::Killed, Event::Dropped, Event::Removed { at_ms: Some(3) }] {
        claim.save(&job).unwrap();
        assert_eq!(jobs.load("t1").unwrap(), job);
        job.apply(event).unwrap();
    }
}
