//! The process is killed with SIGKILL again and again while clients write, and started again; the clients reconnect, send
//! again what was not answered, and go on. After every round: the disk holds everything that was acknowledged, the newest
//! image at the appliance is the disk, and images at random seqs on both sides of the kill show a prefix of what was
//! written. The load generator (tools/src/load) stamps every block and judges.
//!
//! `AFTERIMAGE_KILL_ROUNDS` sets how often; a failed run is repeated with `AFTERIMAGE_SEED`.

use afterimage_tests::binary::ours;
use afterimage_tests::daemon::number;
use afterimage_tests::data::Chance;
use afterimage_tests::lab::{DISK, Lab};
use afterimage_tests::process::Process;
use afterimage_tests::tool::tool;
use std::path::Path;
use std::time::Duration;

const SIZE: u64 = 24 << 20;

fn rounds() -> u64 {
    std::env::var("AFTERIMAGE_KILL_ROUNDS").map_or(50, |text| text.parse().expect("AFTERIMAGE_KILL_ROUNDS is a number"))
}

/// How the load of a round writes: one request at a time, judged write by write; or many at once.
fn shape(chance: &mut Chance) -> std::str::Split<'static, char> {
    let shapes = [
        "--connections 1 --depth 1 --max-size 64KiB",
        "--connections 4 --depth 16 --max-size 256KiB",
        "--connections 2 --depth 64 --max-size 16KiB --mix 90,4,4,2",
    ];
    shapes[usize::try_from(chance.below(3)).unwrap_or(0)].split(' ')
}

/// Starts a load on a disk of zeroes, kills the daemon in the middle of it, starts it again, and lets the load end.
fn load_through_a_kill(lab: &mut Lab, journal: &Path, chance: &mut Chance) {
    // The judge knows only what the load itself wrote.
    tool("qemu-io").args(["-f", "raw", "-c", &format!("write -z 0 {SIZE}"), "-c", "flush", &lab.uri()]).run();
    let before = number(&lab.daemon.volume(DISK), "seq_acked");
    let load = ours("afterimage-load")
        .args(["run", "--uri", &lab.uri(), "--seed", &chance.bits().to_string(), "--journal"])
        .arg(journal)
        .args(["--volume", DISK, "--data"])
        .arg(lab.daemon.data())
        .args(["--duration", "2s", "--reconnect", "60s"])
        .args(shape(chance));
    let mut load = Process::start(load.into_command(), &lab.path("load.log"));
    lab.daemon.wait_volume(DISK, "written to", |v| number(v, "seq_acked") > before + 20);
    std::thread::sleep(Duration::from_millis(chance.below(1200)));
    lab.daemon.kill();
    lab.daemon.start();
    let status = load.wait_end();
    assert!(status.success(), "the load failed: {}\n{}", load.describe(), lab.daemon.log());
}

#[test]
fn nothing_acknowledged_is_lost_by_kills() {
    let mut chance = Chance::seeded();
    let mut lab = Lab::new(SIZE);
    for round in 1..=rounds() {
        let journal = lab.path("load.journal");
        load_through_a_kill(&mut lab, &journal, &mut chance);
        lab.daemon.wait_durable(DISK);
        let verdict = ours("afterimage-load")
            .arg("verify")
            .arg("--journal")
            .arg(&journal)
            .arg("--disk")
            .arg(&lab.image)
            .arg("--data")
            .arg(lab.daemon.data())
            .args(["--volume", DISK, "--latest", "--samples", "20", "--seed", &chance.bits().to_string()])
            .run_any();
        assert!(verdict.status.success(), "round {round}: {}\n{}", verdict.describe(), lab.daemon.log());
        println!("kill {round}: {}", verdict.stdout.trim());
        std::fs::remove_file(&journal).unwrap();
        if round % 10 == 0 {
            lab.assert_history_is_the_disk();
        }
    }
    assert!(lab.daemon.stop().success(), "{}", lab.daemon.log());
    lab.daemon.check().run();
    // And once more after the clean stop.
    lab.daemon.start();
    lab.assert_history_is_the_disk();
}
