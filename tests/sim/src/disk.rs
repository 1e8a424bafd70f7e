//! The disks of the hosts: files and folders of which the page cache and the durable part are told apart.
//!
//! A write changes what every process sees, at once; it is durable when it is synced, or by chance. A power cut keeps of each
//! file any subset of the unsynced sectors, any length between the durable and the newest one, and of each folder any subset
//! (or the beginning) of the unsynced creations, renames and removals. A kill loses nothing.

mod fault;
mod folder;
mod inode;

use crate::rng::Rng;
use crate::sched::{HOSTS, Host};
pub use fault::{Faults, Tag};
use folder::{Change, Entry, Folder};
use inode::{Content, Inode, pages};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// Bytes that a disk writes whole or not at all.
pub const SECTOR: usize = 512;
const BLOCK: usize = 4096;
/// Parts of writes end at multiples of this: what the model tells apart.
const GRAIN: usize = 64;

/// The disk of one host.
pub struct Disk {
    inodes: Vec<Inode>,
    folders: BTreeMap<PathBuf, Folder>,
    /// What goes wrong.
    pub faults: Faults,
}

impl Default for Disk {
    fn default() -> Disk {
        let folders = BTreeMap::from([(PathBuf::from("/"), Folder::default())]);
        Disk { inodes: Vec::new(), folders, faults: Faults::default() }
    }
}

/// The disks of all hosts.
pub struct Disks {
    hosts: Vec<Disk>,
    /// Chance of the disks.
    pub rng: Rng,
    /// Failed syncs of protected disks of which guests were told: what they should have made durable is lost.
    pub lost: u64,
}

fn missing() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOENT)
}

/// A name that is asked for: folder and name in it.
fn split(path: &Path) -> io::Result<(PathBuf, OsString)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    Ok((parent.to_path_buf(), name.to_owned()))
}

/// What opening asks for.
#[derive(Debug, Clone, Copy)]
pub struct How {
    /// Made if it is not there.
    pub create: bool,
    /// It must not be there.
    pub new: bool,
    /// Emptied.
    pub truncate: bool,
}

impl Disks {
    /// Empty disks.
    #[must_use]
    pub fn new(rng: Rng) -> Disks {
        Disks { hosts: (0..HOSTS).map(|_| Disk::default()).collect(), rng, lost: 0 }
    }

    /// A host's disk.
    pub fn of(&mut self, host: Host) -> &mut Disk {
        &mut self.hosts[host as usize]
    }

    /// The power fails.
    pub fn power_cut(&mut self, host: Host) {
        let Disks { hosts, rng, .. } = self;
        let disk = &mut hosts[host as usize];
        disk.folders.values_mut().for_each(|f| f.power_cut(rng));
        let files = disk.folders.values().flat_map(|f| f.now.values());
        let named: BTreeSet<usize> =
            files.filter_map(|e| if let Entry::File(i) = e { Some(*i) } else { None }).collect();
        for (i, inode) in disk.inodes.iter_mut().enumerate() {
            if named.contains(&i) {
                inode.power_cut(rng);
            } else {
                inode.forget();
            }
        }
        let lost: Vec<PathBuf> = disk.folders.keys().filter(|p| !disk.is_folder(p)).cloned().collect();
        for path in lost {
            disk.folders.remove(&path);
        }
    }

    /// The locks of a host's earlier lives are gone.
    pub fn forget_locks(&mut self, host: Host, _life: u64) {
        self.hosts[host as usize].inodes.iter_mut().for_each(|i| i.lock = None);
    }

