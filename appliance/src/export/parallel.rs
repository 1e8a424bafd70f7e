//! Reads of an export, on several threads.
//!
//! A front end owns a queue and hands over what has arrived with each kick. A single request is served on the spot; of several,
//! the connection's own thread serves some at a time, so that their answers are on their way and the client can go on while the
//! next ones are served, and the threads of the [`ReadPool`] help. Reading from history is decoding, and
//! waiting for the disk when segments are not in the page cache: both go on side by side, so one connection with several requests
//! in flight uses all cores and keeps the disk busy. Everything but reads is done on the spot.
//!
//! Who reads from front to back is read ahead of ([`ahead`](super::ahead)): helpers that find no request waiting do that.
//!
//! All exports share the pool. A helper takes one request and then looks at the next queue in turn, so nobody waits behind
//! somebody else's long list.

use super::ahead::{Ahead, Budget};
use afterimage_base::block::{BlockDevice, BlockError, Completion, Extent, Geometry, Queue, Request, Submitted};
use afterimage_base::buf::AlignedBuf;
use afterimage_base::simple::{SimpleDevice, run_simple};
use afterimage_base::world::sync::{Condvar, Event};
use afterimage_base::world::thread::{self, JoinHandle};
use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// So many bytes of waiting requests are worth waking a helper,
const BYTES_PER_HELPER: usize = 64 << 10;
/// and so many requests, however short.
const REQUESTS_PER_HELPER: usize = 8;
/// What the queue's own thread serves before answers are sent: so many bytes,
const OWN_BYTES: usize = 128 << 10;
/// where a request counts as so many at least. Sending a few at a time costs less than a client that waits.
const LEAST_BYTES: usize = 16 << 10;
/// How often a queue that is being dropped looks again.
const DROP_TICK: Duration = Duration::from_millis(100);

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A read that waits for its turn.
struct Job {
    tag: u64,
    offset: u64,
    buf: AlignedBuf,
}

/// What a queue shares with the helpers.
struct Work {
    device: Arc<dyn SimpleDevice>,
    /// For devices that take no writes.
    ahead: Option<Ahead>,
    jobs: Mutex<VecDeque<Job>>,
    finished: Arc<Finished>,
}

/// Completions that others than the queue's thread have made. Apart from the device: who makes one may be a thread that the
/// device waits for when it is dropped.
struct Finished {
    done: Mutex<Vec<Completion>>,
    event: Event,
}

impl Finished {
    fn push(&self, completion: Completion) {
        let mut done = lock(&self.done);
        done.push(completion);
        // Who takes the list clears the event before: what joins a list that somebody has rung for is taken with it.
        if done.len() == 1 {
            // Under the lock: whoever has emptied the list is not woken for what it has seen.
            self.event.ring();
        }
    }
}

impl Work {
    /// Serves one request that waits; `None` if there is none.
    fn step(&self) -> Option<Completion> {
        let Job { tag, offset, mut buf } = lock(&self.jobs).pop_front()?;
        // A panic fails its request and spares the thread, whose other queues go on.
        let read = catch_unwind(AssertUnwindSafe(|| match &self.ahead {
            Some(ahead) => ahead.read(offset, &mut buf),
            None => self.device.read_at(offset, &mut buf),
        }));
        let result = read.unwrap_or_else(|_| {
            tracing::error!("a read at byte {offset} of an export panicked");
            Err(BlockError::Io(libc::EIO))
        });
        Some(Completion { tag, result, buf: Some(buf) })
    }

    fn help(&self) {
        if let Some(completion) = self.step() {
            self.finished.push(completion);
        } else if let Some(ahead) = &self.ahead {
            ahead.load_one();
        }
    }

    /// Whether there is something to help with.
    fn waits(&self) -> bool {
        !lock(&self.jobs).is_empty() || self.ahead.as_ref().is_some_and(Ahead::wants)
    }
}

#[derive(Default)]
struct Waiting {
    /// Queues that want help; one may be there several times.
    queues: VecDeque<Arc<Work>>,
    stop: bool,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

/// Threads that help with reads. See the module.
pub struct ReadPool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for ReadPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReadPool({} threads)", self.threads.len())
    }
}

impl ReadPool {
    /// A pool of `threads` threads.
    ///
    /// # Errors
    /// If the system has no resources for them.
    pub fn new(threads: usize) -> io::Result<ReadPool> {
        let shared = Arc::<Shared>::default();
        let start = |i| {
            let shared = Arc::clone(&shared);
            thread::spawn(&format!("export-{i}"), move || help_all(&shared))
        };
        let threads = (0..threads).map(start).collect::<Result<_, _>>()?;
        Ok(ReadPool { shared, threads })
    }

    /// Asks for the help of up to `helpers` threads.
    fn call(&self, work: &Arc<Work>, helpers: usize) {
        let helpers = helpers.min(self.threads.len());
        if helpers == 0 {
            return;
        }
        lock(&self.shared.waiting).queues.extend((0..helpers).map(|_| Arc::clone(work)));
        for _ in 0..helpers {
            self.shared.changed.notify_one();
        }
    }
}

impl Drop for ReadPool {
    fn drop(&mut self) {
        lock(&self.shared.waiting).stop = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A helper catches the panics of reads; what else it may die of has been printed.
            drop(thread.join());
        }
    }
}

fn help_all(shared: &Shared) {
    loop {
        let mut waiting = lock(&shared.waiting);
        let work = loop {
            if waiting.stop {
                return;
            }
            match waiting.queues.pop_front() {
                Some(work) => break work,
                None => waiting = shared.changed.wait(&shared.waiting, waiting),
            }
        };
        drop(waiting);
        work.help();
        if work.waits() {
            lock(&shared.waiting).queues.push_back(work);
        }
    }
}

