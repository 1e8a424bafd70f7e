//! A failback through a session: the appliance compares and writes the disk of a fenced agent (since version 6 of the wire protocol).
//!
//! | message | from | body |
//! |---|---|---|
//! | DiskQuery | appliance | a [`HashQuery`](crate::compare::HashQuery) whose seq is the epoch of the fence |
//! | DiskHashes | agent | [`Hashes`](crate::compare::Hashes) of the disk's blocks as they are now |
//! | DiskWrite | appliance | id, epoch, offset in bytes (u64 each), the bytes: 1 to [`MAX_WRITE`] |
//! | DiskSync | appliance | id, epoch (u64 each) |
//! | DiskDone | agent | id (u64), error number of the system (u32), 0 if it went well |
//!
//! The agent does them in the order in which they come, and answers each: a DiskQuery with DiskHashes, or with a DiskDone that says why not.
//! It does nothing unless it is fenced with that epoch (`ESTALE`), and all that it has is in its journal, with the point that
//! ends it (`EAGAIN`): from then on what is on the disk is kept elsewhere (I13). What was written is durable behind the DiskDone of a
//! DiskSync. At most [`MAX_REQUESTS`] may be without an answer.

use crate::codec::{DecodeError, Reader, Writer};

/// Most bytes of a [`DiskWrite`].
pub const MAX_WRITE: usize = 1 << 20;
/// Longest body of a [`DiskWrite`] in bytes.
pub const MAX_WRITE_BODY: usize = 24 + MAX_WRITE;
/// Most requests of an appliance that an agent has not answered yet.
pub const MAX_REQUESTS: usize = 32;

const WRITE: &str = "disk write";

/// The id of a request or an answer: what their bodies begin with.
///
/// # Errors
/// [`DecodeError`] if the body is too short to have one.
pub fn id_of(body: &[u8]) -> Result<u64, DecodeError> {
    Reader::new("disk request", body).u64()
}

/// The same request or answer under another id.
///
/// # Errors
/// [`DecodeError`] if the body is too short to have one.
pub fn renamed(mut body: Vec<u8>, id: u64) -> Result<Vec<u8>, DecodeError> {
    let have = body.len();
    let Some(place) = body.get_mut(..8) else {
        return Err(DecodeError::Truncated { what: "disk request", need: 8, have });
    };
    place.copy_from_slice(&id.to_le_bytes());
    Ok(body)
}

/// Writes bytes to the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DiskWrite<'a> {
    /// Named in the answer.
    pub id: u64,
    /// Epoch of the fence.
    pub epoch: u64,
    /// First byte.
    pub offset: u64,
    /// The bytes.
    pub data: &'a [u8],
}

impl std::fmt::Debug for DiskWrite<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DiskWrite({} in epoch {}, {}+{})", self.id, self.epoch, self.offset, self.data.len())
    }
}

impl<'a> DiskWrite<'a> {
    /// The body's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(24 + self.data.len());
        b.put_u64(self.id);
        b.put_u64(self.epoch);
        b.put_u64(self.offset);
        b.extend_from_slice(self.data);
        b
    }

    /// Reads a body for a disk of `size` bytes.
    ///
    /// # Errors
    /// [`DecodeError`] if it is short, has no bytes or too many, or is not inside the disk.
    pub fn decode(body: &'a [u8], size: u64) -> Result<DiskWrite<'a>, DecodeError> {
        let mut r = Reader::new(WRITE, body);
        let (id, epoch, offset) = (r.u64()?, r.u64()?, r.u64()?);
        let data = r.rest();
        if data.is_empty() || data.len() > MAX_WRITE {
            return Err(DecodeError::Field { what: WRITE, field: "length", value: data.len() as u64 });
        }
        if offset.checked_add(data.len() as u64).is_none_or(|end| end > size) {
            return Err(DecodeError::Field { what: WRITE, field: "offset", value: offset });
        }
        Ok(DiskWrite { id, epoch, offset, data })
    }
}

/// Makes what was written durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSync {
    /// Named in the answer.
    pub id: u64,
    /// Epoch of the fence.
    pub epoch: u64,
}

impl DiskSync {
    /// The body's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(16);
        b.put_u64(self.id);
        b.put_u64(self.epoch);
        b
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] if it is short or long.
    pub fn decode(body: &[u8]) -> Result<DiskSync, DecodeError> {
        let mut r = Reader::new("disk sync", body);
        let sync = DiskSync { id: r.u64()?, epoch: r.u64()? };
        ended("disk sync", &r).map(|()| sync)
    }
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskDone {
    /// The request's.
    pub id: u64,
    /// Error number of the system, 0 if it went well.
    pub errno: u32,
}

impl DiskDone {
    /// The body's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(12);
        b.put_u64(self.id);
        b.put_u32(self.errno);
        b
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] if it is short or long.
    pub fn decode(body: &[u8]) -> Result<DiskDone, DecodeError> {
        let mut r = Reader::new("disk answer", body);
        let done = DiskDone { id: r.u64()?, errno: r.u32()? };
        ended("disk answer", &r).map(|()| done)
    }
}

fn ended(what: &'static str, r: &Reader<'_>) -> Result<(), DecodeError> {
    match r.rest().len() {
        0 => Ok(()),
        more => Err(DecodeError::Field { what, field: "length", value: more as u64 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn writes_stay_inside_the_disk() {
        let data = [7; 4096];
        for (offset, size, good) in
            [(0, 4096, true), (8192, 12_288, true), (1, 4096, false), (u64::MAX - 4095, u64::MAX, false)]
        {
            let w = DiskWrite { id: 1, epoch: 3, offset, data: &data };
            assert_eq!(DiskWrite::decode(&w.encode(), size).is_ok(), good, "{offset} of {size}");
        }
        let none = DiskWrite { id: 1, epoch: 3, offset: 0, data: &[] };
        assert!(DiskWrite::decode(&none.encode(), 4096).is_err());
        let long = vec![0; MAX_WRITE + 1];
        let long = DiskWrite { id: 1, epoch: 3, offset: 0, data: &long };
        assert!(DiskWrite::decode(&long.encode(), u64::MAX).is_err());
    }

    proptest! {
        #[test]
        fn they_come_back(id: u64, epoch: u64, errno: u32, offset in 0u64..1 << 40, data in proptest::collection::vec(any::<u8>(), 1..99)) {
            let w = DiskWrite { id, epoch, offset, data: &data };
            let bytes = w.encode();
            prop_assert_eq!(DiskWrite::decode(&bytes, 1 << 41), Ok(w));
            let s = DiskSync { id, epoch };
            prop_assert_eq!(DiskSync::decode(&s.encode()), Ok(s));
            let d = DiskDone { id, errno };
            prop_assert_eq!(DiskDone::decode(&d.encode()), Ok(d));
            prop_assert_eq!(id_of(&d.encode()), Ok(id));
            let renamed = renamed(bytes.clone(), 5).unwrap();
            prop_assert_eq!(DiskWrite::decode(&renamed, 1 << 41), Ok(DiskWrite { id: 5, ..w }));
        }

        #[test]
        fn any_bytes_end_in_peace(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = DiskWrite::decode(&bytes, 1 << 30);
            let _ = DiskSync::decode(&bytes);
            let _ = DiskDone::decode(&bytes);
            prop_assert_eq!(id_of(&bytes).is_ok(), bytes.len() >= 8);
            prop_assert_eq!(renamed(bytes.clone(), 1).is_ok(), bytes.len() >= 8);
        }
    }
}
