//! Timeline pages, and the index that finds pages.
//!
//! ```text
//! timeline page  records in seq order, each:
//!     time (LEB128): difference to the record before (0 in a page's first) * 2, and 1 if seq is not the next one
//!     seq (LEB128): difference to the record before (0 in a page's first), only if the flag is set
//! index page (all LEB128)
//!     for each token page: first block * 2 less that of the page before * 2, and 1 if its first column goes on from the page before;
//!         seq of its first version (zigzag difference); length of its sealed bytes
//!     for each timeline page: first seq, first time (differences), length of its sealed bytes
//!     number of segments referred to; for each: number (difference), blocks of tokens that name it
//! ```

use super::{HEADER_LEN, INDEX_MAX, LIMIT, LayerMeta, PAGE_HEADER_LEN, PAGE_MAX, TAG_LEN};
use crate::codec::{DecodeError, Reader, Writer};

const WHAT: &str = "layer index";

/// The first key of a token page, and where the page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    /// First block of the page's first column.
    pub block: u64,
    /// Seq of its first version.
    pub seq: u64,
    /// Whether that column began in the page before.
    pub continued: bool,
    /// Byte offset of the page in the file.
    pub at: u64,
    /// Length of its sealed bytes.
    pub len: u32,
}

/// The first record of a timeline page, and where the page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeFence {
    /// Seq of the first record.
    pub seq: u64,
    /// Time of the first record.
    pub time: u64,
    /// Byte offset of the page in the file.
    pub at: u64,
    /// Length of its sealed bytes.
    pub len: u32,
}

/// The index of a layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Index {
    /// Of every token page.
    pub fences: Vec<Fence>,
    /// Of every timeline page.
    pub times: Vec<TimeFence>,
    /// Segments referred to by number, and how many blocks tokens place there (a block placed twice counts twice).
    pub segments: Vec<(u32, u64)>,
}

const fn field<T>(field: &'static str, value: u64) -> Result<T, DecodeError> {
    Err(DecodeError::Field { what: WHAT, field, value })
}

const fn zigzag(d: i64) -> u64 {
    ((d << 1) ^ (d >> 63)).cast_unsigned()
}

const fn unzigzag(v: u64) -> u64 {
    (v >> 1) ^ (v & 1).wrapping_neg()
}

impl Index {
    /// The page's plain bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(self.fences.len() * 8 + self.times.len() * 8 + self.segments.len() * 4 + 16);
        let (mut block, mut seq) = (0, 0u64);
        for f in &self.fences {
            b.put_varint((f.block - block) << 1 | u64::from(f.continued));
            b.put_varint(zigzag(f.seq.wrapping_sub(seq).cast_signed()));
            b.put_varint(u64::from(f.len));
            (block, seq) = (f.block, f.seq);
        }
        let (mut seq, mut time) = (0, 0);
        for t in &self.times {
            b.put_varint(t.seq - seq);
            b.put_varint(t.time - time);
            b.put_varint(u64::from(t.len));
            (seq, time) = (t.seq, t.time);
        }
        b.put_varint(self.segments.len() as u64);
        let mut number = 0;
        for (n, blocks) in &self.segments {
            b.put_varint(u64::from(n - number));
            b.put_varint(*blocks);
            number = *n;
        }
        b
    }

    /// Checks and reads the index of the layer that `meta` describes.
    ///
    /// # Errors
    /// [`DecodeError`] if it is not sorted, names pages that are not in the file, or is too short or long.
    pub fn decode(bytes: &[u8], meta: &LayerMeta) -> Result<Index, DecodeError> {
        // Each page needs three bytes of index at least, so the counts in the footer size nothing unchecked (I12).
        if meta.index_page() * 3 > bytes.len() as u64 || bytes.len() > INDEX_MAX {
            return field("pages", meta.index_page());
        }
        let mut r = Reader::new(WHAT, bytes);
        let mut at = HEADER_LEN as u64;
        let fences = decode_fences(&mut r, meta, &mut at)?;
        let times = decode_times(&mut r, meta, &mut at)?;
        if at != meta.index_at {
            return field("index offset", at);
        }
        let count = r.varint()?;
        if count > r.rest().len() as u64 {
            return field("segments", count);
        }
        let (mut segments, mut number) = (Vec::new(), 0u64);
        for _ in 0..count {
            let step = r.varint()?;
            number = number.checked_add(step).filter(|_| step > 0).map_or_else(|| field("segment", step), Ok)?;
            let Ok(n) = u32::try_from(number) else { return field("segment", number) };
            segments.push((n, r.varint()?));
        }
        r.end()?;
        Ok(Index { fences, times, segments })
    }
}

