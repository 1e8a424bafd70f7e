//! One machine with several disks: points of all of them at one instant, without mgmt.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use afterimage_tests::daemon::{Daemon, daemon};
use afterimage_tests::data;
use serde_json::Value;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use token::{chains, count};

mod token;

const DISKS: usize = 3;

fn start(dir: &std::path::Path, every: &str, broken: bool) -> Daemon {
    let mut plan = daemon(dir).options(["--ring", "64MiB", "--point-every", every]);
    for d in 0..DISKS {
        let image = dir.join(format!("d{d}.raw"));
        data::sparse(&image, 1 << 20);
        plan = plan.volume(&format!("d{d}"), &image);
    }
    if broken {
        plan = plan.prefix(["/usr/bin/env", "AFTERIMAGE_BREAK=apart"]);
    }
    let daemon = plan.start();
    (0..DISKS).for_each(|d| drop(daemon.wait_live(&format!("d{d}"))));
    daemon
}

/// What is wrong with a point.
fn judge(daemon: &Daemon, dir: &std::path::Path, name: &str) -> Result<(), String> {
    let image = |d: usize| {
        let to = dir.join("restored");
        daemon.cli("restore").args([&format!("d{d}"), "--at", name, "--yes", "--to"]).arg(&to).run();
        std::fs::read(&to).unwrap()
    };
    let images: Vec<Vec<u8>> = (0..DISKS).map(image).collect();
    chains(DISKS).iter().try_for_each(|chain| {
        let seen: Vec<(usize, u64)> = images.iter().enumerate().map(|(d, image)| (d, count(chain, image))).collect();
        chain.judge(&seen).map_err(|e| format!("point {name}: {e}"))
    })
}

fn points(daemon: &Daemon, volume: &str) -> Vec<String> {
    let list: Value = serde_json::from_str(&daemon.cli("point ls").args([volume, "--json"]).run().stdout).unwrap();
    list["points"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap().to_owned()).collect()
}

/// Runs `work` while tokens go round.
fn under_load<T>(daemon: &Daemon, work: impl FnOnce() -> T) -> T {
    let (stop, sockets) = (AtomicBool::new(false), vec![daemon.data().join("nbd.sock")]);
    let chains = chains(DISKS);
    thread::scope(|scope| {
        for chain in &chains {
            scope.spawn(|| chain.carry(&sockets, DISKS, &stop));
        }
        // Also when there is a panic, the carriers must end.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn points_of_all_disks_of_a_machine_are_one_moment() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path(), "1s", false);
    let names: Vec<String> = (0..12).map(|n| format!("p{n}")).collect();
    under_load(&daemon, || {
        for name in &names {
            let made = daemon.cli("point create").args(["--all", "--name", name, "--json"]).run().stdout;
            assert_eq!(serde_json::from_str::<Value>(&made).unwrap().as_array().unwrap().len(), DISKS);
        }
        let end = Instant::now() + Duration::from_secs(60);
        while points(&daemon, "d0").iter().filter(|n| n.starts_with("auto-")).count() < 4 {
            assert!(Instant::now() < end, "no automatic points: {}", daemon.log());
            thread::sleep(Duration::from_millis(100));
        }
    });
    let auto: Vec<String> = points(&daemon, "d0").into_iter().filter(|n| n.starts_with("auto-")).collect();
    // The first may be of disks that became live one after the other.
    let auto: Vec<String> =
        auto.into_iter().filter(|n| (1..DISKS).all(|d| points(&daemon, &format!("d{d}")).contains(n))).collect();
    assert!(auto.len() >= 3, "{auto:?}\n{}", daemon.log());
    for name in names.iter().chain(&auto) {
        judge(&daemon, dir.path(), name).unwrap();
    }
    let again = daemon.cli("point create").args(["--all", "--name", "p0"]).run_failing(1);
    assert!(again.stderr.contains("already"), "{}", again.describe());
}

#[test]
fn points_whose_disks_are_not_held_together_are_found() {
    // Programs from elsewhere cannot be broken on purpose.
    if std::env::var_os("AFTERIMAGE_BIN_DIR").is_some() || !cfg!(debug_assertions) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path(), "0", true);
    let found = under_load(&daemon, || {
        (0..60).find_map(|n| {
            let name = format!("p{n}");
            daemon.cli("point create").args(["--all", "--name", &name]).run();
            judge(&daemon, dir.path(), &name).err()
        })
    });
    assert!(found.is_some(), "nothing was found wrong: {}", daemon.log());
}
