//! Requests through an export, with fio's NBD engine over a unix socket: ours with and without protection, other servers, and the
//! live copies of a storage daemon, all on the same image.
//!
//! Pinned, client and server share one processor, and our appliance, a process of its own, has another one: as if it were another
//! host. The CPU time is that of the server alone; for ours that is the agent, forwarding included.

use crate::cache::{cpu_microseconds, make_cold, write_all_back};
use crate::figures::median;
use crate::load::{self, Figures};
use crate::mirror;
use crate::plot::Group;
use crate::site::{NEAR, Site};
use crate::syscalls::{self, Counted};
use afterimage_tests::daemon::{Daemon, daemon};
use afterimage_tests::peer::{self, Kind, Peer};
use afterimage_tests::process::Process;
use serde::Serialize;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

const VOLUME: &str = "disk";

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
    /// With which requests.
    pub patterns: Vec<Pattern>,
    /// Where: pinned, or where the scheduler wants.
    pub places: Vec<bool>,
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
    /// `afterimage agent`, with `afterimage appliance` beside it.
    Protected,
    /// `afterimage up --no-protect`: the same server without them.
    Unprotected,
    /// `qemu-nbd`, threads and write-back cache.
    QemuNbd,
    /// `nbdkit file`.
    Nbdkit,
    /// `nbd-server`.
    NbdServer,
    /// `qemu-storage-daemon` with a mirror that follows in the background.
    BackgroundMirror,
    /// `qemu-storage-daemon` with a mirror that is written before the answer.
    BlockingMirror,
}

/// All of them.
pub const CANDIDATES: [Candidate; 7] = [
    Candidate::Protected,
    Candidate::Unprotected,
    Candidate::QemuNbd,
    Candidate::Nbdkit,
    Candidate::NbdServer,
    Candidate::BackgroundMirror,
    Candidate::BlockingMirror,
];

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
            Self::BackgroundMirror => "qemu mirror, background",
            Self::BlockingMirror => "qemu mirror, write-blocking",
        }
    }
}

/// A pattern of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// 4 KiB writes at random places, one at a time.
    Random4kDepth1,
    /// 32 in flight.
    Random4k,
    /// 128 in flight.
    Random4kDepth128,
    /// 32 in flight over two connections.
    TwoConnections,
    /// 32 in flight over four connections.
    FourConnections,
    /// 128 KiB one after the other, 8 in flight.
    Sequential128k,
    /// 4 KiB reads at random places, 32 in flight.
    Read4k,
    /// 4 KiB writes at random places, one at a time, each followed by a flush.
    Flushed4k,
}

/// All of them.
pub const PATTERNS: [Pattern; 8] = [
    Pattern::Random4k,
    Pattern::Sequential128k,
    Pattern::Random4kDepth1,
    Pattern::Random4kDepth128,
    Pattern::TwoConnections,
    Pattern::FourConnections,
    Pattern::Read4k,
    Pattern::Flushed4k,
];

impl Pattern {
    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Random4kDepth1 => "random-4k-depth-1",
            Self::Random4k => "random-4k",
            Self::Random4kDepth128 => "random-4k-depth-128",
            Self::TwoConnections => "two-connections",
            Self::FourConnections => "four-connections",
            Self::Sequential128k => "sequential-128k",
            Self::Read4k => "read-4k",
            Self::Flushed4k => "flushed-4k",
        }
    }

    /// Its name in a table.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Random4kDepth1 => "4 KiB random write, depth 1",
            Self::Random4k => "4 KiB random write, depth 32",
            Self::Random4kDepth128 => "4 KiB random write, depth 128",
            Self::TwoConnections => "4 KiB random write, two connections of depth 16",
            Self::FourConnections => "4 KiB random write, four connections of depth 8",
            Self::Sequential128k => "128 KiB sequential write, depth 8",
            Self::Read4k => "4 KiB random read, depth 32",
            Self::Flushed4k => "4 KiB random write, depth 1, a flush after each",
        }
    }

    const fn fio(self) -> [&'static str; 4] {
        match self {
            Self::Random4kDepth1 => ["--rw=randwrite", "--bs=4k", "--iodepth=1", "--numjobs=1"],
            Self::Random4k => ["--rw=randwrite", "--bs=4k", "--iodepth=32", "--numjobs=1"],
            Self::Random4kDepth128 => ["--rw=randwrite", "--bs=4k", "--iodepth=128", "--numjobs=1"],
            Self::TwoConnections => ["--rw=randwrite", "--bs=4k", "--iodepth=16", "--numjobs=2"],
            Self::FourConnections => ["--rw=randwrite", "--bs=4k", "--iodepth=8", "--numjobs=4"],
            Self::Sequential128k => ["--rw=write", "--bs=128k", "--iodepth=8", "--numjobs=1"],
            Self::Read4k => ["--rw=randread", "--bs=4k", "--iodepth=32", "--numjobs=1"],
            Self::Flushed4k => ["--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"],
        }
    }

    const fn jobs(self) -> u64 {
        match self {
            Self::TwoConnections => 2,
            Self::FourConnections => 4,
            _ => 1,
        }
    }

    /// Whether megabytes say more than requests.
    #[must_use]
    pub const fn is_stream(self) -> bool {
        matches!(self, Self::Sequential128k)
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
    /// CPU microseconds of the server's process for each request.
    pub cpu_per_request: f64,
    /// System calls of the server's process for each request, counted in a short run of its own behind the first.
    pub syscalls_per_request: Option<f64>,
    /// fsync, fdatasync and msync among them, in all of the short run.
    pub syncs: Option<u64>,
    /// Requests of the short run.
    pub counted_requests: f64,
    /// Bytes of the image that could not be dropped from the cache before the run.
    pub cached_before: u64,
    /// State of the volume at the end, if protected: anything but `live` means that the ring overflowed.
    pub state_after: Option<String>,
}

