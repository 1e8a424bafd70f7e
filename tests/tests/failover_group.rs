//! Machines of a group start at one of its points, all by one command: beside production, for good, and in the order of a plan.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use afterimage_nbd::Address;
use afterimage_nbd::client::Client;
use afterimage_tests::daemon::number;
use afterimage_tests::herd::{GROUP, Herd};
use afterimage_tests::process::{wait_idle, wait_until as wait};
use afterimage_tests::tool::{Finished, Tool};
use nix::sys::signal::Signal;
use serde_json::Value;

fn parse(finished: &Finished) -> Value {
    serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("{e}: {}", finished.describe()))
}

fn write(herd: &Herd, agent: usize, byte: u8) {
    let address = Address::Unix(herd.data(agent).join("nbd.sock"));
    let mut client = Client::connect(&address, &format!("d{agent}")).unwrap();
    client.write(0, &[byte; 4096]).unwrap();
    client.flush().unwrap();
}

/// A point of both machines, whose disks then say `byte`.
fn make(herd: &Herd, name: &str, byte: u8) -> Value {
    for agent in 0..2 {
        write(herd, agent, byte);
    }
    let mut made = None;
    wait(name, || {
        let done = herd.mgmt_cli(&["group", "point", GROUP, "--name", name, "--json"]).run_any();
        made = done.status.success().then(|| parse(&done));
        made.is_some()
    });
    made.unwrap()
}

fn seq(point: &Value, volume: &str) -> u64 {
    let all = point["volumes"].as_array().unwrap();
    number(all.iter().find(|v| v["volume"] == volume).unwrap(), "seq")
}

/// A command of failover on the appliance's host, which is mgmt's, too.
fn failover(herd: &Herd, words: &[&str]) -> Tool {
    herd.appliance_cli(&["failover"]).args(words)
}

fn of_group(herd: &Herd, words: &[&str]) -> Tool {
    failover(herd, words).args(["--group", GROUP, "--mgmt-data"]).arg(herd.dir().join("mgmt"))
}

fn assert_nothing_runs(herd: &Herd) {
    wait_idle(&herd.dir().join("appliance/failover"));
}

/// Where the disks of jobs began, by their machines.
fn begun(jobs: &Value) -> Vec<(String, u64)> {
    let all = jobs.as_array().unwrap_or_else(|| panic!("several jobs: {jobs:#}"));
    all.iter()
        .map(|job| (job["machine"]["name"].as_str().unwrap().to_owned(), number(&job["disks"][0], "seq")))
        .collect()
}

/// m0 is described, m1 is not.
fn describe(herd: &Herd) {
    let text = "version = 1\nname = \"m0\"\nmemory = \"16MiB\"\naccelerator = \"tcg\"\nboard = \"pc\"\n[[disk]]\nvolume = \"d0\"\n";
    let file = herd.dir().join("m0.toml");
    std::fs::write(&file, text).unwrap();
    herd.appliance_cli(&["target", "add"]).arg(file).run();
}

const CHECK: [&str; 2] = ["--check", "script:/bin/true"];

