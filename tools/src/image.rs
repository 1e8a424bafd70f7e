//! A volume as it was, read as a whole: over one connection, with requests in flight.
//!
//! The server reads ahead of who reads from front to back, and decodes on all processors for one connection. Several
//! connections that divide the disk between them would each have it read ahead of the others' parts too.

use crate::problem::Problem;
use afterimage_mgmt::client::ControlClient;
use afterimage_mgmt::protocol::{Access, Position};
use afterimage_mgmt::when::When;
use afterimage_nbd::client::{Client, ClientError, Command, Options};
use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::path::Path;

/// Length of a read.
const PIECE: u64 = 512 << 10;
/// Reads in flight: as much as the server reads ahead.
const DEPTH: usize = 16;

/// One image behind a connection.
#[derive(Debug)]
pub struct Image {
    client: Client,
}

/// What is read next into the hands of the caller.
#[derive(Debug, Clone, Copy)]
struct Piece {
    at: u64,
    len: usize,
}

impl From<Client> for Image {
    fn from(client: Client) -> Image {
        Image { client }
    }
}

impl Image {
    /// The volume as it was at a moment, from the process that runs on the data folder.
    ///
    /// # Errors
    /// If nothing runs there, or the moment cannot be opened.
    pub fn open(data: &Path, volume: &str, at: &When) -> Result<(Position, Image), Problem> {
        let (position, stream) = ControlClient::connect(data)?.nbd(volume, at, Access::Moment)?;
        let client = Client::over(OwnedFd::from(stream), volume, &Options::default())?;
        Ok((position, Image { client }))
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.client.size()
    }

    /// The ranges that do not read as zeroes; see [`Client::data_ranges`].
    ///
    /// # Errors
    /// If the connection or the request fails.
    pub fn data_ranges(&mut self) -> Result<Vec<(u64, u64)>, Problem> {
        Ok(self.client.data_ranges()?)
    }

    /// Reads `ranges` in order and gives each piece to `sink`. What reaches past the end of the disk is zero.
    ///
    /// # Errors
    /// If the connection or a read fails, or what `sink` says.
    pub fn read_ranges(
        &mut self,
        ranges: impl Iterator<Item = (u64, u64)>,
        mut sink: impl FnMut(u64, &[u8]) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        let size = self.size();
        let mut pieces = ranges.flat_map(|(start, len)| pieces(start, len));
        let (mut order, mut early) = (VecDeque::new(), HashMap::new());
        loop {
            while order.len() < DEPTH {
                let Some((at, len)) = pieces.next() else { break };
                let inside = u32::try_from(len.min(size.saturating_sub(at))).unwrap_or(u32::MAX);
                self.client.submit(at, &Command::Read { offset: at, len: inside })?;
                order.push_back(Piece { at, len: usize::try_from(len).unwrap_or(usize::MAX) });
            }
            let Some(piece) = order.pop_front() else { return Ok(()) };
            self.take(piece, &mut early, &mut sink)?;
        }
    }

    /// Receives until the piece is there. A server may answer in any order: what comes too early is kept.
    fn take(
        &mut self,
        piece: Piece,
        early: &mut HashMap<u64, Vec<u8>>,
        sink: &mut impl FnMut(u64, &[u8]) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        if let Some(data) = early.remove(&piece.at) {
            return give(piece, &data, sink);
        }
        loop {
            let reply = self.client.receive()?;
            reply.result.map_err(|e| failed(reply.cookie, &e))?;
            if reply.cookie == piece.at {
                return give(piece, reply.data, sink);
            }
            early.insert(reply.cookie, reply.data.to_vec());
        }
    }
}

fn failed(at: u64, e: &ClientError) -> Problem {
    Problem::failed(format!("read at byte {at}: {e}"))
}

fn give(piece: Piece, data: &[u8], sink: &mut impl FnMut(u64, &[u8]) -> Result<(), Problem>) -> Result<(), Problem> {
    if data.len() == piece.len {
        return sink(piece.at, data);
    }
    let mut whole = data.to_vec();
    whole.resize(piece.len, 0);
    sink(piece.at, &whole)
}

fn pieces(start: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = start.saturating_add(len);
    let mut at = start;
    std::iter::from_fn(move || {
        let piece = (at, PIECE.min(end - at));
        at += piece.1;
        (piece.1 > 0).then_some(piece)
    })
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
