//! The guests of the laboratory themselves: commands and their output, files handed over, two at a time, and nothing left
//! behind when a test fails or is killed.

use afterimage_tests::guest::{self, machine};
use afterimage_tests::tool::tool;
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_guest_does_what_it_is_told() {
    let mut vm = machine("talker").afterimage().fio().processors(2).file("/etc/note", "handed over\n").boot();
    assert_eq!(vm.run("hostname; nproc"), "talker\n2");
    assert_eq!(vm.read("/etc/note"), "handed over");
    assert_eq!(vm.run("printf 'a\n\nb'"), "a\n\nb");
    let failed = vm.run_any(MINUTE, "echo before\nfalse\necho after");
    assert_eq!((failed.status, failed.text.as_str()), (1, "before"));
    assert_eq!(vm.run_any(MINUTE, "exit 7").status, 7);
    // More than any buffer between here and there.
    let long = "0123456789abcdef".repeat(2000);
    assert_eq!(vm.run(&format!("echo {long} | wc -c")), (long.len() + 1).to_string());
    let job = vm.spawn("echo working; sleep 1; echo done");
    assert_eq!(vm.wait(&job, MINUTE), "working\ndone");

    assert!(vm.run("/bin/afterimage --version").starts_with("afterimage "));
    vm.run("modprobe loop; test -c /dev/ublk-control; test -b /dev/nbd0; truncate -s 320M /tmp/x");
    vm.run("/sbin/mkfs.xfs -q /tmp/x && mount -t xfs -o loop /tmp/x /mnt && umount /mnt && /sbin/xfs_repair -n /tmp/x");
    vm.run(
        "fio --name=w --filename=/tmp/x --size=1m --rw=randwrite --verify=crc32c --ioengine=libaio --output=/tmp/log",
    );
    vm.power_off();
}

#[test]
#[should_panic(expected = "did not end within 1 s: echo working; sleep 1000")]
fn a_command_that_hangs_is_seen() {
    let _ = machine("hung").boot().run_within(Duration::from_secs(1), "echo working; sleep 1000");
}

#[test]
#[should_panic(expected = "failed with status 3: exit 3")]
fn a_command_that_fails_is_seen() {
    let _ = machine("failing").boot().run("exit 3");
}

/// This test program again, as a child that boots a guest and then is killed.
#[test]
fn a_killed_test_leaves_no_guest_behind() {
    if std::env::var_os("AFTERIMAGE_TEST_VICTIM").is_some() {
        let vm = machine("orphan").boot();
        println!("victim: booted");
        std::thread::sleep(10 * MINUTE);
        drop(vm);
    }
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let me = tool(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_test_leaves_no_guest_behind", "--nocapture"])
        .env("AFTERIMAGE_TEST_VICTIM", "1")
        .env("TMPDIR", dir.path());
    let mut victim = afterimage_tests::process::Process::start(me.into_command(), &log);
    // It may have to wait for its seat.
    let booted = || std::fs::read_to_string(&log).unwrap().contains("victim: booted");
    while victim.is_running() && !booted() {
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(booted(), "{}", victim.describe());
    let guests = |parent: u32| tool("pgrep").args(["-P", &parent.to_string(), "qemu"]).run_any().stdout;
    let qemu = guests(victim.id());
    assert!(!qemu.trim().is_empty(), "it has a guest");
    victim.kill();
    let still_there =
        || std::fs::read_to_string(format!("/proc/{}/comm", qemu.trim())).is_ok_and(|c| c.contains("qemu"));
    let end = Instant::now() + MINUTE;
    while still_there() {
        assert!(Instant::now() < end, "the guest outlived its test");
        std::thread::sleep(Duration::from_millis(100));
    }
    // Its files go when the next guest starts; they have to be old enough not to be somebody's who just begins.
    let folders = || {
        let found = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path());
        found.filter(|p| p.to_string_lossy().contains("afterimage-guest-")).collect::<Vec<_>>()
    };
    let left = folders();
    assert!(!left.is_empty(), "a killed test cannot clean up");
    for folder in &left {
        File::open(folder).unwrap().set_modified(SystemTime::now() - 2 * MINUTE).unwrap();
    }
    tool(std::env::current_exe().unwrap())
        .args(["--exact", "a_command_that_fails_is_seen"])
        .env("TMPDIR", dir.path())
        .deadline(10 * MINUTE)
        .run();
    assert_eq!(folders(), Vec::<PathBuf>::new());
}

#[test]
fn two_guests_run_at_a_time() {
    let seats = guest::seats(2);
    let mut both = [machine("one").seat(&seats).boot(), machine("two").seat(&seats).boot()];
    let names = both.each_mut().map(|vm| vm.run("hostname"));
    assert_eq!(names, ["one", "two"]);
}
