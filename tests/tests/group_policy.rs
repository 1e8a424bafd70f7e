//! What policies do to groups, agents and appliances while everything runs: points that outlive the window, app-consistent points across machines,
//! and a mgmt that is away.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use afterimage_nbd::Address;
use afterimage_nbd::client::Client;
use afterimage_tests::daemon::number;
use afterimage_tests::herd::{GROUP, Herd, Special};
use afterimage_tests::pretender::Pretender;
use afterimage_tests::tool::Tool;
use serde_json::Value;
use std::thread;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(90);

fn json(tool: Tool) -> Value {
    serde_json::from_str(&tool.run().stdout).unwrap()
}

/// Waits until it is so, and returns what then is.
fn until<T>(herd: &Herd, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LONG;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "never: {what}\n{:#}\n{}", herd.points(), herd.logs());
        thread::sleep(Duration::from_millis(200));
    }
}

fn write(herd: &Herd, agent: usize, byte: u8) {
    let address = Address::Unix(herd.data(agent).join("nbd.sock"));
    let mut client = Client::connect(&address, &format!("d{agent}")).unwrap();
    client.write(0, &[byte; 4096]).unwrap();
}

fn points(herd: &Herd, is: impl Fn(&Value) -> bool) -> Vec<Value> {
    herd.points()["points"].as_array().unwrap().iter().filter(|p| is(p)).cloned().collect()
}

fn point(herd: &Herd, name: &str) -> Option<Value> {
    points(herd, |p| p["name"] == name).pop()
}

fn seq(point: &Value, volume: &str) -> u64 {
    let all = point["volumes"].as_array().unwrap();
    number(all.iter().find(|v| v["volume"] == volume).unwrap(), "seq")
}

/// Makes a point on demand; members may have to come first.
fn make(herd: &Herd, name: &str, more: &[&str]) -> Value {
    until(herd, name, || {
        let done = herd.mgmt_cli(&["group", "point", GROUP, "--name", name, "--json"]).args(more).run_any();
        done.status.success().then(|| serde_json::from_str(&done.stdout).unwrap())
    })
}

#[test]
fn i10_points_of_a_group_outlive_the_window_as_long_as_they_are_kept() {
    let special = Special { appliance: "window = \"10s\"\ncollect_every = \"1s\"", ..Special::default() };
    let herd = Herd::special(2, 1, &["--every", "1s"], special);
    for agent in 0..2 {
        write(&herd, agent, 7);
    }
    let kept = make(&herd, "kept", &[]);
    for agent in 0..2 {
        write(&herd, agent, 8);
    }
    let pinned =
        until(&herd, "an automatic point", || points(&herd, |p| p["state"] == "complete" && p["auto"] == true).pop());
    let pinned = pinned["name"].as_str().unwrap();
    herd.mgmt_cli(&["group", "pin", GROUP, pinned]).run();
    // The window leaves them behind, and automatic points that nobody wants go with it.
    let first = || {
        let list = json(herd.appliance_cli(&["point", "ls", "d0", "--json"]));
        number(&list["window"], "first_seq")
    };
    until(&herd, "the window moves on", || (first() > seq(&kept, "d0") + 3).then_some(()));
    let gone = until(&herd, "points expire", || points(&herd, |p| p["state"] == "expired").pop());
    assert!(gone["auto"] == true && gone["volumes"].as_array().unwrap().is_empty(), "{gone:#}");
    for name in ["kept", pinned] {
        let now = point(&herd, name).unwrap();
        assert_eq!(now["state"], "complete", "{now:#}");
        for volume in ["d0", "d1"] {
            let byte = herd.restore(volume, seq(&now, volume))[0];
            assert_eq!(byte, if name == "kept" { 7 } else { 8 }, "{name} of {volume}");
        }
    }
    let why = json(herd.mgmt_cli(&["group", "kept", GROUP, "--json"]));
    let of = |name: &str| why["points"].as_array().unwrap().iter().find(|p| p["name"] == name).unwrap()["kept"].clone();
    assert!(
        of("kept").as_array().unwrap().contains(&"user".into())
            && of(pinned).as_array().unwrap().contains(&"pin".into())
    );
    // Nobody wants them any more: the appliance lets go.
    herd.mgmt_cli(&["group", "unpin", GROUP, pinned]).run();
    until(&herd, "an unpinned point goes", || (point(&herd, pinned)?["state"] == "expired").then_some(()));
    herd.mgmt_cli(&["group", "rm", GROUP, "kept"]).run();
    let at = format!("@{}", seq(&kept, "d0"));
    until(&herd, "its part can be chosen no more", || {
        let done = herd.appliance_cli(&["diff", "d0", "--from", &at, "--to", "latest"]).run_any();
        (!done.status.success()).then_some(())
    });
}

