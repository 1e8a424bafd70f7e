//! One connection, and what the peer at its end speaks.

use super::{Pipe, lock};
use crate::model::Tap;
use afterimage_format::wire::{HEADER_LEN, Header, MessageType, OLDEST_VERSION, VERSION};
use std::sync::Mutex;

/// What the other side of new connections speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// What this code speaks.
    Same,
    /// Only the oldest version.
    Old,
    /// Only versions that nobody knows.
    New,
}

impl Peer {
    /// Makes a Hello that of such a peer.
    fn rewrite(self, message: &mut [u8]) {
        let Some((_, body)) = message.split_at_mut_checked(HEADER_LEN) else { return };
        let (oldest, newest) = match self {
            Peer::Same => return,
            Peer::Old => (OLDEST_VERSION, OLDEST_VERSION),
            Peer::New => (VERSION + 97, VERSION + 98),
        };
        body[..2].copy_from_slice(&oldest.to_le_bytes());
        body[2..4].copy_from_slice(&newest.to_le_bytes());
        let header = Header::of(MessageType::Hello, body).encode();
        message[..HEADER_LEN].copy_from_slice(&header);
    }
}

/// A connection.
pub(super) struct Link {
    /// To the appliance, and back.
    pub(super) pipes: [Mutex<Pipe>; 2],
    pub(super) tap: Mutex<Tap>,
    pub(super) lives: [u64; 2],
    pub(super) number: u64,
    pub(super) peer: Peer,
    /// The beginning of a Hello that is to be another one.
    pub(super) hello: Mutex<Option<Vec<u8>>>,
}

impl Link {
    /// What goes on the wire in place of `data`, which the agent sends.
    pub(super) fn translate(&self, data: &[u8]) -> Vec<u8> {
        let mut held = lock(&self.hello);
        let Some(mut hello) = held.take() else { return data.to_vec() };
        hello.extend_from_slice(data);
        let header = hello.first_chunk().and_then(|h| Header::decode(h).ok());
        let len = header.map_or(usize::MAX, |h| HEADER_LEN + h.body_len);
        if hello.len() < len {
            *held = Some(hello);
            return Vec::new();
        }
        self.peer.rewrite(&mut hello[..len]);
        hello
    }
}
