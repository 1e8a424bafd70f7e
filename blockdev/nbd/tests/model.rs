//! Random requests through the client, many in flight and answered in any order, against a plain array.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::large_stack_arrays,
    reason = "in a test a panic is a failure, numbers are small and the stack is large"
)]

mod common;

use afterimage_nbd::Mode;
use afterimage_nbd::client::{Client, Command};
use common::{Fixture, Random, SIZE};
use std::collections::HashMap;
use std::ops::Range;

/// Requests in flight at once.
const DEPTH: usize = 40;

/// What a request in flight will be checked for.
enum Expect {
    Bytes(Range<usize>),
    Status(Range<usize>),
    Done,
}

fn overlaps(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

/// A range that overlaps none in flight: the outcome of overlapping requests is nobody's promise.
fn range(random: &mut Random, busy: &HashMap<u64, (Range<usize>, Expect)>) -> Option<Range<usize>> {
    let len = match random.below(10) {
        0 => 1 + random.below(300_000),
        1..4 => 1 + random.below(9000),
        _ => 4096,
    };
    let align = if random.below(2) == 0 { 4096 } else { 1 };
    let start = (random.below(SIZE as u64 - len) / align * align) as usize;
    let range = start..start + len as usize;
    (!busy.values().any(|(r, _)| overlaps(r, &range))).then_some(range)
}

fn check(expect: &Expect, model: &[u8], data: &[u8], extents: &[afterimage_base::block::Extent]) {
    match expect {
        Expect::Bytes(r) => assert!(data == &model[r.clone()], "wrong bytes in {r:?}"),
        Expect::Status(r) => {
            let mut at = r.start;
            for e in extents {
                let end = at + usize::try_from(e.len).unwrap();
                assert!(end <= r.end && (!e.zero || model[at..end].iter().all(|b| *b == 0)), "wrong extent in {r:?}");
                at = end;
            }
            assert!(at > r.start, "no extents for {r:?}");
        }
        Expect::Done => assert!(data.is_empty() && extents.is_empty()),
    }
}

fn run(client: Client, seed: u64, steps: usize) {
    let (mut random, mut model) = (Random::new(seed), vec![0u8; SIZE]);
    let mut busy: HashMap<u64, (Range<usize>, Expect)> = HashMap::new();
    let (mut sender, mut receiver) = client.split();
    let mut finish = |busy: &mut HashMap<u64, (Range<usize>, Expect)>, model: &[u8]| {
        let reply = receiver.receive().unwrap();
        reply.result.unwrap();
        let (_, expect) = busy.remove(&reply.cookie).unwrap();
        check(&expect, model, reply.data, reply.extents);
    };
    for step in 0..steps {
        while busy.len() >= DEPTH || (!busy.is_empty() && random.below(4) == 0) {
            sender.flush().unwrap();
            finish(&mut busy, &model);
        }
        let cookie = random.next();
        let Some(r) = range(&mut random, &busy) else { continue };
        let (offset, len, fua) = (r.start as u64, (r.end - r.start) as u64, random.below(4) == 0);
        let data;
        let (command, expect) = match random.below(12) {
            0..5 => {
                data = random.bytes(r.end - r.start);
                model[r.clone()].copy_from_slice(&data);
                (Command::Write { offset, data: &data, fua }, Expect::Done)
            }
            5..8 => (Command::Read { offset, len: u32::try_from(len).unwrap() }, Expect::Bytes(r.clone())),
            8 => {
                model[r.clone()].fill(0);
                (Command::WriteZeroes { offset, len, fua, no_hole: step % 2 == 0, fast: false }, Expect::Done)
            }
            9 => {
                // Our devices make what is trimmed read as zeroes.
                model[r.clone()].fill(0);
                (Command::Trim { offset, len, fua }, Expect::Done)
            }
            10 => (Command::BlockStatus { offset, len, one: step % 2 == 0 }, Expect::Status(r.clone())),
            _ => (Command::Cache { offset, len }, Expect::Done),
        };
        sender.send(cookie, &command).unwrap();
        busy.insert(cookie, (r, expect));
        if random.below(20) == 0 {
            sender.send(u64::MAX - step as u64, &Command::Flush).unwrap();
            busy.insert(u64::MAX - step as u64, (0..0, Expect::Done));
        }
    }
    sender.flush().unwrap();
    while !busy.is_empty() {
        finish(&mut busy, &model);
    }
}

/// A range of no bytes overlaps nothing, so a flush in flight keeps nobody off.
#[test]
fn an_empty_range_overlaps_nothing() {
    assert!(!overlaps(&(0..0), &(0..10)));
}

#[test]
fn answered_at_once() {
    let fixture = Fixture::new();
    run(fixture.client("disk", Mode::Structured), 1, 4000);
    assert_eq!(fixture.server().stats().errors, 0);
}

#[test]
fn answered_in_any_order() {
    for (seed, mode) in [(2, Mode::Structured), (3, Mode::Extended)] {
        let fixture = Fixture::new();
        let client = fixture.client("slow", mode);
        assert_eq!(client.info().mode, mode);
        run(client, seed, 2500);
        let stats = fixture.server().stats();
        assert_eq!((stats.errors, stats.cut_off), (0, 0));
    }
}

#[test]
fn over_tcp() {
    let fixture = Fixture::new();
    run(Client::connect(fixture.tcp(), "slow").unwrap(), 4, 1500);
}

/// Simple replies know no block status; everything else is the same.
#[test]
fn simple_replies() {
    let fixture = Fixture::new();
    let mut client = fixture.client("slow", Mode::Simple);
    assert_eq!((client.info().mode, client.info().allocation), (Mode::Simple, None));
    let mut random = Random::new(5);
    let data = random.bytes(1_000_001);
    client.write(12345, &data).unwrap();
    let mut back = vec![0; data.len()];
    client.read(12345, &mut back).unwrap();
    assert!(back == data);
    client.flush().unwrap();
    assert!(client.read(SIZE as u64, &mut [0]).unwrap_err().to_string().contains("22"));
    assert!(client.block_status(0, 4096).is_err());
}

/// Requests of the greatest length, and the longest that the protocol promises.
#[test]
fn thirty_two_mebibytes() {
    let fixture = Fixture::new();
    fixture.exports.insert(common::export("big", common::memory(40 << 20)));
    let data = Random::new(6).bytes(32 << 20);
    for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
        let mut client = fixture.client("big", mode);
        client.write(4097, &data).unwrap();
        let reply = client.call(&Command::Read { offset: 4097, len: 32 << 20 }).unwrap();
        assert!(reply.data == data);
        client.write_zeroes(0, 40 << 20).unwrap();
        // One byte more is refused, and the connection goes on.
        let longer = vec![1; (32 << 20) + 1];
        let e = client.call(&Command::Write { offset: 0, data: &longer, fua: false }).unwrap_err();
        assert!(e.to_string().contains("22"), "{e}");
        assert!(client.call(&Command::Read { offset: 0, len: (32 << 20) + 1 }).is_err());
        client.read(0, &mut [0; 10]).unwrap();
    }
}
