//! Messages of barriers. Since version 3 of the session.
//!
//! | from | message | body |
//! |---|---|---|
//! | mgmt | Prepare | [`Prepare`] |
//! | agent | Held | [`Held`]: the marker of every volume |
//! | agent | NotHeld | [`NotHeld`] |
//! | mgmt | Release | [`Named`] |
//! | agent | Released | [`Released`] |
//! | mgmt | Watch | [`Held`]: markers of which mgmt wants to hear when they are durable |
//! | agent | Settled | [`Settled`]: what became of one |

use super::{MAX_TEXT, cut, field};
use crate::codec::{DecodeError, Reader, Writer};

/// Most volumes of one machine.
pub const MAX_MARKERS: usize = 1024;
/// Longest name of a volume.
pub const MAX_VOLUME_NAME: usize = 255;
/// Longest time that gates may be closed, in microseconds: a minute would be an outage, not a barrier.
pub const MAX_HOLD_US: u32 = 10_000_000;

/// Which barrier: the life of mgmt, and the number within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named {
    /// Life of mgmt; later ones are greater.
    pub epoch: u64,
    /// Number of the barrier; later ones are greater.
    pub number: u64,
}

impl Named {
    fn put(&self, b: &mut Vec<u8>) {
        b.put_u64(self.epoch);
        b.put_u64(self.number);
    }

    fn take(r: &mut Reader<'_>) -> Result<Named, DecodeError> {
        Ok(Named { epoch: r.u64()?, number: r.u64()? })
    }

    /// The body's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::new();
        self.put(&mut b);
        b
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] if it is not one.
    pub fn decode(body: &[u8]) -> Result<Named, DecodeError> {
        let mut r = Reader::new("barrier", body);
        let named = Named::take(&mut r)?;
        r.end()?;
        Ok(named)
    }
}

/// Asks an agent to close all of its gates, to mark all of its volumes, and to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prepare {
    /// The barrier.
    pub of: Named,
    /// How long gates may be closed, in microseconds, 1 to [`MAX_HOLD_US`].
    pub hold_us: u32,
}

impl Prepare {
    /// The body's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = self.of.encode();
        b.put_u32(self.hold_us);
        b
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] if it is not one.
    pub fn decode(body: &[u8]) -> Result<Prepare, DecodeError> {
        let mut r = Reader::new("prepare", body);
        let prepare = Prepare { of: Named::take(&mut r)?, hold_us: r.u32()? };
        if prepare.hold_us == 0 || prepare.hold_us > MAX_HOLD_US {
            return Err(field("hold", prepare.hold_us.into()));
        }
        r.end()?;
        Ok(prepare)
    }
}

/// Where a barrier lies in the history of one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    /// The volume's id.
    pub volume: [u8; 16],
    /// The journal in which the seq was given.
    pub ring: [u8; 16],
    /// The seq: a prefix up to it is this volume's part of the point.
    pub seq: u64,
    /// The marker's time, nanoseconds since 1970.
    pub time: u64,
    /// The volume's name.
    pub name: String,
}

/// The markers of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The barrier.
    pub of: Named,
    /// One for each volume, at most [`MAX_MARKERS`].
    pub markers: Vec<Marker>,
}

impl Held {
    /// The body's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = self.of.encode();
        b.put_u32(u32::try_from(self.markers.len()).unwrap_or(u32::MAX));
        for m in &self.markers {
            b.extend_from_slice(&m.volume);
            b.extend_from_slice(&m.ring);
            b.put_u64(m.seq);
            b.put_u64(m.time);
            b.put_string(&m.name);
        }
        b
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] if it is not one.
    pub fn decode(body: &[u8]) -> Result<Held, DecodeError> {
        let mut r = Reader::new("held", body);
        let (of, count) = (Named::take(&mut r)?, r.u32()?);
        if count as usize > MAX_MARKERS {
            return Err(field("count of markers", count.into()));
        }
        let mut markers = Vec::new();
        for _ in 0..count {
            markers.push(Marker {
                volume: r.array()?,
                ring: r.array()?,
                seq: r.u64()?,
                time: r.u64()?,
                name: r.string(MAX_VOLUME_NAME)?,
            });
        }
        r.end()?;
        Ok(Held { of, markers })
    }
}

/// The agent could not: its gates are open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotHeld {
    /// The barrier.
    pub of: Named,
    /// Why, for people.
    pub why: String,
}

