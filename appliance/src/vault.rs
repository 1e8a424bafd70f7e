//! The vault folder: its lock, its key, and its manifest with the one owner that changes it.
//!
//! ```text
//! DIR/LOCK        held (flock) by the process that has the vault open
//! DIR/MANIFEST    what exists
//! DIR/key         the vault key, unless a passphrase wraps it or it is kept elsewhere
//! DIR/segments/   NUMBER.seg, eight hexadecimal digits
//! DIR/layers/
//! ```

use crate::keys::{KeyError, KeySource, VaultKey, random};
use crate::room::Room;
use crate::store::{IoHook, IoOp};
use afterimage_base::crashsafe;
use afterimage_base::world::fs::{self, File, OpenOptions};
use afterimage_format::codec::DecodeError;
use afterimage_format::manifest::Manifest;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use thiserror::Error;

/// Largest manifest that is read: 64 MiB is room for a million segments and as many points.
const MAX_MANIFEST: u64 = 64 << 20;

/// Why a vault cannot be opened or changed.
#[derive(Debug, Error)]
pub enum VaultError {
    /// Another process has it.
    #[error("{0}: the vault is in use by another process; stop that one, or use another data folder")]
    Locked(PathBuf),
    /// The system refused an operation on a file.
    #[error("{path}: cannot {what}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The manifest cannot be read as one.
    #[error("{path}: {source}. Nothing was changed; `afterimage check` says what can still be read")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: DecodeError,
    },
    /// There is data, and no manifest that says what it is.
    #[error("{0}: there are segments in the vault and no MANIFEST; put it back. A new vault needs an empty folder")]
    Lost(PathBuf),
    /// There is no vault here.
    #[error("{0}: there is no vault in this folder")]
    None(PathBuf),
    /// No key, or the wrong one.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The disk is full: what is there stays valid.
    #[error("{0}: the disk is full, the manifest could not be replaced; make room")]
    Full(PathBuf),
    /// An earlier write of the manifest failed for good (I11).
    #[error(
        "the manifest could not be written earlier ({0}); the vault takes no more changes until it is opened again"
    )]
    Poisoned(String),
}

/// What is asked before the manifest is replaced, and where room for it can be had.
pub struct Upkeep {
    /// See [`IoHook`].
    pub hook: Option<IoHook>,
    /// The disk's room.
    pub room: Arc<Room>,
}

struct Owned {
    manifest: Manifest,
    failed: Option<String>,
}

/// An open vault.
pub struct Vault {
    dir: PathBuf,
    key: VaultKey,
    owned: Mutex<Owned>,
    upkeep: OnceLock<Upkeep>,
    /// Whether `failed` is set, for those who must not wait for a change that is under way.
    poisoned: AtomicBool,
    _lock: File,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vault({})", self.dir.display())
    }
}

