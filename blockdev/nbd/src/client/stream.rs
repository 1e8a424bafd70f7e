//! A blocking connection of either kind.

use crate::Address;
use afterimage_base::net;
use afterimage_trust::stream::{Tls, TlsReader, TlsWriter, deadline};
use rustls::ClientConnection;
use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long connecting over TCP may take.
const CONNECT_TIME: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Arc<Mutex<TlsReader>>, TlsWriter),
}

fn lock(reader: &Mutex<TlsReader>) -> MutexGuard<'_, TlsReader> {
    reader.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stream {
    pub(crate) fn connect(address: &Address) -> io::Result<Self> {
        let stream = match address {
            Address::Unix(path) => UnixStream::connect(path).map(Self::Unix),
            Address::Tcp(address) => TcpStream::connect_timeout(address, CONNECT_TIME).map(Self::Tcp),
        };
        let stream = stream.map_err(|e| io::Error::new(e.kind(), format!("{address}: {e}")))?;
        if let Self::Tcp(tcp) = &stream {
            tcp.set_nodelay(true)?;
        }
        Ok(stream)
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Unix(s) => s.try_clone().map(Self::Unix),
            Self::Tcp(s) => s.try_clone().map(Self::Tcp),
            Self::Tls(reader, writer) => Ok(Self::Tls(Arc::clone(reader), writer.clone())),
        }
    }

    /// The same connection with TLS around it.
    pub(crate) fn secured(self, state: ClientConnection, time: Duration) -> io::Result<Self> {
        let stream = match self {
            Self::Unix(s) => net::Stream::Unix(s),
            Self::Tcp(s) => net::Stream::Tcp(s),
            Self::Tls(..) => return Err(io::Error::other("TLS has begun already")),
        };
        let (reader, writer) = Tls::begin(Arc::new(stream), state.into(), deadline(time))?.split();
        Ok(Self::Tls(Arc::new(Mutex::new(reader)), writer))
    }

    /// Limits how long one read or write may wait; `None` is for ever.
    pub(crate) fn set_timeout(&self, time: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(s) => s.set_read_timeout(time).and_then(|()| s.set_write_timeout(time)),
            Self::Tcp(s) => s.set_read_timeout(time).and_then(|()| s.set_write_timeout(time)),
            Self::Tls(_, writer) => {
                let s = writer.stream();
                s.set_read_timeout(time).and_then(|()| s.set_write_timeout(time))
            }
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(s) => s.read(buf),
            Self::Tcp(s) => s.read(buf),
            Self::Tls(reader, _) => lock(reader).read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(s) => s.write(buf),
            Self::Tcp(s) => s.write(buf),
            Self::Tls(_, writer) => writer.write(buf),
        }
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Unix(s) => s.write_vectored(bufs),
            Self::Tcp(s) => s.write_vectored(bufs),
            Self::Tls(_, writer) => writer.write_vectored(bufs),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
