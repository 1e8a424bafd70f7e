//! The disk as a [`BlockDevice`]: protected, or plain for comparison.

use crate::disk::pool::Pool;
use crate::disk::{CacheMode, Disk, DiskError};
use crate::fence::FencePolicy;
use crate::protect::Protection;
use crate::queue::DiskQueue;
use crate::ranges::Ranges;
use afterimage_base::block::{BlockDevice, BlockError, Extent, Geometry, Queue, Topology};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Longest read or write: what every NBD client may send.
const MAX_IO: u32 = 32 << 20;

/// What all queues of a disk share.
pub(crate) struct Core {
    pub(crate) disk: Arc<Disk>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) ranges: Ranges,
    pub(crate) protection: Option<Arc<Protection>>,
    queues: AtomicU64,
    stopped: AtomicBool,
    fenced: AtomicBool,
    /// A fenced disk refuses reads, too.
    deaf: AtomicBool,
}

impl Core {
    pub(crate) fn new(disk: Arc<Disk>, protection: Option<Arc<Protection>>) -> Arc<Core> {
        Arc::new(Core {
            disk,
            pool: Arc::new(Pool::new()),
            ranges: Ranges::new(),
            protection,
            queues: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            fenced: AtomicBool::new(false),
            deaf: AtomicBool::new(false),
        })
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Refuses writes from now on. On return, those that were let in have their seq.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        if let Some(p) = &self.protection {
            drop(p.gate.close());
        }
    }

    /// Whether its machine runs elsewhere (I13).
    pub(crate) fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }

    /// Whether reads are refused.
    pub(crate) fn is_deaf(&self) -> bool {
        self.deaf.load(Ordering::Relaxed) && self.is_fenced()
    }

    /// Refuses writes from now on, or takes them again. On return, those that were let in have their seq.
    pub(crate) fn fence(&self, up: bool) {
        self.fenced.store(up, Ordering::Release);
        if let Some(p) = &self.protection {
            drop(p.gate.close());
        }
    }

    pub(crate) fn set_fence_policy(&self, policy: FencePolicy) {
        self.deaf.store(policy == FencePolicy::Refuse, Ordering::Relaxed);
    }

    /// A number for a claim owner that no other has.
    pub(crate) fn number(&self) -> u64 {
        self.queues.fetch_add(1, Ordering::Relaxed)
    }
}

/// A device on a core.
pub(crate) struct Device(pub(crate) Arc<Core>);

impl BlockDevice for Device {
    fn geometry(&self) -> Geometry {
        let disk = &self.0.disk;
        Geometry {
            size: disk.size(),
            preferred_block: 4096,
            max_io: MAX_IO,
            read_only: self.0.is_fenced(),
            multi_queue: true,
            trim: true,
            fast_zero: disk.zeroes_fast(crate::disk::ops::ZeroMode::Hole),
            rotational: disk.rotational(),
        }
    }

    fn topology(&self) -> Topology {
        self.0.disk.topology()
    }

    fn open_queue(self: Arc<Self>) -> Result<Box<dyn Queue>, BlockError> {
        if self.0.is_stopped() {
            return Err(BlockError::Shutdown);
        }
        let number = self.0.number();
        Ok(Box::new(DiskQueue::new(Arc::clone(&self.0), number)?))
    }

    fn block_status(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>, BlockError> {
        self.0.disk.extents(offset, len, max)
    }
}

/// A disk without protection: the same engine and queues, without ring and range lock.
pub struct PlainDisk;

impl PlainDisk {
    /// Opens the disk at `path` as a device.
    ///
    /// # Errors
    /// [`DiskError`] says what is wrong with it.
    pub fn open(path: &Path, cache: CacheMode) -> Result<Arc<dyn BlockDevice>, DiskError> {
        let disk = Arc::new(Disk::open(path, cache)?);
        Ok(Arc::new(Device(Core::new(disk, None))))
    }
}

/// A plain device on a disk that a test has prepared.
#[cfg(test)]
pub(crate) fn plain_on(disk: Disk) -> Arc<dyn BlockDevice> {
    Arc::new(Device(Core::new(Arc::new(disk), None)))
}
