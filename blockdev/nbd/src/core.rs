//! What happens to a request between the socket's bytes in and the socket's bytes out: checked, submitted to the
//! device's queue, completed, answered. Knows no socket.

use crate::command::{Command, Refusal, Terms};
use crate::limits::{Limits, MAX_EXTENTS, MAX_REPLY_BACKLOG};
use crate::outbox::Outbox;
use crate::pool::{self, Pool};
use crate::proto::{Header, cmd, errno, errno_of};
use crate::reply::{self, Id};
use afterimage_base::block::{BlockDevice, BlockError, Completion, Queue, Request, Submitted};
use afterimage_base::buf::AlignedBuf;
use std::sync::Arc;

/// A request that the device has.
#[derive(Debug, Clone, Copy)]
struct Slot {
    id: Id,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read { len: u32 },
    FastZero,
    Cache,
    Other,
}

/// Counters since they were last taken.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    pub(crate) bytes_read: u64,
    pub(crate) bytes_written: u64,
}

/// See the module.
pub(crate) struct Core {
    pub(crate) terms: Terms,
    device: Arc<dyn BlockDevice>,
    queue: Box<dyn Queue>,
    /// In flight, by tag.
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    max_requests: usize,
    max_bytes: usize,
    /// Capacity of the buffers of reads in flight and of reads not yet sent.
    bytes: usize,
    pub(crate) pool: Pool,
    pub(crate) out: Outbox,
    finished: Vec<Completion>,
    pub(crate) counts: Counts,
    /// Nobody listens to replies any more.
    deaf: bool,
    /// The device is going away.
    shut_down: bool,
    /// The client learns of a new size by another way.
    follows: bool,
}

impl Core {
    pub(crate) fn new(terms: Terms, device: Arc<dyn BlockDevice>, queue: Box<dyn Queue>, limits: &Limits) -> Self {
        let max_requests = limits.requests_in_flight.max(1);
        Self {
            terms,
            device,
            queue,
            slots: Vec::new(),
            free: Vec::new(),
            max_requests,
            max_bytes: limits.bytes_in_flight,
            bytes: 0,
            pool: Pool::default(),
            out: Outbox::default(),
            finished: Vec::new(),
            counts: Counts::default(),
            deaf: false,
            shut_down: false,
            follows: false,
        }
    }

    /// The same for a client that learns of a new size by another way: what it may ask for is what the device has then.
    pub(crate) fn following(self) -> Self {
        Self { follows: true, ..self }
    }

    pub(crate) fn queue(&mut self) -> &mut dyn Queue {
        &mut *self.queue
    }

    /// Requests that the device has.
    pub(crate) const fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether the device said that it is going away.
    pub(crate) const fn is_shut_down(&self) -> bool {
        self.shut_down
    }

    /// Whether another request of any kind may come in.
    pub(crate) fn has_room(&self) -> bool {
        self.in_flight() < self.max_requests && self.out.head_bytes() < MAX_REPLY_BACKLOG && !self.shut_down
    }

    /// Whether this request may come in now. One that is refused anyway always may.
    pub(crate) fn has_room_for(&self, h: &Header) -> bool {
        if h.command != cmd::READ || self.bytes == 0 || h.len > self.terms.max_io.into() {
            return true;
        }
        let len = usize::try_from(h.len).unwrap_or(usize::MAX);
        self.bytes.saturating_add(pool::cost(len)) <= self.max_bytes
    }

    /// Replies are dropped from now on: the client is gone, but what it asked for is still done.
    pub(crate) fn deafen(&mut self) {
        self.deaf = true;
        self.drop_replies();
    }

    fn drop_replies(&mut self) {
        let (pool, bytes) = (&mut self.pool, &mut self.bytes);
        self.out.clear(|buf| release(pool, bytes, buf));
    }

    /// Marks reply bytes as sent.
    pub(crate) fn sent(&mut self, n: usize) {
        let (pool, bytes) = (&mut self.pool, &mut self.bytes);
        self.out.advance(n, |buf| release(pool, bytes, buf));
    }

    /// Starts a request whose payload has arrived whole; false if it asks to disconnect.
    pub(crate) fn execute(&mut self, h: &Header, payload: &[u8]) -> bool {
        let id = Id { cookie: h.cookie, offset: h.offset };
        if self.follows {
            self.terms.geometry.size = self.device.geometry().size;
        }
        let command = match self.terms.check(h, payload) {
            Ok(Command::Disconnect) => return false,
            Ok(command) => command,
            Err(refusal) => {
                self.refuse(id, refusal);
                return true;
            }
        };
        let (kind, request) = match command {
            Command::Read { offset, len } => {
                let buf = self.pool.take(len as usize);
                self.bytes += buf.capacity();
                (Kind::Read { len }, Request::Read { offset, buf })
            }
            Command::Write { offset, data, fua } => {
                self.counts.bytes_written += data.len() as u64;
                (Kind::Other, Request::Write { offset, data, fua })
            }
            Command::Flush => (Kind::Other, Request::Flush),
            Command::Trim { offset, len, fua } => (Kind::Other, Request::Trim { offset, len, fua }),
            Command::WriteZeroes { offset, len, fua, no_hole, fast } => {
                let kind = if fast { Kind::FastZero } else { Kind::Other };
                (kind, Request::WriteZeroes { offset, len, fua, no_hole, fast })
            }
            Command::Cache { offset, len } => (Kind::Cache, Request::Cache { offset, len }),
            Command::Status { offset, len, one } => {
                self.status(id, offset, len, one);
                return true;
            }
            Command::Disconnect => return false,
        };
        self.submit(Slot { id, kind }, request);
        true
    }

