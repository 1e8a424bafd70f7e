//! The laboratory itself, checked with other people's servers: a check that passes whatever happens is worth nothing.

use afterimage_tests::data::{self, Chance};
use afterimage_tests::guest::guest;
use afterimage_tests::peer::{self, Kind};
use afterimage_tests::tool::tool;
use afterimage_tests::{binary, ext4};
use std::time::Duration;

#[test]
fn a_guest_killed_on_a_plain_image_leaves_a_sound_ext4() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk");
    data::sparse(&image, 192 << 20);
    let peer = peer::serve(Kind::QemuNbd, &image, dir.path(), &[]);
    let script = std::fs::read_to_string(binary::repository().join("tests/guest/ext4-work.sh")).unwrap();
    let mut vm = guest(&script).disk(peer.uri()).start();
    vm.wait_for("work: file system is ready");
    vm.type_line("go");
    vm.wait_for("work: safe 40");
    std::thread::sleep(Duration::from_millis(Chance::seeded().below(2000)));
    vm.kill();
    drop(peer);
    ext4::assert_sound(&image, "the disk of the killed guest");
    assert_eq!(ext4::read_file(&image, "/safe/40").as_deref(), Some("content of 40\n"));
    assert_eq!(ext4::read_file(&image, "/safe/never"), None);
}

#[test]
#[should_panic(expected = "a spoilt image")]
fn a_spoilt_ext4_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk");
    data::sparse(&image, 64 << 20);
    tool("mke2fs").args(["-q", "-t", "ext4", "-b", "4096", "-d", "/usr/share/doc/fio"]).arg(&image).run();
    ext4::assert_sound(&image, "a fresh image");
    // The block bitmap of the first group.
    let shown = tool("dumpe2fs").arg(&image).run().stdout;
    let bitmap = shown.lines().find_map(|l| l.trim().strip_prefix("Block bitmap at ")).expect("a block bitmap");
    let block: u64 = bitmap.split_whitespace().next().and_then(|b| b.parse().ok()).expect("its block");
    data::flip_bit(&image, block * 4096 * 8 + 77);
    ext4::assert_sound(&image, "a spoilt image");
}

#[test]
fn a_difference_is_found_at_its_byte() {
    let dir = tempfile::tempdir().unwrap();
    let (left, right) = (dir.path().join("left"), dir.path().join("right"));
    data::patchy(&left, 3 << 20, &mut Chance::seeded());
    std::fs::copy(&left, &right).unwrap();
    data::assert_same(&left, &right);
    data::flip_bit(&right, ((2 << 20) + 12_345) * 8);
    assert_eq!(data::first_difference(&left, &right), Some((2 << 20) + 12_345));
}
