//! Test failovers: a guest boots from the fork of its protected root disk while production goes on, is looked at, and is gone; and
//! nothing is left when the job, the command or the daemon is killed, at any step.

use afterimage_tests::daemon::{self, Daemon, number};
use afterimage_tests::guest;
use afterimage_tests::lab::DISK;
use afterimage_tests::process::{Process, processes_in, wait_until as wait};
use afterimage_tests::tool::tool;
use afterimage_tests::{data, ext4};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Every step of a job, as docs/recovery.md lists them, and where in it the job's process is killed.
const STEPS: [&str; 8] = ["fork", "start", "release", "check", "hold", "kill", "drop", "remove"];
const PLACES: [&str; 3] = ["before", "done", "saved"];

/// Sockets that the daemon has open: listeners, exports, connections.
fn sockets(daemon: &mut Daemon) -> usize {
    let all = std::fs::read_dir(format!("/proc/{}/fd", daemon.process().id())).expect("list descriptors");
    let is_socket =
        |path: PathBuf| std::fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"));
    all.flatten().filter(|e| is_socket(e.path())).count()
}

/// The job that is not over, or the newest.
fn job(daemon: &Daemon) -> Value {
    let list = daemon.cli("failover ls").arg("--json").run();
    let list: Value = serde_json::from_str(&list.stdout).expect("the list is JSON");
    list.as_array().and_then(|all| all.last()).cloned().unwrap_or(Value::Null)
}

/// Nothing of any job is left but reports, and the daemon serves what it served before.
#[track_caller]
fn assert_nothing_left(daemon: &mut Daemon, sockets_before: usize, context: &str) {
    let jobs = daemon.data().join("failover");
    wait(&format!("{context}: no process of a job"), || processes_in(&jobs).is_empty());
    for folder in std::fs::read_dir(&jobs).expect("list jobs").flatten().filter(|e| e.path().is_dir()) {
        for file in std::fs::read_dir(folder.path()).expect("list a job").flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            let kept =
                ["job.json", "plan.json", "lock", "runner.log", "qemu.log", "serial.log", "screen.png", "script.log"];
            assert!(kept.contains(&name.as_str()), "{context}: {name} is left");
        }
    }
    wait(&format!("{context}: the exports are closed"), || sockets(daemon) <= sockets_before);
}