fn page_len(r: &mut Reader<'_>, at: &mut u64) -> Result<(u64, u32), DecodeError> {
    let v = r.varint()?;
    let start = *at;
    match u32::try_from(v) {
        Ok(len) if len as usize >= TAG_LEN && len as usize <= PAGE_MAX + TAG_LEN => {
            *at += PAGE_HEADER_LEN as u64 + v;
            Ok((start, len))
        }
        _ => field("page length", v),
    }
}

fn decode_fences(r: &mut Reader<'_>, meta: &LayerMeta, at: &mut u64) -> Result<Vec<Fence>, DecodeError> {
    let (mut block, mut seq) = (0u64, 0u64);
    let mut fences = Vec::with_capacity(meta.token_pages as usize);
    for page in 0..meta.token_pages {
        let code = r.varint()?;
        let (step, continued) = (code >> 1, code & 1 == 1);
        // A page begins with a new column, or goes on with the last one of the page before.
        if (page > 0 && step == 0 && !continued) || (page == 0 && continued) {
            return field("fence", step);
        }
        block = block.checked_add(step).map_or_else(|| field("block", step), Ok)?;
        seq = seq.wrapping_add(unzigzag(r.varint()?));
        if seq == 0 || seq >= LIMIT {
            return field("seq", seq);
        }
        let (at, len) = page_len(r, at)?;
        fences.push(Fence { block, seq, continued, at, len });
    }
    Ok(fences)
}

fn decode_times(r: &mut Reader<'_>, meta: &LayerMeta, at: &mut u64) -> Result<Vec<TimeFence>, DecodeError> {
    let (mut seq, mut time) = (0u64, 0u64);
    let mut times = Vec::with_capacity(meta.timeline_pages as usize);
    for _ in 0..meta.timeline_pages {
        let (step, later) = (r.varint()?, r.varint()?);
        seq = seq.checked_add(step).filter(|s| step > 0 && *s < LIMIT).map_or_else(|| field("seq", step), Ok)?;
        time = time.checked_add(later).filter(|t| *t < LIMIT).map_or_else(|| field("time", later), Ok)?;
        let (at, len) = page_len(r, at)?;
        times.push(TimeFence { seq, time, at, len });
    }
    Ok(times)
}

/// Builds a timeline page.
#[derive(Debug, Default)]
pub struct TimelineBuilder {
    page: Vec<u8>,
    seq: u64,
    time: u64,
}

impl TimelineBuilder {
    /// Bytes so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.page.len()
    }

    /// Whether nothing is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.page.is_empty()
    }

    /// Appends a record; seqs grow, times do not fall.
    pub fn push(&mut self, seq: u64, time: u64) {
        let jump = seq != self.seq + 1;
        self.page.put_varint((time - self.time) << 1 | u64::from(jump));
        if jump {
            self.page.put_varint(seq - self.seq);
        }
        (self.seq, self.time) = (seq, time);
    }

    /// Ends the page, appends its bytes to `out` and starts an empty one.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.page);
        self.page.clear();
        (self.seq, self.time) = (0, 0);
    }
}

/// Reads a timeline page: calls `each` with (seq, time) in order until it answers `false`.
///
/// # Errors
/// [`DecodeError`] if the bytes cannot be a page.
pub fn walk_timeline(page: &[u8], mut each: impl FnMut(u64, u64) -> bool) -> Result<(), DecodeError> {
    let mut r = Reader::new("layer timeline", page);
    let (mut seq, mut time) = (0u64, 0u64);
    while !r.rest().is_empty() {
        let code = r.varint()?;
        time = time.checked_add(code >> 1).filter(|t| *t < LIMIT).map_or_else(|| field("time", code), Ok)?;
        let step = if code & 1 == 1 { r.varint()? } else { 1 };
        seq = seq.checked_add(step).filter(|s| step > 0 && *s < LIMIT).map_or_else(|| field("seq", step), Ok)?;
        if !each(seq, time) {
            break;
        }
    }
    Ok(())
}
