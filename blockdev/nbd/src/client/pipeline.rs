//! Many requests in flight: a half that sends and a half that receives, usable from two threads.

use super::stream::Stream;
use super::{ClientError, ExportInfo};
use crate::proto::{
    EXTENDED_REPLY_MAGIC, Header, Mode, Reader, SIMPLE_REPLY_MAGIC, STATE_HOLE, STATE_ZERO, STRUCTURED_REPLY_MAGIC,
    chunk, cmd, command_flag,
};
use afterimage_base::block::Extent;
use std::collections::HashMap;
use std::io::{self, BufReader, IoSlice, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// Requests are gathered up to so many bytes before they are sent without being asked to.
const GATHER: usize = 256 << 10;

/// Received at once.
const RECEIVE: usize = 256 << 10;

/// Longest block status the client believes: the protocol advises servers not to send more than 2^20 extents.
const MAX_STATUS: u64 = 8 + (16 << 20);

/// Longest error chunk: a string, an offset and the little around them.
const MAX_ERROR: u64 = 4096 + 14;

/// A request, as a client makes it. Offsets and lengths are in bytes.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "the fields are what their names say, as in the protocol")]
pub enum Command<'a> {
    Read { offset: u64, len: u32 },
    Write { offset: u64, data: &'a [u8], fua: bool },
    Flush,
    Trim { offset: u64, len: u64, fua: bool },
    WriteZeroes { offset: u64, len: u64, fua: bool, no_hole: bool, fast: bool },
    Cache { offset: u64, len: u64 },
    BlockStatus { offset: u64, len: u64, one: bool },
}

impl<'a> Command<'a> {
    fn parts(&self, mode: Mode) -> (u16, u16, u64, u64, &'a [u8]) {
        let flag = |on: bool, flag: u16| if on { flag } else { 0 };
        let fua = |on: bool| flag(on, command_flag::FUA);
        match *self {
            Self::Read { offset, len } => (cmd::READ, 0, offset, len.into(), &[]),
            Self::Write { offset, data, fua: f } => {
                let payload = flag(mode == Mode::Extended, command_flag::PAYLOAD_LEN);
                (cmd::WRITE, fua(f) | payload, offset, data.len() as u64, data)
            }
            Self::Flush => (cmd::FLUSH, 0, 0, 0, &[]),
            Self::Trim { offset, len, fua: f } => (cmd::TRIM, fua(f), offset, len, &[]),
            Self::WriteZeroes { offset, len, fua: f, no_hole, fast } => {
                let flags = fua(f) | flag(no_hole, command_flag::NO_HOLE) | flag(fast, command_flag::FAST_ZERO);
                (cmd::WRITE_ZEROES, flags, offset, len, &[])
            }
            Self::Cache { offset, len } => (cmd::CACHE, 0, offset, len, &[]),
            Self::BlockStatus { offset, len, one } => {
                (cmd::BLOCK_STATUS, flag(one, command_flag::REQ_ONE), offset, len, &[])
            }
        }
    }
}

/// What the receiving half must know of a request.
#[derive(Debug, Clone, Copy)]
struct Sent {
    read: bool,
    offset: u64,
    len: u64,
}

type Flying = Arc<Mutex<HashMap<u64, Sent>>>;

/// The half that sends.
#[derive(Debug)]
pub struct Sender {
    stream: Stream,
    mode: Mode,
    flying: Flying,
    out: Vec<u8>,
}

/// The half that receives.
#[derive(Debug)]
pub struct Receiver {
    stream: BufReader<Stream>,
    mode: Mode,
    allocation: Option<u32>,
    flying: Flying,
    partial: HashMap<u64, Answer>,
    last: Answer,
}

/// What has been received for a request.
#[derive(Debug, Default)]
struct Answer {
    data: Vec<u8>,
    filled: u64,
    extents: Vec<Extent>,
    error: Option<(u32, String)>,
}

/// A finished request.
#[derive(Debug)]
pub struct Reply<'a> {
    /// The cookie it was sent with.
    pub cookie: u64,
    /// How it went.
    pub result: Result<(), ClientError>,
    /// The bytes of a read.
    pub data: &'a [u8],
    /// The extents of a block status.
    pub extents: &'a [Extent],
}

pub(super) fn halves(stream: Stream, info: &ExportInfo) -> io::Result<(Sender, Receiver)> {
    let flying = Flying::default();
    let sender = Sender { stream: stream.try_clone()?, mode: info.mode, flying: Arc::clone(&flying), out: Vec::new() };
    let receiver = Receiver {
        stream: BufReader::with_capacity(RECEIVE, stream),
        mode: info.mode,
        allocation: info.allocation,
        flying,
        partial: HashMap::new(),
        last: Answer::default(),
    };
    Ok((sender, receiver))
}

