//! Replies waiting to be sent: headers gathered in one buffer, the bytes of reads in their own, all sent by one
//! vectored call.

use afterimage_base::buf::AlignedBuf;
use std::collections::VecDeque;
use std::io::IoSlice;

/// Slices per call: 64 reads with a header each. The kernel takes up to 1024.
pub(crate) const SLICES: usize = 128;

/// Sent header bytes are dropped from the front of the buffer when there are so many and it never runs empty.
const COMPACT_AT: usize = 64 << 10;

/// A queue of reply bytes in sending order. Positions count header bytes since the connection began.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    heads: Vec<u8>,
    /// Position of `heads[0]`.
    base: u64,
    /// Position of the first header byte not sent.
    sent: u64,
    /// Bodies, each with the position of the header bytes that come behind it.
    bodies: VecDeque<(u64, AlignedBuf)>,
    /// Bytes of the first body already sent.
    body_sent: usize,
}

fn index(from: u64, base: u64) -> usize {
    usize::try_from(from - base).unwrap_or(usize::MAX)
}

impl Outbox {
    /// The buffer to append header bytes to.
    pub(crate) const fn heads(&mut self) -> &mut Vec<u8> {
        &mut self.heads
    }

    /// Appends the bytes of a read behind the headers so far.
    pub(crate) fn push_body(&mut self, body: AlignedBuf) {
        let at = self.base + self.heads.len() as u64;
        self.bodies.push_back((at, body));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bodies.is_empty() && self.head_bytes() == 0
    }

    /// Header bytes not yet sent.
    pub(crate) fn head_bytes(&self) -> usize {
        self.heads.len() - index(self.sent, self.base)
    }

    /// Puts the first unsent bytes into `slices` and says how many slices are used.
    pub(crate) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES]) -> usize {
        let (mut at, mut skip, mut n) = (self.sent, self.body_sent, 0);
        for (position, body) in &self.bodies {
            if n + 2 > SLICES {
                return n;
            }
            if at < *position {
                slices[n] = IoSlice::new(&self.heads[index(at, self.base)..index(*position, self.base)]);
                n += 1;
                at = *position;
            }
            slices[n] = IoSlice::new(&body[skip..]);
            n += 1;
            skip = 0;
        }
        let rest = &self.heads[index(at, self.base)..];
        if !rest.is_empty() && n < SLICES {
            slices[n] = IoSlice::new(rest);
            n += 1;
        }
        n
    }

    /// Marks the first `n` bytes as sent; bodies that are through go to `free`.
    pub(crate) fn advance(&mut self, mut n: usize, mut free: impl FnMut(AlignedBuf)) {
        while let Some((position, body)) = self.bodies.front() {
            let heads = index(*position, self.sent);
            if n < heads {
                break;
            }
            n -= heads;
            self.sent = *position;
            let left = body.len() - self.body_sent;
            if n < left {
                self.body_sent += n;
                return;
            }
            n -= left;
            self.body_sent = 0;
            if let Some((_, body)) = self.bodies.pop_front() {
                free(body);
            }
        }
        self.sent += n as u64;
        self.compact();
    }

    fn compact(&mut self) {
        let sent = index(self.sent, self.base);
        if sent == self.heads.len() {
            self.heads.clear();
        } else if sent >= COMPACT_AT {
            self.heads.drain(..sent);
        } else {
            return;
        }
        self.base = self.sent;
    }

    /// Drops everything; bodies go to `free`.
    pub(crate) fn clear(&mut self, mut free: impl FnMut(AlignedBuf)) {
        self.sent = self.base + self.heads.len() as u64;
        self.body_sent = 0;
        self.bodies.drain(..).for_each(|(_, body)| free(body));
        self.compact();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Op {
        Head(usize),
        Body(usize),
        Send(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (1usize..40_000).prop_map(Op::Head),
            (1usize..9000).prop_map(Op::Body),
            (0usize..60_000).prop_map(Op::Send)
        ]
    }

    proptest! {
        /// Whatever is appended and however it is sent, the bytes come out in order and every body comes back.
        #[test]
        fn bytes_come_out_in_order(ops in prop::collection::vec(op(), 1..120)) {
            let (mut outbox, mut model, mut sent) = (Outbox::default(), Vec::new(), Vec::new());
            let (mut bodies, mut freed, mut next) = (0, 0, 0u8);
            let all = [Op::Send(usize::MAX)];
            for op in ops.iter().chain(all.iter().cycle().take(400)) {
                next = next.wrapping_add(1);
                match op {
                    Op::Head(n) => {
                        outbox.heads().extend(std::iter::repeat_n(next, *n));
                        model.extend(std::iter::repeat_n(next, *n));
                    }
                    Op::Body(n) => {
                        outbox.push_body(AlignedBuf::copy_of(&vec![next; *n]));
                        model.extend(std::iter::repeat_n(next, *n));
                        bodies += 1;
                    }
                    Op::Send(n) => {
                        let mut slices = [IoSlice::new(&[]); SLICES];
                        let used = outbox.slices(&mut slices);
                        let bytes: Vec<u8> = slices[..used].iter().flat_map(|s| s.iter().copied()).collect();
                        let n = bytes.len().min(*n);
                        sent.extend_from_slice(&bytes[..n]);
                        outbox.advance(n, |_| freed += 1);
                    }
                }
            }
            prop_assert!(outbox.is_empty() && outbox.heads.is_empty());
            prop_assert_eq!(freed, bodies);
            prop_assert!(sent == model);
        }
    }
}
