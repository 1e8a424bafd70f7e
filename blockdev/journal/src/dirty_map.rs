//! The dirty map as its users have it: marks in a file that gives way to another one when the volume changes its size.

use crate::dirty::{Left, Marks};
use crate::error::DirtyMapError;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// The persistent dirty map of one volume. Shared through an `Arc`; every method may be called from any thread. What
/// marks and asks shares a lock that only a change of size takes alone.
pub struct DirtyMap(RwLock<Marks>);

impl DirtyMap {
    /// Makes a new map with nothing marked, in place of any file at `path` that nobody has open. Space is
    /// allocated now. Mode 0600. `region` is a power of two (65,536 by habit).
    ///
    /// # Errors
    /// [`DirtyMapError::Size`], [`DirtyMapError::InUse`], [`DirtyMapError::Io`].
    pub fn create(path: &Path, volume: [u8; 16], size: u64, region: u64) -> Result<DirtyMap, DirtyMapError> {
        Ok(DirtyMap(RwLock::new(Marks::create(path, volume, size, region)?)))
    }

    /// Opens the map at `path`.
    ///
    /// # Errors
    /// As [`DirtyMapError`] says. After any but [`DirtyMapError::InUse`] and [`DirtyMapError::Io`] the marks are lost:
    /// [`create`](Self::create) a new map and [`mark_all`](Self::mark_all).
    pub fn open(path: &Path, volume: [u8; 16]) -> Result<(DirtyMap, Left), DirtyMapError> {
        let (marks, left) = Marks::open(path, volume)?;
        Ok((DirtyMap(RwLock::new(marks)), left))
    }

    fn marks(&self) -> RwLockReadGuard<'_, Marks> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Size of the volume in bytes, as the map knows it.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.marks().size()
    }

    /// Size of a region in bytes.
    #[must_use]
    pub fn region(&self) -> u64 {
        self.marks().region()
    }

    /// Number of regions.
    #[must_use]
    pub fn regions(&self) -> u64 {
        self.marks().regions()
    }

    /// The bytes of the volume that a region covers (the last one may be short).
    #[must_use]
    pub fn region_range(&self, region: u64) -> Range<u64> {
        self.marks().region_range(region)
    }

    /// Marks every region that the range touches; what lies past the end is ignored.
    pub fn mark(&self, offset: u64, len: u64) {
        self.marks().mark(offset, len);
    }

    /// Takes the mark of a region away.
    pub fn clear(&self, region: u64) {
        self.marks().clear(region);
    }

    /// Whether a region is marked.
    #[must_use]
    pub fn is_dirty(&self, region: u64) -> bool {
        self.marks().is_dirty(region)
    }

    /// The first marked region from `from` on.
    #[must_use]
    pub fn next_dirty(&self, from: u64) -> Option<u64> {
        self.marks().next_dirty(from)
    }

    /// The first run of marked regions from `from` on, at most `max` regions long.
    #[must_use]
    pub fn run_dirty(&self, from: u64, max: u64) -> Option<Range<u64>> {
        self.marks().run_dirty(from, max)
    }

    /// Bytes of the volume in marked regions.
    #[must_use]
    pub fn dirty_bytes(&self) -> u64 {
        self.marks().dirty_bytes()
    }

    /// Marks every region.
    pub fn mark_all(&self) {
        self.marks().mark_all();
    }

    /// Takes every mark away.
    pub fn clear_all(&self) {
        self.marks().clear_all();
    }

    /// The map for a volume of another size, in a new file: old marks are kept, regions that are new or were partly
    /// outside the old size are marked.
    ///
    /// # Errors
    /// As [`create`](Self::create); the map is then as it was.
    pub fn resize(&self, new_size: u64) -> Result<(), DirtyMapError> {
        self.0.write().unwrap_or_else(PoisonError::into_inner).resize(new_size)
    }

    /// Makes the marks durable.
    ///
    /// # Errors
    /// A failed sync, which is final (I11).
    pub fn flush(&self) -> io::Result<()> {
        self.marks().flush()
    }

    /// Makes the marks durable and the map trusted after a restart of the machine. Nothing may be marked or
    /// cleared during or after this.
    ///
    /// # Errors
    /// A failed sync, which is final (I11): the map is then not marked as clean.
    pub fn mark_clean(&self) -> io::Result<()> {
        self.marks().mark_clean()
    }
}