/// A [`SimpleDevice`] of which one connection's reads are served by several threads.
pub struct Parallel {
    device: Arc<dyn SimpleDevice>,
    pool: Arc<ReadPool>,
    budget: Arc<Budget>,
}

impl std::fmt::Debug for Parallel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Parallel({:?})", self.pool)
    }
}

impl Parallel {
    /// `device`, with the help of `pool`, and what `budget` leaves to read ahead.
    #[must_use]
    pub fn new(device: Arc<dyn SimpleDevice>, pool: Arc<ReadPool>, budget: Arc<Budget>) -> Parallel {
        Parallel { device, pool, budget }
    }
}

impl BlockDevice for Parallel {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn open_queue(self: Arc<Self>) -> Result<Box<dyn Queue>, BlockError> {
        let read_only = self.device.geometry().read_only;
        let work = Arc::new(Work {
            device: Arc::clone(&self.device),
            ahead: read_only.then(|| Ahead::new(Arc::clone(&self.device), Arc::clone(&self.budget))),
            jobs: Mutex::default(),
            finished: Arc::new(Finished { done: Mutex::default(), event: Event::new()? }),
        });
        Ok(Box::new(ParallelQueue {
            work,
            pool: Arc::clone(&self.pool),
            ended: Vec::new(),
            in_flight: 0,
            wanted: 0,
            left: false,
        }))
    }

    fn block_status(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>, BlockError> {
        self.device.block_status(offset, len, max)
    }
}

struct ParallelQueue {
    work: Arc<Work>,
    pool: Arc<ReadPool>,
    /// Served by the own thread and not reaped yet.
    ended: Vec<Completion>,
    in_flight: usize,
    /// Pieces to read ahead that nobody has been called for.
    wanted: usize,
    /// The own thread has left requests for its next turn, and the event is rung for that.
    left: bool,
}

impl ParallelQueue {
    /// Serves some of what waits.
    fn serve(&mut self) {
        let mut bytes = 0;
        while bytes < OWN_BYTES
            && let Some(completion) = self.work.step()
        {
            bytes += completion.buf.as_ref().map_or(0, |b| b.len()).max(LEAST_BYTES);
            self.ended.push(completion);
        }
    }

    /// Whether requests wait that nobody has begun.
    fn is_left(&self) -> bool {
        !lock(&self.work.jobs).is_empty()
    }

    /// Serves what is no read. Making it durable may take its time, in which others go on.
    fn write(&mut self, tag: u64, request: Request<'_>) -> Submitted {
        let (request, durable) = match request {
            Request::Flush => (None, true),
            Request::Write { offset, data, fua } => (Some(Request::Write { offset, data, fua: false }), fua),
            Request::Trim { offset, len, fua } => (Some(Request::Trim { offset, len, fua: false }), fua),
            Request::WriteZeroes { offset, len, fua, no_hole, fast } => {
                (Some(Request::WriteZeroes { offset, len, fua: false, no_hole, fast }), fua)
            }
            other => (Some(other), false),
        };
        let (result, buf) = request.map_or((Ok(()), None), |r| run_simple(&*self.work.device, r));
        if result.is_err() || !durable || self.work.ahead.is_some() {
            return Submitted::Done(Completion { tag, result, buf });
        }
        self.in_flight += 1;
        let finished = Arc::clone(&self.work.finished);
        self.work.device.flush_then(Box::new(move |result| finished.push(Completion { tag, result, buf: None })));
        Submitted::Pending
    }
}

impl Queue for ParallelQueue {
    fn submit(&mut self, tag: u64, request: Request<'_>) -> Submitted {
        match request {
            Request::Read { offset, buf } => {
                if let Some(ahead) = &self.work.ahead {
                    self.wanted += ahead.note(offset, buf.len() as u64);
                }
                lock(&self.work.jobs).push_back(Job { tag, offset, buf });
                self.in_flight += 1;
                Submitted::Pending
            }
            other => self.write(tag, other),
        }
    }

    fn kick(&mut self) {
        let (requests, bytes) = {
            let jobs = lock(&self.work.jobs);
            (jobs.len(), jobs.iter().map(|j| j.buf.len()).sum::<usize>())
        };
        let helpers = (bytes / BYTES_PER_HELPER).max(requests / REQUESTS_PER_HELPER);
        let helpers = helpers.min(requests.saturating_sub(1)) + std::mem::take(&mut self.wanted);
        self.pool.call(&self.work, helpers);
        self.serve();
        if self.is_left() && !self.left {
            self.left = true;
            self.work.finished.event.ring();
        }
    }

    fn reap(&mut self, out: &mut Vec<Completion>) {
        if self.ended.is_empty() && self.left {
            self.serve();
        }
        let before = out.len();
        out.append(&mut self.ended);
        self.left &= self.is_left();
        if !self.left {
            // Before the list is taken: what joins it later leaves the event readable.
            self.work.finished.event.clear();
        }
        out.append(&mut lock(&self.work.finished.done));
        self.in_flight -= out.len() - before;
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.work.finished.event.fd())
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl Drop for ParallelQueue {
    fn drop(&mut self) {
        let mut out = Vec::new();
        self.kick();
        while self.in_flight() != 0 {
            self.reap(&mut out);
            if self.in_flight() != 0 {
                self.work.finished.event.wait(DROP_TICK);
            }
        }
        if let Some(ahead) = &self.work.ahead {
            ahead.close();
        }
    }
}

#[cfg(test)]
#[path = "parallel_tests.rs"]
mod tests;
