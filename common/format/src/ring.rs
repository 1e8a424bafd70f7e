//! The file of a ring journal: one header page, an array of slots, an area of data pages.
//!
//! ```text
//! offset            size         what
//!      0            4096         header page (below), unused bytes zero
//!   4096            64 * slots   slots: record headers (see record), the one with seq s in slot s mod slots
//!   4096+64*slots   4096 * pages data pages
//! ```
//!
//! Header page. All numbers are little-endian; every field that changes while the ring is in use is one aligned
//! 8-byte word, or is covered by a check that is stored around it, so that a process may die between any two stores.
//!
//! ```text
//! offset  size  field
//!      0     4  magic "AIRG"
//!      4     4  version, 1
//!      8    16  volume
//!     24    16  ring id: random, new with every ring
//!     40     8  slots: a power of two
//!     48     8  pages
//!     56     8  xxh3-64 of bytes 0..56
//!     64    16  boot id of the machine when the ring was made or last opened after a clean stop
//!     80     8  check of the boot id
//!     88     8  clean mark: 0 while in use; after a clean stop xxh3-64 of (ring id, "clean", first seq, next seq)
//!     96     8  closed: time of closing in nanoseconds since 1970, 0 while the ring is open
//!    104     8  check of closed; stored before it, and without meaning while it is 0
//!    128     8  turn: the tail in force is number (turn mod 2), and holds the same turn
//!    192    48  tail 0
//!    256    48  tail 1
//! ```
//!
//! A tail is written whole while the other one is in force, then `turn` is stored:
//!
//! ```text
//!      0     8  turn
//!      8     8  seq: the first that is held
//!     16     8  pages: data pages used up to there since the ring was made, skipped ones included
//!     24     8  seq of the record freed last
//!     32     8  digest of it, 0 if there was none
//!     40     8  xxh3-64 of (ring id, bytes 0..40)
//! ```
//!
//! **Pages.** The payload of a record lies in consecutive pages. The `place` field of a slot holds in bits 0..48 a page counter, which only
//! grows: a payload of n pages begins at page (that number - n) mod pages. A record follows the one before it at once, or begins the
//! next lap (the next multiple of `pages`), or goes on further back in its lap where records of the lap before are in the way; the
//! pages skipped count as its own. Records of two laps at most are held, and their pages never overlap. Bits 48..64 hold [`DONE`] once
//! the real disk has the write, else zero: all sixteen, so that no single wrong byte turns one into the other.

use crate::codec::{DecodeError, Reader};
use xxhash_rust::xxh3::xxh3_64;

/// First four bytes of a ring file.
pub const MAGIC: u32 = u32::from_le_bytes(*b"AIRG");
/// Version of the layout.
pub const VERSION: u32 = 1;
/// Size of the header page and of a data page.
pub const PAGE: u64 = 4096;
/// Size of a slot.
pub const SLOT: u64 = 64;
/// Bytes of the header page that never change.
pub const FIXED_LEN: usize = 64;
/// Most data pages (exclusive) and most slots: their counters are 31 and 32 bits wide in the ring's head.
pub const MAX_PAGES: u64 = 1 << 31;

/// Greatest seq and greatest page counter of a tail, far above what a ring ever sees: sums of them fit.
pub const MAX_TAIL: (u64, u64) = (1 << 62, 1 << 46);

/// Number of the 8-byte word of the header page that holds a field.
pub mod word {
    /// Boot id, two words.
    pub const BOOT: usize = 8;
    /// Check of the boot id.
    pub const BOOT_CHECK: usize = 10;
    /// Clean mark.
    pub const CLEAN: usize = 11;
    /// Time of closing.
    pub const CLOSED: usize = 12;
    /// Check of the time of closing.
    pub const CLOSED_CHECK: usize = 13;
    /// Which tail is in force.
    pub const TURN: usize = 16;
    /// First word of each tail.
    pub const TAILS: [usize; 2] = [24, 32];
}

