//! A long history, made fast: many writes of 4 KiB to a large sparse volume, sent to an appliance over its socket with the
//! protocol that agents speak. What the appliance does with them is what it does with a guest's writes; only the guest,
//! its disk and the journal are left out, which would take most of the time.
//!
//! Half of the blocks that are written are neighbours (a large file), the other half lies in pieces of 16 MiB all over the
//! second half of the volume. Every write goes to one of them at random. The bytes of a write follow from its seq, so
//! what any block held at any seq can be computed.

use afterimage_appliance::{Appliance, ApplianceConfig};
use afterimage_format::record::{HEADER_LEN as RECORD_LEN, Kind, Record};
use afterimage_format::wire::{Ack, HEADER_LEN, Header, Hello, MessageType, VERSION, Welcome};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, SystemTime};
use xxhash_rust::xxh3::xxh3_64;

/// The volume's name.
pub const VOLUME: &str = "disk";
const BLOCK: usize = 4096;
/// Blocks of one of the scattered pieces.
const PIECE: u64 = 4096;
/// Writes in one message.
const MESSAGE: u64 = 64;
/// Time between two writes in nanoseconds: 10 million take a bit over half an hour.
const STEP: u64 = 200_000;

/// What is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Bytes of the volume.
    pub size: u64,
    /// Number of blocks that are ever written.
    pub blocks: u64,
    /// Number of writes.
    pub writes: u64,
    /// How many of them, the last ones, are in no layer yet when a daemon starts on the data folder.
    pub unflushed: u64,
}

/// SplitMix64's step: a fixed, well-spread sequence.
const fn mix(n: u64) -> u64 {
    let z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Shape {
    /// Offset and length in bytes of the blocks that are neighbours.
    #[must_use]
    pub const fn dense(&self) -> (u64, u64) {
        (self.size / 4 / BLOCK as u64 * BLOCK as u64, self.blocks / 2 * BLOCK as u64)
    }

    /// Which of the written blocks the write `seq` goes to.
    #[must_use]
    pub const fn target(&self, seq: u64) -> u64 {
        mix(seq) % self.blocks
    }

    /// Offset on the disk of a written block.
    #[must_use]
    pub const fn offset(&self, target: u64) -> u64 {
        let half = self.blocks / 2;
        if target < half {
            return self.dense().0 + target * BLOCK as u64;
        }
        let (piece, within) = ((target - half) / PIECE, (target - half) % PIECE);
        let pieces = (self.blocks - half).div_ceil(PIECE);
        let apart = self.size / 2 / pieces / BLOCK as u64 * BLOCK as u64;
        self.size / 2 + piece * apart + within * BLOCK as u64
    }

    /// For each written block the last write at or before `seq`, 0 if there is none.
    #[must_use]
    pub fn newest(&self, seq: u64) -> Vec<u64> {
        let mut out = vec![0; usize::try_from(self.blocks).unwrap_or(0)];
        for s in 1..=seq {
            out[usize::try_from(self.target(s)).unwrap_or(0)] = s;
        }
        out
    }
}

/// Bytes of a phrase.
const PHRASE: usize = 64;

/// The bytes of write `seq`: a third of noise, and phrases of a small vocabulary. zstd makes 0.36 of it and takes as long for
/// the way back as for blocks of real disks. No two writes are alike.
pub fn content(seq: u64, out: &mut [u8]) {
    let (noise, text) = out.split_at_mut(out.len() / 3 / PHRASE * PHRASE);
    let base = mix(seq ^ 1 << 60);
    for (n, chunk) in (1u64..).zip(noise.chunks_exact_mut(8)) {
        chunk.copy_from_slice(&mix(base.wrapping_add(n)).to_le_bytes());
    }
    for (n, phrase) in (1u64..).zip(text.chunks_exact_mut(PHRASE)) {
        let which = mix(base.wrapping_sub(n)) & 0x1f;
        for (word, chunk) in (1u64..).zip(phrase.chunks_exact_mut(8)) {
            chunk.copy_from_slice(&mix(which << 8 | word).to_le_bytes());
        }
    }
    out[..8].copy_from_slice(&seq.to_le_bytes());
}

/// The agent's end of a session.
struct Link {
    stream: UnixStream,
    durable: u64,
    credit: u64,
    sent: u64,
}

impl Link {
    fn open(socket: &Path, shape: &Shape, first: u64) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        let hello = Hello {
            oldest: VERSION,
            newest: VERSION,
            volume: [7; 16],
            ring: [7; 16],
            size: shape.size,
            first,
            next: first,
            name: VOLUME.into(),
            epoch: 0,
            adopts: false,
        };
        let body = hello.encode();
        stream.write_all(&Header::of(MessageType::Hello, &body).encode())?;
        stream.write_all(&body)?;
        let mut link = Self { stream, durable: 0, credit: 0, sent: 0 };
        link.message()?;
        Ok(link)
    }

    fn message(&mut self) -> io::Result<()> {
        let mut header = [0; HEADER_LEN];
        self.stream.read_exact(&mut header)?;
        let header = Header::decode(&header).map_err(io::Error::other)?;
        let mut body = vec![0; header.body_len];
        self.stream.read_exact(&mut body)?;
        match header.kind {
            MessageType::Welcome => {
                let w = Welcome::decode(&body).map_err(io::Error::other)?;
                (self.durable, self.credit) = (w.durable, w.credit);
            }
            MessageType::Ack => {
                let a = Ack::decode(&body).map_err(io::Error::other)?;
                (self.durable, self.credit) = (a.durable, a.credit);
            }
            MessageType::Ping => {}
            other => return Err(io::Error::other(format!("the appliance answers {other:?}"))),
        }
        Ok(())
    }

    fn send(&mut self, body: &[u8]) -> io::Result<()> {
        while self.sent + body.len() as u64 > self.credit {
            self.message()?;
        }
        self.sent += body.len() as u64;
        self.stream.write_all(&Header::data(body.len()).encode())?;
        self.stream.write_all(body)
    }

    /// Sends the writes after `from` up to `to`, and waits until they are durable.
    fn writes(&mut self, shape: &Shape, from: u64, to: u64, end: u64) -> io::Result<()> {
        let (mut body, mut bytes) = (Vec::new(), [0; BLOCK]);
        for seq in from + 1..=to {
            content(seq, &mut bytes);
            let record = Record {
                kind: Kind::Write,
                flags: 0,
                seq,
                offset: shape.offset(shape.target(seq)),
                len: BLOCK as u64,
                time: end - (shape.writes - seq) * STEP,
                payload_hash: xxh3_64(&bytes),
                place: 0,
            };
            debug_assert_eq!(record.encode().len(), RECORD_LEN);
            body.extend_from_slice(&record.encode());
            body.extend_from_slice(&bytes);
            if seq.is_multiple_of(MESSAGE) || seq == to {
                self.send(&body)?;
                body.clear();
            }
        }
        while self.durable < to {
            self.message()?;
        }
        Ok(())
    }
}

