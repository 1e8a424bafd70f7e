//! mgmt's side of one barrier.
//!
//! | phase | ends when | then |
//! |---|---|---|
//! | preparing | every member has closed or is out | Release to all; nobody left, or somebody out who must not be: failed |
//! | releasing | every member has said whether it had stayed closed, or is out | the decision: held by these, or failed |
//! | settling | every marker is durable or lost | complete, partial or failed |
//!
//! A member is out when it is away, says no, dies or is late. Without leave to be partial the first who is out ends the barrier; all gates are let go
//! at once.

/// Why a member is no part of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Why {
    /// It had no session when the barrier began.
    Away,
    /// It could not close its gates, or a volume could not be marked.
    Refused,
    /// Its session ended.
    Gone,
    /// It had not closed in time.
    Late,
    /// Its gates had opened before it was let go.
    Opened,
    /// It did not say in time whether they had.
    Silent,
    /// A marker is not in the history of its volume: that began anew.
    Lost,
}

/// How a member stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// It was asked to close.
    Asked,
    /// It has closed.
    Held,
    /// It had stayed closed until it was let go.
    Stayed,
    /// And all of its markers are durable.
    Durable,
    /// It is no part of the point.
    Out(Why),
}

/// How a barrier ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// A point of all members.
    Complete,
    /// A point of those who are not out.
    Partial,
    /// No point.
    Failed,
}

/// What the coordinator hears. Members are named by their place in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Event {
    /// A member has closed and marked.
    Held(usize),
    /// It could not.
    NotHeld(usize),
    /// It was let go, and says whether it had stayed closed until then.
    Stayed(usize, bool),
    /// Its session has ended.
    Gone(usize),
    /// The time for this phase is over.
    Deadline,
    /// All markers of the member are durable at their appliances.
    Durable(usize),
    /// One of them never will be.
    Lost(usize),
}

/// What the coordinator does, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Ask a member to close.
    Prepare(usize),
    /// Let a member go.
    Release(usize),
    /// All gates were closed at one instant, and are open again: those who are [`Part::Stayed`]. To be kept; not a point yet.
    Decide,
    /// It is over.
    End(Outcome),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Phase {
    Preparing,
    Releasing,
    Settling,
    Over(Outcome),
}

/// One barrier.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Coordinator {
    parts: Vec<Part>,
    partial: bool,
    phase: Phase,
}

/// How a decided barrier ends, if that can be said yet. All parts are [`Part::Stayed`], [`Part::Durable`] or out.
#[must_use]
pub fn settle(parts: &[Part], partial: bool) -> Option<Outcome> {
    let out = parts.iter().any(|p| matches!(p, Part::Out(_)));
    if out && !partial {
        return Some(Outcome::Failed);
    }
    if parts.iter().any(|p| !matches!(p, Part::Durable | Part::Out(_))) {
        return None;
    }
    Some(match (out, parts.contains(&Part::Durable)) {
        (false, true) => Outcome::Complete,
        (true, true) => Outcome::Partial,
        (_, false) => Outcome::Failed,
    })
}

impl Coordinator {
    /// A barrier of as many members as `here` has entries, which say who has a session. `partial`: a point of some is wanted if not
    /// all can be had.
    #[must_use]
    pub fn new(here: &[bool], partial: bool) -> (Coordinator, Vec<Action>) {
        let parts: Vec<Part> = here.iter().map(|h| if *h { Part::Asked } else { Part::Out(Why::Away) }).collect();
        let mut new = Coordinator { parts, partial, phase: Phase::Preparing };
        if !new.is_hopeful() {
            // Nobody's writes wait for what cannot be.
            return (Coordinator { phase: Phase::Over(Outcome::Failed), ..new }, vec![Action::End(Outcome::Failed)]);
        }
        let mut actions: Vec<Action> = new.who(Part::Asked).map(Action::Prepare).collect();
        actions.extend(new.advance());
        (new, actions)
    }