#[test]
fn a_guest_boots_from_the_fork_of_its_root_disk_beside_production() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("root.raw");
    tool("cp").arg("--sparse=always").arg(guest::image_folder().join("root.ext4")).arg(&image).run();
    let options = ["--point-every", "0"];
    let mut daemon = daemon::daemon(dir.path()).options(options).volume(DISK, &image).start();
    daemon.wait_live(DISK);
    let durable = daemon.wait_durable(DISK);
    let sockets_before = sockets(&mut daemon);

    // The guest tells its name, writes to its root disk, and listens.
    let script = dir.path().join("script");
    let text = "hostname test-of-root\necho written >/root/written\nsync\necho \"I am $(hostname): $(cat /root/written)\"\n\
                while :; do nc -l -p 7 -e /bin/echo hello; done";
    std::fs::write(&script, text).unwrap();
    let vm = guest::image_folder();
    let accelerator = std::env::var("AFTERIMAGE_VM_ACCEL").unwrap_or_else(|_| "tcg".to_owned());
    let description = format!(
        "version = 1\nname = \"rooted\"\nmemory = \"256MiB\"\naccelerator = \"{accelerator}\"\n\
         extra = [\"-fw_cfg\", \"name=opt/afterimage/script,file={}\"]\n\
         [console]\nscreen = true\nbooted = \"guest: script starts\"\n\
         [kernel]\nimage = \"{}\"\ninitrd = \"{}\"\narguments = \"console=ttyS0 quiet panic=-1 root=/dev/vda\"\n\
         [[disk]]\nvolume = \"{DISK}\"\n[[network]]\nname = \"lan\"\n[[card]]\nnetwork = \"lan\"\n",
        script.display(),
        vm.join("vmlinuz").display(),
        vm.join("initramfs").display()
    );
    let file = dir.path().join("rooted.toml");
    std::fs::write(&file, description).unwrap();
    daemon.cli("target add").arg(&file).run();
    let found = daemon.cli("target check").arg("rooted").run();
    assert!(found.stdout.contains("its history is here"), "{}", found.describe());

    let ran = daemon
        .cli("failover test")
        .args(["rooted", "--json", "--check", "boot", "--check", "serial:I am test-of-root: written"])
        .args(["--check", "tcp:7", "--check", "script:/bin/true", "--check", "screenshot"])
        .run_any();
    let report: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {}", ran.describe()));
    assert_eq!(report["outcome"], "passed", "{report:#}\n{}", ran.describe());
    assert!(ran.status.success());
    let times = &report["times"];
    println!(
        "first read {}, running {}, booted {} ms",
        times["first_read_ms"], times["running_ms"], times["booted_ms"]
    );
    assert!(number(times, "first_read_ms") <= number(times, "running_ms"));
    assert!(number(times, "running_ms") < number(times, "booted_ms"));
    let folder = Path::new(report["folder"].as_str().unwrap());
    assert!(std::fs::read(folder.join("screen.png")).unwrap().starts_with(b"\x89PNG"), "the picture is kept");
    assert!(std::fs::read_to_string(folder.join("serial.log")).unwrap().contains("script starts"));

    assert_nothing_left(&mut daemon, sockets_before, "after a test");
    assert_eq!(daemon.wait_durable(DISK), durable, "a test changes no history");
    assert_eq!(ext4::read_file(&image, "/root/written"), None, "a test changes no disk");
    let latest = dir.path().join("latest");
    daemon.restore(DISK, "latest", &latest);
    data::assert_same(&image, &latest);
    let cleaned = daemon.cli("failover cleanup").run();
    assert!(cleaned.stdout.contains("removed") && !folder.exists(), "{}", cleaned.describe());
    assert!(daemon.stop().success(), "{}", daemon.log());
}

/// A machine that needs no guest: its firmware finds nothing to boot.
fn blank(dir: &Path) -> (Daemon, usize) {
    let image = dir.join("disk.raw");
    data::sparse(&image, 8 << 20);
    let mut daemon = daemon::daemon(dir).volume(DISK, &image).start();
    daemon.wait_live(DISK);
    daemon.wait_durable(DISK);
    let text = format!(
        "version = 1\nname = \"blank\"\nmemory = \"16MiB\"\naccelerator = \"tcg\"\nboard = \"pc\"\n[[disk]]\nvolume = \"{DISK}\"\n"
    );
    std::fs::write(dir.join("blank.toml"), text).expect("write a description");
    daemon.cli("target add").arg(dir.join("blank.toml")).run();
    let before = sockets(&mut daemon);
    (daemon, before)
}

const CHECK: [&str; 4] = ["failover test", "blank", "--check", "script:/bin/true"];

#[test]
fn killed_at_any_step_the_job_is_ended_by_whoever_looks_next() {
    let dir = tempfile::tempdir().unwrap();
    let (mut daemon, sockets_before) = blank(dir.path());
    for step in STEPS {
        for place in PLACES {
            let context = format!("killed at {step}, {place}");
            let ttl = if step == "hold" { "100ms" } else { "0" };
            let [command, rest @ ..] = CHECK;
            let test = daemon.cli(command).args(rest).args(["--ttl", ttl, "--json"]);
            // With a time to live the command ends first, and the daemon is the one that looks.
            let ran = test.env("AFTERIMAGE_FAILOVER_KILL", format!("{step}:{place}")).run_any();
            wait(&context, || job(&daemon)["phase"] == "ended");
            let job = job(&daemon);
            // What had been found out by then counts.
            let known = STEPS.iter().position(|s| *s == step) > STEPS.iter().position(|s| *s == "check")
                || (step, place) == ("check", "saved");
            let outcome = if known { "passed" } else { "failed" };
            assert_eq!(job["outcome"], outcome, "{context}: {job:#}\n{}", ran.describe());
            assert_nothing_left(&mut daemon, sockets_before, &context);
        }
    }
    let left = daemon.cli("failover cleanup").arg("--json").run();
    let left: Value = serde_json::from_str(&left.stdout).unwrap();
    assert_eq!(left["removed"].as_array().unwrap().len(), STEPS.len() * PLACES.len());
    assert!(daemon.stop().success(), "{}", daemon.log());
}

