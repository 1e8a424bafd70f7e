//! Files out of the history: a guest works on ext4, xfs, FAT and NTFS of one protected disk and is killed; what they held at two
//! moments, journals not yet written back, comes back file by file. And what is no such file system is named.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use afterimage_tests::daemon::{self, Daemon};
use afterimage_tests::guest::{self, machine};
use afterimage_tests::lab::DISK;
use afterimage_tests::tool::{Tool, tool};
use afterimage_tests::{data, process::Process};
use serde_json::Value;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Partitions of the disk: where each begins, and its size, in MiB.
const PARTS: [(u64, u64); 5] = [(1, 40), (41, 64), (105, 320), (425, 32), (457, 4)];

fn shell(script: &str) {
    tool("sh").args(["-ec", script]).run();
}

/// A protected disk of five partitions: FAT, ext4, xfs, NTFS, LVM.
fn partitioned(image: &Path) {
    data::sparse(image, 512 << 20);
    let (disk, part) = (image.display(), image.with_extension("part"));
    let rows = PARTS.map(|(at, size)| format!("start={}, size={}\\n", at * 2048, size * 2048)).concat();
    shell(&format!("printf 'label: gpt\\n{rows}' | sfdisk --quiet {disk}"));
    let makes = [
        "mkfs.vfat -F 32 >/dev/null",
        "mke2fs -q -F -t ext4",
        "mkfs.xfs -q -f",
        "mkfs.ntfs -q -F -Q",
        "sh -c 'printf \"LABELONE\" | dd of=\"$1\" bs=512 seek=1 conv=notrunc status=none' -",
    ];
    for ((at, size), make) in PARTS.iter().zip(makes) {
        let make = match make.split_once(" >") {
            Some((words, rest)) => format!("{words} {} >{rest}", part.display()),
            None => format!("{make} {}", part.display()),
        };
        shell(&format!(
            "truncate -s {size}M {part}; {make}; dd if={part} of={disk} bs=1M seek={at} conv=notrunc,sparse status=none; rm {part}",
            part = part.display()
        ));
    }
}

/// Starts `afterimage files` on the daemon's data.
fn files(daemon: &Daemon, words: &[&str]) -> Tool {
    daemon.cli("files").args(words)
}

fn json(daemon: &Daemon, words: &[&str]) -> Value {
    let out = files(daemon, words).run().stdout;
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{words:?} prints no JSON ({e}): {out}"))
}

/// Hands the lab's kernel to the product, as a host has it.
fn kernel(daemon: &Daemon) {
    let took = daemon.cli("target kernel").arg(guest::image_folder().join("kernel")).run();
    assert!(took.stdout.contains("with kernel 6.") && !took.stdout.contains("but not"), "{}", took.stdout);
}

/// What a folder holds, below it: kind and mode, size, second of change and content of each.
fn tree(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut next = vec![PathBuf::new()];
    while let Some(path) = next.pop() {
        let full = folder.join(&path);
        let meta = full.symlink_metadata().unwrap();
        let content = if meta.is_dir() {
            next.extend(std::fs::read_dir(&full).unwrap().map(|e| path.join(e.unwrap().file_name())));
            String::new()
        } else if meta.is_symlink() {
            format!("-> {}", std::fs::read_link(&full).unwrap().display())
        } else {
            tool("sha256sum").arg(&full).run().stdout[..64].to_owned()
        };
        let name = String::from_utf8_lossy(path.as_os_str().as_bytes()).into_owned();
        if !path.as_os_str().is_empty() {
            found.push(format!("{name:?} {:o} {content}", meta.mode()));
        }
    }
    found.sort();
    found
}

