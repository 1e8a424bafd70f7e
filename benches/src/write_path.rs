//! 4 KiB random writes and 128 KiB sequential writes with fio's NBD engine over a unix socket: through our export with
//! and without protection, and through other servers, on the same image.

use crate::cache::{cpu_microseconds, make_cold, write_all_back};
use afterimage_tests::daemon::{Daemon, daemon};
use afterimage_tests::peer::{self, Kind, Peer};
use afterimage_tests::tool::tool;
use serde::Serialize;
use serde_json::Value;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

const VOLUME: &str = "disk";
/// Names of the threads of `afterimage up` that would run on the appliance's host.
const APPLIANCE: [&str; 6] = ["session", "reduce-", "sealer", "maintenance", "listen", "index"];

/// What is measured and how often.
#[derive(Debug, Clone)]
pub struct Plan {
    /// An empty folder on the file system to measure on.
    pub dir: PathBuf,
    /// Bytes of the image.
    pub size: u64,
    /// Longest time of one run in seconds.
    pub seconds: u32,
    /// Most bytes of one run: what the ring can hold, so that a run measures protection and not the fallback.
    pub bytes: u64,
    /// Ring of the protected volume, as `up --ring` takes it.
    pub ring: String,
    /// Runs of each candidate.
    pub rounds: u32,
    /// What is compared.
    pub candidates: Vec<Candidate>,
}

impl Plan {
    fn image(&self) -> PathBuf {
        self.dir.join("disk.raw")
    }
}

/// A server to be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Candidate {
    /// `afterimage up`: journal, appliance and all, in one process.
    Protected,
    /// `afterimage up --no-protect`: the same server without them.
    Unprotected,
    /// `qemu-nbd`, threads and write-back cache.
    QemuNbd,
    /// `nbdkit file`.
    Nbdkit,
    /// `nbd-server`.
    NbdServer,
}

/// All of them.
pub const CANDIDATES: [Candidate; 5] =
    [Candidate::Protected, Candidate::Unprotected, Candidate::QemuNbd, Candidate::Nbdkit, Candidate::NbdServer];

impl Candidate {
    /// Its name in a table.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Protected => "afterimage, protected",
            Self::Unprotected => "afterimage, not protected",
            Self::QemuNbd => "qemu-nbd",
            Self::Nbdkit => "nbdkit file",
            Self::NbdServer => "nbd-server",
        }
    }
}

/// A pattern of writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// 4 KiB at random places, 32 in flight.
    Random4k,
    /// 128 KiB one after the other, 8 in flight.
    Sequential128k,
}

/// Both.
pub const PATTERNS: [Pattern; 2] = [Pattern::Random4k, Pattern::Sequential128k];

impl Pattern {
    const fn fio(self) -> [&'static str; 3] {
        match self {
            Self::Random4k => ["--rw=randwrite", "--bs=4k", "--iodepth=32"],
            Self::Sequential128k => ["--rw=write", "--bs=128k", "--iodepth=8"],
        }
    }
}

/// One run.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// The server.
    pub candidate: Candidate,
    /// The writes.
    pub pattern: Pattern,
    /// Client and server on CPU 0, the appliance's threads on CPU 1 as if it were another host; else where the scheduler
    /// puts them.
    pub pinned: bool,
    /// Which round.
    pub round: u32,
    /// Writes per second.
    pub iops: f64,
    /// Megabytes (1,000,000 bytes) per second.
    pub megabytes: f64,
    /// Time from sending to answer in microseconds: median, 99 %, 99.9 %.
    pub latency: [f64; 3],
    /// CPU microseconds of the server's process per write.
    pub cpu_per_write: f64,
    /// Bytes of the image that could not be dropped from the cache before the run.
    pub cached_before: u64,
    /// State of the volume at the end, if protected: anything but `live` means that the ring overflowed.
    pub state_after: Option<String>,
}

enum Server {
    Ours(Box<Daemon>),
    Peer(Peer),
}

/// Measures everything.
///
/// # Panics
/// If a program fails.
#[must_use]
pub fn measure(plan: &Plan, mut progress: impl FnMut(&Run)) -> Vec<Run> {
    fill(&plan.image(), plan.size);
    let mut runs = Vec::new();
    for round in 0..plan.rounds {
        for pattern in PATTERNS {
            for pinned in [true, false] {
                let mut order = plan.candidates.clone();
                if round % 2 == 1 {
                    order.reverse();
                }
                for candidate in order {
                    let run = one(plan, candidate, pattern, pinned, round);
                    progress(&run);
                    runs.push(run);
                }
            }
        }
    }
    runs
}

/// Allocates the image for good, so that no run pays for allocation.
fn fill(image: &Path, size: u64) {
    let mut file = File::create(image).expect("make the image");
    let piece = vec![0; 1 << 20];
    for _ in 0..size >> 20 {
        file.write_all(&piece).expect("fill the image");
    }
    file.sync_all().expect("write the image back");
}

