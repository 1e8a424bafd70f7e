//! How the agent reaches the appliance: a stream in two halves, for a thread each.

use afterimage_base::net::{Endpoint, Half, Listening, Stream};
use afterimage_trust::stream::{Tls, deadline, who};
use afterimage_trust::{ALPN_DATA, Trust};
use std::io::{self, BufReader, IoSlice, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Duration;

/// Longest that one write to the appliance may hang before the connection is given up.
pub const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a reader that has nothing to read looks whether it should stop.
pub const READ_TICK: Duration = Duration::from_millis(200);

/// Makes connections to one appliance.
pub trait Connector: Send + Sync {
    /// Connects, within a bounded time. Reads of the stream end after [`READ_TICK`] with `WouldBlock` or `TimedOut` if
    /// nothing came; writes end after [`SEND_TIMEOUT`].
    ///
    /// # Errors
    /// Whatever is in the way.
    fn connect(&self) -> io::Result<Connection>;

    /// The appliance, for messages.
    fn describe(&self) -> String;
}

/// A connection: what is read from, what is written to, and what ends both from any thread.
pub struct Connection {
    /// Messages of the appliance.
    pub reader: Box<dyn Read + Send>,
    /// Messages to the appliance.
    pub writer: Box<dyn VectoredWrite>,
    /// Ends the connection: reads and writes that wait return.
    pub closer: Arc<dyn Fn() + Send + Sync>,
}

/// A writer that takes several buffers at once.
pub trait VectoredWrite: Send {
    /// As [`Write::write_vectored`].
    ///
    /// # Errors
    /// As [`Write::write_vectored`].
    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize>;
}

impl<W: Write + Send> VectoredWrite for W {
    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        Write::write_vectored(self, bufs)
    }
}

/// A connection over a stream socket.
///
/// # Errors
/// If the system has no descriptors left.
pub fn over(stream: Stream) -> io::Result<Connection> {
    stream.set_read_timeout(Some(READ_TICK))?;
    stream.set_write_timeout(Some(SEND_TIMEOUT))?;
    let stream = Half(Arc::new(stream));
    let (reader, closing) = (stream.clone(), stream.clone());
    let closer = move || {
        // It may be closed already.
        let _ = closing.0.shutdown(Shutdown::Both);
    };
    let reader = BufReader::new(Listening::new(reader, READ_TICK));
    Ok(Connection { reader: Box::new(reader), writer: Box::new(stream), closer: Arc::new(closer) })
}

struct SocketConnector {
    endpoint: Endpoint,
    local_only: bool,
}

impl Connector for SocketConnector {
    fn connect(&self) -> io::Result<Connection> {
        over(self.endpoint.connect(self.local_only)?)
    }

    fn describe(&self) -> String {
        self.endpoint.to_string()
    }
}

/// Connects to the appliance at `endpoint`. With `local_only`, never to another machine: the stream is plain text.
#[must_use]
pub fn connector(endpoint: Endpoint, local_only: bool) -> Arc<dyn Connector> {
    Arc::new(SocketConnector { endpoint, local_only })
}

/// How long TLS may take to begin.
const HANDSHAKE: Duration = Duration::from_secs(15);

struct SecureConnector {
    endpoint: Endpoint,
    /// Who this agent is, or why that is not known.
    trust: Result<Arc<Trust>, String>,
}

impl Connector for SecureConnector {
    fn connect(&self) -> io::Result<Connection> {
        let trust = self.trust.as_ref().map_err(|e| io::Error::other(e.clone()))?;
        let stream = self.endpoint.connect(false)?;
        stream.set_read_timeout(Some(READ_TICK))?;
        stream.set_write_timeout(Some(SEND_TIMEOUT))?;
        let (config, guard) = trust.client(trust.data_peer(), ALPN_DATA).map_err(io::Error::other)?;
        let result = Tls::client(Arc::new(stream), config, &guard, deadline(HANDSHAKE));
        let name = || who(&self.endpoint.to_string(), &guard.verdict());
        let tls = result.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", name())))?;
        if tls.protocol().as_deref() != Some(ALPN_DATA) {
            return Err(io::Error::other(format!("{}: it is no appliance", name())));
        }
        let (reader, writer) = tls.split();
        let closing = writer.clone();
        Ok(Connection { reader: Box::new(reader), writer: Box::new(writer), closer: Arc::new(move || closing.close()) })
    }

    fn describe(&self) -> String {
        self.endpoint.to_string()
    }
}

/// Connects to the appliance at `endpoint` with TLS, and to none but that of this agent's vault. There is no way back to plain
/// text: without credentials, and with those that cannot be used, no connection is made.
#[must_use]
pub fn secure_connector(endpoint: Endpoint, trust: Result<Arc<Trust>, String>) -> Arc<dyn Connector> {
    Arc::new(SecureConnector { endpoint, trust })
}

/// Connects to the appliance's socket at `path`.
#[must_use]
pub fn unix_connector(path: impl AsRef<std::path::Path>) -> Arc<dyn Connector> {
    connector(Endpoint::Unix(path.as_ref().to_path_buf()), true)
}
