//! What is on a disk, and mounting it. Partition tables are read by the kernel; what a partition holds is told by its first bytes.

use super::Refusal;
use crate::files::wire::Partition;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount as mount_device};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// FAT, whose times are coarse.
pub(super) const FAT: &str = "fat";
const NTFS: &str = "ntfs";
const SECTOR: u64 = 512;
/// As far as marks of file systems lie from the beginning.
const HEAD: usize = 68 << 10;
/// Lines of the kernel that are passed on.
const MOST_NOTES: usize = 20;

/// Where a mark is, what it is, what it means, and how the kernel calls it if it can be read.
type Mark = (usize, &'static [u8], &'static str, Option<&'static str>);

/// In this order: a file system that was made over another one leaves marks of the old one.
const MARKS: &[Mark] = &[
    (0, b"LUKS\xba\xbe", "luks (encrypted)", None),
    (512, b"LABELONE", "lvm", None),
    (0, b"LABELONE", "lvm", None),
    (1024, b"LABELONE", "lvm", None),
    (4096, b"\xfc\x4e\x2b\xa9", "raid (md)", None),
    (0, b"XFSB", "xfs", Some("xfs")),
    (3, b"NTFS    ", NTFS, Some("ntfs3")),
    (3, b"EXFAT   ", "exfat", None),
    (3, b"-FVE-FS-", "bitlocker (encrypted)", None),
    (0x52, b"FAT32   ", FAT, Some("vfat")),
    (0x36, b"FAT16   ", FAT, Some("vfat")),
    (0x36, b"FAT12   ", FAT, Some("vfat")),
    (0x36, b"FAT     ", FAT, Some("vfat")),
    (0x438, b"\x53\xef", "ext", Some("ext4")),
    (0x1_0040, b"_BHRfS_M", "btrfs", None),
    (4086, b"SWAPSPACE2", "swap", None),
    (0x8001, b"CD001", "iso9660", None),
];

/// The device of a disk.
pub(super) fn device(disk: usize) -> PathBuf {
    let letter = u8::try_from(disk).ok().and_then(|d| b'a'.checked_add(d)).unwrap_or(b'a');
    PathBuf::from(format!("/dev/vd{}", char::from(letter)))
}

fn device_of(disk: usize, partition: u32) -> PathBuf {
    let whole = device(disk);
    if partition == 0 { whole } else { PathBuf::from(format!("{}{partition}", whole.display())) }
}

/// What the bytes at the beginning of something say that it is.
fn told_by(head: &[u8]) -> Option<&'static Mark> {
    MARKS.iter().find(|(at, mark, ..)| head.get(*at..).is_some_and(|rest| rest.starts_with(mark)))
}

/// ext2, ext3 or ext4, from the features in the superblock.
fn which_ext(head: &[u8]) -> &'static str {
    let word = |at: usize| head.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let (compatible, incompatible) = (word(0x45c), word(0x460));
    // Extents, or 64 bits: not before ext4. A journal: not before ext3.
    match (incompatible & 0xc0, compatible & 4) {
        (0, 0) => "ext2",
        (0, _) => "ext3",
        _ => "ext4",
    }
}

fn look(disk: usize, number: u32, offset: u64, size: u64) -> io::Result<Partition> {
    let file = File::open(device_of(disk, number))?;
    let mut head = vec![0; HEAD];
    let mut filled = 0;
    while let n @ 1.. = file.read_at(&mut head[filled..], filled as u64)? {
        filled += n;
    }
    head.truncate(filled);
    let mark = told_by(&head);
    let holds = mark.map(|(.., name, how)| if *how == Some("ext4") { which_ext(&head) } else { *name });
    let readable = mark.is_some_and(|(.., how)| how.is_some());
    Ok(Partition { number, offset, size, holds: holds.map(str::to_owned), readable })
}

fn number_in(path: &Path) -> io::Result<u64> {
    std::fs::read_to_string(path)?.trim().parse().map_err(io::Error::other)
}

