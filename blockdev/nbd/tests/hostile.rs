//! Clients past the handshake that break off, stall, lie and do not listen. Each test ends with another client that
//! is served as if nothing was.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::large_stack_arrays,
    reason = "in a test a panic is a failure, numbers are small and the stack is large"
)]

mod common;

use afterimage_nbd::{Limits, Mode};
use common::raw::*;
use common::{Fixture, SIZE, eventually};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const TRIM: u16 = 4;
const ZEROES: u16 = 6;
const STATUS: u16 = 7;
const PAYLOAD_LEN: u16 = 32;
const EINVAL: u32 = 22;

fn impatient() -> Limits {
    let soon = Duration::from_millis(200);
    Limits { payload_time: soon, reply_time: soon, ..Limits::default() }
}

/// That the first bytes of the disk are still zero: half a write must not be seen.
fn assert_untouched(fixture: &Fixture) {
    let mut bytes = vec![1; 1 << 20];
    fixture.client("disk", Mode::Simple).read(0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|b| *b == 0));
}

#[test]
fn silent_in_the_middle_of_a_request() {
    let fixture = Fixture::with(impatient());
    for bytes in [&request(WRITE, 0, 1, 0, 4096)[..], &request(READ, 0, 1, 0, 1)[..20], &[0x25]] {
        let mut raw = Raw::entered(fixture.raw(), "disk");
        raw.send(bytes);
        fixture.assert_serves();
        assert!(raw.assert_closed().is_empty());
    }
    let mut raw = Raw::entered(fixture.raw(), "disk");
    raw.send(&[&request(WRITE, 0, 1, 0, 1 << 20)[..], &[0xee; 500_000]].concat());
    fixture.assert_serves();
    assert!(raw.assert_closed().is_empty());
    assert_untouched(&fixture);
    eventually("four were cut off", || fixture.server().stats().cut_off == 4);
}

/// A client with nothing to say may be silent for ever, and a slow one may be slow.
#[test]
fn the_quiet_and_the_slow_are_served() {
    let fixture = Fixture::with(impatient());
    let mut raw = Raw::entered(fixture.raw(), "disk");
    std::thread::sleep(Duration::from_millis(500));
    for byte in [&request(WRITE, 0, 5, 0, 4)[..], b"slow"].concat() {
        std::thread::sleep(Duration::from_millis(20));
        raw.send(&[byte]);
    }
    assert_eq!(raw.simple(), (0, 5));
    assert_eq!(fixture.server().stats().cut_off, 0);
}

#[test]
fn vanished_in_the_middle_of_a_payload() {
    let fixture = Fixture::new();
    for n in [0, 1, 100_000] {
        let mut raw = Raw::entered(fixture.raw(), "disk");
        raw.send(&[&request(WRITE, 0, 1, 0, 1 << 20)[..], &vec![0xee; n]].concat());
    }
    eventually("all are gone", || fixture.server().stats().connections == 0);
    assert_untouched(&fixture);
    fixture.assert_serves();
}

#[test]
fn vanished_in_the_middle_of_a_reply() {
    let fixture = Fixture::new();
    for export in ["disk", "slow"] {
        let mut raw = Raw::entered(fixture.raw(), export);
        raw.send(&request(READ, 0, 1, 0, SIZE as u32).repeat(20));
        raw.take(1000);
    }
    eventually("all are gone", || fixture.server().stats().connections == 0);
    fixture.assert_serves();
}

/// What a client asked for before it left is done, though nobody hears the answer.
#[test]
fn requests_of_the_departed_are_done() {
    // Few at a time, so that most are still to be taken when the first answer cannot be delivered.
    let fixture = Fixture::with(Limits { requests_in_flight: 4, ..Limits::default() });
    let mut raw = Raw::entered(fixture.raw(), "slow");
    for i in 0..100u64 {
        raw.send(&[&request(WRITE, 0, i, i * 512, 512)[..], &[7; 512]].concat());
    }
    raw.send(&request(DISC, 0, 0, 0, 0));
    drop(raw);
    eventually("all are gone", || fixture.server().stats().connections == 0);
    let mut bytes = vec![0; 51_200];
    fixture.client("slow", Mode::Simple).read(0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|b| *b == 7));
}

