//! The one owner of a volume's layers.

use super::base::Base;
use super::build::{FileSink, LayerBuilder, MemorySink, Range};
use super::cache::PageCache;
use super::compact::{Relocation, Rules, merge};
use super::layer::Layer;
use super::memtable::MemTable;
use super::policy::{self, Size};
use super::retention::Keep;
use super::view::View;
use super::{HistoryError, LayerKeys, Run};
use crate::store::{IoHook, IoOp};
use afterimage_base::world;
use afterimage_base::world::sync::Condvar;
use afterimage_format::layer::LayerMeta;
use afterimage_format::place::Place;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// How a history works.
#[derive(Clone)]
pub struct HistoryConfig {
    /// Runs and records in memory from which on a flush is due. Bounds the memory and the replay after a crash.
    pub memory_runs: usize,
    /// How many layers of a size become one.
    pub fan_out: usize,
    /// Cache of pages, shared by all volumes.
    pub cache: Arc<PageCache>,
    /// Keys of layers.
    pub keys: Arc<dyn LayerKeys>,
    /// Asked before a layer is written and made durable.
    pub hook: Option<IoHook>,
}

impl HistoryConfig {
    /// The defaults: 256 Ki runs and records, fan-out 4.
    #[must_use]
    pub fn new(cache: Arc<PageCache>, keys: Arc<dyn LayerKeys>) -> Self {
        Self { memory_runs: 256 << 10, fan_out: 4, cache, keys, hook: None }
    }
}

pub(super) struct State {
    pub(super) table: MemTable,
    /// Oldest first; those in memory are the newest.
    pub(super) layers: Vec<Arc<Layer>>,
    views: Vec<Weak<View>>,
    /// For a branch: what its layers do not know.
    pub(super) base: Option<Base>,
    /// It was dropped: no view of it is opened any more.
    retired: bool,
}

/// The history of one volume.
pub struct VolumeHistory {
    pub(super) dir: PathBuf,
    pub(super) volume: [u8; 16],
    pub(super) config: HistoryConfig,
    state: Mutex<State>,
    pub(super) permit: Arc<Permit>,
    /// Something is kept no more that kept versions from being let go, behind the window.
    rethin: AtomicBool,
}

/// New layers, waiting for the manifest. One per volume at a time: another flush, merge or relocation of the volume
/// waits until this is applied or dropped.
#[must_use]
pub struct HistoryEdit {
    /// The layers of the volume, for the manifest.
    pub layers: Vec<LayerMeta>,
    /// They hold every record up to this seq.
    pub layered_to: u64,
    /// Numbers of neighbours that give way, and the layer that takes their place.
    replaced: Vec<(Vec<u64>, Arc<Layer>)>,
    /// The layer that takes the place of the base.
    grounded: Option<Arc<Layer>>,
    permit: PermitGuard,
}

impl std::fmt::Debug for HistoryEdit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HistoryEdit({} layers to seq {})", self.layers.len(), self.layered_to)
    }
}

#[derive(Default)]
pub(super) struct Permit {
    taken: Mutex<bool>,
    freed: Condvar,
}

pub(super) struct PermitGuard(Arc<Permit>);

impl Permit {
    pub(super) fn take(self: &Arc<Self>) -> PermitGuard {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        while *taken {
            taken = self.freed.wait(&self.taken, taken);
        }
        *taken = true;
        PermitGuard(Arc::clone(self))
    }
}

impl Drop for PermitGuard {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.0.freed.notify_one();
    }
}

impl VolumeHistory {
    /// Opens the history whose layers (oldest first, from the manifest) lie in `dir`. A layer that cannot be read takes
    /// nothing with it but what it held: see [`VolumeHistory::damage`].
    ///
    /// # Errors
    /// [`HistoryError::Disjoint`] where two layers do not join.
    pub fn open(
        dir: &Path,
        volume: [u8; 16],
        metas: &[LayerMeta],
        config: HistoryConfig,
    ) -> Result<Arc<Self>, HistoryError> {
        Self::open_on(None, dir, volume, metas, config)
    }

