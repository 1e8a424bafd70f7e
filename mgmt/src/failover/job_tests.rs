use super::*;
use crate::failover::drive::{DriveError, Hands, Looked, Moment, Moments, drive};
use crate::target::qemu::DiskPlace;
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
    /// Volumes whose agents take no writes.
    fences: BTreeSet<String>,
    /// The job's file.
    file: Rc<RefCell<String>>,
}

/// Dies at the n-th place. What the kernel and the appliance do at the death of a process is done then.
struct Mortal<'a> {
    world: &'a mut World,
    left: usize,
    fails: Option<&'static str>,
    verdicts: Vec<Verdict>,
    /// What somebody wants, one after the other; for ever the last.
    holds: Vec<End>,
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

impl Mortal<'_> {
    /// Another's branch may have the name.
    fn name_is_free(&self, job: &Job) -> Result<(), String> {
        let taken = job.disks.iter().find(|d| self.world.forks.contains(&format!("{}/{}", d.volume, d.name)));
        taken.map_or(Ok(()), |d| Err(format!("{} is there", d.volume)))
    }

    fn next_wish(&mut self) -> End {
        if self.holds.len() > 1 { self.holds.remove(0) } else { self.holds[0].clone() }
    }
}

impl Hands for Mortal<'_> {
    fn drain(&mut self, job: &Job) -> Looked<()> {
        assert!(job.planned);
        if let Err(why) = self.name_is_free(job) {
            return Looked::Over(End::Failed(why));
        }
        for disk in &job.disks {
            self.world.fences.insert(disk.volume.clone());
            self.live();
        }
        self.may_fail("drain").map_or_else(|why| Looked::Over(End::Failed(why)), Looked::Done)
    }

    fn fence(&mut self, job: &Job) -> Result<(Moments, u64), String> {
        self.name_is_free(job)?;
        for disk in &job.disks {
            self.live();
            self.world.fences.insert(disk.volume.clone());
            self.may_fail("fence")?;
        }
        self.live();
        Ok((job.disks.iter().map(|d| (d.seq + 1, d.time)).collect(), 1))
    }

    fn stay(&mut self, job: &Job) -> End {
        assert!(self.world.processes.is_empty() && job.process.is_none());
        self.live();
        self.next_wish()
    }

    fn lift(&mut self, job: &Job) -> Result<(), String> {
        self.may_fail("lift")?;
        assert!(self.world.processes.is_empty(), "I13: an old primary is let go while the machine runs here");
        for disk in job.disks.iter().filter(|_| job.lifts_fences()) {
            self.world.fences.remove(&disk.volume);
            self.live();
        }
        Ok(())
    }

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
        let fenced = job.disks.iter().all(|d| self.world.fences.contains(&d.volume));
        assert!(fenced || !job.is_failover(), "I13: a branch is written before its volume is fenced");
        self.world.sockets.insert("qmp");
        self.live();
        self.may_fail("release").map(|()| 4)
    }

    fn check(&mut self, job: &Job, check: &Check) -> Looked<CheckResult> {
        self.live();
        let verdict = self.verdicts.get(job.results.len()).cloned().unwrap_or(Verdict::Passed);
        Looked::Done(CheckResult { check: check.clone(), verdict, at_ms: 5, note: None })
    }

    fn hold(&mut self, job: &Job, until: Option<Time>) -> End {
        let waits = job.committed.is_none() && (job.commit_after_ms.is_some() || !job.is_failover());
        assert_eq!(until, waits.then_some(Time(100 + 60_000_000_000)));
        self.live();
        self.next_wish()
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
        for disk in job.disks.iter().filter(|_| job.drops_branches()) {
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
        failover: None,
    })
}

fn failover(planned: bool) -> Job {
    let test = job(0);
    let plan =
        FailoverPlan { branch: "b1".to_owned(), planned, commit_after_ms: Some(60_000), ..FailoverPlan::default() };
    Job::new(Plan {
        id: test.id,
        created: test.created,
        machine: test.machine,
        moments: vec![(5, None), (9, None)],
        checks: test.checks,
        check_limit_ms: 1,
        ttl_ms: 0,
        failover: Some(plan),
    })
}

