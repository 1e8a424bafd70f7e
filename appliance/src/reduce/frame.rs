//! Frames: compressed where it pays, sealed, and the way back.
//!
//! The blocks of a data frame are compressed in parts of [`PART_BLOCKS`], each a zstd frame of its own that says how much it holds. So
//! who wants one block opens the seal of the whole frame, and decompresses one part of it. Frames of earlier versions
//! are one part, which does not say how much it holds.

use super::LEVEL;
use crate::keys::{FrameInfo, KeyError, SegmentKey};
use afterimage_format::BLOCK_SIZE;
use afterimage_format::segment::{Codec, FRAME_HEADER_LEN, FrameHeader, FrameKind};
use std::io::Cursor;
use std::ops::Range;
use thiserror::Error;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe;

/// Blocks of a data frame that are compressed together: 16 KiB. Parts half as large cost 5 % of what is stored, these 1 %.
pub const PART_BLOCKS: usize = 4;

/// Why a frame's content is not to be had.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum OpenError {
    /// The checksum does not fit.
    #[error("its checksum does not match")]
    Checksum,
    /// The checksum fits and the seal does not.
    #[error("its seal is broken: it was forged, misplaced, or sealed with another key")]
    Seal,
    /// The seal holds and the content does not decompress.
    #[error("it does not decompress")]
    Decompress,
    /// The header is none, or does not fit the file.
    #[error("its header is damaged: {0}")]
    Header(String),
}

/// What a thread keeps between frames: a new zstd context for each costs up to a third.
pub struct Scratch {
    compressor: Compressor<'static>,
    plain: Vec<u8>,
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scratch(..)")
    }
}

impl Scratch {
    /// New contexts.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn new() -> std::io::Result<Self> {
        let mut compressor = Compressor::new(LEVEL)?;
        // The frame has its own checksum and seal.
        compressor.set_parameter(zstd_safe::CParameter::ChecksumFlag(false))?;
        Ok(Self { compressor, plain: Vec::new() })
    }

    /// Makes a data frame of `blocks` in `out` as they are, only sealed. Returns the length of header and body.
    ///
    /// # Errors
    /// [`KeyError::System`] if the cipher refuses.
    pub fn unreduced<'a>(
        key: &SegmentKey,
        counter: u32,
        blocks: impl Iterator<Item = &'a [u8]>,
        out: &mut Vec<u8>,
    ) -> Result<u32, KeyError> {
        out.clear();
        out.resize(FRAME_HEADER_LEN, 0);
        for block in blocks {
            out.extend_from_slice(block);
        }
        let plain = out.len() - FRAME_HEADER_LEN;
        let blocks = u16::try_from(plain / BLOCK_SIZE).unwrap_or(u16::MAX);
        let plain_len = u32::try_from(plain).unwrap_or(u32::MAX);
        key.seal(FrameInfo { kind: FrameKind::Data, codec: Codec::None, blocks, counter, plain_len }, out)
    }

    /// Makes a data frame of `blocks` in `out`, which is emptied first. Returns the length of header and body.
    ///
    /// # Errors
    /// [`KeyError::System`] if the cipher refuses.
    pub fn data<'a>(
        &mut self,
        key: &SegmentKey,
        counter: u32,
        blocks: impl Iterator<Item = &'a [u8]>,
        out: &mut Vec<u8>,
    ) -> Result<u32, KeyError> {
        let mut plain = std::mem::take(&mut self.plain);
        plain.clear();
        for block in blocks {
            plain.extend_from_slice(block);
        }
        let count = u16::try_from(plain.len() / BLOCK_SIZE).unwrap_or(u16::MAX);
        let result = self.frame(key, FrameKind::Data, counter, count, &plain, out);
        self.plain = plain;
        result
    }

    /// Makes a frame of `plain` in `out`, which is emptied first. Returns the length of header and body.
    ///
    /// # Errors
    /// [`KeyError::System`] if the cipher refuses.
    pub fn frame(
        &mut self,
        key: &SegmentKey,
        kind: FrameKind,
        counter: u32,
        blocks: u16,
        plain: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<u32, KeyError> {
        out.clear();
        out.resize(FRAME_HEADER_LEN, 0);
        let part = if kind == FrameKind::Data { PART_BLOCKS * BLOCK_SIZE } else { plain.len().max(1) };
        let codec = if self.compress(plain, part, out) { Codec::Zstd } else { Codec::None };
        if codec == Codec::None {
            out.truncate(FRAME_HEADER_LEN);
            out.extend_from_slice(plain);
        }
        let plain_len = u32::try_from(plain.len()).unwrap_or(u32::MAX);
        key.seal(FrameInfo { kind, codec, blocks, counter, plain_len }, out)
    }

    /// Appends the compressed bytes, in parts of so many; false if they would save less than an eighth.
    fn compress(&mut self, plain: &[u8], part: usize, out: &mut Vec<u8>) -> bool {
        let end = FRAME_HEADER_LEN + plain.len() - plain.len() / 8;
        out.reserve(end - out.len());
        plain.chunks(part).all(|part| {
            // Behind what is there, into memory that was not made zero first.
            let mut behind = Cursor::new(&mut *out);
            behind.set_position(behind.get_ref().len() as u64);
            // The one error of a healthy context: it does not fit in the room given.
            self.compressor.compress_to_buffer(part, &mut behind).is_ok() && out.len() <= end
        })
    }
}

