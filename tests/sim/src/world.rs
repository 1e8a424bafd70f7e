//! The simulation as the world of agent, journal and appliance.

use crate::disk::How;
use crate::sched::{Host, Sim, State};
use afterimage_base::clock::Clock;
use afterimage_base::world::fs::{FileKind, Files, Metadata, OpenOptions, SimFile, SimMap};
use afterimage_base::world::{At, World};
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

impl World for Sim {
    fn now(&self) -> Instant {
        let now = self.state().now;
        self.instant(now)
    }

    fn sleep(&self, time: Duration, at: At) {
        // Nobody notifies this key.
        self.wait(usize::MAX, Some(nanos(time).max(1)), at);
    }

    fn random(&self, out: &mut [u8]) {
        let mut s = self.state();
        for chunk in out.chunks_mut(8) {
            let bytes = s.rng.word().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }

    fn boot_id(&self) -> u128 {
        let s = self.state();
        u128::from(s.hosts[s.host() as usize].boot)
    }

    fn point(&self, name: &'static str, _at: At) {
        Sim::point(self, name);
    }

    fn broken(&self, name: &str) -> bool {
        self.broken.as_deref() == Some(name)
    }

    fn spawn(&self, name: &str, f: Box<dyn FnOnce() + Send>) -> u64 {
        let host = self.host();
        Sim::spawn(self, host, name, f) as u64
    }

    fn join(&self, thread: u64, at: At) {
        Sim::join(self, usize::try_from(thread).unwrap_or(0), at);
    }

    fn park(&self, timeout: Duration, at: At) {
        let me = self.state().current();
        self.wait(crate::sched::park_key(me), Some(nanos(timeout)), at);
    }

    fn unpark(&self, thread: u64) {
        Sim::notify(self, crate::sched::park_key(usize::try_from(thread).unwrap_or(0)), true);
    }

    fn wait(&self, key: usize, timeout: Option<Duration>, at: At) -> bool {
        Sim::wait(self, key, timeout.map(nanos), at)
    }

    fn notify(&self, key: usize, all: bool) {
        Sim::notify(self, key, all);
    }

    fn files(&self) -> &dyn Files {
        self
    }
}

/// A host's wall clock.
pub struct WallClock(pub &'static Sim, pub Host);

/// The simulations begin in 2026.
const EPOCH: u64 = 1_767_225_600 * 1_000_000_000;

impl Clock for WallClock {
    fn wall(&self) -> u64 {
        let s = self.0.state();
        (EPOCH + s.now).saturating_add_signed(s.hosts[self.1 as usize].skew)
    }

    fn monotonic(&self) -> u64 {
        self.0.state().now
    }
}

impl Sim {
    /// Begins an operation on a file: the host may die in it.
    fn operation(&self, what: u8, value: u64) -> (MutexGuard<'_, State>, Host) {
        let mut s = self.state();
        s.step(what);
        if !s.alive() {
            drop(s);
            self.freeze();
        }
        s.note(what, value);
        let host = s.host();
        (s, host)
    }
}

fn named(path: &Path) -> u64 {
    xxhash_rust::xxh3::xxh3_64(path.as_os_str().as_encoded_bytes())
}

fn time(at: u64) -> Option<SystemTime> {
    Some(SystemTime::UNIX_EPOCH + Duration::from_nanos(EPOCH + at))
}

fn metadata(stat: crate::disk::Stat) -> Metadata {
    Metadata {
        kind: if stat.folder { FileKind::Folder } else { FileKind::File },
        len: stat.len,
        ino: stat.ino,
        dev: 0,
        rdev: 0,
        born: time(stat.born),
        modified: time(stat.modified),
    }
}

impl Files for Sim {
    fn open(&self, path: &Path, how: &OpenOptions) -> io::Result<Arc<dyn SimFile>> {
        let (mut s, host) = self.operation(b'o', named(path));
        let how = How { create: how.create, new: how.create_new, truncate: how.truncate };
        let (now, life) = (s.now, s.hosts[host as usize].life);
        let inode = s.disks.of(host).open(path, how, now)?;
        // The world is set once, for good.
        let sim = crate::sim();
        let seen = s.disks.of(host).errors(inode);
        drop(s);
        Ok(Arc::new(Open {
            sim,
            host,
            life,
            inode,
            locked: AtomicBool::new(false),
            seen: AtomicU64::new(seen),
            apart: false,
        }))
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        let (mut s, host) = self.operation(b'm', named(path));
        s.disks.of(host).stat(path).map(metadata)
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let (mut s, host) = self.operation(b'l', named(path));
        s.disks.of(host).list(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (mut s, host) = self.operation(b'n', named(to));
        s.disks.of(host).rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let (mut s, host) = self.operation(b'u', named(path));
        s.disks.of(host).remove(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let (mut s, host) = self.operation(b'd', named(path));
        s.disks.of(host).create_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let (mut s, host) = self.operation(b'y', named(path));
        s.disks.of(host).sync_dir(path)
    }
}

struct Open {
    sim: &'static Sim,
    host: Host,
    life: u64,
    inode: usize,
    locked: AtomicBool,
    /// Errors of writing back that it has told.
    seen: AtomicU64,
    /// Its errors are told to nobody but the agent.
    apart: bool,
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file {} of {:?}", self.inode, self.host)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.locked.load(Ordering::Relaxed) {
            let mut s = self.sim.state();
            if s.hosts[self.host as usize].life == self.life {
                s.disks.of(self.host).unlock(self.inode);
            }
        }
    }
}

impl Open {
    fn operation(&self, what: u8, value: u64) -> MutexGuard<'_, State> {
        self.sim.operation(what, (self.inode as u64) << 40 ^ value).0
    }
}

impl SimFile for Open {
    fn metadata(&self) -> Metadata {
        metadata(self.sim.state().disks.of(self.host).stat_of(self.inode))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.operation(b'R', offset).disks.read(self.host, self.inode, buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64, durable: bool) -> io::Result<usize> {
        let mut s = self.operation(b'W', offset ^ (data.len() as u64) << 20);
        let now = s.now;
        s.disks.of(self.host).touch(self.inode, now);
        s.disks.write(self.host, self.inode, data, offset, durable)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.operation(b'T', len).disks.of(self.host).set_len(self.inode, len);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut s = self.operation(b'S', 0);
        let mut result = s.disks.sync(self.host, self.inode, 0, usize::MAX);
        // As the kernel does: every description tells of every error, once.
        let errors = s.disks.of(self.host).errors(self.inode);
        if self.seen.swap(errors, Ordering::Relaxed) != errors && result.is_ok() {
            result = Err(io::Error::from_raw_os_error(libc::EIO));
        }
        if result.is_err() && !self.apart && s.disks.of(self.host).stat_of(self.inode).disk {
            s.disks.lost += 1;
        }
        result
    }

    fn fallocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        self.operation(b'A', offset ^ len << 20).disks.of(self.host).fallocate(self.inode, mode, offset, len)
    }

