//! TLS of a server's connection: bytes in and out of a socket that does not block.

use crate::socket::Received;
use afterimage_trust::nbd::NbdServerTls;
use rustls::ServerConnection;
use std::io::{self, BufRead, IoSlice, Read, Write};
use std::sync::Arc;

/// Bytes taken from the socket with one call.
const CHUNK: usize = 256 << 10;
/// Plaintext that is encrypted at once.
const BATCH: usize = 256 << 10;

/// Whether clients have to speak TLS. On unix sockets, which are their owner's alone, nobody has to.
#[derive(Debug, Clone, Default)]
pub enum Tls {
    /// There is none.
    #[default]
    Off,
    /// Who asks for it gets it.
    Allow(Arc<NbdServerTls>),
    /// Over TCP nothing is said without it.
    Require(Arc<NbdServerTls>),
}

impl Tls {
    pub(crate) const fn server(&self) -> Option<&Arc<NbdServerTls>> {
        match self {
            Tls::Off => None,
            Tls::Allow(tls) | Tls::Require(tls) => Some(tls),
        }
    }

    pub(crate) const fn is_required(&self) -> bool {
        matches!(self, Tls::Require(_))
    }
}

/// A raw socket, as far as TLS needs it.
pub(crate) trait Raw {
    fn recv(&self, buf: &mut [u8]) -> io::Result<Received>;
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;
}

/// The state of TLS on one connection.
pub(crate) struct Secure {
    state: ServerConnection,
    chunk: Vec<u8>,
    from: usize,
    to: usize,
    /// Encrypted bytes that the socket did not take yet, from `sent` on.
    out: Vec<u8>,
    sent: usize,
    eof: bool,
}

fn broken(e: &rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("TLS: {e}"))
}

impl Secure {
    pub(crate) fn new(mut state: ServerConnection) -> Secure {
        state.set_buffer_limit(Some(BATCH));
        Secure { state, chunk: vec![0; CHUNK], from: 0, to: 0, out: Vec::new(), sent: 0, eof: false }
    }

    pub(crate) fn is_handshaking(&self) -> bool {
        self.state.is_handshaking()
    }

    /// Whether there is something to read without the socket.
    pub(crate) fn holds_more(&mut self) -> bool {
        self.eof || self.from < self.to || self.state.reader().fill_buf().is_ok_and(|plain| !plain.is_empty())
    }

    /// Whether encrypted bytes wait for the socket.
    pub(crate) fn owes(&self) -> bool {
        self.sent < self.out.len()
    }

    /// Takes what is there, until `buf` is full or nothing is left here nor in the socket.
    pub(crate) fn recv(&mut self, raw: &impl Raw, buf: &mut [u8]) -> io::Result<Received> {
        let mut done = 0;
        while done < buf.len() {
            match self.state.reader().read(&mut buf[done..]) {
                Ok(0) => self.eof = true,
                Ok(n) => {
                    done += n;
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => self.eof = true,
                Err(e) => return Err(e),
            }
            if self.eof || !self.feed(raw)? {
                break;
            }
        }
        Ok(match done {
            0 if self.eof => Received::Eof,
            0 => Received::Nothing,
            n => Received::Bytes(n),
        })
    }

    /// Decrypts what came, or takes more from the socket; false if nothing is there.
    pub(crate) fn feed(&mut self, raw: &impl Raw) -> io::Result<bool> {
        if self.from == self.to {
            match raw.recv(&mut self.chunk)? {
                Received::Bytes(n) => (self.from, self.to) = (0, n),
                Received::Nothing => return Ok(false),
                Received::Eof => {
                    self.eof = true;
                    return Ok(!self.state.is_handshaking());
                }
            }
        }
        let mut rest = &self.chunk[self.from..self.to];
        self.state.read_tls(&mut rest)?;
        self.from = self.to - rest.len();
        if let Err(e) = self.state.process_new_packets() {
            // The alert says why; the client may be gone already.
            let _ = self.flush(raw);
            return Err(broken(&e));
        }
        Ok(true)
    }

    /// Whether the client has left.
    pub(crate) const fn is_over(&self) -> bool {
        self.eof
    }

    /// Hands over what waits to the socket; false if not all of it.
    pub(crate) fn flush(&mut self, raw: &impl Raw) -> io::Result<bool> {
        loop {
            while self.owes() {
                match raw.send(&[IoSlice::new(&self.out[self.sent..])]) {
                    Ok(0) => return Ok(false),
                    Ok(n) => self.sent += n,
                    Err(e) => {
                        // Nobody will take it: nothing is owed to who has gone.
                        self.out = Vec::new();
                        self.sent = 0;
                        return Err(e);
                    }
                }
            }
            self.out.clear();
            self.sent = 0;
            if !self.state.wants_write() {
                return Ok(true);
            }
            while self.state.wants_write() {
                self.state.write_tls(&mut self.out)?;
            }
        }
    }

    /// Encrypts and sends; says how much was taken, 0 if the socket still has to take what came before.
    pub(crate) fn send(&mut self, raw: &impl Raw, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        if !self.flush(raw)? {
            return Ok(0);
        }
        let taken = self.state.writer().write_vectored(slices)?;
        self.flush(raw)?;
        Ok(taken)
    }
}
