//! What the write-intent map costs, by size of its regions: 4 KiB writes to a cold sparse disk, the same again when it is warm, and
//! writes that stay together as those of most guests do.
//!
//! `cargo run --release -p afterimage-agent --example write_intent [FOLDER] [GIB] [WRITES] [ROUNDS]`
//!
//! One queue, 32 writes in flight, cache mode writeback, rounds interleaved; each run has a new image. The appliance is a
//! thread that reads and acknowledges. Prints a table for docs/performance.md.
#![allow(clippy::disallowed_methods, reason = "it runs in the real world")]

mod sink;

use afterimage_agent::{
    Agent, AgentConfig, CacheMode, IntentConfig, Volume, VolumeConfig, VolumeState, unix_connector,
};
use afterimage_base::block::{Queue, Request, Submitted};
use afterimage_base::clock::{Clock, SystemClock};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

const DEPTH: usize = 32;
const REGIONS: [Option<u64>; 4] = [None, Some(256 << 10), Some(1 << 20), Some(4 << 20)];
const PATTERNS: [&str; 4] = ["cold", "warm", "local", "sequential"];

/// Numbers that look random and are the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) % n
    }
}

/// Offset of write `n`.
fn place(pattern: &str, dice: &mut Dice, n: u64, blocks: u64) -> u64 {
    let block = match pattern {
        // Nine of ten within 32 files of 4 MiB here and there, the rest a log from front to back.
        "local" if n.is_multiple_of(10) => blocks / 2 + n / 10,
        "local" => dice.below(32) * (blocks / 70) + dice.below(1024),
        "sequential" => n,
        _ => dice.below(blocks),
    };
    block % blocks * 4096
}

#[derive(Default, Clone)]
struct Figures {
    seconds: f64,
    p50: f64,
    p99: f64,
    p999: f64,
    syncs: u64,
    marked: u64,
}

/// Writes `writes` blocks and waits for them.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn run(queue: &mut dyn Queue, pattern: &str, writes: u64, size: u64) -> io::Result<Figures> {
    let data = vec![0x5a; 4096];
    let mut dice = Dice(0x1234_5678_9abc_def1);
    let mut since = [Instant::now(); DEPTH];
    let mut free: Vec<usize> = (0..DEPTH).collect();
    let (mut times, mut out) = (Vec::new(), Vec::new());
    let (start, mut n) = (Instant::now(), 0);
    while n < writes || free.len() < DEPTH {
        while n < writes
            && let Some(slot) = free.pop()
        {
            let offset = place(pattern, &mut dice, n, size / 4096);
            since[slot] = Instant::now();
            n += 1;
            if let Submitted::Done(c) = queue.submit(slot as u64, Request::Write { offset, data: &data, fua: false }) {
                c.result.map_err(io::Error::other)?;
                times.push(since[slot].elapsed());
                free.push(slot);
                if n.is_multiple_of(DEPTH as u64) {
                    queue.kick();
                }
            }
        }
        queue.kick();
        if free.len() < DEPTH
            && let Some(fd) = queue.wake_fd()
        {
            poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::NONE)?;
        }
        queue.reap(&mut out);
        for c in out.drain(..) {
            c.result.map_err(io::Error::other)?;
            let slot = usize::try_from(c.tag).unwrap_or(0);
            times.push(since[slot].elapsed());
            free.push(slot);
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    times.sort();
    let at = |share: usize| times[(times.len() * share / 1000).min(times.len() - 1)].as_secs_f64() * 1e6;
    Ok(Figures { seconds: seconds / writes as f64, p50: at(500), p99: at(990), p999: at(999), ..Figures::default() })
}

/// Whether the pages of a ring are still being brought into memory.
fn prefaulting() -> bool {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks.map(|t| t.path().join("comm")).any(|p| std::fs::read_to_string(p).is_ok_and(|c| c.starts_with("prefault")))
}

