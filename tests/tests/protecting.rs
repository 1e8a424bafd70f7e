//! Disks of a host are looked at, taken under protection by one call to mgmt, and stay protected: with a real agent, appliance and mgmt.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use afterimage_tests::daemon::number;
use afterimage_tests::data;
use afterimage_tests::lab::DISK;
use afterimage_tests::mgmt::{Mgmt, afterimage, hear, joined};
use afterimage_tests::pair::{Pair, Role};
use afterimage_tests::process::wait_until;
use afterimage_tests::tool::{Tool, tool};
use serde_json::Value;

const MIB: u64 = 1 << 20;

struct Site {
    pair: Pair,
    mgmt: Mgmt,
    /// A disk that is not protected yet.
    disk: String,
}

impl Site {
    fn new(options: &[&str]) -> Site {
        let (pair, mgmt) = joined(4 * MIB, |pair, _| options.iter().for_each(|option| pair.add_option(option)));
        let disk = pair.path("db.raw");
        data::sparse(&disk, 2 * MIB);
        let site = Site { pair, mgmt, disk: disk.display().to_string() };
        site.heard_of(1);
        site
    }

    /// Waits until mgmt knows of so many volumes of the machine.
    fn heard_of(&self, volumes: u64) {
        hear(|| self.mgmt.log(), &["agent", "'web'", "session begins"]);
        wait_until("mgmt knows the volumes", || {
            let shown = self.ask(&["machine", "show", "web", "--json"]).run().stdout;
            let shown: Value = serde_json::from_str(&shown).unwrap();
            shown["machine"]["connected"] == true && shown["machine"]["volumes"] == volumes
        });
    }

    fn ask(&self, words: &[&str]) -> Tool {
        afterimage(&self.mgmt.data).args(words)
    }

    fn protect(&self) -> Tool {
        self.ask(&["machine", "protect", "web", "--disk", &format!("db={}", self.disk), "--json"])
    }

    /// The volume `db` as a role shows it.
    fn db(&self, role: Role) -> Option<Value> {
        let status = self.pair.cli(role, "status --json").run().stdout;
        let status: Value = serde_json::from_str(&status).unwrap();
        status["volumes"].as_array().unwrap().iter().find(|v| v["name"] == "db").cloned()
    }

    /// Writes to the disk over NBD, waits until that is durable, and finds it in the history.
    fn writes_are_kept(&self, pattern: u8) {
        let uri = format!("nbd://127.0.0.1:{}/db", self.pair.nbd);
        let write = format!("write -P {pattern} 0 2M");
        tool("qemu-io").args(["-f", "raw", "-c", &write, "-c", "flush", &uri]).run();
        wait_until("all of it is durable", || {
            let db = self.db(Role::Agent).unwrap();
            db["state"] == "live" && number(&db, "seq_durable") >= number(&db, "seq_acked")
        });
        let at = format!("@{}", number(&self.db(Role::Agent).unwrap(), "seq_durable"));
        let restored = self.pair.path("restored.raw");
        self.pair.cli(Role::Appliance, "restore db --yes --at").args([&at, "--to"]).arg(&restored).run();
        assert!(std::fs::read(&restored).unwrap() == vec![pattern; 2 << 20], "the history has {pattern}");
        assert!(std::fs::read(&self.disk).unwrap() == vec![pattern; 2 << 20], "the disk itself has {pattern}");
    }
}

fn json(tool: Tool) -> Value {
    serde_json::from_str(&tool.run().stdout).unwrap()
}

/// The finding of this kind about this.
fn finding<'a>(report: &'a Value, check: &str, about: &str) -> &'a Value {
    let all = report["findings"].as_array().unwrap();
    let found = all.iter().find(|f| f["check"] == check && f["text"].as_str().unwrap().contains(about));
    found.unwrap_or_else(|| panic!("no finding '{check}' about {about}: {report:#}"))
}

#[test]
fn a_disk_that_mgmt_names_is_judged_taken_and_served_again_after_a_kill() {
    let mut site = Site::new(&["--take-disks"]);
    let report = json(site.ask(&["machine", "check", "web", "--disk", &site.disk, "--json"]));
    assert_eq!(report["ready"], true, "{report:#}");
    let numbers: Vec<u64> = report["findings"].as_array().unwrap().iter().map(|f| number(f, "number")).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "{report:#}");
    // Whether there is ublk, NBD or a network depends on where this runs; the disks of a guest need none of them.
    for (check, about) in [("kernel", "Linux"), ("network", "interface")] {
        assert_ne!(finding(&report, check, about)["level"], "error", "{report:#}");
    }
    for (check, about) in [
        ("space", "free for rings"),
        ("ports", "disks are served at"),
        ("ports", "answers in"),
        ("clock", "that of mgmt"),
        ("disk", "1 disks are served already"),
        ("disk", &format!("{}, 2 MiB, is not in use", site.disk)),
    ] {
        assert_eq!(finding(&report, check, about)["level"], "ok", "{report:#}");
    }
    // Measured, and not nothing.
    let rate = finding(&report, "throughput", "a second to the appliance")["text"].as_str().unwrap();
    let (figure, unit) = rate.split_once(' ').unwrap();
    assert!(figure.parse::<f64>().unwrap() > 0.0 && unit.split(' ').next().unwrap().ends_with('B'), "{rate}");
    // What is no disk is found as well, and keeps it from being protected.
    let nothing = site.pair.path("nothing").display().to_string();
    let bad = site.ask(&["machine", "check", "web", "--disk", &nothing, "--json"]).run_failing(1);
    let bad: Value = serde_json::from_str(&bad.stdout).unwrap();
    assert!(bad["ready"] == false && finding(&bad, "disk", &nothing)["level"] == "error", "{bad:#}");

    let done = json(site.protect());
    assert_eq!((&done["done"], &done["policy"], &done["added"]), (&true.into(), &"default".into(), &vec!["db"].into()));
    assert_eq!(done["target"]["appliance"], "vault", "{done:#}");
    site.writes_are_kept(5);
    site.heard_of(2);
    assert_eq!(json(site.protect())["added"], Value::Array(Vec::new()), "it is protected already");

    site.pair.kill(Role::Agent);
    site.pair.start(Role::Agent);
    assert!(site.db(Role::Agent).unwrap()["path"].as_str().unwrap().ends_with("db.raw"));
    site.writes_are_kept(6);
    let jobs = site.ask(&["job", "ls", "--json"]).run().stdout;
    assert!(jobs.contains("with new volumes db") && !jobs.contains("failed"), "{jobs}");
    site.pair.assert_history_is_the_disk();
}

