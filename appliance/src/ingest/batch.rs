//! A batch: records as they came, cut into grid blocks.
//!
//! A batch is filled by the session's receiving stage and immutable from then on; the other stages and the pool share it. The
//! payload stays where it was received: a whole block is a range of the body, a partial one is completed in a buffer beside it.

use super::SessionError;
use crate::history::Run;
use crate::history::interval::{IntervalMap, Span};
use crate::reduce::block::{Fingerprinter, is_zero};
use crate::reduce::frame::Scratch;
use crate::reduce::pool::Task;
use afterimage_format::BLOCK_SIZE;
use afterimage_format::record::{HEADER_LEN, Kind, MAX_SEQ, Record};
use afterimage_format::segment::Fingerprint;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use xxhash_rust::xxh3::xxh3_64;

/// Most bytes of completed partial blocks in a batch: tiny writes swell by their grid blocks.
pub const MAX_FIXED: usize = 4 << 20;
/// Blocks that one part of the hashing works on: 128 KiB, some 50 microseconds.
const HASH_PART: usize = 32;
const BLOCK: u64 = BLOCK_SIZE as u64;

/// A record of a batch.
#[derive(Debug)]
pub struct BatchRecord {
    /// Its header.
    pub record: Record,
    /// Its time label, never less than the one before.
    pub time: u64,
    /// Name of a point.
    pub name: String,
    /// What it writes: a range of the batch's pieces.
    pub pieces: Range<usize>,
}

/// Neighbouring blocks that a record writes.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    /// First grid block.
    pub block: u64,
    /// How many.
    pub count: u64,
    /// Index of the first one's bytes; `None` if they become zero.
    pub first: Option<usize>,
}

#[derive(Debug, Clone, Copy)]
enum Source {
    Body(usize),
    Fixed(usize),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Batch {
    /// What the peer sent, messages back to back.
    pub body: Vec<u8>,
    /// How much of the body has been cut into records.
    pub parsed: usize,
    /// The records, in order.
    pub records: Vec<BatchRecord>,
    /// The pieces of all records, in order.
    pub pieces: Vec<Piece>,
    fixed: Vec<u8>,
    blocks: Vec<Source>,
    /// Where the newest version of each block is, in a batch that is read while it is under way.
    index: IntervalMap<Held>,
    /// Bytes that its writes cover.
    pub logical: u64,
}

/// What a batch holds of a range of blocks: zeroes, or its own blocks from this one on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held(Option<usize>);

impl Span for Held {
    fn shifted(self, by: u64) -> Self {
        Held(self.0.map(|i| i + usize::try_from(by).unwrap_or(0)))
    }
}

/// What a block holds.
#[derive(Debug, Clone, Copy)]
pub enum Newest<'a> {
    /// Zeroes.
    Zero,
    /// These bytes.
    Bytes(&'a [u8]),
}

/// Where the versions of blocks that are not in the batch come from.
pub trait Before {
    /// Fills `out` with the newest version of `block` before this batch.
    ///
    /// # Errors
    /// If it cannot be read.
    fn newest(&self, block: u64, out: &mut [u8]) -> Result<(), SessionError>;
}

/// What the records of a session have to continue.
#[derive(Debug, Clone, Copy)]
pub struct Cursor {
    /// Seq of the last record.
    pub seq: u64,
    /// Its time label.
    pub time: u64,
    /// The ring is another one than the history's: only a gap may follow.
    pub forked: bool,
    /// Size of the volume in bytes.
    pub size: u64,
}

impl Batch {
    /// Forgets everything but its memory.
    pub fn clear(&mut self) {
        self.body.clear();
        self.records.clear();
        self.pieces.clear();
        self.fixed.clear();
        self.blocks.clear();
        self.index = IntervalMap::new();
        (self.parsed, self.logical) = (0, 0);
    }