#[test]
fn the_command_and_the_daemon_may_die_and_a_time_to_live_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (mut daemon, sockets_before) = blank(dir.path());
    let [command, rest @ ..] = CHECK;

    // A time to live ends by itself; the command has ended long before.
    let ran = daemon.cli(command).args(rest).args(["--ttl", "1s"]).run();
    assert!(ran.stdout.contains("it runs until"), "{}", ran.describe());
    wait("the time to live is over", || job(&daemon)["phase"] == "ended");
    assert_eq!(job(&daemon)["outcome"], "passed");
    assert_nothing_left(&mut daemon, sockets_before, "after the time to live");

    // The command is killed in the middle of a check: the job goes on.
    let slow = dir.path().join("slow");
    std::fs::write(&slow, "#!/bin/sh\nwhile [ ! -e \"$0.go\" ]; do sleep 0.05; done\n").unwrap();
    tool("chmod").arg("+x").arg(&slow).run();
    let check = format!("script:{}", slow.display());
    let line = daemon.cli("failover test").args(["blank", "--check", &check, "--ttl", "1h"]).into_command();
    let process = Process::start(line, &dir.path().join("test.log"));
    wait("the guest runs", || job(&daemon)["phase"] == "running");
    process.kill();
    std::fs::write(dir.path().join("slow.go"), "").unwrap();
    wait("the check is made", || job(&daemon)["phase"] == "holding");
    assert_eq!(job(&daemon)["outcome"], "passed");
    let id = job(&daemon)["id"].as_str().unwrap().to_owned();
    let stopped = daemon.cli("failover stop").arg(&id).run();
    assert!(stopped.stdout.contains("nothing is left"), "{}", stopped.describe());
    assert_nothing_left(&mut daemon, sockets_before, "after the command was killed");

    // The daemon is killed: the disk is gone, and so is the guest.
    let ran = daemon.cli(command).args(rest).args(["--ttl", "1h"]).run();
    assert!(ran.stdout.contains("it runs until"), "{}", ran.describe());
    daemon.kill();
    wait("the job ends", || job(&daemon)["phase"] == "ended");
    daemon.start();
    daemon.wait_live(DISK);
    let ended = job(&daemon);
    assert!(ended["trouble"].as_str().is_some_and(|t| t.contains("has ended")), "{ended}");
    assert_eq!(processes_in(&daemon.data().join("failover")), Vec::<PathBuf>::new());
    assert!(daemon.stop().success(), "{}", daemon.log());
}

/// Two machines that need no guest, and a file for a plan.
fn two(dir: &Path) -> (Daemon, usize) {
    let mut builder = daemon::daemon(dir);
    for name in ["one", "two"] {
        let image = dir.join(format!("{name}.raw"));
        data::sparse(&image, 8 << 20);
        builder = builder.volume(name, &image);
    }
    let mut daemon = builder.start();
    for name in ["one", "two"] {
        daemon.wait_live(name);
        daemon.wait_durable(name);
        let text = format!(
            "version = 1\nname = \"{name}\"\nmemory = \"16MiB\"\naccelerator = \"tcg\"\nboard = \"pc\"\n[[disk]]\nvolume = \"{name}\"\n"
        );
        let file = dir.join(format!("{name}.toml"));
        std::fs::write(&file, text).expect("write a description");
        daemon.cli("target add").arg(file).run();
    }
    // One moment of both.
    daemon.cli("point create").args(["--all", "--name", "common"]).run();
    for name in ["one", "two"] {
        daemon.wait_durable(name);
    }
    let before = sockets(&mut daemon);
    (daemon, before)
}

