//! A client of QEMU's guest agent, as far as to know that it answers.
//!
//! What comes from the guest may be anything: at most [`MAX`] bytes are held, and what is no answer to the last question is passed over.
//! The port has no connection of its own, so what was said before may still be on its way: each question begins with the byte 0xff, which
//! resets the agent's reader, and `guest-sync-delimited` with a number of its own; the answer begins with 0xff, too.

use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest answer.
const MAX: usize = 64 << 10;
/// How long one question may be without an answer before it is asked again: an agent that starts late has lost what came before.
const AGAIN: Duration = Duration::from_millis(500);

/// A connection to the port.
#[derive(Debug)]
pub struct GuestAgent {
    stream: UnixStream,
    held: Vec<u8>,
    last: u64,
}

impl GuestAgent {
    /// Connects to the port's socket.
    ///
    /// # Errors
    /// If nobody listens.
    pub fn connect(socket: &Path) -> io::Result<GuestAgent> {
        Self::over(UnixStream::connect(socket)?)
    }

    /// The same over a connection that is there.
    ///
    /// # Errors
    /// If its time limits cannot be set.
    pub fn over(stream: UnixStream) -> io::Result<GuestAgent> {
        stream.set_read_timeout(Some(AGAIN))?;
        stream.set_write_timeout(Some(AGAIN))?;
        Ok(GuestAgent { stream, held: Vec::new(), last: 0 })
    }

    /// Asks once for a sign of life: true if the agent answered.
    ///
    /// # Errors
    /// If the port is gone.
    pub fn ask(&mut self) -> io::Result<bool> {
        self.last += 1;
        let sync = json!({"execute": "guest-sync-delimited", "arguments": {"id": self.last}});
        if !self.say(&format!("\u{0}{sync}\n"))? {
            return Ok(false);
        }
        let end = Instant::now() + AGAIN;
        while let Some(answer) = self.hear(end)? {
            if answer["return"].as_u64() == Some(self.last) {
                return self.ping();
            }
        }
        Ok(false)
    }

    fn ping(&mut self) -> io::Result<bool> {
        let said = self.say(&format!("{}\n", json!({"execute": "guest-ping"})))?;
        let answer = if said { self.hear(Instant::now() + AGAIN)? } else { None };
        Ok(answer.is_some_and(|a| a["return"].is_object()))
    }

    /// False if nobody took it in time. A zero stands for the byte 0xff, which no text can hold.
    fn say(&mut self, text: &str) -> io::Result<bool> {
        let bytes: Vec<u8> = text.bytes().map(|b| if b == 0 { 0xff } else { b }).collect();
        match self.stream.write_all(&bytes) {
            Ok(()) => Ok(true),
            Err(e) if is_late(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The next whole line that is JSON, from the newest 0xff on.
    fn hear(&mut self, end: Instant) -> io::Result<Option<Value>> {
        let mut part = [0; 4096];
        loop {
            if let Some(newest) = self.held.iter().rposition(|b| *b == 0xff) {
                self.held.drain(..=newest);
            }
            while let Some(at) = self.held.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.held.drain(..=at).collect();
                if let Ok(value) = serde_json::from_slice(&line) {
                    return Ok(Some(value));
                }
            }
            if self.held.len() > MAX {
                self.held.clear();
            }
            if Instant::now() >= end {
                return Ok(None);
            }
            match self.stream.read(&mut part) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.held.extend_from_slice(&part[..n]),
                Err(e) if is_late(&e) || e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

fn is_late(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::thread;

    /// An agent that says `noise` first and answers from the n-th question on.
    fn agent(noise: Vec<u8>, from: usize) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            // The client may go away at any time.
            let _ = (&theirs).write_all(&noise);
            let mut asked = 0;
            for line in BufReader::new(theirs.try_clone().unwrap()).split(b'\n').map_while(Result::ok) {
                let begin = usize::from(line.first() == Some(&0xff));
                let question: Value = serde_json::from_slice(&line[begin..]).unwrap();
                let answer = if question["execute"] == "guest-ping" {
                    b"{\"return\": {}}\n".to_vec()
                } else {
                    asked += 1;
                    [b"\xff", json!({"return": question["arguments"]["id"]}).to_string().as_bytes(), b"\n"].concat()
                };
                if asked >= from && (&theirs).write_all(&answer).is_err() {
                    return;
                }
            }
        });
        ours
    }

    #[test]
    fn an_agent_is_heard_through_what_was_there_before() {
        let noise = b"{\"return\": 1}\n{\"ret\xff{\"return\": 77}\nlogin: \n".to_vec();
        assert!(GuestAgent::over(agent(noise, 1)).unwrap().ask().unwrap());
    }

    #[test]
    fn one_that_starts_late_is_asked_again_and_a_flood_is_no_answer() {
        let mut late = GuestAgent::over(agent(Vec::new(), 2)).unwrap();
        assert!(!late.ask().unwrap());
        assert!(late.ask().unwrap());
        let mut flood = GuestAgent::over(agent(vec![b'x'; 4 * MAX], usize::MAX)).unwrap();
        assert!(!flood.ask().unwrap());
        assert!(flood.held.len() <= MAX + 4096);
    }

    #[test]
    fn a_port_that_is_gone_is_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(GuestAgent::over(ours).unwrap().ask().is_err());
    }
}
