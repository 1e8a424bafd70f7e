//! A segment: an append-only file of sealed frames, at most 64 MiB, that explains itself.
//!
//! ```text
//! header | frame | frame | ... | directory frames | footer        (the last two only once it is sealed)
//!
//! offset  size  header                            offset  size  frame
//!      0     4  magic "AIS1"                           0     4  magic "AIF1"
//!      4     4  version                                4     1  kind: 1 data, 2 commit, 3 directory
//!      8    16  id of the vault                        5     1  codec: 0 none, 1 zstd
//!     24     4  number of the segment                  6     2  blocks in a data frame, else 0
//!     28     4  zero                                   8     4  counter: how many of its kind are before it
//!     32    32  salt of its key                       12     4  length of the body, with its 16-byte tag
//!     64    16  volume, or zero for copied blocks     16     4  length of what is sealed, decompressed
//!     80     8  zero                                  20     4  zero
//!     88     8  xxh3-64 of bytes 0..88                24     8  xxh3-64 of bytes 0..24 and the body
//!                                                     32        body, then zeroes up to a multiple of 16
//! offset  size  footer
//!      0     4  magic "AIE1"                          24     4  commit frames
//!      4     4  number of the segment                 28     4  blocks
//!      8     8  offset of the first directory frame   32     8  seq of the last record, 0 if none
//!     16     4  directory frames                      40     4  blocks that landed unreduced
//!     20     4  data frames                           44    12  zero
//!                                                     56     8  xxh3-64 of bytes 0..56
//! ```
//!
//! Bodies are AES-256-GCM under the segment's own key. The nonce is [`nonce`]: counter and kind; the additional data is
//! [`aad`], which binds a frame to vault, segment and position. The checksum lies outside the
//! seal, so that scrubbing needs no key. What is sealed in each kind:
//!
//! * **data**: blocks of 4 KiB, back to back. A [`Place`](crate::place::Place) names one by frame and slot. Compressed, it is one or more
//!   zstd frames, each of whole blocks and with its size in its header, so that one of them can be had without those before it.
//! * **commit**: closes a batch, see [`commit`](crate::commit). The frames before it in the segment are whole if it is.
//! * **directory**: one entry for each data and commit frame, in their order, see [`DirEntry`]. It keeps the fingerprints of
//!   the blocks, for which a segment without directory has to be read.
//!
//! A segment that was open when its process died has neither directory nor footer, and is never appended to (I8).

use crate::codec::{DecodeError, Reader, Writer};
use crate::place::{FRAME_ALIGN, MAX_FRAME, MAX_SEGMENT, MAX_SLOTS};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// First four bytes of a segment.
pub const MAGIC: u32 = u32::from_le_bytes(*b"AIS1");
/// First four bytes of a frame.
pub const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"AIF1");
/// First four bytes of a footer.
pub const FOOTER_MAGIC: u32 = u32::from_le_bytes(*b"AIE1");
/// The version written. Version 1, whose footers have zeroes where the unreduced blocks are counted, is read too.
pub const VERSION: u32 = 2;
const FIRST_VERSION: u32 = 1;
/// Size of the segment header.
pub const HEADER_LEN: usize = 96;
/// Size of a frame header.
pub const FRAME_HEADER_LEN: usize = 32;
/// Size of the footer, which is the end of a sealed segment.
pub const FOOTER_LEN: usize = 64;
/// Size of the tag at the end of a sealed body.
pub const TAG_LEN: usize = 16;
/// Size of a block's fingerprint.
pub const FINGERPRINT_LEN: usize = 16;
/// Longest sealed content of a commit or directory frame, before compression.
pub const MAX_PLAIN: usize = MAX_FRAME as usize - FRAME_HEADER_LEN - TAG_LEN;

#[expect(clippy::cast_possible_truncation, reason = "small constants, as frame headers hold them")]
const fn word(n: usize) -> u32 {
    n as u32
}

const TAG: u32 = word(TAG_LEN);
const LONGEST_BODY: u32 = MAX_FRAME - word(FRAME_HEADER_LEN);

const _: () = assert!(HEADER_LEN.is_multiple_of(16) && FRAME_HEADER_LEN.is_multiple_of(16));

/// A block's fingerprint: a keyed cryptographic hash, cut to 16 bytes.
pub type Fingerprint = [u8; FINGERPRINT_LEN];

