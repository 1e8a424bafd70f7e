use super::*;
use crate::failover::drive::{DriveError, Hands, Looked, Moment, drive};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::rc::Rc;

/// A host and its appliance: what jobs make there, and what must stay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct World {
    forks: BTreeSet<String>,
    processes: BTreeSet<i32>,
    sockets: BTreeSet<&'static str>,
    /// The job's file.
    file: Rc<RefCell<String>>,
}

/// Dies at the n-th place. What the kernel and the appliance do at the death of a process is done then.
struct Mortal<'a> {
    world: &'a mut World,
    left: usize,
    fails: Option<&'static str>,
    verdicts: Vec<Verdict>,
    holds: End,
}

/// How a process dies in these tests.
struct Died;

impl Mortal<'_> {
    fn live(&mut self) {
        if self.left == 0 {
            // A guest's process dies with its parent.
            self.world.processes.clear();
            std::panic::panic_any(Died);
        }
        self.left -= 1;
    }

    fn may_fail(&self, step: &'static str) -> Result<(), String> {
        if self.fails == Some(step) { Err(format!("{step} fails")) } else { Ok(()) }
    }
}

impl Hands for Mortal<'_> {
    fn fork(&mut self, job: &Job) -> Result<(Vec<DiskPlace>, u64, u64), String> {
        let mut places = Vec::new();
        for disk in &job.disks {
            self.live();
            self.world.forks.insert(format!("{}/{}", disk.volume, disk.name));
            self.live();
            self.world.sockets.insert("disk");
            places.push(DiskPlace::Unix { socket: "disk".into(), export: disk.volume.clone() });
            self.may_fail("fork")?;
        }
        Ok((places, 1, 2))
    }

    fn start(&mut self, _: &Job) -> Result<(ProcessId, bool, u64), String> {
        self.may_fail("start")?;
        self.world.processes.insert(7);
        self.live();
        Ok((ProcessId { pid: 7, started: 1, boot: "b".to_owned() }, false, 3))
    }

    fn release(&mut self, job: &Job) -> Result<u64, String> {
        assert_eq!(load(self.world).process, job.process, "a guest runs whose process no file names");
        self.world.sockets.insert("qmp");
        self.live();
        self.may_fail("release").map(|()| 4)
    }

    fn check(&mut self, job: &Job, check: &Check) -> Looked<CheckResult> {
        self.live();
        let verdict = self.verdicts.get(job.results.len()).cloned().unwrap_or(Verdict::Passed);
        Looked::Done(CheckResult { check: check.clone(), verdict, at_ms: 5, note: None })
    }

    fn hold(&mut self, _: &Job, until: Time) -> End {
        assert_eq!(until, Time(100 + 60_000_000_000));
        self.live();
        self.holds.clone()
    }

    fn kill(&mut self, job: &Job) -> Result<(), String> {
        self.may_fail("kill")?;
        if let Some(process) = &job.process {
            self.world.processes.remove(&process.pid);
        }
        self.live();
        Ok(())
    }

    fn drop_forks(&mut self, job: &Job) -> Result<(), String> {
        self.may_fail("drop")?;
        assert!(self.world.processes.is_empty(), "a disk is taken from a guest that runs");
        for disk in &job.disks {
            self.world.forks.remove(&format!("{}/{}", disk.volume, disk.name));
            self.live();
        }
        Ok(())
    }

    fn remove(&mut self, _: &Job) -> Result<Option<u64>, String> {
        self.world.sockets.clear();
        self.live();
        Ok(Some(9))
    }

    fn now(&self) -> Time {
        Time(100)
    }

    fn pass(&mut self, _: Step, _: Moment) {
        self.live();
    }
}

fn job(ttl_ms: u64) -> Job {
    let machine = "version = 1\nname = \"m\"\n[[disk]]\nvolume = \"a\"\n[[disk]]\nvolume = \"b\"";
    Job::new(Plan {
        id: "t1".to_owned(),
        created: Time(1),
        machine: Machine::parse(machine).unwrap(),
        moments: vec![(5, None), (9, None)],
        checks: vec![Check::Boot, Check::Tcp(22), Check::Screenshot],
        check_limit_ms: 1,
        ttl_ms,
    })
}

fn production() -> World {
    World { forks: BTreeSet::from(["a/other".to_owned()]), ..World::default() }
}

fn begin() -> World {
    let file = Rc::new(RefCell::new(serde_json::to_string(&job(60_000)).unwrap()));
    World { file, ..production() }
}

fn load(world: &World) -> Job {
    serde_json::from_str(&world.file.borrow()).unwrap()
}