/// Opens frames. One for each thread.
pub struct Opener(Decompressor<'static>);

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Opener(..)")
    }
}

impl Opener {
    /// A new context.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn new() -> std::io::Result<Self> {
        Decompressor::new().map(Self)
    }

    /// Opens the frame at the beginning of `frame` (which may be longer, and is changed) and puts its content in `out`.
    ///
    /// # Errors
    /// [`OpenError`] says what does not fit.
    pub fn open(&mut self, key: &SegmentKey, frame: &mut [u8], out: &mut Vec<u8>) -> Result<FrameHeader, OpenError> {
        let header = verify(frame)?;
        let content = unseal(key, &header, frame)?;
        out.clear();
        match header.codec {
            Codec::None => out.extend_from_slice(content),
            Codec::Zstd => self.append(content, header.plain_len as usize, out)?,
        }
        Ok(header)
    }

    /// Opens the data frame at the beginning of `frame` (which may be longer, and is changed) and puts those of its blocks in
    /// `out` that `blocks` names and that there are, and perhaps some around them. Answers which of its blocks `out` begins with.
    ///
    /// The checksum is not looked at: the seal covers header and body. So after an error [`verify`] may know more.
    ///
    /// # Errors
    /// [`OpenError`] says what does not fit.
    pub fn open_part(
        &mut self,
        key: &SegmentKey,
        frame: &mut [u8],
        blocks: &Range<usize>,
        out: &mut Vec<u8>,
    ) -> Result<(FrameHeader, usize), OpenError> {
        let header = decode(frame)?;
        let content = unseal(key, &header, frame)?;
        out.clear();
        let all = header.plain_len as usize;
        let to = blocks.end.saturating_mul(BLOCK_SIZE).min(all);
        let from = blocks.start.saturating_mul(BLOCK_SIZE).min(to);
        if header.codec == Codec::None {
            out.extend_from_slice(content.get(from..to).ok_or(OpenError::Decompress)?);
            return Ok((header, from / BLOCK_SIZE));
        }
        // Once: memory that grows part by part is copied each time.
        out.reserve_exact(to - from);
        let (mut rest, mut at, mut first) = (content, 0, from);
        while at < to {
            let (part, len) = first_part(rest, all - at)?;
            if at + len > from {
                if out.is_empty() {
                    first = at;
                }
                self.append(part, len, out)?;
            }
            (rest, at) = (&rest[part.len()..], at + len);
        }
        Ok((header, first / BLOCK_SIZE))
    }

    /// Decompresses `packed`, which holds `len` bytes.
    fn append(&mut self, packed: &[u8], len: usize, out: &mut Vec<u8>) -> Result<(), OpenError> {
        // Not resized: making it zero first would cost a third of decompressing.
        out.reserve_exact(len);
        let mut behind = Cursor::new(&mut *out);
        behind.set_position(behind.get_ref().len() as u64);
        match self.0.decompress_to_buffer(packed, &mut behind) {
            Ok(n) if n == len => Ok(()),
            _ => Err(OpenError::Decompress),
        }
    }
}

