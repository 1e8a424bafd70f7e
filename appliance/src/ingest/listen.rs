//! Accepting connections, at any number of unix and TCP addresses.
//!
//! All listeners of an appliance share one count of what is open ([`Doors`]): so many connections in all, and so many
//! from one address, so that no peer can take the places of the others.

use super::Shared;
use super::secure::greet;
use super::session::{Connection, Machine, TICK, Volumes, WRITE_LIMIT, serve};
use afterimage_base::net::{Endpoint, Half, Stream, StreamListener};
use afterimage_base::world::sync::Condvar;
use afterimage_base::world::thread::{self, JoinHandle};
use afterimage_trust::Trust;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::HashMap;
use std::io::{self, Read};
use std::net::{IpAddr, Shutdown};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Connections served at once, handshakes included: three threads each.
const MAX_CONNECTIONS: usize = 512;
/// Rest after an accept that failed, for instance because there are no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where the connections of agents come from.
pub trait Acceptor: Send + Sync + std::fmt::Debug {
    /// Waits for the next connection. `None` if one came that could not be set up.
    ///
    /// # Errors
    /// If there will be none any more.
    fn accept(&self) -> io::Result<Option<Connection>>;

    /// Ends [`accept`](Self::accept), for good.
    fn close(&self);
}

/// What is open.
#[derive(Debug)]
pub struct Doors {
    open: Mutex<Open>,
    left: Condvar,
    per_address: usize,
    trust: Option<Arc<Trust>>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    guests: HashMap<u64, Guest>,
}

struct Guest {
    interrupt: Arc<dyn Fn() + Send + Sync>,
    from: Option<IpAddr>,
    machine: Option<Machine>,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Guest({:?})", self.from)
    }
}

