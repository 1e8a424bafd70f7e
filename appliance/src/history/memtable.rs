//! The newest records: appended by ingest, frozen into a layer.

use super::build::{LayerBuilder, MemorySink, Range};
use super::cache::PageCache;
use super::interval::{IntervalMap, Span};
use super::layer::Layer;
use super::{HistoryError, Run};
use afterimage_format::layer::LIMIT;
use afterimage_format::place::Place;
use std::sync::Arc;

impl Span for Place {
    fn shifted(self, by: u64) -> Self {
        super::shifted(self, by)
    }
}

/// Records that no layer holds yet, in seq order.
///
/// A run that changes nothing (a trim of what is zero already, data that lies there already) leaves no token. So the tokens
/// for a range never outnumber twice the versions of it that are not zero, however often the disk is trimmed as a whole.
#[derive(Debug)]
pub struct MemTable {
    newest: IntervalMap<Place>,
    runs: Vec<Run>,
    records: Vec<(u64, u64)>,
    after_seq: u64,
    last_time: u64,
}

impl MemTable {
    /// An empty table behind `after_seq`, whose time is `last_time`.
    #[must_use]
    pub fn new(after_seq: u64, last_time: u64) -> Self {
        Self { newest: IntervalMap::new(), runs: Vec::new(), records: Vec::new(), after_seq, last_time }
    }

    /// Appends records (seq, time) and the runs of those that write, both in seq order. A time less than the one
    /// before is raised to it.
    ///
    /// # Errors
    /// [`HistoryError::Order`] or [`HistoryError::Run`]; nothing is appended then.
    pub fn append(&mut self, records: &[(u64, u64)], runs: &[Run]) -> Result<(), HistoryError> {
        let mut last = self.last_seq();
        for &(seq, _) in records {
            if seq <= last || seq >= LIMIT {
                return Err(HistoryError::Order { seq, last });
            }
            last = seq;
        }
        let mut newest = self.last_seq() + 1;
        for run in runs {
            let Run { block, count, seq, place } = *run;
            if count == 0 || place.advance(count - 1).is_none() || block.checked_add(count).is_none_or(|e| e >= LIMIT) {
                return Err(HistoryError::Run { block, count, seq });
            }
            if seq < newest || seq > last {
                return Err(HistoryError::Order { seq, last: newest - 1 });
            }
            newest = seq;
        }
        for &(seq, time) in records {
            self.last_time = self.last_time.max(time.min(LIMIT - 1));
            self.records.push((seq, self.last_time));
        }
        for run in runs {
            self.append_run(*run);
        }
        Ok(())
    }

    fn append_run(&mut self, run: Run) {
        let first = self.runs.len();
        let runs = &mut self.runs;
        self.newest.pieces(run.block, run.end(), |start, end, now| {
            let place = super::shifted(run.place, start - run.block);
            if now == Some(place) {
                return;
            }
            match runs.get_mut(first..).and_then(<[Run]>::last_mut) {
                Some(last) if last.end() == start => last.count += end - start,
                _ => runs.push(Run { block: start, count: end - start, seq: run.seq, place }),
            }
        });
        if self.runs.len() > first {
            self.newest.set(run.block, run.end(), run.place);
        }
    }

    /// Seq of the newest record, or of the last before this table.
    #[must_use]
    pub fn last_seq(&self) -> u64 {
        self.records.last().map_or(self.after_seq, |r| r.0)
    }

    /// Time of the newest record.
    #[must_use]
    pub fn last_time(&self) -> u64 {
        self.last_time
    }

    /// Whether there is nothing to freeze.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Runs and records held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.runs.len() + self.records.len()
    }

    /// The records, oldest first.
    #[must_use]
    pub fn records(&self) -> &[(u64, u64)] {
        &self.records
    }

    /// The runs, oldest first.
    #[must_use]
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Calls `each` with (start, end, newest place) for `start..end`; what this table does not know is `None`.
    pub fn pieces(&self, start: u64, end: u64, each: impl FnMut(u64, u64, Option<Place>)) {
        self.newest.pieces(start, end, each);
    }

    /// The layer with everything in this table.
    ///
    /// # Errors
    /// None in practice: building in memory cannot fail.
    pub fn freeze(mut self, cache: &Arc<PageCache>) -> Result<Arc<Layer>, HistoryError> {
        let range = Range { after_seq: self.after_seq, last_seq: self.last_seq(), collapsed_to: 0 };
        let mut builder = LayerBuilder::new(MemorySink::default());
        // A stable sort: runs of a block stay in seq order.
        self.runs.sort_by_key(|r| r.block);
        sweep(&self.runs, |run| builder.push(run))?;
        builder.end_tokens()?;
        for (seq, time) in self.records {
            builder.record(seq, time)?;
        }
        builder.into_layer(range, cache)
    }
}

/// Splits runs sorted by block where they overlap, so that any two cover the same blocks or none in common, and
/// emits them sorted by (block, seq).
fn sweep(runs: &[Run], mut emit: impl FnMut(Run) -> Result<(), HistoryError>) -> Result<(), HistoryError> {
    let mut active: Vec<Run> = Vec::new();
    let (mut next, mut at) = (0, 0);
    while next < runs.len() || !active.is_empty() {
        if active.is_empty() {
            at = runs[next].block;
        }
        let sorted = active.len();
        while next < runs.len() && runs[next].block == at {
            active.push(runs[next]);
            next += 1;
        }
        if sorted > 0 && active.len() > sorted {
            active.sort_by_key(|r| r.seq);
        }
        let end = active.iter().map(Run::end).chain(runs.get(next).map(|r| r.block)).min().unwrap_or(at);
        let mut before = None;
        for run in &active {
            let place = super::shifted(run.place, at - run.block);
            if before != Some(place) {
                emit(Run { block: at, count: end - at, seq: run.seq, place })?;
            }
            before = Some(place);
        }
        active.retain(|r| r.end() > end);
        at = end;
    }
    Ok(())
}
