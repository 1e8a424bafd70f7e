//! The write-intent map of a volume: which regions of the disk may differ from history after a power cut.
//!
//! The bytes are in [`afterimage_format::intent`]. As in md's bitmap and DRBD's activity log a region is marked durably
//! before its first write, and the mark is taken away lazily. Unlike the ring and the dirty map this file is trusted after a
//! power cut, so nothing here is mapped: sectors are written and synced one by one, in an order that is the whole point.
//!
//! # Rules
//! - A region is *warm* when its mark is durable: it becomes so only after the `fdatasync` that began after its mark was
//!   written has returned. Writers ask [`IntentMap::touch`], one load a region.
//! - One marker at a time writes marks, syncs, and makes them warm. The clearer takes only warm marks away,
//!   in memory and in the file under one lock, so no mark is ever warm and not in the file.
//! - A mark taken away is written without a sync: until it reaches the disk the region is compared in vain.
//! - What clean regions rely on (ring, seq, digest: held durably by the appliance when the mark was taken away) is in the
//!   same sector as the marks. [`IntentMap::accepts`] says whether a history has it all.
//! - The first error of the file is final (I11): from then on every region counts as warm, since writers must go on, and
//!   whoever owns the map removes the file, since it says less than it should.

use crate::error::IntentError;
use crate::file::{self, FileError, Locked, NewFile, doing};
use afterimage_base::world;
use afterimage_base::world::fs::File;
use afterimage_format::codec::DecodeError;
use afterimage_format::intent::{
    IntentHeader, IntentSector, MAX_RINGS, REGIONS_PER_SECTOR, Relied, SECTOR, SECTORS_AT,
};
use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The mark of a region is durable.
const WARM: u8 = 1;
/// It was written to since [`IntentMap::look`] looked last.
const TOUCHED: u8 = 2;

/// Where sectors go. A test puts its own between map and file.
pub trait Medium: Send + Sync {
    /// Writes all of `bytes` at `at`.
    ///
    /// # Errors
    /// What the system says.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;

    /// Makes everything written before durable.
    ///
    /// # Errors
    /// What the system says.
    fn sync(&self) -> io::Result<()>;
}

struct Plain(Locked);

