//! How far the appliance is behind at a given churn, and how long it needs after an outage.
//!
//! First the highest churn that lasts: writes at full speed, and the rate at which they become durable while there are always some
//! waiting. Then shares of it, each for a while, with samples of `lag_seconds` and `lag_bytes`; then 150 % of it, which must end
//! in dirty tracking and heal; and last an outage (the appliance is stopped) at a quarter of it.

use crate::figures::{figure, median};
use crate::load;
use crate::site::Site;
use afterimage_tests::daemon::number;
use nix::sys::signal::Signal;
use serde::Serialize;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Shares of the highest churn, in percent.
pub const SHARES: [u32; 5] = [25, 50, 75, 90, 150];
/// Bytes of a write.
const BLOCK: u64 = 16 << 10;
const SAMPLE_EVERY: Duration = Duration::from_millis(100);

/// What is measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// An empty folder on the file system to measure on.
    pub dir: PathBuf,
    /// Bytes of the disk.
    pub size: u64,
    /// Seconds for each share.
    pub seconds: u32,
    /// Seconds that the appliance is away.
    pub outage: u32,
    /// Size of the ring.
    pub ring: String,
    /// Client and agent on one processor, the appliance on the other.
    pub pinned: bool,
}

/// What one share of the highest churn gave.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    /// Percent of the highest churn.
    pub share: u32,
    /// Megabytes a second that were asked for.
    pub asked: f64,
    /// Megabytes a second that were written.
    pub written: f64,
    /// Latency of a write in microseconds: median, 99 %, 99.9 %.
    pub latency: [f64; 3],
    /// Seconds behind: median of the samples, and the most.
    pub lag_seconds: [f64; 2],
    /// Bytes behind: median of the samples, and the most.
    pub lag_bytes: [f64; 2],
    /// State at the end.
    pub state: String,
    /// Seconds from the last write until all was live and durable.
    pub caught_up: f64,
}

/// All of it.
#[derive(Debug, Clone, Serialize)]
pub struct Results {
    /// Megabytes a second that became durable while writes were waiting.
    pub highest: f64,
    /// The shares.
    pub steps: Vec<Step>,
    /// Seconds from the return of the appliance until nothing was behind, writes going on.
    pub drained: f64,
    /// Bytes behind when it returned.
    pub behind: f64,
    /// State when it returned.
    pub state: String,
}

struct Sample {
    seconds: f64,
    bytes: f64,
}

/// Measures everything.
///
/// # Panics
/// If a program fails.
#[must_use]
pub fn measure(plan: &Plan, mut progress: impl FnMut(&str)) -> Results {
    let image = plan.dir.join("disk.raw");
    let file = std::fs::File::create(&image).expect("make the disk");
    file.set_len(plan.size).expect("size the disk");
    let mut site = Site::start(&plan.dir, &[image], &plan.ring, plan.pinned);
    let uri = site.uris();
    let highest = highest(plan, &site, &uri);
    progress(&format!("highest churn that lasts: {highest:.0} MB/s"));
    let mut steps = Vec::new();
    for share in SHARES {
        let step = step(plan, &site, &uri, share, highest);
        progress(&format!("{step:?}"));
        steps.push(step);
    }
    let (drained, behind, state) = outage(plan, &mut site, &uri, highest / 4.0);
    progress(&format!(
        "after {} s of outage: {behind:.0} bytes behind, {state}, drained in {drained:.2} s",
        plan.outage
    ));
    Results { highest, steps, drained, behind, state }
}

/// Random writes of 16 KiB, of different content each.
fn options(plan: &Plan, seconds: u32, rate: Option<f64>) -> Vec<String> {
    let mut options = ["--rw=randwrite", "--iodepth=16", "--time_based"].map(str::to_owned).to_vec();
    options.push(format!("--bs={BLOCK}"));
    options.push(format!("--size={}", plan.size));
    options.push(format!("--runtime={seconds}"));
    if let Some(rate) = rate {
        options.push(format!("--rate={:.0}k", rate * 1000.0 / 1.024));
    }
    options
}

/// Bytes that became durable: each write is a record.
fn durable_bytes(site: &Site) -> f64 {
    site.volumes().first().map_or(0.0, |v| precise(number(v, "seq_durable")) * precise(BLOCK))
}

fn highest(plan: &Plan, site: &Site, uri: &[String]) -> f64 {
    let mut rate = 0.0;
    std::thread::scope(|scope| {
        scope.spawn(|| load::run(uri, plan.pinned, &options(plan, plan.seconds, None)));
        // Past the start, and before the ring may be full.
        std::thread::sleep(Duration::from_millis(1500));
        let (before, since) = (durable_bytes(site), Instant::now());
        std::thread::sleep(Duration::from_secs(u64::from(plan.seconds.saturating_sub(3).max(1))));
        rate = (durable_bytes(site) - before) / since.elapsed().as_secs_f64() / 1e6;
    });
    settled(site);
    rate.max(1.0)
}