    /// Number of blocks that are not zero by kind.
    #[must_use]
    pub const fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Which block of the disk each of its blocks is.
    #[must_use]
    pub fn disk_blocks(&self) -> Vec<u64> {
        let mut out = Vec::with_capacity(self.blocks.len());
        for piece in self.pieces.iter().filter(|p| p.first.is_some()) {
            out.extend(piece.block..piece.block + piece.count);
        }
        out
    }

    /// The bytes of block `index`.
    #[must_use]
    pub fn block(&self, index: usize) -> &[u8] {
        let (from, at) = match self.blocks[index] {
            Source::Body(at) => (&self.body, at),
            Source::Fixed(at) => (&self.fixed, at),
        };
        &from[at..at + BLOCK_SIZE]
    }

    /// The newest version of `block` in this batch.
    #[must_use]
    pub fn newest(&self, block: u64) -> Option<Newest<'_>> {
        if !self.index.is_empty() {
            let mut found = None;
            self.index.pieces(block, block + 1, |_, _, held| found = held);
            return found.map(|Held(at)| at.map_or(Newest::Zero, |at| Newest::Bytes(self.block(at))));
        }
        let hit = |p: &&Piece| p.block <= block && block - p.block < p.count;
        self.pieces.iter().rev().find(hit).map(|p| match p.first {
            None => Newest::Zero,
            Some(first) => Newest::Bytes(self.block(first + usize::try_from(block - p.block).unwrap_or(0))),
        })
    }

