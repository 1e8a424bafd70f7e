//! Receiving what agents send, until it is durable.
//!
//! A session is one agent's connection for one volume. Three stages, a thread each, with at most one batch between two of them:
//!
//! ```text
//! socket -> receive: check, cut into blocks -> dedupe: look up, plan frames -> write: append, commit, sync -> history, Ack
//!             |  hash (pool)                      |  compress, seal (pool)
//! ```
//!
//! Receiving, reducing and syncing overlap. Memory is bounded by the credit: what an agent may have sent and is not durable yet.
//! A batch is whatever has arrived when the stage behind is free, up to one longest message; so a single write is durable after one
//! sync, and a flood is written in large batches.
//!
//! | module | what |
//! |---|---|
//! | [`listen`] | accepting connections |
//! | [`secure`] | TLS, and who a peer is |
//! | [`session`] | handshake, receiving, keep-alive |
//! | `stages` | what comes behind receiving |
//! | [`batch`] | records cut into blocks |
//! | [`plan`] | the dedupe stage |
//! | [`pressure`] | when there is no time to reduce |
//! | [`write`] | the writing stage |
//! | [`compare`] | answering hash queries |
//! | [`failback`] | the disk of a fenced agent |
//! | [`replay`] | bringing volumes back at start |
//! | [`volume`] | what a volume is between sessions |
//! | [`progress`] | and how far it is |

pub mod batch;
pub mod compare;
pub mod failback;
pub mod listen;
pub mod plan;
pub mod pressure;
pub mod progress;
pub mod replay;
pub mod secure;
pub mod session;
pub(crate) mod stages;
pub mod volume;
pub mod write;

use self::pressure::Pressure;
use crate::history::HistoryError;
use crate::reduce::block::Fingerprinter;
use crate::reduce::index::DedupeIndex;
use crate::reduce::pool::Pool;
use crate::room::Room;
use crate::store::segment::SegmentWriter;
use crate::store::{IoHook, Store, StoreError};
use crate::vault::Vault;
use afterimage_base::world::channel::Sender;
use afterimage_base::world::sync::Condvar;
use afterimage_format::place::Place;
use afterimage_format::segment::Fingerprint;
use afterimage_format::wire::{Refuse, RefuseCode};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use thiserror::Error;

/// Buffers for frames that are kept for reuse: two large batches' worth.
const MAX_BUFFERS: usize = 128;

/// Why a session ended.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The peer went away or said goodbye.
    #[error("the agent closed the connection")]
    Gone,
    /// The connection failed or was silent for too long.
    #[error("connection: {0}")]
    Connection(String),
    /// The peer did not keep to the protocol.
    #[error("{0}")]
    Malformed(String),
    /// No version in common.
    #[error("{0}")]
    Version(String),
    /// The volume is not acceptable.
    #[error("{0}")]
    Volume(String),
    /// The records do not continue the history.
    #[error("{0}")]
    Continuity(String),
    /// No room: later.
    #[error("{0}")]
    Full(String),
    /// Final (I11).
    #[error("{0}")]
    Failed(String),
    /// The volume runs elsewhere.
    #[error("{0}")]
    Fenced(String),
    /// Another session took over, or the appliance stops.
    #[error("{0}")]
    Superseded(String),
}

impl SessionError {
    /// What the peer is told, if anything.
    #[must_use]
    pub fn refuse(&self) -> Option<Refuse> {
        let code = match self {
            SessionError::Gone | SessionError::Connection(_) => return None,
            SessionError::Malformed(_) => RefuseCode::Malformed,
            SessionError::Version(_) => RefuseCode::Version,
            SessionError::Volume(_) => RefuseCode::Volume,
            SessionError::Continuity(_) => RefuseCode::Continuity,
            SessionError::Full(_) => RefuseCode::Full,
            SessionError::Failed(_) => RefuseCode::Failed,
            SessionError::Fenced(_) => RefuseCode::Fenced,
            SessionError::Superseded(_) => RefuseCode::Superseded,
        };
        Some(Refuse { code, text: self.to_string() })
    }
}

