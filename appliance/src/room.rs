//! Room on the vault's disk: a threshold below which ingest pauses, and a reserve for getting out again.
//!
//! Ingest pauses before the disk is really full, so that layers, directories and the manifest can still be written. The
//! reserve is a preallocated file that is given up when collection, or a change of the manifest, finds no room: merging
//! and replacing need some before they free any. While it is not whole again, ingest stays paused, so nothing but the way
//! out uses its room.
//!
//! | the disk has | ingest | the reserve |
//! |---|---|---|
//! | at least the threshold | goes on | whole |
//! | less | pauses, agents fall back to dirty tracking; goes on by itself | whole, until collection or manifest need it |
//! | nothing | paused | given up for a round of collection; made again when there is room for it and the threshold |

use afterimage_base::world;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Looks at the disk are at least so far apart.
const APART: Duration = Duration::from_millis(100);
/// Largest reserve: what merging and moving some layers takes. On a small disk it is one part in so many.
const MAX_RESERVE: u64 = 64 << 20;
const RESERVE_SHARE: u64 = 64;

/// How much of the vault's disk has to be free for ingest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MinFree {
    /// So many bytes.
    Bytes(u64),
    /// So many percent of the disk, at most 99.
    Percent(u8),
    /// 2 percent, at most 1 GiB.
    Auto,
}

impl MinFree {
    const fn of(self, total: u64) -> u64 {
        match self {
            MinFree::Bytes(n) => n,
            MinFree::Percent(p) => total / 100 * p as u64,
            MinFree::Auto if total / 50 > 1 << 30 => 1 << 30,
            MinFree::Auto => total / 50,
        }
    }
}

impl FromStr for MinFree {
    type Err = String;

    fn from_str(text: &str) -> Result<MinFree, String> {
        let bad = || format!("'{text}' is neither a number of bytes nor a percentage from 0% to 99%");
        match text.strip_suffix('%') {
            Some(p) => p.parse().ok().filter(|p| *p < 100).map(MinFree::Percent).ok_or_else(bad),
            None => text.parse().map(MinFree::Bytes).map_err(|_| bad()),
        }
    }
}

/// What the disk has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Size of its file system in bytes.
    pub total: u64,
    /// Bytes that we could still use.
    pub free: u64,
}

#[derive(Debug)]
struct State {
    looked: Option<Instant>,
    /// Why ingest is paused.
    short: Option<String>,
    whole: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Room {
    dir: PathBuf,
    min_free: MinFree,
    state: Mutex<State>,
}

fn space(dir: &Path) -> Option<Space> {
    let s = statvfs(dir).ok()?;
    let unit = s.fragment_size();
    Some(Space { total: s.blocks().saturating_mul(unit), free: s.blocks_available().saturating_mul(unit) })
}

impl Room {
    /// Of the vault in `dir`.
    #[must_use]
    pub fn new(dir: &Path, min_free: MinFree) -> Room {
        let whole = dir.join("RESERVE").exists();
        let room = Room { dir: dir.into(), min_free, state: Mutex::new(State { looked: None, short: None, whole }) };
        room.look();
        room
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reserve(&self) -> PathBuf {
        self.dir.join("RESERVE")
    }

    /// Looks at the disk: whether ingest pauses, and whether the reserve can be made again.
    pub fn look(&self) {
        let mut state = self.lock();
        state.looked = Some(world::now());
        // A disk that does not say what it has is written to until it says no.
        let Some(Space { total, free }) = space(&self.dir) else { return };
        let least = self.min_free.of(total);
        if least == 0 {
            state.short = None;
            return;
        }
        let reserve = MAX_RESERVE.min(total / RESERVE_SHARE);
        if !state.whole && free >= least.saturating_add(reserve) {
            state.whole = self.make(reserve);
        }
        // Once paused, a little more than the threshold is wanted, so that it does not flap.
        let wanted = if state.short.is_some() { least + least / 8 } else { least };
        let before = state.short.is_some();
        state.short = (free < wanted || !state.whole).then(|| {
            format!(
                "the disk of the vault {} has {} MiB free, and ingest needs {} MiB (--min-free): make room there",
                self.dir.display(),
                free >> 20,
                wanted.saturating_add(if state.whole { 0 } else { reserve }) >> 20
            )
        });
        match (&state.short, before) {
            (Some(why), false) => tracing::warn!("{why}; ingest pauses until there is room"),
            (None, true) => tracing::info!("{}: there is room again, ingest goes on", self.dir.display()),
            _ => {}
        }
    }

    fn make(&self, bytes: u64) -> bool {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(self.reserve());
        let Ok(file) = file else { return false };
        let len = i64::try_from(bytes).unwrap_or(i64::MAX);
        match fallocate(&file, FallocateFlags::empty(), 0, len) {
            Ok(()) => true,
            // Where nothing can be set aside, the threshold alone has to do.
            Err(nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::ENOSYS) => true,
            Err(_) => {
                drop(std::fs::remove_file(self.reserve()));
                false
            }
        }
    }

    /// Gives the reserve up. False if it was gone already.
    pub fn give_up(&self) -> bool {
        let mut state = self.lock();
        if self.min_free == MinFree::Bytes(0) || !state.whole {
            return false;
        }
        state.whole = false;
        state
            .short
            .get_or_insert_with(|| format!("the disk of the vault {} is full: make room there", self.dir.display()));
        match std::fs::remove_file(self.reserve()) {
            Ok(()) => {
                tracing::warn!("{}: the reserve is given up to get out of a full disk", self.dir.display());
                true
            }
            Err(_) => false,
        }
    }

    /// Why ingest is paused, if it is.
    #[must_use]
    pub fn short(&self) -> Option<String> {
        if self.lock().looked.is_none_or(|at| world::since(at) >= APART) {
            self.look();
        }
        self.lock().short.clone()
    }

    /// Whether so many bytes more can be written without ingest having to pause.
    #[must_use]
    pub fn has(&self, bytes: u64) -> bool {
        let Some(Space { total, free }) = space(&self.dir) else { return true };
        free >= bytes.saturating_add(self.min_free.of(total).saturating_mul(2))
    }

    /// What the disk has.
    #[must_use]
    pub fn space(&self) -> Option<Space> {
        space(&self.dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_is_bytes_or_a_share() {
        assert_eq!("5%".parse(), Ok(MinFree::Percent(5)));
        assert_eq!("1048576".parse(), Ok(MinFree::Bytes(1 << 20)));
        for bad in ["", "%", "100%", "-1", "5 %", "x"] {
            assert!(bad.parse::<MinFree>().is_err(), "{bad}");
        }
        assert_eq!(MinFree::Percent(10).of(1000), 100);
        assert_eq!((MinFree::Auto.of(500), MinFree::Auto.of(1 << 40)), (10, 1 << 30));
    }

    #[test]
    fn ingest_pauses_below_the_threshold_and_the_reserve_comes_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let room = Room::new(dir.path(), MinFree::Bytes(1));
        assert!(room.short().is_none() && dir.path().join("RESERVE").exists());
        assert!(room.give_up() && !dir.path().join("RESERVE").exists());
        assert!(!room.give_up(), "there is only one");
        room.look();
        assert!(room.short().is_none() && dir.path().join("RESERVE").exists(), "made again");
        let never = Room::new(dir.path(), MinFree::Bytes(u64::MAX / 2));
        assert!(never.short().unwrap().contains("--min-free"));
        let off = tempfile::tempdir().unwrap();
        let room = Room::new(off.path(), MinFree::Bytes(0));
        assert!(room.short().is_none() && !room.give_up() && !off.path().join("RESERVE").exists());
    }
}
