//! From a wish to a seq that is a valid image, or an error that names the nearest ones (I6).
//!
//! A prefix that ends with seq n is valid unless n lies in a gap: `gap.from_seq <= n < gap.to_seq`, where `from_seq` is the
//! seq of the gap's record and `to_seq` that of the record that closed it. The first gap is the initial sync; nothing before it is
//! valid. It need not begin at seq 1: seqs go on where they were when a vault was lost and the copying begins anew.

use thiserror::Error;

/// A hole in the history, as [`afterimage_format::manifest::GapMeta`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// Seq of the record that opened it.
    pub from_seq: u64,
    /// When it began, in nanoseconds since 1970.
    pub from_time: u64,
    /// Seq of the record that closed it; `None` while it is open.
    pub to_seq: Option<u64>,
    /// Time of that record; 0 while it is open.
    pub to_time: u64,
    /// There is no history before it.
    pub initial: bool,
}

impl Gap {
    /// Whether the prefix that ends with `seq` is no valid image because of this gap.
    #[must_use]
    pub fn hides(&self, seq: u64) -> bool {
        seq >= self.from_seq && !afterimage_base::world::broken("gap-shown") && self.to_seq.is_none_or(|to| seq < to)
    }
}

impl From<&afterimage_format::manifest::GapMeta> for Gap {
    fn from(g: &afterimage_format::manifest::GapMeta) -> Self {
        let (from_seq, from_time, to_seq, to_time) = (g.from_seq, g.from_time, g.to_seq, g.to_time);
        Gap { from_seq, from_time, to_seq, to_time, initial: g.initial }
    }
}

/// What somebody wants to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// The newest valid seq.
    Latest,
    /// This seq.
    Seq(u64),
    /// The newest seq at this time, in nanoseconds since 1970.
    Time(u64),
}

/// The bounds within which any seq can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Oldest seq of the window.
    pub first_seq: u64,
    /// Its time.
    pub first_time: u64,
    /// Newest durable seq; 0 if there is no history.
    pub last_seq: u64,
    /// Its time.
    pub last_time: u64,
}

/// Valid seqs next to one that is not. Shown as `@SEQ`, as users write them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Nearest {
    /// The newest valid seq before.
    pub before: Option<u64>,
    /// The oldest valid seq behind.
    pub after: Option<u64>,
}

impl std::fmt::Display for Nearest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.before, self.after) {
            (Some(b), Some(a)) => write!(f, "the nearest that can be chosen are @{b} and @{a}"),
            (Some(n), None) | (None, Some(n)) => write!(f, "the nearest that can be chosen is @{n}"),
            (None, None) => write!(f, "nothing can be chosen yet"),
        }
    }
}

/// Why a wish cannot be granted. Times are in nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum WishError {
    /// The volume has no valid image yet.
    #[error("before the first consistent point: the initial copy of the disk is not complete; {nearest}")]
    BeforeFirst {
        /// What can be chosen.
        nearest: Nearest,
    },
    /// Writes are missing there.
    #[error("seq {seq} lies in a gap of the history, from {} to {}; {nearest}", when(*.from_time), end(*.to_time))]
    InGap {
        /// The seq that the wish means.
        seq: u64,
        /// When the gap began.
        from_time: u64,
        /// When it ended, if it has.
        to_time: Option<u64>,
        /// What can be chosen.
        nearest: Nearest,
    },
    /// Older than what is kept.
    #[error("older than the window, which begins at @{first_seq} ({}); {nearest}", when(*.first_time))]
    BeforeWindow {
        /// First seq of the window.
        first_seq: u64,
        /// Its time.
        first_time: u64,
        /// What can be chosen.
        nearest: Nearest,
    },
    /// Not written yet.
    #[error("newer than the history, which ends at @{last_seq} ({}); {nearest}", when(*.last_time))]
    Future {
        /// Newest durable seq.
        last_seq: u64,
        /// Its time.
        last_time: u64,
        /// What can be chosen.
        nearest: Nearest,
    },
}

fn when(nanos: u64) -> String {
    let t = i64::try_from(nanos / 1_000_000).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    t.map_or_else(|| format!("{nanos} ns since 1970"), |t| t.to_string())
}

fn end(nanos: Option<u64>) -> String {
    nanos.map_or_else(|| String::from("now"), when)
}

