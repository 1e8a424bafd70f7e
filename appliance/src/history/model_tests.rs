//! Tables, layers, merges and views against a stupid model: every version of every block, read at every seq.

use super::*;
use crate::history::compact::Relocation;
use proptest::prelude::*;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const BLOCKS: u64 = 80;
const VOLUME: [u8; 16] = [3; 16];

struct TestKeys;

impl LayerKeys for TestKeys {
    fn layer_key(&self, id: &[u8; 16]) -> [u8; 32] {
        let mut key = [7; 32];
        key[..16].copy_from_slice(id);
        key
    }
}

pub(crate) fn config() -> HistoryConfig {
    HistoryConfig { memory_runs: 64, fan_out: 2, ..HistoryConfig::new(PageCache::new(1 << 20), Arc::new(TestKeys)) }
}

/// Every version of every block.
#[derive(Default, Clone)]
struct Model(BTreeMap<(u64, u64), Place>);

impl Model {
    fn write(&mut self, run: Run) {
        for b in 0..run.count {
            self.0.insert((run.block + b, run.seq), run.place.advance(b).unwrap());
        }
    }

    fn at(&self, block: u64, seq: u64) -> Place {
        self.0.range((block, 0)..=(block, seq)).next_back().map_or(Place::ZERO, |v| *v.1)
    }
}

/// A place of which every distinct number makes another block.
fn place(segment: u32, number: u64) -> Place {
    Place::new(segment, number * 16, 4096, 0).unwrap()
}

#[derive(Debug, Clone)]
enum Step {
    Write { block: u64, count: u64, place: u64 },
    Zero { block: u64, count: u64 },
    Marker,
    Open,
    Flush,
    Merge { window: u64, pins: Vec<u64> },
    Relocate { segment: u32 },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let pins = proptest::collection::vec(0u64..100, 0..3);
    prop_oneof![
        12 => (0..BLOCKS, 1u64..9, 0u64..12).prop_map(|(block, count, place)| Step::Write { block, count, place }),
        3 => (0..BLOCKS, 1..BLOCKS).prop_map(|(block, count)| Step::Zero { block, count }),
        1 => Just(Step::Zero { block: 0, count: 1 << 28 }),
        1 => Just(Step::Marker),
        1 => Just(Step::Open),
        2 => Just(Step::Flush),
        2 => (0u64..100, pins).prop_map(|(window, pins)| Step::Merge { window, pins }),
        1 => (1u32..4).prop_map(|segment| Step::Relocate { segment }),
        1 => Just(Step::Reopen),
    ]
}

struct Bench<'a> {
    dir: &'a Path,
    history: Arc<VolumeHistory>,
    model: Model,
    seq: u64,
    /// What every merge so far has promised to keep.
    window: u64,
    pins: Vec<u64>,
    moves: u64,
    manifest: Vec<afterimage_format::layer::LayerMeta>,
    layered_to: u64,
    log: Vec<(u64, u64, Vec<Run>)>,
}

impl<'a> Bench<'a> {
    fn new(dir: &'a Path) -> Self {
        let history = VolumeHistory::open(dir, VOLUME, &[], config()).unwrap();
        Self {
            dir,
            history,
            model: Model::default(),
            seq: 0,
            window: 0,
            pins: Vec::new(),
            moves: 0,
            manifest: Vec::new(),
            layered_to: 0,
            log: Vec::new(),
        }
    }

    fn record(&mut self, runs: Vec<Run>) {
        self.seq += 1;
        let runs: Vec<Run> = runs.into_iter().map(|r| Run { seq: self.seq, ..r }).collect();
        self.history.append(&[(self.seq, self.seq * 10)], &runs).unwrap();
        runs.iter().filter(|r| r.count < 1 << 20).for_each(|r| self.model.write(*r));
        for r in runs.iter().filter(|r| r.count >= 1 << 20) {
            self.model.write(Run { count: BLOCKS * 2, ..*r });
        }
        self.log.push((self.seq, self.seq * 10, runs));
    }

