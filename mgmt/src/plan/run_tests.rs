use super::*;
use std::collections::{BTreeSet, HashSet};

const NOW: Time = Time(1_000_000_000_000);

fn plan(on_failure: &str) -> Plan {
    let text = format!(
        "version = 1\nname = \"shop\"\n\
         [[step]]\nname = \"one\"\nmachines = [\"a\", \"b\"]\nretries = 1\non-failure = \"{on_failure}\"\n\
         before = [{{ script = \"/bin/true\" }}]\nafter = [{{ manual = \"look\" }}]\n\
         [[step]]\nname = \"two\"\nmachines = [\"c\"]\non-failure = \"{on_failure}\"\nafter = [{{ wait = \"30s\" }}]\n"
    );
    Plan::parse(&text).unwrap()
}

/// A run, what its file says, what is under way (and whether it has had its effect), and what is on the host.
#[derive(Clone)]
struct World {
    run: Run,
    saved: String,
    under_way: Vec<(Action, bool)>,
    there: BTreeSet<String>,
    crashes: u32,
    stops: u32,
    ends: u32,
    now: Time,
}

impl World {
    fn new(run: Run) -> World {
        let saved = serde_json::to_string(&run).unwrap();
        World { run, saved, under_way: vec![], there: BTreeSet::new(), crashes: 1, stops: 1, ends: 1, now: NOW }
    }

    fn key(&self) -> String {
        let told: Vec<bool> = self.run.parts.iter().flatten().flatten().map(|p| p.told).collect();
        let run = serde_json::to_string(&self.run).unwrap();
        let left = [self.crashes, self.stops, self.ends];
        format!("{run}{told:?}{}{:?}{:?}{left:?}", self.saved, self.under_way, self.there)
    }

    fn save(&mut self) {
        self.saved = serde_json::to_string(&self.run).unwrap();
    }

    fn apply(&mut self, event: Event) {
        let before = self.run.phase;
        self.run.apply(event, self.now).unwrap();
        if before != self.run.phase && self.run.phase != Phase::Holding {
            // Whoever carries it out ends what is under way before it goes back.
            self.under_way.clear();
        }
        self.save();
    }

    /// Everything that can happen next.
    fn successors(&self, saves: bool) -> Vec<World> {
        let mut all = Vec::new();
        let mut add = |change: &dyn Fn(&mut World)| {
            let mut next = self.clone();
            change(&mut next);
            all.push(next);
        };
        let mut begun = self.clone();
        let actions = begun.run.next(self.now);
        if !actions.is_empty() {
            begun.under_way.extend(actions.into_iter().map(|a| (a, false)));
            if saves {
                begun.save();
            }
            add(&|w| *w = begun.clone());
        }
        for (n, (action, performed)) in self.under_way.iter().enumerate() {
            if !performed {
                add(&|w| {
                    w.under_way[n].1 = true;
                    match action {
                        Action::Start { name, .. } => w.there.extend([name.clone()]),
                        Action::Undo { names, .. } => w.there.retain(|n| !names.contains(n)),
                        Action::Script { .. } => {}
                    }
                });
                continue;
            }
            let without = |w: &mut World| drop(w.under_way.remove(n));
            match action {
                Action::Undo { at, .. } => add(&|w| {
                    without(w);
                    w.apply(Event::Undone(*at));
                }),
                Action::Start { at, .. } | Action::Script { at } => {
                    add(&|w| {
                        without(w);
                        w.apply(Event::Done(*at));
                    });
                    add(&|w| {
                        without(w);
                        if let Action::Start { name, .. } = action {
                            w.there.remove(name);
                        }
                        w.apply(Event::Failed(*at, "broken".to_owned()));
                    });
                }
            }
        }
        if self.run.waits_for().is_some() {
            add(&|w| w.apply(Event::Continue));
        }
        if self.run.wakes().is_some() {
            add(&|w| {
                w.now = w.run.wakes().unwrap();
                w.apply(Event::Tick);
            });
        }
        if self.stops > 0 && self.run.phase == Phase::Forward {
            add(&|w| {
                w.stops -= 1;
                w.apply(Event::Stop);
            });
        }
        if self.ends > 0 && self.run.phase == Phase::Forward {
            // A machine that had passed ends by itself.
            for (at, _) in self.run.parts().filter(|(at, p)| is_machine(*at) && p.state == State::Done) {
                add(&|w| {
                    w.ends -= 1;
                    let name = w.run.names(at).pop().unwrap();
                    w.there.remove(&name);
                    w.apply(Event::Gone(at, "it has ended".to_owned()));
                });
            }
        }
        if self.crashes > 0 && self.run.phase != Phase::Ended {
            add(&|w| {
                w.crashes -= 1;
                w.under_way.clear();
                w.run = serde_json::from_str(&w.saved).unwrap();
                w.apply(Event::Lost);
            });
        }
        all
    }

