//! The three roles on three hosts of their own: from the protected one only outbound connections, each link cut and healed under load, a
//! point of all disks every second, and nothing lost.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use afterimage_tests::binary::path_of;
use afterimage_tests::daemon::number;
use afterimage_tests::data;
use afterimage_tests::netns::Hosts;
use afterimage_tests::process::Process;
use afterimage_tests::tool::{Tool, tool};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use token::{Chain, chains, count};

mod token;

const PROTECTED: usize = 0;
const APPLIANCE: usize = 1;
const MGMT: usize = 2;
const DISKS: usize = 2;
const SIZE: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(90);

struct Site {
    hosts: Hosts,
    processes: Vec<Process>,
    dir: tempfile::TempDir,
}

impl Site {
    fn data(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(format!("{name}.log"))).unwrap_or_default()
    }

    fn logs(&self) -> String {
        ["mgmt", "appliance", "agent"].map(|name| format!("--- {name}\n{}", self.log(name))).join("\n")
    }

    /// A command on the data folder of a role; control sockets are files, which all hosts have.
    fn cli(&self, role: &str, words: &[&str]) -> Tool {
        tool(path_of("afterimage")).env("AFTERIMAGE_DATA", self.data(role)).env("NO_COLOR", "1").args(words)
    }

    fn json(&self, role: &str, words: &[&str]) -> Value {
        serde_json::from_str(&self.cli(role, words).run().stdout).unwrap()
    }

    fn start(&mut self, host: usize, role: &str, words: &[&str]) {
        let command =
            self.hosts.on(host).arg(path_of("afterimage")).env("AFTERIMAGE_DATA", self.data(role)).args(words);
        let mut process = Process::start(command.into_command(), &self.dir.path().join(format!("{role}.log")));
        let id = u64::from(process.id());
        process.wait_until(role, || {
            let done = self.cli(role, &["status", "--json"]).run_any();
            done.status.success() && serde_json::from_str::<Value>(&done.stdout).unwrap()["pid"] == id
        });
        self.processes.push(process);
    }

    fn join(&self, host: usize, role: &str, name: &str) {
        let token = self.cli("mgmt", &["mgmt", "token", "create", "--role", role, "--name", name]).run().stdout;
        let mgmt = self.hosts.address(MGMT, host);
        let command = self.hosts.on(host).arg(path_of("afterimage")).args([role, "join", &mgmt]);
        command.env("AFTERIMAGE_DATA", self.data(role)).env("AFTERIMAGE_TOKEN", token.trim()).run();
    }

    fn image(&self, disk: usize) -> PathBuf {
        self.dir.path().join(format!("d{disk}.raw"))
    }

    fn points(&self) -> Vec<Value> {
        let all = self.json("mgmt", &["group", "points", "all", "--limit", "1000", "--json"]);
        all["points"].as_array().unwrap().iter().filter(|p| p["state"] == "complete").cloned().collect()
    }

    fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + LONG;
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(Instant::now() < end, "never: {what}\n{}", self.logs());
            thread::sleep(Duration::from_millis(200));
        }
    }

    fn restore(&self, disk: usize, at: &str) -> Vec<u8> {
        let to = self.dir.path().join("restored");
        self.cli("appliance", &["restore", &format!("d{disk}"), "--at", at, "--yes", "--to"]).arg(&to).run();
        std::fs::read(&to).unwrap()
    }

    fn judge(&self, chains: &[Chain], point: &Value) {
        let volumes = point["volumes"].as_array().unwrap();
        assert_eq!(volumes.len(), DISKS, "{point:#}");
        let image = |v: &Value| {
            let disk: usize = v["volume"].as_str().unwrap()[1..].parse().unwrap();
            (disk, self.restore(disk, &format!("@{}", number(v, "seq"))))
        };
        let images: Vec<(usize, Vec<u8>)> = volumes.iter().map(image).collect();
        for chain in chains {
            let seen: Vec<(usize, u64)> = images.iter().map(|(disk, image)| (*disk, count(chain, image))).collect();
            chain.judge(&seen).unwrap_or_else(|e| panic!("point {}: {e}\n{}", point["name"], self.logs()));
        }
    }

    /// Nobody can come to the protected host, and all it has is connections that it made itself.
    fn assert_only_outbound(&self) {
        let listening = self.hosts.on(PROTECTED).args(["ss", "-Htln"]).run().stdout;
        assert!(listening.trim().is_empty(), "somebody listens on the protected host: {listening}");
        let there = self.hosts.on(PROTECTED).args(["ss", "-Htn", "state", "established"]).run().stdout;
        let peers: Vec<&str> = there.lines().filter_map(|l| l.split_whitespace().last()).collect();
        let known = [
            format!("{}:9443", self.hosts.address(APPLIANCE, PROTECTED)),
            format!("{}:20004", self.hosts.address(MGMT, PROTECTED)),
        ];
        assert!(known.iter().all(|k| peers.contains(&k.as_str())), "{there}");
        assert!(peers.iter().all(|p| known.iter().any(|k| k == p)), "{there}");
        for from in [APPLIANCE, MGMT] {
            for port in [9443, 10809, 20004, 20005] {
                let url = format!("telnet://{}:{port}", self.hosts.address(PROTECTED, from));
                let done = self.hosts.on(from).args(["curl", "-s", "-m", "5", &url]).run_any();
                assert_eq!(done.status.code(), Some(7), "refused is what it should be: {}", done.describe());
            }
        }
    }
}

