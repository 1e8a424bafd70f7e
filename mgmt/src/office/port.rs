//! Listening: a thread for each connection, a limit on their number and time.

use super::session::serve;
use super::{Office, clerk};
use afterimage_base::net::{Endpoint, Stream, StreamListener};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Shutdown};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Connections at once.
const MOST: usize = 1024;
/// Of those, from one address.
const MOST_PER_ADDRESS: usize = 128;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Default)]
struct Open {
    next: u64,
    streams: BTreeMap<u64, (Arc<Stream>, Option<IpAddr>)>,
}

#[derive(Default)]
struct Shared {
    open: Mutex<Open>,
    left: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self, number: u64) {
        self.lock().streams.remove(&number);
        self.left.notify_all();
    }
}

/// The listening port. Dropping it ends all conversations.
pub struct Port {
    addresses: Vec<Endpoint>,
    shared: Arc<Shared>,
    wake: Vec<UnixStream>,
    threads: Vec<JoinHandle<()>>,
    clerk: Option<(Arc<Office>, JoinHandle<()>)>,
}

impl std::fmt::Debug for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Port({:?})", self.addresses)
    }
}

impl Port {
    /// Listens at all addresses that `listen` stands for.
    ///
    /// # Errors
    /// If one of them cannot be listened at, with its name.
    pub fn open(office: &Arc<Office>, listen: &[Endpoint]) -> io::Result<Port> {
        let (addresses, shared, wake, threads) = (Vec::new(), Arc::default(), Vec::new(), Vec::new());
        let mut port = Port { addresses, shared, wake, threads, clerk: None };
        office.clerk.begin();
        let of_clerk = Arc::clone(office);
        let clerk = thread::Builder::new().name("mgmt-clerk".to_owned()).spawn(move || clerk::run(&of_clerk))?;
        port.clerk = Some((Arc::clone(office), clerk));
        for endpoint in listen {
            let named = |e: io::Error| io::Error::new(e.kind(), format!("cannot listen on {endpoint}: {e}"));
            for address in endpoint.resolve().map_err(named)? {
                let listener = StreamListener::tcp(address).map_err(named)?;
                listener.set_nonblocking(true)?;
                port.addresses.push(listener.endpoint()?);
                let (wake, woken) = UnixStream::pair()?;
                port.wake.push(wake);
                let (shared, office) = (Arc::clone(&port.shared), Arc::clone(office));
                let accept = move || accept(&listener, &woken, &shared, &office);
                port.threads.push(thread::Builder::new().name("mgmt-accept".to_owned()).spawn(accept)?);
            }
        }
        Ok(port)
    }

    /// Where it listens, with the ports that the system chose.
    #[must_use]
    pub fn addresses(&self) -> &[Endpoint] {
        &self.addresses
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.wake.clear();
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
        let mut open = self.shared.lock();
        while !open.streams.is_empty() {
            for (stream, _) in open.streams.values() {
                // It may have ended already.
                let _ = stream.shutdown(Shutdown::Both);
            }
            open = self.shared.left.wait(open).unwrap_or_else(PoisonError::into_inner);
        }
        drop(open);
        if let Some((office, clerk)) = self.clerk.take() {
            office.clerk.stop();
            drop(clerk.join());
        }
    }
}

fn accept(listener: &StreamListener, woken: &UnixStream, shared: &Arc<Shared>, office: &Arc<Office>) {
    loop {
        let of = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = [of(listener.as_fd()), of(woken.as_fd())];
        // An error here is an interruption by a signal.
        let _ = poll(&mut fds, PollTimeout::NONE);
        if fds[1].revents().is_some_and(|r| !r.is_empty()) {
            return;
        }
        match listener.accept() {
            Ok(stream) => begin(stream, shared, office),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(e) => {
                tracing::warn!("a connection could not be accepted: {e}");
                thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

fn begin(stream: Stream, shared: &Arc<Shared>, office: &Arc<Office>) {
    let Some(address) = stream.peer() else { return };
    let (from, stream) = (Some(address.ip()), Arc::new(stream));
    let number = {
        let mut open = shared.lock();
        let of_it = open.streams.values().filter(|s| s.1 == from).count();
        if open.streams.len() >= MOST || of_it >= MOST_PER_ADDRESS {
            return tracing::warn!("{address} was turned away: there are too many connections");
        }
        open.next += 1;
        let number = open.next;
        open.streams.insert(number, (Arc::clone(&stream), from));
        number
    };
    let (of_thread, office) = (Arc::clone(shared), Arc::clone(office));
    let conversation = move || {
        if let Err(e) = serve(&office, number, &stream, &address.to_string()) {
            tracing::warn!("{e}");
        }
        // Others hold the socket a moment longer; the peer learns of the end now.
        let _ = stream.shutdown(Shutdown::Both);
        drop(office);
        of_thread.leave(number);
    };
    if let Err(e) = thread::Builder::new().name("mgmt-session".to_owned()).spawn(conversation) {
        shared.leave(number);
        tracing::error!("no thread for a connection: {e}");
    }
}