fn settled(site: &Site) -> f64 {
    let since = Instant::now();
    site.wait("durable", |all| all.iter().all(|v| v["state"] == "live" && v["lag_bytes"] == 0));
    since.elapsed().as_secs_f64()
}

fn sample(site: &Site) -> Option<Sample> {
    let volumes = site.volumes();
    let v = volumes.first()?;
    Some(Sample { seconds: v["lag_seconds"].as_f64().unwrap_or(0.0), bytes: v["lag_bytes"].as_f64().unwrap_or(0.0) })
}

fn step(plan: &Plan, site: &Site, uri: &[String], share: u32, highest: f64) -> Step {
    let asked = highest * f64::from(share) / 100.0;
    let ended = AtomicBool::new(false);
    let mut samples = Vec::new();
    let (figures, state) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let figures = load::run(uri, plan.pinned, &options(plan, plan.seconds, Some(asked)));
            ended.store(true, Ordering::Release);
            figures
        });
        while !ended.load(Ordering::Acquire) {
            samples.extend(sample(site));
            std::thread::sleep(SAMPLE_EVERY);
        }
        let state = site.volumes().first().map_or(String::new(), |v| v["state"].as_str().unwrap_or("").to_owned());
        (writer.join().expect("the writer"), state)
    });
    let both = |of: fn(&Sample) -> f64| {
        let all: Vec<f64> = samples.iter().map(of).collect();
        [median(&all), all.iter().copied().fold(0.0, f64::max)]
    };
    Step {
        share,
        asked,
        written: figures.megabytes,
        latency: figures.latency,
        lag_seconds: both(|s| s.seconds),
        lag_bytes: both(|s| s.bytes),
        state,
        caught_up: settled(site),
    }
}

fn outage(plan: &Plan, site: &mut Site, uri: &[String], rate: f64) -> (f64, f64, String) {
    site.appliance().signal(Signal::SIGSTOP);
    let _ = load::run(uri, plan.pinned, &options(plan, plan.outage, Some(rate)));
    let volumes = site.volumes();
    let v = volumes.first().cloned().unwrap_or_default();
    let behind = v["lag_bytes"].as_f64().unwrap_or(0.0) + v["dirty_bytes"].as_f64().unwrap_or(0.0);
    site.appliance().signal(Signal::SIGCONT);
    let since = Instant::now();
    let ended = AtomicBool::new(false);
    let drained = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Acquire) {
                let _ = load::run(uri, plan.pinned, &options(plan, 2, Some(rate)));
            }
        });
        // A second of the churn may always be on its way.
        site.wait("caught up", |all| {
            all.iter().all(|v| v["state"] == "live" && v["lag_seconds"].as_f64().is_some_and(|s| s < 1.0))
        });
        let drained = since.elapsed().as_secs_f64();
        ended.store(true, Ordering::Release);
        drained
    });
    (drained, behind, v["state"].as_str().unwrap_or_default().to_owned())
}

#[expect(clippy::cast_precision_loss, reason = "bytes of one run are far below 2^52")]
fn precise(bytes: u64) -> f64 {
    bytes as f64
}

/// The table of docs/performance.md.
#[must_use]
pub fn table(plan: &Plan, found: &Results) -> String {
    let mut out = format!(
        "Random writes of 16 KiB at depth 16 to a disk of {} MiB, ring {}, {} s for each row; {}. The highest churn that lasts: \
         {} MB/s. After {} s without the appliance at a quarter of it {} MB were behind (state {}); they were caught up with in {} s, \
         the writes going on.\n\n\
         | churn | asked, MB/s | written | p50 / p99 / p99.9 \u{b5}s | seconds behind, median / most | MB behind, median / most | state | caught up, s |\n\
         |---|---:|---:|---:|---:|---:|---|---:|\n",
        plan.size >> 20,
        plan.ring,
        plan.seconds,
        if plan.pinned { "client and agent on one core, the appliance on another" } else { "not pinned" },
        figure(found.highest),
        plan.outage,
        figure(found.behind / 1e6),
        found.state,
        figure(found.drained)
    );
    for s in &found.steps {
        let [p50, p99, p999] = s.latency.map(figure);
        let ([lag, most], [bytes, most_bytes]) = (s.lag_seconds.map(figure), s.lag_bytes.map(|b| figure(b / 1e6)));
        let _ = writeln!(
            out,
            "| {} % | {} | {} | {p50} / {p99} / {p999} | {lag} / {most} | {bytes} / {most_bytes} | {} | {} |",
            s.share,
            figure(s.asked),
            figure(s.written),
            s.state,
            figure(s.caught_up)
        );
    }
    out
}
