//! Seeds in the test command: many short ones, the same one twice, and every deliberate break.

use std::process::{Command, Output};

fn sim(args: &[&str], broken: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_afterimage-sim"));
    command.arg("sim").args(args).env_remove("AFTERIMAGE_SIM_BREAK");
    if let Some(name) = broken {
        command.env("AFTERIMAGE_SIM_BREAK", name);
    }
    command.output().expect("the simulation starts")
}

fn text(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// How many seeds, with the default in the test command.
fn seeds() -> String {
    std::env::var("AFTERIMAGE_SIM_SEEDS").unwrap_or_else(|_| "1000".into())
}

#[test]
fn whatever_a_seed_does_nothing_is_lost_and_the_replica_converges() {
    let first = std::env::var("AFTERIMAGE_SEED").unwrap_or_else(|_| "1".into());
    let out = sim(&["--seeds", &seeds(), "--first", &first], None);
    assert!(out.status.success(), "{}", text(&out));
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in ["3", "17", "40", "58"] {
        let [a, b] = [(); 2].map(|()| text(&sim(&["--seed", seed, "--trace"], None)));
        assert!(a.contains("ok "), "seed {seed}: {a}");
        assert!(a == b, "two runs of seed {seed} differ");
        // As one of many it goes the same way: its hash is that of everything that happened.
        let among = text(&sim(&["--seed", seed], None));
        let hash = |text: &str| text.lines().find(|l| l.starts_with("ok ")).map(str::to_owned);
        assert!(hash(&a) == hash(&among), "seed {seed} in a child goes another way: {a} and {among}");
    }
}

/// A rule that is broken, what the stories are about (anything, if nothing stands there), and within how many seeds it must be seen.
const BREAKS: [(&str, &str, &str); 19] = [
    // I1
    ("no-range-lock", "", "60"),
    ("sync-unlocked", "", "300"),
    // I3
    ("no-mark", "", "60"),
    ("clear-early", "", "400"),
    ("publish-late", "publish", "60"),
    ("regrown-marked", "size", "60"),
    // "lost-unnoted" is seen by chance only, once in some twelve thousand seeds, and not yet in forty stories about it.
    // "wait-when-full" (I4) needs a full ring and a long outage at once: the agent has a test of its own for it.
    // I5
    ("ack-before-sync", "", "60"),
    ("found-unsynced", "found", "60"),
    ("unread-is-lost", "unread", "60"),
    ("replace-unsynced", "", "60"),
    ("folder-unsynced", "", "60"),
    ("folders-at-once", "first", "60"),
    ("unreduced-order", "", "60"),
    // I6
    ("gap-shown", "", "60"),
    // I9
    ("short-hash", "", "60"),
    // I10
    ("collect-live", "", "60"),
    ("copy-unnamed", "", "300"),
    ("order-unclaimed", "", "300"),
    // I11
    ("sync-again", "sync", "60"),
];

/// How many seeds of the stories about one thing are run without a break.
const ABOUT: [(&str, &str); 7] = [
    ("found", "40"),
    ("sync", "40"),
    ("unread", "40"),
    ("publish", "40"),
    ("start", "40"),
    ("first", "40"),
    ("size", "40"),
];

#[test]
fn whatever_a_story_is_about_nothing_is_lost() {
    for (about, seeds) in ABOUT {
        let out = sim(&["--about", about, "--seeds", seeds], None);
        assert!(out.status.success(), "about {about}: {}", text(&out));
    }
}

#[test]
fn counts_of_several_runs_add_up() {
    let file = std::env::temp_dir().join(format!("afterimage-sim-{}", std::process::id()));
    let path = file.to_str().unwrap();
    for first in ["1", "4"] {
        let out = sim(&["--first", first, "--seeds", "3", "--summary", path], None);
        assert!(out.status.success(), "{}", text(&out));
    }
    let sums = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(sums.lines().any(|l| l.trim() == "6 seeds") && sums.lines().any(|l| l.trim() == "0 failed"), "{sums}");
}

#[test]
fn every_break_is_caught() {
    for (name, about, seeds) in BREAKS {
        let about: &[&str] = if about.is_empty() { &[] } else { &["--about", about] };
        let out = sim(&[about, &["--seeds", seeds]].concat(), Some(name));
        assert!(!out.status.success(), "{name} was not caught in {seeds} seeds {about:?}: {}", text(&out));
    }
}
