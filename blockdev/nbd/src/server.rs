//! The server: listens, gives each connection a thread, counts, stops.

use crate::connection::Connection;
use crate::core::{Core, Counts};
use crate::handshake::Handshake;
use crate::listener::Listener;
use crate::socket::{End, Socket, wait_on};
use crate::stop::Stop;
use crate::{Address, Exports, Limits, Listen};
use nix::poll::{PollFd, PollFlags};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Pause after the system refused a connection for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a server has done since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections open now, in the handshake or past it.
    pub connections: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Connections that broke the protocol, a limit or a time-out and were cut off.
    pub cut_off: u64,
    /// Requests answered.
    pub requests: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Bytes read by clients.
    pub bytes_read: u64,
    /// Bytes written by clients.
    pub bytes_written: u64,
}

/// [`Stats`] as they are counted.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    connections: AtomicU64,
    accepted: AtomicU64,
    cut_off: AtomicU64,
    requests: AtomicU64,
    errors: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

impl Counters {
    /// Adds what a connection has counted and sets that to zero.
    pub(crate) fn add(&self, counts: &mut Counts) {
        let counts = std::mem::take(counts);
        for (counter, n) in [
            (&self.requests, counts.requests),
            (&self.errors, counts.errors),
            (&self.bytes_read, counts.bytes_read),
            (&self.bytes_written, counts.bytes_written),
        ] {
            if n > 0 {
                counter.fetch_add(n, Ordering::Relaxed);
            }
        }
    }

    fn stats(&self) -> Stats {
        let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
        Stats {
            connections: get(&self.connections),
            accepted: get(&self.accepted),
            cut_off: get(&self.cut_off),
            requests: get(&self.requests),
            errors: get(&self.errors),
            bytes_read: get(&self.bytes_read),
            bytes_written: get(&self.bytes_written),
        }
    }
}

/// Places for connections past the handshake.
#[derive(Debug)]
pub(crate) struct Seats {
    free: AtomicUsize,
}

/// A taken place; free again when dropped.
#[derive(Debug)]
pub(crate) struct Seat(Arc<Seats>);

impl Seats {
    pub(crate) fn new(n: usize) -> Arc<Self> {
        Arc::new(Self { free: AtomicUsize::new(n) })
    }

    pub(crate) fn take(self: &Arc<Self>) -> Option<Seat> {
        let taken = self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        taken.is_ok().then(|| Seat(Arc::clone(self)))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.free.fetch_add(1, Ordering::Relaxed);
    }
}

/// An open connection in the count, also if its thread panics.
struct Open<'a>(&'a AtomicU64);

impl<'a> Open<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What all connections of a server share.
struct Service {
    exports: Arc<dyn Exports>,
    limits: Limits,
    stop: Stop,
    counters: Counters,
    seats: Arc<Seats>,
}

impl Service {
    fn new(exports: Arc<dyn Exports>, limits: Limits, stop: Stop) -> Self {
        let seats = Seats::new(limits.connections);
        Self { exports, limits, stop, counters: Counters::default(), seats }
    }

    /// Serves a connection to its end. `entered` is set when the handshake is over.
    fn serve(&self, socket: &Socket, entered: &AtomicBool) -> Result<(), End> {
        let (limits, stop) = (&self.limits, &self.stop);
        let session = Handshake::new(socket, &*self.exports, limits, stop, &self.seats).run()?;
        let Some(session) = session else {
            return Ok(());
        };
        entered.store(true, Ordering::Relaxed);
        let _seat = session.seat;
        tracing::debug!("a connection to {:?} begins, {:?} headers", session.export.name, session.terms.mode);
        let core = Core::new(session.terms, session.export.device, session.queue, limits);
        Connection::new(socket, core, limits, stop, &self.counters).run()
    }

    fn serve_and_count(&self, socket: &Socket, entered: &AtomicBool) {
        let _open = Open::new(&self.counters.connections);
        match self.serve(socket, entered) {
            Ok(()) => tracing::debug!("a connection ended"),
            Err(e) if e.is_cut_off() => {
                self.counters.cut_off.fetch_add(1, Ordering::Relaxed);
                tracing::info!("a connection was cut off: {e}");
            }
            Err(e @ End::Device(_)) => tracing::error!("a connection was closed: {e}"),
            Err(e) => tracing::debug!("a connection ended: {e}"),
        }
        // Others may hold the socket a moment longer; the client learns of the end now.
        socket.shutdown();
    }
}

/// Serves a connection that came some other way than through a [`Server`], until it ends. Of the limits, the two
/// on the number of connections are the caller's own business.
///
/// # Errors
/// Why the connection ended, if not by the client's wish.
pub fn serve_connection(stream: OwnedFd, exports: Arc<dyn Exports>, limits: &Limits, stop: &Stop) -> io::Result<()> {
    let service = Service::new(exports, Limits { connections: 1, ..limits.clone() }, stop.clone());
    let socket = Socket::new(stream);
    service.serve(&socket, &AtomicBool::new(false)).map_err(|e| match e {
        End::Io(e) => e,
        e => io::Error::other(e.to_string()),
    })
}

