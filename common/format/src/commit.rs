//! The content of a commit frame: the records of a batch and where their blocks are.
//!
//! ```text
//! volume id (16), ring id (16), digest of the last record (8), number of records (LEB128), then each record:
//!   kind (1), flags (1), seq less that of the record before (LEB128; the first: seq itself), time likewise
//!   write, zero   offset, len, number of runs (LEB128 each), then each run:
//!                   block less the end of the run before (LEB128; the first: block itself),
//!                   count (LEB128), place less the place before it in this frame (zigzag LEB128)
//!   point         name (u16 length, text); with FLAG_NOTE the noted seq (LEB128) and the note (u16 length, text)
//!   gap           when it began (LEB128); with FLAG_SIZED also what a resize has
//!   resize        size of the volume (LEB128), number of runs, runs: what a smaller size drops becomes zero
//! ```
//!
//! A run says that blocks `block..block + count` have place, place + 1 slot, and so on, or are all zero. A write that
//! does not cover whole blocks still names whole blocks: what it left alone is copied from their version before.

use crate::codec::{DecodeError, Reader, Writer};
use crate::place::Place;
use crate::record::{FLAG_NOTE, FLAG_SIZED, Kind, MAX_NAME, MAX_NOTE, MAX_VOLUME, Record};

/// When a frame is this long, it takes no more records: the longest record still fits behind it.
pub const SOFT_LIMIT: usize = 96 << 10;
const WHAT: &str = "commit frame";

/// Where some neighbouring blocks of a record are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRun {
    /// First block: byte offset in the volume / 4096.
    pub block: u64,
    /// How many.
    pub count: u64,
    /// Place of the first; the others follow it in the same frame. Or all are zero.
    pub place: Place,
}

/// A record of a commit frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitRecord {
    /// What it says.
    pub kind: Kind,
    /// FLAG bits of [`crate::record`].
    pub flags: u8,
    /// Position in the volume's order.
    pub seq: u64,
    /// Nanoseconds since 1970, never less than the record before.
    pub time: u64,
    /// Byte offset; for a gap, when it began; for a note, the seq of its point.
    pub offset: u64,
    /// Bytes covered; for a record that sizes the volume, its size.
    pub len: u64,
    /// Name of a point, or a note.
    pub name: String,
    /// Its runs: this range of [`Commit::runs`].
    pub runs: std::ops::Range<usize>,
}

/// A decoded commit frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The volume.
    pub volume: [u8; 16],
    /// The ring from which the records came.
    pub ring: [u8; 16],
    /// Digest of the last record as the agent sent it.
    pub digest: u64,
    /// The records in order, at least one.
    pub records: Vec<CommitRecord>,
    /// The runs of all of them.
    pub runs: Vec<BlockRun>,
}

/// Builds the content of a commit frame.
#[derive(Debug)]
pub struct CommitBuilder {
    records: Vec<u8>,
    count: u64,
    place: u64,
    /// Seq of the first record.
    pub first: u64,
    /// Seq of the last record.
    pub last: u64,
    /// Time of the last record.
    pub time: u64,
    digest: u64,
}

impl Default for CommitBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl CommitBuilder {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self { records: Vec::new(), count: 0, place: 0, first: 0, last: 0, time: 0, digest: 0 }
    }

    /// Forgets everything, for the next frame.
    pub fn clear(&mut self) {
        let records = std::mem::take(&mut self.records);
        *self = Self { records, ..Self::new() };
        self.records.clear();
    }

    /// Whether it holds nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether the frame should be closed before the next record.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.records.len() >= SOFT_LIMIT
    }

    /// Appends a record with its time label (already monotone), a point's name and its runs.
    pub fn push(&mut self, record: &Record, time: u64, name: &str, runs: &[BlockRun]) {
        let b = &mut self.records;
        b.push(record.kind as u8);
        b.push(record.flags);
        b.put_varint(record.seq - self.last);
        b.put_varint(time - self.time);
        match record.kind {
            Kind::Write | Kind::Zero => {
                b.put_varint(record.offset);
                b.put_varint(record.len);
                put_runs(b, runs, &mut self.place);
            }
            Kind::Point => {
                if let Some(seq) = record.noted() {
                    b.put_varint(seq);
                }
                b.put_string(name);
            }
            Kind::Gap => {
                b.put_varint(record.offset);
                if let Some(size) = record.new_size() {
                    b.put_varint(size);
                    put_runs(b, runs, &mut self.place);
                }
            }
            Kind::Resize => {
                b.put_varint(record.len);
                put_runs(b, runs, &mut self.place);
            }
            Kind::SyncEnd | Kind::Void => {}
        }
        if self.count == 0 {
            self.first = record.seq;
        }
        (self.last, self.time, self.digest) = (record.seq, time, record.digest());
        self.count += 1;
    }

    /// Writes the content to `out`, which is emptied first.
    pub fn finish(&self, volume: &[u8; 16], ring: &[u8; 16], out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(volume);
        out.extend_from_slice(ring);
        out.put_u64(self.digest);
        out.put_varint(self.count);
        out.extend_from_slice(&self.records);
    }
}

