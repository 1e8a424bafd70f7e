//! The ring journal of a volume: a file that keeps every write from before its acknowledgement until the real
//! disk and the appliance have it.
//!
//! The bytes of the file are in [`afterimage_format::ring`], the concurrent core and the order of its stores in
//! the `live` module. Every word of the header that changes in use is stored in an order that makes a kill
//! between any two stores harmless; the checks beside them are for damage.
//!
//! The file survives the death of the process, because the page cache has every store. It does not survive a
//! power cut, and does not pretend to: opened on another boot without a mark of a clean stop, it is refused
//! with [`RingError::OtherBoot`].
//!
//! # Use
//! Writers: [`reserve`](Ring::reserve), fill, [`publish`](Reservation::publish), write to the real disk from the
//! same memory, [`mark_done`](Ring::mark_done); [`wake_sender`](Ring::wake_sender) once after a batch. The
//! sender: [`wait_published`](Ring::wait_published), [`record`](Ring::record), [`set_durable`](Ring::set_durable).

use crate::error::{Closed, ReopenError, ReserveError, RingError};
use crate::file::{self, FileError, Locked, NewFile, doing, set_word};
use crate::head::{Point, Shape};
use crate::live::core::{Claim, Core, Pin, Start, to_bytes};
use crate::live::parker::Parker;
use crate::map::Map;
use crate::survey::pages_of;
use afterimage_base::world;
use afterimage_format::record::{
    FLAG_NOTE, FLAG_SIZED, FLAG_SYNC, HEADER_LEN, Kind, MAX_NAME, MAX_NOTE, MAX_PAYLOAD, MAX_VOLUME, Record,
};
use afterimage_format::ring::{END_MASK, FIXED_LEN, MAX_PAGES, PAGE, RingHeader, SLOT, Tail, word};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64;

#[path = "open.rs"]
mod open;

/// Least size of the data area: room for four of the longest records.
const MIN_BYTES: u64 = 4 << 20;
/// Least number of slots, so that trims, which take no pages, do not fill a small ring at once.
const MIN_SLOTS: u64 = 4096;

/// Size of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingConfig {
    /// Bytes of the data area: a multiple of 4096, at least 4 MiB, less than 2^31 pages (8 TiB).
    pub bytes: u64,
}

/// What was found in a ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// First seq held; equal to `next` if none is.
    pub first: u64,
    /// Next seq to be given out.
    pub next: u64,
    /// Published but perhaps not on the real disk, ascending: write them there in this order, then
    /// [`Ring::mark_done`]. Only data records.
    pub redo: Vec<u64>,
    /// Taken by writers that died before they published; now [`Kind::Void`].
    pub voided: Vec<u64>,
    /// The ring was closed when it was left, and still is.
    pub closed: Option<Closed>,
    /// The ring was left by a clean stop.
    pub clean: bool,
}

/// The ring journal of one volume. Shared through an `Arc`; every method may be called from any thread.
pub struct Ring {
    core: Core,
    parker: Parker,
    path: PathBuf,
    /// Open and locked for as long as the ring lives.
    _file: Locked,
}

/// A place taken in the ring, not published yet. Dropped unpublished, it becomes a [`Kind::Void`].
#[must_use]
pub struct Reservation<'a> {
    ring: &'a Ring,
    claim: Claim,
    record: Record,
    published: bool,
}

/// A published record. Hold it briefly: while one exists, no room is given back to writers.
pub struct RecordRef<'a> {
    /// The header, decoded.
    pub record: Record,
    /// The header as it goes on the wire, `place` zeroed.
    pub header: [u8; HEADER_LEN],
    payload: &'a [u8],
    _pin: Pin<'a>,
}

impl RecordRef<'_> {
    /// The payload; empty for records without one.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        self.payload
    }
}

fn file_error(path: &Path) -> impl Fn(FileError) -> RingError {
    let path = path.to_path_buf();
    move |e| match e {
        FileError::InUse => RingError::InUse { path: path.clone() },
        FileError::Io { doing, source } => RingError::Io { path: path.clone(), doing, source },
    }
}