    /// The same for a branch, which has its `base` below its own layers.
    ///
    /// # Errors
    /// As [`VolumeHistory::open`].
    pub fn open_on(
        base: Option<Base>,
        dir: &Path,
        volume: [u8; 16],
        metas: &[LayerMeta],
        config: HistoryConfig,
    ) -> Result<Arc<Self>, HistoryError> {
        let mut layers: Vec<Arc<Layer>> = Vec::with_capacity(metas.len());
        let mut last_seq = base.as_ref().map_or(0, |b| b.seq);
        for meta in metas {
            if meta.after_seq != last_seq {
                return Err(HistoryError::Disjoint { ends: last_seq, begins: meta.after_seq });
            }
            last_seq = meta.last_seq;
            let opened = Layer::open(dir, &volume, meta, &*config.keys, &config.cache);
            layers.push(opened.unwrap_or_else(|e| Layer::lost(meta, &e, &config.cache)));
        }
        let mut last_time = base.as_ref().map_or(0, Base::time);
        for layer in layers.iter().rev() {
            // A damaged timeline is found again by whoever asks for a time.
            if let Ok(Some((_, time))) = layer.record_where(|_, _| true) {
                last_time = time;
                break;
            }
        }
        let table = MemTable::new(last_seq, last_time);
        let state = Mutex::new(State { table, layers, views: Vec::new(), base, retired: false });
        let rethin = AtomicBool::new(false);
        Ok(Arc::new(Self { dir: dir.to_path_buf(), volume, config, state, permit: Arc::default(), rethin }))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends records (seq, time) that have become durable, and the runs of those that write; both in seq order.
    ///
    /// # Errors
    /// [`HistoryError::Order`] or [`HistoryError::Run`]; nothing is appended then.
    pub fn append(&self, records: &[(u64, u64)], runs: &[Run]) -> Result<(), HistoryError> {
        let mut state = self.state();
        state.table.append(records, runs)?;
        if state.table.len() >= self.config.memory_runs {
            self.freeze(&mut state)?;
        }
        Ok(())
    }

    /// Turns the memory table into a layer in memory, and joins it with those before it that are not much larger.
    pub(super) fn freeze(&self, state: &mut State) -> Result<(), HistoryError> {
        if state.table.is_empty() {
            return Ok(());
        }
        let next = MemTable::new(state.table.last_seq(), state.table.last_time());
        let mut layer = std::mem::replace(&mut state.table, next).freeze(&self.config.cache)?;
        let busy = *self.permit.taken.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(last) = state.layers.last()
            // A flush under way has its eye on the layers in memory.
            && !busy
            && last.in_memory()
            && last.weight() <= 2 * layer.weight()
            && last.weight() + layer.weight() <= self.config.memory_runs as u64
        {
            layer = self.join(&[Arc::clone(last), layer])?;
            state.layers.pop();
        }
        state.layers.push(layer);
        Ok(())
    }

    fn join(&self, layers: &[Arc<Layer>]) -> Result<Arc<Layer>, HistoryError> {
        let mut builder = LayerBuilder::new(MemorySink::default());
        let (keep, stop) = (Keep::all(), AtomicBool::new(false));
        merge(layers, &Rules { keep: &keep, moved: None, bottom: false, stop: &stop }, &mut builder)?;
        builder.into_layer(range_of(layers, 0), &self.config.cache)
    }

    /// Appends the newest places of `count` blocks from `block` on as (number of blocks, place of the first).
    ///
    /// # Errors
    /// [`HistoryError`] if a layer cannot be read or is damaged.
    pub fn newest(&self, block: u64, count: u64, out: &mut Vec<(u64, Place)>) -> Result<(), HistoryError> {
        let mut pieces = Vec::new();
        let view = {
            let state = self.state();
            state.table.pieces(block, block.saturating_add(count), |s, e, p| pieces.push((s, e, p)));
            pieces.iter().any(|p| p.2.is_none()).then(|| View::of(u64::MAX, &state)).transpose()?
        };
        for (start, end, place) in pieces {
            match (place, &view) {
                (None, Some(view)) => view.resolve(start, end - start, out)?,
                (place, _) => out.push((end - start, place.unwrap_or(Place::ZERO))),
            }
        }
        Ok(())
    }

    /// The volume at `seq`. The seq must be one that is kept; [`super::timeline`] says which are.
    ///
    /// # Errors
    /// [`HistoryError::Future`] if there is no such seq yet.
    pub fn view(&self, seq: u64) -> Result<Arc<View>, HistoryError> {
        let mut state = self.state();
        let newest = state.table.last_seq();
        if seq > newest {
            return Err(HistoryError::Future { seq, newest });
        }
        if state.retired {
            return Err(HistoryError::Retired);
        }
        if state.table.records().first().is_some_and(|r| r.0 <= seq) {
            self.freeze(&mut state)?;
        }
        let view = Arc::new(View::of(seq, &state)?);
        state.views.retain(|v| v.strong_count() > 0);
        state.views.push(Arc::downgrade(&view));
        Ok(view)
    }

    /// Seq of the newest record; 0 if there is none.
    #[must_use]
    pub fn newest_seq(&self) -> u64 {
        self.state().table.last_seq()
    }

    /// Time of the newest record; 0 if there is none.
    #[must_use]
    pub fn newest_time(&self) -> u64 {
        self.state().table.last_time()
    }

    /// Runs and records that are only in memory.
    #[must_use]
    pub fn memory_entries(&self) -> usize {
        let state = self.state();
        let frozen: u64 = state.layers.iter().filter(|l| l.in_memory()).map(|l| l.weight()).sum();
        state.table.len() + usize::try_from(frozen).unwrap_or(usize::MAX)
    }

    /// Whether [`VolumeHistory::flush`] is due.
    #[must_use]
    pub fn wants_flush(&self) -> bool {
        self.memory_entries() >= self.config.memory_runs
    }

    /// The layers now, oldest first. Those in memory are the newest.
    #[must_use]
    pub fn layers(&self) -> Vec<Arc<Layer>> {
        self.state().layers.clone()
    }

    /// The newest record with a time at or before `time`, as (seq, time).
    ///
    /// # Errors
    /// [`HistoryError`] if a layer cannot be read or is damaged.
    pub fn record_at_time(&self, time: u64) -> Result<Option<(u64, u64)>, HistoryError> {
        self.record_where(&|_, t| t <= time)
    }

    /// The newest record at or before `seq`, as (seq, time).
    ///
    /// # Errors
    /// [`HistoryError`] if a layer cannot be read or is damaged.
    pub fn record_at_seq(&self, seq: u64) -> Result<Option<(u64, u64)>, HistoryError> {
        self.record_where(&|s, _| s <= seq)
    }

    /// The newest record for which `good` holds; it must hold for a beginning of all records.
    pub(super) fn record_where(&self, good: &dyn Fn(u64, u64) -> bool) -> Result<Option<(u64, u64)>, HistoryError> {
        let (layers, base) = {
            let state = self.state();
            let records = state.table.records();
            if let Some(at) = records.partition_point(|r| good(r.0, r.1)).checked_sub(1) {
                return Ok(Some(records[at]));
            }
            (state.layers.clone(), state.base.clone())
        };
        for layer in layers.iter().rev().filter(|l| l.broken().is_none()) {
            let found = layer.record_where(good)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        base.map_or(Ok(None), |base| base.record_where(good))
    }

    /// Writes what is only in memory to a layer file. `None` if there is nothing.
    ///
    /// # Errors
    /// [`HistoryError`]; nothing has changed then. An error of kind ENOSPC can pass, others are final for the disk.
    pub fn flush(&self) -> Result<Option<HistoryEdit>, HistoryError> {
        let permit = self.permit.take();
        let memory: Vec<Arc<Layer>> = {
            let mut state = self.state();
            self.freeze(&mut state)?;
            state.layers.iter().filter(|l| l.in_memory()).cloned().collect()
        };
        if memory.is_empty() {
            return Ok(None);
        }
        let (keep, stop) = (Keep::all(), AtomicBool::new(false));
        let layer = self.write(&memory, &Rules { keep: &keep, moved: None, bottom: false, stop: &stop })?;
        Ok(Some(self.edit(permit, vec![(memory, layer)])))
    }

    pub(super) fn write(&self, inputs: &[Arc<Layer>], rules: &Rules<'_>) -> Result<Arc<Layer>, HistoryError> {
        self.ask(IoOp::WriteLayer, "write a layer in")?;
        let mut builder = LayerBuilder::new(FileSink::create(&self.dir, &self.volume, &*self.config.keys)?);
        merge(inputs, rules, &mut builder)?;
        self.ask(IoOp::SyncLayer, "sync a layer in")?;
        builder.into_layer(range_of(inputs, rules.keep.window()), &self.config.cache)
    }

    pub(super) fn ask(&self, op: IoOp, what: &'static str) -> Result<(), HistoryError> {
        let asked = self.config.hook.as_ref().map_or(Ok(()), |h| h(op));
        asked.map_err(|source| HistoryError::Io { path: self.dir.clone(), what, source })
    }

    /// Why some of the history cannot be read, and the seq up to which it can; `None` if all is well.
    #[must_use]
    pub fn damage(&self) -> Option<(u64, String)> {
        let state = self.state();
        state.layers.iter().find_map(|l| l.broken().map(|why| (l.meta().after_seq, why.to_owned())))
    }

    fn edit(&self, permit: PermitGuard, replaced: Vec<(Vec<Arc<Layer>>, Arc<Layer>)>) -> HistoryEdit {
        let replaced: Vec<(Vec<u64>, Arc<Layer>)> =
            replaced.into_iter().map(|(old, new)| (old.iter().map(|l| l.number()).collect(), new)).collect();
        let mut layers = self.state().layers.clone();
        splice(&mut layers, &replaced);
        let files = layers.iter().take_while(|l| !l.in_memory());
        let layers: Vec<LayerMeta> = files.map(|l| l.meta().clone()).collect();
        let layered_to = layers.last().map_or(0, |l| l.last_seq);
        HistoryEdit { layers, layered_to, replaced, grounded: None, permit }
    }

    /// The edit that puts `layer` below all others, in the place of the base.
    pub(super) fn edit_of_ground(&self, permit: PermitGuard, layer: Arc<Layer>) -> HistoryEdit {
        let own = self.state().layers.clone();
        let files = std::iter::once(&layer).chain(own.iter().take_while(|l| !l.in_memory()));
        let layers: Vec<LayerMeta> = files.map(|l| l.meta().clone()).collect();
        let layered_to = layers.last().map_or(0, |l| l.last_seq);
        HistoryEdit { layers, layered_to, replaced: Vec::new(), grounded: Some(layer), permit }
    }

    /// The layers in files, and whether there is nothing below them: then what is zero in the oldest need not be said.
    fn files(&self) -> (Vec<Arc<Layer>>, bool) {
        let state = self.state();
        let files = state.layers.iter().filter(|l| !l.in_memory()).cloned().collect();
        (files, state.base.is_none() || world::broken("branch-bottom"))
    }

    /// Something that was kept, and pinned what lies behind the window, is gone: the next [`merge_step`](Self::merge_step) with
    /// nothing else to do looks through all of that again. A restart forgets it; then merges let go in their time.
    pub fn thin_again(&self) {
        self.rethin.store(true, Ordering::Release);
    }

    /// Merges some neighbouring layers, if any are due. What no seq of `keep` can see is dropped. `stop` ends
    /// the work early with [`HistoryError::Stopped`].
    ///
    /// # Errors
    /// [`HistoryError`]; nothing has changed then.
    pub fn merge_step(&self, keep: &Keep, stop: &AtomicBool) -> Result<Option<HistoryEdit>, HistoryError> {
        let permit = self.permit.take();
        let (files, grounded) = self.files();
        let sizes: Vec<Size> = files.iter().map(|l| size_of(l)).collect();
        let due = policy::choose(&sizes, self.config.fan_out, keep.window());
        let thin_again = due.is_none() && self.rethin.load(Ordering::Acquire);
        let behind = sizes.iter().take_while(|s| s.after_seq < keep.window()).count();
        let Some(range) = due.or_else(|| (thin_again && behind > 0).then_some(0..behind)) else { return Ok(None) };
        let rules = Rules { keep, moved: None, bottom: range.start == 0 && grounded, stop };
        let inputs = files.get(range).unwrap_or_default().to_vec();
        let layer = self.write(&inputs, &rules)?;
        if thin_again {
            self.rethin.store(false, Ordering::Release);
        }
        Ok(Some(self.edit(permit, vec![(inputs, layer)])))
    }

    /// Rewrites the layer files that refer to blocks that collection has copied.
    ///
    /// # Errors
    /// [`HistoryError`]; nothing has changed then.
    pub fn relocate(
        &self,
        moved: &Relocation,
        keep: &Keep,
        stop: &AtomicBool,
    ) -> Result<Option<HistoryEdit>, HistoryError> {
        let permit = self.permit.take();
        let (files, grounded) = self.files();
        let mut replaced = Vec::new();
        for (i, layer) in files.into_iter().enumerate().filter(|(_, l)| moved.touches(l)) {
            let inputs = vec![layer];
            let new = self.write(&inputs, &Rules { keep, moved: Some(moved), bottom: i == 0 && grounded, stop });
            match new {
                Ok(new) => replaced.push((inputs, new)),
                Err(e) => {
                    remove(replaced.iter().map(|(_, l): &(_, Arc<Layer>)| &**l));
                    return Err(e);
                }
            }
        }
        Ok(if replaced.is_empty() { None } else { Some(self.edit(permit, replaced)) })
    }

    /// Puts an edit in force. To be called when the manifest that names its layers is durable; removes the files
    /// that it no longer names. Views that are open go on reading them.
    pub fn applied(&self, edit: HistoryEdit) {
        let old = {
            let mut state = self.state();
            if let Some(layer) = edit.grounded {
                state.layers.insert(0, layer);
                state.base = None;
            }
            splice(&mut state.layers, &edit.replaced)
        };
        remove(old.iter().map(|l| &**l));
        drop(edit.permit);
    }

    /// Every layer that is in force or held by an open view, each once.
    #[must_use]
    pub fn live_layers(&self) -> Vec<Arc<Layer>> {
        let state = self.state();
        let views: Vec<Arc<View>> = state.views.iter().filter_map(Weak::upgrade).collect();
        let mut all: HashMap<u64, Arc<Layer>> = HashMap::new();
        let held = views.iter().flat_map(|v| v.layers()).map(|s| &s.layer);
        for layer in state.layers.iter().chain(held) {
            all.insert(layer.number(), Arc::clone(layer));
        }
        drop(state);
        all.into_values().collect()
    }

    /// Adds to `counts` how many blocks of each segment history and open views refer to (a block twice if two
    /// versions are placed there): the answer is 0 exactly if nothing refers to the segment. Layers that are among `seen` are
    /// left out: a branch and its parent may hold the same.
    pub fn count_segments(&self, counts: &mut HashMap<u32, u64>, seen: &mut HashSet<u64>) {
        {
            let state = self.state();
            for run in state.table.runs().iter().filter(|r| !r.place.is_zero()) {
                *counts.entry(run.place.segment()).or_default() += run.count;
            }
        }
        for layer in self.live_layers().iter().filter(|l| seen.insert(l.number())) {
            for (segment, blocks) in layer.segments() {
                *counts.entry(*segment).or_default() += blocks;
            }
        }
    }

    /// Lets no view be opened any more, or again; `false` if some are open, and then nothing has changed.
    pub(crate) fn retire(&self, retired: bool) -> bool {
        let mut state = self.state();
        if state.views.iter().any(|v| v.strong_count() > 0) {
            return false;
        }
        state.retired = retired;
        true
    }

    /// Removes the files of a history that was retired, when the manifest does not name them any more.
    pub(crate) fn remove_files(&self) {
        remove(self.layers().iter().map(|l| &**l));
    }

    /// Seqs at which views are open.
    #[must_use]
    pub fn open_views(&self) -> Vec<u64> {
        self.state().views.iter().filter_map(Weak::upgrade).map(|v| v.seq()).collect()
    }
}

/// Puts each new layer in the place of its old neighbours; answers the old ones.
fn splice(layers: &mut Vec<Arc<Layer>>, replaced: &[(Vec<u64>, Arc<Layer>)]) -> Vec<Arc<Layer>> {
    let mut gone = Vec::new();
    for (old, new) in replaced {
        if let Some(at) = layers.iter().position(|l| old.first() == Some(&l.number())) {
            gone.extend(layers.splice(at..at + old.len(), [Arc::clone(new)]));
        }
    }
    gone
}

fn range_of(layers: &[Arc<Layer>], window: u64) -> Range {
    let after_seq = layers.first().map_or(0, |l| l.meta().after_seq);
    let last_seq = layers.last().map_or(0, |l| l.meta().last_seq);
    Range { after_seq, last_seq, collapsed_to: window }
}

fn size_of(layer: &Layer) -> Size {
    let m = layer.meta();
    Size { weight: layer.weight(), after_seq: m.after_seq, last_seq: m.last_seq, collapsed_to: m.collapsed_to }
}

/// Removes the files of layers that no manifest names. What stays is removed at the next start.
fn remove<'a>(layers: impl Iterator<Item = &'a Layer>) {
    for path in layers.filter_map(Layer::path) {
        if let Err(e) = afterimage_base::world::fs::remove_file(path) {
            tracing::warn!(path = %path.display(), error = %e, "an old layer could not be removed; the next start will");
        }
    }
}