/// The parts of a disk, or (with number 0) the whole, if it has none or is itself a file system.
pub(super) fn partitions(disk: usize) -> io::Result<Vec<Partition>> {
    let device = device(disk);
    let name = device.file_name().unwrap_or_default();
    let known = Path::new("/sys/block").join(name);
    let whole = look(disk, 0, 0, number_in(&known.join("size"))? * SECTOR)?;
    // A boot sector of FAT or NTFS may look like a partition table; no table looks like one of those.
    if whole.readable && [Some(FAT), Some(NTFS)].contains(&whole.holds.as_deref()) {
        return Ok(vec![whole]);
    }
    let mut parts = Vec::new();
    for entry in std::fs::read_dir(&known)?.flatten() {
        let folder = entry.path();
        let Ok(number) = number_in(&folder.join("partition")) else { continue };
        let number = u32::try_from(number).map_err(io::Error::other)?;
        let bytes = |what| Ok::<_, io::Error>(number_in(&folder.join(what))? * SECTOR);
        parts.push(look(disk, number, bytes("start")?, bytes("size")?)?);
    }
    parts.sort_by_key(|p| p.number);
    // The superblock of an ext4 that was partitioned later stays where it was.
    Ok(if parts.is_empty() { vec![whole] } else { parts })
}

