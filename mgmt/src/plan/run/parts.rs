//! What a run is made of: its parts and how far each is, what is to be begun, what can happen.

use crate::units::Time;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How far something is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum State {
    /// Not yet its turn.
    Waiting,
    /// At it.
    Begun {
        /// Since.
        since: Time,
    },
    /// It went well.
    Done,
    /// It did not, also when it was tried again.
    Failed {
        /// Why.
        why: String,
    },
    /// It was taken back.
    Undone,
}

/// A machine or a task in a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// How far it is.
    #[serde(flatten)]
    pub state: State,
    /// How often it has failed.
    #[serde(default)]
    pub failed: u32,
    /// How often it was begun.
    #[serde(default)]
    pub attempts: u32,
    /// Told to whoever carries it out, in this life of the process.
    #[serde(skip)]
    pub(super) told: bool,
}

impl Part {
    pub(super) const fn new() -> Part {
        Part { state: State::Waiting, failed: 0, attempts: 0, told: false }
    }

    /// Whether whoever carries it out was told of it, in this life of the process. Before that, nobody has looked what an earlier life
    /// has left of it.
    #[must_use]
    pub const fn is_told(&self) -> bool {
        self.told
    }

    /// Whether nothing of it is left to be done.
    pub(super) const fn is_over(&self) -> bool {
        matches!(self.state, State::Done | State::Failed { .. } | State::Undone)
    }

    /// Whether somebody is at it.
    pub(super) const fn is_begun(&self) -> bool {
        matches!(self.state, State::Begun { .. })
    }

    /// For a machine: whether something of it may be on this host. One that never began is not, and one that was taken back.
    pub(super) const fn may_be_there(&self) -> bool {
        self.attempts > 0 && !matches!(self.state, State::Undone)
    }
}

/// Where in the plan something stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// A task before the machines of its step.
    Before(usize),
    /// A machine.
    Machine(usize),
    /// A task behind the machines.
    After(usize),
}

/// Step and place.
pub type At = (usize, Place);

/// What is to be begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Start this machine under this name, if it is not there under it, and tell whether it passes its checks.
    Start {
        /// Where it stands.
        at: At,
        /// The machine.
        machine: String,
        /// Of this attempt, for ever.
        name: String,
    },
    /// Run this program.
    Script {
        /// Where it stands.
        at: At,
    },
    /// Take a machine back: all of its attempts.
    Undo {
        /// Where it stands.
        at: At,
        /// The names of its attempts.
        names: Vec<String>,
    },
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// What stands there went well.
    Done(At),
    /// It did not.
    Failed(At, String),
    /// A machine that had passed its checks has ended by itself.
    Gone(At, String),
    /// A machine is gone.
    Undone(At),
    /// Somebody did the manual action that is waited for.
    Continue,
    /// Somebody wants the plan to end.
    Stop,
    /// Nobody is at it any more: the process died.
    Lost,
    /// Time has passed.
    Tick,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "outcome", content = "why")]
pub enum Outcome {
    /// All went well.
    Passed,
    /// Something failed; what is said is the first.
    Failed(String),
    /// Somebody stopped it.
    Stopped,
}

/// What a run is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Its steps.
    Forward,
    /// All is done; machines stay for their time to live.
    Holding,
    /// Machines are taken back.
    Undoing,
    /// Nothing is left to do.
    Ended,
}

/// Something that cannot have happened.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("run {run} of a plan: {event} cannot happen while it is {phase:?}")]
pub struct Illegal {
    pub(super) run: String,
    pub(super) event: String,
    pub(super) phase: Phase,
}

impl Place {
    pub(super) const fn index(self) -> (usize, usize) {
        match self {
            Place::Before(n) => (0, n),
            Place::Machine(n) => (1, n),
            Place::After(n) => (2, n),
        }
    }
}