/// Requests, or megabytes where these say more, per second of a candidate's runs.
#[must_use]
pub fn rates(runs: &[&Run], candidate: Candidate) -> Vec<f64> {
    let of = runs.iter().filter(|r| r.candidate == candidate);
    of.map(|r| if r.pattern.is_stream() { r.megabytes } else { r.iops }).collect()
}

/// What the plot shows: a group for each pattern and place.
#[must_use]
pub fn groups(plan: &Plan, runs: &[Run]) -> Vec<Group> {
    let places = plan.patterns.iter().flat_map(|p| plan.places.iter().map(move |place| (*p, *place)));
    let group = |(pattern, pinned): (Pattern, bool)| {
        let of: Vec<&Run> = runs.iter().filter(|r| r.pattern == pattern && r.pinned == pinned).collect();
        let unit = if pattern.is_stream() { "MB/s" } else { "requests/s" };
        let place = if pinned { "pinned" } else { "not pinned" };
        let bar = |c: &Candidate| (c.title().to_owned(), median(&rates(&of, *c)));
        Group {
            title: format!("{}, {place}, {unit}", pattern.title()),
            bars: plan.candidates.iter().map(bar).collect(),
        }
    };
    places.map(group).collect()
}

/// A ratio that must be reached: pinned and protected, of this pattern, to a candidate.
#[derive(Debug, Clone)]
pub struct Bound {
    pattern: Pattern,
    candidate: Candidate,
    ratio: f64,
}

impl std::str::FromStr for Bound {
    type Err = String;

    /// `PATTERN/CANDIDATE=RATIO`: `random-4k/nbdkit=1.3`.
    fn from_str(text: &str) -> Result<Bound, String> {
        let parts = text.split_once('=').and_then(|(what, ratio)| Some((what.split_once('/')?, ratio)));
        let ((pattern, candidate), ratio) = parts.ok_or("it must be PATTERN/CANDIDATE=RATIO")?;
        let known = |c: &Candidate| serde_json::to_value(c).is_ok_and(|v| v == candidate);
        Ok(Bound {
            pattern: *PATTERNS.iter().find(|p| p.name() == pattern).ok_or(format!("there is no pattern {pattern}"))?,
            candidate: *CANDIDATES.iter().find(|c| known(c)).ok_or(format!("there is no candidate {candidate}"))?,
            ratio: ratio.parse().map_err(|_| format!("{ratio} is no number"))?,
        })
    }
}

impl Bound {
    /// What to say if the runs do not reach it, or say nothing about it.
    #[must_use]
    pub fn missed(&self, runs: &[Run]) -> Option<String> {
        let of: Vec<&Run> = runs.iter().filter(|r| r.pattern == self.pattern && r.pinned).collect();
        let [ours, theirs] = [Candidate::Protected, self.candidate].map(|c| median(&rates(&of, c)));
        let ratio = if theirs > 0.0 { ours / theirs } else { 0.0 };
        let what = format!("{}, pinned: protected is {ratio:.2} of {}", self.pattern.title(), self.candidate.title());
        (ratio < self.ratio).then(|| format!("{what}, and should be {} at least", self.ratio))
    }
}