/// Makes the data folder `data` with this history. The last writes are left in the state of a process that was killed, so the
/// calling process must end soon after, without cleaning up. `order` says whether the others are brought into disk order before
/// the last ones come, as the appliance does in the background, here at once.
///
/// # Panics
/// If the appliance does not start or the disk is full.
pub fn fill(data: &Path, shape: &Shape, order: bool) {
    std::fs::create_dir_all(data).expect("make the data folder");
    std::fs::write(data.join("VERSION"), "afterimage data 1\n").expect("mark the data folder");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let end = u64::try_from(now.as_nanos()).expect("a time before 2554");
    let socket = data.join("appliance.sock");
    let mut config = ApplianceConfig::new(data.join("vault"), socket.clone());
    // Whoever measures says when that is done.
    config.order_rate = 0;
    let flushed = shape.writes - shape.unflushed;
    let start = || Appliance::start(config.clone()).unwrap_or_else(|e| panic!("{e}"));
    let appliance = start();
    let mut link = Link::open(&socket, shape, 1).expect("open a session");
    link.writes(shape, 0, flushed, end).expect("send the writes");
    drop(link);
    appliance.stop();
    let appliance = start();
    if order {
        put_in_order(&appliance);
    }
    let mut link = Link::open(&socket, shape, flushed + 1).expect("open a session again");
    link.writes(shape, flushed, shape.writes, end).expect("send the last writes");
    // No stop: what is in memory only stays there.
    std::mem::forget(appliance);
}

/// Brings everything into disk order, and gives back the room of what that leaves behind.
///
/// # Panics
/// If the appliance cannot.
pub fn put_in_order(appliance: &Appliance) {
    let began = std::time::Instant::now();
    while appliance.order(4).unwrap_or_else(|e| panic!("{e}")).is_some() {}
    let (seconds, store) = (began.elapsed().as_secs_f64(), appliance.store());
    eprintln!("{} MiB written again in disk order, in {seconds:.1} s", store.rewritten_bytes >> 20);
    // The first round sees what is full, the second removes it.
    for _ in 0..2 {
        appliance.collect(0).unwrap_or_else(|e| panic!("{e}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn blocks_lie_apart_within_the_volume_and_contents_differ() {
        let shape = Shape { size: 1 << 40, blocks: 100_000, writes: 0, unflushed: 0 };
        let offsets: HashSet<u64> = (0..shape.blocks).map(|t| shape.offset(t)).collect();
        assert_eq!(offsets.len() as u64, shape.blocks);
        assert!(offsets.iter().all(|o| o.is_multiple_of(BLOCK as u64) && o + BLOCK as u64 <= shape.size));
        let bytes = |seq| {
            let mut out = [0; BLOCK];
            content(seq, &mut out);
            out
        };
        assert!(bytes(1) != bytes(2) && bytes(1) == bytes(1));
        let newest = shape.newest(1000);
        assert_eq!(newest[usize::try_from(shape.target(1000)).unwrap()], 1000);
    }
}