    /// Writes, as the host's faults allow.
    pub fn write(&mut self, host: Host, inode: usize, data: &[u8], at: u64, durable: bool) -> io::Result<usize> {
        let Disks { hosts, rng, .. } = self;
        let disk = &mut hosts[host as usize];
        let faults = disk.faults_of(inode);
        let mut at = usize::try_from(at).unwrap_or(usize::MAX);
        if faults.full && disk.needs_room(inode, at, data.len()) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        if rng.permille(faults.write) {
            // Some of it may have got there.
            let n = rng.index(data.len() + 1) / GRAIN * GRAIN;
            disk.inodes[inode].put(&data[..n], at);
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let mut n = data.len();
        if n > GRAIN && rng.permille(faults.short) {
            n = (1 + rng.index((n - 1) / GRAIN)) * GRAIN;
        }
        let mut own;
        let mut data = &data[..n];
        if n > 0 && rng.permille(faults.flip) {
            own = data.to_vec();
            own[rng.index(n)] ^= 1 << rng.below(8);
            data = &own;
        }
        let inode = &mut disk.inodes[inode];
        if rng.permille(faults.stray) {
            at = rng.index(at + 1) / SECTOR * SECTOR;
        }
        inode.put(data, at);
        if durable {
            inode.write_back(at, at + n, |_| true);
        } else if rng.permille(30) {
            // The system writes back by itself now and then.
            let end = inode.len();
            inode.write_back(0, end, |_| rng.permille(300));
        }
        Ok(n)
    }

    /// Syncs, as the host's faults allow.
    pub fn sync(&mut self, host: Host, inode: usize, from: usize, to: usize) -> io::Result<()> {
        let Disks { hosts, rng, .. } = self;
        let disk = &mut hosts[host as usize];
        let faults = disk.faults_of(inode);
        let inode = &mut disk.inodes[inode];
        let fails = rng.permille(faults.sync) || (faults.full && inode.tag != Tag::Disk && rng.permille(100));
        inode.write_back(from, to, |_| !fails || rng.permille(500));
        if fails {
            // As the kernel does: what could not be written counts as clean from now on.
            inode.dirty.fill(false);
            inode.errors += 1;
            return Err(io::Error::from_raw_os_error(if faults.full { libc::ENOSPC } else { libc::EIO }));
        }
        Ok(())
    }

    /// Reads, as the host's faults allow.
    pub fn read(&mut self, host: Host, inode: usize, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let Disks { hosts, rng, .. } = self;
        let disk = &mut hosts[host as usize];
        let faults = disk.faults_of(inode);
        if rng.permille(faults.read) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let bytes = disk.inodes[inode].content.bytes();
        let at = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
        let n = buf.len().min(bytes.len() - at);
        buf[..n].copy_from_slice(&bytes[at..at + n]);
        Ok(n)
    }
}

/// What is known of a file.
#[derive(Debug, Clone, Copy)]
pub struct Stat {
    /// A folder, not a file.
    pub folder: bool,
    /// A protected disk.
    pub disk: bool,
    /// Length in bytes.
    pub len: u64,
    /// Inode number.
    pub ino: u64,
    /// Made at this simulated time.
    pub born: u64,
    /// Changed last at this simulated time.
    pub modified: u64,
}

impl Disk {
    fn faults_of(&self, inode: usize) -> Faults {
        let tag = self.inodes[inode].tag;
        let hit = self.faults.only.is_none_or(|only| only == tag);
        if hit { self.faults } else { Faults::default() }
    }

    fn needs_room(&self, inode: usize, at: usize, len: usize) -> bool {
        let inode = &self.inodes[inode];
        let end = (at + len).div_ceil(BLOCK);
        end > inode.data.len() || inode.data[at / BLOCK..end].iter().any(|d| !d)
    }

    /// Takes a file away for good, as if nobody had ever made it. Whether it was there.
    pub fn lose(&mut self, path: &Path) -> bool {
        let Ok((parent, name)) = split(path) else { return false };
        let Some(folder) = self.folders.get_mut(&parent) else { return false };
        let there = folder.now.contains_key(&name);
        if there {
            folder.change(Change::Remove(name));
            folder.sync();
        }
        there
    }

    /// A copy of everything as it is now, on a disk of its own that has it all durably.
    #[must_use]
    pub fn copy(&self) -> Disk {
        let inodes = self.inodes.iter().map(Inode::copy).collect();
        let mut copy = Disk { inodes, folders: self.folders.clone(), faults: self.faults };
        copy.settle();
        copy
    }

    fn is_folder(&self, path: &Path) -> bool {
        path == Path::new("/")
            || path.parent().is_some_and(|p| {
                let name = path.file_name().unwrap_or_default();
                self.is_folder(p) && self.folders.get(p).is_some_and(|f| f.now.get(name) == Some(&Entry::Folder))
            })
    }

    /// Errors of writing an inode back so far.
    #[must_use]
    pub fn errors(&self, inode: usize) -> u64 {
        self.inodes[inode].errors
    }