    fn apply(&mut self, edit: Option<HistoryEdit>) {
        if let Some(edit) = edit {
            (self.manifest, self.layered_to) = (edit.layers.clone(), edit.layered_to);
            self.history.applied(edit);
        }
    }

    fn keep(&mut self, window: u64, pins: &[u64]) -> Keep {
        // As in life: a window only grows, and only what is still kept can be pinned.
        let pins: Vec<u64> = pins.iter().chain(&self.pins).copied().collect();
        let old = Keep::new(self.window, self.pins.clone());
        let pins: Vec<u64> = pins.into_iter().filter(|p| old.keeps(*p) && *p <= self.seq).collect();
        self.window = self.window.max(window.min(self.seq));
        self.pins = pins;
        Keep::new(self.window, self.pins.clone())
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Write { block, count, place: n } => {
                let word = Place::new(1 + u32::try_from(n % 3).unwrap(), n * 4096, 4096, u32::try_from(n).unwrap());
                self.record(vec![Run { block, count, seq: 0, place: word.unwrap() }]);
            }
            Step::Zero { block, count } => self.record(vec![Run { block, count, seq: 0, place: Place::ZERO }]),
            Step::Marker => self.record(vec![]),
            Step::Open => drop(self.history.view(self.seq).unwrap()),
            Step::Flush => {
                let edit = self.history.flush().unwrap();
                self.apply(edit);
            }
            Step::Merge { window, pins } => {
                let keep = self.keep(window, &pins);
                for _ in 0..4 {
                    let edit = self.history.merge_step(&keep, &AtomicBool::new(false)).unwrap();
                    self.apply(edit);
                }
            }
            Step::Relocate { segment } => self.relocate(segment),
            Step::Reopen => self.reopen(),
        }
    }

    fn relocate(&mut self, segment: u32) {
        let edit = self.history.flush().unwrap();
        self.apply(edit);
        let places: HashSet<Place> = self.model.0.values().filter(|p| p.segment() == segment).copied().collect();
        let moved: Vec<(Place, Place)> = places
            .into_iter()
            .map(|p| {
                self.moves += 1;
                (p, place(100 + segment, self.moves))
            })
            .collect();
        let moved = Relocation::new(moved);
        let keep = Keep::new(self.window, self.pins.clone());
        let edit = self.history.relocate(&moved, &keep, &AtomicBool::new(false)).unwrap();
        self.apply(edit);
        self.model.0.values_mut().for_each(|p| *p = moved.get(*p));
        for run in self.log.iter_mut().filter(|l| l.0 > self.layered_to).flat_map(|l| &mut l.2) {
            run.place = moved.get(run.place);
        }
    }

    fn reopen(&mut self) {
        self.history = VolumeHistory::open(self.dir, VOLUME, &self.manifest, config()).unwrap();
        for (seq, time, runs) in self.log.iter().filter(|l| l.0 > self.layered_to) {
            self.history.append(&[(*seq, *time)], runs).unwrap();
        }
    }

    fn kept(&self) -> Vec<u64> {
        let keep = Keep::new(self.window, self.pins.clone());
        (1..=self.seq).filter(|s| keep.keeps(*s)).collect()
    }

    fn check(&self) {
        let mut newest = Vec::new();
        self.history.newest(0, BLOCKS + 20, &mut newest).unwrap();
        self.same(self.seq, &newest, 0);
        for seq in self.kept() {
            let view = self.history.view(seq).unwrap();
            let mut runs = Vec::new();
            view.resolve(0, BLOCKS + 20, &mut runs).unwrap();
            self.same(seq, &runs, 0);
            for start in [1, 17, 40] {
                runs.clear();
                view.resolve(start, 33, &mut runs).unwrap();
                self.same(seq, &runs, start);
            }
            for block in 0..BLOCKS + 20 {
                assert_eq!(view.lookup(block).unwrap(), self.model.at(block, seq), "block {block} at seq {seq}");
            }
        }
        self.check_diffs();
        self.check_times();
    }

    fn same(&self, seq: u64, runs: &[(u64, Place)], mut block: u64) {
        for (count, place) in runs {
            for b in 0..*count {
                let found = place.advance(b).expect("a run stays in its frame");
                assert_eq!(found, self.model.at(block + b, seq), "block {} at seq {seq}", block + b);
            }
            block += count;
        }
    }

    fn check_diffs(&self) {
        let kept = self.kept();
        for (from, to) in kept.iter().zip(kept.iter().rev()).step_by(3) {
            let (a, b) = (self.history.view(*from).unwrap(), self.history.view(*to).unwrap());
            let mut found = HashSet::new();
            let mut last = None;
            diff::changed(&a, &b, (a.seq().min(b.seq()), BLOCKS + 20), |s, e| {
                assert!(last.is_none_or(|l| s > l) && e > s, "in order and joined");
                last = Some(e);
                found.extend(s..e);
                true
            })
            .unwrap();
            for block in 0..BLOCKS + 20 {
                let differs = self.model.at(block, *from) != self.model.at(block, *to);
                assert_eq!(found.contains(&block), differs, "block {block} between {from} and {to}");
            }
        }
    }

    fn check_times(&self) {
        for seq in self.window.max(1)..=self.seq {
            let want = Some((seq, seq * 10));
            assert_eq!(self.history.record_at_seq(seq).unwrap(), want);
            assert_eq!(self.history.record_at_time(seq * 10 + 9).unwrap(), want);
        }
        assert_eq!(self.history.record_at_time(u64::MAX).unwrap().is_some(), self.seq > 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn every_kept_seq_reads_as_the_model_says(steps in proptest::collection::vec(step(), 1..110)) {
        let dir = tempfile::tempdir().unwrap();
        let mut bench = Bench::new(dir.path());
        for step in steps {
            bench.run(step);
        }
        bench.check();
        let named: HashSet<String> = bench.manifest.iter().map(|m| m.file_name()).collect();
        let there: HashSet<String> = std::fs::read_dir(dir.path()).unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        prop_assert_eq!(named, there, "nothing is left behind, nothing is missing");
        bench.reopen();
        bench.check();
    }
}

#[test]
fn a_view_goes_on_reading_what_is_merged_and_moved_away() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(dir.path());
    let mut views = Vec::new();
    for n in 0..40 {
        bench.run(Step::Write { block: n % 7, count: 3, place: n % 11 });
        bench.run(Step::Flush);
        let model = bench.model.clone();
        views.push((bench.history.view(bench.seq).unwrap(), model));
        let seq = bench.seq;
        bench.run(Step::Merge { window: seq, pins: vec![] });
        bench.run(Step::Relocate { segment: 1 });
    }
    let mut counts = std::collections::HashMap::new();
    bench.history.count_segments(&mut counts, &mut std::collections::HashSet::new());
    assert!(counts.contains_key(&1), "what open views need is counted (I10)");
    for (view, model) in &views {
        for block in 0..12 {
            assert_eq!(view.lookup(block).unwrap(), model.at(block, view.seq()));
        }
    }
    drop(views);
    counts.clear();
    bench.history.count_segments(&mut counts, &mut std::collections::HashSet::new());
    assert!(!counts.contains_key(&1), "what nothing needs is not counted");
}

