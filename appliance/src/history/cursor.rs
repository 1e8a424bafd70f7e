//! Walking through a layer in order: all versions of every column (for merging), or the one version of every
//! column that a seq sees (for reading ranges).

use super::HistoryError;
use super::layer::{Layer, newest_in};
use afterimage_format::layer::page::{Column, Walker};
use afterimage_format::place::Place;
use std::collections::HashSet;
use std::sync::Arc;

/// A position in the token pages.
#[derive(Debug, Clone)]
struct Position {
    number: u64,
    page: Arc<[u8]>,
    walker: Walker,
}

impl Position {
    fn start(layer: &Layer, number: u64, keep: bool) -> Result<Self, HistoryError> {
        Ok(Self { number, page: layer.page(number, keep)?, walker: Walker::new() })
    }

    /// The next column's head, from the next page if this one is at its end.
    fn column(&mut self, layer: &Layer, keep: bool) -> Result<Option<Column>, HistoryError> {
        loop {
            let number = self.number;
            let read = self.walker.column(&self.page).map_err(|e| layer.damaged(number, e))?;
            if read.is_some() || number + 1 >= layer.token_pages() {
                return Ok(read);
            }
            *self = Self::start(layer, number + 1, keep)?;
        }
    }

    /// Whether the column just read goes on in the next page.
    fn goes_on(&self, layer: &Layer) -> bool {
        self.walker.at_end(&self.page) && layer.continued(self.number + 1)
    }
}

/// All versions of all columns of a layer, column by column. The versions of a column can be walked several times.
#[derive(Debug)]
pub(crate) struct ColumnCursor<'a> {
    layer: &'a Layer,
    at: Position,
    column: Column,
    /// First block not yet dealt with.
    pub(crate) from: u64,
    behind: Option<Position>,
}

impl<'a> ColumnCursor<'a> {
    /// At the first column, or `None` if the layer has none.
    pub(crate) fn new(layer: &'a Layer) -> Result<Option<Self>, HistoryError> {
        layer.sound()?;
        if layer.token_pages() == 0 {
            return Ok(None);
        }
        let mut at = Position::start(layer, 0, false)?;
        let column = at.column(layer, false)?;
        Ok(column.map(|column| Self { layer, at, column, from: column.block, behind: None }))
    }

    /// The block behind the column.
    pub(crate) fn end(&self) -> u64 {
        self.column.end()
    }

    /// The layer.
    pub(crate) fn layer(&self) -> &'a Layer {
        self.layer
    }

    /// Calls `each` with (seq, place of block `from`) for every version of the column, oldest first.
    pub(crate) fn each_version(
        &mut self,
        mut each: impl FnMut(u64, Place) -> Result<(), HistoryError>,
    ) -> Result<(), HistoryError> {
        let mut at = self.at.clone();
        let by = self.from - self.column.block;
        loop {
            while at.walker.left() > 0 {
                let (seq, place) = at.walker.version(&at.page).map_err(|e| self.layer.damaged(at.number, e))?;
                each(seq, super::shifted(place, by))?;
            }
            if !at.goes_on(self.layer) {
                self.behind = Some(at);
                return Ok(());
            }
            let number = at.number + 1;
            at = Position::start(self.layer, number, false)?;
            let same = at.column(self.layer, false)?.is_some_and(|c| c.block == self.column.block);
            if !same {
                return Err(self.layer.damaged(number, super::DamageKind::Index(number)));
            }
        }
    }

    /// Deals with the blocks before `to`; answers `false` when the layer is at its end.
    pub(crate) fn advance(&mut self, to: u64) -> Result<bool, HistoryError> {
        if to < self.end() {
            self.from = to;
            return Ok(true);
        }
        if self.behind.is_none() {
            self.each_version(|_, _| Ok(()))?;
        }
        if let Some(behind) = self.behind.take() {
            self.at = behind;
        }
        let Some(column) = self.at.column(self.layer, false)? else { return Ok(false) };
        (self.column, self.from) = (column, column.block);
        Ok(true)
    }
}

impl Layer {
    /// Calls `each` with (block, seq, place) for every block of every version that tokens place in these segments.
    ///
    /// # Errors
    /// [`HistoryError`] if a page cannot be read or is damaged.
    pub fn each_place(
        &self,
        segments: &HashSet<u32>,
        mut each: impl FnMut(u64, u64, Place),
    ) -> Result<(), HistoryError> {
        let Some(mut cursor) = ColumnCursor::new(self)? else { return Ok(()) };
        loop {
            let (from, end) = (cursor.from, cursor.end());
            cursor.each_version(|seq, place| {
                if !place.is_zero() && segments.contains(&place.segment()) {
                    let places = (0..end - from).map_while(|by| place.advance(by));
                    (from..).zip(places).for_each(|(block, place)| each(block, seq, place));
                }
                Ok(())
            })?;
            if !cursor.advance(end)? {
                return Ok(());
            }
        }
    }
}

/// Blocks that a layer knows at a seq.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) place: Place,
}

