//! A thousand random seqs of a stamped load, each read back through the appliance: every byte is what the model says.

use afterimage_tests::binary::ours;
use afterimage_tests::data::Chance;
use afterimage_tests::lab::{DISK, Lab};
use afterimage_tests::tool::Tool;
use std::path::Path;
use std::time::Duration;

const SAMPLES: u64 = 1000;

fn load(lab: &Lab, journal: &Path, options: &str) {
    ours("afterimage-load")
        .args(["run", "--uri", &lab.uri(), "--volume", DISK, "--data"])
        .arg(lab.daemon.data())
        .arg("--journal")
        .arg(journal)
        .args(options.split(' '))
        .run();
    lab.daemon.wait_durable(DISK);
}

fn verify(journal: &Path) -> Tool {
    let hour = Duration::from_secs(3600);
    ours("afterimage-load").deadline(hour).arg("verify").arg("--journal").arg(journal)
}

#[test]
fn a_thousand_seqs_are_equal_to_the_model() {
    let seed = Chance::seeded().bits().to_string();
    let lab = Lab::new(16 << 20);
    let journal = lab.path("load.journal");
    load(&lab, &journal, &format!("--count 20000 --align 1 --max-size 128KiB --seed {seed}"));
    let samples = SAMPLES.to_string();
    let verdict = verify(&journal)
        .arg("--disk")
        .arg(&lab.image)
        .arg("--data")
        .arg(lab.daemon.data())
        .args(["--volume", DISK, "--latest", "--samples", &samples, "--seed", &seed])
        .run();
    println!("{}", verdict.stdout);
    lab.assert_history_is_the_disk();
}

#[test]
fn seqs_of_many_writers_are_consistent() {
    let mut chance = Chance::seeded();
    let seed = chance.bits().to_string();
    let mut lab = Lab::new(32 << 20);
    let journal = lab.path("load.journal");
    load(&lab, &journal, &format!("--count 20000 --connections 4 --depth 16 --max-size 64KiB --seed {seed}"));
    let judge = |lab: &Lab| {
        let verdict = verify(&journal)
            .arg("--data")
            .arg(lab.daemon.data())
            .args(["--volume", DISK, "--latest", "--samples", "100", "--seed", &seed])
            .run();
        println!("{}", verdict.stdout);
    };
    judge(&lab);
    // The same history, out of the layers that a restart leaves.
    assert!(lab.daemon.stop().success(), "{}", lab.daemon.log());
    lab.daemon.start();
    lab.daemon.wait_live(DISK);
    judge(&lab);
}

/// The judge itself: an image with one wrong bit is not let through.
#[test]
fn one_wrong_bit_is_seen() {
    let mut chance = Chance::seeded();
    let lab = Lab::new(16 << 20);
    let journal = lab.path("load.journal");
    load(&lab, &journal, "--count 3000 --max-size 128KiB --mix 100,0,0,0 --seed 7");
    let seq = lab.daemon.wait_durable(DISK);
    let image = lab.path("image");
    lab.daemon.restore(DISK, &format!("@{seq}"), &image);
    let judge = || verify(&journal).arg("--disk").arg(&image);
    judge().run();
    afterimage_tests::data::flip_bit(&image, chance.below((16 << 20) * 8));
    judge().run_failing(1);
}