impl Ring {
    /// Makes a new, empty ring with a new id at `path`, in place of any file there that nobody has open. The
    /// space is allocated now, so that a full disk is an error here. Mode 0600. The first seq is `next_seq`.
    ///
    /// # Errors
    /// [`RingError::Size`], [`RingError::InUse`], [`RingError::Io`].
    pub fn create(path: &Path, config: RingConfig, volume: [u8; 16], next_seq: u64) -> Result<Ring, RingError> {
        let RingConfig { bytes } = config;
        let pages = bytes / PAGE;
        // Small rings fill often, as a simulation wants it.
        let least = if world::simulated().is_some() { PAGE } else { MIN_BYTES };
        if !bytes.is_multiple_of(PAGE) || bytes < least || pages >= MAX_PAGES {
            return Err(RingError::Size { bytes });
        }
        // A record with data takes at least a page, so with as many slots as pages the pages run out first.
        let slots = pages.next_power_of_two().max(if least == MIN_BYTES { MIN_SLOTS } else { 64 });
        Ring::create_sized(path, slots, pages, volume, next_seq).map_err(file_error(path))
    }

    fn create_sized(path: &Path, slots: u64, pages: u64, volume: [u8; 16], next: u64) -> Result<Ring, FileError> {
        let ring = world::random_array().map_err(doing("get random bytes"))?;
        let header = RingHeader { volume, ring, slots, pages };
        let next = next.max(1);
        let tail = Tail { turn: 0, seq: next, pages: 0, freed_seq: next - 1, freed_digest: 0 };
        let boot = file::boot_id()?;
        let mut page = [0; 4096];
        page[..FIXED_LEN].copy_from_slice(&header.encode());
        set_word(&mut page, word::BOOT, boot[0]);
        set_word(&mut page, word::BOOT + 1, boot[1]);
        set_word(&mut page, word::BOOT_CHECK, header.boot_check(boot));
        for (i, value) in tail.encode(&ring).into_iter().enumerate() {
            set_word(&mut page, word::TAILS[0] + i, value);
        }
        let new = NewFile::begin(path, header.file_len())?;
        new.file().write_all_at(&page, 0).map_err(doing("write its header"))?;
        let memory = Map::new(new.file(), header.file_len(), header.data_at()).map_err(doing("map it"))?;
        let file = new.finish()?;
        let start = Start { tail, head: Point { seq: next, pages: 0 }, lap_end: 0, closed: false };
        Ok(Ring::on(path, file, Core::new(memory, header, &start)))
    }

    fn on(path: &Path, file: Locked, core: Core) -> Ring {
        Ring { core, parker: Parker::default(), path: path.to_path_buf(), _file: file }
    }

