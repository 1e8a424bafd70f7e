//! Accepting connections on a unix socket.

use super::Shared;
use super::session::{Connection, TICK, Volumes, WRITE_LIMIT, serve};
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
use std::thread::JoinHandle;
use std::time::Duration;

/// Connections served at once, handshakes included: three threads each.
const MAX_CONNECTIONS: usize = 512;

/// The sockets of connections under way, so that they can be cut off.
type Open = Arc<Mutex<HashMap<u64, UnixStream>>>;

/// Accepts agents until it is dropped.
#[derive(Debug)]
pub struct Listener {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    open: Open,
    count: Arc<AtomicUsize>,
}

impl Listener {
    /// Listens at `path`, a socket for the owner only. A socket that nobody listens at is replaced.
    ///
    /// # Errors
    /// If somebody listens there, or the system refuses.
    pub fn start(path: &Path, shared: Arc<Shared>, volumes: Arc<dyn Volumes>) -> io::Result<Listener> {
        if UnixStream::connect(path).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (open, count): (Open, Arc<AtomicUsize>) = (Arc::default(), Arc::new(AtomicUsize::new(0)));
        let (flag, streams, served) = (Arc::clone(&stop), Arc::clone(&open), Arc::clone(&count));
        let accept = move || {
            for number in 0u64.. {
                let Ok((stream, _)) = listener.accept() else { break };
                if flag.load(Ordering::Acquire) {
                    break;
                }
                if served.fetch_add(1, Ordering::AcqRel) >= MAX_CONNECTIONS {
                    served.fetch_sub(1, Ordering::AcqRel);
                    tracing::warn!("more than {MAX_CONNECTIONS} connections; one was turned away");
                    continue;
                }
                spawn(number, stream, &shared, &volumes, &streams, &served);
            }
        };
        let thread = std::thread::Builder::new().name("listen".into()).spawn(accept)?;
        Ok(Listener { path: path.into(), stop, thread: Some(thread), open, count })
    }
}

fn spawn(
    number: u64,
    stream: UnixStream,
    shared: &Arc<Shared>,
    volumes: &Arc<dyn Volumes>,
    open: &Open,
    served: &Arc<AtomicUsize>,
) {
    let (shared, volumes, served) = (Arc::clone(shared), Arc::clone(volumes), Arc::clone(served));
    if let Ok(copy) = stream.try_clone() {
        open.lock().unwrap_or_else(PoisonError::into_inner).insert(number, copy);
    }
    let (end, streams) = (Arc::clone(&served), Arc::clone(open));
    let session = move || {
        match connection(stream) {
            Ok(connection) => serve(&shared, &*volumes, connection),
            Err(e) => tracing::warn!("a connection could not be set up: {e}"),
        }
        streams.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        served.fetch_sub(1, Ordering::AcqRel);
    };
    if let Err(e) = std::thread::Builder::new().name("session".into()).spawn(session) {
        open.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        end.fetch_sub(1, Ordering::AcqRel);
        tracing::error!("no thread for a connection: {e}");
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

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the thread from its accept.
        drop(UnixStream::connect(&self.path));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
        drop(std::fs::remove_file(&self.path));
        // Those still in their handshake are cut off; sessions have been ended by the volumes.
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).values() {
            drop(stream.shutdown(Shutdown::Read));
        }
        while self.count.load(Ordering::Acquire) > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
