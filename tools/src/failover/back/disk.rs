//! The disk of a way back, of which only blocks that differ are written.

use crate::problem::Problem;
use afterimage_base::crashsafe;
use afterimage_mgmt::units::format_size;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Blocks that are compared, and written when they differ.
const BLOCK: usize = 4096;

/// A disk that becomes what a branch is.
pub(super) struct Disk {
    file: File,
    pub(super) path: PathBuf,
    is_file: bool,
    /// Bytes a second that may be written; 0 for as many as go.
    rate: u64,
    began: Instant,
    written: u64,
}

impl Disk {
    /// Opens it, or makes a file of this size.
    ///
    /// # Errors
    /// If it cannot be written, or is too small.
    pub(super) fn open(path: &Path, size: u64, rate: u64) -> Result<Disk, Problem> {
        let problem = |e: io::Error| Problem::file(path, &e);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(problem)?;
        let kind = file.metadata().map_err(problem)?.file_type();
        if kind.is_file() {
            file.set_len(size).map_err(problem)?;
        } else if !kind.is_block_device() {
            return Err(Problem::failed(format!("{} is neither a file nor a block device", path.display())));
        } else if file.seek(SeekFrom::End(0)).map_err(problem)? < size {
            return Err(Problem::failed(format!("{} has less than {}", path.display(), format_size(size))));
        }
        Ok(Disk { file, path: path.to_owned(), is_file: kind.is_file(), rate, began: Instant::now(), written: 0 })
    }

    /// Compares a piece with what is there, and writes the blocks that differ; answers how many bytes those were.
    pub(super) fn bring(&mut self, offset: u64, wanted: &[u8], there: &mut Vec<u8>) -> io::Result<u64> {
        there.resize(wanted.len(), 0);
        self.file.read_exact_at(there, offset)?;
        let (mut moved, mut at) = (0, 0);
        let differs = |at: usize| {
            let end = wanted.len().min(at + BLOCK);
            wanted[at..end] != there[at..end]
        };
        while at < wanted.len() {
            if !differs(at) {
                at += BLOCK;
                continue;
            }
            let start = at;
            while at < wanted.len() && differs(at) {
                at += BLOCK;
            }
            let end = at.min(wanted.len());
            self.file.write_all_at(&wanted[start..end], offset + start as u64)?;
            moved += (end - start) as u64;
        }
        self.written += moved;
        self.give_way();
        Ok(moved)
    }

    /// Waits until what was written is no more than the rate allows.
    fn give_way(&self) {
        if let Some(due) = (self.written * 1000).checked_div(self.rate) {
            let early = Duration::from_millis(due).saturating_sub(self.began.elapsed());
            thread::sleep(early);
        }
    }

    /// The next range with data from `at` on, below `end`: holes of a file read as zeroes.
    pub(super) fn data_from(&self, at: u64, end: u64) -> (u64, u64) {
        if !self.is_file {
            return (at, end);
        }
        let seek = |from: u64, whence| {
            let from = i64::try_from(from).unwrap_or(i64::MAX);
            nix::unistd::lseek(&self.file, from, whence).ok().and_then(|n| u64::try_from(n).ok())
        };
        let Some(start) = seek(at, nix::unistd::Whence::SeekData) else { return (end, end) };
        let stop = seek(start, nix::unistd::Whence::SeekHole).unwrap_or(end);
        (start.min(end), stop.min(end))
    }

    pub(super) fn sync(&self) -> Result<(), Problem> {
        self.file.sync_all().map_err(|e| Problem::file(&self.path, &e))?;
        if self.is_file {
            crashsafe::sync_parent(&self.path).map_err(|e| Problem::file(&self.path, &e))
        } else {
            Ok(())
        }
    }
}