/// The first part of what is compressed in parts and holds `left` bytes, and how many of them are in it.
fn first_part(packed: &[u8], left: usize) -> Result<(&[u8], usize), OpenError> {
    let end = zstd_safe::find_frame_compressed_size(packed).map_err(|_| OpenError::Decompress)?;
    let part = packed.get(..end).ok_or(OpenError::Decompress)?;
    let len = zstd_safe::get_frame_content_size(part).map_err(|_| OpenError::Decompress)?;
    match len.map_or(Ok(left), usize::try_from) {
        Ok(len) if (1..=left).contains(&len) => Ok((part, len)),
        _ => Err(OpenError::Decompress),
    }
}

fn decode(frame: &[u8]) -> Result<FrameHeader, OpenError> {
    FrameHeader::decode(frame).map_err(|e| OpenError::Header(e.to_string()))
}

/// The content of a frame, still compressed.
fn unseal<'a>(key: &SegmentKey, header: &FrameHeader, frame: &'a mut [u8]) -> Result<&'a [u8], OpenError> {
    let body = frame.get_mut(FRAME_HEADER_LEN..FRAME_HEADER_LEN + header.sealed_len as usize);
    let body = body.ok_or_else(past_its_place)?;
    key.open(header, body).map(|content| &*content).ok_or(OpenError::Seal)
}

fn past_its_place() -> OpenError {
    OpenError::Header("it reaches past its place".into())
}

