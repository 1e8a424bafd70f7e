//! Failovers for real: the machine goes on here from its branch, its old primary takes no writes any more, and what that had beyond is
//! kept; whoever is killed, the job goes on, and it is rolled back or kept as somebody says.

use afterimage_tests::daemon::number;
use afterimage_tests::lab::DISK;
use afterimage_tests::pair::{Pair, Role};
use afterimage_tests::process::{Process, processes_in, wait_until as wait};
use afterimage_tests::tool::{Finished, tool};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

const SIZE: u64 = 16 << 20;
const STEPS: [&str; 10] = ["fence", "fork", "start", "release", "check", "hold", "kill", "drop", "lift", "remove"];
/// What is killed before a step was killed behind the one before it.
const PLACES: [&str; 2] = ["done", "saved"];

/// Writes through the agent, as a guest would. Whether it was taken.
fn write(pair: &Pair, pattern: u8, at: &str) -> Finished {
    let command = format!("write -P {pattern} {at} 64k");
    tool("qemu-io").args(["-f", "raw", "-c", &command, "-c", "flush"]).arg(pair.uri()).run_any()
}

fn parse(finished: &Finished) -> Value {
    serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("{e}: {}", finished.describe()))
}

/// The newest job.
fn job(pair: &Pair) -> Value {
    let list = parse(&pair.cli(Role::Appliance, "failover ls --json").run());
    list.as_array().and_then(|all| all.last()).cloned().unwrap_or(Value::Null)
}

/// Waits for something of the newest job, and shows that job if it does not come.
#[track_caller]
fn wait_job(pair: &Pair, what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(100);
    wait(what, || {
        let done = is();
        if !done && Instant::now() > end {
            let job = job(pair);
            let folder = pair.data(Role::Appliance).join("failover").join(job["id"].as_str().unwrap_or_default());
            let said = std::fs::read_to_string(folder.join("runner.log")).unwrap_or_default();
            panic!("never came: {what}: {job:#}\n{said}\n{}", pair.log(Role::Appliance));
        }
        done
    });
}

fn branches(pair: &Pair) -> Vec<String> {
    let list = parse(&pair.cli(Role::Appliance, "branch ls --json").run());
    let all = list["branches"].as_array().expect("branches");
    all.iter().map(|b| b["name"].as_str().unwrap_or_default().to_owned()).collect()
}

fn has(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|w| w == part)
}

/// A machine with an empty disk needs no more than to run.
const RUN: &str = "failover run --yes --json --check script:/bin/true";

fn is_fenced(v: &Value) -> bool {
    v["state"] == "fenced"
}