#[test]
fn a_block_with_more_versions_than_a_page_holds_is_found_at_every_seq() {
    let dir = tempfile::tempdir().unwrap();
    let config = HistoryConfig { memory_runs: 1 << 20, ..config() };
    let history = VolumeHistory::open(dir.path(), VOLUME, &[], config.clone()).unwrap();
    let n = 6000u64;
    for seq in 1..=n {
        // Two blocks at once, so that keys in the column lie behind keys of the column.
        let run = Run { block: 10, count: 2, seq, place: place(1, seq) };
        let other = Run { block: 13, count: 1, seq, place: place(2, seq) };
        history.append(&[(seq, seq)], &[run, other]).unwrap();
    }
    let edit = history.flush().unwrap().unwrap();
    assert!(edit.layers[0].token_pages > 6);
    let history = VolumeHistory::open(dir.path(), VOLUME, &edit.layers, config).unwrap();
    for seq in (1..=n).step_by(37) {
        let view = history.view(seq).unwrap();
        let p = place(1, seq);
        assert_eq!(view.lookup(9).unwrap(), Place::ZERO);
        assert_eq!(view.lookup(10).unwrap(), p);
        assert_eq!(view.lookup(11).unwrap(), p.advance(1).unwrap());
        assert_eq!(view.lookup(13).unwrap(), place(2, seq));
        let mut out = Vec::new();
        view.resolve(8, 8, &mut out).unwrap();
        let want = [(2, Place::ZERO), (2, p), (1, Place::ZERO), (1, place(2, seq)), (2, Place::ZERO)];
        assert_eq!(out, want);
        out.clear();
        view.resolve(11, 3, &mut out).unwrap();
        assert_eq!(out, [(1, p.advance(1).unwrap()), (1, Place::ZERO), (1, place(2, seq))]);
    }
}

