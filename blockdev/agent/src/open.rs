//! Opening a volume: made anew, or found again as the last process left it.
//!
//! | ring | dirty map | what follows |
//! |---|---|---|
//! | sound | sound | unfinished writes go to the disk again, in seq order; then the mode that the files say |
//! | sound, open, no sync under way | lost | the map was empty: a new one |
//! | sound, closed or sync under way | lost | ring closed, everything dirty |
//! | lost (damaged, another boot without a clean stop, missing) | any | new ring, closed; everything dirty |
//!
//! A file that is in use, cannot be read, or was written by another version stops the opening: nothing is
//! known to be lost then. A write of the redo list that the disk refuses was never acknowledged: its region becomes
//! dirty and a gap begins, as it does for a guest's write.

use crate::api::{AgentError, MIN_RING_BYTES, RecoveryReport, VolumeConfig};
use crate::disk::Disk;
use crate::disk::ops::ZeroMode;
use crate::machine::{self, Mode};
use crate::meta::{Meta, MetaError};
use crate::protect::Protection;
use afterimage_base::block::BlockError;
use afterimage_base::clock::Clock;
use afterimage_format::record::Kind;
use afterimage_journal::{DirtyMap, DirtyMapError, Recovered, Ring, RingConfig, RingError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Size of a region of the dirty map.
const REGION: u64 = 64 << 10;
const MAX_NAME: usize = 64;
/// Extents of the disk asked for in one go.
const EXTENTS: usize = 1024;

/// An opened volume, not running yet.
pub(crate) struct Opened {
    pub(crate) disk: Arc<Disk>,
    pub(crate) protection: Arc<Protection>,
    pub(crate) meta: Meta,
    pub(crate) meta_file: PathBuf,
    pub(crate) mode: Mode,
    pub(crate) recovered: Option<RecoveryReport>,
}

struct Files<'a> {
    config: &'a VolumeConfig,
    dir: PathBuf,
    clock: Arc<dyn Clock>,
}

pub(crate) fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=MAX_NAME).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(allowed)
}

/// Opens the volume, making its files if it is new.
pub(crate) fn open(state_dir: &Path, config: &VolumeConfig, clock: Arc<dyn Clock>) -> Result<Opened, AgentError> {
    if !is_name(&config.name) {
        return Err(AgentError::Name(config.name.clone()));
    }
    if config.ring_bytes < MIN_RING_BYTES {
        return Err(AgentError::RingSize { name: config.name.clone(), bytes: config.ring_bytes });
    }
    let disk = Arc::new(Disk::open(&config.path, config.cache)?);
    let files = Files { config, dir: state_dir.join(&config.name), clock };
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(&files.dir).map_err(|e| files.bad(&files.dir, &e))?;
    let path = disk.path().canonicalize().map_err(|e| files.bad(disk.path(), &e))?;
    match Meta::load(&files.meta()) {
        Ok(meta) => {
            files.check(&meta, &path, &disk)?;
            files.reopen(disk, meta)
        }
        Err(MetaError::Missing) => files.create(disk, &path),
        Err(MetaError::Bad(problem)) => Err(files.bad(&files.meta(), &problem)),
    }
}

