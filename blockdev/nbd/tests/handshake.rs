//! The handshake: every option, every refusal, and clients that do what they should not.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::large_stack_arrays,
    reason = "in a test a panic is a failure, numbers are small and the stack is large"
)]

mod common;

use afterimage_nbd::{Limits, Stop, serve_connection};
use common::raw::*;
use common::{Fixture, Random, eventually};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

#[test]
fn every_option_has_its_answer() {
    let fixture = Fixture::new();
    let mut raw = Raw::greeted(fixture.raw());
    for (number, data, answer) in [
        (LIST, vec![], ACK),
        (LIST, vec![1], INVALID),
        (STARTTLS, vec![], POLICY),
        (4, vec![], UNSUP),
        (0xffff_ffff, vec![7; 1000], UNSUP),
        (INFO, info("disk"), ACK),
        (INFO, info(""), ACK),
        (INFO, info("nope"), UNKNOWN),
        (GO, info("nope"), UNKNOWN),
        (INFO, vec![], INVALID),
        (GO, vec![0xff; 6], INVALID),
        (INFO, [&info("disk")[..], &[0]].concat(), INVALID),
        (INFO, [&string("disk")[..], &[0, 2, 0, 3]].concat(), INVALID),
        (INFO, [&[0, 0, 0, 2], &[0xff, 0xfe][..], &[0, 0]].concat(), INVALID),
        (SET_META, meta("disk", &["base:allocation"]), INVALID),
        (STRUCTURED, vec![1], INVALID),
        (STRUCTURED, vec![], ACK),
        (SET_META, meta("nope", &[]), UNKNOWN),
        (SET_META, vec![0; 3], INVALID),
        (SET_META, [&string("disk")[..], &[0xff; 4]].concat(), INVALID),
        (LIST_META, meta("disk", &["other:thing"]), ACK),
        (EXTENDED, vec![1], INVALID),
        (EXTENDED, vec![], ACK),
        (STRUCTURED, vec![], 0x8000_000a),
        (99, vec![0; 100 << 10], TOO_BIG),
        (ABORT, vec![1, 2, 3], ACK),
    ] {
        assert_eq!(raw.ask(number, &data), answer, "option {number} with {} bytes", data.len());
    }
    assert!(raw.assert_closed().is_empty());
    assert_eq!(fixture.server().stats().cut_off, 0);
}

#[test]
fn exports_and_contexts_are_listed() {
    let fixture = Fixture::new();
    let mut raw = Raw::greeted(fixture.raw());
    let listed: Vec<Vec<u8>> = raw.converse(LIST, &[]).into_iter().filter(|r| r.0 == 2).map(|r| r.1).collect();
    assert_eq!(listed.len(), 3);
    assert_eq!(listed[1], [&string("ro")[..], b"about ro"].concat());
    raw.ask(STRUCTURED, &[]);
    for (option, queries, found) in [
        (LIST_META, &[][..], true),
        (LIST_META, &["base:"], true),
        (LIST_META, &["x:y", "base:allocation"], true),
        (LIST_META, &["base:other", "nonsense"], false),
        (SET_META, &[], false),
        (SET_META, &["base:"], false),
        (SET_META, &["base:allocation"], true),
    ] {
        let replies = raw.converse(option, &meta("disk", queries));
        let context = replies.iter().find(|r| r.0 == 4).map(|r| r.1[4..].to_vec());
        assert_eq!(context, found.then(|| b"base:allocation".to_vec()), "{option} {queries:?}");
    }
    assert_eq!(afterimage_nbd::client::list(fixture.tcp()).unwrap().len(), 3);
}

/// A context counts for the export it was selected for, until the next selection, even a failed one.
#[test]
fn a_selected_context_is_that_of_the_export() {
    let fixture = Fixture::new();
    let status = request(7, 0, 1, 0, 4096);
    for (last, works) in [("disk", true), ("ro", false), ("nope", false)] {
        let mut raw = Raw::greeted(fixture.raw());
        raw.ask(STRUCTURED, &[]);
        raw.ask(SET_META, &meta("disk", &["base:allocation"]));
        raw.ask(SET_META, &meta(last, &["base:allocation"]));
        raw.ask(GO, &info("disk"));
        raw.send(&status);
        let head = raw.take(20);
        assert_eq!(head[7] == 5, works, "a structured chunk of type block status after {last}");
    }
}

#[test]
fn the_old_way_in() {
    let fixture = Fixture::new();
    for (flags, zeroes) in [(1u32, 124), (3, 0)] {
        let mut raw = Raw(fixture.raw());
        raw.take(18);
        raw.send(&flags.to_be_bytes());
        raw.send(&option(EXPORT_NAME, b"disk"));
        let reply = raw.take(10 + zeroes);
        assert_eq!(&reply[..8], (common::SIZE as u64).to_be_bytes());
        assert!(reply[10..].iter().all(|b| *b == 0));
        raw.send(&request(0, 0, 9, 0, 4));
        assert_eq!(raw.simple(), (0, 9));
        assert_eq!(raw.take(4), [0; 4]);
    }
}

