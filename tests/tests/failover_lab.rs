//! Disaster and way back of two machines in a group, whose databases depend on one another: tested beside production as they were some
//! time ago; then their host is gone, they go on from the newest point of the group, the old primaries return and are fenced, what the
//! machines wrote goes back, and they are in production again. What the databases say must fit together at each of these stations.
//!
//! `AFTERIMAGE_LAB_BACK` sets how many seconds the tested moment is in the past at least.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use afterimage_nbd::Address;
use afterimage_nbd::client::Client;
use afterimage_tests::daemon::number;
use afterimage_tests::data;
use afterimage_tests::guest::{self, Guest, Seats};
use afterimage_tests::herd::{GROUP, Herd, Special};
use afterimage_tests::mgmt::afterimage;
use afterimage_tests::process::{wait_idle, wait_until as wait};
use afterimage_tests::tool::{Finished, Tool, tool};
use serde_json::Value;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const LEDGER: &str = include_str!("../guest/ledger.sh");
const SIZE: u64 = 64 << 20;
/// The leader, and the follower.
const MACHINES: [&str; 2] = ["m0", "m1"];

fn parse(finished: &Finished) -> Value {
    serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("{e}: {}", finished.describe()))
}

/// A command of failover on the appliance's host, which is mgmt's, too.
fn failover(herd: &Herd, words: &[&str]) -> Tool {
    herd.appliance_cli(&["failover"]).args(words)
}

fn of_group(herd: &Herd, words: &[&str]) -> Tool {
    failover(herd, words).args(["--group", GROUP, "--mgmt-data"]).arg(herd.dir().join("mgmt"))
}

/// How the machines are started here: with the same kernel and files as in production, but on their own.
fn describe(herd: &Herd) {
    let initrd = herd.dir().join("initrd");
    guest::write_initramfs_with_sqlite(&initrd, &[("/etc/ledger.sh", LEDGER)]);
    let script = herd.dir().join("alone.sh");
    std::fs::write(&script, ". /etc/ledger.sh\nmount_ledger\nshow_ledger\nwork_alone").unwrap();
    let kernel = guest::image_folder().join("vmlinuz");
    let accelerator = std::env::var("AFTERIMAGE_VM_ACCEL").unwrap_or_else(|_| "tcg".to_owned());
    for (name, volume) in MACHINES.iter().zip(["d0", "d1"]) {
        let text = format!(
            "version = 1\nname = \"{name}\"\nmemory = \"256MiB\"\naccelerator = \"{accelerator}\"\n\
             extra = [\"-fw_cfg\", \"name=opt/afterimage/script,file={}\"]\n\
             [console]\nbooted = \"guest: script starts\"\n\
             [kernel]\nimage = \"{}\"\ninitrd = \"{}\"\narguments = \"console=ttyS0 quiet panic=-1\"\n\
             [[disk]]\nvolume = \"{volume}\"\n",
            script.display(),
            kernel.display(),
            initrd.display()
        );
        let file = herd.dir().join(format!("{name}.toml"));
        std::fs::write(&file, text).unwrap();
        herd.appliance_cli(&["target", "add"]).arg(file).run();
    }
}

/// Both machines in production, at work on the disks that their agents serve.
fn produce(herd: &Herd, seats: &Seats, open: &str) -> [Guest; 2] {
    let port = data::free_port();
    let plan = |agent: usize, work: &str| {
        let disk = format!("nbd+unix:///d{agent}?socket={}", herd.data(agent).join("nbd.sock").display());
        let plan = guest::guest(&format!(". /etc/ledger.sh\n{open}\n{work}"));
        plan.sqlite().file("/etc/ledger.sh", LEDGER).disk(&disk).seat(seats)
    };
    // It waits until the other one listens.
    let leader = plan(0, &format!("read -r _\nlead {port}")).network();
    let follower = plan(1, "follow").network_with_ports(&[(port, 7)]);
    let (mut leader, follower) = thread::scope(|scope| {
        let leader = scope.spawn(|| leader.start());
        let follower = follower.start();
        (leader.join().unwrap(), follower)
    });
    follower.wait_for("ledger: listens");
    leader.type_line("");
    leader.wait_for("ledger: both have");
    [leader, follower]
}

/// The number at the end of the last line that begins so.
fn last(lines: &[String], begin: &str) -> Option<u64> {
    lines.iter().rev().find_map(|line| line.strip_prefix(begin)?.parse().ok())
}

/// The newest number of which both machines have said that it is committed.
fn both_have(leader: &Guest) -> u64 {
    last(&leader.lines(), "ledger: both have ").expect("the leader has said a number")
}

