//! Page-aligned memory, as direct I/O needs it.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Alignment of every [`AlignedBuf`], in bytes: a page, which every disk's direct I/O accepts.
pub const ALIGN: usize = 4096;

/// An owned byte buffer that begins at a page boundary. Its capacity is rounded up to whole pages.
pub struct AlignedBuf {
    ptr: NonNull<u8>,
    len: usize,
    capacity: usize,
}

// SAFETY: the buffer owns its memory exclusively, as a Vec<u8> does.
unsafe impl Send for AlignedBuf {}
// SAFETY: a shared reference gives read access only.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// A buffer of `len` zero bytes.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let (layout, capacity) = Self::layout(len);
        // SAFETY: the layout's size is at least one page, never zero.
        let ptr = unsafe { alloc_zeroed(layout) };
        Self { ptr: NonNull::new(ptr).unwrap_or_else(|| handle_alloc_error(layout)), len, capacity }
    }

    /// A buffer with a copy of `bytes`.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Self {
        let (layout, capacity) = Self::layout(bytes.len());
        // SAFETY: the layout's size is at least one page, never zero.
        let ptr = unsafe { alloc(layout) };
        let ptr = NonNull::new(ptr).unwrap_or_else(|| handle_alloc_error(layout));
        // SAFETY: `capacity >= bytes.len()` bytes were just allocated and overlap nothing.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), ptr.as_ptr(), bytes.len()) };
        // SAFETY: bytes.len() <= capacity, so this is inside the allocation or one past its end.
        let tail = unsafe { ptr.as_ptr().add(bytes.len()) };
        // SAFETY: the rest of the allocation begins there; zeroing it makes all of it initialised.
        unsafe { std::ptr::write_bytes(tail, 0, capacity - bytes.len()) };
        Self { ptr, len: bytes.len(), capacity }
    }

    fn layout(len: usize) -> (Layout, usize) {
        let capacity = len.max(1).next_multiple_of(ALIGN);
        match Layout::from_size_align(capacity, ALIGN) {
            Ok(layout) => (layout, capacity),
            Err(_) => panic!("a buffer of {len} bytes cannot be laid out"),
        }
    }

    /// Bytes that fit without a new allocation.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Sets the length to `len`, which must fit the capacity. Bytes beyond the old length hold whatever was
    /// there before, always initialised.
    ///
    /// # Panics
    /// If `len` is more than the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity, "length {len} exceeds the capacity {}", self.capacity);
        self.len = len;
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        let (layout, _) = Self::layout(self.capacity);
        // SAFETY: allocated in the constructors with this very layout, freed once.
        unsafe { dealloc(self.ptr.as_ptr(), layout) }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len <= capacity` initialised bytes are owned by us.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in deref, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_whole() {
        for len in [0, 1, 4095, 4096, 4097, 100_000] {
            let b = AlignedBuf::zeroed(len);
            assert!(b.as_ptr().addr().is_multiple_of(ALIGN) && b.len() == len && b.iter().all(|x| *x == 0));
            let bytes: Vec<u8> = (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
            let mut c = AlignedBuf::copy_of(&bytes);
            assert_eq!(&*c, &bytes[..]);
            c.set_len(c.capacity());
            assert!(c[len..].iter().all(|x| *x == 0));
        }
    }
}
