//! How the agent reaches the appliance: a stream in two halves, for a thread each.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
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

/// A connection over a unix stream.
///
/// # Errors
/// If the system has no descriptors left.
pub fn over_unix(stream: UnixStream) -> io::Result<Connection> {
    stream.set_read_timeout(Some(READ_TICK))?;
    stream.set_write_timeout(Some(SEND_TIMEOUT))?;
    let (reader, closing) = (stream.try_clone()?, stream.try_clone()?);
    let closer = move || {
        // It may be closed already.
        let _ = closing.shutdown(Shutdown::Both);
    };
    Ok(Connection { reader: Box::new(reader), writer: Box::new(stream), closer: Arc::new(closer) })
}

struct UnixConnector(PathBuf);

impl Connector for UnixConnector {
    fn connect(&self) -> io::Result<Connection> {
        over_unix(UnixStream::connect(&self.0)?)
    }

    fn describe(&self) -> String {
        format!("unix:{}", self.0.display())
    }
}

/// Connects to the appliance's socket at `path`.
#[must_use]
pub fn unix_connector(path: impl AsRef<Path>) -> Arc<dyn Connector> {
    Arc::new(UnixConnector(path.as_ref().to_path_buf()))
}
