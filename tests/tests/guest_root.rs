//! A protected root disk: a guest boots from a volume that the host exports over NBD, works, is killed, and boots again from
//! a recovery point; what it did after the point is not there, and it works on without touching history.

use afterimage_tests::data;
use afterimage_tests::guest::{self, machine};
use afterimage_tests::lab::DISK;
use afterimage_tests::tool::tool;
use afterimage_tests::{daemon, ext4};

#[test]
fn a_guest_boots_again_from_a_recovery_point_of_its_root_disk() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("root.raw");
    tool("cp").arg("--sparse=always").arg(guest::image_folder().join("root.ext4")).arg(&image).run();
    let mut daemon = daemon::daemon(dir.path()).volume(DISK, &image).start();
    daemon.wait_live(DISK);

    let boot = |uri: &str| machine("rooted").disk(uri).root("/dev/vda").boot();
    let mut vm = boot(&daemon.uri(DISK));
    assert!(vm.run("mount").contains("/dev/vda on / type ext4"));
    vm.run("echo kept >/root/kept; cp /bin/busybox /root/; sync");
    daemon.point(DISK, "good");
    // Something goes badly wrong.
    vm.run("echo lost >/root/lost; rm /root/kept; rm -rf /bin /sbin /lib/modules /init; sync");
    vm.kill();
    let ruined = daemon.wait_durable(DISK);

    // The disk as it is does not boot any more; the point does, on a branch that takes its writes.
    let (export, uri) = daemon.export(DISK, "good", &dir.path().join("point.sock"), &["--writable"]);
    let mut vm = boot(&uri);
    assert_eq!(vm.run("cat /root/kept; /root/busybox echo a program runs"), "kept\na program runs");
    assert_eq!(vm.run("ls /root | tr '\\n' ' '"), "busybox kept");
    vm.run("echo new >/root/new; sync; sleep 1");
    vm.kill();
    drop(export);

    assert_eq!(daemon.wait_durable(DISK), ruined, "what runs on the point changes no history");
    let restored = dir.path().join("restored");
    daemon.restore(DISK, "good", &restored);
    ext4::assert_sound(&restored, "the point");
    assert_eq!(ext4::read_file(&restored, "/root/kept").as_deref(), Some("kept\n"));
    assert_eq!(ext4::read_file(&restored, "/root/new"), None);
    let latest = dir.path().join("latest");
    daemon.restore(DISK, "latest", &latest);
    data::assert_same(&image, &latest);
    ext4::assert_sound(&latest, "the ruined disk");
    assert_eq!(ext4::read_file(&latest, "/root/lost").as_deref(), Some("lost\n"));
    assert!(daemon.stop().success(), "{}", daemon.log());
}
