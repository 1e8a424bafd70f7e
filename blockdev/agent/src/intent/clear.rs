//! Takes marks of the write-intent map away, lazily, beside everything else.
//!
//! In each pass every warm region grows one older, or is as new if somebody wrote to it. Regions that are old enough, or the
//! oldest ones if more are marked than shall be, become a batch when nothing of them is in flight or dirty; the next seq is
//! noted then, so every write to them has a lower one and has reached the disk. Then the disk is synced, through a
//! description of its own: an error that a guest's flush must hear of is not taken away from it. When the
//! appliance has everything before that seq durably, the marks go, of those regions that nobody touched since.
//!
//! What was freed is asked for before a region is looked at for dirt: starting over marks everything dirty first and
//! frees then what the appliance has not.

use crate::breaks::Break;
use crate::shared::Shared;
use std::sync::Arc;

struct Batch {
    regions: Vec<u64>,
    /// All writes to them have lower seqs.
    next: u64,
    /// The disk was synced since.
    synced: bool,
}

/// See the module.
pub(crate) struct Clearer {
    shared: Arc<Shared>,
    /// Passes since each region was touched.
    ages: Vec<u8>,
    batch: Option<Batch>,
    /// The disk could not be synced: what it holds is not known, so marks stay.
    stuck: bool,
}

/// Runs until the volume stops.
pub(crate) fn run(shared: &Arc<Shared>) {
    let Some(intent) = &shared.p.intent else { return };
    let mut clearer = Clearer::new(Arc::clone(shared));
    while !shared.stopping() {
        intent.bell.wait(intent.config.pass);
        if !shared.stopping() {
            clearer.pass();
        }
    }
}

fn index(region: u64) -> usize {
    usize::try_from(region).unwrap_or(usize::MAX)
}

impl Clearer {
    pub(crate) fn new(shared: Arc<Shared>) -> Clearer {
        let regions = shared.p.intent.as_ref().map_or(0, |i| i.map().regions());
        Clearer { shared, ages: vec![0; index(regions)], batch: None, stuck: false }
    }

    /// One pass.
    pub(crate) fn pass(&mut self) {
        let shared = Arc::clone(&self.shared);
        let Some(intent) = shared.p.intent.as_ref().filter(|i| !i.map().has_failed() && !self.stuck) else { return };
        let map = intent.map();
        // The volume may have got another size.
        self.ages.resize(index(map.regions()), 0);
        for (region, age) in (0..).zip(&mut self.ages) {
            *age = match map.look(region) {
                Some(false) => age.saturating_add(1),
                Some(true) | None => 0,
            };
        }
        match &mut self.batch {
            Some(batch) => batch.regions.retain(|r| self.ages.get(index(*r)).is_some_and(|age| *age != 0)),
            None => self.batch = self.choose(),
        }
        if !self.is_synced() {
            return;
        }
        if let Some(batch) = self.batch.take_if(|b| Self::has_left(&shared, b.next)) {
            self.clear(&batch.regions);
        }
    }

    fn choose(&self) -> Option<Batch> {
        let intent = self.shared.p.intent.as_ref()?;
        let (config, marked) = (&intent.config, intent.map().marked());
        let mut regions: Vec<u64> =
            (0..).zip(&self.ages).filter(|(_, age)| **age >= config.idle.max(1)).map(|(r, _)| r).collect();
        let keep = config.hot - config.hot / 4;
        if marked > config.hot && marked - (regions.len() as u64) > keep {
            regions = (0..).zip(&self.ages).filter(|(_, age)| **age >= config.cool.max(1)).map(|(r, _)| r).collect();
            regions.sort_by_key(|r| std::cmp::Reverse(self.ages[index(*r)]));
            regions.truncate(index(marked - keep));
        }
        regions.retain(|r| self.is_still(*r));
        // Asked for after the look: what was in flight before has a lower seq and has ended.
        let next = self.shared.p.ring.next();
        (!regions.is_empty() && next > 1).then_some(Batch { regions, next, synced: false })
    }

    fn dirty(&self, start: u64, end: u64) -> bool {
        let map = &self.shared.p.map;
        (start / map.region()..end.div_ceil(map.region())).any(|r| map.is_dirty(r))
    }

    /// Whether nothing of a region is in flight or dirty.
    fn is_still(&self, region: u64) -> bool {
        let Some(intent) = &self.shared.p.intent else { return false };
        let bytes = intent.map().region_range(region);
        let mut locked = self.shared.core.ranges.lock(bytes.start, bytes.end);
        locked.is_free(bytes.start, bytes.end) && !self.dirty(bytes.start, bytes.end)
    }

    /// Syncs the disk if the batch still needs it; false without a batch.
    fn is_synced(&mut self) -> bool {
        let shared = &self.shared;
        let Some(batch) = &mut self.batch else { return false };
        if batch.synced || shared.p.breaks.has(Break::ClearUnsynced) {
            return true;
        }
        if let Err(e) = shared.core.disk.sync_apart() {
            tracing::error!(
                "volume {}: the disk cannot be synced ({e}): every region written from now on is compared after a power cut",
                shared.p.name
            );
            self.stuck = true;
            return false;
        }
        batch.synced = true;
        true
    }

    /// Whether the appliance has everything before `next`.
    fn has_left(shared: &Shared, next: u64) -> bool {
        shared.free(0);
        shared.p.ring.last_freed().0 + 1 >= next || shared.p.breaks.has(Break::ClearUndurable)
    }

    fn clear(&self, regions: &[u64]) {
        let Some(intent) = &self.shared.p.intent else { return };
        let relied = self.shared.p.ring.last_freed();
        let map = intent.map();
        let result = map.clear(regions, relied, |region, take| {
            let bytes = map.region_range(region);
            let mut locked = self.shared.core.ranges.lock(bytes.start, bytes.end);
            if locked.is_free(bytes.start, bytes.end) && !self.dirty(bytes.start, bytes.end) {
                take();
            }
        });
        if let Ok(n @ 1..) = result {
            tracing::debug!("volume {}: {n} regions are clean up to seq {}", self.shared.p.name, relied.0);
        }
        intent.note(result.map(|_| ()));
    }
}
