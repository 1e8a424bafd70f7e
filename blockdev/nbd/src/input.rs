//! The receive buffer of a connection: requests are parsed, and write payloads used, where they were received.

use crate::limits::RECEIVE_BUFFER;

/// From this many missing bytes on, a payload is received alone: what comes behind it starts a fresh buffer
/// instead of being moved to the front of it later.
const ALONE: usize = 64 << 10;

/// Bytes received and not yet used, at the front of a buffer that grows for one large request.
#[derive(Debug)]
pub(crate) struct Input {
    buf: Vec<u8>,
    start: usize,
    end: usize,
    need: usize,
    /// Bytes received in all, which tells a client that is slow from one that is silent.
    total: u64,
}

impl Input {
    pub(crate) fn new() -> Self {
        Self { buf: vec![0; RECEIVE_BUFFER], start: 0, end: 0, need: 0, total: 0 }
    }

    /// What has been received and not consumed.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Forgets the first `n` bytes.
    pub(crate) fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
        self.need = 0;
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Says that the first request is `need` bytes long in all. The caller has checked it against the limits.
    pub(crate) const fn expect(&mut self, need: usize) {
        self.need = need;
    }

    /// Where to receive: never empty. Makes room for the whole of the first request.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        let have = self.end - self.start;
        if self.need > self.buf.len() {
            // Zeroed by the system, page by page as it is used: a length that is only announced costs nothing.
            let mut grown = vec![0; self.need];
            grown[..have].copy_from_slice(&self.buf[self.start..self.end]);
            self.buf = grown;
            (self.start, self.end) = (0, have);
        } else if self.start + self.need > self.buf.len() || self.end == self.buf.len() {
            self.buf.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, have);
        }
        let missing = self.need.saturating_sub(have);
        let end = if missing >= ALONE { self.end + missing } else { self.buf.len() };
        &mut self.buf[self.end..end]
    }

    /// Says that `n` bytes were received into [`Input::room`].
    pub(crate) const fn received(&mut self, n: usize) {
        self.end += n;
        self.total += n as u64;
    }

    pub(crate) const fn total(&self) -> u64 {
        self.total
    }

    /// Whether it has grown and could be small again.
    pub(crate) const fn is_fat(&self) -> bool {
        self.buf.len() > RECEIVE_BUFFER && self.is_empty()
    }

    /// Gives grown memory back.
    pub(crate) fn shrink(&mut self) {
        if self.is_fat() {
            self.buf = vec![0; RECEIVE_BUFFER];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// A stream of messages of any size, received in pieces of any size, comes out as it went in.
        #[test]
        fn messages_come_out_whole(
            sizes in prop::collection::vec(prop_oneof![1usize..200, 4000..5000usize, 100_000..600_000usize], 1..12),
            pieces in prop::collection::vec(1usize..300_000, 1..40),
        ) {
            let byte = |i: usize| u8::try_from(i % 253).unwrap();
            let total: usize = sizes.iter().sum();
            let (mut input, mut sent, mut seen) = (Input::new(), 0, 0);
            let mut pieces = pieces.iter().cycle();
            for size in sizes {
                while input.bytes().len() < size {
                    input.expect(size);
                    let room = input.room();
                    prop_assert!(!room.is_empty());
                    let n = room.len().min(*pieces.next().unwrap()).min(total - sent);
                    for (i, b) in room[..n].iter_mut().enumerate() {
                        *b = byte(sent + i);
                    }
                    input.received(n);
                    sent += n;
                }
                prop_assert!(input.bytes()[..size].iter().enumerate().all(|(i, b)| *b == byte(seen + i)));
                input.consume(size);
                seen += size;
                prop_assert!(input.buf.len() <= RECEIVE_BUFFER.max(600_000));
            }
            prop_assert_eq!(input.total(), total as u64);
            input.shrink();
            prop_assert_eq!(input.buf.len(), RECEIVE_BUFFER);
        }
    }
}