/// Does the job from what its file says; a second process knows that the first was lost. `None` if it died.
fn run(world: &mut World, left: usize, how: impl Fn(&mut Mortal<'_>), lost: bool) -> Option<Result<(), DriveError>> {
    let mut job = load(world);
    if lost && !job.has_ended() {
        job.apply(Event::Over(End::Lost)).unwrap();
    }
    let file = Rc::clone(&world.file);
    let mut hands = Mortal { world, left, fails: None, verdicts: Vec::new(), holds: End::Expired };
    how(&mut hands);
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut save = |job: &Job| -> io::Result<()> {
            *file.borrow_mut() = serde_json::to_string(job)?;
            Ok(())
        };
        drive(&mut job, &mut hands, &mut save)
    }));
    done.ok()
}

const FOR_EVER: usize = usize::MAX;

fn assert_clean(world: &World, context: &str) {
    assert_eq!(World { file: Rc::default(), ..world.clone() }, production(), "{context}");
    assert!(load(world).has_ended(), "{context}");
    assert!(load(world).outcome.is_some(), "{context}");
}

#[test]
fn killed_at_any_place_and_killed_again_nothing_is_left() {
    std::panic::set_hook(Box::new(|info| {
        if info.payload().downcast_ref::<Died>().is_none() {
            eprintln!("{info}");
        }
    }));
    let mut first = 0;
    loop {
        let mut world = begin();
        if run(&mut world, first, |_| {}, false).is_some() {
            break;
        }
        // Whoever removes it may die, too, at any place.
        for second in 0.. {
            // A clone would share the file.
            let file = Rc::new(RefCell::new(world.file.borrow().clone()));
            let mut again = World { file, ..world.clone() };
            let done = run(&mut again, second, |_| {}, true).is_some();
            if !done {
                run(&mut again, FOR_EVER, |_| {}, true).unwrap().unwrap();
            }
            assert_clean(&again, &format!("killed at {first}, then at {second}"));
            if done {
                break;
            }
        }
        first += 1;
    }
    // Three checks, and three places beside what the other seven steps do.
    assert!(first > 3 * (STEPS.len() + 2), "only {first} places");
}

#[test]
fn each_step_may_fail_and_the_end_is_the_same() {
    for step in ["fork", "start", "release"] {
        let mut world = begin();
        run(&mut world, FOR_EVER, |h| h.fails = Some(step), false).unwrap().unwrap();
        assert_clean(&world, step);
        assert_eq!(load(&world).outcome, Some(Outcome::Failed(format!("{step} fails"))));
    }
    for step in ["kill", "drop"] {
        let mut world = begin();
        let error = run(&mut world, FOR_EVER, |h| h.fails = Some(step), false).unwrap().unwrap_err();
        assert!(matches!(error, DriveError::Remains { .. }), "{error}");
        assert!(!load(&world).has_ended() && load(&world).trouble.is_some());
        // What had been found out before counts.
        run(&mut world, FOR_EVER, |_| {}, true).unwrap().unwrap();
        assert_clean(&world, step);
        assert_eq!(load(&world).outcome, Some(Outcome::Passed));
    }
}

#[test]
fn checks_after_a_failed_one_are_skipped_but_the_picture() {
    let mut world = begin();
    let failed = Verdict::Failed("dark".to_owned());
    run(&mut world, FOR_EVER, |h| h.verdicts = vec![failed.clone()], false).unwrap().unwrap();
    let done = load(&world);
    let verdicts: Vec<&Verdict> = done.results.iter().map(|r| &r.verdict).collect();
    assert_eq!(verdicts, [&failed, &Verdict::Skipped, &Verdict::Passed]);
    assert_eq!(done.outcome, Some(Outcome::Failed("check boot: dark".to_owned())));
    assert_eq!((done.times.booted_ms, done.times.running_ms), (None, Some(4)));
}

#[test]
fn the_reason_that_came_first_counts() {
    let mut job = job(0);
    job.apply(Event::Over(End::Stopped)).unwrap();
    job.apply(Event::Over(End::Lost)).unwrap();
    assert_eq!((job.outcome.clone(), job.trouble.clone(), job.phase), (Some(Outcome::Stopped), None, Phase::Ending));
    let before = job.clone();
    assert!(job.apply(Event::Released { at_ms: 1 }).is_err());
    assert_eq!(job, before);
}

#[test]
fn a_file_that_cannot_be_written_leaves_nothing_either() {
    let mut world = begin();
    let mut job = load(&world);
    let mut hands =
        Mortal { world: &mut world, left: FOR_EVER, fails: None, verdicts: Vec::new(), holds: End::Expired };
    let mut save = |_: &Job| Err(io::Error::other("no room"));
    let error = drive(&mut job, &mut hands, &mut save).unwrap_err();
    assert!(matches!(error, DriveError::Save { .. }) && job.has_ended(), "{error}");
    assert_eq!(World { file: Rc::default(), ..world }, production());
}
