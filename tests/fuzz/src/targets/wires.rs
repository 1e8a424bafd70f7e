//! The far end of a connection: sends without waiting for the other side to answer, and collects what it says.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

/// What a peer says is collected up to this; more is a finding.
const MOST: u64 = 64 << 20;

/// See the module.
pub(super) struct Wires {
    out: UnixStream,
    reader: JoinHandle<Vec<u8>>,
}

impl Wires {
    pub(super) fn new(stream: UnixStream) -> Wires {
        let from = stream.try_clone().unwrap();
        let reader = thread::spawn(move || {
            let mut all = Vec::new();
            // A peer that cuts the connection is in its right.
            drop(from.take(MOST).read_to_end(&mut all));
            assert!((all.len() as u64) < MOST, "the peer talks without end");
            all
        });
        Wires { out: stream, reader }
    }

    /// Sends; a peer that has gone takes nothing any more.
    pub(super) fn send(&mut self, bytes: &[u8]) {
        drop(self.out.write_all(bytes));
    }

    /// Says no more, and returns all that the peer said until its end.
    pub(super) fn finish(self) -> Vec<u8> {
        drop(self.out.shutdown(Shutdown::Write));
        self.reader.join().unwrap()
    }
}
