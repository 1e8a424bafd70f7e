//! Errors as `application/problem+json` (RFC 9457).

use super::types::{Finding, ProblemBody};
use crate::catalogue::CatalogueError;
use crate::office::AskError;
use crate::protocol::{Code, Failure};
use std::fmt;

/// The kind of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Not understood.
    BadRequest,
    /// No token that counts.
    Unauthorized,
    /// The token's role may not.
    Forbidden,
    /// Not there.
    NotFound,
    /// Not with this method.
    Method,
    /// It contradicts what is there.
    Conflict,
    /// The body is too long.
    TooLong,
    /// Something speaks against it.
    NotReady,
    /// A member has to be asked, and cannot be.
    Away,
    /// Too much at once.
    Busy,
    /// It was tried and failed.
    Failed,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 11] = [
        Kind::BadRequest,
        Kind::Unauthorized,
        Kind::Forbidden,
        Kind::NotFound,
        Kind::Method,
        Kind::Conflict,
        Kind::TooLong,
        Kind::NotReady,
        Kind::Away,
        Kind::Busy,
        Kind::Failed,
    ];

    /// Status, word for programs, words for people.
    #[must_use]
    pub const fn parts(self) -> (u16, &'static str, &'static str) {
        match self {
            Kind::BadRequest => (400, "bad-request", "The request was not understood"),
            Kind::Unauthorized => (401, "unauthorized", "No valid token"),
            Kind::Forbidden => (403, "forbidden", "The token may not do this"),
            Kind::NotFound => (404, "not-found", "There is no such thing"),
            Kind::Method => (405, "method", "Not with this method"),
            Kind::Conflict => (409, "conflict", "It contradicts what is there"),
            Kind::TooLong => (413, "too-long", "The request is too long"),
            Kind::NotReady => (422, "not-ready", "Something speaks against it"),
            Kind::Away => (503, "away", "Somebody who has to be asked is not there"),
            Kind::Busy => (429, "busy", "Too much at once"),
            Kind::Failed => (500, "failed", "It was tried and failed"),
        }
    }
}

/// An error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Its kind.
    pub kind: Kind,
    /// What was wrong, with which object, and what to do.
    pub detail: String,
    /// For a machine that is not ready.
    pub findings: Vec<Finding>,
}

impl Problem {
    /// An error of this kind.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Problem {
        Problem { kind, detail: detail.into(), findings: Vec::new() }
    }

    /// The HTTP status.
    #[must_use]
    pub const fn status(&self) -> u16 {
        self.kind.parts().0
    }

    /// The body.
    #[must_use]
    pub fn body(&self) -> ProblemBody {
        let (status, word, title) = self.kind.parts();
        ProblemBody {
            kind: format!("urn:afterimage:{word}"),
            title: title.to_owned(),
            status,
            detail: self.detail.clone(),
            findings: self.findings.clone(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for Problem {}

impl From<CatalogueError> for Problem {
    fn from(e: CatalogueError) -> Problem {
        let kind = match &e {
            CatalogueError::NotFound(_) => Kind::NotFound,
            CatalogueError::Conflict(_) => Kind::Conflict,
            CatalogueError::Refused(_) => Kind::BadRequest,
            _ => {
                tracing::error!("{e}");
                Kind::Failed
            }
        };
        Problem::new(kind, e.to_string())
    }
}

impl From<AskError> for Problem {
    fn from(e: AskError) -> Problem {
        let kind = match &e {
            AskError::Away(_) | AskError::Silent(_) | AskError::Older(_) => Kind::Away,
            AskError::Busy(_) => Kind::Busy,
            AskError::Answer(..) => Kind::Failed,
            AskError::Refused(_, failure) => {
                return Problem { detail: e.to_string(), ..Problem::from(failure.clone()) };
            }
        };
        Problem::new(kind, e.to_string())
    }
}

impl From<Failure> for Problem {
    fn from(f: Failure) -> Problem {
        let kind = match f.code {
            Code::BadRequest | Code::Version | Code::OutsideWindow | Code::Gap => Kind::BadRequest,
            Code::Busy => Kind::Busy,
            Code::NotFound => Kind::NotFound,
            Code::NotReady => Kind::NotReady,
            Code::Conflict => Kind::Conflict,
            Code::OtherRole | Code::Failed | Code::Other => Kind::Failed,
        };
        Problem::new(kind, f.message)
    }
}

impl From<serde_json::Error> for Problem {
    fn from(e: serde_json::Error) -> Problem {
        Problem::new(Kind::BadRequest, format!("the body is not what is asked for: {e}"))
    }
}