#[test]
fn files_of_every_file_system_come_back_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.raw");
    partitioned(&image);
    let daemon = daemon::daemon(dir.path()).options(["--point-every", "0"]).volume(DISK, &image).start();
    daemon.wait_live(DISK);
    kernel(&daemon);

    let mut vm = machine("worker").disk(&daemon.uri(DISK)).boot();
    // Nothing is written back from the journals while the guest lives: it has far more memory and time than this takes.
    vm.run(
        "for d in fat ext xfs ntfs; do mkdir -p /$d; done
         mount -t vfat /dev/vda1 /fat; mount -t ext4 /dev/vda2 /ext; mount -t xfs /dev/vda3 /xfs; mount -t ntfs3 /dev/vda4 /ntfs
         for d in fat ext xfs ntfs; do
             mkdir -p /$d/etc/deep/er; echo \"first of $d\" >/$d/etc/config; echo stays >/$d/etc/deep/er/stays
             dd if=/dev/urandom of=/$d/etc/big bs=1k count=700 2>/dev/null; echo goes >/$d/etc/goes
         done
         for d in ext xfs; do
             chmod 640 /$d/etc/config; chown 1000:1001 /$d/etc/config; ln -s /etc/passwd /$d/etc/door; ln -s .. /$d/etc/up
             mkfifo /$d/etc/pipe; touch -d '2001-02-03 04:05:06' /$d/etc/deep/er/stays; printf x >\"/$d/etc/$(printf 'new\\nline')\"
             dd if=/dev/zero of=/$d/etc/sparse bs=1 count=1 seek=30000000 2>/dev/null
         done; sync",
    );
    let sums = vm.run("sha256sum /fat/etc/big /ext/etc/big /xfs/etc/big /ntfs/etc/big");
    daemon.point(DISK, "before");
    vm.run(
        "for d in fat ext xfs ntfs; do
             echo \"second of $d\" >/$d/etc/config; rm /$d/etc/goes; echo new >/$d/etc/comes; mkdir /$d/etc/folder
         done; sync",
    );
    daemon.point(DISK, "after");
    vm.kill();

    let parts = json(&daemon, &[DISK, "partitions", "--json"]);
    let holds: Vec<_> = parts.as_array().unwrap().iter().map(|p| p["holds"].as_str().unwrap().to_owned()).collect();
    assert_eq!(holds, ["fat", "ext4", "xfs", "ntfs", "lvm"]);
    let several = files(&daemon, &[DISK, "ls"]).run_failing(2);
    assert!(
        several.stderr.contains("--partition") && several.stderr.contains("3 (320 MiB): xfs"),
        "{}",
        several.stderr
    );

    for (number, name) in [(1, "fat"), (2, "ext"), (3, "xfs"), (4, "ntfs")] {
        let number = number.to_string();
        let at = |when| [DISK, "--at", when, "--partition", number.as_str()];
        let copy = dir.path().join(name);
        let copied = files(&daemon, &at("before")).args(["cp", "-r", "/etc"]).arg(&copy).run();
        assert_eq!(std::fs::read_to_string(copy.join("config")).unwrap(), format!("first of {name}\n"));
        assert_eq!(std::fs::read_to_string(copy.join("deep/er/stays")).unwrap(), "stays\n");
        assert!(copy.join("goes").exists() && !copy.join("comes").exists(), "{name}");
        let sum = tool("sha256sum").arg(copy.join("big")).run().stdout[..64].to_owned();
        assert!(sums.contains(&format!("{sum}  /{name}/etc/big")), "{name}: {sum} is not of {sums}");
        if ["ext", "xfs"].contains(&name) {
            let meta = copy.join("config").metadata().unwrap();
            assert_eq!(meta.mode() & 0o7777, 0o640);
            let stays = copy.join("deep/er/stays").metadata().unwrap();
            assert_eq!(stays.mtime(), 981_173_106, "2001-02-03 04:05:06");
            assert_eq!(std::fs::read_link(copy.join("door")).unwrap(), Path::new("/etc/passwd"));
            assert!(copy.join("new\nline").exists() && !copy.join("pipe").exists());
            let sparse = copy.join("sparse").metadata().unwrap();
            assert!(sparse.len() == 30_000_001 && sparse.blocks() < 2000, "{} blocks", sparse.blocks());
            assert!(
                copied.stderr.contains("new\\nline") || copied.stderr.contains("1 devices, pipes"),
                "{}",
                copied.stderr
            );
        }
        let both = [&at("before")[..], &["diff", "/etc", "--to", "after", "--json"]].concat();
        let changes = json(&daemon, &both);
        let mut said: Vec<String> = Vec::new();
        for d in changes["differences"].as_array().unwrap() {
            said.push(format!("{} {}", d["change"].as_str().unwrap(), d["path"].as_str().unwrap()));
        }
        assert_eq!(said, ["added comes", "changed config", "added folder", "removed goes"], "{name}: {changes}");
        assert!(changes["differences"][1]["what"].as_array().unwrap().contains(&"content".into()), "{changes}");
    }
    let second = files(&daemon, &[DISK, "--at", "after", "--partition", "3", "cat", "etc/config"]).run();
    assert_eq!(second.stdout, "second of xfs\n");
    let lvm = files(&daemon, &[DISK, "--partition", "5", "ls"]).run_failing(1);
    assert!(lvm.stderr.contains("holds lvm"), "{}", lvm.stderr);
    nothing_is_left(&daemon);
}