    fn submit(&mut self, slot: Slot, request: Request<'_>) {
        let tag = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[tag] = Some(slot);
        if let Submitted::Done(completion) = self.queue.submit(tag as u64, request) {
            self.complete(completion);
        }
    }

    /// Collects what the device has finished and queues the replies; says how many there were.
    pub(crate) fn reap(&mut self) -> usize {
        if self.in_flight() == 0 {
            return 0;
        }
        let mut finished = std::mem::take(&mut self.finished);
        self.queue.reap(&mut finished);
        let n = finished.len();
        finished.drain(..).for_each(|c| self.complete(c));
        self.finished = finished;
        n
    }

    fn complete(&mut self, completion: Completion) {
        let tag = usize::try_from(completion.tag).unwrap_or(usize::MAX);
        let Some(Slot { id, kind }) = self.slots.get_mut(tag).and_then(Option::take) else {
            tracing::error!("the device finished request {}, which it was never given", completion.tag);
            return;
        };
        self.free.push(tag);
        match (completion.result, kind, completion.buf) {
            (Ok(()), Kind::Read { len }, Some(buf)) if buf.len() == len as usize && !self.deaf => {
                self.counts.requests += 1;
                self.counts.bytes_read += u64::from(len);
                reply::data(self.out.heads(), self.terms.mode, id, len);
                self.out.push_body(buf);
            }
            (result, kind, buf) => {
                if let Kind::Read { len } = kind {
                    self.bytes = self.bytes.saturating_sub(pool::cost(len as usize));
                }
                if let Some(buf) = buf {
                    self.pool.give(buf);
                }
                self.answer(id, kind, result);
            }
        }
    }

    /// Answers a request that returns no bytes, be it for an error.
    fn answer(&mut self, id: Id, kind: Kind, result: Result<(), BlockError>) {
        let refusal = match (result, kind) {
            (Ok(()), Kind::Read { .. }) => Refusal(errno::EIO, "the device lost the bytes"),
            (Ok(()), _) | (Err(BlockError::Unsupported), Kind::Cache) => return self.succeed(id),
            (Err(BlockError::Shutdown), _) => {
                // No answer: a client that reconnects then asks again, and its user sees a pause and no error.
                self.shut_down = true;
                return;
            }
            (Err(BlockError::Unsupported), Kind::FastZero) => Refusal(errno::ENOTSUP, "it would not be fast"),
            (Err(BlockError::Unsupported), _) => Refusal(errno::EINVAL, "the device does not do this"),
            (Err(BlockError::Invalid(why)), _) => Refusal(errno::EINVAL, why),
            (Err(e), _) => {
                tracing::warn!("a request at offset {} failed: {e}", id.offset);
                return self.fail(id, errno_of(&e), &e.to_string());
            }
        };
        self.refuse(id, refusal);
    }

    fn status(&mut self, id: Id, offset: u64, len: u64, one: bool) {
        let max = if one { 1 } else { MAX_EXTENTS };
        match self.device.block_status(offset, len, max) {
            Ok(answer) => {
                let extents = reply::normalise(&answer, len, max);
                self.counts.requests += 1;
                reply::extents(self.out.heads(), self.terms.mode, id, &extents);
            }
            Err(e) => self.answer(id, Kind::Other, Err(e)),
        }
    }

    fn succeed(&mut self, id: Id) {
        self.counts.requests += 1;
        if !self.deaf {
            reply::done(self.out.heads(), self.terms.mode, id);
        }
    }

    pub(crate) fn refuse(&mut self, id: Id, Refusal(errno, why): Refusal) {
        self.fail(id, errno, why);
    }

    fn fail(&mut self, id: Id, errno: u32, why: &str) {
        self.counts.requests += 1;
        self.counts.errors += 1;
        if !self.deaf {
            reply::error(self.out.heads(), self.terms.mode, id, errno, why);
        }
    }
}

fn release(pool: &mut Pool, bytes: &mut usize, buf: AlignedBuf) {
    *bytes = bytes.saturating_sub(buf.capacity());
    pool.give(buf);
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