fn open(dir: &Path, image: &Path, region: Option<u64>) -> io::Result<(Agent, Arc<Volume>)> {
    let socket = dir.join("appliance.sock");
    let listener = UnixListener::bind(&socket)?;
    std::thread::spawn(move || {
        if let Some(s) = listener.incoming().flatten().next() {
            // The end of the session is the end of the measurement.
            let _ = sink::swallow(s);
        }
    });
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let config = AgentConfig { state_dir: dir.join("agent"), connector: unix_connector(&socket), clock };
    let intent = IntentConfig { on: region.is_some(), region: region.unwrap_or(1 << 20), ..IntentConfig::default() };
    let agent = Agent::new(config).with_intent(intent);
    let (path, cache) = (image.to_path_buf(), CacheMode::Writeback);
    let config = VolumeConfig {
        name: "v".into(),
        path,
        ring_bytes: 512 << 20,
        cache,
        foreign: afterimage_agent::ForeignWrite::Ignore,
        resize: false,
        adopt: None,
    };
    let volume = agent.add_volume(config).map_err(io::Error::other)?;
    while volume.status().state != VolumeState::Live {
        std::thread::sleep(Duration::from_millis(10));
    }
    while prefaulting() {
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok((agent, volume))
}

/// All patterns with one size of regions.
fn round(parent: &Path, region: Option<u64>, size: u64, writes: u64) -> io::Result<Vec<Figures>> {
    let mut all = Vec::new();
    for pattern in PATTERNS.into_iter().filter(|p| *p != "warm") {
        let dir = tempfile::tempdir_in(parent)?;
        let image = dir.path().join("disk");
        File::create(&image)?.set_len(size)?;
        let (agent, volume) = open(dir.path(), &image, region)?;
        let mut queue = volume.device().open_queue().map_err(io::Error::other)?;
        let again = if pattern == "cold" { 2 } else { 1 };
        for _ in 0..again {
            let before = volume.status().intent_syncs;
            let mut figures = run(&mut *queue, pattern, writes, size)?;
            let status = volume.status();
            (figures.syncs, figures.marked) = (status.intent_syncs - before, status.intent_bytes);
            all.push(figures);
        }
        drop(queue);
        // Not in order: the image goes anyway, and a stop in order would wait for it to be synced.
        drop((agent, volume));
    }
    Ok(all)
}

fn median<T: Copy>(runs: &[Vec<Figures>], pattern: usize, key: impl Fn(&Figures) -> T, less: fn(&T, &T) -> bool) -> T {
    let mut values: Vec<T> = runs.iter().map(|r| key(&r[pattern])).collect();
    values.sort_by(|a, b| if less(a, b) { std::cmp::Ordering::Less } else { std::cmp::Ordering::Greater });
    values[values.len() / 2]
}

fn main() -> io::Result<()> {
    let mut args = std::env::args().skip(1);
    let parent = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let mut number = |default| args.next().and_then(|a| a.parse::<u64>().ok()).unwrap_or(default);
    let (size, writes, rounds) = (number(10) << 30, number(20_000), number(6));
    let mut runs: Vec<Vec<Vec<Figures>>> = REGIONS.iter().map(|_| Vec::new()).collect();
    for n in 0..rounds {
        let mut order: Vec<_> = REGIONS.iter().zip(&mut runs).collect();
        if n % 2 == 1 {
            order.reverse();
        }
        for (region, runs) in order {
            runs.push(round(&parent, *region, size, writes)?);
            eprintln!("round {n}: {region:?}");
        }
    }
    for (i, pattern) in PATTERNS.iter().enumerate() {
        println!(
            "\n{pattern}\n\n| region, KiB | writes/s | p50 / p99 / p99.9 µs | syncs | marked after it, MiB |\n|---|---:|---:|---:|---:|"
        );
        for (region, runs) in REGIONS.iter().zip(&runs) {
            let float = |key: fn(&Figures) -> f64| median(runs, i, key, |a, b| a < b);
            let count = |key: fn(&Figures) -> u64| median(runs, i, key, |a, b| a < b);
            println!(
                "| {} | {:.0} | {:.1} / {:.0} / {:.0} | {} | {} |",
                region.map_or("no map".into(), |r| (r >> 10).to_string()),
                1.0 / float(|f| f.seconds),
                float(|f| f.p50),
                float(|f| f.p99),
                float(|f| f.p999),
                count(|f| f.syncs),
                count(|f| f.marked) >> 20
            );
        }
    }
    Ok(())
}
