//! Bad inputs: each gets a message that names the object and says what to do, the right exit code, and harms nothing.

mod common;

use common::{Killed, Lab, MIB, bad, good, ours, same, wait_until};
use std::path::Path;

/// `up` that must fail with this exit code; its message.
#[track_caller]
fn refused(lab: &Lab, args: &[&str], code: i32) -> String {
    bad(ours().arg("up").arg("--data").arg(lab.data()).args(["--ring", "16MiB"]).args(args), code)
}

#[track_caller]
fn says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "'{word}' is not in: {message}");
    }
}

#[test]
fn disks_that_cannot_be_protected() {
    let lab = Lab::new();
    let dir = lab.dir.path().to_str().unwrap();
    let missing = format!("{dir}/none.raw");
    says(&refused(&lab, &[&missing], 1), &[&missing, "does not exist"]);
    says(&refused(&lab, &[&format!("d={dir}")], 1), &[dir, "is a directory"]);
    says(&refused(&lab, &["d=/dev/null"], 1), &["/dev/null", "neither a regular file nor a block device"]);
    let empty = lab.disk("empty.raw", 0);
    says(&refused(&lab, &[empty.to_str().unwrap()], 1), &["empty.raw", "size 0"]);
    let disk = lab.disk("a.raw", MIB);
    let path = disk.to_str().unwrap();
    says(&refused(&lab, &[path, &format!("{dir}/sub/../a.img")], 2), &["two volumes would be named 'a'"]);
    says(&refused(&lab, &[&format!("a b={path}")], 1), &["\"a b\"", "letters, digits"]);
    says(&refused(&lab, &[path, "--ring", "4KiB"], 2), &["--ring"]);
    says(&refused(&lab, &[path, "--listen", "unix:"], 2), &["unix:PATH"]);
    says(&refused(&lab, &[path, "--listen", &format!("unix:{path}")], 2), &["not a directory"]);
    says(&refused(&lab, &[path, "--window", "soon"], 2), &["'soon' is not a duration"]);
}

#[test]
fn a_disk_in_use_read_only_or_of_another_size() {
    let mut lab = Lab::new();
    let disk = lab.disk("a.raw", 8 * MIB);
    let path = disk.to_str().unwrap();
    lab.up(&[path]);
    lab.live("a");
    let other = Lab::new();
    says(&refused(&other, &[path], 1), &["a.raw", "in use"]);
    assert_eq!(lab.down(), Some(0));

    for size in [4 * MIB, 16 * MIB] {
        std::fs::File::options().write(true).open(&disk).unwrap().set_len(size).unwrap();
        says(&refused(&lab, &[path], 1), &["a.raw", "bytes", "--resize"]);
    }
    std::fs::File::options().write(true).open(&disk).unwrap().set_len(8 * MIB).unwrap();
    lab.up_again();
    assert_eq!(lab.down(), Some(0));
    if !nix::unistd::geteuid().is_root() {
        let mut mode = std::fs::metadata(&disk).unwrap().permissions();
        mode.set_readonly(true);
        std::fs::set_permissions(&disk, mode).unwrap();
        says(&refused(&lab, &[path], 1), &["a.raw", "read-only"]);
    }
}

