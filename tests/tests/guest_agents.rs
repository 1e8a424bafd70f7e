//! Agents inside guests dial out to an appliance on the host: history survives the guest's power cut, and two guests share an
//! appliance.

use afterimage_tests::daemon::number;
use afterimage_tests::data;
use afterimage_tests::guest::{self, Builder, Guest, machine};
use afterimage_tests::lab::DISK;
use afterimage_tests::pair::{Pair, Role};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(300);

/// The agent of a guest: /dev/vda is the protected disk, /dev/vdb (ext4) holds the agent's own folder.
fn plan(name: &str, wire: u16, disk: &Path, state: &Path) -> Builder {
    let config = format!(
        "data = \"/var/agent/data\"\nappliance = \"tcp:10.0.2.2:{wire}\"\ninsecure = true\nring = \"16MiB\"\n\
         listen = [\"unix:/run\"]\n[[volume]]\nname = \"{name}\"\npath = \"/dev/vda\"\n"
    );
    let plan = machine(name).afterimage().network().image(disk).image(state);
    plan.memory(384).file("/etc/afterimage/agent.toml", config)
}

/// Starts the agent in a booted guest and puts the kernel's NBD client on its volume.
fn protect(vm: &mut Guest, name: &str) {
    vm.run(
        "mkdir -p /var/agent; mount -t ext4 /dev/vdb /var/agent 2>/dev/null || \
         { /sbin/mke2fs -q -t ext4 /dev/vdb; mount -t ext4 /dev/vdb /var/agent; }\n\
         setsid /bin/afterimage agent --config /etc/afterimage/agent.toml >/run/agent.log 2>&1 &",
    );
    wait_for(vm, name, "\"state\": *\"live\"");
    vm.run(&format!("/sbin/nbd-client -unix /run/nbd.sock -N {name} -timeout 120 /dev/nbd0"));
}

fn wait_for(vm: &mut Guest, name: &str, what: &str) {
    let seen = format!("/bin/afterimage status --data /var/agent/data --json | tr -d '\\n' | grep -q '{what}'");
    vm.wait_until(LIMIT, &format!("{seen} || {{ cat /run/agent.log; false; }}"));
    println!("{name}: {what}");
}

/// Waits until the appliance has all that the guest has written.
fn wait_durable(vm: &mut Guest, name: &str) {
    vm.run(&format!("/bin/afterimage wait {name} --for durable --data /var/agent/data"));
}

fn restored_equals(appliance: &Pair, name: &str, disk: &Path) {
    let restored = appliance.path("restored");
    appliance.cli(Role::Appliance, "restore").args([name, "--at", "latest", "--yes", "--to"]).arg(&restored).run();
    data::assert_same(disk, &restored);
    std::fs::remove_file(&restored).expect("remove a restored image");
}

fn volume(appliance: &Pair, name: &str) -> Value {
    let status = appliance.cli(Role::Appliance, "status --json").run().stdout;
    let status: Value = serde_json::from_str(&status).expect("a status is JSON");
    status["volumes"]
        .as_array()
        .expect("a status has volumes")
        .iter()
        .find(|v| v["name"] == name)
        .cloned()
        .unwrap_or_default()
}

#[test]
fn a_guest_that_protects_itself_loses_its_power_and_comes_back() {
    let mut host = Pair::plan(MIB, "16MiB");
    host.start(Role::Appliance);
    let (disk, state) = (host.path("guest-disk"), host.path("guest-state"));
    data::sparse(&disk, 64 * MIB);
    data::sparse(&state, 96 * MIB);

    let mut vm = plan(DISK, host.wire, &disk, &state).boot();
    protect(&mut vm, DISK);
    vm.run("/sbin/mke2fs -q -t ext4 /dev/nbd0; mount -t ext4 /dev/nbd0 /mnt; echo first >/mnt/first; sync");
    wait_durable(&mut vm, DISK);
    let before = number(&volume(&host, DISK), "seq_durable");
    let _busy = vm.spawn("while :; do dd if=/dev/urandom of=/mnt/busy bs=64k count=20 conv=fsync 2>/dev/null; done");
    vm.run("sleep 3; echo second >/mnt/second; sync /mnt/second /mnt");
    vm.kill();

    // Its ring was in a page cache that is gone, and so was what the disk had not been told to keep.
    let mut vm = plan(DISK, host.wire, &disk, &state).boot();
    protect(&mut vm, DISK);
    vm.run("mount -t ext4 /dev/nbd0 /mnt");
    assert_eq!(vm.run("cat /mnt/first /mnt/second"), "first\nsecond");
    println!("{}", vm.read("/run/agent.log"));
    vm.run("echo third >/mnt/third; umount /mnt; /sbin/e2fsck -fn /dev/nbd0; /sbin/nbd-client -d /dev/nbd0; sync");
    wait_for(&mut vm, DISK, "\"state\": *\"live\"");
    wait_durable(&mut vm, DISK);
    restored_equals(&host, DISK, &disk);
    assert!(number(&volume(&host, DISK), "seq_durable") > before);
    // What was there before the power cut is still in history.
    let old = host.path("old");
    host.cli(Role::Appliance, "restore").args([DISK, "--at", &format!("@{before}"), "--yes", "--to"]).arg(&old).run();
    afterimage_tests::ext4::assert_sound(&old, "before the power cut");
    assert_eq!(afterimage_tests::ext4::read_file(&old, "/first").as_deref(), Some("first\n"));
}

#[test]
fn two_guests_share_an_appliance() {
    let seats = guest::seats(2);
    let mut host = Pair::plan(MIB, "16MiB");
    host.start(Role::Appliance);
    let names = ["left", "right"];
    let mut guests = names.map(|name| {
        let (disk, state) = (host.path(name), host.path(&format!("{name}-state")));
        data::sparse(&disk, 32 * MIB);
        data::sparse(&state, 96 * MIB);
        plan(name, host.wire, &disk, &state).seat(&seats).boot()
    });
    for (vm, name) in guests.iter_mut().zip(names) {
        protect(vm, name);
    }
    let jobs = guests.each_mut().map(|vm| {
        vm.spawn(
            "/sbin/mke2fs -q -t ext4 /dev/nbd0; mount -t ext4 /dev/nbd0 /mnt; hostname >/mnt/name\n\
             for n in 1 2 3 4 5; do dd if=/dev/urandom of=/mnt/file$n bs=64k count=20 conv=fsync 2>/dev/null; done\n\
             umount /mnt; /sbin/e2fsck -fn /dev/nbd0; /sbin/nbd-client -d /dev/nbd0; sync",
        )
    });
    for (vm, job) in guests.iter_mut().zip(&jobs) {
        vm.wait(job, LIMIT);
    }
    for (vm, name) in guests.iter_mut().zip(names) {
        wait_durable(vm, name);
        restored_equals(&host, name, &host.path(name));
    }
    let whose = names.map(|name| afterimage_tests::ext4::read_file(&host.path(name), "/name").unwrap_or_default());
    assert_eq!(whose, ["left\n", "right\n"]);
}
