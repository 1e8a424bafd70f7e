//! The Linux kernel's own NBD client, in a guest, over TCP.

use afterimage_tests::guest::guest;
use afterimage_tests::lab::DISK;
use afterimage_tests::{binary, daemon, data, ext4};

#[test]
fn the_kernels_client_makes_and_checks_a_file_system() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.raw");
    data::sparse(&image, 192 << 20);
    let port = data::free_port();
    let listen = format!("tcp:127.0.0.1:{port}");
    let mut daemon = daemon::daemon(dir.path()).volume(DISK, &image).options(["--listen", listen.as_str()]).start();
    daemon.wait_live(DISK);

    let script = std::fs::read_to_string(binary::repository().join("tests/guest/nbd-client.sh")).unwrap();
    let mut vm = guest(&format!("PORT={port}\nNAME={DISK}\n{script}")).network().start();
    vm.wait_success();

    let seq = daemon.wait_durable(DISK);
    let restored = dir.path().join("restored");
    daemon.restore(DISK, &format!("@{seq}"), &restored);
    data::assert_same(&image, &restored);
    ext4::assert_sound(&restored, "the restored disk");
    assert!(daemon.stop().success(), "{}", daemon.log());
}
