//! Reading ahead of who reads an export from front to back.
//!
//! A point's blocks lie in frames with other blocks, and the frames of a stretch of the disk in several places of the store. Served
//! request by request, each of them would wait for the disk, and requests side by side would decode the same frames. So once
//! requests follow each other, the disk is read in pieces of 1 MiB: each by one thread, which sees all of its frames
//! at once and reads those that lie together with one read; the next pieces meanwhile by others. What has been read waits as it
//! will be sent, so nothing depends on what the cache of frames still holds.
//!
//! Who comes to a piece that nobody has begun reads it himself; to one that is being read, he reads another one that is wanted,
//! and waits only if there is none. So reading ahead needs no thread of its own to go on.
//!
//! Only for devices that take no writes: a piece is never older than what it shows.

use afterimage_base::block::BlockError;
use afterimage_base::buf::AlignedBuf;
use afterimage_base::simple::SimpleDevice;
use afterimage_base::world::sync::Condvar;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of a piece.
const PIECE: u64 = 1 << 20;
/// Pieces read ahead of the newest request at most.
const DEPTH: u64 = 8;
/// Bytes that have to be read in sequence before anything is read ahead.
const SURE: u64 = 256 << 10;
/// Clients with several requests at a time mix their order a little: so far from where it is expected, one still follows.
const SLACK: u64 = 1 << 20;
/// Buffers of pieces that were sent, kept for the next ones: fresh memory costs as much as copying into it.
const SPARE: usize = 2;
/// Pieces that lie so far behind the newest request are let go, read or not.
const BEHIND: u64 = 40;

/// Memory that all exports share for what they read ahead.
#[derive(Debug)]
pub struct Budget {
    left: AtomicUsize,
}

impl Budget {
    /// Of so many bytes.
    #[must_use]
    pub fn new(bytes: usize) -> Arc<Budget> {
        Arc::new(Budget { left: AtomicUsize::new(bytes) })
    }

    fn take(self: &Arc<Budget>, bytes: usize) -> Option<Share> {
        let taken = self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(bytes));
        taken.ok().map(|_| Share { budget: Arc::clone(self), bytes })
    }
}

/// A part of the budget, given back when it is dropped.
#[derive(Debug)]
struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.left.fetch_add(self.bytes, Ordering::AcqRel);
    }
}

#[derive(Debug)]
enum Content {
    /// Nobody has begun.
    Wanted,
    /// Somebody reads it.
    Loading,
    /// As it is sent.
    Ready(Arc<AlignedBuf>),
}

#[derive(Debug)]
struct Piece {
    content: Content,
    /// Bytes that nobody has asked for yet.
    left: u64,
    _share: Share,
}

#[derive(Debug, Default)]
struct State {
    /// Where the next request is expected.
    next: u64,
    /// Bytes read in sequence up to there.
    run: u64,
    pieces: BTreeMap<u64, Piece>,
    spare: Vec<AlignedBuf>,
}

