//! What can be asked of a run; nothing here changes one.

use super::{At, Part, Phase, Place, Run, State};
use crate::plan::file::{OnFailure, Task};
use crate::units::Time;

impl Run {
    /// What stands there.
    #[must_use]
    pub fn part(&self, (step, place): At) -> Option<&Part> {
        let (kind, n) = place.index();
        self.parts.get(step)?.get(kind)?.get(n)
    }

    /// All parts, in the order of the plan.
    pub fn parts(&self) -> impl Iterator<Item = (At, &Part)> {
        let kinds = [Place::Before as fn(usize) -> Place, Place::Machine, Place::After];
        self.parts.iter().enumerate().flat_map(move |(step, all)| {
            all.iter()
                .zip(kinds)
                .flat_map(move |(parts, place)| parts.iter().enumerate().map(move |(n, part)| ((step, place(n)), part)))
        })
    }

    /// The task that stands there.
    #[must_use]
    pub fn task(&self, (step, place): At) -> Option<&Task> {
        let step = self.plan.steps.get(step)?;
        match place {
            Place::Before(n) => step.before.get(n),
            Place::After(n) => step.after.get(n),
            Place::Machine(_) => None,
        }
    }

    /// What stands there in a few words.
    #[must_use]
    pub fn label(&self, at: At) -> String {
        match (at.1, self.task(at)) {
            (Place::Machine(n), _) => {
                self.plan.steps.get(at.0).and_then(|s| s.machines.get(n)).cloned().unwrap_or_default()
            }
            (_, Some(task)) => task.to_string(),
            (_, None) => String::new(),
        }
    }

    /// The names under which the machine that stands there may have been started, the newest last: of each attempt its own, for ever.
    #[must_use]
    pub fn names(&self, at: At) -> Vec<String> {
        let (Place::Machine(n), Some(part)) = (at.1, self.part(at)) else { return Vec::new() };
        (1..=part.attempts).map(|attempt| format!("{}-s{}m{}a{attempt}", self.id, at.0 + 1, n + 1)).collect()
    }

    /// The manual action that is waited for.
    #[must_use]
    pub fn waits_for(&self) -> Option<(At, &str)> {
        let at = *self.current().first()?;
        match (self.phase, self.task(at)) {
            (Phase::Forward, Some(Task::Manual(text))) => Some((at, text)),
            _ => None,
        }
    }

    /// What names the manual action that is waited for, and no other: also not the same, tried again.
    #[must_use]
    pub fn token(&self) -> Option<String> {
        let (at, _) = self.waits_for()?;
        let (kind, n) = at.1.index();
        Some(format!("{}-{kind}-{n}-{}", at.0, self.part(at)?.failed))
    }

    /// When something changes by itself.
    #[must_use]
    pub fn wakes(&self) -> Option<Time> {
        match self.phase {
            Phase::Holding => self.until,
            Phase::Forward => {
                let at = *self.current().first()?;
                let State::Begun { since } = self.part(at)?.state else { return None };
                match self.task(at)? {
                    Task::Wait(span) => Some(since.after(span.0)),
                    Task::Manual(_) => Some(since.after(self.plan.steps.get(at.0)?.manual_limit.0)),
                    Task::Script(_) => None,
                }
            }
            Phase::Undoing | Phase::Ended => None,
        }
    }

    /// Whether a machine or a script has had all the time that it may take.
    #[must_use]
    pub fn is_overdue(&self, at: At, now: Time) -> bool {
        match (self.plan.steps.get(at.0), self.part(at).map(|p| &p.state)) {
            (Some(step), Some(State::Begun { since })) => since.after(step.limit.0) <= now,
            _ => false,
        }
    }

    /// Whether the machine that stands there is to be taken back now.
    #[must_use]
    pub fn is_to_undo(&self, at: At) -> bool {
        self.phase == Phase::Undoing && self.to_undo().contains(&at)
    }

    /// Whether nothing is left to do.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended)
    }

    /// Whether something has failed in a step that wants nothing more to be begun then.
    pub(super) fn is_halted(&self) -> bool {
        let stops = |at: At| self.plan.steps.get(at.0).is_some_and(|s| s.on_failure == OnFailure::Stop);
        self.parts().any(|(at, part)| matches!(part.state, State::Failed { .. }) && stops(at))
    }

    /// What is to be done now, in the first step that is not over: one task, or all machines. Of a run that is halted, only what is
    /// under way.
    pub(super) fn current(&self) -> Vec<At> {
        if self.is_halted() {
            return self.parts().filter(|(_, part)| part.is_begun()).map(|(at, _)| at).collect();
        }
        for (step, [before, machines, after]) in self.parts.iter().enumerate() {
            let first = |parts: &[Part]| parts.iter().position(|p| !p.is_over());
            if let Some(n) = first(before) {
                return vec![(step, Place::Before(n))];
            }
            let open = machines.iter().enumerate().filter(|(_, p)| !p.is_over());
            let open: Vec<At> = open.map(|(n, _)| (step, Place::Machine(n))).collect();
            if !open.is_empty() {
                return open;
            }
            if let Some(n) = first(after) {
                return vec![(step, Place::After(n))];
            }
        }
        Vec::new()
    }

    /// What is to be taken back now: machines of the last step that has any that may be there.
    pub(super) fn to_undo(&self) -> Vec<At> {
        for (step, [_, machines, _]) in self.parts.iter().enumerate().rev() {
            let there = machines.iter().enumerate().filter(|(_, p)| p.may_be_there());
            let there: Vec<At> = there.map(|(n, _)| (step, Place::Machine(n))).collect();
            if !there.is_empty() {
                return there;
            }
        }
        Vec::new()
    }
}