#[test]
fn all_answers_come_before_the_goodbye() {
    let fixture = Fixture::new();
    for polite in [true, false] {
        let mut raw = Raw::entered(fixture.raw(), "slow");
        (0..50).for_each(|i| raw.send(&request(READ, 0, i, i * 512, 512)));
        if polite {
            raw.send(&request(DISC, 0, 0, 0, 0));
        } else {
            raw.0.shutdown(Shutdown::Write).unwrap();
        }
        let mut cookies: Vec<u64> = (0..50)
            .map(|_| {
                let (errno, cookie) = raw.simple();
                assert_eq!((errno, raw.take(512)), (0, vec![0; 512]));
                cookie
            })
            .collect();
        cookies.sort_unstable();
        assert!(cookies.into_iter().eq(0..50));
        assert!(raw.assert_closed().is_empty());
    }
}

#[test]
fn replies_that_are_not_read() {
    let fixture = Fixture::with(impatient());
    for (export, len) in [("disk", 1 << 20), ("slow", 1 << 20), ("disk", 1)] {
        let mut raw = Raw::entered(fixture.raw(), export);
        // It sends until the server has had enough of it.
        let flood = request(READ, 0, 1, 0, len).repeat(1000);
        let refused = (0..10_000).find(|_| raw.0.write_all(&flood).is_err());
        assert!(refused.is_some(), "the server never stopped to listen");
        fixture.assert_serves();
    }
    eventually("all were cut off", || fixture.server().stats().cut_off == 3);
}

/// More in flight than the limits allow is served all the same, piece by piece.
#[test]
fn more_at_once_than_is_allowed() {
    let limits = Limits { requests_in_flight: 3, bytes_in_flight: 10_000, ..Limits::default() };
    let fixture = Fixture::with(limits);
    for export in ["disk", "slow"] {
        let mut raw = Raw::entered(fixture.raw(), export);
        let mut reader = raw.0.try_clone().unwrap();
        let sender = std::thread::spawn(move || (0..2000).for_each(|i| raw.send(&request(READ, 0, i, 0, 6000))));
        let mut bytes = vec![0; 2000 * (16 + 6000)];
        reader.read_exact(&mut bytes).unwrap();
        sender.join().unwrap();
        let mut cookies: Vec<&[u8]> = bytes.chunks(6016).map(|reply| &reply[8..16]).collect();
        cookies.sort_unstable();
        assert!(cookies.into_iter().eq((0..2000u64).map(u64::to_be_bytes).collect::<Vec<_>>().iter().map(|c| &c[..])));
    }
}

#[test]
fn nonsense_is_refused_and_the_connection_goes_on() {
    let fixture = Fixture::new();
    let mut raw = Raw::entered(fixture.raw(), "disk");
    let size = SIZE as u64;
    for (command, flags, offset, len, errno) in [
        (8, 0, 0, 0, EINVAL),
        (0xffff, 0xffff, u64::MAX, u32::MAX, EINVAL),
        (READ, 2, 0, 1, EINVAL),
        (READ, 0, 0, 0, EINVAL),
        (READ, 0, 0, u32::MAX, EINVAL),
        (READ, 0, u64::MAX, 1, EINVAL),
        (READ, 0, size, 1, EINVAL),
        (TRIM, 0, size - 1, u32::MAX, EINVAL),
        (ZEROES, 0, u64::MAX, u32::MAX, 28),
        (ZEROES, 0x80, 0, 1, EINVAL),
        (STATUS, 0, 0, 1, EINVAL),
        (WRITE, 0, 0, 0, EINVAL),
    ] {
        raw.send(&request(command, flags, 77, offset, len));
        assert_eq!(raw.simple(), (errno, 77), "command {command} at {offset}+{len}");
    }
    // Payloads of refused writes are skipped, also when longer than any write may be.
    for (offset, len, errno) in [(size, 512, 28), (u64::MAX, 512, 28), (0, 33 << 20, EINVAL)] {
        raw.send(&request(WRITE, 0, 78, offset, len));
        raw.send(&vec![0xee; len as usize]);
        assert_eq!(raw.simple(), (errno, 78));
    }
    let mut read_only = Raw::entered(fixture.raw(), "ro");
    read_only.send(
        &[&request(WRITE, 0, 1, 0, 3)[..], b"abc", &request(TRIM, 0, 2, 0, 1), &request(ZEROES, 0, 3, 0, 1)].concat(),
    );
    (1..4).for_each(|cookie| assert_eq!(read_only.simple(), (1, cookie)));
    assert_untouched(&fixture);
    assert_eq!(fixture.server().stats().cut_off, 0);
}

