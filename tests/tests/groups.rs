//! Points of several machines are consistent across them: a token goes round all disks of all agents, its number written on each disk before
//! it is handed on, and whatever is cut, stalled and killed meanwhile, what a point of the group shows is a moment of that.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use afterimage_nbd::Address;
use afterimage_nbd::client::Client;
use afterimage_tests::daemon::number;
use afterimage_tests::data::Chance;
use afterimage_tests::herd::{GROUP, Herd};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const BLOCK: u64 = 4096;

/// One token. It visits the disks in this order, again and again.
struct Chain {
    order: Vec<usize>,
    /// Its place on each disk.
    offset: u64,
}

impl Chain {
    fn disk(&self, count: u64) -> usize {
        self.order[usize::try_from(count % self.order.len() as u64).unwrap()]
    }

    /// Carries the token until told to stop. A write that fails is made again: the token is handed on only when it is on the disk.
    fn carry(&self, sockets: &[PathBuf], disks: usize, stop: &AtomicBool) -> u64 {
        let mut clients: Vec<Option<Client>> = sockets.iter().flat_map(|_| (0..disks).map(|_| None)).collect();
        let mut count = 0;
        while !stop.load(Ordering::Relaxed) {
            let next = count + 1;
            let disk = self.disk(next);
            let mut block = [0; 4096];
            block[..8].copy_from_slice(&next.to_le_bytes());
            let address = Address::Unix(sockets[disk / disks].clone());
            let client = &mut clients[disk];
            if client.is_none() {
                *client = Client::connect(&address, &format!("d{disk}")).ok();
            }
            match client.as_mut().map(|c| c.write(self.offset, &block)) {
                Some(Ok(())) => count = next,
                _ => {
                    *client = None;
                    thread::sleep(Duration::from_millis(20));
                }
            }
        }
        count
    }

    /// What is wrong with these counts, one for each disk that has a part in the point.
    fn judge(&self, seen: &[(usize, u64)]) -> Result<(), String> {
        let most = seen.iter().map(|(_, count)| *count).max().unwrap_or(0);
        for (disk, count) in seen {
            // The last time at which the token was here, not later than the newest that anybody has.
            let want = (0..=most).rev().take(self.order.len()).find(|c| self.disk(*c) == *disk).unwrap_or(0);
            if *count != want {
                return Err(format!("d{disk} has {count}, and not {want}, though another one has {most}: {seen:?}"));
            }
        }
        Ok(())
    }
}

fn chains(disks: usize) -> Vec<Chain> {
    let forth: Vec<usize> = (0..disks).collect();
    // The disks of one machine lie apart in the second.
    let apart: Vec<usize> = (0..disks).rev().step_by(2).chain((0..disks.saturating_sub(1)).rev().step_by(2)).collect();
    vec![Chain { order: forth, offset: 0 }, Chain { order: apart, offset: 16 * BLOCK }]
}

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
        let at = usize::try_from(chain.offset).unwrap();
        let count = |image: &[u8]| u64::from_le_bytes(image[at..at + 8].try_into().unwrap());
        let seen: Vec<(usize, u64)> = images.iter().map(|(disk, image)| (*disk, count(image))).collect();
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
    let mut herd = Herd::new(agents, disks, &["--every", "1s"], false);
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

#[test]
fn i7_gates_that_open_too_early_are_found() {
    // Programs from elsewhere cannot be broken on purpose.
    if std::env::var_os("AFTERIMAGE_BIN_DIR").is_some() || !cfg!(debug_assertions) {
        return;
    }
    let (agents, disks) = (2, 1);
    let herd = Herd::new(agents, disks, &["--every", "1s"], true);
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

/// Prints how long writes were held: `cargo test --release -p afterimage-tests --test groups figures -- --ignored --nocapture`.
#[test]
#[ignore = "figures, for a quiet machine"]
fn figures_of_holds() {
    let members = std::env::var("AFTERIMAGE_GROUP_MEMBERS").unwrap_or_else(|_| "1,16,64".to_owned());
    for agents in members.split(',').map(|n| n.parse::<usize>().unwrap()) {
        let herd = Herd::new(agents, 1, &["--every", "1s", "--hold", "1s"], false);
        let sockets = sockets(&herd, agents);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            // Every member writes, in two rounds at a time.
            for chain in chains(agents) {
                let (sockets, stop) = (&sockets, &stop);
                scope.spawn(move || chain.carry(sockets, 1, stop));
            }
            thread::sleep(seconds(30));
            stop.store(true, Ordering::Relaxed);
        });
        let view = herd.mgmt_cli(&["group", "show", GROUP, "--json"]).run();
        let view: Value = serde_json::from_str(&view.stdout).unwrap();
        let of = |field: &str| number(&view, field);
        println!(
            "{agents} members: {} points, held p50 {} us, p99 {} us, max {} us",
            of("counted"),
            of("hold_p50_us"),
            of("hold_p99_us"),
            of("hold_max_us")
        );
        assert!(of("counted") > 0, "{}", herd.logs());
    }
}