#[test]
fn a_change_of_policy_reaches_groups_appliances_and_agents_while_they_run() {
    let herd = Herd::new(1, 1, &["--every", "0s"], None);
    let retention = || json(herd.appliance_cli(&["volume", "retention", "d0", "--json"]));
    let policy = |words: &[&str]| herd.mgmt_cli(&["policy"]).args(words).run();
    policy(&["create", "gold", "--window", "2h", "--hourly", "3", "--crash-every", "0s"]);
    herd.mgmt_cli(&["group", "set", GROUP, "--policy", "gold"]).run();
    until(&herd, "the appliance keeps what the policy says", || {
        let now = retention();
        (now["window_seconds"] == 7200 && now["hourly"] == 3 && now["own"] == true).then_some(())
    });
    assert!(points(&herd, |_| true).is_empty());
    let refused = herd.mgmt_cli(&["group", "set", GROUP, "--every", "5s"]).run_failing(1);
    assert!(refused.stderr.contains("gold"), "{}", refused.describe());
    policy(&["set", "gold", "--crash-every", "1s", "--window", "3h"]);
    until(&herd, "points by policy", || points(&herd, |p| p["state"] == "complete" && p["auto"] == true).pop());
    until(&herd, "a longer window", || (retention()["window_seconds"] == 10800).then_some(()));
    // It is written down when the appliance has answered, a moment after it does so.
    until(&herd, "the event", || {
        let events = herd.mgmt_cli(&["event", "ls", "--limit", "1000"]).run().stdout;
        events.contains("by policy gold its appliance keeps any write of 10800 s").then_some(())
    });
    // What would be, if.
    policy(&["create", "lean", "--window", "1m"]);
    let preview = json(herd.mgmt_cli(&["policy", "preview", "lean", "m0/d0", "--json"]));
    assert!(
        preview["dry_run"] == true && preview["window_seconds"] == 60 && preview["freed"].is_object(),
        "{preview:#}"
    );
    assert_eq!(retention()["window_seconds"], 10800);
    assert!(policy(&["ls"]).stdout.contains(GROUP));
    let used = herd.mgmt_cli(&["policy", "rm", "gold"]).run_failing(1);
    assert!(used.stderr.contains("groups"), "{}", used.describe());
    // Nothing goes, and then the policy decides again.
    herd.mgmt_cli(&["group", "set", GROUP, "--on-hold", "true"]).run();
    until(&herd, "the hold is there", || (retention()["hold"] == true).then_some(()));
    herd.mgmt_cli(&["group", "set", GROUP, "--on-hold", "false"]).run();
    until(&herd, "the hold is over", || (retention()["hold"] == false).then_some(()));
    // A machine that is in no group has its points made by its agent, which was started with none.
    herd.mgmt_cli(&["group", "remove", GROUP, "m0"]).run();
    herd.mgmt_cli(&["machine", "protect", "m0", "--policy", "gold", "--force"]).run();
    let own = || {
        let list = json(herd.appliance_cli(&["point", "ls", "d0", "--json"]));
        list["points"]
            .as_array()
            .unwrap()
            .iter()
            .any(|p| p["name"].as_str().unwrap().starts_with("auto-"))
            .then_some(())
    };
    until(&herd, "points of the agent", || {
        write(&herd, 0, 1);
        own()
    });
    let audit = herd.mgmt_cli(&["mgmt", "audit", "--limit", "1000"]).run().stdout;
    for action in ["create-policy", "set-policy", "set-group", "hold-group", "release-group", "protect"] {
        assert!(audit.contains(action), "{action}: {audit}");
    }
}