/// High bits of a slot's `place` once the real disk has the write.
pub const DONE: u64 = 0xa5c3 << 48;
/// Low bits of a slot's `place`: pages used up to and with the record.
pub const END_MASK: u64 = (1 << 48) - 1;

/// The part of the header page that never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingHeader {
    /// Volume.
    pub volume: [u8; 16],
    /// Ring id.
    pub ring: [u8; 16],
    /// Number of slots, a power of two.
    pub slots: u64,
    /// Number of data pages.
    pub pages: u64,
}

impl RingHeader {
    /// The bytes at the start of the file.
    #[must_use]
    pub fn encode(&self) -> [u8; FIXED_LEN] {
        let mut b = [0; FIXED_LEN];
        b[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        b[4..8].copy_from_slice(&VERSION.to_le_bytes());
        b[8..24].copy_from_slice(&self.volume);
        b[24..40].copy_from_slice(&self.ring);
        b[40..48].copy_from_slice(&self.slots.to_le_bytes());
        b[48..56].copy_from_slice(&self.pages.to_le_bytes());
        let check = xxh3_64(&b[..56]);
        b[56..].copy_from_slice(&check.to_le_bytes());
        b
    }

    /// Checks and reads the start of a file.
    ///
    /// # Errors
    /// [`DecodeError`] for a wrong magic, version, checksum, or sizes that no ring has.
    pub fn decode(b: &[u8; FIXED_LEN]) -> Result<RingHeader, DecodeError> {
        const WHAT: &str = "ring";
        let mut r = Reader::new(WHAT, b);
        if r.u32()? != MAGIC {
            return Err(DecodeError::Magic { what: WHAT });
        }
        let version = r.u32()?;
        if version != VERSION {
            return Err(DecodeError::Version { what: WHAT, found: version, known: VERSION });
        }
        let header = RingHeader { volume: r.array()?, ring: r.array()?, slots: r.u64()?, pages: r.u64()? };
        if xxh3_64(&b[..56]) != r.u64()? {
            return Err(DecodeError::Checksum { what: WHAT });
        }
        if !header.slots.is_power_of_two() || header.slots > MAX_PAGES || header.slots < PAGE / SLOT {
            return Err(DecodeError::Field { what: WHAT, field: "slots", value: header.slots });
        }
        if header.pages == 0 || header.pages >= MAX_PAGES {
            return Err(DecodeError::Field { what: WHAT, field: "pages", value: header.pages });
        }
        Ok(header)
    }

    /// Byte offset of the data area.
    #[must_use]
    pub const fn data_at(&self) -> u64 {
        PAGE + SLOT * self.slots
    }

    /// Length of the file in bytes.
    #[must_use]
    pub const fn file_len(&self) -> u64 {
        self.data_at() + PAGE * self.pages
    }

    /// The check that belongs to a boot id.
    #[must_use]
    pub fn boot_check(&self, boot: [u64; 2]) -> u64 {
        keyed_check(&self.ring, "boot", &boot)
    }

    /// The clean mark of a ring that was stopped holding these seqs; never 0.
    #[must_use]
    pub fn clean_mark(&self, first: u64, next: u64) -> u64 {
        keyed_check(&self.ring, "clean", &[first, next]) | 1
    }

    /// The check that belongs to a time of closing.
    #[must_use]
    pub fn closed_check(&self, time: u64) -> u64 {
        keyed_check(&self.ring, "closed", &[time])
    }
}

/// xxh3-64 over an id, a word that says what it is for, and numbers: the checks of ring and dirty map.
#[must_use]
pub fn keyed_check(id: &[u8; 16], what: &str, numbers: &[u64]) -> u64 {
    let mut bytes = Vec::with_capacity(64);
    bytes.extend_from_slice(id);
    bytes.extend_from_slice(what.as_bytes());
    for n in numbers {
        bytes.extend_from_slice(&n.to_le_bytes());
    }
    xxh3_64(&bytes)
}

/// Where a ring's records begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// Counts the tails written.
    pub turn: u64,
    /// First seq held.
    pub seq: u64,
    /// Pages used up to there since the ring was made.
    pub pages: u64,
    /// Seq of the record freed last.
    pub freed_seq: u64,
    /// Digest of that record.
    pub freed_digest: u64,
}

