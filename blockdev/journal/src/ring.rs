//! The ring journal.

use crate::error::RingError;
use afterimage_format::record::{HEADER_LEN, Kind, Record};
use std::io;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use thiserror::Error;

/// Size of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingConfig {
    /// Bytes of the data area: a multiple of 4096, at least 4 MiB, less than 2^31 pages (8 TiB).
    pub bytes: u64,
}

/// Why no place was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ReserveError {
    /// No room: the appliance is behind. Close the ring and go to dirty tracking.
    #[error("the ring is full")]
    Full,
    /// The ring is closed: dirty tracking is on.
    #[error("the ring is closed")]
    Closed,
    /// The record asked for cannot exist (length does not fit kind, or is too long).
    #[error("impossible record: {0}")]
    Invalid(&'static str),
}

/// Why the ring stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ReopenError {
    /// Not even the reserve for markers has a slot left.
    #[error("the ring is full")]
    Full,
    /// A jump in seq was asked for while records are held.
    #[error("the ring still holds records, its seq cannot jump")]
    NotEmpty,
    /// The ring is open.
    #[error("the ring is not closed")]
    NotClosed,
}

/// A closed ring: its history has a gap that has not been recorded yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// First seq that the gap takes the place of.
    pub seq: u64,
    /// When it was closed, in nanoseconds since 1970.
    pub time: u64,
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
pub struct Ring {}

/// A place taken in the ring, not published yet. Dropped unpublished, it becomes a [`Kind::Void`].
pub struct Reservation<'a>(PhantomData<&'a mut [u8]>);

/// A published record. Hold it briefly: while one exists, no place is given back to writers.
pub struct RecordRef<'a> {
    /// The header, decoded.
    pub record: Record,
    /// The header as it goes on the wire, `place` zeroed.
    pub header: [u8; HEADER_LEN],
    /// The payload; empty for records without one.
    pub payload: &'a [u8],
}

impl Ring {
    /// Makes a new, empty ring with a new id at `path`, in place of any file there that nobody has open. The
    /// space is allocated now, so that a full disk is an error here. Mode 0600.
    ///
    /// # Errors
    /// [`RingError::Size`], [`RingError::InUse`], [`RingError::Io`].
    pub fn create(path: &Path, config: RingConfig, volume: [u8; 16], next_seq: u64) -> Result<Ring, RingError> {
        todo!()
    }

    /// Opens the ring at `path`, checks every record in it and repairs what dead writers left.
    ///
    /// # Errors
    /// As [`RingError`] says; the file is then as it was.
    pub fn open(path: &Path, volume: [u8; 16]) -> Result<(Ring, Recovered), RingError> {
        todo!()
    }

    /// Touches every page for writing, so that no guest write pays for the first touch. For a thread of its
    /// own; ends early when `stop` becomes true. Does nothing on kernels before 5.14.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn prefault(&self, stop: &AtomicBool) -> io::Result<()> {
        todo!()
    }

    /// Random id of this ring, new with every [`create`](Self::create).
    pub fn id(&self) -> [u8; 16] {
        todo!()
    }

    /// The volume it belongs to.
    pub fn volume(&self) -> [u8; 16] {
        todo!()
    }

    /// First seq held (the tail); equal to [`next`](Self::next) when the ring is empty.
    pub fn first(&self) -> u64 {
        todo!()
    }

    /// Next seq to be given out (the head).
    pub fn next(&self) -> u64 {
        todo!()
    }

    /// Whether it is closed.
    pub fn is_closed(&self) -> bool {
        todo!()
    }

    /// The gap that goes on now, if the ring is closed.
    pub fn closed(&self) -> Option<Closed> {
        todo!()
    }

    /// Bytes of the data area.
    pub fn capacity_bytes(&self) -> u64 {
        todo!()
    }

    /// Bytes of the data area that are taken (or the same share, if slots are scarcer than pages).
    pub fn used_bytes(&self) -> u64 {
        todo!()
    }

    /// Takes the next seq and the pages for `payload_len` bytes. Never waits.
    ///
    /// `len` is the record's own length field: equal to `payload_len` for Write and Point, bytes covered (with
    /// `payload_len` 0) for Zero, 0 for the rest. Markers may use a small reserve that data may not.
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
        todo!()
    }

    /// The record `seq`, if it is published and not freed.
    ///
    /// # Errors
    /// [`RingError::Damaged`] if somebody else wrote to the file: the ring is then useless from here on.
    pub fn record(&self, seq: u64) -> Result<Option<RecordRef<'_>>, RingError> {
        todo!()
    }

    /// Address and length of the payload of `seq`, which stays in place until the record is both done and
    /// durable. `None` if it is not held or has no payload.
    pub fn payload_ptr(&self, seq: u64) -> Option<(*const u8, usize)> {
        todo!()
    }

    /// The real disk has `seq`. Markers, voids and records with the SYNC flag are done from the start.
    pub fn mark_done(&self, seq: u64) {
        todo!()
    }

    /// The appliance has everything up to and including `seq` durably: frees what is also done, in order. What
    /// is not done yet, or is being looked at through a [`RecordRef`], is freed by a later call (`set_durable(0)`
    /// frees what can be). For the sender thread.
    pub fn set_durable(&self, seq: u64) {
        todo!()
    }

    /// Seq and digest of the record that was freed last: what the appliance must have if its history is this
    /// ring's. `(first - 1, 0)` if none ever was.
    pub fn last_freed(&self) -> (u64, u64) {
        todo!()
    }

    /// Closes the ring: no seq is given out any more. Returns the first seq of the gap, the same for every
    /// call until the ring is reopened.
    pub fn close(&self, time_ns: u64) -> u64 {
        todo!()
    }

    /// Opens a closed ring with a published [`Kind::Gap`] as its next record, in one step. Its `offset` is the
    /// time of [`close`](Self::close). The Gap's seq is the gap's first, or `at_least_seq` if that is greater.
    ///
    /// # Errors
    /// [`ReopenError`]; the ring then stays as it was.
    pub fn reopen(&self, flags: u8, time_ns: u64, at_least_seq: u64) -> Result<u64, ReopenError> {
        todo!()
    }

    /// Waits until `seq` is published, somebody calls [`wake_sender`](Self::wake_sender) after a publish
    /// or for another reason, or `timeout` passes. Returns whether `seq` is published. For the sender thread.
    pub fn wait_published(&self, seq: u64, timeout: Duration) -> bool {
        todo!()
    }

    /// Wakes the thread in [`wait_published`](Self::wait_published), if there is one. Cheap otherwise: writers call it
    /// once after a batch.
    pub fn wake_sender(&self) {
        todo!()
    }

    /// Makes everything durable and marks the ring as cleanly stopped. Nothing may be reserved or freed during
    /// or after this.
    ///
    /// # Errors
    /// A failed sync, which is final (I11): the ring is then not marked.
    pub fn mark_clean(&self) -> io::Result<()> {
        todo!()
    }
}

impl Reservation<'_> {
    /// The seq.
    pub fn seq(&self) -> u64 {
        todo!()
    }

    /// The place for the payload: page-aligned, exactly as long as asked for, with arbitrary content.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        todo!()
    }

    /// Address of the payload: stable until the record is both done and durable.
    pub fn payload_ptr(&self) -> *const u8 {
        todo!()
    }

    /// Publishes the record. Returns its seq. Call [`Ring::wake_sender`] after the last of a batch.
    pub fn publish(self, time_ns: u64) -> u64 {
        todo!()
    }
}
