use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::thread;
use tempfile::TempDir;

const VOLUME: [u8; 16] = [5; 16];

fn map(size: u64) -> (TempDir, PathBuf, Marks) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dirty");
    let map = Marks::create(&path, VOLUME, size, 65536).unwrap();
    (dir, path, map)
}

fn marked(map: &Marks) -> BTreeSet<u64> {
    (0..map.regions()).filter(|r| map.is_dirty(*r)).collect()
}

fn check(map: &Marks, model: &BTreeSet<u64>) {
    assert_eq!(&marked(map), model);
    let bytes: u64 = model.iter().map(|r| map.region_range(*r)).map(|r| r.end - r.start).sum();
    assert_eq!(map.dirty_bytes(), bytes);
    for from in 0..map.regions() + 2 {
        assert_eq!(map.next_dirty(from), model.range(from..).next().copied());
        for max in [0, 1, 3, 40, u64::MAX] {
            let expected = model.range(from..).next().filter(|_| max > 0).map(|start| {
                let run = (*start..).take_while(|r| model.contains(r)).count() as u64;
                *start..*start + run.min(max)
            });
            assert_eq!(map.run_dirty(from, max), expected, "from {from} max {max}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_map_does_what_a_set_does(
        size in 1u64..100 * 65536,
        ops in prop::collection::vec((0u8..9, 0u64..101 * 65536, 0u64..9 * 65536), 0..30),
    ) {
        let (_dir, path, mut map) = map(size);
        let mut model = BTreeSet::new();
        for (what, offset, len) in ops {
            match what {
                0..=3 => {
                    map.mark(offset, len);
                    let end = (offset + len).min(map.size());
                    if offset < end {
                        model.extend(offset / 65536..=(end - 1) / 65536);
                    }
                }
                4 | 5 => {
                    map.clear(offset / 65536);
                    model.remove(&(offset / 65536));
                }
                6 if len < 65536 => {
                    map.clear_all();
                    model.clear();
                }
                6 | 7 => {
                    let old = map.size();
                    map.resize(offset.max(1)).unwrap();
                    model.retain(|r| *r < map.regions());
                    if map.size() > old {
                        model.extend(old / 65536..map.regions());
                    }
                }
                _ => {
                    let clean = len % 2 == 0;
                    if clean {
                        map.mark_clean().unwrap();
                    }
                    drop(map);
                    let (again, left) = Marks::open(&path, VOLUME).unwrap();
                    prop_assert_eq!(left, if clean { Left::Clean } else { Left::Killed });
                    map = again;
                }
            }
        }
        check(&map, &model);
    }
}

#[test]
fn all_marked_and_all_cleared() {
    let (_dir, _, map) = map(33 * 65536 + 1);
    map.mark_all();
    assert_eq!((map.dirty_bytes(), map.run_dirty(0, u64::MAX)), (map.size(), Some(0..34)));
    map.mark_all();
    assert_eq!(map.dirty_bytes(), map.size());
    map.clear_all();
    assert_eq!((map.dirty_bytes(), map.next_dirty(0)), (0, None));
    map.mark(u64::MAX - 1, u64::MAX);
    map.clear(u64::MAX);
    map.mark(5, 0);
    assert_eq!(map.dirty_bytes(), 0);
}

#[test]
fn marks_of_many_threads_all_count() {
    let (_dir, _, map) = map(1000 * 65536);
    thread::scope(|s| {
        for t in 0..4u64 {
            let map = &map;
            s.spawn(move || {
                for i in 0..2000 {
                    let r = (i * 7 + t * 3) % 1000;
                    map.mark(r * 65536 + t, 1);
                    if t == 0 && r % 2 == 1 {
                        map.clear(r);
                    }
                }
            });
        }
    });
    let marked = marked(&map);
    assert!((0..1000).step_by(2).all(|r| marked.contains(&r)), "what nobody clears stays marked");
    assert_eq!(map.dirty_bytes(), marked.len() as u64 * 65536);
}

#[test]
fn every_damaged_byte_of_a_used_map_is_named_or_outside() {
    let (_dir, path, map) = map(3000 * 65536);
    map.mark(5 * 65536, 70 * 65536);
    drop(map);
    let good = fs::read(&path).unwrap();
    for at in (0..96).chain(4096..good.len()) {
        for flip in [1, 0xff] {
            let mut bad = good.clone();
            bad[at] ^= flip;
            fs::write(&path, &bad).unwrap();
            let error = Marks::open(&path, VOLUME).map(|_| at).expect_err("damaged");
            assert!(error.to_string().contains(path.to_str().unwrap()));
            if let DirtyMapError::Damaged { region, offset, .. } = error {
                assert_eq!((offset, region), (at as u64 / 8 * 8, (at as u64 - 4096) / 8 * 32));
            } else {
                assert!(at < 4096, "{error}");
            }
        }
    }
    let mut lost = good.clone();
    lost[4096..8192].fill(0);
    fs::write(&path, &lost).unwrap();
    assert!(matches!(Marks::open(&path, VOLUME), Err(DirtyMapError::Damaged { region: 0, .. })));
    for len in [good.len() - 1, 4096, 4095, 0] {
        fs::write(&path, &good[..len]).unwrap();
        assert!(matches!(Marks::open(&path, VOLUME), Err(DirtyMapError::Truncated { .. })));
    }
}

#[test]
fn another_boot_needs_a_clean_stop() {
    let (_dir, path, map) = map(3000 * 65536);
    map.mark(0, 1);
    let boot = |path: &Path| {
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        let header = DirtyMapHeader { volume: VOLUME, size: 3000 * 65536, region: 65536 };
        for (i, w) in [3, 4, header.boot_check([3, 4])].into_iter().enumerate() {
            file.write_all_at(&u64::to_le_bytes(w), (word::BOOT + i) as u64 * 8).unwrap();
        }
    };
    map.mark_clean().unwrap();
    drop(map);
    boot(&path);
    let (map, left) = Marks::open(&path, VOLUME).unwrap();
    assert_eq!((left, map.dirty_bytes()), (Left::Clean, 65536));
    assert!(matches!(Marks::open(&path, VOLUME), Err(DirtyMapError::InUse { .. })));
    drop(map);
    boot(&path);
    assert!(matches!(Marks::open(&path, VOLUME), Err(DirtyMapError::OtherBoot { .. })));
    assert!(matches!(Marks::open(&path, [6; 16]), Err(DirtyMapError::OtherVolume { .. })));
    fs::write(&path, [b'x'; 9000]).unwrap();
    assert!(matches!(Marks::open(&path, VOLUME), Err(DirtyMapError::NotAMap { .. })));
    let bad = Marks::create(&path, VOLUME, 1 << 40, 1000);
    assert!(matches!(bad, Err(DirtyMapError::Size { .. })));
}
