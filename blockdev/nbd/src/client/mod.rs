//! A small blocking client, for our tools and tests.

use crate::Address;
use afterimage_base::block::Extent;
use thiserror::Error;

/// Why a client's request failed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The connection broke.
    #[error("the connection to the NBD server failed: {0}")]
    Io(#[from] std::io::Error),
    /// The server sent what the protocol does not allow.
    #[error("the NBD server broke the protocol: {0}")]
    Protocol(String),
    /// The server refused the export or an option.
    #[error("the NBD server refused export {export:?}: {reason}")]
    Refused {
        /// The export asked for.
        export: String,
        /// What the server said.
        reason: String,
    },
    /// The server answered a request with an error.
    #[error("the NBD server answered with error {errno}: {message}")]
    Request {
        /// The NBD error number, equal to Linux's errno of that name.
        errno: u32,
        /// What the server said; may be empty.
        message: String,
    },
}

/// A connection to an export, one request at a time.
#[derive(Debug)]
pub struct Client {
    size: u64,
}

impl Client {
    /// Connects and negotiates structured replies and `base:allocation` where the server has them.
    ///
    /// # Errors
    /// If the server cannot be reached or has no such export.
    pub fn connect(address: &Address, export: &str) -> Result<Client, ClientError> {
        let _ = (address, export);
        Err(std::io::Error::from(std::io::ErrorKind::Unsupported).into())
    }

    /// Size of the export in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads `buf.len()` bytes at `offset`.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ClientError> {
        let _ = (offset, buf);
        Err(std::io::Error::from(std::io::ErrorKind::Unsupported).into())
    }

    /// Block status from `offset`: at least one extent; may stop early.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub fn block_status(&mut self, offset: u64, len: u64) -> Result<Vec<Extent>, ClientError> {
        let _ = (offset, len);
        Err(std::io::Error::from(std::io::ErrorKind::Unsupported).into())
    }
}