    /// How the members stand.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The end, if it has come.
    #[must_use]
    pub const fn outcome(&self) -> Option<Outcome> {
        match self.phase {
            Phase::Over(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// Whether all have been let go.
    #[must_use]
    pub const fn is_releasing(&self) -> bool {
        matches!(self.phase, Phase::Releasing)
    }

    /// Whether it was decided, and markers are waited for.
    #[must_use]
    pub const fn is_settling(&self) -> bool {
        matches!(self.phase, Phase::Settling)
    }

    fn who(&self, part: Part) -> impl Iterator<Item = usize> + '_ {
        self.parts.iter().enumerate().filter(move |(_, p)| **p == part).map(|(i, _)| i)
    }

    fn is_hopeful(&self) -> bool {
        let out = self.parts.iter().filter(|p| matches!(p, Part::Out(_))).count();
        out < self.parts.len() && (out == 0 || self.partial)
    }

    /// One event.
    pub fn step(&mut self, event: Event) -> Vec<Action> {
        if self.outcome().is_some() {
            return Vec::new();
        }
        match event {
            Event::Held(i) => self.set(i, Phase::Preparing, Part::Asked, Part::Held),
            Event::NotHeld(i) => self.set(i, Phase::Preparing, Part::Asked, Part::Out(Why::Refused)),
            Event::Stayed(i, true) => self.set(i, Phase::Releasing, Part::Held, Part::Stayed),
            Event::Stayed(i, false) => self.set(i, Phase::Releasing, Part::Held, Part::Out(Why::Opened)),
            Event::Gone(i) => {
                self.set(i, Phase::Preparing, Part::Asked, Part::Out(Why::Gone));
                self.set(i, Phase::Preparing, Part::Held, Part::Out(Why::Gone));
                self.set(i, Phase::Releasing, Part::Held, Part::Out(Why::Gone));
            }
            Event::Deadline => {
                for i in 0..self.parts.len() {
                    self.set(i, Phase::Preparing, Part::Asked, Part::Out(Why::Late));
                    self.set(i, Phase::Releasing, Part::Held, Part::Out(Why::Silent));
                }
            }
            Event::Durable(i) => self.set(i, Phase::Settling, Part::Stayed, Part::Durable),
            Event::Lost(i) => self.set(i, Phase::Settling, Part::Stayed, Part::Out(Why::Lost)),
        }
        self.advance()
    }

    fn set(&mut self, i: usize, phase: Phase, from: Part, to: Part) {
        if self.phase == phase
            && let Some(part) = self.parts.get_mut(i)
            && *part == from
        {
            *part = to;
        }
    }

    /// Goes on as far as it can.
    fn advance(&mut self) -> Vec<Action> {
        match self.phase {
            Phase::Preparing if !self.is_hopeful() => self.give_up(),
            Phase::Preparing if self.who(Part::Asked).next().is_none() => {
                self.phase = Phase::Releasing;
                self.release_all()
            }
            Phase::Releasing if self.who(Part::Held).next().is_none() => {
                if self.is_hopeful() {
                    self.phase = Phase::Settling;
                    return vec![Action::Decide];
                }
                self.end(Outcome::Failed)
            }
            Phase::Settling => settle(&self.parts, self.partial).map_or_else(Vec::new, |o| self.end(o)),
            _ => Vec::new(),
        }
    }

    /// Everybody who may have closed is let go.
    fn release_all(&self) -> Vec<Action> {
        let closed = |p: &Part| matches!(p, Part::Asked | Part::Held | Part::Out(Why::Late));
        self.parts.iter().enumerate().filter(|(_, p)| closed(p)).map(|(i, _)| Action::Release(i)).collect()
    }

    fn give_up(&mut self) -> Vec<Action> {
        let mut actions = self.release_all();
        actions.extend(self.end(Outcome::Failed));
        actions
    }

    fn end(&mut self, outcome: Outcome) -> Vec<Action> {
        self.phase = Phase::Over(outcome);
        vec![Action::End(outcome)]
    }
}
