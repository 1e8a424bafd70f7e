//! The bytes exchanged with the kernel over generic netlink, as `linux/netlink.h`, `linux/genetlink.h` and
//! `linux/nbd-netlink.h` have them: a header of 16 bytes, one of 4, attributes. All numbers are in the processor's byte order.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | length of the message |
//! | 4 | 2 | family (or what kind of answer) |
//! | 6 | 2 | flags |
//! | 8 | 4 | number of the message |
//! | 12 | 4 | the sender |
//! | 16 | 1 | command |
//! | 17 | 1 | version |
//! | 20 | .. | attributes: length (2), kind (2), value, padded to 4 bytes |

/// What finds out the number of a family.
pub(super) const CONTROL: u16 = 0x10;
/// Commands and attributes of [`CONTROL`].
pub(super) mod control {
    pub(in super::super) const GET_FAMILY: u8 = 3;
    pub(in super::super) const FAMILY_ID: u16 = 1;
    pub(in super::super) const FAMILY_NAME: u16 = 2;
}

/// Commands of the family `nbd`.
pub(super) mod command {
    pub(in super::super) const CONNECT: u8 = 1;
    pub(in super::super) const DISCONNECT: u8 = 2;
    pub(in super::super) const RECONFIGURE: u8 = 3;
}

/// Attributes of the family `nbd`.
pub(super) mod attribute {
    /// u32: N of `/dev/nbdN`.
    pub(in super::super) const INDEX: u16 = 1;
    /// u64.
    pub(in super::super) const SIZE_BYTES: u16 = 2;
    /// u64.
    pub(in super::super) const BLOCK_SIZE_BYTES: u16 = 3;
    /// u64, seconds: a request that is not answered for so long is sent again, and its connection given up.
    pub(in super::super) const TIMEOUT: u16 = 4;
    /// u64: the transmission flags.
    pub(in super::super) const SERVER_FLAGS: u16 = 5;
    /// Nested: [`SOCKET`]s.
    pub(in super::super) const SOCKETS: u16 = 7;
    /// u64, seconds: how long requests wait for a connection before they fail.
    pub(in super::super) const DEAD_CONN_TIMEOUT: u16 = 8;
    /// Text with a zero at its end, which the kernel keeps and shows as `/sys/block/nbdN/backend` (Linux 5.14 and later).
    pub(in super::super) const BACKEND: u16 = 10;
    /// Nested in [`SOCKETS`]: a [`SOCKET_FD`].
    pub(in super::super) const SOCKET: u16 = 1;
    /// u32: a file descriptor.
    pub(in super::super) const SOCKET_FD: u16 = 1;
}

const REQUEST_AND_ACK: u16 = 1 | 4;
const NESTED: u16 = 1 << 15;
const ERROR: u16 = 2;
const HEADER: usize = 16;
const HEADERS: usize = 20;
/// More than any message to or from the kernel has here.
pub(super) const MOST: usize = 8192;

/// A message that is being put together.
pub(super) struct Message(Vec<u8>);

impl Message {
    pub(super) fn new(family: u16, command: u8, number: u32) -> Message {
        let mut bytes = vec![0; HEADERS];
        bytes[4..6].copy_from_slice(&family.to_ne_bytes());
        bytes[6..8].copy_from_slice(&REQUEST_AND_ACK.to_ne_bytes());
        bytes[8..12].copy_from_slice(&number.to_ne_bytes());
        bytes[16] = command;
        bytes[17] = 1;
        Message(bytes)
    }

