//! The connections of the load generator.
//!
//! When a connection breaks (the server was killed), it is made again until it works or the time for that is over. A load
//! of one request at a time submits the request of unknown fate again, so that the order of writes stays
//! known; any other load leaves its fate open and goes on with new ones.

use super::journal::{Header, Journal};
use super::op::{Chooser, Kind, Next, Op, Shape};
use super::stamp;
use crate::problem::Problem;
use afterimage_nbd::client::{Client, ClientError, Command, Uri};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// The export.
    pub uri: Uri,
    /// Where the journal goes.
    pub journal: PathBuf,
    /// Seq of the volume's newest record now, if known.
    pub base_seq: Option<u64>,
    /// Connections.
    pub connections: usize,
    /// Requests in flight on each.
    pub depth: usize,
    /// The requests; a span of 0 means the whole disk.
    pub shape: Shape,
    /// Seed of requests and stamps.
    pub seed: u64,
    /// Stop after so many requests that change the disk.
    pub count: Option<u64>,
    /// Stop after so long.
    pub duration: Option<Duration>,
    /// Requests per second, all connections together.
    pub rate: Option<u64>,
    /// How long to try to connect again; zero means that a broken connection is a failure.
    pub reconnect: Duration,
}

/// What was done.
#[derive(Debug, Default, Clone, Copy)]
pub struct Done {
    /// Requests that change the disk.
    pub changes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Bytes of writes acknowledged.
    pub bytes: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Times a connection broke.
    pub breaks: u64,
}

#[derive(Debug, Default)]
struct Counters {
    flushes: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    breaks: AtomicU64,
}

struct Shared<'a> {
    options: &'a Options,
    shape: Shape,
    journal: Journal,
    counters: Counters,
    issued: AtomicU64,
    start: Instant,
    stop: &'a AtomicBool,
}

impl Shared<'_> {
    /// Whether one more request may be sent; waits if the rate says so.
    fn may_send(&self) -> bool {
        if self.stop.load(Ordering::Relaxed) || self.options.duration.is_some_and(|d| self.start.elapsed() >= d) {
            return false;
        }
        let n = self.issued.fetch_add(1, Ordering::Relaxed);
        if self.options.count.is_some_and(|count| n >= count) {
            return false;
        }
        if let Some(rate) = self.options.rate {
            let due = Duration::from_nanos(n.saturating_mul(1_000_000_000) / rate.max(1));
            thread::sleep(due.saturating_sub(self.start.elapsed()));
        }
        true
    }

    fn exact(&self) -> bool {
        self.options.connections * self.options.depth == 1
    }
}

/// Runs the load until it is done or `stop` is set.
///
/// # Errors
/// If the server cannot be reached (any more), or the journal not be written.
pub fn run(options: &Options, stop: &AtomicBool) -> Result<Done, Problem> {
    let size = options.uri.connect()?.size();
    let mut shape = options.shape;
    shape.span = if shape.span == 0 { size } else { shape.span.min(size) } / shape.align * shape.align;
    if shape.span == 0 {
        return Err(Problem::usage(format!(
            "the disk of {size} bytes has no room for requests of {} bytes",
            shape.align
        )));
    }
    let exact = options.connections * options.depth == 1;
    if !exact && !shape.align.is_multiple_of(stamp::SECTOR) {
        return Err(Problem::usage("requests inside a sector can be judged only with --connections 1 --depth 1"));
    }
    let header = Header { seed: options.seed, size, base_seq: options.base_seq, exact };
    let journal = Journal::create(&options.journal, header).map_err(|e| Problem::file(&options.journal, &e))?;
    let (counters, issued) = (Counters::default(), AtomicU64::new(0));
    let shared = Shared { options, shape, journal, counters, issued, start: Instant::now(), stop };
    let results = thread::scope(|scope| {
        let each = |i: usize| {
            scope.spawn({
                let shared = &shared;
                move || Connection::new(shared, i).run()
            })
        };
        let threads: Vec<_> = (0..options.connections).map(each).collect();
        threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|_| Err(Problem::failed("a thread died"))))
            .collect::<Vec<_>>()
    });
    shared.journal.flush()?;
    results.into_iter().collect::<Result<(), _>>()?;
    let load = |c: &AtomicU64| c.load(Ordering::Relaxed);
    let c = &shared.counters;
    Ok(Done {
        changes: shared.journal.count(),
        flushes: load(&c.flushes),
        bytes: load(&c.bytes),
        errors: load(&c.errors),
        breaks: load(&c.breaks),
    })
}

