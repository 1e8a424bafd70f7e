//! Which file systems are mounted from a block device: itself, its partitions, and what is stacked on them (LVM, dm-crypt, md).

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    device: String,
    /// Where it is mounted.
    pub point: PathBuf,
    /// What is mounted: the node of a block device, for file systems of one.
    pub source: PathBuf,
}

/// Undoes the kernel's `\ooo` for white space and backslashes.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).and_then(|d| std::str::from_utf8(d).ok());
        match octal.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) if bytes[at] == b'\\' => {
                out.push(byte);
                at += 4;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(OsStr::from_bytes(&out))
}

fn parse(mountinfo: &str) -> Vec<Mount> {
    let line = |line: &str| {
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ').skip(2);
        let (device, _root, point) = (front.next()?.to_owned(), front.next()?, unescape(front.next()?));
        Some(Mount { device, point, source: unescape(back.split(' ').nth(1)?) })
    };
    mountinfo.lines().filter_map(line).collect()
}

/// The device, its partitions, and what is stacked on any of these, as `major:minor`.
fn stack(sys: &Path, device: &str, out: &mut BTreeSet<String>) {
    if !out.insert(device.to_owned()) {
        return;
    }
    let dir = sys.join("dev/block").join(device);
    let entries = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let partitions = entries(dir.clone()).filter(|p| p.join("partition").exists());
    for above in partitions.chain(entries(dir.join("holders"))) {
        if let Ok(number) = fs::read_to_string(above.join("dev")) {
            stack(sys, number.trim(), out);
        }
    }
}

fn number(rdev: u64) -> String {
    format!("{}:{}", libc::major(rdev), libc::minor(rdev))
}

/// All mounts, in the order in which they were made: of several at one point the last is on top.
#[must_use]
pub fn mounts() -> Vec<Mount> {
    parse(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

/// Those of file systems that are mounted from one of these block devices.
#[must_use]
pub fn mounts_of(devices: &[PathBuf]) -> Vec<Mount> {
    let mut numbers = BTreeSet::new();
    for device in devices {
        if let Ok(meta) = fs::metadata(device)
            && meta.file_type().is_block_device()
        {
            stack(Path::new("/sys"), &number(meta.rdev()), &mut numbers);
        }
    }
    let of_source = |source: &Path| {
        let meta = fs::metadata(source).ok().filter(|m| m.file_type().is_block_device())?;
        Some(number(meta.rdev()))
    };
    let ours = mounts().into_iter().filter(|m| {
        // btrfs has device numbers of its own, and names the real one as its source.
        numbers.contains(&m.device) || of_source(&m.source).is_some_and(|n| numbers.contains(&n))
    });
    ours.collect()
}

/// One mount point for each file system that is mounted from one of these block devices, in the order in which they were mounted.
#[must_use]
pub fn mounted_from(devices: &[PathBuf]) -> Vec<PathBuf> {
    let mut seen = BTreeSet::new();
    mounts_of(devices).into_iter().filter(|m| seen.insert(m.device.clone())).map(|m| m.point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read() {
        let text = "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:3 - ext3 /dev/root rw,errors=continue\n\
                    25 1 0:23 / / rw - btrfs /dev/nbd0 rw\nnonsense\n";
        let mount = |device: &str, point: &str, source: &str| Mount {
            device: device.into(),
            point: point.into(),
            source: source.into(),
        };
        assert_eq!(parse(text), [mount("98:0", "/mnt 2", "/dev/root"), mount("0:23", "/", "/dev/nbd0")]);
        assert_eq!(unescape("a\\134b\\9"), PathBuf::from("a\\b\\9"));
        assert!(!mounts().is_empty());
    }

    #[test]
    fn partitions_and_what_is_stacked_on_them_belong_to_a_device() {
        let dir = tempfile::tempdir().unwrap();
        let add = |path: &str, number: &str| {
            let dir = dir.path().join(path);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("dev"), format!("{number}\n")).unwrap();
        };
        add("dev/block/43:0/nbd0p1", "43:1");
        fs::write(dir.path().join("dev/block/43:0/nbd0p1/partition"), "1\n").unwrap();
        add("dev/block/43:0/queue", "9:9");
        add("dev/block/43:1/holders/dm-0", "253:0");
        // A loop, which the kernel does not make, ends all the same.
        add("dev/block/253:0/holders/nbd0", "43:0");
        let mut out = BTreeSet::new();
        stack(dir.path(), "43:0", &mut out);
        assert_eq!(out.into_iter().collect::<Vec<_>>(), ["253:0", "43:0", "43:1"]);
        assert!(mounted_from(&["/dev/null".into(), "/no/such".into()]).is_empty());
    }
}
