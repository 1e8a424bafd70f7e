//! Measures the receiving side on a disk image: `ingest_rate IMAGE [IMAGE2 ...]` sends each image in turn, as generations of one
//! volume, through a unix socket, as an agent does in its initial sync. `ingest_rate --frames IMAGE` compares frame sizes,
//! and `ingest_rate --kernels IMAGE` measures the parts of the work alone, on one core.
//!
//! Environment: `THREADS` (reducer threads), `DIR` (where the vault is made, default the system's temporary folder).
#![allow(clippy::disallowed_methods, reason = "it runs in the real world")]

use afterimage_appliance::reduce::block::{Fingerprinter, is_zero};
use afterimage_appliance::{Appliance, ApplianceConfig};
use afterimage_format::record::{Kind, Record};
use afterimage_format::wire::{Ack, HEADER_LEN, Header, Hello, MessageType, VERSION, Welcome};
use std::error::Error;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;
use xxhash_rust::xxh3::xxh3_64;
use zeroize::Zeroizing;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const RECORD: usize = 128 << 10;
const MIB: f64 = 1048576.0;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("--frames") => frames(&std::fs::read(args.get(1).ok_or("an image is needed")?)?),
        Some("--kernels") => kernels(&std::fs::read(args.get(1).ok_or("an image is needed")?)?),
        Some(_) => ingest(&args),
        None => Err("an image is needed".into()),
    }
}

fn cpu_seconds() -> f64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID)
        .map_or(0.0, |t| t.tv_sec() as f64 + t.tv_nsec() as f64 / 1e9)
}

struct Link {
    stream: UnixStream,
    durable: u64,
    credit: u64,
    sent: u64,
}

impl Link {
    fn message(&mut self) -> Result<()> {
        let mut header = [0; HEADER_LEN];
        self.stream.read_exact(&mut header)?;
        let header = Header::decode(&header)?;
        let mut body = vec![0; header.body_len];
        self.stream.read_exact(&mut body)?;
        match header.kind {
            MessageType::Welcome => {
                let w = Welcome::decode(&body)?;
                (self.durable, self.credit) = (w.durable, w.credit);
            }
            MessageType::Ack => {
                let a = Ack::decode(&body)?;
                (self.durable, self.credit) = (a.durable, a.credit);
            }
            MessageType::Ping => {}
            other => return Err(format!("the appliance answers {other:?}: {}", String::from_utf8_lossy(&body)).into()),
        }
        Ok(())
    }

    fn write(&mut self, record: &Record, payload: &[u8]) -> Result<()> {
        let len = record.encode().len() + payload.len();
        while self.sent + len as u64 > self.credit {
            self.message()?;
        }
        self.sent += len as u64;
        let mut head = Header::data(len).encode().to_vec();
        head.extend_from_slice(&record.encode());
        self.stream.write_all(&head)?;
        self.stream.write_all(payload)?;
        Ok(())
    }
}

