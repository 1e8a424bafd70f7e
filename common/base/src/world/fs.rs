//! Files and folders.
//!
//! [`File`] and [`OpenOptions`] mirror the standard library's, with what the project needs beside: operations at an offset that are durable
//! or do not wait, allocation, holes, locks, [mappings](Mapping). None of them is a blocking point. Locks are flocks: they
//! go with the file, and with the process.

mod map;
mod ops;

pub use map::Mapping;

use super::simulated;
use nix::fcntl::{Flock, FlockArg};
use std::ffi::OsString;
use std::fmt::Debug;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

/// What a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A block device.
    BlockDevice,
    /// Anything else.
    Other,
}

/// What is known of a file without opening it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metadata {
    /// What it is.
    pub kind: FileKind,
    /// Length in bytes; 0 for a block device.
    pub len: u64,
    /// Inode number.
    pub ino: u64,
    /// Device that it lies on.
    pub dev: u64,
    /// Device that it is.
    pub rdev: u64,
    /// When it was made, if the file system knows.
    pub born: Option<SystemTime>,
    /// When its content was changed last.
    pub modified: Option<SystemTime>,
}

impl From<&std::fs::Metadata> for Metadata {
    fn from(m: &std::fs::Metadata) -> Self {
        let t = m.file_type();
        let kind = match () {
            () if t.is_file() => FileKind::File,
            () if t.is_dir() => FileKind::Folder,
            () if t.is_block_device() => FileKind::BlockDevice,
            () => FileKind::Other,
        };
        let (born, modified) = (m.created().ok(), m.modified().ok());
        Metadata { kind, len: m.len(), ino: m.ino(), dev: m.dev(), rdev: m.rdev(), born, modified }
    }
}

/// The files of a simulation.
pub trait Files: Send + Sync {
    /// As [`OpenOptions::open`].
    ///
    /// # Errors
    /// As the system would.
    fn open(&self, path: &Path, how: &OpenOptions) -> io::Result<Arc<dyn SimFile>>;

    /// As [`metadata`].
    ///
    /// # Errors
    /// As the system would.
    fn metadata(&self, path: &Path) -> io::Result<Metadata>;

    /// Names in a folder, sorted.
    ///
    /// # Errors
    /// As the system would.
    fn read_dir(&self, path: &Path) -> io::Result<Vec<OsString>>;

    /// As [`rename`].
    ///
    /// # Errors
    /// As the system would.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// As [`remove_file`].
    ///
    /// # Errors
    /// As the system would.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Makes one folder.
    ///
    /// # Errors
    /// As the system would.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// As [`sync_dir`].
    ///
    /// # Errors
    /// As the system would.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
}

/// An open file of a simulation.
pub trait SimFile: Send + Sync + Debug {
    /// What is known of it.
    fn metadata(&self) -> Metadata;

    /// As pread.
    ///
    /// # Errors
    /// As the system would.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// As pwrite, or pwritev2 with `RWF_DSYNC`.
    ///
    /// # Errors
    /// As the system would.
    fn write_at(&self, data: &[u8], offset: u64, durable: bool) -> io::Result<usize>;

    /// As ftruncate.
    ///
    /// # Errors
    /// As the system would.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// As fsync.
    ///
    /// # Errors
    /// As the system would.
    fn sync(&self) -> io::Result<()>;

    /// As fallocate.
    ///
    /// # Errors
    /// As the system would.
    fn fallocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<()>;

    /// As lseek with `SEEK_DATA` or `SEEK_HOLE`.
    ///
    /// # Errors
    /// As the system would.
    fn seek(&self, offset: u64, whence: i32) -> io::Result<u64>;

    /// The same file through a description of its own.
    fn again(&self) -> Arc<dyn SimFile>;

    /// As flock, exclusive and without waiting. False if somebody has it.
    fn try_lock(&self) -> bool;