    /// Calls `each` with (first block, block behind the last, what they hold) for the pieces that make up `start..end`, in order; what
    /// the batch does not know has `None`. Only for batches made with [`Batch::append`].
    pub fn pieces_of(&self, start: u64, end: u64, mut each: impl FnMut(u64, u64, Option<Newest<'_>>)) {
        self.index.pieces(start, end, |s, e, held| match held {
            None => each(s, e, None),
            Some(Held(None)) => each(s, e, Some(Newest::Zero)),
            Some(Held(Some(at))) => {
                (s..e).zip(at..).for_each(|(b, at)| each(b, b + 1, Some(Newest::Bytes(self.block(at)))))
            }
        });
    }

    /// Appends a record that this process makes: the next in `cursor`'s order, at `now`. What it writes, or its name, is `payload`.
    ///
    /// # Errors
    /// If a partial block cannot be completed; nothing is appended then.
    pub fn append(
        &mut self,
        (kind, offset, len): (Kind, u64, u64),
        payload: &[u8],
        (cursor, now): (&mut Cursor, u64),
        before: &dyn Before,
    ) -> Result<u64, SessionError> {
        let (saved, logical) = (*cursor, self.logical);
        let ends = (self.body.len(), self.pieces.len(), self.fixed.len(), self.blocks.len());
        let record = Record { kind, flags: 0, seq: cursor.seq + 1, offset, len, time: now, payload_hash: 0, place: 0 };
        cursor.admit(&record)?;
        self.body.extend_from_slice(payload);
        if let Err(e) = self.push(record, ends.0..self.body.len(), cursor, cursor.size, before) {
            (*cursor, self.logical) = (saved, logical);
            self.body.truncate(ends.0);
            self.pieces.truncate(ends.1);
            self.fixed.truncate(ends.2);
            self.blocks.truncate(ends.3);
            return Err(e);
        }
        self.parsed = self.body.len();
        for piece in &self.pieces[ends.1..] {
            self.index.set(piece.block, piece.block + piece.count, Held(piece.first));
        }
        Ok(record.seq)
    }

    /// Cuts the body into records from where it stopped last time. Stops early, with `true`, when the batch has
    /// completed as many partial blocks as it may; the rest of the body belongs to the next batch.
    ///
    /// # Errors
    /// [`SessionError::Malformed`] or [`SessionError::Continuity`] for what the peer did wrong.
    pub fn parse(&mut self, cursor: &mut Cursor, before: &dyn Before) -> Result<bool, SessionError> {
        while self.parsed < self.body.len() {
            if self.fixed.len() >= MAX_FIXED {
                return Ok(true);
            }
            let at = self.parsed;
            let header = self.body[at..].first_chunk::<HEADER_LEN>();
            let header = header.ok_or_else(|| SessionError::Malformed("a record header is cut off".into()))?;
            let record = Record::decode(header).map_err(|e| SessionError::Malformed(e.to_string()))?;
            let payload = at + HEADER_LEN..at + HEADER_LEN + record.payload_len();
            let bytes = self.body.get(payload.clone());
            let bytes = bytes.ok_or_else(|| SessionError::Malformed("a record's payload is cut off".into()))?;
            check_payload(&record, bytes)?;
            let size = cursor.size;
            cursor.admit(&record)?;
            self.parsed = payload.end;
            self.push(record, payload, cursor, size, before)?;
        }
        Ok(false)
    }

    fn push(
        &mut self,
        record: Record,
        payload: Range<usize>,
        cursor: &Cursor,
        before_size: u64,
        before: &dyn Before,
    ) -> Result<(), SessionError> {
        let (first, mut name) = (self.pieces.len(), String::new());
        match record.kind {
            Kind::Write | Kind::Zero if record.len > 0 => self.split(&record, payload.start, cursor.size, before)?,
            Kind::Resize | Kind::Gap => {
                // What a smaller size drops becomes zero, so that a later growth finds nothing old there.
                if let Some(size) = record.new_size().filter(|size| *size < before_size) {
                    let dropped = Record { kind: Kind::Zero, offset: size, len: before_size - size, ..record };
                    self.split(&dropped, payload.start, before_size, before)?;
                }
            }
            Kind::Point => {
                let text = std::str::from_utf8(&self.body[payload]);
                name = text.map_err(|_| SessionError::Malformed("a point's name is not UTF-8".into()))?.to_string();
            }
            _ => {}
        }
        self.records.push(BatchRecord { record, time: cursor.time, name, pieces: first..self.pieces.len() });
        Ok(())
    }

    /// Cuts a write or zero record into a partial block, whole blocks, and another partial block.
    fn split(&mut self, r: &Record, payload: usize, size: u64, before: &dyn Before) -> Result<(), SessionError> {
        let end = r.offset + r.len;
        // The last block of a volume that is no multiple of the grid is whole when written up to the volume's end
        // only in that nothing is kept of it; its bytes still have to be completed with zeroes.
        let mut at = r.offset;
        let write = r.kind == Kind::Write;
        self.logical += if write { r.len } else { 0 };
        while at < end {
            let block = at / BLOCK;
            let in_block = usize::try_from(at % BLOCK).unwrap_or(0);
            let source = payload + usize::try_from(at - r.offset).unwrap_or(0);
            if in_block == 0 && end - at >= BLOCK {
                let count = (end - at) / BLOCK;
                let first = write.then_some(self.blocks.len());
                if write {
                    let whole = usize::try_from(count).unwrap_or(0);
                    self.blocks.extend((0..whole).map(|i| Source::Body(source + i * BLOCK_SIZE)));
                }
                self.pieces.push(Piece { block, count, first });
                at += count * BLOCK;
                continue;
            }
            let len = usize::try_from((end - at).min(BLOCK - in_block as u64)).unwrap_or(0);
            let covers_rest = in_block == 0 && end >= size;
            let fixed = self.complete(block, covers_rest, before)?;
            let target = fixed + in_block..fixed + in_block + len;
            if write {
                self.fixed[target].copy_from_slice(&self.body[source..source + len]);
            } else {
                self.fixed[target].fill(0);
            }
            self.pieces.push(Piece { block, count: 1, first: Some(self.blocks.len()) });
            self.blocks.push(Source::Fixed(fixed));
            at += len as u64;
        }
        Ok(())
    }

    /// Appends the version of `block` before the record to the completed blocks; returns where it is.
    fn complete(&mut self, block: u64, all_new: bool, before: &dyn Before) -> Result<usize, SessionError> {
        let at = self.fixed.len();
        let mut bytes = [0; BLOCK_SIZE];
        if !all_new {
            match self.newest(block) {
                Some(Newest::Zero) => {}
                Some(Newest::Bytes(b)) => bytes.copy_from_slice(b),
                None => before.newest(block, &mut bytes)?,
            }
        }
        self.fixed.extend_from_slice(&bytes);
        Ok(at)
    }
}

fn check_payload(record: &Record, payload: &[u8]) -> Result<(), SessionError> {
    let right = if payload.is_empty() {
        record.payload_hash == 0 || record.payload_hash == xxh3_64(payload)
    } else {
        xxh3_64(payload) == record.payload_hash
    };
    if right {
        return Ok(());
    }
    Err(SessionError::Malformed(format!("the payload of record {} does not match its checksum", record.seq)))
}

impl Cursor {
    /// Checks that a record continues the history, and moves on.
    fn admit(&mut self, r: &Record) -> Result<(), SessionError> {
        let gap = r.kind == Kind::Gap;
        if r.seq <= self.seq || (r.seq != self.seq + 1 && !gap) {
            return Err(SessionError::Continuity(format!("record {} cannot follow {}", r.seq, self.seq)));
        }
        if r.seq > MAX_SEQ {
            return Err(SessionError::Malformed(format!("record {} is beyond the greatest seq, {MAX_SEQ}", r.seq)));
        }
        if self.forked && !gap {
            return Err(SessionError::Continuity(format!(
                "record {} comes from another ring than record {}, and no gap lies between them",
                r.seq, self.seq
            )));
        }
        let end = r.offset.checked_add(r.len);
        if matches!(r.kind, Kind::Write | Kind::Zero) && end.is_none_or(|e| e > self.size) {
            return Err(SessionError::Malformed(format!("record {} reaches past the end of the volume", r.seq)));
        }
        self.forked = false;
        self.size = r.new_size().unwrap_or(self.size);
        self.seq = r.seq;
        self.time = self.time.max(r.time);
        Ok(())
    }
}

/// Finds out what the blocks of a batch are.
#[derive(Debug)]
pub struct HashTask {
    batch: Arc<Batch>,
    key: Fingerprinter,
    parts: Vec<Mutex<Vec<Option<Fingerprint>>>>,
}

impl HashTask {
    /// For all blocks of `batch`.
    #[must_use]
    pub fn new(batch: Arc<Batch>, key: Fingerprinter) -> Arc<Self> {
        let parts = (0..batch.blocks().div_ceil(HASH_PART)).map(|_| Mutex::default()).collect();
        Arc::new(Self { batch, key, parts })
    }

