//! A disk that grows and shrinks while it is served: history has the size of each moment.

use afterimage_tests::daemon::daemon;
use afterimage_tests::data;
use afterimage_tests::lab::DISK;
use afterimage_tests::tool::tool;

const MIB: u64 = 1 << 20;

#[test]
fn a_volume_changes_its_size_and_each_moment_keeps_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.raw");
    data::sparse(&image, 32 * MIB);
    let mut up = daemon(dir.path()).volume(DISK, &image).options(["--ring", "16MiB"]).start();
    let write = |uri: &str, byte: u8| {
        tool("qemu-io").args(["-f", "raw", "-c", &format!("write -P {byte} {byte}M 1M"), "-c", "flush", uri]).run();
    };
    let set_len = |size: u64| std::fs::File::options().write(true).open(&image).unwrap().set_len(size).unwrap();
    up.wait_live(DISK);
    write(&up.uri(DISK), 31);
    up.point(DISK, "small");
    set_len(64 * MIB);
    up.cli("volume resize").args([DISK]).run();
    write(&up.uri(DISK), 63);
    up.point(DISK, "large");
    up.cli("volume resize").args([DISK, "--size", "16MiB"]).run();
    set_len(16 * MIB);
    up.cli("volume resize").args([DISK, "--size", "17MiB"]).run_failing(1);
    write(&up.uri(DISK), 15);
    up.point(DISK, "least");
    set_len(40 * MIB);
    up.cli("volume resize").args([DISK, "--json"]).run();
    let seq = up.wait_durable(DISK);
    for (at, size) in [("small", 32), ("large", 64), ("least", 16)] {
        let to = dir.path().join(at);
        up.restore(DISK, at, &to);
        assert_eq!(std::fs::metadata(&to).unwrap().len(), size * MIB, "{at}");
    }
    let restored = dir.path().join("restored");
    up.restore(DISK, &format!("@{seq}"), &restored);
    data::assert_same(&image, &restored);
    // Behind our back, and to another size: refused with the way out.
    assert!(up.stop().success());
    set_len(48 * MIB);
    let refused = up.cli("up").arg(format!("{DISK}={}", image.display())).run_failing(1).describe();
    assert!(refused.contains("--resize"), "{refused}");
    set_len(40 * MIB);
    // One byte, written while nothing ran, is found.
    tool("sh").args(["-c", &format!("printf x | dd of={} bs=1 seek=7777777 conv=notrunc", image.display())]).run();
    up.start();
    assert!(up.log().contains("somebody else wrote"), "{}", up.log());
    up.wait_live(DISK);
    let seq = up.wait_durable(DISK);
    std::fs::remove_file(&restored).unwrap();
    up.restore(DISK, &format!("@{seq}"), &restored);
    data::assert_same(&image, &restored);
    assert!(up.stop().success(), "{}", up.log());
}
