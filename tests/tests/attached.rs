//! Block devices of volumes in a guest, beyond what `ublk.rs` proves: mounts of now and then, what an older kernel lacks, changed
//! sizes, and the kernel's NBD client over kills of the process.

use afterimage_tests::data::Chance;
use afterimage_tests::guest::Guest;
use afterimage_tests::inside::{LIMIT, acked, ours, protecting};

/// What a command says that must fail with this exit code.
fn refused(vm: &mut Guest, code: i32, command: &str) -> String {
    ours(vm, &format!("set +e; said=$({command} 2>&1); code=$?; set -e; echo \"$said\"; [ $code = {code} ]"))
}

#[test]
fn mounts_of_now_and_then() {
    let mut vm = protecting(&[("e", 48), ("x", 320), ("p", 48)], 2);
    // Nothing is there yet: refused, and nothing stays attached.
    assert!(refused(&mut vm, 1, "afterimage mount e /mnt/e").contains("no file system that is known here"));
    ours(&mut vm, "! grep -q ublkb0 /proc/partitions");
    ours(&mut vm, "/sbin/mke2fs -q -t ext4 $(afterimage attach e); /sbin/mkfs.xfs -q $(afterimage attach x)");
    ours(&mut vm, "afterimage detach e; afterimage detach x");

    let said = ours(&mut vm, "afterimage mount e /mnt/e; afterimage mount x /mnt/x");
    assert!(said.contains("/mnt/e: e, ext4 on /dev/ublkb") && said.contains("/mnt/x: x, xfs on /dev/ublkb"), "{said}");
    ours(
        &mut vm,
        "for d in e x; do echo first >/mnt/$d/file; sync; afterimage point create $d --name busy; echo second >/mnt/$d/file; done",
    );
    // Of a busy moment: its journal is replayed, on a device that takes writes, and nobody sees more than what was there.
    for (d, kind) in [("e", "ext4"), ("x", "xfs")] {
        let said = ours(&mut vm, &format!("afterimage mount {d} --at busy /mnt/past"));
        assert!(said.contains(kind) && said.contains("read-only"), "{said}");
        assert_eq!(vm.run("cat /mnt/past/file"), "first");
        vm.run("if touch /mnt/past/new; then exit 1; fi");
        let busy = refused(&mut vm, 1, "cd /mnt/past; afterimage umount /mnt/past");
        assert!(busy.to_lowercase().contains("busy"), "{busy}");
        let said = ours(&mut vm, "afterimage umount /mnt/past");
        assert!(said.contains("is detached"), "{said}");
        let said =
            ours(&mut vm, &format!("afterimage mount {d} --at busy --writable /mnt/past; echo third >/mnt/past/file"));
        assert!(said.contains("forgotten at umount"), "{said}");
        ours(&mut vm, "afterimage umount /mnt/past");
        assert_eq!(
            ours(&mut vm, &format!("afterimage mount {d} --at busy /mnt/past; cat /mnt/past/file")).lines().last(),
            Some("first")
        );
        ours(&mut vm, "afterimage umount /mnt/past");
    }
    assert_eq!(vm.run("cat /mnt/e/file /mnt/x/file"), "second\nsecond");

    // Of a moment at which nothing was mounted: the device takes no writes, and stays over a kill of the process.
    ours(
        &mut vm,
        "afterimage umount /mnt/e; afterimage point create e --name quiet; afterimage mount e --at quiet /mnt/past",
    );
    ours(
        &mut vm,
        "afterimage status --json | tr -d ' \\n' | grep -q '\"writable\":false,\"queues\":1,\"trouble\":null'",
    );
    ours(&mut vm, "crash; echo 3 >/proc/sys/vm/drop_caches; cat /mnt/past/file; afterimage umount /mnt/past");
    // What was attached by hand stays.
    ours(&mut vm, "afterimage mount e /mnt/e; afterimage attach e");
    assert!(ours(&mut vm, "afterimage umount /mnt/e").contains("stays attached"));
    ours(&mut vm, "afterimage detach e; afterimage umount /mnt/x; [ ! -e /dev/ublkb0 ]");
    assert!(refused(&mut vm, 1, "afterimage umount /mnt/x").contains("nothing is mounted"));

    partitions(&mut vm);
    ours(&mut vm, "rmmod xfs; mv /lib/modules /lib/away");
    let told = refused(&mut vm, 1, "afterimage mount x /mnt/x");
    assert!(told.contains("modprobe xfs"), "{told}");
}

fn partitions(vm: &mut Guest) {
    ours(vm, "d=$(afterimage attach p); partition $d; /sbin/mke2fs -q -t ext4 ${d}p2; afterimage detach p");
    assert!(ours(vm, "afterimage mount p /mnt/e").contains("p2"));
    ours(vm, "echo here >/mnt/e/file; afterimage umount /mnt/e; afterimage point create p --name one");
    ours(vm, "d=$(afterimage attach p); /sbin/mke2fs -q -t ext4 ${d}p1; afterimage detach p");
    let told = refused(vm, 1, "afterimage mount p /mnt/e");
    assert!(told.contains("1 (ext4), 2 (ext4)") && told.contains("--partition"), "{told}");
    assert!(refused(vm, 1, "afterimage mount p --partition 3 /mnt/e").contains("partition 3"));
    ours(vm, "afterimage mount p --partition 2 /mnt/e; cat /mnt/e/file; afterimage umount /mnt/e");
    ours(
        vm,
        "afterimage mount p --at one /mnt/past; cat /mnt/past/file; afterimage umount /mnt/past; [ ! -e /dev/ublkb0 ]",
    );
}

