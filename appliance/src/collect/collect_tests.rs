//! Collection beside writes, killed at any step: what is kept reads as it did, and what is not makes room.

use super::order::OrderConfig;
use super::*;
use crate::appliance::Appliance;
use crate::config::ApplianceConfig;
use crate::testing::*;
use afterimage_base::simple::call;
use afterimage_format::record::{FLAG_AUTO, Kind};
use proptest::prelude::*;
use std::cell::Cell;
use std::path::Path;

/// What `record` of the tests' kit gives as time.
fn time_of(seq: u64) -> u64 {
    1_700_000_000 + seq * 1000
}

/// Bytes that do not compress and are not found twice.
pub(super) fn noise(seed: u64, len: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}

pub(super) fn small(dir: &Path) -> ApplianceConfig {
    let mut config = config(dir);
    config.segment_size = 64 << 10;
    config.memory_runs = 16;
    config.window = std::time::Duration::from_nanos(1);
    config.retention = Policy { hourly: 1, ..Policy::window(0) };
    config
}

fn names(dir: &Path) -> BTreeSet<String> {
    std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

/// (offset, length, kind): a point now and then, zeroes, unaligned writes.
pub(super) fn stream() -> impl Strategy<Value = Vec<Write1>> {
    let one = (0u64..SIZE, 1u64..20_000, 0u8..16);
    proptest::collection::vec(one, 30..70).prop_map(|ops| {
        let one = |(seq, (offset, len, kind)): (u64, (u64, u64, u8))| {
            let len = len.min(SIZE - offset);
            match kind {
                0 => record(Kind::Point, seq, 0, 1, vec![b'u']),
                1 => {
                    let mut w = record(Kind::Point, seq, 0, 1, vec![b'a']);
                    w.record.flags = FLAG_AUTO;
                    w
                }
                2..4 => record(Kind::Zero, seq, offset, len, Vec::new()),
                _ => record(Kind::Write, seq, offset, len, noise(seq, len)),
            }
        };
        (1u64..).zip(ops).map(one).collect()
    })
}

fn first_seq(appliance: &Appliance) -> u64 {
    appliance.volumes().first().map_or(0, |v| v.first_seq)
}

pub(super) fn verify(appliance: &Appliance, images: &[Vec<u8>], records: &[Write1], done: usize) {
    let first = usize::try_from(first_seq(appliance)).unwrap();
    // Whatever is shown can be read, points that the policy keeps too.
    for point in appliance.points("disk").unwrap_or_default() {
        if appliance.check_seq("disk", point.seq).is_ok() {
            let image = &images[usize::try_from(point.seq).unwrap()];
            assert!(read_at(appliance, point.seq) == *image, "image at the point @{}", point.seq);
        }
    }
    for (seq, image) in images.iter().enumerate().take(done + 1).skip(1) {
        let user = records[seq - 1].record.kind == Kind::Point && records[seq - 1].record.flags == 0;
        if seq >= first || user {
            assert!(read_at(appliance, seq as u64) == *image, "image at kept seq {seq}");
        }
    }
}

pub(super) fn nothing_unnamed(appliance: &Appliance) {
    let vault = &appliance.shared.vault;
    let differs = || {
        let (segments, layers): (BTreeSet<String>, BTreeSet<String>) = vault.read(|m| {
            let layers = m.volumes.iter().flat_map(|v| &v.layers);
            (m.segments.iter().map(|s| file_name(s.number)).collect(), layers.map(|l| l.file_name()).collect())
        });
        names(&vault.segments_dir()) != segments || names(&vault.layers_dir()) != layers
    };
    // A flush may be under way, whose layer is not named yet.
    for _ in 0..1000 {
        if !differs() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("a file that nothing names");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]

    /// Rounds of collection with a window that moves on, and of ordering, killed at a random step, between batches of writes.
    #[test]
    fn whatever_is_killed_what_is_kept_reads_as_it_did(
        records in stream(), kills in proptest::collection::vec((1usize..25, 0u32..60, any::<bool>(), any::<bool>()), 3..12),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let config = small(dir.path());
        let images = images(&records);
        let mut appliance = Appliance::start(config.clone()).unwrap();
        let (mut done, mut kills) = (0, kills.into_iter().cycle());
        while done < records.len() {
            let (count, kill_at, restart, order) = kills.next().unwrap();
            let next = records.len().min(done + count);
            let mut agent = Agent::connect(&config.listen, &hello()).unwrap();
            prop_assert_eq!(agent.welcome.durable, done as u64);
            agent.send(&bytes_of(&records[done..next]));
            prop_assert_eq!(agent.wait(next as u64), Ok(()));
            done = next;
            if restart {
                // Ends the open segment, so that there is something to collect.
                appliance.stop();
                appliance = Appliance::start(config.clone()).unwrap();
            }
            let left = Cell::new(kill_at);
            let now = time_of(done as u64 * 2 / 3) + 1;
            let mut killed = false;
            for ordering in [order, false, true] {
                let hook = |_| left.replace(left.get().saturating_sub(1)) > 0;
                let ran = if ordering && !killed {
                    let how = OrderConfig { rate: 0, segments: 1 };
                    appliance.registry.order(&how, &AtomicBool::new(false), &hook).map(drop)
                } else {
                    Ok(())
                };
                match ran.and_then(|()| appliance.registry.collect(crate::collect::Now::At(now), &AtomicBool::new(false), &hook).map(drop)) {
                    Ok(_) => {}
                    Err(CollectError::Stopped) => killed = true,
                    Err(e) => panic!("{e}"),
                }
            }
            verify(&appliance, &images, &records, done);
            if killed {
                drop(appliance);
                appliance = Appliance::start(config.clone()).unwrap();
                nothing_unnamed(&appliance);
                verify(&appliance, &images, &records, done);
            }
        }
        appliance.stop();
        let appliance = Appliance::start(config.clone()).unwrap();
        while appliance.order(1).unwrap().is_some() {}
        verify(&appliance, &images, &records, done);
        for _ in 0..4 {
            appliance.collect(u64::MAX).unwrap();
        }
        verify(&appliance, &images, &records, done);
        nothing_unnamed(&appliance);
        drop(appliance);
        let report = crate::check::check(&config.dir, Some(&config.key)).unwrap();
        prop_assert!(report.damages.is_empty(), "{:?}", report.damages);
    }
}

/// Overwrites a small disk many times.
pub(super) fn churn(appliance: &Appliance, config: &ApplianceConfig, from: u64, to: u64) -> Vec<Write1> {
    let write = |seq: u64| record(Kind::Write, seq, (seq * 7 % 24) * 4096, 4096, noise(seq, 4096));
    let records: Vec<Write1> = (from..=to).map(write).collect();
    let mut agent = Agent::connect(&config.listen, &hello()).unwrap();
    for part in records.chunks(8) {
        agent.send(&bytes_of(part));
        agent.wait(part[part.len() - 1].record.seq).unwrap();
    }
    drop(agent);
    let _ = appliance;
    records
}

pub(super) fn stored(appliance: &Appliance) -> u64 {
    appliance.shared.vault.read(|m| m.segments.iter().map(|s| s.length).sum())
}

#[test]
fn room_of_what_the_window_lets_go_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let config = small(dir.path());
    let appliance = Appliance::start(config.clone()).unwrap();
    let records = churn(&appliance, &config, 1, 600);
    appliance.stop();
    let appliance = Appliance::start(config).unwrap();
    let before = stored(&appliance);
    let mut copied = 0;
    for _ in 0..6 {
        copied += appliance.collect(u64::MAX).unwrap().copied_blocks;
    }
    let after = stored(&appliance);
    // 24 blocks are live; a segment may be half garbage, and the ends of segments count.
    assert!(before > 600 * 4096 && after < 24 * 4096 * 3 + (64 << 10), "{before} bytes before, {after} after");
    assert!(copied < 200, "{copied} blocks copied for 24");
    let last = images(&records).pop().unwrap();
    assert!(read_at(&appliance, 600) == last);
    nothing_unnamed(&appliance);
}