    fn names_that_are_known(&self) -> BTreeSet<String> {
        let machines = self.run.parts().filter(|(at, p)| is_machine(*at) && p.may_be_there());
        machines.flat_map(|(at, _)| self.run.names(at)).collect()
    }

    /// What must hold always, and in the end.
    fn check(&self, on_failure: &str, ended: bool) -> Result<(), String> {
        let known = self.names_that_are_known();
        if let Some(name) = self.there.iter().find(|n| !known.contains(*n)) {
            return Err(format!("{name} is there and in no file"));
        }
        let first_is_over = self.run.parts[0].iter().flatten().all(Part::is_over);
        let second = self.run.parts[1].iter().flatten().any(|p| p.state != State::Waiting);
        if second && !first_is_over {
            return Err("the second step began before the end of the first".to_owned());
        }
        if !ended {
            return Ok(());
        }
        if self.run.phase != Phase::Ended {
            return Err(format!("it stands still while {:?}", self.run.phase));
        }
        if self.run.parts().any(|(at, p)| p.is_begun() && !is_machine(at)) {
            return Err("something is still under way".to_owned());
        }
        let up: Vec<String> = self.there.iter().cloned().collect();
        match self.run.outcome.as_ref().ok_or("it has no outcome")? {
            _ if self.run.test.is_some() && !up.is_empty() => Err(format!("the test left {up:?}")),
            Outcome::Passed if self.run.test.is_none() && up.len() != 3 => Err(format!("it passed with {up:?}")),
            Outcome::Stopped if !up.is_empty() => Err(format!("it was stopped and left {up:?}")),
            Outcome::Failed(_) if on_failure == "roll-back" && !up.is_empty() => Err(format!("rolled back: {up:?}")),
            _ => Ok(()),
        }
    }
}

const fn is_machine(at: At) -> bool {
    matches!(at.1, Place::Machine(_))
}

/// Goes through all that can happen; says what broke first, and how many states there were.
fn explore(on_failure: &str, test: Option<Duration>, saves: bool) -> Result<usize, String> {
    let mut next = vec![World::new(Run::new("r".to_owned(), plan(on_failure), test))];
    let mut seen = HashSet::new();
    while let Some(world) = next.pop() {
        if !seen.insert(world.key()) {
            continue;
        }
        let after = world.successors(saves);
        world.check(on_failure, after.is_empty())?;
        next.extend(after);
    }
    Ok(seen.len())
}

#[test]
fn whatever_happens_a_run_ends_and_leaves_what_it_says() {
    for on_failure in ["roll-back", "stop", "continue"] {
        for test in [None, Some(Duration::from_secs(60))] {
            let states = explore(on_failure, test, true).unwrap_or_else(|e| panic!("{on_failure}, {test:?}: {e}"));
            assert!(states > 500, "{on_failure}: only {states} states");
        }
    }
}

#[test]
fn a_run_that_begins_before_it_is_saved_is_seen() {
    let broken = explore("roll-back", None, false).unwrap_err();
    assert!(broken.contains("in no file"), "{broken}");
}

