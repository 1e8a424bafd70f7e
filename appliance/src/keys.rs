//! The vault key, where it comes from and what is derived from it.
//!
//! | derived key | from | used for |
//! |---|---|---|
//! | segment key | vault key and the segment's random salt | AES-256-GCM of its frames |
//! | dedupe key | vault key | keyed BLAKE3 of blocks |
//! | check value | vault key | telling a wrong key from damage |

use afterimage_base::crashsafe;
use afterimage_base::world;
use afterimage_base::world::fs::File;
use afterimage_format::manifest::KeyWrap;
use afterimage_format::segment::{Codec, FRAME_HEADER_LEN, FrameHeader, FrameKind, SegmentHeader, TAG_LEN, aad, nonce};
use argon2::{Algorithm, Argon2, Params, Version};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use thiserror::Error;
use zeroize::Zeroizing;

/// Memory of argon2id for new vaults: 64 MiB, with [`PASSES`] passes the second choice of RFC 9106.
const MEMORY_KIB: u32 = 64 << 10;
const PASSES: u32 = 3;
/// Most memory that a manifest can make us spend on a passphrase: 4 GiB.
const MAX_MEMORY_KIB: u32 = 4 << 20;

/// Why there is no key.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The key file is not there.
    #[error(
        "{0}: the vault's key file is missing; without it nothing in the vault can be read. Put it back, or name it"
    )]
    Missing(PathBuf),
    /// The key file cannot be read or written.
    #[error("{0}: cannot read or write the key file: {1}")]
    Io(PathBuf, io::Error),
    /// The key file has another size.
    #[error("{0}: this is no key file: it has to hold exactly 32 bytes")]
    Malformed(PathBuf),
    /// It is not the key that sealed this vault.
    #[error("the key of the vault is another one: wrong key file or passphrase")]
    Wrong,
    /// The vault was made with the other kind.
    #[error("this vault's key is {0}")]
    Kind(&'static str),
    /// Argon2 or the system's random numbers failed.
    #[error("the system cannot make a key: {0}")]
    System(String),
}

/// Where the vault key comes from.
#[derive(Debug, Clone)]
pub enum KeySource {
    /// A file of 32 random bytes, made if the vault is new.
    File(PathBuf),
    /// A passphrase.
    Passphrase(Zeroizing<String>),
}

/// The key of a vault. Wiped from memory when dropped, never printed.
#[derive(Clone)]
pub struct VaultKey(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for VaultKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("VaultKey(..)")
    }
}

/// Random bytes from the system.
///
/// # Errors
/// [`KeyError::System`] if it has none.
pub fn random<const N: usize>() -> Result<[u8; N], KeyError> {
    world::random_array().map_err(|e| KeyError::System(format!("no random numbers: {e}")))
}

impl VaultKey {
    /// Makes the key of a new vault and says how it is kept. A key file that exists already is used.
    ///
    /// # Errors
    /// [`KeyError`] if the key file cannot be used or made.
    pub fn create(source: &KeySource) -> Result<(VaultKey, KeyWrap), KeyError> {
        match source {
            KeySource::File(path) => {
                if let Some(key) = read_file(path)? {
                    return Ok((key, KeyWrap::File));
                }
                let key = VaultKey(Zeroizing::new(random()?));
                crashsafe::replace(path, &key.0[..]).map_err(|e| KeyError::Io(path.clone(), e))?;
                Ok((key, KeyWrap::File))
            }
            KeySource::Passphrase(phrase) => {
                let key = VaultKey(Zeroizing::new(random()?));
                let salt: [u8; 16] = random()?;
                let wrapping = stretch(phrase, MEMORY_KIB, PASSES, 1, &salt)?;
                let mut sealed = key.0.to_vec();
                aead(&wrapping)
                    .seal_in_place_append_tag(zero_nonce(), Aad::from(b"afterimage vault key"), &mut sealed)
                    .map_err(|_| KeyError::System("sealing failed".into()))?;
                let mut bytes = [0; 48];
                bytes.copy_from_slice(&sealed);
                let wrap =
                    KeyWrap::Passphrase { memory_kib: MEMORY_KIB, passes: PASSES, lanes: 1, salt, sealed: bytes };
                Ok((key, wrap))
            }
        }
    }

