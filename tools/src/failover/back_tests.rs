use super::*;

#[test]
fn only_blocks_that_differ_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let size = 10 * 4096 + 100;
    let mut disk = LocalDisk::open(&path, size, Pace::new(0)).unwrap();
    let mut wanted = vec![0; usize::try_from(size).unwrap()];
    for (at, fill) in [(0, 1), (4096, 2), (5 * 4096 + 7, 3), (10 * 4096 + 99, 4)] {
        wanted[at] = fill;
    }
    assert_eq!(disk.bring(0, &wanted).unwrap(), 3 * 4096 + 100);
    assert_eq!(std::fs::read(&path).unwrap(), wanted);
    assert_eq!(disk.bring(0, &wanted).unwrap(), 0, "nothing differs any more");
    wanted[3 * 4096] = 9;
    assert_eq!(disk.bring(4096, &wanted[4096..4 * 4096]).unwrap(), 4096);
    assert_eq!(std::fs::read(&path).unwrap(), wanted);
}

#[test]
fn what_is_between_ranges_is_the_rest() {
    assert_eq!(rest(&[], 10), [(0, 10)]);
    assert_eq!(rest(&[(0, 10)], 10), []);
    assert_eq!(rest(&[(2, 3), (5, 1), (8, 4)], 20), [(0, 2), (6, 8), (12, 20)]);
}

#[test]
fn a_rate_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = LocalDisk::open(&dir.path().join("disk"), 64 << 10, Pace::new(640 << 10)).unwrap();
    let began = Instant::now();
    disk.bring(0, &vec![1; 64 << 10]).unwrap();
    assert!(began.elapsed() >= Duration::from_millis(90), "64 KiB at 640 KiB/s");
}

#[test]
fn what_was_not_brought_whole_is_brought_before_anything_newer() {
    let note = r#"{"version":1,"volume":"web","to":"/d","phase":"catch-up","seq":10,"at":0,"compared_bytes":0,"moved_bytes":0,"size":4096}"#;
    let mut back: Back = serde_json::from_str(note).unwrap();
    assert_eq!((back.moments(10), back.moments(30)), (vec![], vec![30]));
    back.target = Some(20);
    assert_eq!((back.moments(20), back.moments(30)), (vec![20], vec![20, 30]));
    let read: Back = serde_json::from_slice(&serde_json::to_vec(&back).unwrap()).unwrap();
    assert_eq!(read, back);
}
