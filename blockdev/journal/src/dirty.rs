//! The dirty map.

use crate::error::DirtyMapError;
use std::io;
use std::ops::Range;
use std::path::Path;

/// How a dirty map was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// By a clean stop.
    Clean,
    /// By a killed process, on this boot: every mark is there.
    Killed,
}

/// The persistent dirty map of one volume. Shared through an `Arc`.
pub struct DirtyMap {}

impl DirtyMap {
    /// Makes a new map with nothing marked, in place of any file at `path`. Space is allocated now. Mode 0600.
    /// `region` is a power of two (65,536 by habit).
    ///
    /// # Errors
    /// [`DirtyMapError::Size`], [`DirtyMapError::InUse`], [`DirtyMapError::Io`].
    pub fn create(path: &Path, volume: [u8; 16], size: u64, region: u64) -> Result<DirtyMap, DirtyMapError> {
        todo!()
    }

    /// Opens the map at `path`.
    ///
    /// # Errors
    /// As [`DirtyMapError`] says. After any but [`DirtyMapError::InUse`] and [`DirtyMapError::Io`] the marks are lost:
    /// [`create`](Self::create) a new map and [`mark_all`](Self::mark_all).
    pub fn open(path: &Path, volume: [u8; 16]) -> Result<(DirtyMap, Left), DirtyMapError> {
        todo!()
    }

    /// Size of the volume in bytes, as the map knows it.
    pub fn size(&self) -> u64 {
        todo!()
    }

    /// Size of a region in bytes.
    pub fn region(&self) -> u64 {
        todo!()
    }

    /// Number of regions.
    pub fn regions(&self) -> u64 {
        todo!()
    }

    /// The bytes of the volume that a region covers (the last one may be short).
    pub fn region_range(&self, region: u64) -> Range<u64> {
        todo!()
    }

    /// Marks every region that the range touches. Lock-free; what lies past the end is ignored.
    pub fn mark(&self, offset: u64, len: u64) {
        todo!()
    }

    /// Takes the mark of a region away.
    pub fn clear(&self, region: u64) {
        todo!()
    }

    /// Whether a region is marked.
    pub fn is_dirty(&self, region: u64) -> bool {
        todo!()
    }

    /// The first marked region from `from` on.
    pub fn next_dirty(&self, from: u64) -> Option<u64> {
        todo!()
    }

    /// The first run of marked regions from `from` on, at most `max` regions long.
    pub fn run_dirty(&self, from: u64, max: u64) -> Option<Range<u64>> {
        todo!()
    }

    /// Bytes of the volume in marked regions. Costs one load.
    pub fn dirty_bytes(&self) -> u64 {
        todo!()
    }

    /// Marks every region.
    pub fn mark_all(&self) {
        todo!()
    }

    /// Takes every mark away.
    pub fn clear_all(&self) {
        todo!()
    }

    /// The map for a volume of another size: old marks are kept, regions that are new or were cut are marked.
    /// Nothing may be marked meanwhile.
    ///
    /// # Errors
    /// As [`create`](Self::create); the file is then as it was.
    pub fn resize(&mut self, new_size: u64) -> Result<(), DirtyMapError> {
        todo!()
    }

    /// Makes the marks durable.
    ///
    /// # Errors
    /// A failed sync, which is final (I11).
    pub fn flush(&self) -> io::Result<()> {
        todo!()
    }

    /// Makes the marks durable and the map trusted after a restart of the machine. Nothing may be marked or
    /// cleared during or after this.
    ///
    /// # Errors
    /// A failed sync, which is final (I11): the map is then not marked as clean.
    pub fn mark_clean(&self) -> io::Result<()> {
        todo!()
    }
}
