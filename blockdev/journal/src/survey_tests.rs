use super::*;

const SHAPE: Shape = Shape { slots: 64, pages: 24 };
const SEQ_HERE: u64 = 1000;
const CHAIN: Chain = Chain { end: 40, exact: true };

fn words(seq: u64, len: u64, place: u64) -> [u64; 8] {
    let kind = Kind::Write;
    let record = Record { kind, flags: 0, seq, offset: 0, len, time: 5, payload_hash: 77, place };
    to_words(&record.encode())
}

fn judge_here(words: [u64; 8], chain: Chain) -> (Observed, Option<&'static str>) {
    let (observed, record) = judge(words, SEQ_HERE, SHAPE, chain, 30, |_, _| Ok(77)).unwrap();
    (observed, record.err())
}

#[test]
fn each_way_a_slot_can_be() {
    let whole = words(SEQ_HERE, 8192, 42);
    let with = |index: usize, value: u64| {
        let mut w = whole;
        w[index] = value;
        w
    };
    let cases = [
        ("whole, not done", whole, Observed::Undone, None),
        ("whole, done", with(6, 42 | DONE), Observed::Done, None),
        ("whole but for its seq: never used", with(1, 0), Observed::Undone, None),
        ("whole but for its seq: earlier lap", with(1, SEQ_HERE - 64), Observed::Undone, None),
        ("whole but for its seq: damaged", with(1, 12345), Observed::Undone, None),
        ("never used", [0; 8], Observed::Absent, Some("header")),
        ("an earlier lap's record", words(SEQ_HERE - 128, 8192, 20 | DONE), Observed::Absent, Some("header")),
        (
            "half written over an earlier lap",
            {
                let mut w = words(SEQ_HERE - 64, 8192, 20 | DONE);
                w[2] = 99;
                w
            },
            Observed::Absent,
            Some("header"),
        ),
        ("says its seq, header damaged", with(3, 8191), Observed::Damaged, Some("header")),
        ("DONE bits damaged", with(6, 42 | 1 << 50), Observed::Damaged, Some("place")),
        ("further on in the lap", with(6, 43), Observed::Undone, None),
        ("the beginning of the next lap", with(6, 50), Observed::Undone, None),
        ("not the beginning of the next lap", with(6, 51), Observed::Damaged, Some("place")),
        ("pages before the tail", with(6, 30), Observed::Damaged, Some("place")),
        ("pages past the window", with(6, 99), Observed::Damaged, Some("place")),
        ("a seq of the future", words(SEQ_HERE + 64, 8192, 42), Observed::Damaged, Some("header")),
        ("a seq of another slot", words(SEQ_HERE - 1, 8192, 42), Observed::Damaged, Some("header")),
        ("noise", [0x5a5a; 8], Observed::Damaged, Some("header")),
    ];
    for (what, words, observed, error) in cases {
        assert_eq!(judge_here(words, CHAIN), (observed, error), "{what}");
    }
}

#[test]
fn a_payload_that_does_not_fit_its_hash() {
    let bad = |words| judge(words, SEQ_HERE, SHAPE, CHAIN, 30, |_, _| Ok(78)).unwrap().0;
    assert_eq!(bad(words(SEQ_HERE, 8192, 42)), Observed::Damaged);
    let mut unsaid = words(SEQ_HERE, 8192, 42);
    unsaid[1] = SEQ_HERE - 64;
    assert_eq!(bad(unsaid), Observed::Absent, "it was never published");
}

#[test]
fn behind_an_absent_record_any_later_pages_follow() {
    let loose = Chain { exact: false, ..CHAIN };
    assert_eq!(judge_here(words(SEQ_HERE, 8192, 46), loose), (Observed::Undone, None));
    assert_eq!(judge_here(words(SEQ_HERE, 8192, 41), loose).0, Observed::Damaged, "but not earlier ones");
    assert_eq!(judge_here(words(SEQ_HERE, 8192, 49), loose).0, Observed::Damaged, "and none that wrap");
}

#[test]
fn a_short_file_is_an_error() {
    let file = tempfile::tempfile().unwrap();
    let header = RingHeader { volume: [1; 16], ring: [2; 16], slots: 64, pages: 24 };
    let tail = Tail { turn: 0, seq: 1, pages: 0, freed_seq: 0, freed_digest: 0 };
    assert!(matches!(survey(&file.into(), &header, &tail), Err(SurveyError::File(_))));
}
