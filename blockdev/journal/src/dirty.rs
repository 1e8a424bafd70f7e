//! The persistent dirty map of a volume: which regions may differ from the appliance's copy.
//!
//! The bytes are in [`afterimage_format::dirtymap`]. Marking is a compare-and-swap of one mapped word, and nothing if
//! the mark is there already. As with the ring, the page cache keeps marks when the process dies; after a restart
//! of the machine only a map with a mark of a clean stop is trusted. A word holds its marks twice, so one that was lost
//! or damaged is never taken for clean.

use crate::error::DirtyMapError;
use crate::file::{self, FileError, Locked, NewFile, doing, set_word, word_of};
use crate::map::Map;
use afterimage_base::world::fs::File;
use afterimage_format::codec::DecodeError;
use afterimage_format::dirtymap::{
    DirtyMapHeader, FIXED_LEN, REGIONS_PER_WORD, WORDS_AT, marks_of, word, word_of as packed,
};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// How a dirty map was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// By a clean stop.
    Clean,
    /// By a killed process, on this boot: every mark is there.
    Killed,
}

/// The persistent dirty map of one volume. Shared through an `Arc`.
pub(crate) struct Marks {
    map: Map,
    header: DirtyMapHeader,
    /// Bytes of the volume in marked regions.
    dirty: AtomicU64,
    path: PathBuf,
    /// Open and locked for as long as the map lives.
    _file: Locked,
}

fn file_error(path: &Path) -> impl Fn(FileError) -> DirtyMapError {
    let path = path.to_path_buf();
    move |e| match e {
        FileError::InUse => DirtyMapError::InUse { path: path.clone() },
        FileError::Io { doing, source } => DirtyMapError::Io { path: path.clone(), doing, source },
    }
}

/// The marks of a word in use; one that somebody else damaged meanwhile counts as all marked.
fn marks(word: u64) -> u32 {
    marks_of(word).unwrap_or(u32::MAX)
}

impl Marks {
    /// Makes a new map with nothing marked, in place of any file at `path` that nobody has open. Space is
    /// allocated now. Mode 0600. `region` is a power of two (65,536 by habit).
    ///
    /// # Errors
    /// [`DirtyMapError::Size`], [`DirtyMapError::InUse`], [`DirtyMapError::Io`].
    pub(crate) fn create(path: &Path, volume: [u8; 16], size: u64, region: u64) -> Result<Marks, DirtyMapError> {
        let header = DirtyMapHeader { volume, size, region };
        if !header.is_possible() {
            return Err(DirtyMapError::Size { size, region });
        }
        let make = || Marks::fill(NewFile::begin(path, header.file_len())?, path, header, |_| 0);
        make().map_err(file_error(path))
    }

    /// Writes a whole new map, with the marks that `marks` gives for each word, and puts it in its place.
    fn fill(new: NewFile, path: &Path, header: DirtyMapHeader, marks: impl Fn(u64) -> u32) -> Result<Marks, FileError> {
        let boot = file::boot_id()?;
        let mut page = [0; 4096];
        page[..FIXED_LEN].copy_from_slice(&header.encode());
        set_word(&mut page, word::BOOT, boot[0]);
        set_word(&mut page, word::BOOT + 1, boot[1]);
        set_word(&mut page, word::BOOT_CHECK, header.boot_check(boot));
        new.file().write_all_at(&page, 0).map_err(doing("write its header"))?;
        let map = Map::new(new.file(), header.file_len(), header.file_len()).map_err(doing("map it"))?;
        for w in 0..(header.file_len() - WORDS_AT) / 8 {
            let marks = if w < header.words() { marks(w) & valid(&header, w) } else { 0 };
            word_in(&map, w).store(packed(marks), Ordering::Relaxed);
        }
        map.sync().map_err(doing("write its marks"))?;
        let file = new.finish()?;
        let made = Marks { map, header, dirty: AtomicU64::new(0), path: path.to_path_buf(), _file: file };
        made.count().map_err(|_| doing("read its marks back")(io::ErrorKind::InvalidData.into()))?;
        Ok(made)
    }

