//! The member's side: what an agent does with its gates.
//!
//! | event | while | does | answers |
//! |---|---|---|---|
//! | Prepare, newer than all before | - | opens what is held, closes | - |
//! | Prepare, not newer | - | nothing | - |
//! | closed, all marked | closing | - | Held |
//! | could not close or mark | closing | - | NotHeld |
//! | closed | not closing any more | opens | - |
//! | time over | closing, held | opens | - |
//! | Release | held | opens | Stayed(yes) |
//! | Release | let go once already | - | the same again |
//! | Release | closing, opened by the timer, unknown | opens | Stayed(no) |
//! | the session ends | closing, held | opens | - |
//!
//! Between [`Deed::Close`] and its [`Step::Closed`] no other Prepare is looked at.

use super::Id;

/// What happens to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// mgmt asks for a barrier.
    Prepare(Id),
    /// All gates are closed and all volumes marked; or not, and then all gates are open again.
    Closed(Id, bool),
    /// The time that gates may be closed is over.
    Timer(Id),
    /// mgmt lets go.
    Release(Id),
    /// The session with mgmt has ended.
    Ended,
}

/// What a member has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Deed {
    /// Start the timer, close all gates, mark all volumes, and then say [`Step::Closed`].
    Close(Id),
    /// Open all gates.
    Open,
    /// Say this to mgmt.
    Say(Id, Said),
}

/// What a member says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Said {
    /// Gates are closed, volumes are marked.
    Held,
    /// They are not, and open.
    NotHeld,
    /// Whether gates were closed from Held until Release came. They are open now.
    Stayed(bool),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
enum State {
    #[default]
    Idle,
    Closing,
    Held,
    Opened {
        stayed: bool,
    },
}

/// One member, for one session with mgmt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Member {
    last: Option<Id>,
    state: State,
}

impl Member {
    /// Whether its gates are closed, or being closed.
    #[must_use]
    pub const fn is_busy(&self) -> bool {
        matches!(self.state, State::Closing | State::Held)
    }

    /// One row of the table. What is to be done is done in this order.
    pub fn step(&mut self, step: Step) -> Vec<Deed> {
        match step {
            Step::Prepare(id) => self.prepare(id),
            Step::Closed(id, done) => self.closed(id, done),
            Step::Timer(id) if self.last == Some(id) => self.open(false),
            Step::Timer(_) => Vec::new(),
            Step::Release(id) => self.release(id),
            Step::Ended => self.open(false),
        }
    }

    fn prepare(&mut self, id: Id) -> Vec<Deed> {
        if self.last.is_some_and(|last| id <= last) {
            return Vec::new();
        }
        let mut deeds = self.open(false);
        (self.last, self.state) = (Some(id), State::Closing);
        deeds.push(Deed::Close(id));
        deeds
    }

    fn closed(&mut self, id: Id, done: bool) -> Vec<Deed> {
        if self.last != Some(id) || self.state != State::Closing {
            // Given up meanwhile.
            return if done && self.state != State::Held { vec![Deed::Open] } else { Vec::new() };
        }
        self.state = if done { State::Held } else { State::Opened { stayed: false } };
        vec![Deed::Say(id, if done { Said::Held } else { Said::NotHeld })]
    }

    fn open(&mut self, stayed: bool) -> Vec<Deed> {
        if !self.is_busy() {
            return Vec::new();
        }
        self.state = State::Opened { stayed };
        vec![Deed::Open]
    }

    fn release(&mut self, id: Id) -> Vec<Deed> {
        if self.last != Some(id) {
            return vec![Deed::Say(id, Said::Stayed(false))];
        }
        let mut deeds = self.open(self.state == State::Held);
        deeds.push(Deed::Say(id, Said::Stayed(self.state == State::Opened { stayed: true })));
        deeds
    }
}