    fn seek(&self, offset: u64, whence: i32) -> io::Result<u64> {
        self.operation(b'K', offset).disks.of(self.host).seek(self.inode, offset, whence == libc::SEEK_DATA)
    }

    fn again(&self) -> Arc<dyn SimFile> {
        let seen = self.sim.state().disks.of(self.host).errors(self.inode);
        let (sim, host, life, inode) = (self.sim, self.host, self.life, self.inode);
        Arc::new(Open {
            sim,
            host,
            life,
            inode,
            locked: AtomicBool::new(false),
            seen: AtomicU64::new(seen),
            apart: true,
        })
    }

    fn try_lock(&self) -> bool {
        let got = self.operation(b'L', 0).disks.of(self.host).lock(self.inode, self.life);
        self.locked.fetch_or(got, Ordering::Relaxed);
        got
    }

    fn map(&self, len: usize) -> io::Result<Arc<dyn SimMap>> {
        let address = self.operation(b'M', len as u64).disks.of(self.host).map(self.inode, len);
        Ok(Arc::new(Mapped { sim: self.sim, host: self.host, inode: self.inode, address }))
    }
}

struct Mapped {
    sim: &'static Sim,
    host: Host,
    inode: usize,
    address: *mut u8,
}

// SAFETY: the address is of memory that lives as long as the process.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl fmt::Debug for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "map of file {} of {:?}", self.inode, self.host)
    }
}

impl SimMap for Mapped {
    fn address(&self) -> *mut u8 {
        self.address
    }

    fn sync(&self, offset: usize, len: usize) -> io::Result<()> {
        self.sim.operation(b'Y', self.inode as u64).0.disks.sync(self.host, self.inode, offset, offset + len)
    }
}
