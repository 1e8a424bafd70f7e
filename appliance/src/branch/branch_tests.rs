//! Branches against a model that keeps every image of every volume.

use crate::appliance::{Appliance, ApplianceError};
use crate::branch::BranchError;
use crate::config::ApplianceConfig;
use crate::history::Keep;
use crate::testing::*;
use afterimage_base::block::{BlockDevice, BlockError, Request};
use afterimage_base::buf::AlignedBuf;
use afterimage_base::simple::call;
use afterimage_format::record::Kind;
use proptest::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

#[derive(Debug, Clone)]
enum Op {
    /// So many writes of the agent.
    Agent(u8),
    /// A branch of a volume, so many seqs back.
    Fork(usize, u64),
    Write(usize, u64, u64, u8),
    Flush(usize),
    Point(usize),
    Close(usize),
    /// Reads a branch as a disk, and a moment of it so many seqs back.
    Look(usize, u64),
    Kill,
    Restart,
    /// Everything that may go goes, or nothing does.
    Collect(bool),
    Order,
    Promote(usize),
    Drop(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (1u8..12).prop_map(Op::Agent),
        2 => (0usize..8, 0u64..12).prop_map(|(v, back)| Op::Fork(v, back)),
        8 => (0usize..8, 0..SIZE, 1u64..30_000, 0u8..7).prop_map(|(v, at, len, fill)| Op::Write(v, at, len, fill)),
        3 => (0usize..8).prop_map(Op::Flush),
        1 => (0usize..8).prop_map(Op::Point),
        1 => (0usize..8).prop_map(Op::Close),
        4 => (0usize..8, 0u64..12).prop_map(|(v, back)| Op::Look(v, back)),
        1 => Just(Op::Kill),
        1 => Just(Op::Restart),
        2 => any::<bool>().prop_map(Op::Collect),
        1 => Just(Op::Order),
        1 => (0usize..8).prop_map(Op::Promote),
        1 => (0usize..8).prop_map(Op::Drop),
    ]
}

struct Model {
    name: String,
    /// Seq of the first image: of the fork, or 0.
    first: u64,
    images: Vec<Vec<u8>>,
    /// Index of the parent as long as it is needed.
    parent: Option<usize>,
    flushed: u64,
    device: Option<Arc<dyn BlockDevice>>,
    gone: bool,
}

impl Model {
    fn newest(&self) -> u64 {
        self.first + self.images.len() as u64 - 1
    }

    fn image(&self, seq: u64) -> &Vec<u8> {
        &self.images[usize::try_from(seq - self.first).unwrap()]
    }
}

struct Bench {
    root: PathBuf,
    config: ApplianceConfig,
    appliance: Option<Appliance>,
    volumes: Vec<Model>,
    kills: usize,
    names: usize,
}

fn ask(device: &Arc<dyn BlockDevice>, request: Request<'_>) -> Result<Option<AlignedBuf>, BlockError> {
    call(&mut *Arc::clone(device).open_queue().unwrap(), request)
}

fn whole(device: &Arc<dyn BlockDevice>) -> Vec<u8> {
    let buf = AlignedBuf::zeroed(usize::try_from(device.geometry().size).unwrap());
    ask(device, Request::Read { offset: 0, buf }).unwrap().unwrap().to_vec()
}

/// Content that is rarely the same, so that segments fill up.
fn noise(seed: u64, len: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        u8::try_from(x >> 56).unwrap()
    };
    (0..len).map(|_| next()).collect()
}

fn settings(root: &Path, run: usize) -> ApplianceConfig {
    let mut config = config(&root.join(run.to_string()));
    (config.segment_size, config.memory_runs) = (96 << 10, 24);
    config
}

impl Bench {
    fn new(root: &Path) -> Bench {
        std::fs::create_dir_all(root.join("0")).unwrap();
        let config = settings(root, 0);
        let appliance = Some(Appliance::start(config.clone()).unwrap());
        let disk = Model {
            name: "disk".into(),
            first: 0,
            images: vec![vec![0; usize::try_from(SIZE).unwrap()]],
            parent: None,
            flushed: 0,
            device: None,
            gone: false,
        };
        Bench { root: root.into(), config, appliance, volumes: vec![disk], kills: 0, names: 0 }
    }

    fn appliance(&self) -> &Appliance {
        self.appliance.as_ref().unwrap()
    }

