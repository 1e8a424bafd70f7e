//! Token pages: columns of versions, as differences.
//!
//! ```text
//! column   gap (LEB128): its first block less the end of the column before; in a page's first column, the block
//!          head (LEB128): (count - 1) * 2, and 1 if it has several versions in this page
//!          versions (LEB128): how many, only if several
//!          then each version
//! version  seq (LEB128): difference * 2, and 1 if the place is zero. In the first version of a column the difference is
//!          zigzag to the first version of the column before (0 in a page's first); else to the version before
//!          place (LEB128), only if not zero: zigzag difference to the last place that is not zero in this page
//! ```
//!
//! A column whose versions do not fit goes on in the next page as that page's first column, and the page's fence
//! says so. Every page can be read on its own.

use super::LIMIT;
use crate::codec::{DecodeError, Writer};
use crate::place::Place;

const WHAT: &str = "layer page";

/// A column's head: blocks `block..block + count`, of which `versions` follow in this page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// First block.
    pub block: u64,
    /// Number of blocks.
    pub count: u64,
    /// Versions of it in this page, at least one.
    pub versions: u64,
}

impl Column {
    /// The block behind the last.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.block + self.count
    }
}

/// A position in a token page. Small and `Copy`, so that a column can be walked again.
#[derive(Debug, Clone, Copy, Default)]
pub struct Walker {
    at: usize,
    end: u64,
    first_seq: u64,
    seq: u64,
    place: u64,
    left: u64,
    fresh: bool,
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

impl Walker {
    /// At the start of a page.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Numbers are most of what a page is, and of differing lengths: byte by byte, the processor guesses each length and is
    /// mostly wrong. So eight bytes are looked at together, where there are as many.
    #[inline(always)]
    fn varint(&mut self, page: &[u8]) -> Result<u64, DecodeError> {
        let Some(Ok(bytes)) = page.get(self.at..self.at + 8).map(TryInto::try_into) else {
            return self.varint_slow(page);
        };
        let word = u64::from_le_bytes(bytes);
        // The high bits that are clear; the lowest of them is the last byte's.
        let ends = !word & 0x8080_8080_8080_8080;
        if ends == 0 {
            return self.varint_slow(page);
        }
        let bits = ends.trailing_zeros() + 1;
        self.at += bits as usize / 8;
        // Seven bits of each byte, put together two by two.
        let v = word & (u64::MAX >> (64 - bits)) & 0x7f7f_7f7f_7f7f_7f7f;
        let v = v & 0x007f_007f_007f_007f | (v & 0x7f00_7f00_7f00_7f00) >> 1;
        let v = v & 0x0000_3fff_0000_3fff | (v & 0x3fff_0000_3fff_0000) >> 2;
        Ok(v & 0x0fff_ffff | (v & 0x0fff_ffff_0000_0000) >> 4)
    }

