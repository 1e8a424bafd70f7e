//! What is seen on a connection.

use super::{Model, Volume, lock};
use afterimage_format::record::{HEADER_LEN as RECORD_LEN, Kind, Record};
use afterimage_format::wire::{Ack, HEADER_LEN, Header, Hello, MessageType, Welcome};
use std::sync::Arc;

/// What is seen on one connection.
pub struct Tap {
    model: Arc<Model>,
    /// Number of the connection.
    pub number: u64,
    /// It is of the first version.
    pub old: bool,
    buffers: [Vec<u8>; 2],
    volume: Option<usize>,
    lost: bool,
}

impl Tap {
    /// For a new connection.
    #[must_use]
    pub fn new(model: Arc<Model>) -> Tap {
        Tap { model, number: 0, old: false, buffers: [Vec::new(), Vec::new()], volume: None, lost: false }
    }

    /// Something was written, to the appliance or back.
    pub fn wrote(&mut self, to: bool, data: &[u8]) {
        let side = usize::from(!to);
        self.buffers[side].extend_from_slice(data);
        let mut buffer = std::mem::take(&mut self.buffers[side]);
        let mut at = 0;
        while !self.lost {
            let Some(head) = buffer[at..].first_chunk::<HEADER_LEN>() else { break };
            let Ok(header) = Header::decode(head) else {
                crate::fail("somebody sends what is no message");
            };
            let Some(body) = buffer.get(at + HEADER_LEN..at + HEADER_LEN + header.body_len) else { break };
            if let Err(e) = self.message(header.kind, body) {
                crate::fail(&e);
            }
            at += HEADER_LEN + header.body_len;
        }
        buffer.drain(..at);
        self.buffers[side] = buffer;
    }

    fn message(&mut self, kind: MessageType, body: &[u8]) -> Result<(), String> {
        let bad = |e: afterimage_format::codec::DecodeError| format!("somebody sends what is no {kind:?}: {e}");
        match kind {
            MessageType::Hello => {
                let hello = Hello::decode(body).map_err(bad)?;
                let mut volumes = lock(&self.model.volumes);
                self.volume = volumes.iter().position(|v| v.name == hello.name);
                if let Some(v) = self.volume {
                    volumes[v].hello = usize::try_from(hello.size).unwrap_or(0);
                }
            }
            MessageType::Welcome => {
                let welcome = Welcome::decode(body).map_err(bad)?;
                crate::sim().say(&format!("welcome on connection {} behind {}", self.number, welcome.durable));
                return self.on(|v, number| v.welcome(number, &welcome));
            }
            MessageType::Data => {
                let mut rest = body;
                while let Some(head) = rest.first_chunk::<RECORD_LEN>() {
                    let record = Record::decode(head).map_err(bad)?;
                    if self.old && record.kind == Kind::Resize {
                        return Err("a record that version 1 does not know was sent to a peer that speaks it".into());
                    }
                    let payload = &rest[RECORD_LEN..RECORD_LEN + record.payload_len()];
                    crate::sim().state().note(b'#', record.seq ^ record.digest());
                    self.on(|v, number| v.sent(number, record, payload))?;
                    rest = &rest[RECORD_LEN + record.payload_len()..];
                }
            }
            MessageType::Ack => {
                let ack = Ack::decode(body).map_err(bad)?;
                return self.on(|v, number| {
                    if number == v.serving && ack.durable > v.last() {
                        return Err(format!("volume {}: seq {} acknowledged, {} sent", v.name, ack.durable, v.last()));
                    }
                    if number == v.serving {
                        v.acked = v.acked.max(ack.durable);
                    }
                    Ok(())
                });
            }
            MessageType::HashQuery | MessageType::Hashes if self.old => {
                return Err(format!("a {kind:?} was sent to a peer that speaks version 1"));
            }
            _ => {}
        }
        Ok(())
    }

    fn on(&self, f: impl FnOnce(&mut Volume, u64) -> Result<(), String>) -> Result<(), String> {
        match self.volume {
            Some(index) => self.model.with(index, |v| f(v, self.number)),
            None => Ok(()),
        }
    }
}
