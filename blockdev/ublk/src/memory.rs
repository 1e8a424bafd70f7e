//! Memory of a queue: buffers of reads, used again, and what a kernel without user copy copies payloads into.

use afterimage_base::buf::AlignedBuf;

/// Buffers longer than this are not kept for later.
const KEPT_LEN: usize = 128 << 10;

/// Buffers of reads.
#[derive(Default)]
pub(crate) struct Pool(Vec<AlignedBuf>);

impl Pool {
    pub(crate) fn take(&mut self, len: usize) -> AlignedBuf {
        let at = self.0.iter().rposition(|b| b.capacity() >= len);
        at.map_or_else(
            || AlignedBuf::zeroed(len),
            |at| {
                let mut buf = self.0.swap_remove(at);
                buf.set_len(len);
                buf
            },
        )
    }

    pub(crate) fn give(&mut self, buf: AlignedBuf) {
        if buf.capacity() <= KEPT_LEN && self.0.len() < 64 {
            self.0.push(buf);
        }
    }
}

/// One buffer for each tag, as long as the longest request. Pages that are not used take no memory.
pub(crate) struct Mapped(Vec<AlignedBuf>);

impl Mapped {
    pub(crate) fn new(depth: u16, max_io: u32) -> Mapped {
        let len = usize::try_from(max_io).unwrap_or(usize::MAX);
        Mapped((0..depth).map(|_| AlignedBuf::zeroed(len)).collect())
    }

    pub(crate) fn address(&mut self, tag: u16) -> u64 {
        self.0[usize::from(tag)].as_mut_ptr().addr() as u64
    }

    pub(crate) fn get(&mut self, tag: u16, len: usize) -> Option<&mut [u8]> {
        self.0.get_mut(usize::from(tag))?.get_mut(..len)
    }
}
