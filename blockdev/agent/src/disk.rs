//! The real disk: a raw image or a block device, opened for one agent alone.
//!
//! | module | what |
//! |---|---|
//! | [`ops`] | blocking operations that end whole or with an error |
//! | [`engine`] | the same for a queue: at once where the page cache allows it, else through io_uring |
//! | [`uring`] | one io_uring |
//! | [`pool`] | a few threads, for what io_uring cannot do and for systems without it |
//! | [`identity`] | how a disk is known again |
//! | `topology` | what it says of its blocks and limits |

pub(crate) mod engine;
pub mod identity;
pub(crate) mod ops;
pub(crate) mod pool;

mod topology;
pub(crate) mod uring;

use afterimage_base::block::Topology;
use afterimage_base::world;
use afterimage_base::world::fs::{self, File, FileKind, OpenOptions};
use identity::{Identity, Stamp};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use thiserror::Error;

/// How long the lock of a process that is gone may outlive it, and how often to look.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_TICK: Duration = Duration::from_millis(10);

/// How the disk is used, in QEMU's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// Through the page cache; a flush makes writes durable.
    #[default]
    Writeback,
    /// Past the page cache (`O_DIRECT`).
    None,
}

/// Why a disk cannot be used.
#[derive(Debug, Error)]
pub enum DiskError {
    /// There is nothing at the path.
    #[error("{}: does not exist; check the path, or make an image with: truncate -s 10G {}", .0.display(), .0.display())]
    Missing(PathBuf),
    /// It is a folder.
    #[error("{}: is a directory; give a raw image or a block device", .0.display())]
    Directory(PathBuf),
    /// It is neither file nor block device.
    #[error("{}: is neither a regular file nor a block device", .0.display())]
    Kind(PathBuf),
    /// It cannot be written.
    #[error("{}: is read-only for this user ({source}); protection needs a disk that can be written", path.display())]
    ReadOnly {
        /// The disk.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody else uses it.
    #[error("{}: is in use (another agent, or mounted); stop that first", .0.display())]
    InUse(PathBuf),
    /// It has no bytes.
    #[error("{}: has size 0; give it a size first, for example: truncate -s 10G {}", .0.display(), .0.display())]
    Empty(PathBuf),
    /// It cannot be used past the page cache.
    #[error("{}: cache mode none does not work here ({why}); use cache mode writeback", path.display())]
    NoDirect {
        /// The disk.
        path: PathBuf,
        /// What is in the way.
        why: String,
    },
    /// Any other refusal of the system.
    #[error("{}: cannot {doing}: {source}", path.display())]
    Io {
        /// The disk.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

/// An open disk. The lock on it goes with the last owner.
pub struct Disk {
    file: File,
    /// The same disk through a description of its own, which sees every error of writing back, and takes none
    /// away from those who flush through the other one.
    apart: File,
    path: PathBuf,
    /// Of the volume: at most what the disk has.
    size: AtomicU64,
    cache: CacheMode,
    block_device: bool,
    rotational: bool,
    topology: Topology,
    identity: Identity,
    /// Alignment of offsets, lengths and memory that the disk demands: 1 with the page cache.
    align: u64,
    /// Holes can be punched fast.
    punch: bool,
    /// Ranges can be zeroed fast without giving space back.
    zero_range: bool,
    /// Reads that do not wait for the disk are possible.
    nowait: AtomicBool,
    #[cfg(test)]
    pub(crate) faults: ops::Faults,
}

impl Disk {
    /// Opens the disk at `path` for writing, and for this agent alone.
    ///
    /// # Errors
    /// [`DiskError`] says what is wrong with it.
    pub fn open(path: &Path, cache: CacheMode) -> Result<Disk, DiskError> {
        let own = || path.to_path_buf();
        let io_error = |doing| move |source| DiskError::Io { path: path.to_path_buf(), doing, source };
        let kind = match fs::metadata(path) {
            Ok(m) => m.kind,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(DiskError::Missing(own())),
            Err(e) => return Err(io_error("look at it")(e)),
        };
        let block_device = match kind {
            FileKind::File => false,
            FileKind::BlockDevice => true,
            FileKind::Folder => return Err(DiskError::Directory(own())),
            FileKind::Other => return Err(DiskError::Kind(own())),
        };
        let file = open_file(path, cache, block_device)?;
        let metadata = file.metadata().map_err(io_error("look at it"))?;
        if metadata.kind != kind {
            return Err(DiskError::Kind(own()));
        }
        let size = file.size().map_err(io_error("find its size"))?;
        if size == 0 {
            return Err(DiskError::Empty(own()));
        }
        let align = match cache {
            CacheMode::Writeback => 1,
            CacheMode::None => direct_align(&file, path, size)?,
        };
        let (punch, zero_range) = if block_device { (false, false) } else { ops::zero_abilities(&file) };
        let file = lock(file, path)?;
        let apart = file.open_again().map_err(io_error("open it once more"))?;
        Ok(Disk {
            file,
            apart,
            path: own(),
            size: AtomicU64::new(size),
            cache,
            block_device,
            rotational: identity::rotational(&metadata),
            topology: topology::of(&metadata),
            identity: Identity::of(&metadata, size),
            align,
            punch,
            zero_range,
            nowait: AtomicBool::new(cache == CacheMode::Writeback),
            #[cfg(test)]
            faults: ops::Faults::default(),
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size of the volume in bytes: that of the disk when it was opened, unless it was set since.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    pub(crate) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    /// Size of the disk in bytes, now.
    pub(crate) fn actual_size(&self) -> io::Result<u64> {
        self.file.size()
    }

    /// When the file was written and changed last; `None` for a block device, which does not say.
    pub(crate) fn stamp(&self) -> Option<Stamp> {
        if self.block_device {
            return None;
        }
        self.file.real()?.metadata().ok().map(|m| Stamp::of(&m))
    }

    /// How it is used.
    #[must_use]
    pub const fn cache(&self) -> CacheMode {
        self.cache
    }

    /// What it is known by.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(crate) const fn rotational(&self) -> bool {
        self.rotational
    }

    pub(crate) const fn topology(&self) -> Topology {
        self.topology
    }

    /// The descriptor for io_uring; none in a simulation.
    pub(crate) fn fd(&self) -> Option<RawFd> {
        self.file.real().map(AsRawFd::as_raw_fd)
    }

    /// The smallest range that holds `offset..offset + len` and that the disk takes as it is.
    pub(crate) fn span(&self, offset: u64, len: u64) -> (u64, u64) {
        let end = (offset + len).next_multiple_of(self.align);
        (offset - offset % self.align, end.min(self.size()))
    }

    /// The alignment of what the disk takes as it is.
    pub(crate) const fn align(&self) -> u64 {
        self.align
    }

    pub(crate) fn is_aligned(&self, offset: u64, len: u64) -> bool {
        offset.is_multiple_of(self.align) && len.is_multiple_of(self.align)
    }
}

/// Locks the file for this agent alone. A process that was killed just now may hold it for a moment longer than it
/// lives: operations that it gave to io_uring are taken back by the kernel in the background.
fn lock(mut file: File, path: &Path) -> Result<File, DiskError> {
    let until = world::now() + LOCK_PATIENCE;
    loop {
        let busy = |e: &io::Error| matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
        match file.try_lock() {
            Ok(locked) => return Ok(locked),
            Err((back, e)) if busy(&e) && world::now() < until => file = back,
            Err((_, e)) if busy(&e) => return Err(DiskError::InUse(path.to_path_buf())),
            Err((_, source)) => {
                return Err(DiskError::Io { path: path.to_path_buf(), doing: "lock it", source });
            }
        }
        world::sleep(LOCK_TICK);
    }
}

fn open_file(path: &Path, cache: CacheMode, block_device: bool) -> Result<File, DiskError> {
    let direct = if cache == CacheMode::None { libc::O_DIRECT } else { 0 };
    // On a block device O_EXCL without O_CREAT asks for exclusive use: mounted file systems and others hold it.
    let exclusive = if block_device { libc::O_EXCL } else { 0 };
    OpenOptions::read_write().custom_flags(direct | exclusive).open(path).map_err(|source| {
        let path = path.to_path_buf();
        match source.raw_os_error() {
            Some(libc::EACCES | libc::EPERM | libc::EROFS) => DiskError::ReadOnly { path, source },
            Some(libc::EBUSY | libc::ETXTBSY) => DiskError::InUse(path),
            Some(libc::EINVAL) if direct != 0 => DiskError::NoDirect { path, why: source.to_string() },
            _ => DiskError::Io { path, doing: "open it", source },
        }
    })
}

/// The alignment that direct I/O on this disk needs, at least 512.
fn direct_align(file: &File, path: &Path, size: u64) -> Result<u64, DiskError> {
    let align = ops::dio_align(file).unwrap_or(4096);
    let refuse = |why| Err(DiskError::NoDirect { path: path.to_path_buf(), why });
    if !align.is_power_of_two() || align > 4096 {
        return refuse(format!("it needs an alignment of {align} bytes"));
    }
    let align = align.max(512);
    if !size.is_multiple_of(align) {
        return refuse(format!("its size {size} is not a multiple of {align}"));
    }
    Ok(align)
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
