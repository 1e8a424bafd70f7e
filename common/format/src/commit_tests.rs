use super::*;
use crate::place::MAX_SLOTS;
use proptest::prelude::*;

fn place() -> impl Strategy<Value = Place> {
    prop_oneof![
        Just(Place::ZERO),
        (1u32..5, 0u64..100_000, 1u32..70_000, 0u32..4)
            .prop_map(|(s, o, l, slot)| Place::new(s, o * 16, l, slot).expect("in range")),
    ]
}

type Input = (Kind, u64, u64, Vec<(u64, u64, Place)>);

fn records() -> impl Strategy<Value = Vec<Input>> {
    let kind = [Kind::Write, Kind::Zero, Kind::Point, Kind::Gap, Kind::Void, Kind::Resize];
    let kind = proptest::sample::select(kind.to_vec());
    let runs = proptest::collection::vec((0u64..1000, 1u64..=16, place()), 0..5);
    proptest::collection::vec((kind, 1u64..3, 0u64..1_000_000, runs), 1..30)
}

proptest! {
    #[test]
    fn records_and_runs_come_back(input in records(), cut: prop::sample::Index) {
        let mut b = CommitBuilder::new();
        let (mut seq, mut time, mut want, mut runs_seen) = (5, 1_700_000_000_000_000_000, Vec::new(), Vec::new());
        for (kind, step, later, runs) in input {
            (seq, time) = (seq + step, time + later);
            let mut end = 0;
            let runs: Vec<BlockRun> = runs.into_iter().map(|(skip, count, place)| {
                let block = end + skip;
                end = block + count;
                BlockRun { block, count, place }
            }).collect();
            let sized = kind == Kind::Resize || (kind == Kind::Gap && step == 2);
            let flags = if sized && kind == Kind::Gap { 1 | FLAG_SIZED } else { 1 };
            let data = matches!(kind, Kind::Write | Kind::Zero);
            let has_runs = data || sized;
            let runs = if has_runs { runs } else { Vec::new() };
            let name = if kind == Kind::Point { format!("p{seq}") } else { String::new() };
            let offset = if data || kind == Kind::Gap { seq * 7 } else { 0 };
            let len = if has_runs { 4096 } else { 0 };
            let r = Record { kind, flags, seq, offset, len, time: 0, payload_hash: 3, place: 0 };
            b.push(&r, time, &name, &runs);
            let from = runs_seen.len();
            runs_seen.extend(runs);
            want.push(CommitRecord { kind, flags, seq, time, offset, len, name, runs: from..runs_seen.len() });
        }
        let mut bytes = Vec::new();
        b.finish(&[1; 16], &[2; 16], &mut bytes);
        let digest = b.digest;
        let got = Commit::decode(&bytes);
        prop_assert_eq!(got, Ok(Commit { volume: [1; 16], ring: [2; 16], digest, records: want, runs: runs_seen }));
        prop_assert!(Commit::decode(&bytes[..cut.index(bytes.len())]).is_err());
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 40..200)) {
        drop(Commit::decode(&bytes));
    }
}

#[test]
fn a_run_past_its_frame_is_refused() {
    let mut b = CommitBuilder::new();
    let r = Record { kind: Kind::Write, flags: 0, seq: 1, offset: 0, len: 8192, time: 0, payload_hash: 0, place: 0 };
    let place = Place::new(1, 96, 100, MAX_SLOTS - 1).expect("in range");
    b.push(&r, 1, "", &[BlockRun { block: 0, count: 2, place }]);
    let mut bytes = Vec::new();
    b.finish(&[0; 16], &[0; 16], &mut bytes);
    assert!(Commit::decode(&bytes).is_err());
}
