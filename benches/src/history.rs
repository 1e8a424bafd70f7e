//! Reading a volume with a long history: the time until a point is open, and reads at it, beside qemu-nbd on a plain sparse
//! image with the same content.
//!
//! A point counts as open when the first 4 KiB have come through a new NBD connection. Two times are taken: from the
//! request at the control socket, and from the start of the `afterimage export` command. The daemon is killed and started
//! between them, so that the newest writes are in memory only each time.

use crate::cache::write_all_back;
use crate::generate::{Shape, VOLUME, content};
use crate::kept;
use afterimage_mgmt::client::ControlClient;
use afterimage_mgmt::protocol::{Access, StoreStatus};
use afterimage_mgmt::when::When;
use afterimage_nbd::Address;
use afterimage_nbd::client::Client;
use afterimage_tests::daemon::{Daemon, daemon};
use afterimage_tests::peer::{self, Kind};
use afterimage_tests::tool::tool;
use serde::Serialize;
use serde_json::Value;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Blocks that are compared with what must be there, for each seq.
const SAMPLES: u64 = 5000;

/// What is measured and how often.
#[derive(Debug, Clone)]
pub struct Plan {
    /// A folder that is empty, or holds this history already.
    pub dir: PathBuf,
    /// The history.
    pub shape: Shape,
    /// Repetitions.
    pub rounds: u32,
    /// Longest time of one run of reads in seconds.
    pub seconds: u32,
    /// Whether older segments are brought into disk order first, as they are after a while.
    pub order: bool,
    /// Whether the store's pages are dropped before each run of reads at a point.
    pub cold: bool,
    /// Points that are read: those whose title begins so; all, if there are none.
    pub only: Vec<String>,
}

/// How a point was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// A request at the control socket.
    Request,
    /// The command, with the start of its process.
    Command,
}

/// A point was opened.
#[derive(Debug, Clone, Serialize)]
pub struct Opened {
    /// Which.
    pub seq: u64,
    /// How.
    pub way: Way,
    /// Which round.
    pub round: u32,
    /// Milliseconds until its first bytes came.
    pub milliseconds: f64,
}

/// A server of reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Server {
    /// `afterimage export`.
    Point,
    /// `qemu-nbd` on a plain image.
    QemuNbd,
}

/// A pattern of reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// 4 KiB at random places.
    Random4k,
    /// 128 KiB one after the other.
    Sequential128k,
}

/// Both.
pub const PATTERNS: [Pattern; 2] = [Pattern::Random4k, Pattern::Sequential128k];

/// One run of reads.
#[derive(Debug, Clone, Serialize)]
pub struct ReadRun {
    /// The point.
    pub seq: u64,
    /// The server.
    pub server: Server,
    /// The reads.
    pub pattern: Pattern,
    /// Which round.
    pub round: u32,
    /// Reads per second.
    pub iops: f64,
    /// Megabytes (1,000,000 bytes) per second.
    pub megabytes: f64,
    /// What the store did for it, for a point.
    pub store: Option<StoreStatus>,
}

/// All of it.
#[derive(Debug, Default, Serialize)]
pub struct Results {
    /// Seconds that the history took to make.
    pub fill_seconds: f64,
    /// Bytes of the vault on its disk.
    pub stored: u64,
    /// Layers in files.
    pub layers: usize,
    /// Points opened.
    pub opened: Vec<Opened>,
    /// Reads.
    pub reads: Vec<ReadRun>,
}

/// The points that are looked at, with what is special about them.
#[must_use]
pub fn points(shape: &Shape) -> [(u64, String); 4] {
    let unflushed = crate::figures::figure(precise(shape.unflushed));
    [
        (shape.writes / 10, "early".to_owned()),
        (shape.writes / 2, "middle".to_owned()),
        (shape.writes - shape.unflushed, "last in a layer".to_owned()),
        (shape.writes, format!("newest, {unflushed} writes in memory")),
    ]
}

