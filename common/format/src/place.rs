//! Where a grid block lies in the store, in one 64-bit word.
//!
//! ```text
//! bits 63..32  segment number (1..), 0 for the words that name no segment
//! bits 31..10  offset of the frame in its segment, in units of 16 bytes (a segment is at most 64 MiB)
//! bits  9..5   slot: which block of the frame (0..=31)
//! bits  4..0   size of the sealed frame in units of 4 KiB, rounded up, less one: one read fetches it whole
//! ```
//!
//! The zero word is [`Place::ZERO`]: a block of zeroes, which is stored nowhere. The next block of the
//! same frame is the word plus [`Place::NEXT_SLOT`], so a run of blocks is described by its first place.

use crate::codec::DecodeError;

/// Largest size of a segment file.
pub const MAX_SEGMENT: u64 = 64 << 20;
/// Frames begin at multiples of this.
pub const FRAME_ALIGN: u64 = 16;
/// Most blocks in a frame.
pub const MAX_SLOTS: u32 = 32;
/// Unit of the size hint.
pub const SIZE_UNIT: u32 = 4096;
/// Largest sealed frame, header and tag included.
pub const MAX_FRAME: u32 = 32 * SIZE_UNIT;

/// The place of a block: see the module for its bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Place(u64);

impl Place {
    /// A block of zeroes, stored nowhere.
    pub const ZERO: Place = Place(0);
    /// What to add to a word for the next block of the same frame.
    pub const NEXT_SLOT: u64 = 1 << 5;

    /// Names slot `slot` of the frame of `frame_len` sealed bytes at byte `offset` of segment `segment`.
    ///
    /// # Errors
    /// [`DecodeError::Field`] if a part is out of its range.
    pub fn new(segment: u32, offset: u64, frame_len: u32, slot: u32) -> Result<Place, DecodeError> {
        let field = |field, value| Err(DecodeError::Field { what: "place", field, value });
        if segment == 0 {
            return field("segment", 0);
        }
        if offset >= MAX_SEGMENT || !offset.is_multiple_of(FRAME_ALIGN) {
            return field("offset", offset);
        }
        if frame_len == 0 || frame_len > MAX_FRAME {
            return field("frame length", u64::from(frame_len));
        }
        if slot >= MAX_SLOTS {
            return field("slot", u64::from(slot));
        }
        let size = u64::from(frame_len.div_ceil(SIZE_UNIT) - 1);
        Ok(Place(u64::from(segment) << 32 | (offset / FRAME_ALIGN) << 10 | u64::from(slot) << 5 | size))
    }

    /// The word itself.
    #[must_use]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// A word read from a file.
    ///
    /// # Errors
    /// [`DecodeError::Field`] if it names no segment and is not [`Place::ZERO`].
    pub const fn from_word(word: u64) -> Result<Place, DecodeError> {
        if word != 0 && word >> 32 == 0 {
            return Err(DecodeError::Field { what: "place", field: "segment", value: word });
        }
        Ok(Place(word))
    }

    /// Whether this is [`Place::ZERO`].
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The segment's number; 0 for [`Place::ZERO`].
    #[must_use]
    pub const fn segment(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Byte offset of the frame in its segment.
    #[must_use]
    pub const fn offset(self) -> u64 {
        ((self.0 >> 10) & 0x3f_ffff) * FRAME_ALIGN
    }

    /// Which block of the frame.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the mask or the check keeps what fits")]
    pub const fn slot(self) -> u32 {
        (self.0 >> 5) as u32 & 0x1f
    }

    /// Upper bound of the sealed frame's length in bytes.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the mask or the check keeps what fits")]
    pub const fn frame_len_bound(self) -> u32 {
        ((self.0 as u32 & 0x1f) + 1) * SIZE_UNIT
    }

    /// The place `n` blocks further on in a run: slots of the same frame, or still zero.
    ///
    /// `None` if the frame has no such slot.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the mask or the check keeps what fits")]
    pub const fn advance(self, n: u64) -> Option<Place> {
        if self.is_zero() {
            return Some(self);
        }
        if n >= MAX_SLOTS as u64 || self.slot() + n as u32 >= MAX_SLOTS {
            return None;
        }
        Some(Place(self.0 + n * Self::NEXT_SLOT))
    }

    /// The frame this place lies in: the same word with slot 0. Equal for all blocks of a frame.
    #[must_use]
    pub const fn frame(self) -> Place {
        Place(self.0 & !(0x1f << 5))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_come_back(segment in 1u32.., unit in 0u64..(MAX_SEGMENT / FRAME_ALIGN), len in 1..=MAX_FRAME, slot in 0..MAX_SLOTS) {
            let p = Place::new(segment, unit * FRAME_ALIGN, len, slot).expect("in range");
            prop_assert_eq!((p.segment(), p.offset(), p.slot()), (segment, unit * FRAME_ALIGN, slot));
            prop_assert!(p.frame_len_bound() >= len && p.frame_len_bound() - len < SIZE_UNIT);
            prop_assert_eq!(Place::from_word(p.word()), Ok(p));
            prop_assert_eq!(p.frame().slot(), 0);
            match p.advance(1) {
                Some(n) => prop_assert_eq!((n.slot(), n.frame()), (slot + 1, p.frame())),
                None => prop_assert_eq!(slot, MAX_SLOTS - 1),
            }
        }
    }

    #[test]
    fn parts_out_of_range_are_refused() {
        assert!(Place::new(0, 0, 1, 0).is_err());
        assert!(Place::new(1, MAX_SEGMENT, 1, 0).is_err());
        assert!(Place::new(1, 8, 1, 0).is_err());
        assert!(Place::new(1, 0, MAX_FRAME + 1, 0).is_err());
        assert!(Place::new(1, 0, 1, MAX_SLOTS).is_err());
        assert!(Place::from_word(7).is_err());
    }
}