fn ingest(images: &[String]) -> Result<()> {
    let dir = match std::env::var_os("DIR") {
        Some(d) => tempfile::tempdir_in(d)?,
        None => tempfile::tempdir()?,
    };
    let mut config = ApplianceConfig::new(dir.path().join("vault"), dir.path().join("sock"));
    if let Ok(threads) = std::env::var("THREADS") {
        config.threads = threads.parse()?;
    }
    let appliance = Appliance::start(config.clone())?;
    let mut stream = UnixStream::connect(dir.path().join("sock"))?;
    let size = images.iter().map(|i| std::fs::metadata(i).map_or(0, |m| m.len())).max().unwrap_or(0);
    let hello = Hello {
        oldest: VERSION,
        newest: VERSION,
        volume: [1; 16],
        ring: [1; 16],
        size,
        first: 1,
        next: 1,
        name: "image".into(),
        epoch: 0,
        adopts: false,
    };
    let body = hello.encode();
    stream.write_all(&Header::of(MessageType::Hello, &body).encode())?;
    stream.write_all(&body)?;
    let mut link = Link { stream, durable: 0, credit: 0, sent: 0 };
    link.message()?;
    let mut seq = 0;
    for image in images {
        let bytes = std::fs::read(image)?;
        // The sender's own checksums are made before the clock starts: it is the appliance that is measured.
        let hashes: Vec<(bool, u64)> = bytes.chunks(RECORD).map(|c| (is_zero(c), xxh3_64(c))).collect();
        let (start, cpu) = (Instant::now(), cpu_seconds());
        let mut data = 0;
        for ((i, chunk), (zero, payload_hash)) in bytes.chunks(RECORD).enumerate().zip(hashes) {
            if zero {
                continue;
            }
            seq += 1;
            data += chunk.len();
            let offset = (i * RECORD) as u64;
            let len = chunk.len() as u64;
            let record = Record { kind: Kind::Write, flags: 1, seq, offset, len, time: seq, payload_hash, place: 0 };
            link.write(&record, chunk)?;
        }
        while link.durable < seq {
            link.message()?;
        }
        let (wall, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
        let info = appliance.volumes().into_iter().next().ok_or("no volume")?;
        println!(
            "{image}: {:.0} MiB sent in {wall:.2} s = {:.0} MiB/s, {cpu:.2} CPU s = {:.0} MiB/s a core; stored {:.0} MiB",
            data as f64 / MIB,
            data as f64 / MIB / wall,
            data as f64 / MIB / cpu,
            info.stored_bytes as f64 / MIB
        );
    }
    let start = Instant::now();
    appliance.stop();
    println!("stop: {:.2} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// MiB for each second of CPU time: other load on the machine hardly matters.
fn rate(bytes: usize, start: f64) -> f64 {
    bytes as f64 / MIB / (cpu_seconds() - start)
}

fn non_zero(image: &[u8]) -> Vec<u8> {
    image.chunks_exact(4096).filter(|b| !is_zero(b)).flatten().copied().collect()
}

fn frames(image: &[u8]) -> Result<()> {
    let data = non_zero(image);
    println!("{:.0} MiB, {:.0} MiB of it not zero", image.len() as f64 / MIB, data.len() as f64 / MIB);
    println!("| blocks in a frame | stored/data | compress MiB/s | read a random block, us |\n|---|---|---|---|");
    for blocks in [1, 4, 8, 16, 31] {
        let mut compressor = zstd::bulk::Compressor::new(1)?;
        let mut decompressor = zstd::bulk::Decompressor::new()?;
        let frame = blocks * 4096;
        let mut out = vec![0; frame + frame / 8 + 1024];
        let (start, mut stored) = (cpu_seconds(), 0);
        let mut kept: Vec<Vec<u8>> = Vec::new();
        for chunk in data.chunks(frame) {
            let n = compressor.compress_to_buffer(chunk, &mut out)?;
            stored += n.min(chunk.len()) + 48;
            if kept.len() < 4096 {
                kept.push(out[..n].to_vec());
            }
        }
        let compress = rate(data.len(), start);
        let start = cpu_seconds();
        for packed in &kept {
            decompressor.decompress_to_buffer(packed, &mut out)?;
        }
        let micros = (cpu_seconds() - start) * 1e6 / kept.len().max(1) as f64;
        println!("| {blocks} | {:.3} | {compress:.0} | {micros:.0} |", stored as f64 / data.len() as f64);
    }
    Ok(())
}

fn kernels(image: &[u8]) -> Result<()> {
    let data = non_zero(image);
    let start = cpu_seconds();
    let zeroes = image.chunks_exact(4096).filter(|b| is_zero(b)).count();
    let zero = rate(image.len(), start);
    let printer = Fingerprinter::new(Zeroizing::new([1; 32]));
    let start = cpu_seconds();
    let sum = data.chunks_exact(4096).fold(0u8, |a, b| a ^ printer.of(b)[0]);
    let hash = rate(data.len(), start);
    let mut compressor = zstd::bulk::Compressor::new(1)?;
    let mut out = vec![0; 65536 + 65536 / 8 + 1024];
    let (start, mut packed) = (cpu_seconds(), 0);
    for chunk in data.chunks(65536) {
        packed += compressor.compress_to_buffer(chunk, &mut out[..])?.min(chunk.len());
    }
    let pack = rate(data.len(), start);
    let key = ring::aead::UnboundKey::new(&ring::aead::AES_256_GCM, &[1; 32]).map_err(|_| "key")?;
    let key = ring::aead::LessSafeKey::new(key);
    let start = cpu_seconds();
    for (i, chunk) in (0u64..).zip(data[..packed].chunks(32768)) {
        out[..chunk.len()].copy_from_slice(chunk);
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&i.to_le_bytes());
        let nonce = ring::aead::Nonce::assume_unique_for_key(nonce);
        let aad = ring::aead::Aad::empty();
        let tag = key.seal_in_place_separate_tag(nonce, aad, &mut out[..chunk.len()]).map_err(|_| "seal")?;
        let _: ring::aead::Tag = std::hint::black_box(tag);
    }
    let seal = rate(packed, start);
    let ratio = packed as f64 / data.len() as f64;
    let first = 1.0 / (1.0 / zero + 1.0 / hash + 1.0 / pack + ratio / seal);
    let second = 1.0 / (1.0 / zero + 1.0 / hash);
    println!("zero test {zero:.0}, hash {hash:.0}, zstd {pack:.0}, seal {seal:.0} MiB/s; ratio {ratio:.3}");
    println!(
        "sum of the kernels, one core: first pass {first:.0} MiB/s, all known {second:.0} MiB/s ({zeroes} zero, {sum})"
    );
    Ok(())
}
