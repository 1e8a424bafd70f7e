//! Clients that others wrote, against a protected export. After each, the disk must hold what the client wrote, and the
//! history the same.

use afterimage_tests::data::{self, Chance};
use afterimage_tests::lab::{DISK, Lab};
use afterimage_tests::peer::{self, Kind};
use afterimage_tests::tool::tool;
use afterimage_tests::{binary, daemon};
use std::path::Path;

const MIB: u64 = 1 << 20;

fn walk(uri: &str) {
    let script = binary::repository().join("tests/clients/walk.py");
    // Debian's Python, for which Debian's libnbd is built.
    let walked = tool("/usr/bin/python3").arg(script).arg(uri).run();
    println!("{}", walked.stdout);
}

fn fio(uri: &str, options: &[&str]) {
    let run = tool("fio").args(["--name=verify", "--ioengine=nbd", "--thread", "--group_reporting"]);
    let run = run.arg(format!("--uri={uri}")).args(options).run();
    assert!(run.stdout.contains("err= 0"), "{}", run.describe());
}

#[test]
fn libnbd_walks_every_command_and_flag() {
    let lab = Lab::new(64 * MIB);
    walk(&lab.uri());
    lab.assert_history_is_the_disk();
}

#[test]
fn the_walk_itself_is_sound() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk");
    data::sparse(&image, 64 * MIB);
    walk(peer::serve(Kind::QemuNbd, &image, dir.path(), &[]).uri());
}

#[test]
fn fio_verifies_random_writes_over_several_connections() {
    let lab = Lab::new(256 * MIB);
    let common = [
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--numjobs=4",
        "--size=48m",
        "--offset_increment=64m",
    ];
    let small = ["--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned=0", "--blockalign=512", "--iodepth=32"];
    fio(&lab.uri(), &[&common[..], &small[..]].concat());
    fio(&lab.uri(), &[&common[..], &["--rw=write", "--bs=1m", "--iodepth=4", "--fsync=8"]].concat());
    lab.assert_history_is_the_disk();
}

#[test]
fn fio_verifies_through_tcp() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.raw");
    data::sparse(&image, 64 * MIB);
    let listen = format!("tcp:127.0.0.1:{}", data::free_port());
    let daemon = daemon::daemon(dir.path()).volume(DISK, &image).options(["--listen", listen.as_str()]).start();
    daemon.wait_live(DISK);
    let options = [
        "--verify=crc32c",
        "--verify_state_save=0",
        "--rw=randrw",
        "--bs=4k",
        "--size=24m",
        "--iodepth=16",
        "--numjobs=2",
    ];
    fio(&daemon.uri(DISK), &[&options[..], &["--offset_increment=32m"]].concat());
}

#[test]
fn nbdcopy_in_and_out() {
    let lab = Lab::new(192 * MIB);
    let source = lab.path("source");
    data::patchy(&source, 192 * MIB, &mut Chance::seeded());
    let copy = |from: &Path, to: &Path| tool("nbdcopy").arg("--flush").arg(from).arg(to).run();
    let uri = lab.uri();
    copy(&source, Path::new(&uri));
    data::assert_same(&source, &lab.image);
    let back = lab.path("back");
    copy(Path::new(&uri), &back);
    data::assert_same(&source, &back);
    lab.assert_history_is_the_disk();
    // And out of the history, through an export of an earlier moment.
    let seq = lab.daemon.wait_durable(DISK);
    tool("qemu-io").args(["-f", "raw", "-c", "write -P 7 0 8M", "-c", "discard 16M 8M", "-c", "flush", &uri]).run();
    let (_export, then) = lab.daemon.export(DISK, &format!("@{seq}"), &lab.path("then.sock"), &[]);
    copy(Path::new(&then), &lab.path("then"));
    data::assert_same(&source, &lab.path("then"));
    tool("nbdcopy").arg(&then).arg("null:").run();
}

#[test]
fn qemu_img_and_nbdinfo_agree_with_the_disk() {
    let lab = Lab::new(96 * MIB);
    let source = lab.path("source");
    data::patchy(&source, 96 * MIB, &mut Chance::seeded());
    let uri = lab.uri();
    tool("qemu-img").args(["convert", "-n", "-f", "raw", "-O", "raw"]).arg(&source).arg(&uri).run();
    tool("qemu-img").args(["compare", "-f", "raw", "-F", "raw"]).arg(&uri).arg(&source).run();
    let info = tool("nbdinfo").args(["--json", &uri]).run().stdout;
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["exports"][0]["export-size"], 96 * MIB, "{info}");
    assert_eq!(info["exports"][0]["can_multi_conn"], true, "{info}");
    tool("nbdinfo").args(["--map", &uri]).run();
    let list = tool("nbdinfo").args(["--list", "--json", &uri]).run().stdout;
    assert!(list.contains(&format!("\"export-name\": \"{DISK}\"")), "{list}");
    lab.assert_history_is_the_disk();
    let (_export, latest) = lab.daemon.export(DISK, "latest", &lab.path("latest.sock"), &[]);
    tool("qemu-img").args(["compare", "-f", "raw", "-F", "raw"]).arg(&latest).arg(&source).run();
}

#[test]
fn a_writable_export_takes_writes_and_changes_nothing() {
    let lab = Lab::new(64 * MIB);
    let uri = lab.uri();
    tool("qemu-io").args(["-f", "raw", "-c", "write -P 1 0 16M", "-c", "flush", &uri]).run();
    // `latest` is what the appliance has.
    lab.daemon.wait_durable(DISK);
    let (_export, branch) = lab.daemon.export(DISK, "latest", &lab.path("branch.sock"), &["--writable"]);
    let script = ["-c", "read -P 1 0 16M", "-c", "write -P 2 4096 1M", "-c", "read -P 2 4096 1M", "-c", "flush"];
    tool("qemu-io").args(["-f", "raw"]).args(script).args(["-c", "read -P 1 0 4096", &branch]).run();
    walk(&branch);
    tool("qemu-io").args(["-f", "raw", "-c", "read -P 1 0 16M", &uri]).run();
    lab.assert_history_is_the_disk();
}