    /// Opens or makes a file; its inode.
    pub fn open(&mut self, path: &Path, how: How, now: u64) -> io::Result<usize> {
        let (parent, name) = split(path)?;
        let folder = self.folders.get_mut(&parent).ok_or_else(missing)?;
        let inode = match folder.now.get(&name) {
            Some(Entry::Folder) => return Err(io::Error::from_raw_os_error(libc::EISDIR)),
            Some(Entry::File(_)) if how.new => return Err(io::Error::from_raw_os_error(libc::EEXIST)),
            Some(Entry::File(inode)) => *inode,
            None if !how.create && !how.new => return Err(missing()),
            None if self.faults.full && self.faults.only.is_none() => {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            None => {
                let number = self.inodes.len();
                folder.change(Change::Set(name, Entry::File(number)));
                self.inodes.push(Inode {
                    content: Content::Owned(Vec::new()),
                    durable: Vec::new(),
                    dirty: Vec::new(),
                    data: Vec::new(),
                    lock: None,
                    errors: 0,
                    ino: number as u64 + 100,
                    born: now,
                    modified: now,
                    tag: Tag::of(path),
                });
                number
            }
        };
        if how.truncate {
            self.inodes[inode].resize(0);
        }
        Ok(inode)
    }

    /// What is at a path.
    pub fn stat(&self, path: &Path) -> io::Result<Stat> {
        if path == Path::new("/") {
            return Ok(Stat { folder: true, disk: false, len: 0, ino: 1, born: 0, modified: 0 });
        }
        let (parent, name) = split(path)?;
        match self.folders.get(&parent).and_then(|f| f.now.get(&name)) {
            Some(Entry::File(inode)) => Ok(self.stat_of(*inode)),
            Some(Entry::Folder) => Ok(Stat { folder: true, disk: false, len: 0, ino: 2, born: 0, modified: 0 }),
            None => Err(missing()),
        }
    }

    /// What is known of an inode.
    #[must_use]
    pub fn stat_of(&self, inode: usize) -> Stat {
        let i = &self.inodes[inode];
        Stat {
            folder: false,
            disk: i.tag == Tag::Disk,
            len: i.len() as u64,
            ino: i.ino,
            born: i.born,
            modified: i.modified,
        }
    }

    /// Names in a folder.
    pub fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        Ok(self.folders.get(path).ok_or_else(missing)?.now.keys().cloned().collect())
    }

    /// Another name in the same folder.
    pub fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let ((parent, old), (other, new)) = (split(from)?, split(to)?);
        assert_eq!(parent, other, "the project renames within a folder only");
        let folder = self.folders.get_mut(&parent).ok_or_else(missing)?;
        let entry = *folder.now.get(&old).ok_or_else(missing)?;
        folder.change(Change::Rename(old, new, entry));
        Ok(())
    }

    /// Removes a name.
    pub fn remove(&mut self, path: &Path) -> io::Result<()> {
        let (parent, name) = split(path)?;
        let folder = self.folders.get_mut(&parent).ok_or_else(missing)?;
        match folder.now.get(&name) {
            Some(Entry::File(_)) => folder.change(Change::Remove(name)),
            Some(Entry::Folder) => return Err(io::Error::from_raw_os_error(libc::EISDIR)),
            None => return Err(missing()),
        }
        Ok(())
    }

    /// Makes a folder.
    pub fn create_dir(&mut self, path: &Path) -> io::Result<()> {
        let (parent, name) = split(path)?;
        let folder = self.folders.get_mut(&parent).ok_or_else(missing)?;
        if folder.now.contains_key(&name) {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        folder.change(Change::Set(name, Entry::Folder));
        self.folders.insert(path.to_path_buf(), Folder::default());
        Ok(())
    }

    /// Makes the names of a folder durable.
    pub fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        self.folders.get_mut(path).ok_or_else(missing)?.sync();
        Ok(())
    }

    /// Makes everything durable, as before the seed's story begins.
    pub fn settle(&mut self) {
        self.folders.values_mut().for_each(Folder::sync);
        for inode in &mut self.inodes {
            let len = inode.len();
            inode.write_back(0, len, |_| true);
        }
    }

    /// The content of a file, as every process sees it.
    pub fn content(&self, path: &Path) -> io::Result<Vec<u8>> {
        let (parent, name) = split(path)?;
        match self.folders.get(&parent).and_then(|f| f.now.get(&name)) {
            Some(Entry::File(inode)) => Ok(self.inodes[*inode].content.bytes().to_vec()),
            _ => Err(missing()),
        }
    }

