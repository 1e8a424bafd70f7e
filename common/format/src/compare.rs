//! Comparing a disk with its history by hash, without sending the blocks (since version 2 of the wire protocol).
//!
//! | message | from | body |
//! |---|---|---|
//! | HashQuery | agent | id (u64), seq (u64), offset and length in bytes (u64 each), key (32) |
//! | Hashes | appliance | id (u64), kind (u8): 0 cannot tell, 1 all blocks are zero, 2 the hash (16) of each block, in order |
//!
//! A query asks for the grid blocks of `offset..offset + length` as they were at `seq`, which is durable at the appliance. Its
//! offset is a multiple of the block size, and so is its length unless it ends with the volume; a block that the volume ends
//! in is hashed as if zeroes followed. A hash is BLAKE3 keyed with the query's key, cut to 128 bits: the key is random for each
//! session, so nobody who writes to the disk can make two blocks that are taken for one another. It has
//! nothing to do with the keys of the vault.
//!
//! *Cannot tell* is a full answer: the appliance has too much to do, or what it would have to read is damaged or no longer
//! kept. Answers come in any order.

use crate::codec::{DecodeError, Reader, Writer};
use crate::{BLOCK_SHIFT, BLOCK_SIZE};

/// Length of a block's hash in bytes.
pub const HASH_LEN: usize = 16;
/// Most blocks that one query may ask for.
pub const MAX_HASHES: usize = 1024;
/// Most queries that an agent may have under way in a session.
pub const MAX_QUERIES: usize = 32;
/// Longest body of [`Hashes`] in bytes.
pub const MAX_HASHES_BODY: usize = 9 + MAX_HASHES * HASH_LEN;

const QUERY: &str = "hash query";
const HASHES: &str = "hashes";

/// Hash of a block.
pub type BlockHash = [u8; HASH_LEN];

/// Makes the hashes of one session.
#[derive(Clone)]
pub struct BlockHasher {
    key: [u8; 32],
    zero: BlockHash,
}

impl std::fmt::Debug for BlockHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BlockHasher")
    }
}

fn keyed(key: &[u8; 32], block: &[u8]) -> BlockHash {
    let mut out = [0; HASH_LEN];
    out.copy_from_slice(&blake3::keyed_hash(key, block).as_bytes()[..HASH_LEN]);
    out
}

impl BlockHasher {
    /// With this key.
    #[must_use]
    pub fn new(key: [u8; 32]) -> BlockHasher {
        BlockHasher { key, zero: keyed(&key, &[0; BLOCK_SIZE]) }
    }

    /// The key.
    #[must_use]
    pub const fn key(&self) -> &[u8; 32] {
        &self.key
    }

    /// Hash of a block of zeroes.
    #[must_use]
    pub const fn zero(&self) -> BlockHash {
        self.zero
    }

    /// Hash of a block. A shorter one counts as if zeroes followed.
    #[must_use]
    pub fn hash(&self, block: &[u8]) -> BlockHash {
        if block.len() == BLOCK_SIZE {
            return keyed(&self.key, block);
        }
        let mut whole = [0; BLOCK_SIZE];
        let len = block.len().min(BLOCK_SIZE);
        whole[..len].copy_from_slice(&block[..len]);
        keyed(&self.key, &whole)
    }
}

/// Asks for the hashes of a range.
#[derive(Clone, PartialEq, Eq)]
pub struct HashQuery {
    /// Named in the answer; never used twice in a session.
    pub id: u64,
    /// The seq at which the volume is meant.
    pub seq: u64,
    /// First byte, a multiple of the block size.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Key of the hashes.
    pub key: [u8; 32],
}

impl std::fmt::Debug for HashQuery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HashQuery({} at seq {}, {}+{})", self.id, self.seq, self.offset, self.len)
    }
}

impl HashQuery {
    /// Blocks asked for.
    #[must_use]
    pub const fn blocks(&self) -> u64 {
        self.len.div_ceil(BLOCK_SIZE as u64)
    }

    /// The body's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(64);
        b.put_u64(self.id);
        b.put_u64(self.seq);
        b.put_u64(self.offset);
        b.put_u64(self.len);
        b.extend_from_slice(&self.key);
        b
    }

    /// Reads a body for a volume of `size` bytes.
    ///
    /// # Errors
    /// [`DecodeError`] if it is short, or its range is empty, too long, not on the grid, or not in the volume.
    pub fn decode(body: &[u8], size: u64) -> Result<HashQuery, DecodeError> {
        let mut r = Reader::new(QUERY, body);
        let q = HashQuery { id: r.u64()?, seq: r.u64()?, offset: r.u64()?, len: r.u64()?, key: r.array()? };
        let field = |field, value| DecodeError::Field { what: QUERY, field, value };
        if !q.offset.is_multiple_of(BLOCK_SIZE as u64) {
            return Err(field("offset", q.offset));
        }
        let end = q.offset.checked_add(q.len).filter(|end| *end <= size);
        let on_grid = end.is_some_and(|end| end == size || end.is_multiple_of(BLOCK_SIZE as u64));
        if q.len == 0 || q.len > (MAX_HASHES as u64) << BLOCK_SHIFT || !on_grid {
            return Err(field("length", q.len));
        }
        Ok(q)
    }
}

