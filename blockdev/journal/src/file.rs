//! What ring and dirty map do alike with their files: make them whole or not at all, lock them, know the boot.

use afterimage_base::world;
use afterimage_base::world::fs::{self, File, OpenOptions};
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Why a file could not be had.
#[derive(Debug)]
pub(crate) enum FileError {
    InUse,
    Io { doing: &'static str, source: io::Error },
}

/// Names what was being done when an error came.
pub(crate) fn doing(doing: &'static str) -> impl FnOnce(io::Error) -> FileError {
    move |source| FileError::Io { doing, source }
}

/// A file that no other process can open through here while this lives.
pub(crate) type Locked = File;

fn lock(file: File) -> Result<Locked, FileError> {
    match file.try_lock() {
        Ok(locked) => Ok(locked),
        Err((_, e)) if e.kind() == io::ErrorKind::WouldBlock => Err(FileError::InUse),
        Err((_, e)) => Err(doing("lock it")(e)),
    }
}

/// Opens and locks a file.
pub(crate) fn open(path: &Path) -> Result<Locked, FileError> {
    let file = OpenOptions::read_write().open(path).map_err(doing("open it"))?;
    lock(file)
}

/// A name that is removed again.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename there is nothing of this name left, and otherwise there is nobody to tell.
        let _ = fs::remove_file(&self.0);
    }
}

/// A file under a temporary name, removed unless it is [`finished`](NewFile::finish).
pub(crate) struct NewFile {
    file: Locked,
    temporary: Temporary,
    path: PathBuf,
    /// Lock on the file that will be replaced, so that nobody opens it meanwhile.
    _old: Option<Locked>,
}

impl NewFile {
    /// Begins a file of `len` zero bytes, with space allocated, that shall replace `path`. Mode 0600.
    pub(crate) fn begin(path: &Path, len: u64) -> Result<NewFile, FileError> {
        let old = match open(path) {
            Ok(old) => Some(old),
            Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        Ok(NewFile { _old: old, ..NewFile::beside(path, len)? })
    }

    /// The same, for a caller that holds the lock of the file at `path` itself.
    pub(crate) fn beside(path: &Path, len: u64) -> Result<NewFile, FileError> {
        let mut temporary = OsString::from(path.as_os_str());
        temporary.push(".new");
        let temporary = PathBuf::from(temporary);
        // What a killed process left is of no use, and may have another mode.
        match fs::remove_file(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(doing("remove what was left beside it")(e)),
            _ => {}
        }
        let file = OpenOptions::read_write().create_new().open(&temporary);
        let file = file.map_err(doing("create it"))?;
        let temporary = Temporary(temporary);
        let mut file = lock(file)?;
        allocate(&mut file, len).map_err(doing("allocate its space"))?;
        Ok(NewFile { file, temporary, path: path.to_path_buf(), _old: None })
    }

    /// The file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Makes the content durable, and then the name.
    pub(crate) fn finish(self) -> Result<Locked, FileError> {
        self.file.sync_all().map_err(doing("sync it"))?;
        fs::rename(&self.temporary.0, &self.path).map_err(doing("give it its name"))?;
        afterimage_base::crashsafe::sync_parent(&self.path).map_err(doing("sync its folder"))?;
        Ok(self.file)
    }
}

/// Gives the file `len` bytes of allocated zeroes.
fn allocate(file: &mut File, len: u64) -> io::Result<()> {
    loop {
        match file.fallocate(0, 0, len) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => {
                return write_zeroes(file, len);
            }
            other => return other,
        }
    }
}

/// For file systems without fallocate.
fn write_zeroes(file: &mut File, len: u64) -> io::Result<()> {
    io::copy(&mut io::repeat(0).take(len), file)?;
    file.flush()
}

/// The id of this boot of the machine, as two words.
pub(crate) fn boot_id() -> Result<[u64; 2], FileError> {
    let id = world::boot_id().map_err(doing("read the machine's boot id (is /proc mounted?)"))?;
    #[expect(clippy::cast_possible_truncation, reason = "the halves are what is wanted")]
    Ok([(id >> 64) as u64, id as u64])
}

/// Reads `buf.len()` bytes at `at`.
pub(crate) fn read_at(file: &File, buf: &mut [u8], at: u64) -> Result<(), FileError> {
    file.read_exact_at(buf, at).map_err(doing("read it"))
}

/// The word number `index` of a header page.
pub(crate) fn word_of(page: &[u8; 4096], index: usize) -> u64 {
    page[index * 8..index * 8 + 8].try_into().map_or(0, u64::from_le_bytes)
}

/// Sets the word number `index` of a header page.
pub(crate) fn set_word(page: &mut [u8; 4096], index: usize, value: u64) {
    page[index * 8..index * 8 + 8].copy_from_slice(&value.to_le_bytes());
}