#[test]
fn extended_nonsense_is_refused_and_the_connection_goes_on() {
    let fixture = Fixture::new();
    let mut raw = Raw::entered_after(fixture.raw(), "disk", &[EXTENDED]);
    let mut refused = |request: Vec<u8>, errno: u32| {
        raw.send(&request);
        let (kind, cookie, _, payload) = raw.wide();
        assert_eq!((kind, cookie, &payload[..4]), (0x8001, 5, &errno.to_be_bytes()[..]));
    };
    refused(wide(READ, 0, 5, 0, u64::MAX), EINVAL);
    refused(wide(READ, 0, 5, u64::MAX, u64::MAX), EINVAL);
    refused(wide(TRIM, 0, 5, 1, u64::MAX), EINVAL);
    refused(wide(ZEROES, 0, 5, 0, u64::MAX - 1), 28);
    // A payload where none belongs is skipped.
    refused([wide(READ, PAYLOAD_LEN, 5, 0, 3), b"abc".to_vec()].concat(), EINVAL);
    refused([wide(900, PAYLOAD_LEN, 5, 0, 3), b"abc".to_vec()].concat(), EINVAL);
    // QEMU's client does not flag the payload of a write.
    for (flags, data) in [(PAYLOAD_LEN, b"abc"), (0, b"def")] {
        raw.send(&[&wide(WRITE, flags, 6, 100, 3)[..], data, &wide(READ, 0, 7, 100, 3)].concat());
        assert_eq!(raw.wide(), (0, 6, 100, vec![]));
        assert_eq!(raw.wide(), (1, 7, 100, [&100u64.to_be_bytes()[..], data].concat()));
    }
    raw.send(&wide(DISC, PAYLOAD_LEN, 8, 0, 0));
    assert!(raw.assert_closed().is_empty());
}

#[test]
fn what_loses_the_thread_is_cut_off() {
    let fixture = Fixture::new();
    for bytes in [vec![0; 28], request(WRITE, 0, 1, 0, u32::MAX), wide(READ, 0, 1, 0, 1), b"0123456789".repeat(10)] {
        let mut raw = Raw::entered(fixture.raw(), "disk");
        raw.send(&[request(READ, 0, 1, 0, 1), bytes].concat());
        raw.assert_closed();
    }
    let mut raw = Raw::entered_after(fixture.raw(), "disk", &[EXTENDED]);
    raw.send(&wide(TRIM, PAYLOAD_LEN, 1, 0, u64::MAX));
    assert!(raw.assert_closed().is_empty());
    assert_eq!(fixture.server().stats().cut_off, 5);
    fixture.assert_serves();
}

/// A large read split over many partial sends, with small requests around it, stays whole.
#[test]
fn a_slow_reader_gets_every_byte() {
    let fixture = Fixture::new();
    let data = common::Random::new(9).bytes(SIZE);
    fixture.client("disk", Mode::Simple).write(0, &data).unwrap();
    let mut raw = Raw::entered(fixture.raw(), "disk");
    raw.send(&[request(READ, 0, 1, 0, 3), request(READ, 0, 2, 3, SIZE as u32 - 3), request(READ, 0, 3, 0, 1)].concat());
    let mut bytes = Vec::new();
    while bytes.len() < SIZE + 1 + 48 {
        bytes.extend(raw.take((SIZE + 49 - bytes.len()).min(777_777)));
        std::thread::sleep(Duration::from_millis(3));
    }
    assert!(bytes[16..19] == data[..3] && bytes[35..SIZE + 32] == data[3..] && bytes[SIZE + 48] == data[0]);
}