/// The stream of reads of one connection. See the module.
pub(super) struct Ahead {
    device: Arc<dyn SimpleDevice>,
    size: u64,
    budget: Arc<Budget>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Ahead {
    /// For a device that takes no writes.
    pub(super) fn new(device: Arc<dyn SimpleDevice>, budget: Arc<Budget>) -> Ahead {
        let size = device.geometry().size;
        Ahead { device, size, budget, state: Mutex::default(), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a read has come, in the order of coming. Answers how many pieces are wanted because of it.
    pub(super) fn note(&self, offset: u64, len: u64) -> usize {
        let end = offset.saturating_add(len);
        let mut state = self.lock();
        if offset > state.next.saturating_add(SLACK) || end.saturating_add(SLACK) < state.next {
            // Somewhere else: what nobody has begun is not wanted any more.
            state.pieces.clear();
            state.spare.clear();
            (state.next, state.run) = (end, len);
            return 0;
        }
        state.run = state.run.saturating_add(len);
        state.next = state.next.max(end);
        if state.run < SURE || len == 0 {
            return 0;
        }
        let newest = state.next.saturating_sub(1) / PIECE;
        state.pieces = state.pieces.split_off(&newest.saturating_sub(BEHIND));
        // No further than has been read already: who stops early has cost little.
        let ahead = (state.run / PIECE + 1).min(DEPTH);
        let mut wanted = 0;
        for number in offset / PIECE..=newest + ahead {
            let Some(bytes) = self.size.checked_sub(number * PIECE).filter(|b| *b > 0) else { break };
            // What was here and is read already does not come back.
            if state.pieces.contains_key(&number) || (number + 1) * PIECE <= offset {
                continue;
            }
            let Some(share) = self.budget.take(usize::try_from(PIECE).unwrap_or(0)) else { break };
            let left = bytes.min(PIECE) - offset.saturating_sub(number * PIECE).min(bytes.min(PIECE));
            state.pieces.insert(number, Piece { content: Content::Wanted, left, _share: share });
            wanted += 1;
        }
        wanted
    }

    /// Reads a piece that is wanted and that nobody has begun; `false` if there is none.
    pub(super) fn load_one(&self) -> bool {
        let mut state = self.lock();
        let Some((number, piece)) = state.pieces.iter_mut().find(|(_, p)| matches!(p.content, Content::Wanted)) else {
            return false;
        };
        piece.content = Content::Loading;
        let number = *number;
        drop(state);
        self.load(number);
        true
    }

    /// Whether there is a piece that is wanted and that nobody has begun.
    pub(super) fn wants(&self) -> bool {
        self.lock().pieces.values().any(|p| matches!(p.content, Content::Wanted))
    }

    /// Nobody will ask any more.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.pieces.clear();
        state.spare.clear();
    }

    /// Memory for a piece; what it holds is anything.
    fn buffer(&self, len: usize) -> AlignedBuf {
        let spare = self.lock().spare.pop();
        spare.filter(|buf| buf.len() == len).unwrap_or_else(|| AlignedBuf::zeroed(len))
    }

    /// A piece was copied from: if nobody else needs it, its memory is kept.
    fn let_go(&self, piece: Arc<AlignedBuf>) {
        if let Ok(buf) = Arc::try_unwrap(piece) {
            let mut state = self.lock();
            if state.spare.len() < SPARE {
                state.spare.push(buf);
            }
        }
    }

    /// Reads piece `number`, which this thread has set to loading.
    fn load(&self, number: u64) {
        let loading = Loading { ahead: self, number };
        let start = number * PIECE;
        let len = usize::try_from(PIECE.min(self.size.saturating_sub(start))).unwrap_or(0);
        let mut buf = self.buffer(len);
        // Whoever asks for what cannot be read, or panics, meets that himself.
        let read = catch_unwind(AssertUnwindSafe(|| self.device.read_at(start, &mut buf).is_ok()));
        loading.end(read.unwrap_or(false).then(|| Arc::new(buf)));
    }

    /// Serves a read, from pieces where there are any.
    pub(super) fn read(&self, offset: u64, mut buf: &mut [u8]) -> Result<(), BlockError> {
        let mut at = offset;
        while !buf.is_empty() {
            let number = at / PIECE;
            let within = at - number * PIECE;
            let n = usize::try_from(PIECE - within).unwrap_or(usize::MAX).min(buf.len());
            let (part, rest) = std::mem::take(&mut buf).split_at_mut(n);
            buf = rest;
            match self.piece(number, n as u64) {
                Some(ready) => {
                    let from = usize::try_from(within).unwrap_or(usize::MAX);
                    match ready.get(from..from + n) {
                        Some(bytes) => part.copy_from_slice(bytes),
                        // Past the end: the device says so.
                        None => self.device.read_at(at, part)?,
                    }
                    self.let_go(ready);
                }
                None => self.device.read_at(at, part)?,
            }
            at += n as u64;
        }
        Ok(())
    }

    /// What piece `number` holds, when it is there; `None` if it is not wanted or cannot be read.
    fn piece(&self, number: u64, asked: u64) -> Option<Arc<AlignedBuf>> {
        let mut state = self.lock();
        loop {
            let piece = state.pieces.get_mut(&number)?;
            match &mut piece.content {
                Content::Ready(ready) => {
                    let ready = Arc::clone(ready);
                    piece.left = piece.left.saturating_sub(asked);
                    if piece.left == 0 {
                        state.pieces.remove(&number);
                    }
                    return Some(ready);
                }
                Content::Wanted => {
                    piece.content = Content::Loading;
                    drop(state);
                    self.load(number);
                    state = self.lock();
                }
                Content::Loading => {
                    drop(state);
                    let helped = self.load_one();
                    state = self.lock();
                    if !helped && matches!(state.pieces.get(&number), Some(Piece { content: Content::Loading, .. })) {
                        state = self.changed.wait(&self.state, state);
                    }
                }
            }
        }
    }
}

/// A piece that a thread reads: it is not left so, also if the device panics.
struct Loading<'a> {
    ahead: &'a Ahead,
    number: u64,
}

impl Loading<'_> {
    fn end(self, content: Option<Arc<AlignedBuf>>) {
        if let Some(content) = content
            && let Some(piece) = self.ahead.lock().pieces.get_mut(&self.number)
        {
            piece.content = Content::Ready(content);
        }
    }
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        let mut state = self.ahead.lock();
        // What cannot be read is read again by who asks for it, and only where it is asked for.
        if matches!(state.pieces.get(&self.number), Some(Piece { content: Content::Loading, .. })) {
            state.pieces.remove(&self.number);
        }
        self.ahead.changed.notify_all();
    }
}

#[cfg(test)]
#[path = "ahead_tests.rs"]
mod tests;
