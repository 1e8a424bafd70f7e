//! Bounds-checked little-endian reading and writing (I12: bytes are checked before they are used).

use thiserror::Error;

/// Why bytes were refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// Fewer bytes than the structure needs.
    #[error("truncated: {what} needs {need} bytes, {have} are there")]
    Truncated {
        /// The structure that was read.
        what: &'static str,
        /// Bytes needed.
        need: usize,
        /// Bytes there.
        have: usize,
    },
    /// The first bytes are not those of this structure.
    #[error("not a {what}: its magic number is wrong")]
    Magic {
        /// The structure expected.
        what: &'static str,
    },
    /// Written by another version.
    #[error("{what} has version {found}, this program reads version {known}")]
    Version {
        /// The structure.
        what: &'static str,
        /// Version found.
        found: u32,
        /// Newest version known here.
        known: u32,
    },
    /// A checksum does not fit its bytes.
    #[error("{what} is damaged: its checksum does not match")]
    Checksum {
        /// The structure.
        what: &'static str,
    },
    /// A field has a value outside its range.
    #[error("{what}: field {field} has the impossible value {value}")]
    Field {
        /// The structure.
        what: &'static str,
        /// The field.
        field: &'static str,
        /// The value found.
        value: u64,
    },
}

/// Reads fixed and variable-length fields from a slice, never past its end.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    what: &'static str,
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts reading `bytes`, which hold a `what` (named in errors).
    #[must_use]
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, bytes }
    }

    /// What is left.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    /// Takes `n` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] if fewer are left.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        #[cfg(test)]
        if tests::UNCHECKED.get() {
            let (head, tail) = self.bytes.split_at(n);
            self.bytes = tail;
            return Ok(head);
        }
        let Some((head, tail)) = self.bytes.split_at_checked(n) else {
            return Err(DecodeError::Truncated { what: self.what, need: n, have: self.bytes.len() });
        };
        self.bytes = tail;
        Ok(head)
    }

    /// Takes an array of `N` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] if fewer are left.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// Takes a byte.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] at the end.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    /// Takes a little-endian `u16`.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] at the end.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Takes a little-endian `u32`.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] at the end.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Takes a little-endian `u64`.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] at the end.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Takes an unsigned LEB128 number of at most 10 bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] at the end, [`DecodeError::Field`] if it does not fit 64 bits.
    pub fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let part = u64::from(byte & 0x7f);
            if shift == 63 && part > 1 {
                return Err(DecodeError::Field { what: self.what, field: "varint", value: part });
            }
            value |= part << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Field { what: self.what, field: "varint", value })
    }

    /// Takes a string with a `u16` length before it.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] at the end, [`DecodeError::Field`] if it is not UTF-8 or longer than `max`.
    pub fn string(&mut self, max: usize) -> Result<String, DecodeError> {
        let len = usize::from(self.u16()?);
        let bad = DecodeError::Field { what: self.what, field: "string", value: len as u64 };
        if len > max {
            return Err(bad);
        }
        String::from_utf8(self.take(len)?.to_vec()).map_err(|_| bad)
    }

    /// Says that nothing may be left.
    ///
    /// # Errors
    /// [`DecodeError::Field`] if something is.
    pub fn end(&self) -> Result<(), DecodeError> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        Err(DecodeError::Field { what: self.what, field: "trailing bytes", value: self.bytes.len() as u64 })
    }
}

/// Appends fields to a vector; the mirror of [`Reader`].
pub trait Writer {
    /// Appends a little-endian `u16`.
    fn put_u16(&mut self, v: u16);
    /// Appends a little-endian `u32`.
    fn put_u32(&mut self, v: u32);
    /// Appends a little-endian `u64`.
    fn put_u64(&mut self, v: u64);
    /// Appends an unsigned LEB128 number.
    fn put_varint(&mut self, v: u64);
    /// Appends a string with a `u16` length before it, cut at a character boundary if longer than 65,535 bytes.
    fn put_string(&mut self, v: &str);
}

impl Writer for Vec<u8> {
    fn put_u16(&mut self, v: u16) {
        self.extend_from_slice(&v.to_le_bytes());
    }

    fn put_u32(&mut self, v: u32) {
        self.extend_from_slice(&v.to_le_bytes());
    }

    fn put_u64(&mut self, v: u64) {
        self.extend_from_slice(&v.to_le_bytes());
    }

    #[expect(clippy::cast_possible_truncation, reason = "seven bits at a time are what the encoding is")]
    fn put_varint(&mut self, mut v: u64) {
        while v >= 0x80 {
            self.push(v as u8 | 0x80);
            v >>= 7;
        }
        self.push(v as u8);
    }

    fn put_string(&mut self, v: &str) {
        let mut end = v.len().min(usize::from(u16::MAX));
        while !v.is_char_boundary(end) {
            end -= 1;
        }
        let bytes = &v.as_bytes()[..end];
        self.put_u16(u16::try_from(bytes.len()).unwrap_or(u16::MAX));
        self.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{commit, compare, manifest, segment, wire};
    use proptest::prelude::*;
    use std::cell::Cell;
    use std::panic;

    thread_local! {
        /// A deliberate break of I12: the reader believes every length.
        pub(super) static UNCHECKED: Cell<bool> = const { Cell::new(false) };
    }

    /// Gives `bytes` to everything that reads what came from a socket or a file.
    fn read_all(bytes: &[u8]) {
        let _ = wire::Hello::decode(bytes);
        let _ = wire::Welcome::decode(bytes);
        let _ = wire::Refuse::decode(bytes);
        let _ = compare::HashQuery::decode(bytes, 1 << 30);
        let _ = compare::Hashes::decode(bytes);
        let _ = manifest::Manifest::decode(bytes);
        let _ = segment::SegmentHeader::decode(bytes);
        let _ = segment::FrameHeader::decode(bytes);
        let _ = segment::Footer::decode(bytes);
        let _ = segment::DirEntry::decode_all(bytes);
        let _ = commit::Commit::decode(bytes);
    }

    proptest! {
        #[test]
        fn varint_round_trip(v: u64) {
            let mut b = Vec::new();
            b.put_varint(v);
            let mut r = Reader::new("test", &b);
            prop_assert_eq!(r.varint(), Ok(v));
            prop_assert_eq!(r.end(), Ok(()));
        }

        #[test]
        fn string_round_trip(v in ".{0,80}") {
            let mut b = Vec::new();
            b.put_string(&v);
            prop_assert_eq!(Reader::new("test", &b).string(1000), Ok(v));
        }
    }

    #[test]
    fn an_overlong_varint_is_refused() {
        assert!(Reader::new("test", &[0xff; 11]).varint().is_err());
        assert!(Reader::new("test", &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]).varint().is_err());
    }

    #[test]
    fn i12_a_reader_that_believes_lengths_is_seen() {
        let short: Vec<Vec<u8>> = (0..40).map(|n| vec![0xff; n]).collect();
        let fall = || short.iter().filter(|b| panic::catch_unwind(|| read_all(b)).is_err()).count();
        assert_eq!(fall(), 0);
        UNCHECKED.set(true);
        let fallen = fall();
        UNCHECKED.set(false);
        assert!(fallen > 0, "a reader without checks went unseen");
    }

    #[test]
    fn nothing_is_read_past_the_end() {
        let mut r = Reader::new("test", &[1, 2, 3]);
        assert_eq!(r.u32(), Err(DecodeError::Truncated { what: "test", need: 4, have: 3 }));
        assert_eq!(r.u16(), Ok(0x0201), "a refused read takes nothing");
    }
}
