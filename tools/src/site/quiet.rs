//! This machine's part in an app-consistent point of its group: quiet, frozen and thawed when mgmt says so.
//!
//! Every volume of which something says how has a thread that goes through its steps, and waits between them for the word of mgmt. If that does not
//! come in time, the thread goes on by itself: nothing stays frozen because mgmt is gone.

use super::app::{guard, leftover, shown};
use super::{Local, lock};
use afterimage_agent::Volume;
use afterimage_agent::app::{Context, Made, Moment, Otherwise, Recipe, Verdict, make_in_step};
use afterimage_mgmt::groups::VolumeApp;
use afterimage_mgmt::members::Quieted;
use afterimage_mgmt::protocol::{Code, Failure};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a machine that is quiet waits for the slowest of its group.
const PATIENCE: Duration = Duration::from_secs(300);
/// Points that may be under way.
const MOST: usize = 16;

/// How far a volume is.
#[derive(Debug)]
enum Stage {
    Begun,
    Quiet,
    Frozen,
    Over(Made),
}

/// What mgmt has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Word {
    Wait,
    Freeze,
    Thaw,
}

/// The volumes of one point.
#[derive(Debug)]
struct Set {
    state: Mutex<(Word, BTreeMap<String, Stage>)>,
    changed: Condvar,
}