fn put_runs(b: &mut Vec<u8>, runs: &[BlockRun], place: &mut u64) {
    b.put_varint(runs.len() as u64);
    let mut end = 0;
    for run in runs {
        b.put_varint(run.block - end);
        b.put_varint(run.count);
        b.put_varint(zigzag(run.place.word(), *place));
        end = run.block + run.count;
        *place = run.place.word();
    }
}

/// The difference of two words as a small number, if it is small either way.
const fn zigzag(word: u64, before: u64) -> u64 {
    let d = word.wrapping_sub(before).cast_signed();
    ((d << 1) ^ (d >> 63)).cast_unsigned()
}

const fn unzigzag(v: u64, before: u64) -> u64 {
    before.wrapping_add((v >> 1) ^ (v & 1).wrapping_neg())
}

const fn field(field: &'static str, value: u64) -> DecodeError {
    DecodeError::Field { what: WHAT, field, value }
}

impl CommitRecord {
    /// The size of the volume from this record on, if it says one.
    #[must_use]
    pub const fn new_size(&self) -> Option<u64> {
        match self.kind {
            Kind::Resize => Some(self.len),
            Kind::Gap if self.flags & FLAG_SIZED != 0 => Some(self.len),
            _ => None,
        }
    }
}

impl Commit {
    /// Reads the content of a commit frame.
    ///
    /// # Errors
    /// [`DecodeError`] if it is short, has no record, or one is impossible.
    pub fn decode(content: &[u8]) -> Result<Commit, DecodeError> {
        let mut r = Reader::new(WHAT, content);
        let (volume, ring, digest, count) = (r.array()?, r.array()?, r.u64()?, r.varint()?);
        if count == 0 || count > r.rest().len() as u64 {
            return Err(field("records", count));
        }
        let mut commit = Commit { volume, ring, digest, records: Vec::new(), runs: Vec::new() };
        let (mut seq, mut time, mut place) = (0u64, 0u64, 0u64);
        for _ in 0..count {
            let (kind, flags) = (Kind::from_u8(r.u8()?)?, r.u8()?);
            let (step, later) = (r.varint()?, r.varint()?);
            seq = seq.checked_add(step).filter(|_| step > 0).ok_or(field("seq", step))?;
            time = time.checked_add(later).ok_or(field("time", later))?;
            let start = commit.runs.len();
            let (mut offset, mut len, mut name) = (0, 0, String::new());
            match kind {
                Kind::Write | Kind::Zero => {
                    (offset, len) = (r.varint()?, r.varint()?);
                    read_runs(&mut r, &mut commit.runs, &mut place)?;
                }
                Kind::Point if flags & FLAG_NOTE != 0 => (offset, name) = (r.varint()?, r.string(MAX_NOTE)?),
                Kind::Point => name = r.string(MAX_NAME)?,
                Kind::Gap | Kind::Resize => {
                    if kind == Kind::Gap {
                        offset = r.varint()?;
                    }
                    if kind == Kind::Resize || flags & FLAG_SIZED != 0 {
                        len = r.varint()?;
                        read_runs(&mut r, &mut commit.runs, &mut place)?;
                        if !(1..=MAX_VOLUME).contains(&len) {
                            return Err(field("size", len));
                        }
                    }
                }
                Kind::SyncEnd | Kind::Void => {}
            }
            let runs = start..commit.runs.len();
            commit.records.push(CommitRecord { kind, flags, seq, time, offset, len, name, runs });
        }
        r.end()?;
        Ok(commit)
    }

    /// Seq of the first record.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.records.first().map_or(0, |r| r.seq)
    }

    /// Seq of the last record.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.records.last().map_or(0, |r| r.seq)
    }
}

fn read_runs(r: &mut Reader<'_>, out: &mut Vec<BlockRun>, place: &mut u64) -> Result<(), DecodeError> {
    let mut end = 0u64;
    for _ in 0..r.varint()? {
        let (skip, count) = (r.varint()?, r.varint()?);
        *place = unzigzag(r.varint()?, *place);
        let block = end.checked_add(skip).ok_or(field("block", skip))?;
        end = block.checked_add(count).filter(|_| count > 0).ok_or(field("count", count))?;
        let first = Place::from_word(*place)?;
        if first.advance(count - 1).is_none() {
            return Err(field("count", count));
        }
        out.push(BlockRun { block, count, place: first });
    }
    Ok(())
}

#[cfg(test)]
#[path = "commit_tests.rs"]
mod tests;
