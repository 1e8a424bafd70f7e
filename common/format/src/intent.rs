//! The file of a write-intent map: two copies of a header, and sectors of marks, each of which explains itself.
//!
//! ```text
//! offset  size  field
//!      0   512  header, one copy
//!    512   512  header, the other copy; the sound one with the higher turn is in force
//!   1024        zero
//!   4096   512  sectors, each with the marks of 3648 regions, rounded up to whole pages
//!
//! header                                        sector
//! offset  size  field                           offset  size  field
//!      0     4  magic "AIIM"                         0     4  magic "AIIS"
//!      4     4  version, 1                           4     4  number of the sector
//!      8    16  volume                               8     8  generation of the ring relied on
//!     24     8  size of the volume in bytes         16     8  seq relied on, 0 for none
//!     32     8  size of a region, a power of two    24     8  digest of that seq's record
//!     40     8  salt, random with each new file     32    16  zero
//!     48     8  turn                                48   456  marks, bit i of byte b: region 8 b + i of the sector
//!     56     8  generation of the newest ring      504     8  xxh3-64 of bytes 0..504, seeded with the salt
//!     64     8  number of ring ids, 1 to 8
//!     72   128  ring ids, the newest first
//!    200   304  zero
//!    504     8  xxh3-64 of bytes 0..504
//! ```
//!
//! A mark that is set says: disk and history may differ there after a power cut. One that is not set says that they are the
//! same, provided that the history is one that follows on the seq that the sector relies on. Both stand in one sector
//! under one checksum, so neither can be there without the other. A sector that does not check (torn, lost, left from
//! another file) counts as all marked and relies on nothing.

use crate::codec::{DecodeError, Reader};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// First four bytes of the header.
pub const MAGIC: u32 = u32::from_le_bytes(*b"AIIM");
/// First four bytes of a sector.
pub const SECTOR_MAGIC: u32 = u32::from_le_bytes(*b"AIIS");
/// Version of the layout.
pub const VERSION: u32 = 1;
/// Bytes of a header and of a sector: what disks write whole, or not at all, most of the time.
pub const SECTOR: usize = 512;
/// Byte offset of the first sector of marks.
pub const SECTORS_AT: u64 = 4096;
/// Regions whose marks are in one sector.
pub const REGIONS_PER_SECTOR: u64 = (MARK_BYTES * 8) as u64;
/// Most regions of a map.
pub const MAX_REGIONS: u64 = 1 << 28;
/// Most ring ids that a header knows.
pub const MAX_RINGS: usize = 8;

const MARK_BYTES: usize = 456;
const MARKS_AT: usize = 48;
const CHECK_AT: usize = SECTOR - 8;

/// The header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntentHeader {
    /// Volume.
    pub volume: [u8; 16],
    /// Size of the volume in bytes.
    pub size: u64,
    /// Size of a region in bytes.
    pub region: u64,
    /// Random, new with each file: no sector of another file checks in this one.
    pub salt: u64,
    /// Counts the headers written; decides which copy is in force.
    pub turn: u64,
    /// Generation of the newest ring; the one before it in `rings` is one less, and so on.
    pub generation: u64,
    /// Ids of the volume's rings, the newest first: 1 to [`MAX_RINGS`].
    pub rings: Vec<[u8; 16]>,
}

impl IntentHeader {
    /// Whether a map of these sizes can exist.
    #[must_use]
    pub const fn is_possible(&self) -> bool {
        self.region.is_power_of_two() && self.region >= 4096 && self.size > 0 && self.regions() <= MAX_REGIONS
    }

    /// Number of regions.
    #[must_use]
    pub const fn regions(&self) -> u64 {
        self.size.div_ceil(self.region)
    }

    /// Number of sectors.
    #[must_use]
    pub const fn sectors(&self) -> u64 {
        self.regions().div_ceil(REGIONS_PER_SECTOR)
    }

    /// Length of the file in bytes.
    #[must_use]
    pub const fn file_len(&self) -> u64 {
        SECTORS_AT + (self.sectors() * SECTOR as u64).next_multiple_of(4096)
    }

    /// Byte offset of the copy that a header with this turn is written to.
    #[must_use]
    pub const fn copy_at(&self) -> u64 {
        self.turn % 2 * SECTOR as u64
    }

