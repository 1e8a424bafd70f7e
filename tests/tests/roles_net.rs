//! Trouble between agent and appliance: cut, vanished, stalled, slow, spoilt. The guest never notices, and in the end the
//! history is the disk.

use afterimage_tests::daemon::number;
use afterimage_tests::data::{self, Chance};
use afterimage_tests::lab::DISK;
use afterimage_tests::pair::{Pair, Role};
use afterimage_tests::process::Process;
use afterimage_tests::proxy::{Proxy, Rules, proxy};
use afterimage_tests::tool::tool;
use serde_json::Value;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// Both roles, the agent's way to the appliance through a proxy.
fn through_a_proxy(size: u64, seed: u64) -> (Pair, Proxy) {
    let mut pair = Pair::plan(size, "16MiB");
    let proxy = proxy(pair.wire, seed);
    pair.set_way(proxy.port);
    pair.start(Role::Appliance);
    pair.start(Role::Agent);
    pair.wait_live();
    (pair, proxy)
}

/// fio writing for so many seconds; any error of a request ends it with one.
fn writer(pair: &Pair, seconds: u64) -> Process {
    let fio = tool("fio")
        .args(["--name=w", "--ioengine=nbd", "--thread", "--rw=randwrite", "--bsrange=512-64k", "--blockalign=512"])
        .args(["--iodepth=8", "--time_based", "--size=32m", "--rate=,8m", "--fsync=64", "--refill_buffers"])
        .args([format!("--uri={}", pair.uri()), format!("--runtime={seconds}")]);
    Process::start(fio.into_command(), &pair.path("fio.log"))
}

fn write(pair: &Pair, pattern: u8) {
    let command = format!("write -P {pattern} 1M 64k");
    tool("qemu-io").args(["-f", "raw", "-c", &command, "-c", "flush", &pair.uri()]).run();
}

#[test]
fn a_bad_line_costs_nothing_but_time() {
    let mut chance = Chance::seeded();
    let (pair, proxy) = through_a_proxy(32 * MIB, chance.bits());
    let mut load = writer(&pair, 25);
    let mut durable = 0;
    while load.is_running() {
        match chance.below(6) {
            0 | 1 => proxy.cut(),
            2 => proxy.change_present(|r| r.corrupt_one_in = Some(200_000)),
            3 => proxy.change_present(|r| r.stalled = true),
            4 => proxy
                .change(|r| *r = Rules { delay: Duration::from_millis(30), rate: Some(4 << 20), ..Rules::default() }),
            _ => proxy.change(|r| *r = Rules::default()),
        }
        std::thread::sleep(Duration::from_millis(chance.between(100, 1500)));
        if let Some(volume) = pair.try_volume(Role::Appliance) {
            let now = number(&volume, "seq_durable");
            assert!(now >= durable, "durable went back from {durable} to {now}\n{}", pair.logs());
            durable = now;
        }
    }
    let ended = load.wait_end();
    assert!(ended.success(), "the client saw the trouble: {}", load.describe());
    proxy.change(|r| *r = Rules::default());
    proxy.cut();
    assert!(proxy.seen() > 3, "the agent did not come back");
    pair.assert_history_is_the_disk();
}

#[test]
fn a_peer_that_vanished_is_found_out_by_both_sides() {
    let (mut pair, proxy) = through_a_proxy(16 * MIB, 1);
    // Neither side hears of it, and the agent cannot come back.
    proxy.refuse(true);
    proxy.change_present(|r| r.silent = true);
    let start = Instant::now();
    write(&pair, 1);
    pair.wait_volume(Role::Agent, "disconnected", |v| v["connected"] == false);
    println!("the agent knew after {:?}", start.elapsed());
    pair.wait_volume(Role::Appliance, "offline", |v| v["state"] == "offline");
    println!("the appliance knew after {:?}", start.elapsed());
    proxy.refuse(false);
    pair.wait_volume(Role::Agent, "connected", |v| v["connected"] == true);
    pair.assert_history_is_the_disk();
    // And if only the agent knows, its new session takes the place of the old one at once.
    proxy.change_present(|r| r.silent = true);
    pair.kill(Role::Agent);
    pair.start(Role::Agent);
    write(&pair, 2);
    pair.assert_history_is_the_disk();
}

#[test]
fn a_slow_line_is_served_byte_by_byte() {
    let (pair, proxy) = through_a_proxy(16 * MIB, 1);
    proxy.change(|r| r.crumbs = true);
    proxy.cut();
    write(&pair, 1);
    pair.wait_durable();
    proxy.change(|r| *r = Rules { rate: Some(64 << 10), ..Rules::default() });
    write(&pair, 2);
    pair.assert_history_is_the_disk();
}

/// Two volumes of one agent; the line of one hangs. The other does not notice, nor does either guest.
#[test]
fn a_stuck_volume_does_not_hold_another() {
    let mut pair = Pair::plan(16 * MIB, "16MiB");
    let proxy = proxy(pair.wire, 1);
    pair.set_way(proxy.port);
    let second = pair.path("second.raw");
    data::sparse(&second, 16 * MIB);
    pair.add_option(&format!("second={}", second.display()));
    pair.start(Role::Appliance);
    pair.start(Role::Agent);
    pair.wait_live();
    let volumes = |pair: &Pair| {
        let status = pair.cli(Role::Agent, "status --json").run().stdout;
        let status: Value = serde_json::from_str(&status).unwrap();
        [DISK, "second"]
            .map(|name| status["volumes"].as_array().unwrap().iter().find(|v| v["name"] == name).unwrap().clone())
    };
    let uri = |name: &str| format!("nbd://127.0.0.1:{}/{name}", pair.nbd);
    let write_to = |name: &str, pattern: u8| {
        let command = format!("write -P {pattern} 0 4M");
        tool("qemu-io").args(["-f", "raw", "-c", &command, "-c", "flush", &uri(name)]).run();
    };
    pair.cli(Role::Agent, "wait").arg("second").run();
    proxy.change_oldest(|r| r.stalled = true);
    for pattern in 1..=3 {
        write_to(DISK, pattern);
        write_to("second", pattern);
    }
    let goes_on = |v: &Value| v["state"] == "live" && number(v, "seq_durable") >= number(v, "seq_acked");
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let both = volumes(&pair);
        let (fine, stuck): (Vec<&Value>, Vec<&Value>) = both.iter().partition(|v| goes_on(v));
        if fine.len() == 1 {
            assert_eq!(stuck.len(), 1);
            break;
        }
        // A line that hangs is given up after half a minute; until then one of the two must go on alone.
        assert!(fine.len() < 2, "neither is stuck");
        assert!(Instant::now() < end, "one holds the other: {both:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    proxy.cut();
    pair.assert_history_is_the_disk();
    pair.cli(Role::Agent, "wait").args(["second", "--for", "durable"]).run();
    let restored = pair.path("second-restored");
    pair.cli(Role::Appliance, "restore").args(["second", "--to"]).arg(&restored).run();
    data::assert_same(&second, &restored);
}