    /// Touches every page for writing, so that no guest write pays for the first touch. For a thread of its
    /// own; ends early when `stop` becomes true. Does nothing on kernels before 5.14.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn prefault(&self, stop: &AtomicBool) -> io::Result<()> {
        self.core.memory.prefault(stop)
    }

    /// Random id of this ring, new with every [`create`](Self::create).
    #[must_use]
    pub fn id(&self) -> [u8; 16] {
        self.core.header.ring
    }

    /// The volume it belongs to.
    #[must_use]
    pub fn volume(&self) -> [u8; 16] {
        self.core.header.volume
    }

    /// First seq held (the tail); equal to [`next`](Self::next) when the ring is empty.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.core.first()
    }

    /// Next seq to be given out (the head).
    #[must_use]
    pub fn next(&self) -> u64 {
        self.core.next().seq
    }

    /// Whether it is closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.core.is_closed()
    }

    /// The gap that goes on now, if the ring is closed.
    #[must_use]
    pub fn closed(&self) -> Option<Closed> {
        self.core.closed()
    }

    /// Bytes of the data area.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        self.core.shape().pages * PAGE
    }

    /// Bytes of the data area that are taken (or the same share, if slots are scarcer than pages).
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        let Shape { slots, pages } = self.core.shape();
        let (limit, at) = (self.core.limit(), self.core.next());
        let by_slots = at.seq.saturating_sub(limit.seq).min(slots) * pages / slots;
        self.core.used_pages().max(by_slots) * PAGE
    }

    /// Takes the next seq and the pages for `payload_len` bytes. Never waits.
    ///
    /// `len` is the record's own length field: equal to `payload_len` for Write and Point, bytes covered (with
    /// `payload_len` 0) for Zero, the size of the volume for Resize, 0 for the rest. Markers may use a small reserve that data may not.
    ///
    /// # Errors
    /// [`ReserveError`].
    pub fn reserve(
        &self,
        kind: Kind,
        flags: u8,
        offset: u64,
        len: u64,
        payload_len: usize,
    ) -> Result<Reservation<'_>, ReserveError> {
        let (longest, carried) = match kind {
            Kind::Write => (MAX_PAYLOAD as u64, len),
            Kind::Point if flags & FLAG_NOTE != 0 => (MAX_NOTE as u64, len),
            Kind::Point => (MAX_NAME as u64, len),
            Kind::Zero => (u64::MAX, 0),
            Kind::Resize => (MAX_VOLUME, 0),
            Kind::Gap | Kind::SyncEnd | Kind::Void => (0, 0),
        };
        if len > longest || payload_len as u64 != carried {
            return Err(ReserveError::Invalid("its length does not fit its kind"));
        }
        if offset.checked_add(len).is_none() {
            return Err(ReserveError::Invalid("its range does not fit 64 bits"));
        }
        let claim = self.core.reserve(carried.div_ceil(PAGE), !matches!(kind, Kind::Write | Kind::Zero))?;
        let record = Record { kind, flags, seq: claim.seq(), offset, len, time: 0, payload_hash: 0, place: 0 };
        Ok(Reservation { ring: self, claim, record, published: false })
    }

    /// The record `seq`, if it is published and not freed.
    ///
    /// # Errors
    /// [`RingError::Damaged`] if somebody else wrote to the file: the ring is then useless from here on.
    pub fn record(&self, seq: u64) -> Result<Option<RecordRef<'_>>, RingError> {
        let pin = self.core.pin();
        let Some(mut words) = self.core.read(seq, &pin) else {
            return Ok(None);
        };
        let shape = self.core.shape();
        let offset = PAGE + shape.slot(seq) * SLOT;
        let damaged = |what| RingError::Damaged { path: self.path.clone(), seq, what, offset };
        let record = Record::decode(&to_bytes(&words)).map_err(|_| damaged("header"))?;
        words[6] = 0;
        let header = to_bytes(&words);
        let page = first_page(&record, shape).ok_or_else(|| damaged("place"))?;
        let payload = match record.payload_len() {
            0 => &[][..],
            len => self.core.memory.payload(&pin, page, len),
        };
        Ok(Some(RecordRef { record, header, payload, _pin: pin }))
    }

    /// Address and length of the payload of `seq`, which stays in place until the record is both done and
    /// durable. `None` if it is not held or has no payload.
    #[must_use]
    pub fn payload_ptr(&self, seq: u64) -> Option<(*const u8, usize)> {
        let found = self.record(seq).ok()??;
        (!found.payload.is_empty()).then_some((found.payload.as_ptr(), found.payload.len()))
    }

    /// The real disk has `seq`. Markers, voids and records with the SYNC flag (their data came from the disk)
    /// are done from the start. Once per record, by the one that wrote it.
    pub fn mark_done(&self, seq: u64) {
        self.core.mark_done(seq);
    }

    /// The appliance has everything up to and including `seq` durably: frees what is also done, in order. What
    /// is not done yet, or is being looked at through a [`RecordRef`], is freed by a later call (`set_durable(0)`
    /// frees what can be), or by a [`reserve`](Self::reserve) that finds no room.
    pub fn set_durable(&self, seq: u64) {
        self.core.set_durable(seq);
    }

    /// Seq and digest of the record that was freed last: what the appliance must have if its history is this
    /// ring's. `(first seq of the ring - 1, 0)` if none ever was.
    #[must_use]
    pub fn last_freed(&self) -> (u64, u64) {
        self.core.last_freed()
    }

    /// Closes the ring: no seq is given out any more. Returns the first seq of the gap, the same for every
    /// call until the ring is reopened. `time_ns` (since 1970) counts in the call that closes.
    pub fn close(&self, time_ns: u64) -> u64 {
        self.core.close(time_ns)
    }

    /// Opens a closed ring with a published [`Kind::Gap`] as its next record, in one step. The Gap's `offset` is
    /// the time of [`close`](Self::close), its seq the gap's first, or `at_least_seq` if that is greater. With `size`
    /// it says how large the volume is from there on.
    ///
    /// # Errors
    /// [`ReopenError`]; the ring then stays as it was.
    pub fn reopen(&self, flags: u8, time_ns: u64, at_least_seq: u64, size: Option<u64>) -> Result<u64, ReopenError> {
        let sized = if size.is_some() { FLAG_SIZED } else { 0 };
        self.core.reopen((flags | sized, size.unwrap_or(0)), time_ns, at_least_seq)
    }

    /// Waits until `seq` is published, somebody calls [`wake_sender`](Self::wake_sender) for any reason, or
    /// `timeout` passes. Returns whether `seq` is published. For the sender thread alone.
    pub fn wait_published(&self, seq: u64, timeout: Duration) -> bool {
        if self.core.is_published(seq) {
            return true;
        }
        self.parker.sleep_unless(timeout, || self.core.is_published(seq));
        self.core.is_published(seq)
    }

    /// Wakes the thread in [`wait_published`](Self::wait_published), if there is one. Otherwise costs a fence and a
    /// load: writers call it once after a batch.
    pub fn wake_sender(&self) {
        self.parker.wake();
    }

    /// Makes everything durable and marks the ring as cleanly stopped. Nothing may be reserved or freed during
    /// or after this.
    ///
    /// # Errors
    /// A failed sync, which is final (I11): the ring is then not marked.
    pub fn mark_clean(&self) -> io::Result<()> {
        let memory = &self.core.memory;
        memory.sync()?;
        let mark = self.core.header.clean_mark(self.first(), self.next());
        memory.header(word::CLEAN).store(mark, Ordering::Release);
        memory.sync_header()
    }
}

