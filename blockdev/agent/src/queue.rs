//! The interceptor: one thread's queue of a protected (or plain) disk.
//!
//! A write passes the gate, locks the stripes of its range, takes seq and place in the ring, registers its range, leaves
//! stripes and gate, copies its payload, publishes, and then goes to the disk, at once or when the overlapping writes
//! before it have got there. When the disk has answered: done in the ring, range released, request completed.
//! A write to a region that is not marked in the write-intent map leaves gate and stripes again and waits for the mark.
//! A plain disk goes the same way without ring; in cache mode writeback it needs no range lock either, since
//! nothing is ordered by seq and no write is a read-modify-write.

use crate::breaks::Break;
use crate::device::Core;
use crate::disk::CacheMode;
use crate::disk::engine::Engine;
use crate::disk::ops::ZeroMode;
use crate::few::Few;
use crate::job::{Job, Piece, What};
use crate::mailbox::{Mail, Mailbox};
use crate::protect::{Protection, Taken};
use crate::ranges::Claim;
use crate::slab::Slab;
use afterimage_base::block::{BlockError, Completion, Payload, Queue, Request, Submitted};
use afterimage_base::buf::AlignedBuf;
use afterimage_base::world;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

/// A queue numbers its claims within this many; the queue's own number stands above.
const CLAIMS_SHIFT: u32 = 40;
/// How often a queue that is being dropped looks again.
const DROP_TICK: Duration = Duration::from_millis(100);

/// What a write got at the entry.
enum Entered<'a> {
    /// A claim, whether it may go on at once, and what the ring gave.
    In(Claim, bool, Option<Taken<'a>>),
    /// Nothing: its region is not marked yet.
    Cold,
}

/// Where the bytes of a write are.
enum Source<'a> {
    /// In memory, while the write is submitted.
    Here(&'a [u8]),
    /// To be fetched, so many of them.
    There(&'a mut dyn Payload, usize),
}

impl Source<'_> {
    fn len(&self) -> usize {
        match self {
            Source::Here(data) => data.len(),
            Source::There(_, len) => *len,
        }
    }

    /// Fills `to` with the bytes from `from` on.
    fn fetch(&mut self, from: usize, to: &mut [u8]) -> Result<(), BlockError> {
        match self {
            Source::Here(data) => {
                to.copy_from_slice(&data[from..from + to.len()]);
                Ok(())
            }
            Source::There(payload, _) => payload.fetch(from, to),
        }
    }

    /// A copy of the bytes from `from` on.
    fn copy(&mut self, from: usize) -> Result<AlignedBuf, BlockError> {
        if let Source::Here(data) = self {
            return Ok(AlignedBuf::copy_of(&data[from..]));
        }
        let mut buf = AlignedBuf::zeroed(self.len() - from);
        self.fetch(from, &mut buf)?;
        Ok(buf)
    }
}

type Ended = (usize, Result<(), BlockError>);

/// See the module.
pub(crate) struct DiskQueue {
    core: Arc<Core>,
    engine: Engine,
    mailbox: Arc<Mailbox>,
    jobs: Slab<Job>,
    next_claim: u64,
    published: bool,
    mail: Vec<Mail>,
    ended: Vec<Ended>,
}

impl DiskQueue {
    pub(crate) fn new(core: Arc<Core>, number: u64) -> Result<DiskQueue, BlockError> {
        let mailbox = Arc::new(Mailbox::new()?);
        let engine = Engine::new(Arc::clone(&core.disk), Arc::clone(&core.pool), Arc::clone(&mailbox));
        Ok(DiskQueue {
            core,
            engine,
            mailbox,
            jobs: Slab::new(),
            next_claim: number << CLAIMS_SHIFT,
            published: false,
            mail: Vec::new(),
            ended: Vec::new(),
        })
    }

    /// Goes on with a job until it has ended or waits for the disk.
    fn advance(&mut self, key: usize, mut job: Job) -> Option<(Job, Result<(), BlockError>)> {
        while let Some(io) = job.next(&self.core.disk) {
            // SAFETY: the memory belongs to the job (its buffers do not move with it) or to the ring, where it stays until
            // the job is settled; the job is kept until the operation has ended, also by drop.
            match unsafe { self.engine.start(io, key) } {
                Some(Ok(())) => job.at += 1,
                Some(Err(e)) => return Some((job, Err(e))),
                None => {
                    let inserted = self.jobs.insert(job);
                    debug_assert_eq!(inserted, key, "the key was handed out before");
                    return None;
                }
            }
        }
        Some((job, Ok(())))
    }