/// What a layer knows at a seq, in block order.
#[derive(Debug)]
pub(crate) struct SeqCursor<'a> {
    layer: &'a Layer,
    seq: u64,
    /// Only versions newer than this count.
    after: u64,
    at: Option<Position>,
    /// Whether no column has been read from the current page yet.
    fresh: bool,
    piece: Option<Piece>,
}

impl<'a> SeqCursor<'a> {
    /// What `layer` knows at `seq` from block `start` on.
    pub(crate) fn new(layer: &'a Layer, seq: u64, start: u64) -> Result<Self, HistoryError> {
        layer.sound()?;
        let mut cursor = Self { layer, seq, after: 0, at: None, fresh: true, piece: None };
        cursor.jump(start)?;
        Ok(cursor)
    }

    /// The columns that have a version in `(after, seq]`.
    pub(crate) fn changed(layer: &'a Layer, after: u64, seq: u64, start: u64) -> Result<Self, HistoryError> {
        layer.sound()?;
        let mut cursor = Self { layer, seq, after, at: None, fresh: true, piece: None };
        cursor.jump(start)?;
        Ok(cursor)
    }

    /// The piece that the cursor is at.
    pub(crate) fn piece(&self) -> Option<&Piece> {
        self.piece.as_ref()
    }

    /// Moves on until the piece ends behind `block`.
    pub(crate) fn seek(&mut self, block: u64) -> Result<(), HistoryError> {
        let Some(piece) = &self.piece else { return Ok(()) };
        if piece.end > block {
            return Ok(());
        }
        let number = self.at.as_ref().map_or(0, |at| at.number);
        if usize::try_from(number + 1).ok().and_then(|n| self.layer.fences().get(n)).is_some_and(|f| f.block <= block) {
            return self.jump(block);
        }
        while self.piece.as_ref().is_some_and(|p| p.end <= block) {
            self.step()?;
        }
        Ok(())
    }

    fn jump(&mut self, block: u64) -> Result<(), HistoryError> {
        self.piece = None;
        if self.layer.token_pages() == 0 || block >= self.layer.meta().end_block {
            self.at = None;
            return Ok(());
        }
        let number = self.layer.find(block, u64::MAX).unwrap_or(0);
        let mut at = Position::start(self.layer, number, true)?;
        let skipped = at.walker.skip_to(&at.page, block).map_err(|e| self.layer.damaged(number, e))?;
        self.at = Some(at);
        self.fresh = !skipped;
        self.step()?;
        while self.piece.as_ref().is_some_and(|p| p.end <= block) {
            self.step()?;
        }
        Ok(())
    }

    /// Goes to the next column of which a version is seen.
    fn step(&mut self) -> Result<(), HistoryError> {
        self.piece = None;
        let Some(mut at) = self.at.take() else { return Ok(()) };
        loop {
            let before = at.number;
            let Some(column) = at.column(self.layer, true)? else { return Ok(()) };
            let first = std::mem::take(&mut self.fresh) || at.number != before;
            let goes_in = first && self.layer.continued(at.number);
            let mut best = self.newest(&mut at, &column)?;
            let goes_on = at.goes_on(self.layer);
            if goes_in || goes_on {
                best = self.pick_spanning(column.block)?;
            }
            if goes_on {
                // The last page that begins with this column has its end, and what follows it.
                let last = self.layer.find(column.block, u64::MAX).unwrap_or(at.number);
                at = Position::start(self.layer, last.max(at.number + 1), true)?;
                if let Some(same) = at.column(self.layer, true)? {
                    self.newest(&mut at, &same)?;
                }
            }
            if let Some(place) = best {
                self.piece = Some(Piece { start: column.block, end: column.end(), place });
                self.at = Some(at);
                return Ok(());
            }
        }
    }

    fn newest(&self, at: &mut Position, column: &Column) -> Result<Option<Place>, HistoryError> {
        let read = if self.after == 0 {
            newest_in(&mut at.walker, &at.page, column, self.seq)
        } else {
            newest_between(&mut at.walker, &at.page, column, self.after, self.seq)
        };
        read.map_err(|e| self.layer.damaged(at.number, e))
    }

    fn pick_spanning(&self, block: u64) -> Result<Option<Place>, HistoryError> {
        let Some(number) = self.layer.find(block, self.seq) else { return Ok(None) };
        let mut at = Position::start(self.layer, number, true)?;
        loop {
            let Some(c) = at.column(self.layer, true)? else { return Ok(None) };
            if c.block > block {
                return Ok(None);
            }
            let best = self.newest(&mut at, &c)?;
            if c.block == block {
                return Ok(best);
            }
        }
    }
}

/// As [`newest_in`], of versions newer than `after` alone.
fn newest_between(
    walker: &mut Walker,
    page: &[u8],
    column: &Column,
    after: u64,
    seq: u64,
) -> Result<Option<Place>, afterimage_format::codec::DecodeError> {
    let mut best = None;
    for _ in 0..column.versions {
        let (s, place) = walker.version(page)?;
        if s > after && s <= seq {
            best = Some(place);
        }
    }
    Ok(best)
}