/// The first data page of a record's payload (0 without one), if its place is possible.
fn first_page(record: &Record, shape: Shape) -> Option<u64> {
    let n = pages_of(record);
    let page = (record.place & END_MASK).checked_sub(n)? % shape.pages;
    (page + n <= shape.pages).then_some(page)
}

impl Reservation<'_> {
    /// The seq.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.claim.seq()
    }

    /// The place for the payload: page-aligned, exactly as long as asked for, with arbitrary content.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        let core = &self.ring.core;
        let page = self.claim.first_page(core.shape());
        core.memory.payload_mut(&mut self.claim, page, self.record.payload_len())
    }

    /// Address of the payload: stable until the record is both done and durable.
    #[must_use]
    pub fn payload_ptr(&self) -> *const u8 {
        let core = &self.ring.core;
        core.memory.address(self.claim.first_page(core.shape()), self.record.payload_len())
    }

    /// Publishes the record with its label in time. Returns its seq. Call [`Ring::wake_sender`] after the last
    /// of a batch.
    pub fn publish(mut self, time_ns: u64) -> u64 {
        self.record.time = time_ns;
        self.record.payload_hash = if self.record.payload_len() > 0 { xxh3_64(self.payload_mut()) } else { 0 };
        let done = !matches!(self.record.kind, Kind::Write | Kind::Zero) || self.record.flags & FLAG_SYNC != 0;
        self.ring.core.publish(&self.claim, self.record, done);
        self.published = true;
        self.claim.seq()
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.published {
            self.ring.core.publish_void(&self.claim);
            self.ring.wake_sender();
        }
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "damage_tests.rs"]
mod damage_tests;
