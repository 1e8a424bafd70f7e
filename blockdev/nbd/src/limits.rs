//! Every limit and time-out of the server, with its reason.

use crate::secure::Tls;
use std::time::Duration;

/// Longest option a client may send, in bytes. The longest useful one is a list of meta context queries of at
/// most 4096 bytes each beside a name of 4096 bytes.
pub const MAX_OPTION: u32 = 64 << 10;

/// Option data up to this long is read and dropped with a polite refusal; a client that announces more is cut off.
pub const MAX_DROPPED_OPTION: u32 = 1 << 20;

/// Longest string of the protocol (names, messages), in bytes; the protocol document says so.
pub const MAX_STRING: usize = 4096;

/// Longest payload that is received only to be dropped with an error, so that a client that asks too much keeps
/// its connection. One that announces more is cut off.
pub const MAX_DROPPED_PAYLOAD: u64 = 64 << 20;

/// What a connection's receive buffer holds when it is quiet: two writes of 128 KiB with their headers, so that the second
/// is used where it arrived, or 65 of 4 KiB, in one system call. A larger one is no faster.
pub const RECEIVE_BUFFER: usize = 264 << 10;

/// Idle read buffers kept per connection, in bytes: enough for 128 reads of 4 KiB in flight without allocating.
pub const POOLED_BYTES: usize = 1 << 20;

/// Unsent reply headers and extents per connection, in bytes. When there are more, the client is not reading, and
/// its requests are left in the socket.
pub const MAX_REPLY_BACKLOG: usize = 256 << 10;

/// Extents in one answer to a block status request. A client asks again from where the answer ends.
pub const MAX_EXTENTS: usize = 4096;

/// How long a grown receive buffer is kept after the last use.
pub const SHRINK_AFTER: Duration = Duration::from_secs(2);

/// Limits of a server that its user may want to change. `Limits::default()` is right for nearly everybody.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections past the handshake. Each may hold [`Limits::bytes_in_flight`] for replies and one request of
    /// [`Limits::request`] bytes in its receive buffer.
    pub connections: usize,
    /// Connections in the handshake. When one more comes, the oldest is cut off, so that silent clients cannot
    /// keep others out.
    pub handshakes: usize,
    /// Time for the whole handshake; a program needs milliseconds, a person typing into a debugger some seconds.
    pub handshake_time: Duration,
    /// Options in one handshake. A client that lists exports asks about each on the same connection.
    pub options: u32,
    /// Longest read or write in bytes, as far as the device allows it.
    pub request: u32,
    /// Requests of one connection that were read and not yet answered.
    pub requests_in_flight: usize,
    /// Bytes of one connection in read requests whose replies are not yet sent. One request may always go on.
    pub bytes_in_flight: usize,
    /// A client silent for so long in the middle of a request is cut off.
    pub payload_time: Duration,
    /// A client that takes no byte of its replies for so long is cut off.
    pub reply_time: Duration,
    /// Whether clients have to speak TLS.
    pub tls: Tls,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 128,
            handshakes: 64,
            handshake_time: Duration::from_secs(30),
            options: 1024,
            request: 32 << 20,
            requests_in_flight: 256,
            bytes_in_flight: 32 << 20,
            payload_time: Duration::from_secs(60),
            reply_time: Duration::from_secs(60),
            tls: Tls::Off,
        }
    }
}
