//! Messages between mgmt and those that dial out to it, on port 20004.
//!
//! They travel inside TLS 1.3, which keeps them whole and secret, so a message is only framed: a header of 8 bytes
//! (kind, flags that are 0 now, length of the body), then the body. Numbers are little-endian.
//!
//! Two conversations share the port, told apart by ALPN before anything else is said:
//!
//! * [`ALPN_JOIN`]: the client has no certificate. It sends one [`Join`], and the answer is [`Joined`] or [`Refuse`].
//! * [`ALPN_SESSION`]: the client has shown its certificate. It sends [`Hello`], the answer is [`Welcome`] or [`Refuse`];
//!   from then on both sides send what they have to say, and a [`Kind::Ping`] when there was nothing for a while.
//!
//! From version 2 on a member tells mgmt how it is ([`Kind::Report`]), and mgmt asks it what only the member can know
//! ([`Kind::Ask`], [`Kind::Answer`]). What these three carry is JSON, of the same shapes as `--json` prints: it is for people and for
//! the catalogue, readers leave out fields that they do not know, and nothing of the write path depends on it.
//!
//! Kinds from [`FIRST_GROUP_KIND`] on are those of barriers ([`group`]); versions before 3 have none of them. Versions are agreed
//! on in Hello and Welcome, so a kind that is not known is an error, never skipped.

pub mod group;

use crate::codec::{DecodeError, Reader, Writer};

/// Newest version spoken.
pub const VERSION: u16 = 3;
/// The version from which on members report, and are asked.
pub const REPORTS: u16 = 2;
/// First version with barriers.
pub const GROUPS_SINCE: u16 = 3;
/// Oldest version spoken.
pub const OLDEST_VERSION: u16 = 1;
/// Where mgmt listens if nothing else is said.
pub const DEFAULT_PORT: u16 = 20004;
/// The protocol of those that have no certificate yet.
pub const ALPN_JOIN: &[u8] = b"afterimage-join/1";
/// The protocol of those that have one.
pub const ALPN_SESSION: &[u8] = b"afterimage-coordination/1";
/// Bytes of a header.
pub const HEADER_LEN: usize = 8;
/// First of the kinds of barriers.
pub const FIRST_GROUP_KIND: u16 = 0x100;
/// Longest body: a list of revoked certificates.
pub const MAX_BODY: usize = 1 << 20;
/// Longest body before the peer is known.
pub const MAX_FIRST_BODY: usize = 8 << 10;
/// Longest certificate or request.
pub const MAX_DER: usize = 4096;
/// Longest text, in bytes.
pub const MAX_TEXT: usize = 512;
/// Longest serial number of a certificate (RFC 5280).
pub const MAX_SERIAL: usize = 20;
/// Most serial numbers in one list: they fit [`MAX_BODY`].
pub const MAX_REVOKED: usize = 40_000;

/// The kind of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// [`Hello`], to mgmt.
    Hello = 1,
    /// [`Welcome`], from mgmt.
    Welcome = 2,
    /// 8 bytes, to be sent back; either side.
    Ping = 3,
    /// The answer to it.
    Pong = 4,
    /// A request for a certificate with a new key (PKCS #10, DER), to mgmt.
    Renew = 5,
    /// The certificate (X.509, DER), from mgmt.
    Renewed = 6,
    /// [`Revocations`], from mgmt.
    Revocations = 7,
    /// The number of the list that counts now, to mgmt.
    Applied = 8,
    /// [`Refuse`], either side; the connection ends.
    Refuse = 9,
    /// The connection ends in order.
    Bye = 10,
    /// [`Join`], to mgmt.
    Join = 11,
    /// [`Joined`], from mgmt.
    Joined = 12,
    /// How the member is, JSON, to mgmt.
    Report = 13,
    /// [`Asked`], from mgmt.
    Ask = 14,
    /// [`Asked`] with the number of the question, to mgmt.
    Answer = 15,
    /// [`group::Prepare`], from mgmt.
    Prepare = 0x100,
    /// [`group::Held`], to mgmt.
    Held = 0x101,
    /// [`group::NotHeld`], to mgmt.
    NotHeld = 0x102,
    /// [`group::Named`], from mgmt.
    Release = 0x103,
    /// [`group::Released`], to mgmt.
    Released = 0x104,
    /// [`group::Held`], from mgmt: markers to be watched.
    Watch = 0x105,
    /// [`group::Settled`], to mgmt.
    Settled = 0x106,
}

