//! Whether the appliance's history is the beginning of what the ring holds: a table without any I/O.
//!
//! | the Welcome says | and the ring | means |
//! |---|---|---|
//! | what it said when the ring was last reopened | still holds that Gap, or has not been reopened | go on at the Gap |
//! | nothing is durable | holds everything from seq 1 on, and the size never changed | go on at 1 |
//! | this ring's id, a seq that the ring freed last or holds | has the same digest there | go on behind it |
//! | anything else | | the histories have forked |
//!
//! Forked is also what a store looks like that was restored from an older copy, or lost.

use afterimage_format::wire::Welcome;
use serde::{Deserialize, Serialize};

/// What the appliance held when the ring was reopened with a Gap: the Gap follows on it whatever it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Base {
    pub(crate) ring: [u8; 16],
    pub(crate) durable: u64,
    pub(crate) digest: u64,
    /// Seq of the Gap; None until the ring is reopened.
    pub(crate) gap: Option<u64>,
}

impl Base {
    pub(crate) const fn of(w: &Welcome) -> Base {
        Base { ring: w.ring, durable: w.durable, digest: w.digest, gap: None }
    }

    pub(crate) fn is(&self, w: &Welcome) -> bool {
        (self.ring, self.durable, self.digest) == (w.ring, w.durable, w.digest)
    }
}

/// What the ring has to say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held {
    pub(crate) ring: [u8; 16],
    /// First seq held.
    pub(crate) first: u64,
    /// Seq and digest freed last.
    pub(crate) freed: (u64, u64),
    /// Digest of the record that the Welcome calls durable, if the ring holds it.
    pub(crate) digest: Option<u64>,
    pub(crate) base: Option<Base>,
    /// The size was changed since the beginning: from seq 1 on nobody could tell what it was.
    pub(crate) resized: bool,
}

/// How to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Continuity {
    /// With this seq.
    At(u64),
    /// With the Gap that the next reopening makes.
    AtNextGap,
    /// Not at all: start over.
    Forked,
}

/// See the module.
pub(crate) fn judge(w: &Welcome, held: &Held) -> Continuity {
    if let Some(base) = held.base.filter(|b| b.is(w)) {
        match base.gap {
            Some(gap) if held.first <= gap => return Continuity::At(gap),
            Some(_) => {}
            None => return Continuity::AtNextGap,
        }
    }
    if w.durable == 0 {
        return if held.first == 1 && !held.resized { Continuity::At(1) } else { Continuity::Forked };
    }
    let same = w.ring == held.ring && ((w.durable, w.digest) == held.freed || held.digest == Some(w.digest));
    if same { Continuity::At(w.durable + 1) } else { Continuity::Forked }
}

#[cfg(test)]
mod tests {
    use super::*;
    use afterimage_format::fence::Fence;

    const RING: [u8; 16] = [7; 16];
    const OTHER: [u8; 16] = [8; 16];

    fn welcome(ring: [u8; 16], durable: u64, digest: u64) -> Welcome {
        Welcome { version: 1, ring, durable, digest, credit: 0, epoch: 0, fence: Fence::Open }
    }

    fn held(first: u64, freed: (u64, u64), digest: Option<u64>, base: Option<Base>) -> Held {
        Held { ring: RING, first, freed, digest, base, resized: false }
    }

    #[test]
    fn every_row() {
        let base = |gap| Some(Base { ring: OTHER, durable: 40, digest: 4, gap });
        let cases = [
            (welcome([0; 16], 0, 0), held(1, (0, 0), None, None), Continuity::At(1)),
            (welcome([0; 16], 0, 0), held(2, (1, 5), None, None), Continuity::Forked),
            (welcome(RING, 9, 5), held(10, (9, 5), None, None), Continuity::At(10)),
            (welcome(RING, 9, 6), held(10, (9, 5), None, None), Continuity::Forked),
            (welcome(RING, 12, 3), held(10, (9, 5), Some(3), None), Continuity::At(13)),
            (welcome(RING, 12, 4), held(10, (9, 5), Some(3), None), Continuity::Forked),
            (welcome(RING, 8, 5), held(10, (9, 5), None, None), Continuity::Forked),
            (welcome(RING, 99, 5), held(10, (9, 5), None, None), Continuity::Forked),
            (welcome(OTHER, 9, 5), held(10, (9, 5), Some(5), None), Continuity::Forked),
            (welcome(OTHER, 40, 4), held(41, (40, 0), None, base(Some(41))), Continuity::At(41)),
            (welcome(OTHER, 40, 4), held(50, (49, 0), None, base(Some(41))), Continuity::Forked),
            (welcome(OTHER, 40, 4), held(1, (0, 0), None, base(None)), Continuity::AtNextGap),
            (welcome(OTHER, 41, 4), held(1, (0, 0), None, base(None)), Continuity::Forked),
        ];
        for (i, (w, h, want)) in cases.into_iter().enumerate() {
            assert_eq!(judge(&w, &h), want, "case {i}");
        }
    }
}
