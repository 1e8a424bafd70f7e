//! The engine's bytes as what a target needs. Whatever the bytes, there is always a next value: behind the end all is zero.

use afterimage_format::layer::LIMIT;

/// Numbers near which things go wrong.
const SPECIAL: [u64; 16] = [
    u64::MAX,
    u64::MAX - 1,
    1 << 63,
    LIMIT,
    LIMIT - 1,
    1 << 60,
    1 << 48,
    1 << 32,
    u32::MAX as u64,
    1 << 31,
    64 << 20,
    4 << 20,
    1 << 20,
    65_536,
    4096,
    4095,
];

/// A reader of the input.
#[derive(Debug, Clone)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// From the start.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether all has been read.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A byte.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number below `n`, which is not 0 and at most 256.
    pub fn below(&mut self, n: usize) -> usize {
        usize::from(self.byte()) % n
    }

    /// True for one in `n`.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }

    /// Up to `n` bytes as they are.
    pub fn take(&mut self, n: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// The rest.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// An array, filled up with zeroes.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let taken = self.take(N);
        out[..taken.len()].copy_from_slice(taken);
        out
    }

    /// 16 bits.
    pub fn short(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// A number: mostly small, sometimes special, sometimes any.
    pub fn number(&mut self) -> u64 {
        let tag = self.byte();
        match tag {
            0..0xc0 => u64::from(tag),
            0xc0..0xd0 => SPECIAL[usize::from(tag - 0xc0)],
            0xd0..0xe0 => SPECIAL[usize::from(tag - 0xd0)].wrapping_add(u64::from(self.byte()).wrapping_sub(128)),
            0xe0..0xf0 => u64::from(self.short()),
            0xf0..0xf8 => u64::from(u32::from_le_bytes(self.array())),
            _ => u64::from_le_bytes(self.array()),
        }
    }

    /// `right`, or now and then another number near it or anywhere.
    pub fn near(&mut self, right: u64) -> u64 {
        match self.byte() {
            0..0xe0 => right,
            0xe0..0xe8 => right.wrapping_add(1),
            0xe8..0xf0 => right.wrapping_sub(1),
            0xf0..0xf8 => right.wrapping_add(self.number()),
            _ => self.number(),
        }
    }

    /// Changes `bytes` as the input says, at most so many times. Says whether anything is different.
    pub fn edit(&mut self, bytes: &mut Vec<u8>, times: usize) -> bool {
        let before = bytes.clone();
        for _ in 0..times {
            if self.is_empty() {
                break;
            }
            self.edit_once(bytes);
        }
        before != *bytes
    }

    fn edit_once(&mut self, bytes: &mut Vec<u8>) {
        let what = self.byte();
        let at = u32::from_le_bytes([self.byte(), self.byte(), self.byte(), 0]) as usize % (bytes.len() + 1);
        match what % 8 {
            0 | 1 => {
                let bit = self.byte() % 8;
                bytes.get_mut(at).into_iter().for_each(|b| *b ^= 1 << bit);
            }
            2 => {
                let n = self.below(16) + 1;
                let new = self.take(n);
                let end = (at + new.len()).min(bytes.len());
                bytes[at..end].copy_from_slice(&new[..end - at]);
            }
            3 => {
                // As the formats have them: eight bytes, in line.
                let (at, value) = (at / 8 * 8, self.number());
                bytes.get_mut(at..at + 8).into_iter().for_each(|b| b.copy_from_slice(&value.to_le_bytes()));
            }
            4 => bytes.truncate(at),
            5 => {
                let end = (at + 4096).min(bytes.len());
                bytes[at..end].fill(0);
            }
            6 => {
                let from = usize::from(self.short()) % (bytes.len() + 1);
                let n = (self.below(256) + 1).min(bytes.len() - at.max(from));
                bytes.copy_within(from..from + n, at);
            }
            _ => {
                let n = self.below(64);
                bytes.extend_from_slice(self.take(n));
            }
        }
    }
}
