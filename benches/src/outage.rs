//! What a guest notices of an appliance that goes away: fio at full speed on the export, with the appliance undisturbed,
//! stopped (SIGSTOP) and killed for the whole time of the run, and back afterwards.
//!
//! Agent and appliance are two processes over TCP. The ring is small, so that the run goes through everything: the ring takes
//! the writes, is full, the dirty map takes them, and behind the run the disk is copied until history and disk are the same.

use crate::figures::{figure, median};
use afterimage_tests::data;
use afterimage_tests::pair::{Pair, Role};
use afterimage_tests::tool::tool;
use nix::sys::signal::Signal;
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Instant;

/// What happens to the appliance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Away {
    /// Nothing.
    Not,
    /// It is stopped: connections stay, nobody answers.
    Stopped,
    /// It is killed: connections are refused.
    Killed,
}

/// All of them.
pub const ALL: [Away; 3] = [Away::Not, Away::Stopped, Away::Killed];

impl Away {
    const fn title(self) -> &'static str {
        match self {
            Away::Not => "there all the time",
            Away::Stopped => "stopped (SIGSTOP)",
            Away::Killed => "killed",
        }
    }
}

/// What is measured and how often.
#[derive(Debug, Clone)]
pub struct Plan {
    /// An empty folder on the file system to measure on.
    pub dir: PathBuf,
    /// Bytes of the disk.
    pub size: u64,
    /// How long the appliance is away, and fio writes, in seconds.
    pub seconds: u32,
    /// Size of the ring.
    pub ring: String,
    /// Runs of each kind, interleaved.
    pub rounds: u32,
}

/// One run.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// What happened to the appliance.
    pub away: Away,
    /// Which round.
    pub round: u32,
    /// Writes per second.
    pub iops: f64,
    /// Latency of a write in microseconds: median, 99 %, 99.9 %, longest.
    pub latency: [f64; 4],
    /// State of the volume when the run ended.
    pub state_after: String,
    /// Bytes to be copied then.
    pub dirty_after: u64,
    /// Seconds from the appliance's return (or the end of the run) until every write could be chosen and was durable.
    pub converged: f64,
}

/// Measures everything. A request that fails, or a history that is not the disk in the end, is a panic.
///
/// # Panics
/// If a program fails.
#[must_use]
pub fn measure(plan: &Plan, progress: impl FnMut(&Run)) -> Vec<Run> {
    crate::rounds(plan.rounds, &ALL, |away, round| one(plan, away, round), progress)
}

/// Allocates the disk for good, so that no write pays for allocation.
fn fill(plan: &Plan, pair: &Pair) {
    let mut file = File::create(&pair.image).expect("make the disk");
    let mut chance = data::Chance::new(1);
    for _ in 0..plan.size >> 20 {
        file.write_all(&chance.bytes(1 << 20)).expect("fill the disk");
    }
    file.sync_all().expect("write the disk back");
}

fn one(plan: &Plan, away: Away, round: u32) -> Run {
    let mut pair = Pair::plan_in(&plan.dir, plan.size, &plan.ring);
    fill(plan, &pair);
    pair.start(Role::Appliance);
    pair.start(Role::Agent);
    pair.wait_live();
    pair.wait_durable();
    fio(&pair, plan.size, 3);
    match away {
        Away::Not => {}
        Away::Stopped => pair.process(Role::Appliance).signal(Signal::SIGSTOP),
        Away::Killed => pair.kill(Role::Appliance),
    }
    let report = fio(&pair, plan.size, plan.seconds);
    let volume = pair.try_volume(Role::Agent).expect("a status");
    match away {
        Away::Not => {}
        Away::Stopped => pair.process(Role::Appliance).signal(Signal::SIGCONT),
        Away::Killed => pair.start(Role::Appliance),
    }
    let back = Instant::now();
    pair.wait_live();
    pair.wait_durable();
    let converged = back.elapsed().as_secs_f64();
    pair.assert_history_is_the_disk();
    let job = &report["jobs"][0];
    assert_eq!(job["error"], 0, "fio saw an error: {job}");
    let write = &job["write"];
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("fio's report lacks a number: {write}"));
    let percentile = |name: &str| number(&write["clat_ns"]["percentile"][name]) / 1000.0;
    let longest = number(&write["clat_ns"]["max"]) / 1000.0;
    Run {
        away,
        round,
        iops: number(&write["iops"]),
        latency: [percentile("50.000000"), percentile("99.000000"), percentile("99.900000"), longest],
        state_after: volume["state"].as_str().unwrap_or_default().to_owned(),
        dirty_after: volume["dirty_bytes"].as_u64().unwrap_or(0),
        converged,
    }
}

fn fio(pair: &Pair, size: u64, seconds: u32) -> Value {
    let report = tool("fio")
        .args(["--name=write", "--ioengine=nbd", "--thread", "--output-format=json", "--rw=randwrite", "--bs=4k"])
        .args(["--iodepth=16", "--time_based", "--buffer_compress_percentage=50", "--refill_buffers"])
        .args([format!("--uri={}", pair.uri()), format!("--size={size}"), format!("--runtime={seconds}")])
        .run()
        .stdout;
    // fio may warn before it reports.
    let start = report.find('{').unwrap_or_else(|| panic!("no report from fio: {report}"));
    serde_json::from_str(&report[start..]).unwrap_or_else(|e| panic!("fio's report: {e}: {report}"))
}

/// The table of docs/performance.md.
#[must_use]
pub fn table(plan: &Plan, runs: &[Run]) -> String {
    let mut out = format!(
        "4 KiB random writes at depth 16 over TCP to `afterimage agent`, {} s at full speed on a disk of {} MiB with a ring of {}; \
         the appliance is another process. Medians of {} interleaved runs. *Converged*: from the appliance's return until all \
         was durable there; then the newest image restored was compared with the disk byte by byte, and no request failed.\n\n\
         | appliance | writes/s | median \u{b5}s | 99 % | 99.9 % | longest ms | state at the end | converged s |\n\
         |---|---:|---:|---:|---:|---:|---|---:|\n",
        plan.seconds,
        plan.size >> 20,
        plan.ring,
        plan.rounds
    );
    let mut base = 0.0;
    for away in ALL {
        let of: Vec<&Run> = runs.iter().filter(|r| r.away == away).collect();
        let mid = |value: &dyn Fn(&Run) -> f64| median(&of.iter().map(|r| value(r)).collect::<Vec<_>>());
        let [p50, p99, p999, longest] = [0, 1, 2, 3].map(|i| mid(&|r| r.latency[i]));
        if away == Away::Not {
            base = p999;
        }
        let states: std::collections::BTreeSet<&str> = of.iter().map(|r| &*r.state_after).collect();
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} ({:.2}x) | {} | {} | {} |",
            away.title(),
            figure(mid(&|r| r.iops)),
            figure(p50),
            figure(p99),
            figure(p999),
            if base > 0.0 { p999 / base } else { 0.0 },
            figure(longest / 1000.0),
            states.into_iter().collect::<Vec<_>>().join(", "),
            figure(mid(&|r| r.converged))
        );
    }
    out
}
