//! The disk of a way back, of which only blocks that differ are written: at a path of this host, or with its agent.

use super::agent::AgentDisk;
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
pub(super) enum Disk {
    Here(LocalDisk),
    Agent(AgentDisk),
}

impl Disk {
    /// Has a piece compared with what is there, and blocks that differ written, before the next [`sync`](Self::sync) ends. Answers how many
    /// bytes were written since the last answer.
    pub(super) fn bring(&mut self, offset: u64, wanted: &[u8]) -> Result<u64, Problem> {
        match self {
            Disk::Here(disk) => disk.bring(offset, wanted).map_err(|e| Problem::file(&disk.path, &e)),
            Disk::Agent(disk) => disk.bring(offset, wanted),
        }
    }

    /// The next range with data from `at` on, below `end`: what is known to be holes reads as zeroes.
    pub(super) fn data_from(&self, at: u64, end: u64) -> (u64, u64) {
        match self {
            Disk::Here(disk) => disk.data_from(at, end),
            Disk::Agent(_) => (at, end),
        }
    }

    /// Makes all of it durable. Answers how many bytes were written since the last answer.
    pub(super) fn sync(&mut self) -> Result<u64, Problem> {
        match self {
            Disk::Here(disk) => disk.sync().map(|()| 0),
            Disk::Agent(disk) => disk.sync(),
        }
    }
}

/// How fast is written.
pub(super) struct Pace {
    /// Bytes a second; 0 for as many as go.
    rate: u64,
    began: Instant,
    written: u64,
}

impl Pace {
    pub(super) fn new(rate: u64) -> Pace {
        Pace { rate, began: Instant::now(), written: 0 }
    }

    /// Waits until what was written is no more than the rate allows.
    pub(super) fn wrote(&mut self, bytes: u64) {
        self.written += bytes;
        if let Some(due) = (self.written * 1000).checked_div(self.rate) {
            let early = Duration::from_millis(due).saturating_sub(self.began.elapsed());
            thread::sleep(early);
        }
    }
}

/// A file, or a block device, of this host.
pub(super) struct LocalDisk {
    file: File,
    path: PathBuf,
    is_file: bool,
    pace: Pace,
    there: Vec<u8>,
}

impl LocalDisk {
    /// Opens it, or makes a file of this size.
    ///
    /// # Errors
    /// If it cannot be written, or is too small.
    pub(super) fn open(path: &Path, size: u64, pace: Pace) -> Result<LocalDisk, Problem> {
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
        Ok(LocalDisk { file, path: path.to_owned(), is_file: kind.is_file(), pace, there: Vec::new() })
    }

    /// Compares a piece with what is there, and writes the blocks that differ; answers how many bytes those were.
    pub(super) fn bring(&mut self, offset: u64, wanted: &[u8]) -> io::Result<u64> {
        self.there.resize(wanted.len(), 0);
        self.file.read_exact_at(&mut self.there, offset)?;
        let (mut moved, mut at) = (0, 0);
        let differs = |at: usize| {
            let end = wanted.len().min(at + BLOCK);
            wanted[at..end] != self.there[at..end]
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
        self.pace.wrote(moved);
        Ok(moved)
    }

    /// The next range with data from `at` on, below `end`: holes of a file read as zeroes.
    fn data_from(&self, at: u64, end: u64) -> (u64, u64) {
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

    fn sync(&self) -> Result<(), Problem> {
        self.file.sync_all().map_err(|e| Problem::file(&self.path, &e))?;
        if self.is_file {
            crashsafe::sync_parent(&self.path).map_err(|e| Problem::file(&self.path, &e))
        } else {
            Ok(())
        }
    }
}
