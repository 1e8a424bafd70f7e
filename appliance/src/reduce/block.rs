//! What one grid block is: zero, or known by its fingerprint.

use afterimage_base::world;
use afterimage_format::segment::{FINGERPRINT_LEN, Fingerprint};
use zeroize::Zeroizing;

/// Whether all bytes are zero. Most blocks that are not show it in their first bytes.
#[must_use]
pub fn is_zero(block: &[u8]) -> bool {
    let (head, tail) = block.split_at(block.len().min(64));
    if head.iter().any(|b| *b != 0) {
        return false;
    }
    // Or-ing a group before looking lets the compiler use whole vectors.
    let mut groups = tail.chunks_exact(256);
    groups.all(|g| g.iter().fold(0, |a, b| a | b) == 0) && groups.remainder().iter().all(|b| *b == 0)
}

/// Makes fingerprints: BLAKE3 with the vault's dedupe key, cut to 16 bytes.
///
/// Equal fingerprints are taken as equal blocks (I9): among 2^40 blocks (4 PiB) the chance that any two
/// different ones collide is below 2^-48, and without the key nobody can make two that do.
#[derive(Clone)]
pub struct Fingerprinter(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for Fingerprinter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fingerprinter(..)")
    }
}

impl Fingerprinter {
    /// With the vault's dedupe key.
    #[must_use]
    pub const fn new(key: Zeroizing<[u8; 32]>) -> Self {
        Self(key)
    }

    /// The fingerprint of a block.
    #[must_use]
    pub fn of(&self, block: &[u8]) -> Fingerprint {
        let full = blake3::keyed_hash(&self.0, block);
        let mut out = [0; FINGERPRINT_LEN];
        let kept = if world::broken("short-hash") { 1 } else { FINGERPRINT_LEN };
        out[..kept].copy_from_slice(&full.as_bytes()[..kept]);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_byte_that_is_not_zero_is_seen() {
        for len in [1, 63, 64, 65, 1000, 4096] {
            let mut b = vec![0; len];
            assert!(is_zero(&b));
            for i in 0..len {
                b[i] = 1;
                assert!(!is_zero(&b), "byte {i} of {len}");
                b[i] = 0;
            }
        }
    }

    #[test]
    fn a_fingerprint_depends_on_key_and_bytes() {
        let f = |k, b: &[u8]| Fingerprinter::new(Zeroizing::new([k; 32])).of(b);
        assert_eq!(f(1, b"a"), f(1, b"a"));
        assert_ne!(f(1, b"a"), f(1, b"b"));
        assert_ne!(f(1, b"a"), f(2, b"a"));
    }
}
