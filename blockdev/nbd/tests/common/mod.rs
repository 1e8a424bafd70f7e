//! What the tests share: a server on a socket of its own, random numbers with a seed, a device that takes its time.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod raw;
pub(crate) mod slow;

use afterimage_base::block::BlockDevice;
use afterimage_base::simple::{MemoryDevice, Simple};
use afterimage_nbd::client::{Client, Options};
use afterimage_nbd::{Address, Export, ExportTable, Limits, Listen, Mode, Server};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Size of the disks, in bytes.
pub(crate) const SIZE: usize = 8 << 20;

/// A server with the exports `disk` (default) and `ro`, and `slow`, whose requests end in any order.
pub(crate) struct Fixture {
    pub(crate) server: Option<Server>,
    pub(crate) exports: Arc<ExportTable>,
    pub(crate) dir: tempfile::TempDir,
}

pub(crate) fn memory(size: usize) -> Arc<dyn BlockDevice> {
    Arc::new(Simple(Arc::new(MemoryDevice::new(size))))
}

pub(crate) fn export(name: &str, device: Arc<dyn BlockDevice>) -> Export {
    Export { name: name.to_owned(), description: format!("about {name}"), device }
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(Limits::default())
    }

    pub(crate) fn with(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let exports = Arc::new(ExportTable::single(export("disk", memory(SIZE))));
        let read_only = Simple(Arc::new(MemoryDevice::new(SIZE).read_only()));
        exports.insert(export("ro", Arc::new(read_only)));
        exports.insert(export("slow", Arc::new(slow::SlowDevice::new(SIZE, 1))));
        let listen = vec![Listen::Unix(dir.path().join("s")), Listen::Tcp("127.0.0.1:0".parse().unwrap())];
        let server = Server::start(listen, Arc::clone(&exports) as _, limits).unwrap();
        Self { server: Some(server), exports, dir }
    }

    pub(crate) fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    pub(crate) fn unix(&self) -> &Address {
        &self.server().addresses()[0]
    }

    pub(crate) fn tcp(&self) -> &Address {
        &self.server().addresses()[1]
    }

    /// A connection without a handshake. Nothing that a test waits for takes longer than 30 s, or it has failed.
    pub(crate) fn raw(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    pub(crate) fn client(&self, export: &str, mode: Mode) -> Client {
        Client::connect_with(self.unix(), export, &Options { mode, allocation: true }).unwrap()
    }

    /// That another client is served as if nothing was.
    pub(crate) fn assert_serves(&self) {
        let mut client = self.client("disk", Mode::Structured);
        let (offset, mut back) = (SIZE as u64 - 5000, [0; 3]);
        client.write(offset, b"yes").unwrap();
        client.read(offset, &mut back).unwrap();
        assert_eq!(&back, b"yes");
        client.write_zeroes(offset, 3).unwrap();
    }
}

/// Waits until `what` is so.
pub(crate) fn eventually(what: &str, mut test: impl FnMut() -> bool) {
    let start = Instant::now();
    while !test() {
        assert!(start.elapsed() < Duration::from_secs(30), "never came true: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Random numbers (xorshift64*), the same for the same seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// From 0 to `n - 1`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }

    pub(crate) fn bytes(&mut self, n: usize) -> Vec<u8> {
        let mut out: Vec<u8> = std::iter::repeat_with(|| self.next().to_le_bytes()).take(n / 8 + 1).flatten().collect();
        out.truncate(n);
        out
    }
}

/// The example server, which `cargo test` builds beside the tests.
pub(crate) fn serve_example() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(|deps| deps.parent()).unwrap().join("examples/serve");
    assert!(path.exists(), "{} is missing; build it: cargo build -p afterimage-nbd --example serve", path.display());
    path
}
