//! What lies on a block device or partition, told by its first bytes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Enough for what is looked at: the farthest is the superblock of btrfs.
const LOOK: usize = 68 << 10;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// A file system of this type, as `mount -t` has it.
    FileSystem {
        name: &'static str,
        /// Nothing has to be replayed: it can be mounted from a device that takes no writes.
        clean: bool,
    },
    /// Something that is no file system, by its name.
    Other(&'static str),
    Unknown,
}

/// # Errors
/// If it cannot be read.
pub(super) fn look(path: &Path) -> io::Result<Content> {
    let file = File::open(path)?;
    let mut bytes = vec![0; LOOK];
    let mut have = 0;
    while have < LOOK {
        match file.read_at(&mut bytes[have..], have as u64)? {
            0 => break,
            n => have += n,
        }
    }
    Ok(of(&bytes))
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn holds(bytes: &[u8], at: usize, what: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|b| b.starts_with(what))
}

fn of(bytes: &[u8]) -> Content {
    /// Of ext4's features: the journal is to be replayed.
    const RECOVER: u32 = 4;
    let holds = |at, what: &[u8]| holds(bytes, at, what);
    let system = |name, clean| Content::FileSystem { name, clean };
    if holds(1024 + 0x38, &[0x53, 0xef]) {
        // The driver of ext4 takes the older ones, too.
        system("ext4", le32(bytes, 1024 + 0x60) & RECOVER == 0)
    } else if holds(0, b"XFSB") {
        // Its log says so at no fixed place.
        system("xfs", false)
    } else if holds(0x1_0040, b"_BHRfS_M") {
        // The place of its log tree: 0 if there is none.
        system("btrfs", holds(0x1_0060, &[0; 8]))
    } else if le32(bytes, 1024) == 0xf2f5_2010 {
        system("f2fs", false)
    } else if holds(0, b"hsqs") {
        system("squashfs", true)
    } else if holds(3, b"NTFS    ") {
        system("ntfs3", false)
    } else if holds(3, b"EXFAT   ") {
        system("exfat", true)
    } else if holds(82, b"FAT32") || holds(54, b"FAT1") {
        system("vfat", true)
    } else if holds(0, b"LUKS\xba\xbe") {
        Content::Other("a LUKS volume: attach it, and open it with cryptsetup")
    } else if (0..4).any(|n| holds(n * 512, b"LABELONE")) {
        Content::Other("a physical volume of LVM: attach it, and activate its volume group")
    } else if holds(4086, b"SWAPSPACE2") {
        Content::Other("swap space")
    } else {
        Content::Unknown
    }
}

/// Whether there is a table of partitions.
pub(super) fn has_partition_table(path: &Path) -> io::Result<bool> {
    let mut bytes = [0; 1024];
    File::open(path)?.read_exact_at(&mut bytes, 0)?;
    Ok(holds(&bytes, 510, &[0x55, 0xaa]) || holds(&bytes, 512, b"EFI PART"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(at: usize, what: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; LOOK];
        bytes[at..at + what.len()].copy_from_slice(what);
        bytes
    }

    #[test]
    fn file_systems_are_told_apart_and_whether_they_need_writes() {
        let clean = |name| Content::FileSystem { name, clean: true };
        let dirty = |name| Content::FileSystem { name, clean: false };
        let mut ext = with(1024 + 0x38, &[0x53, 0xef]);
        assert_eq!(of(&ext), clean("ext4"));
        ext[1024 + 0x60] = 0x46;
        assert_eq!(of(&ext), dirty("ext4"));
        assert_eq!(of(&with(0, b"XFSB")), dirty("xfs"));
        let mut btrfs = with(0x1_0040, b"_BHRfS_M");
        assert_eq!(of(&btrfs), clean("btrfs"));
        btrfs[0x1_0065] = 1;
        assert_eq!(of(&btrfs), dirty("btrfs"));
        assert!(matches!(of(&with(0, b"LUKS\xba\xbe")), Content::Other(_)));
        assert!(matches!(of(&with(1024, b"LABELONE")), Content::Other(_)));
        for few in [0, 1, 600, 1100, 4090] {
            assert_eq!(of(&vec![0; few]), Content::Unknown);
        }
    }
}
