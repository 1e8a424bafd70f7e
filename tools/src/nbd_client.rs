//! A small NBD client with requests in flight, for restore, the demonstration and the load generator.
//!
//! Written from the protocol document alone and apart from our server's code, so that the load generator tests
//! the server and not an idea that both share. One thread: send up to the wanted depth, then receive.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use thiserror::Error;

const NBDMAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const IHAVEOPT: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const STRUCTURED_REPLY: u32 = 0x668e_33ef;

const OPT_GO: u32 = 7;
const OPT_STRUCTURED: u32 = 8;
const OPT_SET_META: u32 = 10;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_META: u32 = 4;
/// Longest option reply and longest chunk besides data that a sane server sends.
const MAX_SMALL: u32 = 1 << 20;
/// Longest read that this client asks for.
pub const MAX_READ: u32 = 32 << 20;

/// Why the client gave up, or a request failed.
#[derive(Debug, Error)]
pub enum NbdError {
    /// The connection failed or ended.
    #[error("the NBD connection failed: {0}")]
    Io(#[from] io::Error),
    /// The server does not keep to the protocol.
    #[error("the NBD server broke the protocol: {0}")]
    Protocol(String),
    /// The server refused an option.
    #[error("the NBD server refused: {0}")]
    Refused(String),
    /// The address is none.
    #[error("'{0}' is no NBD address: write nbd://HOST[:PORT]/NAME or nbd+unix:///NAME?socket=PATH")]
    Uri(String),
}

fn broke(what: impl Into<String>) -> NbdError {
    NbdError::Protocol(what.into())
}

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    place: Place,
    /// Name of the export.
    pub export: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Unix(PathBuf),
    Tcp(String),
}

fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let hex = [bytes.next()?, bytes.next()?];
            out.push(u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?);
        } else {
            out.push(b);
        }
    }
    String::from_utf8(out).ok()
}

impl std::str::FromStr for Address {
    type Err = NbdError;

    fn from_str(uri: &str) -> Result<Address, NbdError> {
        let bad = || NbdError::Uri(uri.to_owned());
        if let Some(rest) = uri.strip_prefix("nbd+unix:///") {
            let (name, socket) = rest.split_once("?socket=").ok_or_else(bad)?;
            let place = Place::Unix(unescape(socket).ok_or_else(bad)?.into());
            return Ok(Address { place, export: unescape(name).ok_or_else(bad)? });
        }
        let rest = uri.strip_prefix("nbd://").ok_or_else(bad)?;
        let (host, name) = rest.split_once('/').unwrap_or((rest, ""));
        let with_port = host.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
        let host = if with_port { host.to_owned() } else { format!("{host}:10809") };
        Ok(Address { place: Place::Tcp(host), export: unescape(name).ok_or_else(bad)? })
    }
}

impl Address {
    /// Connects.
    ///
    /// # Errors
    /// If the server cannot be reached or refuses the export.
    pub fn connect(&self) -> Result<NbdClient, NbdError> {
        let fd: OwnedFd = match &self.place {
            Place::Unix(path) => UnixStream::connect(path)?.into(),
            Place::Tcp(host) => {
                let stream = TcpStream::connect(host)?;
                stream.set_nodelay(true)?;
                stream.into()
            }
        };
        NbdClient::over(fd, &self.export)
    }
}

/// A command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Command {
    /// Read.
    Read = 0,
    /// Write.
    Write = 1,
    /// Flush.
    Flush = 3,
    /// Trim.
    Trim = 4,
    /// Write zeroes.
    WriteZeroes = 6,
    /// Block status.
    BlockStatus = 7,
}

/// Durable before the answer.
pub const FLAG_FUA: u16 = 1;

/// A piece of block status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusExtent {
    /// Length in bytes.
    pub len: u32,
    /// Reads as zeroes.
    pub zero: bool,
}

/// An answered request.
#[derive(Debug)]
pub struct Answer {
    /// The cookie it was sent with.
    pub cookie: u64,
    /// NBD's error number, 0 if it went well.
    pub errno: u32,
    /// What the server said about the error.
    pub message: String,
    /// The bytes of a read.
    pub data: Vec<u8>,
    /// The extents of a block status.
    pub extents: Vec<StatusExtent>,
}

#[derive(Debug)]
struct Pending {
    offset: u64,
    answer: Answer,
}

