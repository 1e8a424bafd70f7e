//! Frames that land unreduced: the same content, whatever is killed when, and small again when it is quiet.

use super::*;
use crate::appliance::Appliance;
use crate::collect::{CollectError, Now, Step};
use crate::config::ApplianceConfig;
use crate::store::scan::Scan;
use crate::testing::*;
use afterimage_format::record::Kind;
use afterimage_format::segment::{Codec, FrameKind};
use std::cell::Cell;
use std::path::Path;

/// Text: no two blocks alike, and each an eighth as long when compressed.
fn text(seq: u64, len: usize) -> Vec<u8> {
    let line = |n: u64| format!("write {seq}, line {n}: the quick brown fox jumps over the lazy dog again\n");
    (0..).flat_map(|n| line(n).into_bytes()).take(len).collect()
}

/// Writes over the whole volume, some of them not aligned, so that blocks are completed from unreduced frames.
fn records() -> Vec<Write1> {
    let one = |seq: u64| {
        let grid = if seq.is_multiple_of(3) { 1 } else { 4096 };
        let offset = (seq * 7919 * 512) % (SIZE - 12_000) / grid * grid;
        record(Kind::Write, seq, offset, 12_000, text(seq, 12_000))
    };
    (1..=60).map(one).collect()
}

fn small(dir: &Path) -> ApplianceConfig {
    let mut config = config(dir);
    config.segment_size = 128 << 10;
    config
}

/// Data frames of all segments: how many are as the blocks came, and how many bytes all have.
fn frames(appliance: &Appliance) -> (usize, u64) {
    let (dir, metas) = (appliance.shared.vault.segments_dir(), appliance.shared.vault.read(|m| m.segments.clone()));
    let (mut unreduced, mut bytes) = (0, 0);
    for meta in metas {
        let mut scan = Scan::open(&dir.join(crate::store::file_name(meta.number)), meta.number, u64::MAX).unwrap();
        while let Ok(Some(found)) = scan.next_unread() {
            if found.header.kind == FrameKind::Data {
                unreduced += usize::from(found.header.codec == Codec::None);
                bytes += found.header.frame_len();
            }
        }
    }
    (unreduced, bytes)
}

fn verify(appliance: &Appliance, images: &[Vec<u8>]) {
    for (seq, image) in images.iter().enumerate().skip(1) {
        assert!(read_at(appliance, seq as u64) == *image, "image at seq {seq}");
    }
}

/// Sends everything with a ring as full as this, and ends the open segment.
fn landed(config: &ApplianceConfig, records: &[Write1], sixteenths: u64) -> Appliance {
    let appliance = Appliance::start(config.clone()).unwrap();
    let mut agent = Agent::connect(&config.listen, &hello()).unwrap();
    for part in records.chunks(7) {
        agent.fill(sixteenths);
        agent.send(&bytes_of(part));
        assert_eq!(agent.wait(part.last().unwrap().record.seq), Ok(()));
    }
    appliance.stop();
    Appliance::start(config.clone()).unwrap()
}

fn round(appliance: &Appliance, hook: &dyn Fn(Step) -> bool) -> Result<(), CollectError> {
    appliance.registry.collect(Now::At(0), &Default::default(), hook).map(drop)
}

#[test]
fn a_full_ring_lands_unreduced_and_what_landed_is_reduced_when_it_is_quiet() {
    let (calm, full) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let records = records();
    let images = images(&records);
    let reduced = landed(&small(calm.path()), &records, u64::from(PRESSED_FROM) - 1);
    assert_eq!(frames(&reduced).0, 0, "a ring half full is no pressure");
    let config = small(full.path());
    let appliance = landed(&config, &records, u64::from(PRESSED_FROM));
    let (unreduced, bytes) = frames(&appliance);
    let calm = frames(&reduced).1;
    assert!(unreduced > 10 && bytes > 3 * calm, "{unreduced} frames, {bytes} bytes instead of {calm}");
    verify(&appliance, &images);
    // While somebody presses nothing is copied.
    let pressed = appliance.shared.pressure.press();
    for _ in 0..3 {
        round(&appliance, &|_| true).unwrap();
    }
    assert_eq!(frames(&appliance).0, unreduced);
    assert!(appliance.shared.pressure.has_left_over());
    drop(pressed);
    for _ in 0..20 {
        round(&appliance, &|_| true).unwrap();
    }
    let (left, after) = frames(&appliance);
    assert_eq!(left, 0);
    assert!(after < 2 * calm, "{after} bytes instead of {bytes}");
    assert!(!appliance.shared.pressure.has_left_over(), "nothing is left to do");
    verify(&appliance, &images);
    drop(appliance);
    let report = crate::check::check(&config.dir, Some(&config.key)).unwrap();
    assert!(report.damages.is_empty(), "{:?}", report.damages);
}

/// Killed at every step of every round until all is reduced: each start reads the same images.
#[test]
fn a_kill_at_any_step_of_reducing_leaves_the_same_content() {
    let dir = tempfile::tempdir().unwrap();
    let config = small(dir.path());
    let records = records();
    let images = images(&records);
    let mut appliance = landed(&config, &records, 16);
    assert!(frames(&appliance).0 > 0);
    let mut kills = 0;
    for at in 0..60u32 {
        // Twice: a segment is copied only if the round before has seen it.
        let left = Cell::new(at);
        let hook = |_: Step| left.replace(left.get().wrapping_sub(1)) != 0;
        let ended = round(&appliance, &|_| true).and_then(|()| round(&appliance, &hook));
        kills += usize::from(matches!(ended, Err(CollectError::Stopped)));
        drop(appliance);
        appliance = Appliance::start(config.clone()).unwrap();
        assert!(appliance.started.damaged_volumes.is_empty());
        for seq in [7u8, 33, 60] {
            assert!(
                read_at(&appliance, u64::from(seq)) == images[usize::from(seq)],
                "seq {seq} after a kill at step {at}"
            );
        }
        if frames(&appliance).0 == 0 && kills > 5 {
            break;
        }
    }
    assert!(kills > 5, "{kills} kills");
    verify(&appliance, &images);
}

/// A segment that was open at a kill has no footer that counts; what is unreduced in it is found by walking.
#[test]
fn what_landed_before_a_kill_is_reduced_too() {
    let dir = tempfile::tempdir().unwrap();
    let config = small(dir.path());
    let records = records();
    let appliance = Appliance::start(config.clone()).unwrap();
    let mut agent = Agent::connect(&config.listen, &hello()).unwrap();
    agent.fill(16);
    agent.send(&bytes_of(&records[..5]));
    assert_eq!(agent.wait(5), Ok(()));
    drop(appliance);
    let appliance = Appliance::start(config).unwrap();
    assert!(frames(&appliance).0 > 0);
    for _ in 0..3 {
        round(&appliance, &|_| true).unwrap();
    }
    assert_eq!(frames(&appliance).0, 0);
    assert!(read_at(&appliance, 5) == images(&records)[5]);
}

#[test]
fn a_fill_that_cannot_be_ends_the_session() {
    let dir = tempfile::tempdir().unwrap();
    let config = small(dir.path());
    let _appliance = Appliance::start(config.clone()).unwrap();
    let mut agent = Agent::connect(&config.listen, &hello()).unwrap();
    agent.fill(17);
    let refused = agent.wait(1).unwrap_err().unwrap();
    assert_eq!(refused.code, afterimage_format::wire::RefuseCode::Malformed);
}
