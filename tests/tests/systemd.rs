//! The units of the package under a real systemd: a Debian boots in a guest from a root disk on which the package is installed.
//! The three roles become active, devices come and stay under the unit's hardening, and the fstab lines that the agent's unit
//! names are mounted in the right order at the next boot, by themselves, and unmounted in the right order before it.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use afterimage_tests::binary::{path_of, repository};
use afterimage_tests::ext4;
use afterimage_tests::guest::{Guest, image_folder, machine};
use afterimage_tests::tool::tool;
use std::path::{Path, PathBuf};
use std::time::Duration;

const UNITS: &str = "afterimage-appliance afterimage-agent afterimage-mgmt";
/// What the laboratory's initramfs loads to get at the root disk: no driver of block devices in user space is among it, for
/// these are for the agent's unit to ask for.
const EARLY: &str = "virtio_blk\ncrc32c_generic\ncrc32c_intel\next4\n";
/// In seconds: how long systemd waits for a device that fstab says nothing of, and how much later the agent is at the second boot.
const PATIENCE: u32 = 10;

/// The root disk, in the same folder as what it is made from.
fn root_disk(dir: &Path, release: &str) -> PathBuf {
    let hour = Duration::from_secs(3600);
    let build = tool(repository().join("packaging/build-deb.sh")).arg("--binary").arg(path_of("afterimage"));
    let package = build.arg("--out").arg(dir).run().stdout;
    let debian = tool(repository().join("scripts/debian-root.sh")).arg(release).deadline(hour).run().stdout;
    let script = dir.join("systemd.sh");
    std::fs::write(&script, include_str!("../guest/systemd.sh")).unwrap();
    tool("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-e"])
        .arg(&script)
        .arg(debian.trim_end())
        .arg(dir)
        .arg(package.trim_end())
        .arg(image_folder())
        .run();
    dir.join("root.raw")
}

/// The lines of fstab that the agent's unit recommends: of a local file system, and of one with `_netdev`.
fn recommended() -> Vec<String> {
    let unit = std::fs::read_to_string(repository().join("packaging/systemd/afterimage-agent.service")).unwrap();
    unit.lines().filter_map(|l| l.strip_prefix("#     /dev/")).map(|l| format!("/dev/{l}")).collect()
}

fn boot(root: &Path, disk: &Path) -> Guest {
    let plan = machine("debian").memory(512).processors(2).file("/etc/early-modules", EARLY);
    let mut vm = plan.image(root).image(disk).root("/dev/vda").boot();
    // Not `--wait`: early in a boot that ends at once and says nothing. An emulated guest beside other work takes minutes.
    let over = "sleep 2; systemctl is-system-running | grep -x -e running -e degraded -e maintenance";
    let state = vm.wait_until(Duration::from_secs(600), over);
    if state != "running" {
        let more = vm.run(
            "systemctl --failed --no-pager; systemctl list-jobs --no-pager; journalctl -b --no-pager -p 5 | tail -n 80",
        );
        panic!("the system is {state}:\n{more}");
    }
    println!("{}", vm.run_any(Duration::from_secs(300), "systemd-analyze time").text);
    vm
}

/// Runs a script with the command's data folder set to the agent's.
#[track_caller]
fn ours(vm: &mut Guest, script: &str) -> String {
    vm.run(&format!("export AFTERIMAGE_DATA=/var/lib/afterimage/agent NO_COLOR=1\n{script}"))
}

/// Shuts it down as an administrator does.
fn shut_down(mut vm: Guest) {
    vm.run("systemctl poweroff --no-block");
    vm.wait_for("reboot: Power down");
}

