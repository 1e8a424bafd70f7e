//! A TLS connection over a stream socket, for one thread that reads and others that write.
//!
//! The state of TLS is behind a mutex that is never held while the socket is waited for. Who writes holds the sending side
//! while it encrypts and sends, so that records leave in the order of their numbers; who reads takes bytes from the socket
//! first, and then the state to decrypt them. So a peer that does not read holds up no reader.
//!
//! What a reader has to answer (a new key of the peer) leaves with the next write: both protocols that use this speak up every
//! few seconds.

use crate::verify::{Guard, Verdict};
use afterimage_base::net::Stream;
use afterimage_base::world::sync::LongMutex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection, pki_types::ServerName};
use std::io::{self, BufRead, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes taken from the socket with one call.
const CHUNK: usize = 256 << 10;
/// Plaintext encrypted at once: what leaves with one call.
const BATCH: usize = 512 << 10;

/// A connection past its handshake.
pub struct Tls {
    stream: Arc<Stream>,
    state: Mutex<Connection>,
    /// Encrypted bytes on their way out. Held while they leave.
    out: LongMutex<Vec<u8>>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tls({:?})", self.stream)
    }
}

/// What a client says whom it calls; it is not looked at, as the certificate says who answers.
fn nobody() -> ServerName<'static> {
    ServerName::DnsName(rustls::pki_types::DnsName::try_from_str("afterimage").unwrap_or_else(|_| unreachable!()))
}

fn tls(e: &rustls::Error) -> io::Error {
    let text = match e {
        rustls::Error::InvalidMessage(_) => format!("the peer does not speak TLS ({e})"),
        rustls::Error::PeerIncompatible(why) => format!("the peer's TLS is not ours: 1.3 is asked for ({why:?})"),
        rustls::Error::NoCertificatesPresented => "the peer shows no certificate".to_owned(),
        rustls::Error::NoApplicationProtocol => "the peer is here for another protocol".to_owned(),
        rustls::Error::AlertReceived(alert) => format!("the peer refuses this host's certificate or TLS ({alert:?})"),
        e => e.to_string(),
    };
    io::Error::new(io::ErrorKind::InvalidData, text)
}

impl Tls {
    /// Begins as client, and ends the handshake by `until`. The stream's own time limits say how often the clock is looked at.
    ///
    /// # Errors
    /// What is in the way. What the guard said against the peer is the better reason.
    pub fn client(stream: Arc<Stream>, config: Arc<ClientConfig>, guard: &Guard, until: Instant) -> io::Result<Tls> {
        let state = ClientConnection::new(config, nobody()).map_err(|e| tls(&e))?;
        Self::handshake(stream, state.into(), guard, until)
    }

    /// Begins as server.
    ///
    /// # Errors
    /// As [`Tls::client`].
    pub fn server(stream: Arc<Stream>, config: Arc<ServerConfig>, guard: &Guard, until: Instant) -> io::Result<Tls> {
        let state = ServerConnection::new(config).map_err(|e| tls(&e))?;
        Self::handshake(stream, state.into(), guard, until)
    }

    /// Goes on with a handshake of which something has been read already.
    ///
    /// # Errors
    /// As [`Tls::client`].
    pub fn handshake(stream: Arc<Stream>, mut state: Connection, guard: &Guard, until: Instant) -> io::Result<Tls> {
        state.set_buffer_limit(Some(BATCH));
        if let Err(e) = shake(&stream, &mut state, until) {
            return Err(match guard.verdict().refused {
                Some(why) => io::Error::new(io::ErrorKind::PermissionDenied, why),
                None => e,
            });
        }
        Ok(Tls { stream, state: Mutex::new(state), out: LongMutex::new(Vec::new()) })
    }

    /// Goes on as client of a server that the settings judge by themselves.
    ///
    /// # Errors
    /// What is in the way.
    pub fn begin(stream: Arc<Stream>, mut state: Connection, until: Instant) -> io::Result<Tls> {
        state.set_buffer_limit(Some(BATCH));
        shake(&stream, &mut state, until)?;
        Ok(Tls { stream, state: Mutex::new(state), out: LongMutex::new(Vec::new()) })
    }

    fn state(&self) -> MutexGuard<'_, Connection> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The socket underneath.
    #[must_use]
    pub fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    /// The protocol that was agreed on.
    #[must_use]
    pub fn protocol(&self) -> Option<Vec<u8>> {
        self.state().alpn_protocol().map(<[u8]>::to_vec)
    }

    /// The two sides, for a thread each.
    #[must_use]
    pub fn split(self) -> (TlsReader, TlsWriter) {
        let shared = Arc::new(self);
        (
            TlsReader { tls: Arc::clone(&shared), chunk: vec![0; CHUNK], from: 0, to: 0, left: Arc::default() },
            TlsWriter { tls: shared },
        )
    }
}

fn shake(stream: &Stream, state: &mut Connection, until: Instant) -> io::Result<()> {
    let mut raw: &Stream = stream;
    let mut flush = |state: &mut Connection| -> io::Result<()> {
        while state.wants_write() {
            state.write_tls(&mut raw)?;
        }
        Ok(())
    };
    let mut raw: &Stream = stream;
    loop {
        flush(state)?;
        if !state.is_handshaking() {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake took too long"));
        }
        match state.read_tls(&mut raw) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the peer left in the TLS handshake")),
            Ok(_) => {}
            Err(e) if is_tick(&e) => continue,
            Err(e) => return Err(e),
        }
        if let Err(e) = state.process_new_packets() {
            // The alert tells the peer; it may be gone already.
            let _ = flush(state);
            return Err(tls(&e));
        }
    }
}