fn production() -> World {
    World { forks: BTreeSet::from(["a/other".to_owned()]), ..World::default() }
}

fn begin() -> World {
    begin_with(&job(60_000))
}

fn begin_with(job: &Job) -> World {
    let file = Rc::new(RefCell::new(serde_json::to_string(job).unwrap()));
    World { file, ..production() }
}

fn load(world: &World) -> Job {
    serde_json::from_str(&world.file.borrow()).unwrap()
}

/// Does the job from what its file says; a second process knows that the first was lost. `None` if it died.
fn run(world: &mut World, left: usize, how: impl Fn(&mut Mortal<'_>), lost: bool) -> Option<Result<(), DriveError>> {
    let mut job = load(world);
    if lost && !job.has_ended() {
        job.apply(Event::Over(End::Lost, Time(2))).unwrap();
    }
    let file = Rc::clone(&world.file);
    let mut hands = Mortal { world, left, fails: None, verdicts: Vec::new(), holds: vec![End::Expired] };
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
    quiet();
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
    job.apply(Event::Over(End::Stopped { keep: false }, Time(2))).unwrap();
    job.apply(Event::Over(End::Lost, Time(2))).unwrap();
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
        Mortal { world: &mut world, left: FOR_EVER, fails: None, verdicts: Vec::new(), holds: vec![End::Expired] };
    let mut save = |_: &Job| Err(io::Error::other("no room"));
    let error = drive(&mut job, &mut hands, &mut save).unwrap_err();
    assert!(matches!(error, DriveError::Save { .. }) && job.has_ended(), "{error}");
    assert_eq!(World { file: Rc::default(), ..world }, production());
}

fn quiet() {
    std::panic::set_hook(Box::new(|info| {
        if info.payload().downcast_ref::<Died>().is_none() {
            eprintln!("{info}");
        }
    }));
}

/// How a failover may end, by what somebody wants of it.
fn wishes() -> Vec<(&'static str, Vec<End>)> {
    let roll_back = |keep| End::Stopped { keep };
    vec![
        ("rolled back", vec![roll_back(false)]),
        ("rolled back, branches kept", vec![roll_back(true)]),
        ("committed, then stopped", vec![End::Commit, roll_back(false)]),
        ("down, then again, then rolled back", vec![End::Failed("off".into()), End::Start, roll_back(false)]),
        ("down, then gone back", vec![End::Failed("off".into()), End::Back]),
        ("committed, gone back", vec![End::Commit, End::Back]),
        ("disks gone and back, then committed", vec![End::Gone("away".into()), End::Commit, roll_back(false)]),
    ]
}

/// What is there behind a failover that has ended.
fn assert_ended(world: &World, how: &str, context: &str) {
    let job = load(world);
    assert!(job.has_ended(), "{context}: {job:?}");
    let all = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<BTreeSet<String>>();
    let back = how.contains("gone back");
    let stays = how.contains("committed") && !back;
    let branches =
        if stays || back || how.contains("kept") { all(&["a/b1", "b/b1", "a/other"]) } else { all(&["a/other"]) };
    assert_eq!(world.forks, branches, "{context}");
    assert_eq!(world.fences, if stays { all(&["a", "b"]) } else { BTreeSet::new() }, "{context}");
    assert!(world.processes.is_empty() && world.sockets.is_empty(), "{context}");
    let outcome = match (stays, back) {
        (true, _) => Outcome::Passed,
        (_, true) => Outcome::FailedBack,
        _ => Outcome::RolledBack,
    };
    assert_eq!(job.outcome, Some(outcome), "{context}");
    assert_eq!(job.committed.is_some(), how.contains("committed"), "{context}");
}

#[test]
fn a_failover_goes_on_or_is_rolled_back_wherever_it_is_killed() {
    quiet();
    let mut places = 0;
    for planned in [false, true] {
        for (how, wishes) in wishes() {
            for first in 0.. {
                let mut world = begin_with(&failover(planned));
                let done = run(&mut world, first, |h| h.holds = wishes.clone(), false);
                let context = format!("{how}, planned {planned}, killed at {first}");
                if done.is_none() {
                    places += 1;
                    // What was wanted and is known is not wanted again; what is not known is said again.
                    let known = load(&world).committed.is_some();
                    let left: Vec<End> = wishes.iter().filter(|w| !(known && **w == End::Commit)).cloned().collect();
                    run(&mut world, FOR_EVER, |h| h.holds = left.clone(), true).unwrap().unwrap();
                }
                assert_ended(&world, how, &context);
                if done.is_some() {
                    break;
                }
            }
        }
    }
    assert!(places > 300, "only {places} places");
}

#[test]
fn a_failover_that_fails_before_its_guest_runs_is_rolled_back_and_later_it_is_not() {
    for step in ["drain", "fence", "fork", "start", "release"] {
        let mut world = begin_with(&failover(true));
        run(&mut world, FOR_EVER, |h| h.fails = Some(step), false).unwrap().unwrap();
        assert_eq!(World { file: Rc::default(), ..world.clone() }, production(), "{step}");
        assert_eq!(load(&world).outcome, Some(Outcome::Failed(format!("{step} fails"))));
    }
    // A fence that cannot be taken down is tried again, and the job has not ended before.
    let mut world = begin_with(&failover(false));
    let how = |h: &mut Mortal<'_>| (h.fails, h.holds) = (Some("lift"), vec![End::Stopped { keep: false }]);
    let error = run(&mut world, FOR_EVER, how, false).unwrap().unwrap_err();
    assert!(matches!(error, DriveError::Remains { .. }) && !load(&world).has_ended(), "{error}");
    run(&mut world, FOR_EVER, |_| {}, true).unwrap().unwrap();
    assert_ended(&world, "rolled back", "lift");
    // Checks that fail end nothing: the machine runs, and somebody decides.
    let mut world = begin_with(&failover(false));
    let verdicts = vec![Verdict::Failed("dark".to_owned())];
    let mut job = load(&world);
    job.commit_after_ms = None;
    *world.file.borrow_mut() = serde_json::to_string(&job).unwrap();
    assert!(job.next() == Step::Fence);
    let how = |h: &mut Mortal<'_>| h.verdicts.clone_from(&verdicts);
    // It would wait for ever: it dies in its wait.
    assert!(run(&mut world, 40, how, false).is_none());
    let seen = load(&world);
    assert_eq!((seen.phase, seen.until), (Phase::Holding, None));
    assert_eq!(seen.outcome, Some(Outcome::Failed("check boot: dark".to_owned())));
}

#[test]
fn a_branch_that_had_the_name_before_stays() {
    quiet();
    for planned in [false, true] {
        for first in 0.. {
            let mut world = begin_with(&failover(planned));
            world.forks.insert("b/b1".to_owned());
            let before = World { file: Rc::default(), ..world.clone() };
            let done = run(&mut world, first, |_| {}, false).is_some();
            if !done {
                run(&mut world, FOR_EVER, |_| {}, true).unwrap().unwrap();
            }
            assert_eq!(World { file: Rc::default(), ..world.clone() }, before, "planned {planned}, killed at {first}");
            assert_eq!(load(&world).outcome, Some(Outcome::Failed("b is there".to_owned())));
            if done {
                break;
            }
        }
    }
}

#[test]
fn a_guest_that_may_have_run_keeps_its_branches() {
    // That it was let run was not saved, so that its file is of before.
    for (phase, may_have_run) in [(Phase::Forked, false), (Phase::Started, true)] {
        let mut job = failover(false);
        job.phase = phase;
        job.apply(Event::Over(End::Lost, Time(2_000_001))).unwrap();
        job.apply(Event::Killed).unwrap();
        assert_eq!(job.phase, Phase::Fenced);
        job.apply(Event::Over(End::Failed("no room".to_owned()), Time(3_000_000))).unwrap();
        assert_eq!(job.phase, if may_have_run { Phase::Halting } else { Phase::Ending });
        assert_eq!(job.times.running_ms, may_have_run.then_some(2));
    }
}
