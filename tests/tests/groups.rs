//! Points of several machines are consistent across them: a token goes round all disks of all agents, its number written on each disk before
//! it is handed on, and whatever is cut, stalled and killed meanwhile, what a point of the group shows is a moment of that.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use afterimage_nbd::Address;
use afterimage_nbd::client::Client;
use afterimage_tests::daemon::number;
use afterimage_tests::data::Chance;
use afterimage_tests::herd::{GROUP, Herd, SIZE, Special};
use afterimage_tests::mgmt::afterimage;
use afterimage_tests::process::wait_until;
use afterimage_tests::tool::{Finished, tool};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use token::{Chain, chains, count};

mod token;

fn is_point(point: &Value) -> bool {
    point["state"] == "complete" || point["state"] == "partial"
}

/// Looks at a point in all volumes.
fn judge(herd: &Herd, chains: &[Chain], point: &Value) -> Result<(), String> {
    let mut images = Vec::new();
    for v in point["volumes"].as_array().unwrap() {
        let name = v["volume"].as_str().unwrap();
        images.push((name[1..].parse::<usize>().unwrap(), herd.restore(name, number(v, "seq"))));
    }
    for chain in chains {
        let seen: Vec<(usize, u64)> = images.iter().map(|(disk, image)| (*disk, count(chain, image))).collect();
        chain.judge(&seen).map_err(|e| format!("point {}: {e}", point["name"]))?;
    }
    Ok(())
}

#[test]
fn the_judge_sees_a_token_that_is_nowhere_and_one_that_is_in_two_places() {
    let chain = Chain { order: vec![0, 1, 2], offset: 0 };
    assert_eq!(chain.judge(&[(0, 3), (1, 4), (2, 5)]), Ok(()));
    assert_eq!(chain.judge(&[(0, 6), (1, 4), (2, 5)]), Ok(()));
    assert_eq!(chain.judge(&[(0, 0), (1, 0), (2, 0)]), Ok(()));
    assert_eq!(chain.judge(&[(0, 0), (1, 1), (2, 0)]), Ok(()));
    assert!(chain.judge(&[(0, 3), (1, 4), (2, 8)]).is_err(), "a cause is missing");
    assert!(chain.judge(&[(0, 3), (1, 1), (2, 5)]).is_err());
}

fn sockets(herd: &Herd, agents: usize) -> Vec<PathBuf> {
    (0..agents).map(|i| herd.data(i).join("nbd.sock")).collect()
}

/// One thing that goes wrong.
fn trouble(herd: &mut Herd, agents: usize, chance: &mut Chance) {
    let i = usize::try_from(chance.below(agents as u64)).unwrap();
    let pause = Duration::from_millis(chance.between(5, 1200));
    match chance.below(8) {
        0 => {
            herd.kill_agent(i);
            herd.start_agent(i);
        }
        1 => {
            herd.kill_mgmt();
            thread::sleep(pause);
            herd.start_mgmt();
        }
        2 | 3 => {
            herd.agent(i).signal(Signal::SIGSTOP);
            thread::sleep(pause);
            herd.agent(i).signal(Signal::SIGCONT);
        }
        4 => {
            herd.mgmt().signal(Signal::SIGSTOP);
            thread::sleep(pause);
            herd.mgmt().signal(Signal::SIGCONT);
        }
        5 => herd.proxies[i].cut(),
        _ => {
            let delay = Duration::from_millis(chance.between(1, 70));
            herd.proxies[i].change(|rules| rules.delay = delay);
            herd.proxies[i].change_present(|rules| rules.delay = delay);
            thread::sleep(pause);
            herd.proxies[i].change(|rules| rules.delay = Duration::ZERO);
            herd.proxies[i].change_present(|rules| rules.delay = Duration::ZERO);
        }
    }
}

fn seconds(default: u64) -> Duration {
    let text = std::env::var("AFTERIMAGE_GROUP_SECONDS").ok();
    Duration::from_secs(text.map_or(default, |t| t.parse().expect("AFTERIMAGE_GROUP_SECONDS is a number")))
}

