//! What ends a command: a message for the user and an exit code.

use std::fmt;

/// Why a command ends early.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// 1: it failed; 2: bad usage.
    pub exit: u8,
    /// What was wrong, with which object, and what to do.
    pub text: String,
}

impl Problem {
    /// It was tried and failed.
    pub fn failed(text: impl Into<String>) -> Problem {
        Problem { exit: 1, text: text.into() }
    }

    /// It was asked wrongly.
    pub fn usage(text: impl Into<String>) -> Problem {
        Problem { exit: 2, text: text.into() }
    }

    /// A failed operation on a file.
    pub fn file(path: &std::path::Path, e: &std::io::Error) -> Problem {
        Problem::failed(format!("{}: {e}", path.display()))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Problem {}

macro_rules! failed_from {
    ($($t:ty),*) => { $(impl From<$t> for Problem {
        fn from(e: $t) -> Problem {
            Problem::failed(e.to_string())
        }
    })* };
}

failed_from!(
    std::io::Error,
    serde_json::Error,
    nix::errno::Errno,
    afterimage_nbd::client::BadUri,
    afterimage_nbd::client::ClientError,
    afterimage_mgmt::api::client::ApiError,
    afterimage_mgmt::client::ClientError,
    afterimage_mgmt::protocol::Failure
);