    fn pick(&self, n: usize) -> usize {
        let there: Vec<usize> = (0..self.volumes.len()).filter(|i| !self.volumes[*i].gone).collect();
        there[n % there.len()]
    }

    /// A branch; `None` if there is none.
    fn branch(&self, n: usize) -> Option<usize> {
        let there: Vec<usize> = (1..self.volumes.len()).filter(|i| !self.volumes[*i].gone).collect();
        there.get(n % there.len().max(1)).copied()
    }

    fn device(&mut self, of: usize) -> Arc<dyn BlockDevice> {
        if self.volumes[of].device.is_none() {
            let device = self.appliance().open_branch(&self.volumes[of].name).unwrap();
            self.volumes[of].device = Some(device);
        }
        Arc::clone(self.volumes[of].device.as_ref().unwrap())
    }

    fn agent(&mut self, count: u8) {
        let mut agent = Agent::connect(&self.config.listen, &hello()).unwrap();
        let disk = &mut self.volumes[0];
        assert_eq!(agent.welcome.durable, disk.newest());
        let mut records = Vec::new();
        for _ in 0..count {
            let seq = disk.newest() + 1;
            let (offset, len) = (seq * 7 % 24 * 4096, 4096 * (1 + seq % 2));
            let len = len.min(SIZE - offset);
            let mut image = disk.images.last().unwrap().clone();
            let payload = noise(seq, len);
            image[usize::try_from(offset).unwrap()..][..payload.len()].copy_from_slice(&payload);
            disk.images.push(image);
            records.push(record(Kind::Write, seq, offset, len, payload));
        }
        agent.send(&bytes_of(&records));
        agent.wait(disk.newest()).unwrap();
        disk.flushed = disk.newest();
    }

    fn fork(&mut self, of: usize, back: u64) {
        let parent = &self.volumes[of];
        let seq = parent.newest().saturating_sub(back).max(parent.first);
        self.names += 1;
        let name = format!("b{}", self.names);
        let may = self.appliance().check_seq(&parent.name, seq).is_ok();
        // What is durable by chance can be chosen; what is flushed must be, unless the window has left it.
        let made = self.appliance().create_branch(&parent.name, seq, &name);
        let Ok(made) = made else {
            assert!(!may, "{} at {seq}: {made:?}", parent.name);
            return;
        };
        assert_eq!((made.seq, made.size, made.open), (seq, SIZE, false));
        let images = vec![parent.image(seq).clone()];
        let on_fork = of != 0 && seq == parent.first && parent.parent.is_some();
        let parent = if on_fork { parent.parent } else { Some(of) };
        let (name, device) = (made.name, None);
        self.volumes.push(Model { name, first: seq, images, parent, flushed: seq, device, gone: false });
    }

    fn write(&mut self, of: usize, offset: u64, len: u64, fill: u8) {
        let len = len.min(SIZE - offset);
        let device = self.device(of);
        let branch = &mut self.volumes[of];
        let mut image = branch.images.last().unwrap().clone();
        let target = &mut image[usize::try_from(offset).unwrap()..][..usize::try_from(len).unwrap()];
        if fill < 2 {
            target.fill(0);
            let request = Request::WriteZeroes { offset, len, fua: fill == 0, no_hole: false, fast: false };
            ask(&device, request).unwrap();
        } else {
            target.copy_from_slice(&noise(branch.newest() + 1000 * of as u64 + u64::from(fill), len));
            ask(&device, Request::Write { offset, data: target, fua: fill == 6 }).unwrap();
        }
        branch.images.push(image);
        if fill == 0 || fill == 6 {
            branch.flushed = branch.newest();
        }
    }

    fn flush(&mut self, of: usize) {
        let device = self.device(of);
        ask(&device, Request::Flush).unwrap();
        let branch = &mut self.volumes[of];
        branch.flushed = branch.newest();
        assert_eq!(self.appliance().branch(&self.volumes[of].name).unwrap().seq, self.volumes[of].flushed);
    }

    fn point(&mut self, of: usize) {
        let name = format!("p{}", self.volumes[of].newest());
        let made = self.appliance().point_of_branch(&self.volumes[of].name, &name);
        let branch = &mut self.volumes[of];
        let image = branch.images.last().unwrap().clone();
        branch.images.push(image);
        branch.flushed = branch.newest();
        assert_eq!(made.unwrap().0, branch.flushed);
    }