/// A plan of two steps, with something before the first and behind the second.
fn plan(dir: &Path, second: &str, after: &str) -> PathBuf {
    let text = format!(
        "version = 1\nname = \"shop\"\n[[step]]\nname = \"first\"\nmachines = [\"one\"]\nchecks = [\"script:/bin/true\"]\nretries = 1\n\
         before = [{{ script = \"/bin/true\" }}]\n[[step]]\nname = \"second\"\nmachines = [\"two\"]\n\
         checks = [\"script:{second}\"]\nretries = 1\nafter = [{after}]\n"
    );
    let file = dir.join("shop-plan.toml");
    std::fs::write(&file, text).expect("write a plan");
    file
}

/// Branches that stay: neither what an export is written to, nor what an old primary has brought.
fn branches(daemon: &Daemon) -> Vec<String> {
    let list = daemon.cli("branch ls").arg("--json").run();
    let list: Value = serde_json::from_str(&list.stdout).expect("the list is JSON");
    let all = list["branches"].as_array().expect("branches");
    let own = all.iter().map(|b| b["name"].as_str().unwrap_or_default().to_owned());
    let mut own: Vec<String> = own.filter(|b| !b.contains("/tail-") && !b.contains("/export-")).collect();
    own.sort();
    own
}

/// The run of a plan that is not over, or the newest.
fn plan_run(daemon: &Daemon) -> Value {
    let list = daemon.cli("failover ls").arg("--json").run();
    let list: Value = serde_json::from_str(&list.stdout).expect("the list is JSON");
    let mut plans = list.as_array().into_iter().flatten().filter(|j| j["purpose"] == "plan");
    plans.next_back().cloned().unwrap_or(Value::Null)
}

