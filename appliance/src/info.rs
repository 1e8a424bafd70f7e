//! What an appliance says of itself and its volumes.

use crate::appliance::Appliance;
use crate::fence::Standing;
use crate::ingest::volume::Volume;
use crate::room::Space;
use crate::store::{ReadFigures, file_name};
use afterimage_base::world;
use afterimage_format::manifest::{ForkMeta, SegmentMeta, SegmentState};
use std::sync::atomic::Ordering;

/// What there is to say of a volume.
#[derive(Debug, Clone)]
pub struct VolumeInfo {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: [u8; 16],
    /// Its size in bytes, now.
    pub size: u64,
    /// Newest durable seq.
    pub durable_seq: u64,
    /// Its time in nanoseconds since 1970.
    pub durable_time: u64,
    /// Bytes in the segments that its stream wrote.
    pub stored_bytes: u64,
    /// Bytes that its writes covered, before any reduction.
    pub logical_bytes: u64,
    /// Number of points.
    pub points: usize,
    /// Oldest seq of the window.
    pub first_seq: u64,
    /// Its time.
    pub first_time: u64,
    /// Segments that its stream wrote.
    pub segments: usize,
    /// Layers.
    pub layers: usize,
    /// Why it takes no more until the appliance is started again, if so.
    pub failure: Option<String>,
    /// Why it takes nothing now, if so: no room.
    pub paused: Option<String>,
    /// Whether an agent is connected for it, or a branch is open as a disk.
    pub connected: bool,
    /// Where it began, if it is a branch.
    pub fork: Option<ForkMeta>,
    /// Its epoch, and its fence.
    pub standing: Standing,
    /// The branch that keeps what a fenced agent had beyond it.
    pub tail: Option<String>,
}

/// What there is to say of the store. Counters begin with the process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreInfo {
    /// Bytes that sessions wrote to segments.
    pub ingested_bytes: u64,
    /// Bytes that collection and ordering wrote to segments: what was there already.
    pub rewritten_bytes: u64,
    /// Bytes of segments that wait to be brought into disk order; `None` while nobody has looked, or if that is switched off.
    pub unordered_bytes: Option<u64>,
    /// What reading has cost.
    pub read: ReadFigures,
}

impl Appliance {
    /// What there is to say of the store.
    #[must_use]
    pub fn store(&self) -> StoreInfo {
        let counters = &self.shared.counters;
        StoreInfo {
            ingested_bytes: counters.ingested.load(Ordering::Relaxed),
            rewritten_bytes: counters.rewritten.load(Ordering::Relaxed),
            unordered_bytes: Some(counters.unordered.load(Ordering::Relaxed)).filter(|n| *n != u64::MAX),
            read: self.shared.store.figures(),
        }
    }

    /// What the vault's disk has, if it says so.
    #[must_use]
    pub fn space(&self) -> Option<Space> {
        self.shared.room.space()
    }

    /// Every volume of the vault.
    #[must_use]
    pub fn volumes(&self) -> Vec<VolumeInfo> {
        self.registry.all().iter().map(|v| self.info(v)).collect()
    }

    /// Bytes of a segment: the manifest knows those of one that has ended.
    pub(crate) fn segment_bytes(&self, meta: &SegmentMeta) -> u64 {
        if meta.state != SegmentState::Open {
            return meta.length;
        }
        world::fs::metadata(&self.shared.vault.segments_dir().join(file_name(meta.number))).map_or(0, |f| f.len)
    }

    pub(crate) fn info(&self, volume: &Volume) -> VolumeInfo {
        let progress = volume.progress();
        let (segments, stored, first_seq, first_time) = self.shared.vault.read(|m| {
            let own = m.segments.iter().filter(|s| s.volume == volume.id);
            let (n, bytes) = own.fold((0, 0), |(n, b), s| (n + 1, b + self.segment_bytes(s)));
            let meta = m.volume(&volume.id);
            (n, bytes, meta.map_or(0, |v| v.first_seq), meta.map_or(0, |v| v.first_time))
        });
        VolumeInfo {
            name: volume.name.clone(),
            id: volume.id,
            size: progress.size(),
            durable_seq: progress.seq,
            durable_time: progress.time,
            stored_bytes: stored,
            logical_bytes: progress.logical,
            points: progress.points.len(),
            first_seq,
            first_time,
            segments,
            layers: volume.history.layers().len(),
            failure: volume.failure().or_else(|| self.shared.vault.failure()),
            paused: self.shared.room.short(),
            connected: volume.has_session(),
            fork: volume.fork(),
            standing: volume.standing(),
            tail: self.registry.tail_of(volume).map(|t| t.name.clone()),
        }
    }
}