impl Sender {
    /// Adds a request, to be sent by [`Sender::flush`] or when many have gathered. `cookie` must not be that of a
    /// request in flight. Lengths that the connection's headers cannot carry are refused.
    ///
    /// # Errors
    /// If the connection broke, or the request does not fit its headers.
    pub fn send(&mut self, cookie: u64, command: &Command<'_>) -> Result<(), ClientError> {
        let (command, flags, offset, len, payload) = command.parts(self.mode);
        if self.mode != Mode::Extended && u32::try_from(len).is_err() {
            return Err(ClientError::Protocol(format!("{len} bytes do not fit a request without extended headers")));
        }
        let sent = Sent { read: command == cmd::READ, offset, len };
        if self.flying.lock().unwrap_or_else(PoisonError::into_inner).insert(cookie, sent).is_some() {
            return Err(ClientError::Protocol(format!("cookie {cookie} is in flight already")));
        }
        Header { flags, command, cookie, offset, len }.encode(self.mode, &mut self.out);
        if payload.len() < GATHER / 4 {
            self.out.extend_from_slice(payload);
        } else {
            self.send_with(payload)?;
        }
        if self.out.len() >= GATHER { self.flush() } else { Ok(()) }
    }

    /// Sends what has gathered and a large payload behind it, without copying that.
    fn send_with(&mut self, payload: &[u8]) -> Result<(), ClientError> {
        let slices = [IoSlice::new(&self.out), IoSlice::new(payload)];
        let n = self.stream.write_vectored(&slices)?;
        let heads = n.min(self.out.len());
        self.stream.write_all(&self.out[heads..])?;
        self.stream.write_all(&payload[n - heads..])?;
        self.out.clear();
        Ok(())
    }

    /// Sends what has gathered.
    ///
    /// # Errors
    /// If the connection broke.
    pub fn flush(&mut self) -> Result<(), ClientError> {
        self.stream.write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }

    /// Requests sent and not yet answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.flying.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Drop for Sender {
    /// Says goodbye, if the connection still stands.
    fn drop(&mut self) {
        Header { flags: 0, command: cmd::DISC, cookie: 0, offset: 0, len: 0 }.encode(self.mode, &mut self.out);
        let _ = self.flush();
    }
}

/// The header of a reply or of one chunk of it.
struct Chunk {
    done: bool,
    kind: u16,
    cookie: u64,
    len: u64,
}

fn broken(why: impl Into<String>) -> ClientError {
    ClientError::Protocol(why.into())
}

