//! Carrying out a plan, as a state machine: no I/O, no clock.
//!
//! ```text
//! step 1: before... -> machines, at the same time -> after... -> step 2: ... -> (a test: holding -> undoing) -> ended
//!            \______________________\________________________\______ a failure, a stop: undoing ____________^
//! ```
//!
//! [`Run::next`] says what is to be begun; whoever carries it out **saves the run first**, does it then, and tells what came of it with
//! [`Run::apply`]. So after a death at any instruction the file knows all that may have been begun, and [`Event::Lost`] says that
//! nobody is at it any more:
//!
//! | was begun | after the death |
//! |---|---|
//! | a machine | is started again under the same name: whoever starts it looks first whether it is there |
//! | a script | has failed, once: nobody knows how far it came. It is tried again if the step allows |
//! | a wait | goes on until the same instant |
//! | a manual action | still waits for people, until the same instant |
//! | taking a machine back | is done again |

mod look;
mod parts;

pub use parts::{Action, At, Event, Illegal, Outcome, Part, Phase, Place, State};

use super::file::{OnFailure, Plan, Step, Task};
use crate::units::Time;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A plan being carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its name.
    pub id: String,
    /// The plan, as it was when the run began.
    pub plan: Plan,
    /// For a test: how long machines stay in the end before they are taken back. Without it, they stay for good.
    pub test: Option<Duration>,
    /// What it is at.
    pub phase: Phase,
    /// How it ended, or will.
    pub outcome: Option<Outcome>,
    /// When the machines of a test are taken back.
    pub until: Option<Time>,
    /// All parts: of each step before, machines, after.
    parts: Vec<[Vec<Part>; 3]>,
}

impl Run {
    /// One that has not begun.
    #[must_use]
    pub fn new(id: String, plan: Plan, test: Option<Duration>) -> Run {
        let of = |n: usize| vec![Part::new(); n];
        let parts = plan.steps.iter().map(|s| [of(s.before.len()), of(s.machines.len()), of(s.after.len())]).collect();
        Run { id, plan, test, phase: Phase::Forward, outcome: None, until: None, parts }
    }

    /// What is to be begun now. **Save the run, then begin it.**
    pub fn next(&mut self, now: Time) -> Vec<Action> {
        let places = match self.phase {
            Phase::Forward => self.current(),
            Phase::Undoing => self.to_undo(),
            Phase::Holding | Phase::Ended => Vec::new(),
        };
        let undoing = self.phase == Phase::Undoing;
        let mut actions = Vec::new();
        for at in places {
            let Some(part) = self.part_mut(at).filter(|p| !p.told) else { continue };
            part.told = true;
            if !undoing && part.state == State::Waiting {
                part.state = State::Begun { since: now };
                part.attempts += 1;
            }
            actions.extend(self.action(at, undoing));
        }
        actions
    }

    fn action(&self, at: At, undoing: bool) -> Option<Action> {
        if undoing {
            return Some(Action::Undo { at, names: self.names(at) });
        }
        match (at.1, self.task(at)) {
            (Place::Machine(n), _) => {
                let machine = self.plan.steps.get(at.0)?.machines.get(n)?.clone();
                Some(Action::Start { at, machine, name: self.names(at).pop()? })
            }
            (_, Some(Task::Script(_))) => Some(Action::Script { at }),
            // Nobody has to do anything for these.
            (_, Some(Task::Wait(_) | Task::Manual(_)) | None) => None,
        }
    }

    /// Takes what happened.
    ///
    /// # Errors
    /// If it cannot have happened: a fault of the program.
    pub fn apply(&mut self, event: Event, now: Time) -> Result<(), Illegal> {
        match event {
            Event::Done(at) => self.ended(at, "the end of something", Ok(()))?,
            Event::Failed(at, why) => self.ended(at, "a failure", Err(why))?,
            Event::Gone(at, why) => {
                if self.phase == Phase::Forward && self.part(at).is_some_and(|p| p.state == State::Done) {
                    self.gives_up(at, why);
                }
            }
            Event::Undone(at) => {
                if !self.is_to_undo(at) {
                    return Err(self.illegal("the end of a machine"));
                }
                self.set(at, State::Undone);
            }
            Event::Continue => {
                let at = self.waits_for().map(|(at, _)| at).ok_or_else(|| self.illegal("a continuation"))?;
                self.set(at, State::Done);
            }
            Event::Stop => self.leave(Outcome::Stopped),
            Event::Lost => self.lost(),
            Event::Tick => {}
        }
        self.tick(now);
        Ok(())
    }

    fn illegal(&self, event: &str) -> Illegal {
        Illegal { run: self.id.clone(), event: event.to_owned(), phase: self.phase }
    }

