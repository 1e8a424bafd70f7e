//! Messages of the coordination port over a connection.

use crate::stream::{TlsReader, TlsWriter};
use afterimage_format::coord::{HEADER_LEN, Header, Kind, message};
use std::io::{self, Read, Write};
use std::time::Instant;

fn bad(e: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, e.to_string())
}

/// Sends one.
///
/// # Errors
/// Those of the connection.
pub fn send(out: &mut TlsWriter, kind: Kind, body: &[u8]) -> io::Result<()> {
    out.write_all(&message(kind, body))
}

/// What is being received.
#[derive(Debug)]
pub struct Inbox {
    reader: TlsReader,
    bytes: Vec<u8>,
    /// Longest body that is taken.
    pub most: usize,
}

impl Inbox {
    /// Of a connection.
    #[must_use]
    pub fn new(reader: TlsReader, most: usize) -> Inbox {
        Inbox { reader, bytes: Vec::new(), most }
    }

    /// Whether something has been received that is not looked at yet.
    #[must_use]
    pub fn has_more(&self) -> bool {
        self.reader.has_more()
    }

    /// Whether [`Inbox::poll`] will find something to do at once.
    ///
    /// # Errors
    /// Those of the system.
    pub fn is_readable(&self) -> io::Result<bool> {
        self.reader.is_readable()
    }

    /// The next message, or `None` if the socket's time limit passed first; what has come in part is kept.
    ///
    /// # Errors
    /// The end of the connection (`UnexpectedEof`), what is no message, and errors of the connection.
    pub fn poll(&mut self) -> io::Result<Option<(Kind, Vec<u8>)>> {
        loop {
            let mut need = HEADER_LEN;
            if let Some(head) = self.bytes.first_chunk::<HEADER_LEN>() {
                let header = Header::decode(head, self.most).map_err(bad)?;
                need += header.len;
                if self.bytes.len() == need {
                    let body = self.bytes.split_off(HEADER_LEN);
                    self.bytes.clear();
                    return Ok(Some((header.kind, body)));
                }
            }
            // Not more than what belongs to this message, and no more memory than has arrived.
            let mut piece = [0; 4096];
            let want = (need - self.bytes.len()).min(piece.len());
            match self.reader.read(&mut piece[..want]) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the peer has left")),
                Ok(n) => self.bytes.extend_from_slice(&piece[..n]),
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// The next message, by `until`.
    ///
    /// # Errors
    /// As [`Inbox::poll`], and `TimedOut`.
    pub fn wait(&mut self, until: Instant) -> io::Result<(Kind, Vec<u8>)> {
        loop {
            if let Some(message) = self.poll()? {
                return Ok(message);
            }
            if Instant::now() >= until {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the peer took too long"));
            }
        }
    }
}