impl Receiver {
    /// Waits for the next request to finish.
    ///
    /// # Errors
    /// If the connection broke or the server broke the protocol. A request that failed is no error here but in
    /// [`Reply::result`].
    pub fn receive(&mut self) -> Result<Reply<'_>, ClientError> {
        loop {
            let mut magic = [0; 4];
            self.stream.read_exact(&mut magic)?;
            let (chunk, errno) = self.header(u32::from_be_bytes(magic))?;
            let sent = self.flying.lock().unwrap_or_else(PoisonError::into_inner).get(&chunk.cookie).copied();
            let sent =
                sent.ok_or_else(|| broken(format!("a reply to cookie {}, which was not asked", chunk.cookie)))?;
            let mut answer = match self.partial.remove(&chunk.cookie) {
                Some(answer) => answer,
                None => self.fresh(sent),
            };
            match errno {
                Some(0) if sent.read => {
                    self.stream.read_exact(&mut answer.data)?;
                    answer.filled = sent.len;
                }
                Some(0) => {}
                Some(errno) => answer.error = Some((errno, String::new())),
                None => self.take(&chunk, sent, &mut answer)?,
            }
            if chunk.done {
                self.last = answer;
                return self.finish(chunk.cookie, sent);
            }
            self.partial.insert(chunk.cookie, answer);
        }
    }

    /// Whether (part of) another reply has been received already, so that [`Receiver::receive`] will hardly wait.
    #[must_use]
    pub fn has_buffered(&self) -> bool {
        !self.stream.buffer().is_empty()
    }

    /// An empty answer, with the memory of the last one.
    fn fresh(&mut self, sent: Sent) -> Answer {
        let mut answer = std::mem::take(&mut self.last);
        let len = if sent.read { usize::try_from(sent.len).unwrap_or(0) } else { 0 };
        answer.data.resize(len, 0);
        answer.extents.clear();
        Answer { filled: 0, error: None, ..answer }
    }

    fn finish(&mut self, cookie: u64, sent: Sent) -> Result<Reply<'_>, ClientError> {
        self.flying.lock().unwrap_or_else(PoisonError::into_inner).remove(&cookie);
        let result = match self.last.error.take() {
            Some((errno, message)) => Err(ClientError::Request { errno, message }),
            None if sent.read && self.last.filled != sent.len => return Err(broken("a read came back with a gap")),
            None => Ok(()),
        };
        let data = if result.is_ok() { &self.last.data[..] } else { &[] };
        Ok(Reply { cookie, result, data, extents: &self.last.extents })
    }

    /// Reads what follows the magic number; with an error number if it is a simple reply.
    fn header(&mut self, magic: u32) -> Result<(Chunk, Option<u32>), ClientError> {
        let rest = match (magic, self.mode) {
            (SIMPLE_REPLY_MAGIC, Mode::Simple | Mode::Structured) => 12,
            (STRUCTURED_REPLY_MAGIC, Mode::Structured) => 16,
            (EXTENDED_REPLY_MAGIC, Mode::Extended) => 28,
            _ => return Err(broken(format!("a reply begins with {magic:#x}"))),
        };
        let mut bytes = [0; 28];
        self.stream.read_exact(&mut bytes[..rest])?;
        let mut r = Reader(&bytes);
        let mut parse = || {
            if magic == SIMPLE_REPLY_MAGIC {
                let (errno, cookie) = (r.u32()?, r.u64()?);
                return Some((Chunk { done: true, kind: chunk::NONE, cookie, len: 0 }, Some(errno)));
            }
            let (flags, kind, cookie) = (r.u16()?, r.u16()?, r.u64()?);
            let len = if magic == EXTENDED_REPLY_MAGIC { r.u64().and(r.u64())? } else { r.u32()?.into() };
            Some((Chunk { done: flags & chunk::DONE != 0, kind, cookie, len }, None))
        };
        parse().ok_or_else(|| broken("a short reply"))
    }

    fn take(&mut self, c: &Chunk, sent: Sent, answer: &mut Answer) -> Result<(), ClientError> {
        match c.kind {
            chunk::NONE if c.len == 0 => Ok(()),
            chunk::OFFSET_DATA if c.len > 8 => {
                let at = self.place(sent, c.len - 8)?;
                self.stream.read_exact(answer.data.get_mut(at).ok_or_else(|| broken("data for no read"))?)?;
                answer.filled += c.len - 8;
                Ok(())
            }
            chunk::OFFSET_HOLE if c.len == 12 => {
                // The length comes after the offset, so it is looked at first.
                let mut hole = [0; 12];
                self.stream.read_exact(&mut hole)?;
                let mut r = Reader(&hole);
                let (Some(offset), Some(len)) = (r.u64(), r.u32()) else { return Err(broken("a short hole")) };
                let at = place_in(sent, offset, len.into())?;
                answer.data.get_mut(at).ok_or_else(|| broken("a hole for no read"))?.fill(0);
                answer.filled += u64::from(len);
                Ok(())
            }
            chunk::BLOCK_STATUS | chunk::BLOCK_STATUS_EXT if c.len <= MAX_STATUS => {
                let payload = self.payload(c.len)?;
                self.status(c.kind, &payload, answer)
            }
            kind if kind & chunk::ERROR_BIT != 0 && c.len <= MAX_ERROR => {
                let payload = self.payload(c.len)?;
                let mut r = Reader(&payload);
                let (errno, len) = (r.u32(), r.u16());
                let words = len.and_then(|len| r.take(len.into())).unwrap_or(&[]);
                answer.error = Some((errno.filter(|e| *e != 0).unwrap_or(22), String::from_utf8_lossy(words).into()));
                Ok(())
            }
            kind => Err(broken(format!("a reply chunk of type {kind} with {} bytes", c.len))),
        }
    }

    fn payload(&mut self, len: u64) -> Result<Vec<u8>, ClientError> {
        let mut payload = vec![0; usize::try_from(len).map_err(|_| broken("a long payload"))?];
        self.stream.read_exact(&mut payload)?;
        Ok(payload)
    }

    /// Reads the offset of a data chunk.
    fn place(&mut self, sent: Sent, len: u64) -> Result<std::ops::Range<usize>, ClientError> {
        let mut offset = [0; 8];
        self.stream.read_exact(&mut offset)?;
        place_in(sent, u64::from_be_bytes(offset), len)
    }

    fn status(&self, kind: u16, payload: &[u8], answer: &mut Answer) -> Result<(), ClientError> {
        let extended = kind == chunk::BLOCK_STATUS_EXT;
        if extended != (self.mode == Mode::Extended) {
            return Err(broken("block status of the wrong width"));
        }
        let mut r = Reader(payload);
        let id = r.u32();
        if extended {
            // The count, which the length tells as well.
            r.u32();
        }
        if id.is_none() || id != self.allocation {
            return Err(broken("block status of an unknown context"));
        }
        while !r.0.is_empty() {
            let (len, state) =
                if extended { (r.u64(), r.u64()) } else { (r.u32().map(u64::from), r.u32().map(u64::from)) };
            let (Some(len @ 1..), Some(state)) = (len, state) else { return Err(broken("malformed block status")) };
            let has = |flag: u32| state & u64::from(flag) != 0;
            answer.extents.push(Extent { len, zero: has(STATE_ZERO), hole: has(STATE_HOLE) });
        }
        Ok(())
    }
}

/// Where bytes of the export lie in the buffer of a read.
fn place_in(sent: Sent, offset: u64, len: u64) -> Result<std::ops::Range<usize>, ClientError> {
    let start = offset.checked_sub(sent.offset).filter(|_| sent.read);
    let end = start.and_then(|s| s.checked_add(len)).filter(|e| *e <= sent.len);
    match (start.map(usize::try_from), end.map(usize::try_from)) {
        (Some(Ok(start)), Some(Ok(end))) => Ok(start..end),
        _ => Err(broken("data outside the request")),
    }
}
