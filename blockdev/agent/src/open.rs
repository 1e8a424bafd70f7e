//! Opening a volume: made anew, or found again as the last process left it.
//!
//! | ring | dirty map | what follows |
//! |---|---|---|
//! | sound | sound | unfinished writes go to the disk again, in seq order; then the mode that the files say |
//! | sound, open, no sync under way | lost | the map was empty: a new one |
//! | sound, closed or sync under way | lost | ring closed, everything dirty |
//! | lost (damaged, another boot without a clean stop, missing) | any | new ring, closed; dirty is what was dirty and what the write-intent map has marked, or everything if that is lost too |
//!
//! A write-intent map that is lost, or was not kept so far, while the ring is sound is made anew with everything marked; marks go
//! as the clearer finds them needless. A new volume begins with what is dirty marked: the rest is zero on both sides.
//!
//! A file that is in use, cannot be read, or was written by another version stops the opening: nothing is
//! known to be lost then. A write of the redo list that the disk refuses was never acknowledged: its region becomes
//! dirty and a gap begins, as it does for a guest's write.

use crate::api::{AgentError, ForeignWrite, IntentConfig, MIN_RING_BYTES, RecoveryReport, VolumeConfig};
use crate::disk::Disk;
use crate::disk::ops::ZeroMode;
use crate::intent::{Intent, region_for};
use crate::machine::{self, Mode};
use crate::meta::{Meta, MetaError};
use crate::protect::Protection;
use crate::resize::{is_hole, say_size};
use afterimage_base::block::BlockError;
use afterimage_base::clock::Clock;
use afterimage_base::crashsafe;
use afterimage_base::world::{self, fs};
use afterimage_format::record::Kind;
use afterimage_journal::{DirtyMap, DirtyMapError, IntentError, IntentMap, Recovered, Ring, RingConfig, RingError};
use std::io;
use std::ops::Range;
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
    intent: &'a IntentConfig,
    dir: PathBuf,
    clock: Arc<dyn Clock>,
}

pub(crate) fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=MAX_NAME).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(allowed)
}

