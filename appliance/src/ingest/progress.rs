//! How far a volume is: its newest durable seq, its points, gaps and sizes. What the manifest says of it, kept up with every record.

use crate::history::Keep;
use afterimage_format::manifest::{GapMeta, PointMeta, SizeMeta, VolumeMeta};
use afterimage_format::record::{FLAG_AUTO, FLAG_INITIAL, FLAG_NOTE, Kind};

/// What changes with every batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Ring of the session that wrote `seq`.
    pub ring: [u8; 16],
    /// Newest durable seq.
    pub seq: u64,
    /// Digest of its record.
    pub digest: u64,
    /// Its time label.
    pub time: u64,
    /// Bytes that writes covered.
    pub logical: u64,
    /// Points, oldest first.
    pub points: Vec<PointMeta>,
    /// Gaps, oldest first.
    pub gaps: Vec<GapMeta>,
    /// Size in bytes before the first of `sizes`.
    pub first_size: u64,
    /// Changes of the size, oldest first.
    pub sizes: Vec<SizeMeta>,
}

/// A record that is durable.
#[derive(Debug, Clone, Copy)]
pub struct Committed<'a> {
    /// What it says.
    pub kind: Kind,
    /// Its flags.
    pub flags: u8,
    /// Its seq.
    pub seq: u64,
    /// Its time label.
    pub time: u64,
    /// For a gap, when it began; for a note, the seq of its point.
    pub offset: u64,
    /// Size of the volume from it on, if it says one.
    pub size: Option<u64>,
    /// Name of a point, or a note on one.
    pub name: &'a str,
}

impl Progress {
    /// Where the manifest says that a volume is.
    #[must_use]
    pub fn of(meta: &VolumeMeta) -> Self {
        Self {
            ring: meta.ring,
            seq: meta.durable_seq,
            digest: meta.digest,
            time: meta.durable_time,
            logical: meta.logical_bytes,
            points: meta.points.clone(),
            gaps: meta.gaps.clone(),
            first_size: meta.size,
            sizes: meta.sizes.clone(),
        }
    }

    /// Size of the volume in bytes, now.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.sizes.last().map_or(self.first_size, |s| s.size)
    }

    /// Size of the volume in bytes as it was at `seq`.
    #[must_use]
    pub fn size_at(&self, seq: u64) -> u64 {
        let at = self.sizes.partition_point(|s| s.from_seq <= seq);
        at.checked_sub(1).and_then(|i| self.sizes.get(i)).map_or(self.first_size, |s| s.size)
    }

    /// Takes a record into the catalogue of points and gaps. A record that is there already changes nothing.
    pub fn note(&mut self, r: &Committed<'_>) {
        if let Some(size) = r.size.filter(|s| *s != self.size())
            && self.sizes.last().is_none_or(|s| s.from_seq < r.seq)
        {
            self.sizes.push(SizeMeta { from_seq: r.seq, size });
        }
        match r.kind {
            Kind::Point if r.flags & FLAG_NOTE != 0 => self.note_point(r.offset, r.name),
            Kind::Point if self.points.iter().all(|p| p.seq != r.seq) => {
                let (name, auto) = (r.name.to_string(), r.flags & FLAG_AUTO != 0);
                self.points.push(PointMeta::new(name, r.seq, r.time, auto));
            }
            // The seqs that a gap skips are hidden with it: in a future that was lost they may have named something else.
            Kind::Gap if self.gaps.iter().all(|g| g.from_seq != self.seq + 1 && g.from_seq != r.seq) => {
                self.close_gap(r.seq, r.time);
                let initial = r.flags & FLAG_INITIAL != 0;
                let from_time = r.offset.min(r.time);
                let from_seq = (self.seq + 1).min(r.seq);
                self.gaps.push(GapMeta { from_seq, from_time, to_seq: None, to_time: 0, initial });
                // A gap within a gap: one began before the other was closed, so that one goes on in this.
            }
            Kind::SyncEnd => self.close_gap(r.seq, r.time),
            _ => {}
        }
        self.seq = self.seq.max(r.seq);
    }

    /// Forgets points that go, gaps that hide nothing that can still be chosen, and sizes that nothing kept had.
    pub fn forget(&mut self, keep: &Keep, goes: impl Fn(u64) -> bool) {
        self.points.retain(|p| !goes(p.seq));
        let (points, window) = (&self.points, keep.window());
        let hides = |g: &GapMeta| points.iter().any(|p| p.seq >= g.from_seq && g.to_seq.is_none_or(|to| p.seq < to));
        self.gaps.retain(|g| g.to_seq.is_none_or(|to| to > window) || hides(g));
        let oldest = points.first().map_or(window, |p| p.seq.min(window));
        let unseen = self.sizes.partition_point(|s| s.from_seq <= oldest);
        if let Some(last) = self.sizes.drain(..unseen).next_back() {
            self.first_size = last.size;
        }
    }

    /// Takes a note on a point. An empty one takes the point away.
    fn note_point(&mut self, seq: u64, note: &str) {
        if note.is_empty() {
            self.points.retain(|p| p.seq != seq);
        } else if let Some(point) = self.points.iter_mut().find(|p| p.seq == seq) {
            point.note = note.to_owned();
        }
    }

    fn close_gap(&mut self, seq: u64, time: u64) {
        for gap in self.gaps.iter_mut().filter(|g| g.to_seq.is_none() && g.from_seq < seq) {
            (gap.to_seq, gap.to_time) = (Some(seq), time);
        }
    }

    /// Notes it in the manifest.
    pub fn store(&self, meta: &mut VolumeMeta) {
        (meta.ring, meta.durable_seq, meta.digest, meta.durable_time) = (self.ring, self.seq, self.digest, self.time);
        meta.logical_bytes = self.logical;
        meta.points.clone_from(&self.points);
        meta.gaps.clone_from(&self.gaps);
        meta.size = self.first_size;
        meta.sizes.clone_from(&self.sizes);
    }
}