#[test]
fn i7_every_point_of_a_group_is_one_moment_of_all_machines() {
    let (agents, disks) = (3, 2);
    let mut herd = Herd::new(agents, disks, &["--every", "1s"], None);
    let chains = chains(agents * disks);
    let (sockets, stop) = (sockets(&herd, agents), AtomicBool::new(false));
    let mut chance = Chance::seeded();
    thread::scope(|scope| {
        let carriers: Vec<_> = chains.iter().map(|c| scope.spawn(|| c.carry(&sockets, disks, &stop))).collect();
        // An end by panic must not leave the carriers running.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let until = Instant::now() + seconds(25);
            while Instant::now() < until {
                thread::sleep(Duration::from_millis(chance.between(500, 3000)));
                trouble(&mut herd, agents, &mut chance);
            }
            thread::sleep(Duration::from_secs(4));
        }));
        stop.store(true, Ordering::Relaxed);
        for carrier in carriers {
            assert!(carrier.join().unwrap() > 100, "the token hardly moved");
        }
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    let all = herd.points();
    let points: Vec<&Value> = all["points"].as_array().unwrap().iter().collect();
    let shown: Vec<&&Value> = points.iter().filter(|p| is_point(p)).collect();
    println!("{} of {} are points, {} gaps", shown.len(), points.len(), all["gaps"].as_array().unwrap().len());
    assert!(shown.len() >= 3, "{all:#}\n{}", herd.logs());
    for point in &points {
        let (missing, volumes) = (&point["missing"].as_array().unwrap(), &point["volumes"].as_array().unwrap());
        match point["state"].as_str().unwrap() {
            "complete" => assert!(missing.is_empty() && volumes.len() == agents * disks, "{point:#}"),
            "failed" => assert!(!missing.is_empty() && volumes.is_empty(), "it says who: {point:#}"),
            "settling" => assert!(volumes.is_empty(), "shown too early: {point:#}"),
            other => panic!("{other}: nobody wanted that: {point:#}"),
        }
    }
    for point in shown.iter().rev().take(60) {
        if let Err(e) = judge(&herd, &chains, point) {
            panic!("{e}\n{}", herd.logs());
        }
    }
    a_member_is_away(&mut herd, &chains);
}

/// Without it there is no point, or one that says so, as the group's policy has it.
fn a_member_is_away(herd: &mut Herd, chains: &[Chain]) {
    herd.mgmt_cli(&["group", "set", GROUP, "--every", "0s"]).run();
    herd.kill_agent(1);
    let refused = herd.mgmt_cli(&["group", "point", GROUP, "--name", "whole"]).run_failing(1);
    assert!(refused.stderr.contains("m1"), "{}", refused.describe());
    herd.mgmt_cli(&["group", "set", GROUP, "--allow-partial", "true"]).run();
    let end = Instant::now() + Duration::from_secs(40);
    loop {
        // The others may have to come back to mgmt first.
        let name = format!("part-{}", end.saturating_duration_since(Instant::now()).as_millis());
        let done = herd.mgmt_cli(&["group", "point", GROUP, "--name", &name, "--json"]).run_any();
        if done.status.success() {
            let point: Value = serde_json::from_str(&done.stdout).unwrap();
            if point["missing"].as_array().unwrap().len() == 1 {
                assert!(point["state"] == "partial" && point["missing"][0]["machine"] == "m1", "{point:#}");
                judge(herd, chains, &point).unwrap();
                break;
            }
        }
        assert!(Instant::now() < end, "{}\n{}", done.describe(), herd.logs());
        thread::sleep(Duration::from_millis(500));
    }
    // A live group loses a member, and its points are complete again.
    herd.mgmt_cli(&["group", "remove", GROUP, "m1"]).run();
    let done = herd.mgmt_cli(&["group", "point", GROUP, "--name", "rest", "--json"]).run();
    let point: Value = serde_json::from_str(&done.stdout).unwrap();
    assert!(point["state"] == "complete" && point["volumes"].as_array().unwrap().len() == 4, "{point:#}");
    let shown = herd.mgmt_cli(&["group", "points", GROUP, "rest"]).run().stdout;
    assert!(shown.contains("m0") && shown.contains("d0") && shown.contains("vault"), "{shown}");
}

