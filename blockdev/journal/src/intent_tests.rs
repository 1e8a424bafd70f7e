use super::*;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const VOLUME: [u8; 16] = [1; 16];
const RING: [u8; 16] = [7; 16];
const REGION: u64 = 4096;
const SIZE: u64 = 8000 * REGION - 1;

fn make(dir: &tempfile::TempDir) -> IntentMap {
    IntentMap::create(&dir.path().join("intent"), (VOLUME, RING), (SIZE, REGION), |_| false).unwrap()
}

fn open(dir: &tempfile::TempDir) -> IntentMap {
    IntentMap::open(&dir.path().join("intent"), VOLUME).unwrap()
}

fn all(map: &IntentMap) -> Vec<u64> {
    (0..map.regions()).filter(|r| map.look(*r).is_some()).collect()
}

fn clear(map: &IntentMap, regions: &[u64], relied: (u64, u64)) -> u64 {
    for r in regions {
        let _touched = map.look(*r);
    }
    map.clear(regions, relied, |_, take| take()).unwrap()
}

#[test]
fn marks_come_back_and_cost_one_sync_a_batch() {
    let dir = tempfile::tempdir().unwrap();
    let map = make(&dir);
    assert!(!map.touch(0, 1) && map.touch(SIZE, SIZE + 9));
    map.mark([0, 3647, 3648, 7999, 8000], |r| r == 0).unwrap();
    assert_eq!((map.syncs(), map.marked()), (1, 4));
    map.mark([0, 7999], |_| true).unwrap();
    assert_eq!(map.syncs(), 1, "warm regions cost nothing");
    assert!(map.touch(0, REGION) && map.is_marked(3647 * REGION, 3649 * REGION) && !map.touch(0, REGION + 1));
    assert_eq!((map.look(0), map.look(0), map.look(3648), map.look(5)), (Some(true), Some(false), Some(false), None));
    drop(map);
    let map = open(&dir);
    assert_eq!(all(&map), [0, 3647, 3648, 7999]);
    assert_eq!(map.marked(), 4);
    assert_eq!(map.region_range(7999), 7999 * REGION..SIZE);
    assert_eq!(clear(&map, &[3648, 5], (9, 1)), 1);
    assert!(map.touch(0, 1));
    map.clear(&[0], (9, 1), |_, take| take()).unwrap();
    assert_eq!((map.marked(), map.syncs()), (3, 0), "touched stays, and taking away costs no sync");
    drop(map);
    assert_eq!(all(&open(&dir)), [0, 3647, 7999]);
}

#[test]
fn a_damaged_or_missing_sector_is_all_marked() {
    let dir = tempfile::tempdir().unwrap();
    let map = make(&dir);
    map.mark([9], |_| false).unwrap();
    drop(map);
    let path = dir.path().join("intent");
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[0; 100], SECTORS_AT + 512).unwrap();
    let map = open(&dir);
    assert_eq!((map.damaged(), map.marked()), (1, 1 + 3648));
    assert!(map.is_marked(3648 * REGION, 2 * 3648 * REGION) && !map.is_marked(0, REGION));
    drop(map);
    assert_eq!(open(&dir).damaged(), 0, "it was mended");
    file.set_len(4096 + 512).unwrap();
    assert!(matches!(IntentMap::open(&path, VOLUME), Err(IntentError::Truncated { .. })));
    assert!(matches!(IntentMap::open(&path, [2; 16]), Err(IntentError::OtherVolume { .. })));
    file.write_all_at(&[0; 1024], 0).unwrap();
    assert!(matches!(IntentMap::open(&path, VOLUME), Err(IntentError::Header { .. })));
}

#[test]
fn a_torn_header_leaves_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let map = make(&dir);
    for n in 1..12 {
        map.begin_ring([n; 16]).unwrap();
        assert_eq!(map.ring(), [n; 16]);
    }
    drop(map);
    let file = std::fs::File::options().write(true).open(dir.path().join("intent")).unwrap();
    assert_eq!(open(&dir).ring(), [11; 16]);
    // Turn 11 lies in the second copy.
    file.write_all_at(&[0xee; 100], 512 + 300).unwrap();
    assert_eq!(open(&dir).ring(), [10; 16]);
}

#[test]
fn only_a_history_that_has_what_is_relied_on_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let map = make(&dir);
    assert!(map.accepts([0; 16], 0, 0) && map.accepts(RING, 5, 1) && !map.accepts([9; 16], 5, 1));
    map.mark([1, 2, 5000], |_| false).unwrap();
    assert!(map.accepts([0; 16], 0, 0), "marks alone rely on nothing");
    assert_eq!(clear(&map, &[1], (10, 77)), 1);
    for (ring, durable, digest, good) in
        [(RING, 9, 77, false), (RING, 10, 77, true), (RING, 10, 78, false), (RING, 11, 0, true), ([0; 16], 0, 0, false)]
    {
        assert_eq!(map.accepts(ring, durable, digest), good, "{durable} {digest}");
    }
    map.begin_ring([8; 16]).unwrap();
    assert!(map.accepts(RING, 11, 0) && map.accepts([8; 16], 1, 0));
    assert_eq!(clear(&map, &[5000], (3, 4)), 1);
    assert!(!map.accepts(RING, 11, 0) && !map.accepts([8; 16], 2, 0) && map.accepts([8; 16], 3, 4));
    drop(map);
    let map = open(&dir);
    assert!(!map.accepts(RING, 11, 0) && map.accepts([8; 16], 3, 4));
    map.mark_all().unwrap();
    assert!(map.accepts(RING, 1, 0) && map.accepts([0; 16], 0, 0));
    assert_eq!(map.marked(), 8000);
    drop(map);
    assert_eq!(open(&dir).marked(), 8000);
}

#[test]
fn another_size_keeps_marks_and_marks_what_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let mut map = make(&dir);
    map.mark([3, 7990], |_| false).unwrap();
    clear(&map, &[3], (5, 6));
    map = map.resized(4000 * REGION).unwrap();
    assert_eq!((map.regions(), all(&map)), (4000, vec![]));
    map.mark([4], |_| false).unwrap();
    map = map.resized(4002 * REGION).unwrap();
    assert_eq!(all(&map), [4, 4000, 4001]);
    assert!(!map.accepts(RING, 4, 0) && map.accepts(RING, 5, 6), "it still relies on what it did");
    drop(map);
    assert_eq!(all(&open(&dir)), [4, 4000, 4001]);
}

struct Fails(Box<dyn Medium>, Arc<AtomicBool>);

impl Medium for Fails {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.0.write_at(bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        if self.1.load(Ordering::SeqCst) { Err(io::Error::from_raw_os_error(libc::EIO)) } else { self.0.sync() }
    }
}

#[test]
fn an_error_is_final_and_lets_writers_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let broken = Arc::new(AtomicBool::new(false));
    let map = make(&dir).through(|m| Box::new(Fails(m, Arc::clone(&broken))));
    map.mark([1], |_| false).unwrap();
    broken.store(true, Ordering::SeqCst);
    assert!(map.mark([2], |_| false).is_err());
    broken.store(false, Ordering::SeqCst);
    assert!(map.has_failed() && map.touch(0, SIZE) && !map.is_marked(2 * REGION, 3 * REGION));
    assert!(map.mark([3], |_| false).is_err(), "never again");
    assert!(!map.accepts(RING, 99, 0));
    assert_eq!(map.clear(&[1], (1, 1), |_, take| take()).unwrap(), 0);
}