#[test]
fn records_out_of_order_and_impossible_runs_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let history = VolumeHistory::open(dir.path(), VOLUME, &[], config()).unwrap();
    history.append(&[(5, 50)], &[]).unwrap();
    assert!(matches!(history.append(&[(5, 60)], &[]), Err(HistoryError::Order { seq: 5, last: 5 })));
    let run = Run { block: 0, count: 33, seq: 6, place: place(1, 1) };
    assert!(matches!(history.append(&[(6, 60)], &[run]), Err(HistoryError::Run { count: 33, .. })));
    let run = Run { block: 0, count: 1, seq: 7, place: place(1, 1) };
    assert!(matches!(history.append(&[(6, 60)], &[run]), Err(HistoryError::Order { seq: 7, .. })));
    assert_eq!(history.newest_seq(), 5, "a refused batch leaves nothing");
    assert!(matches!(history.view(6), Err(HistoryError::Future { seq: 6, newest: 5 })));
    history.append(&[(6, 40)], &[]).unwrap();
    assert_eq!(history.newest_time(), 50, "time does not fall");
}

#[test]
fn a_zero_over_data_of_an_older_layer_outlives_a_merge_without_that_layer() {
    let dir = tempfile::tempdir().unwrap();
    let config = HistoryConfig { memory_runs: 1 << 20, ..config() };
    let history = VolumeHistory::open(dir.path(), VOLUME, &[], config).unwrap();
    let data = |block| Run { block, count: 1, seq: 1, place: place(1, block + 1) };
    let base: Vec<Run> = (0..6000).map(data).collect();
    history.append(&[(1, 1)], &base).unwrap();
    history.applied(history.flush().unwrap().unwrap());
    for seq in 2..12 {
        history.append(&[(seq, seq)], &[Run { block: seq * 10, count: 3, seq, place: Place::ZERO }]).unwrap();
        history.applied(history.flush().unwrap().unwrap());
    }
    let oldest = history.layers()[0].number();
    history.applied(history.merge_step(&Keep::all(), &AtomicBool::new(false)).unwrap().unwrap());
    assert!(history.layers().len() < 11 && history.layers()[0].number() == oldest, "the newer ones were merged alone");
    let view = history.view(11).unwrap();
    for block in 0..200 {
        let zeroed = (2..12).any(|s| (s * 10..s * 10 + 3).contains(&block));
        let want = if zeroed { Place::ZERO } else { place(1, block + 1) };
        assert_eq!(view.lookup(block).unwrap(), want, "block {block}");
    }
}
