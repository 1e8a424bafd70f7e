//! Many versions of single blocks over a large sparse volume: the number of layers stays bounded, and what is read is
//! right. The large one is run by hand and prints figures:
//! `cargo test --release -p afterimage-appliance ten_million -- --ignored --nocapture`.

use super::model_tests::config;
use super::*;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// Blocks of a 1 TiB volume.
const BLOCKS: u64 = 1 << 28;

/// SplitMix64: a fixed, well-spread sequence.
fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// One write in four goes to a block that many writes hit.
fn block_of(seq: u64) -> u64 {
    if seq.is_multiple_of(4) { mix(seq) % 1000 } else { mix(seq) % BLOCKS }
}

fn place_of(seq: u64) -> Place {
    let (segment, at) = (1 + seq / 20_000, seq % 20_000);
    Place::new(u32::try_from(segment).unwrap(), (at / 16) * 50_000 / 16 * 16, 40_000, u32::try_from(at % 16).unwrap())
        .unwrap()
}

fn fill(history: &Arc<VolumeHistory>, from: u64, to: u64) {
    let stop = AtomicBool::new(false);
    for start in (from..=to).step_by(256) {
        let seqs = start..(start + 256).min(to + 1);
        let records: Vec<(u64, u64)> = seqs.clone().map(|s| (s, 1_700_000_000_000_000_000 + s * 123_457)).collect();
        let run = |seq| Run { block: block_of(seq), count: 1, seq, place: place_of(seq) };
        let runs: Vec<Run> = seqs.map(run).collect();
        history.append(&records, &runs).unwrap();
        if history.wants_flush() {
            let edit = history.flush().unwrap().unwrap();
            history.applied(edit);
            while let Some(edit) = history.merge_step(&Keep::all(), &stop).unwrap() {
                history.applied(edit);
            }
        }
    }
}

#[test]
fn the_number_of_layers_stays_bounded_and_every_version_is_found() {
    const COUNT: u64 = 300_000;
    let dir = tempfile::tempdir().unwrap();
    let config = HistoryConfig { memory_runs: 8 << 10, fan_out: 4, ..config() };
    let history = VolumeHistory::open(dir.path(), [3; 16], &[], config).unwrap();
    let mut model: HashMap<u64, Vec<u64>> = HashMap::new();
    for part in 0..10 {
        let (from, to) = (part * COUNT / 10 + 1, (part + 1) * COUNT / 10);
        fill(&history, from, to);
        (from..=to).for_each(|s| model.entry(block_of(s)).or_default().push(s));
        let layers = history.layers().len();
        assert!(layers <= 16, "{layers} layers at {to} versions");
    }
    for n in 0..3000 {
        let (block, seq) = (block_of(1 + mix(n) % COUNT), 1 + mix(n + 1_000_000) % COUNT);
        let view = history.view(seq).unwrap();
        let newest = model[&block].iter().rev().find(|s| **s <= seq);
        assert_eq!(view.lookup(block).unwrap(), newest.map_or(Place::ZERO, |s| place_of(*s)));
    }
}

#[test]
#[ignore = "takes a minute; prints figures for docs/performance.md"]
fn ten_million_versions() {
    const COUNT: u64 = 10_000_000;
    let dir = tempfile::tempdir().unwrap();
    let config = HistoryConfig { memory_runs: 256 << 10, fan_out: 4, cache: PageCache::new(64 << 20), ..config() };
    let cache = Arc::clone(&config.cache);
    let history = VolumeHistory::open(dir.path(), [3; 16], &[], config.clone()).unwrap();
    let start = Instant::now();
    fill(&history, 1, COUNT);
    println!("{COUNT} versions appended, flushed, merged: {:?}", start.elapsed());
    let layers = history.layers();
    let bytes: u64 = layers.iter().map(|l| l.meta().file_len).sum();
    println!("{} layers, {:.2} bytes a version with its time", layers.len(), to_f64(bytes) / to_f64(COUNT));
    let fences: usize = layers.iter().map(|l| l.fences().len()).sum();
    println!("{fences} fences in memory");
    if let Some(edit) = history.flush().unwrap() {
        history.applied(edit);
    }
    let metas: Vec<_> = history.layers().iter().map(|l| l.meta().clone()).collect();
    let start = Instant::now();
    let history = VolumeHistory::open(dir.path(), [3; 16], &metas, config).unwrap();
    println!("history opened: {:?}", start.elapsed());
    for unflushed in [0, 100_000] {
        let newest = history.newest_seq();
        for seq in newest + 1..=newest + unflushed {
            let run = Run { block: block_of(seq), count: 1, seq, place: place_of(seq) };
            history.append(&[(seq, seq)], &[run]).unwrap();
        }
        let start = Instant::now();
        let view = history.view(newest + unflushed).unwrap();
        println!("view opened with {unflushed} unflushed: {:?}, {} layers", start.elapsed(), view.layers().len());
    }
    let view = history.view(COUNT / 2).unwrap();
    for (what, n) in [("cold", 20_000), ("warm", 200_000)] {
        let start = Instant::now();
        let found = (0..n).filter(|n| !view.lookup(block_of(1 + mix(*n) % COUNT)).unwrap().is_zero()).count();
        let each = start.elapsed().as_secs_f64() * 1e6 / to_f64(n);
        println!("lookup, {what}: {each:.2} us, {found} of {n} found, cache {} KiB", cache.bytes() >> 10);
    }
    let start = Instant::now();
    let mut cursor = view.cursor(0, BLOCKS).unwrap();
    let mut runs = 0;
    while cursor.next_run().unwrap().is_some() {
        runs += 1;
    }
    println!("walk through the whole volume: {:?}, {runs} runs", start.elapsed());
    let (a, b) = (history.view(COUNT - 1000).unwrap(), history.view(COUNT).unwrap());
    let start = Instant::now();
    let mut extents = 0;
    diff::changed(&a, &b, (a.seq().min(b.seq()), BLOCKS), |_, _| {
        extents += 1;
        true
    })
    .unwrap();
    println!("diff of the last 1000 writes: {:?}, {extents} extents", start.elapsed());
    let start = Instant::now();
    let found = history.record_at_time(1_700_000_000_000_000_000 + 5_000_000 * 123_457).unwrap();
    println!("time to seq: {:?}, {found:?}", start.elapsed());
}

fn to_f64(n: u64) -> f64 {
    u32::try_from(n / 1024).map_or(f64::NAN, f64::from) * 1024.0 + f64::from(u32::try_from(n % 1024).unwrap())
}