#[test]
fn an_agent_whose_owner_has_not_allowed_it_takes_no_disk() {
    let site = Site::new(&[]);
    let said = "take_disks = true";
    let check = site.ask(&["machine", "check", "web", "--disk", &site.disk, "--json"]).run_failing(1);
    let report: Value = serde_json::from_str(&check.stdout).unwrap();
    assert!(finding(&report, "disk", said)["text"].as_str().unwrap().contains(&site.disk), "{report:#}");
    let refused = site.ask(&["machine", "protect", "web", "--disk", &site.disk]).run_failing(1);
    assert!(refused.stdout.contains(said) && refused.stderr.contains("not ready"), "{}", refused.describe());
    assert!(site.ask(&["job", "ls"]).run().stdout.lines().count() <= 1, "nothing was begun");
    // Whoever insists is refused by the agent itself.
    let insisted = site.protect().arg("--force").run_failing(1);
    assert!(insisted.stderr.contains(said), "{}", insisted.describe());
    let jobs = site.ask(&["job", "ls", "--json"]).run().stdout;
    assert!(jobs.contains("\"failed\"") && jobs.contains(said), "{jobs}");
    assert!(site.db(Role::Agent).is_none() && !site.pair.data(Role::Agent).join("agent/disks.json").exists());
    site.pair.wait_volume(Role::Agent, "live", |v| v["state"] == "live" && v["name"] == DISK);
}

#[test]
fn a_disk_that_cannot_be_kept_in_the_list_is_not_open_and_can_be_taken_later() {
    let mut site = Site::new(&["--take-disks"]);
    // Where the list's next version is written is something that is no file.
    let list = site.pair.data(Role::Agent).join("agent/disks.json");
    let in_the_way = list.with_extension("json.new");
    std::fs::create_dir(&in_the_way).unwrap();
    let failed = site.protect().run_failing(1);
    let said = [site.disk.as_str(), "is not protected", &*list.display().to_string(), "ask again"];
    assert!(said.iter().all(|words| failed.stderr.contains(words)), "{}", failed.describe());
    assert!(site.db(Role::Agent).is_none() && !list.exists());
    std::fs::remove_dir(&in_the_way).unwrap();
    assert_eq!(json(site.protect())["added"], Value::from(vec!["db"]));
    site.writes_are_kept(3);
    // The list that is there is kept when one more cannot be written.
    std::fs::create_dir(&in_the_way).unwrap();
    let more = site.pair.path("more.raw");
    data::sparse(&more, MIB);
    site.ask(&["machine", "protect", "web", "--disk", &more.display().to_string()]).run_failing(1);
    site.pair.kill(Role::Agent);
    site.pair.start(Role::Agent);
    site.writes_are_kept(4);
}

#[test]
fn points_of_a_volume_are_made_kept_and_removed_through_mgmt() {
    let site = Site::new(&[]);
    let volume = format!("web/{DISK}");
    let point = |verb: &str, name: &str| site.ask(&["point", verb, &volume, name, "--json"]);
    let create = |name: &str| site.ask(&["point", "create", &volume, "--name", name, "--json"]);
    let listed = || {
        let list = json(site.ask(&["point", "ls", &volume, "--json"]));
        list["points"].as_array().unwrap().iter().find(|p| p["name"] == "one").cloned()
    };
    let made = json(create("one"));
    assert_eq!((&made["auto"], &made["pinned"]), (&false.into(), &false.into()), "{made:#}");
    assert_eq!(listed().unwrap()["seq"], made["seq"]);
    // The appliance's own word for it.
    let there = json(site.pair.cli(Role::Appliance, "point ls --json").arg(DISK));
    assert!(there["points"].as_array().unwrap().iter().any(|p| p["seq"] == made["seq"] && p["name"] == "one"));
    let again = create("one").run_failing(1);
    assert!(again.stderr.contains("already"), "{}", again.describe());
    assert_eq!(json(point("pin", "one"))["pinned"], true);
    assert_eq!(listed().unwrap()["pinned"], true);
    assert_eq!(json(point("unpin", "one"))["pinned"], false);
    json(point("rm", "one"));
    assert_eq!(listed(), None);
    let none = point("pin", "one").run_failing(1);
    assert!(none.stderr.contains("one"), "{}", none.describe());
    let all = site.ask(&["point", "create", "--all", "--name", "x"]).run_failing(2);
    assert!(all.stderr.contains("group point"), "{}", all.describe());
    let audit = site.ask(&["mgmt", "audit"]).run().stdout;
    for what in ["create-point", "pin-point", "unpin-point", "remove-point"] {
        assert!(audit.lines().any(|l| l.contains(what) && l.contains(&volume)), "{what} is not in\n{audit}");
    }
}
