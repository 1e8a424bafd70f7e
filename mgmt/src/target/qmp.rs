//! A client of QEMU's machine protocol (QMP).
//!
//! ```text
//! QEMU:   {"QMP": {"version": {...}, "capabilities": [...]}}          the greeting
//! client: {"execute": "qmp_capabilities", "id": 1}
//! QEMU:   {"return": {}, "id": 1}                                     or {"error": {"class": ..., "desc": ...}, "id": 1}
//!         {"event": "SHUTDOWN", "data": {...}, "timestamp": {...}}    at any time
//! ```
//!
//! Each line is one object. A thread reads them, so that a wait never cuts one in two. Lines have a longest length, events a most
//! number, every answer a time limit; what is no answer to the last command is refused.

use crate::lines::{LineReader, write_line};
use crossbeam::channel::{Receiver, RecvTimeoutError, bounded};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};
use thiserror::Error;

/// Longest line: the answer about a machine with many devices has a few hundred KiB.
const MAX_LINE: usize = 4 << 20;
/// Most events that are kept for who asks; the oldest go first.
const MAX_EVENTS: usize = 256;
/// Lines that the reader may be ahead.
const AHEAD: usize = 64;

/// Why a command brought nothing.
#[derive(Debug, Error)]
pub enum QmpError {
    /// The socket cannot be reached, or broke.
    #[error("the connection to QEMU failed: {0}")]
    Io(#[from] io::Error),
    /// It ended.
    #[error("QEMU closed the connection")]
    Closed,
    /// No answer in time.
    #[error("QEMU did not answer '{command}' within {limit:?}")]
    Late {
        /// The command.
        command: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// Something that the protocol does not have.
    #[error("QEMU answered something that was not understood: {0}")]
    Protocol(String),
    /// QEMU says no.
    #[error("QEMU refused '{command}': {reason}")]
    Refused {
        /// The command.
        command: String,
        /// Its words.
        reason: String,
    },
}

/// What happened to the machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its name: `SHUTDOWN`, `GUEST_PANICKED`.
    pub name: String,
    /// More about it.
    pub data: Value,
}

/// A port of this host that leads to one of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// Where to connect.
    pub here: SocketAddr,
    /// The guest's port.
    pub guest: u16,
}

/// A connection to a QEMU.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    lines: Receiver<Value>,
    events: VecDeque<Event>,
    id: u64,
    limit: Duration,
}

impl Qmp {
    /// Connects to the socket and gets through the greeting. Each answer may take `limit`.
    ///
    /// # Errors
    /// If nobody listens, or no QEMU.
    pub fn connect(socket: &Path, limit: Duration) -> Result<Qmp, QmpError> {
        Self::over(UnixStream::connect(socket)?, limit)
    }