/// A connection's thread, as the accepting thread knows it.
struct Running {
    thread: JoinHandle<()>,
    socket: Weak<Socket>,
    entered: Arc<AtomicBool>,
}

/// A running server. Dropping it stops it without grace.
pub struct Server {
    addresses: Vec<Address>,
    service: Arc<Service>,
    accepting: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Server {
    /// Listens on all addresses and serves the exports on threads of its own.
    ///
    /// # Errors
    /// If one of the addresses cannot be listened on, with its name.
    pub fn start(listen: Vec<Listen>, exports: Arc<dyn Exports>, limits: Limits) -> io::Result<Server> {
        let listeners = listen.into_iter().map(Listener::open).collect::<io::Result<Vec<_>>>()?;
        let addresses = listeners.iter().filter_map(Listener::address).collect();
        let service = Arc::new(Service::new(exports, limits, Stop::new()?));
        let shared = Arc::clone(&service);
        let accepting = thread::Builder::new().name("nbd-accept".into()).spawn(move || accept(&shared, listeners))?;
        Ok(Server { addresses, service, accepting: Some(accepting) })
    }

    /// The addresses listened on, with the port the system chose.
    #[must_use]
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// What was done so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.service.counters.stats()
    }

    /// Takes no new connections and requests, ends those in flight within `grace`, closes, joins all threads and
    /// removes the unix sockets it made. Requests that were not taken get no answer: a client that reconnects asks
    /// again, where an error would reach its user. A request that the device does not end is waited for.
    pub fn stop(mut self, grace: Duration) {
        self.end(grace);
    }

    fn end(&mut self, grace: Duration) {
        self.service.stop.request(grace);
        if self.accepting.take().is_some_and(|t| t.join().is_err()) {
            tracing::error!("the accepting thread of the NBD server has panicked");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

/// Accepts until the stop, then joins all connections.
fn accept(service: &Arc<Service>, listeners: Vec<Listener>) {
    let mut running: Vec<Running> = Vec::new();
    while service.stop.deadline().is_none() {
        let fds = listeners.iter().map(AsFd::as_fd).chain([service.stop.as_fd()]);
        let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        if let Err(e) = wait_on(&mut fds, None) {
            tracing::error!("the NBD server accepts no more connections: {e}");
            break;
        }
        running = running.into_iter().filter_map(still_running).collect();
        for listener in &listeners {
            match listener.accept() {
                Ok(Some(fd)) => running.extend(begin(service, fd)),
                Ok(None) => {}
                Err(e) => {
                    tracing::warn!("a connection cannot be accepted: {e}");
                    pause(&service.stop);
                }
            }
        }
        evict(&running, service.limits.handshakes);
    }
    // No new connections: the sockets go first.
    drop(listeners);
    running.into_iter().for_each(join);
}

fn begin(service: &Arc<Service>, fd: OwnedFd) -> Option<Running> {
    service.counters.accepted.fetch_add(1, Ordering::Relaxed);
    let socket = Arc::new(Socket::new(fd));
    let entered = Arc::new(AtomicBool::new(false));
    let (weak, mine, flag) = (Arc::downgrade(&socket), Arc::clone(service), Arc::clone(&entered));
    let thread = thread::Builder::new().name("nbd".into()).spawn(move || mine.serve_and_count(&socket, &flag));
    match thread {
        Ok(thread) => Some(Running { thread, socket: weak, entered }),
        Err(e) => {
            tracing::warn!("no thread for a connection: {e}");
            None
        }
    }
}

fn still_running(running: Running) -> Option<Running> {
    if !running.thread.is_finished() {
        return Some(running);
    }
    join(running);
    None
}

fn join(running: Running) {
    if running.thread.join().is_err() {
        tracing::error!("the thread of an NBD connection has panicked");
    }
}

/// Cuts off the oldest handshakes beyond the limit.
fn evict(running: &[Running], limit: usize) {
    let shaking = || running.iter().filter(|r| !r.entered.load(Ordering::Relaxed) && !r.thread.is_finished());
    let excess = shaking().count().saturating_sub(limit);
    for socket in shaking().take(excess).filter_map(|r| r.socket.upgrade()) {
        tracing::info!("too many handshakes at once, the oldest is cut off");
        socket.shutdown();
    }
}

fn pause(stop: &Stop) {
    let mut fds = [PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
    if wait_on(&mut fds, Instant::now().checked_add(ACCEPT_PAUSE)).is_err() {
        thread::sleep(ACCEPT_PAUSE);
    }
}