const APP: &str = "[volume.app]\nguest_agent = \"{DIR}/qga{I}\"\npre = [\"/bin/sh\", \"-c\", \"echo quiet\"]\n\
                   post = [\"/bin/sh\", \"-c\", \"echo $AFTERIMAGE_RESULT\"]\nfreeze_limit = \"2s\"\nhold_limit = \"8s\"";

fn pretenders(herd: &Herd, agents: usize) -> Vec<Pretender> {
    let one = |i| {
        let agent = Pretender::default();
        agent.serve(&herd.dir().join(format!("qga{i}")));
        agent
    };
    (0..agents).map(one).collect()
}

#[test]
fn an_app_consistent_point_of_a_group_is_frozen_on_all_machines_and_says_each_step() {
    let special = Special { volume: Some(APP), ..Special::default() };
    // Two disks of one machine have one guest agent: it freezes once.
    let mut herd = Herd::special(2, 2, &["--every", "0s"], special);
    let guests = pretenders(&herd, 2);
    let made = make(&herd, "quiet", &["--app"]);
    assert!(made["state"] == "complete" && made["app"]["consistency"] == "app", "{made:#}");
    for (i, guest) in guests.iter().enumerate() {
        assert_eq!(guest.heard(), ["asked to freeze", "freeze", "thaw"], "of m{i}");
        let volumes = made["app"]["machines"][i]["volumes"].as_array().unwrap();
        assert_eq!(volumes.len(), 2, "{made:#}");
        let steps = |v: &Value| -> Vec<String> {
            let all = v["made"]["steps"].as_array().unwrap().iter();
            all.map(|s| format!("{} {}", s["step"].as_str().unwrap(), s["ok"])).collect()
        };
        let with =
            volumes.iter().filter(|v| steps(v) == ["pre true", "freeze true", "marker true", "thaw true", "post true"]);
        let without = volumes.iter().filter(|v| steps(v) == ["pre true", "marker true", "post true"]);
        assert_eq!((with.count(), without.count()), (1, 1), "{made:#}");
    }
    let text = herd.mgmt_cli(&["group", "points", GROUP, "quiet"]).run().stdout;
    assert!(text.contains("app-consistent") && text.contains("freeze"), "{text}");
    // One that cannot freeze in time: the point is what it is, and says why.
    guests[1].set(|s| s.slow = Duration::from_secs(4));
    let late = make(&herd, "late", &["--app"]);
    assert_eq!((&late["state"], &late["app"]["consistency"]), (&"complete".into(), &"crash".into()), "{late:#}");
    assert!(late["app"]["reason"].as_str().unwrap().starts_with("m1: "), "{late:#}");
    guests[1].wait("it thaws after all", |s| s.heard.iter().any(|h| h == "thaw") && !s.frozen);
    // mgmt is killed while they are frozen: they thaw by themselves, and their group goes on when it is back.
    guests.iter().for_each(|g| drop(g.heard()));
    guests[1].set(|s| s.slow = Duration::from_millis(1500));
    let asked = herd.mgmt_cli(&["group", "point", GROUP, "--name", "cut", "--app"]).into_command().spawn();
    guests[0].wait("frozen", |s| s.frozen);
    herd.kill_mgmt();
    asked.unwrap().wait().unwrap();
    guests.iter().for_each(|g| g.wait("thawed", |s| s.heard.iter().any(|h| h == "thaw") && !s.frozen));
    herd.start_mgmt();
    guests[1].set(|s| s.slow = Duration::ZERO);
    let again = make(&herd, "again", &["--app"]);
    assert_eq!(again["app"]["consistency"], "app", "{again:#}");
    assert!(point(&herd, "cut").is_none_or(|p| p["state"] != "complete"));
}