    /// Maps the first `len` bytes, shared.
    ///
    /// # Errors
    /// As the system would.
    fn map(&self, len: usize) -> io::Result<Arc<dyn SimMap>>;
}

/// A mapped file of a simulation.
pub trait SimMap: Send + Sync + Debug {
    /// Where it lies; page-aligned, and valid for as long as this lives.
    fn address(&self) -> *mut u8;

    /// As msync of a range.
    ///
    /// # Errors
    /// As the system would.
    fn sync(&self, offset: usize, len: usize) -> io::Result<()>;
}

#[derive(Debug)]
enum Kind {
    Real(std::fs::File),
    Locked(Flock<std::fs::File>),
    Sim { file: Arc<dyn SimFile>, at: AtomicU64 },
}

/// An open file.
#[derive(Debug)]
pub struct File(Kind);

/// As [`std::fs::OpenOptions`]; new files have mode 0600.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// Made if it is not there.
    pub create: bool,
    /// It must not be there.
    pub create_new: bool,
    /// Emptied.
    pub truncate: bool,
    /// Flags of open(2) beside these.
    pub flags: i32,
}

impl OpenOptions {
    /// Nothing chosen.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// For reading and writing.
    #[must_use]
    pub fn read_write() -> Self {
        Self { read: true, write: true, ..Self::default() }
    }

    /// Sets [`write`](Self::write) alone.
    #[must_use]
    pub fn write_only() -> Self {
        Self { write: true, ..Self::default() }
    }

    /// Makes the file, which must not be there.
    #[must_use]
    pub fn create_new(mut self) -> Self {
        self.create_new = true;
        self
    }

    /// Makes the file if it is not there.
    #[must_use]
    pub fn create(mut self) -> Self {
        self.create = true;
        self
    }

    /// Empties the file.
    #[must_use]
    pub fn truncate(mut self) -> Self {
        self.truncate = true;
        self
    }

    /// Adds flags of open(2).
    #[must_use]
    pub fn custom_flags(mut self, flags: i32) -> Self {
        self.flags |= flags;
        self
    }

    /// Opens the file.
    ///
    /// # Errors
    /// As [`std::fs::OpenOptions::open`].
    pub fn open(&self, path: &Path) -> io::Result<File> {
        if let Some(world) = simulated() {
            let file = world.files().open(path, self)?;
            return Ok(File(Kind::Sim { file, at: AtomicU64::new(0) }));
        }
        let mut real = std::fs::OpenOptions::new();
        real.read(self.read).write(self.write).create(self.create).create_new(self.create_new);
        real.truncate(self.truncate).mode(0o600).custom_flags(self.flags);
        real.open(path).map(|f| File(Kind::Real(f)))
    }
}

impl File {
    /// Opens a file for reading.
    ///
    /// # Errors
    /// As [`std::fs::File::open`].
    pub fn open(path: &Path) -> io::Result<File> {
        OpenOptions { read: true, ..OpenOptions::default() }.open(path)
    }

    /// The file of the system, if this is no simulation.
    #[must_use]
    pub fn real(&self) -> Option<&std::fs::File> {
        match &self.0 {
            Kind::Real(f) => Some(f),
            Kind::Locked(f) => Some(f),
            Kind::Sim { .. } => None,
        }
    }

    /// Locks the file against other processes (flock, exclusive), for as long as it is open.
    ///
    /// # Errors
    /// The file, and [`io::ErrorKind::WouldBlock`] if somebody has the lock.
    pub fn try_lock(self) -> Result<File, (File, io::Error)> {
        match self.0 {
            Kind::Real(file) => match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(locked) => Ok(File(Kind::Locked(locked))),
                Err((file, e)) => Err((File(Kind::Real(file)), e.into())),
            },
            Kind::Sim { ref file, .. } if !file.try_lock() => Err((self, io::ErrorKind::WouldBlock.into())),
            _ => Ok(self),
        }
    }

    /// Another handle of the same open file.
    ///
    /// # Errors
    /// If the system has no descriptors left.
    pub fn try_clone(&self) -> io::Result<File> {
        Ok(File(match &self.0 {
            Kind::Real(f) => Kind::Real(f.try_clone()?),
            Kind::Locked(f) => Kind::Real(f.try_clone()?),
            Kind::Sim { file, .. } => Kind::Sim { file: Arc::clone(file), at: AtomicU64::new(0) },
        }))
    }
}

