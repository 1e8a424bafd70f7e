//! The commands' end of the API: one request for each connection, HTTP/1.1 over TLS 1.3.
//!
//! mgmt is known by the hash of its CA's certificate, which a token has with it; names and addresses count for nothing. The answer
//! comes with its length, so one that was cut off is seen.

use super::key::ApiKey;
use super::types::ProblemBody;
use crate::client::ClientError;
use afterimage_base::net::Endpoint;
use afterimage_trust::identity::Role;
use afterimage_trust::stream::{Tls, TlsReader, deadline};
use afterimage_trust::trust::client_config;
use afterimage_trust::verify::{Anchor, Expect, Guard};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;

/// How long an answer may take: readiness is measured, disks are opened, events are waited for.
const LIMIT: Duration = Duration::from_secs(150);
const TICK: Duration = Duration::from_millis(200);
const HANDSHAKE: Duration = Duration::from_secs(15);
/// Longest answer.
const MAX_ANSWER: usize = 64 << 20;
/// Longest head of an answer.
const MAX_HEAD: usize = 64 << 10;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ApiError {
    /// mgmt said no.
    #[error("{}", .0.detail)]
    Refused(Box<ProblemBody>),
    /// The token does not say whom to believe.
    #[error("the token has no pin: name mgmt's CA with --ca-pin (`afterimage mgmt ca --pin` prints it)")]
    NoPin,
    /// The connection.
    #[error("mgmt at {0}: {1}")]
    Connection(String, io::Error),
    /// The control socket, which stands for the port on mgmt's own host.
    #[error(transparent)]
    Here(ClientError),
    /// The answer.
    #[error("mgmt at {0} gave an answer that was not understood: {1}; is it of another version?")]
    Answer(String, String),
}

/// How to reach mgmt, and as whom.
#[derive(Debug, Clone)]
pub struct ApiClient {
    /// Where it is.
    pub address: Endpoint,
    /// The token.
    pub key: ApiKey,
    /// SHA-256 of its CA's certificate, if the token's own is not to count.
    pub pin: Option<[u8; 32]>,
}

struct Raw {
    status: u16,
    body: Vec<u8>,
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

/// A part of a path, with everything escaped that could be more than a name.
#[must_use]
pub fn escape(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut out, b| {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
            out.push(char::from(b));
        } else {
            let _ = write!(out, "%{b:02X}");
        }
        out
    })
}

impl ApiClient {
    /// Looks.
    ///
    /// # Errors
    /// As [`ApiError`] says.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        self.call("GET", path, None::<&()>)
    }

    /// Asks with a body, and reads the answer. One without a body is read as `null`.
    ///
    /// # Errors
    /// As [`ApiError`] says.
    pub fn call<B: Serialize, T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, ApiError> {
        let not_understood = |e: &dyn std::fmt::Display| ApiError::Answer(self.address.to_string(), e.to_string());
        let body = body.map(serde_json::to_vec).transpose().map_err(|e| not_understood(&e))?;
        let pin = self.pin.or(self.key.pin).ok_or(ApiError::NoPin)?;
        let raw = self
            .exchange(method, path, &body.unwrap_or_default(), pin)
            .map_err(|e| ApiError::Connection(self.address.to_string(), e))?;
        if (200..300).contains(&raw.status) {
            let text: &[u8] = if raw.body.is_empty() { b"null" } else { &raw.body };
            return serde_json::from_slice(text).map_err(|e| not_understood(&e));
        }
        match serde_json::from_slice::<ProblemBody>(&raw.body) {
            Ok(problem) => Err(ApiError::Refused(Box::new(problem))),
            Err(_) => Err(not_understood(&format!("HTTP status {}", raw.status))),
        }
    }

    fn exchange(&self, method: &str, path: &str, body: &[u8], pin: [u8; 32]) -> io::Result<Raw> {
        let guard = Guard::new(Anchor::Pinned(pin), Expect::role(Role::Mgmt, None), Arc::default());
        let config = client_config(Arc::clone(&guard), None, &[b"http/1.1"]).map_err(io::Error::other)?;
        let stream = self.address.connect(false)?;
        stream.set_read_timeout(Some(TICK))?;
        stream.set_write_timeout(Some(HANDSHAKE))?;
        let (mut reader, mut writer) = Tls::client(Arc::new(stream), config, &guard, deadline(HANDSHAKE))?.split();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: mgmt\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            self.key.bearer(),
            body.len()
        );
        writer.write_all(&[head.as_bytes(), body].concat())?;
        let raw = receive(&mut reader, Instant::now() + LIMIT);
        writer.goodbye();
        writer.close();
        raw
    }
}

/// Some more bytes; false at the end.
fn more(reader: &mut TlsReader, bytes: &mut Vec<u8>, until: Instant) -> io::Result<bool> {
    let mut piece = [0; 16 << 10];
    loop {
        match reader.read(&mut piece) {
            Ok(0) => return Ok(false),
            Ok(n) => {
                bytes.extend_from_slice(&piece[..n]);
                return Ok(true);
            }
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
                ) =>
            {
                if Instant::now() >= until {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer came in time"));
                }
            }
            Err(e) => return Err(e),
        }
    }
}

fn receive(reader: &mut TlsReader, until: Instant) -> io::Result<Raw> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break end;
        }
        if bytes.len() > MAX_HEAD || !more(reader, &mut bytes, until)? {
            return Err(bad("it left in the middle of its answer"));
        }
    };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| bad("its answer is not HTTP"))?;
    let (status, length) = read_head(head).ok_or_else(|| bad("its answer is not HTTP"))?;
    let mut body = bytes.split_off(end + 4);
    while body.len() < length {
        if !more(reader, &mut body, until)? {
            return Err(bad("its answer was cut off"));
        }
    }
    body.truncate(length);
    Ok(Raw { status, body })
}

/// Status and length of the body.
fn read_head(head: &str) -> Option<(u16, usize)> {
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let of = |line: &str| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())
    };
    let length = lines.find_map(of).unwrap_or(Some(0))?;
    (length <= MAX_ANSWER).then_some((status, length))
}