    /// At the end of a page, and for numbers of more than eight bytes.
    #[cold]
    fn varint_slow(&mut self, page: &[u8]) -> Result<u64, DecodeError> {
        let (mut value, mut shift) = (0u64, 0);
        loop {
            let Some(&byte) = page.get(self.at) else {
                return Err(DecodeError::Truncated { what: WHAT, need: self.at + 1, have: page.len() });
            };
            self.at += 1;
            if shift == 63 && byte > 1 {
                return field("varint", u64::from(byte));
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
            shift += 7;
        }
    }

    /// Goes over columns that end at or before `block`; answers whether there were any. The next column is the first that reaches
    /// beyond it, or the page is at its end.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes cannot be a page.
    pub fn skip_to(&mut self, page: &[u8], block: u64) -> Result<bool, DecodeError> {
        let mut any = false;
        loop {
            let before = *self;
            match self.column(page)? {
                Some(column) if column.end() <= block => {
                    while self.left > 0 {
                        self.version(page)?;
                    }
                    any = true;
                }
                _ => {
                    *self = before;
                    return Ok(any);
                }
            }
        }
    }

    /// Versions of the current column not yet read in this page.
    #[must_use]
    pub const fn left(&self) -> u64 {
        self.left
    }

    /// Whether everything of the page has been read.
    #[must_use]
    pub const fn at_end(&self, page: &[u8]) -> bool {
        self.left == 0 && self.at >= page.len()
    }

    /// Reads the next column's head, or `None` at the end of the page. The versions of the column before must
    /// have been read.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes cannot be a page.
    #[inline]
    pub fn column(&mut self, page: &[u8]) -> Result<Option<Column>, DecodeError> {
        debug_assert_eq!(self.left, 0, "versions left unread");
        if self.at >= page.len() {
            return Ok(None);
        }
        let gap = self.varint(page)?;
        let head = self.varint(page)?;
        let versions = if head & 1 == 1 { self.varint(page)? } else { 1 };
        let count = (head >> 1) + 1;
        let Some(block) = self.end.checked_add(gap) else { return field("block", gap) };
        let Some(end) = block.checked_add(count) else { return field("count", count) };
        // Every version takes a byte at least: a larger number is a lie (I12).
        if versions == 0 || versions > page.len() as u64 {
            return field("versions", versions);
        }
        (self.end, self.left, self.fresh) = (end, versions, true);
        Ok(Some(Column { block, count, versions }))
    }

    /// Reads the next version of the current column.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes cannot be a page, or the column has no more.
    #[inline]
    pub fn version(&mut self, page: &[u8]) -> Result<(u64, Place), DecodeError> {
        if self.left == 0 {
            return field("versions", 0);
        }
        self.left -= 1;
        let code = self.varint(page)?;
        self.seq = if self.fresh {
            self.fresh = false;
            self.first_seq = self.first_seq.wrapping_add(unzigzag(code >> 1));
            self.first_seq
        } else {
            self.seq.wrapping_add(code >> 1)
        };
        if self.seq == 0 || self.seq >= LIMIT {
            return field("seq", self.seq);
        }
        if code & 1 == 1 {
            return Ok((self.seq, Place::ZERO));
        }
        self.place = self.place.wrapping_add(unzigzag(self.varint(page)?));
        let place = Place::from_word(self.place)?;
        if place.is_zero() {
            return field("place", 0);
        }
        Ok((self.seq, place))
    }
}

/// Builds token pages, the mirror of [`Walker`]. One column is open at a time.
#[derive(Debug, Default)]
pub struct PageBuilder {
    page: Vec<u8>,
    versions: Vec<u8>,
    open: Option<Column>,
    end: u64,
    first_seq: u64,
    seq: u64,
    place: u64,
}

impl PageBuilder {
    /// An empty page.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes that the page has, the open column included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.page.len() + self.versions.len() + if self.open.is_some() { 24 } else { 0 }
    }

    /// Whether nothing is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.page.is_empty() && self.open.is_none()
    }

    /// Appends a version: to the open column if it covers the same blocks, else to a new one. Versions come
    /// sorted by (block, seq), and columns do not overlap.
    pub fn push(&mut self, block: u64, count: u64, seq: u64, place: Place) {
        let same = matches!(self.open, Some(c) if c.block == block);
        if !same {
            self.close_column();
            self.open = Some(Column { block, count, versions: 0 });
        }
        let difference = if same {
            debug_assert!(seq >= self.seq, "versions out of order");
            seq - self.seq
        } else {
            let d = zigzag(seq.wrapping_sub(self.first_seq).cast_signed());
            self.first_seq = seq;
            d
        };
        self.seq = seq;
        self.versions.put_varint(difference << 1 | u64::from(place.is_zero()));
        if !place.is_zero() {
            self.versions.put_varint(zigzag(place.word().wrapping_sub(self.place).cast_signed()));
            self.place = place.word();
        }
        if let Some(c) = &mut self.open {
            c.versions += 1;
        }
    }

    fn close_column(&mut self) {
        let Some(c) = self.open.take() else { return };
        self.page.put_varint(c.block.wrapping_sub(self.end));
        self.page.put_varint((c.count - 1) << 1 | u64::from(c.versions > 1));
        if c.versions > 1 {
            self.page.put_varint(c.versions);
        }
        self.page.append(&mut self.versions);
        self.end = c.end();
    }

    /// Ends the page, appends its bytes to `out` and starts an empty one.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.close_column();
        out.extend_from_slice(&self.page);
        self.page.clear();
        (self.end, self.first_seq, self.seq, self.place) = (0, 0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever the bytes are, both ways read the same number and stop at the same place.
        #[test]
        fn eight_bytes_at_a_time_are_what_one_at_a_time_is(
            page in proptest::collection::vec(prop_oneof![any::<u8>(), 0x80..=0xff_u8, Just(0x80)], 0..24),
            at in 0..24_usize,
        ) {
            let (mut fast, mut slow) = (Walker { at, ..Walker::new() }, Walker { at, ..Walker::new() });
            let (a, b) = (fast.varint(&page), slow.varint_slow(&page));
            prop_assert_eq!(&a, &b);
            prop_assert!(a.is_err() || fast.at == slow.at);
        }
    }
}
