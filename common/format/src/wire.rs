//! Messages between agent and appliance: one connection per volume, the agent dials.
//!
//! ```text
//! offset  size  header of every message
//!      0     4  magic "AIW1"
//!      4     1  type
//!      5     3  zero
//!      8     4  length of the body, at most MAX_BODY
//!     12     4  low half of xxh3-64 of the body; 0 for Data, whose records carry their own checksums
//! ```
//!
//! | type | from | body |
//! |---|---|---|
//! | 1 Hello | agent | oldest and newest version spoken (u16 each), volume id (16), ring id (16), size of the volume (u64), first and next seq held (u64 each), name (string); since version 5: the highest epoch that it was told (u64) |
//! | 2 Welcome | appliance | version chosen (u16), ring id of the last session (16, zero if none), durable seq (u64, at most 2^61), digest of the record at that seq (u64), credit (u64); since version 5: epoch (u64), [`Fence`] (u8) |
//! | 3 Data | agent | records, each a [`crate::record`] header with its payload behind it |
//! | 4 Ack | appliance | durable seq (u64), credit (u64) |
//! | 5 Ping, 6 Pong | both | a number (u64), echoed |
//! | 7 Refuse | both | code (u16), text (string); the connection is closed behind it |
//! | 8 Bye | agent | empty: the end, in order |
//! | 9 HashQuery | agent | since version 2: see [`crate::compare`] |
//! | 10 Hashes | appliance | since version 2: see [`crate::compare`] |
//! | 11 Fill | agent | since version 3: bytes of the ring that are in use, and that it has (u64 each) |
//! | 12 DiskQuery, 14 DiskWrite, 15 DiskSync | appliance | since version 6: see [`crate::failback`] |
//! | 13 DiskHashes, 16 DiskDone | agent | since version 6: see [`crate::failback`] |
//!
//! **Credit** is the total of Data body bytes that the agent may have sent in this session; it only grows.
//! A Refuse may come at once behind a Welcome, whose credit is 0 then: the appliance takes nothing now, but the volume is fenced.
//! **Continuity**: the next record sent is durable seq + 1, or a [`Kind::Gap`](crate::record::Kind::Gap)
//! with any greater seq. The agent compares the Welcome's ring id and digest with what it holds; if they
//! differ, the histories have forked and it starts over with a gap (never in silence).

use crate::codec::{DecodeError, Reader, Writer};
use crate::fence::Fence;
use crate::record::{MAX_NAME, MAX_SEQ};
use xxhash_rust::xxh3::xxh3_64;

/// Newest version of the protocol that this code speaks.
pub const VERSION: u16 = 7;
/// Oldest version of the protocol that this code speaks.
pub const OLDEST_VERSION: u16 = 1;
/// First version with HashQuery and Hashes.
pub const HASH_VERSION: u16 = 2;
/// First version with records that change the size of the volume; before it, the size of the Hello is the only one.
pub const SIZE_VERSION: u16 = 2;
/// First version with Fill.
pub const FILL_VERSION: u16 = 3;
/// First version with notes on points.
pub const NOTE_VERSION: u16 = 4;
/// First version with epochs and fences.
pub const EPOCH_VERSION: u16 = 5;
/// First version with failback through the session.
pub const FAILBACK_VERSION: u16 = 6;
/// First version in which an agent says that it adopts its volume.
pub const ADOPT_VERSION: u16 = 7;
/// First version with Quiet.
pub const QUIET_VERSION: u16 = 7;
/// First four bytes of a message.
pub const MAGIC: u32 = u32::from_le_bytes(*b"AIW1");
/// Size of a message header in bytes.
pub const HEADER_LEN: usize = 16;
/// Longest body: bounds what a peer can make us allocate, and is enough for several longest records.
pub const MAX_BODY: usize = 4 << 20;
/// Longest text in a Refuse.
pub const MAX_TEXT: usize = 1024;

