//! Branches: disks of their own that begin at a moment of another, over real clients, through kills.

use afterimage_tests::binary::repository;
use afterimage_tests::daemon::number;
use afterimage_tests::data::{Chance, assert_same};
use afterimage_tests::lab::{DISK, Lab};
use afterimage_tests::process::Process;
use afterimage_tests::tool::{Tool, tool};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

const SIZE: u64 = 16 << 20;
const BLOCK: usize = 4096;

fn json(tool: Tool) -> Value {
    serde_json::from_str(&tool.arg("--json").run().stdout).expect("JSON")
}

/// Serves a branch; the process and where it is.
fn serve(lab: &Lab, branch: &str, socket: &Path) -> (Process, String) {
    let export = lab.daemon.cli("branch export").arg(branch).arg("--listen").arg(format!("unix:{}", socket.display()));
    let mut process = Process::start(export.into_command(), &lab.path("export.log"));
    process.wait_until("served", || std::os::unix::net::UnixStream::connect(socket).is_ok());
    (process, format!("nbd+unix:///{branch}?socket={}", socket.display()))
}

fn write(uri: &str, pattern: u8, at: &str) {
    tool("qemu-io").args(["-f", "raw", "-c", &format!("write -P {pattern} {at}"), "-c", "flush", uri]).run();
}

fn holds(uri: &str, pattern: u8, at: &str) {
    let read = tool("qemu-io").args(["-f", "raw", "-r", "-c", &format!("read -P {pattern} {at}"), uri]).run();
    assert!(!read.stdout.contains("verification failed"), "{}", read.describe());
}

#[test]
fn a_branch_is_a_disk_of_its_own() {
    let mut lab = Lab::new(SIZE);
    write(&lab.uri(), 1, "0 1M");
    lab.daemon.point(DISK, "good");
    write(&lab.uri(), 2, "0 512k");
    lab.daemon.wait_durable(DISK);
    let create =
        |of: &str, at: &str, name: &str| lab.daemon.cli("branch create").args([of, "--at", at, "--name", name]);
    let made = json(create(DISK, "good", "trial"));
    assert_eq!((&made["name"], &made["parent"], &made["kind"]), (&"disk/trial".into(), &DISK.into(), &"branch".into()));
    create(DISK, "good", "trial").run_failing(1);
    create(DISK, "@999999", "other").run_failing(1);

    let (export, uri) = serve(&lab, "disk/trial", &lab.path("trial.sock"));
    holds(&uri, 1, "0 1M");
    write(&uri, 3, "256k 128k");
    holds(&uri, 3, "256k 128k");
    holds(&lab.uri(), 2, "0 512k");
    let walked = tool("/usr/bin/python3").arg(repository().join("tests/clients/walk.py")).arg(&uri).run();
    println!("a branch: {}", walked.stdout.trim());
    let point = json(lab.daemon.cli("branch point").args(["disk/trial", "--name", "walked"]));
    write(&uri, 4, "0 64k");
    // What it differs in from where it began, and from what the disk is now.
    assert!(number(&json(lab.daemon.cli("branch diff").arg("disk/trial")), "changed_bytes") > 0);
    let to_disk = json(lab.daemon.cli("branch diff").args(["disk/trial", "--base", DISK]));
    assert_eq!(to_disk["base"], DISK);
    // A moment of it like those of any volume, and a branch of it.
    let (image, second) = (lab.path("walked.raw"), lab.path("second.raw"));
    lab.daemon.restore("disk/trial", "walked", &image);
    assert_eq!(json(create("disk/trial", "walked", "second"))["fork_seq"], point["seq"]);
    lab.daemon.restore("disk/second", "latest", &second);
    assert_same(&image, &second);
    lab.daemon.cli("branch drop").arg("disk/trial").run_failing(2);
    lab.daemon.cli("branch drop").args(["disk/trial", "--yes"]).run_failing(1);
    drop(export);

    // Promoted it needs the disk's history no more; its branch is still its own.
    assert_eq!(json(lab.daemon.cli("branch promote").arg("disk/trial"))["kind"], "promoted");
    let third = lab.path("third.raw");
    lab.daemon.restore("disk/trial", "walked", &third);
    assert_same(&image, &third);
    lab.daemon.cli("branch drop").args(["disk/trial", "--yes"]).run_failing(1);
    lab.daemon.cli("branch drop").args(["disk/second", "--yes"]).run();
    let list = json(lab.daemon.cli("branch ls"));
    assert_eq!(list["branches"].as_array().expect("a list").len(), 1, "{list}");
    assert!(lab.daemon.stop().success(), "{}", lab.daemon.log());
    lab.daemon.check().run();
    lab.daemon.start();
    let fourth = lab.path("fourth.raw");
    lab.daemon.restore("disk/trial", "walked", &fourth);
    assert_same(&image, &fourth);
}

