//! Programs that others wrote, against the example server. A missing one is a failure that names its package.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::large_stack_arrays,
    reason = "in a test a panic is a failure, numbers are small and the stack is large"
)]

mod common;

use common::Random;
use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

/// The example server with exports of 64 MiB, on a unix socket and on TCP. It ends with its standard input.
struct Served {
    child: Child,
    /// Kept open, for what the server says at its end.
    _lines: Lines<BufReader<ChildStdout>>,
    dir: tempfile::TempDir,
    unix: String,
    tcp: String,
}

impl Served {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let unix = format!("unix:{}", dir.path().join("s").display());
        let mut child = Command::new(common::serve_example())
            .args([&unix, "tcp:127.0.0.1:0"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (unix, tcp) = (lines.next().unwrap().unwrap(), lines.next().unwrap().unwrap());
        Self { child, _lines: lines, dir, unix, tcp }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The URI of the read-only export.
    fn ro(&self) -> String {
        self.unix.replace("/disk?", "/ro?")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let status = self.child.wait().unwrap();
        assert!(status.success() || std::thread::panicking());
    }
}

/// Runs a program to success and returns what it printed.
fn run(program: &str, package: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|e| panic!("{program} cannot be run ({e}); install the package {package}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    let missing = program.contains("python") && err.contains("No module named 'nbd'");
    assert!(!missing, "python3 has no libnbd; install the package python3-libnbd");
    assert!(output.status.success(), "{program} {args:?} failed:\n{out}{err}");
    out
}

fn nbdinfo(args: &[&str]) -> String {
    run("nbdinfo", "libnbd-bin", args)
}

fn nbdcopy(from: &str, to: &str) {
    run("nbdcopy", "libnbd-bin", &["--requests=64", from, to]);
}

fn qemu_img(args: &[&str]) -> String {
    run("qemu-img", "qemu-utils", args)
}

fn qemu_io(uri: &str, commands: &[&str]) -> String {
    let mut args = vec!["-f", "raw"];
    commands.iter().for_each(|c| args.extend(["-c", c]));
    args.push(uri);
    run("qemu-io", "qemu-utils", &args)
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An image with data, long holes and an odd pattern.
fn image(file: &Path) {
    let (mut random, mut bytes) = (Random::new(11), vec![0; 64 << 20]);
    for _ in 0..200 {
        let len = 1 + random.below(100_000) as usize;
        let at = random.below((bytes.len() - len) as u64) as usize;
        bytes[at..at + len].copy_from_slice(&random.bytes(len));
    }
    fs::write(file, bytes).unwrap();
}

#[test]
fn nbdinfo_sees_everything() {
    let served = Served::new();
    let info = nbdinfo(&["--json", &served.tcp]);
    for word in
        [r#""export-size": 67108864"#, r#""block_size_maximum": 33554432"#, "base:allocation", "a disk in memory"]
    {
        assert!(info.contains(word), "{word} is missing in {info}");
    }
    for can in ["cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"] {
        assert!(info.contains(&format!(r#""can_{can}": true"#)), "{can}: {info}");
    }
    let list = nbdinfo(&["--list", &served.unix]);
    assert!(list.contains(r#"export="disk""#) && list.contains(r#"export="ro""#));
    assert!(nbdinfo(&["--map", &served.unix]).contains("hole,zero"));
    nbdinfo(&["--is", "readonly", &served.ro()]);
}

#[test]
fn libnbd_walks_every_command_and_flag() {
    let served = Served::new();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/walk.py");
    // The distribution's interpreter: its package brings the module.
    let said = run("/usr/bin/python3", "python3", &[script, path(&served.socket())]);
    assert_eq!(said, "walked\n");
}

#[test]
fn nbdcopy_goes_both_ways() {
    let served = Served::new();
    let (there, back) = (served.file("there"), served.file("back"));
    image(&there);
    for uri in [&served.unix, &served.tcp] {
        nbdcopy(path(&there), uri);
        nbdcopy(uri, path(&back));
        assert!(fs::read(&there).unwrap() == fs::read(&back).unwrap());
    }
}

#[test]
fn qemu_reads_writes_and_compares() {
    let served = Served::new();
    let (raw, qcow) = (served.file("raw"), served.file("qcow2"));
    image(&raw);
    qemu_img(&["convert", "-n", "-f", "raw", "-O", "raw", path(&raw), &served.unix]);
    qemu_img(&["compare", "-f", "raw", "-F", "raw", path(&raw), &served.unix]);
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", &served.unix, path(&qcow)]);
    qemu_img(&["compare", "-f", "qcow2", "-F", "raw", path(&qcow), &served.tcp]);
    let said = qemu_io(
        &served.unix,
        &[
            "write -P 0xab 12345 777777",
            "write -f -P 0xac 0 512",
            "aio_write -P 0xad 1M 2M",
            "aio_read -P 0xab 12345 1000",
            "aio_flush",
            "write -z 1536k 64k",
            "write -zu 1700k 64k",
            "discard 1800k 64k",
            "flush",
            "read -P 0xab 12345 777777",
            "read -P 0xad 1M 512k",
            "read -P 0 1536k 64k",
            "read -P 0 1700k 64k",
            "read -P 0 1800k 64k",
            "read -P 0xac 0 512",
            "map",
        ],
    );
    assert!(!said.contains("failed") && !said.contains("error"), "{said}");
    let map = qemu_img(&["map", "--output=json", "-f", "raw", &served.unix]);
    assert!(map.contains(r#""zero": true"#) && map.contains(r#""data": true"#), "{map}");
}

/// Several connections, deep queues, and fio's own check of every block.
#[test]
fn fio_verifies_what_it_wrote() {
    let served = Served::new();
    let uri = format!("--uri={}", served.unix);
    for mode in [["--rw=randwrite", "--bsrange=512-64k"], ["--rw=randrw", "--bs=4k"]] {
        let mut args = vec!["--name=check", "--ioengine=nbd", "--size=64m", "--iodepth=32", "--verify=crc32c"];
        args.extend(["--verify_fatal=1", "--verify_state_save=0", "--randrepeat=0", "--group_reporting", &uri]);
        args.extend(mode);
        run("fio", "fio", &args);
    }
    let mut args = vec!["--name=many", "--ioengine=nbd", "--numjobs=4", "--size=16m", "--offset_increment=16m"];
    args.extend([
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=16",
        "--verify=crc32c",
        "--verify_state_save=0",
        "--group_reporting",
        &uri,
    ]);
    run("fio", "fio", &args);
}