impl Medium for Plain {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

struct Inner {
    header: IntentHeader,
    sectors: Vec<IntentSector>,
}

/// See the module. Shared through an `Arc`.
pub struct IntentMap {
    size: u64,
    region: u64,
    path: PathBuf,
    states: Box<[AtomicU8]>,
    inner: Mutex<Inner>,
    /// Held from writing marks to the end of their sync.
    marking: Mutex<()>,
    medium: Box<dyn Medium>,
    failed: AtomicBool,
    marked: AtomicU64,
    syncs: AtomicU64,
    damaged: u64,
}

fn file_error(path: &Path) -> impl Fn(FileError) -> IntentError {
    let path = path.to_path_buf();
    move |e| match e {
        FileError::InUse => IntentError::InUse { path: path.clone() },
        FileError::Io { doing, source } => IntentError::Io { path: path.clone(), doing, source },
    }
}

fn number(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

impl IntentMap {
    /// Makes a new, durable map for a volume whose ring is `ring`, in place of any file at `path` that nobody has open.
    /// Its regions are marked where `marked` says so; the others are relied on to be the same in an empty history.
    /// Every byte is written now, so that marking never allocates. Mode 0600.
    ///
    /// # Errors
    /// [`IntentError::Size`], [`IntentError::InUse`], [`IntentError::Io`].
    pub fn create(
        path: &Path,
        (volume, ring): ([u8; 16], [u8; 16]),
        (size, region): (u64, u64),
        marked: impl Fn(u64) -> bool,
    ) -> Result<IntentMap, IntentError> {
        let header = IntentHeader { volume, size, region, salt: 0, turn: 0, generation: 1, rings: vec![ring] };
        if !header.is_possible() {
            return Err(IntentError::Size { size, region });
        }
        let make = || IntentMap::fill(NewFile::begin(path, header.file_len())?, path, header, vec![], &marked);
        make().map_err(file_error(path))
    }

    /// Writes a whole new map: `old` sectors where there are some, with the marks that `marked` adds.
    fn fill(
        new: NewFile,
        path: &Path,
        mut header: IntentHeader,
        old: Vec<IntentSector>,
        marked: &dyn Fn(u64) -> bool,
    ) -> Result<IntentMap, FileError> {
        header.salt = u64::from_le_bytes(world::random_array().map_err(doing("get random bytes"))?);
        let mut sectors = old;
        sectors.resize(number(header.sectors()), IntentSector::CLEAN);
        for region in (0..header.regions()).filter(|r| marked(*r)) {
            sectors[number(region / REGIONS_PER_SECTOR)].set(region, true);
        }
        let mut bytes = vec![0; number(header.file_len())];
        bytes[..SECTOR].copy_from_slice(&header.encode());
        bytes[SECTOR..2 * SECTOR].copy_from_slice(&header.encode());
        let at = number(SECTORS_AT);
        for ((i, s), to) in (0u32..).zip(&sectors).zip(bytes[at..].chunks_exact_mut(SECTOR)) {
            to.copy_from_slice(&s.encode(i, header.salt));
        }
        new.file().write_all_at(&bytes, 0).map_err(doing("write it"))?;
        let file = new.finish()?;
        Ok(IntentMap::on(path, Box::new(Plain(file)), header, sectors, 0))
    }

    fn on(
        path: &Path,
        medium: Box<dyn Medium>,
        header: IntentHeader,
        sectors: Vec<IntentSector>,
        damaged: u64,
    ) -> IntentMap {
        let warm = |r: u64| sectors[number(r / REGIONS_PER_SECTOR)].is_marked(r);
        let states: Box<[AtomicU8]> = (0..header.regions()).map(|r| AtomicU8::new(u8::from(warm(r)))).collect();
        let marked = states.iter().filter(|s| s.load(Ordering::Relaxed) == WARM).count() as u64;
        IntentMap {
            size: header.size,
            region: header.region,
            path: path.to_path_buf(),
            states,
            inner: Mutex::new(Inner { header, sectors }),
            marking: Mutex::new(()),
            medium,
            failed: AtomicBool::new(false),
            marked: AtomicU64::new(marked),
            syncs: AtomicU64::new(0),
            damaged,
        }
    }

    /// Opens the map at `path`. A damaged sector counts as all marked. What a killed process had written and not synced
    /// is made durable here.
    ///
    /// # Errors
    /// As [`IntentError`] says. After any but [`IntentError::InUse`] and [`IntentError::Version`] the marks are lost: the
    /// whole disk must be compared if the ring is lost too, and a new map be made with everything marked.
    pub fn open(path: &Path, volume: [u8; 16]) -> Result<IntentMap, IntentError> {
        let error = file_error(path);
        let file = file::open(path).map_err(&error)?;
        let header = read_header(path, &file, volume)?;
        let have = file.metadata().map_err(doing("look at it")).map_err(&error)?.len;
        if have < header.file_len() {
            return Err(IntentError::Truncated { path: path.to_path_buf(), need: header.file_len(), have });
        }
        let (mut sectors, mut damaged) = (Vec::new(), Vec::new());
        for i in 0..u32::try_from(header.sectors()).unwrap_or(u32::MAX) {
            let mut bytes = [0; SECTOR];
            let read = file::read_at(&file, &mut bytes, SECTORS_AT + u64::from(i) * SECTOR as u64);
            let sector = read.ok().and_then(|()| IntentSector::decode(&bytes, i, header.salt));
            if sector.is_none() {
                damaged.push(i);
            }
            sectors.push(sector.unwrap_or(IntentSector::MARKED));
        }
        for i in &damaged {
            let bytes = sectors[*i as usize].encode(*i, header.salt);
            let at = SECTORS_AT + u64::from(*i) * SECTOR as u64;
            file.write_all_at(&bytes, at).map_err(doing("write its marks")).map_err(&error)?;
        }
        file.sync_data().map_err(doing("sync its marks")).map_err(&error)?;
        Ok(IntentMap::on(path, Box::new(Plain(file)), header, sectors, damaged.len() as u64))
    }

    /// Puts something between the map and its file. For tests, before the map is used.
    #[must_use]
    pub fn through(self, wrap: impl FnOnce(Box<dyn Medium>) -> Box<dyn Medium>) -> IntentMap {
        IntentMap { medium: wrap(self.medium), ..self }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Size of the volume in bytes, as the map knows it.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Size of a region in bytes.
    #[must_use]
    pub const fn region(&self) -> u64 {
        self.region
    }

    /// Number of regions.
    #[must_use]
    pub const fn regions(&self) -> u64 {
        self.states.len() as u64
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sectors that were damaged when the map was opened, and count as marked.
    #[must_use]
    pub const fn damaged(&self) -> u64 {
        self.damaged
    }

    /// Regions that are warm.
    #[must_use]
    pub fn marked(&self) -> u64 {
        self.marked.load(Ordering::Relaxed)
    }

    /// How often the file was synced since it was opened.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// Whether an error of the file has ended it: everything counts as warm, and nothing may be relied on.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// The bytes of the volume that a region covers (the last one may be short).
    #[must_use]
    pub fn region_range(&self, region: u64) -> Range<u64> {
        let at = |r: u64| r.saturating_mul(self.region).min(self.size);
        at(region)..at(region.saturating_add(1))
    }

    /// The regions that bytes `start..end` touch; what lies past the end is ignored.
    #[must_use]
    pub fn regions_of(&self, start: u64, end: u64) -> Range<u64> {
        let end = end.min(self.size);
        if start >= end { 0..0 } else { start / self.region..(end - 1) / self.region + 1 }
    }

    fn states_of(&self, start: u64, end: u64) -> &[AtomicU8] {
        let regions = self.regions_of(start, end);
        self.states.get(number(regions.start)..number(regions.end)).unwrap_or_default()
    }

    /// Whether every region of bytes `start..end` is marked durably.
    #[must_use]
    pub fn is_marked(&self, start: u64, end: u64) -> bool {
        self.states_of(start, end).iter().all(|s| s.load(Ordering::Acquire) & WARM != 0)
    }

    /// The same, for a writer: if true, it may go on, and the regions count as touched. To be called where
    /// [`clear`](Self::clear) cannot come in between this and the write being in flight.
    #[must_use]
    pub fn touch(&self, start: u64, end: u64) -> bool {
        for state in self.states_of(start, end) {
            let s = state.load(Ordering::Acquire);
            if s & WARM == 0 {
                return self.has_failed();
            }
            if s & TOUCHED == 0 {
                state.fetch_or(TOUCHED, Ordering::AcqRel);
            }
        }
        true
    }

    /// Looks at a region for the clearer: `None` if it is not warm, else whether it was touched since the last look.
    #[must_use]
    pub fn look(&self, region: u64) -> Option<bool> {
        let state = self.states.get(number(region))?;
        let s = state.load(Ordering::Acquire);
        if s & TOUCHED != 0 {
            state.fetch_and(!TOUCHED, Ordering::AcqRel);
        }
        (s & WARM != 0).then_some(s & TOUCHED != 0)
    }

    /// How many warm regions lie right before this one, touched since the last look, up to `most`: whether somebody
    /// writes from front to back.
    #[must_use]
    pub fn run_before(&self, region: u64, most: u64) -> u64 {
        let before = self.states.get(number(region.saturating_sub(most))..number(region)).unwrap_or_default();
        before.iter().rev().take_while(|s| s.load(Ordering::Relaxed) == WARM | TOUCHED).count() as u64
    }

    /// Marks regions. When this returns they are warm, and count as touched if `touched` says so. No sync if all were
    /// warm before.
    ///
    /// # Errors
    /// An error of the file: see the module. Writers go on nevertheless.
    pub fn mark(&self, regions: impl IntoIterator<Item = u64>, touched: impl Fn(u64) -> bool) -> io::Result<()> {
        let _marking = self.marking.lock().unwrap_or_else(PoisonError::into_inner);
        let cold = |r: &u64| self.states.get(number(*r)).is_some_and(|s| s.load(Ordering::Acquire) & WARM == 0);
        let cold: BTreeSet<u64> = regions.into_iter().filter(cold).collect();
        if cold.is_empty() || self.has_failed() {
            return if self.has_failed() { Err(io::Error::other("it has failed before")) } else { Ok(()) };
        }
        let written = {
            let mut inner = self.inner();
            let mut sectors = BTreeSet::new();
            for r in &cold {
                inner.sectors[number(r / REGIONS_PER_SECTOR)].set(*r, true);
                sectors.insert(r / REGIONS_PER_SECTOR);
            }
            self.write(&inner, sectors)
        };
        self.ended(written.and_then(|()| self.sync()))?;
        for r in &cold {
            self.states[number(*r)].store(if touched(*r) { WARM | TOUCHED } else { WARM }, Ordering::Release);
        }
        self.marked.fetch_add(cold.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Marks everything, durably, and relies on nothing any more.
    ///
    /// # Errors
    /// An error of the file.
    pub fn mark_all(&self) -> io::Result<()> {
        let _marking = self.marking.lock().unwrap_or_else(PoisonError::into_inner);
        let mut inner = self.inner();
        inner.sectors.fill(IntentSector::MARKED);
        let written = self.write(&inner, 0..inner.sectors.len() as u64);
        drop(inner);
        self.ended(written.and_then(|()| self.sync()))?;
        for state in &self.states {
            if state.fetch_or(WARM, Ordering::AcqRel) & WARM == 0 {
                self.marked.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Takes marks away, relying on the appliance having `seq` of the newest ring, whose record has `digest`. For each
    /// region `guard` is called: with every writer kept away it calls what it is given, if all that the mark stood for is
    /// over. A region that was touched since the last [`look`](Self::look) stays marked. Returns how many are clean now.
    ///
    /// # Errors
    /// An error of the file.
    pub fn clear(
        &self,
        regions: &[u64],
        (seq, digest): (u64, u64),
        mut guard: impl FnMut(u64, &mut dyn FnMut()),
    ) -> io::Result<u64> {
        // Nothing may be taken away between being marked again and becoming warm.
        let _marking = self.marking.lock().unwrap_or_else(PoisonError::into_inner);
        let mut inner = self.inner();
        let relied = Relied { generation: inner.header.generation, seq, digest };
        let (mut sectors, mut cleared) = (BTreeSet::new(), 0);
        for r in regions.iter().copied().filter(|r| *r < self.regions() && !self.has_failed()) {
            guard(r, &mut || {
                let state = &self.states[number(r)];
                if state.compare_exchange(WARM, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    let sector = &mut inner.sectors[number(r / REGIONS_PER_SECTOR)];
                    sector.set(r, false);
                    sector.relied = relied;
                    sectors.insert(r / REGIONS_PER_SECTOR);
                    cleared += 1;
                }
            });
        }
        self.marked.fetch_sub(cleared, Ordering::Relaxed);
        let written = self.write(&inner, sectors);
        drop(inner);
        self.ended(written)?;
        Ok(cleared)
    }

    /// The newest ring that the map knows.
    #[must_use]
    pub fn ring(&self) -> [u8; 16] {
        self.inner().header.rings.first().copied().unwrap_or_default()
    }

    /// A new ring is about to follow on what the appliance has: notes it, durably.
    ///
    /// # Errors
    /// An error of the file.
    pub fn begin_ring(&self, ring: [u8; 16]) -> io::Result<()> {
        let _marking = self.marking.lock().unwrap_or_else(PoisonError::into_inner);
        let mut inner = self.inner();
        let header = &mut inner.header;
        header.rings.insert(0, ring);
        header.rings.truncate(MAX_RINGS);
        (header.generation, header.turn) = (header.generation + 1, header.turn + 1);
        let written = self.medium.write_at(&header.encode(), header.copy_at());
        drop(inner);
        self.ended(written.and_then(|()| self.sync()))
    }

    /// Whether a history that is durable up to `durable` (0: empty) in `ring`, with that digest, is one of this volume's and
    /// has all that clean regions rely on. Then it differs from the disk in marked regions only.
    #[must_use]
    pub fn accepts(&self, ring: [u8; 16], durable: u64, digest: u64) -> bool {
        let inner = self.inner();
        let mut relied = inner.sectors.iter().map(|s| s.relied).filter(|r| r.seq != 0);
        if self.has_failed() {
            return false;
        }
        if durable == 0 {
            return relied.next().is_none();
        }
        let Some(age) = inner.header.rings.iter().position(|r| *r == ring) else { return false };
        let generation = inner.header.generation - age as u64;
        relied.all(|r| {
            let has = r.seq < durable || (r.seq, r.digest) == (durable, digest);
            r.generation < generation || (r.generation == generation && has)
        })
    }

    /// The map for a volume of another size, in a new file that takes the place of this one's: marks are kept, and regions
    /// that are new or were partly outside the old size are marked. No writer may be between [`touch`](Self::touch) and
    /// what it is for. Whoever marks or clears in the old map from now on changes nothing that counts.
    ///
    /// # Errors
    /// As [`create`](Self::create); the file is then as it was.
    pub fn resized(&self, new_size: u64) -> Result<IntentMap, IntentError> {
        let _marking = self.marking.lock().unwrap_or_else(PoisonError::into_inner);
        let inner = self.inner();
        let mut header = IntentHeader { size: new_size, ..inner.header.clone() };
        header.rings.truncate(MAX_RINGS);
        if !header.is_possible() {
            return Err(IntentError::Size { size: new_size, region: header.region });
        }
        let mut old = inner.sectors.clone();
        old.truncate(number(header.sectors()));
        let same = self.size.min(new_size) / header.region;
        // What is cut off must not be there when the volume grows again.
        if let Some(last) = old.last_mut() {
            let end = header.sectors() * REGIONS_PER_SECTOR;
            (header.regions()..end).for_each(|r| last.set(r, false));
        }
        let make = || {
            let new = NewFile::beside(&self.path, header.file_len())?;
            IntentMap::fill(new, &self.path, header, old, &|r| r >= same)
        };
        let made = make().map_err(file_error(&self.path))?;
        for (new, old) in made.states.iter().zip(&self.states) {
            new.fetch_or(old.load(Ordering::Acquire) & TOUCHED, Ordering::Relaxed);
        }
        Ok(made)
    }

    /// Writes sectors, in ascending order, neighbours together.
    fn write(&self, inner: &Inner, sectors: impl IntoIterator<Item = u64>) -> io::Result<()> {
        let mut sectors = sectors.into_iter().peekable();
        let mut bytes = Vec::new();
        while let Some(i) = sectors.next() {
            let sector = &inner.sectors[number(i)];
            bytes.extend_from_slice(&sector.encode(u32::try_from(i).unwrap_or(u32::MAX), inner.header.salt));
            if sectors.peek() != Some(&(i + 1)) {
                let end = SECTORS_AT + (i + 1) * SECTOR as u64;
                self.medium.write_at(&bytes, end - bytes.len() as u64)?;
                bytes.clear();
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.medium.sync()
    }

    /// Takes note of an error, for good.
    fn ended(&self, result: io::Result<()>) -> io::Result<()> {
        if result.is_err() {
            self.failed.store(true, Ordering::Release);
        }
        result
    }
}

/// The copy of the header that is in force.
fn read_header(path: &Path, file: &File, volume: [u8; 16]) -> Result<IntentHeader, IntentError> {
    let own = || path.to_path_buf();
    let mut best: Result<IntentHeader, DecodeError> = Err(DecodeError::Magic { what: "write-intent map" });
    for at in [0, SECTOR as u64] {
        let mut bytes = [0; SECTOR];
        let read = file::read_at(file, &mut bytes, at).ok().map(|()| IntentHeader::decode(&bytes));
        best = match (best, read) {
            (best, None) => best,
            (Ok(a), Some(Ok(b))) => Ok(if a.turn >= b.turn { a } else { b }),
            (Ok(a), Some(Err(_))) => Ok(a),
            (Err(_), Some(Ok(b))) => Ok(b),
            (Err(e @ DecodeError::Version { .. }), Some(Err(_))) => Err(e),
            (Err(_), Some(Err(e))) => Err(e),
        };
    }
    let header = match best {
        Ok(header) => header,
        Err(why @ DecodeError::Version { .. }) => return Err(IntentError::Version { path: own(), why }),
        Err(why) => return Err(IntentError::Header { path: own(), why }),
    };
    if header.volume != volume {
        let [found, wanted] = [header.volume, volume].map(uuid::Uuid::from_bytes);
        return Err(IntentError::OtherVolume { path: own(), found, wanted });
    }
    Ok(header)
}

#[cfg(test)]
#[path = "intent_tests.rs"]
mod tests;
