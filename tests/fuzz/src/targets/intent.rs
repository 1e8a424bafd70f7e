//! A write-intent map's file, damaged: what was marked is marked still, or the map is refused.

use crate::input::Input;
use crate::place;
use afterimage_format::intent::{IntentHeader, IntentSector, SECTOR, SECTORS_AT};
use afterimage_journal::{IntentError, IntentMap};
use std::collections::BTreeSet;

const VOLUME: [u8; 16] = [1; 16];
/// Most regions of a map whose file is made.
const MOST: u64 = 20_000;

/// See the module.
pub(super) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let size = if input.one_in(4) { input.number() } else { 1 + u64::from(input.short()) * 700 };
    let region = if input.one_in(4) { 1 << (input.byte() % 64) } else { 4096 };
    let turn = input.near(0);
    let header = IntentHeader { volume: VOLUME, size, region, salt: 5, turn, generation: 1, rings: vec![[2; 16]] };
    if !header.is_possible() || header.regions() > MOST {
        return;
    }
    let mut marked = BTreeSet::new();
    let mut sectors = vec![IntentSector::CLEAN; header.sectors() as usize];
    for _ in 0..input.below(32) {
        let region = u64::from(input.short()) % header.regions();
        sectors[(region / afterimage_format::intent::REGIONS_PER_SECTOR) as usize].set(region, true);
        marked.insert(region);
    }
    let mut file = vec![0; header.file_len() as usize];
    file[..SECTOR].copy_from_slice(&header.encode());
    file[SECTOR..2 * SECTOR].copy_from_slice(&header.encode());
    for ((i, sector), to) in (0..).zip(&sectors).zip(file[SECTORS_AT as usize..].chunks_exact_mut(SECTOR)) {
        to.copy_from_slice(&sector.encode(i, header.salt));
    }
    let damaged = input.one_in(2) && input.edit(&mut file, 6);
    let folder = place::folder();
    let path = folder.path().join("intent");
    std::fs::write(&path, &file).unwrap();
    match IntentMap::open(&path, VOLUME) {
        Ok(map) => {
            assert!(damaged || (map.damaged() == 0 && map.marked() == marked.len() as u64));
            for region in marked {
                let range = map.region_range(region);
                assert!(map.is_marked(range.start, range.end), "the mark of region {region} is lost");
            }
            map.mark([input.number() % map.regions()], |_| true).unwrap();
        }
        Err(e) => {
            assert!(damaged, "{e}");
            assert!(!matches!(e, IntentError::Io { .. } | IntentError::InUse { .. }), "{e}");
        }
    }
}
