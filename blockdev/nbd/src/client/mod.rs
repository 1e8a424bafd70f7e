//! A small blocking client, for our tools and tests.
//!
//! [`Client`] does one request at a time, or keeps many in flight with [`Client::submit`] and [`Client::receive`];
//! [`Client::split`] makes of it two halves for two threads.

mod negotiate;
mod pipeline;
mod stream;
mod uri;

pub use pipeline::{Command, Receiver, Reply, Sender};
pub use uri::{BadUri, Uri};

use crate::Address;
use crate::proto::{Mode, errno};
use afterimage_base::block::Extent;
use afterimage_trust::nbd::NbdClientTls;
use std::os::fd::OwnedFd;
use std::time::Duration;
use stream::Stream;
use thiserror::Error;

/// How long one step of the handshake may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(30);

/// Longest request without extended headers, cut to a whole number of blocks.
const MAX_COMPACT: u64 = u32::MAX as u64 & !0xffff;

/// Largest read or write where the server names no limit; the protocol promises it.
const DEFAULT_MAX_REQUEST: u32 = 32 << 20;

/// Why a client's request failed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The connection broke.
    #[error("the connection to the NBD server failed: {0}")]
    Io(#[from] std::io::Error),
    /// The server sent what the protocol does not allow, or the caller asks what it cannot express.
    #[error("NBD protocol error: {0}")]
    Protocol(String),
    /// The server refused the export or an option.
    #[error("the NBD server refused export {export:?}: {reason}")]
    Refused {
        /// The export asked for.
        export: String,
        /// What the server said.
        reason: String,
    },
    /// The server answered a request with an error.
    #[error("the NBD server answered with error {errno}: {message}")]
    Request {
        /// The NBD error number (see [`crate::errno`]), equal to Linux's errno of that name.
        errno: u32,
        /// What the server said; may be empty.
        message: String,
    },
}

/// What to ask for in the handshake; the server may have less.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The richest framing wanted.
    pub mode: Mode,
    /// Whether `base:allocation` is wanted, which block status needs.
    pub allocation: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { mode: Mode::Extended, allocation: true }
    }
}

/// What the handshake told about the export.
#[derive(Debug, Clone, Copy)]
pub struct ExportInfo {
    /// Size in bytes.
    pub size: u64,
    /// Transmission flags; see [`crate::transmission`].
    pub flags: u16,
    /// The framing in use.
    pub mode: Mode,
    /// Requests aligned to this are served without a detour.
    pub preferred_block: u32,
    /// Longest read or write.
    pub max_request: u32,
    /// The id of `base:allocation`, if block status can be asked for.
    pub allocation: Option<u32>,
}

impl Default for ExportInfo {
    fn default() -> Self {
        Self {
            size: 0,
            flags: 0,
            mode: Mode::Simple,
            preferred_block: 4096,
            max_request: DEFAULT_MAX_REQUEST,
            allocation: None,
        }
    }
}

/// A connection to an export, one request at a time. Dropping it says goodbye.
#[derive(Debug)]
pub struct Client {
    info: ExportInfo,
    sender: Sender,
    receiver: Receiver,
    cookie: u64,
}

impl Client {
    /// Connects and negotiates extended headers or else structured replies, and `base:allocation`, where the
    /// server has them.
    ///
    /// # Errors
    /// If the server cannot be reached or has no such export.
    pub fn connect(address: &Address, export: &str) -> Result<Client, ClientError> {
        Self::connect_with(address, export, &Options::default())
    }

    /// The same with a choice of what to negotiate.
    ///
    /// # Errors
    /// If the server cannot be reached or has no such export.
    pub fn connect_with(address: &Address, export: &str, options: &Options) -> Result<Client, ClientError> {
        Self::begin(Stream::connect(address)?, export, options)
    }

    /// The same over a unix stream socket that is connected already.
    ///
    /// # Errors
    /// If the peer is no server or has no such export.
    pub fn over(socket: OwnedFd, export: &str, options: &Options) -> Result<Client, ClientError> {
        Self::begin(Stream::Unix(socket.into()), export, options)
    }

    /// The same with TLS, which begins before anything else is said. The server's certificate must be for `host`.
    ///
    /// # Errors
    /// Also if the server has no TLS: there is no way back to plain text.
    pub fn connect_tls(
        address: &Address,
        host: &str,
        tls: &NbdClientTls,
        export: &str,
        options: &Options,
    ) -> Result<Client, ClientError> {
        let mut stream = Stream::connect(address)?;
        stream.set_timeout(Some(HANDSHAKE_TIME))?;
        negotiate::greet(&mut stream)?;
        negotiate::starttls(&mut stream)?;
        let state = tls.begin(host).map_err(|e| ClientError::Protocol(e.to_string()))?;
        Self::enter(stream.secured(state, HANDSHAKE_TIME)?, export, options)
    }

    fn begin(mut stream: Stream, export: &str, options: &Options) -> Result<Client, ClientError> {
        stream.set_timeout(Some(HANDSHAKE_TIME))?;
        negotiate::greet(&mut stream)?;
        Self::enter(stream, export, options)
    }

    fn enter(mut stream: Stream, export: &str, options: &Options) -> Result<Client, ClientError> {
        let info = negotiate::enter(&mut stream, export, options)?;
        stream.set_timeout(None)?;
        let (sender, receiver) = pipeline::halves(stream, &info)?;
        Ok(Client { info, sender, receiver, cookie: 0 })
    }

