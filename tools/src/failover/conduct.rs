//! Carries out a recovery plan: in the process of a run, like that of a job ([`crate::failover::keep`]).
//!
//! What is begun is in `plan.json` before it is begun; each machine is a job of its own, with a name that is in that file. So whoever
//! goes on after a kill knows all that there may be, and finds it by its name.
//!
//! The moments at which machines of later steps begin are held by a branch of each volume (`plan-ID`) until the end, so that no
//! retention takes them away while people are at a manual action.

mod script;

use crate::failover::conduct::script::Script;
use crate::failover::forks::Exports;
use crate::failover::{failed, keep, now};
use crate::problem::Problem;
use afterimage_mgmt::failover::job::{Fork, Job, Outcome, Phase as JobPhase, Verdict};
use afterimage_mgmt::failover::source::DiskSource;
use afterimage_mgmt::failover::store::{Claim, Jobs, StoreError};
use afterimage_mgmt::failover::sweep::{SweepError, sweep_one};
use afterimage_mgmt::plan::file::Task;
use afterimage_mgmt::plan::record::Record;
use afterimage_mgmt::plan::run::{Action, At, Event, Part, Phase, Place, State};
use nix::sys::signal::{Signal, raise};
use std::cell::Cell;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Where tests have this process killed: at the n-th place.
pub const KILL: &str = "AFTERIMAGE_PLAN_KILL";
/// The file that names the manual action that was done.
pub const CONTINUE: &str = "continue";
/// The file that says that all is to be taken back.
pub const STOP: &str = "stop";
/// Between two looks.
const PACE: Duration = Duration::from_millis(50);
/// Between two looks whether the processes of its jobs live.
const ALIVE: Duration = Duration::from_secs(1);

/// Who carries a plan out.
struct Conductor<'a> {
    data: &'a Path,
    jobs: Jobs,
    claim: &'a Claim,
    record: Record,
    /// What the file says.
    saved: Record,
    script: Option<Script>,
    /// What holds the moments until the end.
    moments: Vec<Fork>,
    /// Whether it is there, in this life of the process.
    held: bool,
    places: Cell<u32>,
    looked: Option<Instant>,
}

/// Carries the plan of this claim out until it has ended, or somebody ends this process with a signal. A signal decides about tests only:
/// a failover goes on with the next process.
///
/// # Errors
/// If its file cannot be read or written; whoever looks next goes on.
pub fn conduct(data: &Path, claim: &Claim, id: &str, signalled: &dyn Fn() -> bool) -> Result<(), Problem> {
    let jobs = Jobs::of(data);
    let saved = jobs.load_plan(id).map_err(failed)?;
    let record = saved.clone();
    let moments = record.moments(&format!("plan-{id}"));
    let (script, held, looked) = (None, moments.is_empty(), None);
    let mut own = Conductor { data, jobs, claim, record, saved, script, moments, held, places: Cell::new(0), looked };
    own.record.lives += 1;
    if own.record.lives > 1 {
        tracing::warn!("plan {id}: its process was killed; it goes on");
    }
    own.apply(Event::Lost)?;
    own.save()?;
    loop {
        if signalled() {
            if !own.record.is_test() || own.record.run.has_ended() {
                tracing::warn!("plan {id}: this process was told to end; the plan goes on when somebody looks again");
                return Ok(());
            }
            own.apply(Event::Stop)?;
        }
        own.listen()?;
        own.look()?;
        own.apply(Event::Tick)?;
        let actions = own.record.run.next(now());
        own.save()?;
        if own.saved.run.has_ended() {
            return own.clear();
        }
        for action in actions {
            own.begin(action)?;
            own.pass();
        }
        thread::sleep(PACE);
    }
}

