//! The limit: what the kernels of a first pass take on one core, each alone, in CPU time, in the same run.
//!
//! Zero test, keyed hash, compression, seal and writing, as the appliance calls them, over a real image. Nothing between them is in it:
//! no socket, no copying, no look-ups, no threads.

use afterimage_appliance::reduce::block::{Fingerprinter, is_zero};
use afterimage_appliance::reduce::{FRAME_BLOCKS, LEVEL};
use nix::time::{ClockId, clock_gettime};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde::Serialize;
use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use zeroize::Zeroizing;

const BLOCK: usize = 4096;
/// What is worked on at a time: larger than the caches, as it comes from a socket.
const PIECE: usize = 16 << 20;

/// CPU seconds of each kernel over an image.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Limit {
    /// Finding zero blocks, over all bytes.
    pub zero: f64,
    /// Hashing what is not zero.
    pub hash: f64,
    /// Compressing what is new, in frames.
    pub compress: f64,
    /// Sealing what comes out.
    pub seal: f64,
    /// Writing that to a file, and making it durable once.
    pub write: f64,
    /// Bytes of the image.
    pub bytes: u64,
    /// Bytes not zero.
    pub data: u64,
    /// Bytes compressed.
    pub packed: u64,
}

impl Limit {
    /// CPU seconds of a first pass.
    #[must_use]
    pub fn first(&self) -> f64 {
        self.zero + self.hash + self.compress + self.seal + self.write
    }

    /// CPU seconds of a pass that finds nothing new.
    #[must_use]
    pub fn known(&self) -> f64 {
        self.zero + self.hash
    }
}

#[expect(clippy::cast_precision_loss, reason = "seconds of a benchmark")]
fn cpu() -> f64 {
    let t = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("the thread's clock");
    t.tv_sec() as f64 + t.tv_nsec() as f64 / 1e9
}

fn timed<T>(sum: &mut f64, work: impl FnOnce() -> T) -> T {
    let start = cpu();
    let result = work();
    *sum += cpu() - start;
    result
}

/// Measures the kernels over an image; a file with what comes out is written in `dir` and removed.
///
/// # Panics
/// If a file cannot be read or written.
#[must_use]
pub fn measure(image: &Path, dir: &Path) -> Limit {
    let mut limit = Limit::default();
    let mut input = File::open(image).expect("open the image");
    let path = dir.join("limit");
    let mut output = File::create(&path).expect("make a file");
    let printer = Fingerprinter::new(Zeroizing::new([1; 32]));
    let mut seen = HashSet::new();
    let mut compressor = zstd::bulk::Compressor::new(LEVEL).expect("memory for a compressor");
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[1; 32]).expect("a key"));
    let (mut piece, mut counter) = (vec![0; PIECE], 0u64);
    let mut out: Vec<Vec<u8>> = Vec::new();
    loop {
        let mut len = 0;
        while len < piece.len() {
            match input.read(&mut piece[len..]).expect("read the image") {
                0 => break,
                n => len += n,
            }
        }
        if len == 0 {
            break;
        }
        limit.bytes += len as u64;
        let data: Vec<&[u8]> =
            timed(&mut limit.zero, || piece[..len].chunks_exact(BLOCK).filter(|b| !is_zero(b)).collect());
        limit.data += (data.len() * BLOCK) as u64;
        let prints: Vec<_> = timed(&mut limit.hash, || data.iter().map(|b| printer.of(b)).collect());
        let new: Vec<u8> =
            data.iter().zip(prints).filter(|(_, p)| seen.insert(*p)).flat_map(|(b, _)| b.iter().copied()).collect();
        out.clear();
        for frame in new.chunks(FRAME_BLOCKS * BLOCK) {
            let mut packed = Vec::with_capacity(frame.len() + 1024);
            let packs = timed(&mut limit.compress, || {
                packed.resize(frame.len() - frame.len() / 8, 0);
                compressor.compress_to_buffer(frame, &mut packed[..])
            });
            match packs {
                Ok(n) => packed.truncate(n),
                Err(_) => frame.clone_into(&mut packed),
            }
            limit.packed += packed.len() as u64;
            counter += 1;
            let mut nonce = [0; 12];
            nonce[..8].copy_from_slice(&counter.to_le_bytes());
            timed(&mut limit.seal, || {
                let nonce = Nonce::assume_unique_for_key(nonce);
                key.seal_in_place_append_tag(nonce, Aad::empty(), &mut packed).expect("seal");
            });
            out.push(packed);
        }
        timed(&mut limit.write, || out.iter().for_each(|p| output.write_all(p).expect("write")));
    }
    timed(&mut limit.write, || output.sync_data().expect("make it durable"));
    std::fs::remove_file(&path).expect("remove the file");
    limit
}

/// One line of the table of frame sizes and levels.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Choice {
    /// Blocks in a frame.
    pub blocks: usize,
    /// zstd level.
    pub level: i32,
    /// Bytes that come out of a byte.
    pub ratio: f64,
    /// Compressed, in MB for a CPU second.
    pub compress: f64,
    /// Microseconds of decompressing a frame.
    pub open: f64,
}

/// Compares frame sizes and levels over what is not zero in (at most `limit` bytes of) an image.
///
/// # Panics
/// If the image cannot be read.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "sizes of a benchmark")]
pub fn choices(image: &Path, limit: usize, mut progress: impl FnMut(&Choice)) -> Vec<Choice> {
    let mut input = File::open(image).expect("open the image");
    let (mut data, mut piece) = (Vec::new(), vec![0; 1 << 20]);
    while data.len() < limit && input.read_exact(&mut piece).is_ok() {
        piece.chunks_exact(BLOCK).filter(|b| !is_zero(b)).for_each(|b| data.extend_from_slice(b));
    }
    let mut all = Vec::new();
    for blocks in [16, 31, 64, 256] {
        for level in [-5, -3, -1, 1, 2, 3, 6, 9, 12, 19] {
            let frame = blocks * BLOCK;
            let mut compressor = zstd::bulk::Compressor::new(level).expect("memory for a compressor");
            let mut opener = zstd::bulk::Decompressor::new().expect("memory for a decompressor");
            let (mut packed, mut spent, mut opened, mut frames) = (0, 0.0, 0.0, 0.0);
            let (mut out, mut back) = (vec![0; frame + frame / 8 + 1024], vec![0; frame]);
            // Slow levels see a part of the image: every eighth frame.
            let step = if level >= 9 { 8 } else { 1 };
            let mut seen = 0;
            for plain in data.chunks(frame).step_by(step) {
                let n = timed(&mut spent, || compressor.compress_to_buffer(plain, &mut out[..])).expect("compress");
                timed(&mut opened, || opener.decompress_to_buffer(&out[..n], &mut back[..])).expect("decompress");
                packed += n.min(plain.len());
                seen += plain.len();
                frames += 1.0;
            }
            let choice = Choice {
                blocks,
                level,
                ratio: packed as f64 / seen as f64,
                compress: seen as f64 / spent / 1e6,
                open: opened / frames * 1e6,
            };
            progress(&choice);
            all.push(choice);
        }
    }
    all
}
