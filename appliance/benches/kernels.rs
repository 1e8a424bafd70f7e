//! What the appliance does with a block, each step alone: zero test, hash, compress, seal, opening a frame, dedupe look-up, layer look-up,
//! merge and relocation (what compaction of history and collection do to layers).
//!
//! Blocks are made of text and noise, and compress to about a half.

#![expect(missing_docs, reason = "criterion's macros make undocumented items")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot set up has nothing else to do")]

use afterimage_appliance::KeySource;
use afterimage_appliance::history::compact::Relocation;
use afterimage_appliance::history::{HistoryConfig, Keep, LayerKeys, PageCache, Run, VolumeHistory};
use afterimage_appliance::keys::{SegmentKey, VaultKey};
use afterimage_appliance::reduce::FRAME_BLOCKS;
use afterimage_appliance::reduce::block::{Fingerprinter, is_zero};
use afterimage_appliance::reduce::frame::{Opener, Scratch};
use afterimage_appliance::reduce::index::DedupeIndex;
use afterimage_format::place::Place;
use afterimage_format::segment::{Fingerprint, SegmentHeader};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use zeroize::Zeroizing;

const BLOCK: usize = 4096;
/// Blocks worked on in a round: more than the caches hold.
const BLOCKS: usize = 16 << 10;

/// SplitMix64: a fixed, well-spread sequence.
fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn data() -> Vec<u8> {
    let line = |n: usize| {
        let text = format!("{n:>8} {:016x} error: no such file or directory, tried again\n", mix(n as u64));
        text.into_bytes()
    };
    (0..).flat_map(line).take(BLOCKS * BLOCK).collect()
}

fn segment_key() -> SegmentKey {
    let dir = tempfile::tempdir().unwrap();
    let (key, _) = VaultKey::create(&KeySource::File(dir.path().join("key"))).unwrap();
    key.segment(SegmentHeader { vault: [1; 16], number: 1, salt: [2; 32], volume: [0; 16] })
}

fn blocks(c: &mut Criterion) {
    let data = data();
    let mut group = c.benchmark_group("blocks");
    group.sample_size(20).throughput(Throughput::Bytes(data.len() as u64));
    let zeroes = vec![0; data.len()];
    group.bench_function("zero test of zeroes", |b| {
        b.iter(|| zeroes.chunks_exact(BLOCK).filter(|b| is_zero(b)).count());
    });
    let printer = Fingerprinter::new(Zeroizing::new([1; 32]));
    group.bench_function("hash", |b| {
        b.iter(|| data.chunks_exact(BLOCK).fold(0u8, |a, b| a ^ printer.of(b)[0]));
    });
    let (key, mut scratch, mut out) = (segment_key(), Scratch::new().unwrap(), Vec::new());
    // The benchmark seals with one nonce again and again; nothing of it is kept.
    group.bench_function("compress and seal frames", |b| {
        b.iter(|| {
            for frame in data.chunks_exact(FRAME_BLOCKS * BLOCK) {
                black_box(scratch.data(&key, 1, frame.chunks_exact(BLOCK), &mut out).unwrap());
            }
        });
    });
    group.bench_function("seal unreduced frames", |b| {
        b.iter(|| {
            for frame in data.chunks_exact(FRAME_BLOCKS * BLOCK) {
                black_box(Scratch::unreduced(&key, 1, frame.chunks_exact(BLOCK), &mut out).unwrap());
            }
        });
    });
    let mut opener = Opener::new().unwrap();
    let mut frame = Vec::new();
    scratch.data(&key, 1, data.chunks_exact(BLOCK).take(FRAME_BLOCKS), &mut frame).unwrap();
    group.throughput(Throughput::Bytes((FRAME_BLOCKS * BLOCK) as u64));
    group.bench_function("open a frame", |b| {
        b.iter_batched_ref(|| frame.clone(), |f| opener.open(&key, f, &mut out).unwrap(), BatchSize::SmallInput);
    });
    group.finish();
}

fn print(n: u64) -> Fingerprint {
    let (a, b) = (mix(n).to_le_bytes(), mix(n ^ 0xffff_0000_0000).to_le_bytes());
    let mut out = [0; 16];
    out[..8].copy_from_slice(&a);
    out[8..].copy_from_slice(&b);
    out
}

fn place(n: u64) -> Place {
    let (segment, at) = (1 + n / 20_000, n % 20_000);
    let slot = u32::try_from(at % 16).unwrap();
    Place::new(u32::try_from(segment).unwrap(), (at / 16) * 50_000 / 16 * 16, 40_000, slot).unwrap()
}

fn dedupe(c: &mut Criterion) {
    let index = DedupeIndex::new(128 << 20).unwrap();
    let count = 4 << 20;
    (0..count).for_each(|n| index.insert(&print(n), place(n)));
    let mut n = 0;
    let mut group = c.benchmark_group("dedupe index of 128 MiB");
    group.bench_function("look-up, known", |b| {
        b.iter(|| {
            n += 1;
            black_box(index.lookup(&print(mix(n) % count)))
        });
    });
    group.bench_function("look-up, new", |b| {
        b.iter(|| {
            n += 1;
            black_box(index.lookup(&print(count + n)))
        });
    });
    group.bench_function("insert", |b| {
        b.iter(|| {
            n += 1;
            index.insert(&print(count + n), place(n));
        });
    });
    group.finish();
}

struct Keys;

impl LayerKeys for Keys {
    fn layer_key(&self, _: &[u8; 16]) -> [u8; 32] {
        [5; 32]
    }
}

/// A history of single blocks at random places, in so many layers of as many versions each, none of them merged.
fn history(dir: &std::path::Path, layers: u64, versions: u64) -> Arc<VolumeHistory> {
    let config = HistoryConfig::new(PageCache::new(64 << 20), Arc::new(Keys));
    let history = VolumeHistory::open(dir, [3; 16], &[], config).unwrap();
    for layer in 0..layers {
        let seqs = layer * versions + 1..=(layer + 1) * versions;
        let records: Vec<(u64, u64)> = seqs.clone().map(|s| (s, s * 1000)).collect();
        let run = |seq| Run { block: mix(seq) % (1 << 22), count: 1, seq, place: place(seq) };
        history.append(&records, &seqs.map(run).collect::<Vec<_>>()).unwrap();
        let edit = history.flush().unwrap().unwrap();
        history.applied(edit);
    }
    history
}

fn layers(c: &mut Criterion) {
    let versions = 100_000;
    let mut group = c.benchmark_group("layers");
    group.sample_size(10);
    let dir = tempfile::tempdir().unwrap();
    let four = history(dir.path(), 4, versions);
    let view = four.view(4 * versions).unwrap();
    let mut n = 0;
    group.bench_function("look-up in 4 layers", |b| {
        b.iter(|| {
            n += 1;
            black_box(view.lookup(mix(n) % (1 << 22)).unwrap())
        });
    });
    let stop = AtomicBool::new(false);
    group.throughput(Throughput::Elements(4 * versions));
    // The edit is dropped, not applied: every round merges the same layers.
    group.bench_function("merge 4 layers", |b| {
        b.iter(|| drop(four.merge_step(&Keep::all(), &stop).unwrap().unwrap()));
    });
    let moved = || Relocation::new((1..20_000).map(|n| (place(n), place(n + 10_000_000))).collect());
    group.bench_function("relocate a segment in 4 layers", |b| {
        b.iter_batched(moved, |m| drop(four.relocate(&m, &Keep::all(), &stop).unwrap()), BatchSize::LargeInput);
    });
    group.finish();
}

criterion_group!(all, blocks, dedupe, layers);
criterion_main!(all);
