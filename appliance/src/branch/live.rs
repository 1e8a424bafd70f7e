//! A branch that is being written: from requests to records that are durable.
//!
//! ```text
//! write, zero, point -> open batch (in memory, readable) -> dedupe -> write: append, commit, sync -> history
//!        |                       |                                                   |
//!        answered here           handed over: 1 MiB, 20 ms, or a flush               a flush is answered here
//! ```
//!
//! What is answered and not yet flushed is in batches, in the order of seqs, and reaches the segments in that order: a kill leaves
//! a prefix. A flush is durable with the batch that holds the newest write before it: one sync, however many writes. The
//! stages are those of an agent's session ([`stages`](crate::ingest::stages)), and the branch's turn is that of a session, so
//! nobody else writes the volume.
//!
//! *Memory* is bounded: who writes waits while the open batch is full ([`FULL`]), and there are as many batches behind it as there
//! are stages. While there is no room in the vault, writers wait. An error of the disk is final (I11): every request fails until the
//! branch is opened again, which begins with what is durable.

use crate::ingest::batch::{Batch, Cursor};
use crate::ingest::stages::{Recent, Stages, UnderWay, lock};
use crate::ingest::volume::Volume;
use crate::ingest::{SessionError, Shared};
use afterimage_base::block::BlockError;
use afterimage_base::clock::Clock;
use afterimage_base::world;
use afterimage_base::world::sync::Condvar;
use afterimage_base::world::thread::{self, JoinHandle};
use afterimage_format::record::{Kind, MAX_PAYLOAD};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// An open batch is handed over from this weight in bytes on,
const DUE: usize = 1 << 20;
/// or when its first record is so old,
const DUE_AFTER: Duration = Duration::from_millis(20);
/// and takes no more from this weight on.
const FULL: usize = 4 << 20;
/// What a record weighs besides its payload, and what a partial block does.
const RECORD_WEIGHT: usize = 256;
const PARTIAL_WEIGHT: usize = 2 * 4096;

/// Told how a flush went.
pub(super) type Then = Box<dyn FnOnce(Result<(), BlockError>) + Send>;

/// The state that requests and the runner share.
struct Front {
    open: Batch,
    weight: usize,
    /// When the first record of the open batch came.
    since: Instant,
    cursor: Cursor,
    /// Everything up to this seq is durable.
    durable: u64,
    /// A flush wants everything up to this seq.
    wanted: u64,
    /// Flushes that are not answered, by seq.
    waiting: Vec<(u64, Then)>,
    /// The runner has taken its turn.
    ready: bool,
    /// Why nothing is taken any more.
    ended: Option<(String, BlockError)>,
}

/// See the module.
pub(super) struct Live {
    pub(super) shared: Arc<Shared>,
    pub(super) volume: Arc<Volume>,
    clock: Arc<dyn Clock>,
    pub(super) under_way: UnderWay,
    front: Mutex<Front>,
    /// There is something to hand over.
    work: Condvar,
    /// The open batch takes more, something is durable, or it has ended.
    moved: Condvar,
    stop: AtomicBool,
}

/// The runner of a branch; dropping it makes everything durable that was written, and ends it.
pub(crate) struct Runner {
    pub(super) live: Arc<Live>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Runner({})", self.live.volume.name)
    }
}