impl From<HistoryError> for SessionError {
    fn from(e: HistoryError) -> Self {
        if e.is_full() { SessionError::Full(e.to_string()) } else { SessionError::Failed(e.to_string()) }
    }
}

/// What all sessions share.
pub struct Shared {
    /// The vault.
    pub vault: Arc<Vault>,
    /// Its blocks.
    pub store: Arc<Store>,
    /// The dedupe index.
    pub index: DedupeIndex,
    /// The threads that hash, compress and seal.
    pub pool: Pool,
    /// Makes fingerprints.
    pub fingerprinter: Fingerprinter,
    /// Batches between their first look-up and their history.
    pub flights: Arc<Flights>,
    /// A segment takes no more at this size.
    pub segment_size: u64,
    /// Data that an agent may have under way, in bytes.
    pub credit: u64,
    /// Asked before each operation on segments.
    pub hook: Option<IoHook>,
    /// Room on the vault's disk.
    pub room: Arc<Room>,
    /// Sessions that have no time to reduce.
    pub pressure: Pressure,
    sealer: Mutex<Option<Sender<SegmentWriter>>>,
    /// Sessions that are under way.
    pub sessions: AtomicUsize,
    next_segment: AtomicU32,
    buffers: Mutex<Vec<Vec<u8>>>,
    condemned: Mutex<BTreeSet<u32>>,
    claimed: Mutex<BTreeSet<u32>>,
    /// What has been written.
    pub counters: WriteCounters,
}

/// Bytes in segments, since the start.
#[derive(Debug)]
pub struct WriteCounters {
    /// By sessions.
    pub ingested: AtomicU64,
    /// By collection and ordering: what was there already.
    pub rewritten: AtomicU64,
    /// In segments that wait to be brought into order; `u64::MAX` while that is not known.
    pub unordered: AtomicU64,
}

impl Default for WriteCounters {
    fn default() -> Self {
        Self { ingested: AtomicU64::new(0), rewritten: AtomicU64::new(0), unordered: AtomicU64::new(u64::MAX) }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shared({:?})", self.vault)
    }
}

/// What [`Shared::new`] is made of.
#[derive(Debug)]
pub struct Parts {
    /// The vault.
    pub vault: Arc<Vault>,
    /// Its blocks.
    pub store: Arc<Store>,
    /// The dedupe index.
    pub index: DedupeIndex,
    /// The threads that hash, compress and seal.
    pub pool: Pool,
    /// Takes full segments and seals them.
    pub sealer: Sender<SegmentWriter>,
    /// Room on the vault's disk.
    pub room: Arc<Room>,
}

impl Shared {
    /// With the sizes of a configuration.
    #[must_use]
    pub fn new(parts: Parts, segment_size: u64, credit: u64, hook: Option<IoHook>) -> Self {
        let Parts { vault, store, index, pool, sealer, room } = parts;
        let fingerprinter = Fingerprinter::new(vault.key().dedupe_key());
        let next_segment = AtomicU32::new(vault.read(|m| m.next_segment));
        Self {
            vault,
            store,
            index,
            pool,
            fingerprinter,
            flights: Arc::default(),
            segment_size,
            credit,
            hook,
            room,
            pressure: Pressure::default(),
            sealer: Mutex::new(Some(sealer)),
            sessions: AtomicUsize::new(0),
            next_segment,
            buffers: Mutex::default(),
            condemned: Mutex::default(),
            claimed: Mutex::default(),
            counters: WriteCounters::default(),
        }
    }

    /// Has a segment sealed by and by. Everything in it is durable already.
    pub(crate) fn seal(&self, full: SegmentWriter) {
        let sealer = self.sealer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(sealer) = sealer {
            drop(sealer.send(full));
        }
    }

