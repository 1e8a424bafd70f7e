//! JSON over a unix socket, as QEMU speaks it: its machine protocol (QMP), and its guest agent.
//!
//! Both take one object a line, `{"execute": NAME, "arguments": {...}}`, and answer `{"return": ...}` or
//! `{"error": {"class": ..., "desc": ...}}`. QMP greets, wants `qmp_capabilities` first, and sends events in between. The guest
//! agent does not greet, and what an earlier client left unread comes first: so each conversation begins with
//! `guest-sync-delimited`, whose answer stands behind a byte of value 255.
//!
//! After a call that ran out of time nobody knows what the next line answers: [`Qmp`] numbers its calls, [`GuestAgent`] has to
//! be [synchronised](GuestAgent::sync) again, and does so by itself before the next call.

use crate::world;
use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use thiserror::Error;

/// Longest answer that is taken, in bytes.
const MAX_LINE: usize = 4 << 20;
/// Most events that are kept for [`Qmp::events`].
const MAX_EVENTS: usize = 1024;
/// Ends the parser's line on either side, and stands before the answer to `guest-sync-delimited`.
const SENTINEL: u8 = 0xff;

/// Why a conversation failed.
#[derive(Debug, Error)]
pub enum QemuError {
    /// The socket.
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    /// No answer in time.
    #[error(
        "{path}: no answer to {command} within {} ms; is it running, and nobody else connected?",
        limit.as_millis()
    )]
    Time {
        /// The socket.
        path: PathBuf,
        /// What was asked.
        command: String,
        /// How long was waited.
        limit: Duration,
    },
    /// It said no.
    #[error("{command} was refused: {description}")]
    Refused {
        /// What was asked.
        command: String,
        /// The kind of the error, for programs.
        class: String,
        /// The words for people.
        description: String,
    },
    /// Something else than the protocol.
    #[error("{0}: {1}")]
    Protocol(PathBuf, String),
}

/// The connection that both have.
#[derive(Debug)]
struct Lines {
    stream: UnixStream,
    path: PathBuf,
    /// What has come and was not taken yet.
    rest: Vec<u8>,
}

/// What a caller waits for.
struct Ask<'a> {
    command: &'a str,
    limit: Duration,
    until: Instant,
}

impl<'a> Ask<'a> {
    fn new(command: &'a str, limit: Duration) -> Ask<'a> {
        let now = world::now();
        Ask { command, limit, until: now.checked_add(limit).unwrap_or(now) }
    }
}

impl Lines {
    fn connect(path: &Path) -> Result<Lines, QemuError> {
        let stream = UnixStream::connect(path).map_err(|e| QemuError::Io(path.into(), e))?;
        Ok(Lines { stream, path: path.into(), rest: Vec::new() })
    }