impl Files<'_> {
    fn meta(&self) -> PathBuf {
        self.dir.join("volume.json")
    }

    fn bad(&self, file: &Path, problem: &dyn std::fmt::Display) -> AgentError {
        let (name, file) = (self.config.name.clone(), file.to_path_buf());
        AgentError::State { name, file, problem: problem.to_string() }
    }

    fn ring_error(&self, e: &RingError) -> AgentError {
        self.bad(&self.dir.join("ring"), e)
    }

    fn map_error(&self, e: &DirtyMapError) -> AgentError {
        self.bad(&self.dir.join("dirty"), e)
    }

    fn check(&self, meta: &Meta, path: &Path, disk: &Disk) -> Result<(), AgentError> {
        let (name, state) = (self.config.name.clone(), self.dir.clone());
        if meta.path != path {
            return Err(AgentError::OtherPath { name, known: meta.path.clone(), given: path.to_path_buf(), state });
        }
        match meta.identity.difference(disk.identity()) {
            Some(what) => Err(AgentError::OtherDisk { name, path: path.to_path_buf(), what, state }),
            None => Ok(()),
        }
    }

    fn new_ring(&self, id: [u8; 16]) -> Result<Ring, AgentError> {
        let config = RingConfig { bytes: self.config.ring_bytes.next_multiple_of(4096) };
        let ring = Ring::create(&self.dir.join("ring"), config, id, 1).map_err(|e| self.ring_error(&e))?;
        ring.close(self.clock.wall());
        Ok(ring)
    }

    /// An existing ring keeps its size, which whoever asks for another should know.
    fn compare_ring(&self, ring: &Ring) {
        let (there, asked) = (ring.capacity_bytes(), self.config.ring_bytes.next_multiple_of(4096));
        if there != asked {
            let name = &self.config.name;
            tracing::warn!(
                "volume {name}: its ring keeps its size of {there} bytes; the {asked} bytes asked for are for new volumes"
            );
        }
    }

    fn new_map(&self, id: [u8; 16], disk: &Disk) -> Result<DirtyMap, AgentError> {
        DirtyMap::create(&self.dir.join("dirty"), id, disk.size(), REGION).map_err(|e| self.map_error(&e))
    }

    /// volume.json comes last: without it the next start makes everything anew.
    fn create(self, disk: Arc<Disk>, path: &Path) -> Result<Opened, AgentError> {
        let meta = Meta::new(&self.config.name, path, disk.identity().clone());
        let id = *meta.id.as_bytes();
        let map = self.new_map(id, &disk)?;
        mark_allocated(&disk, &map).map_err(|e| self.bad(disk.path(), &e))?;
        let ring = self.new_ring(id)?;
        meta.store(&self.meta()).map_err(|e| self.bad(&self.meta(), &e))?;
        let p = Protection::new(self.config.name.clone(), ring, map, Arc::clone(&self.clock));
        p.set_reason(Some("the first copy of the disk".into()));
        let (protection, meta_file) = (Arc::new(p), self.meta());
        Ok(Opened { disk, protection, meta, meta_file, mode: Mode::Dirty, recovered: None })
    }

    fn reopen(self, disk: Arc<Disk>, meta: Meta) -> Result<Opened, AgentError> {
        let id = *meta.id.as_bytes();
        let mut report = RecoveryReport::default();
        let (ring, found) = match Ring::open(&self.dir.join("ring"), id) {
            Ok((ring, found)) => {
                self.compare_ring(&ring);
                (ring, Some(found))
            }
            Err(e) if stops_ring(&e) => return Err(self.ring_error(&e)),
            Err(e) => {
                report.reason = Some(e.to_string());
                (self.new_ring(id)?, None)
            }
        };
        let mode = machine::after_restart(ring.is_closed(), meta.syncing);
        let map = match DirtyMap::open(&self.dir.join("dirty"), id) {
            Ok((map, _)) if map.size() == disk.size() => map,
            Err(e) if stops_map(&e) => return Err(self.map_error(&e)),
            lost => {
                if mode != Mode::Live {
                    let why = lost.err().map_or_else(|| "the dirty map has another size".into(), |e| e.to_string());
                    report.reason.get_or_insert(why);
                }
                self.new_map(id, &disk)?
            }
        };
        report.whole_disk = report.reason.is_some();
        let p = Protection::new(self.config.name.clone(), ring, map, Arc::clone(&self.clock));
        if let Some(found) = &found {
            redo(&p, &disk, found, &mut report);
        }
        if report.whole_disk {
            p.map.mark_all();
            p.close("the journal was lost");
            p.set_reason(report.reason.clone().map(|r| format!("{r}: the whole disk is copied again")));
        }
        say(&p, &report);
        let mode = machine::after_restart(p.ring.is_closed(), meta.syncing);
        let (protection, meta_file) = (Arc::new(p), self.meta());
        Ok(Opened { disk, protection, meta, meta_file, mode, recovered: Some(report) })
    }
}

/// Errors after which the file must not be replaced.
fn stops_ring(e: &RingError) -> bool {
    match e {
        RingError::Io { source, .. } => source.kind() != io::ErrorKind::NotFound,
        RingError::InUse { .. } | RingError::Size { .. } | RingError::Version { .. } => true,
        _ => false,
    }
}

fn stops_map(e: &DirtyMapError) -> bool {
    match e {
        DirtyMapError::Io { source, .. } => source.kind() != io::ErrorKind::NotFound,
        DirtyMapError::InUse { .. } | DirtyMapError::Size { .. } | DirtyMapError::Version { .. } => true,
        _ => false,
    }
}

fn redo(p: &Protection, disk: &Disk, found: &Recovered, report: &mut RecoveryReport) {
    (report.clean, report.voided) = (found.clean, found.voided.len() as u64);
    for seq in &found.redo {
        match redo_one(p, disk, *seq) {
            Ok(()) => report.redone += 1,
            Err((offset, len, e)) => {
                p.map.mark(offset, len);
                p.close(&format!(
                    "the disk refused a write that was under way at the last stop, at byte {offset}: {e}"
                ));
            }
        }
        p.ring.mark_done(*seq);
    }
}

fn redo_one(p: &Protection, disk: &Disk, seq: u64) -> Result<(), (u64, u64, BlockError)> {
    let Ok(Some(r)) = p.ring.record(seq) else { return Err((0, disk.size(), BlockError::Io(libc::EIO))) };
    let (offset, len) = (r.record.offset, r.record.len);
    let inside = offset.checked_add(len).is_some_and(|end| end <= disk.size());
    let result = match r.record.kind {
        _ if !inside => Err(BlockError::Invalid("the record reaches past the end of the disk")),
        Kind::Write => disk.write_any(offset, r.payload()),
        Kind::Zero => disk.zero_at(offset, len, ZeroMode::Hole),
        Kind::Point | Kind::Gap | Kind::SyncEnd | Kind::Void => Ok(()),
    };
    result.map_err(|e| (offset, len, e))
}

fn say(p: &Protection, report: &RecoveryReport) {
    let name = &p.name;
    if let Some(why) = &report.reason {
        tracing::error!("volume {name}: {why}: a new ring is started and the whole disk is copied again");
    } else if !report.clean {
        tracing::warn!(
            "volume {name}: the last stop was not in order; {} writes brought to the disk again, {} seqs voided, {} bytes dirty",
            report.redone,
            report.voided,
            p.map.dirty_bytes()
        );
    }
}

/// Marks what is not a hole: the appliance begins with zeroes.
fn mark_allocated(disk: &Disk, map: &DirtyMap) -> Result<(), BlockError> {
    let mut at = 0;
    while at < disk.size() {
        for extent in disk.extents(at, disk.size() - at, EXTENTS)? {
            if !extent.hole {
                map.mark(at, extent.len);
            }
            at += extent.len;
        }
    }
    Ok(())
}
