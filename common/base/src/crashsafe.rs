//! Files that are whole or not there, and errors that are final.

use crate::world::broken;
use crate::world::fs::{self, OpenOptions};
use std::ffi::OsString;
use std::io;
use std::path::Path;

/// Replaces `path` by a file with these bytes: written beside it (mode 0600), made durable, renamed, and the
/// folder made durable. After a crash either the old or the new content is there, whole.
///
/// # Errors
/// Any of the steps; the old file is then still there.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = OsString::from(path.as_os_str());
    temporary.push(".new");
    let temporary = Path::new(&temporary);
    let file = OpenOptions::write_only().create().truncate().open(temporary)?;
    file.write_all_at(bytes, 0)?;
    if !broken("replace-unsynced") {
        file.sync_all()?;
    }
    fs::rename(temporary, path)?;
    sync_parent(path)
}

/// Makes the names in the folder of `path` durable.
///
/// # Errors
/// If the folder cannot be opened or synced.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    if broken("folder-unsynced") {
        return Ok(());
    }
    fs::sync_dir(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

/// Makes a folder (mode 0700) and those above it, unless they are there, and their names durable: what is made durable in it later
/// can be found after a power cut.
///
/// # Errors
/// If a folder cannot be made or synced.
pub fn create_folders(path: &Path) -> io::Result<()> {
    let is_missing = |p: &&Path| !p.as_os_str().is_empty() && !fs::exists(p);
    let missing: Vec<&Path> = path.ancestors().take_while(is_missing).collect();
    // Each name is durable before there is anything below it. So of those that are there only the last may not be: whoever made it
    // was killed before that.
    if let Some(last) = path.ancestors().nth(missing.len()).filter(|p| p.parent().is_some()) {
        match sync_parent(last) {
            // It lies in a folder of others, who made it: we would have failed to.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {}
            done => done?,
        }
    }
    // Broken on purpose: the names are synced when all folders are there.
    let at_once = broken("folders-at-once");
    for folder in missing.iter().rev() {
        fs::create_dir_all(folder)?;
        if !at_once {
            sync_parent(folder)?;
        }
    }
    if at_once {
        missing.iter().try_for_each(|folder| sync_parent(folder))?;
    }
    Ok(())
}

/// Whether an error of the store or journal can pass when somebody makes room (ENOSPC, EDQUOT, EFBIG),
/// as opposed to one that is final for the file (I11).
#[must_use]
pub fn is_full(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_replaced_file_is_private_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("truth");
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn folders_are_made_one_below_the_other_and_those_that_are_there_are_left() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/c");
        for _ in 0..2 {
            create_folders(&deep).unwrap();
        }
        for folder in deep.ancestors().take(3) {
            assert_eq!(fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700, "{}", folder.display());
        }
        // A file in the way is said, and stays.
        fs::write(dir.path().join("file"), b"x").unwrap();
        assert!(create_folders(&dir.path().join("file/below")).is_err());
        assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"x");
        assert!(create_folders(Path::new("/")).is_ok(), "there is nothing above it");
    }
}
