//! Read buffers of one connection, used again.

use crate::limits::POOLED_BYTES;
use afterimage_base::buf::{ALIGN, AlignedBuf};

/// Size classes: 1, 2, 4, ... pages, up to 2^16 pages (256 MiB), which is past every limit.
const CLASSES: usize = 17;

/// Free buffers by size class.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    classes: [Vec<AlignedBuf>; CLASSES],
    bytes: usize,
}

/// Bytes that a buffer for `len` bytes takes: its size class.
pub(crate) const fn cost(len: usize) -> usize {
    if len <= ALIGN { ALIGN } else { len.next_power_of_two() }
}

fn class(capacity: usize) -> usize {
    (capacity / ALIGN).max(1).ilog2() as usize
}

impl Pool {
    /// A buffer of `len` bytes with any content.
    pub(crate) fn take(&mut self, len: usize) -> AlignedBuf {
        let capacity = cost(len);
        let mut buf = match self.classes.get_mut(class(capacity)).and_then(Vec::pop) {
            Some(buf) => {
                self.bytes -= buf.capacity();
                buf
            }
            None => AlignedBuf::zeroed(capacity),
        };
        buf.set_len(len);
        buf
    }

    /// Takes a buffer back. What does not come from here (an odd capacity) is freed.
    pub(crate) fn give(&mut self, buf: AlignedBuf) {
        let capacity = buf.capacity();
        if capacity == cost(capacity)
            && let Some(list) = self.classes.get_mut(class(capacity))
        {
            self.bytes += capacity;
            list.push(buf);
        }
    }

    /// Whether more is kept than a quiet connection may keep.
    pub(crate) const fn is_fat(&self) -> bool {
        self.bytes > POOLED_BYTES
    }

    /// Frees the largest buffers until the rest is small.
    pub(crate) fn shrink(&mut self) {
        for list in self.classes.iter_mut().rev() {
            while self.bytes > POOLED_BYTES
                && let Some(buf) = list.pop()
            {
                self.bytes -= buf.capacity();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_and_a_quiet_pool_is_small() {
        let mut pool = Pool::default();
        for len in [1, 4096, 4097, 100_000, 32 << 20] {
            let buf = pool.take(len);
            assert_eq!((buf.len(), buf.capacity()), (len, cost(len)));
            let at = buf.as_ptr();
            pool.give(buf);
            let again = pool.take(len);
            assert_eq!(again.as_ptr(), at);
            pool.give(again);
        }
        assert!(pool.is_fat());
        pool.shrink();
        assert!(!pool.is_fat() && pool.bytes == pool.classes.iter().flatten().map(AlignedBuf::capacity).sum::<usize>());
        pool.give(AlignedBuf::zeroed(3 * ALIGN));
        assert!(pool.classes.iter().flatten().all(|b| b.capacity() != 3 * ALIGN));
    }
}
