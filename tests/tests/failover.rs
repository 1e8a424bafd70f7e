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
    assert_eq!(processes_in(&jobs), Vec::<PathBuf>::new(), "{context}");
    for folder in std::fs::read_dir(&jobs).expect("list jobs").flatten().filter(|e| e.path().is_dir()) {
        for file in std::fs::read_dir(folder.path()).expect("list a job").flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            let kept = ["job.json", "lock", "runner.log", "qemu.log", "serial.log", "screen.png", "script.log"];
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
