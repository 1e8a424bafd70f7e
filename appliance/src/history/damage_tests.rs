//! Damaged layer files are refused with the layer and the blocks that they hit; nothing wrong is ever read.

use super::model_tests::config;
use super::*;
use std::fs;

const VOLUME: [u8; 16] = [3; 16];

#[test]
fn every_flipped_byte_of_a_layer_is_named_and_nothing_wrong_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let config = HistoryConfig { memory_runs: 1 << 20, ..config() };
    let history = VolumeHistory::open(dir.path(), VOLUME, &[], config.clone()).unwrap();
    let place = |n: u64| Place::new(1, n * 16, 4096, 0).unwrap();
    for seq in 1..=3000 {
        history.append(&[(seq, seq)], &[Run { block: seq * 3, count: 1, seq, place: place(seq) }]).unwrap();
    }
    let edit = history.flush().unwrap().unwrap();
    let metas = edit.layers.clone();
    history.applied(edit);
    let path = dir.path().join(metas[0].file_name());
    let good = fs::read(&path).unwrap();
    let mut refused = (0, 0);
    for at in (0..good.len()).step_by(good.len() / 120) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(&path, &bad).unwrap();
        let history = VolumeHistory::open(dir.path(), VOLUME, &metas, config.clone()).unwrap();
        if let Some((0, why)) = history.damage() {
            assert!(why.contains(&metas[0].file_name()), "{why}");
            assert!(history.view(3000).unwrap().lookup(3).is_err(), "nothing is made up");
            refused.0 += 1;
            continue;
        }
        let view = history.view(3000).unwrap();
        let mut hit = Vec::new();
        for seq in (1..=3000).step_by(11) {
            match view.lookup(seq * 3) {
                Ok(found) => assert_eq!(found, place(seq), "byte {at}"),
                Err(HistoryError::Damaged { layer, first_block, end_block, .. }) => {
                    assert_eq!(layer, metas[0].file_name());
                    assert!((first_block..end_block).contains(&(seq * 3)), "the blocks that it hits are named");
                    hit.push(seq);
                }
                Err(e) => panic!("byte {at}: {e}"),
            }
        }
        let times = (1..=3000).step_by(101).filter(|t| history.record_at_time(*t).is_err()).count();
        assert!(!hit.is_empty() || times > 0, "byte {at} was changed and nobody noticed");
        assert!(hit.len() < 100, "one page of several is hit");
        refused.1 += 1;
    }
    assert!(refused.0 > 0 && refused.1 > 50, "{refused:?}: both kinds were seen");
}

#[test]
fn a_layer_cut_short_swapped_or_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let history = VolumeHistory::open(dir.path(), VOLUME, &[], config()).unwrap();
    for seq in 1..=2 {
        history.append(&[(seq, seq)], &[Run { block: 1, count: 1, seq, place: Place::ZERO }]).unwrap();
        let edit = history.flush().unwrap().unwrap();
        history.applied(edit);
    }
    let metas: Vec<_> = history.layers().iter().map(|l| l.meta().clone()).collect();
    let (one, two) = (dir.path().join(metas[0].file_name()), dir.path().join(metas[1].file_name()));
    let open = |metas: &[_]| VolumeHistory::open(dir.path(), VOLUME, metas, config());
    let damage = || open(&metas).unwrap().damage().unwrap_or_default().1;
    assert_eq!(damage(), "");
    assert!(matches!(open(&metas[1..]).map(drop), Err(HistoryError::Disjoint { ends: 0, begins: 1 })));
    let bytes = fs::read(&one).unwrap();
    fs::write(&one, fs::read(&two).unwrap()).unwrap();
    let why = damage();
    assert!(why.contains("another layer") || why.contains("the manifest says"), "{why}");
    fs::write(&one, &bytes[..bytes.len() - 1]).unwrap();
    assert!(damage().contains("the manifest says"));
    fs::write(&one, &bytes).unwrap();
    let other = VolumeHistory::open(dir.path(), [4; 16], &metas, config()).unwrap();
    assert!(other.damage().unwrap().1.contains("another layer"), "another volume");
    fs::remove_file(&one).unwrap();
    assert!(damage().contains("cannot open"));
}
