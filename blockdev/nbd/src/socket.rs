//! A stream socket of either kind, read and written without blocking, and waiting on it with a deadline.
//!
//! All of the server's reading and writing goes through [`Socket`]; a TLS session would be a second kind of it.

use crate::stop::Stop;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, AddressFamily, MsgFlags, Shutdown, SockaddrLike, SockaddrStorage, sockopt};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
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
#[derive(Debug)]
pub(crate) struct Socket(OwnedFd);

impl Socket {
    /// Takes the socket over and sets what a block protocol wants of TCP.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        if is_tcp(fd.as_fd()) {
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
        Self(fd)
    }

    /// Takes what is there, at most `buf.len()` bytes, which must not be 0.
    pub(crate) fn recv(&self, buf: &mut [u8]) -> io::Result<Received> {
        loop {
            match socket::recv(self.0.as_raw_fd(), buf, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return Ok(Received::Eof),
                Ok(n) => return Ok(Received::Bytes(n)),
                Err(Errno::EAGAIN) => return Ok(Received::Nothing),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Sends what the socket takes now, and says how much; 0 if nothing.
    pub(crate) fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        loop {
            match socket::sendmsg::<SockaddrStorage>(self.0.as_raw_fd(), slices, &[], flags, None) {
                Ok(n) => return Ok(n),
                Err(Errno::EAGAIN) => return Ok(0),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
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
        let _ = socket::shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
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