/// Who counts as one peer: an IPv6 host has its whole /64.
fn origin(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(v6) => {
            v6.to_ipv4_mapped().map_or_else(|| IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()), IpAddr::V4)
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl Doors {
    /// Takes at most `per_address` connections from one IP address. Unix sockets have none: only the owner reaches them.
    #[must_use]
    pub fn new(per_address: usize, trust: Option<Arc<Trust>>) -> Arc<Doors> {
        Arc::new(Doors { open: Mutex::default(), left: Condvar::default(), per_address, trust })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a peer in, under a number; or says why not.
    fn enter(&self, connection: &Connection) -> Result<u64, String> {
        let from = connection.address.map(origin);
        let mut open = self.lock();
        if open.guests.len() >= MAX_CONNECTIONS {
            return Err(format!("there are {MAX_CONNECTIONS} connections"));
        }
        if let Some(ip) = from
            && open.guests.values().filter(|g| g.from == from).count() >= self.per_address
        {
            return Err(format!("{ip} has {} connections (connections_per_address)", self.per_address));
        }
        open.next += 1;
        let number = open.next;
        open.guests.insert(number, Guest { interrupt: Arc::clone(&connection.interrupt), from, machine: None });
        Ok(number)
    }

    fn leave(&self, number: u64) {
        self.lock().guests.remove(&number);
        self.left.notify_all();
    }

    /// The peer has said who it is. False if it may not stay: its certificate was revoked meanwhile.
    fn identify(&self, number: u64, machine: Option<&Machine>) -> bool {
        if let Some(guest) = self.lock().guests.get_mut(&number) {
            guest.machine = machine.cloned();
        }
        // Looked at behind the entry: a list that comes after this look finds it there.
        !machine.is_some_and(|m| self.is_revoked(m))
    }

    fn is_revoked(&self, machine: &Machine) -> bool {
        self.trust.as_ref().is_some_and(|t| t.is_revoked(&machine.serial))
    }

    /// Cuts off those whose certificates are revoked.
    pub(crate) fn dismiss_revoked(&self) {
        for guest in self.lock().guests.values() {
            if let Some(machine) = guest.machine.as_ref().filter(|m| self.is_revoked(m)) {
                tracing::warn!("machine '{}' is cut off: its certificate was revoked", machine.name);
                (guest.interrupt)();
            }
        }
    }

    /// Cuts off whoever is in, and waits until all have left. To be called when nobody comes in any more.
    pub fn empty(&self) {
        let mut open = self.lock();
        while !open.guests.is_empty() {
            for guest in open.guests.values() {
                (guest.interrupt)();
            }
            open = self.left.wait(&self.open, open);
        }
    }
}

/// Serves agents until it is dropped.
#[derive(Debug)]
pub struct Listener {
    acceptor: Arc<dyn Acceptor>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Serves whoever comes through `acceptor` and is let in.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn start(
        acceptor: Arc<dyn Acceptor>,
        doors: Arc<Doors>,
        shared: Arc<Shared>,
        volumes: Arc<dyn Volumes>,
    ) -> io::Result<Listener> {
        let (source, door) = (Arc::clone(&acceptor), Door { doors, shared, volumes });
        let accept = move || {
            while let Ok(next) = source.accept() {
                if let Some(connection) = next {
                    door.open(connection);
                }
            }
        };
        let thread = thread::spawn("listen", accept)?;
        Ok(Listener { acceptor, thread: Some(thread) })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.acceptor.close();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

struct Door {
    doors: Arc<Doors>,
    shared: Arc<Shared>,
    volumes: Arc<dyn Volumes>,
}

impl Door {
    fn open(&self, connection: Connection) {
        let number = match self.doors.enter(&connection) {
            Ok(number) => number,
            Err(why) => return tracing::warn!("{} was turned away: {why}", connection.peer),
        };
        let (shared, volumes, doors) = (Arc::clone(&self.shared), Arc::clone(&self.volumes), Arc::clone(&self.doors));
        let session = move || {
            match connection.greeted() {
                Ok(connection) if doors.identify(number, connection.machine.as_ref()) => {
                    serve(&shared, &*volumes, connection);
                }
                Ok(connection) => tracing::warn!("{}: refused: its certificate was revoked", connection.peer),
                Err(why) => tracing::warn!("{why}"),
            }
            // Who waits for the last to leave may open the vault again at once.
            drop((shared, volumes));
            doors.leave(number);
        };
        if let Err(e) = thread::spawn("session", session) {
            self.doors.leave(number);
            tracing::error!("no thread for a connection: {e}");
        }
    }
}

/// Binds a unix socket for the owner only. A socket that nobody listens at is replaced.
fn bind_unix(path: &Path) -> io::Result<StreamListener> {
    if UnixStream::connect(path).is_ok() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(StreamListener::Unix(listener))
}

/// A listening socket.
#[derive(Debug)]
pub struct SocketAcceptor {
    socket: StreamListener,
    /// Its file, to be removed at the end.
    made: Option<PathBuf>,
    wake: UnixStream,
    woken: UnixStream,
    trust: Option<Arc<Trust>>,
}

impl SocketAcceptor {
    /// Listens at all addresses that `endpoint` stands for. With `trust`, TCP begins with TLS; unix sockets are the owner's alone.
    ///
    /// # Errors
    /// If somebody listens there, the name is unknown, or the system refuses.
    pub fn bind(endpoint: &Endpoint, trust: Option<&Arc<Trust>>) -> io::Result<Vec<SocketAcceptor>> {
        if let Endpoint::Unix(path) = endpoint {
            return Ok(vec![Self::new(bind_unix(path)?, Some(path.clone()), None)?]);
        }
        endpoint
            .resolve()?
            .into_iter()
            .map(|address| Self::new(StreamListener::tcp(address)?, None, trust.cloned()))
            .collect()
    }

    /// Accepts at a socket that listens already. `made` is its file, to be removed at the end.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn new(socket: StreamListener, made: Option<PathBuf>, trust: Option<Arc<Trust>>) -> io::Result<SocketAcceptor> {
        socket.set_nonblocking(true)?;
        let (wake, woken) = UnixStream::pair()?;
        Ok(SocketAcceptor { socket, made, wake, woken, trust })
    }

    /// Where it listens, with the port that the system chose.
    ///
    /// # Errors
    /// If the socket has no name.
    pub fn endpoint(&self) -> io::Result<Endpoint> {
        self.socket.endpoint()
    }
}

impl Acceptor for SocketAcceptor {
    fn accept(&self) -> io::Result<Option<Connection>> {
        let of = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = [of(self.socket.as_fd()), of(self.woken.as_fd())];
        // An error here is an interruption by a signal.
        let _ = poll(&mut fds, PollTimeout::NONE);
        if fds[1].revents().is_some_and(|r| !r.is_empty()) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        match self.socket.accept().and_then(|stream| connection(stream, self.trust.as_ref())) {
            Ok(connection) => Ok(Some(connection)),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
            Err(e) => {
                tracing::warn!("a connection could not be accepted: {e}");
                afterimage_base::world::sleep(ACCEPT_PAUSE);
                Ok(None)
            }
        }
    }

    fn close(&self) {
        // Who waits in accept sees the end of this.
        drop(self.wake.shutdown(Shutdown::Both));
        if let Some(path) = &self.made {
            drop(std::fs::remove_file(path));
        }
    }
}

/// The receiving side, which ends when it is told to: TCP goes on delivering after a shutdown of one direction.
pub(super) struct Incoming<R> {
    pub(super) stream: R,
    pub(super) interrupted: Arc<AtomicBool>,
}

impl<R: Read> Read for Incoming<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.interrupted.load(Ordering::Acquire) {
            return Ok(0);
        }
        self.stream.read(buf)
    }
}

/// A stream as a connection. With `trust`, a TCP connection has to begin with TLS and say who it is.
///
/// # Errors
/// If the system refuses the time limits.
pub fn connection(stream: Stream, trust: Option<&Arc<Trust>>) -> io::Result<Connection> {
    let stream = Arc::new(stream);
    let address = stream.peer();
    stream.set_read_timeout(Some(TICK))?;
    stream.set_write_timeout(Some(WRITE_LIMIT))?;
    let (poller, stopper) = (Arc::clone(&stream), Arc::clone(&stream));
    let readable = move |limit: Duration| {
        let mut fds = [PollFd::new(poller.as_fd(), PollFlags::POLLIN)];
        let limit = u16::try_from(limit.as_millis()).unwrap_or(u16::MAX);
        poll(&mut fds, PollTimeout::from(limit)).is_ok_and(|n| n > 0)
    };
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    let interrupt = move || {
        flag.store(true, Ordering::Release);
        drop(stopper.shutdown(Shutdown::Read));
    };
    let greet = trust
        .filter(|_| matches!(*stream, Stream::Tcp(_)))
        .map(|trust| greet(Arc::clone(&stream), Arc::clone(&interrupted), Arc::clone(trust)));
    Ok(Connection {
        machine: None,
        greet,
        peer: address.map_or_else(|| "unix socket".to_owned(), |a| a.to_string()),
        address: address.map(|a| a.ip()),
        reader: Box::new(Incoming { stream: Half(Arc::clone(&stream)), interrupted }),
        writer: Box::new(Half(stream)),
        readable: Box::new(readable),
        interrupt: Arc::new(interrupt),
    })
}

#[cfg(test)]
#[path = "listen_tests.rs"]
mod tests;
