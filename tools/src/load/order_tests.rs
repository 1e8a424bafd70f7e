use super::super::op::{Chance, Chooser, Next, Op, Shape};
use super::*;

const SIZE: u64 = 64 << 10;
const SEED: u64 = 11;

fn put(disk: &mut [u8], op: &Op) {
    let range = usize::try_from(op.offset).unwrap()..usize::try_from(op.offset + op.len).unwrap();
    match op.kind {
        Kind::Write => stamp::fill(SEED, op.number, op.offset, &mut disk[range]),
        _ => disk[range].fill(0),
    }
}

/// A random history of requests in flight together, and its images: each request takes effect at some time
/// between its submission and its acknowledgement; a few are never acknowledged.
fn history(seed: u64) -> (Vec<Entry>, Vec<Vec<u8>>) {
    let shape = Shape { mix: "8,1,1,0".parse().unwrap(), align: 512, max_len: 16 << 10, span: SIZE };
    let (mut chooser, mut chance) = (Chooser::new(shape, seed), Chance::new(seed));
    let (mut entries, mut images, mut disk): (Vec<Entry>, _, _) =
        (vec![], vec![], vec![0; usize::try_from(SIZE).unwrap()]);
    let (mut clock, mut waiting, mut applied) = (0, vec![], vec![]);
    images.push(disk.clone());
    while entries.len() < 200 || !waiting.is_empty() {
        clock += 1;
        let take = |list: &mut Vec<usize>, chance: &mut Chance| {
            list.swap_remove(usize::try_from(chance.below(list.len() as u64)).unwrap())
        };
        match chance.below(3) {
            0 if entries.len() < 200 && waiting.len() + applied.len() < 16 => {
                let Next::Change(kind, offset, len) = chooser.choose() else { continue };
                let op = Op { number: entries.len() as u64 + 1, kind, offset, len };
                waiting.push(entries.len());
                entries.push(Entry { op, submitted: clock, acked: u64::MAX });
            }
            1 if !waiting.is_empty() => {
                let i = take(&mut waiting, &mut chance);
                put(&mut disk, &entries[i].op);
                images.push(disk.clone());
                applied.push(i);
            }
            2 if !applied.is_empty() => {
                let i = take(&mut applied, &mut chance);
                if chance.below(20) > 0 {
                    entries[i].acked = clock;
                }
            }
            _ => {}
        }
    }
    (entries, images)
}

fn judge(entries: &[Entry]) -> Order {
    Order::new(SEED, SIZE, entries.to_vec()).unwrap()
}

#[test]
fn every_prefix_of_a_true_history_is_accepted() {
    for seed in 0..30 {
        let (entries, images) = history(seed);
        let mut order = judge(&entries);
        for image in &images {
            order.check(image, false).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        }
        order.check(images.last().unwrap(), true).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

fn write(number: u64, sectors: std::ops::Range<u64>, submitted: u64, acked: u64) -> Entry {
    let (offset, len) = (sectors.start * 512, (sectors.end - sectors.start) * 512);
    Entry { op: Op { number, kind: Kind::Write, offset, len }, submitted, acked }
}

fn image(parts: &[(u64, std::ops::Range<u64>)]) -> Vec<u8> {
    let mut disk = vec![0; usize::try_from(SIZE).unwrap()];
    for (number, sectors) in parts {
        put(&mut disk, &write(*number, sectors.clone(), 0, 0).op);
    }
    disk
}

#[test]
fn each_rule_catches_the_image_that_breaks_it() {
    let one_after_the_other = [write(1, 0..8, 0, 1), write(2, 0..4, 2, 3), write(3, 100..101, 4, 5)];
    let check = |entries: &[Entry], image: &[u8]| judge(entries).check(image, false);
    let e = &one_after_the_other;
    check(e, &image(&[(1, 0..8), (2, 0..4), (3, 100..101)])).unwrap();
    check(e, &image(&[(1, 0..8)])).unwrap();
    check(e, &image(&[])).unwrap();

    let mut torn = image(&[(1, 0..8)]);
    torn[700] ^= 1;
    assert!(check(e, &torn).unwrap_err().contains("neither zeroes nor"), "1: a byte");
    assert!(check(e, &image(&[(1, 9..10)])).unwrap_err().contains("did not write there"), "1: a place");
    assert!(check(e, &image(&[(9, 0..1)])).unwrap_err().contains("did not write there"), "1: never submitted");
    assert!(check(e, &image(&[(1, 0..8), (3, 100..101)])).unwrap_err().contains("request 2"), "2: a lost write");
    assert!(check(e, &image(&[(2, 0..4), (3, 100..101)])).unwrap_err().contains("is zero"), "2: a lost tail");
    assert!(check(e, &image(&[(1, 0..8), (2, 0..3), (3, 100..101)])).is_err(), "2: half a write");

    assert!(
        check(&[write(1, 0..4, 0, 1)], &image(&[(1, 0..2)])).unwrap_err().contains("is zero"),
        "2: half of the last write"
    );

    let mut order = judge(e);
    order.check(&image(&[(1, 0..8), (2, 0..4)]), false).unwrap();
    assert!(order.check(&image(&[(1, 0..8)]), false).is_err(), "3: a later image has less");
    assert!(judge(e).check(&image(&[(1, 0..8), (2, 0..4)]), true).is_err(), "complete: write 3 is missing");

    let together = [write(1, 0..4, 0, 10), write(2, 0..4, 1, 11)];
    check(&together, &image(&[(1, 0..4)])).unwrap();
    check(&together, &image(&[(2, 0..4)])).unwrap();
    assert!(check(&together, &image(&[(1, 0..2), (2, 2..4)])).unwrap_err().contains("no order"), "4");
}

#[test]
fn only_what_was_never_acknowledged_may_be_there_in_part_and_only_if_that_is_said() {
    let entries = [write(1, 0..8, 0, 1), write(2, 0..8, 2, u64::MAX), write(3, 4..6, 3, u64::MAX)];
    let judged = |parts: &[_], torn| judge(&entries).torn(torn).check(&image(parts), true);
    let in_part = [(1, 0..8), (2, 4..8)];
    assert!(judged(&in_part, false).unwrap_err().contains("request 2"));
    judged(&in_part, true).unwrap();
    let crossed = [(1, 0..8), (2, 0..5), (3, 5..6)];
    assert!(judged(&crossed, false).is_err());
    judged(&crossed, true).unwrap();
    assert!(judged(&[(1, 0..7), (2, 0..2)], true).unwrap_err().contains("is zero"), "what was acknowledged is whole");
}

#[test]
fn random_damage_is_caught() {
    let mut caught = 0;
    for seed in 0..40 {
        let (entries, images) = history(seed);
        let mut chance = Chance::new(seed);
        // Some sectors of a late image as they were in an early one, where that makes a difference to a write that
        // had been acknowledged long before.
        let late = images.len() - 1;
        let mut bad = images[late].clone();
        let from = usize::try_from(chance.below(SIZE / 512 / 2)).unwrap() * 512;
        bad[from..from + 8192].copy_from_slice(&images[late / 3][from..from + 8192]);
        caught += usize::from(judge(&entries).check(&bad, true).is_err());
    }
    assert!(caught > 30, "only {caught} of 40 were caught");
}

#[test]
fn requests_inside_a_sector_are_refused() {
    let mut e = write(1, 0..1, 0, 1);
    e.op.len = 100;
    assert!(Order::new(SEED, SIZE, vec![e]).is_err());
}
