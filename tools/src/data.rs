//! The data folder: who owns it, and of which version it is.
//!
//! ```text
//! DATA/            0700
//!   LOCK           locked (flock) by the running process, and its process id in it
//!   VERSION        "afterimage data 1\n"
//! ```

use crate::problem::Problem;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

const VERSION: &str = "afterimage data 1\n";

/// A data folder that this process owns.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: Flock<File>,
}

/// The folder used without `--data`: `$AFTERIMAGE_DATA`, else `$XDG_DATA_HOME/afterimage`, else
/// `~/.local/share/afterimage`.
///
/// # Errors
/// If none of these variables is set.
pub fn default_path() -> Result<PathBuf, Problem> {
    if let Some(data) = std::env::var_os("AFTERIMAGE_DATA").filter(|d| !d.is_empty()) {
        return Ok(data.into());
    }
    let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    set("XDG_DATA_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".local/share")))
        .map(|base| base.join("afterimage"))
        .ok_or_else(|| {
            Problem::usage(
                "none of AFTERIMAGE_DATA, XDG_DATA_HOME and HOME is set: name the data folder with --data DIR",
            )
        })
}

impl DataDir {
    /// Takes the folder for a running process; makes it if it is not there.
    ///
    /// # Errors
    /// If it is locked by another process, of another version, or no data folder of ours.
    pub fn create(path: &Path) -> Result<DataDir, Problem> {
        let at =
            |what: &str, e: io::Error| Problem::failed(format!("data folder {}: cannot {what}: {e}", path.display()));
        let new = !path.exists();
        fs::create_dir_all(path).map_err(|e| at("make it", e))?;
        let path = fs::canonicalize(path).map_err(|e| at("find it", e))?;
        let version = path.join("VERSION");
        if !new && !version.exists() && !is_empty_but_lock(&path).map_err(|e| at("read it", e))? {
            return Err(Problem::failed(format!(
                "{} is not empty and no data folder of afterimage (it has no VERSION file): name another one with --data",
                path.display()
            )));
        }
        fs::set_permissions(&path, Permissions::from_mode(0o700)).map_err(|e| at("make it private", e))?;
        let lock = lock(&path)?;
        if version.exists() {
            check_version(&path)?;
        } else {
            afterimage_base::crashsafe::replace(&version, VERSION.as_bytes()).map_err(|e| at("write VERSION", e))?;
        }
        Ok(DataDir { path, _lock: lock })
    }

    /// Takes a folder that is there already, for offline work.
    ///
    /// # Errors
    /// If it is not there, or as [`DataDir::create`].
    pub fn open(path: &Path) -> Result<DataDir, Problem> {
        if !path.join("VERSION").exists() {
            return Err(Problem::failed(format!(
                "{} is no data folder of afterimage (it has no VERSION file)",
                path.display()
            )));
        }
        Self::create(path)
    }

    /// Where it is, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn is_empty_but_lock(path: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        if name != "LOCK" && name != "VERSION.new" {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Checks the VERSION file.
///
/// # Errors
/// If the folder is of another version.
pub fn check_version(path: &Path) -> Result<(), Problem> {
    let found = fs::read_to_string(path.join("VERSION"))
        .map_err(|e| Problem::failed(format!("{}: {e}", path.join("VERSION").display())))?;
    if found == VERSION {
        return Ok(());
    }
    Err(Problem::failed(format!(
        "data folder {} is of another version: it says '{}', this program reads and writes '{}'; use the program that made \
         it, or another folder",
        path.display(),
        found.trim_end().chars().take(60).collect::<String>(),
        VERSION.trim_end()
    )))
}

fn lock(path: &Path) -> Result<Flock<File>, Problem> {
    let file = path.join("LOCK");
    let at = |e: io::Error| Problem::failed(format!("{}: {e}", file.display()));
    let open =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&file).map_err(at)?;
    match Flock::lock(open, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            lock.set_len(0).and_then(|()| lock.rewind()).map_err(at)?;
            writeln!(lock, "{}", std::process::id()).map_err(at)?;
            Ok(lock)
        }
        Err((mut held, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            drop(held.read_to_string(&mut pid));
            Err(Problem::failed(format!(
                "data folder {} is in use by process {}: stop it first, or name another folder with --data",
                path.display(),
                if pid.trim().is_empty() { "(unknown)" } else { pid.trim() }
            )))
        }
        Err((_, e)) => Err(at(e.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_made_private_taken_once_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let owned = DataDir::create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        let second = DataDir::create(&path).unwrap_err().text;
        assert!(second.contains(&format!("in use by process {}", std::process::id())), "{second}");
        drop(owned);
        drop(DataDir::open(&path).unwrap());
        fs::write(path.join("VERSION"), "afterimage data 2\n").unwrap();
        let other = DataDir::create(&path).unwrap_err().text;
        assert!(other.contains("says 'afterimage data 2'") && other.contains("'afterimage data 1'"), "{other}");
    }

    #[test]
    fn a_folder_with_other_things_in_it_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.tex"), "dear").unwrap();
        assert!(DataDir::create(dir.path()).unwrap_err().text.contains("no data folder"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(DataDir::open(&dir.path().join("none")).unwrap_err().text.contains("no data folder"));
    }
}
