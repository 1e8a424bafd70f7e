//! Test data: chance that can be repeated, image files, comparisons.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// A seeded source of chance (splitmix64).
#[derive(Debug)]
pub struct Chance(u64);

impl Chance {
    /// Takes the seed from `AFTERIMAGE_SEED`, or a new one, and prints it so that a failing run can be repeated.
    ///
    /// # Panics
    /// If `AFTERIMAGE_SEED` is not a number.
    #[must_use]
    pub fn seeded() -> Self {
        let seed = match std::env::var("AFTERIMAGE_SEED") {
            Ok(text) => text.parse().unwrap_or_else(|_| panic!("AFTERIMAGE_SEED is not a number: {text}")),
            Err(_) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                now.as_secs().wrapping_mul(1_000_003) ^ u64::from(now.subsec_nanos())
            }
        };
        println!("repeat with AFTERIMAGE_SEED={seed}");
        Self(seed)
    }

    /// Chance with this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..end`.
    ///
    /// # Panics
    /// If `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        assert!(end > 0, "nothing to choose from");
        self.bits() % end
    }

    /// A number in `first..=last`.
    pub fn between(&mut self, first: u64, last: u64) -> u64 {
        first + self.below(last - first + 1)
    }

    /// Bytes that nothing can compress.
    #[must_use]
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.bits().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

/// Makes a sparse file of this many bytes.
///
/// # Panics
/// If that fails.
pub fn sparse(path: &Path, size: u64) {
    File::create(path).and_then(|f| f.set_len(size)).unwrap_or_else(|e| panic!("make {}: {e}", path.display()));
}

/// Makes a file of this many bytes: incompressible stretches of 64 KiB, some of them twice, with holes between.
///
/// # Panics
/// If that fails.
pub fn patchy(path: &Path, size: u64, chance: &mut Chance) {
    sparse(path, size);
    let file = File::options().write(true).open(path).expect("open an image");
    let piece = 64 << 10;
    let mut last = chance.bytes(piece);
    for offset in (0..size / piece as u64).map(|n| n * piece as u64) {
        match chance.below(4) {
            0 => continue,
            1 => {}
            _ => last = chance.bytes(piece),
        }
        file.write_all_at(&last, offset).expect("fill an image");
    }
}

/// Two files, or block devices, must hold the same bytes.
///
/// # Panics
/// If they do not; names the first byte.
#[track_caller]
pub fn assert_same(left: &Path, right: &Path) {
    if let Some(offset) = first_difference(left, right) {
        panic!("{} and {} differ at byte {offset}", left.display(), right.display());
    }
}

/// The first byte at which two files differ; the shorter one's end counts.
///
/// # Panics
/// If they cannot be read.
#[must_use]
pub fn first_difference(left: &Path, right: &Path) -> Option<u64> {
    let open = |path: &Path| File::open(path).unwrap_or_else(|e| panic!("open {}: {e}", path.display()));
    let (mut left, mut right) = (open(left), open(right));
    let (mut a, mut b) = (Vec::new(), Vec::new());
    let mut offset = 0;
    loop {
        for (file, piece) in [(&mut left, &mut a), (&mut right, &mut b)] {
            piece.clear();
            file.take(1 << 20).read_to_end(piece).expect("read an image");
        }
        if a != b {
            let at = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
            return Some(offset + at as u64);
        }
        if a.is_empty() {
            return None;
        }
        offset += a.len() as u64;
    }
}

/// Turns one bit of a file over.
///
/// # Panics
/// If the file cannot be changed.
pub fn flip_bit(path: &Path, bit: u64) {
    let mut file = File::options().read(true).write(true).open(path).expect("open a file to damage");
    let mut byte = [0];
    file.seek(SeekFrom::Start(bit / 8)).and_then(|_| file.read_exact(&mut byte)).expect("read the byte to damage");
    byte[0] ^= 1 << (bit % 8);
    file.seek(SeekFrom::Start(bit / 8)).and_then(|_| file.write_all(&byte)).expect("damage a byte");
}

/// A TCP port that nobody uses now.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("bind to any port");
    listener.local_addr().expect("the address of a listener").port()
}
