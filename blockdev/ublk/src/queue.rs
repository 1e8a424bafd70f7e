//! One queue: a thread that takes requests from the driver, submits them to the device, and answers them.
//!
//! Everything that the thread waits for comes to its ring: requests, the device's completions (a poll of its `wake_fd`) and the
//! wish to stop. One call hands over all answers and waits for what comes next.
//!
//! The payload of a write is fetched by the device at the place where it wants it (user copy), with one copy in all. A device
//! that is going away ([`BlockError::Shutdown`]) gets no more requests, and what it has refused is not answered: the driver
//! keeps such requests and gives them to the next server.

use crate::abi::{Descriptor, Io, operation, payload_at};
use crate::memory::{Mapped, Pool};
use crate::ring::{Descriptors, Event, Ring};
use afterimage_base::block::{BlockDevice, BlockError, Completion, Payload, Queue, Request, Submitted};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Numbers of what is polled.
const DEVICE: u8 = 0;
const STOP: u8 = 1;

/// What a queue is made of.
pub(crate) struct Plan {
    pub(crate) device: Arc<dyn BlockDevice>,
    pub(crate) file: Arc<File>,
    pub(crate) number: u16,
    pub(crate) depth: u16,
    pub(crate) max_io: u32,
    pub(crate) encode: bool,
    pub(crate) user_copy: bool,
}

/// A request that the device has.
#[derive(Debug, Clone, Copy)]
enum Slot {
    /// The place is the driver's.
    Free,
    Read(u32),
    Write(u32),
    Other,
}

/// See the module.
pub(crate) struct Worker {
    plan: Plan,
    ring: Ring,
    descriptors: Descriptors,
    queue: Box<dyn Queue>,
    slots: Vec<Slot>,
    pool: Pool,
    mapped: Option<Mapped>,
    /// No more requests are taken: a stop was asked for, the device goes away, or the driver has taken places back.
    closing: bool,
    events: Vec<Event>,
    finished: Vec<Completion>,
}

/// The bytes of a write, behind `/dev/ublkcN`.
struct Remote<'a> {
    file: &'a File,
    at: u64,
}

impl Payload for Remote<'_> {
    fn fetch(&mut self, from: usize, to: &mut [u8]) -> Result<(), BlockError> {
        Ok(self.file.read_exact_at(to, self.at + from as u64)?)
    }
}

/// The result of a request in the driver's terms.
fn answer(result: &Result<(), BlockError>, slot: Slot) -> i32 {
    let errno = match (result, slot) {
        // Longer than i32 no request can be.
        (Ok(()), Slot::Read(len) | Slot::Write(len)) => return i32::try_from(len).unwrap_or(-libc::EIO),
        (Ok(()), _) => return 0,
        (Err(BlockError::Invalid(_)), _) => libc::EINVAL,
        (Err(BlockError::Unsupported), _) => libc::EOPNOTSUPP,
        (Err(BlockError::ReadOnly), _) => libc::EROFS,
        (Err(BlockError::NoSpace), _) => libc::ENOSPC,
        (Err(BlockError::Shutdown), _) => libc::EIO,
        (Err(BlockError::Io(errno)), _) => *errno,
    };
    -errno
}

impl Worker {
    /// Opens everything and gives the driver the places for requests. To be called by the queue's thread.
    pub(crate) fn new(plan: Plan, stop: RawFd) -> io::Result<Worker> {
        let queue = Arc::clone(&plan.device).open_queue().map_err(|e| io::Error::other(e.to_string()))?;
        let descriptors = Descriptors::map(&plan.file, plan.number, plan.depth)?;
        let ring = Ring::new(&plan.file, plan.number, plan.depth, plan.encode)?;
        let mapped = (!plan.user_copy).then(|| Mapped::new(plan.depth, plan.max_io));
        let slots = vec![Slot::Free; plan.depth.into()];
        let mut worker = Worker {
            plan,
            ring,
            descriptors,
            queue,
            slots,
            pool: Pool::default(),
            mapped,
            closing: false,
            events: Vec::new(),
            finished: Vec::new(),
        };
        for tag in 0..worker.plan.depth {
            worker.command(Io::Fetch, tag, 0)?;
        }
        worker.ring.poll(stop, STOP)?;
        if let Some(fd) = worker.queue.wake_fd().map(|fd| fd.as_raw_fd()) {
            worker.ring.poll(fd, DEVICE)?;
        }
        worker.ring.enter(false)?;
        // No request can have come yet: what is there is a place that the driver did not take.
        worker.ring.events(&mut worker.events);
        let refused = worker.events.iter().find_map(|e| match e {
            Event::Request { result, .. } if *result < 0 => Some(-result),
            _ => None,
        });
        refused.map_or(Ok(worker), |errno| Err(io::Error::from_raw_os_error(errno)))
    }

