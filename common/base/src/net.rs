//! Stream sockets between the roles: unix or TCP, by one name.
//!
//! What the two kinds differ in is settled here and nowhere else: how an address is written, which addresses of a name
//! are tried, how long that may take, and what is asked of the kernel so that a peer that vanished is noticed.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, UnixAddr, sockopt};
use nix::sys::time::TimeVal;
use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;

/// The appliance's TCP port where an address names none.
pub const DEFAULT_PORT: u16 = 9443;
/// How long one address of a name is tried,
const CONNECT_ONE: Duration = Duration::from_secs(4);
/// and all of them together.
const CONNECT_ALL: Duration = Duration::from_secs(12);
/// TCP keep-alive: a silent peer is asked after this many seconds,
const KEEPALIVE_IDLE: u32 = 15;
/// then this often,
const KEEPALIVE_INTERVAL: u32 = 5;
/// and given up after so many questions without an answer: 35 seconds in all.
const KEEPALIVE_PROBES: u32 = 4;
/// Milliseconds that bytes on the way may stay unacknowledged before the connection is given up.
const USER_TIMEOUT: u32 = 30_000;

/// An address of the appliance: `unix:PATH` or `tcp:HOST[:PORT]`, an IPv6 address in brackets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// A unix socket.
    Unix(PathBuf),
    /// A host name or IP address, and a port.
    Tcp(String, u16),
}

/// Text that is no address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{0:?} is not an address: write unix:PATH or tcp:HOST:PORT, for instance tcp:192.0.2.7:9443 or tcp:[2001:db8::7]"
)]
pub struct BadEndpoint(String);

impl FromStr for Endpoint {
    type Err = BadEndpoint;

    fn from_str(text: &str) -> Result<Self, BadEndpoint> {
        Endpoint::parse(text, DEFAULT_PORT)
    }
}

fn tcp(text: &str, default: u16) -> Option<Endpoint> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let named = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ":.-_".contains(c));
    let port = match port {
        None => default,
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().ok()?,
        Some(_) => return None,
    };
    named.then(|| Endpoint::Tcp(host.to_owned(), port))
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
            Endpoint::Tcp(host, port) if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Endpoint::Tcp(host, port) => write!(f, "tcp:{host}:{port}"),
        }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Endpoint::Tcp(address.ip().to_string(), address.port())
    }
}

impl Endpoint {
    /// Reads an address; `port` is that of one that names none.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(text: &str, port: u16) -> Result<Endpoint, BadEndpoint> {
        let bad = || BadEndpoint(text.to_owned());
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Endpoint::Unix(path.into())),
            Some(("tcp", rest)) => tcp(rest, port).ok_or_else(bad),
            _ => Err(bad()),
        }
    }

    /// Whether what is sent there stays on this machine, as far as the text tells.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Endpoint::Unix(_) => true,
            Endpoint::Tcp(host, _) => host == "localhost" || host.parse::<IpAddr>().is_ok_and(is_loopback),
        }
    }

    /// The TCP addresses that it stands for; none for a unix socket.
    ///
    /// # Errors
    /// If the name is not known.
    pub fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        let Endpoint::Tcp(host, port) = self else { return Ok(Vec::new()) };
        let found: Vec<SocketAddr> = (host.as_str(), *port).to_socket_addrs()?.collect();
        if found.is_empty() {
            Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
        } else {
            Ok(found)
        }
    }

    /// Connects, to the first address that answers. With `local_only`, addresses of other machines are refused.
    ///
    /// # Errors
    /// What was in the way, for each address.
    pub fn connect(&self, local_only: bool) -> io::Result<Stream> {
        if let Endpoint::Unix(path) = self {
            return connect_unix(path).map(Stream::Unix);
        }
        let end = Instant::now() + CONNECT_ALL;
        let mut failed = Vec::new();
        for address in self.resolve()? {
            if local_only && !is_loopback(address.ip()) {
                failed
                    .push(format!("{address} is on another machine, and plain text is not allowed to leave this one"));
                continue;
            }
            let limit = end.saturating_duration_since(Instant::now()).min(CONNECT_ONE);
            if limit.is_zero() {
                failed.push(format!("{address} was not tried any more"));
                continue;
            }
            match TcpStream::connect_timeout(&address, limit) {
                Ok(stream) => return Ok(Stream::tcp(stream)),
                Err(e) => failed.push(format!("{address}: {e}")),
            }
        }
        Err(io::Error::new(io::ErrorKind::NotConnected, failed.join("; ")))
    }
}

