//! Opening a ring that is there: check everything, then repair what dead writers left, then take it into use.
//!
//! Checks only read; whatever they find, the file is then as it was. The repairs may be cut off by another kill at any
//! point: each is one store that makes a slot whole, and what it makes is found again.

use super::{Recovered, Ring, file_error};
use crate::error::{Closed, RingError};
use crate::file::{self, doing, word_of};
use crate::head::Shape;
use crate::live::core::{Core, SEQ, Start, to_words};
use crate::map::Map;
use crate::recovery::Action;
use crate::survey::{Survey, SurveyError, survey};
use afterimage_base::world::fs::File;
use afterimage_format::codec::DecodeError;
use afterimage_format::record::Kind;
use afterimage_format::ring::{FIXED_LEN, PAGE, RingHeader, Tail, word};
use std::path::Path;
use std::sync::atomic::Ordering;

/// The header page, checked.
struct Head {
    header: RingHeader,
    tail: Tail,
    clean: u64,
    /// Time of closing, 0 while open.
    closed: u64,
    boot: [u64; 2],
}

impl Ring {
    /// Opens the ring at `path`, checks every record in it and repairs what dead writers left.
    ///
    /// # Errors
    /// As [`RingError`] says; the file is then as it was.
    pub fn open(path: &Path, volume: [u8; 16]) -> Result<(Ring, Recovered), RingError> {
        let error = file_error(path);
        let file = file::open(path).map_err(&error)?;
        let head = read_head(path, &file, volume)?;
        let Head { header, tail, .. } = head;
        let found = survey(&file, &header, &tail).map_err(|e| match e {
            SurveyError::File(e) => error(e),
            SurveyError::Damaged(d) => {
                RingError::Damaged { path: path.to_path_buf(), seq: d.seq, what: d.what, offset: d.offset }
            }
        })?;
        if head.clean != 0 && head.clean != header.clean_mark(tail.seq, found.head.seq) {
            return Err(RingError::Header { path: path.to_path_buf(), what: "clean mark" });
        }
        let map = Map::new(&file, header.file_len(), header.data_at()).map_err(doing("map it")).map_err(&error)?;
        repair(&map, &header, &found);
        let closed = settle_closed(&map, &head, &found);
        take_into_use(&map, &head).map_err(doing("sync its header")).map_err(&error)?;
        let seqs = |action| found.kept.iter().filter(move |k| k.action == action).map(|k| k.record.seq);
        let recovered = Recovered {
            first: tail.seq,
            next: found.head.seq,
            redo: seqs(Action::Redo).collect(),
            voided: seqs(Action::Void).collect(),
            closed,
            clean: head.clean != 0,
        };
        let start = Start { tail, head: found.head, lap_end: found.lap_end, closed: closed.is_some() };
        Ok((Ring::on(path, file, Core::new(map, header, &start)), recovered))
    }
}

fn read_head(path: &Path, file: &File, volume: [u8; 16]) -> Result<Head, RingError> {
    let error = file_error(path);
    let path = path.to_path_buf();
    let have = file.metadata().map_err(doing("look at it")).map_err(&error)?.len;
    if have < PAGE {
        return Err(RingError::Truncated { path, need: PAGE, have });
    }
    let mut page = [0; 4096];
    file::read_at(file, &mut page, 0).map_err(&error)?;
    let mut fixed = [0; FIXED_LEN];
    fixed.copy_from_slice(&page[..FIXED_LEN]);
    let header = match RingHeader::decode(&fixed) {
        Ok(header) => header,
        Err(why @ DecodeError::Magic { .. }) => return Err(RingError::NotARing { path, why }),
        Err(why @ DecodeError::Version { .. }) => return Err(RingError::Version { path, why }),
        Err(_) => return Err(RingError::Header { path, what: "its first 64 bytes" }),
    };
    if header.volume != volume {
        let [found, wanted] = [header.volume, volume].map(uuid::Uuid::from_bytes);
        return Err(RingError::OtherVolume { path, found, wanted });
    }
    if have < header.file_len() {
        return Err(RingError::Truncated { path, need: header.file_len(), have });
    }
    let boot = file::boot_id().map_err(&error)?;
    check_words(&path, header, &page, boot)
}

/// Checks the words of the header page that change.
fn check_words(path: &Path, header: RingHeader, page: &[u8; 4096], boot: [u64; 2]) -> Result<Head, RingError> {
    let damaged = |what| RingError::Header { path: path.to_path_buf(), what };
    let word = |index| word_of(page, index);
    let clean = word(word::CLEAN);
    // After a clean stop it does not matter which boot it was, and a kill while it is changed leaves any mixture.
    if clean == 0 {
        let left = [word(word::BOOT), word(word::BOOT + 1)];
        if word(word::BOOT_CHECK) != header.boot_check(left) {
            return Err(damaged("boot id"));
        }
        if left != boot {
            return Err(RingError::OtherBoot { path: path.to_path_buf() });
        }
    }
    let closed = word(word::CLOSED);
    if closed != 0 && word(word::CLOSED_CHECK) != header.closed_check(closed) {
        return Err(damaged("time of closing"));
    }
    let turn = word(word::TURN);
    let at = word::TAILS[usize::from(turn % 2 == 1)];
    let tail = Tail::decode(std::array::from_fn(|i| word(at + i)), turn, &header.ring).map_err(|_| damaged("tail"))?;
    Ok(Head { header, tail, clean, closed, boot })
}

/// Makes every kept slot say what was found in it.
fn repair(map: &Map, header: &RingHeader, found: &Survey) {
    let shape = Shape { slots: header.slots, pages: header.pages };
    for kept in &found.kept {
        let slot = map.slot(shape.slot(kept.record.seq));
        if kept.action == Action::Void {
            for (i, value) in to_words(&kept.record.encode()).iter().enumerate().filter(|(i, _)| *i != SEQ) {
                slot[i].store(*value, Ordering::Relaxed);
            }
        }
        if slot[SEQ].load(Ordering::Relaxed) != kept.record.seq {
            slot[SEQ].store(kept.record.seq, Ordering::Release);
        }
    }
}

/// Whether the ring is closed. If its last record is the Gap of this very closing, it was being reopened: the
/// gap is on record, so it is open.
fn settle_closed(map: &Map, head: &Head, found: &Survey) -> Option<Closed> {
    if head.closed == 0 {
        return None;
    }
    let last = found.kept.last().map(|k| k.record);
    if last.is_some_and(|r| r.kind == Kind::Gap && r.offset == head.closed) {
        map.header(word::CLOSED).store(0, Ordering::Release);
        return None;
    }
    Some(Closed { seq: found.head.seq, time: head.closed })
}

/// Takes the clean mark away, durably, before anything is written: a later power cut must not find it.
fn take_into_use(map: &Map, head: &Head) -> std::io::Result<()> {
    if head.clean == 0 {
        return Ok(());
    }
    map.header(word::BOOT).store(head.boot[0], Ordering::Relaxed);
    map.header(word::BOOT + 1).store(head.boot[1], Ordering::Relaxed);
    map.header(word::BOOT_CHECK).store(head.header.boot_check(head.boot), Ordering::Relaxed);
    map.header(word::CLEAN).store(0, Ordering::Release);
    map.sync_header()
}
