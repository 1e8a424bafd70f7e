use super::*;
use proptest::prelude::*;

fn header() -> SegmentHeader {
    SegmentHeader { vault: [1; 16], number: 7, salt: [2; 32], volume: [3; 16] }
}

fn frame() -> FrameHeader {
    let mut f = FrameHeader {
        kind: FrameKind::Data,
        codec: Codec::Zstd,
        blocks: 2,
        counter: 9,
        sealed_len: 40,
        plain_len: 8192,
        checksum: 0,
    };
    f.checksum = f.checksum_of(&[5; 40]);
    f
}

fn footer() -> Footer {
    Footer {
        number: 7,
        directory: 4096,
        directory_frames: 1,
        data_frames: 2,
        commit_frames: 3,
        blocks: 30,
        last_seq: 99,
        unreduced: 11,
    }
}

fn hex(b: &[u8]) -> String {
    b.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn golden_bytes() {
    assert_eq!(
        hex(&header().encode()),
        "414953310200000001010101010101010101010101010101070000000000000002020202020202020202020202020202\
         020202020202020202020202020202020303030303030303030303030303030300000000000000005dd1cef34dcd89e0"
    );
    assert_eq!(hex(&frame().encode()), "414946310101020009000000280000000020000000000000fc3777ccd3eabff9");
    // Its checksum is that of version 1, see below.
    assert_eq!(
        hex(&footer().encode()[..56]),
        "41494531070000000010000000000000010000000200000003000000\
         1e00000063000000000000000b000000000000000000000000000000"
    );
    assert_eq!(hex(&nonce(FrameKind::Commit, 3)), "030000000200000000000000");
}

/// As version 1 wrote them.
#[test]
fn a_header_and_a_footer_of_version_1_are_read() {
    let bytes = |text: &str| -> Vec<u8> {
        (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
    };
    let old = bytes(
        "414953310100000001010101010101010101010101010101070000000000000002020202020202020202020202020202\
         02020202020202020202020202020202030303030303030303030303030303030000000000000000a19e7426b665d230",
    );
    assert_eq!(SegmentHeader::decode(&old), Ok(header()));
    let old = bytes(
        "41494531070000000010000000000000010000000200000003000000\
         1e00000063000000000000000000000000000000000000000000000065f1eef75766c167",
    );
    assert_eq!(Footer::decode(&old), Ok(Footer { unreduced: 0, ..footer() }));
}

#[test]
fn headers_come_back_and_every_flipped_bit_is_seen() {
    let (h, e) = (header().encode(), footer().encode());
    assert_eq!(SegmentHeader::decode(&h), Ok(header()));
    assert_eq!(Footer::decode(&e), Ok(footer()));
    for bit in 0..HEADER_LEN * 8 {
        let mut bad = h;
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(SegmentHeader::decode(&bad).is_err(), "bit {bit}");
    }
    for bit in 0..FOOTER_LEN * 8 {
        let mut bad = e;
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(Footer::decode(&bad).is_err(), "bit {bit}");
    }
}

#[test]
fn every_flipped_bit_of_a_frame_header_is_seen() {
    let f = frame().encode();
    assert_eq!(FrameHeader::decode(&f), Ok(frame()));
    for bit in 0..FRAME_HEADER_LEN * 8 {
        let mut bad = f;
        bad[bit / 8] ^= 1 << (bit % 8);
        let seen = FrameHeader::decode(&bad).map_or(true, |h| h.checksum_of(&[5; 40]) != h.checksum);
        assert!(seen, "bit {bit}");
    }
}

#[test]
fn a_length_that_would_size_an_allocation_is_bounded() {
    for sealed_len in [0, 15, MAX_FRAME, u32::MAX] {
        assert!(FrameHeader::decode(&FrameHeader { sealed_len, ..frame() }.encode()).is_err(), "{sealed_len}");
    }
    let f = FrameHeader { kind: FrameKind::Commit, blocks: 0, plain_len: u32::MAX, ..frame() };
    assert!(FrameHeader::decode(&f.encode()).is_err());
    assert!(FrameHeader::decode(&FrameHeader { blocks: 33, plain_len: 33 * 4096, ..frame() }.encode()).is_err());
}

fn entry() -> impl Strategy<Value = DirEntry> {
    prop_oneof![
        (1u32..=MAX_FRAME, proptest::collection::vec(any::<Fingerprint>(), 0..=32))
            .prop_map(|(frame_len, fingerprints)| DirEntry::Data { offset: 0, frame_len, fingerprints }),
        (any::<u64>(), any::<u64>()).prop_map(|(first, last)| DirEntry::Commit { offset: 0, first, last }),
    ]
}

proptest! {
    #[test]
    fn directories_come_back(entries in proptest::collection::vec((1u64..1000, entry()), 0..40), cut: prop::sample::Index) {
        let (mut bytes, mut at, mut want) = (Vec::new(), 0, Vec::new());
        for (step, mut e) in entries {
            let before = at;
            at += step * FRAME_ALIGN;
            match &mut e {
                DirEntry::Data { offset, .. } | DirEntry::Commit { offset, .. } => *offset = at,
            }
            e.encode(&mut bytes, before);
            want.push(e);
        }
        prop_assert_eq!(DirEntry::decode_all(&bytes), Ok(want.clone()));
        if !bytes.is_empty() {
            let got = DirEntry::decode_all(&bytes[..cut.index(bytes.len())]);
            prop_assert!(got.is_err() || got.is_ok_and(|g| want.starts_with(&g) && g.len() < want.len()));
        }
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        drop(DirEntry::decode_all(&bytes));
        drop(FrameHeader::decode(&bytes));
        drop(Footer::decode(&bytes));
    }
}