/// The header of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Id of the vault.
    pub vault: [u8; 16],
    /// Number of the segment, from 1.
    pub number: u32,
    /// Salt from which, with the vault key, the segment's key is made. Never used twice.
    pub salt: [u8; 32],
    /// The volume whose stream this is; zero if it holds blocks copied by collection.
    pub volume: [u8; 16],
}

impl SegmentHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut b = [0; HEADER_LEN];
        b[..4].copy_from_slice(&MAGIC.to_le_bytes());
        b[4..8].copy_from_slice(&VERSION.to_le_bytes());
        b[8..24].copy_from_slice(&self.vault);
        b[24..28].copy_from_slice(&self.number.to_le_bytes());
        b[32..64].copy_from_slice(&self.salt);
        b[64..80].copy_from_slice(&self.volume);
        let sum = xxh3_64(&b[..88]);
        b[88..].copy_from_slice(&sum.to_le_bytes());
        b
    }

    /// Checks and reads a header.
    ///
    /// # Errors
    /// [`DecodeError`] for a wrong magic, version, checksum or number.
    pub fn decode(bytes: &[u8]) -> Result<SegmentHeader, DecodeError> {
        const WHAT: &str = "segment header";
        let mut r = Reader::new(WHAT, bytes);
        if r.u32()? != MAGIC {
            return Err(DecodeError::Magic { what: WHAT });
        }
        let version = r.u32()?;
        if !(FIRST_VERSION..=VERSION).contains(&version) {
            return Err(DecodeError::Version { what: WHAT, found: version, known: VERSION });
        }
        let (vault, number, zero) = (r.array()?, r.u32()?, r.u32()?);
        let (salt, volume, zero2, sum) = (r.array()?, r.array()?, r.u64()?, r.u64()?);
        if xxh3_64(&bytes[..88]) != sum {
            return Err(DecodeError::Checksum { what: WHAT });
        }
        if number == 0 || zero != 0 || zero2 != 0 {
            return Err(DecodeError::Field { what: WHAT, field: "number", value: u64::from(number) });
        }
        Ok(SegmentHeader { vault, number, salt, volume })
    }
}

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// Blocks.
    Data = 1,
    /// The records of a batch.
    Commit = 2,
    /// Where the frames of a sealed segment are.
    Directory = 3,
}

/// How a frame's content is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// Not at all.
    None = 0,
    /// One zstd frame.
    Zstd = 1,
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// What it holds.
    pub kind: FrameKind,
    /// How it is compressed.
    pub codec: Codec,
    /// Blocks in a data frame, else 0.
    pub blocks: u16,
    /// How many frames of this kind are before it in the segment.
    pub counter: u32,
    /// Length of the sealed body, tag included.
    pub sealed_len: u32,
    /// Length of the content, decompressed.
    pub plain_len: u32,
    /// Checksum of header and body.
    pub checksum: u64,
}

