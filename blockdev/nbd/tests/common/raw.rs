//! The bytes of the protocol, written by hand: a client that may do anything. Shares nothing with the crate.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

pub(crate) const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
pub(crate) const EXPORT_NAME: u32 = 1;
pub(crate) const ABORT: u32 = 2;
pub(crate) const LIST: u32 = 3;
pub(crate) const STARTTLS: u32 = 5;
pub(crate) const INFO: u32 = 6;
pub(crate) const GO: u32 = 7;
pub(crate) const STRUCTURED: u32 = 8;
pub(crate) const LIST_META: u32 = 9;
pub(crate) const SET_META: u32 = 10;
pub(crate) const EXTENDED: u32 = 11;

pub(crate) const ACK: u32 = 1;
pub(crate) const UNSUP: u32 = 0x8000_0001;
pub(crate) const POLICY: u32 = 0x8000_0002;
pub(crate) const INVALID: u32 = 0x8000_0003;
pub(crate) const UNKNOWN: u32 = 0x8000_0006;
pub(crate) const TOO_BIG: u32 = 0x8000_0009;

/// A connection at the level of bytes.
pub(crate) struct Raw<S = UnixStream>(pub(crate) S);

pub(crate) fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    [&IHAVEOPT.to_be_bytes()[..], &option.to_be_bytes(), &len.to_be_bytes(), data].concat()
}

pub(crate) fn string(s: &str) -> Vec<u8> {
    [&u32::try_from(s.len()).unwrap().to_be_bytes()[..], s.as_bytes()].concat()
}

/// Data of INFO and GO that ask for nothing in particular.
pub(crate) fn info(export: &str) -> Vec<u8> {
    [&string(export)[..], &[0, 0]].concat()
}

pub(crate) fn meta(export: &str, queries: &[&str]) -> Vec<u8> {
    let count = u32::try_from(queries.len()).unwrap().to_be_bytes();
    let queries: Vec<u8> = queries.iter().flat_map(|q| string(q)).collect();
    [&string(export)[..], &count, &queries].concat()
}

/// A request with a compact header.
pub(crate) fn request(command: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let head = 0x2560_9513u32.to_be_bytes();
    let (flags, command, len) = (flags.to_be_bytes(), command.to_be_bytes(), len.to_be_bytes());
    [&head[..], &flags, &command, &cookie.to_be_bytes(), &offset.to_be_bytes(), &len].concat()
}

/// A request with an extended header.
pub(crate) fn wide(command: u16, flags: u16, cookie: u64, offset: u64, len: u64) -> Vec<u8> {
    let head = 0x21e4_1c71u32.to_be_bytes();
    let (flags, command, len) = (flags.to_be_bytes(), command.to_be_bytes(), len.to_be_bytes());
    [&head[..], &flags, &command, &cookie.to_be_bytes(), &offset.to_be_bytes(), &len].concat()
}

impl<S: Read + Write> Raw<S> {
    /// After the greetings.
    pub(crate) fn greeted(stream: S) -> Self {
        let mut raw = Raw(stream);
        let greeting = raw.take(18);
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        assert_eq!(&greeting[16..], &[0, 3]);
        raw.send(&3u32.to_be_bytes());
        raw
    }

    /// In the transmission phase, with simple replies.
    pub(crate) fn entered(stream: S, export: &str) -> Self {
        Self::entered_after(stream, export, &[])
    }

    /// In the transmission phase, after these options.
    pub(crate) fn entered_after(stream: S, export: &str, options: &[u32]) -> Self {
        let mut raw = Self::greeted(stream);
        for o in options {
            assert_eq!(raw.ask(*o, &[]), ACK);
        }
        assert_eq!(raw.ask(GO, &info(export)), ACK);
        raw
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub(crate) fn take(&mut self, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    /// Sends an option and collects the replies.
    pub(crate) fn converse(&mut self, number: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.send(&option(number, data));
        let mut replies = Vec::new();
        loop {
            assert_eq!(self.take(8), 0x0003_e889_0455_65a9u64.to_be_bytes());
            assert_eq!(self.u32(), number);
            let (kind, len) = (self.u32(), self.u32());
            replies.push((kind, self.take(len as usize)));
            if kind == ACK || kind >> 31 == 1 {
                return replies;
            }
        }
    }

    /// Sends an option and returns the type of the final reply.
    pub(crate) fn ask(&mut self, number: u32, data: &[u8]) -> u32 {
        self.converse(number, data).last().unwrap().0
    }

    /// Takes a simple reply without data: its error and cookie.
    pub(crate) fn simple(&mut self) -> (u32, u64) {
        assert_eq!(self.u32(), 0x6744_6698);
        (self.u32(), u64::from_be_bytes(self.take(8).try_into().unwrap()))
    }

    /// Takes an extended reply chunk: its type, cookie, offset and payload.
    pub(crate) fn wide(&mut self) -> (u16, u64, u64, Vec<u8>) {
        assert_eq!(self.u32(), 0x6e8a_278c);
        let head = self.take(28);
        let (number, kind) = (|at| u64::from_be_bytes(head[at..at + 8].try_into().unwrap()), [head[2], head[3]]);
        let payload = self.take(usize::try_from(number(20)).unwrap());
        (u16::from_be_bytes(kind), number(4), number(12), payload)
    }

    /// That the server has closed the connection; what it still sent is returned.
    pub(crate) fn assert_closed(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => rest,
            Err(e) if e.kind() == ErrorKind::ConnectionReset => rest,
            // TLS that ends without a word about it: NBD has said goodbye by then.
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => rest,
            Err(e) => panic!("the server did not close: {e}"),
        }
    }
}
