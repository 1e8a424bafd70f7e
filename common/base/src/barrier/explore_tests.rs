//! The two machines together, in a small world: every interleaving for two and three members, random ones for 128, and breaks on purpose.
//!
//! A message may be delivered at any time or never, in any order, and some twice. Timers and deadlines fire whenever they like: no clock is trusted.
//! Members and mgmt die and come back. What must hold is not what the machines believe but what the gates did.

use super::*;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashSet};
use std::hash::{Hash, Hasher};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Break {
    None,
    /// A member says Held with its gate open.
    GateOpen,
    /// It says that it had stayed closed although the timer had opened it.
    YesAfterTimer,
    /// Release is sent when the first has closed.
    ReleaseEarly,
    /// It is decided before the second round.
    DecideEarly,
    /// The point is shown before its markers are durable.
    ShownEarly,
    /// Who is out is left out in silence.
    OutForgotten,
    /// A gate is not opened by its timer.
    NoTimer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Message {
    Prepare(Id),
    Release(Id),
    Said(Id, Said),
    Gone,
    Durable(Id),
    Lost(Id),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Agent {
    machine: Member,
    /// Gates are being closed.
    closing: Option<Id>,
    /// Gates are closed, and marked for this barrier.
    closed: Option<Id>,
    /// The marker of the barrier that runs is durable.
    durable: bool,
    /// Somebody has said what became of it.
    told: bool,
}

/// What gates did, for whom nobody but the test can ask.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Ghost {
    /// Which sets of members were closed together, as bits of bits.
    Sets(u8),
    /// When each closed and opened: for many members. Steps are counted.
    Times { now: u64, closed: Vec<u64>, opened: Vec<u64> },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    agents: Vec<Agent>,
    mgmt: Option<Coordinator>,
    id: Id,
    net: Vec<(usize, Message)>,
    ghost: Ghost,
    partial: bool,
    doubles: u8,
    deaths: u8,
    mgmt_deaths: u8,
    more_barriers: u8,
}

#[derive(Debug, Clone, Copy)]
enum Choice {
    Deliver(usize),
    Double(usize),
    Closed(usize, bool),
    Timer(usize),
    Deadline,
    Death(usize),
    MgmtDeath,
    Next,
    Durable(usize),
    Lost(usize),
}

type Checked = Result<(), String>;

impl World {
    fn new(members: usize, partial: bool, small: bool) -> World {
        let ghost =
            if small { Ghost::Sets(0) } else { Ghost::Times { now: 0, closed: Vec::new(), opened: Vec::new() } };
        World {
            agents: vec![Agent::default(); members],
            mgmt: None,
            id: Id { epoch: 1, number: 0 },
            net: Vec::new(),
            ghost,
            partial,
            doubles: 0,
            deaths: 0,
            mgmt_deaths: 0,
            more_barriers: 1,
        }
    }

    fn choices(&self) -> Vec<Choice> {
        let mut out: Vec<Choice> = (0..self.net.len()).map(Choice::Deliver).collect();
        if self.doubles > 0 {
            out.extend((0..self.net.len()).map(Choice::Double));
        }
        for (i, a) in self.agents.iter().enumerate() {
            if a.closing.is_some() {
                out.extend([Choice::Closed(i, true), Choice::Closed(i, false)]);
            }
            if a.machine.is_busy() {
                out.push(Choice::Timer(i));
            }
            if self.deaths > 0 {
                out.push(Choice::Death(i));
            }
            let waits = self.mgmt.as_ref().is_some_and(|m| m.is_settling() && m.parts()[i] == Part::Stayed);
            if waits && !a.told {
                out.extend([Choice::Durable(i), Choice::Lost(i)]);
            }
        }
        let runs = self.mgmt.as_ref().is_some_and(|m| m.outcome().is_none());
        if runs && self.mgmt.as_ref().is_some_and(|m| !m.is_settling()) {
            out.push(Choice::Deadline);
        }
        if runs && self.mgmt_deaths > 0 {
            out.push(Choice::MgmtDeath);
        }
        if !runs && self.more_barriers > 0 {
            out.push(Choice::Next);
        }
        out
    }

    fn go(&mut self, choice: Choice, bad: Break) -> Checked {
        match choice {
            Choice::Deliver(k) => {
                let (i, message) = self.net.remove(k);
                self.deliver(i, message, bad)?;
            }
            Choice::Double(k) => {
                self.doubles -= 1;
                self.net.push(self.net[k]);
            }
            Choice::Closed(i, done) => {
                let Some(id) = self.agents[i].closing.take() else { return Ok(()) };
                if done && bad != Break::GateOpen {
                    self.agents[i].closed = Some(id);
                    self.note_closed(i, id);
                }
                self.member(i, Step::Closed(id, done));
            }
            Choice::Timer(i) => {
                let id = self.agents[i].closed.or(self.agents[i].closing).unwrap_or(self.id);
                if bad == Break::YesAfterTimer {
                    // The gate opens, and the machine is not told.
                    self.open(i);
                } else if bad != Break::NoTimer {
                    self.member(i, Step::Timer(id));
                }
            }
            Choice::Deadline => self.coordinate(Event::Deadline, bad)?,
            Choice::Death(i) => {
                self.deaths -= 1;
                self.open(i);
                // The history stays what it is; what was on its way to it is gone.
                self.agents[i] =
                    Agent { durable: self.agents[i].durable, told: self.agents[i].told, ..Agent::default() };
                self.net.retain(|(to, m)| *to != i || !matches!(m, Message::Prepare(_) | Message::Release(_)));
                self.net.push((i, Message::Gone));
            }
            Choice::MgmtDeath => {
                self.mgmt_deaths -= 1;
                self.mgmt = None;
                self.net.clear();
                for i in 0..self.agents.len() {
                    self.member(i, Step::Ended);
                    self.agents[i].machine = Member::default();
                    self.agents[i].closing = None;
                }
                self.net.clear();
                self.id = Id { epoch: self.id.epoch + 1, number: 0 };
            }
            Choice::Next => self.begin(bad)?,
            Choice::Durable(i) => {
                (self.agents[i].durable, self.agents[i].told) = (true, true);
                self.net.push((i, Message::Durable(self.id)));
            }
            Choice::Lost(i) => {
                self.agents[i].told = true;
                self.net.push((i, Message::Lost(self.id)));
            }
        }
        self.forget();
        self.note();
        Ok(())
    }

    /// Drops what changes nothing any more, whenever it is delivered: otherwise worlds differ in rubbish only.
    fn forget(&mut self) {
        let (id, mgmt) = (self.id, &self.mgmt);
        let runs = mgmt.as_ref().is_some_and(|m| m.outcome().is_none());
        let second = mgmt.as_ref().is_some_and(Coordinator::is_releasing);
        let third = mgmt.as_ref().is_some_and(Coordinator::is_settling);
        self.net.retain(|(_, message)| match message {
            Message::Prepare(_) | Message::Release(_) => true,
            Message::Said(of, Said::Held | Said::NotHeld) => *of == id && runs && !second && !third,
            Message::Said(of, Said::Stayed(_)) => *of == id && runs && !third,
            Message::Durable(of) | Message::Lost(of) => *of == id && third,
            Message::Gone => runs && !third,
        });
    }

    fn begin(&mut self, bad: Break) -> Checked {
        self.more_barriers -= 1;
        self.id.number += 1;
        let n = self.agents.len();
        self.agents.iter_mut().for_each(|a| (a.durable, a.told) = (false, false));
        self.ghost = match self.ghost {
            Ghost::Sets(_) => Ghost::Sets(0),
            Ghost::Times { .. } => Ghost::Times { now: 1, closed: vec![0; n], opened: vec![0; n] },
        };
        let (coordinator, actions) = Coordinator::new(&vec![true; n], self.partial);
        self.mgmt = Some(coordinator);
        self.act(actions, bad)
    }

    fn member(&mut self, i: usize, step: Step) {
        for deed in self.agents[i].machine.step(step) {
            match deed {
                Deed::Close(id) => self.agents[i].closing = Some(id),
                Deed::Open => self.open(i),
                Deed::Say(id, said) => self.net.push((i, Message::Said(id, said))),
            }
        }
    }

    fn deliver(&mut self, i: usize, message: Message, bad: Break) -> Checked {
        let current = |id: Id| id == self.id;
        match message {
            Message::Prepare(_) if self.agents[i].closing.is_some() => self.net.push((i, message)),
            Message::Prepare(id) => self.member(i, Step::Prepare(id)),
            Message::Release(id) => self.member(i, Step::Release(id)),
            Message::Gone => self.coordinate(Event::Gone(i), bad)?,
            Message::Said(id, Said::Held) if current(id) => {
                self.coordinate(Event::Held(i), bad)?;
                if bad == Break::ReleaseEarly {
                    for other in 0..self.agents.len() {
                        self.coordinate(Event::Held(other), bad)?;
                    }
                }
            }
            Message::Said(id, Said::NotHeld) if current(id) => self.coordinate(Event::NotHeld(i), bad)?,
            Message::Said(id, Said::Stayed(yes)) if current(id) => self.coordinate(Event::Stayed(i, yes), bad)?,
            Message::Durable(id) if current(id) => self.coordinate(Event::Durable(i), bad)?,
            Message::Lost(id) if current(id) => self.coordinate(Event::Lost(i), bad)?,
            _ => {}
        }
        Ok(())
    }

    fn coordinate(&mut self, event: Event, bad: Break) -> Checked {
        let Some(mgmt) = &mut self.mgmt else { return Ok(()) };
        let actions = mgmt.step(event);
        self.act(actions, bad)
    }

    fn act(&mut self, actions: Vec<Action>, bad: Break) -> Checked {
        let released = actions.iter().any(|a| matches!(a, Action::Release(_)));
        for action in actions {
            match action {
                Action::Prepare(i) => self.net.push((i, Message::Prepare(self.id))),
                Action::Release(i) => self.net.push((i, Message::Release(self.id))),
                Action::Decide => {
                    self.check_decision()?;
                    if bad == Break::ShownEarly {
                        for i in 0..self.agents.len() {
                            self.coordinate(Event::Durable(i), bad)?;
                        }
                    }
                }
                Action::End(outcome) => self.check_end(outcome, bad)?,
            }
        }
        if released && bad == Break::DecideEarly {
            for i in 0..self.agents.len() {
                self.coordinate(Event::Stayed(i, true), bad)?;
            }
        }
        Ok(())
    }

    fn taking_part(&self) -> Vec<usize> {
        let parts = self.mgmt.as_ref().map_or(&[][..], Coordinator::parts);
        let within = |p: &Part| matches!(p, Part::Stayed | Part::Durable);
        (0..parts.len()).filter(|i| within(&parts[*i])).collect()
    }

    fn check_decision(&self) -> Checked {
        let who = self.taking_part();
        if let Some(i) = who.iter().find(|i| self.agents[**i].closed == Some(self.id)) {
            return Err(format!("decided while member {i} waits"));
        }
        self.check_instant(&who)
    }

    /// There was one instant at which all of them were closed.
    fn check_instant(&self, who: &[usize]) -> Checked {
        let fine = match &self.ghost {
            Ghost::Sets(sets) => {
                let need = who.iter().fold(0u8, |m, i| m | 1 << i);
                (0..8u8).any(|set| sets & 1 << set != 0 && set & need == need)
            }
            Ghost::Times { closed, opened, .. } => {
                let last = who.iter().map(|i| closed[*i]).max();
                let first = who.iter().map(|i| if opened[*i] == 0 { u64::MAX } else { opened[*i] }).min();
                who.iter().all(|i| closed[*i] != 0) && last < first
            }
        };
        if fine { Ok(()) } else { Err(format!("never were the gates of {who:?} closed together")) }
    }

    fn check_end(&self, outcome: Outcome, bad: Break) -> Checked {
        if outcome == Outcome::Failed {
            return Ok(());
        }
        let parts = self.mgmt.as_ref().map_or(&[][..], Coordinator::parts);
        let who: Vec<usize> = (0..parts.len()).filter(|i| parts[*i] == Part::Durable).collect();
        self.check_instant(&who)?;
        if let Some(i) = who.iter().find(|i| !self.agents[**i].durable) {
            return Err(format!("shown, and the marker of member {i} is not durable"));
        }
        let shown = if bad == Break::OutForgotten { Outcome::Complete } else { outcome };
        match (shown, who.len() == parts.len()) {
            (Outcome::Complete, false) => Err("complete, and somebody is missing".into()),
            (Outcome::Partial, true) => Err("partial, and nobody is missing".into()),
            (Outcome::Partial, _) if !self.partial => Err("partial, and nobody wanted that".into()),
            _ => Ok(()),
        }
    }

    fn open(&mut self, i: usize) {
        if self.agents[i].closed.take() == Some(self.id)
            && let Ghost::Times { now, opened, .. } = &mut self.ghost
        {
            opened[i] = *now;
        }
    }

    fn note_closed(&mut self, i: usize, id: Id) {
        if id == self.id
            && let Ghost::Times { now, closed, opened } = &mut self.ghost
        {
            (closed[i], opened[i]) = (*now, 0);
        }
    }

    fn note(&mut self) {
        let id = self.id;
        match &mut self.ghost {
            Ghost::Sets(sets) => {
                let closed = |(i, a): (usize, &Agent)| if a.closed == Some(id) { 1u8 << i } else { 0 };
                *sets |= 1 << self.agents.iter().enumerate().map(closed).sum::<u8>();
            }
            Ghost::Times { now, .. } => *now += 1,
        }
    }

    /// Whatever has happened: when the timers are over nobody waits, and the barrier has been decided.
    fn check_rest(&self, bad: Break) -> Checked {
        let mut rest = self.clone();
        // That one is about what is said, not about who waits.
        let bad = if bad == Break::YesAfterTimer { Break::None } else { bad };
        for i in 0..rest.agents.len() {
            rest.go(Choice::Timer(i), bad)?;
            if rest.agents[i].closing.is_some() {
                rest.go(Choice::Closed(i, true), bad)?;
            }
        }
        for _ in 0..2 {
            rest.coordinate(Event::Deadline, bad)?;
        }
        if let Some(i) = rest.agents.iter().position(|a| a.closed.is_some()) {
            return Err(format!("member {i} waits for ever"));
        }
        match &rest.mgmt {
            Some(m) if m.outcome().is_none() && !m.is_settling() => Err("the barrier never ends".into()),
            _ => Ok(()),
        }
    }

    fn key(&self) -> u64 {
        let mut same = self.clone();
        same.net.sort_unstable();
        let mut hasher = DefaultHasher::new();
        same.hash(&mut hasher);
        hasher.finish()
    }
}

/// What an exploration saw.
#[derive(Debug, Default)]
struct Seen {
    states: usize,
    outcomes: BTreeSet<Outcome>,
}

/// Goes through all that can happen, each state once.
fn explore(start: World, bad: Break) -> Result<Seen, String> {
    let mut seen = HashSet::from([start.key()]);
    let mut open = vec![start];
    let mut out = Seen::default();
    while let Some(world) = open.pop() {
        out.outcomes.extend(world.mgmt.as_ref().and_then(Coordinator::outcome));
        world.check_rest(bad)?;
        if world.more_barriers == 0 && world.mgmt.as_ref().is_some_and(|m| m.outcome().is_some()) {
            continue;
        }
        for choice in world.choices() {
            let mut next = world.clone();
            next.go(choice, bad).map_err(|e| format!("{e}: after {choice:?} in {world:?}"))?;
            if seen.insert(next.key()) {
                open.push(next);
            }
        }
    }
    out.states = seen.len();
    Ok(out)
}

/// Two members, two barriers one after the other, everything at once.
fn two(partial: bool) -> World {
    World { doubles: 1, deaths: 1, mgmt_deaths: 1, more_barriers: 2, ..World::new(2, partial, true) }
}

/// A break needs no more than this.
fn bare() -> World {
    World { deaths: 1, ..World::new(2, true, true) }
}

/// Three members, one barrier.
fn three(partial: bool) -> World {
    World { deaths: 1, ..World::new(3, partial, true) }
}

#[test]
fn every_interleaving_of_two_members_keeps_to_one_instant() {
    let whole = explore(two(false), Break::None).unwrap();
    assert_eq!(whole.outcomes, BTreeSet::from([Outcome::Complete, Outcome::Failed]));
    let part = explore(two(true), Break::None).unwrap();
    assert_eq!(part.outcomes, BTreeSet::from([Outcome::Complete, Outcome::Partial, Outcome::Failed]));
    println!("{} and {} states", whole.states, part.states);
}

#[test]
fn every_interleaving_of_three_members_keeps_to_one_instant() {
    for world in [three(false), three(true)] {
        let seen = explore(world, Break::None).unwrap();
        println!("{} states", seen.states);
        assert!(seen.outcomes.contains(&Outcome::Complete) && seen.outcomes.contains(&Outcome::Failed));
    }
}

#[test]
fn i7_every_break_of_a_barrier_is_seen() {
    for (bad, says) in [
        (Break::GateOpen, "closed together"),
        (Break::YesAfterTimer, "closed together"),
        (Break::ReleaseEarly, "closed together"),
        (Break::DecideEarly, "while member"),
        (Break::ShownEarly, "not durable"),
        (Break::OutForgotten, "somebody is missing"),
        (Break::NoTimer, "waits for ever"),
    ] {
        let error = explore(bare(), bad).expect_err(&format!("{bad:?} was not seen"));
        assert!(error.contains(says), "{bad:?}: {error}");
    }
}

struct Chance(u64);

impl Chance {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap_or(0) % n
    }
}

