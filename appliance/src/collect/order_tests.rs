//! Ordering: what it does to reading, what it leaves alone, and that nothing is written again and again.

use super::super::tests::*;
use super::*;
use crate::appliance::Appliance;
use crate::config::ApplianceConfig;
use crate::testing::*;
use afterimage_base::block::{BlockDevice, Request};
use afterimage_base::buf::AlignedBuf;
use afterimage_base::simple::call;
use afterimage_format::record::Kind;
use proptest::prelude::*;

const BLOCKS: u64 = 1024;

/// What write `seq` leaves in a block: its seq, and noise.
fn content(seq: u64) -> Vec<u8> {
    let mut bytes = noise(seq, 4096);
    bytes[..8].copy_from_slice(&seq.to_le_bytes());
    bytes
}

/// Block that write `seq` goes to.
fn target(seq: u64) -> u64 {
    (seq.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % BLOCKS
}

fn large(dir: &std::path::Path) -> ApplianceConfig {
    let mut config = config(dir);
    (config.segment_size, config.memory_runs) = (1 << 20, 1 << 10);
    config
}

/// Writes `seqs` one block each, in batches of 64, to what `to` says; `what` says the content by seq.
fn write(
    config: &ApplianceConfig,
    seqs: std::ops::RangeInclusive<u64>,
    to: impl Fn(u64) -> u64,
    what: impl Fn(u64) -> u64,
) {
    let mut hello = hello();
    hello.size = BLOCKS * 4096;
    let mut agent = Agent::connect(&config.listen, &hello).unwrap();
    let records: Vec<Write1> = seqs.map(|s| record(Kind::Write, s, to(s) * 4096, 4096, content(what(s)))).collect();
    for part in records.chunks(64) {
        agent.send(&bytes_of(part));
        agent.wait(part[part.len() - 1].record.seq).unwrap();
    }
}

/// Stops and starts, so that all segments are full.
fn again(appliance: Appliance, config: &ApplianceConfig) -> Appliance {
    appliance.stop();
    Appliance::start(config.clone()).unwrap()
}

fn whole(device: &std::sync::Arc<dyn BlockDevice>) -> Vec<u8> {
    let mut queue = std::sync::Arc::clone(device).open_queue().unwrap();
    let mut out = Vec::new();
    for offset in (0..BLOCKS * 4096).step_by(1 << 20) {
        let buf = AlignedBuf::zeroed(1 << 20);
        out.extend_from_slice(&call(&mut *queue, Request::Read { offset, buf }).unwrap().unwrap());
    }
    out
}

fn check(appliance: &Appliance, seq: u64) {
    let mut newest = vec![0; usize::try_from(BLOCKS).unwrap()];
    (1..=seq).for_each(|s| newest[usize::try_from(target(s)).unwrap()] = s);
    let image = whole(&appliance.open_at("disk", seq).unwrap());
    for (block, found) in newest.iter().zip(image.chunks(4096)) {
        let wanted = if *block == 0 { vec![0; 4096] } else { content(*block) };
        assert!(found == wanted, "a block that write {block} left, at seq {seq}");
    }
}

/// Reads and decodings that reading everything at a seq takes, with nothing in memory.
fn cost(config: &ApplianceConfig, seq: u64) -> (u64, u64) {
    let mut cold = config.clone();
    (cold.cache_bytes, cold.ahead_bytes) = (0, 0);
    let appliance = Appliance::start(cold).unwrap();
    let before = appliance.store().read;
    let mut queue = appliance.open_at("disk", seq).unwrap().open_queue().unwrap();
    for offset in (0..BLOCKS * 4096).step_by(128 << 10) {
        let buf = AlignedBuf::zeroed(128 << 10);
        call(&mut *queue, Request::Read { offset, buf }).unwrap().unwrap();
    }
    drop(queue);
    let after = appliance.store().read;
    appliance.stop();
    (after.reads - before.reads, after.frames - before.frames)
}

#[test]
fn random_writes_are_read_in_few_large_pieces_afterwards_and_written_again_once() {
    let dir = tempfile::tempdir().unwrap();
    let config = large(dir.path());
    let appliance = Appliance::start(config.clone()).unwrap();
    write(&config, 1..=4000, target, |s| s);
    appliance.stop();
    let before = [1000, 2500, 4000].map(|seq| cost(&config, seq));
    let appliance = Appliance::start(config.clone()).unwrap();
    let mut blocks = 0;
    while let Some(report) = appliance.order(2).unwrap() {
        blocks += report.blocks;
        [1, 700, 2500, 4000].into_iter().for_each(|seq| check(&appliance, seq));
    }
    // A few are in segments of which there is one only.
    assert!((3500..=4000).contains(&blocks), "{blocks} blocks were copied");
    let info = appliance.store();
    assert!(info.rewritten_bytes < 4000 * 4200 && info.unordered_bytes == Some(0), "{info:?}");
    assert!(appliance.order(2).unwrap().is_none());
    let appliance = again(appliance, &config);
    assert!(appliance.order(2).unwrap().is_none(), "nor after a start");
    for _ in 0..3 {
        appliance.collect(0).unwrap();
    }
    assert!(stored(&appliance) < 4000 * 4200 * 3 / 2, "the old segments are gone");
    [1, 700, 2500, 4000].into_iter().for_each(|seq| check(&appliance, seq));
    appliance.stop();
    for (seq, before) in [1000, 2500, 4000].into_iter().zip(before) {
        let after = cost(&config, seq);
        assert!(after.0 * 2 < before.0 && after.1 * 2 < before.1, "@{seq}: {before:?} before, {after:?} after");
    }
    let report = crate::check::check(&config.dir, Some(&config.key)).unwrap();
    assert!(report.damages.is_empty(), "{:?}", report.damages);
}

#[test]
fn what_lies_in_order_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let config = large(dir.path());
    let appliance = Appliance::start(config.clone()).unwrap();
    write(&config, 1..=1000, |s| s, |s| s);
    let appliance = again(appliance, &config);
    while let Some(report) = appliance.order(1).unwrap() {
        assert_eq!(report.blocks, 0);
    }
    assert_eq!(appliance.store().rewritten_bytes, 0);
}

