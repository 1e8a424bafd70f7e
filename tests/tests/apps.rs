//! App-consistent points: scripts, a guest agent (a pretended one), kills in the middle; and a real file system in a guest.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use afterimage_tests::daemon::{Daemon, daemon};
use afterimage_tests::data;
use afterimage_tests::guest::machine;
use afterimage_tests::lab::DISK;
use afterimage_tests::pretender::Pretender;
use afterimage_tests::tool::tool;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(60);

struct Bench {
    daemon: Daemon,
    agent: Pretender,
    log: PathBuf,
    _dir: tempfile::TempDir,
}

/// A protected disk, a guest agent, and scripts that write to a log.
fn bench(more: &str) -> Bench {
    let dir = tempfile::Builder::new().prefix("afterimage-apps-").tempdir().unwrap();
    let (image, log, socket) = (dir.path().join("disk.raw"), dir.path().join("steps"), dir.path().join("qga"));
    data::sparse(&image, 16 * MIB);
    let agent = Pretender::default();
    agent.serve(&socket);
    let script = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(
            &path,
            format!("#!/bin/sh\necho {name} $AFTERIMAGE_POINT $AFTERIMAGE_RESULT >> {}\n{text}\n", log.display()),
        )
        .unwrap();
        tool("chmod").arg("+x").arg(&path).run();
        path.display().to_string()
    };
    let (pre, post) = (script("pre", "echo flushed"), script("post", ""));
    let table = format!(
        "[{DISK}]\nguest_agent = {:?}\npre = [{pre:?}]\npost = [{post:?}]\n{more}\n",
        socket.display().to_string()
    );
    let file = dir.path().join("app.toml");
    std::fs::write(&file, table).unwrap();
    let options = ["--point-every", "0", "--ring", "16MiB", "--app-file"].map(Into::into);
    let options = options.into_iter().chain([file.into_os_string()]);
    let daemon = daemon(dir.path()).volume(DISK, &image).options(options).start();
    daemon.wait_live(DISK);
    Bench { daemon, agent, log, _dir: dir }
}

impl Bench {
    fn create(&self, name: &str) -> afterimage_tests::tool::Finished {
        self.daemon.cli("point create").args([DISK, "--name", name, "--app", "--json"]).run_any()
    }

