//! The header of a journal record: 64 bytes, the same in a ring slot and on the wire.
//!
//! ```text
//! offset  size  field
//!      0     4  magic "AIR1" (the 1 is the version of this layout)
//!      4     1  kind
//!      5     1  flags (see the FLAG constants)
//!      6     2  zero
//!      8     8  seq: position in the volume's order, from 1, without gaps, at most MAX_SEQ
//!     16     8  offset in the volume, in bytes
//!     24     8  len: bytes of the volume covered; for markers, bytes of payload; for a resize, and a gap
//!               with FLAG_SIZED, the size of the volume from this record on
//!     32     8  time: nanoseconds since 1970, a label on the seq. Writers race for seqs, so a label may be
//!               a little less than the one before; the appliance raises it to that one
//!     40     8  xxh3-64 of the payload; 0 without one
//!     48     8  place: of the agent alone, where the payload lies in its ring; 0 on the wire's far side
//!     56     8  digest: xxh3-64 of bytes 0..48
//! ```
//!
//! The digest lets both sides name a record by content: after a reconnect they compare the digest at the
//! durable seq and so tell a continued history from a forked one.

use crate::codec::{DecodeError, Reader};
use xxhash_rust::xxh3::xxh3_64;

/// Size of a header in bytes.
pub const HEADER_LEN: usize = 64;
/// Longest payload of one record. Longer guest writes become several records.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// Longest name that a marker carries, in bytes.
pub const MAX_NAME: usize = 255;
/// Longest note on a point, in bytes: less than a page, so that it finds room in the reserve for markers.
pub const MAX_NOTE: usize = 3584;
/// Greatest seq of a history: a peer that names a greater one is refused, so that seqs can be added to.
pub const MAX_SEQ: u64 = 1 << 61;
/// First four bytes of a header.
pub const MAGIC: u32 = u32::from_le_bytes(*b"AIR1");

/// Set on a data record that comes from the initial sync or a resync, not from the guest.
pub const FLAG_SYNC: u8 = 1;
/// Set on a [`Kind::Gap`] that starts an initial sync: there is no history before it.
pub const FLAG_INITIAL: u8 = 2;
/// Set on a [`Kind::Point`] made by policy, not by a user: its name may be thinned away.
pub const FLAG_AUTO: u8 = 4;
/// Set on a [`Kind::Gap`] whose `len` is the size of the volume from it on. Since version 2 of the protocol.
pub const FLAG_SIZED: u8 = 8;
/// Set on a [`Kind::Point`] that is none: a note on the point at the seq in `offset`, whose payload is JSON (how it was made), or
/// nothing, which takes the point away. The newest note of a point counts; one on a seq without a point counts for nothing. Since version 4 of the protocol.
pub const FLAG_NOTE: u8 = 16;
const FLAGS: u8 = FLAG_SYNC | FLAG_INITIAL | FLAG_AUTO | FLAG_SIZED | FLAG_NOTE;
/// Largest volume in bytes: 1 EiB, so that block numbers leave room for arithmetic.
pub const MAX_VOLUME: u64 = 1 << 60;

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// `len` bytes of payload written at `offset`.
    Write = 1,
    /// `len` bytes at `offset` read as zeroes from now on (trim and write-zeroes alike). No payload.
    Zero = 2,
    /// A recovery point; the payload is its name in UTF-8. With [`FLAG_NOTE`] a note on one.
    Point = 3,
    /// From this seq on the history has a hole: writes happened that are not in it, or (with
    /// [`FLAG_INITIAL`]) nothing has been copied yet. `offset` holds the time at which the gap began,
    /// in nanoseconds since 1970. Every prefix that ends before this seq stays valid. A gap may skip seqs:
    /// it is the one kind whose seq may be more than one above the record before it.
    Gap = 4,
    /// The gap is closed: every prefix that ends at this seq or later is valid again.
    SyncEnd = 5,
    /// Nothing: a seq that was taken by a writer that died before it published its record, or the marker of a barrier, of which mgmt
    /// keeps the seq. No effect.
    Void = 6,
    /// From this seq on the volume has `len` bytes. What lies beyond a smaller size is dropped: when the volume
    /// grows again it reads as zeroes there, as all that is new does. A size that the volume has already changes
    /// nothing. Since version 2 of the protocol.
    Resize = 7,
}

impl Kind {
    /// The kind with this number.
    ///
    /// # Errors
    /// [`DecodeError::Field`] if there is none.
    pub fn from_u8(v: u8) -> Result<Kind, DecodeError> {
        Ok(match v {
            1 => Kind::Write,
            2 => Kind::Zero,
            3 => Kind::Point,
            4 => Kind::Gap,
            5 => Kind::SyncEnd,
            6 => Kind::Void,
            7 => Kind::Resize,
            _ => return Err(DecodeError::Field { what: "record", field: "kind", value: u64::from(v) }),
        })
    }
}

