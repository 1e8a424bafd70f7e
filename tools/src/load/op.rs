//! What is submitted, from a seed.

/// Splitmix64: a small, good enough source of chance that a seed repeats.
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    /// A source from this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next word.
    pub const fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number less than `n` (which is not 0).
    pub const fn below(&mut self, n: u64) -> u64 {
        self.word() % n
    }
}

/// Kind of a request that changes the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Stamped bytes.
    Write = 1,
    /// Trim; on a protected disk the range reads as zeroes afterwards.
    Trim = 2,
    /// Write zeroes.
    Zero = 3,
}

/// A request that changes the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Op {
    /// From 1, in the order of submission.
    pub number: u64,
    /// What it does.
    pub kind: Kind,
    /// First byte.
    pub offset: u64,
    /// Length in bytes, not 0.
    pub len: u64,
}

/// How often each kind comes, relative to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mix {
    /// Writes.
    pub write: u64,
    /// Trims.
    pub trim: u64,
    /// Write-zeroes.
    pub zero: u64,
    /// Flushes.
    pub flush: u64,
}

impl std::str::FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Mix, String> {
        let bad = || {
            format!("'{text}' is no mix: write four numbers for writes, trims, zeroes and flushes, such as 80,8,8,4")
        };
        let parts: Vec<u64> = text.split(',').map(|p| p.parse().map_err(|_| bad())).collect::<Result<_, _>>()?;
        match parts[..] {
            [write, trim, zero, flush] if write + trim + zero > 0 && parts.iter().all(|p| *p <= 1_000_000) => {
                Ok(Mix { write, trim, zero, flush })
            }
            _ => Err(bad()),
        }
    }
}

/// What to submit next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// A change, without its number yet.
    Change(Kind, u64, u64),
    /// A flush.
    Flush,
}

/// The shape of the load.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// How often each kind comes.
    pub mix: Mix,
    /// Offsets and lengths are multiples of this.
    pub align: u64,
    /// Longest request.
    pub max_len: u64,
    /// The part of the disk that is used, from its start.
    pub span: u64,
}

/// Chooses requests: lengths spread over all magnitudes, and every fourth near the one before, so that many overlap.
#[derive(Debug)]
pub struct Chooser {
    shape: Shape,
    chance: Chance,
    last: u64,
}

impl Chooser {
    /// A chooser for a connection.
    #[must_use]
    pub const fn new(shape: Shape, seed: u64) -> Self {
        Self { shape, chance: Chance::new(seed), last: 0 }
    }

    fn length(&mut self) -> u64 {
        let Shape { align, max_len, span, .. } = self.shape;
        let units = (max_len.min(span) / align).max(1);
        let magnitude = self.chance.below(u64::from(units.ilog2()) + 1);
        let most = (1u64 << (magnitude + 1)).min(units + 1);
        (1 + self.chance.below(most - 1)) * align
    }

    /// The next request.
    pub fn choose(&mut self) -> Next {
        let Shape { mix, align, span, .. } = self.shape;
        let at = self.chance.below(mix.write + mix.trim + mix.zero + mix.flush);
        let kind = match at {
            n if n < mix.write => Kind::Write,
            n if n < mix.write + mix.trim => Kind::Trim,
            n if n < mix.write + mix.trim + mix.zero => Kind::Zero,
            _ => return Next::Flush,
        };
        let len = self.length();
        let places = (span - len) / align + 1;
        let near = self.chance.below(4) == 0;
        let place = if near { (self.last / align + self.chance.below(16)) % places } else { self.chance.below(places) };
        self.last = place * align;
        Next::Change(kind, self.last, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_keep_to_their_shape_and_cover_it() {
        for (align, span) in [(1, 1 << 20), (512, 64 << 10), (4096, 8192), (512, 512)] {
            let mix = "80,8,8,4".parse().unwrap();
            let shape = Shape { mix, align, max_len: 1 << 20, span };
            let mut chooser = Chooser::new(shape, 7);
            let (mut longest, mut shortest, mut furthest, mut kinds) =
                (0, u64::MAX, 0, std::collections::BTreeSet::new());
            for _ in 0..20_000 {
                let Next::Change(kind, offset, len) = chooser.choose() else { continue };
                assert!(len > 0 && offset + len <= span && offset % align == 0 && len % align == 0);
                longest = longest.max(len);
                shortest = shortest.min(len);
                furthest = furthest.max(offset + len);
                kinds.insert(kind as u8);
            }
            assert_eq!((shortest, kinds.len()), (align, 3));
            assert!(longest > span.min(1 << 20) / 2 && furthest > span * 9 / 10);
        }
        for bad in ["", "1,2,3", "0,0,0,5", "a,b,c,d", "1,2,3,4,5"] {
            assert!(bad.parse::<Mix>().is_err(), "{bad}");
        }
    }
}
