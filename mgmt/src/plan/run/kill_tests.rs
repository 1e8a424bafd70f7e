//! A run on a host that is made up, by processes that are killed: at each place of each step.

use super::*;
use std::collections::BTreeSet;

const NOW: Time = Time(1_000_000_000_000);

const PLAN: &str = "version = 1\nname = \"shop\"\n\
                    [[step]]\nname = \"one\"\nmachines = [\"a\", \"b\"]\nretries = 1\n\
                    before = [{ script = \"/bin/true\" }]\nafter = [{ manual = \"look\" }]\n\
                    [[step]]\nname = \"two\"\nmachines = [\"c\"]\nafter = [{ wait = \"30s\" }]\n";

/// Every step of a test that passes, in order.
const TEST: [&str; 10] = [
    "script /bin/true",
    "start a",
    "start b",
    "by hand: look",
    "start c",
    "wait",
    "hold",
    "undo c",
    "undo a",
    "undo b",
];
/// Of a failover that passes.
const FAILOVER: [&str; 6] = ["script /bin/true", "start a", "start b", "by hand: look", "start c", "wait"];
/// Of one whose last machine does not pass.
const ROLLED_BACK: [&str; 8] =
    ["script /bin/true", "start a", "start b", "by hand: look", "start c", "undo c", "undo a", "undo b"];

/// Where in a step the process is killed: it is known what is next, and no file has it; the file has it; it was done; whoever did it was
/// heard; the file has that, too.
const PLACES: [&str; 5] = ["unsaved", "saved", "done", "heard", "settled"];
/// Of a step in which nobody does anything.
const WAITING: [&str; 3] = ["saved", "heard", "settled"];

fn places(step: &str) -> &'static [&'static str] {
    let waits = ["by hand", "wait", "hold"].iter().any(|w| step.starts_with(w));
    if waits { &WAITING } else { &PLACES }
}

/// The process was killed.
struct Killed;

/// What is on the host, in files and as machines.
struct Host {
    file: String,
    up: BTreeSet<String>,
    fails: bool,
    kill: Option<String>,
    passed: BTreeSet<String>,
}

impl Host {
    fn new(test: bool, fails: bool, kill: Option<String>) -> Host {
        let stay = test.then_some(Duration::from_secs(60));
        let run = Run::new("r".to_owned(), Plan::parse(PLAN).unwrap(), stay);
        let file = serde_json::to_string(&run).unwrap();
        Host { file, up: BTreeSet::new(), fails, kill, passed: BTreeSet::new() }
    }

    fn pass(&mut self, step: &str, place: &str) -> Result<(), Killed> {
        let here = format!("{step}, {place}");
        let killed = self.kill.take_if(|kill| *kill == here).is_some();
        self.passed.insert(here);
        if killed { Err(Killed) } else { Ok(()) }
    }

    fn save(&mut self, run: &Run) {
        self.file = serde_json::to_string(run).unwrap();
    }

    fn load(&self) -> Run {
        serde_json::from_str(&self.file).unwrap()
    }

    /// One process.
    fn live(&mut self) -> Result<(), Killed> {
        let mut run = self.load();
        run.apply(Event::Lost, NOW).unwrap();
        loop {
            let actions = run.next(NOW);
            let steps: Vec<String> = actions.iter().map(|action| word(&run, action)).collect();
            steps.iter().try_for_each(|step| self.pass(step, "unsaved"))?;
            self.save(&run);
            if run.has_ended() {
                return Ok(());
            }
            for (action, step) in actions.iter().zip(&steps) {
                self.pass(step, "saved")?;
                let event = self.perform(action);
                self.pass(step, "done")?;
                self.hears(&mut run, step, event)?;
            }
            if actions.is_empty() {
                let manual = run.waits_for().map(|(at, _)| run.label(at));
                let (step, event) = match manual {
                    Some(text) => (text, Event::Continue),
                    None if run.phase == Phase::Holding => ("hold".to_owned(), Event::Tick),
                    None => ("wait".to_owned(), Event::Tick),
                };
                self.pass(&step, "saved")?;
                self.hears(&mut run, &step, event)?;
            }
        }
    }

    fn hears(&mut self, run: &mut Run, step: &str, event: Event) -> Result<(), Killed> {
        let now = run.wakes().unwrap_or(NOW);
        run.apply(event, now).unwrap();
        self.pass(step, "heard")?;
        self.save(run);
        self.pass(step, "settled")
    }

    fn perform(&mut self, action: &Action) -> Event {
        match action {
            Action::Script { at } => Event::Done(*at),
            // As a job that does not pass is taken back before it counts as failed.
            Action::Start { at, machine, .. } if self.fails && machine == "c" => {
                Event::Failed(*at, "no boot".to_owned())
            }
            Action::Start { at, name, .. } => {
                self.up.insert(name.clone());
                Event::Done(*at)
            }
            Action::Undo { at, names } => {
                self.up.retain(|n| !names.contains(n));
                Event::Undone(*at)
            }
        }
    }

    /// Processes, one after the other, until the run has ended.
    fn go_to_the_end(&mut self) {
        for _ in 0..10 {
            if self.live().is_ok() {
                return;
            }
        }
        panic!("it does not end: {}", self.file);
    }
}

fn word(run: &Run, action: &Action) -> String {
    match action {
        Action::Script { at } => run.label(*at),
        Action::Start { machine, .. } => format!("start {machine}"),
        Action::Undo { at, .. } => format!("undo {}", run.label(*at)),
    }
}

#[test]
fn killed_at_each_place_of_each_step_a_run_ends_where_it_was_going() {
    let all = ["r-s1m1a1", "r-s1m2a1", "r-s2m1a1"].map(str::to_owned);
    let failed = Outcome::Failed("step two: c: no boot".to_owned());
    // Its steps, whether it is a test, whether a step fails, what is up in the end, how it ended.
    type Case = (&'static [&'static str], bool, bool, BTreeSet<String>, Outcome);
    let cases: [Case; 3] = [
        (&TEST, true, false, BTreeSet::new(), Outcome::Passed),
        (&FAILOVER, false, false, BTreeSet::from(all), Outcome::Passed),
        (&ROLLED_BACK, false, true, BTreeSet::new(), failed),
    ];
    for (steps, test, fails, up, outcome) in cases {
        let every = steps.iter().flat_map(|step| places(step).iter().map(move |place| format!("{step}, {place}")));
        let every: BTreeSet<String> = every.collect();
        let mut unharmed = Host::new(test, fails, None);
        unharmed.go_to_the_end();
        assert_eq!(unharmed.passed, every, "the list of steps is what is done");
        for kill in every {
            let mut host = Host::new(test, fails, Some(kill.clone()));
            host.go_to_the_end();
            let run = host.load();
            assert!(host.kill.is_none(), "{kill}: it was never there");
            assert_eq!((&host.up, run.outcome.as_ref()), (&up, Some(&outcome)), "killed at {kill}");
        }
    }
}
