//! `afterimage check` finds every single flipped bit in the store, and says what it hits; and a store with a flipped bit is
//! never served as if nothing were wrong.

use afterimage_tests::data::{self, Chance};
use afterimage_tests::lab::{DISK, Lab};
use afterimage_tests::tool::tool;
use std::path::{Path, PathBuf};

const FLIPS: usize = 100;

/// All files of the store that hold something, with their sizes.
fn files(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("list the store").flatten() {
        let about = entry.metadata().expect("look at a file of the store");
        if about.is_dir() {
            found.extend(files(&entry.path()));
        } else if about.len() > 0 {
            found.push((entry.path(), about.len()));
        }
    }
    found.sort();
    found
}

#[test]
fn check_finds_each_of_a_hundred_flipped_bits() {
    let mut chance = Chance::seeded();
    let mut lab = Lab::new(64 << 20);
    let source = lab.path("source");
    data::patchy(&source, 64 << 20, &mut chance);
    tool("nbdcopy").arg("--flush").arg(&source).arg(lab.uri()).run();
    lab.daemon.point(DISK, "full");
    tool("qemu-io")
        .args(["-f", "raw", "-c", "write -P 3 1M 4M", "-c", "discard 8M 1M", "-c", "flush", &lab.uri()])
        .run();
    lab.daemon.wait_durable(DISK);
    assert!(lab.daemon.stop().success(), "{}", lab.daemon.log());
    let sound = lab.daemon.check().run();
    println!("{}", sound.stdout);

    // The key is not checked by bits: with another key nothing opens at all, which is a test of its own. The reserve holds nothing.
    let vault = lab.daemon.data().join("vault");
    let files: Vec<_> =
        files(&vault).into_iter().filter(|(path, _)| !path.ends_with("key") && !path.ends_with("RESERVE")).collect();
    let total: u64 = files.iter().map(|f| f.1).sum();
    assert!(total > 16 << 20, "the store holds only {total} bytes: {files:?}");
    for flip in 0..FLIPS {
        // Every file gets its share: half of the flips by size, half of them by file.
        let (path, bit) = if flip % 2 == 0 {
            let mut place = chance.below(total);
            let (path, _) =
                files.iter().find(|(_, size)| place.checked_sub(*size).map(|rest| place = rest).is_none()).unwrap();
            (path, place * 8 + chance.below(8))
        } else {
            let (path, size) = &files[usize::try_from(chance.below(files.len() as u64)).unwrap()];
            (path, chance.below(size * 8))
        };
        data::flip_bit(path, bit);
        let seen = lab.daemon.check().run_any();
        let place = format!("bit {} of byte {} of {}", bit % 8, bit / 8, path.display());
        assert_eq!(seen.status.code(), Some(1), "{place} was not found: {}", seen.describe());
        let said = format!("{}{}", seen.stdout, seen.stderr);
        let name = path.file_name().unwrap().to_string_lossy();
        assert!(said.contains(&*name), "{place}: the file is not named: {said}");
        // What holds the disk's bytes is named by volume and range.
        if path.starts_with(vault.join("segments")) {
            assert!(said.contains(DISK), "{place}: the volume is not named: {said}");
        }
        data::flip_bit(path, bit);
    }
    lab.daemon.check().run();
}

#[test]
fn another_key_opens_nothing_and_harms_nothing() {
    let mut lab = Lab::new(16 << 20);
    tool("qemu-io").args(["-f", "raw", "-c", "write -P 3 1M 4M", &lab.uri()]).run();
    lab.daemon.wait_durable(DISK);
    assert!(lab.daemon.stop().success(), "{}", lab.daemon.log());
    let key = lab.daemon.data().join("vault/key");
    let kept = std::fs::read(&key).unwrap();
    data::flip_bit(&key, 8 * 20);
    let refused = lab.daemon.check().run_any();
    assert_eq!(refused.status.code(), Some(1), "{}", refused.describe());
    std::fs::remove_file(&key).unwrap();
    let refused = lab.daemon.check().run_any();
    assert_eq!(refused.status.code(), Some(1), "{}", refused.describe());
    assert!(refused.stderr.contains("key"), "{}", refused.describe());
    std::fs::write(&key, kept).unwrap();
    lab.daemon.check().run();
    lab.daemon.start();
    lab.assert_history_is_the_disk();
}