    /// Opens the map at `path`.
    ///
    /// # Errors
    /// As [`DirtyMapError`] says. After any but [`DirtyMapError::InUse`] and [`DirtyMapError::Io`] the marks are lost:
    /// [`create`](Self::create) a new map and [`mark_all`](Self::mark_all).
    pub(crate) fn open(path: &Path, volume: [u8; 16]) -> Result<(Marks, Left), DirtyMapError> {
        let error = file_error(path);
        let file = file::open(path).map_err(&error)?;
        let (header, page) = read_head(path, &file, volume)?;
        let damaged = |what| DirtyMapError::Header { path: path.to_path_buf(), what };
        let boot = file::boot_id().map_err(&error)?;
        let clean = word_of(&page, word::CLEAN);
        if clean == 0 {
            let left = [word_of(&page, word::BOOT), word_of(&page, word::BOOT + 1)];
            if word_of(&page, word::BOOT_CHECK) != header.boot_check(left) {
                return Err(damaged("boot id"));
            }
            if left != boot {
                return Err(DirtyMapError::OtherBoot { path: path.to_path_buf() });
            }
        }
        let map = Map::new(&file, header.file_len(), header.file_len()).map_err(doing("map it")).map_err(&error)?;
        let opened = Marks { map, header, dirty: AtomicU64::new(0), path: path.to_path_buf(), _file: file };
        let marked = opened.count()?;
        if clean != 0 && clean != header.clean_mark(marked) {
            return Err(damaged("clean mark"));
        }
        if clean != 0 {
            opened.take_into_use(boot).map_err(doing("sync its header")).map_err(&error)?;
        }
        Ok((opened, if clean == 0 { Left::Killed } else { Left::Clean }))
    }

    /// Takes the clean mark away, durably, before any mark is made: a later power cut must not find it.
    fn take_into_use(&self, boot: [u64; 2]) -> io::Result<()> {
        self.map.header(word::BOOT).store(boot[0], Ordering::Relaxed);
        self.map.header(word::BOOT + 1).store(boot[1], Ordering::Relaxed);
        self.map.header(word::BOOT_CHECK).store(self.header.boot_check(boot), Ordering::Relaxed);
        self.map.header(word::CLEAN).store(0, Ordering::Release);
        self.map.sync_header()
    }

    /// Checks every word; returns the number of marks and sets the count of dirty bytes.
    fn count(&self) -> Result<u64, DirtyMapError> {
        let (mut marked, mut bytes) = (0, 0);
        for w in 0..self.capacity_words() {
            match marks_of(self.word(w).load(Ordering::Relaxed)) {
                Some(marks) if marks & !valid(&self.header, w) == 0 => {
                    marked += u64::from(marks.count_ones());
                    bytes += self.bytes_of(w, marks);
                }
                _ => {
                    let (region, offset) = (w * REGIONS_PER_WORD, WORDS_AT + w * 8);
                    return Err(DirtyMapError::Damaged { path: self.path.clone(), region, offset });
                }
            }
        }
        self.dirty.store(bytes, Ordering::Relaxed);
        Ok(marked)
    }

    /// Words in the file, those that only fill the last page counted.
    const fn capacity_words(&self) -> u64 {
        (self.header.file_len() - WORDS_AT) / 8
    }

    fn word(&self, w: u64) -> &AtomicU64 {
        word_in(&self.map, w)
    }

    /// Bytes of the volume under these marks of word `w`.
    fn bytes_of(&self, w: u64, marks: u32) -> u64 {
        let all = u64::from(marks.count_ones()) * self.header.region;
        let last = self.header.regions().saturating_sub(1);
        let last_marked = last / REGIONS_PER_WORD == w && marks >> (last % REGIONS_PER_WORD) & 1 == 1;
        let missing = self.header.regions() * self.header.region - self.header.size;
        if last_marked { all - missing } else { all }
    }

