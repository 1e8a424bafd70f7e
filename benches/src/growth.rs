//! 1, 4, 16 and 64 volumes on one agent: what a write costs, and how much memory the agent needs.

use crate::cache::cpu_microseconds;
use crate::figures::{figure, median};
use crate::load;
use crate::site::Site;
use serde::Serialize;
use std::fmt::Write as _;
use std::path::PathBuf;

/// How many volumes.
pub const COUNTS: [u32; 4] = [1, 4, 16, 64];

/// What is measured and how often.
#[derive(Debug, Clone)]
pub struct Plan {
    /// An empty folder on the file system to measure on.
    pub dir: PathBuf,
    /// Bytes of each disk.
    pub size: u64,
    /// Seconds of a run.
    pub seconds: u32,
    /// Size of each ring.
    pub ring: String,
    /// Repetitions, interleaved.
    pub rounds: u32,
}

/// One run.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// Volumes, with a connection each.
    pub volumes: u32,
    /// Which round.
    pub round: u32,
    /// Writes a second, all together.
    pub iops: f64,
    /// Latency of a write in microseconds: median, 99 %, 99.9 %.
    pub latency: [f64; 3],
    /// CPU microseconds of the agent for each write.
    pub cpu_per_write: f64,
    /// Bytes of the agent's own memory (anonymous pages) after the run: what is not ring.
    pub own_memory: u64,
    /// Threads of the agent.
    pub threads: u64,
    /// State of the volumes at the end, if not all are live.
    pub state: String,
}

/// Measures everything.
///
/// # Panics
/// If a program fails.
#[must_use]
pub fn measure(plan: &Plan, progress: impl FnMut(&Run)) -> Vec<Run> {
    crate::rounds(plan.rounds, &COUNTS, |volumes, round| one(plan, volumes, round), progress)
}

fn one(plan: &Plan, volumes: u32, round: u32) -> Run {
    let scratch = tempfile::tempdir_in(&plan.dir).expect("make a folder");
    let image = |n: u32| {
        let path = scratch.path().join(format!("disk{n:02}.raw"));
        let file = std::fs::File::create(&path).expect("make a disk");
        file.set_len(plan.size).expect("size a disk");
        path
    };
    let images: Vec<PathBuf> = (0..volumes).map(image).collect();
    let site = Site::start(scratch.path(), &images, &plan.ring, true);
    let options = [
        "--rw=randwrite".to_owned(),
        "--bs=4k".to_owned(),
        format!("--iodepth={}", (32 / volumes).max(1)),
        format!("--size={}", plan.size),
        format!("--runtime={}", plan.seconds),
        "--time_based".to_owned(),
    ];
    let before = cpu_microseconds(site.agent());
    let figures = load::run(&site.uris(), true, &options);
    let cpu = cpu_microseconds(site.agent()) - before;
    let states: std::collections::BTreeSet<String> =
        site.volumes().iter().filter_map(|v| v["state"].as_str().map(str::to_owned)).collect();
    Run {
        volumes,
        round,
        iops: figures.iops,
        latency: figures.latency,
        cpu_per_write: precise(cpu) / figures.requests,
        own_memory: status(site.agent(), "RssAnon") * 1024,
        threads: status(site.agent(), "Threads"),
        state: states.into_iter().collect::<Vec<_>>().join(", "),
    }
}

/// A number of a process's status.
fn status(pid: u32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':')).unwrap_or_default();
    line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[expect(clippy::cast_precision_loss, reason = "microseconds and bytes of one run are far below 2^52")]
fn precise(count: u64) -> f64 {
    count as f64
}

/// The table of docs/performance.md.
#[must_use]
pub fn table(plan: &Plan, runs: &[Run]) -> String {
    let mut out = format!(
        "4 KiB random writes, 32 in flight over all volumes (64 volumes: one each), a connection for each volume, disks of {} MiB, rings of \
         {}; medians of {} interleaved runs of {} s, client and agent on one core, the appliance on another. Memory is the agent's own, \
         without rings.\n\n\
         | volumes | IOPS, all together | p50 / p99 / p99.9 \u{b5}s | agent's CPU \u{b5}s per write | memory, MiB | threads | state |\n\
         |---:|---:|---:|---:|---:|---:|---|\n",
        plan.size >> 20,
        plan.ring,
        plan.rounds,
        plan.seconds
    );
    for volumes in COUNTS {
        let of: Vec<&Run> = runs.iter().filter(|r| r.volumes == volumes).collect();
        let mid = |value: &dyn Fn(&Run) -> f64| figure(median(&of.iter().map(|r| value(r)).collect::<Vec<_>>()));
        let [p50, p99, p999] = [0, 1, 2].map(|i| mid(&|r| r.latency[i]));
        let states: std::collections::BTreeSet<&str> = of.iter().map(|r| &*r.state).collect();
        let _ = writeln!(
            out,
            "| {volumes} | {} | {p50} / {p99} / {p999} | {} | {} | {} | {} |",
            mid(&|r| r.iops),
            mid(&|r| r.cpu_per_write),
            mid(&|r| precise(r.own_memory) / f64::from(1 << 20)),
            mid(&|r| precise(r.threads)),
            states.into_iter().collect::<Vec<_>>().join("; ")
        );
    }
    out
}
