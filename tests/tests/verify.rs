//! `afterimage verify`, as a user runs it: beside a load nothing is found; what was changed behind the agent's back is, and heals.

use afterimage_tests::binary::ours;
use afterimage_tests::daemon::number;
use afterimage_tests::data::Chance;
use afterimage_tests::lab::{DISK, Lab};
use afterimage_tests::process::Process;
use afterimage_tests::tool::tool;
use serde_json::Value;
use std::os::unix::fs::FileExt;
use std::time::Duration;

const SIZE: u64 = 64 << 20;

fn verify(lab: &Lab, exit: i32, options: &[&str]) -> Value {
    let run = lab.daemon.cli("verify").args([DISK, "--json"]).args(options).run_any();
    assert_eq!(run.status.code(), Some(exit), "{}", run.describe());
    serde_json::from_str(&run.stdout).unwrap_or_else(|e| panic!("{e}: {}", run.describe()))
}

fn behind_the_back(lab: &Lab, offset: u64) {
    let disk = std::fs::File::options().write(true).open(&lab.image).expect("open the disk");
    disk.write_all_at(b"not by the guest", offset).expect("write to the disk");
}

#[test]
fn a_disk_is_compared_with_its_history_while_it_is_written() {
    let lab = Lab::with(SIZE, &["--ring", "256MiB"]);
    let load = ours("afterimage-load").args(["run", "--uri", &lab.uri(), "--journal"]).arg(lab.path("journal"));
    let load =
        load.args(["--duration", "6s", "--connections", "2", "--depth", "16", "--max-size", "64KiB", "--rate", "2000"]);
    let mut load = Process::start(load.into_command(), &lab.path("load.log"));
    lab.daemon.wait_volume(DISK, "written to", |v| number(v, "seq_acked") > 100);
    for options in [&[][..], &["--range", "1MiB+5000"], &["--rate", "40MiB"]] {
        let report = verify(&lab, 0, options);
        assert_eq!(report["equal"], true, "{report:#}");
    }
    assert!(load.wait_end().success(), "{}", load.describe());

    behind_the_back(&lab, 5_000_000);
    behind_the_back(&lab, 40 << 20);
    let report = verify(&lab, 1, &[]);
    let expected = serde_json::json!([
        { "offset": 5_000_000 / 4096 * 4096, "length": 4096 },
        { "offset": 40 << 20, "length": 4096 },
    ]);
    assert_eq!(report["differing"], expected, "{report:#}");
    assert_eq!(lab.daemon.volume(DISK)["state"], "live", "looking changes nothing");
    let text = lab.daemon.cli("verify").args([DISK, "--repair"]).run_failing(1);
    assert!(text.stdout.contains("a gap begins"), "{}", text.describe());
    lab.daemon.wait_live(DISK);
    assert_eq!(verify(&lab, 0, &[])["equal_bytes"], SIZE);
    lab.daemon.cli("verify").args([DISK, "--range", "64MiB+1"]).run_failing(1);
    lab.daemon.cli("verify").args([DISK, "--range", "5"]).run_failing(2);
    lab.daemon.cli("verify").args(["other"]).run_failing(1);
}

/// The ring is lost: the whole disk is compared, and killed again and again meanwhile, both sides at once.
#[test]
fn kills_inside_a_whole_comparison_leave_disk_and_history_equal() {
    let mut chance = Chance::seeded();
    let mut lab = Lab::with(SIZE, &["--sync-rate", "30MiB", "--ring", "64MiB"]);
    let source = lab.path("source");
    std::fs::write(&source, Chance::seeded().bytes(usize::try_from(SIZE).expect("it fits"))).expect("write a file");
    tool("nbdcopy").arg("--flush").arg(&source).arg(lab.uri()).run();
    lab.daemon.wait_live(DISK);
    lab.daemon.wait_durable(DISK);
    lab.daemon.kill();
    for file in ["ring", "intent"] {
        std::fs::remove_file(lab.daemon.data().join("agent").join(DISK).join(file)).expect("remove a file");
    }
    behind_the_back(&lab, 1_000_000);
    behind_the_back(&lab, 60_000_000);
    let mut least = SIZE;
    for _ in 0..6 {
        lab.daemon.start();
        let offset = (chance.below(SIZE / 4096 - 1) * 4096).to_string();
        tool("qemu-io").args(["-f", "raw", "-c", &format!("write -P 7 {offset} 4096"), &lab.uri()]).run();
        std::thread::sleep(Duration::from_millis(chance.below(500)));
        let left = number(&lab.daemon.volume(DISK), "dirty_bytes");
        assert!(left <= least, "what was compared is marked again: {left} after {least}");
        least = left;
        lab.daemon.kill();
    }
    lab.daemon.start();
    lab.daemon.wait_live(DISK);
    assert_eq!(verify(&lab, 0, &[])["equal_bytes"], SIZE);
    lab.assert_history_is_the_disk();
    let gaps = lab.daemon.cli("point ls").args([DISK, "--json"]).run();
    assert!(gaps.stdout.contains("from_seq"), "{}", gaps.describe());
}
