//! The process is killed with SIGKILL again and again while clients write, and started again. After every kill: everything
//! acknowledged is on the disk, the volume comes back live, and what the appliance has is the disk. The load generator
//! (tools/src/load) writes stamped blocks and judges.
//!
//! `AFTERIMAGE_KILL_ROUNDS` sets how often; the whole is repeated with `AFTERIMAGE_SEED`.

use afterimage_tests::binary::ours;
use afterimage_tests::daemon::number;
use afterimage_tests::data::Chance;
use afterimage_tests::lab::{DISK, Lab};
use afterimage_tests::process::Process;
use std::time::Duration;

fn rounds() -> u64 {
    std::env::var("AFTERIMAGE_KILL_ROUNDS").map_or(50, |text| text.parse().expect("AFTERIMAGE_KILL_ROUNDS is a number"))
}

/// How the load of a round writes: one request at a time, judged write by write; or many at once.
fn shape(chance: &mut Chance) -> Vec<String> {
    let text = match chance.below(3) {
        0 => "--connections 1 --depth 1 --align 1 --max-size 64KiB",
        1 => "--connections 4 --depth 16 --max-size 256KiB",
        _ => "--connections 2 --depth 64 --max-size 16KiB --mix 90,4,4,2",
    };
    text.split(' ').map(str::to_owned).collect()
}

#[test]
fn nothing_acknowledged_is_lost_by_kills() {
    let mut chance = Chance::seeded();
    let mut lab = Lab::new(48 << 20);
    // A load of one request at a time is judged from the bytes that were there before it.
    let initial = lab.path("initial");
    for round in 1..=rounds() {
        std::fs::copy(&lab.image, &initial).expect("keep what was there before");
        let journal = lab.path("load.journal");
        let _ = std::fs::remove_file(&journal);
        let load = ours("afterimage-load")
            .args(["run", "--uri", &lab.uri(), "--seed", &chance.bits().to_string()])
            .arg("--journal")
            .arg(&journal)
            .args(["--volume", DISK, "--duration", "30s", "--data"])
            .arg(lab.daemon.data())
            .args(shape(&mut chance));
        let before = number(&lab.daemon.volume(DISK), "seq_acked");
        let mut load = Process::start(load.into_command(), &lab.path("load.log"));
        lab.daemon.wait_volume(DISK, "written to", |v| number(v, "seq_acked") > before + 20);
        std::thread::sleep(Duration::from_millis(chance.below(600)));
        lab.daemon.kill();
        // Its connections are gone; it notes what is known and ends.
        load.wait_end();

        lab.daemon.start();
        lab.daemon.wait_durable(DISK);
        let verdict = ours("afterimage-load")
            .arg("verify")
            .arg("--journal")
            .arg(&journal)
            .arg("--disk")
            .arg(&lab.image)
            .arg("--data")
            .arg(lab.daemon.data())
            .args(["--volume", DISK, "--latest", "--samples", "10", "--seed", &chance.bits().to_string()])
            .arg("--initial")
            .arg(&initial)
            .run_any();
        assert!(verdict.status.success(), "round {round}: {}\n{}", verdict.describe(), lab.daemon.log());
        if round % 10 == 0 {
            lab.assert_history_is_the_disk();
            println!("{round} kills: {}", verdict.stdout.trim());
        }
    }
    assert!(lab.daemon.stop().success(), "{}", lab.daemon.log());
    lab.daemon.check().run();
    // And once more after the clean stop.
    lab.daemon.start();
    lab.assert_history_is_the_disk();
}
