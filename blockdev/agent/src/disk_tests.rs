use super::ops::ZeroMode;
use super::*;
use crate::PlainDisk;
use afterimage_base::block::{BlockDevice, BlockError, Request};
use afterimage_base::buf::AlignedBuf;
use afterimage_base::simple::call;
use std::fs::File;
use std::sync::Arc;

fn image(size: u64) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    File::create(&path).unwrap().set_len(size).unwrap();
    (dir, path)
}

#[test]
fn a_path_that_cannot_be_used_is_named_with_the_reason() {
    let (dir, path) = image(4096);
    let say = |p: &Path, cache| Disk::open(p, cache).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(say(&dir.path().join("none"), CacheMode::Writeback).contains("does not exist"));
    assert!(say(dir.path(), CacheMode::Writeback).contains("is a directory"));
    assert!(say(Path::new("/dev/null"), CacheMode::Writeback).contains("neither a regular file"));
    let empty = dir.path().join("empty");
    File::create(&empty).unwrap();
    assert!(say(&empty, CacheMode::Writeback).contains("size 0"));
    let odd = dir.path().join("odd");
    File::create(&odd).unwrap().set_len(1000).unwrap();
    assert!(say(&odd, CacheMode::None).contains("not a multiple"));
    let first = Disk::open(&path, CacheMode::Writeback).unwrap();
    assert!(say(&path, CacheMode::Writeback).contains("in use"));
    drop(first);
    assert!(Disk::open(&path, CacheMode::Writeback).is_ok());
}

#[test]
fn another_file_of_the_same_size_is_another_disk() {
    let (dir, path) = image(4096);
    let before = Disk::open(&path, CacheMode::Writeback).unwrap().identity().clone();
    assert_eq!(before.difference(Disk::open(&path, CacheMode::Writeback).unwrap().identity()), None);
    let other = dir.path().join("other");
    File::create(&other).unwrap().set_len(4096).unwrap();
    std::fs::rename(&other, &path).unwrap();
    assert!(before.difference(Disk::open(&path, CacheMode::Writeback).unwrap().identity()).is_some());
    File::options().write(true).open(&path).unwrap().set_len(8192).unwrap();
    let now = Disk::open(&path, CacheMode::Writeback).unwrap();
    // A size may change: what differs is the file.
    assert!(before.difference(now.identity()).unwrap().contains("inode"));
    let identity = crate::disk::identity::Identity { size: 1, ..now.identity().clone() };
    assert_eq!(identity.difference(now.identity()), None);
}

#[test]
fn zeroes_are_zeroes_whatever_the_alignment() {
    for cache in [CacheMode::Writeback, CacheMode::None] {
        for mode in [ZeroMode::Hole, ZeroMode::Keep] {
            let (_dir, path) = image(3 << 20);
            let disk = Disk::open(&path, cache).unwrap();
            disk.write_at(0, &AlignedBuf::copy_of(&vec![7; 3 << 20]), false).unwrap();
            disk.zero_at(5000, 2_000_000, mode).unwrap();
            disk.zero_at(100, 7, mode).unwrap();
            drop(disk);
            for (i, b) in std::fs::read(&path).unwrap().into_iter().enumerate() {
                let zero = (5000..2_005_000).contains(&i) || (100..107).contains(&i);
                assert_eq!(b == 0, zero, "byte {i}");
            }
        }
    }
}

#[test]
fn extents_tell_holes_from_data() {
    let (_dir, path) = image(1 << 20);
    let disk = Disk::open(&path, CacheMode::Writeback).unwrap();
    disk.write_at(256 << 10, &vec![1; 64 << 10], false).unwrap();
    let found = disk.extents(0, 1 << 20, 10).unwrap();
    let lens: Vec<_> = found.iter().map(|e| (e.len >> 10, e.hole)).collect();
    assert_eq!(lens, [(256, true), (64, false), (704, true)]);
    assert_eq!(disk.extents(0, 1 << 20, 1).unwrap().len(), 1);
    assert_eq!(disk.extents(300 << 10, 4096, 9).unwrap()[0].len, 4096);
}

fn round_trips(device: &Arc<dyn BlockDevice>) {
    let mut queue = Arc::clone(device).open_queue().unwrap();
    let size = usize::try_from(device.geometry().size).unwrap();
    call(&mut *queue, Request::Trim { offset: 0, len: size as u64, fua: false }).unwrap();
    let mut model = vec![0u8; size];
    let mut dice = crate::kit::Dice::new(42);
    for round in 0..300u32 {
        let len = usize::try_from(1 + dice.below(20_000)).unwrap();
        let offset = usize::try_from(dice.below((size - len) as u64 + 1)).unwrap();
        let fill = u8::try_from(round % 250).unwrap() + 1;
        let fua = dice.below(10) == 0;
        let at = offset as u64;
        if dice.below(5) == 0 {
            call(&mut *queue, Request::Trim { offset: at, len: len as u64, fua }).unwrap();
            model[offset..offset + len].fill(0);
        } else {
            call(&mut *queue, Request::Write { offset: at, data: &vec![fill; len], fua }).unwrap();
            model[offset..offset + len].fill(fill);
        }
        let (from, n) = (offset.saturating_sub(100), (len + 300).min(size - offset.saturating_sub(100)));
        let buf = AlignedBuf::zeroed(n);
        let read = call(&mut *queue, Request::Read { offset: from as u64, buf }).unwrap().unwrap();
        assert!(*read == model[from..from + n], "round {round}");
    }
    call(&mut *queue, Request::Flush).unwrap();
    let all = call(&mut *queue, Request::Read { offset: 0, buf: AlignedBuf::zeroed(size) }).unwrap().unwrap();
    assert!(*all == model[..]);
    let fast = Request::WriteZeroes { offset: 0, len: 4096, fua: false, no_hole: false, fast: true };
    let granted = call(&mut *queue, fast).is_ok();
    assert_eq!(granted, device.geometry().fast_zero);
}

#[test]
fn every_length_and_place_reads_back_in_both_cache_modes() {
    for cache in [CacheMode::Writeback, CacheMode::None] {
        let (_dir, path) = image(128 << 10);
        round_trips(&PlainDisk::open(&path, cache).unwrap());
        let (_dir, path) = image(128 << 10);
        let disk = Disk::open(&path, cache).unwrap();
        disk.faults.forbid_uring();
        round_trips(&crate::device::plain_on(disk));
    }
}

#[test]
fn a_file_that_shrank_is_an_error_and_not_a_silent_end() {
    let (_dir, path) = image(64 << 10);
    let device = PlainDisk::open(&path, CacheMode::Writeback).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
    let mut queue = device.open_queue().unwrap();
    let read = Request::Read { offset: 8192, buf: AlignedBuf::zeroed(4096) };
    assert_eq!(call(&mut *queue, read).err(), Some(BlockError::Io(libc::EIO)));
}

#[test]
#[ignore = "needs a small block device whose content may go, named by AGENT_TEST_DEVICE"]
fn a_block_device_does_the_same() {
    let path = PathBuf::from(std::env::var("AGENT_TEST_DEVICE").unwrap());
    for cache in [CacheMode::Writeback, CacheMode::None] {
        let device = PlainDisk::open(&path, cache).unwrap();
        assert!(matches!(Disk::open(&path, cache), Err(DiskError::InUse(_))));
        round_trips(&device);
    }
}