/// Kills mgmt and agents in turns, each time a little later after a point was asked for, so that every phase of a barrier meets one: a message takes
/// 30 ms to each member, and a barrier some 100 ms to 200 ms.
#[test]
fn i7_whoever_dies_in_whichever_phase_every_point_is_one_moment() {
    let agents = 3;
    let mut herd = Herd::new(agents, 1, &["--every", "0s"], None);
    for proxy in &herd.proxies {
        proxy.change(|rules| rules.delay = Duration::from_millis(30));
        proxy.change_present(|rules| rules.delay = Duration::from_millis(30));
    }
    let chains = chains(agents);
    let (sockets, stop) = (sockets(&herd, agents), AtomicBool::new(false));
    thread::scope(|scope| {
        for chain in &chains {
            scope.spawn(|| chain.carry(&sockets, 1, &stop));
        }
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for k in 0..24 {
                let ask = herd.mgmt_cli(&["group", "point", GROUP, "--name", &format!("phase-{k}"), "--json"]);
                let asked = thread::spawn(move || ask.run_any());
                thread::sleep(Duration::from_millis(15 * (k / 2) as u64 + 20));
                if k % 2 == 0 {
                    herd.kill_mgmt();
                    herd.start_mgmt();
                } else {
                    herd.kill_agent(k / 2 % agents);
                    herd.start_agent(k / 2 % agents);
                    herd.wait_live(k / 2 % agents);
                }
                asked.join().unwrap();
            }
            point_until(&herd, "after", |done| is_whole(done, agents));
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    let all = herd.points();
    let points = all["points"].as_array().unwrap();
    let shown: Vec<&Value> = points.iter().filter(|p| is_point(p)).collect();
    println!("{} of {} are points, {} gaps", shown.len(), points.len(), all["gaps"].as_array().unwrap().len());
    assert!(shown.len() < points.len(), "nobody met a barrier: {all:#}");
    for point in shown {
        if let Err(e) = judge(&herd, &chains, point) {
            panic!("{e}\n{}", herd.logs());
        }
    }
}

#[test]
fn i7_gates_that_open_too_early_are_found() {
    // Programs from elsewhere cannot be broken on purpose.
    if std::env::var_os("AFTERIMAGE_BIN_DIR").is_some() || !cfg!(debug_assertions) {
        return;
    }
    let (agents, disks) = (2, 1);
    let herd = Herd::new(agents, disks, &["--every", "1s"], Some("no-hold"));
    herd.proxies[1].change_present(|rules| rules.delay = Duration::from_millis(10));
    let chains = chains(agents * disks);
    let (sockets, stop) = (sockets(&herd, agents), AtomicBool::new(false));
    let found = thread::scope(|scope| {
        for chain in &chains {
            scope.spawn(|| chain.carry(&sockets, disks, &stop));
        }
        let end = Instant::now() + Duration::from_secs(60);
        let mut found = None;
        while found.is_none() && Instant::now() < end {
            thread::sleep(Duration::from_millis(1000));
            let done = herd.mgmt_cli(&["group", "points", GROUP, "--limit", "5", "--json"]).run_any();
            let all: Value = serde_json::from_str(&done.stdout).unwrap_or_default();
            let points = all["points"].as_array().cloned().unwrap_or_default();
            // Also when there is a panic, the carriers must end.
            let judged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                points.iter().filter(|p| is_point(p)).find_map(|p| judge(&herd, &chains, p).err())
            }));
            found = judged.unwrap_or_else(|_| Some("a panic".to_owned()));
        }
        stop.store(true, Ordering::Relaxed);
        found
    });
    let found = found.unwrap_or_else(|| panic!("no point was found wrong: {:#}\n{}", herd.points(), herd.logs()));
    assert!(found.contains("though another one has"), "{found}\n{}", herd.logs());
}

/// Tries a point until it is as it is wanted: members may have to come back first.
fn point_until(herd: &Herd, what: &str, is: impl Fn(&Finished) -> bool) -> Finished {
    let end = Instant::now() + Duration::from_secs(60);
    for n in 0.. {
        let done = herd.mgmt_cli(&["group", "point", GROUP, "--name", &format!("{what}-{n}"), "--json"]).run_any();
        if is(&done) {
            return done;
        }
        assert!(Instant::now() < end, "{what}: {}\n{}", done.describe(), herd.logs());
        thread::sleep(Duration::from_millis(300));
    }
    unreachable!("it ends by its time")
}

/// A point of the group with so many volumes.
fn is_whole(done: &Finished, volumes: usize) -> bool {
    let point: Value = serde_json::from_str(&done.stdout).unwrap_or_default();
    done.status.success() && point["state"] == "complete" && point["volumes"].as_array().unwrap().len() == volumes
}