    fn command(&mut self, io: Io, tag: u16, result: i32) -> io::Result<()> {
        let address = self.mapped.as_mut().map_or(0, |m| m.address(tag));
        // SAFETY: the memory is as long as the device's longest request, and is given away by `run` only, to live longer than
        // the ring and this thread.
        unsafe { self.ring.command(io, tag, result, address) }
    }

    /// Serves until the stop. Returns what memory the driver may still know, to be dropped when this thread has ended, and
    /// whether the driver ended it.
    pub(crate) fn run(mut self, stop: RawFd) -> (Option<Mapped>, bool) {
        let mut ended = false;
        loop {
            let mut events = std::mem::take(&mut self.events);
            self.ring.events(&mut events);
            for event in events.drain(..) {
                ended |= self.handle(event, stop);
            }
            self.events = events;
            // In this order: a device may serve requests in `kick`, and does not ring for those.
            self.queue.kick();
            self.reap();
            let done = self.closing && self.queue.in_flight() == 0;
            // What was answered at once is on its way with the same call that waits for more.
            if let Err(e) = self.ring.enter(!done) {
                tracing::error!("ublk: queue {} cannot talk to the driver: {e}", self.plan.number);
                self.closing = true;
            }
            if done {
                return (self.mapped, ended);
            }
        }
    }

    /// True if the driver has taken a place back.
    fn handle(&mut self, event: Event, stop: RawFd) -> bool {
        match event {
            Event::Request { tag, result: 0 } if !self.closing => self.start(tag),
            // It stays with the driver, for the next server.
            Event::Request { result: 0, .. } => {}
            Event::Request { tag, result } => {
                if result != -libc::ENODEV {
                    let e = io::Error::from_raw_os_error(-result);
                    tracing::error!("ublk: queue {}, request {tag}: the driver says {e}", self.plan.number);
                }
                self.closing = true;
                return true;
            }
            Event::Readable(STOP, _) => self.closing = true,
            Event::Readable(number, polled) => {
                let fd = if number == STOP { Some(stop) } else { self.queue.wake_fd().map(|fd| fd.as_raw_fd()) };
                if let (false, Some(fd)) = (polled, fd)
                    && let Err(e) = self.ring.poll(fd, number)
                {
                    tracing::error!("ublk: queue {} cannot wait for its device: {e}", self.plan.number);
                    self.closing = true;
                }
            }
        }
        false
    }

    /// Submits a request that has come.
    fn start(&mut self, tag: u16) {
        let Some(d) = self.descriptors.get(tag) else {
            tracing::error!("ublk: queue {} got a request under tag {tag}, which it has not", self.plan.number);
            return;
        };
        let (offset, len, bytes) = match self.check(&d) {
            Ok(range) => range,
            Err(e) => return self.finish(tag, Err(e)),
        };
        let (id, fua) = (u64::from(tag), d.fua);
        let (slot, submitted) = match d.operation {
            operation::READ => {
                let buf = self.pool.take(bytes as usize);
                (Slot::Read(bytes), self.queue.submit(id, Request::Read { offset, buf }))
            }
            operation::WRITE => (Slot::Write(bytes), self.write(tag, offset, bytes as usize, fua)),
            operation::FLUSH => (Slot::Other, self.queue.submit(id, Request::Flush)),
            operation::DISCARD => (Slot::Other, self.queue.submit(id, Request::Trim { offset, len, fua })),
            operation::WRITE_ZEROES => {
                let request = Request::WriteZeroes { offset, len, fua, no_hole: d.no_unmap, fast: false };
                (Slot::Other, self.queue.submit(id, request))
            }
            _ => return self.finish(tag, Err(BlockError::Unsupported)),
        };
        self.slots[usize::from(tag)] = slot;
        if let Submitted::Done(c) = submitted {
            self.complete(c);
        }
    }