/// Checks header and checksum of the frame at the beginning of `frame`. Needs no key.
///
/// # Errors
/// [`OpenError::Header`] or [`OpenError::Checksum`].
pub fn verify(frame: &[u8]) -> Result<FrameHeader, OpenError> {
    let header = decode(frame)?;
    let end = FRAME_HEADER_LEN + header.sealed_len as usize;
    let body = frame.get(FRAME_HEADER_LEN..end).ok_or_else(past_its_place)?;
    if header.checksum_of(body) != header.checksum {
        return Err(OpenError::Checksum);
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{KeySource, VaultKey, random};
    use afterimage_format::segment::SegmentHeader;

    fn key() -> SegmentKey {
        let dir = tempfile::tempdir().unwrap();
        let (key, _) = VaultKey::create(&KeySource::File(dir.path().join("key"))).unwrap();
        key.segment(SegmentHeader { vault: [1; 16], number: 1, salt: random().unwrap(), volume: [0; 16] })
    }

    #[test]
    fn content_comes_back_compressed_where_it_pays_and_any_flipped_bit_is_seen() {
        let (key, mut scratch, mut opener) = (key(), Scratch::new().unwrap(), Opener::new().unwrap());
        let noise: Vec<u8> = (0..64u8).flat_map(|_| random::<256>().unwrap()).collect();
        let text = b"all work and no play ".repeat(16384 / 21 + 1)[..16384].to_vec();
        for (i, (plain, codec)) in [(noise, Codec::None), (text, Codec::Zstd)].into_iter().enumerate() {
            let mut frame = Vec::new();
            let counter = u32::try_from(i).unwrap();
            let len = scratch.data(&key, counter, plain.chunks(4096), &mut frame).unwrap();
            let mut out = Vec::new();
            let header = opener.open(&key, &mut frame.clone(), &mut out).unwrap();
            assert_eq!((&out, header.codec, header.blocks), (&plain, codec, 4));
            for byte in (0..len as usize).step_by(if codec == Codec::None { 97 } else { 1 }) {
                let mut bad = frame.clone();
                bad[byte] ^= 1 << (byte % 8);
                assert!(opener.open(&key, &mut bad.clone(), &mut out).is_err(), "byte {byte}");
                // The checksum is the one thing that a part can do without.
                let part = opener.open_part(&key, &mut bad, &(1..2), &mut out);
                assert!(part.is_err() || (24..32).contains(&byte), "byte {byte}");
            }
        }
    }

    /// What zstd makes of all blocks at once, as earlier versions did, sealed.
    fn in_one_part(key: &SegmentKey, counter: u32, plain: &[u8]) -> Vec<u8> {
        let mut compressor = Compressor::new(LEVEL).unwrap();
        compressor.set_parameter(zstd_safe::CParameter::ContentSizeFlag(false)).unwrap();
        let mut frame = vec![0; FRAME_HEADER_LEN];
        frame.extend_from_slice(&compressor.compress(plain).unwrap());
        let blocks = u16::try_from(plain.len() / BLOCK_SIZE).unwrap();
        let plain_len = u32::try_from(plain.len()).unwrap();
        let info = FrameInfo { kind: FrameKind::Data, codec: Codec::Zstd, blocks, counter, plain_len };
        key.seal(info, &mut frame).unwrap();
        frame
    }

    #[test]
    fn any_part_of_a_frame_is_what_the_whole_frame_has_there() {
        let (key, mut scratch, mut opener) = (key(), Scratch::new().unwrap(), Opener::new().unwrap());
        let noise = random::<{ 2 * BLOCK_SIZE }>().unwrap();
        for blocks in [1, 3, 4, 5, 15, 16] {
            let text: Vec<u8> = (0..blocks * BLOCK_SIZE).map(|n| u8::try_from(n / 7 % 251).unwrap()).collect();
            let mut mixed = text.clone();
            mixed[..BLOCK_SIZE].copy_from_slice(&noise[..BLOCK_SIZE]);
            let mut out = Vec::new();
            let counter = u32::try_from(blocks).unwrap() * 3;
            let mut frame = |counter, plain: &[u8]| {
                scratch.data(&key, counter, plain.chunks(BLOCK_SIZE), &mut out).unwrap();
                out.clone()
            };
            let new = [frame(counter, &text), frame(counter + 1, &mixed)];
            let old = in_one_part(&key, counter + 2, &text);
            let frames = [(&new[0], &text, PART_BLOCKS), (&new[1], &mixed, PART_BLOCKS), (&old, &text, blocks)];
            for (frame, plain, part) in frames {
                let mut whole = Vec::new();
                opener.open(&key, &mut frame.clone(), &mut whole).unwrap();
                assert_eq!(&whole, plain);
                for (from, to) in (0..blocks).flat_map(|from| (from + 1..=blocks + 1).map(move |to| (from, to))) {
                    let mut got = Vec::new();
                    let opened = opener.open_part(&key, &mut frame.clone(), &(from..to), &mut got);
                    let (header, first) = opened.unwrap();
                    assert_eq!(got, plain[first * BLOCK_SIZE..][..got.len()], "{blocks} blocks, {from}..{to}");
                    let end = first + got.len() / BLOCK_SIZE;
                    assert!(first <= from && end >= to.min(blocks), "{blocks} blocks, {from}..{to}");
                    let most = to.min(blocks).next_multiple_of(part).min(blocks);
                    let least = if header.codec == Codec::None { from } else { from / part * part };
                    assert!(first == least && end <= most, "no more than there must be: {blocks} blocks, {from}..{to}");
                }
            }
        }
    }
}
