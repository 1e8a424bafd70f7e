//! Memory of the appliance for what it protects: `memory [GIB] [MILLIONS] [VOLUMES]`, by default 1024, 10 and 4.
//!
//! The metadata is simulated (places of blocks that nobody stored), and everything that keeps it in memory is real: a dedupe index with
//! its default size, filled until every page of it has been touched; the page cache of layers; and for each volume a history of an initial
//! sync of its share of the disks and then of its share of the versions, at random places, with flushes and merges as in service.
//! At the end every history is read at random, so that the caches are full. Frames are not simulated: their cache, and what a
//! session has under way, are named as they are bounded.

use afterimage_appliance::ApplianceConfig;
use afterimage_appliance::history::{HistoryConfig, Keep, LayerKeys, PageCache, Run, VolumeHistory};
use afterimage_appliance::reduce::index::DedupeIndex;
use afterimage_format::place::Place;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Neighbouring blocks that lie in one frame.
const RUN: u64 = 16;
/// Runs appended at a time.
const BATCH: u64 = 4096;

struct Keys;

impl LayerKeys for Keys {
    fn layer_key(&self, _: &[u8; 16]) -> [u8; 32] {
        [5; 32]
    }
}

/// SplitMix64: a fixed, well-spread sequence.
const fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The place of the `n`-th frame: 2000 of them in a segment.
fn place(n: u64) -> Result<Place> {
    Ok(Place::new(u32::try_from(1 + n / 2000)?, n % 2000 * 30_000 / 16 * 16, 28_000, 0)?)
}

/// MiB of memory that the process has now, and has had at most.
fn memory() -> [u64; 2] {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ["VmRSS:", "VmHWM:"].map(|name| {
        let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) / 1024
    })
}

fn say(what: &str) {
    let [now, most] = memory();
    println!("| {what} | {now} | {most} |");
}

/// Appends writes of `count` blocks each, to the blocks that `block` says, and does what is due.
fn append(
    history: &VolumeHistory,
    (from, writes, count): (u64, u64, u64),
    block: impl Fn(u64) -> u64,
    frames: &mut u64,
) -> Result<()> {
    let stop = AtomicBool::new(false);
    for start in (from..from + writes).step_by(usize::try_from(BATCH)?) {
        let seqs = start..(start + BATCH).min(from + writes);
        let records: Vec<(u64, u64)> = seqs.clone().map(|s| (s, s * 100_000)).collect();
        let mut runs = Vec::with_capacity(records.len());
        for seq in seqs {
            *frames += 1;
            runs.push(Run { block: block(seq), count, seq, place: place(*frames)? });
        }
        history.append(&records, &runs)?;
        if history.wants_flush() {
            if let Some(edit) = history.flush()? {
                history.applied(edit);
            }
            while let Some(edit) = history.merge_step(&Keep::all(), &stop)? {
                history.applied(edit);
            }
        }
    }
    Ok(())
}

fn main() -> Result<()> {
    let numbers: Vec<u64> = std::env::args().skip(1).map(|a| a.parse()).collect::<std::result::Result<_, _>>()?;
    let number = |i: usize, default| numbers.get(i).copied().unwrap_or(default);
    let (gib, millions, volumes) = (number(0, 1024), number(1, 10), number(2, 4).max(1));
    let dir = match std::env::var_os("DIR") {
        Some(d) => tempfile::tempdir_in(d)?,
        None => tempfile::tempdir()?,
    };
    let config = ApplianceConfig::new(dir.path().join("vault"), dir.path().join("sock"));
    println!(
        "{gib} GiB, {millions} million versions, {volumes} volumes\n\n| after | MiB now | at most |\n|---|---:|---:|"
    );
    say("the start");
    let index = DedupeIndex::new(config.dedupe_bytes)?;
    for n in 0..config.dedupe_bytes as u64 / 16 {
        let mut print = [0; 16];
        print[..8].copy_from_slice(&mix(n).to_le_bytes());
        print[8..].copy_from_slice(&mix(!n).to_le_bytes());
        index.insert(&print, place(n / RUN)?);
    }
    say(&format!("filling the dedupe index, {} MiB", config.dedupe_bytes >> 20));
    let cache = PageCache::new(config.layer_cache_bytes);
    let blocks = (gib << 18) / volumes;
    let (mut frames, mut histories) = (0, Vec::new());
    for volume in 0..volumes {
        let folder = dir.path().join(volume.to_string());
        std::fs::create_dir(&folder)?;
        let history_config =
            HistoryConfig { memory_runs: config.memory_runs, ..HistoryConfig::new(Arc::clone(&cache), Arc::new(Keys)) };
        let id = [u8::try_from(volume % 255)? + 1; 16];
        let history = VolumeHistory::open(&folder, id, &[], history_config)?;
        append(&history, (1, blocks / RUN, RUN), |seq| (seq - 1) * RUN, &mut frames)?;
        histories.push(history);
    }
    say("the initial syncs");
    let writes = millions * 1_000_000 / volumes;
    for history in &histories {
        append(history, (blocks / RUN + 1, writes, 1), |seq| mix(seq) % blocks, &mut frames)?;
    }
    say("the versions");
    let mut found = 0;
    for history in &histories {
        let view = history.view(blocks / RUN + writes)?;
        for n in 0..200_000 / volumes {
            found += u64::from(!view.lookup(mix(n) % blocks)?.is_zero());
        }
    }
    say("200 000 reads at random");
    let bytes = |path: &std::path::Path| -> u64 {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum()
    };
    let stored: u64 = (0..volumes).map(|v| bytes(&dir.path().join(v.to_string()))).sum();
    let layers: usize = histories.iter().map(|h| h.layers().len()).sum();
    println!("\n{layers} layers, {} MiB of them on the disk; {found} blocks found.", stored >> 20);
    println!(
        "Not in it: {} MiB of decompressed frames at most, and {} MiB of data under way for each session at most.",
        config.cache_bytes >> 20,
        config.credit >> 20
    );
    Ok(())
}