enum Server {
    Protected(Box<Site>),
    Unprotected(Box<Daemon>),
    Peer(Peer),
    Mirror(Process, String),
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
        for &pattern in &plan.patterns {
            for &pinned in &plan.places {
                for candidate in crate::in_turn(&plan.candidates, round) {
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
    write_all_back();
    let cached_before = make_cold(&plan.image());
    let (pid, uri) = (server.pid(), server.uri());
    let cpu_before = cpu_microseconds(pid);
    let figures = fio(plan, &uri, pattern, pinned, (plan.bytes, plan.seconds));
    let cpu = cpu_microseconds(pid) - cpu_before;
    let state_after = server.state();
    let mut short = None;
    let counted = if round == 0 {
        let work = || short = Some(fio(plan, &uri, pattern, pinned, (plan.bytes / 8, 1)));
        syscalls::count(pid, scratch.path(), work)
    } else {
        None
    };
    let counted_requests = short.map_or(0.0, |f| f.requests);
    Run {
        candidate,
        pattern,
        pinned,
        round,
        iops: figures.iops,
        megabytes: figures.megabytes,
        latency: figures.latency,
        cpu_per_request: precise(cpu) / figures.requests,
        syscalls_per_request: counted.map(|Counted { calls, .. }| precise(calls) / counted_requests.max(1.0)),
        syncs: counted.map(|c| c.syncs),
        counted_requests,
        cached_before,
        state_after,
    }
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of one run are far below 2^52")]
fn precise(count: u64) -> f64 {
    count as f64
}

fn fio(plan: &Plan, uri: &str, pattern: Pattern, pinned: bool, (bytes, seconds): (u64, u32)) -> Figures {
    let mut options: Vec<String> = pattern.fio().map(str::to_owned).into();
    options.push(format!("--size={}", plan.size));
    options.push(format!("--io_size={}", bytes / pattern.jobs()));
    options.push(format!("--runtime={seconds}"));
    load::run(&[uri.to_owned()], pinned, &options)
}

impl Server {
    fn start(plan: &Plan, candidate: Candidate, dir: &Path, pinned: bool) -> Self {
        let image = &plan.image();
        let prefix: &[&str] = if pinned { &["taskset", "-c", NEAR] } else { &[] };
        let mirror = |mode| {
            let (process, uri) = mirror::serve(image, dir, mode, pinned);
            Self::Mirror(process, uri)
        };
        let kind = match candidate {
            Candidate::Protected => {
                return Self::Protected(Box::new(Site::start(dir, std::slice::from_ref(image), &plan.ring, pinned)));
            }
            Candidate::Unprotected => {
                let how = daemon(dir).volume(VOLUME, image).prefix(prefix.iter().copied());
                return Self::Unprotected(Box::new(how.options(["--no-protect"]).start()));
            }
            Candidate::BackgroundMirror => return mirror("background"),
            Candidate::BlockingMirror => return mirror("write-blocking"),
            Candidate::QemuNbd => Kind::QemuNbd,
            Candidate::Nbdkit => Kind::Nbdkit,
            Candidate::NbdServer => Kind::NbdServer,
        };
        Self::Peer(peer::serve(kind, image, dir, prefix))
    }

    fn uri(&self) -> String {
        match self {
            Self::Protected(site) => site.uris().remove(0),
            Self::Unprotected(daemon) => daemon.uri(VOLUME),
            Self::Peer(peer) => peer.uri().to_owned(),
            Self::Mirror(_, uri) => uri.clone(),
        }
    }

    fn pid(&mut self) -> u32 {
        match self {
            Self::Protected(site) => site.agent(),
            Self::Unprotected(daemon) => daemon.process().id(),
            Self::Peer(peer) => peer.id(),
            Self::Mirror(process, _) => process.id(),
        }
    }

    fn state(&self) -> Option<String> {
        match self {
            Self::Protected(site) => site.volumes().first()?["state"].as_str().map(str::to_owned),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_read_and_judged() {
        let bound: Bound = "random-4k/unprotected=0.9".parse().unwrap();
        let run = |candidate, iops| Run {
            candidate,
            pattern: Pattern::Random4k,
            pinned: true,
            round: 0,
            iops,
            megabytes: 0.0,
            latency: [0.0; 3],
            cpu_per_request: 0.0,
            syscalls_per_request: None,
            syncs: None,
            counted_requests: 0.0,
            cached_before: 0,
            state_after: None,
        };
        let runs = |protected| [run(Candidate::Protected, protected), run(Candidate::Unprotected, 100.0)];
        assert_eq!(bound.missed(&runs(90.0)), None);
        assert!(bound.missed(&runs(89.0)).unwrap().contains("0.89"));
        assert!(bound.missed(&[]).is_some(), "nothing measured is not enough");
        for bad in ["", "random-4k=1", "x/unprotected=1", "random-4k/x=1", "random-4k/unprotected=much"] {
            assert!(bad.parse::<Bound>().is_err(), "{bad}");
        }
    }
}
