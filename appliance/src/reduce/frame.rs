//! Frames: compressed where it pays, sealed, and the way back.

use super::LEVEL;
use crate::keys::{FrameInfo, KeyError, SegmentKey};
use afterimage_format::BLOCK_SIZE;
use afterimage_format::segment::{Codec, FRAME_HEADER_LEN, FrameHeader, FrameKind};
use std::io::Cursor;
use thiserror::Error;
use zstd::bulk::{Compressor, Decompressor};

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
        // The frame has its own checksum, length and seal.
        compressor.set_parameter(zstd::zstd_safe::CParameter::ChecksumFlag(false))?;
        compressor.set_parameter(zstd::zstd_safe::CParameter::ContentSizeFlag(false))?;
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
        let codec = if self.compress(plain, out) { Codec::Zstd } else { Codec::None };
        if codec == Codec::None {
            out.truncate(FRAME_HEADER_LEN);
            out.extend_from_slice(plain);
        }
        let plain_len = u32::try_from(plain.len()).unwrap_or(u32::MAX);
        key.seal(FrameInfo { kind, codec, blocks, counter, plain_len }, out)
    }

    /// Appends the compressed bytes; false if they would save less than an eighth.
    fn compress(&mut self, plain: &[u8], out: &mut Vec<u8>) -> bool {
        let room = plain.len() - plain.len() / 8;
        out.reserve(room);
        // Behind the header, into memory that was not made zero first.
        let mut behind = Cursor::new(&mut *out);
        behind.set_position(FRAME_HEADER_LEN as u64);
        // The one error of a healthy context: it does not fit in the room given.
        self.compressor.compress_to_buffer(plain, &mut behind).is_ok_and(|n| n <= room)
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
        let body = &mut frame[FRAME_HEADER_LEN..FRAME_HEADER_LEN + header.sealed_len as usize];
        let content = key.open(&header, body).ok_or(OpenError::Seal)?;
        out.clear();
        match header.codec {
            Codec::None => out.extend_from_slice(content),
            Codec::Zstd => {
                // Not resized: making it zero first would cost a third of decompressing.
                let len = header.plain_len as usize;
                out.reserve_exact(len);
                let n = self.0.decompress_to_buffer(content, out).map_err(|_| OpenError::Decompress)?;
                if n != len {
                    return Err(OpenError::Decompress);
                }
            }
        }
        Ok(header)
    }
}

/// Checks header and checksum of the frame at the beginning of `frame`. Needs no key.
///
/// # Errors
/// [`OpenError::Header`] or [`OpenError::Checksum`].
pub fn verify(frame: &[u8]) -> Result<FrameHeader, OpenError> {
    let header = FrameHeader::decode(frame).map_err(|e| OpenError::Header(e.to_string()))?;
    let end = FRAME_HEADER_LEN + header.sealed_len as usize;
    let body = frame.get(FRAME_HEADER_LEN..end).ok_or_else(|| OpenError::Header("it reaches past its place".into()))?;
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
                assert!(opener.open(&key, &mut bad, &mut out).is_err(), "byte {byte}");
            }
        }
    }
}
