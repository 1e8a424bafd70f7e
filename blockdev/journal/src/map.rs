//! The mapped file: the only place of this crate with `unsafe`, behind accessors with types.
//!
//! A file is seen as words (atomic, shared by everybody) and as data pages. Who may touch a data page is proved by
//! a token that only the ring's core makes: a [`Claim`] for the writer that has reserved it and not published
//! yet, a [`Pin`] for readers of what is published. Nobody but this process writes to the file (it is locked),
//! and its length does not change: both are checked when it is opened. A disk that fails under the file kills the
//! process with SIGBUS, as it would any user of mapped files; space is allocated beforehand.

use crate::live::core::{Claim, Pin};
use afterimage_base::world::fs::{File, Mapping};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const _: () = assert!(cfg!(target_endian = "little"), "words of the file are used as they are");
const _: () = assert!(size_of::<usize>() == 8, "offsets in the file are used as addresses");

const PAGE: usize = 4096;
const SLOT: usize = 64;
/// How much is touched at a time: small enough to stop soon, large enough to be one call per many pages.
const PREFAULT_STEP: usize = 4 << 20;

/// A mapped file.
pub(crate) struct Map {
    raw: Mapping,
    /// Where the data pages begin.
    data_at: usize,
}

impl Map {
    /// Maps the first `len` bytes, data pages from `data_at` on. Both are multiples of 4096.
    #[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits, asserted above")]
    pub(crate) fn new(file: &File, len: u64, data_at: u64) -> io::Result<Map> {
        let (len, data_at) = (len as usize, data_at as usize);
        assert!(data_at >= PAGE && data_at <= len && len.is_multiple_of(PAGE) && data_at.is_multiple_of(PAGE));
        let raw = Mapping::new(file, len)?;
        Ok(Map { raw, data_at })
    }

    /// The 8-byte word number `index` of the file.
    pub(crate) fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.data_at / 8);
        // SAFETY: inside the mapping, checked above.
        let word = unsafe { self.raw.as_mut_ptr().cast::<u64>().add(index) };
        // SAFETY: aligned (a mapping begins at a page), lives as long as the map, and is never reached but as an
        // atomic, because data pages begin behind it.
        unsafe { AtomicU64::from_ptr(word) }
    }

    /// A word of the header page.
    pub(crate) fn header(&self, index: usize) -> &AtomicU64 {
        self.word(index)
    }

    /// The slot number `index`, which lies behind the header page.
    #[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits, asserted above")]
    pub(crate) fn slot(&self, index: u64) -> &[AtomicU64; 8] {
        let at = PAGE + index as usize * SLOT;
        assert!(at + SLOT <= self.data_at);
        // SAFETY: inside the mapping, checked above.
        let slot = unsafe { self.raw.as_mut_ptr().add(at) }.cast::<[AtomicU64; 8]>();
        // SAFETY: as in `word`; an array of atomics is laid out as its elements.
        unsafe { &*slot }
    }

    /// Address of `len` bytes from data page `page` on.
    #[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits, asserted above")]
    pub(crate) fn address(&self, page: u64, len: usize) -> *mut u8 {
        let at = self.data_at + page as usize * PAGE;
        assert!(at <= self.raw.len() && len <= self.raw.len() - at);
        // SAFETY: inside the mapping, checked above.
        unsafe { self.raw.as_mut_ptr().add(at) }
    }

    /// The first `len` bytes of the pages that `claim` covers, which begin at data page `page`.
    pub(crate) fn payload_mut<'a>(&'a self, claim: &'a mut Claim, page: u64, len: usize) -> &'a mut [u8] {
        assert!(len as u64 <= claim.pages() * PAGE as u64);
        let start = self.address(page, len);
        // SAFETY: in bounds; the claim says that no other writer has these pages and that no reader can find them
        // before it is published, and it is borrowed for as long as the slice lives.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }

    /// The payload of a record that was read under `pin`.
    pub(crate) fn payload<'a>(&'a self, _pin: &Pin<'a>, page: u64, len: usize) -> &'a [u8] {
        let start = self.address(page, len);
        // SAFETY: in bounds; published pages are written to by nobody until they are freed, and the pin, which
        // the caller keeps beside the slice, prevents that.
        unsafe { std::slice::from_raw_parts(start, len) }
    }

    /// Writes everything back and waits for it.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.raw.sync(0, self.raw.len())
    }

    /// Writes the header page back and waits for it.
    pub(crate) fn sync_header(&self) -> io::Result<()> {
        self.raw.sync(0, PAGE)
    }

    /// Makes every page present and writable.
    pub(crate) fn prefault(&self, stop: &AtomicBool) -> io::Result<()> {
        let mut at = 0;
        while at < self.raw.len() && !stop.load(Ordering::Relaxed) {
            let len = PREFAULT_STEP.min(self.raw.len() - at);
            match self.raw.populate(at, len) {
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return Ok(()),
                Err(e) if e.raw_os_error() == Some(libc::EINTR) => continue,
                done => done?,
            }
            at += len;
        }
        Ok(())
    }
}