#[test]
fn i7_a_disk_that_is_left_out_is_missed_until_it_is_dropped_on_purpose() {
    let mut herd = Herd::new(2, 2, &["--every", "0s"], None);
    point_until(&herd, "all", |done| is_whole(done, 4));
    // The agent comes back without d3, as after a slip in its configuration.
    herd.kill_agent(1);
    herd.start_agent_with(1, 0..1);
    herd.wait_live(1);
    let failed = point_until(&herd, "less", |done| done.stderr.contains("d3"));
    assert!(failed.status.code() == Some(1) && failed.stderr.contains("m1: its agent does not serve d3"), "{failed:?}");
    // mgmt that was away meanwhile knows it, too.
    herd.kill_mgmt();
    herd.start_mgmt();
    point_until(&herd, "again", |done| done.stderr.contains("does not serve d3"));
    herd.mgmt_cli(&["group", "set", GROUP, "--allow-partial", "true"]).run();
    let partial = point_until(&herd, "part", |done| done.status.success());
    let point: Value = serde_json::from_str(&partial.stdout).unwrap();
    assert!(point["state"] == "partial" && point["volumes"].as_array().unwrap().len() == 2, "{point:#}");
    assert!(point["missing"][0]["why"].as_str().unwrap().contains("d3"), "{point:#}");
    herd.mgmt_cli(&["group", "set", GROUP, "--allow-partial", "false"]).run();
    // What is served cannot be dropped; what is not, on purpose only.
    let refused = herd.mgmt_cli(&["machine", "drop-volume", "m1", "d2"]).run_failing(1);
    assert!(refused.stderr.contains("served by its agent"), "{}", refused.describe());
    herd.mgmt_cli(&["machine", "drop-volume", "m1", "d3"]).run();
    point_until(&herd, "without", |done| is_whole(done, 3));
    // Served again, it belongs to its machine again.
    herd.kill_agent(1);
    herd.start_agent(1);
    herd.wait_live(1);
    point_until(&herd, "back", |done| is_whole(done, 4));
}

#[test]
fn i7_a_mgmt_that_takes_whatever_is_served_is_found() {
    // Programs from elsewhere cannot be broken on purpose.
    if std::env::var_os("AFTERIMAGE_BIN_DIR").is_some() || !cfg!(debug_assertions) {
        return;
    }
    let mut herd = Herd::new(1, 2, &["--every", "0s"], Some("any-volumes"));
    point_until(&herd, "all", |done| is_whole(done, 2));
    herd.kill_agent(0);
    herd.start_agent_with(0, 0..1);
    herd.wait_live(0);
    point_until(&herd, "less", |done| is_whole(done, 1));
}

/// Prints how long writes were held: `cargo test --release -p afterimage-tests --test groups figures -- --ignored --nocapture`. fio writes to
/// all members at a time, 3,200 writes a second in all.
#[test]
#[ignore = "figures, for a quiet machine"]
fn figures_of_holds() {
    let members = std::env::var("AFTERIMAGE_GROUP_MEMBERS").unwrap_or_else(|_| "1,16,64".to_owned());
    for agents in members.split(',').map(|n| n.parse::<usize>().unwrap()) {
        let herd = Herd::special(agents, 1, &["--every", "0s"], Special { direct: true, ..Special::default() });
        let mut fio = tool("fio").args(["--ioengine=nbd", "--thread", "--rw=randwrite", "--bs=4k", "--iodepth=4"]);
        let rate = (3200 / agents).to_string();
        fio = fio.args(["--time_based", "--output-format=json", "--group_reporting", "--rate_iops", &rate]);
        fio = fio.arg(format!("--runtime={}", seconds(150).as_secs())).deadline(seconds(150) * 2);
        for (i, socket) in sockets(&herd, agents).iter().enumerate() {
            let uri = format!("--uri=nbd+unix:///d{i}?socket={}", socket.display());
            fio = fio.args([&format!("--name=d{i}"), &uri, &format!("--size={SIZE}")]);
        }
        let report = thread::scope(|scope| {
            let load = scope.spawn(move || fio.run().stdout);
            thread::sleep(Duration::from_secs(2));
            herd.mgmt_cli(&["group", "set", GROUP, "--every", "1s"]).run();
            load.join().expect("fio's thread")
        });
        let report: Value = serde_json::from_str(&report[report.find('{').unwrap()..]).unwrap();
        let written = &report["jobs"][0]["write"]["iops"];
        let view = herd.mgmt_cli(&["group", "show", GROUP, "--json"]).run();
        let view: Value = serde_json::from_str(&view.stdout).unwrap();
        let of = |field: &str| number(&view, field);
        let gaps = herd.points()["gaps"].as_array().unwrap().len();
        println!(
            "{agents} members, {written} writes/s: {} points and {gaps} gaps, held p50 {} us, p99 {} us, max {} us",
            of("counted"),
            of("hold_p50_us"),
            of("hold_p99_us"),
            of("hold_max_us")
        );
        assert!(of("counted") > 0, "{}", herd.logs());
    }
}