    fn look(&mut self, of: usize, back: u64) {
        if of != 0 && (back.is_multiple_of(2) || self.volumes[of].device.is_some()) {
            let device = self.device(of);
            assert!(whole(&device) == *self.volumes[of].images.last().unwrap(), "{} as a disk", self.volumes[of].name);
        }
        let v = &self.volumes[of];
        let seq = v.newest().saturating_sub(back).max(v.first);
        let Ok(point) = self.appliance().open_at(&v.name, seq) else { return };
        assert!(whole(&point) == *v.image(seq), "{} at {seq}", v.name);
        // What a diff leaves out is the same.
        for other in self.volumes.iter().filter(|o| !o.gone) {
            let at = if other.first == 0 { seq.min(other.newest()) } else { other.first };
            let Ok(ranges) = self.appliance().diff_of((&v.name, seq), (&other.name, at)) else { continue };
            let (mut a, mut b) = (v.image(seq).clone(), other.image(at).clone());
            for (offset, len) in ranges {
                let range = usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap();
                a[range.clone()].fill(0);
                b[range].fill(0);
            }
            assert!(a == b, "{} at {seq} and {} at {at} differ where nothing was said", v.name, other.name);
        }
    }

    /// What is there of the vault's files at a moment, as a kill would leave it.
    fn kill(&mut self) {
        self.kills += 1;
        let next = settings(&self.root, self.kills);
        std::fs::create_dir_all(next.dir.parent().unwrap()).unwrap();
        // The manifest first: files that are newer are rubbish to it.
        std::fs::create_dir_all(&next.dir).unwrap();
        std::fs::copy(self.config.dir.join("MANIFEST"), next.dir.join("MANIFEST")).unwrap();
        for part in ["key", "segments", "layers"] {
            let from = self.config.dir.join(part);
            if from.is_dir() {
                copy_tree(&from, &next.dir.join(part))
            } else {
                drop(std::fs::copy(from, next.dir.join(part)))
            }
        }
        self.volumes.iter_mut().for_each(|v| v.device = None);
        self.appliance = None;
        std::fs::remove_dir_all(self.config.dir.parent().unwrap()).unwrap();
        self.config = next;
        self.back();
    }

    fn restart(&mut self) {
        self.volumes.iter_mut().for_each(|v| {
            v.device = None;
            v.flushed = v.newest();
        });
        self.appliance.take().unwrap().stop();
        self.back();
    }

    fn back(&mut self) {
        let appliance = Appliance::start(self.config.clone()).unwrap();
        assert!(appliance.started.damaged_volumes.is_empty(), "{:?}", appliance.started.damaged_volumes);
        for v in self.volumes.iter_mut().skip(1).filter(|v| !v.gone) {
            let seq = appliance.branch(&v.name).unwrap().seq;
            assert!(seq >= v.flushed && seq <= v.newest(), "{}: {seq}, of {} flushed", v.name, v.flushed);
            v.images.truncate(usize::try_from(seq - v.first).unwrap() + 1);
            v.flushed = seq;
        }
        self.appliance = Some(appliance);
    }

    fn collect(&mut self, all: bool) {
        if all {
            for volume in self.appliance().registry.all() {
                if !volume.has_session() {
                    volume.leave_segment(&self.appliance().shared);
                }
            }
        }
        for _ in 0..3 {
            self.appliance().collect(if all { u64::MAX } else { 0 }).unwrap();
        }
    }

    fn promote(&mut self, of: usize) {
        let promoted = self.appliance().promote_branch(&self.volumes[of].name);
        match self.volumes[of].parent.take() {
            Some(_) => assert!(!promoted.unwrap().fork.leans()),
            None => assert!(matches!(promoted, Err(ApplianceError::Branch(_, BranchError::Promoted)))),
        }
    }