/// What can be chosen of a volume.
#[derive(Debug, Clone, Copy)]
pub struct Choices<'a> {
    /// The window.
    pub window: Window,
    /// Up to when nothing is newer than its last seq: not before its last time.
    pub until: u64,
    /// The gaps, oldest first.
    pub gaps: &'a [Gap],
    /// Seqs of points that are kept beyond the window, in any order.
    pub kept: &'a [u64],
}

impl Choices<'_> {
    /// Whether the prefix that ends with `seq` is a valid image that is kept.
    #[must_use]
    pub fn is_valid(&self, seq: u64) -> bool {
        let w = &self.window;
        let there = seq > 0 && seq <= w.last_seq && (seq >= w.first_seq || self.kept.contains(&seq));
        there && seq >= self.beginning() && !self.gaps.iter().any(|g| g.hides(seq))
    }

    /// There is no history before this seq.
    fn beginning(&self) -> u64 {
        self.gaps.first().filter(|g| g.initial).map_or(1, |g| g.from_seq)
    }

    /// The newest valid seq at or before `seq`.
    #[must_use]
    pub fn at_or_before(&self, seq: u64) -> Option<u64> {
        let mut seq = seq.min(self.window.last_seq);
        // Each gap hides once at most on the way down.
        while let Some(gap) = self.gaps.iter().find(|g| g.hides(seq)) {
            seq = gap.from_seq.checked_sub(1)?;
        }
        let in_window = Some(seq).filter(|s| self.is_valid(*s));
        in_window.or_else(|| self.kept.iter().copied().filter(|k| *k <= seq && self.is_valid(*k)).max())
    }

    /// The oldest valid seq at or behind `seq`.
    #[must_use]
    pub fn at_or_after(&self, seq: u64) -> Option<u64> {
        let pinned = self.kept.iter().copied().filter(|k| *k >= seq && self.is_valid(*k)).min();
        let mut next = seq.max(self.window.first_seq).max(self.beginning());
        loop {
            match self.gaps.iter().find(|g| g.hides(next)) {
                None => break,
                Some(Gap { to_seq: Some(to), .. }) => next = *to,
                Some(_) => return pinned,
            }
        }
        pinned.into_iter().chain(Some(next).filter(|s| self.is_valid(*s))).min()
    }

    fn nearest(&self, seq: u64) -> Nearest {
        Nearest { before: seq.checked_sub(1).and_then(|s| self.at_or_before(s)), after: self.at_or_after(seq) }
    }

    /// The seq that `wish` means. `record_at` tells the newest seq with a time at or before a time.
    ///
    /// # Errors
    /// The error that `record_at` gives, or [`WishError`] inside if there is no valid image to that wish.
    pub fn choose<E>(
        &self,
        wish: Wish,
        record_at: impl FnOnce(u64) -> Result<Option<u64>, E>,
    ) -> Result<Result<u64, WishError>, E> {
        let w = self.window;
        Ok(match wish {
            Wish::Latest => self.at_or_before(u64::MAX).ok_or(WishError::BeforeFirst { nearest: Nearest::default() }),
            Wish::Seq(seq) => self.check(seq),
            Wish::Time(time) if time > w.last_time.max(self.until) => {
                let nearest = Nearest { before: self.at_or_before(u64::MAX), after: None };
                Err(WishError::Future { last_seq: w.last_seq, last_time: w.last_time, nearest })
            }
            Wish::Time(time) => match record_at(time)? {
                Some(seq) => self.check(seq),
                None => self.check(0),
            },
        })
    }

    fn check(&self, seq: u64) -> Result<u64, WishError> {
        if self.is_valid(seq) {
            return Ok(seq);
        }
        let (w, nearest) = (&self.window, self.nearest(seq));
        if seq > w.last_seq {
            return Err(WishError::Future { last_seq: w.last_seq, last_time: w.last_time, nearest });
        }
        let first_gap = self.gaps.first().filter(|g| g.initial);
        if first_gap.is_some_and(|g| g.to_seq.is_none_or(|to| seq < to)) || w.last_seq == 0 {
            return Err(WishError::BeforeFirst { nearest });
        }
        if seq < w.first_seq {
            return Err(WishError::BeforeWindow { first_seq: w.first_seq, first_time: w.first_time, nearest });
        }
        match self.gaps.iter().find(|g| g.hides(seq)) {
            Some(g) => {
                let to_time = g.to_seq.map(|_| g.to_time);
                Err(WishError::InGap { seq, from_time: g.from_time, to_time, nearest })
            }
            None => Err(WishError::BeforeFirst { nearest }),
        }
    }
}

#[cfg(test)]
#[path = "timeline_tests.rs"]
mod tests;
