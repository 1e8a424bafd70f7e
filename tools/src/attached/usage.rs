//! Who uses a block device.

use nix::fcntl::OFlag;
use std::fs::OpenOptions;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

/// In words, who uses the device; `None` if nobody does. File systems, LVM, md and swap claim a device for themselves,
/// which shows when it is asked for exclusively; other programs show in /proc.
pub(super) fn user_of(path: &Path) -> Option<String> {
    // For reading: closing a descriptor for writing makes udev look at the device.
    match OpenOptions::new().read(true).custom_flags(OFlag::O_EXCL.bits()).open(path) {
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
            return Some("mounted, or part of another device".to_owned());
        }
        Err(_) => return None,
        Ok(_) => {}
    }
    let device = std::fs::metadata(path).ok().filter(|m| m.file_type().is_block_device())?.rdev();
    let me = std::process::id().to_string();
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let name = process.file_name().to_string_lossy().into_owned();
        if name == me || !name.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let Ok(open) = std::fs::read_dir(process.path().join("fd")) else { continue };
        for file in open.flatten() {
            // Of what the link leads to, without opening it.
            let there = std::fs::metadata(file.path());
            if there.is_ok_and(|m| m.file_type().is_block_device() && m.rdev() == device) {
                let what = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                return Some(format!("process {name}, {}", what.trim()));
            }
        }
    }
    None
}

/// Loads a module of the kernel if what it makes is not there. That it cannot be loaded shows when it is used.
pub(super) fn load_module(name: &str, makes: &Path) {
    if makes.exists() {
        return;
    }
    let tried = Command::new("modprobe").arg(name).stdin(Stdio::null()).output();
    match tried {
        Ok(out) if out.status.success() => tracing::info!("loaded the kernel's module {name}"),
        Ok(out) => tracing::debug!("modprobe {name}: {}", String::from_utf8_lossy(&out.stderr).trim()),
        Err(e) => tracing::debug!("modprobe {name}: {e}"),
    }
}