#[test]
fn an_old_primary_that_comes_back_is_fenced_and_what_it_had_is_kept() {
    let mut pair = Pair::new(SIZE);
    assert!(write(&pair, 1, "0").status.success());
    let seq = pair.wait_durable();

    // What the appliance does not get any more, and then the host is gone.
    pair.kill(Role::Appliance);
    assert!(write(&pair, 2, "64k").status.success());
    pair.kill(Role::Agent);
    pair.start(Role::Appliance);

    let dry = pair.cli(Role::Appliance, "failover run --dry-run").arg(DISK).run();
    assert!(
        dry.stdout.contains(&format!("behind write @{seq}")) && dry.stdout.contains("is away"),
        "{}",
        dry.describe()
    );
    assert!(branches(&pair).is_empty(), "only shown");
    let unasked = pair.cli(Role::Appliance, "failover run").arg(DISK).run_any();
    assert!(unasked.stderr.contains("--yes"), "{}", unasked.describe());

    // A branch that has the name is somebody's: nothing begins, and it stays.
    let mine = format!("{DISK}/mine");
    pair.cli(Role::Appliance, "branch create").args([DISK, "--at", "latest", "--name", "mine"]).run();
    let taken = pair.cli(Role::Appliance, RUN).args(["--branch", "mine", DISK]).run_any();
    assert!(!taken.status.success() && taken.stderr.contains(&mine), "{}", taken.describe());
    assert_eq!(branches(&pair), std::slice::from_ref(&mine));
    pair.cli(Role::Appliance, "branch drop --yes").arg(&mine).run();

    let ran = pair.cli(Role::Appliance, RUN).arg(DISK).run_any();
    let report = parse(&ran);
    assert!(ran.status.success() && report["phase"] == "holding" && report["outcome"] == "passed", "{report:#}");
    let id = report["id"].as_str().expect("id").to_owned();
    let branch = format!("{DISK}/failover-{id}");
    assert_eq!(branches(&pair), std::slice::from_ref(&branch));
    assert_eq!(number(&report["disks"][0], "seq"), seq);
    let second = pair.cli(Role::Appliance, RUN).arg(DISK).run_any();
    assert!(!second.status.success() && second.stderr.contains(&id), "{}", second.describe());

    // Whoever ends the job's process has decided nothing: the machine goes on from its branch.
    let keeper = |folder: &std::path::Path| {
        let all = processes_in(folder);
        let own = |p: &&std::path::PathBuf| std::fs::read(p.join("cmdline")).is_ok_and(|c| has(&c, b"\0keep\0"));
        all.iter().find(own).and_then(|p| p.file_name()?.to_str()?.parse().ok()).expect("the job's process")
    };
    let pid: i32 = keeper(&pair.data(Role::Appliance).join("failover").join(&id));
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("signal the job's process");
    wait("it runs again", || job(&pair)["phase"] == "holding" && job(&pair)["restarts"] == 1);
    assert_eq!(branches(&pair), std::slice::from_ref(&branch));

    // The old primary returns: it is told, takes no writes, and brings what it has.
    pair.start(Role::Agent);
    let told = pair.wait_volume(Role::Agent, "fenced", is_fenced);
    assert!(told["reason"].as_str().is_some_and(|r| r.contains("epoch 1")), "{told}");
    assert!(!write(&pair, 3, "128k").status.success(), "a fenced disk takes no writes");
    let tail = format!("{DISK}/tail-1");
    let points = || pair.cli(Role::Appliance, "point ls --json").arg(&tail).run_any();
    wait("the tail is whole", || points().stdout.contains("fenced-1"));
    let kept = pair.path("tail.raw");
    pair.cli(Role::Appliance, "restore").args([&tail, "--at", "fenced-1", "--to"]).arg(&kept).run();
    afterimage_tests::data::assert_same(&pair.image, &kept);
    let diff = pair.cli(Role::Appliance, "branch diff --json").args([&tail, "--base", DISK]).run();
    assert!(diff.stdout.contains("65536"), "what it had beyond is told: {}", diff.describe());
    let here = pair.wait_volume(Role::Appliance, "fenced", is_fenced);
    assert_eq!(here["fence"]["tail"], tail.as_str(), "{here}");
    let metrics = pair.cli(Role::Agent, "status --format prometheus").run();
    assert!(metrics.stdout.contains("state=\"fenced\"} 1"), "{}", metrics.stdout);

    // A restart of the agent changes nothing, with or without the appliance.
    pair.kill(Role::Agent);
    pair.start(Role::Agent);
    assert!(!write(&pair, 3, "128k").status.success());

    // Rolled back: the old primary goes on, with what it had; that is in its history from then on, behind a gap.
    let back = parse(&pair.cli(Role::Appliance, "failover rollback --yes --json").arg(&id).run());
    assert_eq!((back["phase"].as_str(), back["outcome"].as_str()), (Some("ended"), Some("rolled-back")), "{back:#}");
    pair.wait_live();
    assert!(write(&pair, 4, "128k").status.success());
    pair.assert_history_is_the_disk();
    assert_eq!(branches(&pair), [tail], "the branch is gone, and what the old primary had is still there");
    assert_eq!(processes_in(&pair.data(Role::Appliance).join("failover")), Vec::<std::path::PathBuf>::new());
    assert!(pair.stop(Role::Agent).success() && pair.stop(Role::Appliance).success());
}