    /// The bytes of one copy. At most the newest [`MAX_RINGS`] rings are written.
    #[must_use]
    pub fn encode(&self) -> [u8; SECTOR] {
        let mut b = [0; SECTOR];
        b[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        b[4..8].copy_from_slice(&VERSION.to_le_bytes());
        b[8..24].copy_from_slice(&self.volume);
        let count = self.rings.len().min(MAX_RINGS);
        let numbers = [self.size, self.region, self.salt, self.turn, self.generation, count as u64];
        for (i, n) in numbers.iter().enumerate() {
            b[24 + 8 * i..32 + 8 * i].copy_from_slice(&n.to_le_bytes());
        }
        for (i, ring) in self.rings.iter().take(count).enumerate() {
            b[72 + 16 * i..88 + 16 * i].copy_from_slice(ring);
        }
        let check = xxh3_64(&b[..CHECK_AT]);
        b[CHECK_AT..].copy_from_slice(&check.to_le_bytes());
        b
    }

    /// Checks and reads one copy.
    ///
    /// # Errors
    /// [`DecodeError`] for a wrong magic, version, checksum, or values that no map has.
    pub fn decode(b: &[u8; SECTOR]) -> Result<IntentHeader, DecodeError> {
        const WHAT: &str = "write-intent map";
        let mut r = Reader::new(WHAT, b);
        if r.u32()? != MAGIC {
            return Err(DecodeError::Magic { what: WHAT });
        }
        let version = r.u32()?;
        if version != VERSION {
            return Err(DecodeError::Version { what: WHAT, found: version, known: VERSION });
        }
        if b[CHECK_AT..] != xxh3_64(&b[..CHECK_AT]).to_le_bytes() {
            return Err(DecodeError::Checksum { what: WHAT });
        }
        let (volume, size, region, salt) = (r.array()?, r.u64()?, r.u64()?, r.u64()?);
        let (turn, generation, count) = (r.u64()?, r.u64()?, r.u64()?);
        let limit = usize::try_from(count).ok().filter(|c| (1..=MAX_RINGS).contains(c) && generation >= count);
        let Some(limit) = limit else {
            return Err(DecodeError::Field { what: WHAT, field: "rings", value: count });
        };
        let mut rings = Vec::with_capacity(limit);
        for _ in 0..limit {
            rings.push(r.array()?);
        }
        let header = IntentHeader { volume, size, region, salt, turn, generation, rings };
        if !header.is_possible() {
            return Err(DecodeError::Field { what: WHAT, field: "region", value: region });
        }
        Ok(header)
    }
}

/// What the marks that are not set rely on: the appliance had this record durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Relied {
    /// Generation of the ring.
    pub generation: u64,
    /// Seq in that ring; 0 for nothing.
    pub seq: u64,
    /// Digest of the record.
    pub digest: u64,
}

/// A sector of marks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntentSector {
    /// What its clean regions rely on.
    pub relied: Relied,
    marks: [u8; MARK_BYTES],
}

impl IntentSector {
    /// Nothing marked.
    pub const CLEAN: IntentSector =
        IntentSector { relied: Relied { generation: 0, seq: 0, digest: 0 }, marks: [0; MARK_BYTES] };
    /// Everything marked.
    pub const MARKED: IntentSector = IntentSector { marks: [0xff; MARK_BYTES], ..IntentSector::CLEAN };

    const fn place(region: u64) -> (usize, u8) {
        let at = region % REGIONS_PER_SECTOR;
        (at as usize / 8, 1 << (at % 8))
    }

    /// Whether a region of this sector (numbered as in the whole map) is marked.
    #[must_use]
    pub fn is_marked(&self, region: u64) -> bool {
        let (byte, bit) = Self::place(region);
        self.marks[byte] & bit != 0
    }

    /// Sets or takes away the mark of a region of this sector.
    pub fn set(&mut self, region: u64, marked: bool) {
        let (byte, bit) = Self::place(region);
        if marked { self.marks[byte] |= bit } else { self.marks[byte] &= !bit }
    }

    /// The bytes of sector `number` in a file with this salt.
    #[must_use]
    pub fn encode(&self, number: u32, salt: u64) -> [u8; SECTOR] {
        let mut b = [0; SECTOR];
        b[0..4].copy_from_slice(&SECTOR_MAGIC.to_le_bytes());
        b[4..8].copy_from_slice(&number.to_le_bytes());
        for (i, n) in [self.relied.generation, self.relied.seq, self.relied.digest].iter().enumerate() {
            b[8 + 8 * i..16 + 8 * i].copy_from_slice(&n.to_le_bytes());
        }
        b[MARKS_AT..CHECK_AT].copy_from_slice(&self.marks);
        let check = xxh3_64_with_seed(&b[..CHECK_AT], salt);
        b[CHECK_AT..].copy_from_slice(&check.to_le_bytes());
        b
    }