fn one(plan: &Plan, candidate: Candidate, pattern: Pattern, pinned: bool, round: u32) -> Run {
    let scratch = tempfile::tempdir_in(&plan.dir).expect("make a folder");
    let mut server = Server::start(plan, candidate, scratch.path(), pinned);
    wait_for_ring(server.pid());
    if pinned && candidate == Candidate::Protected {
        move_appliance(server.pid());
    }
    write_all_back();
    let cached_before = make_cold(&plan.image());
    let cpu_before = cpu_microseconds(server.pid());
    let report = fio(plan, &server.uri(), pattern, pinned);
    let cpu = cpu_microseconds(server.pid()) - cpu_before;
    let state_after = server.state();
    let write = &report["jobs"][0]["write"];
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("fio's report lacks a number: {write}"));
    let percentile = |name: &str| number(&write["clat_ns"]["percentile"][name]) / 1000.0;
    Run {
        candidate,
        pattern,
        pinned,
        round,
        iops: number(&write["iops"]),
        megabytes: number(&write["bw_bytes"]) / 1e6,
        latency: [percentile("50.000000"), percentile("99.000000"), percentile("99.900000")],
        cpu_per_write: precise(cpu) / number(&write["total_ios"]).max(1.0),
        cached_before,
        state_after,
    }
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of one run are far below 2^52")]
fn precise(count: u64) -> f64 {
    count as f64
}

fn fio(plan: &Plan, uri: &str, pattern: Pattern, pinned: bool) -> Value {
    let report = pinning(pinned, "fio")
        .args(["--name=write", "--ioengine=nbd", "--thread", "--output-format=json"])
        .arg(format!("--uri={uri}"))
        .arg(format!("--size={}", plan.size))
        .arg(format!("--io_size={}", plan.bytes))
        .arg(format!("--runtime={}", plan.seconds))
        .args(pattern.fio())
        // Compressible to about a half, as data of real disks is.
        .args(["--buffer_compress_percentage=50", "--refill_buffers"])
        .run()
        .stdout;
    // fio may warn before it reports.
    let start = report.find('{').unwrap_or_else(|| panic!("no report from fio: {report}"));
    serde_json::from_str(&report[start..]).unwrap_or_else(|e| panic!("fio's report: {e}: {report}"))
}

fn pinning(pinned: bool, program: &str) -> afterimage_tests::tool::Tool {
    if pinned { tool("taskset").args(["-c", "0", program]) } else { tool(program) }
}

/// Ids and names of a process's threads.
fn threads(pid: u32) -> Vec<(OsString, String)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.map(|t| (t.file_name(), std::fs::read_to_string(t.path().join("comm")).unwrap_or_default())).collect()
}

/// Puts the appliance's threads on CPU 1.
fn move_appliance(pid: u32) {
    let appliance = |name: &str| APPLIANCE.iter().any(|prefix| name.starts_with(prefix));
    let found: Vec<_> = threads(pid).into_iter().filter(|(_, name)| appliance(name)).collect();
    assert!(!found.is_empty(), "the threads of the appliance have other names than {APPLIANCE:?}");
    for (thread, _) in found {
        tool("taskset").args(["-p", "-c", "1"]).arg(thread).run_any();
    }
}

/// A new ring's pages are brought into memory once, beside the first writes; what is measured is the state after that.
fn wait_for_ring(pid: u32) {
    while threads(pid).iter().any(|(_, name)| name.starts_with("prefault")) {
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Server {
    fn start(plan: &Plan, candidate: Candidate, dir: &Path, pinned: bool) -> Self {
        let image = &plan.image();
        let prefix: &[&str] = if pinned { &["taskset", "-c", "0"] } else { &[] };
        let kind = match candidate {
            Candidate::Protected | Candidate::Unprotected => return Self::ours(plan, candidate, dir, prefix),
            Candidate::QemuNbd => Kind::QemuNbd,
            Candidate::Nbdkit => Kind::Nbdkit,
            Candidate::NbdServer => Kind::NbdServer,
        };
        Self::Peer(peer::serve(kind, image, dir, prefix))
    }

    fn ours(plan: &Plan, candidate: Candidate, dir: &Path, prefix: &[&str]) -> Self {
        let how = daemon(dir).volume(VOLUME, &plan.image()).prefix(prefix.iter().copied());
        if candidate == Candidate::Unprotected {
            return Self::Ours(Box::new(how.options(["--no-protect"]).start()));
        }
        let daemon = how.options(["--ring", plan.ring.as_str()]).start();
        daemon.wait_live(VOLUME);
        daemon.wait_durable(VOLUME);
        Self::Ours(Box::new(daemon))
    }

    fn uri(&self) -> String {
        match self {
            Self::Ours(daemon) => daemon.uri(VOLUME),
            Self::Peer(peer) => peer.uri().to_owned(),
        }
    }

    fn pid(&mut self) -> u32 {
        match self {
            Self::Ours(daemon) => daemon.process().id(),
            Self::Peer(peer) => peer.id(),
        }
    }

    fn state(&self) -> Option<String> {
        match self {
            Self::Ours(daemon) => daemon.volume(VOLUME)["state"].as_str().map(str::to_owned),
            Self::Peer(_) => None,
        }
    }
}