impl Tail {
    /// The six words of a tail.
    #[must_use]
    pub fn encode(&self, ring: &[u8; 16]) -> [u64; 6] {
        let fields = [self.turn, self.seq, self.pages, self.freed_seq, self.freed_digest];
        let [a, b, c, d, e] = fields;
        [a, b, c, d, e, keyed_check(ring, "tail", &fields)]
    }

    /// Checks and reads the six words of the tail that `turn` puts in force.
    ///
    /// # Errors
    /// [`DecodeError::Checksum`] if they are not that tail, [`DecodeError::Field`] if no ring comes so far ([`MAX_TAIL`]).
    pub fn decode(words: [u64; 6], turn: u64, ring: &[u8; 16]) -> Result<Tail, DecodeError> {
        let [t, seq, pages, freed_seq, freed_digest, _] = words;
        let tail = Tail { turn: t, seq, pages, freed_seq, freed_digest };
        if t != turn || tail.encode(ring) != words {
            return Err(DecodeError::Checksum { what: "tail of the ring" });
        }
        if seq == 0 || seq > MAX_TAIL.0 || pages > MAX_TAIL.1 {
            return Err(DecodeError::Field { what: "tail of the ring", field: "seq or pages", value: seq });
        }
        Ok(tail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: RingHeader = RingHeader { volume: [1; 16], ring: [2; 16], slots: 4096, pages: 1024 };

    #[test]
    fn bytes_are_frozen() {
        let b = HEADER.encode();
        assert_eq!(&b[..8], b"AIRG\x01\0\0\0");
        assert_eq!(&b[8..40], [[1u8; 16], [2; 16]].concat());
        assert_eq!(b[40..56], [0, 16, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0]);
        assert_eq!(u64::from_le_bytes(b[56..].try_into().unwrap()), 0x46ce_d832_6ad2_ac73);
        assert_eq!(RingHeader::decode(&b), Ok(HEADER));
        assert_eq!(HEADER.data_at(), 4096 + 64 * 4096);
        assert_eq!(HEADER.file_len(), 4096 + 64 * 4096 + (4 << 20));
    }

    #[test]
    fn every_flipped_byte_is_seen() {
        for i in 0..FIXED_LEN {
            let mut b = HEADER.encode();
            b[i] ^= 0x10;
            assert!(RingHeader::decode(&b).is_err(), "byte {i}");
        }
        let tail = Tail { turn: 7, seq: 100, pages: 300, freed_seq: 99, freed_digest: 5 };
        let words = tail.encode(&HEADER.ring);
        assert_eq!(Tail::decode(words, 7, &HEADER.ring), Ok(tail));
        assert!(Tail::decode(words, 8, &HEADER.ring).is_err());
        for (seq, pages) in [(0, 300), (u64::MAX, 300), (100, u64::MAX)] {
            let impossible = Tail { seq, pages, ..tail }.encode(&HEADER.ring);
            assert!(matches!(Tail::decode(impossible, 7, &HEADER.ring), Err(DecodeError::Field { .. })));
        }
        for i in 0..6 {
            let mut w = words;
            w[i] ^= 1 << 40;
            assert!(Tail::decode(w, 7, &HEADER.ring).is_err(), "word {i}");
        }
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        for (slots, pages) in [(0, 1024), (4095, 1024), (32, 1024), (1 << 32, 1024), (4096, 0), (4096, 1 << 31)] {
            let header = RingHeader { slots, pages, ..HEADER };
            assert!(RingHeader::decode(&header.encode()).is_err(), "{slots} {pages}");
        }
    }

    #[test]
    fn no_single_byte_makes_done_of_not_done() {
        let bytes = DONE.to_le_bytes();
        assert!(bytes.iter().filter(|b| **b != 0).count() >= 2);
    }
}