/// No folder, no process, no branch.
fn nothing_is_left(daemon: &Daemon) {
    let folder = daemon.data().join("files");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "{}", folder.display());
    let branches = daemon.cli("branch ls").arg("--json").run().stdout;
    let branches: Value = serde_json::from_str(&branches).unwrap();
    assert_eq!(branches["branches"].as_array().map(Vec::len), Some(0), "{branches}");
}

#[test]
fn whole_disks_logical_partitions_and_what_a_killed_command_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    std::fs::create_dir_all(from.join("a/b")).unwrap();
    std::fs::write(from.join("a/b/text"), "of the tree\n").unwrap();
    std::os::unix::fs::symlink("/a/b/text", from.join("absolute")).unwrap();
    let colour = "import os, sys; os.setxattr(sys.argv[1], 'user.colour', b'blue')";
    tool("python3").args(["-c", colour]).arg(from.join("a/b/text")).run();
    let (whole, logical) = (dir.path().join("whole.raw"), dir.path().join("logical.raw"));
    let part = dir.path().join("part");
    let (from_text, part_text) = (from.display(), part.display());
    shell(&format!("truncate -s 16M {0}; mke2fs -q -F -t ext2 -d {from_text} {0}", whole.display()));
    // The only file system is in the second logical partition of an extended one.
    shell(&format!(
        "truncate -s 64M {0}; printf 'label: dos\\nx1:start=2048,size=100000,type=5\\nx5:start=4096,size=2048,type=83\\n\
         x6:start=8192,size=32768,type=83\\n' | sfdisk --quiet {0}; \
         truncate -s 16M {part_text}; mke2fs -q -F -t ext3 -d {from_text} {part_text}; \
         dd if={part_text} of={0} bs=512 seek=8192 conv=notrunc status=none",
        logical.display()
    ));
    let daemon = daemon::daemon(dir.path()).options(["--point-every", "0"]).volume("whole", &whole);
    let daemon = daemon.volume("logical", &logical).start();
    daemon.wait_live("whole");
    daemon.wait_live("logical");

    // This host has no kernel where the test runs in a container; what to do is said. Where it has one, it is taken.
    let host = files(&daemon, &["whole", "ls"]).run_any();
    assert!(host.status.success() || host.stderr.contains("afterimage target kernel"), "{}", host.stderr);
    kernel(&daemon);

    let list = json(&daemon, &["whole", "ls", "/a/b", "--json"]);
    assert_eq!((list["file_system"].as_str(), list["partition"].as_u64()), (Some("ext2"), Some(0)));
    assert_eq!((list["entries"][0]["name"].as_str(), list["entries"][0]["size"].as_u64()), (Some("text"), Some(12)));
    // An absolute link leads into the file system that it is in.
    assert_eq!(files(&daemon, &["logical", "cat", "absolute"]).run().stdout, "of the tree\n");
    let to = dir.path().join("to");
    std::fs::create_dir(&to).unwrap();
    files(&daemon, &["logical", "cp", "-r", "/a", "absolute"]).arg(&to).run();
    assert_eq!(tree(&to), tree(&from));
    let read = "import os, sys; print(os.getxattr(sys.argv[1], 'user.colour').decode())";
    assert_eq!(tool("python3").args(["-c", read]).arg(to.join("a/b/text")).run().stdout, "blue\n");
    let again = files(&daemon, &["logical", "cp", "/a/b/text"]).arg(to.join("a/b")).run_failing(1);
    assert!(again.stderr.contains("--force"), "{}", again.stderr);
    for (words, code) in
        [(&["whole", "cat", "/a"][..], 2), (&["whole", "ls", "/none"], 1), (&["whole", "cp", "a/..", "/tmp"], 2)]
    {
        files(&daemon, words).run_failing(code);
    }

    // Killed while its guest starts: the guest dies with it, the next command removes what lies there.
    let killed = Process::start(files(&daemon, &["whole", "ls"]).into_command(), &dir.path().join("killed.log"));
    let folder = daemon.data().join("files");
    let console = || std::fs::read_dir(&folder).unwrap().flatten().find(|e| e.path().join("console.log").exists());
    let start = Instant::now();
    let at = loop {
        if let Some(found) = console() {
            break found.path();
        }
        assert!(start.elapsed() < Duration::from_secs(120), "no guest was started");
        std::thread::sleep(Duration::from_millis(5));
    };
    killed.kill();
    let working = || {
        std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .any(|e| std::fs::read_link(e.path().join("cwd")).is_ok_and(|c| c == at))
    };
    while working() {
        assert!(start.elapsed() < Duration::from_secs(120), "the guest lives on");
        std::thread::sleep(Duration::from_millis(5));
    }
    files(&daemon, &["whole", "ls"]).run();
    nothing_is_left(&daemon);
}
