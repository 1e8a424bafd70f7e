//! The NBD server and client over a real socket.

use super::wires::Wires;
use crate::input::Input;
use afterimage_base::simple::{MemoryDevice, Simple};
use afterimage_nbd::client::{Client, Command, Options};
use afterimage_nbd::{Export, ExportTable, Exports, Limits, Mode, Stop, serve_connection};
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

/// Size of the device: no multiple of anything.
pub(super) const SIZE: usize = 24 * 4096 + 1000;
/// Longest read or write.
pub(super) const LONGEST: u32 = 16 << 10;

pub(super) fn limits() -> Limits {
    Limits {
        handshake_time: Duration::from_secs(20),
        request: LONGEST,
        requests_in_flight: 8,
        bytes_in_flight: 64 << 10,
        ..Limits::default()
    }
}

pub(super) fn export(read_only: bool) -> Arc<dyn Exports> {
    let device = MemoryDevice::new(SIZE);
    let device = if read_only { device.read_only() } else { device };
    let device = Arc::new(Simple(Arc::new(device)));
    Arc::new(ExportTable::single(Export { name: "disk".into(), description: "a disk".into(), device }))
}

/// A connection's bytes as they are.
pub(super) fn stream(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (read_only, pause) = (input.one_in(2), usize::from(input.byte()));
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut wires = Wires::new(ours);
    std::thread::scope(|scope| {
        let stop = Stop::new().unwrap();
        scope.spawn(move || drop(serve_connection(OwnedFd::from(theirs), export(read_only), &limits(), &stop)));
        let (first, rest) = input.rest().split_at(pause.min(input.rest().len()));
        wires.send(first);
        wires.send(rest);
        let said = wires.finish();
        assert!(said.starts_with(b"NBDMAGICIHAVEOPT\0\x03"), "the server speaks first");
    });
}

/// A server's bytes, to our client.
pub(super) fn client(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mode = [Mode::Extended, Mode::Structured, Mode::Simple][input.below(3)];
    let options = Options { mode, allocation: !input.one_in(4) };
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    // The greeting, so that the engine need not find it.
    let greeting: &[u8] = if input.one_in(4) { b"" } else { b"NBDMAGICIHAVEOPT\0\x03" };
    let sent = theirs.write_all(greeting).and_then(|()| theirs.write_all(input.rest()));
    if sent.is_err() || theirs.shutdown(Shutdown::Write).is_err() {
        return;
    }
    let Ok(mut client) = Client::over(ours.into(), "disk", &options) else { return };
    let mut buf = [0; 1000];
    drop(client.read(0, &mut buf));
    drop(client.call(&Command::BlockStatus { offset: 0, len: 4096, one: false }).map(drop));
    drop(client.write(4096, &buf));
    drop(client.data_ranges());
}