#[test]
fn an_open_export_reads_what_it_showed_whatever_is_collected() {
    let dir = tempfile::tempdir().unwrap();
    let config = small(dir.path());
    let appliance = Appliance::start(config.clone()).unwrap();
    let mut records = churn(&appliance, &config, 1, 200);
    let exports: Vec<_> = [50, 120, 199].map(|seq| (seq, appliance.open_at("disk", seq).unwrap())).into();
    records.extend(churn(&appliance, &config, 201, 600));
    for volume in appliance.registry.all() {
        volume.leave_segment(&appliance.shared);
    }
    for _ in 0..6 {
        appliance.collect(u64::MAX).unwrap();
    }
    assert!(appliance.open_at("disk", 50).is_err(), "it is behind the window for others");
    let images = images(&records);
    let with_exports = stored(&appliance);
    for (seq, device) in exports {
        let size = usize::try_from(SIZE).unwrap();
        let buf = afterimage_base::buf::AlignedBuf::zeroed(size);
        let mut queue = device.open_queue().unwrap();
        let read = call(&mut *queue, afterimage_base::block::Request::Read { offset: 0, buf }).unwrap().unwrap();
        assert!(read[..] == images[usize::try_from(seq).unwrap()][..], "the export at seq {seq}");
    }
    for _ in 0..3 {
        appliance.collect(u64::MAX).unwrap();
    }
    assert!(stored(&appliance) < with_exports, "what only the exports needed goes with them");
}