/// What cannot be answered ends the connection.
#[test]
fn the_uncivil_are_cut_off() {
    let fixture = Fixture::new();
    let absurd = [&IHAVEOPT.to_be_bytes()[..], &[0, 0, 0, 99], &[0xff; 4]].concat();
    let endings: [(&[u32], Vec<u8>); 5] = [
        (&[], option(EXPORT_NAME, b"nope")),
        (&[EXTENDED], option(EXPORT_NAME, b"disk")),
        (&[], b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        (&[], absurd),
        (&[], option(EXPORT_NAME, &[0xff; 70_000])[..16].to_vec()),
    ];
    for (before, last) in endings {
        let mut raw = Raw::greeted(fixture.raw());
        before.iter().for_each(|o| assert_eq!(raw.ask(*o, &[]), ACK));
        raw.send(&last);
        assert!(raw.assert_closed().is_empty());
    }
    let mut raw = Raw(fixture.raw());
    raw.send(&4u32.to_be_bytes());
    raw.take(18);
    raw.assert_closed();
    fixture.assert_serves();
}

#[test]
fn thousands_of_options_are_too_many() {
    let fixture = Fixture::new();
    let mut raw = Raw::greeted(fixture.raw());
    for _ in 0..Limits::default().options {
        assert_eq!(raw.ask(98, &[]), UNSUP);
    }
    raw.assert_closed();
    assert_eq!(fixture.server().stats().cut_off, 1);
    // Also one that does not wait for the answers.
    let mut raw = Raw::greeted(fixture.raw());
    let flood = option(LIST, &[]).repeat(5000);
    let _ = raw.0.write_all(&flood);
    raw.assert_closed();
    fixture.assert_serves();
}

#[test]
fn the_silent_are_cut_off() {
    let limits = Limits { handshake_time: Duration::from_millis(200), ..Limits::default() };
    let fixture = Fixture::with(limits);
    let mut silent = Raw(fixture.raw());
    let mut greeted = Raw::greeted(fixture.raw());
    let mut halfway = Raw::greeted(fixture.raw());
    halfway.send(&option(GO, &info("disk"))[..20]);
    fixture.assert_serves();
    silent.take(18);
    for raw in [&mut silent, &mut greeted, &mut halfway] {
        assert!(raw.assert_closed().is_empty());
    }
    eventually("three were cut off", || fixture.server().stats().cut_off == 3);
}

/// Silent clients cannot keep others out: the oldest handshake makes room.
#[test]
fn too_many_handshakes_cut_off_the_oldest() {
    let fixture = Fixture::with(Limits { handshakes: 3, ..Limits::default() });
    let mut silent: Vec<Raw> = (0..12).map(|_| Raw::greeted(fixture.raw())).collect();
    fixture.assert_serves();
    silent[..8].iter_mut().for_each(|raw| assert!(raw.assert_closed().is_empty()));
    let mut last = silent.pop().unwrap();
    assert_eq!(last.ask(GO, &info("disk")), ACK);
}

/// Feeds bytes to a server of one connection, and takes what it says, until it hangs up.
fn feed(fixture: &Fixture, bytes: &[u8]) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let limits = Limits {
        handshake_time: Duration::from_millis(50),
        payload_time: Duration::from_millis(50),
        ..Limits::default()
    };
    let exports = Arc::clone(&fixture.exports);
    let server = thread::spawn(move || serve_connection(theirs.into(), exports, &limits, &Stop::new().unwrap()));
    let mut reader = ours.try_clone().unwrap();
    let drain = thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    let _ = ours.write_all(bytes);
    let _ = ours.shutdown(std::net::Shutdown::Write);
    // The outcome is the server's business; that it comes, and is no panic, is ours.
    let _ = server.join().expect("the server panicked");
    drop(ours);
    let _ = drain.join().unwrap();
}

/// A valid conversation with a few bytes changed, moved or cut.
fn mutate(random: &mut Random, valid: &[u8]) -> Vec<u8> {
    let mut bytes = valid.to_vec();
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len() as u64) as usize;
        match random.below(4) {
            0 => bytes[at] = random.next().to_le_bytes()[0],
            1 => bytes[at] ^= 1 << random.below(8),
            2 => {
                let junk = random.below(20) as usize;
                bytes.splice(at..at, random.bytes(junk));
            }
            _ => drop(bytes.drain(at..(at + random.below(9) as usize).min(bytes.len()))),
        }
        if bytes.is_empty() {
            return bytes;
        }
    }
    bytes
}

#[test]
fn any_bytes_end_in_peace() {
    let fixture = Fixture::new();
    let handshake = |mode: u32| -> Vec<u8> {
        [
            3u32.to_be_bytes().to_vec(),
            option(mode, &[]),
            option(LIST, &[]),
            option(SET_META, &meta("disk", &["base:allocation"])),
            option(INFO, &info("disk")),
            option(GO, &info("disk")),
        ]
        .concat()
    };
    let mut compact = handshake(STRUCTURED);
    let mut extended = handshake(EXTENDED);
    for command in 0..9u16 {
        let payload = if command == 1 { vec![1; 512] } else { vec![] };
        compact.extend([request(command, 0, 1, 4096, 512), payload.clone()].concat());
        extended.extend([wide(command, if command == 1 { 32 } else { 0 }, 1, 4096, 512), payload].concat());
    }
    for seed in 0..150 {
        let mut random = Random::new(seed);
        let bytes = match seed % 3 {
            0 => random.bytes(200),
            1 => mutate(&mut random, &compact),
            _ => mutate(&mut random, &extended),
        };
        feed(&fixture, &bytes);
    }
    fixture.assert_serves();
}
