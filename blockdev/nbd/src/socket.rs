//! A stream socket of either kind, read and written without blocking, and waiting on it with a deadline.
//!
//! All of the server's reading and writing goes through [`Socket`], which may be told to speak TLS from some moment on.

use crate::secure::{Raw, Secure};
use crate::stop::Stop;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, AddressFamily, MsgFlags, Shutdown, SockaddrLike, SockaddrStorage, sockopt};
use rustls::ServerConnection;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use thiserror::Error;

/// TCP keep-alive: a peer that vanished without a word is found out after 60 + 6 * 10 seconds of silence.
const KEEPALIVE_IDLE: u32 = 60;
const KEEPALIVE_INTERVAL: u32 = 10;
const KEEPALIVE_PROBES: u32 = 6;

/// Why a connection ended other than by the client's wish.
#[derive(Debug, Error)]
pub(crate) enum End {
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("the client went away {0}")]
    Gone(&'static str),
    #[error("the client broke the protocol: {0}")]
    Broken(&'static str),
    #[error("the client was refused: {0}")]
    Refused(&'static str),
    #[error("the client was silent too long {0}")]
    Silent(&'static str),
    #[error("the server is stopping")]
    Stopped,
    #[error("the device broke its promise: {0}")]
    Device(&'static str),
}

impl End {
    /// Whether the client is to blame.
    pub(crate) const fn is_cut_off(&self) -> bool {
        matches!(self, End::Broken(_) | End::Silent(_))
    }
}

/// What a receive found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    Bytes(usize),
    Nothing,
    Eof,
}

/// A connected stream socket.
pub(crate) struct Socket {
    fd: OwnedFd,
    tcp: bool,
    /// TLS, once it has begun. Without it this costs one load. Only the connection's own thread takes the lock.
    secure: OnceLock<Mutex<Secure>>,
}

/// The socket underneath TLS.
struct Bare<'a>(BorrowedFd<'a>);

impl Raw for Bare<'_> {
    fn recv(&self, buf: &mut [u8]) -> io::Result<Received> {
        recv(self.0, buf)
    }

    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        send(self.0, slices)
    }
}

