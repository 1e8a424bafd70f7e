//! The main job as a user does it: protect, write, look, export, restore, diff, stop, start, kill, start.

mod common;

use common::{Killed, Lab, MIB, bad, both, command, good, load, ours, same, wait_until};
use nix::sys::signal::Signal;
use std::process::Stdio;

#[test]
fn a_disk_is_protected_and_comes_back_as_it_was() {
    let mut lab = Lab::new();
    let disk = lab.disk("web.raw", 64 * MIB);
    lab.up(&[&format!("web={}", disk.display()), "--point-every", "0"]);
    lab.live("web");
    let uri = lab.uri("web");
    assert!(lab.log().contains(&uri), "{}", lab.log());
    assert!(good(command("nbdinfo").args(["--size", &uri])).contains("67108864"));

    lab.qemu_io(&uri, &["write -P 1 0 8M", "write -P 1 32M 1M", "flush"]);
    let point = lab.json(&["point", "create", "web", "--name", "before upgrade"]);
    let first = lab.durable("web");
    assert_eq!((&point["seq"], &point["auto"]), (&first.into(), &false.into()));
    std::fs::copy(&disk, lab.path("first.raw")).unwrap();

    lab.qemu_io(&uri, &["write -P 2 4M 2M", "discard 32M 1M", "write -z 0 1M", "write -P 3 999 333", "flush"]);
    let last = lab.durable("web");
    assert!(last >= first + 4);

    // Restore, in every form of WHEN that names these moments.
    for (at, name) in [("before upgrade", "a"), (&*format!("@{first}"), "b"), (point["time"].as_str().unwrap(), "c")] {
        same(&lab.restore("web", at, name), &lab.path("first.raw"));
    }
    same(&lab.restore("web", "latest", "now.raw"), &disk);
    // A write that is neither a point nor the newest has its time, too.
    let between = format!("@{}", first + 1);
    let out = lab.cli(&["restore", "web", "--at", &between, "--to"]).arg(lab.path("between.raw")).output().unwrap();
    let done = both(&out);
    assert!(done.contains(&format!("{between} (20")), "{done}");
    let sparse = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(lab.path("now.raw")).unwrap());
    assert!(sparse * 512 < 16 * MIB, "{sparse} sectors are allocated");

    // qcow2, and both formats through a pipe.
    let qcow2 = lab.path("first.qcow2");
    good(lab.cli(&["restore", "web", "--at", "before upgrade", "--format", "qcow2", "--to"]).arg(&qcow2));
    good(command("qemu-img").args(["check", "-q"]).arg(&qcow2));
    good(command("qemu-img").args(["compare", "-q", "-F", "raw"]).arg(&qcow2).arg(lab.path("first.raw")));
    for (format, file) in [("raw", "pipe.raw"), ("qcow2", "pipe.qcow2")] {
        let out = std::fs::File::create(lab.path(file)).unwrap();
        let mut c = lab.cli(&["restore", "web", "--at", "before upgrade", "--to", "-", "--format", format]);
        assert!(c.stdout(out).stderr(Stdio::null()).status().unwrap().success());
    }
    same(&lab.path("pipe.raw"), &lab.path("first.raw"));
    same(&lab.path("pipe.qcow2"), &qcow2);

    // What changed, on the 4 KiB grid.
    let diff = lab.json(&["diff", "web", "--from", "before upgrade", "--to", "latest"]);
    assert_eq!((&diff["from"], &diff["to"]), (&first.into(), &last.into()));
    let extents = diff["extents"].as_array().unwrap();
    let (a, b) = (std::fs::read(lab.path("first.raw")).unwrap(), std::fs::read(&disk).unwrap());
    for at in (0..a.len()).step_by(4096) {
        let covered = extents.iter().any(|e| {
            let (offset, length) = (e["offset"].as_u64().unwrap(), e["length"].as_u64().unwrap());
            (offset..offset + length).contains(&(at as u64))
        });
        assert!(covered || a[at..at + 4096] == b[at..at + 4096], "byte {at} changed and is not in the diff");
    }
    assert_eq!(diff["changed_bytes"], 4 * MIB, "{diff}");

    // Stop, check offline, start again: the history is still there.
    assert_eq!(lab.down(), Some(0), "{}", lab.log());
    assert!(good(&mut lab.cli(&["check"])).contains("everything is sound"));
    assert_eq!(lab.json(&["check"])["sound"], true);
    for what in ["manifest", "segments", "layers", "ring"] {
        assert!(!good(&mut lab.cli(&["dump", what])).is_empty());
        lab.json(&["dump", what]);
    }
    lab.up_again();
    assert!(lab.log().contains("stopped in order last time"), "{}", lab.log());
    same(&lab.restore("web", "before upgrade", "again.raw"), &lab.path("first.raw"));

    // A ring that is there keeps its size, and the user is told.
    assert!(!lab.log().contains("keeps its size"), "{}", lab.log());
    assert_eq!(lab.down(), Some(0), "{}", lab.log());
    lab.up_with_ring("32MiB");
    assert!(lab.log().matches("keeps its size of 16").count() >= 2, "{}", lab.log());
}