impl Kind {
    const ALL: [Kind; 22] = [
        Kind::Hello,
        Kind::Welcome,
        Kind::Ping,
        Kind::Pong,
        Kind::Renew,
        Kind::Renewed,
        Kind::Revocations,
        Kind::Applied,
        Kind::Refuse,
        Kind::Bye,
        Kind::Join,
        Kind::Joined,
        Kind::Report,
        Kind::Ask,
        Kind::Answer,
        Kind::Prepare,
        Kind::Held,
        Kind::NotHeld,
        Kind::Release,
        Kind::Released,
        Kind::Watch,
        Kind::Settled,
    ];

    /// Whether it is one of barriers, of which versions before [`GROUPS_SINCE`] know nothing.
    #[must_use]
    pub const fn is_of_groups(self) -> bool {
        self as u16 >= FIRST_GROUP_KIND
    }
}

/// What stands before a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The kind of message.
    pub kind: Kind,
    /// Bytes of its body.
    pub len: usize,
}

fn field(field: &'static str, value: u64) -> DecodeError {
    DecodeError::Field { what: "coordination message", field, value }
}

impl Header {
    /// Reads a header. A body longer than `most` is refused.
    ///
    /// # Errors
    /// [`DecodeError::Field`] names what is impossible.
    pub fn decode(bytes: &[u8; HEADER_LEN], most: usize) -> Result<Header, DecodeError> {
        let mut r = Reader::new("coordination message", bytes);
        let (kind, flags, len) = (r.u16()?, r.u16()?, r.u32()?);
        let known = Kind::ALL.into_iter().find(|k| *k as u16 == kind).ok_or_else(|| field("kind", kind.into()))?;
        if flags != 0 {
            return Err(field("flags", flags.into()));
        }
        match usize::try_from(len) {
            Ok(n) if n <= most => Ok(Header { kind: known, len: n }),
            _ => Err(field("length", len.into())),
        }
    }
}

/// A whole message.
#[must_use]
pub fn message(kind: Kind, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_LEN + body.len());
    out.put_u16(kind as u16);
    out.put_u16(0);
    out.put_u32(u32::try_from(body.len()).unwrap_or(u32::MAX));
    out.extend_from_slice(body);
    out
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.extend_from_slice(bytes);
}

fn take_bytes<'a>(r: &mut Reader<'a>, name: &'static str, most: usize) -> Result<&'a [u8], DecodeError> {
    let len = r.u32()?;
    match usize::try_from(len) {
        Ok(n) if n <= most => r.take(n),
        _ => Err(field(name, len.into())),
    }
}

/// At most so many bytes of a text, cut at a character.
fn cut(text: &str) -> &str {
    let end = (0..=text.len().min(MAX_TEXT)).rev().find(|i| text.is_char_boundary(*i));
    &text[..end.unwrap_or(0)]
}

/// The first message of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Oldest version spoken.
    pub oldest: u16,
    /// Newest version spoken.
    pub newest: u16,
    /// Number of the newest list of revocations that the peer has; 0 for none.
    pub revocations: u64,
    /// Version of its program, for people.
    pub program: String,
}

impl Hello {
    /// The body's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::new();
        b.put_u16(self.oldest);
        b.put_u16(self.newest);
        b.put_u64(self.revocations);
        b.put_string(cut(&self.program));
        b
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] if it is not one.
    pub fn decode(body: &[u8]) -> Result<Hello, DecodeError> {
        let mut r = Reader::new("coordination hello", body);
        let hello = Hello { oldest: r.u16()?, newest: r.u16()?, revocations: r.u64()?, program: r.string(MAX_TEXT)? };
        r.end()?;
        Ok(hello)
    }
}