impl NotHeld {
    /// The body's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = self.of.encode();
        b.put_string(cut(&self.why));
        b
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] if it is not one.
    pub fn decode(body: &[u8]) -> Result<NotHeld, DecodeError> {
        let mut r = Reader::new("not held", body);
        let held = NotHeld { of: Named::take(&mut r)?, why: r.string(MAX_TEXT)? };
        r.end()?;
        Ok(held)
    }
}

/// The answer to Release. The gates are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Released {
    /// The barrier.
    pub of: Named,
    /// Whether they had been closed from Held until Release came.
    pub stayed: bool,
    /// How long they were closed, in microseconds.
    pub held_us: u32,
}

impl Released {
    /// The body's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = self.of.encode();
        b.push(u8::from(self.stayed));
        b.put_u32(self.held_us);
        b
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] if it is not one.
    pub fn decode(body: &[u8]) -> Result<Released, DecodeError> {
        let mut r = Reader::new("released", body);
        let of = Named::take(&mut r)?;
        let stayed = match r.u8()? {
            0 => false,
            1 => true,
            other => return Err(field("stayed", other.into())),
        };
        let released = Released { of, stayed, held_us: r.u32()? };
        r.end()?;
        Ok(released)
    }
}

/// What became of a marker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// The barrier.
    pub of: Named,
    /// The volume's id.
    pub volume: [u8; 16],
    /// It is durable at the appliance; otherwise it never will be: the history began anew without it.
    pub durable: bool,
}

impl Settled {
    /// The body's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = self.of.encode();
        b.extend_from_slice(&self.volume);
        b.push(u8::from(self.durable));
        b
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] if it is not one.
    pub fn decode(body: &[u8]) -> Result<Settled, DecodeError> {
        let mut r = Reader::new("settled", body);
        let (of, volume) = (Named::take(&mut r)?, r.array()?);
        let durable = match r.u8()? {
            0 => false,
            1 => true,
            other => return Err(field("durable", other.into())),
        };
        r.end()?;
        Ok(Settled { of, volume, durable })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bodies_come_back(epoch: u64, number: u64, hold_us in 1..=MAX_HOLD_US, flag: bool, held_us: u32, volume: [u8; 16],
                            seqs in prop::collection::vec(any::<u64>(), 0..20), text in ".{0,60}") {
            let of = Named { epoch, number };
            prop_assert_eq!(Named::decode(&of.encode()), Ok(of));
            let prepare = Prepare { of, hold_us };
            prop_assert_eq!(Prepare::decode(&prepare.encode()), Ok(prepare));
            let marker = |seq: &u64| Marker { volume, ring: volume, seq: *seq, time: number, name: text.clone() };
            let held = Held { of, markers: seqs.iter().map(marker).collect() };
            prop_assert_eq!(Held::decode(&held.encode()), Ok(held));
            let not = NotHeld { of, why: text.clone() };
            prop_assert_eq!(NotHeld::decode(&not.encode()), Ok(not));
            let released = Released { of, stayed: flag, held_us };
            prop_assert_eq!(Released::decode(&released.encode()), Ok(released));
            let settled = Settled { of, volume, durable: flag };
            prop_assert_eq!(Settled::decode(&settled.encode()), Ok(settled));
        }

        #[test]
        fn any_bytes_end_in_peace(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (Named::decode(&bytes), Prepare::decode(&bytes), Held::decode(&bytes));
            let _ = (NotHeld::decode(&bytes), Released::decode(&bytes), Settled::decode(&bytes));
        }
    }

    #[test]
    fn the_bytes_stay_what_they_are_and_limits_hold() {
        let of = Named { epoch: 1, number: 2 };
        let prepare = Prepare { of, hold_us: 3 }.encode();
        assert_eq!(prepare, [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0]);
        assert!(Prepare::decode(&Prepare { of, hold_us: 0 }.encode()).is_err());
        assert!(Prepare::decode(&Prepare { of, hold_us: MAX_HOLD_US + 1 }.encode()).is_err());
        let mut many = Held { of, markers: Vec::new() }.encode();
        many[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Held::decode(&many).is_err());
        let mut odd = Released { of, stayed: true, held_us: 4 }.encode();
        odd[16] = 2;
        assert!(Released::decode(&odd).is_err());
    }
}
