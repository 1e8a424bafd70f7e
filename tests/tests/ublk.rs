//! Volumes as block devices of the kernel, in a guest: fio and file systems on `/dev/ublkbN` and `/dev/nbdN`; the process
//! killed, and replaced, under busy file systems; the past attached.

use afterimage_tests::data::Chance;
use afterimage_tests::guest::machine;
use afterimage_tests::inside::{LIMIT, acked, ours, protecting, protecting_in};

const KILLS: u32 = 20;
const SAMPLES: u64 = 20;

#[test]
fn fio_verifies_every_front_end_and_moments_are_shown() {
    // A disk of 4096-byte sectors, too.
    let sectors = tempfile::NamedTempFile::new().expect("make a disk");
    sectors.as_file().set_len(48 << 20).expect("size the disk");
    let drive = format!("if=none,id=four,format=raw,discard=unmap,file={}", sectors.path().display());
    let device = "virtio-blk-pci,drive=four,logical_block_size=4096,physical_block_size=4096";
    let plan = machine("ublk").processors(4).arguments(["-drive", &drive, "-device", device]);
    let mut vm = protecting_in(plan, &[("disk", 48)], &[("four", "/dev/vda")]);
    for queues in [1, 2, 4] {
        let device = ours(&mut vm, &format!("afterimage attach disk --queues {queues}"));
        assert_eq!(device, "/dev/ublkb0");
        assert_eq!(vm.run("ls /sys/block/ublkb0/mq | wc -l"), queues.to_string());
        // The kernel has it, so payloads are copied once.
        ours(&mut vm, "if afterimage status | grep 'user copy'; then exit 9; fi");
        ours(
            &mut vm,
            &format!("verify {device} {queues}; zeroes {device}; afterimage detach disk; test ! -e {device}"),
        );
    }
    let device = ours(&mut vm, "afterimage attach four; [ $(blockdev --getss /dev/ublkb0) = 4096 ]");
    ours(&mut vm, &format!("verify {device} 2; zeroes {device}"));
    ours(&mut vm, "afterimage detach four; afterimage wait four --for durable --timeout 5m; afterimage verify four");
    let device = ours(&mut vm, "afterimage attach disk --nbd");
    assert_eq!(device, "/dev/nbd0");
    ours(&mut vm, "verify /dev/nbd0 2; zeroes /dev/nbd0; afterimage detach disk");
    // Whoever wants several connections makes them with the kernel's own tool.
    for connections in [1, 2, 4] {
        let connect =
            format!("/sbin/nbd-client -C {connections} -unix /run/a/nbd.sock -N disk /dev/nbd1 >/dev/null 2>&1");
        ours(&mut vm, &format!("{connect}; [ $(ls /sys/block/nbd1/mq | wc -l) = {connections} ]"));
        ours(&mut vm, &format!("verify /dev/nbd1 {connections}; /sbin/nbd-client -d /dev/nbd1 >/dev/null 2>&1"));
    }

    ours(&mut vm, "afterimage point create disk --name p; dd if=/run/disk.raw of=/run/then bs=1M 2>/dev/null");
    ours(&mut vm, "dd if=/dev/urandom of=$(afterimage attach disk) bs=1M count=8 conv=fsync 2>/dev/null");
    for front in ["ublk", "nbd"] {
        let device = ours(&mut vm, &format!("afterimage attach disk --at p --{front}"));
        let check =
            format!("cmp {device} /run/then; if dd if=/dev/zero of={device} bs=4k count=1 conv=fsync; then exit 9; fi");
        ours(&mut vm, &check);
        // A kill takes nothing away: it is shown again under the same path.
        ours(&mut vm, "crash");
        ours(&mut vm, &format!("echo 3 >/proc/sys/vm/drop_caches; cmp {device} /run/then; afterimage detach {device}"));
    }
    let scratch = ours(&mut vm, "afterimage attach disk --at p --writable");
    ours(
        &mut vm,
        &format!(
            "dd if=/dev/urandom of={scratch} bs=4k count=1 conv=fsync; if cmp -s {scratch} /run/then; then exit 9; fi"
        ),
    );
    ours(
        &mut vm,
        &format!("afterimage detach {scratch}; cmp $(afterimage attach disk --at p) /run/then; afterimage detach disk"),
    );

    // Without the driver the kernel's NBD client takes its place, and who insists is told what is missing.
    vm.run("rmmod ublk_drv; mv /lib/modules /lib/away");
    assert_eq!(ours(&mut vm, "afterimage attach disk; afterimage detach disk"), "/dev/nbd0\n/dev/nbd0");
    let told = ours(&mut vm, "afterimage attach disk --ublk 2>&1 || true");
    assert!(told.contains("modprobe ublk_drv"), "{told}");
}

#[test]
fn kills_of_the_agent_under_busy_file_systems() {
    let mut vm = protecting(&[("e", 64), ("x", 320)], 2);
    ours(&mut vm, "e=$(afterimage attach e --queues 2); /sbin/mke2fs -q -t ext4 $e; mount -t ext4 $e /mnt/e");
    ours(&mut vm, "x=$(afterimage attach x --queues 2); /sbin/mkfs.xfs -q $x; mount -t xfs $x /mnt/x");
    vm.run("sync");
    let first = ["e", "x"].map(|v| acked(&mut vm, v));
    let refused = ours(&mut vm, "afterimage detach e 2>&1 || true");
    assert!(refused.contains("is in use"), "{refused}");

    let work = ["e", "x"].map(|v| vm.spawn(&format!("set +e; . /etc/ublk.sh; work /mnt/{v}")));
    let stalls = ours(&mut vm, &format!("kills {KILLS} /mnt/e /mnt/x; replace /mnt/e /mnt/x"));
    println!(
        "killed {KILLS} times, then replaced by another file (from, to on ext4, to on xfs, in seconds):\n{stalls}"
    );
    vm.run("touch /run/stop");
    for job in &work {
        println!("{}", vm.wait(job, LIMIT));
    }
    ours(&mut vm, "umount /mnt/e; umount /mnt/x; sound e /dev/ublkb0; sound x /dev/ublkb1");
    assert_eq!(vm.run("dmesg | grep -c 'I/O error' || true"), "0");
    for v in ["e", "x"] {
        ours(&mut vm, &format!("afterimage wait {v} --for durable --timeout 5m; afterimage verify {v} >/dev/null"));
    }
    let mut chance = Chance::seeded();
    for (v, first) in ["e", "x"].into_iter().zip(first) {
        let last = acked(&mut vm, v);
        assert!(last > first + SAMPLES);
        for _ in 0..SAMPLES {
            let seq = first + chance.below(last - first + 1);
            ours(&mut vm, &format!("past {v} {seq}"));
        }
    }
    ours(&mut vm, "afterimage detach e; afterimage detach x; kill $(cat /run/up.pid); gone $(cat /run/up.pid)");
}