    /// Makes a file longer by a hole, durably.
    pub fn grow(&mut self, path: &Path, len: usize) {
        let Ok((parent, name)) = split(path) else { return };
        if let Some(Entry::File(inode)) = self.folders.get(&parent).and_then(|f| f.now.get(&name)) {
            let inode = &mut self.inodes[*inode];
            inode.resize(len.max(inode.len()));
            inode.durable.resize(inode.len(), 0);
        }
    }

    /// Writes durably, whatever else goes wrong.
    pub fn overwrite(&mut self, path: &Path, at: usize, data: &[u8]) {
        let Ok((parent, name)) = split(path) else { return };
        if let Some(Entry::File(inode)) = self.folders.get(&parent).and_then(|f| f.now.get(&name)) {
            let inode = &mut self.inodes[*inode];
            inode.put(data, at);
            inode.write_back(at, at + data.len(), |_| true);
        }
    }

    /// Notes the time of a change.
    pub fn touch(&mut self, inode: usize, now: u64) {
        self.inodes[inode].modified = now;
    }

    /// As ftruncate.
    pub fn set_len(&mut self, inode: usize, len: u64) {
        self.inodes[inode].resize(usize::try_from(len).unwrap_or(0));
    }

    /// As fallocate.
    pub fn fallocate(&mut self, inode: usize, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        let faults = self.faults_of(inode);
        let i = &mut self.inodes[inode];
        let (from, end) = (usize::try_from(offset).unwrap_or(0), usize::try_from(offset + len).unwrap_or(0));
        if mode & libc::FALLOC_FL_PUNCH_HOLE == 0 && faults.full {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        if mode & libc::FALLOC_FL_KEEP_SIZE == 0 && end > i.len() {
            i.resize(end);
        }
        let end = end.min(i.len());
        if mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0 && from < end {
            i.content.bytes_mut()[from..end].fill(0);
            i.dirty[from / SECTOR..end.div_ceil(SECTOR)].fill(true);
            let whole = from.div_ceil(BLOCK)..if end == i.len() { end.div_ceil(BLOCK) } else { end / BLOCK };
            if mode & libc::FALLOC_FL_PUNCH_HOLE != 0 && whole.start < whole.end {
                i.data[whole].fill(false);
            }
        }
        if mode & libc::FALLOC_FL_PUNCH_HOLE == 0 && from < end {
            i.data[from / BLOCK..end.div_ceil(BLOCK)].fill(true);
        }
        Ok(())
    }

    /// As lseek with `SEEK_DATA` or `SEEK_HOLE`.
    pub fn seek(&self, inode: usize, offset: u64, data: bool) -> io::Result<u64> {
        let i = &self.inodes[inode];
        let (at, len) = (usize::try_from(offset).unwrap_or(usize::MAX), i.len());
        if at >= len {
            return Err(io::Error::from_raw_os_error(libc::ENXIO));
        }
        let found = (at / BLOCK..i.data.len()).find(|b| i.data[*b] == data).map(|b| (b * BLOCK).max(at));
        match found {
            Some(at) => Ok(at as u64),
            None if data => Err(io::Error::from_raw_os_error(libc::ENXIO)),
            None => Ok(len as u64),
        }
    }

    /// Takes the lock, if nobody has it.
    pub fn lock(&mut self, inode: usize, life: u64) -> bool {
        let lock = &mut self.inodes[inode].lock;
        let free = lock.is_none();
        if free {
            *lock = Some(life);
        }
        free
    }

    /// Gives the lock back.
    pub fn unlock(&mut self, inode: usize) {
        self.inodes[inode].lock = None;
    }

    /// Maps an inode; where it lies.
    pub fn map(&mut self, inode: usize, len: usize) -> *mut u8 {
        let i = &mut self.inodes[inode];
        if i.len() < len {
            i.resize(len);
        }
        match i.content {
            Content::Mapped(p, _) => p,
            Content::Owned(ref v) => {
                let (p, n) = (pages(v.len()), v.len());
                // SAFETY: new memory of at least that length.
                unsafe { std::ptr::copy_nonoverlapping(v.as_ptr(), p, n) };
                i.content = Content::Mapped(p, n);
                p
            }
        }
    }
}