/// Type of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum MessageType {
    /// See [`Hello`].
    Hello = 1,
    /// See [`Welcome`].
    Welcome = 2,
    /// Records.
    Data = 3,
    /// See [`Ack`].
    Ack = 4,
    /// Asks for a Pong.
    Ping = 5,
    /// Answers a Ping.
    Pong = 6,
    /// See [`Refuse`].
    Refuse = 7,
    /// The agent ends the session.
    Bye = 8,
    /// See [`HashQuery`](crate::compare::HashQuery).
    HashQuery = 9,
    /// See [`Hashes`](crate::compare::Hashes).
    Hashes = 10,
    /// See [`Fill`].
    Fill = 11,
    /// See [`crate::failback`].
    DiskQuery = 12,
    /// See [`crate::failback`].
    DiskHashes = 13,
    /// See [`DiskWrite`](crate::failback::DiskWrite).
    DiskWrite = 14,
    /// See [`DiskSync`](crate::failback::DiskSync).
    DiskSync = 15,
    /// See [`DiskDone`](crate::failback::DiskDone).
    DiskDone = 16,
    /// See [`Quiet`].
    Quiet = 17,
}

/// A checked message header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Type of the message.
    pub kind: MessageType,
    /// Length of the body in bytes, at most [`MAX_BODY`].
    pub body_len: usize,
    check: u32,
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is what the format stores")]
fn check_of(body: &[u8]) -> u32 {
    xxh3_64(body) as u32
}

impl Header {
    /// The header before `body`. For Data the caller has the body in pieces and gives its length to
    /// [`Header::data`] instead.
    #[must_use]
    pub fn of(kind: MessageType, body: &[u8]) -> Header {
        Header { kind, body_len: body.len(), check: check_of(body) }
    }

    /// The header before a Data body of `body_len` bytes.
    #[must_use]
    pub const fn data(body_len: usize) -> Header {
        Header { kind: MessageType::Data, body_len, check: 0 }
    }

    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut b = [0; HEADER_LEN];
        b[..4].copy_from_slice(&MAGIC.to_le_bytes());
        b[4] = self.kind as u8;
        let len = u32::try_from(self.body_len).unwrap_or(u32::MAX);
        b[8..12].copy_from_slice(&len.to_le_bytes());
        b[12..].copy_from_slice(&self.check.to_le_bytes());
        b
    }

    /// Checks and reads a header.
    ///
    /// # Errors
    /// [`DecodeError`] for a wrong magic, an unknown type or a body longer than [`MAX_BODY`].
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Header, DecodeError> {
        const WHAT: &str = "message";
        let mut r = Reader::new(WHAT, bytes);
        if r.u32()? != MAGIC {
            return Err(DecodeError::Magic { what: WHAT });
        }
        let (kind, pad, len, check) = (r.u8()?, r.take(3)?, r.u32()?, r.u32()?);
        if pad != [0; 3] {
            return Err(DecodeError::Field { what: WHAT, field: "padding", value: u64::from(pad[0]) });
        }
        let kind = match kind {
            1 => MessageType::Hello,
            2 => MessageType::Welcome,
            3 => MessageType::Data,
            4 => MessageType::Ack,
            5 => MessageType::Ping,
            6 => MessageType::Pong,
            7 => MessageType::Refuse,
            8 => MessageType::Bye,
            9 => MessageType::HashQuery,
            10 => MessageType::Hashes,
            11 => MessageType::Fill,
            12 => MessageType::DiskQuery,
            13 => MessageType::DiskHashes,
            14 => MessageType::DiskWrite,
            15 => MessageType::DiskSync,
            16 => MessageType::DiskDone,
            17 => MessageType::Quiet,
            _ => return Err(DecodeError::Field { what: WHAT, field: "type", value: u64::from(kind) }),
        };
        let body_len = usize::try_from(len).unwrap_or(usize::MAX);
        if body_len > MAX_BODY {
            return Err(DecodeError::Field { what: WHAT, field: "length", value: u64::from(len) });
        }
        Ok(Header { kind, body_len, check })
    }

    /// Checks a body against its header. Data bodies pass: their records carry their own checksums.
    ///
    /// # Errors
    /// [`DecodeError::Checksum`], or [`DecodeError::Truncated`] if the length differs.
    pub fn verify(&self, body: &[u8]) -> Result<(), DecodeError> {
        if body.len() != self.body_len {
            return Err(DecodeError::Truncated { what: "message", need: self.body_len, have: body.len() });
        }
        if self.kind != MessageType::Data && check_of(body) != self.check {
            return Err(DecodeError::Checksum { what: "message" });
        }
        Ok(())
    }
}

