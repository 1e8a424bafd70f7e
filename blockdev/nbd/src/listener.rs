//! Listening sockets: made here, or handed over by systemd.

use crate::address::{Address, Listen};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{
    self, AddressFamily, Backlog, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, sockopt,
};
use nix::sys::stat::{Mode, fchmod};
use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// First file descriptor that systemd passes (`SD_LISTEN_FDS_START`).
const FIRST_SYSTEMD_FD: RawFd = 3;

/// More sockets than this from systemd is a mistake.
const MAX_SYSTEMD_FDS: RawFd = 64;

/// A listening socket. One made at a path removes it when dropped.
#[derive(Debug)]
pub(crate) enum Listener {
    Unix(UnixListener, Option<Made>),
    Tcp(TcpListener),
}

/// A socket file that we made, known by its identity, so that a successor's is never removed.
#[derive(Debug)]
pub(crate) struct Made {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for Made {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == (self.device, self.inode));
        if ours && let Err(e) = fs::remove_file(&self.path) {
            tracing::warn!("cannot remove the socket {}: {e}", self.path.display());
        }
    }
}

/// The same error with the name of what it is about.
fn about(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> io::Error {
    move |e| io::Error::new(e.kind(), format!("{what}: {e}"))
}

impl Listener {
    /// Listens.
    pub(crate) fn open(listen: Listen) -> io::Result<Self> {
        let listener = match listen {
            Listen::Unix(path) => {
                let what = format!("cannot listen on unix:{}", path.display());
                bind_unix(&path).map_err(about(what))?
            }
            Listen::Tcp(address) => {
                Listener::Tcp(TcpListener::bind(address).map_err(about(format!("cannot listen on tcp:{address}")))?)
            }
            Listen::Fd(fd) => adopt(fd).map_err(about("cannot use the socket that was handed over"))?,
        };
        match &listener {
            Listener::Unix(l, _) => l.set_nonblocking(true)?,
            Listener::Tcp(l) => l.set_nonblocking(true)?,
        }
        Ok(listener)
    }

    /// The address, with the port that the system chose. `None` for a unix socket without a path.
    pub(crate) fn address(&self) -> Option<Address> {
        match self {
            Listener::Unix(_, Some(made)) => Some(Address::Unix(made.path.clone())),
            Listener::Unix(l, None) => Some(Address::Unix(l.local_addr().ok()?.as_pathname()?.to_owned())),
            Listener::Tcp(l) => l.local_addr().ok().map(Address::Tcp),
        }
    }

    /// The next connection that waits, if there is one.
    pub(crate) fn accept(&self) -> io::Result<Option<OwnedFd>> {
        let accepted = match self {
            Listener::Unix(l, _) => l.accept().map(|(s, _)| OwnedFd::from(s)),
            Listener::Tcp(l) => l.accept().map(|(s, _)| OwnedFd::from(s)),
        };
        match accepted {
            Ok(fd) => Ok(Some(fd)),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Unix(l, _) => l.as_fd(),
            Listener::Tcp(l) => l.as_fd(),
        }
    }
}

fn bind_unix(path: &Path) -> io::Result<Listener> {
    let address = UnixAddr::new(path)?;
    let make = || -> nix::Result<OwnedFd> {
        let fd = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        // The mode of the socket becomes that of the file, so that it is private from its first moment.
        fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)?;
        socket::bind(fd.as_raw_fd(), &address)?;
        Ok(fd)
    };
    let fd = match make() {
        Err(Errno::EADDRINUSE) => {
            remove_stale(path)?;
            make()?
        }
        other => other?,
    };
    let meta = fs::symlink_metadata(path)?;
    let made = Made { path: path.to_owned(), device: meta.dev(), inode: meta.ino() };
    socket::listen(&fd, Backlog::MAXCONN)?;
    Ok(Listener::Unix(UnixListener::from(fd), Some(made)))
}

/// Removes a socket file that nobody listens on any more.
fn remove_stale(path: &Path) -> io::Result<()> {
    let in_use = |why: &str| Err(io::Error::new(io::ErrorKind::AddrInUse, why.to_owned()));
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return in_use("the path exists and is not a socket; choose another one or remove it");
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!("replacing the stale socket {}", path.display());
            fs::remove_file(path)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Err(e),
        _ => in_use("in use by a running server; stop it or choose another path"),
    }
}

/// Takes over a listening stream socket of either family.
fn adopt(fd: OwnedFd) -> io::Result<Listener> {
    let bad = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, why.to_owned()));
    if socket::getsockopt(&fd, sockopt::SockType)? != SockType::Stream || !socket::getsockopt(&fd, sockopt::AcceptConn)?
    {
        return bad("it is not a listening stream socket (systemd: use ListenStream= with Accept=no)");
    }
    let name: SockaddrStorage = socket::getsockname(fd.as_raw_fd())?;
    match name.family() {
        Some(AddressFamily::Unix) => Ok(Listener::Unix(UnixListener::from(fd), None)),
        Some(AddressFamily::Inet | AddressFamily::Inet6) => Ok(Listener::Tcp(TcpListener::from(fd))),
        _ => bad("it is neither a unix nor a TCP socket"),
    }
}

/// The sockets that systemd passes to this process (socket activation), if it does. A second call finds none.
///
/// # Errors
/// If the environment announces sockets that are not there.
pub fn systemd_listeners() -> io::Result<Vec<Listen>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<i64>().ok());
    let (Some(pid), Some(count)) = (number("LISTEN_PID"), number("LISTEN_FDS")) else {
        return Ok(Vec::new());
    };
    if pid != i64::from(std::process::id()) || TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Vec::new());
    }
    let bad = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
    let count = RawFd::try_from(count).ok().filter(|n| (0..=MAX_SYSTEMD_FDS).contains(n));
    let count = count.ok_or_else(|| bad(format!("LISTEN_FDS is not a number from 0 to {MAX_SYSTEMD_FDS}")))?;
    (FIRST_SYSTEMD_FD..FIRST_SYSTEMD_FD + count)
        .map(|raw| {
            // SAFETY: used for one system call only, which fails if the descriptor is not open.
            let fd = unsafe { BorrowedFd::borrow_raw(raw) };
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
                .map_err(|e| bad(format!("file descriptor {raw}, announced by LISTEN_FDS, is not open: {e}")))?;
            // SAFETY: it is open, was passed to this process to own, and `TAKEN` makes us the only taker.
            Ok(Listen::Fd(unsafe { OwnedFd::from_raw_fd(raw) }))
        })
        .collect()
}

#[cfg(test)]
#[path = "listener_tests.rs"]
mod tests;