impl Set {
    /// Notes how far a volume is, and waits for a word.
    fn arrive(&self, volume: &str, stage: Stage, word: Word, limit: Duration) -> Result<(), String> {
        let until = Instant::now() + limit;
        let mut state = lock(&self.state);
        state.1.insert(volume.to_owned(), stage);
        self.changed.notify_all();
        while state.0 < word {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err("mgmt did not say in time how it goes on".to_owned());
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Says a word, and waits until all volumes are so far. Each of them has limits of its own.
    fn say(&self, word: Word, there: impl Fn(&Stage) -> bool) {
        let mut state = lock(&self.state);
        state.0 = state.0.max(word);
        self.changed.notify_all();
        while !state.1.values().all(&there) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn is_over(&self) -> bool {
        lock(&self.state).1.values().all(|s| matches!(s, Stage::Over(_)))
    }

    /// What a volume's steps wait for.
    fn moment(&self, volume: &str, moment: Moment, hold: Duration) -> Result<(), String> {
        if moment == Moment::Freeze {
            return self.arrive(volume, Stage::Quiet, Word::Freeze, PATIENCE);
        }
        // Where nothing is frozen, the script alone has made it quiet.
        if lock(&self.state).0 == Word::Wait {
            self.arrive(volume, Stage::Quiet, Word::Freeze, PATIENCE)?;
        }
        self.arrive(volume, Stage::Frozen, Word::Thaw, hold)
    }
}

/// App-consistent points of this machine's group that are under way.
#[derive(Debug, Default)]
pub(super) struct Sets(Mutex<BTreeMap<String, Arc<Set>>>);

/// A volume, and what is done for it.
struct Part {
    volume: Arc<Volume>,
    recipe: Recipe,
}

/// What two volumes of one machine have in common is frozen once: by the first of them.
fn without_doubles(parts: &mut [Part]) {
    let (mut agents, mut mounts) = (Vec::new(), Vec::new());
    for part in parts {
        let recipe = &mut part.recipe;
        match &recipe.guest_agent {
            Some(socket) if agents.contains(socket) => recipe.guest_agent = None,
            Some(socket) => agents.push(socket.clone()),
            None => {}
        }
        recipe.mounts.retain(|m| !mounts.contains(m));
        mounts.extend(recipe.mounts.iter().cloned());
    }
}

impl Local {
    fn set(&self, id: &str) -> Result<Arc<Set>, Failure> {
        let found = lock(&self.quiet.0).get(id).cloned();
        found.ok_or_else(|| Failure::new(Code::NotFound, "nothing is quiet here for this point: this side began anew"))
    }

    /// Begins: what comes before freezing.
    ///
    /// # Errors
    /// If a volume has an app-consistent point under way, or the system refuses threads.
    pub fn quiet(self: &Arc<Self>, point: &str) -> Result<Quieted, Failure> {
        let mut parts = Vec::new();
        for (name, settings) in self.apps.settings() {
            if let Ok(volume) = self.protected(name) {
                parts.push(Part { volume, recipe: self.recipe_now(name, settings) });
            }
        }
        without_doubles(&mut parts);
        let begun: BTreeMap<String, Stage> = parts.iter().map(|p| (p.volume.name().to_owned(), Stage::Begun)).collect();
        let set = Arc::new(Set { state: Mutex::new((Word::Wait, begun)), changed: Condvar::new() });
        let id = uuid::Uuid::new_v4().to_string();
        {
            let mut sets = lock(&self.quiet.0);
            sets.retain(|_, set| !set.is_over());
            if sets.len() >= MOST {
                return Err(Failure::new(Code::Busy, "too many app-consistent points are under way"));
            }
            sets.insert(id.clone(), Arc::clone(&set));
        }
        let volumes = parts.len();
        for part in parts {
            let (site, of_thread, point) = (Arc::clone(self), Arc::clone(&set), point.to_owned());
            let name = part.volume.name().to_owned();
            let run = move || {
                let made = site.in_step(&part, &point, &of_thread);
                lock(&of_thread.state).1.insert(part.volume.name().to_owned(), Stage::Over(made));
                of_thread.changed.notify_all();
            };
            if let Err(e) = thread::Builder::new().name("app-point".to_owned()).spawn(run) {
                let made = failed(&format!("the system refuses a thread: {e}"));
                lock(&set.state).1.insert(name, Stage::Over(made));
            }
        }
        set.say(Word::Wait, |s| !matches!(s, Stage::Begun));
        Ok(Quieted { id, volumes })
    }

    /// One volume, in step with the others.
    fn in_step(&self, part: &Part, point: &str, set: &Set) -> Made {
        let name = part.volume.name();
        let Some(_turn) = self.apps.turn(name) else {
            return failed("another app-consistent point of it is being made");
        };
        let path = leftover(&self.data, name);
        let never = [self.data.clone(), part.volume.status().path];
        let context = Context { volume: name, point, leftover: &path, guard: &guard(), never: &never };
        let hold = part.recipe.hold_limit;
        let mut made = make_in_step(&part.recipe, context, &mut |moment| set.moment(name, moment, hold));
        // The point is the group's: where its marker comes without this volume being quiet, it is one as after a power cut.
        if made.verdict() == Verdict::Failed && part.recipe.otherwise == Otherwise::Crash {
            "crash".clone_into(&mut made.consistency);
        }
        made
    }

    /// Freezes, and says when that is done or has failed.
    ///
    /// # Errors
    /// If nothing of that name is under way.
    pub fn freeze(&self, id: &str) -> Result<Quieted, Failure> {
        let set = self.set(id)?;
        set.say(Word::Freeze, |s| matches!(s, Stage::Frozen | Stage::Over(_)));
        Ok(Quieted { id: id.to_owned(), volumes: lock(&set.state).1.len() })
    }

    /// Thaws, and says how everything went.
    ///
    /// # Errors
    /// As [`Local::freeze`].
    pub fn thaw(&self, id: &str) -> Result<Vec<VolumeApp>, Failure> {
        let set = self.set(id)?;
        set.say(Word::Thaw, |s| matches!(s, Stage::Over(_)));
        lock(&self.quiet.0).remove(id);
        let state = lock(&set.state);
        let each = state.1.iter().filter_map(|(volume, stage)| {
            let Stage::Over(made) = stage else { return None };
            let made = shown(&serde_json::to_string(made).ok()?)?;
            Some(VolumeApp { volume: volume.clone(), made })
        });
        Ok(each.collect())
    }
}

/// A volume that took no step.
fn failed(why: &str) -> Made {
    Made { consistency: "crash".to_owned(), reason: Some(why.to_owned()), frozen_ms: 0, steps: Vec::new() }
}
