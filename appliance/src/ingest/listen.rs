//! Accepting connections.

use super::Shared;
use super::session::{Connection, TICK, Volumes, WRITE_LIMIT, serve};
use afterimage_base::world;
use afterimage_base::world::thread::{self, JoinHandle};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Connections served at once, handshakes included: three threads each.
const MAX_CONNECTIONS: usize = 512;

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

/// What cuts off the connections under way.
type Open = Arc<Mutex<HashMap<u64, Arc<dyn Fn() + Send + Sync>>>>;

/// Serves agents until it is dropped.
pub struct Listener {
    acceptor: Arc<dyn Acceptor>,
    thread: Option<JoinHandle<()>>,
    open: Open,
    count: Arc<AtomicUsize>,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Listener({:?})", self.acceptor)
    }
}

impl Listener {
    /// Serves whoever comes through `acceptor`.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn start(acceptor: Arc<dyn Acceptor>, shared: Arc<Shared>, volumes: Arc<dyn Volumes>) -> io::Result<Listener> {
        let (open, count): (Open, Arc<AtomicUsize>) = (Arc::default(), Arc::new(AtomicUsize::new(0)));
        let (source, streams, served) = (Arc::clone(&acceptor), Arc::clone(&open), Arc::clone(&count));
        let accept = move || {
            for number in 0u64.. {
                let connection = match source.accept() {
                    Ok(Some(connection)) => connection,
                    Ok(None) => continue,
                    Err(_) => break,
                };
                if served.fetch_add(1, Ordering::AcqRel) >= MAX_CONNECTIONS {
                    served.fetch_sub(1, Ordering::AcqRel);
                    tracing::warn!("more than {MAX_CONNECTIONS} connections; one was turned away");
                    continue;
                }
                spawn(number, connection, &shared, &volumes, &streams, &served);
            }
        };
        let thread = thread::spawn("listen", accept)?;
        Ok(Listener { acceptor, thread: Some(thread), open, count })
    }
}

fn spawn(
    number: u64,
    connection: Connection,
    shared: &Arc<Shared>,
    volumes: &Arc<dyn Volumes>,
    open: &Open,
    served: &Arc<AtomicUsize>,
) {
    let (shared, volumes, served) = (Arc::clone(shared), Arc::clone(volumes), Arc::clone(served));
    open.lock().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::clone(&connection.interrupt));
    let (end, streams) = (Arc::clone(&served), Arc::clone(open));
    let session = move || {
        serve(&shared, &*volumes, connection);
        streams.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        served.fetch_sub(1, Ordering::AcqRel);
    };
    if let Err(e) = thread::spawn("session", session) {
        open.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        end.fetch_sub(1, Ordering::AcqRel);
        tracing::error!("no thread for a connection: {e}");
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.acceptor.close();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
        // Those still in their handshake are cut off; sessions have been ended by the volumes.
        for interrupt in self.open.lock().unwrap_or_else(PoisonError::into_inner).values() {
            interrupt();
        }
        while self.count.load(Ordering::Acquire) > 0 {
            world::sleep(Duration::from_millis(1));
        }
    }
}

/// A unix socket.
#[derive(Debug)]
pub struct UnixAcceptor {
    path: PathBuf,
    listener: UnixListener,
    closed: AtomicBool,
}

impl UnixAcceptor {
    /// Listens at `path`, a socket for the owner only. A socket that nobody listens at is replaced.
    ///
    /// # Errors
    /// If somebody listens there, or the system refuses.
    pub fn bind(path: &Path) -> io::Result<UnixAcceptor> {
        if UnixStream::connect(path).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(UnixAcceptor { path: path.into(), listener, closed: AtomicBool::new(false) })
    }
}

impl Acceptor for UnixAcceptor {
    fn accept(&self) -> io::Result<Option<Connection>> {
        let (stream, _) = self.listener.accept()?;
        if self.closed.load(Ordering::Acquire) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let connection = connection(stream);
        Ok(connection.inspect_err(|e| tracing::warn!("a connection could not be set up: {e}")).ok())
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        // Wakes the thread from its accept.
        drop(UnixStream::connect(&self.path));
        drop(std::fs::remove_file(&self.path));
    }
}

/// A unix stream as a connection.
///
/// # Errors
/// If the system refuses another descriptor or the time limits.
pub fn connection(stream: UnixStream) -> io::Result<Connection> {
    stream.set_read_timeout(Some(TICK))?;
    stream.set_write_timeout(Some(WRITE_LIMIT))?;
    let (writer, poller, stopper) = (stream.try_clone()?, stream.try_clone()?, stream.try_clone()?);
    let readable = move |limit: Duration| {
        let mut fds = [PollFd::new(poller.as_fd(), PollFlags::POLLIN)];
        let limit = u16::try_from(limit.as_millis()).unwrap_or(u16::MAX);
        poll(&mut fds, PollTimeout::from(limit)).is_ok_and(|n| n > 0)
    };
    let interrupt = move || drop(stopper.shutdown(Shutdown::Read));
    Ok(Connection {
        peer: "unix socket".into(),
        reader: Box::new(stream),
        writer: Box::new(writer),
        readable: Box::new(readable),
        interrupt: Arc::new(interrupt),
    })
}