#[test]
fn a_planned_failover_loses_nothing_and_a_committed_one_stays() {
    let mut pair = Pair::new(SIZE);
    assert!(write(&pair, 1, "0").status.success());
    assert!(write(&pair, 2, "1M").status.success());
    let planned = pair.cli(Role::Appliance, RUN).args(["--planned", "--commit-after", "300ms", DISK]).run();
    let report = parse(&planned);
    let id = report["id"].as_str().expect("id").to_owned();
    assert_eq!(report["outcome"], "passed", "{report:#}");
    let old = pair.wait_volume(Role::Agent, "fenced", is_fenced);
    let fork = number(&report["disks"][0], "seq");
    assert!(fork >= number(&old, "seq_acked"), "something is not on the branch: {report:#}\n{old:#}");
    let now = pair.path("now.raw");
    let branch = format!("{DISK}/failover-{id}");
    pair.cli(Role::Appliance, "restore").args([&branch, "--at", &format!("@{fork}"), "--to"]).arg(&now).run();
    afterimage_tests::data::assert_same(&pair.image, &now);

    let early = pair.cli(Role::Appliance, "failover unfence --yes").arg(DISK).run_any();
    assert!(early.stderr.contains("has not ended"), "{}", early.describe());
    wait("it commits itself", || !job(&pair)["committed"].is_null());
    let late = pair.cli(Role::Appliance, "failover rollback --yes").arg(&id).run_any();
    assert!(late.stderr.contains("is committed"), "{}", late.describe());

    // The daemon is killed, and its machine goes on from the branch when it is back; so it does when its own process is killed.
    pair.kill(Role::Appliance);
    pair.start(Role::Appliance);
    wait("it runs again", || job(&pair)["phase"] == "holding" && job(&pair)["restarts"] == 1);
    let stopped = parse(&pair.cli(Role::Appliance, "failover stop --json").arg(&id).run());
    assert_eq!(stopped["phase"], "ended", "{stopped:#}");
    let unfence = || pair.cli(Role::Appliance, "failover unfence --yes").arg(DISK);
    assert_eq!(branches(&pair)[0], branch, "it is kept");
    pair.wait_volume(Role::Agent, "fenced still", is_fenced);
    assert!(!write(&pair, 3, "128k").status.success());
    unfence().run();
    pair.wait_live();
    assert!(write(&pair, 3, "128k").status.success(), "the old primary goes on");
    pair.assert_history_is_the_disk();
    assert!(branches(&pair).contains(&branch), "what was written here is still there");
    assert!(!unfence().run_any().status.success(), "there is no fence any more");
    assert!(pair.stop(Role::Agent).success() && pair.stop(Role::Appliance).success());
}

#[test]
fn killed_at_any_step_a_failover_goes_on_to_where_it_was_going() {
    let mut pair = Pair::new(SIZE);
    for step in STEPS {
        for place in PLACES {
            let context = format!("killed at {step}, {place}");
            let run =
                pair.cli(Role::Appliance, RUN).arg(DISK).env("AFTERIMAGE_FAILOVER_KILL", format!("{step}:{place}"));
            // Behind the checks the command has ended, and the daemon is the one that looks.
            let ran = run.run_any();
            let id = job(&pair)["id"].as_str().expect("id").to_owned();
            wait(&format!("{context}: it runs\n{}", ran.describe()), || job(&pair)["phase"] == "holding");
            let back = parse(&pair.cli(Role::Appliance, "failover rollback --yes --json").arg(&id).run());
            assert_eq!(
                (back["phase"].as_str(), back["outcome"].as_str()),
                (Some("ended"), Some("rolled-back")),
                "{context}: {back:#}"
            );
            pair.wait_live();
            assert!(branches(&pair).iter().all(|b| b.contains("/tail-")), "{context}");
            assert_eq!(
                processes_in(&pair.data(Role::Appliance).join("failover")),
                Vec::<std::path::PathBuf>::new(),
                "{context}"
            );
        }
    }
    assert!(write(&pair, 9, "0").status.success());
    pair.assert_history_is_the_disk();
    assert!(pair.stop(Role::Agent).success() && pair.stop(Role::Appliance).success());
}