fn io_error(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> VaultError {
    let path = path.to_path_buf();
    move |source| VaultError::Io { path, what, source }
}

impl Vault {
    /// Opens the vault in `dir`, or makes one if the folder is empty or not there.
    ///
    /// # Errors
    /// [`VaultError`] says which file and why; nothing has been changed then.
    pub fn open_or_create(dir: &Path, source: &KeySource) -> Result<Vault, VaultError> {
        for d in [dir.to_path_buf(), dir.join("segments"), dir.join("layers")] {
            crashsafe::create_folders(&d).map_err(io_error(&d, "make the folder"))?;
        }
        let lock = lock(dir)?;
        let manifest = match read_manifest(dir)? {
            Some(m) => m,
            None => return Self::create(dir, source, lock),
        };
        let key = VaultKey::open(source, &manifest.wrap, &manifest.key_check)?;
        Ok(Self {
            dir: dir.into(),
            key,
            owned: Mutex::new(Owned { manifest, failed: None }),
            upkeep: OnceLock::new(),
            poisoned: AtomicBool::new(false),
            _lock: lock,
        })
    }

    fn create(dir: &Path, source: &KeySource, lock: File) -> Result<Vault, VaultError> {
        let segments = dir.join("segments");
        let entries = fs::read_dir(&segments).map_err(io_error(&segments, "list the folder"))?;
        if !entries.is_empty() {
            return Err(VaultError::Lost(dir.into()));
        }
        let (key, wrap) = VaultKey::create(source)?;
        let manifest = Manifest {
            vault: random()?,
            edition: 1,
            wrap,
            key_check: key.check_value(),
            next_segment: 1,
            segments: Vec::new(),
            volumes: Vec::new(),
        };
        let path = dir.join("MANIFEST");
        crashsafe::replace(&path, &manifest.encode()).map_err(io_error(&path, "write it"))?;
        Ok(Self {
            dir: dir.into(),
            key,
            owned: Mutex::new(Owned { manifest, failed: None }),
            upkeep: OnceLock::new(),
            poisoned: AtomicBool::new(false),
            _lock: lock,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Owned> {
        self.owned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Folder of the segments.
    #[must_use]
    pub fn segments_dir(&self) -> PathBuf {
        self.dir.join("segments")
    }

    /// Folder of the layers.
    #[must_use]
    pub fn layers_dir(&self) -> PathBuf {
        self.dir.join("layers")
    }

    /// The vault key.
    #[must_use]
    pub const fn key(&self) -> &VaultKey {
        &self.key
    }

    /// Looks at the manifest.
    pub fn read<T>(&self, look: impl FnOnce(&Manifest) -> T) -> T {
        look(&self.lock().manifest)
    }

    /// Changes the manifest: `change` works on a copy, which takes effect when it is durable and not before.
    ///
    /// # Errors
    /// [`VaultError::Full`] leaves everything as it was; any other write error is final (I11).
    pub fn edit<T>(&self, change: impl FnOnce(&mut Manifest) -> T) -> Result<T, VaultError> {
        let mut owned = self.lock();
        if let Some(why) = &owned.failed {
            return Err(VaultError::Poisoned(why.clone()));
        }
        let mut next = owned.manifest.clone();
        let out = change(&mut next);
        next.edition += 1;
        let path = self.dir.join("MANIFEST");
        let bytes = next.encode();
        let mut replaced = self.replace(&path, &bytes);
        // A full disk: the file beside the manifest is thrown away and written anew in the reserve's room.
        if replaced.as_ref().is_err_and(crashsafe::is_full) && self.upkeep.get().is_some_and(|u| u.room.give_up()) {
            replaced = self.replace(&path, &bytes);
        }
        match replaced {
            Ok(()) => {
                owned.manifest = next;
                Ok(out)
            }
            Err(e) if crashsafe::is_full(&e) => Err(VaultError::Full(path)),
            Err(e) => {
                tracing::error!(
                    "{}: cannot replace the manifest: {e}; the vault takes no more changes",
                    path.display()
                );
                owned.failed = Some(e.to_string());
                self.poisoned.store(true, Ordering::Release);
                Err(VaultError::Io { path, what: "replace it", source: e })
            }
        }
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let asked = self.upkeep.get().and_then(|u| u.hook.as_ref()).map_or(Ok(()), |h| h(IoOp::Manifest));
        let replaced = asked.and_then(|()| crashsafe::replace(path, bytes));
        if replaced.is_err() {
            // Half written it takes room and is nothing.
            drop(fs::remove_file(&self.dir.join("MANIFEST.new")));
        }
        replaced
    }

    /// Says what is asked before the manifest is replaced. Counts once.
    pub fn set_upkeep(&self, upkeep: Upkeep) {
        drop(self.upkeep.set(upkeep));
    }

    /// Why the vault takes no more changes until it is opened again, if so (I11).
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        if !self.poisoned.load(Ordering::Acquire) {
            return None;
        }
        let failed = self.lock().failed.clone();
        failed.map(|why| format!("the manifest of the vault could not be written: {why}; look at its disk, then start the appliance again"))
    }

    /// Removes what the manifest does not name from `segments/` and `layers/`; `named` says which file names
    /// stay. Returns how many files went.
    ///
    /// # Errors
    /// If a folder cannot be read or a file not be removed.
    pub fn remove_rubbish(&self, folder: &str, named: impl Fn(&str) -> bool) -> Result<usize, VaultError> {
        let dir = self.dir.join(folder);
        let mut gone = 0;
        for entry in fs::read_dir(&dir).map_err(io_error(&dir, "list the folder"))? {
            if entry.to_str().is_some_and(&named) {
                continue;
            }
            let path = dir.join(entry);
            fs::remove_file(&path).map_err(io_error(&path, "remove it"))?;
            gone += 1;
        }
        Ok(gone)
    }
}

fn lock(dir: &Path) -> Result<File, VaultError> {
    let path = dir.join("LOCK");
    let file = OpenOptions::write_only().create().open(&path);
    let file = file.map_err(io_error(&path, "open it"))?;
    file.try_lock().map_err(|(_, e)| match e.kind() {
        io::ErrorKind::WouldBlock => VaultError::Locked(dir.into()),
        _ => VaultError::Io { path, what: "lock it", source: e },
    })
}

/// Reads the manifest in `dir`; `None` if there is none. Neither key nor lock is needed.
///
/// # Errors
/// [`VaultError::Io`] or [`VaultError::Manifest`].
pub fn read_manifest(dir: &Path) -> Result<Option<Manifest>, VaultError> {
    let path = dir.join("MANIFEST");
    let file = match File::open(&path) {
        Ok(f) => f,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_error(&path, "open it")(e)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_MANIFEST).read_to_end(&mut bytes).map_err(io_error(&path, "read it"))?;
    Manifest::decode(&bytes).map(Some).map_err(|source| VaultError::Manifest { path, source })
}

/// Takes the lock of an existing vault for offline work, so that no process changes it meanwhile.
///
/// # Errors
/// [`VaultError::Locked`] if a process has it.
pub fn lock_offline(dir: &Path) -> Result<File, VaultError> {
    if !fs::exists(&dir.join("MANIFEST")) && !fs::exists(&dir.join("segments")) {
        return Err(VaultError::None(dir.into()));
    }
    lock(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn source(dir: &Path) -> KeySource {
        KeySource::File(dir.join("key"))
    }

    #[test]
    fn a_vault_opens_once_at_a_time_and_keeps_its_edits() {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::open_or_create(dir.path(), &source(dir.path())).unwrap();
        vault.edit(|m| m.next_segment = 9).unwrap();
        assert!(matches!(Vault::open_or_create(dir.path(), &source(dir.path())), Err(VaultError::Locked(_))));
        drop(vault);
        let vault = Vault::open_or_create(dir.path(), &source(dir.path())).unwrap();
        assert_eq!(vault.read(|m| m.next_segment), 9);
    }

    #[test]
    fn a_damaged_lost_or_foreign_manifest_is_named_and_nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        drop(Vault::open_or_create(dir.path(), &source(dir.path())).unwrap());
        let path = dir.path().join("MANIFEST");
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        bad[40] ^= 1;
        fs::write(&path, &bad).unwrap();
        let opened = Vault::open_or_create(dir.path(), &source(dir.path()));
        assert!(matches!(opened, Err(VaultError::Manifest { source: DecodeError::Checksum { .. }, .. })));
        bad = good;
        bad[4] = 9;
        fs::write(&path, &bad).unwrap();
        let opened = Vault::open_or_create(dir.path(), &source(dir.path()));
        assert!(matches!(opened, Err(VaultError::Manifest { source: DecodeError::Version { .. }, .. })));
        assert_eq!(fs::read(&path).unwrap(), bad);
        fs::remove_file(&path).unwrap();
        fs::write(dir.path().join("segments/00000001.seg"), b"x").unwrap();
        assert!(matches!(Vault::open_or_create(dir.path(), &source(dir.path())), Err(VaultError::Lost(_))));
    }

    #[test]
    fn a_wrong_key_is_a_clear_error() {
        let dir = tempfile::tempdir().unwrap();
        drop(Vault::open_or_create(dir.path(), &source(dir.path())).unwrap());
        fs::write(dir.path().join("key"), [1; 32]).unwrap();
        let opened = Vault::open_or_create(dir.path(), &source(dir.path()));
        assert!(matches!(opened, Err(VaultError::Key(KeyError::Wrong))));
    }
}
