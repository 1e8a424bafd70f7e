//! The folders of the jobs, and who owns each.
//!
//! ```text
//! DATA/failover/
//!   ID/job.json      the job (failover/job.rs), replaced as a whole
//!      plan.json     instead of it: a plan that is carried out (plan/record.rs), whose machines are jobs of their own
//!      lock          locked (flock) by the process that does the job
//!      stop          there: the job is to stop
//!      drained       there: its own disks are drained, while it waits for those of the machines that fail over with it
//!      together      a link, in the folder of the first of them: whether they `go` or `stay`
//!      continue      the manual action of a plan that was done
//!      serial.log, qemu.log, runner.log, screen.png      kept until the job is removed
//!      *.sock, uefi-variables.fd                         gone when the job has ended
//!   .new-ID/         a folder before it has its name
//!   kvm              whether KVM works, for one boot of the host
//! ```
//!
//! The lock belongs to an open file: who asks for the job takes it and hands the open file to the process that does it. At no moment is
//! a job that goes on without an owner.

use crate::failover::job::{FAILOVER_VERSION, Job, VERSION};
use crate::failover::summary::Recovery;
use crate::plan::record::{Record, VERSION as PLAN_VERSION};
use afterimage_base::crashsafe;
use nix::errno::Errno;
use nix::libc;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use thiserror::Error;

/// Longest file of a job.
const MAX_FILE: u64 = 4 << 20;
/// A folder without a name that is older belongs to nobody: it is locked a moment after it was made.
const OLD: Duration = Duration::from_secs(60);
const NEW: &str = ".new-";
const JOB: &str = "job.json";
const PLAN: &str = "plan.json";

/// Why a job cannot be read or written.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A file.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not a job.
    #[error("{path} is no job: {why}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// No such job.
    #[error("there is no job {0}: `afterimage failover ls` shows those that are there")]
    NotFound(String),
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::File { path, source }
}

/// The jobs of a data folder.
#[derive(Debug, Clone)]
pub struct Jobs {
    folder: PathBuf,
}

/// A job that this process owns.
#[derive(Debug)]
pub struct Claim {
    folder: PathBuf,
    lock: File,
}

impl Jobs {
    /// Those of this data folder.
    #[must_use]
    pub fn of(data: &Path) -> Jobs {
        Jobs { folder: data.join("failover") }
    }

    /// Those in this folder.
    #[must_use]
    pub fn within(folder: &Path) -> Jobs {
        Jobs { folder: folder.to_owned() }
    }

    /// The folder of all of them.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of a job.
    ///
    /// # Errors
    /// If the id is none.
    pub fn folder_of(&self, id: &str) -> Result<PathBuf, StoreError> {
        let plain = !id.is_empty() && id.len() <= 64 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if plain { Ok(self.folder.join(id)) } else { Err(StoreError::NotFound(id.to_owned())) }
    }

