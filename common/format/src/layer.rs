//! Layers: immutable sorted files that say which version of which block lies where.
//!
//! A layer holds the records of one volume with seqs in `(after_seq, last_seq]`. Layers of a volume are
//! disjoint and adjacent. All content is sealed; what checksums and lengths say can be checked without the key.
//!
//! ```text
//! offset  size  header, 64 bytes
//!      0     4  magic "AIL1"
//!      4     4  version
//!      8    16  id: random, names the file and is the salt from which its key is derived
//!     24    16  volume id
//!     40    16  zero
//!     56     8  xxh3-64 of bytes 0..56
//!     64        pages, one after the other, numbered from 0: token pages, timeline pages, then the index page
//!      -   112  footer: magic "AILF" (4), version (4), LayerMeta (96), xxh3-64 of the footer's first 104 bytes
//!
//!               page
//!      0     8  xxh3-64 of bytes 8 to its end
//!      8     4  number of the page
//!     12     4  length of the sealed bytes
//!     16        sealed bytes: AES-256-GCM under the layer's key, nonce = 4 zero bytes and the page number as u64,
//!               additional data = the header's bytes 0..40 and the kind of the page (1 token, 2 timeline, 3 index)
//! ```
//!
//! The plain bytes of a **token page** are in [`page`]; those of **timeline** and **index** pages in [`index`].
//!
//! **Columns.** A token says that blocks `block..block + count` have, from `seq` on, the places `place`,
//! `place` + 1 slot, ... (or are all zero). Runs that overlap are split until any two tokens of a layer cover
//! either the same blocks or none in common. The tokens that cover the same blocks are a *column*; tokens are sorted by
//! (block, seq). So the version of a block at a seq is found by one binary search over the first keys of
//! pages (the *fences*, in the index) and a walk through one page.

pub mod index;
pub mod page;

use crate::codec::{DecodeError, Reader, Writer};
use xxhash_rust::xxh3::xxh3_64;

/// First four bytes of a layer file.
pub const MAGIC: u32 = u32::from_le_bytes(*b"AIL1");
/// First four bytes of its footer.
pub const FOOTER_MAGIC: u32 = u32::from_le_bytes(*b"AILF");
/// The version written, and the only one read.
pub const VERSION: u32 = 1;
/// Bytes of the header.
pub const HEADER_LEN: usize = 64;
/// Bytes of the footer.
pub const FOOTER_LEN: usize = 8 + META_LEN + 8;
/// Bytes of an encoded [`LayerMeta`].
pub const META_LEN: usize = 96;
/// Bytes before the sealed bytes of a page.
pub const PAGE_HEADER_LEN: usize = 16;
/// What sealing adds.
pub const TAG_LEN: usize = 16;
/// A token or timeline page is closed when its plain bytes reach this.
pub const PAGE_TARGET: usize = 4096;
/// Longest plain bytes of a token or timeline page: the target and one more entry.
pub const PAGE_MAX: usize = PAGE_TARGET + 128;
/// Longest plain bytes of an index page: bounds what a damaged footer can make us allocate. Enough for
/// two thousand million versions.
pub const INDEX_MAX: usize = 256 << 20;
/// Seqs and times are below this, so that a flag fits beside them.
pub const LIMIT: u64 = 1 << 62;
/// Most blocks of a volume: 1 EiB, so that byte offsets fit.
pub const MAX_BLOCKS: u64 = 1 << 48;
const WHAT: &str = "layer";

/// Kind of a page, part of what its seal binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum PageKind {
    /// Tokens.
    Token = 1,
    /// Times of seqs.
    Timeline = 2,
    /// Fences of all pages, and how many blocks of which segments are referred to.
    Index = 3,
}

