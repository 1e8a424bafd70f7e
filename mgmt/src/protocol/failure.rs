//! Why a request failed.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The kind of a failure, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The request was not understood.
    BadRequest,
    /// The version of the request is not spoken.
    Version,
    /// Too many connections: try again.
    Busy,
    /// No such volume or point.
    NotFound,
    /// The moment is before the window or after the newest write.
    OutsideWindow,
    /// The moment lies in a gap of the history.
    Gap,
    /// Not now: the initial sync has not ended, or the volume is behind.
    NotReady,
    /// It contradicts what is there.
    Conflict,
    /// The other role has to be asked: the message says where.
    OtherRole,
    /// It was tried and failed.
    Failed,
    /// A code of a newer version.
    #[serde(other)]
    Other,
}

/// Why a request failed: the message is for people and stands on its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The kind.
    pub code: Code,
    /// What was wrong, with which object, and what to do.
    pub message: String,
}

impl Failure {
    /// A failure of this kind.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
