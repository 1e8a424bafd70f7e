//! The daemon's end of the control socket: a thread per connection, a limit on their number.

use crate::fdpass;
use crate::lines::{LineError, LineReader, MAX_REQUEST, write_line};
use crate::protocol::{Access, Code, DiffEnd, Envelope, Extents, Failure, Position, Reply, Request, VERSION};
use crate::site::{Opened, Site};
use crate::verify::VerifyOptions;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Uid, User};
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Most connections at once. Each is a thread; restores and exports hold one each.
pub const MAX_CONNECTIONS: usize = 256;
/// How long a connection may be silent between requests.
const IDLE: Duration = Duration::from_secs(60);
/// How long a client may take to read an answer.
const WRITE: Duration = Duration::from_secs(30);
/// Shortest interval of a watch.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// Extents in one line of a diff.
const DIFF_PART: usize = 4096;

#[derive(Debug, Default)]
struct Connections {
    next: u64,
    open: BTreeMap<u64, UnixStream>,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    connections: Mutex<Connections>,
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running control socket. Dropping it stops it.
#[derive(Debug)]
pub struct ControlServer {
    path: PathBuf,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl ControlServer {
    /// Listens on `path` (mode 0600), which is replaced if it is there: the caller holds the data folder's lock.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub fn start(path: &Path, site: Arc<dyn Site>) -> io::Result<ControlServer> {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        let shared = Arc::new(Shared { stop: AtomicBool::new(false), connections: Mutex::default() });
        let accepting = Arc::clone(&shared);
        let acceptor =
            thread::Builder::new().name("control".to_owned()).spawn(move || accept(&listener, &accepting, &site))?;
        Ok(ControlServer { path: path.to_owned(), shared, acceptor: Some(acceptor) })
    }