    fn drop_branch(&mut self, of: usize) {
        let is_parent = self.volumes.iter().any(|v| !v.gone && v.parent == Some(of));
        let open = self.volumes[of].device.is_some();
        let dropped = self.appliance().drop_branch(&self.volumes[of].name);
        match dropped {
            Ok(()) => {
                assert!(!is_parent && !open);
                (self.volumes[of].gone, self.volumes[of].parent) = (true, None);
            }
            Err(ApplianceError::Branch(_, BranchError::Parent(_))) => assert!(is_parent),
            Err(ApplianceError::Branch(_, BranchError::InUse)) => assert!(open),
            Err(e) => panic!("{e}"),
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Agent(count) => self.agent(count),
            Op::Fork(of, back) => self.fork(self.pick(of), back),
            Op::Look(of, back) => self.look(self.pick(of), back),
            Op::Kill => self.kill(),
            Op::Restart => self.restart(),
            Op::Collect(all) => self.collect(all),
            Op::Order => while self.appliance().order(1).unwrap().is_some() {},
            Op::Write(n, ..) | Op::Flush(n) | Op::Point(n) | Op::Close(n) | Op::Promote(n) | Op::Drop(n) => {
                let Some(of) = self.branch(n) else { return };
                match op {
                    Op::Write(_, offset, len, fill) => self.write(of, offset, len, fill),
                    Op::Flush(_) => self.flush(of),
                    Op::Point(_) => self.point(of),
                    Op::Close(_) => {
                        self.volumes[of].device = None;
                        self.volumes[of].flushed = self.volumes[of].newest();
                    }
                    Op::Promote(_) => self.promote(of),
                    _ => self.drop_branch(of),
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Forks of forks, writes, flushes, kills, restarts, collection, ordering, promotion, drops: every branch is what the model says.
    #[test]
    fn branches_are_what_a_model_says(ops in proptest::collection::vec(op(), 20..90)) {
        let dir = tempfile::tempdir().unwrap();
        let mut bench = Bench::new(dir.path());
        bench.agent(9);
        for op in ops {
            bench.run(op);
        }
        bench.restart();
        for of in 0..bench.volumes.len() {
            if !bench.volumes[of].gone {
                bench.look(of, 0);
                bench.look(of, 3);
            }
        }
        bench.volumes.iter_mut().for_each(|v| v.device = None);
        bench.appliance.take().unwrap().stop();
        let report = crate::check::check(&bench.config.dir, Some(&bench.config.key)).unwrap();
        prop_assert!(report.damages.is_empty(), "{:?}", report.damages);
    }
}

/// A disk with a branch behind which the window has moved on.
fn left_behind(dir: &Path) -> Bench {
    let mut bench = Bench::new(dir);
    bench.agent(30);
    bench.fork(0, 15);
    for _ in 0..20 {
        bench.agent(20);
    }
    bench.appliance().registry.all()[0].flush(&bench.appliance().shared).unwrap();
    bench
}

#[test]
fn i10_what_a_branch_needs_outlives_the_window_and_goes_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = left_behind(dir.path());
    // Each needs a whole disk of its own.
    for _ in 0..6 {
        bench.fork(0, 0);
        bench.agent(40);
    }
    let stored = |b: &Bench| b.appliance().shared.vault.read(|m| m.segments.iter().map(|s| s.length).sum::<u64>());
    (0..8).for_each(|_| bench.collect(true));
    let before = stored(&bench);
    assert!(bench.appliance().check_seq("disk", 15).is_err(), "the window has left it");
    for of in 1..8 {
        bench.look(of, 0);
        bench.volumes[of].device = None;
        bench.drop_branch(of);
    }
    (0..8).for_each(|_| bench.collect(true));
    let after = stored(&bench);
    assert!(after < before / 2, "what only the branch needed goes with it: {before} bytes before, {after} after");
}

/// Retention that knows nothing of branches takes what they need, and the tests see it.
#[test]
fn i10_broken_a_window_that_forgets_branches_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = left_behind(dir.path());
    let parent = Arc::clone(&bench.appliance().registry.all()[0]);
    let (keep, stop) = (Keep::new(parent.progress().seq, []), AtomicBool::new(false));
    while let Some(edit) = parent.history.merge_step(&keep, &stop).unwrap() {
        parent.history.applied(edit);
    }
    let device = bench.device(1);
    assert!(whole(&device) != *bench.volumes[1].images.last().unwrap(), "the break was not seen");
}

#[test]
fn writable_exports_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(dir.path());
    bench.agent(20);
    let scratch = bench.appliance().open_scratch("disk", 12).unwrap();
    ask(&scratch, Request::Write { offset: 5, data: &[9; 5000], fua: true }).unwrap();
    let mut image = bench.volumes[0].image(12).clone();
    image[5..5005].fill(9);
    assert!(whole(&scratch) == image);
    assert_eq!(bench.appliance().branches().len(), 1);
    drop(scratch);
    assert!(bench.appliance().branches().is_empty());
    // A kill leaves it behind, and the next start removes it.
    let scratch = bench.appliance().open_scratch("disk", 12).unwrap();
    ask(&scratch, Request::Write { offset: 5, data: &[9; 5000], fua: true }).unwrap();
    bench.kill();
    assert!(bench.appliance().branches().is_empty());
    assert_eq!(bench.appliance().volumes().len(), 1);
    bench.look(0, 3);
    drop(scratch);
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(dir.path());
    bench.agent(20);
    let appliance = bench.appliance();
    let made = |of: &str, seq, name: &str| appliance.create_branch(of, seq, name).map(|b| b.name);
    assert_eq!(made("disk", 9, "a").unwrap(), "disk/a");
    assert!(matches!(made("disk", 9, "a"), Err(ApplianceError::Branch(_, BranchError::Taken))));
    for bad in ["", "x/y", "x\n", &"x".repeat(101)] {
        assert!(matches!(made("disk", 9, bad), Err(ApplianceError::Branch(_, BranchError::Name))), "{bad:?}");
    }
    assert!(matches!(made("disk", 21, "b"), Err(ApplianceError::When(..))), "not written yet");
    assert!(matches!(made("disk/a", 8, "b"), Err(ApplianceError::When(..))), "before its fork it is the volume's");
    assert!(matches!(made("nodisk", 8, "b"), Err(ApplianceError::NoVolume(..))));
    // Branches of branches are named after the volume, and what begins on a fork begins on the volume.
    assert_eq!(made("disk/a", 9, "b").unwrap(), "disk/b");
    assert_eq!(appliance.branch("disk/b").unwrap().parent, "disk");
    for not in ["disk", "nodisk"] {
        assert!(appliance.open_branch(not).is_err() && appliance.promote_branch(not).is_err());
        assert!(appliance.drop_branch(not).is_err() && appliance.branch(not).is_err());
    }
    // An agent may not write to it.
    let mut hello = hello();
    (hello.volume, hello.name) = (appliance.branch("disk/a").unwrap().id, "disk/a".into());
    assert!(Agent::connect(&bench.config.listen, &hello).is_err());
    let device = appliance.open_branch("disk/a").unwrap();
    assert!(ask(&device, Request::Write { offset: SIZE - 1, data: &[1, 2], fua: false }).is_err());
    assert!(matches!(appliance.drop_branch("disk/a"), Err(ApplianceError::Branch(_, BranchError::InUse))));
    assert_eq!(appliance.branch("disk/a").unwrap().seq, 9);
}

/// The disk of the vault fails: what was flushed is there afterwards, and until then every request says so (I11).
#[test]
fn an_error_ends_a_branch_and_nothing_flushed_is_lost() {
    use crate::store::IoOp;
    use std::sync::atomic::Ordering;
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(dir.path());
    bench.agent(20);
    bench.fork(0, 2);
    bench.volumes[1].device = None;
    bench.appliance.take().unwrap().stop();
    let (fails, hook) = (Arc::new(AtomicBool::new(false)), bench.config.clone());
    let of_hook = Arc::clone(&fails);
    bench.config.io_hook = Some(Arc::new(move |op| match op {
        IoOp::Sync if of_hook.load(Ordering::SeqCst) => Err(std::io::Error::from_raw_os_error(libc::EIO)),
        _ => Ok(()),
    }));
    bench.back();
    bench.write(1, 100, 9000, 3);
    bench.flush(1);
    fails.store(true, Ordering::SeqCst);
    bench.write(1, 8000, 9000, 4);
    let device = bench.device(1);
    assert_eq!(ask(&device, Request::Flush).err(), Some(BlockError::Io(libc::EIO)));
    assert!(ask(&device, Request::Write { offset: 0, data: &[1], fua: false }).is_err());
    fails.store(false, Ordering::SeqCst);
    assert!(ask(&device, Request::Flush).is_err(), "it is not tried again");
    drop(device);
    bench.volumes[1].device = None;
    assert!(bench.appliance().open_branch("disk/b1").is_err());
    bench.config = hook;
    bench.appliance = None;
    bench.back();
    bench.look(1, 0);
}