struct Connection<'a> {
    shared: &'a Shared<'a>,
    chooser: Chooser,
    cookie: u64,
    /// What is in flight; `None` is a flush.
    flying: HashMap<u64, Option<Op>>,
    /// To be submitted again (exact loads only).
    again: Option<Op>,
}

impl<'a> Connection<'a> {
    fn new(shared: &'a Shared<'a>, index: usize) -> Self {
        let seed = shared.options.seed.wrapping_mul(0x9e37_79b9).wrapping_add(index as u64);
        Self { shared, chooser: Chooser::new(shared.shape, seed), cookie: 0, flying: HashMap::new(), again: None }
    }

    fn run(mut self) -> Result<(), Problem> {
        loop {
            let mut nbd = self.connect()?;
            match self.transmit(&mut nbd) {
                Ok(()) => return Ok(()),
                Err(Broken::Journal(e)) => return Err(Problem::file(&self.shared.options.journal, &e)),
                Err(Broken::Nbd(e)) if self.shared.options.reconnect.is_zero() => return Err(e.into()),
                Err(Broken::Nbd(ClientError::Io(_))) => {}
                Err(Broken::Nbd(e)) => return Err(e.into()),
            }
            self.shared.counters.breaks.fetch_add(1, Ordering::Relaxed);
            let lost = self.flying.drain().find_map(|(_, op)| op);
            if self.shared.exact() {
                self.again = lost.or(self.again.take());
            }
        }
    }

    fn connect(&self) -> Result<Client, Problem> {
        let start = Instant::now();
        loop {
            match self.shared.options.uri.connect() {
                Ok(nbd) => return Ok(nbd),
                Err(e) if start.elapsed() >= self.shared.options.reconnect => return Err(e.into()),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn transmit(&mut self, nbd: &mut Client) -> Result<(), Broken> {
        let mut open = true;
        if let Some(op) = self.again.take() {
            self.send(nbd, op)?;
        }
        loop {
            while open && self.flying.len() < self.shared.options.depth {
                open = self.shared.may_send();
                if open {
                    self.send_next(nbd)?;
                }
            }
            if self.flying.is_empty() {
                return Ok(());
            }
            self.receive(nbd)?;
        }
    }

    fn send_next(&mut self, nbd: &mut Client) -> Result<(), Broken> {
        match self.chooser.choose() {
            Next::Flush => {
                self.cookie += 1;
                self.flying.insert(self.cookie, None);
                nbd.submit(self.cookie, &Command::Flush).map_err(Broken::Nbd)
            }
            Next::Change(kind, offset, len) => {
                let op = self.shared.journal.submit(kind, offset, len).map_err(Broken::Journal)?;
                self.send(nbd, op)
            }
        }
    }

    fn send(&mut self, nbd: &mut Client, op: Op) -> Result<(), Broken> {
        self.cookie += 1;
        self.flying.insert(self.cookie, Some(op));
        // One in 16 asks to be durable at once.
        let (offset, len, fua) = (op.offset, op.len, op.number.is_multiple_of(16));
        let mut data = Vec::new();
        let command = match op.kind {
            Kind::Write => {
                data.resize(usize::try_from(len).unwrap_or(0), 0);
                stamp::fill(self.shared.options.seed, op.number, offset, &mut data);
                Command::Write { offset, data: &data, fua }
            }
            Kind::Trim => Command::Trim { offset, len, fua },
            Kind::Zero => Command::WriteZeroes { offset, len, fua, no_hole: false, fast: false },
        };
        nbd.submit(self.cookie, &command).map_err(Broken::Nbd)
    }

    fn receive(&mut self, nbd: &mut Client) -> Result<(), Broken> {
        let reply = nbd.receive().map_err(Broken::Nbd)?;
        let Some(op) = self.flying.remove(&reply.cookie) else { return Ok(()) };
        let c = &self.shared.counters;
        if let Err(e) = reply.result {
            c.errors.fetch_add(1, Ordering::Relaxed);
            if self.shared.exact() {
                // The order stays known only if this very request goes first again.
                self.again = op;
                return Err(Broken::Nbd(std::io::Error::other(e).into()));
            }
            return Ok(());
        }
        match op {
            None => {
                c.flushes.fetch_add(1, Ordering::Relaxed);
            }
            Some(op) => {
                self.shared.journal.ack(&op).map_err(Broken::Journal)?;
                if op.kind == Kind::Write {
                    c.bytes.fetch_add(op.len, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }
}

enum Broken {
    Nbd(ClientError),
    Journal(std::io::Error),
}