    /// Checks and reads sector `number`; `None` if that is not what the bytes are.
    #[must_use]
    pub fn decode(b: &[u8; SECTOR], number: u32, salt: u64) -> Option<IntentSector> {
        let mut r = Reader::new("sector of a write-intent map", b);
        let sound = b[CHECK_AT..] == xxh3_64_with_seed(&b[..CHECK_AT], salt).to_le_bytes();
        if !sound || r.u32().ok()? != SECTOR_MAGIC || r.u32().ok()? != number {
            return None;
        }
        let relied = Relied { generation: r.u64().ok()?, seq: r.u64().ok()?, digest: r.u64().ok()? };
        let mut marks = [0; MARK_BYTES];
        marks.copy_from_slice(&b[MARKS_AT..CHECK_AT]);
        Some(IntentSector { relied, marks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> IntentHeader {
        IntentHeader {
            volume: [3; 16],
            size: (10 << 30) + 1,
            region: 1 << 20,
            salt: 0x1122,
            turn: 7,
            generation: 5,
            rings: vec![[9; 16], [8; 16]],
        }
    }

    #[test]
    fn bytes_are_frozen() {
        let b = header().encode();
        assert_eq!(&b[..8], b"AIIM\x01\0\0\0");
        assert_eq!(xxh3_64(&b), 0xdb9130eb1c6bac6d, "golden");
        assert_eq!(IntentHeader::decode(&b), Ok(header()));
        let h = header();
        assert_eq!((h.regions(), h.sectors(), h.file_len(), h.copy_at()), (10241, 3, 8192, 512));
        let mut s = IntentSector { relied: Relied { generation: 5, seq: 77, digest: 1 }, ..IntentSector::CLEAN };
        s.set(3648 + 9, true);
        let b = s.encode(1, 4);
        assert_eq!(xxh3_64(&b), 0x8dfff3641bc559e, "golden");
        assert_eq!(b[MARKS_AT + 1], 2);
        assert_eq!(IntentSector::decode(&b, 1, 4), Some(s));
    }

    #[test]
    fn every_flipped_byte_another_place_and_another_file_are_seen() {
        let s = IntentSector { relied: Relied { generation: 1, seq: 2, digest: 3 }, ..IntentSector::MARKED };
        let good = s.encode(6, 4);
        assert_eq!(IntentSector::decode(&good, 5, 4), None);
        assert_eq!(IntentSector::decode(&good, 6, 5), None);
        assert_eq!(IntentSector::decode(&[0; SECTOR], 0, 0), None, "a lost sector is not clean");
        for i in 0..SECTOR {
            let (mut a, mut b) = (header().encode(), good);
            a[i] ^= 0x10;
            b[i] ^= 0x10;
            assert!(IntentHeader::decode(&a).is_err(), "byte {i}");
            assert_eq!(IntentSector::decode(&b, 6, 4), None, "byte {i}");
        }
    }

    /// Old and new content mixed at every byte: never clean by accident.
    #[test]
    fn a_torn_sector_is_no_sector() {
        let mut s = IntentSector::CLEAN;
        let old = s.encode(0, 9);
        s.set(70, true);
        let new = s.encode(0, 9);
        for cut in 1..SECTOR {
            let mut torn = new;
            torn[cut..].copy_from_slice(&old[cut..]);
            assert!(torn == old || torn == new || IntentSector::decode(&torn, 0, 9).is_none(), "cut at {cut}");
        }
    }

    #[test]
    fn impossible_headers_are_refused() {
        let bad = [
            IntentHeader { region: 0, ..header() },
            IntentHeader { region: 2048, ..header() },
            IntentHeader { region: 4097, ..header() },
            IntentHeader { size: 0, ..header() },
            IntentHeader { size: u64::MAX, ..header() },
            IntentHeader { rings: vec![], ..header() },
            IntentHeader { generation: 1, ..header() },
        ];
        for h in bad {
            assert!(IntentHeader::decode(&h.encode()).is_err(), "{h:?}");
        }
    }
}
