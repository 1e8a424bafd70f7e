//! What the tests of the receiving side share: a small agent, and a model of a volume.

use crate::appliance::Appliance;
use crate::config::ApplianceConfig;
use crate::store::BlockSource;
use afterimage_base::net::{Endpoint, Half};
use afterimage_format::compare::Hashes;
use afterimage_format::place::Place;
use afterimage_format::record::{Kind, Record};
use afterimage_format::wire::{Ack, Fill, HEADER_LEN, Header, Hello, MessageType, Refuse, VERSION, Welcome};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// Size of the test volume: no multiple of the grid.
pub(crate) const SIZE: u64 = 24 * 4096 + 1000;
pub(crate) const VOLUME: [u8; 16] = [7; 16];
pub(crate) const RING: [u8; 16] = [8; 16];

pub(crate) fn config(dir: &Path) -> ApplianceConfig {
    let mut config = ApplianceConfig::new(dir.join("vault"), dir.join("sock"));
    (config.segment_size, config.dedupe_bytes, config.threads) = (1 << 20, 1 << 20, 2);
    config.min_free = crate::room::MinFree::Bytes(0);
    // Tests that collect do it themselves.
    (config.collect_every, config.order_rate) = (std::time::Duration::MAX, 0);
    config
}

/// A record with its payload.
#[derive(Debug, Clone)]
pub(crate) struct Write1 {
    pub(crate) record: Record,
    pub(crate) payload: Vec<u8>,
}

pub(crate) fn record(kind: Kind, seq: u64, offset: u64, len: u64, payload: Vec<u8>) -> Write1 {
    let payload_hash = if payload.is_empty() { 0 } else { xxh3_64(&payload) };
    let record = Record { kind, flags: 0, seq, offset, len, time: 1_700_000_000 + seq * 1000, payload_hash, place: 0 };
    Write1 { record, payload }
}

pub(crate) fn bytes_of(records: &[Write1]) -> Vec<u8> {
    records.iter().flat_map(|w| w.record.encode().into_iter().chain(w.payload.iter().copied())).collect()
}

/// The volume after each record: `images[i]` is the image after `records[..i]`.
pub(crate) fn images(records: &[Write1]) -> Vec<Vec<u8>> {
    let mut image = vec![0; usize::try_from(SIZE).unwrap()];
    let mut out = vec![image.clone()];
    for w in records {
        let range = usize::try_from(w.record.offset).unwrap()..;
        match w.record.kind {
            Kind::Write => image[range][..w.payload.len()].copy_from_slice(&w.payload),
            Kind::Zero => image[range][..usize::try_from(w.record.len).unwrap()].fill(0),
            _ => {}
        }
        out.push(image.clone());
    }
    out
}

/// The image of the test volume at a seq, read through history and store.
pub(crate) fn read_at(appliance: &Appliance, seq: u64) -> Vec<u8> {
    let volume = appliance.registry.all().into_iter().find(|v| v.id == VOLUME).unwrap();
    let blocks = SIZE.div_ceil(4096);
    let mut runs: Vec<(u64, Place)> = Vec::new();
    if seq > 0 {
        volume.history.view(seq).unwrap().resolve(0, blocks, &mut runs).unwrap();
    } else {
        runs.push((blocks, Place::ZERO));
    }
    let places: Vec<Place> =
        runs.iter().flat_map(|(count, place)| (0..*count).map(|i| place.advance(i).unwrap())).collect();
    let mut out = vec![1; places.len() * 4096];
    appliance.shared.store.read_blocks(&places, &mut out).unwrap();
    let size = usize::try_from(SIZE).unwrap();
    assert!(out[size..].iter().all(|b| *b == 0), "behind the end of the volume");
    out.truncate(size);
    out
}

/// A small agent.
pub(crate) struct Agent {
    stream: Half,
    pub(crate) welcome: Welcome,
    pub(crate) durable: u64,
    pub(crate) credit: u64,
    /// Answers to queries that came while something else was waited for.
    pub(crate) answers: Vec<Hashes>,
}

