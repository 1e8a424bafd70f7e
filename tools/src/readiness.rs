//! What an agent finds of its own host when mgmt asks whether disks of it can be protected.

mod way;

use crate::duty::Appliance;
use crate::site::Local;
use afterimage_mgmt::members::{DiskFound, Interface, Readiness};
use nix::sys::stat::{major, makedev, minor};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Looks.
#[must_use]
pub fn look(site: &Local, appliance: Option<&Appliance>, disks: &[String]) -> Readiness {
    let folder = site.taker().map(|t| t.folder.clone());
    Readiness {
        kernel: nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default(),
        io_uring: read("/proc/sys/kernel/io_uring_disabled").is_none_or(|t| t.trim() != "2"),
        ublk: Path::new("/dev/ublk-control").exists(),
        nbd: Path::new("/sys/module/nbd").exists(),
        free: folder.and_then(|f| free(&f)).unwrap_or(0),
        ring: site.taker().map_or(0, |t| t.ring),
        listen: site.listens_at(),
        appliance: appliance.map(way::measure),
        networks: networks(),
        disks: disks.iter().map(|path| disk(site, path)).collect(),
    }
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// Bytes free on the disk of a folder, or of the nearest one above it that is there.
fn free(folder: &Path) -> Option<u64> {
    let there = folder.ancestors().find(|f| f.exists())?;
    let stat = nix::sys::statvfs::statvfs(there).ok()?;
    Some(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

fn networks() -> Vec<Interface> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for interface in nix::ifaddrs::getifaddrs().into_iter().flatten() {
        use nix::net::if_::InterfaceFlags as Flags;
        if !interface.flags.contains(Flags::IFF_UP) || interface.flags.contains(Flags::IFF_LOOPBACK) {
            continue;
        }
        let addresses = found.entry(interface.interface_name).or_default();
        let address = interface.address.as_ref();
        let v4 = address.and_then(|a| a.as_sockaddr_in()).map(|a| a.ip().to_string());
        let v6 = address.and_then(|a| a.as_sockaddr_in6()).map(|a| a.ip().to_string());
        addresses.extend(v4.or(v6));
    }
    found.into_iter().map(|(name, addresses)| Interface { name, addresses }).collect()
}

fn disk(site: &Local, path: &str) -> DiskFound {
    let mut out = DiskFound { path: path.to_owned(), ..DiskFound::default() };
    if let Some(volume) = site.volume_of(Path::new(path)) {
        out.volume = Some(volume);
        return out;
    }
    if let Some(why) = site.takes_no_disks() {
        out.error = Some(why);
        return out;
    }
    match examine(Path::new(path)) {
        Ok((size, used_by)) => (out.size, out.used_by) = (size, used_by),
        Err(e) => out.error = Some(e),
    }
    out
}

/// Size of a disk, and who uses it.
fn examine(path: &Path) -> Result<(u64, Vec<String>), String> {
    if !path.is_absolute() {
        return Err("it is no full path".to_owned());
    }
    let real = path.canonicalize().map_err(|e| e.to_string())?;
    let meta = fs::metadata(&real).map_err(|e| e.to_string())?;
    if meta.is_file() {
        return Ok((meta.len(), loops(&real)));
    }
    if !meta.file_type().is_block_device() {
        return Err("it is neither a block device nor a file".to_owned());
    }
    let sys = PathBuf::from(format!("/sys/dev/block/{}:{}", major(meta.rdev()), minor(meta.rdev())));
    let sectors: u64 = read(sys.join("size")).and_then(|t| t.trim().parse().ok()).unwrap_or(0);
    let mut used = holders(&sys);
    let mut own = vec![meta.rdev()];
    for part in fs::read_dir(&sys).into_iter().flatten().flatten() {
        if part.path().join("partition").exists() {
            used.extend(holders(&part.path()));
            own.extend(read(part.path().join("dev")).and_then(|t| device(t.trim())));
        }
    }
    used.extend(mounts(&own));
    // The kernel knows more: swap, RAID, file systems of other namespaces. O_EXCL on a block device asks it.
    if used.is_empty()
        && let Err(e) = fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_EXCL).open(&real)
    {
        match e.raw_os_error() {
            Some(nix::libc::EBUSY) => used.push("the kernel (it says that the disk is busy)".to_owned()),
            _ => return Err(format!("it cannot be opened: {e}")),
        }
    }
    Ok((sectors.saturating_mul(512), used))
}

fn device(text: &str) -> Option<u64> {
    let (major, minor) = text.split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// Device mapper, RAID and others on top of a device.
fn holders(sys: &Path) -> Vec<String> {
    let entries = fs::read_dir(sys.join("holders")).into_iter().flatten().flatten();
    entries.map(|e| format!("/dev/{}", e.file_name().to_string_lossy())).collect()
}

/// Where devices are mounted.
fn mounts(devices: &[u64]) -> Vec<String> {
    let text = read("/proc/self/mountinfo").unwrap_or_default();
    let of = |line: &str| {
        let mut fields = line.split(' ');
        let device = device(fields.nth(2)?)?;
        let place = fields.nth(1)?;
        devices.contains(&device).then(|| format!("a mount at {place}"))
    };
    text.lines().filter_map(of).collect()
}

/// Loop devices on a file.
fn loops(path: &Path) -> Vec<String> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let on_it = entries.filter(|e| {
        read(e.path().join("loop/backing_file"))
            .is_some_and(|backing| Path::new(backing.trim_end_matches('\n')) == path)
    });
    on_it.map(|e| format!("/dev/{}", e.file_name().to_string_lossy())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_disk_is_and_who_uses_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("d.raw");
        fs::write(&file, [0; 4096]).unwrap();
        assert_eq!(examine(&file), Ok((4096, Vec::new())));
        assert!(examine(dir.path()).unwrap_err().contains("neither"));
        assert!(examine(Path::new("d.raw")).unwrap_err().contains("full path"));
        assert!(examine(&dir.path().join("none")).is_err());
        assert!(free(&dir.path().join("not/there/yet")).unwrap() > 0);
        // Wherever this runs, something is mounted at the root.
        let root = fs::metadata("/").unwrap().dev();
        let line = read("/proc/self/mountinfo").unwrap();
        let there = line
            .lines()
            .any(|l| l.split(' ').nth(4) == Some("/") && l.split(' ').nth(2).and_then(device) == Some(root));
        assert_eq!(mounts(&[root]).iter().any(|m| m == "a mount at /"), there);
    }
}