/// What a layer is; in its footer and in the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerMeta {
    /// Random: names the file and salts its key.
    pub id: [u8; 16],
    /// The layer begins behind this seq, the `last_seq` of the layer before it.
    pub after_seq: u64,
    /// The layer ends with this seq.
    pub last_seq: u64,
    /// Versions that no seq kept could see were dropped with the window beginning at this seq; 0 if never.
    pub collapsed_to: u64,
    /// Number of tokens.
    pub tokens: u64,
    /// Number of records in the timeline.
    pub records: u64,
    /// First block of which a version is there; 0 if none.
    pub first_block: u64,
    /// The block behind the last one of which a version is there; 0 if none.
    pub end_block: u64,
    /// Number of token pages.
    pub token_pages: u32,
    /// Number of timeline pages.
    pub timeline_pages: u32,
    /// Byte offset of the index page in the file.
    pub index_at: u64,
    /// Length of the file in bytes.
    pub file_len: u64,
}

impl LayerMeta {
    /// Appends its bytes (96 of them) to a manifest or footer.
    pub fn encode(&self, b: &mut Vec<u8>) {
        b.extend_from_slice(&self.id);
        for n in [self.after_seq, self.last_seq, self.collapsed_to, self.tokens, self.records] {
            b.put_u64(n);
        }
        b.put_u64(self.first_block);
        b.put_u64(self.end_block);
        b.put_u32(self.token_pages);
        b.put_u32(self.timeline_pages);
        b.put_u64(self.index_at);
        b.put_u64(self.file_len);
    }

    /// Reads it from a manifest or footer.
    ///
    /// # Errors
    /// [`DecodeError`] if it is short or says what cannot be.
    pub fn decode(r: &mut Reader<'_>) -> Result<LayerMeta, DecodeError> {
        let meta = LayerMeta {
            id: r.array()?,
            after_seq: r.u64()?,
            last_seq: r.u64()?,
            collapsed_to: r.u64()?,
            tokens: r.u64()?,
            records: r.u64()?,
            first_block: r.u64()?,
            end_block: r.u64()?,
            token_pages: r.u32()?,
            timeline_pages: r.u32()?,
            index_at: r.u64()?,
            file_len: r.u64()?,
        };
        meta.check()?;
        Ok(meta)
    }

    fn check(&self) -> Result<(), DecodeError> {
        let field = |field, value| Err(DecodeError::Field { what: WHAT, field, value });
        if self.last_seq >= LIMIT || self.after_seq >= self.last_seq {
            return field("last seq", self.last_seq);
        }
        if self.first_block > self.end_block || self.end_block > MAX_BLOCKS {
            return field("first block", self.first_block);
        }
        // Each takes a byte at least.
        if self.tokens > self.file_len || self.records > self.file_len {
            return field("tokens", self.tokens);
        }
        let pages = u64::from(self.token_pages) + u64::from(self.timeline_pages);
        let least = HEADER_LEN as u64 + pages * (PAGE_HEADER_LEN + TAG_LEN) as u64;
        if self.index_at < least {
            return field("index offset", self.index_at);
        }
        let index_len = self.index_len();
        if index_len < TAG_LEN as u64 || index_len > INDEX_MAX as u64 {
            return field("length", self.file_len);
        }
        Ok(())
    }

    /// Length of the sealed bytes of the index page.
    #[must_use]
    pub const fn index_len(&self) -> u64 {
        self.file_len.saturating_sub(self.index_at).saturating_sub((PAGE_HEADER_LEN + FOOTER_LEN) as u64)
    }

    /// Number of the index page.
    #[must_use]
    pub const fn index_page(&self) -> u64 {
        self.token_pages as u64 + self.timeline_pages as u64
    }

    /// Name of the file: the id in hex and `.layer`.
    #[must_use]
    pub fn file_name(&self) -> String {
        file_name(&self.id)
    }

    /// The footer's bytes.
    #[must_use]
    pub fn footer(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(FOOTER_LEN);
        b.put_u32(FOOTER_MAGIC);
        b.put_u32(VERSION);
        self.encode(&mut b);
        let sum = xxh3_64(&b);
        b.put_u64(sum);
        b
    }

