//! Barriers by interval, and what becomes of their markers.

use super::run::{Wish, nanos, run as barrier};
use super::{Group, PointState, Shared};
use crate::catalogue::CatalogueError;
use crate::units::Time;
use afterimage_format::coord::group::Settled;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How exact the schedule is.
const TICK: Duration = Duration::from_millis(50);
/// How often groups are read anew.
const READ: Duration = Duration::from_millis(500);
/// Points of the schedule that cannot be restored are forgotten after so long.
const KEEP: Duration = Duration::from_secs(30 * 86_400);
/// How often what is too old is looked for.
const SWEEP: Duration = Duration::from_secs(3600);
/// Markers that are written down with one sync.
const MOST_NEWS: usize = 4096;

/// Writes down what becomes of markers until there is nobody to say so.
pub(super) fn settle(shared: &Shared, news: &Receiver<(Uuid, Settled)>) {
    while let Ok(first) = news.recv() {
        let mut batch = vec![first];
        batch.extend(news.try_iter().take(MOST_NEWS));
        match shared.office.catalogue.settle(&batch) {
            Ok(ended) => {
                for (group, name, state) in ended {
                    shared.office.tally.ended(&group, state);
                    if state == PointState::Failed {
                        tracing::warn!("group {group}: no point {name}: a marker was lost");
                    }
                }
            }
            // The members are asked again when they come back.
            Err(e) => tracing::error!("what became of {} markers could not be written down: {e}", batch.len()),
        }
    }
}

/// When the points of a group are due.
struct Due {
    crash: Instant,
    app: Instant,
}

impl Due {
    /// Agents have a moment to come back to a mgmt that was away.
    fn new(shared: &Shared, group: &Group) -> Due {
        let soon = Instant::now() + Duration::from_secs(1);
        let since = shared
            .office
            .catalogue
            .last_app(group.id)
            .ok()
            .flatten()
            .map_or(u64::MAX, |last| u64::try_from(nanos().saturating_sub(last)).unwrap_or(0));
        let left = app_every(group).saturating_sub(Duration::from_nanos(since));
        Due { crash: soon.min(Instant::now() + crash_every(group)), app: soon + left }
    }
}

fn crash_every(group: &Group) -> Duration {
    Duration::from_secs(group.every_seconds)
}

fn app_every(group: &Group) -> Duration {
    Duration::from_secs(u64::from(group.app_every_minutes) * 60)
}

/// Whether it is time; then the next time is set.
fn is_due(at: &mut Instant, every: Duration) -> bool {
    let now = Instant::now();
    if every.is_zero() {
        *at = now;
        return false;
    }
    // An interval that was made shorter counts at once.
    *at = (*at).min(now + every);
    if now < *at {
        return false;
    }
    let next = *at + every;
    *at = if next < now { now + every } else { next };
    true
}

/// Runs barriers when they are due, each group in its own thread.
pub(super) fn run(shared: &Arc<Shared>) {
    let mut due: BTreeMap<i64, Due> = BTreeMap::new();
    let mut groups: Vec<Group> = Vec::new();
    let (mut read, mut swept) = (None::<Instant>, None::<Instant>);
    while !shared.stopping() {
        if read.is_none_or(|at| at.elapsed() >= READ) {
            read = Some(Instant::now());
            match shared.office.catalogue.groups() {
                Ok(all) => groups = all,
                Err(e) => tracing::error!("groups: {e}"),
            }
        }
        if swept.is_none_or(|at| at.elapsed() >= SWEEP) {
            swept = Some(Instant::now());
            let keep = i64::try_from(KEEP.as_nanos()).unwrap_or(i64::MAX);
            if let Err(e) = shared.office.catalogue.forget_points(nanos().saturating_sub(keep)) {
                tracing::error!("old points of groups: {e}");
            }
        }
        for group in groups.iter().filter(|g| !g.members.is_empty()) {
            let due = due.entry(group.id).or_insert_with(|| Due::new(shared, group));
            if is_due(&mut due.app, app_every(group)) && !start(shared, group.clone(), true) {
                // It comes behind the one that is being made.
                due.app = Instant::now() + TICK;
                continue;
            }
            if is_due(&mut due.crash, crash_every(group)) {
                // The one before may not have ended: then this one is left out, and shows as a gap if that goes on.
                start(shared, group.clone(), false);
            }
        }
        due.retain(|id, _| groups.iter().any(|g| g.id == *id));
        thread::sleep(TICK);
    }
}

/// Begins a barrier; false if one is under way.
fn start(shared: &Arc<Shared>, group: Group, app: bool) -> bool {
    let Some(busy) = shared.occupy(group.id, Duration::ZERO) else { return false };
    std::mem::forget(busy);
    let of_thread = Arc::clone(shared);
    let id = group.id;
    let work = move || {
        let _busy = super::Busy(&of_thread, group.id);
        if let Err(e) = once(&of_thread, &group, app) {
            tracing::warn!("{e}");
        }
    };
    if let Err(e) = thread::Builder::new().name("group".to_owned()).spawn(work) {
        drop(super::Busy(shared, id));
        tracing::error!("no thread for a barrier: {e}");
    }
    true
}

fn once(shared: &Shared, group: &Group, app: bool) -> Result<(), CatalogueError> {
    let catalogue = &shared.office.catalogue;
    let now = nanos();
    let every = i64::try_from(group.every_seconds).unwrap_or(i64::MAX / 4).saturating_mul(1_000_000_000);
    if every > 0
        && let Some(last) = catalogue.last_try(group.id)?
        && now.saturating_sub(last) > every.saturating_mul(2).saturating_add(1_000_000_000)
    {
        let why = "no point was tried: mgmt was not running, stood still, or waited for applications to become quiet";
        catalogue.note_gap(group.id, last, now, why)?;
    }
    let kind = if app { "app" } else { "auto" };
    let name = format!("{kind}-{}", Time(u64::try_from(now).unwrap_or(0)).short());
    barrier(&shared.office, group, Wish { name: &name, auto: true, app })
}