    fn io(&self, ask: &Ask<'_>, e: io::Error) -> QemuError {
        match e.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                QemuError::Time { path: self.path.clone(), command: ask.command.to_owned(), limit: ask.limit }
            }
            _ => QemuError::Io(self.path.clone(), e),
        }
    }

    fn protocol(&self, what: impl Into<String>) -> QemuError {
        QemuError::Protocol(self.path.clone(), what.into())
    }

    fn send(&mut self, bytes: &[u8], ask: &Ask<'_>) -> Result<(), QemuError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let sent = self.left(ask).and_then(|time| {
                self.stream.set_write_timeout(Some(time))?;
                self.stream.write(rest)
            });
            match sent {
                Ok(n) => rest = &rest[n..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.io(ask, e)),
            }
        }
        Ok(())
    }

    /// The time that is left; an error if none is.
    fn left(&self, ask: &Ask<'_>) -> io::Result<Duration> {
        let left = ask.until.saturating_duration_since(world::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }

    /// Takes what comes up to one of the bytes in `ends`, which is left out.
    fn take(&mut self, end: u8, ask: &Ask<'_>) -> Result<Vec<u8>, QemuError> {
        let mut looked = 0;
        loop {
            if let Some(at) = self.rest[looked..].iter().position(|b| *b == end) {
                let line: Vec<u8> = self.rest.drain(..=looked + at).collect();
                return Ok(line[..line.len() - 1].to_vec());
            }
            looked = self.rest.len();
            if looked > MAX_LINE {
                return Err(self.protocol(format!("an answer of more than {MAX_LINE} bytes")));
            }
            let mut buf = [0; 16 << 10];
            let got = self.left(ask).and_then(|time| {
                self.stream.set_read_timeout(Some(time))?;
                self.stream.read(&mut buf)
            });
            match got {
                Ok(0) => {
                    return Err(self.protocol(format!("it ended the connection instead of answering {}", ask.command)));
                }
                Ok(n) => self.rest.extend_from_slice(&buf[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.io(ask, e)),
            }
        }
    }

    /// The next object.
    fn object(&mut self, ask: &Ask<'_>) -> Result<Value, QemuError> {
        loop {
            let line = self.take(b'\n', ask)?;
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            return serde_json::from_slice(&line).map_err(|e| self.protocol(format!("an answer that is no JSON: {e}")));
        }
    }
}

fn request(command: &str, arguments: Value) -> Value {
    match arguments {
        Value::Null => json!({ "execute": command }),
        arguments => json!({ "execute": command, "arguments": arguments }),
    }
}

/// What an answer says.
fn outcome(command: &str, mut answer: Value) -> Option<Result<Value, QemuError>> {
    if let Some(value) = answer.get_mut("return") {
        return Some(Ok(value.take()));
    }
    let error = answer.get("error")?;
    let word = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    let (class, description) = (word("class"), word("desc"));
    Some(Err(QemuError::Refused { command: command.to_owned(), class, description }))
}

/// The guest agent of a virtual machine.
#[derive(Debug)]
pub struct GuestAgent {
    lines: Lines,
    synchronised: bool,
}

impl GuestAgent {
    /// Connects and synchronises within `limit`. QEMU lets one client in at a time: with a second one the agent seems dead.
    ///
    /// # Errors
    /// If there is no socket, or nobody answers.
    pub fn connect(path: &Path, limit: Duration) -> Result<GuestAgent, QemuError> {
        let mut agent = GuestAgent { lines: Lines::connect(path)?, synchronised: false };
        agent.sync(limit)?;
        Ok(agent)
    }

    /// Drops what earlier calls have left.
    ///
    /// # Errors
    /// If nobody answers within `limit`.
    pub fn sync(&mut self, limit: Duration) -> Result<(), QemuError> {
        const COMMAND: &str = "guest-sync-delimited";
        let ask = Ask::new(COMMAND, limit);
        let mut number = [0; 8];
        world::random(&mut number).map_err(|e| QemuError::Io(self.lines.path.clone(), e))?;
        // What JSON parsers of all kinds take for a whole number.
        let id = u64::from_le_bytes(number) >> 12;
        let mut bytes = vec![SENTINEL];
        bytes.extend(request(COMMAND, json!({ "id": id })).to_string().into_bytes());
        bytes.push(b'\n');
        self.lines.send(&bytes, &ask)?;
        loop {
            self.lines.take(SENTINEL, &ask)?;
            // An answer to an older question, or one that was cut off, is not what we wait for.
            let answer = self.lines.take(b'\n', &ask)?;
            if serde_json::from_slice::<Value>(&answer)
                .is_ok_and(|a| a.get("return").and_then(Value::as_u64) == Some(id))
            {
                self.synchronised = true;
                return Ok(());
            }
        }
    }

    /// Has a command done and returns its answer.
    ///
    /// # Errors
    /// If it was refused, or not answered within `limit`: then it may be done later all the same.
    pub fn call(&mut self, command: &str, arguments: Value, limit: Duration) -> Result<Value, QemuError> {
        let ask = Ask::new(command, limit);
        if !self.synchronised {
            self.sync(limit)?;
        }
        self.synchronised = false;
        let line = format!("{}\n", request(command, arguments));
        self.lines.send(line.as_bytes(), &ask)?;
        let answer = self.lines.object(&ask)?;
        self.synchronised = true;
        outcome(command, answer).unwrap_or_else(|| Err(self.lines.protocol("an answer that says neither yes nor no")))
    }
}

/// The machine protocol.
#[derive(Debug)]
pub struct Qmp {
    lines: Lines,
    next: u64,
    events: Vec<Value>,
}

impl Qmp {
    /// Connects, and ends the greeting, within `limit`.
    ///
    /// # Errors
    /// If there is no socket, or nobody answers.
    pub fn connect(path: &Path, limit: Duration) -> Result<Qmp, QemuError> {
        let mut qmp = Qmp { lines: Lines::connect(path)?, next: 1, events: Vec::new() };
        let greeting = qmp.lines.object(&Ask::new("the greeting", limit))?;
        if greeting.get("QMP").is_none() {
            return Err(qmp.lines.protocol("no QMP: it greets otherwise"));
        }
        qmp.call("qmp_capabilities", Value::Null, limit)?;
        Ok(qmp)
    }

    /// Has a command done and returns its answer. Events that come first are kept.
    ///
    /// # Errors
    /// If it was refused, or not answered within `limit`: then it may be done later all the same.
    pub fn call(&mut self, command: &str, arguments: Value, limit: Duration) -> Result<Value, QemuError> {
        let ask = Ask::new(command, limit);
        let id = self.next;
        self.next += 1;
        let mut line = request(command, arguments);
        line["id"] = json!(id);
        self.lines.send(format!("{line}\n").as_bytes(), &ask)?;
        loop {
            let answer = self.lines.object(&ask)?;
            if answer.get("event").is_some() {
                self.keep(answer);
            } else if answer.get("id").and_then(Value::as_u64) == Some(id)
                && let Some(done) = outcome(command, answer)
            {
                return done;
            }
        }
    }

    fn keep(&mut self, event: Value) {
        if self.events.len() < MAX_EVENTS {
            self.events.push(event);
        }
    }

    /// Takes the events that have come, oldest first.
    pub fn events(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.events)
    }

    /// Waits for an event of this name, and returns it. Others that come first are kept.
    ///
    /// # Errors
    /// If it does not come within `limit`.
    pub fn wait_for(&mut self, name: &str, limit: Duration) -> Result<Value, QemuError> {
        let is = |event: &Value| event.get("event").and_then(Value::as_str) == Some(name);
        if let Some(at) = self.events.iter().position(is) {
            return Ok(self.events.remove(at));
        }
        let ask = Ask::new(name, limit);
        loop {
            let line = self.lines.object(&ask)?;
            if is(&line) {
                return Ok(line);
            }
            if line.get("event").is_some() {
                self.keep(line);
            }
        }
    }
}

#[cfg(test)]
#[path = "qemu_tests.rs"]
mod tests;