    /// The same over a connection that is there.
    ///
    /// # Errors
    /// If the peer is no QEMU.
    pub fn over(stream: UnixStream, limit: Duration) -> Result<Qmp, QmpError> {
        stream.set_write_timeout(Some(limit))?;
        let mut reader = LineReader::new(stream.try_clone()?, MAX_LINE);
        let (send, lines) = bounded(AHEAD);
        thread::Builder::new().name("qmp".to_owned()).spawn(move || {
            // Nonsense ends the connection, as its end does: whoever waits is told that it is closed.
            while let Ok(Some(line)) = reader.read::<Value>() {
                if send.send(line).is_err() {
                    return;
                }
            }
        })?;
        let mut qmp = Qmp { stream, lines, events: VecDeque::new(), id: 0, limit };
        let greeting = qmp.line("the greeting", Instant::now() + limit)?;
        if greeting["QMP"]["version"]["qemu"]["major"].as_u64().is_none() {
            return Err(QmpError::Protocol(short(&greeting)));
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    fn line(&mut self, command: &str, end: Instant) -> Result<Value, QmpError> {
        self.lines.recv_deadline(end).map_err(|e| match e {
            RecvTimeoutError::Timeout => QmpError::Late { command: command.to_owned(), limit: self.limit },
            RecvTimeoutError::Disconnected => QmpError::Closed,
        })
    }

    /// Keeps an event, and returns what is none.
    fn sort(&mut self, line: Value) -> Option<Value> {
        let Some(name) = line["event"].as_str() else { return Some(line) };
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(Event { name: name.to_owned(), data: line["data"].clone() });
        None
    }

    /// Runs a command and returns what it returns.
    ///
    /// # Errors
    /// [`QmpError`]. After one other than [`QmpError::Refused`] the connection is of no use any more.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.id += 1;
        let id = self.id;
        let request = json!({"execute": command, "arguments": arguments, "id": id});
        write_line(&self.stream, &request).map_err(|e| QmpError::Io(io::Error::other(e)))?;
        let end = Instant::now() + self.limit;
        loop {
            let line = self.line(command, end)?;
            let Some(answer) = self.sort(line) else { continue };
            if answer["id"].as_u64() != Some(id) {
                return Err(QmpError::Protocol(short(&answer)));
            }
            if let Some(error) = answer.get("error") {
                let reason = error["desc"].as_str().map_or_else(|| short(error), str::to_owned);
                return Err(QmpError::Refused { command: command.to_owned(), reason });
            }
            return answer.get("return").cloned().ok_or_else(|| QmpError::Protocol(short(&answer)));
        }
    }

    /// The next event, if there is one by now.
    ///
    /// # Errors
    /// [`QmpError::Closed`] when QEMU has gone and no event is left.
    pub fn event(&mut self) -> Result<Option<Event>, QmpError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            let line = match self.lines.try_recv() {
                Ok(line) => line,
                Err(crossbeam::channel::TryRecvError::Empty) => return Ok(None),
                Err(crossbeam::channel::TryRecvError::Disconnected) => return Err(QmpError::Closed),
            };
            if let Some(other) = self.sort(line) {
                return Err(QmpError::Protocol(short(&other)));
            }
        }
    }

    /// Lets the guest run.
    ///
    /// # Errors
    /// [`QmpError`]; so for all that follow.
    pub fn resume(&mut self) -> Result<(), QmpError> {
        self.execute("cont", json!({})).map(drop)
    }

    /// The state of the machine: `running`, `paused`, `internal-error`.
    ///
    /// # Errors
    /// [`QmpError`].
    pub fn status(&mut self) -> Result<String, QmpError> {
        let answer = self.execute("query-status", json!({}))?;
        answer["status"].as_str().map(str::to_owned).ok_or_else(|| QmpError::Protocol(short(&answer)))
    }

    /// Writes what the screen shows to a PNG file.
    ///
    /// # Errors
    /// [`QmpError`]; a machine without a screen refuses.
    pub fn screenshot(&mut self, file: &str) -> Result<(), QmpError> {
        self.execute("screendump", json!({"filename": file, "format": "png"})).map(drop)
    }

    /// Bytes that the guest has read from all its disks.
    ///
    /// # Errors
    /// [`QmpError`].
    pub fn bytes_read(&mut self) -> Result<u64, QmpError> {
        let answer = self.execute("query-blockstats", json!({}))?;
        let all = answer.as_array().ok_or_else(|| QmpError::Protocol(short(&answer)))?;
        Ok(all.iter().filter_map(|d| d["stats"]["rd_bytes"].as_u64()).fold(0, u64::saturating_add))
    }

    /// The ports of this host that lead to the guest. QEMU tells them only as a table for people.
    ///
    /// # Errors
    /// [`QmpError`].
    pub fn forwards(&mut self) -> Result<Vec<Forward>, QmpError> {
        let answer = self.execute("human-monitor-command", json!({"command-line": "info usernet"}))?;
        let table = answer.as_str().ok_or_else(|| QmpError::Protocol(short(&answer)))?;
        Ok(table.lines().filter_map(forward).collect())
    }

    /// Whether the guest has taken a connection that came in at this address.
    ///
    /// # Errors
    /// [`QmpError`].
    pub fn is_established(&mut self, here: SocketAddr) -> Result<bool, QmpError> {
        let answer = self.execute("human-monitor-command", json!({"command-line": "info usernet"}))?;
        let table = answer.as_str().ok_or_else(|| QmpError::Protocol(short(&answer)))?;
        let (ip, port) = (here.ip().to_string(), here.port().to_string());
        Ok(table.lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().take(4).collect();
            matches!(words[..], ["TCP[ESTABLISHED]", _, i, p] if i == ip && p == port)
        }))
    }

    /// Asks QEMU to end.
    ///
    /// # Errors
    /// [`QmpError`].
    pub fn quit(&mut self) -> Result<(), QmpError> {
        self.execute("quit", json!({})).map(drop)
    }
}

/// `  TCP[HOST_FORWARD]   8       127.0.0.1 39677    192.168.7.15    22     0     0`
fn forward(line: &str) -> Option<Forward> {
    let mut words = line.split_whitespace();
    (words.next()? == "TCP[HOST_FORWARD]").then_some(())?;
    let (_fd, ip, port) = (words.next()?, words.next()?, words.next()?);
    let (_guest, guest) = (words.next()?, words.next()?);
    Some(Forward { here: SocketAddr::new(ip.parse().ok()?, port.parse().ok()?), guest: guest.parse().ok()? })
}

/// Enough of an answer for a message.
fn short(value: &Value) -> String {
    value.to_string().chars().take(200).collect()
}

impl Drop for Qmp {
    fn drop(&mut self) {
        // So that the thread ends.
        drop(self.stream.shutdown(std::net::Shutdown::Both));
    }
}

#[cfg(test)]
#[path = "qmp_tests.rs"]
mod tests;
