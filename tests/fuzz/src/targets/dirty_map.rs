//! A dirty map's file, right or damaged; marked, cleared and resized like a set of numbers.

use super::ring::boot;
use crate::input::Input;
use crate::place;
use afterimage_format::dirtymap::{DirtyMapHeader, WORDS_AT, word, word_of};
use afterimage_journal::{DirtyMap, DirtyMapError};
use std::collections::BTreeSet;

const VOLUME: [u8; 16] = [1; 16];
/// Most regions of a map whose file is made.
const MOST: u64 = 20_000;

/// See the module.
pub(super) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let size = if input.one_in(4) { input.number() } else { 1 + u64::from(input.short()) * 700 };
    let region = if input.one_in(4) { 1 << (input.byte() % 64) } else { 4096 };
    let header = DirtyMapHeader { volume: VOLUME, size, region };
    if !header.is_possible() || header.regions() > MOST {
        return;
    }
    let mut file = vec![0; header.file_len() as usize];
    let mut model = fill(&mut file, &header, &mut input);
    let damaged = input.one_in(2) && input.edit(&mut file, 6);
    let folder = place::folder();
    let path = folder.path().join("dirty");
    std::fs::write(&path, &file).unwrap();
    let mut map = match DirtyMap::open(&path, VOLUME) {
        Ok((map, _)) => map,
        Err(e) => {
            assert!(damaged, "{e}");
            assert!(!matches!(e, DirtyMapError::Io { .. } | DirtyMapError::InUse { .. }), "{e}");
            return;
        }
    };
    if damaged {
        // Marks come twice, so what is read is what somebody once marked.
        model = (0..map.regions()).filter(|r| map.is_dirty(*r)).collect();
    }
    compare(&map, &model);
    for _ in 0..16 {
        if input.is_empty() {
            break;
        }
        step(&mut map, &mut model, &mut input);
        compare(&map, &model);
    }
    drop(map);
    let (map, _) = DirtyMap::open(&path, VOLUME).unwrap();
    compare(&map, &model);
}

fn fill(file: &mut [u8], header: &DirtyMapHeader, input: &mut Input<'_>) -> BTreeSet<u64> {
    let boot = boot();
    file[..64].copy_from_slice(&header.encode());
    let mut put = |index: usize, value: u64| file[index * 8..index * 8 + 8].copy_from_slice(&value.to_le_bytes());
    put(word::BOOT, boot[0]);
    put(word::BOOT + 1, boot[1]);
    put(word::BOOT_CHECK, header.boot_check(boot));
    let mut model = BTreeSet::new();
    let words = (header.file_len() - WORDS_AT) / 8;
    for w in 0..words {
        let left = header.regions().saturating_sub(w * 32).min(32);
        let valid = if left == 32 { u32::MAX } else { (1 << left) - 1 };
        let marks = if w < 4 { u32::from_le_bytes(input.array()) & valid } else { 0 };
        model.extend((0..32).filter(|i| marks >> i & 1 == 1).map(|i| w * 32 + i));
        put((WORDS_AT / 8 + w) as usize, word_of(marks));
    }
    if input.one_in(3) {
        put(word::CLEAN, header.clean_mark(model.len() as u64));
    }
    model
}

fn step(map: &mut DirtyMap, model: &mut BTreeSet<u64>, input: &mut Input<'_>) {
    match input.below(5) {
        0 | 1 => {
            let (offset, len) = (input.number(), input.number());
            map.mark(offset, len);
            let end = offset.saturating_add(len).min(map.size());
            if offset < end {
                model.extend(offset / map.region()..=(end - 1) / map.region());
            }
        }
        2 => {
            let region = input.number();
            map.clear(region);
            model.remove(&region);
        }
        3 => {
            map.mark_all();
            *model = (0..map.regions()).collect();
        }
        _ => {
            let size = input.number();
            let possible = DirtyMapHeader { volume: VOLUME, size, region: map.region() };
            if possible.is_possible() && possible.regions() <= MOST {
                let before = model.clone();
                map.resize(size).unwrap();
                *model = (0..map.regions()).filter(|r| map.is_dirty(*r)).collect();
                assert!(before.iter().all(|r| *r >= map.regions() || model.contains(r)), "a mark was lost");
            } else if !possible.is_possible() {
                assert!(map.resize(size).is_err());
            }
        }
    }
}

fn compare(map: &DirtyMap, model: &BTreeSet<u64>) {
    let mut at = 0;
    for region in model {
        assert_eq!(map.next_dirty(at), Some(*region));
        at = region + 1;
    }
    assert_eq!(map.next_dirty(at), None);
    let bytes: u64 = model.iter().map(|r| map.region_range(*r)).map(|r| r.end - r.start).sum();
    assert_eq!(map.dirty_bytes(), bytes);
}