/// A connection in transmission.
#[derive(Debug)]
pub struct NbdClient {
    input: io::BufReader<File>,
    output: File,
    size: u64,
    flags: u16,
    meta: Option<u32>,
    pending: HashMap<u64, Pending>,
}

struct Wire<'a> {
    input: &'a mut dyn Read,
    output: &'a mut dyn Write,
}

impl Wire<'_> {
    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut b = [0; N];
        self.input.read_exact(&mut b)?;
        Ok(b)
    }

    fn option(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        let mut b = IHAVEOPT.to_be_bytes().to_vec();
        b.extend_from_slice(&option.to_be_bytes());
        b.extend_from_slice(&u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
        b.extend_from_slice(data);
        self.output.write_all(&b)
    }

    fn reply(&mut self, option: u32) -> Result<(u32, Vec<u8>), NbdError> {
        let (magic, to) = (u64::from_be_bytes(self.bytes()?), u32::from_be_bytes(self.bytes()?));
        let (kind, len) = (u32::from_be_bytes(self.bytes()?), u32::from_be_bytes(self.bytes()?));
        if magic != OPTION_REPLY || to != option || len > MAX_SMALL {
            return Err(broke(format!("a bad reply to option {option}")));
        }
        let mut data = vec![0; len as usize];
        self.input.read_exact(&mut data)?;
        Ok((kind, data))
    }

    fn greet(&mut self) -> Result<(), NbdError> {
        let (magic, newstyle) = (u64::from_be_bytes(self.bytes()?), u64::from_be_bytes(self.bytes()?));
        let flags = u16::from_be_bytes(self.bytes()?);
        if magic != NBDMAGIC || newstyle != IHAVEOPT || flags & 1 == 0 {
            return Err(broke("no fixed newstyle greeting"));
        }
        Ok(self.output.write_all(&u32::from(flags & 3).to_be_bytes())?)
    }

    fn structured(&mut self) -> Result<bool, NbdError> {
        self.option(OPT_STRUCTURED, &[])?;
        Ok(self.reply(OPT_STRUCTURED)?.0 == REP_ACK)
    }

    fn meta(&mut self, name: &[u8], context: &[u8]) -> Result<Option<u32>, NbdError> {
        let len = |text: &[u8]| u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes();
        let b = [&len(name)[..], name, &1u32.to_be_bytes(), &len(context), context].concat();
        self.option(OPT_SET_META, &b)?;
        let mut id = None;
        loop {
            match self.reply(OPT_SET_META)? {
                (REP_META, data) if data.len() >= 4 => {
                    id = Some(u32::from_be_bytes([data[0], data[1], data[2], data[3]]));
                }
                (REP_ACK, _) => return Ok(id),
                _ => return Ok(None),
            }
        }
    }

    fn go(&mut self, name: &[u8]) -> Result<(u64, u16), NbdError> {
        let mut b = u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
        b.extend_from_slice(name);
        b.extend_from_slice(&0u16.to_be_bytes());
        self.option(OPT_GO, &b)?;
        let mut found = None;
        loop {
            match self.reply(OPT_GO)? {
                (REP_INFO, data) if data.len() == 12 && data[..2] == [0, 0] => {
                    let mut size = [0; 8];
                    size.copy_from_slice(&data[2..10]);
                    found = Some((u64::from_be_bytes(size), u16::from_be_bytes([data[10], data[11]])));
                }
                (REP_INFO, _) => {}
                (REP_ACK, _) => return found.ok_or_else(|| broke("no size in the answer to GO")),
                (_, text) => return Err(NbdError::Refused(String::from_utf8_lossy(&text).into_owned())),
            }
        }
    }
}

impl NbdClient {
    /// Negotiates over a connected socket.
    ///
    /// # Errors
    /// If the server refuses the export.
    pub fn over(socket: OwnedFd, export: &str) -> Result<NbdClient, NbdError> {
        let mut output = File::from(socket);
        let mut input = io::BufReader::with_capacity(64 << 10, output.try_clone()?);
        let mut wire = Wire { input: &mut input, output: &mut output };
        wire.greet()?;
        let structured = wire.structured()?;
        let meta = if structured { wire.meta(export.as_bytes(), b"base:allocation")? } else { None };
        let (size, flags) = wire.go(export.as_bytes())?;
        Ok(NbdClient { input, output, size, flags, meta, pending: HashMap::new() })
    }