/// Waits for what takes a while, and costs a process to ask for.
fn poll(what: &str, mut is: impl FnMut() -> bool) {
    wait(what, || {
        thread::sleep(Duration::from_millis(200));
        is()
    });
}

/// What both had committed, and by when.
#[derive(Default)]
struct Acknowledged(Vec<(SystemTime, u64)>);

impl Acknowledged {
    /// Looks again and again until something is so.
    fn until(&mut self, leader: &Guest, what: &str, is: impl Fn() -> bool) {
        poll(what, || {
            let number = both_have(leader);
            self.0.push((SystemTime::now(), number));
            is()
        });
    }

    /// What a point promises whose barrier began at this time.
    fn before(&self, time: &Value) -> u64 {
        let nanos = tool("date").args(["+%s%N", "-d", time.as_str().unwrap()]).run().stdout;
        let time = UNIX_EPOCH + Duration::from_nanos(nanos.trim().parse().unwrap());
        let seen = self.0.iter().rev().find(|(seen, _)| *seen <= time);
        seen.unwrap_or_else(|| panic!("nobody looked before {time:?}: {:?}", self.0)).1
    }
}

/// The complete points of the group, the oldest first.
fn complete(herd: &Herd) -> Vec<Value> {
    let points = herd.points()["points"].as_array().unwrap().clone();
    points.into_iter().filter(|p| p["state"] == "complete").collect()
}

/// So many more complete points are there than at the call.
fn more_points(herd: &Herd, count: usize) -> impl Fn() -> bool {
    let before = complete(herd).len();
    move || complete(herd).len() >= before + count
}

/// All jobs began at this point.
fn assert_begun_at(jobs: &Value, point: &Value) {
    let jobs = jobs.as_array().unwrap();
    assert_eq!(jobs.len(), MACHINES.len());
    for job in jobs {
        let disk = &job["disks"][0];
        let parts = point["volumes"].as_array().unwrap();
        let part = parts.iter().find(|v| v["volume"] == disk["volume"]).unwrap();
        assert_eq!(disk["seq"], part["seq"], "{job:#}\n{point:#}");
    }
}

/// What the machine of a job has said so far.
fn said(job: &Value) -> Vec<String> {
    let log = Path::new(job["folder"].as_str().unwrap()).join("serial.log");
    std::fs::read_to_string(log).unwrap_or_default().lines().map(|line| line.trim_end().to_owned()).collect()
}

/// What a machine found in its database: the number, and how often it has committed alone.
fn holds(lines: &[String]) -> (u64, u64) {
    let line = lines.iter().find_map(|line| line.strip_prefix("ledger: holds "));
    let (number, alone) = line.and_then(|l| l.split_once(" and ")).unwrap_or_else(|| panic!("{lines:#?}"));
    (number.parse().unwrap(), alone.parse().unwrap())
}

/// Whether the numbers are of one moment, and nothing is missing that both had committed by then.
fn judge(leader: u64, follower: u64, promised: u64) -> Result<(), String> {
    if leader != follower && leader != follower + 1 {
        return Err(format!("torn: the leader has {leader}, the follower {follower}"));
    }
    if follower < promised {
        return Err(format!("lost: the follower has {follower}, and both had {promised}"));
    }
    Ok(())
}

/// The databases of the machines of these jobs, as they were found. Returns the leader's number.
fn judge_jobs(jobs: &Value, promised: u64, what: &str) -> u64 {
    let [leader, follower] = MACHINES.map(|name| holds(&said(of(jobs, name))).0);
    println!("{what}: the leader has {leader}, the follower {follower}, promised {promised}");
    judge(leader, follower, promised).unwrap_or_else(|e| panic!("{what}: {e}"));
    leader
}

/// How long the machines of these jobs took.
fn print_times(jobs: &Value) {
    for job in jobs.as_array().unwrap() {
        let [running, booted, checked] = ["running_ms", "booted_ms", "checked_ms"].map(|t| number(&job["times"], t));
        println!("{}: running {running} ms, booted {booted}, checked {checked}", job["machine"]["name"]);
        assert!(running < booted && booted <= checked, "{job:#}");
    }
}

/// The job of a machine.
fn of<'a>(jobs: &'a Value, machine: &str) -> &'a Value {
    let all = jobs.as_array().unwrap();
    all.iter().find(|job| job["machine"]["name"] == machine).unwrap()
}

