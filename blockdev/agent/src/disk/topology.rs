//! What the real disk says of its blocks and limits, for front ends that show a block device of the kernel.
//!
//! A file has no sectors: it is shown with 512-byte sectors, as raw images are made, on 4 KiB pages.

use afterimage_base::block::Topology;
use afterimage_base::world::fs::{FileKind, Metadata};
use std::path::PathBuf;

/// Of the disk with this metadata.
pub(crate) fn of(metadata: &Metadata) -> Topology {
    let plain = Topology::plain();
    if metadata.kind != FileKind::BlockDevice {
        return plain;
    }
    let dir = PathBuf::from(format!("/sys/dev/block/{}:{}", libc::major(metadata.rdev), libc::minor(metadata.rdev)));
    // A partition's queue is its parent's.
    let read = |name: &str| {
        let text = std::fs::read_to_string(dir.join("queue").join(name))
            .or_else(|_| std::fs::read_to_string(dir.join("../queue").join(name)));
        text.ok().and_then(|t| t.trim().parse::<u64>().ok())
    };
    checked(&plain, &read)
}

/// What sysfs says, as far as it is possible: a device may say anything.
fn checked(plain: &Topology, read: &dyn Fn(&str) -> Option<u64>) -> Topology {
    let power = |name: &str, least: u32, most: u32| {
        let value = read(name).and_then(|v| u32::try_from(v).ok())?;
        (value.is_power_of_two() && (least..=most).contains(&value)).then_some(value)
    };
    let logical_block = power("logical_block_size", 512, 4096).unwrap_or(plain.logical_block);
    let physical_block = power("physical_block_size", logical_block, 1 << 20).unwrap_or(logical_block);
    let longest = read("max_sectors_kb").map_or(plain.max_io, |kib| {
        u32::try_from(kib.saturating_mul(1024)).unwrap_or(u32::MAX).clamp(64 << 10, plain.max_io)
    });
    Topology {
        logical_block,
        physical_block,
        io_min: power("minimum_io_size", logical_block, 1 << 20).unwrap_or(physical_block),
        io_opt: power("optimal_io_size", logical_block, 64 << 20).unwrap_or(0),
        max_io: longest / 4096 * 4096,
        discard_granularity: power("discard_granularity", logical_block, 1 << 30).unwrap_or(physical_block),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_disk_says_is_taken_as_far_as_it_is_possible() {
        let plain = Topology::plain();
        let of =
            |known: &[(&str, u64)]| checked(&plain, &|name| known.iter().find(|(n, _)| *n == name).map(|(_, v)| *v));
        let native = of(&[("logical_block_size", 4096), ("physical_block_size", 4096), ("max_sectors_kb", 256)]);
        assert_eq!((native.logical_block, native.physical_block, native.io_min), (4096, 4096, 4096));
        assert_eq!((native.max_io, native.io_opt, native.discard_granularity), (256 << 10, 0, 4096));
        let raid = of(&[("optimal_io_size", 1 << 20), ("minimum_io_size", 65536), ("discard_granularity", 1 << 20)]);
        assert_eq!((raid.io_opt, raid.io_min, raid.discard_granularity), (1 << 20, 65536, 1 << 20));
        let odd = of(&[("logical_block_size", 513), ("physical_block_size", 256), ("optimal_io_size", 196_608)]);
        assert_eq!((odd.logical_block, odd.physical_block, odd.io_opt), (512, 512, 0));
        assert_eq!(of(&[("max_sectors_kb", 1 << 40)]).max_io, plain.max_io);
    }
}
