//! Judges each slot of a ring file for recovery, by reading the file (not the map: a short read is an error, not
//! a signal), and computes where everything stands. Nothing is changed here.

use crate::file::{FileError, read_at};
use crate::head::{Point, Shape};
use crate::live::core::{SEQ, to_bytes, to_words};
use crate::recovery::{Action, Observed, plan};
use afterimage_base::world::fs::File;
use afterimage_format::record::{Kind, Record};
use afterimage_format::ring::{DONE, END_MASK, PAGE, RingHeader, SLOT, Tail};
use xxhash_rust::xxh3::xxh3_64;

/// Why a slot is damaged, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Damage {
    pub(crate) seq: u64,
    pub(crate) what: &'static str,
    pub(crate) offset: u64,
}

/// Why a survey ended early.
#[derive(Debug)]
pub(crate) enum SurveyError {
    File(FileError),
    Damaged(Damage),
}

impl From<FileError> for SurveyError {
    fn from(e: FileError) -> Self {
        SurveyError::File(e)
    }
}

/// One slot that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) action: Action,
    /// The record; a Void for `Action::Void`. `place` holds pages and DONE bits.
    pub(crate) record: Record,
}

/// What is in a ring: records from the tail to the head.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) kept: Vec<Kept>,
    pub(crate) head: Point,
    /// Where the lap before the head's ended.
    pub(crate) lap_end: u64,
}

/// What is known of the pages in front of a slot.
#[derive(Debug, Clone, Copy)]
struct Chain {
    /// Pages used at least.
    end: u64,
    /// The slot in front holds a record, so these are all that were used.
    exact: bool,
}

/// Reads and judges the ring. `tail` has been checked.
pub(crate) fn survey(file: &File, header: &RingHeader, tail: &Tail) -> Result<Survey, SurveyError> {
    let slots = read_slots(file, header)?;
    let shape = Shape { slots: header.slots, pages: header.pages };
    let mut chain = Chain { end: tail.pages, exact: true };
    let mut window = Vec::with_capacity(slots.len());
    let mut records = Vec::with_capacity(slots.len());
    let mut first_damage = None;
    let mut payload = Vec::new();
    for seq in tail.seq..tail.seq.saturating_add(header.slots) {
        let words = slots.get(usize::try_from(shape.slot(seq)).unwrap_or(0)).copied().unwrap_or_default();
        let judged = judge(words, seq, shape, chain, tail.pages, |page, len| {
            payload.resize(len, 0);
            read_at(file, &mut payload, header.data_at() + page * PAGE)?;
            Ok(xxh3_64(&payload))
        });
        let (observed, record) = judged?;
        match record {
            Ok(record) => chain = Chain { end: record.place & END_MASK, exact: true },
            Err(what) => {
                chain.exact = false;
                if observed == Observed::Damaged && first_damage.is_none() {
                    first_damage = Some(Damage { seq, what, offset: damage_offset(header, shape, seq, what, &words) });
                }
            }
        }
        window.push(observed);
        records.push(record.ok());
    }
    if let Some(damage) = first_damage {
        return Err(SurveyError::Damaged(damage));
    }
    // No slot is damaged, so there is a plan.
    let actions = plan(&window).unwrap_or_default();
    Ok(assemble(&actions, &records, tail, shape))
}

fn damage_offset(header: &RingHeader, shape: Shape, seq: u64, what: &str, words: &[u64; 8]) -> u64 {
    let slot = PAGE + shape.slot(seq) * SLOT;
    if what != PAYLOAD {
        return slot;
    }
    let pages = Record::decode(&to_bytes(words)).map_or(0, |r| pages_of(&r));
    header.data_at() + (words[6] & END_MASK).saturating_sub(pages) % header.pages * PAGE
}

fn read_slots(file: &File, header: &RingHeader) -> Result<Vec<[u64; 8]>, FileError> {
    const STEP: u64 = 1 << 20;
    let mut slots = Vec::with_capacity(usize::try_from(header.slots).unwrap_or(0));
    let mut buf = vec![0; 1 << 20];
    let total = header.slots * SLOT;
    let mut at = 0;
    while at < total {
        let step = usize::try_from(STEP.min(total - at)).unwrap_or(0);
        read_at(file, &mut buf[..step], PAGE + at)?;
        slots.extend(buf[..step].as_chunks::<64>().0.iter().map(to_words));
        at += step as u64;
    }
    Ok(slots)
}