    /// Sets marks of word `w`.
    fn set(&self, w: u64, bits: u32) {
        let word = self.word(w);
        let mut was = word.load(Ordering::Acquire);
        while marks(was) & bits != bits {
            let now = packed(marks(was) | bits);
            match word.compare_exchange_weak(was, now, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    self.dirty.fetch_add(self.bytes_of(w, bits & !marks(was)), Ordering::Relaxed);
                    return;
                }
                Err(other) => was = other,
            }
        }
    }

    /// Takes marks of word `w` away.
    fn unset(&self, w: u64, bits: u32) {
        let word = self.word(w);
        let mut was = word.load(Ordering::Acquire);
        while marks(was) & bits != 0 {
            let now = packed(marks(was) & !bits);
            match word.compare_exchange_weak(was, now, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    self.dirty.fetch_sub(self.bytes_of(w, bits & marks(was)), Ordering::Relaxed);
                    return;
                }
                Err(other) => was = other,
            }
        }
    }

    /// Size of the volume in bytes, as the map knows it.
    #[must_use]
    pub(crate) fn size(&self) -> u64 {
        self.header.size
    }

    /// Size of a region in bytes.
    #[must_use]
    pub(crate) fn region(&self) -> u64 {
        self.header.region
    }

    /// Number of regions.
    #[must_use]
    pub(crate) fn regions(&self) -> u64 {
        self.header.regions()
    }

    /// The bytes of the volume that a region covers (the last one may be short).
    #[must_use]
    pub(crate) fn region_range(&self, region: u64) -> Range<u64> {
        let at = |r: u64| r.saturating_mul(self.header.region).min(self.header.size);
        at(region)..at(region.saturating_add(1))
    }

    /// Marks every region that the range touches. Lock-free; what lies past the end is ignored.
    pub(crate) fn mark(&self, offset: u64, len: u64) {
        let end = offset.saturating_add(len).min(self.header.size);
        if offset >= end {
            return;
        }
        let (first, last) = (offset / self.header.region, (end - 1) / self.header.region);
        for w in first / REGIONS_PER_WORD..=last / REGIONS_PER_WORD {
            let base = w * REGIONS_PER_WORD;
            let from = first.saturating_sub(base);
            let to = (last + 1 - base).min(REGIONS_PER_WORD);
            self.set(w, low_bits(to) & !low_bits(from));
        }
    }

    /// Takes the mark of a region away.
    pub(crate) fn clear(&self, region: u64) {
        if region < self.regions() {
            self.unset(region / REGIONS_PER_WORD, 1 << (region % REGIONS_PER_WORD));
        }
    }

    /// Whether a region is marked.
    #[must_use]
    pub(crate) fn is_dirty(&self, region: u64) -> bool {
        region < self.regions() && self.marks_from(region) & 1 == 1
    }

    /// The marks of `region` (bit 0) and of those behind it in the same word.
    fn marks_from(&self, region: u64) -> u32 {
        marks(self.word(region / REGIONS_PER_WORD).load(Ordering::Acquire)) >> (region % REGIONS_PER_WORD)
    }

    /// The first marked region from `from` on.
    #[must_use]
    pub(crate) fn next_dirty(&self, from: u64) -> Option<u64> {
        let mut region = from;
        while region < self.regions() {
            let marks = self.marks_from(region);
            if marks != 0 {
                return Some(region + u64::from(marks.trailing_zeros())).filter(|r| *r < self.regions());
            }
            region = (region / REGIONS_PER_WORD + 1) * REGIONS_PER_WORD;
        }
        None
    }

    /// The first run of marked regions from `from` on, at most `max` regions long.
    #[must_use]
    pub(crate) fn run_dirty(&self, from: u64, max: u64) -> Option<Range<u64>> {
        let start = self.next_dirty(from).filter(|_| max > 0)?;
        let limit = start.saturating_add(max).min(self.regions());
        let mut end = start + 1;
        while end < limit {
            let ones = u64::from(self.marks_from(end).trailing_ones());
            end += ones;
            if ones == 0 || !end.is_multiple_of(REGIONS_PER_WORD) {
                break;
            }
        }
        Some(start..end.min(limit))
    }

    /// Bytes of the volume in marked regions. Costs one load.
    #[must_use]
    pub(crate) fn dirty_bytes(&self) -> u64 {
        self.dirty.load(Ordering::Relaxed)
    }

    /// Marks every region.
    pub(crate) fn mark_all(&self) {
        self.mark(0, self.header.size);
    }

    /// Takes every mark away.
    pub(crate) fn clear_all(&self) {
        for w in 0..self.header.words() {
            self.unset(w, u32::MAX);
        }
    }

    /// The map for a volume of another size, in a new file: old marks are kept, regions that are new or were partly
    /// outside the old size are marked.
    ///
    /// # Errors
    /// As [`create`](Self::create); the map is then as it was.
    pub(crate) fn resize(&mut self, new_size: u64) -> Result<(), DirtyMapError> {
        let header = DirtyMapHeader { size: new_size, ..self.header };
        if !header.is_possible() {
            return Err(DirtyMapError::Size { size: new_size, region: header.region });
        }
        // Regions whose bytes are the same in both sizes.
        let same = self.header.size.min(new_size) / header.region;
        let marks = |w: u64| {
            let kept = low_bits(same.saturating_sub(w * REGIONS_PER_WORD).min(REGIONS_PER_WORD));
            let old = if w < self.header.words() { marks(self.word(w).load(Ordering::Acquire)) } else { 0 };
            // A cut region that was not marked is still the same as far as it goes.
            let cut = if new_size <= self.header.size { old } else { u32::MAX };
            old & kept | cut & !kept
        };
        let make = || Marks::fill(NewFile::beside(&self.path, header.file_len())?, &self.path, header, marks);
        *self = make().map_err(file_error(&self.path))?;
        Ok(())
    }

    /// Makes the marks durable.
    ///
    /// # Errors
    /// A failed sync, which is final (I11).
    pub(crate) fn flush(&self) -> io::Result<()> {
        self.map.sync()
    }

    /// Makes the marks durable and the map trusted after a restart of the machine. Nothing may be marked or
    /// cleared during or after this.
    ///
    /// # Errors
    /// A failed sync, which is final (I11): the map is then not marked as clean.
    pub(crate) fn mark_clean(&self) -> io::Result<()> {
        self.map.sync()?;
        let words = (0..self.header.words()).map(|w| self.word(w).load(Ordering::Relaxed));
        let marked = words.map(|word| u64::from(marks(word).count_ones())).sum();
        self.map.header(word::CLEAN).store(self.header.clean_mark(marked), Ordering::Release);
        self.map.sync_header()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits, asserted in map.rs")]
fn word_in(map: &Map, w: u64) -> &AtomicU64 {
    map.word((WORDS_AT / 8 + w) as usize)
}

/// The bits of word `w` that stand for regions.
const fn valid(header: &DirtyMapHeader, w: u64) -> u32 {
    low_bits(header.regions().saturating_sub(w * REGIONS_PER_WORD))
}

/// The `n` lowest bits, at most 32.
const fn low_bits(n: u64) -> u32 {
    if n >= REGIONS_PER_WORD { u32::MAX } else { (1 << n) - 1 }
}

fn read_head(path: &Path, file: &File, volume: [u8; 16]) -> Result<(DirtyMapHeader, [u8; 4096]), DirtyMapError> {
    let error = file_error(path);
    let path = path.to_path_buf();
    let have = file.metadata().map_err(doing("look at it")).map_err(&error)?.len;
    if have < WORDS_AT {
        return Err(DirtyMapError::Truncated { path, need: WORDS_AT, have });
    }
    let mut page = [0; 4096];
    file::read_at(file, &mut page, 0).map_err(&error)?;
    let mut fixed = [0; FIXED_LEN];
    fixed.copy_from_slice(&page[..FIXED_LEN]);
    let header = match DirtyMapHeader::decode(&fixed) {
        Ok(header) => header,
        Err(why @ DecodeError::Magic { .. }) => return Err(DirtyMapError::NotAMap { path, why }),
        Err(why @ DecodeError::Version { .. }) => return Err(DirtyMapError::Version { path, why }),
        Err(_) => return Err(DirtyMapError::Header { path, what: "its first 64 bytes" }),
    };
    if header.volume != volume {
        let [found, wanted] = [header.volume, volume].map(uuid::Uuid::from_bytes);
        return Err(DirtyMapError::OtherVolume { path, found, wanted });
    }
    if have < header.file_len() {
        return Err(DirtyMapError::Truncated { path, need: header.file_len(), have });
    }
    Ok((header, page))
}

#[cfg(test)]
#[path = "dirty_tests.rs"]
mod tests;