    /// The range of a request, if it is possible: offset, length, and for reads and writes the same length again.
    fn check(&self, d: &Descriptor) -> Result<(u64, u64, u32), BlockError> {
        if d.operation == operation::FLUSH {
            // Its sector means nothing.
            return Ok((0, 0, 0));
        }
        let geometry = self.plan.device.geometry();
        let (offset, len) = d.range().ok_or(BlockError::Invalid("no disk is so long"))?;
        geometry.check(offset, len)?;
        if d.operation != operation::READ && geometry.read_only {
            return Err(BlockError::ReadOnly);
        }
        let moves = matches!(d.operation, operation::READ | operation::WRITE);
        let bytes = if moves { u32::try_from(len).unwrap_or(u32::MAX) } else { 0 };
        if bytes > self.plan.max_io {
            return Err(BlockError::Invalid("longer than the longest request"));
        }
        Ok((offset, len, bytes))
    }

    fn write(&mut self, tag: u16, offset: u64, len: usize, fua: bool) -> Submitted {
        let id = u64::from(tag);
        let Some(mapped) = &mut self.mapped else {
            let mut remote = Remote { file: &self.plan.file, at: payload_at(self.plan.number, tag) };
            return self.queue.submit_write_of(id, (offset, len, fua), &mut remote);
        };
        match mapped.get(tag, len) {
            Some(data) => self.queue.submit(id, Request::Write { offset, data, fua }),
            None => Submitted::Done(Completion {
                tag: id,
                result: Err(BlockError::Invalid("longer than the longest request")),
                buf: None,
            }),
        }
    }

    fn reap(&mut self) {
        if self.queue.in_flight() == 0 {
            return;
        }
        let mut finished = std::mem::take(&mut self.finished);
        self.queue.reap(&mut finished);
        finished.drain(..).for_each(|c| self.complete(c));
        self.finished = finished;
    }

    fn complete(&mut self, completion: Completion) {
        let Completion { tag, mut result, buf } = completion;
        let Some(tag) = u16::try_from(tag).ok().filter(|t| *t < self.plan.depth) else {
            tracing::error!("the device finished request {tag}, which it was never given");
            return;
        };
        if let Some(buf) = buf {
            if let (Ok(()), Slot::Read(_)) = (&result, self.slots[usize::from(tag)]) {
                result = self.deliver(tag, &buf);
            }
            self.pool.give(buf);
        }
        self.finish(tag, result);
    }

    /// Hands the bytes of a read to the driver.
    fn deliver(&mut self, tag: u16, bytes: &[u8]) -> Result<(), BlockError> {
        match &mut self.mapped {
            None => Ok(self.plan.file.write_all_at(bytes, payload_at(self.plan.number, tag))?),
            Some(mapped) => {
                let to = mapped.get(tag, bytes.len()).ok_or(BlockError::Invalid("longer than the longest request"))?;
                to.copy_from_slice(bytes);
                Ok(())
            }
        }
    }

    /// Answers a request, unless the next server is to have it.
    fn finish(&mut self, tag: u16, result: Result<(), BlockError>) {
        let slot = std::mem::replace(&mut self.slots[usize::from(tag)], Slot::Free);
        if matches!(result, Err(BlockError::Shutdown)) {
            self.closing = true;
            return;
        }
        if let Err(e) = &result {
            tracing::warn!("ublk: queue {}, request {tag}: {e}", self.plan.number);
        }
        let code = answer(&result, slot);
        if let Err(e) = self.command(Io::CommitAndFetch, tag, code) {
            tracing::error!("ublk: queue {}: an answer cannot be given: {e}", self.plan.number);
        }
    }
}