/// Data pages that a record takes.
pub(crate) fn pages_of(record: &Record) -> u64 {
    (record.payload_len() as u64).div_ceil(PAGE)
}

const PAYLOAD: &str = "payload";

type Judged = (Observed, Result<Record, &'static str>);

/// Judges the slot of `seq`. `hash` reads the payload of so many bytes from that data page on.
///
/// The digest covers the seq. So a slot whose digest fits `seq` holds that whole record even if its seq word does not
/// say so (the writer was killed right before that store, or the word was damaged), and is taken for one. A slot that
/// says `seq` and is not whole is damaged; so is one whose word is not 0 and not that of an earlier lap.
fn judge(
    mut words: [u64; 8],
    seq: u64,
    shape: Shape,
    chain: Chain,
    tail_pages: u64,
    hash: impl FnOnce(u64, usize) -> Result<u64, FileError>,
) -> Result<Judged, FileError> {
    let said = words[SEQ];
    words[SEQ] = seq;
    let whole = match Record::decode(&to_bytes(&words)) {
        Err(_) => Err("header"),
        Ok(record) => check_place(&record, shape, chain, tail_pages),
    };
    let whole = match whole {
        Ok(record) if pages_of(&record) > 0 => {
            let page = ((record.place & END_MASK) - pages_of(&record)) % shape.pages;
            if hash(page, record.payload_len())? == record.payload_hash { Ok(record) } else { Err(PAYLOAD) }
        }
        other => other,
    };
    let observed = match &whole {
        Ok(record) if record.place & !END_MASK == DONE => Observed::Done,
        Ok(_) => Observed::Undone,
        Err(_) if said == 0 || (said < seq && shape.slot(said) == shape.slot(seq)) => Observed::Absent,
        Err(_) => Observed::Damaged,
    };
    Ok((observed, whole))
}

/// Whether a record's place fits those in front of it: it follows at once, or further on in the same lap (behind what was held of the
/// lap before), or at the beginning of the next lap. That the bytes there are its own is for the hash of its payload to say.
fn check_place(record: &Record, shape: Shape, chain: Chain, tail_pages: u64) -> Result<Record, &'static str> {
    let (flags, end, n) = (record.place & !END_MASK, record.place & END_MASK, pages_of(record));
    let Some(begin) = end.checked_sub(n).filter(|begin| *begin >= chain.end) else { return Err("place") };
    // Records of two laps at most are held.
    let in_window = end <= shape.lap(tail_pages) + 2 * shape.pages;
    let whole = n == 0 || begin % shape.pages + n <= shape.pages;
    let (here, before) = (shape.lap(begin), shape.lap(chain.end));
    // A Void keeps the pages that its writer had taken, and behind an absent record it is not known what was.
    let follows = if !chain.exact || record.kind == Kind::Void {
        true
    } else if n == 0 {
        begin == chain.end
    } else {
        here == before || begin == before + shape.pages
    };
    if (flags == 0 || flags == DONE) && in_window && whole && follows { Ok(*record) } else { Err("place") }
}

/// Voids get the pages that are missing before the record behind them, and the time of the record before them.
fn assemble(actions: &[Action], records: &[Option<Record>], tail: &Tail, shape: Shape) -> Survey {
    let mut kept: Vec<Kept> = Vec::with_capacity(actions.len());
    let mut time = 0;
    for (i, action) in actions.iter().enumerate() {
        let seq = tail.seq + i as u64;
        let void = Record { kind: Kind::Void, flags: 0, seq, offset: 0, len: 0, time, payload_hash: 0, place: DONE };
        let record = records.get(i).copied().flatten().unwrap_or(void);
        time = record.time;
        kept.push(Kept { action: *action, record });
    }
    let last_end = kept.last().map_or(tail.pages, |k| k.record.place & END_MASK);
    let mut begin = last_end;
    for k in kept.iter_mut().rev() {
        if k.action == Action::Void {
            k.record.place = DONE | begin;
        }
        begin = (k.record.place & END_MASK) - pages_of(&k.record);
    }
    let head = Point { seq: tail.seq + kept.len() as u64, pages: last_end };
    let base = shape.lap(last_end);
    // One that ended at `base` itself ended with its lap.
    let ends = kept.iter().map(|k| k.record.place & END_MASK);
    let lap_end = ends.take_while(|end| *end <= base).last().unwrap_or(0).max(tail.pages.min(base));
    Survey { kept, head, lap_end }
}

#[cfg(test)]
#[path = "survey_tests.rs"]
mod tests;