    /// Size of the export in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Whether writes are refused.
    #[must_use]
    pub const fn read_only(&self) -> bool {
        self.flags & 2 != 0
    }

    /// Requests sent and not answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Sends a request. `data` is the payload of a write; `len` of others.
    ///
    /// # Errors
    /// If the connection fails.
    pub fn send(
        &mut self,
        cookie: u64,
        command: Command,
        flags: u16,
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> Result<(), NbdError> {
        let mut header = [0; 28];
        header[..4].copy_from_slice(&REQUEST.to_be_bytes());
        header[4..6].copy_from_slice(&flags.to_be_bytes());
        header[6..8].copy_from_slice(&(command as u16).to_be_bytes());
        header[8..16].copy_from_slice(&cookie.to_be_bytes());
        header[16..24].copy_from_slice(&offset.to_be_bytes());
        header[24..].copy_from_slice(&len.to_be_bytes());
        let room = if command == Command::Read { len.min(MAX_READ) as usize } else { 0 };
        let answer = Answer { cookie, errno: 0, message: String::new(), data: vec![0; room], extents: Vec::new() };
        self.pending.insert(cookie, Pending { offset, answer });
        if data.is_empty() {
            return Ok(self.output.write_all(&header)?);
        }
        let mut message = Vec::with_capacity(header.len() + data.len());
        message.extend_from_slice(&header);
        message.extend_from_slice(data);
        Ok(self.output.write_all(&message)?)
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut b = [0; N];
        self.input.read_exact(&mut b)?;
        Ok(b)
    }

    /// Waits until a request is answered.
    ///
    /// # Errors
    /// If the connection fails. A failed request is an answer.
    pub fn receive(&mut self) -> Result<Answer, NbdError> {
        loop {
            let (cookie, done) = match u32::from_be_bytes(self.bytes()?) {
                SIMPLE_REPLY => self.simple()?,
                STRUCTURED_REPLY => self.chunk()?,
                other => return Err(broke(format!("reply magic {other:#x}"))),
            };
            if done && let Some(p) = self.pending.remove(&cookie) {
                return Ok(p.answer);
            }
        }
    }

    fn pending(pending: &mut HashMap<u64, Pending>, cookie: u64) -> Result<&mut Pending, NbdError> {
        pending.get_mut(&cookie).ok_or_else(|| broke(format!("an answer to request {cookie}, which was not sent")))
    }

    fn simple(&mut self) -> Result<(u64, bool), NbdError> {
        let (errno, cookie) = (u32::from_be_bytes(self.bytes()?), u64::from_be_bytes(self.bytes()?));
        let p = Self::pending(&mut self.pending, cookie)?;
        p.answer.errno = errno;
        if errno == 0 {
            self.input.read_exact(&mut p.answer.data)?;
        }
        Ok((cookie, true))
    }

    fn chunk(&mut self) -> Result<(u64, bool), NbdError> {
        let (flags, kind) = (u16::from_be_bytes(self.bytes()?), u16::from_be_bytes(self.bytes()?));
        let (cookie, len) = (u64::from_be_bytes(self.bytes()?), u32::from_be_bytes(self.bytes()?));
        match kind {
            1 if len > 8 => {
                let at = u64::from_be_bytes(self.bytes()?);
                let p = Self::pending(&mut self.pending, cookie)?;
                self.input.read_exact(Self::part(p, at, u64::from(len) - 8)?)?;
            }
            2 if len == 12 => {
                let (at, hole) = (u64::from_be_bytes(self.bytes()?), u32::from_be_bytes(self.bytes()?));
                let p = Self::pending(&mut self.pending, cookie)?;
                Self::part(p, at, u64::from(hole))?.fill(0);
            }
            _ if len > MAX_SMALL => return Err(broke(format!("a chunk of kind {kind} with {len} bytes"))),
            _ => {
                let mut body = vec![0; len as usize];
                self.input.read_exact(&mut body)?;
                Self::small_chunk(Self::pending(&mut self.pending, cookie)?, self.meta, kind, &body)?;
            }
        }
        Ok((cookie, flags & 1 != 0))
    }

    fn part(p: &mut Pending, at: u64, len: u64) -> Result<&mut [u8], NbdError> {
        let start = at.checked_sub(p.offset).and_then(|s| usize::try_from(s).ok());
        let range = start.zip(usize::try_from(len).ok()).and_then(|(s, l)| Some(s..s.checked_add(l)?));
        range.and_then(|r| p.answer.data.get_mut(r)).ok_or_else(|| broke("data outside the range that was asked for"))
    }

    fn small_chunk(p: &mut Pending, meta: Option<u32>, kind: u16, body: &[u8]) -> Result<(), NbdError> {
        let word = |at: usize| Some(u32::from_be_bytes(body.get(at..at + 4)?.try_into().ok()?));
        match kind {
            0 => {}
            5 if word(0) == meta && body.len() % 8 == 4 => {
                for at in (4..body.len()).step_by(8) {
                    if let (Some(len), Some(flags)) = (word(at), word(at + 4)) {
                        p.answer.extents.push(StatusExtent { len, zero: flags & 2 != 0 });
                    }
                }
            }
            kind if kind >= 0x8000 => {
                p.answer.errno = word(0).filter(|e| *e != 0).ok_or_else(|| broke("an error without its number"))?;
                let text = body.get(6..).unwrap_or_default();
                p.answer.message = String::from_utf8_lossy(text).into_owned();
            }
            _ => return Err(broke(format!("a chunk of kind {kind}"))),
        }
        Ok(())
    }

    /// Sends one request and waits for its answer; nothing else may be in flight. An error of the server is an
    /// error here.
    ///
    /// # Errors
    /// If the connection or the request fails.
    pub fn call(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> Result<Answer, NbdError> {
        self.send(0, command, flags, offset, len, data)?;
        let answer = self.receive()?;
        answer.check(command, offset)?;
        Ok(answer)
    }

    /// The ranges (offset, length) that do not read as zeroes, in order, neighbours joined. All of it, if the
    /// server has no block status.
    ///
    /// # Errors
    /// If the connection or the request fails.
    pub fn data_ranges(&mut self) -> Result<Vec<(u64, u64)>, NbdError> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let mut at = 0;
        while at < self.size {
            let rest = self.size - at;
            let ask = u32::try_from(rest.min(1 << 30)).unwrap_or(1 << 30);
            let extents = match self.meta {
                Some(_) => self.call(Command::BlockStatus, 0, at, ask, &[])?.extents,
                None => vec![StatusExtent { len: ask, zero: false }],
            };
            if extents.iter().all(|e| e.len == 0) {
                return Err(broke("a block status without progress"));
            }
            for extent in extents {
                let len = u64::from(extent.len).min(self.size - at);
                match ranges.last_mut() {
                    _ if extent.zero || len == 0 => {}
                    Some((start, run)) if *start + *run == at => *run += len,
                    _ => ranges.push((at, len)),
                }
                at += len;
            }
        }
        Ok(ranges)
    }

    /// Ends the session as the protocol wants it.
    pub fn disconnect(mut self) {
        let mut header = [0; 28];
        header[..4].copy_from_slice(&REQUEST.to_be_bytes());
        header[7] = 2;
        drop(self.output.write_all(&header));
    }
}

impl Answer {
    /// The answer's error as an error.
    ///
    /// # Errors
    /// If the server answered with one.
    pub fn check(&self, command: Command, offset: u64) -> Result<(), NbdError> {
        if self.errno == 0 {
            return Ok(());
        }
        let text = if self.message.is_empty() { String::new() } else { format!(": {}", self.message) };
        Err(io::Error::other(format!("{command:?} at byte {offset}: errno {}{text}", self.errno)).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let a: Address = "nbd+unix:///my%20disk?socket=/run/a%2fb.sock".parse().unwrap();
        assert_eq!(a, Address { place: Place::Unix("/run/a/b.sock".into()), export: "my disk".to_owned() });
        let a: Address = "nbd://[::1]:7/x".parse().unwrap();
        assert_eq!(a, Address { place: Place::Tcp("[::1]:7".to_owned()), export: "x".to_owned() });
        let a: Address = "nbd://host".parse().unwrap();
        assert_eq!(a, Address { place: Place::Tcp("host:10809".to_owned()), export: String::new() });
        for bad in ["", "http://x", "nbd+unix:///x", "nbd+unix:///x%2?socket=/a"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