impl Socket {
    /// Takes the socket over and sets what a block protocol wants of TCP.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        let tcp = is_tcp(fd.as_fd());
        if tcp {
            let set = || -> nix::Result<()> {
                socket::setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
                socket::setsockopt(&fd, sockopt::KeepAlive, &true)?;
                socket::setsockopt(&fd, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE)?;
                socket::setsockopt(&fd, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL)?;
                socket::setsockopt(&fd, sockopt::TcpKeepCount, &KEEPALIVE_PROBES)
            };
            if let Err(e) = set() {
                tracing::warn!("cannot set TCP options of a connection, it goes on without: {e}");
            }
        }
        Self { fd, tcp, secure: OnceLock::new() }
    }

    /// Whether it is of TCP.
    pub(crate) const fn is_tcp(&self) -> bool {
        self.tcp
    }

    fn secure(&self) -> Option<MutexGuard<'_, Secure>> {
        self.secure.get().map(|s| s.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Who is at the other end, for the log.
    pub(crate) fn peer(&self) -> String {
        socket::getpeername::<SockaddrStorage>(self.fd.as_raw_fd())
            .map_or_else(|_| "?".to_owned(), |name| name.to_string())
    }

    /// Whether TLS has begun.
    pub(crate) fn is_secure(&self) -> bool {
        self.secure.get().is_some()
    }

    /// Speaks TLS from now on, and ends its handshake by `deadline`.
    pub(crate) fn begin_tls(&self, state: ServerConnection, deadline: Instant, stop: &Stop) -> Result<(), End> {
        let mut secure = Secure::new(state);
        let bare = Bare(self.fd.as_fd());
        loop {
            while !secure.flush(&bare)? {
                self.wait(PollFlags::POLLOUT, deadline, stop)?;
            }
            if !secure.is_handshaking() {
                break;
            }
            if !secure.feed(&bare)? {
                if secure.is_over() {
                    return Err(End::Gone("in the TLS handshake"));
                }
                self.wait(PollFlags::POLLIN, deadline, stop)?;
            }
        }
        let _ = self.secure.set(Mutex::new(secure));
        Ok(())
    }

    /// Whether there is something to read that the system does not know of.
    pub(crate) fn holds_more(&self) -> bool {
        self.secure().is_some_and(|mut s| s.holds_more())
    }

    /// Whether something that was sent has still to be handed to the system.
    pub(crate) fn owes(&self) -> bool {
        self.secure().is_some_and(|s| s.owes())
    }

    /// Hands over what is owed, as far as the system takes it.
    pub(crate) fn flush(&self) -> io::Result<bool> {
        self.secure().map_or(Ok(true), |mut s| s.flush(&Bare(self.fd.as_fd())))
    }

    /// Takes what is there, at most `buf.len()` bytes, which must not be 0.
    pub(crate) fn recv(&self, buf: &mut [u8]) -> io::Result<Received> {
        match self.secure() {
            None => recv(self.fd.as_fd(), buf),
            Some(mut secure) => secure.recv(&Bare(self.fd.as_fd()), buf),
        }
    }

    /// Sends what the socket takes now, and says how much; 0 if nothing.
    pub(crate) fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.secure() {
            None => send(self.fd.as_fd(), slices),
            Some(mut secure) => secure.send(&Bare(self.fd.as_fd()), slices),
        }
    }

    /// Fills `buf`, waiting until `deadline`.
    pub(crate) fn read_exact(&self, mut buf: &mut [u8], deadline: Instant, stop: &Stop) -> Result<(), End> {
        while !buf.is_empty() {
            match self.recv(buf)? {
                Received::Bytes(n) => buf = &mut buf[n..],
                Received::Eof => return Err(End::Gone("in the handshake")),
                Received::Nothing => self.wait(PollFlags::POLLIN, deadline, stop)?,
            }
        }
        Ok(())
    }

    /// Sends all of `bytes`, waiting until `deadline`.
    pub(crate) fn write_all(&self, mut bytes: &[u8], deadline: Instant, stop: &Stop) -> Result<(), End> {
        while !bytes.is_empty() {
            match self.send(&[IoSlice::new(bytes)])? {
                0 => self.wait(PollFlags::POLLOUT, deadline, stop)?,
                n => bytes = &bytes[n..],
            }
        }
        while !self.flush()? {
            self.wait(PollFlags::POLLOUT, deadline, stop)?;
        }
        Ok(())
    }

    fn wait(&self, events: PollFlags, deadline: Instant, stop: &Stop) -> Result<(), End> {
        let mut fds = [PollFd::new(self.as_fd(), events), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        let ready = wait_on(&mut fds, Some(deadline))?;
        if stop.deadline().is_some() {
            return Err(End::Stopped);
        }
        if ready { Ok(()) } else { Err(End::Silent("in the handshake")) }
    }

    /// Ends the connection in both directions, also for a thread that is using it.
    pub(crate) fn shutdown(&self) {
        // An error means that it has ended already.
        let _ = socket::shutdown(self.fd.as_raw_fd(), Shutdown::Both);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn recv(fd: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<Received> {
    loop {
        match socket::recv(fd.as_raw_fd(), buf, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return Ok(Received::Eof),
            Ok(n) => return Ok(Received::Bytes(n)),
            Err(Errno::EAGAIN) => return Ok(Received::Nothing),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

fn send(fd: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    loop {
        match socket::sendmsg::<SockaddrStorage>(fd.as_raw_fd(), slices, &[], flags, None) {
            Ok(n) => return Ok(n),
            Err(Errno::EAGAIN) => return Ok(0),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Whether a socket is of an internet family.
pub(crate) fn is_tcp(fd: BorrowedFd<'_>) -> bool {
    let name = socket::getsockname::<SockaddrStorage>(fd.as_raw_fd());
    name.is_ok_and(|n| matches!(n.family(), Some(AddressFamily::Inet | AddressFamily::Inet6)))
}

/// Waits for one of `fds` or the deadline; false if it was the deadline.
pub(crate) fn wait_on(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let timeout = deadline.map_or(PollTimeout::NONE, |d| millis(d.saturating_duration_since(Instant::now())));
        match poll(fds, timeout) {
            Ok(0) if deadline.is_some_and(|d| Instant::now() >= d) => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Rounded up, so that a wait does not end just before its deadline.
fn millis(d: Duration) -> PollTimeout {
    let ms = i32::try_from(d.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
    PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn tcp_does_not_wait_to_send_and_finds_dead_peers() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = Socket::new(listener.accept().unwrap().0.into());
        assert!(socket::getsockopt(&socket, sockopt::TcpNoDelay).unwrap());
        assert!(socket::getsockopt(&socket, sockopt::KeepAlive).unwrap());
        assert_eq!(socket::getsockopt(&socket, sockopt::TcpKeepIdle).unwrap(), KEEPALIVE_IDLE);
    }
}