    /// Gets the key of an existing vault, and checks that it is the one.
    ///
    /// # Errors
    /// [`KeyError`]: missing, wrong, or of the other kind.
    pub fn open(source: &KeySource, wrap: &KeyWrap, check: &[u8; 16]) -> Result<VaultKey, KeyError> {
        let key = match (source, wrap) {
            (KeySource::File(path), KeyWrap::File) => {
                read_file(path)?.ok_or_else(|| KeyError::Missing(path.clone()))?
            }
            (KeySource::Passphrase(phrase), KeyWrap::Passphrase { memory_kib, passes, lanes, salt, sealed }) => {
                if *memory_kib > MAX_MEMORY_KIB {
                    return Err(KeyError::System(format!("the manifest asks for {memory_kib} KiB of memory")));
                }
                let wrapping = stretch(phrase, *memory_kib, *passes, *lanes, salt)?;
                let mut bytes = Zeroizing::new(sealed.to_vec());
                let plain = aead(&wrapping)
                    .open_in_place(zero_nonce(), Aad::from(b"afterimage vault key"), &mut bytes)
                    .map_err(|_| KeyError::Wrong)?;
                let mut key = Zeroizing::new([0; 32]);
                key.copy_from_slice(plain);
                VaultKey(key)
            }
            (KeySource::File(_), _) => return Err(KeyError::Kind("wrapped by a passphrase: give the passphrase")),
            (KeySource::Passphrase(_), _) => return Err(KeyError::Kind("in a key file, not wrapped by a passphrase")),
        };
        if key.check_value() != *check {
            return Err(KeyError::Wrong);
        }
        Ok(key)
    }

    fn derive(&self, context: &str, more: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut hasher = blake3::Hasher::new_derive_key(context);
        hasher.update(&self.0[..]);
        hasher.update(more);
        Zeroizing::new(*hasher.finalize().as_bytes())
    }

    /// What tells this key from another one.
    #[must_use]
    pub fn check_value(&self) -> [u8; 16] {
        let full = self.derive("afterimage vault key check v1", &[]);
        let mut out = [0; 16];
        out.copy_from_slice(&full[..16]);
        out
    }

    /// The key of the blocks' fingerprints.
    #[must_use]
    pub fn dedupe_key(&self) -> Zeroizing<[u8; 32]> {
        self.derive("afterimage dedupe key v1", &[])
    }

    /// The key of the layer with this id.
    #[must_use]
    pub fn layer_key(&self, id: &[u8; 16]) -> [u8; 32] {
        *self.derive("afterimage layer key v1", id)
    }

    /// What seals and opens the frames of a segment.
    #[must_use]
    pub fn segment(&self, header: SegmentHeader) -> SegmentKey {
        let key = self.derive("afterimage segment key v1", &header.salt);
        SegmentKey { header, key: aead(&key) }
    }
}

fn read_file(path: &Path) -> Result<Option<VaultKey>, KeyError> {
    let file = match File::open(path) {
        Ok(f) => f,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(KeyError::Io(path.into(), e)),
    };
    let mut bytes = Zeroizing::new(Vec::with_capacity(64));
    file.take(33).read_to_end(&mut bytes).map_err(|e| KeyError::Io(path.into(), e))?;
    let mut key = Zeroizing::new([0; 32]);
    if bytes.len() != key.len() {
        return Err(KeyError::Malformed(path.into()));
    }
    key.copy_from_slice(&bytes);
    Ok(Some(VaultKey(key)))
}

fn stretch(phrase: &str, memory: u32, passes: u32, lanes: u32, salt: &[u8]) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    let bad = |e: argon2::Error| KeyError::System(e.to_string());
    let params = Params::new(memory, passes, lanes, Some(32)).map_err(bad)?;
    let mut out = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(phrase.as_bytes(), salt, &mut out[..])
        .map_err(bad)?;
    Ok(out)
}