impl Runner {
    /// Takes the volume's turn and begins.
    ///
    /// # Errors
    /// Why the branch takes no writes.
    pub(crate) fn start(
        shared: Arc<Shared>,
        volume: Arc<Volume>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Runner>, SessionError> {
        let front = Front {
            open: Batch::default(),
            weight: 0,
            since: world::now(),
            cursor: Cursor { seq: 0, time: 0, forked: false, size: 0 },
            durable: 0,
            wanted: 0,
            waiting: Vec::new(),
            ready: false,
            ended: None,
        };
        let live = Arc::new(Live {
            shared,
            volume,
            clock,
            under_way: UnderWay::default(),
            front: Mutex::new(front),
            work: Condvar::new(),
            moved: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let of_thread = Arc::clone(&live);
        let thread = thread::spawn("branch", move || of_thread.run())
            .map_err(|e| SessionError::Connection(format!("no thread for it: {e}")))?;
        let runner = Arc::new(Runner { live, thread: Some(thread) });
        let mut front = lock(&runner.live.front);
        while !front.ready && front.ended.is_none() {
            front = runner.live.moved.wait(&runner.live.front, front);
        }
        match &front.ended {
            Some((why, _)) => Err(SessionError::Failed(why.clone())),
            None => {
                drop(front);
                Ok(runner)
            }
        }
    }

    /// Whether it takes requests.
    pub(crate) fn runs(&self) -> bool {
        lock(&self.live.front).ended.is_none()
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.live.end();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Live {
    /// Has the runner hand over what is there, and end.
    fn end(&self) {
        self.stop.store(true, Ordering::Release);
        // Under the lock, so that the runner is not about to wait.
        let _front = lock(&self.front);
        self.work.notify_all();
        self.moved.notify_all();
    }

    fn run(self: Arc<Self>) {
        let stopper = Arc::clone(&self);
        let ended = match self.volume.take_turn(Box::new(move || stopper.end())) {
            Err(e) => e,
            // Dropping the turn lets others have the volume, when everything here has ended.
            Ok(_turn) => match self.volume.failure() {
                Some(why) => SessionError::Failed(why),
                None => self.work(),
            },
        };
        let error = match &ended {
            SessionError::Full(_) => BlockError::NoSpace,
            SessionError::Failed(_) => BlockError::Io(libc::EIO),
            _ => BlockError::Shutdown,
        };
        let mut front = lock(&self.front);
        front.ended = Some((ended.to_string(), error.clone()));
        let waiting = std::mem::take(&mut front.waiting);
        self.moved.notify_all();
        drop(front);
        waiting.into_iter().for_each(|(_, then)| then(Err(error.clone())));
    }

    fn work(&self) -> SessionError {
        let progress = self.volume.progress();
        {
            let mut front = lock(&self.front);
            front.cursor = Cursor { seq: progress.seq, time: progress.time, forked: false, size: progress.size() };
            (front.durable, front.ready) = (progress.seq, true);
            self.moved.notify_all();
        }
        let (interrupt, durable) = (|| self.end(), |seq, _| self.durable(seq));
        let mut stages = Stages::new((&self.shared, &self.volume), &self.under_way, &interrupt, &durable);
        stages.patient = Some(&self.stop);
        // The id of the branch stands for the ring of the records' order.
        thread::scope(|s| match stages.start(s, self.volume.id) {
            Err(e) => stages.fail(SessionError::Connection(format!("no thread for it: {e}"))),
            Ok(next) => {
                while let Some(batch) = self.next_batch(&stages) {
                    if stages.hand_over(batch, &next).is_err() {
                        break;
                    }
                }
            }
        });
        let end = lock(&stages.end).take();
        if matches!(end, Some(SessionError::Full(_) | SessionError::Failed(_))) {
            self.volume.leave_segment(&self.shared);
        }
        end.unwrap_or_else(|| SessionError::Superseded("the branch is closed".into()))
    }

    /// Waits for a batch that is due and puts it under way; `None` at the end.
    fn next_batch(&self, stages: &Stages<'_>) -> Option<Arc<Batch>> {
        let mut front = lock(&self.front);
        loop {
            let stop = self.stop.load(Ordering::Acquire);
            if front.open.records.is_empty() {
                if stop || lock(&stages.end).is_some() {
                    return None;
                }
                front = self.work.wait(&self.front, front);
                continue;
            }
            let age = world::since(front.since);
            if stop || front.weight >= DUE || front.wanted > front.durable || age >= DUE_AFTER {
                break;
            }
            front = self.work.wait_timeout(&self.front, front, DUE_AFTER.saturating_sub(age));
        }
        // A batch that is full when it is taken has held up who writes.
        stages.heard_of(u8::try_from(front.weight * 16 / FULL).unwrap_or(16).min(16));
        let batch = Arc::new(std::mem::replace(&mut front.open, stages.empty()));
        front.weight = 0;
        // Still under the lock: whoever reads finds it in one of the two.
        self.under_way.push(Arc::clone(&batch));
        self.moved.notify_all();
        Some(batch)
    }

    fn durable(&self, seq: u64) -> Result<(), SessionError> {
        let mut front = lock(&self.front);
        front.durable = seq;
        let (done, waiting) = std::mem::take(&mut front.waiting).into_iter().partition(|w| w.0 <= seq);
        front.waiting = waiting;
        self.moved.notify_all();
        drop(front);
        let done: Vec<(u64, Then)> = done;
        done.into_iter().for_each(|(_, then)| then(Ok(())));
        Ok(())
    }

    /// Appends a record when there is room for it; answers its seq.
    fn append(&self, what: (Kind, u64, u64), payload: &[u8]) -> Result<(u64, u64), BlockError> {
        let mut front = lock(&self.front);
        loop {
            if let Some((_, error)) = &front.ended {
                return Err(error.clone());
            }
            if self.stop.load(Ordering::Acquire) {
                return Err(BlockError::Shutdown);
            }
            if front.weight < FULL {
                break;
            }
            front = self.moved.wait(&self.front, front);
        }
        let before = Recent { shared: &self.shared, volume: &self.volume, under_way: &self.under_way };
        let Front { open, cursor, .. } = &mut *front;
        let first = open.records.is_empty();
        let appended = open.append(what, payload, (cursor, self.clock.wall()), &before);
        let seq = appended.map_err(|e| {
            tracing::error!("branch {}: {e}", self.volume.name);
            BlockError::Io(libc::EIO)
        })?;
        let time = cursor.time;
        let partial = what.0 != Kind::Point && !(what.1 | what.2).is_multiple_of(4096);
        front.weight += payload.len() + RECORD_WEIGHT + if partial { PARTIAL_WEIGHT } else { 0 };
        if first {
            front.since = world::now();
        }
        if first || front.weight >= DUE {
            self.work.notify_one();
        }
        Ok((seq, time))
    }

    pub(super) fn write(&self, mut offset: u64, data: &[u8]) -> Result<(), BlockError> {
        for piece in data.chunks(MAX_PAYLOAD) {
            self.append((Kind::Write, offset, piece.len() as u64), piece)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    pub(super) fn zero(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        self.append((Kind::Zero, offset, len), &[]).map(drop)
    }

    /// Makes a point and waits until it is durable; answers its seq and time.
    pub(super) fn point(&self, name: &str) -> Result<(u64, u64), BlockError> {
        let made = self.append((Kind::Point, 0, name.len() as u64), name.as_bytes())?;
        self.flush()?;
        Ok(made)
    }

    /// Waits until everything that was answered before is durable.
    pub(super) fn flush(&self) -> Result<(), BlockError> {
        let mut front = lock(&self.front);
        let seq = front.cursor.seq;
        front.wanted = front.wanted.max(seq);
        self.work.notify_one();
        loop {
            if front.durable >= seq {
                return Ok(());
            }
            if let Some((_, error)) = &front.ended {
                return Err(error.clone());
            }
            front = self.moved.wait(&self.front, front);
        }
    }

    /// As [`Live::flush`], but `then` is called when it is done.
    pub(super) fn flush_then(&self, then: Then) {
        let mut front = lock(&self.front);
        let seq = front.cursor.seq;
        let answer = match &front.ended {
            _ if front.durable >= seq => Ok(()),
            Some((_, error)) => Err(error.clone()),
            None => {
                front.wanted = front.wanted.max(seq);
                front.waiting.push((seq, then));
                self.work.notify_one();
                return;
            }
        };
        drop(front);
        then(answer);
    }

    pub(super) fn size(&self) -> u64 {
        lock(&self.front).cursor.size
    }

    /// Takes the open batch's part of a read, and tells which batches are under way, at one moment.
    pub(super) fn pending<T>(&self, look: impl FnOnce(&Batch) -> T) -> (T, Vec<Arc<Batch>>) {
        let front = lock(&self.front);
        let found = look(&front.open);
        (found, self.under_way.newest_first())
    }
}