#[test]
fn an_older_kernel_is_served_with_what_it_has() {
    let mut vm = protecting(&[("disk", 48)], 2);
    // As on Linux 6.1: payloads through buffers, commands in the older spelling.
    ours(&mut vm, "echo export AFTERIMAGE_UBLK_WITHOUT=user-copy,encode >/run/env");
    ours(&mut vm, "crash; verify $(afterimage attach disk --queues 2) 2");
    let shown = ours(&mut vm, "afterimage status; cat $LOG");
    assert_eq!(
        shown.matches("user copy: payloads are copied once more").count(),
        2,
        "named in status and log: {shown}"
    );
    ours(&mut vm, "/sbin/mke2fs -q -t ext4 /dev/ublkb0; mount -t ext4 /dev/ublkb0 /mnt/e");
    let work = vm.spawn("set +e; . /etc/ublk.sh; work /mnt/e");
    println!("{}", ours(&mut vm, "kills 3 /mnt/e"));
    vm.run("touch /run/stop");
    println!("{}", vm.wait(&work, LIMIT));
    ours(&mut vm, "umount /mnt/e; sound e /dev/ublkb0; afterimage wait disk --for durable --timeout 5m");
    ours(&mut vm, "afterimage verify disk >/dev/null; afterimage detach disk");
}

#[test]
fn a_kernel_without_recovery_and_changed_sizes() {
    let mut vm = protecting(&[("disk", 48)], 2);
    // As before 6.1, where a device ends with its process.
    ours(&mut vm, "echo export AFTERIMAGE_UBLK_WITHOUT=user-copy,encode,recovery >/run/env");
    ours(
        &mut vm,
        "crash; d=$(afterimage attach disk); dd if=/dev/urandom of=$d bs=1M count=1 conv=fsync 2>/dev/null; crash; cmp -n $((2 << 20)) $d /run/disk.raw",
    );
    let shown = ours(&mut vm, "afterimage status; afterimage detach disk");
    assert!(shown.contains("user recovery: the device ends with this process"), "{shown}");

    // A changed size.
    vm.run("rm /run/env");
    ours(&mut vm, "crash; afterimage attach disk --ublk; truncate -s 64M /run/disk.raw");
    let said = ours(&mut vm, "afterimage volume resize disk; blockdev --getsize64 /dev/ublkb0");
    let can = said.contains("/dev/ublkb0 has the new size") && said.ends_with("\n67108864");
    let cannot = said.contains("Linux 6.16") && said.ends_with("\n50331648");
    assert!(can || cannot, "{said}");
    ours(
        &mut vm,
        "afterimage detach disk; [ $(blockdev --getsize64 $(afterimage attach disk)) = 67108864 ]; afterimage detach disk",
    );
    ours(&mut vm, "d=$(afterimage attach disk --nbd); truncate -s 72M /run/disk.raw; afterimage volume resize disk");
    ours(
        &mut vm,
        "[ $(blockdev --getsize64 /dev/nbd0) = 75497472 ]; dd if=/dev/urandom of=/dev/nbd0 bs=1M seek=71 count=1 conv=fsync 2>/dev/null",
    );
    ours(
        &mut vm,
        "afterimage detach disk; afterimage wait disk --for durable --timeout 5m; afterimage verify disk >/dev/null",
    );
}

#[test]
fn kills_of_the_agent_under_the_kernels_nbd_client() {
    const SAMPLES: u64 = 5;
    let mut vm = protecting(&[("e", 64)], 2);
    // Somebody else's device is left alone.
    ours(
        &mut vm,
        "afterimage export e --listen unix:/run/other.sock >/run/export.log 2>&1 & while [ ! -S /run/other.sock ]; do sleep 0.1; done",
    );
    ours(
        &mut vm,
        "/sbin/nbd-client -unix /run/other.sock -N e -readonly /dev/nbd0 >/dev/null 2>&1; [ -e /sys/block/nbd0/pid ]",
    );
    let device = ours(&mut vm, "afterimage attach e --nbd");
    assert_eq!(device, "/dev/nbd1");
    ours(&mut vm, "/sbin/mke2fs -q -t ext4 /dev/nbd1; mount -t ext4 /dev/nbd1 /mnt/e; sync");
    let first = acked(&mut vm, "e");
    let work = vm.spawn("set +e; . /etc/ublk.sh; work /mnt/e");
    let stalls = ours(&mut vm, "kills 3 /mnt/e; replace /mnt/e");
    println!("killed three times, then replaced (from, to, in seconds):\n{stalls}");
    vm.run("touch /run/stop");
    println!("{}", vm.wait(&work, LIMIT));
    ours(&mut vm, "umount /mnt/e; sound e /dev/nbd1");
    assert_eq!(vm.run("dmesg | grep -c 'I/O error' || true"), "0");
    ours(&mut vm, "afterimage wait e --for durable --timeout 5m; afterimage verify e >/dev/null");
    let last = acked(&mut vm, "e");
    let mut chance = Chance::seeded();
    for _ in 0..SAMPLES {
        let seq = first + chance.below(last - first + 1);
        ours(&mut vm, &format!("past e {seq}"));
    }
    // An unused device goes away with the process and comes back with the next, under its number; the other one has stayed.
    ours(&mut vm, "kill $(cat /run/up.pid); gone $(cat /run/up.pid); [ ! -e /sys/block/nbd1/pid ]; up; answers");
    ours(
        &mut vm,
        "cmp /dev/nbd1 /run/e.raw; afterimage detach e; [ ! -e /sys/block/nbd1/pid ] && [ -e /sys/block/nbd0/pid ]",
    );
    ours(&mut vm, "/sbin/nbd-client -d /dev/nbd0 >/dev/null 2>&1");
}