fn branches(herd: &Herd) -> Vec<String> {
    let list = parse(&herd.appliance_cli(&["branch", "ls", "--json"]).run());
    let mut names: Vec<String> =
        list["branches"].as_array().unwrap().iter().map(|b| b["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

fn assert_nothing_runs(herd: &Herd) {
    wait_idle(&herd.dir().join("appliance/failover"));
}

/// The only volume of an agent.
fn volume(herd: &Herd, agent: usize) -> Value {
    let status = parse(&afterimage(&herd.data(agent)).args(["status", "--json"]).run());
    status["volumes"][0].clone()
}

/// A volume or branch at a moment is what a disk holds.
fn assert_equals_disk(herd: &Herd, what: &str, at: &str, agent: usize) {
    let to = herd.dir().join("restored");
    herd.appliance_cli(&["restore", what, "--at", at, "--yes", "--to"]).arg(&to).run();
    data::assert_same(&herd.image(agent), &to);
    std::fs::remove_file(&to).unwrap();
}

/// How far back the tested moment is at least.
fn back() -> Duration {
    let seconds =
        std::env::var("AFTERIMAGE_LAB_BACK").map_or(2, |text| text.parse().expect("AFTERIMAGE_LAB_BACK is a number"));
    Duration::from_secs(seconds)
}

/// Beside production, at one instant some time back; nothing is left.
fn test_failover(herd: &Herd, leader: &Guest) {
    let mut acknowledged = Acknowledged::default();
    acknowledged.until(leader, "points", more_points(herd, 2));
    let point = complete(herd).pop().unwrap();
    let since = Instant::now();
    while since.elapsed() < back() {
        acknowledged.until(leader, "points", more_points(herd, 3));
    }
    let now = both_have(leader);
    let test = of_group(herd, &["test", "--json", "--check", "boot", "--check", "serial:ledger: alone 5"]);
    let jobs = parse(&test.args(["--at", point["time"].as_str().unwrap()]).run_any());
    assert!(jobs.as_array().unwrap().iter().all(|j| j["outcome"] == "passed" && j["phase"] == "ended"), "{jobs:#}");
    assert_begun_at(&jobs, &point);
    print_times(&jobs);
    let found = judge_jobs(&jobs, acknowledged.before(&point["time"]), "tested");
    assert!(found < now, "it is the past: {found}, {now}");
    assert!(both_have(leader) > now, "production went on");

    assert_nothing_runs(herd);
    assert_eq!(branches(herd), Vec::<String>::new());
    for job in jobs.as_array().unwrap() {
        for file in std::fs::read_dir(job["folder"].as_str().unwrap()).unwrap().flatten() {
            let name = file.file_name().into_string().unwrap();
            assert!(["job.json", "lock", "runner.log", "qemu.log", "serial.log"].contains(&&*name), "{name} is left");
        }
    }
    failover(herd, &["cleanup"]).run();
    assert_eq!(parse(&failover(herd, &["ls", "--json"]).run()), Value::Array(Vec::new()));
    poll("protection goes on", more_points(herd, 2));
}

/// The host of both machines is gone, in the middle of everything, and some of what they had committed was not at the appliance yet. They go
/// on from the newest point of the group.
fn disaster(herd: &mut Herd, [leader, follower]: [Guest; 2]) -> Value {
    let mut acknowledged = Acknowledged::default();
    acknowledged.until(&leader, "points", more_points(herd, 2));
    herd.kill_appliance();
    let received = both_have(&leader);
    acknowledged.until(&leader, "commits that the appliance does not get", || both_have(&leader) > received + 5);
    (0..2).for_each(|agent| herd.kill_agent(agent));
    drop([leader, follower]);
    herd.start_appliance();

    let run = of_group(herd, &["run", "--yes", "--json", "--check", "boot", "--check", "serial:ledger: alone 5"]);
    let jobs = parse(&run.run_any());
    assert!(jobs.as_array().unwrap().iter().all(|j| j["outcome"] == "passed" && j["phase"] == "holding"), "{jobs:#}");
    let point = complete(herd).pop().unwrap();
    assert_begun_at(&jobs, &point);
    print_times(&jobs);
    judge_jobs(&jobs, acknowledged.before(&point["time"]), "failed over");
    jobs
}

/// The old primary of a machine is back: it takes no writes, and all that it has is kept.
fn assert_fenced(herd: &Herd, agent: usize) {
    poll("fenced", || volume(herd, agent)["state"] == "fenced");
    let address = Address::Unix(herd.data(agent).join("nbd.sock"));
    let mut client = Client::connect(&address, &format!("d{agent}")).unwrap();
    assert!(client.write(0, &[1; 4096]).is_err(), "a fenced disk takes no writes");
    let tail = format!("d{agent}/tail-1");
    let points = || herd.appliance_cli(&["point", "ls", "--json", &tail]).run_any().stdout;
    poll("the tail is whole", || points().contains("fenced-1"));
    assert_equals_disk(herd, &tail, "fenced-1", agent);
    let beyond = herd.appliance_cli(&["branch", "diff", "--json", &tail, "--base", &format!("d{agent}")]).run();
    let bytes = number(&parse(&beyond), "changed_bytes");
    println!("{tail}: {bytes} bytes");
    assert!(bytes > 0, "it had committed what the appliance did not get: {}", beyond.describe());
}

/// What a machine wrote here goes back to its old disk, through the agent that has it, while it works, and the old primary goes on. Returns how
/// often the machine had committed alone.
fn fail_back(herd: &Herd, job: &Value, branch: &str, agent: usize) -> u64 {
    let id = job["id"].as_str().unwrap();
    let back =
        |more: &[&str]| parse(&failover(herd, &["failback", id, "--return", "--yes", "--json"]).args(more).run());
    assert_eq!(back(&[])["phase"], "catch-up", "while the machine works");
    let before = last(&said(job), "ledger: alone ").unwrap();
    poll("it works", || last(&said(job), "ledger: alone ").unwrap() > before + 5);
    assert_eq!(back(&["--cut-over"])["phase"], "done");
    let ended = parse(&failover(herd, &["show", "--json", id]).run());
    assert_eq!((ended["phase"].as_str(), ended["outcome"].as_str()), (Some("ended"), Some("failed-back")), "{ended:#}");
    assert_equals_disk(herd, branch, "latest", agent);
    last(&said(job), "ledger: alone ").unwrap()
}

#[test]
fn the_judge_sees_what_is_torn_and_what_is_lost() {
    assert_eq!(judge(7, 7, 7), Ok(()));
    assert_eq!(judge(8, 7, 7), Ok(()));
    assert!(judge(7, 8, 7).unwrap_err().contains("torn"), "an effect without its cause");
    assert!(judge(9, 7, 7).unwrap_err().contains("torn"));
    assert!(judge(7, 7, 8).unwrap_err().contains("lost"));
}

#[test]
fn two_machines_fail_over_at_one_moment_and_come_back() {
    let start = Instant::now();
    let done = |what: &str| println!("{:6.1} s  {what}", start.elapsed().as_secs_f64());
    let seats = guest::seats(MACHINES.len());
    let mut herd = Herd::special(2, 1, &["--every", "1s"], Special { size: Some(SIZE), ..Special::default() });
    describe(&herd);
    let machines = produce(&herd, &seats, "create_ledger");
    done("in production");
    test_failover(&herd, &machines[0]);
    done("tested");

    let jobs = disaster(&mut herd, machines);
    done("failed over");
    let first = jobs[0]["id"].as_str().unwrap();
    let kept = ["d0", "d1"].map(|volume| format!("{volume}/failover-{first}"));
    assert_eq!(branches(&herd), kept);
    for agent in 0..2 {
        herd.start_agent(agent);
        assert_fenced(&herd, agent);
    }
    done("the old primaries are fenced");

    let alone = [0, 1].map(|agent| fail_back(&herd, of(&jobs, MACHINES[agent]), &kept[agent], agent));
    assert_nothing_runs(&herd);
    (0..2).for_each(|agent| herd.wait_live(agent));
    poll("protection is on", more_points(&herd, 2));
    done("failed back");

    let machines = produce(&herd, &seats, "mount_ledger\nshow_ledger");
    let found = [0, 1].map(|agent: usize| holds(&machines[agent].lines()));
    for (agent, (number, committed)) in found.into_iter().enumerate() {
        let (before, _) = holds(&said(of(&jobs, MACHINES[agent])));
        assert_eq!(number, before, "m{agent}: what the failover began with");
        assert!(committed >= alone[agent], "m{agent} lost what it had written: {committed}, {}", alone[agent]);
    }
    let now = both_have(&machines[0]);
    poll("production goes on", || both_have(&machines[0]) > now + 5);
    poll("with points", more_points(&herd, 1));
    drop(machines);
    for agent in 0..2 {
        let volume = || volume(&herd, agent);
        poll("durable", || number(&volume(), "seq_durable") >= number(&volume(), "seq_acked"));
        assert_equals_disk(&herd, &format!("d{agent}"), "latest", agent);
    }
    done("in production again");
}