/// Bytes that a unix socket should hold.
const UNIX_BUFFER: usize = 4 << 20;

fn is_loopback(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_loopback(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.to_ipv4_mapped().is_some_and(|v4| v4.is_loopback()),
    }
}

/// A peer that does not accept (it is stopped, its queue is full) must not hold the caller for ever.
fn connect_unix(path: &std::path::Path) -> io::Result<UnixStream> {
    let address = UnixAddr::new(path)?;
    let fd = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let limit = TimeVal::new(i64::try_from(CONNECT_ONE.as_secs()).unwrap_or(i64::MAX), 0);
    socket::setsockopt(&fd, sockopt::SendTimeout, &limit)?;
    // The system grants what it allows. More is on its way at a time then, and fewer wake-ups are needed for as many bytes.
    let _ = socket::setsockopt(&fd, sockopt::SndBuf, &UNIX_BUFFER);
    socket::connect(fd.as_raw_fd(), &address)?;
    Ok(UnixStream::from(fd))
}

/// A connected stream of either kind.
#[derive(Debug)]
pub enum Stream {
    /// A unix socket.
    Unix(UnixStream),
    /// A TCP connection.
    Tcp(TcpStream),
}

macro_rules! either {
    ($stream:expr, $s:ident => $call:expr) => {
        match $stream {
            Stream::Unix($s) => $call,
            Stream::Tcp($s) => $call,
        }
    };
}

impl Stream {
    /// A TCP connection, set up: nothing waits to be sent together with more, and a peer that vanished is noticed
    /// within 35 seconds (30 if bytes are on their way to it).
    #[must_use]
    pub fn tcp(stream: TcpStream) -> Stream {
        let set = || -> nix::Result<()> {
            socket::setsockopt(&stream, sockopt::TcpNoDelay, &true)?;
            socket::setsockopt(&stream, sockopt::KeepAlive, &true)?;
            socket::setsockopt(&stream, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE)?;
            socket::setsockopt(&stream, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL)?;
            socket::setsockopt(&stream, sockopt::TcpKeepCount, &KEEPALIVE_PROBES)?;
            socket::setsockopt(&stream, sockopt::TcpUserTimeout, &USER_TIMEOUT)
        };
        // It works without them; a peer that vanished is then found by the protocol's own pings, somewhat later. The only
        // known reason is that the other side has closed it already.
        let _ = set();
        Stream::Tcp(stream)
    }

    /// Ends one or both directions, for all handles.
    ///
    /// # Errors
    /// If it has ended already.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        either!(self, s => s.shutdown(how))
    }

    /// How long a read may wait.
    ///
    /// # Errors
    /// Those of the system.
    pub fn set_read_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        either!(self, s => s.set_read_timeout(limit))
    }

    /// How long a write may wait.
    ///
    /// # Errors
    /// Those of the system.
    pub fn set_write_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        either!(self, s => s.set_write_timeout(limit))
    }

    /// Who is at the other end; `None` for a unix socket.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        match self {
            Stream::Unix(_) => None,
            Stream::Tcp(s) => s.peer_addr().ok(),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        either!(self, s => s.as_fd())
    }
}

/// As with the streams of the standard library, threads share one by reference.
impl Read for &Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        either!(self, s => (&mut &*s).read(buf))
    }
}