#[test]
fn agent_or_appliance_killed_at_any_step_a_failover_goes_on_or_is_taken_back() {
    let mut pair = Pair::new(SIZE);
    let halted = pair.path("halted");
    for role in [Role::Agent, Role::Appliance] {
        for step in STEPS {
            let context = format!("{role:?} killed before {step}");
            let place = format!("{step}:before:{}", halted.display());
            let run = pair.cli(Role::Appliance, RUN).arg(DISK).env("AFTERIMAGE_FAILOVER_HALT", place).into_command();
            let before = job(&pair)["id"].clone();
            let mut begun = Process::start(run, &pair.path("run.log"));
            // The last steps come when it is taken back.
            let mut back: Option<Process> = None;
            wait_job(&pair, &context, || {
                let now = job(&pair);
                let is_new = now["id"] != before;
                if back.is_none()
                    && is_new
                    && now["phase"] == "holding"
                    && ["kill", "drop", "lift", "remove"].contains(&step)
                {
                    let id = now["id"].as_str().expect("id").to_owned();
                    let command = pair.cli(Role::Appliance, "failover rollback --yes").arg(&id).into_command();
                    back = Some(Process::start(command, &pair.path("back.log")));
                }
                if halted.exists() {
                    return true;
                }
                // Looked at after they were seen to have ended: their files are whole then.
                let over = |process: &mut Process| (!process.is_running()).then(|| process.describe());
                let said = if is_new { back.as_mut().and_then(over) } else { over(&mut begun) };
                assert!(
                    said.is_none() || halted.exists() || job(&pair)["id"] != now["id"],
                    "{context}: {now:#}\n{said:?}"
                );
                false
            });
            pair.kill(role);
            pair.start(role);
            std::fs::remove_file(&halted).expect("let it go on");

            let is = |wanted: &str| job(&pair)["phase"] == wanted;
            wait_job(&pair, &format!("{context}: done or taken back"), || {
                is("ended") || (back.is_none() && is("holding"))
            });
            let id = job(&pair)["id"].as_str().expect("id").to_owned();
            // It may be starting its guest again by now, which lost its disk with the appliance.
            if back.is_none() && !is("ended") {
                pair.cli(Role::Appliance, "failover rollback --yes").arg(&id).run();
            }
            wait_job(&pair, &format!("{context}: ended"), || is("ended"));
            drop((begun, back));
            pair.wait_live();
            assert!(branches(&pair).iter().all(|b| b.contains("/tail-")), "{context}: {:?}", branches(&pair));
            let left = || processes_in(&pair.data(Role::Appliance).join("failover"));
            wait(&format!("{context}: nothing runs"), || left().is_empty());
        }
    }
    assert!(write(&pair, 9, "0").status.success());
    pair.assert_history_is_the_disk();
    assert!(pair.stop(Role::Agent).success() && pair.stop(Role::Appliance).success());
}

#[test]
fn what_a_machine_wrote_here_goes_back_and_only_what_differs_is_written() {
    let mut pair = Pair::new(SIZE);
    // Data all over the disk, so that a copy of everything would show.
    let fill = format!("write -P 7 0 {SIZE}");
    tool("qemu-io").args(["-f", "raw", "-c", &fill, "-c", "flush"]).arg(pair.uri()).run();
    pair.wait_durable();
    let ran = parse(&pair.cli(Role::Appliance, RUN).args(["--planned", DISK]).run());
    let id = ran["id"].as_str().expect("id").to_owned();
    pair.wait_volume(Role::Agent, "fenced", is_fenced);

    // The machine writes one block in a hundred, here and there, and some zeroes.
    let branch = format!("{DISK}/failover-{id}");
    let socket = pair.path("branch.sock");
    let listen = format!("unix:{}", socket.display());
    let export = pair.cli(Role::Appliance, "branch export").args([&branch, "--listen", &listen]).into_command();
    let mut process = Process::start(export, &pair.path("export.log"));
    process.wait_until("socket", || socket.exists());
    let blocks = SIZE / 4096;
    let some: Vec<String> =
        (0..blocks / 100).map(|n| format!("write -P {} {} 4k", n % 5, (n * 97 + 13) % blocks * 4096)).collect();
    let uri = format!("nbd+unix:///{branch}?socket={}", socket.display());
    let mut load = tool("qemu-io").args(["-f", "raw"]);
    for one in &some {
        load = load.args(["-c", one]);
    }
    load.args(["-c", "flush"]).arg(&uri).run();

    // Another disk gets everything; the old one, which has most of it, only what differs.
    let other = pair.path("other.raw");
    let copy = |to: &std::path::Path, more: &[&str]| {
        let command = pair.cli(Role::Appliance, "failover failback --yes --json").arg(&id).arg("--to").arg(to);
        parse(&command.args(more).run())
    };
    let whole = copy(&other, &[]);
    assert_eq!(whole["phase"], "catch-up", "{whole:#}");
    // The old disk is in use, by an agent that refuses writes: that it is meant has to be said.
    let unsaid = pair.cli(Role::Appliance, "failover failback --yes").arg(&id).arg("--to").arg(&pair.image).run_any();
    assert!(unsaid.stderr.contains("--return"), "{}", unsaid.describe());
    // Without a path: where its agent has it.
    let home = |pair: &Pair, more: &[&str]| {
        pair.cli(Role::Appliance, "failover failback --yes --json --return").arg(&id).args(more)
    };
    let first = parse(&home(&pair, &[]).run());
    let moved = number(&first, "moved_bytes");
    println!("{moved} of {SIZE} bytes written, {} changed", some.len() * 4096);
    assert!(moved <= SIZE * 12 / 1000, "1 % has changed, and {moved} of {SIZE} bytes were written");
    // A catch-up is stopped when the first of two blocks is there, which the machine then makes again what it was: that block has to
    // follow, although it is where it was at the moment that was copied.
    let put = |what: &[&str]| {
        let load = what.iter().fold(tool("qemu-io").args(["-f", "raw"]), |load, one| load.args(["-c", one]));
        load.args(["-c", "flush"]).arg(&uri).run();
    };
    put(&["write -P 77 4M 4k", "write -P 78 12M 4k"]);
    let slow = home(&pair, &["--rate", "4KiB"]).into_command();
    let slow = Process::start(slow, &pair.path("slow.log"));
    let at = |offset: u64| {
        let mut byte = [0];
        File::open(&pair.image).and_then(|f| f.read_exact_at(&mut byte, offset)).expect("read the disk");
        byte[0]
    };
    wait("the first block is there", || at(4 << 20) == 77);
    slow.kill();
    assert_ne!(at(12 << 20), 78, "it was to be stopped before");
    // Nor does anything depend on the agent that was there.
    pair.kill(Role::Agent);
    let away = home(&pair, &[]).run_any();
    assert!(!away.status.success() && away.stderr.contains("not connected"), "{}", away.describe());
    pair.start(Role::Agent);
    pair.wait_volume(Role::Agent, "fenced still", is_fenced);
    wait("its disk can be reached", || !home(&pair, &[]).run_any().stderr.contains("not connected"));
    put(&["write -P 7 4M 4k"]);
    // Written meanwhile, and found by the catch-up of the cut-over.
    tool("qemu-io").args(["-f", "raw", "-c", "write -P 9 1M 8k", "-c", "flush"]).arg(&uri).run();
    drop(process);
    let done = parse(&home(&pair, &["--cut-over"]).run());
    assert_eq!(done["phase"], "done", "{done:#}");
    assert!(number(&done, "moved_bytes") - moved <= 24 << 10, "{done:#}");

    // The old primary goes on, disk and branch are the same, and protection goes on in the old direction.
    pair.wait_live();
    let now = pair.path("now.raw");
    pair.cli(Role::Appliance, "restore").args([&branch, "--at", "latest", "--to"]).arg(&now).run();
    afterimage_tests::data::assert_same(&pair.image, &now);
    assert!(write(&pair, 5, "2M").status.success());
    pair.assert_history_is_the_disk();
    let ended = job(&pair);
    assert_eq!((ended["phase"].as_str(), ended["outcome"].as_str()), (Some("ended"), Some("failed-back")), "{ended:#}");
    assert_eq!(processes_in(&pair.data(Role::Appliance).join("failover")), Vec::<std::path::PathBuf>::new());
    assert!(pair.stop(Role::Agent).success() && pair.stop(Role::Appliance).success());
}

