//! Freezing and thawing: file systems of this host, and those of a virtual machine through its guest agent.
//!
//! What is frozen already is somebody else's: it is neither frozen nor thawed.

use afterimage_base::qemu::{GuestAgent, QemuError};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a guest agent may take to say how it is.
const STATUS: Duration = Duration::from_secs(3);

/// `FIFREEZE` and `FITHAW` of `linux/fs.h`: `_IOWR('X', 119, int)` and 120.
const FREEZE: libc::c_ulong = nix::request_code_readwrite!(b'X', 119, size_of::<libc::c_int>());
const THAW: libc::c_ulong = nix::request_code_readwrite!(b'X', 120, size_of::<libc::c_int>());

/// What is to be frozen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Targets {
    /// A folder of each file system.
    pub(super) mounts: Vec<PathBuf>,
    /// The socket of a guest agent.
    pub(super) guest_agent: Option<PathBuf>,
}

impl Targets {
    pub(super) fn is_empty(&self) -> bool {
        self.mounts.is_empty() && self.guest_agent.is_none()
    }
}

fn ioctl(file: &File, what: libc::c_ulong) -> Result<(), Errno> {
    // SAFETY: the descriptor is open, and these two requests take no argument.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), what, 0) }).map(drop)
}

/// What was frozen, or may have been.
#[derive(Debug, Default)]
pub(super) struct Frozen {
    dirs: Vec<(PathBuf, File)>,
    guest: Option<(PathBuf, Option<GuestAgent>)>,
}

/// How a thaw went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Thawed {
    /// All was frozen until then.
    Now,
    /// Something had thawed before.
    Before,
}

fn frozen(agent: &mut GuestAgent, limit: Duration) -> Result<bool, QemuError> {
    let status = agent.call("guest-fsfreeze-status", Value::Null, limit)?;
    Ok(status.as_str() == Some("frozen"))
}

impl Frozen {
    /// What somebody else, who is gone, has left frozen.
    pub(super) fn left(targets: &Targets) -> Frozen {
        let open = |path: &PathBuf| File::open(path).ok().map(|f| (path.clone(), f));
        let guest = targets.guest_agent.clone().map(|path| (path, None));
        Frozen { dirs: targets.mounts.iter().filter_map(open).collect(), guest }
    }

    /// Freezes all of it; says how many file systems that was. What was frozen before an error is still to be thawed.
    pub(super) fn freeze(&mut self, targets: &Targets, limit: Duration) -> Result<u64, String> {
        let mut count = 0;
        if let Some(path) = &targets.guest_agent {
            let mut agent = GuestAgent::connect(path, limit).map_err(|e| e.to_string())?;
            if frozen(&mut agent, limit).map_err(|e| e.to_string())? {
                return Err(format!("{}: the guest's file systems are frozen by somebody else", path.display()));
            }
            let agent = &mut self.guest.insert((path.clone(), Some(agent))).1;
            let asked = agent.as_mut().map(|a| a.call("guest-fsfreeze-freeze", Value::Null, limit));
            match asked {
                Some(Ok(n)) if n.as_u64().is_some_and(|n| n > 0) => count += n.as_u64().unwrap_or(0),
                Some(Ok(_)) => return Err(format!("{}: the guest has frozen no file system", path.display())),
                Some(Err(e)) => return Err(e.to_string()),
                None => {}
            }
        }
        // What was mounted last may lie on what was mounted before.
        for path in targets.mounts.iter().rev() {
            let at = |e: &dyn std::fmt::Display| format!("{}: cannot be frozen: {e}", path.display());
            let dir = File::open(path).map_err(|e| at(&e))?;
            match ioctl(&dir, FREEZE) {
                Ok(()) => self.dirs.push((path.clone(), dir)),
                Err(Errno::EBUSY) => return Err(at(&"it is frozen by somebody else")),
                Err(Errno::EPERM) => return Err(at(&"only root may")),
                Err(Errno::EOPNOTSUPP | Errno::ENOTTY) => return Err(at(&"this kind of file system cannot")),
                Err(e) => return Err(at(&e)),
            }
            count += 1;
        }
        Ok(count)
    }

    /// Thaws what is frozen; what could not be thawed stays in it, for another try.
    pub(super) fn thaw(&mut self) -> Result<Thawed, String> {
        let (mut thawed, mut trouble) = (Thawed::Now, None);
        let mut left = Vec::new();
        for (path, dir) in self.dirs.drain(..).rev() {
            match ioctl(&dir, THAW) {
                Ok(()) => {}
                Err(Errno::EINVAL) => thawed = Thawed::Before,
                Err(e) => {
                    trouble = Some(format!("{}: cannot be thawed: {e}", path.display()));
                    left.push((path, dir));
                }
            }
        }
        left.reverse();
        self.dirs = left;
        if let Some((path, agent)) = self.guest.take() {
            match thaw_guest(&path, agent) {
                Ok(Thawed::Before) => thawed = Thawed::Before,
                Ok(Thawed::Now) => {}
                Err(e) => {
                    trouble = Some(e.to_string());
                    // A fresh connection: this one may be out of step, or the machine be another process by now.
                    self.guest = Some((path, None));
                }
            }
        }
        trouble.map_or(Ok(thawed), Err)
    }
}

fn thaw_guest(path: &Path, agent: Option<GuestAgent>) -> Result<Thawed, QemuError> {
    let mut agent = match agent {
        Some(agent) => agent,
        None => GuestAgent::connect(path, STATUS)?,
    };
    // Behind a freeze that is still under way: the agent does one thing at a time.
    if !frozen(&mut agent, STATUS)? {
        return Ok(Thawed::Before);
    }
    agent.call("guest-fsfreeze-thaw", Value::Null, STATUS)?;
    Ok(Thawed::Now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_requests_are_those_of_the_kernel() {
        assert_eq!((FREEZE, THAW), (0xc004_5877, 0xc004_5878));
    }

    #[test]
    fn what_cannot_be_frozen_says_why() {
        let targets = Targets { mounts: vec!["/proc/self".into()], guest_agent: None };
        let mut frozen = Frozen::default();
        let why = frozen.freeze(&targets, STATUS).unwrap_err();
        assert!(why.starts_with("/proc/self: cannot be frozen"), "{why}");
        assert_eq!(frozen.thaw(), Ok(Thawed::Now), "there is nothing to thaw");
        let gone = Targets { mounts: vec!["/no/such/folder".into()], guest_agent: Some("/no/such/socket".into()) };
        assert!(Frozen::default().freeze(&gone, STATUS).unwrap_err().contains("/no/such/socket"));
        let mut left = Frozen::left(&gone);
        assert!(left.thaw().is_err() && left.thaw().is_err(), "it is tried again");
    }
}
