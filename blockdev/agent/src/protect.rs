//! What protection adds to a write: a place in the ring or a mark in the dirty map, before the disk is touched (I3).
//!
//! Writers use only what is lock-free here: gate, ring, map, counters. The state that people see and the
//! note in volume.json belong to the keeper thread and lie behind a lock that no writer takes.
//!
//! **The switch to the dirty map.** A writer that finds the ring closed counts itself as a dirty writer, looks again
//! whether the ring is closed, and only then marks its regions. The keeper reopens the ring first and then waits until no
//! dirty writer is left, before the sync reads a region or ends: so whoever was not counted in time has seen the ring open.
//!
//! **A disk that refuses a write** (EIO, ENOSPC). The guest gets the error. Its record is in the history already, and the
//! disk may hold the old bytes, the new ones or some of both. So before the guest hears of it, the region is
//! marked and the ring closed: every consistent prefix ends before anything the guest did after it knew, and a prefix that
//! contains a write that failed later, but was not answered yet, is an image that a crash could have left. The resync
//! copies what the disk really holds.

use crate::breaks::{Break, Breaks};
use crate::few::Few;
use crate::intent::Intent;
use crate::ranges::Claim;
use afterimage_base::block::BlockError;
use afterimage_base::clock::Clock;
use afterimage_base::gate::Gate;
use afterimage_base::world::sync::Condvar;
use afterimage_format::record::{Kind, MAX_PAYLOAD};
use afterimage_journal::{DirtyMap, Reservation, ReserveError, Ring};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// See the module.
pub(crate) struct Protection {
    pub(crate) name: String,
    pub(crate) gate: Gate,
    pub(crate) ring: Ring,
    pub(crate) map: DirtyMap,
    /// What may differ after a power cut, if that is kept. What is dirty is marked there, always and durably.
    pub(crate) intent: Option<Intent>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) bell: Bell,
    pub(crate) breaks: Breaks,
    dirty_writers: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
    write_bytes: AtomicU64,
    /// Why the ring was closed last.
    reason: Mutex<Option<String>>,
}

/// What a write has got from the ring: places, and whether (the rest of) it is in the dirty map.
pub(crate) struct Taken<'a> {
    pub(crate) places: Few<(Reservation<'a>, u64)>,
    /// Bytes that have a place in the ring.
    pub(crate) bytes: u64,
    pub(crate) dirty: bool,
}

impl Protection {
    pub(crate) fn new(
        name: String,
        ring: Ring,
        map: DirtyMap,
        intent: Option<Intent>,
        clock: Arc<dyn Clock>,
    ) -> Protection {
        Protection {
            name,
            gate: Gate::new(),
            ring,
            map,
            intent,
            clock,
            bell: Bell::default(),
            breaks: Breaks::default(),
            dirty_writers: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            write_bytes: AtomicU64::new(0),
            reason: Mutex::new(None),
        }
    }

    /// Whether a write to bytes `start..end` may go on as far as the write-intent map is concerned. To be called with the
    /// stripes of the range locked.
    pub(crate) fn is_warm(&self, start: u64, end: u64) -> bool {
        let Some(intent) = &self.intent else { return true };
        let warm = intent.map().touch(start, end);
        if !warm && self.breaks.has(Break::WriteCold) {
            return intent.ask(start, end, None);
        }
        warm
    }

    /// Takes seqs and places for a write (`payload`) or zeroes of `len` bytes at `offset`. To be called behind the
    /// gate, with the stripes of the range locked.
    pub(crate) fn take(&self, offset: u64, len: u64, payload: bool) -> Taken<'_> {
        let mut taken = Taken { places: Few::new(), bytes: 0, dirty: false };
        while taken.bytes < len {
            let (at, rest) = (offset + taken.bytes, len - taken.bytes);
            let (kind, n) = if payload { (Kind::Write, rest.min(MAX_PAYLOAD as u64)) } else { (Kind::Zero, rest) };
            let payload_len = if payload { usize::try_from(n).unwrap_or(MAX_PAYLOAD) } else { 0 };
            match self.ring.reserve(kind, 0, at, n, payload_len) {
                Ok(place) => {
                    taken.places.push((place, at));
                    taken.bytes += n;
                }
                Err(ReserveError::Closed) if self.mark(at, rest) => {
                    taken.dirty = true;
                    break;
                }
                // It was reopened just now: try again.
                Err(ReserveError::Closed) => {}
                Err(ReserveError::Full) if self.breaks.has(Break::WaitWhenFull) => {
                    afterimage_base::world::sleep(std::time::Duration::from_millis(10));
                }
                Err(ReserveError::Full) => self.close("the ring is full: the appliance is away or behind"),
                Err(ReserveError::Invalid(what)) => self.close(what),
            }
        }
        taken
    }

    /// Marks the range as a dirty writer; false if the ring was open after all.
    fn mark(&self, offset: u64, len: u64) -> bool {
        self.dirty_writers.fetch_add(1, Ordering::SeqCst);
        if !self.ring.is_closed() {
            self.dirty_writers.fetch_sub(1, Ordering::SeqCst);
            return false;
        }
        if !self.breaks.has(Break::NoMark) {
            self.map.mark(offset, len);
        }
        true
    }

    /// Closes the ring, if it is open, and tells the keeper why.
    pub(crate) fn close(&self, why: &str) {
        if !self.ring.is_closed() {
            let seq = self.ring.close(self.clock.wall());
            *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.to_owned());
            tracing::warn!("volume {}: dirty tracking begins at seq {seq}: {why}", self.name);
        }
        self.bell.ring();
    }

    /// Ends what [`take`](Self::take) began, once the disk has answered. The range is still claimed.
    pub(crate) fn settle(&self, claim: &Claim, seqs: impl Iterator<Item = u64>, result: &Result<(), BlockError>) {
        if let Err(e) = result
            && !self.breaks.has(Break::NoGapOnError)
        {
            self.map.mark(claim.start, claim.end - claim.start);
            self.close(&format!("the disk refused a write at byte {}: {e}", claim.start));
        }
        for seq in seqs {
            self.ring.mark_done(seq);
        }
    }

    /// A dirty writer has reached the disk and released its range.
    pub(crate) fn dirty_writer_left(&self) {
        self.dirty_writers.fetch_sub(1, Ordering::SeqCst);
        self.bell.ring();
    }

    pub(crate) fn dirty_writers(&self) -> u64 {
        self.dirty_writers.load(Ordering::SeqCst)
    }

    pub(crate) fn count(&self, bytes: u64) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.write_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn count_read(&self) {
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    /// Reads and writes of the guest so far.
    pub(crate) fn requests(&self) -> u64 {
        self.reads.load(Ordering::Relaxed).wrapping_add(self.writes.load(Ordering::Relaxed))
    }

    /// Writes and bytes counted.
    pub(crate) fn counted(&self) -> (u64, u64) {
        (self.writes.load(Ordering::Relaxed), self.write_bytes.load(Ordering::Relaxed))
    }

    pub(crate) fn reason(&self) -> Option<String> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_reason(&self, why: Option<String>) {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }
}

/// Wakes the keeper.
#[derive(Default)]
pub(crate) struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    pub(crate) fn ring(&self) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits until it was rung since the last wait, or for `timeout`.
    pub(crate) fn wait(&self, timeout: Duration) {
        let mut rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        if !*rung {
            rung = self.changed.wait_timeout(&self.rung, rung, timeout);
        }
        *rung = false;
    }
}
