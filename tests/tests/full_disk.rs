//! The store's disk is full: the guest goes on, the volume says so and makes no point, and once there is room everything
//! resumes by itself.

use afterimage_tests::daemon::{daemon, number};
use afterimage_tests::data;
use afterimage_tests::lab::DISK;
use afterimage_tests::process::Process;
use afterimage_tests::tool::tool;
use serde_json::Value;
use std::path::Path;

const MIB: u64 = 1 << 20;

/// Mounts a small tmpfs on `dir` in a mount namespace of its own, which nobody else sees and which goes with the process.
/// Works without root where unprivileged user namespaces do.
fn small_disk(dir: &Path, size: &str) -> Process {
    let ready = dir.with_extension("ready");
    let script = format!(
        "mount -t tmpfs -o size={size},mode=0700 tmpfs {} && touch {} && exec sleep 1000000",
        dir.display(),
        ready.display()
    );
    let namespace: &[&str] =
        if nix::unistd::geteuid().is_root() { &["--mount"] } else { &["--map-root-user", "--mount"] };
    let holder = tool("unshare").args(namespace).args(["sh", "-c", &script]).into_command();
    let mut holder = Process::start(holder, &dir.with_extension("log"));
    holder.wait_until("mounted", || ready.exists());
    holder
}

#[test]
fn a_full_store_costs_the_guest_nothing_and_heals() {
    let dir = tempfile::tempdir().unwrap();
    let (image, small) = (dir.path().join("disk.raw"), dir.path().join("small"));
    data::sparse(&image, 256 * MIB);
    std::fs::create_dir(&small).unwrap();
    let holder = small_disk(&small, "480m");
    let target = holder.id().to_string();
    let mut enter = vec!["nsenter", "--target", &target, "--mount"];
    if !nix::unistd::geteuid().is_root() {
        enter.extend(["--user", "--preserve-credentials"]);
    }
    let inside = |command: &str| tool(enter[0]).args(&enter[1..]).args(["sh", "-c", command]).run();
    // Its socket lies outside, so that any client reaches it.
    let listen = format!("unix:{}", dir.path().display());
    let daemon = daemon(dir.path()).data(&small.join("data")).volume(DISK, &image).prefix(enter.iter().copied());
    let mut daemon = daemon.options(["--listen", listen.as_str(), "--ring", "16MiB"]).start();
    daemon.wait_live(DISK);

    // About 64 MiB are left; 200 MiB come, none of which can be compressed.
    let source = dir.path().join("source");
    std::fs::write(&source, data::Chance::seeded().bytes(200 << 20)).unwrap();
    inside(&format!("head -c 400m /dev/zero >{}", small.join("ballast").display()));
    tool("nbdcopy").arg("--flush").arg(&source).arg(daemon.uri(DISK)).run();
    let full = |v: &Value| v["state"] != "live" && v["reason"].as_str().is_some_and(|r| r.contains("no room"));
    let volume = daemon.wait_volume(DISK, "behind because there is no room", full);
    println!("{volume:#}");
    assert_ne!(volume["state"], "error", "a full disk is not final: {volume:#}");
    tool("qemu-io").args(["-f", "raw", "-c", "write -P 5 4k 8k", "-c", "flush", &daemon.uri(DISK)]).run();
    daemon.cli("point create").args([DISK, "--name", "while-full"]).run_failing(1);
    assert!(number(&daemon.volume(DISK), "dirty_bytes") > 0);

    inside(&format!("rm {}", small.join("ballast").display()));
    daemon.wait_live(DISK);
    let seq = daemon.wait_durable(DISK);
    let restored = dir.path().join("restored");
    daemon.restore(DISK, &format!("@{seq}"), &restored);
    data::assert_same(&image, &restored);
    daemon.point(DISK, "afterwards");
    assert!(daemon.stop().success(), "{}", daemon.log());
}

/// What has left the window fills the disk: ingest pauses, collection finds its way out by the reserve, and all goes on without
/// anybody's help.
#[test]
fn collection_makes_room_on_a_full_disk_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (image, small) = (dir.path().join("disk.raw"), dir.path().join("small"));
    data::sparse(&image, 64 * MIB);
    std::fs::create_dir(&small).unwrap();
    let holder = small_disk(&small, "300m");
    let target = holder.id().to_string();
    let mut enter = vec!["nsenter", "--target", &target, "--mount"];
    if !nix::unistd::geteuid().is_root() {
        enter.extend(["--user", "--preserve-credentials"]);
    }
    let listen = format!("unix:{}", dir.path().display());
    let up = daemon(dir.path()).data(&small.join("data")).volume(DISK, &image).prefix(enter.iter().copied());
    let options = ["--listen", listen.as_str(), "--ring", "16MiB", "--window", "1s", "--min-free", "40MiB"];
    let mut up = up.options(options).options(["--point-every", "0"]).start();
    up.wait_live(DISK);
    let (source, mut chance) = (dir.path().join("source"), data::Chance::seeded());
    for _ in 0..6 {
        std::fs::write(&source, chance.bytes(60 << 20)).unwrap();
        tool("nbdcopy").arg("--flush").arg(&source).arg(up.uri(DISK)).run();
    }
    let paused = |_: &Value| up.log().contains("ingest pauses");
    up.wait_volume(DISK, "paused once", paused);
    up.wait_live(DISK);
    let seq = up.wait_durable(DISK);
    let restored = dir.path().join("restored");
    up.restore(DISK, &format!("@{seq}"), &restored);
    data::assert_same(&image, &restored);
    assert!(up.stop().success(), "{}", up.log());
}