    fn attribute(mut self, kind: u16, fill: impl FnOnce(Message) -> Message) -> Message {
        let start = self.0.len();
        self.0.extend([0; 4]);
        self = fill(self);
        // No message here is nearly as long.
        let len = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.0[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn bytes(self, kind: u16, value: &[u8]) -> Message {
        self.attribute(kind, |mut m| {
            m.0.extend(value);
            m
        })
    }

    pub(super) fn u32(self, kind: u16, value: u32) -> Message {
        self.bytes(kind, &value.to_ne_bytes())
    }

    pub(super) fn u64(self, kind: u16, value: u64) -> Message {
        self.bytes(kind, &value.to_ne_bytes())
    }

    pub(super) fn text(self, kind: u16, value: &str) -> Message {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    pub(super) fn nested(self, kind: u16, fill: impl FnOnce(Message) -> Message) -> Message {
        self.attribute(kind | NESTED, fill)
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        let len = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[0..4].copy_from_slice(&len.to_ne_bytes());
        self.0
    }
}

/// What the kernel says to a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer<'a> {
    /// The end: how it went, as an error number, 0 for well.
    End(i32),
    /// Attributes, before the end.
    Attributes(&'a [u8]),
}

fn at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset + N)?.try_into().ok()
}

/// The answers in a datagram to the message of this number; what makes no sense ends them.
pub(super) fn answers(mut bytes: &[u8], number: u32) -> Vec<Answer<'_>> {
    let mut out = Vec::new();
    while let (Some(len), Some(kind), Some(of)) = (at(bytes, 0), at(bytes, 4), at(bytes, 8)) {
        let len = u32::from_ne_bytes(len) as usize;
        let Some(message) = bytes.get(..len).filter(|m| m.len() >= HEADER) else { break };
        if u32::from_ne_bytes(of) == number {
            if u16::from_ne_bytes(kind) == ERROR {
                let Some(errno) = at(message, HEADER) else { break };
                out.push(Answer::End(i32::from_ne_bytes(errno).saturating_neg()));
            } else {
                out.push(Answer::Attributes(message.get(HEADERS..).unwrap_or_default()));
            }
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    out
}

/// The value of the first attribute of this kind.
pub(super) fn find(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(u16::from_ne_bytes(at(bytes, 0)?));
        let found = u16::from_ne_bytes(at(bytes, 2)?) & !NESTED;
        let value = bytes.get(4..len)?;
        if found == kind {
            return Some(value);
        }
        bytes = bytes.get(len.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_what_the_kernel_reads() {
        let message = Message::new(0x1d, command::RECONFIGURE, 7)
            .u32(attribute::INDEX, 5)
            .text(attribute::BACKEND, "ab")
            .nested(attribute::SOCKETS, |m| m.nested(attribute::SOCKET, |m| m.u32(attribute::SOCKET_FD, 9)))
            .finish();
        let mut expected = vec![52, 0, 0, 0, 0x1d, 0, 5, 0, 7, 0, 0, 0, 0, 0, 0, 0, 3, 1, 0, 0];
        expected.extend([8, 0, 1, 0, 5, 0, 0, 0]);
        expected.extend([7, 0, 10, 0, b'a', b'b', 0, 0]);
        expected.extend([16, 0, 7, 0x80, 12, 0, 1, 0x80, 8, 0, 1, 0, 9, 0, 0, 0]);
        assert_eq!(message, expected);
        let inner = find(&message[HEADERS..], attribute::SOCKETS).unwrap();
        assert_eq!(find(find(inner, attribute::SOCKET).unwrap(), attribute::SOCKET_FD), Some(&[9, 0, 0, 0][..]));
        assert_eq!(find(&message[HEADERS..], attribute::TIMEOUT), None);
    }

    #[test]
    fn answers_of_others_and_garbage_are_none() {
        let mut ack = vec![36, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0];
        ack.extend((-22i32).to_ne_bytes());
        ack.resize(36, 0);
        assert_eq!(answers(&ack, 7), [Answer::End(22)]);
        assert_eq!(answers(&ack, 8), []);
        let family = Message::new(CONTROL, 1, 7).u32(control::FAMILY_ID, 29).finish();
        let both = [family.clone(), ack.clone()].concat();
        assert_eq!(answers(&both, 7), [Answer::Attributes(&family[HEADERS..]), Answer::End(22)]);
        for cut in 0..ack.len() {
            assert_eq!(answers(&ack[..cut], 7), [], "{cut}");
        }
        for len in [0, 3, 15] {
            let mut bad = ack.clone();
            bad[0] = len;
            assert_eq!(answers(&bad, 7), [], "{len}");
        }
        for bad in [&[][..], &[0, 0, 0, 0], &[3, 0, 1, 0], &[9, 0, 1, 0, 0]] {
            assert_eq!(find(bad, 1), None, "{bad:?}");
        }
    }
}