#[track_caller]
fn assert_no_trouble(vm: &mut Guest) {
    let kernel = vm.run("dmesg");
    let trouble = |l: &&str| ["I/O error", "EXT4-fs error", "EXT4-fs warning", "hung"].iter().any(|w| l.contains(w));
    let found: Vec<&str> = kernel.lines().filter(trouble).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// What tells devices and mounts from others under the same name.
#[track_caller]
fn identities(vm: &mut Guest) -> String {
    vm.run("cat /sys/block/ublkb0/diskseq /sys/block/ublkb1/diskseq; systemctl show -P InvocationID srv.mount")
}

/// The number of the first line that holds all of this.
#[track_caller]
fn line_with(log: &str, words: &[&str]) -> usize {
    let found = log.lines().position(|l| words.iter().all(|w| l.contains(w)));
    found.unwrap_or_else(|| panic!("{words:?} is not in the journal:\n{log}"))
}

/// When something of a unit happened, in microseconds of the guest.
#[track_caller]
fn time(vm: &mut Guest, unit: &str, what: &str) -> u64 {
    let said = vm.run(&format!("systemctl show -P {what}TimestampMonotonic '{unit}'"));
    let at = said.parse().unwrap();
    assert!(at > 0, "{unit}: {what} never happened");
    at
}

#[test]
fn the_units_start_serve_and_mount_under_systemd() {
    let release = std::env::var("AFTERIMAGE_DEBIAN").unwrap_or_else(|_| "trixie".into());
    if !nix::unistd::geteuid().is_root() {
        println!("not checked: a root disk with files of several owners needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = root_disk(dir.path(), &release);
    let disk = dir.path().join("disk.raw");
    std::fs::File::create(&disk).unwrap().set_len(96 << 20).unwrap();

    let mut vm = boot(&root, &disk);
    first_start(&mut vm);
    a_device_in_use_stays(&mut vm);
    mounts_stay(&mut vm);
    vm.run(&format!("systemctl enable {UNITS}"));
    // At the next boot, the agent takes longer to start than systemd waits for a device of which it knows nothing else.
    vm.run(&format!(
        "mkdir -p /etc/systemd/system.conf.d /etc/systemd/system/afterimage-agent.service.d
         printf '[Manager]\\nDefaultDeviceTimeoutSec={PATIENCE}s\\n' >/etc/systemd/system.conf.d/device.conf
         printf '[Service]\\nExecStartPre=/bin/sleep {}\\n' >/etc/systemd/system/afterimage-agent.service.d/late.conf",
        PATIENCE + 3
    ));
    shut_down(vm);
    // It is the disk itself, and nothing waits to be written to it.
    assert!(tool("dumpe2fs").arg("-h").arg(&disk).run().stdout.contains("Filesystem state:         clean"));
    ext4::assert_sound(&disk, "the disk after the shutdown");
    assert_eq!(ext4::read_file(&disk, "/kept").as_deref(), Some("kept\n"));

    let mut vm = boot(&root, &disk);
    the_last_shutdown_was_in_order(&mut vm);
    this_boot_was_in_order(&mut vm);
    vm.kill();
}

/// Each says that it is ready, and is given what it needs and no more.
fn first_start(vm: &mut Guest) {
    // The drivers are for the unit to ask for.
    vm.run("test ! -e /dev/ublk-control; test ! -e /sys/module/nbd");
    vm.run(&format!("systemctl start {UNITS}"));
    for unit in UNITS.split(' ') {
        let shown = vm.run(&format!("systemctl show -p Type -p ActiveState -p NRestarts {unit}"));
        let mut shown: Vec<&str> = shown.lines().collect();
        shown.sort_unstable();
        assert_eq!(shown, ["ActiveState=active", "NRestarts=0", "Type=notify"], "{unit}");
    }
    let owners = vm.run("cd /var/lib/afterimage; stat -c '%n %U %a' agent appliance mgmt");
    assert_eq!(owners, "agent root 700\nappliance afterimage 700\nmgmt afterimage 700");
    ours(vm, "afterimage wait disk --timeout 4m; afterimage wait image --timeout 4m");
    assert_eq!(ours(vm, "afterimage attach disk; afterimage attach image"), "/dev/ublkb0\n/dev/ublkb1");
    // The kernel's NBD client is within reach, too.
    let nbd = ours(vm, "afterimage attach image --nbd");
    assert!(nbd.starts_with("/dev/nbd"), "{nbd}");
    ours(vm, &format!("dd if=/dev/zero of={nbd} bs=4k count=16 conv=fsync; udevadm settle; afterimage detach {nbd}"));
}

/// A program of another user has a device open, as QEMU may: it is not taken away.
fn a_device_in_use_stays(vm: &mut Guest) {
    let _holder = vm.spawn(
        "echo $$ >/run/holder
         exec setpriv --reuid=65534 --regid=65534 --clear-groups sleep 3600 </dev/ublkb1",
    );
    let limit = Duration::from_secs(300);
    vm.wait_until(limit, "grep sleep /proc/$(cat /run/holder)/comm");
    let refused = vm.run_any(limit, "afterimage detach /dev/ublkb1 --data /var/lib/afterimage/agent");
    assert!(refused.status != 0 && refused.text.contains("sleep"), "{refused:?}");
    let seq = vm.run("cat /sys/block/ublkb1/diskseq");
    vm.run("systemctl restart afterimage-agent");
    assert_eq!(
        vm.run("cat /sys/block/ublkb1/diskseq"),
        seq,
        "a device in use was taken away by a restart of the agent"
    );
    vm.run("kill $(cat /run/holder)");
}

/// A restart and a kill of the agent are a pause for what is mounted.
fn mounts_stay(vm: &mut Guest) {
    let lines = recommended();
    assert_eq!(lines.len(), 2, "{lines:?}");
    vm.run("mkfs.ext4 -q /dev/ublkb0; mkfs.ext4 -q /dev/ublkb1; mkdir -p /srv /mnt");
    for line in lines {
        vm.run(&format!("echo '{line}' >>/etc/fstab"));
    }
    vm.run("systemctl daemon-reload; systemctl start srv.mount mnt.mount; echo kept >/srv/kept; echo kept >/mnt/kept; sync");
    let before = identities(vm);
    let work = vm.spawn(
        "n=0
         while [ ! -e /run/stop ]; do
             n=$((n + 1))
             for to in /srv /mnt; do dd if=/dev/urandom of=$to/f$((n % 20)) bs=4k count=3 conv=fsync 2>/dev/null; done
         done
         echo $n",
    );
    let probe = "for to in /srv /mnt; do echo probe >$to/probe; sync $to/probe; done";
    vm.run(&format!("systemctl restart afterimage-agent; {probe}"));
    assert_eq!(identities(vm), before, "a restart of the agent has unmounted a disk");
    vm.run(&format!(
        "old=$(systemctl show -P MainPID afterimage-agent)
         kill -9 $old
         {probe}
         until systemctl is-active -q afterimage-agent; do sleep 0.2; done
         [ \"$(systemctl show -P MainPID afterimage-agent)\" != \"$old\" ]
         [ \"$(systemctl show -P NRestarts afterimage-agent)\" = 1 ]"
    ));
    assert_eq!(identities(vm), before, "a kill of the agent has unmounted a disk");
    vm.run("touch /run/stop");
    let rounds = vm.wait(&work, Duration::from_secs(300));
    println!("{rounds} rounds of work went on");
    let log = vm.run("journalctl -b --no-pager -u afterimage-agent");
    line_with(&log, &["taken over /dev/ublkb0"]);
    line_with(&log, &["taken over /dev/ublkb1"]);
    assert_no_trouble(vm);
}

fn the_last_shutdown_was_in_order(vm: &mut Guest) {
    let units = "-u afterimage-agent -u srv.mount -u mnt.mount";
    let all = vm.run(&format!("journalctl -b -1 --no-pager -o short-monotonic {units}"));
    let first = line_with(&all, &["systemd[1]", "Unmounting"]);
    let log = all.lines().skip(first).collect::<Vec<_>>().join("\n");
    println!("the shutdown:\n{log}");
    let stop = line_with(&log, &["systemd[1]", "Stopping afterimage-agent.service"]);
    for unit in ["srv.mount", "mnt.mount"] {
        assert!(line_with(&log, &["systemd[1]", "Unmounted", unit]) < stop, "{unit} was unmounted too late:\n{log}");
    }
    assert!(line_with(&log, &["systemd[1]", "Stopped afterimage-agent.service"]) > stop);
    for word in ["Failed", "failed", "timed out", "Killing"] {
        assert!(!log.contains(word), "{log}");
    }
}

fn this_boot_was_in_order(vm: &mut Guest) {
    assert_eq!(vm.run("cat /srv/kept /mnt/kept"), "kept\nkept");
    let mounted = vm.run("findmnt -n -o SOURCE,FSTYPE /srv; findmnt -n -o SOURCE,FSTYPE /mnt");
    assert_eq!(mounted, "/dev/ublkb0 ext4\n/dev/ublkb1 ext4");
    assert_eq!(vm.run(&format!("systemctl is-active {UNITS}")), "active\nactive\nactive");
    let ready = time(vm, "afterimage-agent.service", "ActiveEnter");
    let begun = time(vm, "afterimage-agent.service", "InactiveExit");
    assert!(ready - begun > u64::from(PATIENCE) * 1_000_000, "the agent was not late");
    for (mount, check, target) in [
        ("srv.mount", "systemd-fsck@dev-ublkb0.service", "local-fs.target"),
        ("mnt.mount", "systemd-fsck@dev-ublkb1.service", "remote-fs.target"),
    ] {
        // The device is there a moment before the agent says that it is ready, and may be checked in it.
        let times = [
            begun,
            time(vm, check, "InactiveExit"),
            time(vm, mount, "InactiveExit"),
            time(vm, mount, "ActiveEnter"),
            time(vm, target, "ActiveEnter"),
        ];
        println!("agent ready: {ready}; agent begun, {check}, {mount} begun and mounted, {target}: {times:?} µs");
        assert!(times.is_sorted() && ready <= times[2], "{mount}: {times:?}, {ready}");
    }
    let log = vm.run("journalctl -b --no-pager");
    assert!(!log.contains("ordering cycle"), "{log}");
    // Unmounted in order at the shutdown, there is nothing to replay or to repair.
    line_with(&log, &["systemd-fsck", "/dev/ublkb0: clean"]);
    line_with(&log, &["systemd-fsck", "/dev/ublkb1: clean"]);
    ours(vm, "echo new >/srv/new; sync; afterimage wait disk --for durable --timeout 2m");
    assert_no_trouble(vm);
}
