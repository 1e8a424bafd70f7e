use super::*;
use proptest::prelude::*;

fn sample() -> Record {
    Record {
        kind: Kind::Write,
        flags: FLAG_SYNC,
        seq: 0x0102_0304,
        offset: 4096,
        len: 8192,
        time: 1_700_000_000_000_000_001,
        payload_hash: 0xfeed,
        place: 77,
    }
}

#[test]
fn golden_bytes() {
    let hex: String = sample().encode().iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(
        hex,
        "41495231010100000403020100000000001000000000000000200000000000000\
         1002a36fe9c9717edfe0000000000004d000000000000005fab3513ce4f16ab"
    );
}

proptest! {
    #[test]
    fn round_trip(kind in 1u8..=7, seq in 1u64.., offset in 0..u64::MAX / 2, len in 0u64..=255, time: u64, payload_hash: u64, place: u64) {
        let kind = Kind::from_u8(kind).expect("named");
        let len = match kind {
            Kind::Gap | Kind::SyncEnd | Kind::Void => 0,
            Kind::Resize => len + 1,
            _ => len,
        };
        let r = Record { kind, flags: 0, seq, offset, len, time, payload_hash, place };
        prop_assert_eq!(Record::decode(&r.encode()), Ok(r));
    }

    #[test]
    fn every_flipped_bit_is_seen_except_in_place(bit in 0usize..HEADER_LEN * 8) {
        let mut b = sample().encode();
        b[bit / 8] ^= 1 << (bit % 8);
        let in_place = (48..56).contains(&(bit / 8));
        prop_assert_eq!(Record::decode(&b).is_ok(), in_place);
    }
}

#[test]
fn a_size_is_bounded_and_never_nothing() {
    for (kind, flags) in [(Kind::Resize, 0), (Kind::Gap, FLAG_SIZED)] {
        for (len, good) in [(0, false), (1, true), (MAX_VOLUME, true), (MAX_VOLUME + 1, false)] {
            // The offset of a gap is a time and does not add up with the size.
            let r = Record { kind, flags, len, offset: u64::MAX, ..sample() };
            assert_eq!(Record::decode(&r.encode()).is_ok(), good, "{kind:?} {len}");
            assert_eq!(r.new_size(), Some(len));
        }
    }
    assert!(Record::decode(&Record { kind: Kind::Gap, flags: 0, len: 1, ..sample() }.encode()).is_err());
}

#[test]
fn a_length_that_would_size_an_allocation_is_bounded() {
    let mut r = sample();
    r.len = MAX_PAYLOAD as u64 + 1;
    assert!(Record::decode(&r.encode()).is_err());
    r.kind = Kind::Point;
    r.len = 256;
    assert!(Record::decode(&r.encode()).is_err());
    r.flags = FLAG_NOTE;
    assert_eq!(Record::decode(&r.encode()).map(|r| r.noted()), Ok(Some(4096)));
    r.len = MAX_NOTE as u64 + 1;
    assert!(Record::decode(&r.encode()).is_err());
}