    /// Makes a job's folder, with the job in it, and owns it.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn create(&self, job: &Job) -> Result<Claim, StoreError> {
        self.make(&job.id, |claim| claim.save(job))
    }

    /// Makes the folder of a plan that is carried out, and owns it.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn create_plan(&self, record: &Record) -> Result<Claim, StoreError> {
        self.make(&record.run.id, |claim| claim.save_plan(record))
    }

    fn make(&self, id: &str, save: impl FnOnce(&Claim) -> io::Result<()>) -> Result<Claim, StoreError> {
        let (new, folder) = (self.folder.join(format!("{NEW}{id}")), self.folder_of(id)?);
        crashsafe::create_folders(&new).map_err(at(&new))?;
        let lock = try_lock(&new)?.ok_or_else(|| StoreError::NotFound(id.to_owned()))?;
        let claim = Claim { folder: new.clone(), lock };
        save(&claim).map_err(at(&new))?;
        std::fs::rename(&new, &folder).map_err(at(&folder))?;
        crashsafe::sync_parent(&folder).map_err(at(&folder))?;
        Ok(Claim { folder, ..claim })
    }

    /// Ids of the jobs, oldest first as far as their files tell.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn ids(&self) -> Result<Vec<String>, StoreError> {
        let mut found = Vec::new();
        for name in self.names()? {
            if !name.starts_with('.') && self.folder.join(&name).is_dir() {
                found.push(name);
            }
        }
        found.sort();
        Ok(found)
    }

    fn names(&self) -> Result<Vec<String>, StoreError> {
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(at(&self.folder)(e)),
        };
        Ok(entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect())
    }

    /// Reads a job.
    ///
    /// # Errors
    /// If it is not there, or damaged, or of another version.
    pub fn load(&self, id: &str) -> Result<Job, StoreError> {
        let (path, job): (_, Job) = self.read(id, JOB, (VERSION, FAILOVER_VERSION))?;
        named(path, id, &job.id)?;
        Ok(job)
    }

    /// Reads a plan that is, or was, carried out.
    ///
    /// # Errors
    /// If it is not there, or damaged, or of another version.
    pub fn load_plan(&self, id: &str) -> Result<Record, StoreError> {
        let (path, record): (_, Record) = self.read(id, PLAN, (PLAN_VERSION, PLAN_VERSION))?;
        named(path, id, &record.run.id)?;
        Ok(record)
    }

    /// A job or plan in a few words; nothing if it is neither any more.
    ///
    /// # Errors
    /// If it is damaged, or of another version.
    pub fn summary(&self, id: &str) -> Result<Option<Recovery>, StoreError> {
        match self.load(id) {
            Ok(job) => return Ok(Some(Recovery::from(&job))),
            Err(StoreError::NotFound(_)) => {}
            Err(e) => return Err(e),
        }
        match self.load_plan(id) {
            Ok(record) => Ok(Some(Recovery::from(&record))),
            Err(StoreError::NotFound(_)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// When a job's or a plan's file was replaced last; it is another file then.
    #[must_use]
    pub fn stamp(&self, id: &str) -> Option<(u64, SystemTime)> {
        let folder = self.folder_of(id).ok()?;
        let meta = folder.join(JOB).metadata().or_else(|_| folder.join(PLAN).metadata()).ok()?;
        Some((meta.ino(), meta.modified().ok()?))
    }

    fn read<T: DeserializeOwned>(
        &self,
        id: &str,
        file: &str,
        (first, last): (u32, u32),
    ) -> Result<(PathBuf, T), StoreError> {
        let path = self.folder_of(id)?.join(file);
        let damaged = |why: String| StoreError::Damaged { path: path.clone(), why };
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(StoreError::NotFound(id.to_owned())),
            other => other.map_err(at(&path))?,
        };
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(at(&path))?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(damaged("it is too long".to_owned()));
        }
        let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        let version = value["version"].as_u64();
        if !version.is_some_and(|v| (u64::from(first)..=u64::from(last)).contains(&v)) {
            let found = version.map_or_else(|| "none".to_owned(), |v| v.to_string());
            let reads = if first == last { first.to_string() } else { format!("{first} and {last}") };
            return Err(damaged(format!("its version is {found}, this program reads {reads}")));
        }
        let found = serde_json::from_value(value).map_err(|e| damaged(e.to_string()))?;
        Ok((path, found))
    }

    /// Owns a job, if nobody does.
    ///
    /// # Errors
    /// If it is not there.
    pub fn claim(&self, id: &str) -> Result<Option<Claim>, StoreError> {
        let folder = self.folder_of(id)?;
        if !folder.is_dir() {
            return Err(StoreError::NotFound(id.to_owned()));
        }
        Ok(try_lock(&folder)?.map(|lock| Claim { folder, lock }))
    }

    /// Says what somebody wants of a job, in a file that its owner finds.
    ///
    /// # Errors
    /// If it is not there.
    pub fn ask(&self, id: &str, what: &str) -> Result<(), StoreError> {
        self.load(id)?;
        let path = self.folder_of(id)?.join(what);
        File::create(&path).map(drop).map_err(at(&path))
    }

    /// Says the same of a plan; `text` is in the file from the moment on that it is there.
    ///
    /// # Errors
    /// If it is not there.
    pub fn ask_plan(&self, id: &str, what: &str, text: &str) -> Result<(), StoreError> {
        self.load_plan(id)?;
        let path = self.folder_of(id)?.join(what);
        crashsafe::replace(&path, text.as_bytes()).map_err(at(&path))
    }

    /// Says that a job is to stop.
    ///
    /// # Errors
    /// If it is not there.
    pub fn ask_to_stop(&self, id: &str) -> Result<(), StoreError> {
        self.ask(id, "stop")
    }

    /// Removes folders that never became a job, and those of which nothing but the folder is left.
    ///
    /// # Errors
    /// If one cannot be removed.
    pub fn remove_rubbish(&self) -> Result<(), StoreError> {
        for name in self.names()?.into_iter().filter(|n| n.starts_with(NEW)) {
            let folder = self.folder.join(name);
            let age = folder.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
            if age.is_some_and(|a| a > OLD) && try_lock(&folder)?.is_some() {
                std::fs::remove_dir_all(&folder).map_err(at(&folder))?;
            }
        }
        Ok(())
    }
}

