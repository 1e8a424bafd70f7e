//! How a disk is known again at the next start, so that another one at the same path is noticed.
//!
//! A file is known by inode number and time of birth (a number may be given out again, a birth is not); a block
//! device by the name that its hardware or driver gives it in sysfs, as device numbers change from boot to boot, and
//! by its numbers only where it has no such name.

use afterimage_base::world::fs::{FileKind, Metadata};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

/// What a disk is known by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Size in bytes.
    pub size: u64,
    /// Name of the file or device in its system.
    pub key: String,
}

/// When a file was touched last, in seconds and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    size: u64,
    written: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(crate) fn of(m: &std::fs::Metadata) -> Stamp {
        Stamp { size: m.len(), written: (m.mtime(), m.mtime_nsec()), changed: (m.ctime(), m.ctime_nsec()) }
    }
}

impl Identity {
    pub(crate) fn of(metadata: &Metadata, size: u64) -> Identity {
        let key = if metadata.kind == FileKind::BlockDevice {
            device_key(metadata.rdev)
        } else {
            let born = metadata.born.and_then(|t| t.duration_since(UNIX_EPOCH).ok());
            format!("inode {} born {}", metadata.ino, born.map_or(0, |d| d.as_nanos()))
        };
        Identity { size, key }
    }

    /// In words, how `now` is another disk than this; `None` if it is not. A size may change.
    #[must_use]
    pub fn difference(&self, now: &Identity) -> Option<String> {
        (self.key != now.key).then(|| format!("it was {:?} and is {:?}", self.key, now.key))
    }
}

fn sysfs(rdev: u64) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{}:{}", libc::major(rdev), libc::minor(rdev)))
}

fn device_key(rdev: u64) -> String {
    let dir = sysfs(rdev);
    for name in ["wwid", "device/wwid", "serial", "device/serial", "dm/uuid", "md/uuid", "loop/backing_file"] {
        match std::fs::read_to_string(dir.join(name)) {
            Ok(value) if !value.trim().is_empty() => return format!("{name} {}", value.trim()),
            _ => {}
        }
    }
    format!("device {}:{}", libc::major(rdev), libc::minor(rdev))
}

/// Whether the disk, or the disk under the file, turns. False if nobody knows.
pub(crate) fn rotational(metadata: &Metadata) -> bool {
    let dev = if metadata.kind == FileKind::BlockDevice { metadata.rdev } else { metadata.dev };
    let dir = sysfs(dev);
    // A partition's queue is its parent's.
    let read = |p: &str| std::fs::read_to_string(dir.join(p));
    read("queue/rotational").or_else(|_| read("../queue/rotational")).is_ok_and(|s| s.trim() == "1")
}