    fn complete(&self, job: Job, result: Result<(), BlockError>) -> Completion {
        if let Some(claim) = &job.claim {
            world::point("on disk");
            if let Some(p) = &self.core.protection {
                p.settle(claim, job.pieces.iter().map(|p| p.seq).filter(|s| *s != 0), &result);
                self.core.ranges.release(claim);
                if claim.dirty {
                    p.dirty_writer_left();
                }
            } else {
                self.core.ranges.release(claim);
            }
        }
        let result = job.failed.clone().map_or(result, Err);
        Completion { tag: job.tag, result, buf: job.into_buf() }
    }

    fn run(&mut self, job: Job) -> Submitted {
        let key = self.jobs.next_key();
        match self.advance(key, job) {
            Some((job, result)) => Submitted::Done(self.complete(job, result)),
            None => Submitted::Pending,
        }
    }

    /// Claims the range of a write and takes seqs for it.
    fn enter<'a>(
        core: &'a Core,
        mailbox: &Arc<Mailbox>,
        key: usize,
        id: u64,
        (offset, len, payload): (u64, u64, bool),
    ) -> Result<Entered<'a>, BlockError> {
        let (start, end) = core.disk.span(offset, len);
        let protection = core.protection.as_ref();
        let pass = protection.filter(|p| !p.breaks.has(Break::NoGate)).map(|p| p.gate.enter());
        // Behind the gate: whoever stops the device closes the gate once after saying so.
        if core.is_stopped() {
            return Err(BlockError::Shutdown);
        }
        if core.is_fenced() && protection.is_none_or(|p| !p.breaks.has(Break::IgnoreFence)) {
            return Err(BlockError::ReadOnly);
        }
        // A client that connected before the volume became smaller knows a larger size.
        if offset.checked_add(len).is_none_or(|end| end > core.disk.size()) {
            return Err(BlockError::NoSpace);
        }
        let mut locked = core.ranges.lock(start, end);
        // With the stripes locked: no mark is taken away from here until the claim is registered.
        if protection.is_some_and(|p| !p.is_warm(start, end)) {
            return Ok(Entered::Cold);
        }
        let taken = protection.map(|p| p.take(offset, len, payload));
        let claim = Claim { id, start, end, dirty: taken.as_ref().is_some_and(|t| t.dirty) };
        let granted = locked.register(claim, mailbox, key);
        drop(locked);
        drop(pass);
        Ok(Entered::In(claim, granted || protection.is_some_and(|p| p.breaks.has(Break::NoRangeLock)), taken))
    }

    /// Lets a job wait for the marks of its range.
    fn wait_for_marks(
        core: &Core,
        mailbox: &Arc<Mailbox>,
        jobs: &mut Slab<Job>,
        job: Job,
        (offset, len): (u64, u64),
    ) -> Submitted {
        let tag = job.tag;
        let (start, end) = core.disk.span(offset, len);
        let key = jobs.insert(job);
        let intent = core.protection.as_ref().and_then(|p| p.intent.as_ref());
        if intent.is_some_and(|i| i.ask(start, end, Some((Arc::clone(mailbox), key)))) {
            return Submitted::Pending;
        }
        jobs.remove(key);
        failed(tag, BlockError::Shutdown)
    }

    /// Begins a write whose marks are there.
    fn begin(&mut self, key: usize, out: &mut Vec<Completion>) {
        let Some(job) = self.jobs.remove(key) else { return };
        let submitted = match (job.what, job.own) {
            (What::ColdWrite { offset, durable }, Some(data)) => {
                self.submit_write(job.tag, offset, Source::Here(&data), durable)
            }
            (What::ColdZero { offset, len, mode, durable }, _) => {
                self.submit_zero(job.tag, (offset, len), mode, durable)
            }
            _ => return,
        };
        if let Submitted::Done(c) = submitted {
            out.push(c);
        }
    }

    fn submit_write(&mut self, tag: u64, offset: u64, mut source: Source<'_>, durable: bool) -> Submitted {
        let inline = self.core.disk.cache() == CacheMode::Writeback && !durable;
        let len = source.len();
        let mut job = Job::new(tag, What::Write { durable });
        if inline && self.core.protection.is_none() {
            return match self.piece_of(&mut job, &mut source, offset, 0, true) {
                Ok(()) => self.run(job),
                Err(e) => failed(tag, e),
            };
        }
        let key = self.jobs.next_key();
        self.next_claim += 1;
        let range = (offset, len as u64, true);
        let (claim, granted, taken) = match Self::enter(&self.core, &self.mailbox, key, self.next_claim, range) {
            Ok(Entered::In(claim, granted, taken)) => (claim, granted, taken),
            Ok(Entered::Cold) => {
                let mut job = Job::new(tag, What::ColdWrite { offset, durable });
                match source.copy(0) {
                    Ok(data) => job.own = Some(data),
                    Err(e) => return failed(tag, e),
                }
                let range = (offset, len as u64);
                return Self::wait_for_marks(&self.core, &self.mailbox, &mut self.jobs, job, range);
            }
            Err(e) => return failed(tag, e),
        };
        job.fit(&self.core.disk, offset, len as u64);
        job.claim = Some(claim);
        let mut in_ring = 0;
        let mut fetched = Ok(());
        if let (Some(taken), Some(p)) = (taken, &self.core.protection) {
            in_ring = usize::try_from(taken.bytes).unwrap_or(0);
            fetched = publish(&self.core, p, taken, offset, &mut source, &mut job.pieces);
            p.count(len as u64);
            self.published = true;
        }
        if fetched.is_ok() && in_ring < len {
            fetched = self.piece_of(&mut job, &mut source, offset, in_ring, inline && granted);
        }
        if let Err(e) = fetched {
            return self.give_up(key, job, granted, e);
        }
        self.go(key, job, granted)
    }

    /// Gives the job a piece without seq: the bytes from `from` on, where they are (`inline`), or a copy.
    fn piece_of(
        &self,
        job: &mut Job,
        source: &mut Source<'_>,
        offset: u64,
        from: usize,
        inline: bool,
    ) -> Result<(), BlockError> {
        let len = source.len() - from;
        let ptr = match source {
            Source::Here(data) if inline => data[from..].as_ptr(),
            _ => job.own.insert(source.copy(from)?).as_ptr(),
        };
        job.pieces.push(Piece { seq: 0, ptr, len, offset: offset + from as u64 });
        Ok(())
    }

    /// Ends a write whose bytes could not be fetched, all or from some place on. What is published already goes to the disk,
    /// as disk and history must agree; the rest got no record (its places are void). Nobody was told that it was written.
    fn give_up(&mut self, key: usize, mut job: Job, granted: bool, why: BlockError) -> Submitted {
        job.bounce = None;
        let start = job.pieces.iter().map(|p| p.offset).min();
        let end = job.pieces.iter().map(|p| p.offset + p.len as u64).max();
        if let (Some(start), Some(end)) = (start, end) {
            job.fit(&self.core.disk, start, end - start);
        }
        job.failed = Some(why);
        self.go(key, job, granted)
    }

    fn go(&mut self, key: usize, job: Job, granted: bool) -> Submitted {
        world::point("published");
        if granted {
            return self.run(job);
        }
        let inserted = self.jobs.insert(job);
        debug_assert_eq!(inserted, key, "the key was handed out before");
        Submitted::Pending
    }

    fn submit_zero(&mut self, tag: u64, (offset, len): (u64, u64), mode: ZeroMode, durable: bool) -> Submitted {
        let mut job = Job::new(tag, What::Zero { offset, len, mode, durable });
        let key = self.jobs.next_key();
        self.next_claim += 1;
        let range = (offset, len, false);
        let (claim, granted, taken) = match Self::enter(&self.core, &self.mailbox, key, self.next_claim, range) {
            Ok(Entered::In(claim, granted, taken)) => (claim, granted, taken),
            Ok(Entered::Cold) => {
                let job = Job::new(tag, What::ColdZero { offset, len, mode, durable });
                return Self::wait_for_marks(&self.core, &self.mailbox, &mut self.jobs, job, (offset, len));
            }
            Err(e) => return failed(tag, e),
        };
        job.claim = Some(claim);
        if let (Some(taken), Some(p)) = (taken, &self.core.protection) {
            for (place, offset) in taken.places {
                let seq = place.publish(p.clock.wall());
                job.pieces.push(Piece { seq, ptr: std::ptr::null(), len: 0, offset });
            }
            p.count(0);
            self.published = true;
        }
        self.go(key, job, granted)
    }

    /// Goes on with a job whose operation has ended or whose range is free now.
    fn resume(&mut self, key: usize, result: Option<Result<(), BlockError>>, out: &mut Vec<Completion>) {
        let Some(mut job) = self.jobs.remove(key) else { return };
        if let Some(Err(e)) = result {
            out.push(self.complete(job, Err(e)));
            return;
        }
        job.at += usize::from(result.is_some());
        if let Some((job, result)) = self.advance(key, job) {
            out.push(self.complete(job, result));
        }
    }
}

