//! What a layer is made of: footers, indexes, token pages, timelines.

use crate::input::Input;
use afterimage_format::codec::Reader;
use afterimage_format::layer::index::{Index, TimelineBuilder, walk_timeline};
use afterimage_format::layer::page::{PageBuilder, Walker};
use afterimage_format::layer::{FOOTER_LEN, HEADER_LEN, LayerHeader, LayerMeta, META_LEN, check_page, put_page_header};
use xxhash_rust::xxh3::xxh3_64;

/// See the module.
pub(super) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    match input.below(6) {
        0 => {
            let mut head: [u8; HEADER_LEN] = input.array();
            sum(&mut head);
            if let Ok(header) = LayerHeader::decode(&head) {
                assert_eq!(header.encode()[..40], head[..40]);
            }
        }
        1 => {
            let mut foot: [u8; FOOTER_LEN] = input.array();
            sum(&mut foot);
            if let Ok(meta) = LayerMeta::from_footer(&foot) {
                assert_eq!(meta.footer(), foot);
            }
        }
        2 => {
            let head: [u8; META_LEN] = input.array();
            let Ok(meta) = LayerMeta::decode(&mut Reader::new("fuzz", &head)) else { return };
            if let Ok(index) = Index::decode(input.rest(), &meta) {
                assert_eq!(Index::decode(&index.encode(), &meta), Ok(index));
            }
        }
        3 => tokens(input.rest()),
        4 => timeline(input.rest()),
        _ => {
            let mut page = input.rest().to_vec();
            put_page_header(&mut page, 7);
            assert_eq!(check_page(&page, 7).is_ok(), page.len() >= 16);
            assert!(check_page(input.rest(), 7).is_err() || input.rest() == page);
        }
    }
}

fn sum(bytes: &mut [u8]) {
    let at = bytes.len() - 8;
    let sum = xxh3_64(&bytes[..at]);
    bytes[at..].copy_from_slice(&sum.to_le_bytes());
}

fn tokens(page: &[u8]) {
    type Versions = Vec<(u64, afterimage_format::place::Place)>;
    let read = |page: &[u8]| -> Option<Vec<(u64, u64, Versions)>> {
        let (mut walker, mut out) = (Walker::new(), Vec::new());
        while let Some(c) = walker.column(page).ok()? {
            let versions: Option<Versions> = (0..c.versions).map(|_| walker.version(page).ok()).collect();
            out.push((c.block, c.count, versions?));
            assert!(out.len() <= page.len());
        }
        assert!(walker.at_end(page));
        Some(out)
    };
    let Some(columns) = read(page) else { return };
    let sorted = |v: &Versions| v.windows(2).all(|w| w[0].0 <= w[1].0);
    if columns.iter().any(|(_, count, v)| !sorted(v) || *count > 1 << 60) {
        return;
    }
    let (mut builder, mut again) = (PageBuilder::new(), Vec::new());
    for (block, count, versions) in &columns {
        versions.iter().for_each(|(seq, place)| builder.push(*block, *count, *seq, *place));
    }
    builder.finish(&mut again);
    assert_eq!(read(&again), Some(columns));
}

fn timeline(page: &[u8]) {
    let read = |page: &[u8]| {
        let mut out: Vec<(u64, u64)> = Vec::new();
        let result = walk_timeline(page, |seq, time| {
            out.push((seq, time));
            true
        });
        result.is_ok().then_some(out)
    };
    let Some(records) = read(page) else { return };
    assert!(records.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 <= w[1].1));
    let (mut builder, mut again) = (TimelineBuilder::default(), Vec::new());
    records.iter().for_each(|(seq, time)| builder.push(*seq, *time));
    builder.finish(&mut again);
    assert_eq!(read(&again), Some(records));
}
