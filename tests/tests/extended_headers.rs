//! Newer clients (Debian 13), which negotiate extended headers: requests and block status of more than 4 GiB, on a protected
//! disk and on its history. After each, disk and history must hold what the client's own model says.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use afterimage_tests::daemon::{self, Daemon};
use afterimage_tests::lab::{DISK, Lab};
use afterimage_tests::tool::{Tool, newer_tool};
use afterimage_tests::{binary, data};
use serde_json::Value;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// So large that a length of it has more than 32 bits. Hardly any of it is ever data.
const SIZE: u64 = 4 * GIB + 512 * MIB;

/// A protected large disk whose daemon tells in its log how each client frames its requests.
struct Large {
    daemon: Daemon,
    image: PathBuf,
    dir: tempfile::TempDir,
}

impl Large {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("afterimage-large-").tempdir().unwrap();
        let image = dir.path().join("disk.raw");
        data::sparse(&image, SIZE);
        let verbose = ["env", "RUST_LOG=info,afterimage_nbd=debug"];
        let daemon = daemon::daemon(dir.path()).volume(DISK, &image).prefix(verbose).start();
        daemon.wait_live(DISK);
        Self { daemon, image, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A raw image with data at the ends and across 4 GiB, zeroes written out, and long holes.
    fn source(&self) -> PathBuf {
        let path = self.path("source");
        data::sparse(&path, SIZE);
        let file = File::options().write(true).open(&path).unwrap();
        let mut chance = data::Chance::seeded();
        let places = [0, 4 * GIB - 300_000, SIZE - 600_000].into_iter().chain((0..12).map(|n| n * 311 * MIB));
        for place in places {
            file.write_all_at(&chance.bytes(600_000), place).unwrap();
        }
        file.write_all_at(&vec![0; 5 << 20], GIB).unwrap();
        path
    }

    /// Every client so far has negotiated extended headers; how many connections that were.
    fn assert_extended(&self) -> usize {
        let log = self.daemon.log();
        let begun: Vec<&str> = log.lines().filter(|l| l.contains("a connection to") && l.contains("begins")).collect();
        let other = begun.iter().find(|l| !l.contains("Extended headers"));
        assert!(!begun.is_empty() && other.is_none(), "not all have extended headers: {other:?}\n{log}");
        assert!(!log.contains("cut off"), "a client was cut off:\n{log}");
        begun.len()
    }

    /// The disk, its history and an export of its history all hold the bytes of `model`.
    fn assert_is(&self, model: &Path) {
        let seq = self.daemon.wait_durable(DISK);
        same(&self.image, model);
        let restored = self.path("restored");
        self.daemon.restore(DISK, &format!("@{seq}"), &restored);
        same(&restored, model);
        std::fs::remove_file(&restored).unwrap();
        self.assert_export_is(&format!("@{seq}"), model);
    }

    /// The disk as it was at `at`, read in three ways.
    fn assert_export_is(&self, at: &str, model: &Path) {
        let socket = self.path("then.sock");
        // An export before this one was killed and has left its socket.
        let _ = std::fs::remove_file(&socket);
        let (mut export, uri) = self.daemon.export(DISK, at, &socket, &[]);
        export.wait_until("answers", || newer_tool("nbdinfo").args(["--size", &uri]).run_any().status.success());
        same(&uri, model);
        assert_map_is(&uri, model);
        let copy = self.path("copy");
        data::sparse(&copy, SIZE);
        newer_tool("nbdcopy").arg(&uri).arg(&copy).run();
        same(&copy, model);
        std::fs::remove_file(copy).unwrap();
    }
}

/// Equal content, told by the newer qemu-img, which knows the holes and need not read them.
#[track_caller]
fn same(left: impl AsRef<Path>, right: &Path) {
    newer_tool("qemu-img").args(["compare", "-f", "raw", "-F", "raw"]).arg(left.as_ref()).arg(right).run();
}

fn json(tool: Tool) -> Value {
    let finished = tool.run();
    serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("not JSON ({e}): {}", finished.describe()))
}

/// What nbdinfo tells about an export's ranges covers it, and what it calls zero is zero in `model`.
#[track_caller]
fn assert_map_is(uri: &str, model: &Path) {
    let map = json(newer_tool("nbdinfo").args(["--map", "--json", uri]));
    let (model, mut place) = (File::open(model).unwrap(), 0);
    for extent in map.as_array().unwrap() {
        let number = |field: &str| daemon::number(extent, field);
        assert_eq!(number("offset"), place, "a gap in {map}");
        if number("type") & 2 != 0 {
            assert_zero(&model, place, number("length"));
        }
        place += number("length");
    }
    assert_eq!(place, SIZE, "{map}");
    assert!(map.as_array().unwrap().iter().any(|e| e["type"] == 3), "no hole in {map}");
}

/// Looks at the data of a sparse file only.
#[track_caller]
fn assert_zero(file: &File, start: u64, len: u64) {
    use nix::unistd::{Whence, lseek};
    let end = i64::try_from(start + len).unwrap();
    let mut at = i64::try_from(start).unwrap();
    while let Ok(from) = lseek(file, at, Whence::SeekData) {
        if from >= end {
            break;
        }
        at = lseek(file, from, Whence::SeekHole).unwrap();
        let mut bytes = vec![0; usize::try_from(at.min(end) - from).unwrap()];
        file.read_exact_at(&mut bytes, from.try_into().unwrap()).unwrap();
        assert!(bytes.iter().all(|b| *b == 0), "called zero, but is not: somewhere in {from} to {}", at.min(end));
    }
}