/// The last write that an image shows, after which every block must be as the writes up to it left it.
fn last_write(image: &Path, blocks: u64) -> u64 {
    let bytes = std::fs::read(image).expect("an image");
    let of = |block: &[u8]| u64::from_le_bytes(*block.first_chunk::<8>().expect("a block"));
    let shown: Vec<u64> = bytes.chunks_exact(BLOCK).map(of).collect();
    let last = shown.iter().copied().max().unwrap_or(0);
    let mut expected = vec![0; shown.len()];
    for n in 1..=last {
        expected[usize::try_from(n * 7919 % blocks).expect("a block")] = n;
    }
    for (block, (is, should)) in shown.iter().zip(&expected).enumerate() {
        assert_eq!(is, should, "block {block} of the image that shows write {last}");
        let whole = bytes[block * BLOCK..][..BLOCK].chunks_exact(8).all(|w| of(w) == *is);
        assert!(whole, "block {block} is torn");
    }
    last
}

#[test]
fn kills_leave_of_a_branch_what_was_flushed_and_a_prefix() {
    let (mut chance, mut lab) = (Chance::seeded(), Lab::new(SIZE));
    write(&lab.uri(), 0, "0 64k");
    lab.daemon.wait_durable(DISK);
    lab.daemon.cli("branch create").args([DISK, "--name", "kills"]).run();
    let (blocks, mut last) = (SIZE / BLOCK as u64, 0);
    for round in 0..6 {
        let (export, uri) = serve(&lab, "disk/kills", &lab.path("kills.sock"));
        let log = lab.path(&format!("client-{round}.log"));
        let client = tool("/usr/bin/python3").arg(repository().join("tests/clients/prefix.py"));
        let client = client.args([&uri, &(last + 1).to_string(), &blocks.to_string()]);
        let mut client = Process::start(client.into_command(), &log);
        let flushed = |log: &Path| {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            text.lines().filter_map(|l| l.trim().parse().ok()).max().unwrap_or(0u64)
        };
        client.wait_until("flushed", || flushed(&log) > last);
        std::thread::sleep(Duration::from_millis(chance.below(700)));
        lab.daemon.kill();
        drop(export);
        assert!(client.wait_end().success(), "{}", client.describe());
        lab.daemon.start();
        let image = lab.path("kills.raw");
        lab.daemon.restore("disk/kills", "latest", &image);
        let (durable, shown) = (flushed(&log), last_write(&image, blocks));
        assert!(shown >= durable, "round {round}: write {durable} was flushed, and the branch ends with {shown}");
        println!("kill {round}: {durable} flushed, {shown} there");
        last = shown;
        std::fs::remove_file(&image).expect("remove it");
    }
    // What a writable export wrote is gone with the process that served it.
    let (export, _) = lab.daemon.export(DISK, "latest", &lab.path("scratch.sock"), &["--writable"]);
    let kinds = || {
        let list = json(lab.daemon.cli("branch ls"));
        list["branches"].as_array().expect("a list").iter().map(|b| b["kind"].to_string()).collect::<Vec<_>>()
    };
    assert_eq!(kinds(), ["\"export\"", "\"branch\""]);
    lab.daemon.kill();
    drop(export);
    lab.daemon.start();
    let list = json(lab.daemon.cli("branch ls"));
    assert_eq!(list["branches"].as_array().expect("a list").len(), 1, "{list}");
    assert!(lab.daemon.stop().success(), "{}", lab.daemon.log());
    lab.daemon.check().run();
}
