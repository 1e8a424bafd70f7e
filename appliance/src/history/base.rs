//! What lies below the layers of a branch: its parent at the fork.
//!
//! A branch has layers for what was written to it. What they do not know is as in the parent at the fork, which is looked
//! up in the layers that the parent has at that time: so merging and moving in the parent need not know of its branches,
//! but for the seqs at which they begin ([`fork_seqs`](afterimage_format::manifest::Manifest::fork_seqs)). Locks are taken from the
//! branch to the parent. *Grounding* a branch writes what it sees of the parent into a layer of its own.

use super::build::{FileSink, LayerBuilder, Range};
use super::view::View;
use super::volume::{HistoryEdit, State, VolumeHistory};
use super::{HistoryError, Run};
use crate::store::IoOp;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A volume at a seq, as a branch of it sees it.
#[derive(Clone)]
pub struct Base {
    /// The history of the parent.
    pub parent: Arc<VolumeHistory>,
    /// The last seq that is the parent's.
    pub seq: u64,
}

impl std::fmt::Debug for Base {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Base(seq {})", self.seq)
    }
}

impl Base {
    /// The time of its newest record; 0 if that cannot be told.
    pub(super) fn time(&self) -> u64 {
        self.parent.record_at_seq(self.seq).ok().flatten().map_or(0, |r| r.1)
    }

    /// The newest record up to the fork for which `good` holds.
    pub(super) fn record_where(&self, good: &dyn Fn(u64, u64) -> bool) -> Result<Option<(u64, u64)>, HistoryError> {
        self.parent.record_where(&|seq, time| seq <= self.seq && good(seq, time))
    }

    fn put_below(&self, view: &mut View) -> Result<(), HistoryError> {
        let mut state = self.parent.state();
        if state.table.records().first().is_some_and(|r| r.0 <= self.seq) {
            self.parent.freeze(&mut state)?;
        }
        view.put_below(self.seq, &state.layers);
        state.base.as_ref().map_or(Ok(()), |base| base.put_below(view))
    }
}

impl View {
    /// The volume in `state`, whose memory table has nothing up to `seq`.
    pub(super) fn of(seq: u64, state: &State) -> Result<View, HistoryError> {
        let mut view = View::new(seq, &state.layers);
        if let Some(base) = &state.base {
            base.put_below(&mut view)?;
        }
        Ok(view)
    }
}

impl VolumeHistory {
    /// Writes what a branch sees of its parent to a layer, so that it needs the parent no more; `None` if it is no branch.
    /// What the layer refers to is held by a view, to be dropped when the edit is in force.
    ///
    /// # Errors
    /// [`HistoryError`]; nothing has changed then.
    pub(crate) fn ground(&self, stop: &AtomicBool) -> Result<Option<(HistoryEdit, Arc<View>)>, HistoryError> {
        let permit = self.permit.take();
        let Some(base) = self.state().base.clone() else { return Ok(None) };
        let view = self.view(base.seq)?;
        self.ask(IoOp::WriteLayer, "write a layer in")?;
        let mut builder = LayerBuilder::new(FileSink::create(&self.dir, &self.volume, &*self.config.keys)?);
        let end = view.layers().iter().map(|s| s.layer.meta().end_block).max().unwrap_or(0);
        let mut cursor = view.cursor(0, end)?;
        while let Some(run) = cursor.next_run()? {
            if stop.load(Ordering::Relaxed) {
                return Err(HistoryError::Stopped);
            }
            if !run.place.is_zero() {
                builder.push(Run { block: run.start, count: run.end - run.start, seq: base.seq, place: run.place })?;
            }
        }
        drop(cursor);
        builder.end_tokens()?;
        builder.record(base.seq, base.time())?;
        self.ask(IoOp::SyncLayer, "sync a layer in")?;
        let range = Range { after_seq: 0, last_seq: base.seq, collapsed_to: base.seq };
        let layer = builder.into_layer(range, &self.config.cache)?;
        Ok(Some((self.edit_of_ground(permit, layer), view)))
    }
}
