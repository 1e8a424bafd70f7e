//! A small agent: records with right checksums, messages, and what a volume holds after each record.

use afterimage_appliance::{Appliance, ApplianceConfig};
use afterimage_base::block::Request;
use afterimage_base::buf::AlignedBuf;
use afterimage_base::simple::call;
use afterimage_format::record::{Kind, Record};
use afterimage_format::wire::{Ack, HEADER_LEN, Header, Hello, MessageType, VERSION};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64;

/// Size of the volumes: no multiple of the grid.
pub const SIZE: usize = 9 * 4096 + 1000;

/// Images by seq.
pub type Images = BTreeMap<u64, Vec<u8>>;

/// A configuration with small sizes, for a vault in `folder`.
#[must_use]
pub fn config(folder: &Path) -> ApplianceConfig {
    let mut config = ApplianceConfig::new(folder.join("vault"), folder.join("sock"));
    (config.segment_size, config.dedupe_bytes, config.threads) = (1 << 20, 1 << 20, 1);
    (config.cache_bytes, config.layer_cache_bytes, config.memory_runs) = (1 << 20, 1 << 20, 64);
    config.collect_every = Duration::from_secs(1 << 20);
    // Without the reserve file, which would be most of each vault.
    config.min_free = afterimage_appliance::MinFree::Bytes(0);
    config
}

/// A right Hello.
#[must_use]
pub fn hello(id: u8, name: &str) -> Hello {
    Hello {
        oldest: 1,
        newest: VERSION,
        volume: [id; 16],
        ring: [8; 16],
        size: SIZE as u64,
        first: 1,
        next: 1,
        name: name.into(),
        epoch: 0,
        adopts: false,
    }
}

/// A record with its payload as they travel.
#[must_use]
pub fn encode(mut record: Record, payload: &[u8]) -> Vec<u8> {
    record.payload_hash = if payload.is_empty() { 0 } else { xxh3_64(payload) };
    [&record.encode()[..], payload].concat()
}

/// A message.
#[must_use]
pub fn message(kind: MessageType, body: &[u8]) -> Vec<u8> {
    let header = if kind == MessageType::Data { Header::data(body.len()) } else { Header::of(kind, body) };
    [&header.encode()[..], body].concat()
}

/// What an image becomes by a record.
pub fn apply(image: &mut [u8], record: &Record, payload: &[u8]) {
    let at = record.offset as usize;
    match record.kind {
        Kind::Write => image[at..at + payload.len()].copy_from_slice(payload),
        Kind::Zero => image[at..at + record.len as usize].fill(0),
        _ => {}
    }
}

/// The whole of a volume at a seq; `None` if it cannot be chosen or is damaged.
#[must_use]
pub fn read(appliance: &Appliance, volume: &str, seq: u64) -> Option<Vec<u8>> {
    let device = appliance.open_at(volume, seq).ok()?;
    let size = device.geometry().size as usize;
    let mut queue = Arc::clone(&device).open_queue().ok()?;
    let buf = call(&mut *queue, Request::Read { offset: 0, buf: AlignedBuf::zeroed(size) }).ok()??;
    Some(buf.to_vec())
}

/// Sends records one after the other, each in a message of its own that has to be durable before the next, so that what a vault
/// then holds does not depend on time. Adds the images.
pub fn send_slowly(socket: &Path, hello: &Hello, records: &[(Record, Vec<u8>)], images: &mut Images) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(&message(MessageType::Hello, &hello.encode())).unwrap();
    let mut image = images.last_key_value().map_or_else(|| vec![0; SIZE], |i| i.1.clone());
    for (record, payload) in records {
        stream.write_all(&message(MessageType::Data, &encode(*record, payload))).unwrap();
        apply(&mut image, record, payload);
        images.insert(record.seq, image.clone());
        let mut durable = 0;
        while durable < record.seq {
            let mut head = [0; HEADER_LEN];
            stream.read_exact(&mut head).unwrap();
            let header = Header::decode(&head).unwrap();
            let mut body = vec![0; header.body_len];
            stream.read_exact(&mut body).unwrap();
            if header.kind == MessageType::Ack {
                durable = Ack::decode(&body).unwrap().durable;
            }
        }
    }
    stream.write_all(&message(MessageType::Bye, &[])).unwrap();
    // Until the appliance has ended the session too.
    drop(stream.read_to_end(&mut Vec::new()));
}
