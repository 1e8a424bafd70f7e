use super::*;
use proptest::prelude::*;

proptest! {
    #[test]
    fn bodies_come_back(volume: [u8; 16], ring: [u8; 16], size: u64, first: u64, next: u64, name in "[a-z]{0,40}") {
        let h = Hello { oldest: 1, newest: 7, volume, ring, size, first, next, name, epoch: 3, adopts: true };
        let six = Hello { newest: 6, adopts: false, ..h.clone() };
        let four = Hello { newest: 4, epoch: 0, ..six.clone() };
        for hello in [h, six, four] {
            prop_assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
        }
        let fence = Fence::Closed;
        let w = Welcome { version: 5, ring, durable: first >> 3, digest: next, credit: size, epoch: 7, fence };
        prop_assert_eq!(Welcome::decode(&w.encode()), Ok(w));
        let old = Welcome { version: 4, epoch: 0, fence: Fence::Open, ..w };
        prop_assert_eq!(Welcome::decode(&old.encode()), Ok(old));
        let quiet = Quiet { seq: first, time: next };
        prop_assert_eq!(Quiet::decode(&quiet.encode()), Ok(quiet));
        let a = Ack { durable: first, credit: next };
        prop_assert_eq!(Ack::decode(&a.encode()), Ok(a));
    }

    #[test]
    fn a_flipped_bit_in_a_message_is_seen(text in ".{1,60}", bit: prop::sample::Index) {
        let body = Refuse { code: RefuseCode::Full, text }.encode();
        let header = Header::decode(&Header::of(MessageType::Refuse, &body).encode()).expect("own header");
        let mut bad = body.clone();
        let bit = bit.index(bad.len() * 8);
        bad[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(header.verify(&body), Ok(()));
        prop_assert_eq!(header.verify(&bad), Err(DecodeError::Checksum { what: "message" }));
    }
}

#[test]
fn a_body_too_long_is_refused_before_it_is_read() {
    let mut b = Header::data(10).encode();
    b[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(Header::decode(&b).is_err());
}

#[test]
fn a_seq_that_no_history_reaches_is_refused() {
    for (durable, good) in [(MAX_SEQ, true), (MAX_SEQ + 1, false), (u64::MAX, false)] {
        let (epoch, fence) = (0, Fence::Open);
        let welcome = Welcome { version: 1, ring: [1; 16], durable, digest: 0, credit: 0, epoch, fence };
        assert_eq!(Welcome::decode(&welcome.encode()).is_ok(), good, "{durable}");
    }
}

#[test]
fn a_long_text_is_cut_at_a_character() {
    let r = Refuse { code: RefuseCode::Failed, text: "ä".repeat(MAX_TEXT) };
    assert_eq!(Refuse::decode(&r.encode()).expect("fits").text.len(), MAX_TEXT);
}
