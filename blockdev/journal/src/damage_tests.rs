//! Rings that were damaged, cut, moved to another volume or another boot: each refused by name, or not harmed.

#![expect(clippy::cast_possible_truncation, reason = "numbers of a test are small")]

use super::tests::{NOW, VOLUME, check, write};
use super::*;
use afterimage_format::ring::DONE;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use tempfile::TempDir;

/// A ring with two laps behind it, records of every kind, done and not, and a Void, left by a killed process.
fn used() -> (TempDir, PathBuf, Vec<(Record, Vec<u8>)>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ring");
    let ring = Ring::create_sized(&path, 64, 24, VOLUME, 1).unwrap();
    for i in 0..150 {
        let seq = write(&ring, i, 1 + (i as usize * 997) % 9000).unwrap();
        ring.mark_done(seq);
        ring.set_durable(seq);
    }
    write(&ring, 0, 5000).unwrap();
    ring.mark_done(write(&ring, 4096, 4096).unwrap());
    drop(ring.reserve(Kind::Write, 0, 0, 8192, 8192).unwrap());
    ring.reserve(Kind::Zero, 0, 0, 1 << 30, 0).unwrap().publish(NOW);
    let mut point = ring.reserve(Kind::Point, 0, 0, 4, 4).unwrap();
    point.payload_mut().copy_from_slice(b"noon");
    point.publish(NOW);
    write(&ring, 9, 12_000).unwrap();
    let held = contents(&ring);
    (dir, path, held)
}

fn contents(ring: &Ring) -> Vec<(Record, Vec<u8>)> {
    // The pages of a Void hold nothing; which they were does not matter.
    let place = |r: &Record| if r.kind == Kind::Void { r.place & !END_MASK } else { r.place };
    let get = |seq| {
        let found = ring.record(seq).unwrap().unwrap();
        (Record { place: place(&found.record), ..found.record }, found.payload().to_vec())
    };
    (ring.first()..ring.next()).map(get).collect()
}

