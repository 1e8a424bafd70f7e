//! A child process writes with four threads and is stopped and killed at random moments; its ring is then opened.
//!
//! The child notes each seq in a second mapped file once its publish has returned, and once it has been marked
//! done, so what must be in the ring is known. While it is stopped (SIGSTOP, so no thread is between two
//! instructions that a copy could tear apart) the file is copied: the same as a kill at that moment.
#![allow(clippy::disallowed_methods, reason = "it runs in the real world")]
#![expect(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test, with small numbers")]

use afterimage_format::record::Kind;
use afterimage_journal::{Ring, RingConfig};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

const VOLUME: [u8; 16] = [9; 16];
const CHILD: &str = "AFTERIMAGE_RING_CHILD";
/// Seqs that a child may use.
const NOTES: u64 = 1 << 20;
const PUBLISHED: u8 = 1;
const DONE: u8 = 2;
const DURABLE: u8 = 3;

fn byte(seq: u64, i: u64) -> u8 {
    (seq.wrapping_mul(31).wrapping_add(i / 512)) as u8
}

fn len_of(seq: u64) -> usize {
    (seq.wrapping_mul(2_654_435_761) % 20_000) as usize
}

/// The child: writes until it is killed. As a test of its own it does nothing.
#[test]
fn child_writer() {
    let Some(dir) = std::env::var_os(CHILD) else {
        return;
    };
    let dir = Path::new(&dir);
    let (ring, _) = Ring::open(&dir.join("ring"), VOLUME).unwrap();
    let notes = Notes::open(&dir.join("notes"));
    thread::scope(|s| {
        for t in 0..4 {
            let (ring, notes) = (&ring, &notes);
            s.spawn(move || writer(ring, notes, t));
        }
        // The appliance lags behind, so that the ring holds something; then it is full for a while.
        while ring.next() + 100 < NOTES {
            let upto = ring.next().saturating_sub(300);
            for seq in ring.first()..upto {
                if ring.wait_published(seq, Duration::from_millis(1)) && notes.get(seq) == DONE {
                    notes.set(seq, DURABLE);
                    ring.set_durable(seq);
                } else {
                    break;
                }
            }
        }
    });
}

fn writer(ring: &Ring, notes: &Notes, t: u64) {
    let mut n = t;
    while ring.next() + 100 < NOTES {
        n += 1;
        if n.is_multiple_of(7) {
            if let Ok(r) = ring.reserve(Kind::Zero, 0, n * 512, 4096, 0) {
                note(ring, notes, r.publish(n));
            }
            continue;
        }
        let len = len_of(n);
        let Ok(mut r) = ring.reserve(Kind::Write, 0, n, len as u64, len) else {
            thread::yield_now();
            continue;
        };
        if n.is_multiple_of(50) {
            let seq = r.seq();
            drop(r);
            note(ring, notes, seq);
            continue;
        }
        let seq = r.seq();
        for (i, b) in r.payload_mut().iter_mut().enumerate() {
            *b = byte(seq, i as u64);
        }
        note(ring, notes, r.publish(n));
    }
}

/// The order of an agent: published, on the disk, done.
fn note(ring: &Ring, notes: &Notes, seq: u64) {
    notes.set(seq, PUBLISHED);
    ring.mark_done(seq);
    notes.set(seq, DONE);
}

/// One byte for each seq, shared with the parent by the page cache.
struct Notes(File);

impl Notes {
    fn open(path: &Path) -> Notes {
        Notes(OpenOptions::new().read(true).write(true).open(path).unwrap())
    }

    fn set(&self, seq: u64, v: u8) {
        assert!(seq < NOTES);
        self.0.write_all_at(&[v], seq).unwrap();
    }

    fn get(&self, seq: u64) -> u8 {
        let mut b = [0];
        self.0.read_exact_at(&mut b, seq).unwrap();
        b[0]
    }
}

fn start(dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_writer", "--test-threads=1"])
        .env(CHILD, dir)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Opens a ring and holds it against the notes. Returns (records held, voided, to do again).
fn check(ring: &Path, notes: &[u8], from: u64) -> (u64, usize, usize) {
    let (ring, found) = Ring::open(ring, VOLUME).unwrap();
    let noted = notes.iter().rposition(|n| *n != 0).unwrap_or(0) as u64;
    assert!(found.next > noted || noted < from, "seq {noted} was published, the ring ends at {}", found.next);
    for seq in from.min(found.first)..found.first {
        assert_eq!(notes[seq as usize], DURABLE, "{seq} was freed");
    }
    for seq in found.first..found.next {
        let held = ring.record(seq).unwrap().unwrap();
        let note = notes[seq as usize];
        assert!(note == 0 || !found.voided.contains(&seq), "{seq} was published and is void");
        assert!(note < DONE || !found.redo.contains(&seq), "{seq} was done");
        for (i, b) in held.payload().iter().enumerate() {
            assert_eq!(*b, byte(seq, i as u64), "{seq} byte {i}");
        }
    }
    for seq in &found.redo {
        ring.mark_done(*seq);
    }
    (found.next - found.first, found.voided.len(), found.redo.len())
}

#[test]
fn nothing_published_is_lost_by_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let (ring, notes) = (dir.path().join("ring"), dir.path().join("notes"));
    let copy = dir.path().join("copy");
    drop(Ring::create(&ring, RingConfig { bytes: 4 << 20 }, VOLUME, 1).unwrap());
    File::create(&notes).unwrap().set_len(NOTES).unwrap();
    let (mut held, mut voided, mut redo) = (0, 0, 0);
    for round in 0..30u64 {
        let from = Ring::open(&ring, VOLUME).unwrap().1.next;
        let mut child = start(dir.path());
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        while Notes::open(&notes).get(from + 1) == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        for pause in 0..2 {
            thread::sleep(Duration::from_micros(300 + (round * 7 + pause * 13) * 97 % 3000));
            kill(pid, Signal::SIGSTOP).unwrap();
            waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
            fs::copy(&ring, &copy).unwrap();
            let noted = fs::read(&notes).unwrap();
            kill(pid, Signal::SIGCONT).unwrap();
            let found = check(&copy, &noted, from);
            (held, voided, redo) = (held + found.0, voided + found.1, redo + found.2);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let noted = fs::read(&notes).unwrap();
        let found = check(&ring, &noted, from);
        (held, voided, redo) = (held + found.0, voided + found.1, redo + found.2);
        // What was not noted before the kill is known now, as if it had been: the next child's sender may free it.
        let (opened, _) = Ring::open(&ring, VOLUME).unwrap();
        let all = Notes::open(&notes);
        (opened.first()..opened.next()).for_each(|seq| all.set(seq, DONE));
    }
    eprintln!("{held} records held, {voided} made void, {redo} to be done again, over 90 openings");
    assert!(held > 90 && redo > 0, "the kills hit a ring in use");
}