#[test]
fn a_machine_with_two_disks_goes_back_disk_by_disk() {
    let mut pair = Pair::plan(SIZE, "64MiB");
    let second = pair.path("second.raw");
    afterimage_tests::data::sparse(&second, SIZE);
    pair.add_option(&format!("second={}", second.display()));
    pair.start(Role::Appliance);
    pair.start(Role::Agent);
    pair.wait_live();
    assert!(write(&pair, 1, "0").status.success());
    let uri = pair.uri().replace(DISK, "second");
    tool("qemu-io").args(["-f", "raw", "-c", "write -P 2 0 64k", "-c", "flush"]).arg(&uri).run();
    let machine = pair.path("two.toml");
    let disks = format!("[[disk]]\nvolume = \"{DISK}\"\n[[disk]]\nvolume = \"second\"\n");
    std::fs::write(&machine, format!("version = 1\nname = \"two\"\n{disks}")).expect("describe a machine");
    let ran = parse(&pair.cli(Role::Appliance, RUN).arg("--planned").arg(&machine).run());
    let id = ran["id"].as_str().expect("id").to_owned();
    pair.wait_volume(Role::Agent, "fenced", is_fenced);

    let back = |volume: &str, to: Option<&std::path::Path>| {
        let command = pair.cli(Role::Appliance, "failover failback --yes --json --return --cut-over").arg(&id);
        let command = to.iter().fold(command.args(["--volume", volume]), |command, to| command.arg("--to").arg(to));
        let done = parse(&command.run());
        assert_eq!(done["phase"], "done", "{done:#}");
    };
    // One at a path of the appliance's host, the other where its agent has it.
    back(DISK, Some(&pair.image));
    assert_eq!(job(&pair)["phase"], "down", "the other disk is missing");
    pair.wait_volume(Role::Agent, "fenced still", is_fenced);
    back("second", None);
    let ended = job(&pair);
    assert_eq!((ended["phase"].as_str(), ended["outcome"].as_str()), (Some("ended"), Some("failed-back")), "{ended:#}");
    pair.wait_live();
    assert!(write(&pair, 5, "2M").status.success());
    pair.assert_history_is_the_disk();
    assert!(pair.stop(Role::Agent).success() && pair.stop(Role::Appliance).success());
}

