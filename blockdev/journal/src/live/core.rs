//! The ring's concurrent core: taking places, publishing, freeing, closing and opening again.
//!
//! # Words
//! - `head` (in this process only): where the next record goes, and the closed bit. Writers move it by
//!   compare-and-swap, so a seq and its pages are taken in one step or not at all.
//! - slots (mapped): a writer owns its slot and pages from the swap of the head until it stores the slot's seq
//!   word with `Release`. From then on they do not change, but for the DONE bits, until they are freed.
//! - `first`: the first seq held. `limit`: the point up to which writers may use the room again. Both are moved
//!   by [`Core::set_durable`] alone, `first` before `limit`: in between, readers that hold a [`Pin`] are let go.
//! - the tail in the header page (mapped): what `first` is after a kill. Two copies and a turn.
//!
//! # Order of stores, for a kill between any two
//! - publish: payload, header fields, seq. A slot without its seq is not there.
//! - free: the tail that is not in force, the turn, `first`, `limit`. Room is never used again before the file says
//!   that it is free.
//! - close: check, time, then the closed bit. A kill in between closes the ring a little early.
//! - reopen: the Gap in its slot, then the time of closing is taken out, then the head moves past the Gap and
//!   opens in one swap. A kill in between leaves a closed ring, or one whose last record is the Gap.

use super::sync::{AtomicU64, Memory, Mutex, Ordering, PoisonError};
use crate::error::{Closed, ReopenError, ReserveError};
use crate::head::{CLOSED, Point, Shape};
use afterimage_format::record::{HEADER_LEN, Kind, Record};
use afterimage_format::ring::{DONE, END_MASK, PAGE, RingHeader, Tail, word};

/// Words of a slot.
pub(crate) const SEQ: usize = 1;
const LEN: usize = 3;
const TIME: usize = 4;
const PLACE: usize = 6;
const DIGEST: usize = 7;

/// Keeps a word that many threads write away from its neighbours' cache lines.
#[repr(align(128))]
struct Apart<T>(T);

/// A deliberate break of the protocol, for the model checker's own test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(test), expect(dead_code, reason = "tests set it"))]
pub(crate) enum Fault {
    None,
    /// Seq and pages are taken in two steps.
    SplitHead,
    /// The closed bit is looked at only once, before the swap is tried.
    CloseSeenOnce,
    /// The seq word is stored before the other fields.
    PublishFirst,
    /// Records are freed whether the real disk has them or not.
    FreeUndone,
    /// Records are freed although somebody reads them.
    FreePinned,
    /// The ring is opened before the Gap has its place.
    OpenFirst,
}

/// A place in the ring that its holder alone may write to. Only [`Core::reserve`] makes one.
pub(crate) struct Claim {
    seq: u64,
    end: u64,
    pages: u64,
}

impl Claim {
    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }

    /// Number of the first data page, if there is one.
    pub(crate) fn first_page(&self, shape: Shape) -> u64 {
        (self.end - self.pages) % shape.pages
    }

    /// How many pages.
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }
}

/// While one exists, no room is given back to writers: what was published when it was made stays.
pub(crate) struct Pin<'a>(&'a AtomicU64);

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Where a ring stands when it is made or opened.
pub(crate) struct Start {
    pub(crate) tail: Tail,
    pub(crate) head: Point,
    /// Where the lap before the head's ended, if records of it are held; else anything up to there.
    pub(crate) lap_end: u64,
    pub(crate) closed: bool,
}

/// See the module.
pub(crate) struct Core {
    pub(crate) memory: Memory,
    pub(crate) header: RingHeader,
    shape: Shape,
    #[cfg(test)]
    pub(crate) fault: Fault,
    head: Apart<AtomicU64>,
    limit: Apart<[AtomicU64; 2]>,
    first: Apart<AtomicU64>,
    /// The greatest page counter at which a lap has ended, or would have if its writer had not lost the race for the head. Raised
    /// before the head goes into the next lap, so whoever sees the head there sees where the lap before ended.
    lap_end: Apart<AtomicU64>,
    pins: AtomicU64,
    /// Held to free; contains what is durable and the tail in force.
    freeing: Mutex<(u64, Tail)>,
    /// Held to close or reopen.
    switching: Mutex<()>,
}

impl Core {
    pub(crate) fn new(memory: Memory, header: RingHeader, start: &Start) -> Core {
        let tail = start.tail;
        let head = start.head.pack() | if start.closed { CLOSED } else { 0 };
        Core {
            memory,
            shape: Shape { slots: header.slots, pages: header.pages },
            header,
            #[cfg(test)]
            fault: Fault::None,
            head: Apart(AtomicU64::new(head)),
            limit: Apart([AtomicU64::new(tail.seq), AtomicU64::new(tail.pages)]),
            first: Apart(AtomicU64::new(tail.seq)),
            lap_end: Apart(AtomicU64::new(start.lap_end)),
            pins: AtomicU64::new(0),
            freeing: Mutex::new((0, tail)),
            switching: Mutex::new(()),
        }
    }