fn failed(tag: u64, e: BlockError) -> Submitted {
    Submitted::Done(Completion { tag, result: Err(e), buf: None })
}

/// Puts the payload into its places and publishes them, up to the first that cannot be filled.
fn publish(
    core: &Core,
    p: &Protection,
    taken: Taken<'_>,
    offset: u64,
    source: &mut Source<'_>,
    pieces: &mut Few<Piece>,
) -> Result<(), BlockError> {
    world::point("reserved");
    let now = p.clock.wall();
    for (mut place, at) in taken.places {
        let from = usize::try_from(at - offset).unwrap_or(usize::MAX);
        source.fetch(from, place.payload_mut())?;
        let len = place.payload_mut().len();
        if p.breaks.has(Break::PublishLate) {
            // The regular write comes again below: what counts is that the disk has it, and for long, before the ring.
            let _ = core.disk.write_at(at, place.payload_mut(), false);
            world::sleep(Duration::from_micros(200));
        }
        pieces.push(Piece { seq: place.seq(), ptr: place.payload_ptr(), len, offset: at });
        place.publish(now);
    }
    Ok(())
}

impl Queue for DiskQueue {
    fn submit(&mut self, tag: u64, request: Request<'_>) -> Submitted {
        match request {
            Request::Read { offset, buf } => {
                let len = buf.len() as u64;
                if self.core.is_deaf() {
                    return failed(tag, BlockError::Io(libc::EIO));
                }
                if offset.checked_add(len).is_none_or(|end| end > self.core.disk.size()) {
                    return failed(tag, BlockError::Invalid("past the end of the volume"));
                }
                if let Some(p) = &self.core.protection {
                    p.count_read();
                }
                let mut job = Job::new(tag, What::Read { buf, offset });
                job.fit(&self.core.disk, offset, len);
                self.run(job)
            }
            Request::Write { offset, data, fua } => self.submit_write(tag, offset, Source::Here(data), fua),
            Request::Flush => self.run(Job::new(tag, What::Flush)),
            Request::Trim { offset, len, fua } => self.submit_zero(tag, (offset, len), ZeroMode::Hole, fua),
            Request::WriteZeroes { offset, len, fua, no_hole, fast } => {
                let mode = if no_hole { ZeroMode::Keep } else { ZeroMode::Hole };
                if fast && !self.core.disk.zeroes_fast(mode) {
                    return failed(tag, BlockError::Unsupported);
                }
                self.submit_zero(tag, (offset, len), mode, fua)
            }
            Request::Cache { offset, len } => {
                if self.core.disk.cache() == CacheMode::Writeback {
                    self.core.disk.will_need(offset, len);
                }
                Submitted::Done(Completion { tag, result: Ok(()), buf: None })
            }
        }
    }

