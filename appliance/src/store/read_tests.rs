//! Blocks by place: few and many, cached and not, and what a flipped byte does to them.

use super::super::segment::{OpenSegment, SegmentWriter};
use super::*;
use crate::keys::{KeySource, random};
use crate::reduce::frame::Scratch;
use proptest::prelude::*;
use std::os::unix::fs::FileExt;

/// Frames as they come: full ones, short ones, and some that compression does not make smaller.
const FRAMES: [(usize, bool); 6] = [(16, true), (5, true), (1, true), (16, false), (3, false), (16, true)];

struct Fixture {
    dir: tempfile::TempDir,
    key: VaultKey,
    places: Vec<Place>,
    blocks: Vec<Vec<u8>>,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (key, _) = VaultKey::create(&KeySource::File(dir.path().join("key"))).unwrap();
        let segment = OpenSegment::create(dir.path(), [1; 16], 1, [2; 16], &key, None).unwrap();
        let (mut scratch, mut writer) = (Scratch::new().unwrap(), SegmentWriter::new(Arc::clone(&segment)));
        let (mut places, mut blocks, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
        for (n, compressible) in FRAMES {
            let new: Vec<Vec<u8>> = (0..n).map(|i| block(blocks.len() + i, compressible)).collect();
            let mut frame = Vec::new();
            let counter = segment.next_frames(1);
            let len = scratch.data(segment.key(), counter, new.iter().map(Vec::as_slice), &mut frame).unwrap();
            let place = writer.place(bytes.len() as u64, len).unwrap();
            places.extend((0..n as u64).map(|i| place.advance(i).unwrap()));
            writer.note_data(place, u32::try_from(frame.len()).unwrap(), vec![[0; 16]; n]);
            bytes.extend_from_slice(&frame);
            blocks.extend(new);
        }
        writer.append(&[&bytes], 1, 1 << 20).unwrap();
        Self { dir, key, places, blocks }
    }

    fn store(&self, cache: usize) -> Store {
        Store::new(self.dir.path().to_owned(), [1; 16], self.key.clone(), cache)
    }

    /// Reads the blocks with these numbers; past the last one there are zeroes.
    fn check(&self, store: &Store, wanted: &[usize]) {
        let places: Vec<Place> = wanted.iter().map(|n| self.places.get(*n).copied().unwrap_or(Place::ZERO)).collect();
        let mut out = vec![0xee; places.len() * BLOCK_SIZE];
        store.read_blocks(&places, &mut out).unwrap();
        for (n, found) in wanted.iter().zip(out.chunks_exact(BLOCK_SIZE)) {
            let zeroes = vec![0; BLOCK_SIZE];
            assert!(found == self.blocks.get(*n).unwrap_or(&zeroes), "block {n} of {wanted:?}");
        }
    }
}

fn block(n: usize, compressible: bool) -> Vec<u8> {
    if compressible {
        return (0..BLOCK_SIZE).map(|i| u8::try_from((n + i / 64) % 251).unwrap()).collect();
    }
    (0..BLOCK_SIZE / 256).flat_map(|_| random::<256>().unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn few_or_many_blocks_in_any_order_are_what_was_written(
        reads in proptest::collection::vec(proptest::collection::vec(0usize..59, 1..24), 1..12),
        cache in prop_oneof![Just(0usize), Just(1 << 20), Just(64 << 20)],
    ) {
        let fixture = Fixture::new();
        let store = fixture.store(cache);
        for _ in 0..2 {
            reads.iter().for_each(|wanted| fixture.check(&store, wanted));
        }
        let all: Vec<usize> = (0..fixture.places.len()).collect();
        fixture.check(&store, &all);
        all.iter().for_each(|n| fixture.check(&store, &[*n]));
    }
}

#[test]
fn a_small_read_decodes_a_frame_once_and_what_it_left_out_is_there_for_the_next() {
    let fixture = Fixture::new();
    let store = fixture.store(64 << 20);
    (0..4).for_each(|n| fixture.check(&store, &[n]));
    assert_eq!(store.figures().frames, 1, "one part, four times");
    fixture.check(&store, &[4]);
    assert_eq!(store.figures().frames, 2, "another part of the same frame");
    fixture.check(&store, &(0..16).collect::<Vec<_>>());
    (0..16).for_each(|n| fixture.check(&store, &[n]));
    assert_eq!(store.figures().frames, 3, "all of it, from then on");
}

#[test]
fn a_flipped_byte_anywhere_in_a_frame_is_found_by_a_read_of_any_of_its_blocks() {
    let fixture = Fixture::new();
    let path = fixture.dir.path().join(file_name(1));
    let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    let frame = fixture.places[0];
    let flip = |at: u64| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, frame.offset() + at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], frame.offset() + at).unwrap();
    };
    let header = 32;
    for at in [0, 5, 9, 13, header, header + 1, header + 77] {
        flip(at);
        for wanted in [vec![0], vec![15], (0..16).collect()] {
            let places: Vec<Place> = wanted.iter().map(|n: &usize| fixture.places[*n]).collect();
            let mut out = vec![0; places.len() * BLOCK_SIZE];
            let error = fixture.store(0).read_blocks(&places, &mut out).unwrap_err();
            assert!(
                matches!(&error, StoreError::Damaged { segment: 1, offset, .. } if *offset == frame.offset()),
                "byte {at}: {error}"
            );
            // What flipped by chance is not called a forgery.
            assert!(at < header || error.to_string().contains("checksum"), "byte {at}: {error}");
            // Its neighbours are as they were.
            fixture.check(&fixture.store(0), &[16, 21, 40]);
        }
        flip(at);
    }
    fixture.check(&fixture.store(0), &[0, 15]);
}