impl FrameHeader {
    /// The bytes that checksum and additional data cover.
    #[must_use]
    pub fn head(&self) -> [u8; 24] {
        let mut b = [0; 24];
        b[..4].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
        b[4] = self.kind as u8;
        b[5] = self.codec as u8;
        b[6..8].copy_from_slice(&self.blocks.to_le_bytes());
        b[8..12].copy_from_slice(&self.counter.to_le_bytes());
        b[12..16].copy_from_slice(&self.sealed_len.to_le_bytes());
        b[16..20].copy_from_slice(&self.plain_len.to_le_bytes());
        b
    }

    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; FRAME_HEADER_LEN] {
        let mut b = [0; FRAME_HEADER_LEN];
        b[..24].copy_from_slice(&self.head());
        b[24..].copy_from_slice(&self.checksum.to_le_bytes());
        b
    }

    /// The checksum that fits `body`.
    #[must_use]
    pub fn checksum_of(&self, body: &[u8]) -> u64 {
        let mut h = Xxh3::new();
        h.update(&self.head());
        h.update(body);
        h.digest()
    }

    /// Length of the frame in the file, padding included.
    #[must_use]
    pub const fn frame_len(&self) -> u64 {
        (FRAME_HEADER_LEN as u64 + self.sealed_len as u64).next_multiple_of(FRAME_ALIGN)
    }

    /// Checks and reads a header. A length that passes fits a frame; the checksum is not looked at.
    ///
    /// # Errors
    /// [`DecodeError`] for a wrong magic or an impossible field.
    pub fn decode(bytes: &[u8]) -> Result<FrameHeader, DecodeError> {
        const WHAT: &str = "frame";
        let field = |field, value| Err(DecodeError::Field { what: WHAT, field, value });
        let mut r = Reader::new(WHAT, bytes);
        if r.u32()? != FRAME_MAGIC {
            return Err(DecodeError::Magic { what: WHAT });
        }
        let kind = match r.u8()? {
            1 => FrameKind::Data,
            2 => FrameKind::Commit,
            3 => FrameKind::Directory,
            v => return field("kind", u64::from(v)),
        };
        let codec = match r.u8()? {
            0 => Codec::None,
            1 => Codec::Zstd,
            v => return field("codec", u64::from(v)),
        };
        let (blocks, counter, sealed_len, plain_len) = (r.u16()?, r.u32()?, r.u32()?, r.u32()?);
        let (zero, checksum) = (r.u32()?, r.u64()?);
        if !(TAG..=LONGEST_BODY).contains(&sealed_len) {
            return field("sealed length", u64::from(sealed_len));
        }
        let right_plain = match kind {
            FrameKind::Data => {
                blocks > 0 && u32::from(blocks) <= MAX_SLOTS && plain_len == u32::from(blocks) * word(crate::BLOCK_SIZE)
            }
            FrameKind::Commit | FrameKind::Directory => blocks == 0 && plain_len as usize <= MAX_PLAIN,
        };
        if !right_plain || (codec == Codec::None && plain_len + TAG != sealed_len) {
            return field("plain length", u64::from(plain_len));
        }
        if zero != 0 {
            return field("padding", u64::from(zero));
        }
        Ok(FrameHeader { kind, codec, blocks, counter, sealed_len, plain_len, checksum })
    }
}

/// The nonce of a frame: unique in its segment, whose key no other segment has.
#[must_use]
pub fn nonce(kind: FrameKind, counter: u32) -> [u8; 12] {
    let mut n = [0; 12];
    n[..4].copy_from_slice(&counter.to_le_bytes());
    n[4] = kind as u8;
    n
}

/// What binds a frame to its vault, segment and position.
#[must_use]
pub fn aad(segment: &SegmentHeader, frame: &FrameHeader) -> [u8; 76] {
    let mut b = [0; 76];
    b[..16].copy_from_slice(&segment.vault);
    b[16..20].copy_from_slice(&segment.number.to_le_bytes());
    b[20..52].copy_from_slice(&segment.salt);
    b[52..].copy_from_slice(&frame.head());
    b
}

/// The end of a sealed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footer {
    /// Number of the segment.
    pub number: u32,
    /// Offset of the first directory frame.
    pub directory: u64,
    /// Directory frames.
    pub directory_frames: u32,
    /// Data frames.
    pub data_frames: u32,
    /// Commit frames.
    pub commit_frames: u32,
    /// Blocks in the data frames.
    pub blocks: u32,
    /// Seq of the last record, 0 if there is none.
    pub last_seq: u64,
    /// Blocks in data frames whose compression was left for later, when the appliance could not keep up.
    pub unreduced: u32,
}

impl Footer {
    /// The footer's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; FOOTER_LEN] {
        let mut b = [0; FOOTER_LEN];
        b[..4].copy_from_slice(&FOOTER_MAGIC.to_le_bytes());
        b[4..8].copy_from_slice(&self.number.to_le_bytes());
        b[8..16].copy_from_slice(&self.directory.to_le_bytes());
        b[16..20].copy_from_slice(&self.directory_frames.to_le_bytes());
        b[20..24].copy_from_slice(&self.data_frames.to_le_bytes());
        b[24..28].copy_from_slice(&self.commit_frames.to_le_bytes());
        b[28..32].copy_from_slice(&self.blocks.to_le_bytes());
        b[32..40].copy_from_slice(&self.last_seq.to_le_bytes());
        b[40..44].copy_from_slice(&self.unreduced.to_le_bytes());
        let sum = xxh3_64(&b[..56]);
        b[56..].copy_from_slice(&sum.to_le_bytes());
        b
    }

    /// Checks and reads a footer.
    ///
    /// # Errors
    /// [`DecodeError`] for a wrong magic, checksum or offset.
    pub fn decode(bytes: &[u8]) -> Result<Footer, DecodeError> {
        const WHAT: &str = "segment footer";
        let mut r = Reader::new(WHAT, bytes);
        if r.u32()? != FOOTER_MAGIC {
            return Err(DecodeError::Magic { what: WHAT });
        }
        let (number, directory, directory_frames) = (r.u32()?, r.u64()?, r.u32()?);
        let (data_frames, commit_frames, blocks, last_seq) = (r.u32()?, r.u32()?, r.u32()?, r.u64()?);
        let (unreduced, zero, sum) = (r.u32()?, r.take(12)?, r.u64()?);
        if xxh3_64(&bytes[..56]) != sum {
            return Err(DecodeError::Checksum { what: WHAT });
        }
        if directory >= MAX_SEGMENT || !directory.is_multiple_of(FRAME_ALIGN) || zero != [0; 12] {
            return Err(DecodeError::Field { what: WHAT, field: "directory", value: directory });
        }
        Ok(Footer { number, directory, directory_frames, data_frames, commit_frames, blocks, last_seq, unreduced })
    }
}