#[test]
fn a_plan_is_shown_and_waits_for_people_and_a_failure_takes_all_back() {
    let dir = tempfile::tempdir().unwrap();
    let (mut daemon, sockets_before) = two(dir.path());
    let file = plan(dir.path(), "/bin/true", "{ wait = \"1s\" }, { manual = \"Look at the lights\" }");
    let shown = daemon.cli("failover plan").arg(&file).run();
    assert!(shown.stdout.contains("by hand: Look at the lights, within 1d"), "{}", shown.describe());
    assert!(plan_run(&daemon).is_null(), "only shown");
    let unknown = std::fs::read_to_string(&file).unwrap().replace("\"two\"", "\"three\"");
    std::fs::write(dir.path().join("unknown.toml"), unknown).unwrap();
    let refused =
        daemon.cli("failover test --plan").arg(dir.path().join("unknown.toml")).args(["--at", "common"]).run_any();
    assert!(refused.status.code() == Some(1) && refused.stderr.contains("no volume three"), "{}", refused.describe());

    let command = daemon.cli("failover test --at common --plan").arg(&file).into_command();
    let mut command = Process::start(command, &dir.path().join("plan.log"));
    wait("it waits for people", || plan_run(&daemon)["waits_for"] == "Look at the lights");
    let run = plan_run(&daemon);
    let held = branches(&daemon);
    assert!(held.len() == 2 && held.iter().all(|b| b.contains("/plan-")), "the moments are held: {held:?}");
    assert!(processes_in(&daemon.data().join("failover")).len() >= 2, "both machines run: {run:#}");
    let id = run["id"].as_str().unwrap().to_owned();
    daemon.cli("failover continue").arg(&id).run();
    wait("it has ended", || plan_run(&daemon)["phase"] == "ended");
    assert!(command.wait_end().success(), "{}", std::fs::read_to_string(dir.path().join("plan.log")).unwrap());
    let run = plan_run(&daemon);
    assert!(run["outcome"] == "passed" && run["lives"] == 1, "{run:#}");
    let late = daemon.cli("failover continue").arg(&id).run_any();
    assert!(late.stderr.contains("waits for nobody"), "{}", late.describe());
    assert_nothing_left(&mut daemon, sockets_before, "after the plan");
    assert_eq!(branches(&daemon), Vec::<String>::new());

    // The second machine fails, also when tried again; the first is taken back, and its old primary goes on.
    let file = plan(dir.path(), "/bin/false", "");
    let ran = daemon.cli("failover run --yes --at common --plan").arg(&file).run_any();
    assert!(
        ran.status.code() == Some(1) && ran.stderr.contains("step second: two: check script"),
        "{}",
        ran.describe()
    );
    let run = plan_run(&daemon);
    let states: Vec<&str> = run["parts"].as_array().unwrap().iter().map(|p| p["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["done", "undone", "undone"], "{run:#}");
    assert_nothing_left(&mut daemon, sockets_before, "after the roll-back");
    for volume in ["one", "two"] {
        daemon.wait_live(volume);
    }

    // One that passes stays, and is committed as a whole.
    let file = plan(dir.path(), "/bin/true", "");
    let ran = daemon.cli("failover run --yes --at common --plan").arg(&file).run();
    assert!(ran.stdout.contains("its machines are failovers now"), "{}", ran.describe());
    let id = plan_run(&daemon)["id"].as_str().unwrap().to_owned();
    let names = ["one", "two"].map(|volume| format!("{volume}/failover-{id}"));
    assert_eq!(branches(&daemon), names, "what held the moments is gone");
    let early = daemon.cli("failover stop").arg(&id).run_any();
    assert!(early.stderr.contains("failover rollback"), "{}", early.describe());
    daemon.cli("failover commit").arg(&id).run();
    for machine in ["s1m1a1", "s2m1a1"] {
        let stopped = daemon.cli("failover stop").arg(format!("{id}-{machine}")).run();
        assert!(stopped.stdout.contains("its branches are there"), "{}", stopped.describe());
    }
    assert!(daemon.stop().success(), "{}", daemon.log());
}

#[test]
fn killed_at_any_place_a_plan_goes_on_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let (mut daemon, sockets_before) = two(dir.path());
    let file = plan(dir.path(), "/bin/true", "");
    let mut places = 0;
    for place in 1.. {
        let test =
            daemon.cli("failover test --at common --plan").arg(&file).env("AFTERIMAGE_PLAN_KILL", place.to_string());
        let ran = test.run_any();
        let context = format!("killed at place {place}: {}", ran.describe());
        let run = plan_run(&daemon);
        assert!(ran.status.success() && run["outcome"] == "passed" && run["phase"] == "ended", "{context}\n{run:#}");
        assert_nothing_left(&mut daemon, sockets_before, &context);
        assert_eq!(branches(&daemon), Vec::<String>::new(), "{context}");
        // The first place is before anything was saved.
        if place > 1 && run["lives"] == 1 {
            places = place - 1;
            break;
        }
        assert!(place < 100, "{context}: it was killed and killed");
    }
    println!("{places} places");
    assert!(places > 15, "the plan has more places than {places}");

    // A failover whose second machine does not pass, killed at some of them: all is taken back.
    let file = plan(dir.path(), "/bin/false", "");
    for place in (2..places).step_by(4) {
        let run = daemon.cli("failover run --yes --at common --plan").arg(&file);
        let ran = run.env("AFTERIMAGE_PLAN_KILL", place.to_string()).run_any();
        let context = format!("roll-back, killed at place {place}: {}", ran.describe());
        let run = plan_run(&daemon);
        assert!(!ran.status.success() && run["outcome"] == "failed" && run["phase"] == "ended", "{context}\n{run:#}");
        assert_nothing_left(&mut daemon, sockets_before, &context);
        assert_eq!(branches(&daemon), Vec::<String>::new(), "{context}");
        for volume in ["one", "two"] {
            daemon.wait_live(volume);
        }
    }
    assert!(daemon.stop().success(), "{}", daemon.log());
}