/// Opens the volume, making its files if it is new.
pub(crate) fn open(
    state_dir: &Path,
    config: &VolumeConfig,
    intent: &IntentConfig,
    clock: Arc<dyn Clock>,
) -> Result<Opened, AgentError> {
    if !is_name(&config.name) {
        return Err(AgentError::Name(config.name.clone()));
    }
    // Small rings fill often, as a simulation wants it.
    if config.ring_bytes < MIN_RING_BYTES && world::simulated().is_none() {
        return Err(AgentError::RingSize { name: config.name.clone(), bytes: config.ring_bytes });
    }
    let disk = Arc::new(Disk::open(&config.path, config.cache)?);
    let files = Files { config, intent, dir: state_dir.join(&config.name), clock };
    crashsafe::create_folders(&files.dir).map_err(|e| files.bad(&files.dir, &e))?;
    let path = fs::canonicalize(disk.path()).map_err(|e| files.bad(disk.path(), &e))?;
    match Meta::load(&files.meta()) {
        Ok(mut meta) => {
            files.check(&meta, &path, &disk)?;
            let unmarked = meta.unmarked;
            let grown = files.adopt_size(&mut meta, &disk)?;
            files.reopen(disk, meta, (grown, unmarked))
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
        if let Some(given) = self.config.adopt.map(uuid::Uuid::from_bytes).filter(|id| *id != meta.id) {
            return Err(AgentError::OtherId { name, known: meta.id, given, state });
        }
        if meta.path != path {
            return Err(AgentError::OtherPath { name, known: meta.path.clone(), given: path.to_path_buf(), state });
        }
        match meta.identity.difference(disk.identity()) {
            Some(what) => Err(AgentError::OtherDisk { name, path: path.to_path_buf(), what, state }),
            None => Ok(()),
        }
    }

    /// Gives the disk the volume's size. Where the disk has another size than it had: refused, or taken over; the answer is
    /// the part that is new and perhaps not empty.
    fn adopt_size(&self, meta: &mut Meta, disk: &Disk) -> Result<Option<Range<u64>>, AgentError> {
        let (was, now) = (meta.size, disk.size());
        if now == was || (now == meta.identity.size && was < now) {
            meta.identity.size = now;
            disk.set_size(was);
            return Ok(None);
        }
        if !self.config.resize {
            let (name, path) = (self.config.name.clone(), meta.path.clone());
            return Err(AgentError::OtherSize { name, path, was, now });
        }
        tracing::warn!("volume {}: its size was {was} bytes and is {now}", self.config.name);
        let new = now > was && !is_hole(disk, was, now);
        (meta.size, meta.identity.size, meta.resized, meta.announce) = (now, now, true, true);
        meta.unmarked |= new;
        meta.store(&self.meta()).map_err(|e| self.bad(&self.meta(), &e))?;
        Ok(new.then_some(was..now))
    }

    /// Whether somebody else has written to the disk since the last stop in order, as far as its times tell. What is known
    /// of them goes before anything is written.
    fn is_foreign(&self, meta: &mut Meta, disk: &Disk) -> Result<bool, AgentError> {
        let Some(left) = meta.stamp.take() else { return Ok(false) };
        let foreign = disk.stamp().is_some_and(|now| now != left);
        if foreign && self.config.foreign == ForeignWrite::Refuse {
            return Err(AgentError::Foreign { name: self.config.name.clone(), path: meta.path.clone() });
        }
        if foreign && self.config.foreign == ForeignWrite::Compare {
            meta.unmarked = true;
            meta.mark_again();
        }
        meta.store(&self.meta()).map_err(|e| self.bad(&self.meta(), &e))?;
        Ok(foreign)
    }

    fn new_ring(&self, id: [u8; 16], next: u64) -> Result<Ring, AgentError> {
        let config = RingConfig { bytes: self.config.ring_bytes.next_multiple_of(4096) };
        let ring = Ring::create(&self.dir.join("ring"), config, id, next).map_err(|e| self.ring_error(&e))?;
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

    fn intent_file(&self) -> PathBuf {
        self.dir.join("intent")
    }

    fn intent_error(&self, e: &IntentError) -> AgentError {
        self.bad(&self.intent_file(), e)
    }

    /// A new write-intent map; None, and no file, if there shall be none.
    fn new_intent(
        &self,
        id: [u8; 16],
        ring: [u8; 16],
        disk: &Disk,
        marked: impl Fn(u64, u64) -> bool,
    ) -> Result<Option<IntentMap>, AgentError> {
        if !self.intent.on {
            return self.no_intent().map(|()| None);
        }
        let (size, region) = (disk.size(), region_for(disk.size(), self.intent.region));
        let marked = |r: u64| marked(r * region, (r + 1) * region);
        let made = IntentMap::create(&self.intent_file(), (id, ring), (size, region), marked);
        made.map(Some).map_err(|e| self.intent_error(&e))
    }

    /// An old map must not be found again after writes that it does not know.
    fn no_intent(&self) -> Result<(), AgentError> {
        let removed = match fs::remove_file(&self.intent_file()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.and_then(|()| crashsafe::sync_parent(&self.intent_file())),
        };
        removed.map_err(|e| self.bad(&self.intent_file(), &e))
    }

    /// The write-intent map as it was left, or why it cannot be relied on.
    fn old_intent(&self, meta: &Meta, size: u64) -> Result<Result<IntentMap, String>, AgentError> {
        if !self.intent.on || !meta.intent {
            return Ok(Err("no write-intent map was kept".into()));
        }
        match IntentMap::open(&self.intent_file(), *meta.id.as_bytes()) {
            Ok(map) if map.size() == size => Ok(Ok(map)),
            // The size was changed while the agent was away, or it died in between.
            Ok(map) => Ok(map.resized(size).map_err(|e| e.to_string())),
            Err(e @ (IntentError::InUse { .. } | IntentError::Version { .. })) => Err(self.intent_error(&e)),
            Err(e) => Ok(Err(e.to_string())),
        }
    }

    /// What volume.json must say before a write is let in.
    fn note_intent(&self, meta: &mut Meta, intent: bool) -> Result<(), AgentError> {
        if meta.intent == intent {
            return Ok(());
        }
        meta.intent = intent;
        meta.store(&self.meta()).map_err(|e| self.bad(&self.meta(), &e))
    }

    /// volume.json comes last: without it the next start makes everything anew.
    fn create(self, disk: Arc<Disk>, path: &Path) -> Result<Opened, AgentError> {
        let meta = Meta::new(&self.config.name, path, disk.identity().clone());
        let mut meta = meta.map_err(|e| self.bad(&self.meta(), &e))?;
        if let Some(id) = self.config.adopt {
            meta = meta.adopt(id, self.clock.wall());
        }
        let id = *meta.id.as_bytes();
        let map = self.new_map(id, &disk)?;
        if meta.adopting {
            // Where this disk is empty the volume is not.
            map.mark_all();
        } else {
            mark_allocated(&disk, &map).map_err(|e| self.bad(disk.path(), &e))?;
        }
        let ring = self.new_ring(id, 1)?;
        // Not by the next mark, which may be far: a terabyte of holes is asked region by region.
        let dirty = |start: u64, end: u64| (start / REGION..end.div_ceil(REGION)).any(|r| map.is_dirty(r));
        let intent = self.new_intent(id, ring.id(), &disk, dirty)?;
        meta.intent = intent.is_some();
        let intent = intent.map(|map| Intent::new(&self.config.name, map, self.intent.clone()));
        meta.store(&self.meta()).map_err(|e| self.bad(&self.meta(), &e))?;
        let p = Protection::new(self.config.name.clone(), ring, map, intent, Arc::clone(&self.clock));
        let adopts = "the disk takes the place of another: what it has is kept apart";
        p.set_reason(Some(if meta.adopting { adopts } else { "the first copy of the disk" }.into()));
        let (protection, meta_file) = (Arc::new(p), self.meta());
        Ok(Opened { disk, protection, meta, meta_file, mode: Mode::Dirty, recovered: None })
    }

    /// Notes, before anything is made anew, that what was lost is not marked yet: this start may not come to its end.
    fn note_unmarked(&self, meta: &mut Meta) -> Result<(), AgentError> {
        if world::broken("lost-unnoted") {
            return Ok(());
        }
        meta.unmarked = true;
        meta.store(&self.meta()).map_err(|e| self.bad(&self.meta(), &e))
    }

    fn reopen(
        self,
        disk: Arc<Disk>,
        mut meta: Meta,
        (grown, unmarked): (Option<Range<u64>>, bool),
    ) -> Result<Opened, AgentError> {
        let id = *meta.id.as_bytes();
        let mut report = RecoveryReport { foreign: self.is_foreign(&mut meta, &disk)?, ..RecoveryReport::default() };
        let (ring, found) = match Ring::open(&self.dir.join("ring"), id) {
            Ok((ring, found)) => {
                self.compare_ring(&ring);
                (ring, Some(found))
            }
            Err(e) if stops_ring(&e) => return Err(self.ring_error(&e)),
            Err(e) => {
                report.reason = Some(e.to_string());
                // What a lost ring was based on says nothing of the new one.
                meta.base = None;
                meta.mark_again();
                self.note_unmarked(&mut meta)?;
                // Before the first sync has ended no seq was ever shown.
                let next = if meta.initial { 1 } else { meta.seq_limit.max(1) };
                (self.new_ring(id, next)?, None)
            }
        };
        let old = self.old_intent(&meta, disk.size())?;
        // A ring that the map does not know was in use without it.
        let old = old.and_then(|i| {
            let known = found.is_none() || i.ring() == ring.id();
            if known { Ok(i) } else { Err("the write-intent map does not know the ring".into()) }
        });
        let mode = machine::after_restart(ring.is_closed(), meta.syncing);
        let mut lost_all = found.is_none() || unmarked;
        if unmarked {
            report.reason.get_or_insert("an earlier start did not come to its end".into());
        }
        let map = match DirtyMap::open(&self.dir.join("dirty"), id) {
            Ok((map, _)) if map.size() == disk.size() => map,
            // A live volume has no marks, so a new map does as well.
            Ok((map, _)) if mode != Mode::Live => {
                map.resize(disk.size()).map_err(|e| self.map_error(&e))?;
                map
            }
            Err(e) if stops_map(&e) => return Err(self.map_error(&e)),
            lost => {
                if let (Err(e), true) = (lost, mode != Mode::Live) {
                    lost_all |= found.is_some();
                    self.note_unmarked(&mut meta)?;
                    report.reason.get_or_insert(e.to_string());
                }
                self.new_map(id, &disk)?
            }
        };
        if let (None, Ok(intent), false) = (&found, &old, unmarked) {
            lost_all = false;
            (report.intent_regions, report.intent_bytes) = to_compare(intent, &map);
            intent.begin_ring(ring.id()).map_err(|e| self.bad(&self.intent_file(), &e))?;
        }
        report.whole_disk = lost_all;
        if lost_all && meta.mark_again() {
            meta.store(&self.meta()).map_err(|e| self.bad(&self.meta(), &e))?;
        }
        let intent = match old {
            Ok(intent) if !lost_all => Some(intent),
            other => {
                // The lock of a map that is not used any more goes before a new one takes its place.
                let why = other.err();
                if let Some(why) = why.filter(|_| meta.intent) {
                    tracing::warn!("volume {}: {why}: a new map begins with everything marked", self.config.name);
                }
                self.new_intent(id, ring.id(), &disk, |_, _| true)?
            }
        };
        self.note_intent(&mut meta, intent.is_some())?;
        let intent = intent.map(|map| Intent::new(&self.config.name, map, self.intent.clone()));
        let p = Protection::new(self.config.name.clone(), ring, map, intent, Arc::clone(&self.clock));
        if let Some(found) = &found {
            redo(&p, &disk, found, &mut report);
        }
        if report.whole_disk {
            p.map.mark_all();
            p.close("the journal was lost");
            p.set_reason(report.reason.clone().map(|r| format!("{r}: the whole disk is copied again")));
        } else if let Some(why) = report.reason.clone().filter(|_| found.is_none()) {
            p.set_reason(Some(format!(
                "{why}: {} bytes that were being written are copied again",
                report.intent_bytes
            )));
        }
        if let Some(new) = grown {
            p.map.mark(new.start, new.end - new.start);
            p.close("the disk has grown by a part that may hold something, which is copied");
        }
        if report.foreign && self.config.foreign == ForeignWrite::Compare {
            let why = "somebody else wrote to the disk while the agent was not running: the whole disk is compared";
            p.map.mark_all();
            p.close(why);
            if let Some(intent) = &p.intent {
                intent.mark_all();
            }
            p.set_reason(Some(why.to_owned()));
        }
        if meta.unmarked {
            meta.unmarked = false;
            meta.store(&self.meta()).map_err(|e| self.bad(&self.meta(), &e))?;
        }
        if meta.announce {
            say_size(&p, disk.size());
            meta.announce = false;
            // Said twice it is no harm.
            drop(meta.store(&self.meta()));
        }
        say(&p, &report);
        let mode = machine::after_restart(p.ring.is_closed(), meta.syncing);
        let (protection, meta_file) = (Arc::new(p), self.meta());
        Ok(Opened { disk, protection, meta, meta_file, mode, recovered: Some(report) })
    }
}

/// Makes dirty what the write-intent map has marked; returns how many regions and bytes those are.
fn to_compare(intent: &IntentMap, map: &DirtyMap) -> (u64, u64) {
    let (mut regions, mut bytes) = (0, 0);
    for r in (0..intent.regions()).filter(|r| intent.look(*r).is_some()) {
        let range = intent.region_range(r);
        map.mark(range.start, range.end - range.start);
        (regions, bytes) = (regions + 1, bytes + range.end - range.start);
    }
    (regions, bytes)
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
        // It was marked before it got its seq, unless the map began later.
        if let (Some(intent), Ok(Some(r))) = (&p.intent, p.ring.record(*seq)) {
            intent.mark_now(r.record.offset, r.record.offset.saturating_add(r.record.len));
        }
        match redo_one(p, disk, *seq) {
            Ok(()) => report.redone += 1,
            Err((offset, len, e)) => {
                if let Some(intent) = &p.intent {
                    intent.mark_now(offset, offset.saturating_add(len));
                }
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
        Kind::Point | Kind::Gap | Kind::SyncEnd | Kind::Void | Kind::Resize => Ok(()),
    };
    result.map_err(|e| (offset, len, e))
}

fn say(p: &Protection, report: &RecoveryReport) {
    let name = &p.name;
    if let Some(why) = report.reason.as_ref().filter(|_| !report.whole_disk) {
        tracing::warn!(
            "volume {name}: {why}: a new ring is started; {} bytes in {} regions that were being written are copied again",
            report.intent_bytes,
            report.intent_regions
        );
    } else if let Some(why) = &report.reason {
        tracing::error!("volume {name}: {why}: a new ring is started and the whole disk is copied again");
    } else if report.foreign {
        tracing::error!("volume {name}: somebody else wrote to its disk while the agent was not running");
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