/// A decoded header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// What the record says.
    pub kind: Kind,
    /// FLAG bits.
    pub flags: u8,
    /// Position in the volume's order.
    pub seq: u64,
    /// Byte offset in the volume.
    pub offset: u64,
    /// Bytes covered, or bytes of payload for a marker.
    pub len: u64,
    /// Nanoseconds since 1970.
    pub time: u64,
    /// xxh3-64 of the payload.
    pub payload_hash: u64,
    /// Where the payload lies in the ring; not part of the digest.
    pub place: u64,
}

impl Record {
    /// Bytes of payload that follow this header on the wire.
    #[must_use]
    pub fn payload_len(&self) -> usize {
        match self.kind {
            Kind::Write | Kind::Point => usize::try_from(self.len).unwrap_or(usize::MAX),
            Kind::Zero | Kind::Gap | Kind::SyncEnd | Kind::Void | Kind::Resize => 0,
        }
    }

    /// The point that this is a note on, if it is one.
    #[must_use]
    pub const fn noted(&self) -> Option<u64> {
        match self.kind {
            Kind::Point if self.flags & FLAG_NOTE != 0 => Some(self.offset),
            _ => None,
        }
    }

    /// The size of the volume from this record on, if it says one.
    #[must_use]
    pub const fn new_size(&self) -> Option<u64> {
        match self.kind {
            Kind::Resize => Some(self.len),
            Kind::Gap if self.flags & FLAG_SIZED != 0 => Some(self.len),
            _ => None,
        }
    }

    /// The digest that the encoded header carries.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let mut b = [0; 48];
        self.fill(&mut b);
        xxh3_64(&b)
    }

    fn fill(&self, b: &mut [u8; 48]) {
        b[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        b[4] = self.kind as u8;
        b[5] = self.flags;
        b[6..8].fill(0);
        b[8..16].copy_from_slice(&self.seq.to_le_bytes());
        b[16..24].copy_from_slice(&self.offset.to_le_bytes());
        b[24..32].copy_from_slice(&self.len.to_le_bytes());
        b[32..40].copy_from_slice(&self.time.to_le_bytes());
        b[40..48].copy_from_slice(&self.payload_hash.to_le_bytes());
    }

    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut head = [0; 48];
        self.fill(&mut head);
        let mut b = [0; HEADER_LEN];
        b[..48].copy_from_slice(&head);
        b[48..56].copy_from_slice(&self.place.to_le_bytes());
        b[56..].copy_from_slice(&xxh3_64(&head).to_le_bytes());
        b
    }

    /// Checks and reads a header.
    ///
    /// # Errors
    /// [`DecodeError`] for a wrong magic, digest, kind, flag or length; a length that passes is at most
    /// [`MAX_PAYLOAD`] where a payload follows.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Record, DecodeError> {
        const WHAT: &str = "record";
        let mut r = Reader::new(WHAT, bytes);
        if r.u32()? != MAGIC {
            return Err(DecodeError::Magic { what: WHAT });
        }
        let (kind, flags, pad) = (r.u8()?, r.u8()?, r.u16()?);
        let (seq, offset, len, time, payload_hash) = (r.u64()?, r.u64()?, r.u64()?, r.u64()?, r.u64()?);
        let (place, digest) = (r.u64()?, r.u64()?);
        if xxh3_64(&bytes[..48]) != digest {
            return Err(DecodeError::Checksum { what: WHAT });
        }
        let field = |field, value| Err(DecodeError::Field { what: WHAT, field, value });
        if flags & !FLAGS != 0 || pad != 0 {
            return field("flags", u64::from(flags));
        }
        if seq == 0 {
            return field("seq", seq);
        }
        let record = Record { kind: Kind::from_u8(kind)?, flags, seq, offset, len, time, payload_hash, place };
        let longest = match record.kind {
            Kind::Write => MAX_PAYLOAD as u64,
            Kind::Point if flags & FLAG_NOTE != 0 => MAX_NOTE as u64,
            Kind::Point => MAX_NAME as u64,
            Kind::Zero => u64::MAX - offset,
            Kind::Resize => MAX_VOLUME,
            Kind::Gap if flags & FLAG_SIZED != 0 => MAX_VOLUME,
            Kind::Gap | Kind::SyncEnd | Kind::Void => 0,
        };
        let nothing = record.new_size() == Some(0);
        if len > longest || nothing || (record.new_size().is_none() && offset.checked_add(len).is_none()) {
            return field("len", len);
        }
        Ok(record)
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
