use super::index::{Fence, Index, TimeFence, TimelineBuilder, walk_timeline};
use super::page::{PageBuilder, Walker};
use super::*;
use crate::place::Place;
use proptest::prelude::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn sample() -> LayerMeta {
    LayerMeta {
        id: *b"0123456789abcdef",
        after_seq: 7,
        last_seq: 1000,
        collapsed_to: 3,
        tokens: 5,
        records: 993,
        first_block: 10,
        end_block: 500,
        token_pages: 2,
        timeline_pages: 1,
        index_at: 500,
        file_len: 1000,
    }
}

#[test]
fn golden_bytes() {
    let header = LayerHeader { id: *b"0123456789abcdef", volume: [9; 16] }.encode();
    assert_eq!(
        hex(&header),
        "41494c3101000000303132333435363738396162636465660909090909090909\
         090909090909090900000000000000000000000000000000b37dd4e106aae361"
    );
    assert_eq!(
        hex(&sample().footer()),
        "41494c46010000003031323334353637383961626364656607000000000000\
         00e80300000000000003000000000000000500000000000000e1030000000000000a00\
         000000000000f4010000000000000200000001000000f401000000000000e8030000000000009a86eb83a066fbd5"
    );
    let mut page = PageBuilder::new();
    let place = Place::new(1, 32, 5000, 3).unwrap();
    page.push(300, 1, 5, place);
    page.push(300, 1, 9, Place::ZERO);
    page.push(301, 4, 6, place.advance(1).unwrap());
    let mut bytes = Vec::new();
    page.finish(&mut bytes);
    assert_eq!(hex(&bytes), "ac02010214c2a180802009000604 40".replace(' ', ""));
    let mut times = TimelineBuilder::default();
    times.push(4, 1000);
    times.push(5, 1003);
    times.push(9, 1003);
    let mut bytes = Vec::new();
    times.finish(&mut bytes);
    assert_eq!(hex(&bytes), "d10f04060104");
}

#[test]
fn a_footer_that_lies_is_refused() {
    let footer = |meta: LayerMeta| LayerMeta::from_footer(&meta.footer().try_into().unwrap());
    assert_eq!(footer(sample()), Ok(sample()));
    assert!(footer(LayerMeta { after_seq: 1000, ..sample() }).is_err());
    assert!(footer(LayerMeta { file_len: u64::MAX, ..sample() }).is_err());
    assert!(footer(LayerMeta { file_len: 600, ..sample() }).is_err());
    assert!(footer(LayerMeta { token_pages: u32::MAX, ..sample() }).is_err());
    assert!(footer(LayerMeta { first_block: 501, ..sample() }).is_err());
    assert!(footer(LayerMeta { end_block: MAX_BLOCKS + 1, ..sample() }).is_err());
    assert!(footer(LayerMeta { tokens: u64::MAX, ..sample() }).is_err());
    assert!(footer(LayerMeta { records: 1001, ..sample() }).is_err());
}

/// Columns of (gap, count, versions of (seq step, place word or zero)).
/// Block, count, and for each version its seq step and place, if it has one.
type Column = (u64, u64, Vec<(u64, Option<u64>)>);

fn columns() -> impl Strategy<Value = Vec<Column>> {
    let version = (1u64..1000, proptest::option::of(1u64 << 32..=u64::MAX));
    let column = (0u64..50, 1u64..40, proptest::collection::vec(version, 1..6));
    proptest::collection::vec(column, 1..30)
}

proptest! {
    #[test]
    fn headers_and_footers_show_every_flipped_bit(bit in 0usize..HEADER_LEN * 8, foot in 0usize..FOOTER_LEN * 8) {
        let mut header = LayerHeader { id: [1; 16], volume: [9; 16] }.encode();
        header[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(LayerHeader::decode(&header).is_err());
        let mut footer: [u8; FOOTER_LEN] = sample().footer().try_into().unwrap();
        footer[foot / 8] ^= 1 << (foot % 8);
        prop_assert!(LayerMeta::from_footer(&footer).is_err());
    }

    #[test]
    fn tokens_come_back(columns in columns()) {
        let (mut builder, mut tokens, mut block) = (PageBuilder::new(), Vec::new(), 0);
        for (gap, count, versions) in columns {
            block += gap;
            let mut seq = 0;
            for (step, word) in versions {
                seq += step;
                let place = Place::from_word(word.unwrap_or(0)).unwrap();
                builder.push(block, count, seq, place);
                tokens.push((block, count, seq, place));
            }
            block += count;
        }
        let mut page = Vec::new();
        builder.finish(&mut page);
        let (mut walker, mut read) = (Walker::new(), Vec::new());
        while let Some(c) = walker.column(&page).unwrap() {
            for _ in 0..c.versions {
                let (seq, place) = walker.version(&page).unwrap();
                read.push((c.block, c.count, seq, place));
            }
        }
        prop_assert_eq!(read, tokens);
    }

    #[test]
    fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
        let mut walker = Walker::new();
        while let Ok(Some(c)) = walker.column(&bytes) {
            if (0..c.versions).any(|_| walker.version(&bytes).is_err()) {
                break;
            }
        }
        let _ = walk_timeline(&bytes, |_, _| true);
        let _ = Index::decode(&bytes, &sample());
        let _ = check_page(&bytes, 0);
    }

    #[test]
    fn times_come_back(steps in proptest::collection::vec((1u64..4, 0u64..1_000_000), 1..50)) {
        let (mut builder, mut records, mut last) = (TimelineBuilder::default(), Vec::new(), (0, 1_700_000_000_000_000_000));
        for (step, later) in steps {
            last = (last.0 + step, last.1 + later);
            builder.push(last.0, last.1);
            records.push(last);
        }
        let (mut page, mut read) = (Vec::new(), Vec::new());
        builder.finish(&mut page);
        walk_timeline(&page, |seq, time| { read.push((seq, time)); true }).unwrap();
        prop_assert_eq!(read, records);
    }

    #[test]
    fn a_page_shows_every_flipped_bit(content in proptest::collection::vec(any::<u8>(), 20..60), bit: prop::sample::Index) {
        let mut page = vec![0; PAGE_HEADER_LEN];
        page.extend_from_slice(&content);
        put_page_header(&mut page, 3);
        prop_assert_eq!(check_page(&page, 3), Ok(&content[..]));
        prop_assert!(check_page(&page, 4).is_err());
        let bit = bit.index(page.len() * 8);
        page[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(check_page(&page, 3).is_err());
    }
}

#[test]
fn an_index_comes_back_and_names_only_pages_that_are_there() {
    let page = (PAGE_HEADER_LEN + 100) as u64;
    let at = |n: u64| HEADER_LEN as u64 + n * page;
    let index = Index {
        fences: vec![
            Fence { block: 10, seq: 900, continued: false, at: at(0), len: 100 },
            Fence { block: 10, seq: 950, continued: true, at: at(1), len: 100 },
        ],
        times: vec![TimeFence { seq: 8, time: 1_700_000_000, at: at(2), len: 100 }],
        segments: vec![(1, 20), (7, 1)],
    };
    let bytes = index.encode();
    let meta = LayerMeta { index_at: at(3), ..sample() };
    assert_eq!(Index::decode(&bytes, &meta), Ok(index));
    assert!(Index::decode(&bytes, &LayerMeta { index_at: at(4), ..sample() }).is_err());
    assert!(Index::decode(&bytes[..bytes.len() - 1], &meta).is_err());
}
