//! The file of a dirty map: one header page and an array of 8-byte words, each with the marks of 32 regions.
//!
//! ```text
//! offset  size  field
//!      0     4  magic "AIDM"
//!      4     4  version, 1
//!      8    16  volume
//!     24     8  size of the volume in bytes
//!     32     8  size of a region in bytes, a power of two
//!     40    16  zero
//!     56     8  xxh3-64 of bytes 0..56
//!     64    16  boot id of the machine when the map was made or last opened after a clean stop
//!     80     8  check of the boot id
//!     88     8  clean mark: 0 while in use; after a clean stop xxh3-64 of (volume, "clean", regions marked)
//!   4096     8  words, little-endian, one for each 32 regions, rounded up to whole pages
//! ```
//!
//! The low half of a word holds the marks (bit i of word w: region 32 w + i), the high half their complement: a word
//! changes in one store, and a word that was lost (zeroes) or damaged does not read as clean.

use crate::codec::{DecodeError, Reader};
use crate::ring::keyed_check;
use xxhash_rust::xxh3::xxh3_64;

/// First four bytes of a dirty map.
pub const MAGIC: u32 = u32::from_le_bytes(*b"AIDM");
/// Version of the layout.
pub const VERSION: u32 = 1;
/// Byte offset of the first word.
pub const WORDS_AT: u64 = 4096;
/// Regions in a word.
pub const REGIONS_PER_WORD: u64 = 32;
/// Bytes of the header page that never change.
pub const FIXED_LEN: usize = 64;
/// Most regions of a map: 1 GiB of words, enough for 256 TiB in regions of 64 KiB.
pub const MAX_REGIONS: u64 = 1 << 32;

/// Largest volume in bytes, so that whole regions of any size can be added up.
pub const MAX_SIZE: u64 = 1 << 62;

/// Number of the 8-byte word of the header page that holds a field.
pub mod word {
    /// Boot id, two words.
    pub const BOOT: usize = 8;
    /// Check of the boot id.
    pub const BOOT_CHECK: usize = 10;
    /// Clean mark.
    pub const CLEAN: usize = 11;
}

/// The part of the header page that never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirtyMapHeader {
    /// Volume.
    pub volume: [u8; 16],
    /// Size of the volume in bytes.
    pub size: u64,
    /// Size of a region in bytes.
    pub region: u64,
}

impl DirtyMapHeader {
    /// The bytes at the start of the file.
    #[must_use]
    pub fn encode(&self) -> [u8; FIXED_LEN] {
        let mut b = [0; FIXED_LEN];
        b[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        b[4..8].copy_from_slice(&VERSION.to_le_bytes());
        b[8..24].copy_from_slice(&self.volume);
        b[24..32].copy_from_slice(&self.size.to_le_bytes());
        b[32..40].copy_from_slice(&self.region.to_le_bytes());
        let check = xxh3_64(&b[..56]);
        b[56..].copy_from_slice(&check.to_le_bytes());
        b
    }

    /// Checks and reads the start of a file.
    ///
    /// # Errors
    /// [`DecodeError`] for a wrong magic, version, checksum, or sizes that no map has.
    pub fn decode(b: &[u8; FIXED_LEN]) -> Result<DirtyMapHeader, DecodeError> {
        const WHAT: &str = "dirty map";
        let mut r = Reader::new(WHAT, b);
        if r.u32()? != MAGIC {
            return Err(DecodeError::Magic { what: WHAT });
        }
        let version = r.u32()?;
        if version != VERSION {
            return Err(DecodeError::Version { what: WHAT, found: version, known: VERSION });
        }
        let header = DirtyMapHeader { volume: r.array()?, size: r.u64()?, region: r.u64()? };
        let zero: [u8; 16] = r.array()?;
        if xxh3_64(&b[..56]) != r.u64()? || zero != [0; 16] {
            return Err(DecodeError::Checksum { what: WHAT });
        }
        if !header.is_possible() {
            return Err(DecodeError::Field { what: WHAT, field: "region", value: header.region });
        }
        Ok(header)
    }

    /// Whether a map of these sizes can exist.
    #[must_use]
    pub const fn is_possible(&self) -> bool {
        self.region.is_power_of_two()
            && self.region >= 512
            && self.region <= MAX_SIZE
            && self.size <= MAX_SIZE
            && self.regions() <= MAX_REGIONS
    }

    /// Number of regions.
    #[must_use]
    pub const fn regions(&self) -> u64 {
        self.size.div_ceil(self.region)
    }

    /// Number of words, those that only fill the last page not counted.
    #[must_use]
    pub const fn words(&self) -> u64 {
        self.regions().div_ceil(REGIONS_PER_WORD)
    }

    /// Length of the file in bytes.
    #[must_use]
    pub const fn file_len(&self) -> u64 {
        WORDS_AT + (self.words() * 8).next_multiple_of(4096)
    }

    /// The check that belongs to a boot id.
    #[must_use]
    pub fn boot_check(&self, boot: [u64; 2]) -> u64 {
        keyed_check(&self.volume, "boot", &boot)
    }

    /// The clean mark of a map with this many regions marked; never 0.
    #[must_use]
    pub fn clean_mark(&self, marked: u64) -> u64 {
        keyed_check(&self.volume, "clean", &[marked]) | 1
    }
}

/// The word that holds these 32 marks.
#[must_use]
pub const fn word_of(marks: u32) -> u64 {
    (!marks as u64) << 32 | marks as u64
}

/// The 32 marks of a word, or `None` if the word is damaged.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "the halves of a word are what is wanted")]
pub const fn marks_of(word: u64) -> Option<u32> {
    let (marks, complement) = (word as u32, (word >> 32) as u32);
    if marks == !complement { Some(marks) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: DirtyMapHeader = DirtyMapHeader { volume: [3; 16], size: (1 << 30) + 1, region: 65536 };

    #[test]
    fn bytes_are_frozen() {
        let b = HEADER.encode();
        assert_eq!(&b[..8], b"AIDM\x01\0\0\0");
        assert_eq!(b[8..24], [3; 16]);
        assert_eq!(b[24..40], [1, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
        assert_eq!(u64::from_le_bytes(b[56..].try_into().unwrap()), 0x279b_dc2b_76d9_b65e);
        assert_eq!(DirtyMapHeader::decode(&b), Ok(HEADER));
        assert_eq!((HEADER.regions(), HEADER.words(), HEADER.file_len()), (16385, 513, 4096 + 8192));
    }

    #[test]
    fn every_flipped_byte_is_seen() {
        for i in 0..FIXED_LEN {
            let mut b = HEADER.encode();
            b[i] ^= 0x10;
            assert!(DirtyMapHeader::decode(&b).is_err(), "byte {i}");
        }
        for marks in [0, 1, 0x8000_0001, u32::MAX] {
            let word = word_of(marks);
            assert_eq!(marks_of(word), Some(marks));
            for bit in 0..64 {
                assert_eq!(marks_of(word ^ 1 << bit), None);
            }
        }
        assert_eq!(marks_of(0), None, "a lost word is not clean");
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        for (size, region) in
            [(1 << 30, 0), (1 << 30, 256), (1 << 30, 65535), (u64::MAX, 65536), (u64::MAX, 1 << 62), (1 << 30, 1 << 63)]
        {
            let header = DirtyMapHeader { size, region, ..HEADER };
            assert!(!(region != 0 && header.is_possible()), "{size} {region}");
            assert!(DirtyMapHeader::decode(&header.encode()).is_err(), "{size} {region}");
        }
    }
}