fn named(path: PathBuf, id: &str, says: &str) -> Result<(), StoreError> {
    if says == id { Ok(()) } else { Err(StoreError::Damaged { path, why: format!("it says that it is job {says}") }) }
}

/// Locks the folder's file until the last copy of the open file is closed.
fn try_lock(folder: &Path) -> Result<Option<File>, StoreError> {
    let path = folder.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(at(&path))?;
    Ok(flock(&file).map_err(at(&path))?.then_some(file))
}

fn flock(file: &File) -> io::Result<bool> {
    // SAFETY: the call takes an open descriptor and no pointer.
    let done = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    match Errno::result(done) {
        Ok(_) => Ok(true),
        Err(Errno::EWOULDBLOCK) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

impl Claim {
    /// The job's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Replaces the job's file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self, job: &Job) -> io::Result<()> {
        self.replace(JOB, job)
    }

    /// Replaces the plan's file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save_plan(&self, record: &Record) -> io::Result<()> {
        self.replace(PLAN, record)
    }

    fn replace<T: Serialize>(&self, file: &str, value: &T) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(value).map_err(io::Error::other)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(io::Error::other(format!("it would be longer than the {MAX_FILE} bytes that are read again")));
        }
        crashsafe::replace(&self.folder.join(file), &bytes)
    }

    /// Removes all that is left of a job that has ended.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn remove(self) -> Result<(), StoreError> {
        std::fs::remove_dir_all(&self.folder).map_err(at(&self.folder))
    }

    /// The lock, for another process: whoever has a copy of this open file owns the job.
    ///
    /// # Errors
    /// If it cannot be copied.
    pub fn share(&self) -> io::Result<OwnedFd> {
        Ok(self.lock.try_clone()?.into())
    }

    /// Takes over the job of `folder`, whose lock another process has handed over.
    ///
    /// # Errors
    /// If what was handed over is not that lock.
    pub fn inherited(folder: &Path, lock: impl AsFd) -> io::Result<Claim> {
        let lock = File::from(lock.as_fd().try_clone_to_owned()?);
        let (given, wanted) = (lock.metadata()?, folder.join("lock").metadata()?);
        // The same open file may be locked again; another one of the same lock may not.
        if (given.dev(), given.ino()) != (wanted.dev(), wanted.ino()) || !flock(&lock)? {
            return Err(io::Error::other("this is started by `afterimage failover`, which hands it a lock"));
        }
        Ok(Claim { folder: folder.to_owned(), lock })
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