/// The answer to [`Hello`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Welcome {
    /// The version to be spoken.
    pub version: u16,
    /// A Ping is due after so many milliseconds without a word; after three times as many the peer is gone.
    pub keep_alive_ms: u32,
    /// The clock of mgmt, nanoseconds since 1970.
    pub time: u64,
}

impl Welcome {
    /// The body's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::new();
        b.put_u16(self.version);
        b.put_u32(self.keep_alive_ms);
        b.put_u64(self.time);
        b
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] if it is not one.
    pub fn decode(body: &[u8]) -> Result<Welcome, DecodeError> {
        let mut r = Reader::new("coordination welcome", body);
        let welcome = Welcome { version: r.u16()?, keep_alive_ms: r.u32()?, time: r.u64()? };
        if !(100..=600_000).contains(&welcome.keep_alive_ms) {
            return Err(field("keep-alive", welcome.keep_alive_ms.into()));
        }
        r.end()?;
        Ok(welcome)
    }
}

/// All certificates that count no more though they have not expired.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Revocations {
    /// Grows with every change of the list.
    pub number: u64,
    /// Serial numbers, each of 1 to [`MAX_SERIAL`] bytes.
    pub serials: Vec<Vec<u8>>,
}

impl Revocations {
    /// The body's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::new();
        b.put_u64(self.number);
        b.put_u32(u32::try_from(self.serials.len()).unwrap_or(u32::MAX));
        for serial in &self.serials {
            b.push(u8::try_from(serial.len()).unwrap_or(u8::MAX));
            b.extend_from_slice(serial);
        }
        b
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] if it is not one.
    pub fn decode(body: &[u8]) -> Result<Revocations, DecodeError> {
        let mut r = Reader::new("revocations", body);
        let (number, count) = (r.u64()?, r.u32()?);
        if count as usize > MAX_REVOKED {
            return Err(field("count", count.into()));
        }
        let mut serials = Vec::new();
        for _ in 0..count {
            let len = usize::from(r.u8()?);
            if len == 0 || len > MAX_SERIAL {
                return Err(field("length of a serial number", len as u64));
            }
            serials.push(r.take(len)?.to_vec());
        }
        r.end()?;
        Ok(Revocations { number, serials })
    }
}

/// Asks for the first certificate.
#[derive(Clone, PartialEq, Eq)]
pub struct Join {
    /// The secret of the token.
    pub secret: [u8; 32],
    /// What the peer wants to be; the token must be for the same.
    pub role: u8,
    /// The request (PKCS #10, DER). Only its key is looked at.
    pub request: Vec<u8>,
    /// The host's name, for people, and for the machine if the token names none.
    pub host: String,
}

impl std::fmt::Debug for Join {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Join(role {}, host {:?})", self.role, self.host)
    }
}

impl Join {
    /// The body's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = self.secret.to_vec();
        b.push(self.role);
        put_bytes(&mut b, &self.request);
        b.put_string(cut(&self.host));
        b
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] if it is not one.
    pub fn decode(body: &[u8]) -> Result<Join, DecodeError> {
        let mut r = Reader::new("join", body);
        let (secret, role) = (r.array()?, r.u8()?);
        let request = take_bytes(&mut r, "length of the request", MAX_DER)?.to_vec();
        let join = Join { secret, role, request, host: r.string(MAX_TEXT)? };
        r.end()?;
        Ok(join)
    }
}

/// The first certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// The certificate (X.509, DER).
    pub certificate: Vec<u8>,
    /// The name of the machine or appliance.
    pub name: String,
}

impl Joined {
    /// The body's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::new();
        put_bytes(&mut b, &self.certificate);
        b.put_string(cut(&self.name));
        b
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] if it is not one.
    pub fn decode(body: &[u8]) -> Result<Joined, DecodeError> {
        let mut r = Reader::new("joined", body);
        let certificate = take_bytes(&mut r, "length of the certificate", MAX_DER)?.to_vec();
        let joined = Joined { certificate, name: r.string(MAX_TEXT)? };
        r.end()?;
        Ok(joined)
    }
}