#[test]
fn a_machine_goes_back_to_a_new_and_larger_disk_where_its_host_was_lost() {
    let mut pair = Pair::new(SIZE);
    let fill = format!("write -P 7 0 {SIZE}");
    tool("qemu-io").args(["-f", "raw", "-c", &fill, "-c", "flush"]).arg(pair.uri()).run();
    let there = pair.wait_durable();
    // Agent, journal and disk are gone. The new host has the same name, and a disk for the volume.
    pair.kill(Role::Agent);
    std::fs::remove_dir_all(pair.data(Role::Agent)).expect("lose the agent's folder");
    std::fs::remove_file(&pair.image).expect("lose the disk");
    afterimage_tests::data::sparse(&pair.image, SIZE + (4 << 20));
    let id = pair.try_volume(Role::Appliance).expect("the volume")["id"].as_str().expect("id").to_owned();
    pair.add_option("--adopt");
    pair.add_option(&format!("{DISK}={id}"));
    pair.start(Role::Agent);
    // Too early: it takes nothing, and what it has is not the volume's.
    let says = |v: &Value, what: &str| v["reason"].as_str().is_some_and(|reason| reason.contains(what));
    pair.wait_volume(Role::Agent, "refused", |v| says(v, "only while it is fenced"));
    assert!(!write(&pair, 1, "0").status.success());
    let volume = pair.try_volume(Role::Appliance).expect("the volume");
    assert_eq!((number(&volume, "seq_durable"), number(&volume, "size")), (there, SIZE), "{volume:#}");

    let ran = parse(&pair.cli(Role::Appliance, RUN).arg(DISK).run());
    let job_id = ran["id"].as_str().expect("id").to_owned();
    pair.wait_volume(Role::Agent, "fenced", is_fenced);
    let branch = format!("{DISK}/failover-{job_id}");
    let socket = pair.path("branch.sock");
    let listen = format!("unix:{}", socket.display());
    let export = pair.cli(Role::Appliance, "branch export").args([&branch, "--listen", &listen]).into_command();
    let mut export = Process::start(export, &pair.path("export.log"));
    export.wait_until("socket", || socket.exists());
    let uri = format!("nbd+unix:///{branch}?socket={}", socket.display());
    tool("qemu-io").args(["-f", "raw", "-c", "write -P 8 1M 64k", "-c", "flush"]).arg(&uri).run();

    let back =
        |more: &[&str]| pair.cli(Role::Appliance, "failover failback --yes --json --return").arg(&job_id).args(more);
    wait("what the new disk had is kept", || !back(&[]).run_any().stderr.contains("has not brought yet"));
    let first = parse(&back(&[]).run());
    assert!(number(&first, "moved_bytes") >= SIZE, "an empty disk gets everything: {first:#}");
    assert!(!write(&pair, 1, "0").status.success(), "the machine runs elsewhere still");
    drop(export);
    let done = parse(&back(&["--cut-over"]).run());
    assert_eq!(done["phase"], "done", "{done:#}");

    pair.wait_live();
    let now = pair.path("now.raw");
    pair.cli(Role::Appliance, "restore").args([&branch, "--at", "latest", "--to"]).arg(&now).run();
    let disk = std::fs::read(&pair.image).expect("read the disk");
    assert!(disk[..usize::try_from(SIZE).expect("small")] == std::fs::read(&now).expect("read the branch"));
    assert_eq!(job(&pair)["outcome"], "failed-back");
    // Protection goes on, with the size that the new disk has; also when the adoption is said again.
    assert!(write(&pair, 5, "18M").status.success());
    pair.assert_history_is_the_disk();
    assert!(pair.stop(Role::Agent).success());
    pair.start(Role::Agent);
    pair.wait_live();
    assert!(write(&pair, 6, "0").status.success());
    pair.assert_history_is_the_disk();
    assert!(pair.stop(Role::Agent).success() && pair.stop(Role::Appliance).success());
}