impl Conductor<'_> {
    /// A place where a test kills this process.
    fn pass(&self) {
        self.places.set(self.places.get() + 1);
        if std::env::var(KILL).ok().and_then(|n| n.parse().ok()) == Some(self.places.get()) {
            // It does not return.
            let _ = raise(Signal::SIGKILL);
        }
    }

    fn apply(&mut self, event: Event) -> Result<(), Problem> {
        self.record.run.apply(event, now()).map_err(failed)?;
        // Nothing that was begun on the way forward goes on while machines are taken back.
        if self.record.run.phase != Phase::Forward {
            self.script = None;
        }
        Ok(())
    }

    /// That it has ended is in the file when nothing holds its moments any more.
    fn save(&mut self) -> Result<(), Problem> {
        if self.record == self.saved || (self.record.run.has_ended() && !self.let_go()) {
            return Ok(());
        }
        self.pass();
        self.claim.save_plan(&self.record)?;
        self.saved = self.record.clone();
        self.pass();
        Ok(())
    }

    /// Sees to it that the moments of later steps stay.
    fn hold(&mut self) {
        if self.held || self.record.run.phase != Phase::Forward {
            return;
        }
        let exports = Exports::of(self.data);
        match self.moments.iter().try_for_each(|fork| exports.make_branch(fork)) {
            Ok(()) => self.held = true,
            Err(e) => tracing::warn!("plan {}: a moment cannot be held, that is tried again: {e}", self.record.run.id),
        }
        self.pass();
    }

    /// Whether nothing holds the moments any more.
    fn let_go(&self) -> bool {
        let exports = Exports::of(self.data);
        let gone = self.moments.iter().try_for_each(|fork| exports.drop_branch(fork));
        if let Err(e) = &gone {
            tracing::warn!("plan {}: a branch remains, its end is tried again: {e}", self.record.run.id);
            thread::sleep(ALIVE);
        }
        gone.is_ok()
    }

    /// Removes what people may have left in its folder, once it has ended.
    fn clear(&self) -> Result<(), Problem> {
        for name in [STOP, CONTINUE] {
            match std::fs::remove_file(name) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Problem::file(Path::new(name), &e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// What people want.
    fn listen(&mut self) -> Result<(), Problem> {
        if Path::new(STOP).exists() {
            self.apply(Event::Stop)?;
        }
        let Ok(token) = std::fs::read_to_string(CONTINUE) else { return Ok(()) };
        if self.record.run.token().as_deref() == Some(token.trim()) {
            self.apply(Event::Continue)?;
            self.save()?;
        }
        // One that names another action was given too late.
        Ok(std::fs::remove_file(CONTINUE)?)
    }

    fn begin(&mut self, action: Action) -> Result<(), Problem> {
        match action {
            Action::Start { at, machine, name } => match self.start(at, &machine, &name) {
                Ok(()) => Ok(()),
                Err(why) => self.apply(Event::Failed(at, why)),
            },
            Action::Script { at } => {
                let Some(Task::Script(path)) = self.record.run.task(at).cloned() else { return Ok(()) };
                match Script::start(at, &path, &self.record) {
                    Ok(script) => self.script = Some(script),
                    Err(e) => self.apply(Event::Failed(at, format!("it cannot be run: {e}")))?,
                }
                Ok(())
            }
            // Done by looking, again and again.
            Action::Undo { .. } => Ok(()),
        }
    }

    /// Makes the job of a machine, unless it is there.
    fn start(&self, at: At, machine: &str, name: &str) -> Result<(), String> {
        let text = |e: StoreError| e.to_string();
        let (job, claim) = match self.jobs.load(name) {
            // Made just before the process was killed: nobody has begun it.
            Ok(job) if job.phase == JobPhase::Planned => match self.jobs.claim(name).map_err(text)? {
                Some(claim) => (job, claim),
                None => return Ok(()),
            },
            Ok(_) => return Ok(()),
            Err(StoreError::NotFound(_)) => {
                let job = self.record.job(at.0, machine, name, now()).ok_or("the plan has no such machine")?;
                let claim = self.jobs.create(&job).map_err(text)?;
                (job, claim)
            }
            Err(e) => return Err(e.to_string()),
        };
        self.pass();
        if let Err(e) = keep::start(self.data, &claim, &job) {
            tracing::warn!(
                "no process can be started for job {name}, it is looked after like one whose process died: {e}"
            );
        }
        Ok(())
    }

    fn look(&mut self) -> Result<(), Problem> {
        if let Some((at, result)) = self.script.as_mut().and_then(|s| s.result().map(|r| (s.at, r))) {
            self.script = None;
            self.apply(result.map_or_else(|why| Event::Failed(at, why), |()| Event::Done(at)))?;
        } else if let Some(at) = self.script.as_ref().map(|s| s.at).filter(|at| self.record.run.is_overdue(*at, now()))
        {
            self.script = None;
            self.apply(Event::Failed(at, "it did not end in time".to_owned()))?;
        }
        // What an earlier life of this process has begun is begun again first: its job may not be there yet.
        let is_known = |part: &Part| part.is_told() || !matches!(part.state, State::Begun { .. });
        let machines: Vec<(At, State)> = self
            .record
            .run
            .parts()
            .filter(|(at, part)| matches!(at.1, Place::Machine(_)) && is_known(part))
            .map(|(at, part)| (at, part.state.clone()))
            .collect();
        let looks_after = self.looked.is_none_or(|at| at.elapsed() > ALIVE);
        if looks_after {
            self.looked = Some(Instant::now());
            self.hold();
        }
        for (at, state) in machines {
            let names = self.record.run.names(at);
            if looks_after {
                names.iter().for_each(|name| self.look_after(name));
            }
            let event = match (self.record.run.phase, state) {
                (Phase::Forward, State::Begun { .. }) => self.look_at(at, &names)?,
                (Phase::Forward, State::Done) => self.has_gone(at, &names),
                (Phase::Undoing, _) => self.take_back(at, &names)?,
                _ => None,
            };
            if let Some(event) = event {
                self.apply(event)?;
            }
        }
        Ok(())
    }

    fn look_after(&self, name: &str) {
        let source = Exports::of(self.data);
        match sweep_one(&self.jobs, name, &source, &|claim, job| keep::go_on(self.data, claim, job)) {
            Ok(_) => {}
            Err(SweepError::Store(StoreError::NotFound(_))) => {}
            Err(e) => tracing::warn!("job {name} is looked after again: {e}"),
        }
    }

    /// A machine that is being started. One that fails is taken back before it counts as failed: another attempt finds its disks free.
    fn look_at(&self, at: At, names: &[String]) -> Result<Option<Event>, Problem> {
        let Some(name) = names.last() else { return Ok(None) };
        let job = match self.jobs.load(name) {
            Ok(job) => job,
            Err(e) => return Ok(Some(Event::Failed(at, e.to_string()))),
        };
        let overdue = self.record.run.is_overdue(at, now());
        if job.committed.is_some() || (job.phase == JobPhase::Holding && job.outcome == Some(Outcome::Passed)) {
            return Ok(Some(Event::Done(at)));
        }
        if job.has_ended() {
            return Ok(Some(Event::Failed(at, why(&job, overdue))));
        }
        let broken = matches!(job.outcome, Some(Outcome::Failed(_))) || job.phase == JobPhase::Down;
        if overdue || broken {
            self.ends(&job)?;
        }
        Ok(None)
    }

    /// Has a job end, which finds that out for itself. It is asked once: a job that ends forgets what it was asked.
    fn ends(&self, job: &Job) -> Result<(), Problem> {
        let asked = self.jobs.folder_of(&job.id).map_err(failed)?.join("stop").exists();
        if job.is_ending() || asked {
            return Ok(());
        }
        self.jobs.ask_to_stop(&job.id).map_err(failed)
    }

    /// A machine that had passed and is not there any more.
    fn has_gone(&self, at: At, names: &[String]) -> Option<Event> {
        let job = self.jobs.load(names.last()?).ok()?;
        (job.has_ended() && job.committed.is_none()).then(|| Event::Gone(at, "it has ended".to_owned()))
    }

    /// Takes a machine back. One that somebody has committed meanwhile stays.
    fn take_back(&self, at: At, names: &[String]) -> Result<Option<Event>, Problem> {
        if !self.record.run.is_to_undo(at) {
            return Ok(None);
        }
        let mut gone = true;
        for name in names {
            match self.jobs.load(name) {
                Ok(job) if job.has_ended() || job.committed.is_some() => {}
                Ok(job) => {
                    gone = false;
                    self.ends(&job)?;
                }
                Err(StoreError::NotFound(_)) => {}
                Err(e) => return Err(failed(e)),
            }
        }
        Ok(gone.then_some(Event::Undone(at)))
    }
}

/// Why a job is no success.
fn why(job: &Job, overdue: bool) -> String {
    let check = job.results.iter().find_map(|r| match &r.verdict {
        Verdict::Failed(why) => Some(format!("check {}: {why}", r.check)),
        _ => None,
    });
    let outcome = || match &job.outcome {
        Some(Outcome::Failed(why)) => Some(why.clone()),
        _ => job.trouble.clone(),
    };
    check
        .or_else(outcome)
        .unwrap_or_else(|| if overdue { "it was not there in time" } else { "somebody ended it" }.to_owned())
}

/// Has the runs of plans go on that nobody does.
///
/// # Errors
/// If the jobs cannot be listed.
pub fn sweep_plans(data: &Path, jobs: &Jobs) -> Result<(), StoreError> {
    for id in jobs.ids()? {
        if let Err(e) = sweep_plan(data, jobs, &id) {
            tracing::warn!("plan {id} is looked after again: {e}");
        }
    }
    Ok(())
}

/// Has the run of a plan go on, if nobody does it.
///
/// # Errors
/// If it cannot be read, or no process started.
pub fn sweep_plan(data: &Path, jobs: &Jobs, id: &str) -> Result<(), Problem> {
    let is_open = || match jobs.load_plan(id) {
        Ok(record) => Ok(!record.run.has_ended()),
        Err(StoreError::NotFound(_)) => Ok(false),
        Err(e) => Err(failed(e)),
    };
    if !is_open()? {
        return Ok(());
    }
    let Some(claim) = jobs.claim(id).map_err(failed)? else { return Ok(()) };
    if is_open()? {
        keep::go_on_plan(data, &claim, id)?;
    }
    Ok(())
}
