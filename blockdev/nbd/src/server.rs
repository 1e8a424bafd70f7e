//! The server: listens, gives each connection a thread, counts, stops.

use crate::{Address, Exports, Limits, Listen};
use std::io;
use std::sync::Arc;
use std::time::Duration;

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

/// A running server. Dropping it stops it without grace.
#[derive(Debug)]
pub struct Server {
    addresses: Vec<Address>,
}

impl Server {
    /// Listens on all addresses and serves the exports on threads of its own.
    ///
    /// # Errors
    /// If one of the addresses cannot be listened on, with its name.
    pub fn start(listen: Vec<Listen>, exports: Arc<dyn Exports>, limits: Limits) -> io::Result<Server> {
        let _ = (listen, exports, limits);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The addresses listened on, with the port the system chose.
    #[must_use]
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// What was done so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats::default()
    }

    /// Takes no new connections and requests, ends those in flight within `grace`, closes, joins all threads and
    /// removes the unix sockets it made.
    pub fn stop(self, grace: Duration) {
        let _ = grace;
    }
}
