//! The disk of a fenced agent, for who brings a machine back: requests go from a control connection to the agent's session, and
//! answers come back ([`afterimage_format::failback`]).

use super::Local;
use super::past::failure;
use afterimage_appliance::Lease;
use afterimage_format::failback::MAX_WRITE_BODY;
use afterimage_format::wire::{HEADER_LEN, Header, MessageType};
use afterimage_mgmt::protocol::{AgentDisk, Code, Failure};
use afterimage_mgmt::site::Opened;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

impl Local {
    /// Borrows it.
    pub(super) fn lend(&self, volume: &str) -> Result<(AgentDisk, Box<dyn Opened>), Failure> {
        let lease = self.appliance()?.agent_disk(volume).map_err(|e| failure(Some(e)))?;
        let disk = AgentDisk { volume: volume.to_owned(), epoch: lease.epoch(), size: lease.size() };
        Ok((disk, Box::new(Relay { volume: volume.to_owned(), lease })))
    }
}

struct Relay {
    volume: String,
    lease: Lease,
}

impl Relay {
    fn requests(&self, mut from: &UnixStream) -> io::Result<()> {
        loop {
            let Some((kind, body)) = receive(&mut from, MAX_WRITE_BODY)? else { return Ok(()) };
            self.lease.send(kind, body).map_err(io::Error::other)?;
        }
    }

    fn answers(&self, to: &UnixStream) -> io::Result<()> {
        while let Some((kind, body)) = self.lease.receive() {
            send(to, kind, &body)?;
        }
        Ok(())
    }
}

/// Sends one message.
///
/// # Errors
/// If the connection fails.
pub(crate) fn send(mut to: &UnixStream, kind: MessageType, body: &[u8]) -> io::Result<()> {
    let mut message = Vec::with_capacity(HEADER_LEN + body.len());
    message.extend_from_slice(&Header::of(kind, body).encode());
    message.extend_from_slice(body);
    to.write_all(&message)
}

/// Receives one message; `None` if the connection ends before it.
///
/// # Errors
/// If the connection fails, or brings something else, or too much.
pub(crate) fn receive(from: &mut impl Read, longest: usize) -> io::Result<Option<(MessageType, Vec<u8>)>> {
    let invalid = |e: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidData, e.to_string());
    let mut head = [0; HEADER_LEN];
    match from.read(&mut head[..1]) {
        Ok(0) => return Ok(None),
        Ok(_) => from.read_exact(&mut head[1..])?,
        Err(e) if e.kind() == io::ErrorKind::Interrupted => from.read_exact(&mut head)?,
        Err(e) => return Err(e),
    }
    let header = Header::decode(&head).map_err(|e| invalid(&e))?;
    if header.body_len > longest {
        return Err(invalid(&"a message is too long"));
    }
    let mut body = vec![0; header.body_len];
    from.read_exact(&mut body)?;
    header.verify(&body).map_err(|e| invalid(&e))?;
    Ok(Some((header.kind, body)))
}

impl Opened for Relay {
    fn serve_stream(self: Box<Self>, stream: UnixStream) {
        thread::scope(|scope| {
            scope.spawn(|| {
                if let Err(e) = self.answers(&stream) {
                    tracing::debug!("volume {}: answers about the agent's disk: {e}", self.volume);
                }
                // Nothing is asked any more that nobody would take the answer to; and when the session is over, whoever asks is to hear of it.
                self.lease.close();
                let _ = stream.shutdown(Shutdown::Both);
            });
            if let Err(e) = self.requests(&stream) {
                tracing::debug!("volume {}: requests about the agent's disk: {e}", self.volume);
            }
            self.lease.close();
        });
    }

    fn serve_listener(self: Box<Self>, _listener: UnixListener) -> Result<Box<dyn Send>, Failure> {
        Err(Failure::new(Code::BadRequest, "the disk of an agent is no export"))
    }
}
