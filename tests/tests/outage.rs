//! fio writes at full speed while the appliance is stopped, and while it is dead, for longer than a small ring lasts. No request
//! fails, and once the appliance is back the history becomes what the disk is, by itself. How long writes take meanwhile is
//! measured by `afterimage-benches outage`.

use afterimage_tests::daemon::number;
use afterimage_tests::pair::{Pair, Role};
use afterimage_tests::process::Process;
use afterimage_tests::tool::tool;
use nix::sys::signal::Signal;

const MIB: u64 = 1 << 20;

fn outage(go: impl FnOnce(&mut Pair), come_back: impl FnOnce(&mut Pair)) {
    let mut pair = Pair::plan(96 * MIB, "16MiB");
    pair.start(Role::Appliance);
    pair.start(Role::Agent);
    pair.wait_live();
    let fio = tool("fio")
        .args([
            "--name=w",
            "--ioengine=nbd",
            "--thread",
            "--rw=randwrite",
            "--bs=4k",
            "--iodepth=16",
            "--refill_buffers",
        ])
        .args(["--time_based", "--runtime=12", "--size=96m"])
        .arg(format!("--uri={}", pair.uri()));
    let mut fio = Process::start(fio.into_command(), &pair.path("fio.log"));
    go(&mut pair);
    let behind = pair.wait_volume(Role::Agent, "dirty", |v| v["state"] == "dirty" && number(v, "dirty_bytes") > 0);
    assert!(behind["reason"].as_str().is_some_and(|r| r.contains("ring is full")), "{behind:#}");
    assert!(fio.is_running(), "it ended before the ring was full: {}", fio.describe());
    assert!(fio.wait_end().success(), "{}", fio.describe());
    come_back(&mut pair);
    pair.wait_live();
    pair.assert_history_is_the_disk();
    let volume = pair.try_volume(Role::Agent).expect("the volume is known");
    assert!(number(&volume, "gaps") >= 1, "{volume:#}");
}

#[test]
fn a_stopped_appliance_costs_the_guest_no_error() {
    outage(
        |pair| pair.process(Role::Appliance).signal(Signal::SIGSTOP),
        |pair| pair.process(Role::Appliance).signal(Signal::SIGCONT),
    );
}

#[test]
fn a_dead_appliance_costs_the_guest_no_error() {
    outage(|pair| pair.kill(Role::Appliance), |pair| pair.start(Role::Appliance));
}