    /// Lets the sealer end when it has done its work.
    pub(crate) fn close_sealer(&self) {
        *self.sealer.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// A number for a segment. Numbers are not used again while the vault is open.
    pub(crate) fn next_segment(&self) -> Result<u32, StoreError> {
        let number = self.next_segment.fetch_add(1, Ordering::AcqRel);
        if number == 0 || number == u32::MAX {
            return Err(StoreError::Worker);
        }
        Ok(number)
    }

    /// A buffer for a frame.
    #[must_use]
    pub fn buffer(&self) -> Vec<u8> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    /// Gives buffers back.
    pub fn recycle(&self, used: impl Iterator<Item = Vec<u8>>) {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MAX_BUFFERS.saturating_sub(buffers.len());
        buffers.extend(used.take(room));
    }

    /// Takes the places of some segments out of the dedupe index, and waits until no batch that may have found one of them is under way:
    /// from then on, every reference to them is in some history. To be called before they are collected (I10).
    pub fn condemn(&self, segments: &BTreeSet<u32>) {
        // Noted first: the rebuilding of the index after a start puts nothing back.
        self.condemned.lock().unwrap_or_else(PoisonError::into_inner).extend(segments);
        self.index.remove_segments(|s| segments.contains(&s));
        self.flights.wait_for_earlier();
    }

    /// Forgets condemned segments that are gone: their numbers do not come back.
    pub(crate) fn condemned_are_gone<'a>(&self, gone: impl Iterator<Item = &'a u32>) {
        let mut condemned = self.condemned.lock().unwrap_or_else(PoisonError::into_inner);
        gone.for_each(|n| {
            condemned.remove(n);
        });
    }

    /// Keeps segments from rounds of collection until [`Shared::let_go`]: they are being copied, or are copies that nothing
    /// refers to yet.
    pub(crate) fn claim(&self, segments: impl IntoIterator<Item = u32>) {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner).extend(segments);
    }

    /// Ends all claims.
    pub(crate) fn let_go(&self) {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The segments that are claimed now.
    pub(crate) fn claimed(&self) -> BTreeSet<u32> {
        if afterimage_base::world::broken("order-unclaimed") {
            return BTreeSet::new();
        }
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What keeps the vault from taking anything: a failure that is final, or no room.
    pub(crate) fn obstacle(&self) -> Option<SessionError> {
        let failed = self.vault.failure().map(SessionError::Failed);
        failed.or_else(|| self.room.short().map(SessionError::Full))
    }

    /// Puts the blocks of a segment into the index where there is room for them, unless it is condemned.
    pub(crate) fn remember<'a>(&self, segment: u32, blocks: impl Iterator<Item = (&'a Fingerprint, Place)>) {
        let condemned = self.condemned.lock().unwrap_or_else(PoisonError::into_inner);
        if !condemned.contains(&segment) {
            blocks.for_each(|(print, place)| self.index.insert_older(print, place));
        }
    }

    /// Counts a session; the credit that each may have shrinks with their number.
    pub(crate) fn credit_now(&self) -> u64 {
        let sessions = self.sessions.load(Ordering::Relaxed).max(1) as u64;
        // All sessions together get 16 credits; each at least what one message of the largest size needs.
        (self.credit * 16 / sessions).clamp(self.credit.min(8 << 20), self.credit)
    }
}

/// Batches that have looked into the dedupe index and whose history is not there yet.
#[derive(Debug, Default)]
pub struct Flights {
    state: Mutex<(u64, BTreeSet<u64>)>,
    landed: Condvar,
}

/// One batch under way.
#[derive(Debug)]
pub struct Flight {
    flights: Arc<Flights>,
    number: u64,
}

impl Flights {
    /// Starts one, before its first look-up.
    pub fn start(self: &Arc<Self>) -> Flight {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 += 1;
        let number = state.0;
        state.1.insert(number);
        Flight { flights: Arc::clone(self), number }
    }

    /// Whether there are any.
    #[must_use]
    pub fn any(&self) -> bool {
        !self.state.lock().unwrap_or_else(PoisonError::into_inner).1.is_empty()
    }

    /// Waits for all that have started before this call.
    pub fn wait_for_earlier(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = state.0;
        while state.1.first().is_some_and(|oldest| *oldest <= newest) {
            state = self.landed.wait(&self.state, state);
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut state = self.flights.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.1.remove(&self.number);
        self.flights.landed.notify_all();
    }
}

#[cfg(test)]
#[path = "ingest_tests.rs"]
mod tests;