/// How full the agent's ring is: what waits for the appliance, and how much more can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// Bytes in use.
    pub used: u64,
    /// Bytes that it has, more than 0.
    pub size: u64,
}

impl Fill {
    /// In sixteenths, rounded down.
    #[must_use]
    pub fn sixteenths(&self) -> u8 {
        let part = u128::from(self.used) * 16 / u128::from(self.size.max(1));
        u8::try_from(part).unwrap_or(16).min(16)
    }

    /// The body's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(16);
        b.put_u64(self.used);
        b.put_u64(self.size);
        b
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] if it is short or long, or uses more than there is.
    pub fn decode(body: &[u8]) -> Result<Fill, DecodeError> {
        const WHAT: &str = "Fill";
        let mut r = Reader::new(WHAT, body);
        let (used, size) = (r.u64()?, r.u64()?);
        r.end()?;
        if size == 0 || used > size {
            return Err(DecodeError::Field { what: WHAT, field: "used", value: used });
        }
        Ok(Fill { used, size })
    }
}

/// A volume that nobody writes to: when its agent looked, no seq behind this one had been given, and every write had got one. So the image of
/// that moment is the one that ends with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quiet {
    /// The last seq that was given.
    pub seq: u64,
    /// When the agent looked, in nanoseconds since 1970, by the clock that gives records their times.
    pub time: u64,
}

impl Quiet {
    /// The body's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(16);
        b.put_u64(self.seq);
        b.put_u64(self.time);
        b
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] if it is short or long.
    pub fn decode(body: &[u8]) -> Result<Quiet, DecodeError> {
        let mut r = Reader::new("Quiet", body);
        let (seq, time) = (r.u64()?, r.u64()?);
        r.end()?;
        Ok(Quiet { seq, time })
    }
}

/// The agent's first message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Oldest version spoken.
    pub oldest: u16,
    /// Newest version spoken.
    pub newest: u16,
    /// The volume's id.
    pub volume: [u8; 16],
    /// Identity of the ring: new whenever a ring is made anew.
    pub ring: [u8; 16],
    /// Size of the volume in bytes.
    pub size: u64,
    /// First seq held in the ring.
    pub first: u64,
    /// The seq that the next write will get.
    pub next: u64,
    /// The volume's name.
    pub name: String,
    /// The highest epoch that the agent was told; 0 from agents before [`EPOCH_VERSION`].
    pub epoch: u64,
    /// The agent takes the place of one that is gone, with another disk, and may come behind a closed fence only; false from agents
    /// before [`ADOPT_VERSION`].
    pub adopts: bool,
}

impl Hello {
    /// The body's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(80 + self.name.len());
        b.put_u16(self.oldest);
        b.put_u16(self.newest);
        b.extend_from_slice(&self.volume);
        b.extend_from_slice(&self.ring);
        b.put_u64(self.size);
        b.put_u64(self.first);
        b.put_u64(self.next);
        b.put_string(&self.name);
        if self.newest >= EPOCH_VERSION {
            b.put_u64(self.epoch);
        }
        if self.newest >= ADOPT_VERSION {
            b.push(u8::from(self.adopts));
        }
        b
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] if it is short or the name is no name. Bytes behind what this version knows are
    /// left alone, so that a newer peer can say more.
    pub fn decode(body: &[u8]) -> Result<Hello, DecodeError> {
        let mut r = Reader::new("hello", body);
        let (oldest, newest) = (r.u16()?, r.u16()?);
        Ok(Hello {
            oldest,
            newest,
            volume: r.array()?,
            ring: r.array()?,
            size: r.u64()?,
            first: r.u64()?,
            next: r.u64()?,
            name: r.string(MAX_NAME)?,
            epoch: if newest >= EPOCH_VERSION { r.u64()? } else { 0 },
            adopts: newest >= ADOPT_VERSION && r.u8()? != 0,
        })
    }
}