/// Measures everything.
///
/// # Panics
/// If a program fails, or a block is not what was written.
#[must_use]
pub fn measure(plan: &Plan, mut progress: impl FnMut(&str)) -> Results {
    let mut results = Results::default();
    let made = kept::made(&plan.dir, &plan.shape, plan.order, || fill(&plan.dir, &plan.shape, plan.order));
    results.fill_seconds = made.seconds;
    let mut server = daemon(&plan.dir).start();
    let manifest = server.cli("dump manifest").arg("--json").run().stdout;
    let manifest: Value = serde_json::from_str(&manifest).unwrap_or_else(|e| panic!("dump manifest: {e}"));
    results.layers = manifest["volumes"][0]["layers"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    results.stored = crate::ingest::stored(&server.data().join("vault"));
    progress(&format!("made in {:.0} s, {} layers", results.fill_seconds, results.layers));
    for round in 0..plan.rounds {
        for way in [Way::Request, Way::Command] {
            server.kill();
            server.start();
            // The newest first: opening a point turns what is in memory into a layer.
            for (seq, _) in points(&plan.shape).iter().rev() {
                let milliseconds = open(plan, &server, *seq, way);
                progress(&format!("round {round} @{seq} {way:?} {milliseconds:.1} ms"));
                results.opened.push(Opened { seq: *seq, way, round, milliseconds });
            }
        }
    }
    let [early, middle, _, newest] = points(&plan.shape);
    let wanted = |title: &str| plan.only.is_empty() || plan.only.iter().any(|o| title.starts_with(o.as_str()));
    for (seq, _) in [early, middle, newest].into_iter().filter(|(_, title)| wanted(title)) {
        reads(plan, &server, seq, &mut results.reads, &mut progress);
    }
    results
}

/// In a process of its own, which leaves the last writes as a killed one would.
pub(crate) fn fill(dir: &Path, shape: &Shape, order: bool) {
    let Shape { size, blocks, writes, unflushed } = *shape;
    let me = std::env::current_exe().expect("the path of the running program");
    let numbers = [size, blocks, writes, unflushed, u64::from(order)].map(|n| n.to_string());
    tool(me).deadline(Duration::from_secs(7200)).arg("fill").arg(dir.join("data")).args(numbers).run();
}

fn first_bytes(socket: &Path, offset: u64) -> Option<Client> {
    let mut client = Client::connect(&Address::Unix(socket.to_owned()), VOLUME).ok()?;
    let mut block = [0; 4096];
    client.read(offset, &mut block).expect("read the first block of a point");
    Some(client)
}

fn open(plan: &Plan, daemon: &Daemon, seq: u64, way: Way) -> f64 {
    let socket = plan.dir.join(format!("open-{seq}.sock"));
    let offset = plan.shape.offset(plan.shape.target(seq));
    let start;
    if way == Way::Request {
        let listener = UnixListener::bind(&socket).expect("bind a socket");
        let mut control = ControlClient::connect(daemon.data()).expect("connect to the daemon");
        start = Instant::now();
        let position = control.resolve(VOLUME, &When::Seq(seq)).expect("find the point");
        let guard =
            control.export(VOLUME, &When::Seq(position.seq), Access::Moment, &listener).expect("open the point");
        let client = first_bytes(&socket, offset).expect("connect to the point");
        let took = start.elapsed();
        drop((client, guard));
        std::fs::remove_file(&socket).expect("remove a socket");
        return took.as_secs_f64() * 1e3;
    }
    let listen = format!("unix:{}", socket.display());
    start = Instant::now();
    let command = daemon.cli("export").args([VOLUME, "--at", &format!("@{seq}"), "--listen", &listen]);
    let mut process = afterimage_tests::process::Process::start(command.into_command(), &plan.dir.join("export.log"));
    loop {
        if let Some(client) = first_bytes(&socket, offset) {
            let took = start.elapsed();
            drop(client);
            assert!(process.terminate().success(), "the export ends well");
            return took.as_secs_f64() * 1e3;
        }
        assert!(process.is_running() && start.elapsed() < Duration::from_secs(60), "{}", process.describe());
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn reads(plan: &Plan, daemon: &Daemon, seq: u64, out: &mut Vec<ReadRun>, progress: &mut impl FnMut(&str)) {
    // Removing a sparse file with so many pieces can take minutes, so that is left to the end.
    let image = plan.dir.join(format!("image-{seq}.raw"));
    if !image.exists() {
        let part = image.with_extension("part");
        // What an earlier run did not finish.
        let _ = std::fs::remove_file(&part);
        daemon.restore(VOLUME, &format!("@{seq}"), &part);
        std::fs::rename(&part, &image).expect("name the image");
        write_all_back();
    }
    let socket = plan.dir.join(format!("point-{seq}.sock"));
    let (point, uri) = daemon.export(VOLUME, &format!("@{seq}"), &socket, &[]);
    check(plan, seq, &socket);
    let peer = peer::serve(Kind::QemuNbd, &image, &plan.dir, &[]);
    for round in 0..plan.rounds {
        for pattern in PATTERNS {
            let both = [(Server::Point, uri.as_str()), (Server::QemuNbd, peer.uri())];
            for (server, uri) in crate::in_turn(&both, round) {
                if plan.cold && server == Server::Point {
                    crate::cold::drop_pages(&daemon.data().join("vault/segments"));
                }
                let before = store(daemon);
                let report = fio(plan, uri, pattern);
                let store = (server == Server::Point).then(|| since(&before, &store(daemon)));
                let read = &report["jobs"][0]["read"];
                let number = |name: &str| read[name].as_f64().unwrap_or_else(|| panic!("no {name} in {read}"));
                let (iops, megabytes) = (number("iops"), number("bw_bytes") / 1e6);
                progress(&format!("round {round} @{seq} {pattern:?} {server:?} {iops:.0} IOPS {megabytes:.1} MB/s"));
                if let Some(s) = &store {
                    let per_block = |n: u64| precise(n) / (precise(s.served_bytes.max(1)) / 4096.0);
                    let (bytes, frames) = (per_block(s.read_bytes), per_block(s.frames));
                    progress(&format!("    {} reads, {bytes:.0} bytes and {frames:.2} frames a block", s.reads));
                }
                out.push(ReadRun { seq, server, pattern, round, iops, megabytes, store });
            }
        }
    }
    drop((point, peer));
    let _ = std::fs::remove_file(&socket);
}

fn store(daemon: &Daemon) -> StoreStatus {
    let mut control = ControlClient::connect(daemon.data()).expect("connect to the daemon");
    control.status().expect("the status").store.unwrap_or_default()
}

const fn since(before: &StoreStatus, after: &StoreStatus) -> StoreStatus {
    StoreStatus {
        served_bytes: after.served_bytes - before.served_bytes,
        reads: after.reads - before.reads,
        read_bytes: after.read_bytes - before.read_bytes,
        frames: after.frames - before.frames,
        ..*after
    }
}

/// A fast answer that is wrong is none.
fn check(plan: &Plan, seq: u64, socket: &Path) {
    let newest = plan.shape.newest(seq);
    let mut client = Client::connect(&Address::Unix(socket.to_owned()), VOLUME).expect("connect to the point");
    let (mut found, mut wanted) = ([0; 4096], [0; 4096]);
    for n in 0..SAMPLES {
        let target = plan.shape.target(seq.wrapping_mul(31).wrapping_add(n) ^ (1 << 50));
        client.read(plan.shape.offset(target), &mut found).expect("read a block");
        match newest[usize::try_from(target).expect("an index")] {
            0 => wanted.fill(0),
            write => content(write, &mut wanted),
        }
        assert!(found == wanted, "block {target} at @{seq} is not what was written");
    }
}

fn fio(plan: &Plan, uri: &str, pattern: Pattern) -> Value {
    let (offset, len) = plan.shape.dense();
    let how = match pattern {
        Pattern::Random4k => ["--rw=randread", "--bs=4k", "--norandommap"],
        Pattern::Sequential128k => ["--rw=read", "--bs=128k", "--time_based=0"],
    };
    let report = tool("fio")
        .args(["--name=read", "--ioengine=nbd", "--thread", "--iodepth=32", "--output-format=json"])
        .arg(format!("--uri={uri}"))
        .arg(format!("--offset={offset}"))
        .arg(format!("--size={len}"))
        .arg(format!("--runtime={}", plan.seconds))
        .args(how)
        .run()
        .stdout;
    let start = report.find('{').unwrap_or_else(|| panic!("no report from fio: {report}"));
    serde_json::from_str(&report[start..]).unwrap_or_else(|e| panic!("fio's report: {e}: {report}"))
}

#[expect(clippy::cast_precision_loss, reason = "numbers of writes are far below 2^52")]
pub(crate) fn precise(count: u64) -> f64 {
    count as f64
}
