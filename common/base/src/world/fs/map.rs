//! A file mapped into memory, shared.

use super::{File, SimMap};
use memmap2::{Advice, MmapOptions, MmapRaw};
use std::io;
use std::sync::Arc;

#[derive(Debug)]
enum Of {
    Real(MmapRaw),
    Sim(Arc<dyn SimMap>),
}

/// The first bytes of a file in memory. What is stored there is the file's content at once, for every process, and durable when it
/// is [synced](Self::sync).
#[derive(Debug)]
pub struct Mapping {
    address: *mut u8,
    len: usize,
    of: Of,
}

// SAFETY: it is an address and a length; whoever uses the memory behind them answers for how.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of `file`, which must have them for as long as this lives.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn new(file: &File, len: usize) -> io::Result<Mapping> {
        let of = match file.of() {
            Ok(f) => Of::Real(MmapOptions::new().len(len).map_raw(f)?),
            Err(f) => Of::Sim(f.map(len)?),
        };
        let address = match &of {
            Of::Real(map) => map.as_mut_ptr(),
            Of::Sim(map) => map.address(),
        };
        Ok(Mapping { address, len, of })
    }

    /// Its first byte.
    #[inline]
    #[must_use]
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.address
    }

    /// Its length in bytes.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes a range durable.
    ///
    /// # Errors
    /// As msync(2). It is final for the file (I11).
    pub fn sync(&self, offset: usize, len: usize) -> io::Result<()> {
        match &self.of {
            Of::Real(map) => map.flush_range(offset, len),
            Of::Sim(map) => map.sync(offset, len),
        }
    }

    /// Makes the pages of a range present and writable.
    ///
    /// # Errors
    /// As madvise(2); EINVAL on kernels that do not know it.
    pub fn populate(&self, offset: usize, len: usize) -> io::Result<()> {
        match &self.of {
            Of::Real(map) => map.advise_range(Advice::PopulateWrite, offset, len),
            Of::Sim(_) => Ok(()),
        }
    }
}