/// The appliance's answer to a [`Hello`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Welcome {
    /// Version that both speak from here on.
    pub version: u16,
    /// Ring id of the session that wrote the durable seq; zero if there is no history yet.
    pub ring: [u8; 16],
    /// Everything up to this seq survives a power cut of the appliance; 0 if nothing is there.
    pub durable: u64,
    /// [`Record::digest`](crate::record::Record::digest) at that seq.
    pub digest: u64,
    /// Data body bytes that may be sent.
    pub credit: u64,
    /// Epoch of the volume; 0 from appliances before [`EPOCH_VERSION`].
    pub epoch: u64,
    /// Whether the agent may take writes.
    pub fence: Fence,
}

impl Welcome {
    /// The body's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(42);
        b.put_u16(self.version);
        b.extend_from_slice(&self.ring);
        b.put_u64(self.durable);
        b.put_u64(self.digest);
        b.put_u64(self.credit);
        if self.version >= EPOCH_VERSION {
            b.put_u64(self.epoch);
            b.push(self.fence as u8);
        }
        b
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] if it is short or its seq is above [`MAX_SEQ`], to which the agent's own seqs would have to jump.
    pub fn decode(body: &[u8]) -> Result<Welcome, DecodeError> {
        let mut r = Reader::new("welcome", body);
        let (version, ring, durable) = (r.u16()?, r.array()?, r.u64()?);
        if durable > MAX_SEQ {
            return Err(DecodeError::Field { what: "welcome", field: "durable seq", value: durable });
        }
        let (digest, credit) = (r.u64()?, r.u64()?);
        let (epoch, fence) = match version {
            EPOCH_VERSION.. => (r.u64()?, Fence::of_byte("welcome", r.u8()?)?),
            _ => (0, Fence::Open),
        };
        Ok(Welcome { version, ring, durable, digest, credit, epoch, fence })
    }
}

/// The appliance's progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// Everything up to this seq survives a power cut of the appliance (I5).
    pub durable: u64,
    /// Data body bytes that may be sent in this session, all in all.
    pub credit: u64,
}

impl Ack {
    /// The body's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(16);
        b.put_u64(self.durable);
        b.put_u64(self.credit);
        b
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] if it is short.
    pub fn decode(body: &[u8]) -> Result<Ack, DecodeError> {
        let mut r = Reader::new("ack", body);
        Ok(Ack { durable: r.u64()?, credit: r.u64()? })
    }
}

/// Why a peer ends the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum RefuseCode {
    /// The bytes received are not this protocol.
    Malformed = 1,
    /// No version in common.
    Version = 2,
    /// The volume is not known, not allowed, or has another size.
    Volume = 3,
    /// The records do not continue the history.
    Continuity = 4,
    /// The store has no room: try again later.
    Full = 5,
    /// The store failed for good: somebody must look.
    Failed = 6,
    /// Another session of this volume took over, or the appliance is stopping.
    Superseded = 7,
    /// The volume runs elsewhere, and the agent is too old to be told so.
    Fenced = 8,
    /// A code that this version does not know.
    Unknown = 0xffff,
}

/// Ends the session with a reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refuse {
    /// The reason for programs.
    pub code: RefuseCode,
    /// The reason for people.
    pub text: String,
}

impl Refuse {
    /// The body's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::new();
        b.put_u16(self.code as u16);
        let end = (0..=self.text.len().min(MAX_TEXT)).rev().find(|i| self.text.is_char_boundary(*i));
        b.put_string(&self.text[..end.unwrap_or(0)]);
        b
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] if it is short or its text is not UTF-8.
    pub fn decode(body: &[u8]) -> Result<Refuse, DecodeError> {
        let mut r = Reader::new("refuse", body);
        let code = match r.u16()? {
            1 => RefuseCode::Malformed,
            2 => RefuseCode::Version,
            3 => RefuseCode::Volume,
            4 => RefuseCode::Continuity,
            5 => RefuseCode::Full,
            6 => RefuseCode::Failed,
            7 => RefuseCode::Superseded,
            8 => RefuseCode::Fenced,
            _ => RefuseCode::Unknown,
        };
        Ok(Refuse { code, text: r.string(MAX_TEXT)? })
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