fn python(script: &str) -> Tool {
    newer_tool("python3").arg(binary::repository().join("tests/clients").join(script))
}

#[test]
fn newer_libnbd_makes_64_bit_requests() {
    let large = Large::new();
    let model = large.path("model");
    let told = python("extended.py").arg(large.daemon.uri(DISK)).arg(&model).run();
    println!("{}", told.stdout);
    large.assert_is(&model);
    let seq = large.daemon.wait_durable(DISK);
    newer_tool("python3").args(["-c", EMPTY]).arg(large.daemon.uri(DISK)).run();
    large.daemon.wait_durable(DISK);
    data::sparse(&large.path("empty"), SIZE);
    large.assert_is(&large.path("empty"));
    large.assert_export_is(&format!("@{seq}"), &model);
}

/// Takes all of a disk's data away with one request.
const EMPTY: &str = "import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
assert h.get_extended_headers_negotiated()
h.trim(h.get_size(), 0, nbd.CMD_FLAG_FUA)";

#[test]
fn newer_libnbd_walks_every_command_and_flag() {
    let lab = Lab::new(64 * MIB);
    println!("{}", python("walk.py").arg(lab.uri()).run().stdout);
    lab.assert_history_is_the_disk();
    let (_export, branch) = lab.daemon.export(DISK, "latest", &lab.path("branch.sock"), &["--writable"]);
    python("walk.py").arg(branch).run();
    lab.assert_history_is_the_disk();
}

#[test]
fn newer_nbdcopy_and_nbdinfo() {
    let large = Large::new();
    let (uri, source) = (large.daemon.uri(DISK), large.source());
    let info = json(newer_tool("nbdinfo").args(["--json", &uri]));
    assert!(info["exports"][0]["export-size"] == SIZE, "{info}");
    let told = newer_tool("nbdinfo").arg(&uri).run().stdout;
    assert!(told.contains("using extended packets"), "{told}");
    newer_tool("nbdcopy").arg("--flush").arg(&source).arg(&uri).run();
    assert_map_is(&uri, &source);
    large.assert_is(&source);
    // Once more over data that must go, and back out.
    newer_tool("qemu-io").args(["-f", "raw", "-c", "write -P 7 777M 20M", "-c", "write -P 8 4095M 2M", &uri]).run();
    newer_tool("nbdcopy").args(["--flush", "--connections=4"]).arg(&source).arg(&uri).run();
    large.assert_is(&source);
    let back = large.path("back");
    newer_tool("nbdcopy").args(["--connections=4", &uri]).arg(&back).run();
    same(&back, &source);
    assert!(large.assert_extended() > 10);
}

#[test]
fn newer_qemu_writes_maps_and_compares() {
    let large = Large::new();
    let (uri, model) = (large.daemon.uri(DISK), large.source());
    newer_tool("qemu-img").args(["convert", "-n", "-f", "raw", "-O", "raw"]).arg(&model).arg(&uri).run();
    same(&uri, &model);
    large.assert_is(&model);
    // The same commands on the export and on the model.
    let commands = [
        "write -P 3 4095M 2M",
        "write -f -P 4 12345 777777",
        "write -P 5 3G 32M",
        "write -n -z 100k 4G",
        "write -P 6 4097M 1M",
        "write -zu 4097M 512k",
        "discard 1G 2147483136",
        "write -P 7 2G 64k",
        "aio_write -P 8 4400M 4M",
        "aio_write -z -u 200M 1G",
        "aio_flush",
        "flush",
        "read -P 6 4195840k 512k",
        "read -P 0 4097M 512k",
        "read -P 7 2G 64k",
        "read -P 8 4400M 4M",
    ];
    let script = |to: &Path| {
        let run = newer_tool("qemu-io").args(["-f", "raw"]).args(commands.iter().flat_map(|c| ["-c", c]));
        let run = run.arg(to).run();
        let trouble = ["failed", "error", "cannot", "invalid"].iter().any(|w| run.stdout.contains(w));
        assert!(!trouble && run.stderr.is_empty(), "{}", run.describe());
    };
    script(Path::new(&uri));
    script(&model);
    large.assert_is(&model);
    let map = json(newer_tool("qemu-img").args(["map", "--output=json", "-f", "raw", &uri]));
    let map = map.as_array().unwrap();
    let length =
        |zero: bool| -> u64 { map.iter().filter(|e| e["zero"] == zero).map(|e| daemon::number(e, "length")).sum() };
    assert!(length(true) + length(false) == SIZE && length(true) > 4 * GIB && length(false) > 4 * MIB, "{map:?}");
    large.assert_extended();
}

#[test]
fn newer_fio_verifies_over_several_connections() {
    let large = Large::new();
    let uri = format!("--uri={}", large.daemon.uri(DISK));
    let run =
        newer_tool("fio").args(["--name=verify", "--ioengine=nbd", "--thread", "--group_reporting", &uri]).args([
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--numjobs=4",
            "--size=24m",
            // Both sides of 4 GiB.
            "--offset=4000m",
            "--offset_increment=80m",
            "--rw=randwrite",
            "--bsrange=512-64k",
            "--blockalign=512",
            "--iodepth=32",
        ]);
    let run = run.run();
    assert!(run.stdout.contains("err= 0"), "{}", run.describe());
    assert!(large.assert_extended() >= 4);
    large.assert_is(&large.image);
}