/// What the appliance says of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// It cannot tell.
    Nothing,
    /// Every block is zero.
    Zero,
    /// The hash of each block.
    Each(Vec<BlockHash>),
}

/// Answers a [`HashQuery`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hashes {
    /// The query's.
    pub id: u64,
    /// The answer.
    pub told: Told,
}

impl Hashes {
    /// The body's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(MAX_HASHES_BODY);
        b.put_u64(self.id);
        match &self.told {
            Told::Nothing => b.push(0),
            Told::Zero => b.push(1),
            Told::Each(hashes) => {
                b.push(2);
                hashes.iter().for_each(|h| b.extend_from_slice(h));
            }
        }
        b
    }

    /// Reads a body. Whether the number of hashes is the one asked for is the receiver's to check.
    ///
    /// # Errors
    /// [`DecodeError`] if it is short or too long, of an unknown kind, or ends within a hash.
    pub fn decode(body: &[u8]) -> Result<Hashes, DecodeError> {
        let mut r = Reader::new(HASHES, body);
        let (id, kind) = (r.u64()?, r.u8()?);
        let rest = body.get(9..).unwrap_or_default();
        let field = |field, value: usize| DecodeError::Field { what: HASHES, field, value: value as u64 };
        let told = match kind {
            0 => Told::Nothing,
            1 => Told::Zero,
            2 => {
                let (hashes, odd) = rest.as_chunks::<HASH_LEN>();
                if !odd.is_empty() || hashes.is_empty() || hashes.len() > MAX_HASHES {
                    return Err(field("length", rest.len()));
                }
                return Ok(Hashes { id, told: Told::Each(hashes.to_vec()) });
            }
            _ => return Err(field("kind", usize::from(kind))),
        };
        if rest.is_empty() { Ok(Hashes { id, told }) } else { Err(field("length", rest.len())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: u64 = (8 << 20) + 777;

    fn query(offset: u64, len: u64) -> HashQuery {
        HashQuery { id: 3, seq: 9, offset, len, key: [5; 32] }
    }

    #[test]
    fn queries_stay_inside_the_volume_and_the_grid() {
        for good in [query(0, 4096), query(4096, 4 << 20), query(8 << 20, 777), query((8 << 20) - 4096, 4096 + 777)] {
            assert_eq!(HashQuery::decode(&good.encode(), SIZE), Ok(good));
        }
        let bad = [
            (1, 4096),
            (0, 0),
            (0, 4097),
            (0, (4 << 20) + 4096),
            (8 << 20, 778),
            (8 << 20, 700),
            (u64::MAX - 4095, 4096),
        ];
        for (offset, len) in bad {
            assert!(HashQuery::decode(&query(offset, len).encode(), SIZE).is_err(), "{offset}+{len}");
        }
        assert!(HashQuery::decode(&query(0, 4096).encode()[..63], SIZE).is_err());
    }

    proptest! {
        #[test]
        fn answers_come_back(id: u64, hashes in proptest::collection::vec(any::<BlockHash>(), 1..40), n in 0u8..3) {
            let told = [Told::Nothing, Told::Zero, Told::Each(hashes)][usize::from(n)].clone();
            let h = Hashes { id, told };
            prop_assert_eq!(Hashes::decode(&h.encode()), Ok(h));
        }

        #[test]
        fn any_bytes_end_in_peace(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Hashes::decode(&bytes);
            let _ = HashQuery::decode(&bytes, SIZE);
        }
    }

    #[test]
    fn answers_that_are_too_long_or_odd_are_refused() {
        let mut long = Hashes { id: 1, told: Told::Each(vec![[1; 16]; MAX_HASHES]) }.encode();
        assert!(Hashes::decode(&long).is_ok());
        long.extend_from_slice(&[0; 16]);
        assert!(Hashes::decode(&long).is_err());
        let mut odd = Hashes { id: 1, told: Told::Each(vec![[1; 16]]) }.encode();
        odd.push(0);
        assert!(Hashes::decode(&odd).is_err());
        let mut zero = Hashes { id: 1, told: Told::Zero }.encode();
        zero.push(0);
        assert!(Hashes::decode(&zero).is_err());
        let mut unknown = Hashes { id: 1, told: Told::Zero }.encode();
        unknown[8] = 3;
        assert!(Hashes::decode(&unknown).is_err());
    }

    #[test]
    fn a_hash_depends_on_key_and_bytes_and_a_short_block_is_filled_up() {
        let (a, b) = (BlockHasher::new([1; 32]), BlockHasher::new([2; 32]));
        assert_ne!(a.hash(&[7; 4096]), b.hash(&[7; 4096]));
        assert_ne!(a.hash(&[7; 4096]), a.hash(&[8; 4096]));
        let mut filled = [0; 4096];
        filled[..100].fill(7);
        assert_eq!(a.hash(&[7; 100]), a.hash(&filled));
        assert_eq!(a.zero(), a.hash(&[0; 4096]));
    }
}