#[test]
fn a_failed_machine_is_tried_again_under_another_name_and_then_all_goes_back() {
    let mut run = Run::new("r".to_owned(), plan("roll-back"), None);
    let script = (0, Place::Before(0));
    assert_eq!(run.next(NOW), [Action::Script { at: script }]);
    assert_eq!(run.next(NOW), [], "it is told once");
    run.apply(Event::Done(script), NOW).unwrap();
    let [a, b] = [(0, Place::Machine(0)), (0, Place::Machine(1))];
    let names: Vec<String> = run.next(NOW).into_iter().map(|x| format!("{x:?}")).collect();
    assert!(names.len() == 2 && names[0].contains("r-s1m1a1") && names[1].contains("r-s1m2a1"), "{names:?}");
    assert!(run.apply(Event::Continue, NOW).is_err() && run.apply(Event::Undone(a), NOW).is_err());
    run.apply(Event::Done(b), NOW).unwrap();
    run.apply(Event::Failed(a, "no boot".into()), NOW).unwrap();
    assert!(matches!(&run.next(NOW)[..], [Action::Start { name, .. }] if name == "r-s1m1a2"));
    run.apply(Event::Failed(a, "no boot again".into()), NOW).unwrap();
    assert_eq!(run.phase, Phase::Undoing);
    assert_eq!(run.outcome, Some(Outcome::Failed("step one: a: no boot again".into())));
    let undone = run.next(NOW);
    let names = |of: &Action| match of {
        Action::Undo { names, .. } => names.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(names(&undone[0]), ["r-s1m1a1", "r-s1m1a2"]);
    run.apply(Event::Undone(a), NOW).unwrap();
    run.apply(Event::Undone(b), NOW).unwrap();
    assert_eq!((run.phase, run.next(NOW)), (Phase::Ended, vec![]));
}

#[test]
fn a_run_that_is_to_stop_begins_nothing_more_and_waits_for_what_is_under_way() {
    let mut run = Run::new("r".to_owned(), plan("stop"), None);
    run.next(NOW);
    run.apply(Event::Done((0, Place::Before(0))), NOW).unwrap();
    run.next(NOW);
    let [a, b] = [(0, Place::Machine(0)), (0, Place::Machine(1))];
    for _ in 0..2 {
        run.apply(Event::Failed(a, "no boot".into()), NOW).unwrap();
        run.next(NOW);
    }
    assert_eq!((run.phase, run.next(NOW)), (Phase::Forward, vec![]), "b is under way");
    run.apply(Event::Done(b), NOW).unwrap();
    assert_eq!(run.phase, Phase::Ended);
    assert_eq!(run.outcome, Some(Outcome::Failed("step one: a: no boot".into())));
    assert!(run.parts().all(|(at, p)| at.0 == 0 || p.state == State::Waiting), "{run:?}");
}

#[test]
fn a_wait_goes_on_until_the_same_instant_after_a_death() {
    let text =
        "version = 1\nname = \"w\"\n[[step]]\nname = \"one\"\nbefore = [{ wait = \"30s\" }, { manual = \"go\" }]\n";
    let mut run = Run::new("r".to_owned(), Plan::parse(text).unwrap(), None);
    assert!(run.next(NOW).is_empty());
    let until = NOW.after(Duration::from_secs(30));
    assert_eq!(run.wakes(), Some(until));
    let mut run: Run = serde_json::from_str(&serde_json::to_string(&run).unwrap()).unwrap();
    run.apply(Event::Lost, NOW.after(Duration::from_secs(20))).unwrap();
    assert_eq!(run.wakes(), Some(until));
    run.apply(Event::Tick, until).unwrap();
    assert_eq!(run.waits_for().map(|(_, text)| text), Some("go"));
    run.apply(Event::Lost, until).unwrap();
    run.apply(Event::Continue, until).unwrap();
    assert_eq!((run.phase, run.outcome), (Phase::Ended, Some(Outcome::Passed)));
}
