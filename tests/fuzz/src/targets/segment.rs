//! A segment of sealed frames with any content, then damaged: walked, recovered, read. What opens is what was sealed there.

use crate::input::Input;
use crate::{place, seeds};
use afterimage_appliance::keys::{KeySource, VaultKey};
use afterimage_appliance::reduce::frame::{Opener, Scratch};
use afterimage_appliance::store::scan::{Scan, recover};
use afterimage_appliance::store::{BlockSource, Store, StoreError, file_name};
use afterimage_format::BLOCK_SIZE;
use afterimage_format::commit::Commit;
use afterimage_format::manifest::SegmentState;
use afterimage_format::place::Place;
use afterimage_format::segment::{DirEntry, Footer, FrameKind, HEADER_LEN, SegmentHeader};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

const VAULT: [u8; 16] = [1; 16];

/// A vault key that is the same in every run.
pub(super) fn key() -> &'static VaultKey {
    static KEY: OnceLock<VaultKey> = OnceLock::new();
    KEY.get_or_init(|| {
        let folder = place::folder();
        let path = folder.path().join("key");
        std::fs::write(&path, [7; 32]).unwrap();
        VaultKey::create(&KeySource::File(path)).unwrap().0
    })
}

#[derive(Default)]
struct Made {
    file: Vec<u8>,
    /// Kind and content by offset.
    sealed: BTreeMap<u64, (FrameKind, Vec<u8>)>,
    directory: Vec<DirEntry>,
    counters: [u32; 3],
    places: Vec<Place>,
}

impl Made {
    fn frame(&mut self, kind: FrameKind, plain: &[u8], scratch: &mut Scratch, input: &mut Input<'_>) {
        let header = header();
        let (offset, mut out) = (self.file.len() as u64, Vec::new());
        let counter = input.near(self.counters[kind as usize - 1].into()) as u32;
        let blocks = if kind == FrameKind::Data { plain.len() / BLOCK_SIZE } else { 0 };
        let blocks = input.near(blocks as u64) as u16;
        let len = scratch.frame(&key().segment(header), kind, counter, blocks, plain, &mut out).unwrap();
        self.counters[kind as usize - 1] = counter.wrapping_add(1);
        self.sealed.insert(offset, (kind, plain.to_vec()));
        match kind {
            FrameKind::Data => {
                let fingerprints = vec![[3; 16]; plain.len() / BLOCK_SIZE];
                self.directory.push(DirEntry::Data { offset, frame_len: len, fingerprints });
                self.places.extend((0..2).filter_map(|slot| Place::new(1, offset, len, slot).ok()));
            }
            FrameKind::Commit => self.directory.push(DirEntry::Commit { offset, first: 1, last: 6 }),
            FrameKind::Directory => {}
        }
        self.file.extend_from_slice(&out);
    }

    fn end(&mut self, scratch: &mut Scratch, input: &mut Input<'_>) {
        let (directory, mut content, mut before) = (self.file.len() as u64, Vec::new(), 0);
        for entry in &self.directory {
            entry.encode(&mut content, before);
            before = entry.offset();
        }
        if input.one_in(4) {
            input.edit(&mut content, 3);
        }
        self.frame(FrameKind::Directory, &content, scratch, input);
        let count = |kind: FrameKind| self.sealed.values().filter(|s| s.0 == kind).count() as u32;
        let footer = Footer {
            number: 1,
            directory: input.near(directory) / 16 * 16 % (64 << 20),
            directory_frames: input.near(1) as u32,
            data_frames: count(FrameKind::Data),
            commit_frames: count(FrameKind::Commit),
            blocks: input.near(2) as u32,
            last_seq: input.near(6),
            unreduced: input.near(0) as u32,
        };
        self.file.extend_from_slice(&footer.encode());
    }
}

fn header() -> SegmentHeader {
    SegmentHeader { vault: VAULT, number: 1, salt: [3; 32], volume: [7; 16] }
}

/// See the module.
pub(super) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut made = Made { file: header().encode().to_vec(), ..Made::default() };
    let mut scratch = Scratch::new().unwrap();
    for _ in 0..=input.below(6) {
        match input.below(6) {
            0 | 1 => {
                let blocks = 1 + input.below(3);
                let plain: Vec<u8> = (0..blocks).flat_map(|_| vec![input.byte(); BLOCK_SIZE]).collect();
                made.frame(FrameKind::Data, &plain, &mut scratch, &mut input);
            }
            2 => {
                let n = input.below(64);
                let plain = input.take(n).to_vec();
                made.frame(FrameKind::Commit, &plain, &mut scratch, &mut input);
            }
            3 => {
                let mut plain = seeds::commit();
                input.edit(&mut plain, 2);
                made.frame(FrameKind::Commit, &plain, &mut scratch, &mut input);
            }
            _ => made.frame(FrameKind::Commit, &seeds::commit(), &mut scratch, &mut input),
        }
    }
    if input.one_in(2) {
        made.end(&mut scratch, &mut input);
    }
    if input.one_in(2) {
        input.edit(&mut made.file, 6);
    }
    let folder = place::folder();
    let path = folder.path().join(file_name(1));
    std::fs::write(&path, &made.file).unwrap();
    walk(&path, &made);
    read(folder.path(), &made, &mut input);
}

fn walk(path: &Path, made: &Made) {
    let Ok(mut scan) = Scan::open(path, 1, u64::MAX) else { return };
    // The header is not sealed: another one makes another key, which opens nothing.
    let segment = key().segment(scan.header);
    let found = recover(&mut scan, &segment).unwrap();
    assert!(found.length <= made.file.len() as u64 && found.committed <= found.length);
    assert!(found.length >= HEADER_LEN as u64 && found.state != SegmentState::Open);
    let mut scan = Scan::open(path, 1, found.committed).unwrap();
    let (mut opener, mut content) = (Opener::new().unwrap(), Vec::new());
    while let Ok(Some(frame)) = scan.next_frame() {
        assert!(scan.position() > frame.offset);
        let Ok(header) = opener.open(&segment, scan.bytes(), &mut content) else { continue };
        let sealed = made.sealed.get(&frame.offset).filter(|s| s.0 == header.kind);
        assert!(sealed.is_some_and(|s| s.1 == content), "what opens at byte {} was not sealed there", frame.offset);
        if header.kind == FrameKind::Commit {
            drop(Commit::decode(&content));
        }
    }
    if let Some(footer) = scan.footer() {
        drop(scan.directory(&footer, &segment));
    }
    for offset in (0..made.file.len() as u64).step_by(16) {
        let _ = scan.whole_at(offset);
    }
}

fn read(folder: &Path, made: &Made, input: &mut Input<'_>) {
    let store = Store::new(folder.to_path_buf(), VAULT, key().clone(), 1 << 16);
    let wild = (0..4).filter_map(|_| Place::from_word(1 << 32 | input.number() & 0xffff_ffff).ok());
    for place in made.places.iter().copied().chain(wild) {
        let mut block = [0; BLOCK_SIZE];
        match store.read_blocks(&[place], &mut block) {
            Ok(()) => {
                let sealed = made.sealed.get(&place.offset()).filter(|s| s.0 == FrameKind::Data).unwrap();
                let at = place.slot() as usize * BLOCK_SIZE;
                assert_eq!(sealed.1.get(at..at + BLOCK_SIZE), Some(&block[..]), "wrong bytes");
            }
            Err(StoreError::Damaged { .. }) => {}
            Err(e) => panic!("{e}"),
        }
    }
}