/// One barrier of 128 members. What goes wrong is rare enough for points to be had.
fn simulate(seed: u64, bad: Break) -> Result<Option<Outcome>, String> {
    let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let start = World::new(128, chance.below(2) == 0, false);
    let mut world = World { doubles: 3, deaths: u8::from(chance.below(3) == 0), ..start };
    let trouble = [0, 200, 2000][chance.below(3)];
    world.go(Choice::Next, bad)?;
    for _ in 0..20_000 {
        let choices = world.choices();
        let Some(choice) = (!choices.is_empty()).then(|| choices[chance.below(choices.len())]) else { break };
        let rare = matches!(
            choice,
            Choice::Timer(_) | Choice::Deadline | Choice::Death(_) | Choice::Closed(_, false) | Choice::Lost(_)
        );
        if rare && (trouble == 0 || chance.below(trouble) != 0) {
            continue;
        }
        world.go(choice, bad).map_err(|e| format!("seed {seed}: {e}"))?;
        if world.mgmt.as_ref().is_some_and(|m| m.outcome().is_some()) {
            break;
        }
    }
    world.check_rest(bad)?;
    Ok(world.mgmt.as_ref().and_then(Coordinator::outcome))
}

#[test]
fn random_barriers_of_128_members_keep_to_one_instant() {
    let outcomes: Vec<_> = (1..=120).map(|seed| simulate(seed, Break::None).unwrap()).collect();
    for want in [Outcome::Complete, Outcome::Partial, Outcome::Failed] {
        let n = outcomes.iter().filter(|o| **o == Some(want)).count();
        assert!(n > 2, "only {n} of 120 ended {want:?}");
    }
    for bad in [Break::GateOpen, Break::ReleaseEarly, Break::DecideEarly, Break::ShownEarly, Break::YesAfterTimer] {
        let caught = (1..=60).filter(|seed| simulate(*seed, bad).is_err()).count();
        assert!(caught > 0, "{bad:?} was not seen");
    }
}