/// Waits until the newest point that the schedule made is whole and has so many volumes.
fn scheduled_until(herd: &Herd, volumes: usize) {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let all = herd.points();
        let newest = all["points"].as_array().unwrap().iter().rev().find(|p| is_point(p) && p["auto"] == true);
        if newest.is_some_and(|p| p["state"] == "complete" && p["volumes"].as_array().unwrap().len() == volumes) {
            return;
        }
        assert!(Instant::now() < end, "no point of {volumes} volumes: {all:#}\n{}", herd.logs());
        thread::sleep(Duration::from_millis(200));
    }
}

/// Who is in a group changes between two points of its schedule. A change of several machines is made as a whole or not at all.
#[test]
fn machines_come_and_go_while_a_group_makes_points() {
    let herd = Herd::new(3, 1, &["--every", "1s"], None);
    scheduled_until(&herd, 3);
    herd.mgmt_cli(&["group", "remove", GROUP, "m1", "m2"]).run();
    scheduled_until(&herd, 1);
    // m1 has gone already, so m0 stays; m1 is not there, so nobody comes.
    let refused = herd.mgmt_cli(&["group", "remove", GROUP, "m0", "m1"]).run_failing(1);
    assert!(refused.stderr.contains("'m1' is not in group"), "{}", refused.describe());
    let refused = herd.mgmt_cli(&["group", "add", GROUP, "m1", "m0"]).run_failing(1);
    assert!(refused.stderr.contains("'m0' is in group"), "{}", refused.describe());
    let shown = herd.mgmt_cli(&["group", "show", GROUP, "--json"]).run();
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    let names: Vec<&Value> = shown["group"]["members"].as_array().unwrap().iter().map(|m| &m["name"]).collect();
    assert_eq!(names, ["m0"]);
    herd.mgmt_cli(&["group", "add", GROUP, "m1", "m2"]).run();
    scheduled_until(&herd, 3);
}

/// A machine that cannot say what it wrote has no part in a point, and the point says so: its ring overflows while the appliance stands still.
#[test]
fn i7_a_member_in_dirty_tracking_makes_a_point_fail_with_its_name() {
    let herd = Herd::new(2, 1, &["--every", "0s"], None);
    point_until(&herd, "before", |done| is_whole(done, 2));
    herd.appliance().signal(Signal::SIGSTOP);
    let address = Address::Unix(herd.data(1).join("nbd.sock"));
    let mut client = Client::connect(&address, "d1").unwrap();
    for round in 1..=12 {
        client.write(0, &vec![round; 1 << 20]).unwrap();
    }
    let state = || {
        let status = afterimage(&herd.data(1)).args(["status", "--json"]).run().stdout;
        let status: Value = serde_json::from_str(&status).unwrap();
        status["volumes"][0]["state"].clone()
    };
    wait_until("dirty tracking", || state() == "dirty");
    let failed = herd.mgmt_cli(&["group", "point", GROUP, "--name", "dirty"]).run_failing(1);
    assert!(failed.stderr.contains("m1: ") && failed.stderr.contains("d1"), "{}", failed.describe());
    assert!(!failed.stderr.contains("m0"), "who could take part is not blamed: {}", failed.describe());
    let point = &herd.points()["points"].as_array().unwrap().last().unwrap().clone();
    assert!(point["state"] == "failed" && point["missing"][0]["machine"] == "m1", "{point:#}");
    herd.appliance().signal(Signal::SIGCONT);
    herd.wait_live(1);
    let whole = point_until(&herd, "after", |done| is_whole(done, 2));
    let whole: Value = serde_json::from_str(&whole.stdout).unwrap();
    let d1 = whole["volumes"].as_array().unwrap().iter().find(|v| v["volume"] == "d1").unwrap();
    assert!(herd.restore("d1", number(d1, "seq")) == vec![12; 1 << 20]);
}