fn zero_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

fn aead(key: &[u8; 32]) -> LessSafeKey {
    match UnboundKey::new(&AES_256_GCM, key) {
        Ok(k) => LessSafeKey::new(k),
        // The one way in which this fails is a key of another length, which the type rules out.
        Err(_) => unreachable!("32 bytes are a key of AES-256"),
    }
}

/// Seals and opens the frames of one segment.
#[derive(Debug)]
pub struct SegmentKey {
    header: SegmentHeader,
    key: LessSafeKey,
}

/// What a frame is, besides its content.
#[derive(Debug, Clone, Copy)]
pub struct FrameInfo {
    /// What it holds.
    pub kind: FrameKind,
    /// How the content is compressed.
    pub codec: Codec,
    /// Blocks of a data frame, else 0.
    pub blocks: u16,
    /// How many frames of the kind are before it. Never twice the same (I8).
    pub counter: u32,
    /// Length of the content before compression.
    pub plain_len: u32,
}

impl SegmentKey {
    /// The segment's header.
    #[must_use]
    pub const fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// Makes a frame in place: `frame` holds room for the frame header and then the content; afterwards it is
    /// the whole frame with padding. Returns the length of header and body.
    ///
    /// # Errors
    /// [`KeyError::System`] if the content is too long for the cipher.
    pub fn seal(&self, info: FrameInfo, frame: &mut Vec<u8>) -> Result<u32, KeyError> {
        #[cfg(test)]
        nonces::record(&self.header, info);
        let failed = || KeyError::System("sealing failed".into());
        let sealed_len = frame.len().saturating_sub(FRAME_HEADER_LEN) + TAG_LEN;
        let sealed_len = u32::try_from(sealed_len).map_err(|_| failed())?;
        let FrameInfo { kind, codec, blocks, counter, plain_len } = info;
        let mut header = FrameHeader { kind, codec, blocks, counter, sealed_len, plain_len, checksum: 0 };
        let (n, aad) = (Nonce::assume_unique_for_key(nonce(kind, counter)), Aad::from(aad(&self.header, &header)));
        let tag = self
            .key
            .seal_in_place_separate_tag(n, aad, frame.get_mut(FRAME_HEADER_LEN..).ok_or_else(failed)?)
            .map_err(|_| failed())?;
        frame.extend_from_slice(tag.as_ref());
        header.checksum = header.checksum_of(&frame[FRAME_HEADER_LEN..]);
        frame[..FRAME_HEADER_LEN].copy_from_slice(&header.encode());
        let len = frame.len();
        frame.resize(len.next_multiple_of(16), 0);
        u32::try_from(len).map_err(|_| failed())
    }

    /// Opens a body in place and returns its content, still compressed; `None` if it is not authentic.
    #[must_use]
    pub fn open<'a>(&self, header: &FrameHeader, body: &'a mut [u8]) -> Option<&'a mut [u8]> {
        let n = Nonce::assume_unique_for_key(nonce(header.kind, header.counter));
        self.key.open_in_place(n, Aad::from(aad(&self.header, header)), body).ok()
    }
}

/// In tests every pair of key and nonce that sealed something is remembered, and a second use is a panic (I8).
#[cfg(test)]
pub(crate) mod nonces {
    use super::{FrameInfo, SegmentHeader};
    use std::collections::HashSet;
    use std::sync::{LazyLock, Mutex};

    type Used = HashSet<([u8; 32], u8, u32)>;
    static USED: LazyLock<Mutex<Used>> = LazyLock::new(|| Mutex::new(HashSet::new()));

    pub(super) fn record(header: &SegmentHeader, info: FrameInfo) {
        let mut used = USED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let new = used.insert((header.salt, info.kind as u8, info.counter));
        drop(used);
        assert!(new, "key and nonce were used before: segment {}, {info:?}", header.number);
    }
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
