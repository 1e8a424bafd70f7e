//! A guest works on ext4 on a protected disk and is killed at a random moment. Whatever write of its life is then chosen,
//! the disk restored as of that write is a sound file system after journal replay, and the newest one holds every
//! file that the guest had synced.

use afterimage_tests::data::Chance;
use afterimage_tests::guest::guest;
use afterimage_tests::lab::{DISK, Lab};
use afterimage_tests::{binary, ext4};
use std::time::Duration;

/// How many seqs are tried.
const SEQS: usize = 20;

#[test]
fn every_prefix_of_a_killed_guests_writes_is_a_sound_ext4() {
    let mut chance = Chance::seeded();
    let lab = Lab::new(256 << 20);
    let script = std::fs::read_to_string(binary::repository().join("tests/guest/ext4-work.sh")).unwrap();
    let mut vm = guest(&script).disk(&lab.uri()).start();
    vm.wait_for("work: file system is ready");
    let ready = lab.daemon.point(DISK, "ready");
    vm.type_line("go");
    vm.wait_for("work: safe 40");
    std::thread::sleep(Duration::from_millis(chance.between(2000, 8000)));
    let safe = vm.lines().iter().rev().find_map(|l| l.strip_prefix("work: safe ")?.parse::<u64>().ok());
    let safe = safe.expect("the guest synced files");
    vm.kill();

    let last = lab.daemon.wait_durable(DISK);
    println!("{} writes, {safe} files synced", last - ready);
    assert!(last > ready + 100, "the guest wrote next to nothing: {ready}..{last}");
    let image = lab.path("restored");
    for _ in 0..SEQS {
        let at = format!("@{}", chance.between(ready, last));
        lab.daemon.restore(DISK, &at, &image);
        ext4::assert_sound(&image, &at);
        std::fs::remove_file(&image).unwrap();
    }
    lab.assert_history_is_the_disk();
    lab.daemon.restore(DISK, "latest", &image);
    ext4::assert_sound(&image, "latest");
    for n in 1..=safe {
        let found = ext4::read_file(&image, &format!("/safe/{n}"));
        assert_eq!(found.as_deref(), Some(format!("content of {n}\n").as_str()), "/safe/{n} was synced");
    }
}