    #[cfg(test)]
    fn faulty(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "the test build looks at a field")]
    const fn faulty(&self, _: Fault) -> bool {
        false
    }

    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    fn slot(&self, seq: u64) -> &[AtomicU64; 8] {
        self.memory.slot(self.shape.slot(seq))
    }

    pub(crate) fn limit(&self) -> Point {
        let [seq, pages] = &self.limit.0;
        // Acquire: what was done with the freed room is over. A pair from two times is still a lower bound.
        let seq = seq.load(Ordering::Acquire);
        Point { seq, pages: pages.load(Ordering::Acquire) }
    }

    /// Limit, head as a point, and the head word, all of one time as far as seqs go.
    fn look(&self) -> (Point, Point, u64) {
        loop {
            // The limit first: a head loaded after it is not behind it.
            let limit = self.limit();
            let head = self.head.0.load(Ordering::Acquire);
            if self.limit.0[0].load(Ordering::Acquire) != limit.seq {
                continue;
            }
            let at = limit.expand(head);
            if at.seq - limit.seq > self.shape.slots {
                // `jump` has moved the limit and not yet the head: the ring is closed and empty.
                return (limit, Point { seq: limit.seq, ..at }, head);
            }
            return (limit, at, head);
        }
    }

    pub(crate) fn next(&self) -> Point {
        self.look().1
    }

    pub(crate) fn first(&self) -> u64 {
        self.first.0.load(Ordering::SeqCst)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.head.0.load(Ordering::Acquire) & CLOSED != 0
    }

    /// Takes the next seq and `pages` data pages.
    pub(crate) fn reserve(&self, pages: u64, marker: bool) -> Result<Claim, ReserveError> {
        if self.faulty(Fault::CloseSeenOnce) && self.is_closed() {
            return Err(ReserveError::Closed);
        }
        loop {
            let (limit, at, head) = self.look();
            if head & CLOSED != 0 && !self.faulty(Fault::CloseSeenOnce) {
                return Err(ReserveError::Closed);
            }
            let lap_end = self.lap_end.0.load(Ordering::Acquire);
            let end = if pages == 0 { Some(at.pages) } else { self.shape.place(limit.pages, at.pages, lap_end, pages) };
            let end = end.filter(|end| self.shape.has_room(limit, at, *end, self.ends_at(at, *end, pages), marker));
            let Some(end) = end else {
                // Something may have become done since the sender last freed, or been let go of by a reader.
                self.set_durable(0);
                if self.limit() == limit {
                    return Err(ReserveError::Full);
                }
                continue;
            };
            let next = Point { seq: at.seq + 1, pages: end }.pack() | (head & CLOSED);
            if self.faulty(Fault::SplitHead) {
                if self.head.0.compare_exchange(head, head + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    self.head.0.fetch_add((end - at.pages) << 32, Ordering::AcqRel);
                    return Ok(Claim { seq: at.seq, end, pages });
                }
                continue;
            }
            if self.head.0.compare_exchange_weak(head, next, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return Ok(Claim { seq: at.seq, end, pages });
            }
        }
    }

    /// Notes where a lap ends, if it does with the record that goes from `at` to `end`. Others may note earlier ends of the same lap,
    /// which a lost race has made obsolete: the true one is noted by the writer that gets the head into the next lap.
    fn ends_at(&self, at: Point, end: u64, pages: u64) -> u64 {
        self.shape.lap_end_with(at.pages, end, pages).map_or_else(
            || self.lap_end.0.load(Ordering::Acquire),
            |e| self.lap_end.0.fetch_max(e, Ordering::AcqRel).max(e),
        )
    }

    /// Data pages in use.
    pub(crate) fn used_pages(&self) -> u64 {
        let (limit, at, _) = self.look();
        self.shape.used(limit.pages, at.pages, self.lap_end.0.load(Ordering::Acquire))
    }

    /// Publishes the record of a claim whose payload is in place. `place` of `record` is set here; `done` says that
    /// the real disk need not have it.
    pub(crate) fn publish(&self, claim: &Claim, mut record: Record, done: bool) {
        record.seq = claim.seq;
        record.place = claim.end | if done { DONE } else { 0 };
        let words = to_words(&record.encode());
        let slot = self.slot(claim.seq);
        if self.faulty(Fault::PublishFirst) {
            slot[SEQ].store(claim.seq, Ordering::Release);
        }
        for (i, value) in words.iter().enumerate().filter(|(i, _)| *i != SEQ) {
            slot[i].store(*value, Ordering::Relaxed);
        }
        slot[SEQ].store(claim.seq, Ordering::Release);
    }

    /// Publishes a claim as nothing.
    pub(crate) fn publish_void(&self, claim: &Claim) {
        let time = self.time_before(claim.seq);
        self.publish(claim, marker(Kind::Void, 0, 0, time), true);
    }

    /// The time of the nearest earlier record that can still be seen, or 0.
    fn time_before(&self, seq: u64) -> u64 {
        let oldest = self.first().max(seq.saturating_sub(64));
        let time = |s: u64| {
            let slot = self.slot(s);
            (slot[SEQ].load(Ordering::Acquire) == s).then(|| slot[TIME].load(Ordering::Relaxed))
        };
        (oldest..seq).rev().find_map(time).unwrap_or(0)
    }

    /// Whether `seq` has been published (and perhaps freed since).
    pub(crate) fn is_published(&self, seq: u64) -> bool {
        seq < self.first() || self.slot(seq)[SEQ].load(Ordering::Acquire) == seq && seq < self.next().seq
    }

    /// Keeps what is held now.
    pub(crate) fn pin(&self) -> Pin<'_> {
        self.pins.fetch_add(1, Ordering::SeqCst);
        Pin(&self.pins)
    }

    /// The slot of `seq`, if that is published and not freed. It stays so while the pin lives.
    pub(crate) fn read(&self, seq: u64, _pin: &Pin<'_>) -> Option<[u64; 8]> {
        if seq < self.first() || !self.is_published(seq) {
            return None;
        }
        Some(std::array::from_fn(|i| self.slot(seq)[i].load(Ordering::Relaxed)))
    }

    /// The real disk has `seq`.
    pub(crate) fn mark_done(&self, seq: u64) {
        let place = &self.slot(seq)[PLACE];
        let mut was = place.load(Ordering::Acquire);
        // Asked again after the load: if the slot has been used again since, the swap fails, because the place of the
        // new record is another one.
        while self.slot(seq)[SEQ].load(Ordering::Acquire) == seq && was & !END_MASK != DONE {
            match place.compare_exchange_weak(was, was | DONE, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(now) => was = now,
            }
        }
    }

    /// Frees, in order, what is done and not after `seq` or an earlier `seq` given here.
    pub(crate) fn set_durable(&self, seq: u64) {
        let mut guard = self.freeing.lock().unwrap_or_else(PoisonError::into_inner);
        let (durable, tail) = &mut *guard;
        let end = self.next().seq;
        // What has not been given out yet cannot be durable, whatever a peer says.
        *durable = seq.min(end - 1).max(*durable);
        let before = tail.seq;
        while tail.seq <= *durable && tail.seq < end {
            let slot = self.slot(tail.seq);
            let published = slot[SEQ].load(Ordering::Acquire) == tail.seq;
            let place = slot[PLACE].load(Ordering::Acquire);
            if !published || (place & !END_MASK != DONE && !self.faulty(Fault::FreeUndone)) {
                break;
            }
            tail.pages = place & END_MASK;
            (tail.freed_seq, tail.freed_digest) = (tail.seq, slot[DIGEST].load(Ordering::Relaxed));
            tail.seq += 1;
        }
        // What was skipped in front of the first record that is held is free as well.
        let held_from = if tail.seq == end { self.next().pages } else { self.begin_of(tail.seq).unwrap_or(0) };
        let skipped = held_from > tail.pages && (tail.seq < end || self.next().seq == end);
        if skipped {
            tail.pages = held_from;
        }
        if tail.seq != before || skipped {
            self.store_tail(tail);
            self.first.0.store(tail.seq, Ordering::SeqCst);
        }
        self.release(tail);
    }

    /// The page counter at which a published record begins.
    fn begin_of(&self, seq: u64) -> Option<u64> {
        let slot = self.slot(seq);
        if slot[SEQ].load(Ordering::Acquire) != seq {
            return None;
        }
        let (head, len) = (slot[0].load(Ordering::Relaxed), slot[LEN].load(Ordering::Relaxed));
        let kind = Kind::from_u8(head.to_le_bytes()[4]).ok()?;
        let n = if matches!(kind, Kind::Write | Kind::Point) { len.div_ceil(PAGE) } else { 0 };
        (slot[PLACE].load(Ordering::Relaxed) & END_MASK).checked_sub(n)
    }

    /// Puts a tail into the header page: all of it, then in force.
    fn store_tail(&self, tail: &mut Tail) {
        tail.turn += 1;
        let at = word::TAILS[usize::from(tail.turn % 2 == 1)];
        for (i, value) in tail.encode(&self.header.ring).into_iter().enumerate() {
            self.memory.header(at + i).store(value, Ordering::Relaxed);
        }
        self.memory.header(word::TURN).store(tail.turn, Ordering::Release);
    }

    /// Lets writers use what is before `first`, unless somebody may still read it. A reader that comes after the
    /// look at `pins` sees the new `first`: pin, look at `first` there, store `first`, look at `pins` here, all in
    /// one total order.
    fn release(&self, tail: &Tail) -> bool {
        if self.pins.load(Ordering::SeqCst) != 0 && !self.faulty(Fault::FreePinned) {
            return false;
        }
        let [seq, pages] = &self.limit.0;
        pages.store(tail.pages, Ordering::Release);
        seq.store(tail.seq, Ordering::Release);
        true
    }

    /// Seq and digest of the record freed last.
    pub(crate) fn last_freed(&self) -> (u64, u64) {
        let guard = self.freeing.lock().unwrap_or_else(PoisonError::into_inner);
        (guard.1.freed_seq, guard.1.freed_digest)
    }

    /// The gap that goes on now.
    pub(crate) fn closed(&self) -> Option<Closed> {
        let _switching = self.switching.lock().unwrap_or_else(PoisonError::into_inner);
        let time = self.memory.header(word::CLOSED).load(Ordering::Relaxed);
        self.is_closed().then(|| Closed { seq: self.next().seq, time })
    }

    /// Closes the ring; returns the first seq of the gap.
    pub(crate) fn close(&self, time: u64) -> u64 {
        let _switching = self.switching.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_closed() {
            let time = time.max(1);
            self.memory.header(word::CLOSED_CHECK).store(self.header.closed_check(time), Ordering::Relaxed);
            self.memory.header(word::CLOSED).store(time, Ordering::Release);
            self.head.0.fetch_or(CLOSED, Ordering::AcqRel);
        }
        self.next().seq
    }

    /// Opens a closed ring, with a Gap of these flags and length as its first record. Returns the Gap's seq.
    pub(crate) fn reopen(&self, (flags, len): (u8, u64), time: u64, at_least: u64) -> Result<u64, ReopenError> {
        let _switching = self.switching.lock().unwrap_or_else(PoisonError::into_inner);
        let (limit, mut at, head) = self.look();
        if head & CLOSED == 0 {
            return Err(ReopenError::NotClosed);
        }
        if at_least > at.seq {
            self.jump(at, at_least)?;
            at.seq = at_least;
        } else if !self.shape.has_room(limit, at, at.pages, 0, true) {
            return Err(ReopenError::Full);
        }
        if self.faulty(Fault::OpenFirst) {
            self.head.0.store(at.pack(), Ordering::Release);
            let claim = self.reserve(0, true).map_err(|_| ReopenError::Full)?;
            self.publish(&claim, marker(Kind::Gap, flags, time, time), true);
            return Ok(claim.seq);
        }
        // A closed head moves for nobody else, so the slot is ours before the swap.
        let began = self.memory.header(word::CLOSED).load(Ordering::Relaxed);
        let claim = Claim { seq: at.seq, end: at.pages, pages: 0 };
        self.publish(&claim, Record { len, ..marker(Kind::Gap, flags, began, time) }, true);
        self.memory.header(word::CLOSED).store(0, Ordering::Release);
        self.head.0.store(Point { seq: at.seq + 1, ..at }.pack(), Ordering::Release);
        Ok(at.seq)
    }

    /// Moves an empty, closed ring to a higher seq.
    fn jump(&self, at: Point, to: u64) -> Result<(), ReopenError> {
        let mut guard = self.freeing.lock().unwrap_or_else(PoisonError::into_inner);
        let tail = &mut guard.1;
        if tail.seq != at.seq || !self.release(tail) {
            return Err(ReopenError::NotEmpty);
        }
        tail.seq = to;
        tail.pages = at.pages;
        self.store_tail(tail);
        self.first.0.store(to, Ordering::SeqCst);
        self.limit.0[1].store(tail.pages, Ordering::Release);
        self.limit.0[0].store(to, Ordering::Release);
        Ok(())
    }
}

/// A record without payload or range.
pub(crate) const fn marker(kind: Kind, flags: u8, offset: u64, time: u64) -> Record {
    Record { kind, flags, seq: 0, offset, len: 0, time, payload_hash: 0, place: 0 }
}

/// The eight words of a header.
pub(crate) fn to_words(bytes: &[u8; HEADER_LEN]) -> [u64; 8] {
    let mut words = [0; 8];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = chunk.try_into().map_or(0, u64::from_le_bytes);
    }
    words
}

/// The bytes of a header's words.
pub(crate) fn to_bytes(words: &[u64; 8]) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}