/// A question of mgmt, or the answer to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The question's number, which the answer bears, too.
    pub number: u64,
    /// What is asked or answered, JSON.
    pub json: Vec<u8>,
}

impl Asked {
    /// The body's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(8 + self.json.len());
        b.put_u64(self.number);
        b.extend_from_slice(&self.json);
        b
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] if it is not one.
    pub fn decode(body: &[u8]) -> Result<Asked, DecodeError> {
        let number = Reader::new("question", body).u64()?;
        Ok(Asked { number, json: body[8..].to_vec() })
    }
}

/// Why a conversation ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refuse {
    /// The reason, for people.
    pub text: String,
}

impl Refuse {
    /// The body's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::new();
        b.put_string(cut(&self.text));
        b
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] if it is not one.
    pub fn decode(body: &[u8]) -> Result<Refuse, DecodeError> {
        let mut r = Reader::new("refuse", body);
        let refuse = Refuse { text: r.string(MAX_TEXT)? };
        r.end()?;
        Ok(refuse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bodies_come_back(secret: [u8; 32], number: u64, der in prop::collection::vec(any::<u8>(), 0..300),
                            serials in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..=20), 0..20), text in ".{0,60}") {
            let hello = Hello { oldest: 1, newest: 7, revocations: number, program: text.clone() };
            prop_assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
            let welcome = Welcome { version: 1, keep_alive_ms: 5000, time: number };
            prop_assert_eq!(Welcome::decode(&welcome.encode()), Ok(welcome));
            let list = Revocations { number, serials };
            prop_assert_eq!(Revocations::decode(&list.encode()), Ok(list));
            let join = Join { secret, role: 1, request: der.clone(), host: text.clone() };
            prop_assert_eq!(Join::decode(&join.encode()), Ok(join));
            let joined = Joined { certificate: der, name: text.clone() };
            prop_assert_eq!(Joined::decode(&joined.encode()), Ok(joined));
            let asked = Asked { number, json: text.clone().into_bytes() };
            prop_assert_eq!(Asked::decode(&asked.encode()), Ok(asked));
            let refuse = Refuse { text };
            prop_assert_eq!(Refuse::decode(&refuse.encode()), Ok(refuse));
        }

        #[test]
        fn any_bytes_end_in_peace(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (Hello::decode(&bytes), Welcome::decode(&bytes), Revocations::decode(&bytes));
            let _ = (Join::decode(&bytes), Joined::decode(&bytes), Refuse::decode(&bytes), Asked::decode(&bytes));
        }
    }

    #[test]
    fn the_bytes_stay_what_they_are() {
        assert_eq!(message(Kind::Ping, &[1, 2]), [3, 0, 0, 0, 2, 0, 0, 0, 1, 2]);
        let hello = Hello { oldest: 1, newest: 2, revocations: 3, program: "x".into() };
        assert_eq!(hello.encode(), [1, 0, 2, 0, 3, 0, 0, 0, 0, 0, 0, 0, 1, 0, b'x']);
    }

    #[test]
    fn lengths_and_kinds_are_checked_before_anything_is_taken() {
        let header = |kind: u16, flags: u16, len: u32| {
            let mut b = Vec::new();
            b.put_u16(kind);
            b.put_u16(flags);
            b.put_u32(len);
            Header::decode(b.as_slice().try_into().expect("8 bytes"), MAX_FIRST_BODY)
        };
        assert_eq!(header(11, 0, 100), Ok(Header { kind: Kind::Join, len: 100 }));
        assert!(header(11, 1, 100).is_err() && header(11, 0, u32::MAX).is_err());
        assert!(header(0, 0, 0).is_err() && header(16, 0, 0).is_err() && header(FIRST_GROUP_KIND + 7, 0, 0).is_err());
        let mut many = Revocations::default().encode();
        many[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Revocations::decode(&many).is_err());
    }
}