    fn part_mut(&mut self, (step, place): At) -> Option<&mut Part> {
        let (kind, n) = place.index();
        self.parts.get_mut(step)?.get_mut(kind)?.get_mut(n)
    }

    fn set(&mut self, at: At, state: State) {
        if let Some(part) = self.part_mut(at) {
            part.state = state;
            part.told = false;
        }
    }

    fn ended(&mut self, at: At, what: &str, result: Result<(), String>) -> Result<(), Illegal> {
        // A run that was stopped meanwhile hears of what was still under way: it is of no account any more.
        if matches!(self.phase, Phase::Undoing | Phase::Ended) {
            return Ok(());
        }
        if self.phase != Phase::Forward || !self.part(at).is_some_and(Part::is_begun) {
            return Err(self.illegal(what));
        }
        match result {
            Ok(()) => self.set(at, State::Done),
            Err(why) => self.fails(at, why),
        }
        Ok(())
    }

    fn fails(&mut self, at: At, why: String) {
        let Some(retries) = self.plan.steps.get(at.0).map(|s| s.retries) else { return };
        let halted = self.is_halted();
        let Some(part) = self.part_mut(at) else { return };
        part.failed += 1;
        if part.failed <= retries && !halted {
            self.set(at, State::Waiting);
            return;
        }
        self.gives_up(at, why);
    }

    fn gives_up(&mut self, at: At, why: String) {
        let Some(Step { on_failure, name, .. }) = self.plan.steps.get(at.0).cloned() else { return };
        let what = self.label(at);
        let said = Outcome::Failed(format!("step {name}: {what}: {why}"));
        self.set(at, State::Failed { why });
        match on_failure {
            OnFailure::RollBack => self.leave(said),
            OnFailure::Stop => {
                self.outcome.get_or_insert(said);
                self.abandon_waits();
            }
            OnFailure::Continue => {
                self.outcome.get_or_insert(said);
            }
        }
    }

    /// Scripts that run are killed by whoever carries it out.
    fn abandon_scripts(&mut self) {
        let begun = self.parts().filter(|(_, p)| p.is_begun()).map(|(at, _)| at);
        let scripts: Vec<At> = begun.filter(|at| matches!(self.task(*at), Some(Task::Script(_)))).collect();
        for at in scripts {
            self.set(at, State::Failed { why: "it was killed, since the plan goes back".to_owned() });
        }
    }

    /// Nobody waits any more for what only takes time, or people.
    fn abandon_waits(&mut self) {
        let begun = self.parts().filter(|(_, p)| p.is_begun()).map(|(at, _)| at);
        let waits: Vec<At> =
            begun.filter(|at| matches!(self.task(*at), Some(Task::Wait(_) | Task::Manual(_)))).collect();
        waits.into_iter().for_each(|at| self.set(at, State::Waiting));
    }

    /// Goes back, unless it does already.
    fn leave(&mut self, outcome: Outcome) {
        if matches!(self.phase, Phase::Undoing | Phase::Ended) {
            return;
        }
        // A test that is stopped while its machines only stay has passed, or failed before.
        let outcome = if self.phase == Phase::Holding { Outcome::Passed } else { outcome };
        self.outcome.get_or_insert(outcome);
        self.phase = Phase::Undoing;
        self.abandon_scripts();
        self.abandon_waits();
        self.forget_told();
    }

    fn forget_told(&mut self) {
        self.parts.iter_mut().flatten().flatten().for_each(|p| p.told = false);
    }

    fn lost(&mut self) {
        self.forget_told();
        if self.phase != Phase::Forward {
            return;
        }
        for at in self.current() {
            let begun = self.part(at).is_some_and(Part::is_begun);
            if begun && matches!(self.task(at), Some(Task::Script(_))) {
                self.fails(at, "its process was killed while it ran".to_owned());
            }
        }
    }

    /// What follows without anybody doing anything.
    fn tick(&mut self, now: Time) {
        let due = self.phase == Phase::Forward && self.wakes().is_some_and(|at| at <= now);
        if let Some(at) = self.current().first().copied().filter(|_| due) {
            match self.task(at) {
                Some(Task::Manual(_)) => self.fails(at, "nobody did it in time".to_owned()),
                _ => self.set(at, State::Done),
            }
        }
        if self.phase == Phase::Forward && self.current().is_empty() {
            self.outcome.get_or_insert(Outcome::Passed);
            self.phase = if self.test.is_some() { Phase::Holding } else { Phase::Ended };
            self.until = self.test.map(|stay| now.after(stay));
        }
        if self.phase == Phase::Holding && self.until.is_some_and(|at| at <= now) {
            self.leave(Outcome::Passed);
        }
        if self.phase == Phase::Undoing && self.to_undo().is_empty() {
            self.phase = Phase::Ended;
        }
    }
}

#[cfg(test)]
mod kill_tests;
#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