impl File {
    /// The same file through a description of its own, for reading and syncing: it sees every error of writing back, and takes
    /// none away from others.
    ///
    /// # Errors
    /// As [`std::fs::File::open`].
    pub fn open_again(&self) -> io::Result<File> {
        match self.of() {
            Ok(f) => std::fs::File::open(format!("/proc/self/fd/{}", f.as_raw_fd())).map(File::from),
            Err(f) => Ok(File(Kind::Sim { file: f.again(), at: AtomicU64::new(0) })),
        }
    }
}

impl From<std::fs::File> for File {
    fn from(file: std::fs::File) -> File {
        File(Kind::Real(file))
    }
}

/// What is known of the file at `path`, links followed.
///
/// # Errors
/// As [`std::fs::metadata`].
pub fn metadata(path: &Path) -> io::Result<Metadata> {
    match simulated() {
        Some(world) => world.files().metadata(path),
        None => std::fs::metadata(path).map(|m| Metadata::from(&m)),
    }
}

/// Whether there is anything at `path`.
#[must_use]
pub fn exists(path: &Path) -> bool {
    metadata(path).is_ok()
}

/// Names in a folder.
///
/// # Errors
/// As [`std::fs::read_dir`].
pub fn read_dir(path: &Path) -> io::Result<Vec<OsString>> {
    match simulated() {
        Some(world) => world.files().read_dir(path),
        None => std::fs::read_dir(path)?.map(|entry| entry.map(|e| e.file_name())).collect(),
    }
}

/// Gives a file another name, replacing what has it.
///
/// # Errors
/// As [`std::fs::rename`].
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match simulated() {
        Some(world) => world.files().rename(from, to),
        None => std::fs::rename(from, to),
    }
}

/// Removes a file's name.
///
/// # Errors
/// As [`std::fs::remove_file`].
pub fn remove_file(path: &Path) -> io::Result<()> {
    match simulated() {
        Some(world) => world.files().remove_file(path),
        None => std::fs::remove_file(path),
    }
}

/// Makes a folder with mode 0700, and those above it, unless they are there.
///
/// # Errors
/// As [`std::fs::DirBuilder::create`].
pub fn create_dir_all(path: &Path) -> io::Result<()> {
    let Some(world) = simulated() else {
        return std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    };
    let mut above: Vec<&Path> = path.ancestors().filter(|p| !p.as_os_str().is_empty()).collect();
    while let Some(dir) = above.pop() {
        match world.files().metadata(dir) {
            Ok(m) if m.kind == FileKind::Folder => {}
            Ok(_) => return Err(io::ErrorKind::NotADirectory.into()),
            Err(_) => world.files().create_dir(dir)?,
        }
    }
    Ok(())
}

/// The path without links and dots.
///
/// # Errors
/// As [`std::fs::canonicalize`].
pub fn canonicalize(path: &Path) -> io::Result<PathBuf> {
    match simulated() {
        Some(world) => world.files().metadata(path).map(|_| path.to_path_buf()),
        None => std::fs::canonicalize(path),
    }
}

/// The whole content of a file.
///
/// # Errors
/// As [`std::fs::read`].
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    io::Read::read_to_end(&mut File::open(path)?, &mut out)?;
    Ok(out)
}

/// Makes the names in a folder durable.
///
/// # Errors
/// If the folder cannot be opened or synced.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    match simulated() {
        Some(world) => world.files().sync_dir(path),
        None => std::fs::File::open(path)?.sync_all(),
    }
}
