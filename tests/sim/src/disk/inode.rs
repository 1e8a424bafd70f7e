//! A file: what every process sees of it, and what a power cut leaves.

use super::{BLOCK, SECTOR, Tag};
use crate::rng::Rng;

pub(super) enum Content {
    Owned(Vec<u8>),
    /// Mapped memory, which is never given back: whoever mapped it may be frozen.
    Mapped(*mut u8, usize),
}

// SAFETY: the address is of memory that lives as long as the process; one thread runs at a time.
unsafe impl Send for Content {}

impl Content {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Content::Owned(v) => v,
            // SAFETY: mapped for good, and one thread runs at a time.
            Content::Mapped(p, n) => unsafe { std::slice::from_raw_parts(*p, *n) },
        }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Content::Owned(v) => v,
            // SAFETY: mapped for good, and one thread runs at a time.
            Content::Mapped(p, n) => unsafe { std::slice::from_raw_parts_mut(*p, *n) },
        }
    }
}

/// Anonymous memory of `len` bytes, for good.
pub(super) fn pages(len: usize) -> *mut u8 {
    // SAFETY: a new private mapping touches nothing that is there.
    let p = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len.max(BLOCK),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert!(p != libc::MAP_FAILED, "no memory");
    p.cast()
}

pub(super) struct Inode {
    pub(super) content: Content,
    pub(super) durable: Vec<u8>,
    /// Sectors written and not synced.
    pub(super) dirty: Vec<bool>,
    /// Blocks that are not holes.
    pub(super) data: Vec<bool>,
    pub(super) lock: Option<u64>,
    /// Failed syncs.
    pub(super) errors: u64,
    pub(super) ino: u64,
    pub(super) born: u64,
    pub(super) modified: u64,
    pub(super) tag: Tag,
}

impl Inode {
    pub(super) fn len(&self) -> usize {
        self.content.bytes().len()
    }

    /// Nobody can see it any more: it has no name, and all processes that had it open are gone.
    pub(super) fn forget(&mut self) {
        self.content = Content::Owned(Vec::new());
        (self.durable, self.dirty, self.data) = (Vec::new(), Vec::new(), Vec::new());
    }

    pub(super) fn copy(&self) -> Inode {
        Inode {
            content: Content::Owned(self.content.bytes().to_vec()),
            durable: self.durable.clone(),
            dirty: self.dirty.clone(),
            data: self.data.clone(),
            lock: None,
            ..*self
        }
    }

    pub(super) fn resize(&mut self, len: usize) {
        if len == self.len() {
            return;
        }
        match &mut self.content {
            Content::Owned(v) if !matches!(self.tag, Tag::Ring | Tag::Dirty) => {
                if v.is_empty() {
                    *v = vec![0; len];
                } else {
                    v.resize(len, 0);
                }
            }
            old => {
                // Most of it stays untouched, and then costs nothing.
                let (p, n) = (pages(len), old.bytes().len().min(len));
                // SAFETY: new memory of at least that length.
                unsafe { std::ptr::copy_nonoverlapping(old.bytes().as_ptr(), p, n) };
                *old = Content::Mapped(p, len);
            }
        }
        self.resize_maps(len);
    }

    fn resize_maps(&mut self, len: usize) {
        self.dirty.resize(len.div_ceil(SECTOR), true);
        self.data.resize(len.div_ceil(BLOCK), false);
    }

    pub(super) fn put(&mut self, data: &[u8], at: usize) {
        if data.is_empty() {
            return;
        }
        let end = at + data.len();
        match &mut self.content {
            // As most files are written.
            Content::Owned(v) if at == v.len() && at > 0 => {
                v.extend_from_slice(data);
                self.resize_maps(end);
            }
            _ => {
                if end > self.len() {
                    self.resize(end);
                }
                self.content.bytes_mut()[at..end].copy_from_slice(data);
            }
        }
        self.dirty[at / SECTOR..end.div_ceil(SECTOR)].fill(true);
        self.data[at / BLOCK..end.div_ceil(BLOCK)].fill(true);
    }

    /// Makes sectors durable.
    pub(super) fn write_back(&mut self, from: usize, to: usize, mut pick: impl FnMut(usize) -> bool) {
        let len = self.len();
        if self.durable.is_empty() {
            // Zeroed by the system, if it is new: a ring is large, and most of it is never written.
            self.durable = vec![0; len];
        } else {
            self.durable.resize(len, 0);
        }
        let mapped = matches!(self.content, Content::Mapped(..));
        let bytes = self.content.bytes();
        for s in from / SECTOR..to.min(len).div_ceil(SECTOR) {
            if (self.dirty[s] || mapped) && pick(s) {
                let range = s * SECTOR..((s + 1) * SECTOR).min(len);
                // Of mapped memory nobody knows what was written.
                if !mapped || self.durable[range.clone()] != bytes[range.clone()] {
                    self.durable[range.clone()].copy_from_slice(&bytes[range]);
                }
                self.dirty[s] = false;
            }
        }
    }

    pub(super) fn power_cut(&mut self, rng: &mut Rng) {
        let (old, new) = (self.durable.len(), self.len());
        let len = match rng.below(4) {
            0 => old,
            1 => new,
            _ => {
                let (low, high) = (old.min(new), old.max(new));
                low + rng.index(high - low + 1) / SECTOR * SECTOR
            }
        };
        let keep = [0, 1000, 500, rng.below(1000)][rng.index(4)];
        let mapped = matches!(self.content, Content::Mapped(..));
        let mut left = self.durable.clone();
        left.resize(len, 0);
        let bytes = self.content.bytes();
        for s in 0..len.min(new).div_ceil(SECTOR) {
            if (self.dirty[s] || mapped) && rng.permille(keep) {
                let range = s * SECTOR..((s + 1) * SECTOR).min(len).min(new);
                if !mapped || left[range.clone()] != bytes[range.clone()] {
                    left[range.clone()].copy_from_slice(&bytes[range]);
                }
            }
        }
        self.durable.clone_from(&left);
        self.content = Content::Owned(left);
        self.dirty = vec![false; len.div_ceil(SECTOR)];
        self.data.resize(len.div_ceil(BLOCK), false);
    }
}