    fn points(&self) -> Vec<Value> {
        let list = self.daemon.cli("point ls").args([DISK, "--json"]).run();
        let list: Value = serde_json::from_str(&list.stdout).unwrap();
        list["points"].as_array().unwrap().clone()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn write(&self, byte: u8) {
        let write = format!("write -P {byte} 0 1M");
        tool("qemu-io").args(["-f", "raw", "-c", &write, "-c", "flush", &self.daemon.uri(DISK)]).run();
    }
}

#[test]
fn a_point_says_how_it_was_made() {
    let mut bench = bench("");
    bench.write(1);
    let made = bench.create("quiet");
    assert!(made.status.success(), "{}", made.describe());
    let point: Value = serde_json::from_str(&made.stdout).unwrap();
    let app = &point["app"];
    assert_eq!((&app["consistency"], &app["reason"]), (&json!("app"), &Value::Null), "{point}");
    let steps: Vec<_> = app["steps"].as_array().unwrap().iter().map(|s| (s["step"].clone(), s["ok"].clone())).collect();
    assert_eq!(steps, ["pre", "freeze", "marker", "thaw", "post"].map(|s| (json!(s), json!(true))));
    assert_eq!((&app["steps"][0]["said"], &app["steps"][1]["said"]), (&json!("flushed"), &json!("2 file systems")));
    assert_eq!(bench.agent.heard(), ["asked to freeze", "freeze", "thaw"]);
    assert_eq!(bench.log(), "pre quiet\npost quiet app\n");
    assert_eq!(bench.points(), std::slice::from_ref(&point), "the appliance keeps all of it");
    // Over a kill and a clean stop, and in the list for people.
    for clean in [false, true] {
        if clean {
            bench.daemon.stop();
        } else {
            bench.daemon.kill();
        }
        bench.daemon.start();
        bench.daemon.wait_live(DISK);
        assert_eq!(bench.points()[0], point);
    }
    let list = bench.daemon.cli("point ls").arg(DISK).run().stdout;
    assert!(list.lines().any(|l| l.starts_with("quiet") && l.trim_end().ends_with(" app")), "{list}");
    let twice = bench.create("quiet");
    assert!(!twice.status.success() && twice.stderr.contains("already"), "{}", twice.describe());
}

#[test]
fn what_fails_is_said_and_thawed() {
    let bench = bench("freeze_limit = \"1s\"\nthaw_limit = \"1s\"");
    bench.write(1);
    // The guest takes too long to freeze: it is thawed when it has, and nobody waits for that.
    bench.agent.set(|s| s.slow = Duration::from_secs(8));
    let made = bench.create("late");
    let point: Value = serde_json::from_str(&made.stdout).unwrap();
    assert_eq!(point["app"]["consistency"], "crash", "{}", made.describe());
    assert!(point["app"]["reason"].as_str().unwrap().starts_with("freeze: "), "{point}");
    bench.agent.wait("thawed after all", |s| s.heard.ends_with(&["freeze".to_owned(), "thaw".to_owned()]) && !s.frozen);
    assert!(bench.log().ends_with("post late crash\n"), "{}", bench.log());
    // Somebody else has frozen it: it is left alone.
    bench.agent.set(|s| (s.slow, s.frozen) = (Duration::ZERO, true));
    drop(bench.agent.heard());
    let made = bench.create("theirs");
    assert!(made.stdout.contains("somebody else"), "{}", made.describe());
    assert!(bench.agent.heard().is_empty() && bench.agent.is_frozen());
    assert_eq!(bench.points().len(), 2);
}

#[test]
fn a_point_that_must_be_consistent_or_not_at_all() {
    let bench = bench("on_failure = \"fail\"");
    bench.write(1);
    // It thaws before it is asked: the marker is made, and taken back.
    bench.agent.set(|s| s.fickle = true);
    let made = bench.create("fickle");
    assert_eq!(made.status.code(), Some(1), "{}", made.describe());
    assert!(made.stderr.contains("thaw: ") && made.stderr.contains("fickle"), "{}", made.describe());
    assert!(bench.points().is_empty() && bench.log().ends_with("post fickle failed\n"), "{}", bench.log());
    bench.agent.set(|s| s.fickle = false);
    assert!(bench.create("fickle").status.success(), "the name is free");
    assert_eq!(bench.points().len(), 1);
}

#[test]
fn a_kill_in_the_middle_leaves_nothing_frozen() {
    let mut bench = bench("");
    bench.write(1);
    bench.agent.set(|s| s.slow = Duration::from_secs(3));
    let asked = bench.daemon.cli("point create").args([DISK, "--name", "cut", "--app"]).into_command().spawn();
    bench.agent.wait("freezing", |s| s.heard.ends_with(&["asked to freeze".to_owned()]));
    bench.daemon.kill();
    bench.agent.wait("thawed", |s| s.heard.ends_with(&["freeze".to_owned(), "thaw".to_owned()]) && !s.frozen);
    asked.unwrap().wait().unwrap();
    assert_eq!(bench.log(), "pre cut\n");
    // The next start ends what the script began.
    bench.daemon.start();
    bench.daemon.wait_live(DISK);
    let until = Instant::now() + LONG;
    while bench.log() != "pre cut\npost cut failed\n" {
        assert!(Instant::now() < until, "{}", bench.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    bench.agent.set(|s| s.slow = Duration::ZERO);
    assert!(bench.create("whole").stdout.contains("\"app\""));
}

#[test]
fn points_by_schedule() {
    let bench = bench("every = \"1s\"");
    let until = Instant::now() + LONG;
    let mut byte = 1;
    while bench.points().iter().filter(|p| p["auto"] == true && p["app"]["consistency"] == "app").count() < 2 {
        assert!(Instant::now() < until, "{:?}\n{}", bench.points(), bench.daemon.log());
        bench.write(byte);
        byte = byte % 200 + 1;
        std::thread::sleep(Duration::from_millis(300));
    }
}

#[test]
fn what_is_kept_is_shown_changed_and_remembered() {
    let mut bench = bench("");
    bench.write(1);
    for name in ["one", "two"] {
        bench.daemon.point(DISK, name);
    }
    let retention = |bench: &Bench, more: &[&str]| -> Value {
        let told = bench.daemon.cli("volume retention").args([DISK, "--json"]).args(more).run();
        serde_json::from_str(&told.stdout).unwrap()
    };
    let before = retention(&bench, &[]);
    assert_eq!(
        (&before["window_seconds"], &before["own"], &before["freed"]),
        (&json!(86400), &json!(false), &Value::Null)
    );
    let tried = retention(&bench, &["--window", "1h", "--hourly", "24", "--dry-run"]);
    assert_eq!((&tried["hourly"], &tried["dry_run"], &tried["freed"]["blocks"]), (&json!(24), &json!(true), &json!(0)));
    assert_eq!(tried["points"][0]["kept"], json!(["window", "user"]));
    assert_eq!(retention(&bench, &[]), before, "nothing was changed");
    let changed = retention(&bench, &["--window", "1h", "--monthly", "12", "--hold"]);
    assert_eq!((&changed["own"], &changed["hold"], &changed["monthly"]), (&json!(true), &json!(true), &json!(12)));
    let held = bench.daemon.cli("point rm").args([DISK, "one"]).run_failing(1);
    assert!(held.stderr.contains("--release"), "{}", held.describe());
    bench.daemon.kill();
    bench.daemon.start();
    bench.daemon.wait_live(DISK);
    assert_eq!(retention(&bench, &["--release", "--daily", "7"])["window_seconds"], json!(3600));
    bench.daemon.cli("point pin").args([DISK, "two"]).run();
    bench.daemon.cli("point rm").args([DISK, "one"]).run();
    bench.daemon.cli("point rm").args([DISK, "one"]).run_failing(1);
    let points = bench.points();
    assert_eq!((points.len(), &points[0]["name"], &points[0]["pinned"]), (1, &json!("two"), &json!(true)));
    let text = bench.daemon.cli("volume retention").args([DISK]).run().stdout;
    assert!(text.contains("last 1h, 7 daily, 12 monthly") && text.contains("window, user, pin"), "{text}");
    assert_eq!(retention(&bench, &["--default"])["own"], json!(false));
}

const TABLE: &str = "[disk]\nmounts = [\"/mnt\"]\n";

/// ext4 on the kernel's NBD client, with agent and appliance in the guest.
#[test]
fn a_frozen_ext4_needs_no_recovery_and_is_never_left_frozen() {
    let dir = tempfile::tempdir().unwrap();
    let files = ["disk", "state", "copy"].map(|name| dir.path().join(name));
    for (file, size) in files.iter().zip([32, 128, 32]) {
        data::sparse(file, size * MIB);
    }
    let [disk, state, copy] = &files;
    let plan = machine("apps").afterimage().memory(384).image(disk).image(state).image(copy);
    let mut vm = plan.file("/etc/app.toml", TABLE).boot();
    let up = "setsid /bin/afterimage up --data /var/data --listen unix:/run --ring 16MiB --point-every 0 \
              --app-file /etc/app.toml disk=/dev/vda >>/run/up.log 2>&1 &";
    let live = "/bin/afterimage status --data /var/data --json | tr -d '\\n' | grep -q '\"state\": *\"live\"'";
    vm.run(&format!(
        "mkdir -p /var; /sbin/mke2fs -q -t ext4 /dev/vdb; mkdir -p /var; mount -t ext4 /dev/vdb /var; {up}"
    ));
    vm.wait_until(LONG * 5, &format!("{live} || {{ cat /run/up.log; false; }}"));
    vm.run("/sbin/nbd-client -unix /run/nbd.sock -N disk -timeout 120 /dev/nbd0");
    vm.run("/sbin/mke2fs -q -t ext4 /dev/nbd0; mount -t ext4 /dev/nbd0 /mnt; echo one >/mnt/one");
    let create = |name: &str, more: &str| {
        format!("/bin/afterimage point create disk --name {name} {more} --json --data /var/data")
    };
    vm.run(&create("crash", ""));
    let made: Value = serde_json::from_str(&vm.run(&create("quiet", "--app"))).unwrap();
    assert_eq!(made["app"]["consistency"], "app", "{made}");
    vm.run("echo two >/mnt/two; sync");
    for (name, clean) in [("quiet", true), ("crash", false)] {
        vm.run(&format!("/bin/afterimage restore disk --at {name} --to /dev/vdc --yes --data /var/data"));
        let checked = vm.run_any(LONG, "/sbin/e2fsck -fn /dev/vdc 2>&1").text;
        let skips = checked.contains("skipping journal recovery");
        assert_eq!(!skips, clean, "{name}: {checked}");
    }
    // Who holds the freeze hears that nobody is there any more.
    vm.run(
        "ask='{\"mounts\":[\"/mnt\"],\"guest_agent\":null,\"freeze_ms\":60000,\"hold_ms\":600000}'\n\
         mkfifo /run/orders; /bin/afterimage freeze-guard </run/orders >/run/told 2>&1 & echo $! >/run/guard\n\
         sleep 1000 >/run/orders & echo $! >/run/holder; echo \"$ask\" >/run/orders",
    );
    vm.wait_until(LONG, "grep frozen /run/told || { cat /run/told; false; }");
    vm.run("touch /mnt/x & echo $! >/run/writer; sleep 1; kill -0 $(cat /run/writer)");
    vm.run("kill -9 $(cat /run/holder)");
    vm.wait_until(LONG, "test -e /mnt/x");
    // All are killed at once: the next start thaws.
    vm.run(
        "ask='{\"mounts\":[\"/mnt\"],\"guest_agent\":null,\"freeze_ms\":60000,\"hold_ms\":600000}'\n\
         /bin/afterimage freeze-guard </run/orders >/run/told 2>&1 & echo $! >/run/guard\n\
         sleep 1000 >/run/orders & echo $! >/run/holder; echo \"$ask\" >/run/orders",
    );
    vm.wait_until(LONG, "grep frozen /run/told");
    vm.run(
        "kill -9 $(cat /run/guard); kill -9 $(cat /var/data/LOCK)\n\
         echo '{\"volume\":\"disk\",\"point\":\"p\",\"targets\":{\"mounts\":[\"/mnt\"],\"guest_agent\":null},\"post\":[],\
         \"script_ms\":1000}' >/var/data/agent/disk/app",
    );
    vm.run("touch /mnt/y & sleep 1");
    vm.run(up);
    vm.wait_until(LONG * 2, "grep -q 'was not brought to its end' /run/up.log || { cat /run/up.log; false; }");
    vm.wait_until(LONG, "! test -e /var/data/agent/disk/app");
}

/// A virtual machine that mounts a protected disk, with QEMU's own guest agent in it.
#[test]
fn qemu_s_guest_agent_makes_a_point_that_needs_no_recovery() {
    let dir = tempfile::Builder::new().prefix("afterimage-qga-").tempdir().unwrap();
    let (image, socket, app) = (dir.path().join("disk.raw"), dir.path().join("qga"), dir.path().join("app.toml"));
    data::sparse(&image, 32 * MIB);
    std::fs::write(&app, format!("[{DISK}]\nguest_agent = {:?}\n", socket.display().to_string())).unwrap();
    let options = ["--point-every", "0", "--ring", "16MiB", "--app-file"].map(Into::into);
    let options = options.into_iter().chain([app.into_os_string()]);
    let daemon = daemon(dir.path()).volume(DISK, &image).options(options).start();
    daemon.wait_live(DISK);
    let mut vm = machine("qga").disk(&daemon.uri(DISK)).guest_agent(&socket).boot();
    vm.run(
        "modprobe virtio_console 2>/dev/null || true # it may be built in\n\
         /sbin/mke2fs -q -t ext4 /dev/vda; mount -t ext4 /dev/vda /mnt; mkdir -p /run/qga\n\
         setsid /sbin/qemu-ga -p $(ls /dev/vport*p1) -t /run/qga >/run/qga.log 2>&1 &",
    );
    // It writes all the time, and what it has acknowledged itself with a sync is counted.
    vm.run(
        "(n=0; while :; do n=$((n + 1)); echo $n >/mnt/n; sync; echo $n >/run/n; sleep 0.1; done) >/dev/null 2>&1 &",
    );
    vm.wait_until(LONG, "test -s /run/n");
    let create = |name: &str, more: &[&str]| {
        let made = daemon.cli("point create").args([DISK, "--name", name, "--json"]).args(more).run_any();
        let why = || format!("{}\n{}", made.describe(), daemon.log());
        serde_json::from_str::<Value>(&made.stdout).unwrap_or_else(|e| panic!("{e}: {}", why()))
    };
    let before: u64 = vm.run("cat /run/n").parse().unwrap();
    let quiet = create("quiet", &["--app"]);
    assert_eq!(quiet["app"]["consistency"], "app", "{quiet:#}");
    create("crash", &[]);
    // It was thawed.
    let then: u64 = vm.run("cat /run/n").parse().unwrap();
    vm.wait_until(LONG, &format!("test $(cat /run/n) -gt {}", then + 1));
    for (name, clean) in [("quiet", true), ("crash", false)] {
        let copy = dir.path().join(name);
        daemon.restore(DISK, name, &copy);
        let checked = tool("/sbin/e2fsck").args(["-fn"]).arg(&copy).run_any().stdout;
        assert_eq!(!checked.contains("skipping journal recovery"), clean, "{name}: {checked}");
        if clean {
            let n: u64 = afterimage_tests::ext4::read_file(&copy, "/n").unwrap().trim().parse().unwrap();
            assert!((before..=then + 1).contains(&n), "{before} {n} {then}");
        }
    }
    // A guest agent that does not answer any more makes no app-consistent point, and holds nothing up.
    vm.run("killall qemu-ga");
    let alone = create("alone", &["--app"]);
    assert_eq!(alone["app"]["consistency"], "crash", "{alone:#}");
}