/// Lists what there is, for a message.
fn listed(parts: &[Partition]) -> String {
    let one = |p: &Partition| {
        let what = p.holds.as_deref().unwrap_or("nothing that is known");
        let size = afterimage_mgmt::units::format_size(p.size);
        if p.number == 0 {
            format!("the whole disk ({size}): {what}")
        } else {
            format!("{} ({size}): {what}", p.number)
        }
    };
    parts.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn choose(parts: Vec<Partition>, asked: Option<u32>) -> Result<Partition, Refusal> {
    let all = listed(&parts);
    if let Some(number) = asked {
        let found = parts.into_iter().find(|p| p.number == number);
        let found = found.ok_or_else(|| Refusal::usage(format!("there is no partition {number}; there is {all}")))?;
        return match (found.readable, &found.holds) {
            (true, _) => Ok(found),
            (false, Some(what)) => Err(Refusal::failed(format!(
                "partition {number} holds {what}, whose files cannot be read: ext2, ext3, ext4, xfs, fat and ntfs can. \
                 `afterimage attach` makes a device of the disk for what else this host can mount"
            ))),
            (false, None) => Err(Refusal::failed(format!("partition {number} holds no file system that is known"))),
        };
    }
    let mut readable = parts.into_iter().filter(|p| p.readable);
    match (readable.next(), readable.next()) {
        (Some(only), None) => Ok(only),
        (Some(_), Some(_)) => Err(Refusal::usage(format!("say which partition, with --partition: there is {all}"))),
        (None, _) => Err(Refusal::failed(format!(
            "no file system whose files can be read (ext2, ext3, ext4, xfs, fat, ntfs): there is {all}"
        ))),
    }
}

/// What the kernel says from now on.
struct Log(Option<File>);

impl Log {
    fn begin() -> Log {
        let open = || {
            let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?;
            file.seek(SeekFrom::End(0))?;
            Ok::<_, io::Error>(file)
        };
        // Without it there are fewer notes.
        Log(open().ok())
    }

    /// Warnings, and what it says of recovery.
    fn notes(&mut self) -> Vec<String> {
        let mut notes = Vec::new();
        let Some(file) = &mut self.0 else { return notes };
        let mut record = vec![0; 8192];
        while let Ok(len @ 1..) = file.read(&mut record) {
            let text = String::from_utf8_lossy(&record[..len]);
            let Some((head, text)) = text.split_once(';') else { continue };
            let level = head.split(',').next().and_then(|p| p.parse::<u32>().ok()).map_or(7, |p| p & 7);
            let text = text.lines().next().unwrap_or_default();
            if notes.len() < MOST_NOTES && (level <= 4 || text.contains("recover")) {
                notes.push(text.to_owned());
            }
        }
        notes
    }
}

/// Mounts a file system so that nothing is written but what its recovery needs. That goes to a branch which is thrown away.
pub(super) fn mount(
    disk: usize,
    partition: Option<u32>,
    replay: bool,
    at: &Path,
) -> Result<(Partition, Vec<String>), Refusal> {
    let parts = partitions(disk).map_err(|e| Refusal::failed(format!("the disk cannot be read: {e}")))?;
    let found = choose(parts, partition)?;
    let device = device_of(disk, found.number);
    let kind = found.holds.as_deref().unwrap_or_default();
    let mut log = Log::begin();
    let still = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME;
    let how = |flags: MsFlags, system: &str, options: &str| {
        mount_device(Some(&device), at, Some(system), flags, Some(options))
    };
    let done = match kind {
        // The same file system may be mounted as of two moments.
        "xfs" => how(still, "xfs", if replay { "nouuid" } else { "nouuid,norecovery" }),
        FAT => how(still, "vfat", "utf8=1,iocharset=ascii,codepage=437,tz=UTC,umask=022"),
        // It replays its journal only where it may write; where it cannot, it is still read.
        NTFS if replay => how(still.difference(MsFlags::MS_RDONLY), "ntfs3", "iocharset=utf8")
            .or_else(|_| how(still, "ntfs3", "iocharset=utf8")),
        NTFS => how(still, "ntfs3", "iocharset=utf8"),
        _ => how(still, "ext4", if replay { "" } else { "noload" }),
    };
    let notes = log.notes();
    match done {
        Ok(()) => Ok((found, notes)),
        Err(Errno::ENODEV) => Err(Refusal::failed(format!(
            "the kernel of the guest cannot read {kind}: it has no such module. `afterimage target kernel` takes another one"
        ))),
        Err(e) => {
            let said = if notes.is_empty() { String::new() } else { format!(" ({})", notes.join("; ")) };
            let hint = if replay { "; try --no-replay, or an earlier moment" } else { "" };
            Err(Refusal::failed(format!("{kind} cannot be mounted: {}{said}{hint}", e.desc())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(number: u32, holds: Option<&str>, readable: bool) -> Partition {
        Partition { number, offset: 0, size: 1 << 20, holds: holds.map(str::to_owned), readable }
    }

    #[test]
    fn the_only_partition_with_files_is_chosen() {
        let (boot, lvm, root) = (part(1, None, false), part(2, Some("lvm"), false), part(3, Some("xfs"), true));
        let all = || vec![boot.clone(), lvm.clone(), root.clone()];
        assert_eq!(choose(all(), None).unwrap().number, 3);
        assert_eq!(choose(all(), Some(3)).unwrap().number, 3);
        for (asked, usage, says) in [(2, false, "holds lvm"), (1, false, "no file system"), (9, true, "no partition 9")]
        {
            let refused = choose(all(), Some(asked)).unwrap_err();
            assert!(refused.usage == usage && refused.why.contains(says), "{refused:?}");
        }
        let two = choose(vec![root.clone(), part(4, Some("ext4"), true)], None).unwrap_err();
        assert!(two.usage && two.why.contains("3 (1 MiB): xfs, 4 (1 MiB): ext4"), "{two:?}");
        let none = choose(vec![boot.clone(), lvm.clone()], None).unwrap_err();
        assert!(!none.usage && none.why.contains("2 (1 MiB): lvm"), "{none:?}");
    }

    #[test]
    fn file_systems_are_told_by_their_marks() {
        for (at, mark, name, _) in MARKS {
            let mut head = vec![0; HEAD];
            head[*at..*at + mark.len()].copy_from_slice(mark);
            assert_eq!(told_by(&head).unwrap().2, *name);
            assert!(told_by(&head[..*at + mark.len() - 1]).is_none(), "cut: {name}");
        }
        assert!(told_by(&[]).is_none());
        let mut head = vec![0; HEAD];
        assert_eq!(which_ext(&head), "ext2");
        head[0x45c] = 4;
        assert_eq!(which_ext(&head), "ext3");
        head[0x460] = 0x40;
        assert_eq!(which_ext(&head), "ext4");
        assert_eq!(which_ext(&[]), "ext2");
    }
}