#[test]
fn a_group_starts_at_one_of_its_points() {
    let herd = Herd::new(2, 1, &["--every", "0s"], None);
    describe(&herd);
    let common = make(&herd, "common", 7);
    let later = make(&herd, "later", 8);
    let at = |point: &Value| vec![("m0".to_owned(), seq(point, "d0")), ("m1".to_owned(), seq(point, "d1"))];

    // What cannot be meant, and what is only shown.
    let by_seq = of_group(&herd, &["test", "--at", "@5"]).run_failing(2);
    assert!(by_seq.stderr.contains("something else in each volume"), "{}", by_seq.describe());
    let never = of_group(&herd, &["test", "--at", "never"]).run_failing(1);
    assert!(never.stderr.contains("never"), "{}", never.describe());
    let app = of_group(&herd, &["run", "--at", "latest-app", "--dry-run"]).run_failing(1);
    assert!(app.stderr.contains("app-consistent"), "{}", app.describe());
    let old = of_group(&herd, &["run", "--at", "2020-01-01T00:00:00Z", "--dry-run"]).run_failing(1);
    assert!(old.stderr.contains("so old"), "{}", old.describe());
    let dry = of_group(&herd, &["run", "--at", "common", "--dry-run"]).run();
    let line = format!("machine m1: disk d1 goes on behind write @{}", seq(&common, "d1"));
    assert!(dry.stdout.contains("at its point common") && dry.stdout.contains(&line), "{}", dry.describe());

    // Beside production: both, at the point; the newest complete one without a name.
    let tested = parse(&of_group(&herd, &["test", "--at", "common", "--json"]).args(CHECK).run());
    assert_eq!(begun(&tested), at(&common), "{tested:#}");
    assert!(tested.as_array().unwrap().iter().all(|j| j["outcome"] == "passed" && j["phase"] == "ended"), "{tested:#}");
    assert_nothing_runs(&herd);
    let stays = parse(&of_group(&herd, &["test", "--json", "--ttl", "1h"]).args(CHECK).run());
    assert_eq!(begun(&stays), at(&later), "{stays:#}");
    let stopped = parse(&failover(&herd, &["stop", "--json", stays[0]["id"].as_str().unwrap()]).run());
    assert_eq!(begun(&stopped), at(&later), "both are stopped: {stopped:#}");
    assert_nothing_runs(&herd);

    // For good, by the name of one of them.
    let ran = parse(&of_group(&herd, &["run", "--at", "common", "--yes", "--json"]).args(CHECK).run());
    assert_eq!(begun(&ran), at(&common), "{ran:#}");
    let id = ran[0]["id"].as_str().unwrap();
    for (volume, point) in [("d0", &common), ("d1", &common)] {
        let branch = format!("{volume}/failover-{id}");
        let byte = herd.restore(&branch, seq(point, volume))[0];
        assert_eq!(byte, 7, "{branch}");
    }
    let back = parse(&failover(&herd, &["rollback", "--yes", "--json", id]).run());
    assert!(back.as_array().unwrap().iter().all(|j| j["outcome"] == "rolled-back"), "{back:#}");
    assert_nothing_runs(&herd);
    (0..2).for_each(|agent| herd.wait_live(agent));

    // mgmt has seen all of it, and still knows what its host has removed the reports of.
    let known =
        || parse(&failover(&herd, &["ls", "--all", "--json", "--mgmt-data"]).arg(herd.dir().join("mgmt")).run());
    let of = |id: &str| known().as_array().unwrap().iter().find(|r| r["id"] == id).cloned();
    wait("mgmt to know of the end", || of(id).is_some_and(|r| r["stage"] == "ended"));
    let seen = of(id).unwrap();
    assert!(seen["what"] == "failover" && seen["outcome"] == "rolled-back" && seen["appliance"] == "vault", "{seen:#}");
    let events = herd.mgmt_cli(&["event", "ls", "--limit", "1000", "--json"]).run().stdout;
    let told = |kind: &str| {
        let lines = events.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
        let mine = lines.filter(|e| e["object"] == format!("recovery {id}"));
        mine.filter(|e| e["kind"] == kind).count()
    };
    assert_eq!(told("recovery-ended"), 1, "{events}");
    failover(&herd, &["cleanup"]).run();
    assert_eq!(of(id).unwrap()["outcome"], "rolled-back");

    // Planned, and one of them cannot be drained: none runs here, and both stay where they are.
    let stuck = |broken: &str| {
        herd.agent(1).signal(Signal::SIGSTOP);
        let run = of_group(&herd, &["run", "--planned", "--yes", "--json", "--drain-limit", "10s"]).args(CHECK);
        let ran = run.env("AFTERIMAGE_BREAK", broken).run_any();
        herd.agent(1).signal(Signal::SIGCONT);
        assert!(!ran.status.success(), "{}", ran.describe());
        ran
    };
    let stays = stuck("");
    for job in parse(&stays).as_array().unwrap() {
        assert!(job["outcome"] == "failed" && job["times"]["running_ms"].is_null(), "{job:#}");
    }
    assert!(stays.stdout.contains("which was to fail over together with this one"), "{}", stays.describe());
    assert_nothing_runs(&herd);
    (0..2).for_each(|agent| herd.wait_live(agent));
    // Programs from elsewhere cannot be broken on purpose.
    if std::env::var_os("AFTERIMAGE_BIN_DIR").is_none() && cfg!(debug_assertions) {
        let torn = parse(&stuck("alone"));
        assert!(
            !torn[0]["times"]["running_ms"].is_null(),
            "nobody waits for the others, and that is not seen: {torn:#}"
        );
        failover(&herd, &["rollback", "--yes", "--json", torn[0]["id"].as_str().unwrap()]).run();
        assert_nothing_runs(&herd);
        (0..2).for_each(|agent| herd.wait_live(agent));
    }

    // Planned: what came behind the newest point is on the branches, too.
    (0..2).for_each(|agent| write(&herd, agent, 9));
    let moved = parse(&of_group(&herd, &["run", "--planned", "--yes", "--json"]).args(CHECK).run());
    let id = moved[0]["id"].as_str().unwrap();
    for job in moved.as_array().unwrap() {
        let disk = &job["disks"][0];
        let (volume, seq) = (disk["volume"].as_str().unwrap(), number(disk, "seq"));
        assert_eq!(herd.restore(&format!("{volume}/failover-{id}"), seq)[0], 9, "{job:#}");
    }
    failover(&herd, &["rollback", "--yes", "--json", id]).run();
    assert_nothing_runs(&herd);
    (0..2).for_each(|agent| herd.wait_live(agent));

    // By a plan, in its order; m1, which nobody has described, is known by the group.
    let plan = herd.dir().join("plan.toml");
    let step = |name: &str, machine: &str| {
        format!("[[step]]\nname = \"{name}\"\nmachines = [\"{machine}\"]\nchecks = [\"script:/bin/true\"]\n")
    };
    let text = format!("version = 1\nname = \"herd\"\n{}{}", step("first", "m1"), step("second", "m0"));
    std::fs::write(&plan, text).unwrap();
    let run = parse(&of_group(&herd, &["test", "--at", "common", "--json"]).arg("--plan").arg(&plan).run());
    assert_eq!((run["outcome"].as_str(), run["phase"].as_str()), (Some("passed"), Some("ended")), "{run:#}");
    for (part, (machine, seq)) in run["parts"].as_array().unwrap().iter().zip(at(&common).into_iter().rev()) {
        let job = parse(&failover(&herd, &["show", "--json", part["jobs"][0].as_str().unwrap()]).run());
        assert_eq!((job["machine"]["name"].as_str().unwrap(), &job["disks"][0]["seq"]), (&*machine, &Value::from(seq)));
    }
    assert_nothing_runs(&herd);
}