#[test]
fn data_folders_that_cannot_be_used() {
    let mut lab = Lab::new();
    let disk = lab.disk("a.raw", MIB);
    let path = disk.to_str().unwrap();
    lab.up(&[path]);
    lab.live("a");
    let pid = lab.up.as_ref().unwrap().0.id().to_string();
    says(&refused(&lab, &[], 1), &["in use by process", &pid]);
    says(&bad(&mut lab.cli(&["check"]), 1), &["in use by process", &pid]);
    assert_eq!(lab.down(), Some(0));

    let version = lab.data().join("VERSION");
    let kept = std::fs::read(&version).unwrap();
    std::fs::write(&version, "afterimage data 7\n").unwrap();
    for message in
        [refused(&lab, &[path], 1), bad(&mut lab.cli(&["check"]), 1), bad(&mut lab.cli(&["dump", "manifest"]), 1)]
    {
        says(&message, &["another version", "afterimage data 7"]);
    }
    std::fs::write(&version, kept).unwrap();

    let key = lab.data().join("vault/key");
    let kept = std::fs::read(&key).unwrap();
    std::fs::write(&key, [7; 32]).unwrap();
    says(&refused(&lab, &[path], 1), &["key"]);
    std::fs::remove_file(&key).unwrap();
    says(&refused(&lab, &[path], 1), &["key"]);
    assert!(!key.exists(), "no new key is made for an old vault");
    std::fs::write(&key, kept).unwrap();

    let foreign = lab.path("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("mine.txt"), "x").unwrap();
    says(&bad(ours().args(["up", "--data"]).arg(&foreign), 1), &["foreign", "no data folder of afterimage"]);
    assert_eq!(std::fs::read_dir(&foreign).unwrap().count(), 1);
    lab.up_again();
    assert!(good(&mut lab.cli(&["status"])).contains("live"));
}

#[test]
fn moments_that_cannot_be_chosen() {
    let mut lab = Lab::new();
    let disk = lab.disk("a.raw", 8 * MIB);
    lab.up(&[disk.to_str().unwrap(), "--point-every", "0"]);
    lab.live("a");
    lab.qemu_io(&lab.uri("a"), &["write -P 1 0 4k", "flush"]);
    let last = lab.durable("a");
    let target = lab.path("x.raw");
    let at = |when: &str, code: i32| bad(lab.cli(&["restore", "a", "--at", when, "--to"]).arg(&target), code);
    says(&at(&format!("@{}", last + 1), 1), &["newer than the history", &format!("@{last}")]);
    says(&at("@1", 1), &["can be chosen"]);
    says(&at("-10m", 1), &["can be chosen"]);
    says(&at("1999-01-01T00:00:00Z", 1), &["can be chosen"]);
    says(&at("no such point", 1), &["no recovery point 'no such point'", "point ls"]);
    says(&at("@zero", 2), &["@1024"]);
    says(&at("-10parsecs", 2), &["not a duration"]);
    says(&at("2026-01-01", 2), &["RFC 3339"]);
    assert!(!target.exists(), "nothing is left of what failed");
    says(&bad(lab.cli(&["restore", "b", "--to"]).arg(&target), 1), &["\"b\"", "a"]);
    says(&bad(&mut lab.cli(&["point", "ls", "b"]), 1), &["\"b\""]);
    says(&bad(&mut lab.cli(&["point", "create", "a", "--name", "-10m"]), 2), &[]);
    says(&bad(&mut lab.cli(&["point", "create", "a", "--name=@5"]), 1), &["'@5' cannot be a point's name"]);
    good(&mut lab.cli(&["point", "create", "a", "--name", "x"]));
    says(&bad(&mut lab.cli(&["point", "create", "a", "--name", "x"]), 1), &["has a point 'x' already"]);
    says(
        &bad(&mut lab.cli(&["diff", "a", "--from", "x", "--to", &format!("@{last}")]), 1),
        &["the earlier moment goes first"],
    );
}

#[test]
fn targets_that_must_not_be_overwritten() {
    let mut lab = Lab::new();
    let disk = lab.disk("a.raw", 8 * MIB);
    lab.up(&[disk.to_str().unwrap(), "--point-every", "0"]);
    lab.live("a");
    lab.qemu_io(&lab.uri("a"), &["write -P 1 0 64k", "flush"]);
    lab.durable("a");
    let restore = |to: &Path| {
        let mut c = lab.cli(&["restore", "a", "--to"]);
        c.arg(to);
        c
    };
    let link = lab.path("link.raw");
    std::fs::hard_link(&disk, &link).unwrap();
    for own in [&disk, &link] {
        says(&bad(restore(own).arg("--yes"), 1), &["protected right now"]);
    }
    let thesis = lab.path("thesis.tex");
    std::fs::write(&thesis, "dear").unwrap();
    says(&bad(&mut restore(&thesis), 1), &["thesis.tex is there already", "--yes"]);
    assert_eq!(std::fs::read(&thesis).unwrap(), b"dear");
    good(restore(&thesis).arg("--yes"));
    same(&thesis, &disk);
    says(&bad(&mut restore(lab.dir.path()), 1), &["is a directory"]);
    says(&bad(&mut restore(&lab.path("none/x.raw")), 1), &["none/x.raw"]);

    let mut export = lab.cli(&["export", "a", "--listen"]);
    says(&bad(export.arg(format!("unix:{}", thesis.display())), 1), &["no socket"]);
    says(&bad(lab.cli(&["export", "a", "--listen"]).arg("tcp:127.0.0.1:0"), 2), &["unix:PATH"]);
    let socket = lab.path("s");
    let listen = format!("unix:{}", socket.display());
    let _first =
        Killed(lab.cli(&["export", "a", "--listen", &listen]).stdout(std::process::Stdio::null()).spawn().unwrap());
    wait_until("the socket is there", || socket.exists());
    says(&bad(&mut lab.cli(&["export", "a", "--listen", &listen]), 1), &["somebody else listens"]);
}

#[test]
fn nobody_is_running() {
    let lab = Lab::new();
    for args in [&["status"][..], &["point", "ls", "a"], &["restore", "a", "--to", "-"], &["wait", "a"]] {
        says(&bad(&mut lab.cli(args), 1), &["no afterimage is running", "afterimage up"]);
    }
    says(&bad(&mut lab.cli(&["check"]), 1), &["no data folder"]);
    says(&bad(ours().arg("status").env_remove("HOME"), 2), &["--data"]);
}

#[test]
fn a_passphrase_opens_what_it_closed() {
    let mut lab = Lab::new();
    let disk = lab.disk("a.raw", MIB);
    let phrase = lab.path("phrase");
    std::fs::write(&phrase, "correct horse\n").unwrap();
    let (disk, phrase_text) = (disk.to_str().unwrap().to_owned(), phrase.to_str().unwrap().to_owned());
    lab.up(&[&disk, "--passphrase-file", &phrase_text]);
    lab.live("a");
    assert_eq!(lab.down(), Some(0));
    good(lab.cli(&["check", "--passphrase-file"]).arg(&phrase));
    std::fs::write(&phrase, "wrong horse\n").unwrap();
    says(&refused(&lab, &[&disk, "--passphrase-file", &phrase_text], 1), &["passphrase"]);
    says(&refused(&lab, &[&disk], 1), &["passphrase"]);
    std::fs::write(&phrase, "\n").unwrap();
    says(&refused(&lab, &[&disk, "--passphrase-file", &phrase_text], 1), &["is empty"]);
}
