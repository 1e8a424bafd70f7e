//! A volume at one seq.
//!
//! A view holds its layers: what it can see stays readable, and stays referenced for collection, until it is
//! dropped, whatever is merged, moved or flushed in the meantime (I10).

use super::HistoryError;
use super::cache::PageCache;
use super::cursor::{Piece, SeqCursor};
use super::layer::Layer;
use afterimage_format::place::Place;
use std::sync::Arc;

/// A layer, and the newest seq in it that counts: what a branch sees of its parent ends at the fork.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) layer: Arc<Layer>,
    pub(crate) upto: u64,
}

/// A volume at one seq.
#[derive(Debug)]
pub struct View {
    seq: u64,
    /// Newest first.
    layers: Vec<Seen>,
}

/// Blocks `start..end` have the places `place`, `place` + 1 slot, ... or are all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// First block.
    pub start: u64,
    /// The block behind the last.
    pub end: u64,
    /// Place of the first.
    pub place: Place,
}

impl View {
    /// A view at `seq` of `layers` (oldest first), of which those that begin at or behind it are left out.
    #[must_use]
    pub(crate) fn new(seq: u64, layers: &[Arc<Layer>]) -> Self {
        let mut view = Self { seq, layers: Vec::with_capacity(layers.len()) };
        view.put_below(seq, layers);
        view
    }

    /// Puts what `layers` (oldest first) know at `upto` below everything that is there.
    pub(crate) fn put_below(&mut self, upto: u64, layers: &[Arc<Layer>]) {
        let seen = layers.iter().rev().filter(|l| l.meta().after_seq < upto && l.meta().tokens > 0);
        self.layers.extend(seen.map(|layer| Seen { layer: Arc::clone(layer), upto }));
    }

    /// The seq.
    #[must_use]
    pub const fn seq(&self) -> u64 {
        self.seq
    }

    /// The layers that it reads, newest first.
    #[must_use]
    pub(crate) fn layers(&self) -> &[Seen] {
        &self.layers
    }

    /// The cache that its layers share.
    #[must_use]
    pub(crate) fn page_cache(&self) -> Option<&Arc<PageCache>> {
        self.layers.first().map(|seen| seen.layer.page_cache())
    }

    /// The place of one block.
    ///
    /// # Errors
    /// [`HistoryError`] if a layer cannot be read or is damaged.
    pub fn lookup(&self, block: u64) -> Result<Place, HistoryError> {
        for Seen { layer, upto } in &self.layers {
            if let Some(place) = layer.lookup(block, *upto)? {
                return Ok(place);
            }
        }
        Ok(Place::ZERO)
    }

    /// Appends the places of `count` blocks from `block` on as runs of (number of blocks, place of the first).
    ///
    /// # Errors
    /// [`HistoryError`] if a layer cannot be read or is damaged.
    pub fn resolve(&self, block: u64, count: u64, out: &mut Vec<(u64, Place)>) -> Result<(), HistoryError> {
        if count == 1 {
            out.push((1, self.lookup(block)?));
            return Ok(());
        }
        let mut cursor = self.cursor(block, block.saturating_add(count))?;
        while let Some(p) = cursor.next_run()? {
            out.push((p.end - p.start, p.place));
        }
        Ok(())
    }

    /// Walks through the places of `start..end` without holding them.
    ///
    /// # Errors
    /// [`HistoryError`] if a layer cannot be read or is damaged.
    pub fn cursor(&self, start: u64, end: u64) -> Result<ViewCursor<'_>, HistoryError> {
        let overlaps = |s: &&Seen| s.layer.meta().first_block < end && s.layer.meta().end_block > start;
        let cursors = self.layers.iter().filter(overlaps).map(|s| SeqCursor::new(&s.layer, s.upto, start));
        Ok(ViewCursor { cursors: cursors.collect::<Result<_, _>>()?, at: start, end })
    }
}

/// The places of a range in block order; see [`View::cursor`].
#[derive(Debug)]
pub struct ViewCursor<'a> {
    /// Newest first.
    cursors: Vec<SeqCursor<'a>>,
    at: u64,
    end: u64,
}

impl ViewCursor<'_> {
    /// The next run, as long as it can be said at once; `None` at the end of the range. Costs a step in each
    /// layer at most, however large the range.
    ///
    /// # Errors
    /// [`HistoryError`] if a layer cannot be read or is damaged.
    pub fn next_run(&mut self) -> Result<Option<Placed>, HistoryError> {
        let Some(first) = self.next_piece()? else { return Ok(None) };
        if !first.place.is_zero() {
            return Ok(Some(first));
        }
        let mut all = first;
        while self.at < self.end {
            let (end, known) = self.peek()?;
            if known.is_some_and(|p| !p.is_zero()) {
                break;
            }
            (all.end, self.at) = (end, end);
        }
        Ok(Some(all))
    }

    fn next_piece(&mut self) -> Result<Option<Placed>, HistoryError> {
        if self.at >= self.end {
            return Ok(None);
        }
        let start = self.at;
        let (end, known) = self.peek()?;
        self.at = end;
        Ok(Some(Placed { start, end, place: known.unwrap_or(Place::ZERO) }))
    }

    /// How far the answer for the current block reaches, and the answer.
    fn peek(&mut self) -> Result<(u64, Option<Place>), HistoryError> {
        let mut end = self.end;
        for cursor in &mut self.cursors {
            cursor.seek(self.at)?;
            match cursor.piece() {
                None => {}
                Some(Piece { start, .. }) if *start > self.at => end = end.min(*start),
                Some(p) => return Ok((end.min(p.end), Some(super::shifted(p.place, self.at - p.start)))),
            }
        }
        Ok((end, None))
    }
}
