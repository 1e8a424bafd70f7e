//! What was submitted and acknowledged, in order.
//!
//! ```text
//! offset  size  header
//!      0     8  magic "AFLOADJ1"
//!      8     8  seed
//!     16     8  size of the disk in bytes
//!     24     8  seq of the volume's newest record when the load began; all ones if not known
//!     32     1  1 if the load was one request at a time (exact)
//!     33    31  zero
//!
//!                records, 32 bytes each, from offset 64
//!      0     1  event: 1 submitted, 2 acknowledged
//!      1     1  kind of the request (see op::Kind)
//!      2     6  zero
//!      8     8  number of the request
//!     16     8  offset
//!     24     8  length
//! ```
//!
//! The position of a record is the logical clock: a request is recorded before it is sent and after its answer
//! arrived, under one lock. So if a's second record stands before b's first one, a was acknowledged before b was
//! submitted. A request without a second record has an unknown fate. All integers are little-endian.

use super::op::{Kind, Op};
use crate::problem::Problem;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

const MAGIC: &[u8; 8] = b"AFLOADJ1";
const HEADER: usize = 64;
const RECORD: usize = 32;

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Seed of the stamps.
    pub seed: u64,
    /// Size of the disk in bytes.
    pub size: u64,
    /// Seq of the newest record when the load began.
    pub base_seq: Option<u64>,
    /// One request at a time.
    pub exact: bool,
}

/// A request with its times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The request.
    pub op: Op,
    /// When it was submitted.
    pub submitted: u64,
    /// When it was acknowledged; `u64::MAX` if its fate is unknown.
    pub acked: u64,
}

struct Inner {
    out: BufWriter<File>,
    next: u64,
}

/// A journal being written, shared by all connections.
pub struct Journal {
    inner: Mutex<Inner>,
}

fn encode(event: u8, op: &Op) -> [u8; RECORD] {
    let mut b = [0; RECORD];
    b[0] = event;
    b[1] = op.kind as u8;
    b[8..16].copy_from_slice(&op.number.to_le_bytes());
    b[16..24].copy_from_slice(&op.offset.to_le_bytes());
    b[24..].copy_from_slice(&op.len.to_le_bytes());
    b
}

impl Journal {
    /// A new journal, in place of one that is there.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn create(path: &Path, header: Header) -> io::Result<Journal> {
        let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
        let mut b = [0; HEADER];
        b[..8].copy_from_slice(MAGIC);
        b[8..16].copy_from_slice(&header.seed.to_le_bytes());
        b[16..24].copy_from_slice(&header.size.to_le_bytes());
        b[24..32].copy_from_slice(&header.base_seq.unwrap_or(u64::MAX).to_le_bytes());
        b[32] = u8::from(header.exact);
        out.write_all(&b)?;
        Ok(Journal { inner: Mutex::new(Inner { out, next: 1 }) })
    }

    /// Gives a request its number and records that it is about to be submitted.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn submit(&self, kind: Kind, offset: u64, len: u64) -> io::Result<Op> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let op = Op { number: inner.next, kind, offset, len };
        inner.next += 1;
        inner.out.write_all(&encode(1, &op))?;
        Ok(op)
    }

    /// Records that a request was acknowledged.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn ack(&self, op: &Op) -> io::Result<()> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).out.write_all(&encode(2, op))
    }

    /// Requests so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).next - 1
    }

    /// Puts everything into the file.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn flush(&self) -> io::Result<()> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).out.flush()
    }
}

/// Reads a journal: entries by number, the first one being number 1.
///
/// # Errors
/// If it is none, or contradicts itself.
pub fn load(path: &Path) -> Result<(Header, Vec<Entry>), Problem> {
    let bytes = std::fs::read(path).map_err(|e| Problem::file(path, &e))?;
    parse(&bytes)
        .ok_or_else(|| Problem::failed(format!("{} is no journal of afterimage-load, or is damaged", path.display())))
}

fn parse(bytes: &[u8]) -> Option<(Header, Vec<Entry>)> {
    let word = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    if bytes.get(..8)? != MAGIC {
        return None;
    }
    let base_seq = Some(word(24)?).filter(|s| *s != u64::MAX);
    let header = Header { seed: word(8)?, size: word(16)?, base_seq, exact: *bytes.get(32)? == 1 };
    let mut entries: Vec<Entry> = Vec::new();
    for (clock, at) in (HEADER..bytes.len().saturating_sub(RECORD - 1)).step_by(RECORD).enumerate() {
        let kind = match bytes[at + 1] {
            1 => Kind::Write,
            2 => Kind::Trim,
            3 => Kind::Zero,
            _ => return None,
        };
        let op = Op { number: word(at + 8)?, kind, offset: word(at + 16)?, len: word(at + 24)? };
        let inside = op.len > 0 && op.offset.checked_add(op.len)? <= header.size;
        match bytes[at] {
            1 if inside && op.number == entries.len() as u64 + 1 => {
                entries.push(Entry { op, submitted: clock as u64, acked: u64::MAX });
            }
            2 => {
                let entry = entries.get_mut(usize::try_from(op.number.checked_sub(1)?).ok()?)?;
                if entry.op != op || entry.acked != u64::MAX {
                    return None;
                }
                entry.acked = clock as u64;
            }
            _ => return None,
        }
    }
    Some((header, entries))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_comes_back_with_its_times() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let header = Header { seed: 9, size: 1 << 20, base_seq: Some(40), exact: false };
        let j = Journal::create(&path, header).unwrap();
        let a = j.submit(Kind::Write, 0, 512).unwrap();
        let b = j.submit(Kind::Trim, 512, 1024).unwrap();
        j.ack(&b).unwrap();
        j.flush().unwrap();
        let (found, entries) = load(&path).unwrap();
        assert_eq!(found, header);
        assert_eq!(entries, [Entry { op: a, submitted: 0, acked: u64::MAX }, Entry { op: b, submitted: 1, acked: 2 }]);
        let bytes = std::fs::read(&path).unwrap();
        let half = bytes.len() - 16;
        assert_eq!(parse(&bytes[..half]).unwrap().1.len(), 2, "a record cut by a kill is left out");
        for at in [0, 64, 65, 72] {
            let mut bad = bytes.clone();
            bad[at] ^= 0x40;
            assert!(parse(&bad).is_none(), "byte {at}");
        }
    }
}