#[test]
fn what_is_shared_stays_shared_and_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let config = large(dir.path());
    let appliance = Appliance::start(config.clone()).unwrap();
    // Every content lies in two blocks.
    write(&config, 1..=1000, target, |s| s / 2);
    let appliance = again(appliance, &config);
    let (before, mut blocks) = (stored(&appliance), 0);
    let image = whole(&appliance.open_at("disk", 1000).unwrap());
    while let Some(report) = appliance.order(1).unwrap() {
        blocks += report.blocks;
    }
    assert!((500..=501).contains(&blocks), "{blocks} blocks copied for 501 contents");
    for _ in 0..3 {
        appliance.collect(0).unwrap();
    }
    assert!(stored(&appliance) < before + before / 8, "each is stored once");
    let ingested = appliance.store().ingested_bytes;
    write(&config, 1001..=1500, target, |s| s - 1000);
    let more = appliance.store().ingested_bytes - ingested;
    assert!(more < 500 * 4096 / 4, "{more} bytes for what is known: the index follows");
    assert!(whole(&appliance.open_at("disk", 1000).unwrap()) == image);
}

#[test]
fn an_open_export_reads_what_it_showed_and_keeps_what_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    let config = large(dir.path());
    let appliance = Appliance::start(config.clone()).unwrap();
    write(&config, 1..=1500, target, |s| s);
    let appliance = again(appliance, &config);
    let (export, image) = {
        let export = appliance.open_at("disk", 900).unwrap();
        let image = whole(&export);
        (export, image)
    };
    while appliance.order(1).unwrap().is_some() {}
    for _ in 0..3 {
        appliance.collect(0).unwrap();
    }
    assert!(whole(&export) == image);
    let with_export = stored(&appliance);
    drop(export);
    for _ in 0..3 {
        appliance.collect(0).unwrap();
    }
    assert!(stored(&appliance) < with_export, "what only the export needed goes with it");
    assert!(whole(&appliance.open_at("disk", 900).unwrap()) == image);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    /// While blocks are copied, a round of collection beside it must leave both alone: see the same with the rule broken.
    #[test]
    fn collection_beside_it_takes_nothing_away(records in stream(), at in proptest::collection::btree_set(0usize..30, 1..6)) {
        let dir = tempfile::tempdir().unwrap();
        let config = small(dir.path());
        let images = images(&records);
        let appliance = Appliance::start(config.clone()).unwrap();
        let mut agent = Agent::connect(&config.listen, &hello()).unwrap();
        for part in records.chunks(7) {
            agent.send(&bytes_of(part));
            prop_assert_eq!(agent.wait(part[part.len() - 1].record.seq), Ok(()));
        }
        drop(agent);
        let appliance = again(appliance, &config);
        // Seen full already.
        appliance.collect(0).unwrap();
        let steps = std::cell::Cell::new(0);
        loop {
            let hook = |step| {
                let n = steps.replace(steps.get() + 1);
                // Copying holds no lock; from condemning on, a round waits.
                if step == Step::Copy && at.contains(&n) {
                    appliance.collect(0).unwrap();
                    appliance.collect(0).unwrap();
                    verify(&appliance, &images, &records, records.len());
                }
                true
            };
            let how = OrderConfig { rate: 0, segments: 1 };
            let stop = AtomicBool::new(false);
            if appliance.registry.order(&how, &stop, &hook).unwrap().is_none() {
                break;
            }
        }
        verify(&appliance, &images, &records, records.len());
    }
}
