//! Points against images in memory.

use super::*;
use crate::history::model_tests::config;
use crate::history::{Run, VolumeHistory};
use crate::store::{BlockSource, StoreError};
use afterimage_format::place::Place;
use proptest::prelude::*;
use std::path::Path;
use std::sync::Arc;

/// No multiple of the grid.
const SIZE: u64 = 90 * 4096 + 1234;

/// Every block is filled with its place; what is zero is not stored.
struct Blocks;

impl BlockSource for Blocks {
    fn read_blocks(&self, places: &[Place], out: &mut [u8]) -> Result<(), StoreError> {
        assert_eq!(places.len() * BLOCK_SIZE, out.len());
        for (place, block) in places.iter().zip(out.chunks_exact_mut(BLOCK_SIZE)) {
            block.chunks_exact_mut(8).for_each(|w| w.copy_from_slice(&place.word().to_le_bytes()));
        }
        Ok(())
    }
}

/// (block, count, place number or zero)
type Op = (u64, u64, Option<u64>);

fn ops() -> impl Strategy<Value = Vec<Op>> {
    proptest::collection::vec((0u64..91, 1u64..12, proptest::option::weighted(0.7, 0u64..30)), 1..30)
}

fn range(offset: u64, len: u64) -> std::ops::Range<usize> {
    usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap()
}

/// Appends `ops` to a history, and gives what the volume holds then.
fn write(history: &VolumeHistory, ops: &[Op], image: &mut [u8]) {
    for (block, count, place) in ops {
        let (count, seq) = ((*count).min(91 - block), history.newest_seq() + 1);
        let place = place.map_or(Place::ZERO, |n| Place::new(1, n * 4096, 4096, 0).unwrap());
        history.append(&[(seq, seq)], &[Run { block: *block, count, seq, place }]).unwrap();
        for b in 0..count {
            let word = place.advance(b).unwrap().word().to_le_bytes();
            image[range((block + b) * 4096, 4096)].chunks_exact_mut(8).for_each(|w| w.copy_from_slice(&word));
        }
    }
}

/// A device that shows the newest point of a history.
fn newest(history: &VolumeHistory) -> PointDevice {
    PointDevice::new("d", history.view(history.newest_seq()).unwrap(), Arc::new(Blocks), SIZE)
}

/// A device at the end of `ops`, and what it should hold.
fn point(dir: &Path, ops: &[Op]) -> (PointDevice, Vec<u8>) {
    let history = VolumeHistory::open(dir, [3; 16], &[], config()).unwrap();
    let mut image = vec![0; 92 * BLOCK_SIZE];
    write(&history, ops, &mut image);
    image.truncate(usize::try_from(SIZE).unwrap());
    (newest(&history), image)
}

fn check_device(device: &dyn SimpleDevice, image: &[u8], ranges: &[(u64, u64)]) {
    for (offset, len) in ranges {
        let len = (*len).min(SIZE - offset);
        let mut buf = vec![0xee; usize::try_from(len).unwrap()];
        device.read_at(*offset, &mut buf).unwrap();
        assert!(buf == image[range(*offset, len)], "{len} bytes at {offset}");
        for max in [1, 3, usize::MAX] {
            let extents = device.block_status(*offset, len, max).unwrap();
            assert!(!extents.is_empty() && extents.len() <= max && extents.iter().all(|e| e.len > 0));
            let mut at = *offset;
            for e in &extents {
                assert!(!e.zero || image[range(at, e.len)].iter().all(|b| *b == 0), "said to be zero");
                at += e.len;
            }
            assert!(at <= offset + len && (max < 20 || at == offset + len), "covers the range");
        }
    }
}

fn ranges() -> impl Strategy<Value = Vec<(u64, u64)>> {
    proptest::collection::vec((0..SIZE, 1..SIZE), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_point_reads_as_the_image(ops in ops(), ranges in ranges()) {
        let dir = tempfile::tempdir().unwrap();
        let (device, image) = point(dir.path(), &ops);
        check_device(&device, &image, &ranges);
        check_device(&device, &image, &[(0, SIZE), (SIZE - 1, 1), (4095, 2)]);
    }

    /// What was looked up is kept, and each of two points that share a cache has its own.
    #[test]
    fn one_block_at_a_time_two_points_of_a_history_read_as_their_images(first in ops(), second in ops()) {
        let dir = tempfile::tempdir().unwrap();
        let history = VolumeHistory::open(dir.path(), [3; 16], &[], config()).unwrap();
        let mut image = vec![0; 92 * BLOCK_SIZE];
        write(&history, &first, &mut image);
        let (early, early_image) = (newest(&history), image.clone());
        write(&history, &second, &mut image);
        let late = newest(&history);
        let mut block = vec![0; BLOCK_SIZE];
        for (n, at) in (0..90).chain(0..90).map(|n| (n, n * BLOCK_SIZE as u64)) {
            for (device, image) in [(&early, &early_image), (&late, &image)] {
                device.read_at(at, &mut block).unwrap();
                prop_assert!(block == image[range(at, BLOCK_SIZE as u64)], "block {n} at seq {}", device.seq());
            }
        }
    }
}

#[test]
fn a_point_refuses_writes_and_ranges_past_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let (device, _) = point(dir.path(), &[(0, 1, Some(1))]);
    assert_eq!(device.write_at(0, &[1]), Err(BlockError::ReadOnly));
    assert!(matches!(device.read_at(SIZE - 1, &mut [0; 2]), Err(BlockError::Invalid(_))));
    assert!(matches!(device.block_status(SIZE, 1, 1), Err(BlockError::Invalid(_))));
}

#[test]
fn an_empty_disk_of_any_size_is_described_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let history = VolumeHistory::open(dir.path(), [3; 16], &[], config()).unwrap();
    let size = 1 << 50;
    let far = Run { block: (size >> BLOCK_SHIFT) - 1, count: 1, seq: 1, place: Place::new(1, 0, 4096, 0).unwrap() };
    history.append(&[(1, 1)], &[far]).unwrap();
    let device = PointDevice::new("d", history.view(1).unwrap(), Arc::new(Blocks), size);
    let (hole, data) =
        (Extent { len: size - 4096, zero: true, hole: true }, Extent { len: 4096, zero: false, hole: false });
    assert_eq!(device.block_status(0, size, 10).unwrap(), [hole, data]);
}