    /// What the handshake told.
    #[must_use]
    pub const fn info(&self) -> &ExportInfo {
        &self.info
    }

    /// Size of the export in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.info.size
    }

    /// Transmission flags; see [`crate::transmission`].
    #[must_use]
    pub const fn flags(&self) -> u16 {
        self.info.flags
    }

    /// The halves for many requests in flight. The connection ends when the sending half is dropped.
    #[must_use]
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }

    /// Sends a request without waiting for its reply, at the latest with the next [`Client::receive`]. `cookie` must not
    /// be that of a request in flight.
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub fn submit(&mut self, cookie: u64, command: &Command<'_>) -> Result<(), ClientError> {
        self.sender.send(cookie, command)
    }

    /// Sends what [`Client::submit`] has gathered, and waits for the next request to finish.
    ///
    /// # Errors
    /// As [`Receiver::receive`].
    pub fn receive(&mut self) -> Result<Reply<'_>, ClientError> {
        self.sender.flush()?;
        self.receiver.receive()
    }

    /// Requests submitted and not yet received.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.sender.in_flight()
    }

    /// Does one request and returns its reply; nothing else may be in flight.
    ///
    /// # Errors
    /// As [`ClientError`] says, also when the request itself failed.
    pub fn call(&mut self, command: &Command<'_>) -> Result<Reply<'_>, ClientError> {
        self.cookie += 1;
        self.sender.send(self.cookie, command)?;
        self.sender.flush()?;
        let mut reply = self.receiver.receive()?;
        std::mem::replace(&mut reply.result, Ok(())).map(|()| reply)
    }

    /// Reads `buf.len()` bytes at `offset`, in as many requests as it takes.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub fn read(&mut self, mut offset: u64, buf: &mut [u8]) -> Result<(), ClientError> {
        for part in buf.chunks_mut(self.info.max_request as usize) {
            let len = u32::try_from(part.len()).unwrap_or(u32::MAX);
            part.copy_from_slice(self.call(&Command::Read { offset, len })?.data);
            offset += u64::from(len);
        }
        Ok(())
    }

    /// Writes `data` at `offset`, in as many requests as it takes.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub fn write(&mut self, mut offset: u64, data: &[u8]) -> Result<(), ClientError> {
        for data in data.chunks(self.info.max_request as usize) {
            self.call(&Command::Write { offset, data, fua: false })?;
            offset += data.len() as u64;
        }
        Ok(())
    }

    /// Makes all completed writes durable.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub fn flush(&mut self) -> Result<(), ClientError> {
        self.call(&Command::Flush).map(drop)
    }

    /// Says that a range is no longer needed.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub fn trim(&mut self, offset: u64, len: u64) -> Result<(), ClientError> {
        self.in_parts(offset, len, |offset, len| Command::Trim { offset, len, fua: false })
    }

    /// Makes a range read as zeroes.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub fn write_zeroes(&mut self, offset: u64, len: u64) -> Result<(), ClientError> {
        self.in_parts(offset, len, |offset, len| Command::WriteZeroes {
            offset,
            len,
            fua: false,
            no_hole: false,
            fast: false,
        })
    }

    fn in_parts(
        &mut self,
        mut offset: u64,
        mut len: u64,
        command: impl Fn(u64, u64) -> Command<'static>,
    ) -> Result<(), ClientError> {
        while len > 0 {
            let n = self.longest(len);
            self.call(&command(offset, n))?;
            (offset, len) = (offset + n, len - n);
        }
        Ok(())
    }

    fn longest(&self, len: u64) -> u64 {
        if self.info.mode == Mode::Extended { len } else { len.min(MAX_COMPACT) }
    }

    /// Block status from `offset`: at least one extent; may stop before `len` bytes are described.
    ///
    /// # Errors
    /// As [`ClientError`] says; a server without `base:allocation` is asked nothing and reported as `EINVAL`.
    pub fn block_status(&mut self, offset: u64, len: u64) -> Result<Vec<Extent>, ClientError> {
        if self.info.allocation.is_none() {
            let message = "the server does not tell what is allocated".to_owned();
            return Err(ClientError::Request { errno: errno::EINVAL, message });
        }
        let len = self.longest(len);
        let reply = self.call(&Command::BlockStatus { offset, len, one: false })?;
        match reply.extents {
            [] => Err(ClientError::Protocol("an empty block status".to_owned())),
            extents => Ok(extents.to_vec()),
        }
    }

    /// The ranges (offset, length) that do not read as zeroes, in order, neighbours joined. All of it, if the server
    /// does not tell what is allocated.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub fn data_ranges(&mut self) -> Result<Vec<(u64, u64)>, ClientError> {
        let size = self.info.size;
        if self.info.allocation.is_none() {
            return Ok(Some((0, size)).filter(|_| size > 0).into_iter().collect());
        }
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let mut at = 0;
        while at < size {
            for extent in self.block_status(at, size - at)? {
                // The last extent may reach past what was asked for.
                let len = extent.len.min(size - at);
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
}

/// Names and descriptions of a server's exports.
///
/// # Errors
/// If the server cannot be reached or does not tell.
pub fn list(address: &Address) -> Result<Vec<(String, String)>, ClientError> {
    let mut stream = Stream::connect(address)?;
    stream.set_timeout(Some(HANDSHAKE_TIME))?;
    negotiate::greet(&mut stream)?;
    negotiate::list(&mut stream)
}
