//! The vault is put back from an older copy, and lost: found by the next hello, said loudly, and copied again.

use afterimage_tests::daemon::daemon;
use afterimage_tests::data;
use afterimage_tests::lab::DISK;
use afterimage_tests::tool::tool;
use std::path::Path;

const MIB: u64 = 1 << 20;

fn copy(from: &Path, to: &Path) {
    tool("cp").arg("-a").arg(from).arg(to).run();
}

#[test]
fn an_older_copy_and_a_lost_vault_are_noticed_and_history_converges() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.raw");
    data::sparse(&image, 32 * MIB);
    let mut up = daemon(dir.path()).volume(DISK, &image).options(["--ring", "16MiB"]).start();
    let vault = up.data().join("vault");
    let write = |uri: &str, byte: u8| {
        tool("qemu-io").args(["-f", "raw", "-c", &format!("write -P {byte} {byte}M 1M"), "-c", "flush", uri]).run();
    };
    up.wait_live(DISK);
    write(&up.uri(DISK), 1);
    up.point(DISK, "kept");
    assert!(up.stop().success());
    let old = dir.path().join("old");
    copy(&vault, &old);

    up.start();
    write(&up.uri(DISK), 2);
    let lost = up.wait_durable(DISK);
    assert!(up.stop().success());
    std::fs::remove_dir_all(&vault).unwrap();
    copy(&old, &vault);
    up.start();
    up.wait_live(DISK);
    assert!(up.log().contains("restored from an older copy"), "{}", up.log());
    write(&up.uri(DISK), 3);
    let seq = up.wait_durable(DISK);
    assert!(seq > lost);
    // A seq of the future that was lost names nothing else now.
    up.cli("restore").args([DISK, "--at", &format!("@{lost}"), "--to", "-"]).run_failing(1);
    let restored = dir.path().join("restored");
    up.restore(DISK, &format!("@{seq}"), &restored);
    data::assert_same(&image, &restored);
    up.restore(DISK, "kept", &dir.path().join("kept"));

    assert!(up.stop().success());
    std::fs::remove_dir_all(&vault).unwrap();
    up.start();
    up.wait_live(DISK);
    let log = up.log();
    assert!(log.contains("was made now") && log.contains("as for the first time"), "{log}");
    let seq = up.wait_durable(DISK);
    std::fs::remove_file(&restored).unwrap();
    up.restore(DISK, &format!("@{seq}"), &restored);
    data::assert_same(&image, &restored);
    assert!(up.stop().success(), "{}", up.log());
}
