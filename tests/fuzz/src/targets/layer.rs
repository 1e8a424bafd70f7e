//! A layer of sealed pages with any content, then damaged: opened, looked up, walked, merged.

use crate::input::Input;
use crate::{place, seeds};
use afterimage_appliance::history::layer::Layer;
use afterimage_appliance::history::seal::PageSeal;
use afterimage_appliance::history::{
    HistoryConfig, HistoryError, Keep, LayerKeys, PageCache, Run, VolumeHistory, diff,
};
use afterimage_format::layer::index::{Fence, Index, TimeFence};
use afterimage_format::layer::page::Walker;
use afterimage_format::layer::{FOOTER_LEN, HEADER_LEN, LayerHeader, LayerMeta, PAGE_HEADER_LEN, PageKind, TAG_LEN};
use afterimage_format::place::Place;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const VOLUME: [u8; 16] = [7; 16];
const ID: [u8; 16] = [5; 16];

struct Keys;

impl LayerKeys for Keys {
    fn layer_key(&self, _: &[u8; 16]) -> [u8; 32] {
        [9; 32]
    }
}

fn content(seed: &[u8], input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    match input.below(4) {
        0 => {
            let n = input.below(200);
            bytes = input.take(n).to_vec();
        }
        1 => {
            input.edit(&mut bytes, 3);
        }
        _ => {}
    }
    bytes.truncate(4000);
    bytes
}

fn make(input: &mut Input<'_>) -> (LayerMeta, Vec<u8>) {
    let header = LayerHeader { id: ID, volume: VOLUME };
    let seal = PageSeal::new(&[9; 32], header).unwrap();
    let mut file = header.encode().to_vec();
    let (mut index, mut number) = (Index::default(), 0);
    let mut block = 0;
    for page in 0..1 + input.below(3) {
        let plain = content(&seeds::tokens(), input);
        let mut walker = Walker::new();
        let first = walker.column(&plain).ok().flatten().map(|c| c.block);
        let seq = first.and_then(|_| walker.version(&plain).ok()).map_or(1, |v| v.0);
        let continued = page > 0 && input.one_in(2);
        block = if page == 0 { first.unwrap_or(0) } else { input.near(block + 1000) }.max(block).min(1 << 61);
        let (at, len) = (file.len() as u64, (plain.len() + TAG_LEN) as u32);
        index.fences.push(Fence { block, seq: input.near(seq), continued, at, len });
        file.extend_from_slice(&seal.seal(PageKind::Token, number, &plain).unwrap());
        number += 1;
    }
    let mut before = (0, 0);
    for _ in 0..input.below(3) {
        let plain = content(&seeds::timeline(), input);
        before = (
            input.near(before.0 + 1).max(before.0).min(1 << 61),
            input.near(before.1 + 1000).max(before.1).min(1 << 61),
        );
        let (at, len) = (file.len() as u64, (plain.len() + TAG_LEN) as u32);
        index.times.push(TimeFence { seq: before.0, time: before.1, at, len });
        file.extend_from_slice(&seal.seal(PageKind::Timeline, number, &plain).unwrap());
        number += 1;
    }
    index.segments = vec![(1, input.near(4))];
    let mut plain = index.encode();
    if input.one_in(4) {
        input.edit(&mut plain, 3);
    }
    let index_at = file.len() as u64;
    file.extend_from_slice(&seal.seal(PageKind::Index, number, &plain).unwrap());
    let meta = LayerMeta {
        id: ID,
        after_seq: 0,
        last_seq: 1 + input.near(2000) % (1 << 62),
        collapsed_to: input.near(0),
        tokens: input.near(4),
        records: input.near(4),
        first_block: input.near(0),
        end_block: input.near(4000),
        token_pages: input.near(index.fences.len() as u64) as u32,
        timeline_pages: input.near(index.times.len() as u64) as u32,
        index_at: input.near(index_at),
        file_len: (file.len() + FOOTER_LEN) as u64,
    };
    file.extend_from_slice(&meta.footer());
    debug_assert!(index_at as usize >= HEADER_LEN + PAGE_HEADER_LEN);
    (meta, file)
}

/// See the module.
pub(super) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (meta, mut file) = make(&mut input);
    if input.one_in(3) {
        input.edit(&mut file, 4);
    }
    let folder = place::folder();
    std::fs::write(folder.path().join(meta.file_name()), &file).unwrap();
    let cache = PageCache::new(1 << 20);
    // As from a manifest, which takes only what can be.
    let mut encoded = Vec::new();
    meta.encode(&mut encoded);
    let mut reader = afterimage_format::codec::Reader::new("fuzz", &encoded);
    let Ok(meta) = LayerMeta::decode(&mut reader) else { return };
    match Layer::open(folder.path(), &VOLUME, &meta, &Keys, &cache) {
        Ok(layer) => {
            for _ in 0..4 {
                drop(layer.lookup(input.number(), input.number()));
            }
            drop(history(folder.path(), &meta, &mut input));
        }
        Err(HistoryError::Damaged { .. }) => {}
        Err(e) => panic!("{e}"),
    }
}

fn history(folder: &Path, meta: &LayerMeta, input: &mut Input<'_>) -> Result<(), HistoryError> {
    let mut config = HistoryConfig::new(PageCache::new(1 << 20), Arc::new(Keys));
    config.memory_runs = 4;
    let history = VolumeHistory::open(folder, VOLUME, std::slice::from_ref(meta), config)?;
    drop(history.record_at_time(input.number()));
    drop(history.record_at_seq(input.number()));
    let (next, block) = (history.newest_seq() + 1, input.number());
    let run = Run { block, count: 1 + input.below(9) as u64, seq: next, place: Place::ZERO };
    if history.append(&[(next, input.number())], &[run]).is_ok() {
        let mut out = Vec::new();
        history.newest(block, 1, &mut out)?;
        assert_eq!(out.first().map(|o| o.1), Some(Place::ZERO), "the newest version is what was appended");
    }
    let first = history.view(1 + input.number() % history.newest_seq())?;
    let last = history.view(history.newest_seq())?;
    for view in [&first, &last] {
        let mut out = Vec::new();
        drop(view.resolve(input.number(), 1 + input.number() % 100_000, &mut out));
        drop(view.lookup(input.number()));
    }
    drop(diff::changed(&first, &last, (first.seq(), 1 << 40), |_, _| true));
    drop((first, last));
    if let Some(edit) = history.flush()? {
        history.applied(edit);
    }
    if let Some(edit) = history.merge_step(&Keep::new(input.number(), [3]), &AtomicBool::new(false))? {
        history.applied(edit);
    }
    let mut counts = HashMap::new();
    history.count_segments(&mut counts, &mut HashSet::new());
    Ok(())
}