/// What a directory says of one frame.
///
/// Its bytes: kind (1 byte), distance from the frame before in units of 16 bytes (LEB128), and then for a data frame its
/// whole length (header and body, LEB128), the number of its blocks (1 byte) and their fingerprints; for a
/// commit frame its first and last seq (LEB128 each). The first distance in each directory frame counts from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DirEntry {
    /// A data frame.
    Data {
        /// Its offset in the segment.
        offset: u64,
        /// Length of header and body, for [`Place::new`](crate::place::Place::new).
        frame_len: u32,
        /// Fingerprints of its blocks.
        fingerprints: Vec<Fingerprint>,
    },
    /// A commit frame.
    Commit {
        /// Its offset in the segment.
        offset: u64,
        /// Seq of its first record.
        first: u64,
        /// Seq of its last record.
        last: u64,
    },
}

impl DirEntry {
    /// Offset of the frame.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        match self {
            DirEntry::Data { offset, .. } | DirEntry::Commit { offset, .. } => *offset,
        }
    }

    /// Appends the entry; `before` is the offset of the entry before it in the same directory frame, or 0.
    pub fn encode(&self, b: &mut Vec<u8>, before: u64) {
        let distance = (self.offset() - before) / FRAME_ALIGN;
        match self {
            DirEntry::Data { frame_len, fingerprints, .. } => {
                b.push(FrameKind::Data as u8);
                b.put_varint(distance);
                b.put_varint(u64::from(*frame_len));
                b.push(u8::try_from(fingerprints.len()).unwrap_or(u8::MAX));
                for f in fingerprints {
                    b.extend_from_slice(f);
                }
            }
            DirEntry::Commit { first, last, .. } => {
                b.push(FrameKind::Commit as u8);
                b.put_varint(distance);
                b.put_varint(*first);
                b.put_varint(*last);
            }
        }
    }

    /// Reads the content of a directory frame.
    ///
    /// # Errors
    /// [`DecodeError`] if it is short or an entry is impossible.
    pub fn decode_all(content: &[u8]) -> Result<Vec<DirEntry>, DecodeError> {
        const WHAT: &str = "segment directory";
        let mut r = Reader::new(WHAT, content);
        let (mut out, mut at) = (Vec::new(), 0u64);
        while !r.rest().is_empty() {
            let kind = r.u8()?;
            let distance = r.varint()?;
            at = match distance.checked_mul(FRAME_ALIGN).and_then(|d| d.checked_add(at)) {
                Some(at) if at < MAX_SEGMENT => at,
                _ => return Err(DecodeError::Field { what: WHAT, field: "offset", value: distance }),
            };
            out.push(match kind {
                1 => {
                    let (len, count) = (r.varint()?, r.u8()?);
                    let frame_len = u32::try_from(len).ok().filter(|l| *l <= MAX_FRAME);
                    let Some(frame_len) = frame_len.filter(|_| u32::from(count) <= MAX_SLOTS) else {
                        return Err(DecodeError::Field { what: WHAT, field: "frame length", value: len });
                    };
                    let fingerprints = (0..count).map(|_| r.array()).collect::<Result<_, _>>()?;
                    DirEntry::Data { offset: at, frame_len, fingerprints }
                }
                2 => DirEntry::Commit { offset: at, first: r.varint()?, last: r.varint()? },
                v => return Err(DecodeError::Field { what: WHAT, field: "kind", value: u64::from(v) }),
            });
        }
        Ok(out)
    }
}

#[cfg(test)]
#[path = "segment_tests.rs"]
mod tests;
