//! Merging adjacent layers into one, dropping what retention lets go, and moving places.
//!
//! The layers are walked side by side. Where their columns overlap they are split, and the versions of every piece
//! are emitted from the oldest layer to the newest, which is seq order. Memory does not depend on their size.

use super::build::{LayerBuilder, PageSink};
use super::cursor::ColumnCursor;
use super::layer::Layer;
use super::retention::Keep;
use super::{HistoryError, Run};
use afterimage_format::place::Place;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where collection has copied blocks.
#[derive(Debug, Clone, Default)]
pub struct Relocation {
    moved: Vec<(Place, Place)>,
    segments: HashSet<u32>,
}

impl Relocation {
    /// From pairs of (old place, new place).
    #[must_use]
    pub fn new(mut moved: Vec<(Place, Place)>) -> Self {
        moved.sort_unstable();
        let segments = moved.iter().map(|m| m.0.segment()).collect();
        Self { moved, segments }
    }

    /// Where the block at `place` is now.
    #[must_use]
    pub fn get(&self, place: Place) -> Place {
        let found = self.moved.binary_search_by_key(&place, |m| m.0);
        found.map_or(place, |at| self.moved[at].1)
    }

    /// Whether any block of `layer` has moved.
    #[must_use]
    pub fn touches(&self, layer: &Layer) -> bool {
        layer.segments().iter().any(|s| self.segments.contains(&s.0))
    }
}

/// What to do with the versions on their way.
#[derive(Debug)]
pub(crate) struct Rules<'a> {
    /// What stays readable.
    pub(crate) keep: &'a Keep,
    /// Blocks that have moved.
    pub(crate) moved: Option<&'a Relocation>,
    /// Whether the oldest layer of the volume is among the inputs: what is zero there need not be said.
    pub(crate) bottom: bool,
    /// Set to end the work.
    pub(crate) stop: &'a AtomicBool,
}

/// Merges `inputs` (adjacent, oldest first) into `out`.
pub(crate) fn merge<S: PageSink>(
    inputs: &[Arc<Layer>],
    rules: &Rules<'_>,
    out: &mut LayerBuilder<S>,
) -> Result<(), HistoryError> {
    let last_seq = inputs.last().map_or(0, |l| l.meta().last_seq);
    let mut heads: Vec<ColumnCursor<'_>> = Vec::with_capacity(inputs.len());
    for layer in inputs {
        heads.extend(ColumnCursor::new(layer)?);
    }
    while let Some(at) = heads.iter().map(|h| h.from).min() {
        if rules.stop.load(Ordering::Relaxed) {
            return Err(HistoryError::Stopped);
        }
        let bound = |h: &ColumnCursor<'_>| if h.from > at { h.from } else { h.end() };
        let mut end = heads.iter().map(bound).min().unwrap_or(at);
        if let Some(moved) = rules.moved
            && end - at > 1
        {
            end = at + unbroken(&mut heads, moved, at, end - at)?;
        }
        emit(&mut heads, rules, out, Span { at, end, last_seq })?;
        let mut n = 0;
        while n < heads.len() {
            if heads[n].from > at || heads[n].advance(end)? {
                n += 1;
            } else {
                heads.remove(n);
            }
        }
    }
    out.end_tokens()?;
    for layer in inputs {
        copy_times(layer, rules, out)?;
    }
    Ok(())
}

/// How many blocks from `at` on stay neighbours in every version, at most `count`.
fn unbroken(heads: &mut [ColumnCursor<'_>], moved: &Relocation, at: u64, mut count: u64) -> Result<u64, HistoryError> {
    for head in heads.iter_mut().filter(|h| h.from == at && moved.touches(h.layer())) {
        head.each_version(|_, place| {
            if !place.is_zero() && moved.segments.contains(&place.segment()) {
                let first = moved.get(place);
                let joined = |n: &u64| {
                    let n = *n;
                    place.advance(n).map(|p| moved.get(p)) == first.advance(n) && first.advance(n).is_some()
                };
                count = 1 + (1..count).take_while(joined).count() as u64;
            }
            Ok(())
        })?;
    }
    Ok(count)
}

#[derive(Clone, Copy)]
struct Span {
    at: u64,
    end: u64,
    last_seq: u64,
}

/// Emits the versions of the blocks of `span` that are seen at a kept seq and differ from the one before.
fn emit<S: PageSink>(
    heads: &mut [ColumnCursor<'_>],
    rules: &Rules<'_>,
    out: &mut LayerBuilder<S>,
    span: Span,
) -> Result<(), HistoryError> {
    let mut before = rules.bottom.then_some(Place::ZERO);
    let mut pending: Option<(u64, Place)> = None;
    let mut settle = |version: Option<(u64, Place)>, next: u64| {
        let Some((seq, place)) = version else { return Ok(()) };
        if !rules.keep.sees(seq, next) || before == Some(place) {
            return Ok(());
        }
        before = Some(place);
        let seq = rules.keep.first_from(seq).min(span.last_seq);
        out.push(Run { block: span.at, count: span.end - span.at, seq, place })
    };
    for head in heads.iter_mut().filter(|h| h.from == span.at) {
        head.each_version(|seq, place| {
            let place = rules.moved.map_or(place, |m| m.get(place));
            settle(pending.replace((seq, place)), seq)
        })?;
    }
    settle(pending, u64::MAX)
}

fn copy_times<S: PageSink>(layer: &Layer, rules: &Rules<'_>, out: &mut LayerBuilder<S>) -> Result<(), HistoryError> {
    for page in 0..layer.time_pages() {
        if rules.stop.load(Ordering::Relaxed) {
            return Err(HistoryError::Stopped);
        }
        let mut result = Ok(());
        layer.walk_times(page, false, |seq, time| {
            if rules.keep.keeps(seq) {
                result = out.record(seq, time);
            }
            result.is_ok()
        })?;
        result?;
    }
    Ok(())
}