fn poke(path: &Path, at: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

/// What opening says; the error's text has to name the file.
fn open(path: &Path) -> Result<(Ring, Recovered), RingError> {
    Ring::open(path, VOLUME).inspect_err(|e| {
        assert!(e.to_string().contains(path.to_str().unwrap()), "{e}");
    })
}

#[test]
fn a_flipped_byte_anywhere_is_named_or_does_no_harm() {
    let (_dir, path, held) = used();
    let good = fs::read(&path).unwrap();
    let data_at = 4096 + 64 * 64;
    let header_and_slots = 0..data_at;
    let (mut refused, mut harmless) = (0, 0);
    for at in header_and_slots.chain((data_at..good.len()).step_by(509)) {
        if (320..4096).contains(&at) && at % 64 != 0 {
            continue;
        }
        for flip in [0x01, 0x80, 0xff] {
            poke(&path, at as u64, &[good[at] ^ flip]);
            match open(&path) {
                Ok((ring, found)) => {
                    assert_eq!(contents(&ring), held, "byte {at} ^ {flip:#x}");
                    assert_eq!((found.voided.len(), found.closed), (0, None));
                    harmless += 1;
                }
                Err(RingError::Damaged { seq, offset, .. }) => {
                    let at = at as u64;
                    // The pages of a Void are told only by the record behind it, which is then the one that does not fit.
                    let behind_void = offset == 64 * (at / 64 + 1);
                    let named = if offset < data_at as u64 { offset / 64 == at / 64 } else { offset <= at };
                    // A wrong place leads to bytes that are not the record's: then these may be named.
                    let place = at / 64 == 64 + seq % 64 && at % 64 / 8 == 6;
                    assert!(
                        (named || behind_void || place) && (151..151 + 64).contains(&seq),
                        "byte {at}, said {seq} {offset}"
                    );
                    refused += 1;
                }
                Err(
                    RingError::NotARing { .. }
                    | RingError::Version { .. }
                    | RingError::Header { .. }
                    | RingError::OtherVolume { .. },
                ) => {
                    assert!(at < 4096);
                    refused += 1;
                }
                Err(e) => panic!("byte {at}: {e}"),
            }
            poke(&path, at as u64, &[good[at]]);
        }
    }
    assert!(refused > 1500 && harmless > 1000, "{refused} {harmless}");
    assert_eq!(fs::read(&path).unwrap(), good, "opening changes nothing but what it repairs");
}

#[test]
fn a_cut_ring_is_refused_at_every_length() {
    let (_dir, path, _) = used();
    let full = fs::metadata(&path).unwrap().len();
    for len in [full - 1, full - 4096, 9000, 4096, 4095, 64, 1, 0] {
        OpenOptions::new().write(true).open(&path).unwrap().set_len(len).unwrap();
        let error = open(&path).err().unwrap();
        assert!(matches!(error, RingError::Truncated { have, .. } if have == len), "{len}: {error}");
    }
}

#[test]
fn other_files_volumes_boots_and_processes() {
    let (dir, path, _) = used();
    assert!(matches!(Ring::open(&path, [8; 16]), Err(RingError::OtherVolume { .. })));
    let other = dir.path().join("text");
    fs::write(&other, vec![b'x'; 10_000]).unwrap();
    assert!(matches!(open(&other), Err(RingError::NotARing { .. })));
    assert!(matches!(open(&dir.path().join("none")), Err(RingError::Io { .. })));
    assert!(matches!(open(dir.path()), Err(RingError::Io { .. })));
    let (ring, _) = open(&path).unwrap();
    assert!(matches!(open(&path), Err(RingError::InUse { .. })));
    let again = Ring::create(&path, RingConfig { bytes: 4 << 20 }, VOLUME, 1);
    assert!(matches!(again, Err(RingError::InUse { .. })));
    drop(ring);
    poke(&path, 4, &[9]);
    assert!(matches!(open(&path), Err(RingError::Version { .. })));
    for bytes in [0, 4 << 10, (4 << 20) + 1, MAX_PAGES * PAGE] {
        let made = Ring::create(&other, RingConfig { bytes }, VOLUME, 1);
        assert!(matches!(made, Err(RingError::Size { .. })), "{bytes}");
    }
    assert_eq!(fs::read(&other).unwrap(), vec![b'x'; 10_000]);
}

/// Makes the file look as if it was left on another boot.
fn reboot(path: &Path, header: &RingHeader) {
    let boot = [1u64, 2];
    let words: Vec<u8> = [boot[0], boot[1], header.boot_check(boot)].iter().flat_map(|w| w.to_le_bytes()).collect();
    poke(path, word::BOOT as u64 * 8, &words);
}

#[test]
fn another_boot_needs_a_clean_stop() {
    let (_dir, path, held) = used();
    let (ring, found) = open(&path).unwrap();
    assert!(!found.clean);
    let header = ring.core.header;
    drop(ring);
    reboot(&path, &header);
    assert!(matches!(open(&path), Err(RingError::OtherBoot { .. })));

    let (_dir, path, held_too) = used();
    let (ring, _) = open(&path).unwrap();
    ring.mark_clean().unwrap();
    let header = ring.core.header;
    drop(ring);
    reboot(&path, &header);
    let (ring, found) = open(&path).unwrap();
    assert!(found.clean);
    assert_eq!(contents(&ring).len(), held.len());
    assert_eq!(contents(&ring), held_too);
    drop(ring);
    assert!(!open(&path).unwrap().1.clean, "the mark counts once");
}

#[test]
fn a_full_disk_is_named_and_leaves_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ring");
    fs::write(&path, b"old").unwrap();
    // No file system has room for this.
    let error = Ring::create(&path, RingConfig { bytes: (MAX_PAGES - 1) * PAGE }, VOLUME, 1).err().unwrap();
    assert!(matches!(&error, RingError::Io { doing, .. } if doing.contains("allocate")), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn what_dead_writers_leave_is_made_void_or_kept() {
    let (_dir, path, held) = used();
    let (ring, _) = open(&path).unwrap();
    let first = ring.first();
    let slot_of = |seq: u64| 4096 + (seq % 64) * 64;
    drop(ring);
    // The third record from the end was not published: half of its header is there.
    let lost = first + held.len() as u64 - 3;
    poke(&path, slot_of(lost) + 8, &(lost - 64).to_le_bytes());
    poke(&path, slot_of(lost) + 24, &[1, 2, 3]);
    // The last but one was whole but for its seq.
    let late = lost + 1;
    poke(&path, slot_of(late) + 8, &(late - 64).to_le_bytes());
    let (ring, found) = open(&path).unwrap();
    assert_eq!(found.voided, [lost]);
    let now = contents(&ring);
    let i = (lost - first) as usize;
    assert_eq!((now[i].0.kind, now[i].0.time), (Kind::Void, NOW));
    assert_eq!(now[i].0.place & !END_MASK, DONE);
    assert_eq!((&now[..i], &now[i + 1..]), (&held[..i], &held[i + 1..]));
    drop(ring);
    let (ring, found) = open(&path).unwrap();
    assert_eq!((found.voided, contents(&ring)), (vec![], now), "a second recovery finds what the first made");
    let next = ring.next();
    check(&ring, write(&ring, 0, 100).unwrap());
    assert_eq!(ring.next(), next + 1);
}

#[test]
fn a_kill_while_closing_or_reopening_never_loses_the_gap() {
    let (_dir, path, held) = used();
    let (ring, _) = open(&path).unwrap();
    let next = ring.next();
    // Closing: the time is there, the head (which no file holds) was not closed yet.
    ring.close(NOW);
    drop(ring);
    let (ring, found) = open(&path).unwrap();
    assert_eq!(found.closed, Some(Closed { seq: next, time: NOW }));
    assert!(ring.is_closed() && matches!(ring.reserve(Kind::Zero, 0, 0, 1, 0), Err(ReserveError::Closed)));
    assert_eq!(ring.reopen(0, NOW + 5, 0, None), Ok(next));
    drop(ring);
    // Reopening: the Gap is published, the time of closing still there.
    poke(&path, word::CLOSED as u64 * 8, &NOW.to_le_bytes());
    let (ring, found) = open(&path).unwrap();
    assert_eq!((found.closed, ring.is_closed(), found.next), (None, false, next + 1));
    assert_eq!(contents(&ring).len(), held.len() + 1);
    assert_eq!(ring.record(next).unwrap().unwrap().record.kind, Kind::Gap);
}