#[test]
fn an_export_shows_the_past_until_its_command_ends() {
    let mut lab = Lab::new();
    let disk = lab.disk("d.raw", 16 * MIB);
    lab.up(&[disk.to_str().unwrap(), "--point-every", "0"]);
    lab.live("d");
    let now = lab.uri("d");
    lab.qemu_io(&now, &["write -P 1 0 1M", "flush"]);
    let seq = lab.durable("d");
    lab.qemu_io(&now, &["write -P 2 0 1M", "flush"]);
    lab.durable("d");

    let socket = lab.path("x.sock");
    let listen = format!("unix:{}", socket.display());
    let at = format!("@{seq}");
    let start = |more: &[&str]| {
        let mut c = lab.cli(&["export", "d", "--at", &at, "--listen", &listen]);
        let child = Killed(c.args(more).stdout(Stdio::null()).spawn().unwrap());
        // A killed command leaves its socket behind: that a file is there says nothing.
        wait_until("the socket answers", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
        child
    };
    let past = format!("nbd+unix:///d?socket={}", socket.display());
    let default = format!("nbd+unix:///?socket={}", socket.display());
    let mut export = start(&[]);
    for uri in [&past, &default] {
        lab.qemu_io(uri, &["read -P 1 0 1M"]);
    }
    assert!(good(command("nbdinfo").args(["--is", "read-only", &past])).is_empty());
    export.signal(Signal::SIGTERM);
    assert_eq!(export.0.wait().unwrap().code(), Some(0));
    assert!(!socket.exists());

    // A writable one takes writes and forgets them, also after a kill of its command.
    let mut export = start(&["--writable"]);
    lab.qemu_io(&past, &["write -P 9 4k 64k", "read -P 9 4k 64k", "read -P 1 0 4k", "flush"]);
    lab.qemu_io(&past, &["read -P 9 4k 64k"]);
    export.0.kill().unwrap();
    export.0.wait().unwrap();
    wait_until("the export is gone", || std::os::unix::net::UnixStream::connect(&socket).is_err());
    let export = start(&[]);
    lab.qemu_io(&past, &["read -P 1 0 1M"]);
    lab.qemu_io(&now, &["read -P 2 0 1M"]);

    // The daemon ends: the command says so.
    let mut export = export;
    assert_eq!(lab.down(), Some(0), "{}", lab.log());
    assert_eq!(export.0.wait().unwrap().code(), Some(1));
}

#[test]
fn killed_and_started_again_nothing_is_lost() {
    let mut lab = Lab::new();
    let disk = lab.disk("d.raw", 16 * MIB);
    lab.up(&[disk.to_str().unwrap(), "--point-every", "0"]);
    lab.live("d");
    let (journal, data) = (lab.path("journal"), lab.data());
    let mut c = load();
    c.args(["run", "--uri", &lab.uri("d"), "--align", "1", "--max-size", "64KiB", "--duration", "4s"]);
    c.args(["--reconnect", "120s", "--volume", "d", "--data"]).arg(&data).arg("--journal").arg(&journal);
    let mut running = Killed(c.stdout(Stdio::null()).spawn().unwrap());
    for _ in 0..3 {
        let before = lab.volume("d")["seq_acked"].as_u64().unwrap();
        wait_until("the load goes on", || lab.volume("d")["seq_acked"].as_u64().unwrap() > before + 20);
        lab.kill();
        lab.up_again();
        assert!(lab.log().contains("was killed last time; nothing is lost"), "{}", lab.log());
    }
    assert!(running.0.wait().unwrap().success());
    lab.durable("d");
    let mut c = load();
    c.args(["verify", "--samples", "30", "--latest", "--volume", "d", "--data"]).arg(&data);
    good(c.arg("--journal").arg(&journal).arg("--disk").arg(&disk));
}

#[test]
fn every_seq_of_a_load_is_exactly_its_writes() {
    let mut lab = Lab::new();
    let disk = lab.disk("d.raw", 16 * MIB);
    lab.up(&[disk.to_str().unwrap(), "--point-every", "0"]);
    lab.live("d");
    let (journal, data) = (lab.path("journal"), lab.data());
    let run = |shape: &[&str]| {
        let mut c = load();
        c.args(["run", "--uri", &lab.uri("d"), "--count", "600", "--max-size", "128KiB", "--volume", "d", "--data"]);
        good(c.arg(&data).arg("--journal").arg(&journal).args(shape));
        lab.durable("d");
        let mut c = load();
        c.args(["verify", "--samples", "40", "--latest", "--volume", "d", "--data"]).arg(&data);
        good(c.arg("--journal").arg(&journal).arg("--disk").arg(&disk))
    };
    let said = run(&["--align", "1"]);
    assert!(said.contains("counted write by write") && !said.contains("(0 of them"), "{said}");
    lab.qemu_io(&lab.uri("d"), &["write -z 0 16M", "flush"]);
    run(&["--connections", "3", "--depth", "8"]);
}

#[test]
fn a_disk_is_served_unprotected_and_a_history_without_its_disk() {
    let mut lab = Lab::new();
    let disk = lab.disk("d.raw", 16 * MIB);
    lab.up(&[disk.to_str().unwrap(), "--no-protect"]);
    lab.qemu_io(&lab.uri("d"), &["write -P 5 0 64k", "read -P 5 0 64k"]);
    assert_eq!(lab.volume("d")["state"], "unprotected");
    assert!(bad(&mut lab.cli(&["restore", "d", "--to", "/nonexistent/x"]), 1).contains("--no-protect"));
    assert_eq!(lab.down(), Some(0));

    lab.up(&[disk.to_str().unwrap(), "--point-every", "0"]);
    lab.live("d");
    lab.durable("d");
    std::fs::copy(&disk, lab.path("kept.raw")).unwrap();
    assert_eq!(lab.down(), Some(0));
    std::fs::remove_file(&disk).unwrap();
    lab.up(&[]);
    assert_eq!(lab.volume("d")["state"], "offline");
    same(&lab.restore("d", "latest", "d.raw"), &lab.path("kept.raw"));
}

#[test]
fn automatic_points_are_made_and_thinned_to_changes() {
    let mut lab = Lab::new();
    let disk = lab.disk("d.raw", 16 * MIB);
    lab.up(&[disk.to_str().unwrap(), "--point-every", "1s", "--listen", "tcp:127.0.0.1:0"]);
    lab.live("d");
    let points = |lab: &Lab| lab.json(&["point", "ls", "d"])["points"].as_array().unwrap().clone();
    wait_until("the first point", || !points(&lab).is_empty());
    let uri = lab.volume("d")["uri"][0].as_str().unwrap().to_owned();
    assert!(uri.starts_with("nbd://127.0.0.1:"), "{uri}");
    lab.qemu_io(&uri, &["write -P 1 0 4k", "flush"]);
    wait_until("a point after the write", || points(&lab).len() >= 2);
    assert!(points(&lab).iter().all(|p| p["auto"] == true && p["name"].as_str().unwrap().starts_with("auto-")));
    assert_eq!(lab.down(), Some(0));
    lab.up_again();
    wait_until("the point of the shutdown", || points(&lab).iter().any(|p| p["name"] == "shutdown"));
}

#[test]
fn the_demonstration_ends_well() {
    let out = ours().arg("demo").output().unwrap();
    let said = common::both(&out);
    assert!(out.status.success(), "{said}");
    assert!(said.contains("every byte of the disk is as it was") && said.contains("Every byte is right"), "{said}");
}
