//! Every version of every block: what a volume looked like at any seq.
//!
//! The history of a volume is a map from (grid block, seq) to [`Place`](afterimage_format::place::Place). The
//! newest records are in a memory table ([`memtable`]); it is frozen into an immutable layer ([`layer`]) when it is large
//! or when a point inside it is opened, and flushed to a file in the background. A read at a seq asks the layers
//! from the newest that begins before that seq; the first that knows a block wins, and what no layer knows is zero ([`view`]).
//! Layers of similar size are merged ([`compact`], [`policy`]), and merging drops what retention lets go ([`retention`]).
//!
//! | module | what |
//! |---|---|
//! | [`volume`] | [`VolumeHistory`]: the one owner of a volume's layers |
//! | [`view`] | the volume at one seq |
//! | [`base`] | what lies below the layers of a branch |
//! | [`diff`] | what differs between two views |
//! | [`timeline`] | from a wish (seq, time, latest) to a seq that is a valid image, or an error that says what is |
//! | [`retention`], [`thin`], [`preview`] | what is kept |
//! | [`memtable`], [`interval`] | the newest records |
//! | [`layer`], [`build`], [`cursor`], [`compact`], [`seal`], [`cache`] | layers: reading, writing, walking, merging |
//!
//! # Who may do what when
//! One thread appends (ingest). Any thread opens views and reads. At most one of flush, merge, relocation is
//! under way per volume: each returns a [`HistoryEdit`], the store puts its layers into the manifest, durably, and then
//! calls [`VolumeHistory::applied`]. If the manifest could not be written, the edit is dropped: the volume goes on with
//! what it had, and the new file is rubbish that the next start removes.

#[cfg(test)]
mod bulk_tests;
#[cfg(test)]
mod damage_tests;
#[cfg(test)]
pub(crate) mod model_tests;

pub mod base;
pub mod build;
pub mod cache;
pub mod compact;
pub mod cursor;
pub mod diff;
pub mod interval;
pub mod layer;
pub mod memtable;
pub mod policy;
pub mod preview;
pub mod retention;
pub mod seal;
pub mod thin;
pub mod timeline;
pub mod view;
pub mod volume;

use afterimage_format::codec::DecodeError;
use afterimage_format::place::Place;
use std::path::PathBuf;
use thiserror::Error;

pub use base::Base;
pub use cache::PageCache;
pub use retention::{Keep, Pace};
pub use view::View;
pub use volume::{HistoryConfig, HistoryEdit, VolumeHistory};

/// Blocks `block..block + count` have from `seq` on the places `place`, `place` + 1 slot, ... or are all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First grid block.
    pub block: u64,
    /// Number of blocks, not 0.
    pub count: u64,
    /// The record that wrote them.
    pub seq: u64,
    /// Place of the first.
    pub place: Place,
}

impl Run {
    /// The block behind the last.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.block + self.count
    }
}

/// The place `by` blocks further on in a run that is known to reach so far.
#[must_use]
pub(crate) fn shifted(place: Place, by: u64) -> Place {
    place.advance(by).unwrap_or(place)
}

/// Where the keys of layers come from.
pub trait LayerKeys: Send + Sync {
    /// The key of the layer with this random id: a keyed derivation from the vault key with a context of its own.
    fn layer_key(&self, id: &[u8; 16]) -> [u8; 32];
}

/// Why history could not do what was asked.
#[derive(Debug, Error)]
pub enum HistoryError {
    /// The system refused an operation on a file.
    #[error("{path}: cannot {what}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A layer's bytes are not what was written.
    #[error(
        "layer {layer} of seqs {}..={last_seq}, blocks {first_block}..{end_block}: {what}; \
         run `afterimage check` to see what it hits",
        after_seq + 1
    )]
    Damaged {
        /// File name of the layer.
        layer: String,
        /// The layer begins behind this seq.
        after_seq: u64,
        /// The layer ends with this seq.
        last_seq: u64,
        /// First block that the damaged part can hold.
        first_block: u64,
        /// The block behind the last that the damaged part can hold.
        end_block: u64,
        /// What is wrong.
        what: DamageKind,
    },
    /// The manifest's list of layers has a hole or an overlap.
    #[error("the layers in the manifest do not join: one ends at seq {ends}, the next begins behind seq {begins}")]
    Disjoint {
        /// Where one ends.
        ends: u64,
        /// Behind which seq the next begins.
        begins: u64,
    },
    /// Records were not in order.
    #[error("record {seq} cannot follow record {last} in the history")]
    Order {
        /// The record.
        seq: u64,
        /// The newest one known.
        last: u64,
    },
    /// A run is impossible.
    #[error("the run of {count} blocks from block {block} at seq {seq} is impossible")]
    Run {
        /// First block.
        block: u64,
        /// Number of blocks.
        count: u64,
        /// Its seq.
        seq: u64,
    },
    /// The seq is newer than all history.
    #[error("seq {seq} is not in the history yet: the newest is {newest}")]
    Future {
        /// The seq asked for.
        seq: u64,
        /// The newest there is.
        newest: u64,
    },
    /// The work was told to stop.
    #[error("stopped before the end")]
    Stopped,
    /// The volume is there no more.
    #[error("it has just been dropped")]
    Retired,
}

impl HistoryError {
    /// Whether the error passes when somebody makes room, as opposed to one that is final (I11).
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, HistoryError::Io { source, .. } if afterimage_base::crashsafe::is_full(source))
    }
}

/// What is wrong with a damaged layer.
#[derive(Debug, Error)]
pub enum DamageKind {
    /// The bytes cannot be read as what they are.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A seal is broken.
    #[error("the seal of page {0} does not hold: damaged, or another key")]
    Seal(u64),
    /// The file is not the one that the manifest names.
    #[error("the file is another layer than the manifest says")]
    Other,
    /// The file is shorter than the manifest says.
    #[error("the file has {found} bytes, the manifest says {expected}")]
    Length {
        /// Bytes of the file.
        found: u64,
        /// Bytes it should have.
        expected: u64,
    },
    /// The layer could not be opened at all.
    #[error("it cannot be opened ({0})")]
    Lost(String),
    /// Its content contradicts itself.
    #[error("the pages contradict the index at page {0}")]
    Index(u64),
}