    /// Cuts all connections and stops listening.
    pub fn stop(&mut self) {
        let Some(acceptor) = self.acceptor.take() else { return };
        self.shared.stop.store(true, Ordering::SeqCst);
        // A connection of our own wakes the acceptor out of accept().
        drop(UnixStream::connect(&self.path));
        for stream in self.shared.connections().open.values() {
            drop(stream.shutdown(Shutdown::Both));
        }
        drop(acceptor.join());
        drop(std::fs::remove_file(&self.path));
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>, site: &Arc<dyn Site>) {
    while !shared.stop.load(Ordering::SeqCst) {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(e) => {
                tracing::warn!("the control socket cannot accept a connection: {e}");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        if let Err(e) = start_connection(stream, shared, site) {
            tracing::warn!("a control connection was refused: {e}");
        }
    }
}

fn start_connection(stream: UnixStream, shared: &Arc<Shared>, site: &Arc<dyn Site>) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(WRITE))?;
    let id = {
        let mut connections = shared.connections();
        if connections.open.len() >= MAX_CONNECTIONS {
            let busy = Failure::new(Code::Busy, "too many control connections are open; try again later");
            drop(write_line(&stream, &Reply::Error { error: busy }));
            return Ok(());
        }
        connections.next += 1;
        let id = connections.next;
        connections.open.insert(id, stream.try_clone()?);
        id
    };
    let (shared, site) = (Arc::clone(shared), Arc::clone(site));
    let forget = Arc::clone(&shared);
    let spawned = thread::Builder::new().name(format!("control-{id}")).spawn(move || {
        if let Err(e) = serve(stream, &shared, &*site) {
            tracing::debug!("control connection {id} ended: {e}");
        }
        shared.connections().open.remove(&id);
    });
    if spawned.is_err() {
        forget.connections().open.remove(&id);
    }
    spawned.map(drop)
}

fn answer<T: serde::Serialize>(stream: &UnixStream, value: &T, more: bool) -> Result<(), LineError> {
    write_line(stream, &Reply::Ok { ok: serde_json::to_value(value)?, more })
}

fn fail(stream: &UnixStream, error: Failure) -> Result<(), LineError> {
    write_line(stream, &Reply::Error { error })
}

fn finish<T: serde::Serialize>(stream: &UnixStream, result: Result<T, Failure>) -> Result<(), LineError> {
    match result {
        Ok(value) => answer(stream, &value, false),
        Err(error) => fail(stream, error),
    }
}

fn serve(stream: UnixStream, shared: &Shared, site: &dyn Site) -> Result<(), LineError> {
    let mut lines = LineReader::new(stream.try_clone()?, MAX_REQUEST);
    loop {
        let request = match lines.read::<serde_json::Value>() {
            Ok(None) => return Ok(()),
            Ok(Some(value)) => read_request(value),
            Err(LineError::Json(e)) => Err(Failure::new(Code::BadRequest, format!("the request is not JSON: {e}"))),
            Err(e @ LineError::TooLong(_)) => {
                return fail(&stream, Failure::new(Code::BadRequest, e.to_string()));
            }
            Err(e) => return Err(e),
        };
        match request {
            Err(failure) => fail(&stream, failure)?,
            Ok(Request::Status) => finish(&stream, site.status())?,
            Ok(Request::Points { volume }) => finish(&stream, site.points(&volume))?,
            Ok(Request::CreatePoint { volume, name, app: false }) => {
                finish(&stream, site.create_point(&volume, &name))?;
            }
            Ok(Request::CreatePoints { name }) => finish(&stream, site.create_points(&name))?,
            Ok(Request::CreatePoint { volume, name, app: true }) => {
                finish(&stream, site.create_app_point(&volume, &name))?;
            }
            Ok(Request::Retention { volume, change, dry_run }) => {
                finish(&stream, site.retention(&volume, &change, dry_run))?;
            }
            Ok(Request::ChangePoint { volume, name, action }) => {
                finish(&stream, site.change_point(&volume, &name, action))?;
            }
            Ok(Request::ResizeVolume { volume, size }) => finish(&stream, site.resize_volume(&volume, size))?,
            Ok(Request::CompareVolume { volume }) => finish(&stream, site.compare_volume(&volume))?,
            Ok(Request::Attach { volume, options }) => finish(&stream, site.attach(&volume, &options))?,
            Ok(Request::Detach { what }) => finish(&stream, site.detach(&what))?,
            Ok(Request::Resolve { volume, at }) => finish(&stream, site.resolve(&volume, &at))?,
            Ok(Request::Diff { volume, base, from, to }) => {
                let base = base.as_deref().unwrap_or(&volume);
                diff(&stream, site.diff((base, &from), (&volume, &to)))?;
            }
            Ok(Request::Fence { ask }) => finish(&stream, site.fence(&ask))?,
            Ok(Request::Branch { ask }) => finish(&stream, site.branch(&ask))?,
            Ok(Request::Verify { volume, options }) => verify(&stream, site, &volume, &options)?,
            Ok(Request::Watch { interval_ms }) => {
                return watch(&stream, shared, site, Duration::from_millis(interval_ms).max(MIN_INTERVAL));
            }
            Ok(Request::Mgmt { call }) => finish(&stream, site.mgmt(&caller(&stream), &call))?,
            Ok(Request::AgentDisk { volume }) => return hand_over(&stream, lines, site.agent_disk(&volume)),
            Ok(Request::Nbd { volume, at, writable, branch }) => {
                return hand_over(&stream, lines, site.open(&volume, &at, Access::of(writable, branch)));
            }
            Ok(Request::Export { volume, at, writable, branch }) => {
                return export(&stream, lines, site.open(&volume, &at, Access::of(writable, branch)));
            }
        }
    }
}

/// Who is at the other end, for the audit log.
fn caller(stream: &UnixStream) -> String {
    let Ok(peer) = getsockopt(stream, PeerCredentials) else { return "somebody at the control socket".to_owned() };
    let name = User::from_uid(Uid::from_raw(peer.uid())).ok().flatten().map(|u| u.name);
    format!("user {} (uid {})", name.as_deref().unwrap_or("?"), peer.uid())
}

fn read_request(value: serde_json::Value) -> Result<Request, Failure> {
    match value.get("v").and_then(serde_json::Value::as_u64) {
        Some(v) if v == u64::from(VERSION) => {}
        Some(v) => {
            let text =
                format!("the request is of version {v}, this process speaks version {VERSION} of the control protocol");
            return Err(Failure::new(Code::Version, text));
        }
        None => return Err(Failure::new(Code::BadRequest, "the request has no version (\"v\")")),
    }
    let envelope: Envelope = serde_json::from_value(value)
        .map_err(|e| Failure::new(Code::BadRequest, format!("the request was not understood: {e}")))?;
    Ok(envelope.request)
}

fn watch(stream: &UnixStream, shared: &Shared, site: &dyn Site, interval: Duration) -> Result<(), LineError> {
    while !shared.stop.load(Ordering::SeqCst) {
        match site.status() {
            Ok(status) => answer(stream, &status, true)?,
            Err(failure) => return fail(stream, failure),
        }
        // The client sends nothing: a read that ends before the time is its goodbye.
        stream.set_read_timeout(Some(interval))?;
        match (&*stream).read(&mut [0]) {
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            _ => return Ok(()),
        }
    }
    Ok(())
}

fn diff(stream: &UnixStream, result: Result<(DiffEnd, Vec<(u64, u64)>), Failure>) -> Result<(), LineError> {
    let (end, extents) = match result {
        Ok(found) => found,
        Err(failure) => return fail(stream, failure),
    };
    for part in extents.chunks(DIFF_PART) {
        answer(stream, &Extents { extents: part.to_vec() }, true)?;
    }
    answer(stream, &end, false)
}

/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_millis(200);

fn verify(stream: &UnixStream, site: &dyn Site, volume: &str, options: &VerifyOptions) -> Result<(), LineError> {
    let mut said = std::time::Instant::now();
    let mut gone = None;
    let report = site.verify(volume, options, &mut |progress| {
        if said.elapsed() >= PROGRESS {
            said = std::time::Instant::now();
            gone = answer(stream, &progress, true).err();
        }
        gone.is_none()
    });
    match gone {
        Some(e) => Err(e),
        None => finish(stream, report),
    }
}

type OpenResult = Result<(Position, Box<dyn Opened>), Failure>;

fn early(stream: &UnixStream) -> Result<(), LineError> {
    fail(stream, Failure::new(Code::BadRequest, "bytes were sent before the answer"))
}

fn hand_over<T: serde::Serialize>(
    stream: &UnixStream,
    lines: LineReader<UnixStream>,
    opened: Result<(T, Box<dyn Opened>), Failure>,
) -> Result<(), LineError> {
    let (what, opened) = match opened {
        Ok(found) => found,
        Err(failure) => return fail(stream, failure),
    };
    let Some(mut inner) = lines.into_inner() else { return early(stream) };
    answer(stream, &what, false)?;
    inner.read_exact(&mut [0])?;
    inner.set_read_timeout(None)?;
    inner.set_write_timeout(None)?;
    opened.serve_stream(inner);
    Ok(())
}

fn export(stream: &UnixStream, lines: LineReader<UnixStream>, opened: OpenResult) -> Result<(), LineError> {
    let (position, opened) = match opened {
        Ok(found) => found,
        Err(failure) => return fail(stream, failure),
    };
    let Some(mut inner) = lines.into_inner() else { return early(stream) };
    answer(stream, &position, true)?;
    let listener = UnixListener::from(fdpass::receive(&inner)?);
    let guard = match opened.serve_listener(listener) {
        Ok(guard) => guard,
        Err(failure) => return fail(stream, failure),
    };
    answer(stream, &position, false)?;
    // Nothing more is said: the end of this connection, however it comes, is the end of the export.
    inner.set_read_timeout(None)?;
    while matches!(inner.read(&mut [0; 64]), Ok(n) if n > 0) {}
    drop(guard);
    Ok(())
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