    /// In how many parts it can be done.
    #[must_use]
    pub const fn parts(&self) -> usize {
        self.parts.len()
    }

    /// The batch.
    #[must_use]
    pub const fn batch(&self) -> &Arc<Batch> {
        &self.batch
    }

    /// Appends the fingerprint of each block to `out`, `None` for a zero block. To be called when all parts are done.
    pub fn collect(&self, out: &mut Vec<Option<Fingerprint>>) {
        out.clear();
        for part in &self.parts {
            out.extend_from_slice(&part.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

impl Task for HashTask {
    fn run(&self, part: usize, _: &mut Scratch) {
        let mut out = self.parts[part].lock().unwrap_or_else(PoisonError::into_inner);
        let range = part * HASH_PART..((part + 1) * HASH_PART).min(self.batch.blocks());
        out.extend(range.map(|i| {
            let block = self.batch.block(i);
            (!is_zero(block)).then(|| self.key.of(block))
        }));
    }
}

/// Joins a run to the last one if it continues it: the next block of the same record, in the next slot.
pub fn push_run(runs: &mut Vec<Run>, run: Run) {
    if let Some(last) = runs.last_mut() {
        let next = last.place.advance(last.count);
        if last.seq == run.seq && last.end() == run.block && next == Some(run.place) {
            last.count += run.count;
            return;
        }
    }
    runs.push(run);
}