fn site(dir: tempfile::TempDir) -> Site {
    let mut site = Site { hosts: Hosts::new(3, dir.path()), processes: Vec::new(), dir };
    site.start(MGMT, "mgmt", &["mgmt"]);
    site.join(APPLIANCE, "appliance", "vault");
    site.start(APPLIANCE, "appliance", &["appliance", "--listen", "tcp:0.0.0.0:9443"]);
    site.join(PROTECTED, "agent", "web");
    let images: Vec<String> = (0..DISKS).map(|d| site.image(d).display().to_string()).collect();
    images.iter().for_each(|image| data::sparse(Path::new(image), SIZE));
    let appliance = format!("tcp:{}:9443", site.hosts.address(APPLIANCE, PROTECTED));
    let mut words = vec!["agent", "--ring", "8MiB", "--point-every", "0", "--appliance", &appliance];
    words.extend(images.iter().map(String::as_str));
    site.start(PROTECTED, "agent", &words);
    site.cli("mgmt", &["group", "create", "all", "web", "--every", "1s"]).run();
    site
}

#[test]
fn three_hosts_with_links_that_are_cut_lose_nothing() {
    let site = site(tempfile::Builder::new().prefix("afterimage-hosts-").tempdir().unwrap());
    site.until("a point", || site.points().pop());
    site.assert_only_outbound();
    let (chains, stop) = (chains(DISKS), AtomicBool::new(false));
    let sockets = vec![site.data("agent").join("nbd.sock")];
    thread::scope(|scope| {
        let carriers: Vec<_> = chains.iter().map(|c| scope.spawn(|| c.carry(&sockets, DISKS, &stop))).collect();
        // Also when there is a panic, the carriers must end.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for cut in [&[APPLIANCE][..], &[MGMT], &[APPLIANCE, MGMT]] {
                let before = site.points().len();
                site.until("points under load", || (site.points().len() > before + 2).then_some(()));
                cut.iter().for_each(|host| site.hosts.set_link(PROTECTED, *host, false));
                thread::sleep(Duration::from_secs(3));
                cut.iter().for_each(|host| site.hosts.set_link(PROTECTED, *host, true));
            }
            let before = site.points().len();
            site.until("points after all", || (site.points().len() > before + 2).then_some(()));
        }));
        stop.store(true, Ordering::Relaxed);
        for carrier in carriers {
            assert!(carrier.join().unwrap() > 100, "the token hardly moved");
        }
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    site.assert_only_outbound();
    let points = site.points();
    println!("{} points", points.len());
    points.iter().rev().take(25).for_each(|point| site.judge(&chains, point));
    // Nothing is lost: what the disks have, the history has.
    for disk in 0..DISKS {
        let own = std::fs::read(site.image(disk)).unwrap();
        site.until("the history has all", || (site.restore(disk, "latest") == own).then_some(()));
    }
}