fn is_tick(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

/// The receiving side. Reads end as the socket's do: after its time limit with `WouldBlock`.
#[derive(Debug)]
pub struct TlsReader {
    tls: Arc<Tls>,
    chunk: Vec<u8>,
    from: usize,
    to: usize,
    /// Whether the last read left something.
    left: Arc<AtomicBool>,
}

impl TlsReader {
    /// Whether something can be read without waiting for the socket.
    #[must_use]
    pub fn has_more(&self) -> bool {
        self.from < self.to || self.tls.state().reader().fill_buf().is_ok_and(|plain| !plain.is_empty())
    }

    /// Whether there is something to read, or to decrypt, now.
    ///
    /// # Errors
    /// Those of the system.
    pub fn is_readable(&self) -> io::Result<bool> {
        if self.has_more() {
            return Ok(true);
        }
        let mut fds = [PollFd::new(self.tls.stream.as_fd(), PollFlags::POLLIN)];
        Ok(poll(&mut fds, PollTimeout::ZERO)? > 0)
    }

    /// Somebody who can tell whether there is something to read, while another thread reads.
    #[must_use]
    pub fn waiting(&self) -> Waiting {
        Waiting { tls: Arc::clone(&self.tls), left: Arc::clone(&self.left) }
    }

    /// Decrypts what has been received; 0 if nothing whole is there.
    fn decrypt(&mut self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        let mut state = self.tls.state();
        loop {
            match state.reader().read(buf) {
                Ok(n) => return Ok(Some(n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                // The peer left without TLS's goodbye: every message has a length, so nothing can be cut off in silence.
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(Some(0)),
                Err(e) => return Err(e),
            }
            if self.from == self.to {
                return Ok(None);
            }
            let mut rest = &self.chunk[self.from..self.to];
            state.read_tls(&mut rest)?;
            self.from = self.to - rest.len();
            state.process_new_packets().map_err(|e| tls(&e))?;
        }
    }
}

/// See [`TlsReader::waiting`].
#[derive(Debug)]
pub struct Waiting {
    tls: Arc<Tls>,
    left: Arc<AtomicBool>,
}

impl Waiting {
    /// Waits until there is something to read, or so long; tells which.
    #[must_use]
    pub fn wait(&self, limit: Duration) -> bool {
        if self.left.load(Ordering::Relaxed) {
            return true;
        }
        let mut fds = [PollFd::new(self.tls.stream.as_fd(), PollFlags::POLLIN)];
        let limit = u16::try_from(limit.as_millis()).unwrap_or(u16::MAX);
        poll(&mut fds, PollTimeout::from(limit)).is_ok_and(|n| n > 0)
    }
}

impl Read for TlsReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            if let Some(n) = self.decrypt(buf)? {
                self.left.store(self.has_more(), Ordering::Relaxed);
                return Ok(n);
            }
            let n = (&*self.tls.stream).read(&mut self.chunk)?;
            if n == 0 {
                return Ok(0);
            }
            (self.from, self.to) = (0, n);
        }
    }
}

/// The sending side; clones share it.
#[derive(Debug, Clone)]
pub struct TlsWriter {
    tls: Arc<Tls>,
}

impl TlsWriter {
    /// The socket underneath.
    #[must_use]
    pub fn stream(&self) -> &Stream {
        &self.tls.stream
    }

    /// Says TLS's goodbye, as far as the socket takes it.
    pub fn goodbye(&self) {
        self.tls.state().send_close_notify();
        // The peer may be gone already.
        let _ = self.send(|_| Ok(0));
    }

    /// Ends the connection, also for threads that wait in it.
    pub fn close(&self) {
        // It may be closed already.
        let _ = self.tls.stream.shutdown(Shutdown::Both);
    }

    fn send(&self, fill: impl FnOnce(&mut Connection) -> io::Result<usize>) -> io::Result<usize> {
        let mut out = self.tls.out.lock();
        let taken = {
            let mut state = self.tls.state();
            let taken = fill(&mut state)?;
            while state.wants_write() {
                state.write_tls(&mut *out)?;
            }
            taken
        };
        let sent = (&*self.tls.stream).write_all(&out);
        out.clear();
        if sent.is_err() {
            // Part of a record may have left: nothing can follow it.
            self.close();
        }
        sent.map(|()| taken)
    }
}

impl Write for TlsWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.send(|state| state.writer().write(buf))
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.send(|state| state.writer().write_vectored(bufs))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Who a peer is, for the log: its address, and whom its certificate names.
#[must_use]
pub fn who(address: &str, verdict: &Verdict) -> String {
    match &verdict.claims {
        Some(claims) => format!("{address}, {claims}"),
        None => address.to_owned(),
    }
}

/// When a handshake that begins now must have ended.
#[must_use]
pub fn deadline(time: Duration) -> Instant {
    Instant::now() + time
}