    /// Checks and reads a footer.
    ///
    /// # Errors
    /// [`DecodeError`] for a wrong magic, version or checksum, or content that cannot be.
    pub fn from_footer(bytes: &[u8; FOOTER_LEN]) -> Result<LayerMeta, DecodeError> {
        let mut r = start(bytes, FOOTER_MAGIC, "layer footer")?;
        LayerMeta::decode(&mut r)
    }
}

/// Checks magic, version and the checksum in the last 8 bytes.
fn start<'a>(bytes: &'a [u8], magic: u32, what: &'static str) -> Result<Reader<'a>, DecodeError> {
    let mut r = Reader::new(what, bytes);
    if r.u32()? != magic {
        return Err(DecodeError::Magic { what });
    }
    let version = r.u32()?;
    if version != VERSION {
        return Err(DecodeError::Version { what, found: version, known: VERSION });
    }
    let (body, sum) = bytes.split_at(bytes.len().saturating_sub(8));
    if xxh3_64(body).to_le_bytes() != *sum {
        return Err(DecodeError::Checksum { what });
    }
    Ok(r)
}

/// Name of the file of the layer with this id.
#[must_use]
pub fn file_name(id: &[u8; 16]) -> String {
    format!("{:032x}.layer", u128::from_be_bytes(*id))
}

/// The first bytes of a layer file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerHeader {
    /// The layer's id.
    pub id: [u8; 16],
    /// The volume's id.
    pub volume: [u8; 16],
}

impl LayerHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut b = [0; HEADER_LEN];
        b[..4].copy_from_slice(&MAGIC.to_le_bytes());
        b[4..8].copy_from_slice(&VERSION.to_le_bytes());
        b[8..24].copy_from_slice(&self.id);
        b[24..40].copy_from_slice(&self.volume);
        let sum = xxh3_64(&b[..56]);
        b[56..].copy_from_slice(&sum.to_le_bytes());
        b
    }

    /// Checks and reads a header.
    ///
    /// # Errors
    /// [`DecodeError`] for a wrong magic, version or checksum.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<LayerHeader, DecodeError> {
        let mut r = start(bytes, MAGIC, "layer header")?;
        Ok(LayerHeader { id: r.array()?, volume: r.array()? })
    }

    /// What the seal of a page of this kind binds besides its content.
    #[must_use]
    pub fn additional(&self, kind: PageKind) -> [u8; 41] {
        let mut b = [0; 41];
        b[..40].copy_from_slice(&self.encode()[..40]);
        b[40] = kind as u8;
        b
    }
}

/// The nonce of a page.
#[must_use]
pub fn nonce(page: u64) -> [u8; 12] {
    let mut b = [0; 12];
    b[4..].copy_from_slice(&page.to_le_bytes());
    b
}

/// Fills the first [`PAGE_HEADER_LEN`] bytes of a page, whose sealed bytes follow them.
pub fn put_page_header(page: &mut [u8], number: u64) {
    let Some(sealed) = page.len().checked_sub(PAGE_HEADER_LEN) else { return };
    page[8..12].copy_from_slice(&u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
    page[12..16].copy_from_slice(&u32::try_from(sealed).unwrap_or(u32::MAX).to_le_bytes());
    let sum = xxh3_64(&page[8..]);
    page[..8].copy_from_slice(&sum.to_le_bytes());
}

/// Checks a whole page (header and sealed bytes) without its key.
///
/// # Errors
/// [`DecodeError`] if it is short, damaged, or another page.
pub fn check_page(page: &[u8], number: u64) -> Result<&[u8], DecodeError> {
    let mut r = Reader::new("layer page", page);
    let (sum, found, len) = (r.u64()?, r.u32()?, r.u32()?);
    if xxh3_64(&page[8..]) != sum {
        return Err(DecodeError::Checksum { what: "layer page" });
    }
    if u64::from(found) != number {
        return Err(DecodeError::Field { what: "layer page", field: "number", value: u64::from(found) });
    }
    if r.rest().len() as u64 != u64::from(len) {
        return Err(DecodeError::Field { what: "layer page", field: "length", value: u64::from(len) });
    }
    Ok(r.rest())
}

#[cfg(test)]
#[path = "layer_tests.rs"]
mod tests;