    fn submit_write_of(
        &mut self,
        tag: u64,
        (offset, len, fua): (u64, usize, bool),
        payload: &mut dyn Payload,
    ) -> Submitted {
        self.submit_write(tag, offset, Source::There(payload, len), fua)
    }

    fn kick(&mut self) {
        self.engine.kick();
        if std::mem::take(&mut self.published)
            && let Some(p) = &self.core.protection
        {
            p.ring.wake_sender();
        }
    }

    fn reap(&mut self, out: &mut Vec<Completion>) {
        let (mut mail, mut ended) = (std::mem::take(&mut self.mail), std::mem::take(&mut self.ended));
        self.mailbox.take(&mut mail);
        self.engine.reap(&mut ended);
        for m in mail.drain(..) {
            match m {
                Mail::Granted(key) => self.resume(key, None, out),
                Mail::Marked(key) => self.begin(key, out),
                Mail::Finished { op, errno } => self.engine.finished(op, errno, &mut ended),
            }
        }
        for (key, result) in ended.drain(..) {
            self.resume(key, Some(result), out);
        }
        (self.mail, self.ended) = (mail, ended);
        self.kick();
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.mailbox.fd())
    }

    fn in_flight(&self) -> usize {
        self.jobs.len()
    }
}

impl Drop for DiskQueue {
    fn drop(&mut self) {
        let mut out = Vec::new();
        self.kick();
        while self.in_flight() != 0 {
            self.reap(&mut out);
            if self.in_flight() != 0 {
                self.mailbox.wait(DROP_TICK);
            }
        }
    }
}