impl Write for &Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        either!(self, s => (&mut &*s).write(buf))
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        either!(self, s => (&mut &*s).write_vectored(bufs))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The receiving share of a stream, for a thread of its own. It waits apart from reading: a thread that waits inside a read of a
/// unix socket is woken by the system also whenever the peer has taken bytes that another thread sent, thousands of times a second.
#[derive(Debug)]
pub struct Listening {
    half: Half,
    tick: PollTimeout,
}

impl Listening {
    /// Reads give up after `tick` (at most a minute) with `WouldBlock`.
    #[must_use]
    pub fn new(half: Half, tick: Duration) -> Listening {
        Listening { half, tick: PollTimeout::try_from(tick.min(Duration::from_secs(60))).unwrap_or(PollTimeout::MAX) }
    }
}

impl Read for Listening {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut fds = [PollFd::new(self.half.0.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, self.tick)? == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.half.read(buf)
    }
}

/// A share of a stream, to be owned by a thread that reads or writes.
#[derive(Debug, Clone)]
pub struct Half(pub Arc<Stream>);

impl Read for Half {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(buf)
    }
}

impl Write for Half {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        (&*self.0).write(buf)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        (&*self.0).write_vectored(bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A listening socket of either kind.
#[derive(Debug)]
pub enum StreamListener {
    /// A unix socket.
    Unix(UnixListener),
    /// A TCP socket.
    Tcp(TcpListener),
}

impl StreamListener {
    /// Takes over a listening stream socket that somebody else made, for instance systemd.
    ///
    /// # Errors
    /// If it is something else.
    pub fn adopt(fd: OwnedFd) -> io::Result<StreamListener> {
        let bad = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, why.to_owned()));
        if socket::getsockopt(&fd, sockopt::SockType)? != SockType::Stream
            || !socket::getsockopt(&fd, sockopt::AcceptConn)?
        {
            return bad("it is not a listening stream socket (systemd: use ListenStream= with Accept=no)");
        }
        let name: SockaddrStorage = socket::getsockname(fd.as_raw_fd())?;
        match nix::sys::socket::SockaddrLike::family(&name) {
            Some(AddressFamily::Unix) => Ok(StreamListener::Unix(UnixListener::from(fd))),
            Some(AddressFamily::Inet | AddressFamily::Inet6) => Ok(StreamListener::Tcp(TcpListener::from(fd))),
            _ => bad("it is neither a unix nor a TCP socket"),
        }
    }

    /// Listens at a TCP address. A port that a process before us has just left can be taken at once.
    ///
    /// # Errors
    /// Those of the system.
    pub fn tcp(address: SocketAddr) -> io::Result<StreamListener> {
        TcpListener::bind(address).map(StreamListener::Tcp)
    }

    /// Whether [`StreamListener::accept`] may wait.
    ///
    /// # Errors
    /// Those of the system.
    pub fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        match self {
            StreamListener::Unix(l) => l.set_nonblocking(on),
            StreamListener::Tcp(l) => l.set_nonblocking(on),
        }
    }

    /// The next connection.
    ///
    /// # Errors
    /// Those of the system.
    pub fn accept(&self) -> io::Result<Stream> {
        match self {
            StreamListener::Unix(l) => l.accept().map(|(s, _)| Stream::Unix(s)),
            StreamListener::Tcp(l) => l.accept().map(|(s, _)| Stream::tcp(s)),
        }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// If the socket has no name.
    pub fn endpoint(&self) -> io::Result<Endpoint> {
        match self {
            StreamListener::Tcp(l) => l.local_addr().map(Endpoint::from),
            StreamListener::Unix(l) => {
                let address = l.local_addr()?;
                let path = address.as_pathname().map(PathBuf::from);
                path.map(Endpoint::Unix).ok_or_else(|| io::Error::other("the socket has no path"))
            }
        }
    }
}

impl AsFd for StreamListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            StreamListener::Unix(l) => l.as_fd(),
            StreamListener::Tcp(l) => l.as_fd(),
        }
    }
}

#[cfg(test)]
#[path = "net_tests.rs"]
mod tests;
