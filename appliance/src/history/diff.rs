//! What differs between two views.
//!
//! Two views have a history in common up to some seq: of one volume the older of the two, of a volume and its branch the fork,
//! or the view of the volume if that is older. Only blocks of which a layer of either has a version behind that are looked
//! at, so the cost is that of what was written since and not that of the disk.

use super::HistoryError;
use super::cursor::SeqCursor;
use super::view::{Seen, View, ViewCursor};

/// Calls `each` with (first block, block behind the last) for every range of blocks below `blocks` that differs between the
/// two views, which have everything up to the seq `common` in common, in order and joined where they touch, until it
/// answers `false`. A block rewritten with the same content counts as changed only if it was stored again elsewhere.
///
/// # Errors
/// [`HistoryError`] if a layer cannot be read or is damaged.
pub fn changed(
    from: &View,
    to: &View,
    (common, blocks): (u64, u64),
    mut each: impl FnMut(u64, u64) -> bool,
) -> Result<(), HistoryError> {
    let mut candidates = Candidates::new(from, to, common)?;
    let mut pending: Option<(u64, u64)> = None;
    while let Some((start, end)) = candidates.next(blocks)? {
        let mut pair = Pair { a: from.cursor(start, end)?, b: to.cursor(start, end)? };
        let mut go_on = true;
        pair.differences(|s, e| match &mut pending {
            Some(p) if p.1 == s => p.1 = e,
            _ => {
                if let Some((s, e)) = pending.replace((s, e)) {
                    go_on = go_on && each(s, e);
                }
            }
        })?;
        if !go_on {
            return Ok(());
        }
    }
    if let Some((s, e)) = pending {
        each(s, e);
    }
    Ok(())
}

/// Ranges that have a version since, joined while they touch.
struct Candidates<'a> {
    cursors: Vec<SeqCursor<'a>>,
    at: u64,
}

impl<'a> Candidates<'a> {
    fn new(a: &'a View, b: &'a View, common: u64) -> Result<Self, HistoryError> {
        let behind = |s: &&Seen| s.layer.meta().last_seq.min(s.upto) > common;
        let since = a.layers().iter().chain(b.layers()).filter(behind);
        let cursors = since.map(|s| SeqCursor::changed(&s.layer, common, s.upto, 0)).collect::<Result<_, _>>()?;
        Ok(Self { cursors, at: 0 })
    }

    fn next(&mut self, blocks: u64) -> Result<Option<(u64, u64)>, HistoryError> {
        let mut found: Option<(u64, u64)> = None;
        loop {
            let from = found.map_or(self.at, |f| f.1);
            let mut nearest: Option<(u64, u64)> = None;
            for cursor in &mut self.cursors {
                cursor.seek(from)?;
                if let Some(p) = cursor.piece() {
                    let piece = (p.start.max(from), p.end);
                    if nearest.is_none_or(|n| piece.0 < n.0) {
                        nearest = Some(piece);
                    }
                }
            }
            match (nearest.filter(|n| n.0 < blocks), &mut found) {
                (Some(n), None) => found = Some(n),
                (Some(n), Some(f)) if n.0 == f.1 => f.1 = n.1,
                (_, found) => {
                    self.at = found.map_or(blocks, |f| f.1);
                    return Ok(found.map(|f| (f.0, f.1.min(blocks))));
                }
            }
        }
    }
}

struct Pair<'a> {
    a: ViewCursor<'a>,
    b: ViewCursor<'a>,
}

impl Pair<'_> {
    /// Calls `each` with the parts of the range where the two differ.
    fn differences(&mut self, mut each: impl FnMut(u64, u64)) -> Result<(), HistoryError> {
        let (mut a, mut b) = (self.a.next_run()?, self.b.next_run()?);
        while let (Some(x), Some(y)) = (a, b) {
            let (start, end) = (x.start.max(y.start), x.end.min(y.end));
            let (p, q) = (super::shifted(x.place, start - x.start), super::shifted(y.place, start - y.start));
            if p != q {
                each(start, end);
            }
            if x.end == end {
                a = self.a.next_run()?;
            }
            if y.end == end {
                b = self.b.next_run()?;
            }
        }
        Ok(())
    }
}