#[test]
fn losing_mgmt_costs_no_protection_and_the_gap_is_seen() {
    let mut herd = Herd::new(2, 1, &["--every", "1s"], None);
    until(&herd, "a point", || points(&herd, |p| p["state"] == "complete").pop());
    herd.kill_mgmt();
    let before = Instant::now();
    // Writes go on, and are durable where they belong.
    for round in 1..=8 {
        for agent in 0..2 {
            write(&herd, agent, round);
        }
        thread::sleep(Duration::from_millis(500));
    }
    for volume in ["d0", "d1"] {
        until(&herd, "the newest write is in the history", || {
            let to = herd.dir().join("now");
            let done = herd.appliance_cli(&["restore", volume, "--at", "latest", "--yes", "--to"]).arg(&to).run_any();
            (done.status.success() && std::fs::read(&to).unwrap()[0] == 8).then_some(())
        });
    }
    let away = before.elapsed();
    herd.start_mgmt();
    // Nothing needs a hand: points are made again, and what is missing is said with its times.
    let gap = until(&herd, "the gap", || herd.points()["gaps"].as_array().unwrap().last().cloned());
    assert!(gap["why"].as_str().unwrap().contains("mgmt") && gap["since"].is_string(), "{gap:#} after {away:?}");
    let after = until(&herd, "points again", || {
        points(&herd, |p| p["state"] == "complete" && p["time"].as_str() >= gap["until"].as_str()).pop()
    });
    assert_eq!(herd.restore("d0", seq(&after, "d0"))[0], 8);
}

/// What a policy says is changed at mgmt. By hand it would last until mgmt comes back, so that is refused, also while mgmt is away.
#[test]
fn what_a_policy_keeps_is_not_changed_by_hand_unless_somebody_insists() {
    let mut herd = Herd::new(1, 1, &["--every", "0s"], None);
    let by_hand = |herd: &Herd, more: &[&str]| herd.appliance_cli(&["volume", "retention", "d0", "--json"]).args(more);
    let is = |herd: &Herd, window: u64, policies: &[&str]| {
        let now = json(by_hand(herd, &[]));
        (now["window_seconds"] == window && now["policies"] == Value::from(policies)).then_some(())
    };
    let refused = |herd: &Herd, more: &[&str], word: &str| {
        let no = by_hand(herd, more).run_failing(1);
        assert!(no.stderr.contains("volume d0") && no.stderr.contains(word), "{}", no.describe());
    };
    herd.mgmt_cli(&["policy", "create", "gold", "--window", "2h"]).run();
    herd.mgmt_cli(&["group", "set", GROUP, "--policy", "gold"]).run();
    until(&herd, "the policy is there", || is(&herd, 7200, &["gold"]));
    herd.kill_mgmt();
    refused(&herd, &["--window", "1h"], "policy 'gold'");
    refused(&herd, &["--default"], "policy 'gold'");
    assert_eq!(json(by_hand(&herd, &["--window", "1h", "--dry-run"]))["window_seconds"], 3600, "to try is no change");
    // Of a hold the policy says nothing.
    assert_eq!(json(by_hand(&herd, &["--hold"]))["hold"], true);
    assert_eq!(json(by_hand(&herd, &["--release"]))["hold"], false);
    is(&herd, 7200, &["gold"]).unwrap();
    // For when mgmt is lost for good; this one comes back.
    by_hand(&herd, &["--window", "1h", "--force"]).run();
    is(&herd, 3600, &[]).unwrap();
    herd.start_mgmt();
    until(&herd, "the policy counts again", || is(&herd, 7200, &["gold"]));
    // A hold of the group ends at mgmt.
    herd.mgmt_cli(&["group", "set", GROUP, "--on-hold", "true"]).run();
    until(&herd, "the hold is there", || (json(by_hand(&herd, &[]))["held_by"] == GROUP).then_some(()));
    refused(&herd, &["--release"], "--on-hold false");
    herd.mgmt_cli(&["group", "set", GROUP, "--on-hold", "false"]).run();
    until(&herd, "the hold is over", || (json(by_hand(&herd, &[]))["hold"] == false).then_some(()));
    // A group that has left its policy is kept as it was last, and by hand as anybody likes.
    herd.mgmt_cli(&["group", "set", GROUP, "--policy", "none"]).run();
    until(&herd, "nobody says it any more", || is(&herd, 7200, &[]));
    by_hand(&herd, &["--window", "1h"]).run();
    herd.kill_mgmt();
    herd.start_mgmt();
    herd.mgmt_cli(&["group", "set", GROUP, "--on-hold", "true"]).run();
    until(&herd, "mgmt has spoken again", || (json(by_hand(&herd, &[]))["held_by"] == GROUP).then_some(()));
    is(&herd, 3600, &[]).unwrap();
}