pub(crate) fn hello() -> Hello {
    Hello {
        oldest: VERSION,
        newest: VERSION,
        volume: VOLUME,
        ring: RING,
        size: SIZE,
        first: 1,
        next: 1,
        name: "disk".into(),
        epoch: 0,
        adopts: false,
    }
}

fn read_message(stream: &mut Half) -> Option<(MessageType, Vec<u8>)> {
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).ok()?;
    let header = Header::decode(&header).unwrap();
    let mut body = vec![0; header.body_len];
    stream.read_exact(&mut body).ok()?;
    header.verify(&body).unwrap();
    Some((header.kind, body))
}

impl Agent {
    /// Says hello; an error is the refusal.
    pub(crate) fn connect(at: &[Endpoint], hello: &Hello) -> Result<Agent, Refuse> {
        let mut stream = Half(Arc::new(at[0].connect(true).unwrap()));
        let body = hello.encode();
        stream.write_all(&Header::of(MessageType::Hello, &body).encode()).unwrap();
        stream.write_all(&body).unwrap();
        match read_message(&mut stream).unwrap() {
            (MessageType::Welcome, body) => {
                let welcome = Welcome::decode(&body).unwrap();
                Ok(Agent { stream, welcome, durable: welcome.durable, credit: welcome.credit, answers: Vec::new() })
            }
            (MessageType::Refuse, body) => Err(Refuse::decode(&body).unwrap()),
            other => panic!("{other:?}"),
        }
    }

    /// Says how full its ring is, in sixteenths.
    pub(crate) fn fill(&mut self, sixteenths: u64) {
        let body = Fill { used: sixteenths, size: 16 }.encode();
        self.raw(&Header::of(MessageType::Fill, &body).encode());
        self.raw(&body);
    }

    pub(crate) fn send(&mut self, body: &[u8]) {
        // A peer that has ended the session shows in the answers.
        drop(self.stream.write_all(&Header::data(body.len()).encode()));
        drop(self.stream.write_all(body));
    }

    /// Sends no more.
    pub(crate) fn shut(&self) {
        drop(self.stream.0.shutdown(std::net::Shutdown::Write));
    }

    /// The next answer to a query; `None` if the connection ended.
    pub(crate) fn hashes(&mut self) -> Option<Hashes> {
        loop {
            match read_message(&mut self.stream)? {
                (MessageType::Hashes, body) => return Some(Hashes::decode(&body).unwrap()),
                (MessageType::Ack | MessageType::Ping, _) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The next request about the disk; `None` if the connection ended.
    pub(crate) fn disk_request(&mut self) -> Option<(MessageType, Vec<u8>)> {
        loop {
            match read_message(&mut self.stream)? {
                (MessageType::Ack | MessageType::Ping, _) => {}
                (MessageType::Refuse, _) => return None,
                request => return Some(request),
            }
        }
    }

    /// Sends a message of any kind.
    pub(crate) fn say(&mut self, kind: MessageType, body: &[u8]) {
        self.raw(&Header::of(kind, body).encode());
        self.raw(body);
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        drop(self.stream.write_all(bytes));
    }

    /// Waits until `seq` is durable; an error is the refusal, `None` inside if the connection just ended.
    pub(crate) fn wait(&mut self, seq: u64) -> Result<(), Option<Refuse>> {
        while self.durable < seq {
            match read_message(&mut self.stream) {
                Some((MessageType::Ack, body)) => {
                    let ack = Ack::decode(&body).unwrap();
                    assert!(ack.durable >= self.durable && ack.credit >= self.credit);
                    (self.durable, self.credit) = (ack.durable, ack.credit);
                }
                Some((MessageType::Refuse, body)) => return Err(Some(Refuse::decode(&body).unwrap())),
                Some((MessageType::Ping, _)) => {}
                Some((MessageType::Hashes, body)) => self.answers.push(Hashes::decode(&body).unwrap()),
                Some(other) => panic!("{other:?}"),
                None => return Err(None),
            }
        }
        Ok(())
    }
}

pub(crate) fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
