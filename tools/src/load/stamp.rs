//! The bytes of a write.
//!
//! ```text
//! every 512-byte sector of the disk, as write `number` leaves it
//! offset  size  field
//!      0     8  magic "AFTERIMG"
//!      8     8  seed of the run (tells volumes and runs apart)
//!     16     8  number of the write
//!     24     8  number of the sector on the disk
//!     32   224  words from the three above, which do not compress
//!    256   256  the same word over and over, which does
//! ```
//!
//! A write that begins or ends inside a sector puts the part of these bytes there that it covers.

use super::op::Chance;

/// Unit of a stamp.
pub const SECTOR: u64 = 512;
const MAGIC: u64 = u64::from_le_bytes(*b"AFTERIMG");

/// The bytes of a whole sector.
#[must_use]
pub fn sector(seed: u64, number: u64, sector: u64) -> [u8; 512] {
    let mut bytes = [0; 512];
    let mut chance = Chance::new(seed ^ number.rotate_left(24) ^ sector.rotate_left(48));
    let repeated = chance.word();
    for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
        let value = match i {
            0 => MAGIC,
            1 => seed,
            2 => number,
            3 => sector,
            4..32 => chance.word(),
            _ => repeated,
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// Fills `out` with what write `number` puts at `offset`.
pub fn fill(seed: u64, number: u64, offset: u64, out: &mut [u8]) {
    let mut at = offset;
    let mut rest = out;
    while !rest.is_empty() {
        let whole = sector(seed, number, at / SECTOR);
        let skip = usize::try_from(at % SECTOR).unwrap_or(0);
        let len = rest.len().min(whole.len() - skip);
        let (now, later) = rest.split_at_mut(len);
        now.copy_from_slice(&whole[skip..skip + len]);
        at += len as u64;
        rest = later;
    }
}

/// What a sector holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Zeroes.
    Zero,
    /// The whole stamp of this write, at its place.
    Write(u64),
    /// Anything else.
    Garbage,
}

/// Reads sector number `at` of the disk.
#[must_use]
pub fn read(seed: u64, at: u64, bytes: &[u8]) -> Found {
    if bytes.iter().all(|b| *b == 0) {
        return Found::Zero;
    }
    let Some(number) = bytes.get(16..24).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes) else {
        return Found::Garbage;
    };
    if bytes == sector(seed, number, at) { Found::Write(number) } else { Found::Garbage }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_read_back_only_whole_and_at_its_place() {
        let mut bytes = vec![0; 2048];
        fill(5, 77, 1024, &mut bytes);
        assert_eq!(read(5, 2, &bytes[..512]), Found::Write(77));
        assert_eq!(read(5, 5, &bytes[1536..]), Found::Write(77));
        assert_eq!(read(5, 3, &bytes[..512]), Found::Garbage, "another place");
        assert_eq!(read(6, 2, &bytes[..512]), Found::Garbage, "another run");
        bytes[511] ^= 1;
        assert_eq!(read(5, 2, &bytes[..512]), Found::Garbage, "a flipped bit");
        assert_eq!(read(5, 2, &[0; 512]), Found::Zero);
    }

    #[test]
    fn parts_of_a_sector_are_the_same_bytes() {
        let mut whole = vec![0; 4096];
        fill(1, 2, 8192, &mut whole);
        let mut part = vec![0; 1000];
        fill(1, 2, 8192 + 333, &mut part);
        assert_eq!(part, whole[333..1333]);
    }
}
