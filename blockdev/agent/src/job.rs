//! One request in flight, as a short list of disk operations.
//!
//! | request | operations |
//! |---|---|
//! | read | one; into a bounce buffer if the disk cannot take it as it is |
//! | write | one per record (or one, without protection), from the ring's memory |
//! | write that the disk cannot take as it is | read first block, read last block, merge, write the whole span |
//! | trim, zeroes | one |
//! | flush | one |

use crate::disk::Disk;
use crate::disk::engine::Io;
use crate::disk::ops::ZeroMode;
use crate::few::Few;
use crate::ranges::Claim;
use afterimage_base::block::BlockError;
use afterimage_base::buf::AlignedBuf;

/// Bytes to be written, where they lie and where they go; without bytes, only the seq of a record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    /// Seq of its record, or 0.
    pub(crate) seq: u64,
    pub(crate) ptr: *const u8,
    pub(crate) len: usize,
    pub(crate) offset: u64,
}

// SAFETY: the address is of ring memory, which stays until the seq is marked as done, or of a buffer that the job itself
// owns, or of the submitter's for a job that ends before the submission does. It is only read.
unsafe impl Send for Piece {}

/// What is asked for.
pub(crate) enum What {
    Read {
        buf: AlignedBuf,
        offset: u64,
    },
    Write {
        durable: bool,
    },
    Zero {
        offset: u64,
        len: u64,
        mode: ZeroMode,
        durable: bool,
    },
    Flush,
    /// Waits until its regions are marked, and begins then; its bytes are its own.
    ColdWrite {
        offset: u64,
        durable: bool,
    },
    ColdZero {
        offset: u64,
        len: u64,
        mode: ZeroMode,
        durable: bool,
    },
}

/// See the module.
pub(crate) struct Job {
    pub(crate) tag: u64,
    pub(crate) what: What,
    /// The range claimed in the table of writes in flight.
    pub(crate) claim: Option<Claim>,
    pub(crate) pieces: Few<Piece>,
    /// A copy of the bytes that have no place in the ring.
    pub(crate) own: Option<AlignedBuf>,
    /// The span around an unaligned request.
    pub(crate) bounce: Option<(AlignedBuf, u64)>,
    /// Operations that have ended.
    pub(crate) at: usize,
    /// It fails with this in any case, when what it has begun is done.
    pub(crate) failed: Option<BlockError>,
}

fn bytes(n: u64) -> usize {
    // Offsets into a buffer in memory fit.
    usize::try_from(n).unwrap_or(usize::MAX)
}

impl Job {
    pub(crate) const fn new(tag: u64, what: What) -> Job {
        Job { tag, what, claim: None, pieces: Few::new(), own: None, bounce: None, at: 0, failed: None }
    }

    /// Gives the job a bounce buffer if the disk cannot take `offset..offset + len` as it is.
    pub(crate) fn fit(&mut self, disk: &Disk, offset: u64, len: u64) {
        if !disk.is_aligned(offset, len) {
            let (start, end) = disk.span(offset, len);
            self.bounce = Some((AlignedBuf::zeroed(bytes(end - start)), start));
        }
    }

    /// The next operation, or None at the end.
    pub(crate) fn next(&mut self, disk: &Disk) -> Option<Io> {
        match (&mut self.what, &mut self.bounce) {
            (What::Read { buf, offset }, None) => {
                let io = Io::Read { ptr: buf.as_mut_ptr(), len: buf.len(), offset: *offset };
                (self.at == 0).then_some(io)
            }
            (What::Read { .. }, Some((b, start))) => {
                (self.at == 0).then(|| Io::Read { ptr: b.as_mut_ptr(), len: b.len(), offset: *start })
            }
            (What::Write { durable }, None) => self.pieces.get(self.at).map(|p| Io::Write {
                ptr: p.ptr,
                len: p.len,
                offset: p.offset,
                durable: *durable,
            }),
            (What::Write { .. }, Some(_)) => self.next_of_bounced(disk),
            (What::Zero { offset, len, mode, durable }, _) => {
                let io = Io::Zero { offset: *offset, len: *len, mode: *mode, durable: *durable };
                (self.at == 0).then_some(io)
            }
            (What::Flush, _) => (self.at == 0).then_some(Io::Sync),
            (What::ColdWrite { .. } | What::ColdZero { .. }, _) => None,
        }
    }

    fn next_of_bounced(&mut self, disk: &Disk) -> Option<Io> {
        let (What::Write { durable }, Some((b, start))) = (&self.what, &mut self.bounce) else { return None };
        let align = bytes(disk.align());
        let last = b.len() - align;
        match self.at {
            0 => Some(Io::Read { ptr: b.as_mut_ptr(), len: align, offset: *start }),
            1 if last != 0 => Some(Io::Read { ptr: b[last..].as_mut_ptr(), len: align, offset: *start + last as u64 }),
            1 | 2 => {
                // Without a second block there is no second read: this is the third operation all the same.
                self.at = 2;
                for piece in self.pieces.iter() {
                    let to = bytes(piece.offset - *start);
                    // SAFETY: a piece's memory stays in place while its job runs.
                    b[to..to + piece.len].copy_from_slice(unsafe { std::slice::from_raw_parts(piece.ptr, piece.len) });
                }
                Some(Io::Write { ptr: b.as_ptr(), len: b.len(), offset: *start, durable: *durable })
            }
            _ => None,
        }
    }

    /// The buffer of a read, filled from the bounce buffer if there was one.
    pub(crate) fn into_buf(self) -> Option<AlignedBuf> {
        let What::Read { mut buf, offset } = self.what else { return None };
        if let Some((b, start)) = self.bounce {
            let from = bytes(offset - start);
            let n = buf.len();
            buf.copy_from_slice(&b[from..from + n]);
        }
        Some(buf)
    }
}
