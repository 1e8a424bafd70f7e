//! Groups of machines that share recovery points, and the barriers that make these.
//!
//! | module | what |
//! |---|---|
//! | this | what users and the API ask: plain functions on [`Groups`] |
//! | `shapes` | how groups and points are shown |
//! | `hub` | who is connected, and which barrier waits for whose answer |
//! | `run` | one barrier: the state machine of [`afterimage_base::barrier`] with its messages and times |
//! | `schedule` | barriers by interval, and the gaps in which there were none |
//! | `quiet` | freezing and thawing around the barrier of an app-consistent point |
//! | [`keep`] | which points stay |
//! | `steward` | brings policies, and what they keep, to appliances and agents |

mod hub;
pub mod keep;
mod quiet;
mod run;
mod schedule;
mod shapes;
mod steward;

pub use hub::Hub;
pub use shapes::{
    Gap, Group, GroupApp, GroupMember, GroupView, KeptPoint, KeptPoints, MachineApp, Missing, NewGroup, Point,
    PointState, Points, Restorable, VolumeApp,
};

use crate::catalogue::{Catalogue, CatalogueError};
use crate::office::Office;
use crate::protocol::{Code, Failure};
use crate::units::Time;
use afterimage_base::barrier::Why;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Seconds between points if nothing else is said.
pub const EVERY: u64 = 60;
/// How long gates may be closed if nothing else is said, in milliseconds.
pub const HOLD_MS: u32 = 100;
/// How long who asks for a point waits until it is durable.
const SETTLE: Duration = Duration::from_secs(60);
/// How long a point on demand waits for the one that is being made.
const BUSY: Duration = Duration::from_secs(30);

/// Why a member is no part of a point, for people.
#[must_use]
pub fn reason(why: Why) -> String {
    match why {
        Why::Away => "away: it has no session with mgmt",
        Why::Refused => "could not close its gates",
        Why::Gone => "its session ended during the barrier",
        Why::Late => "did not close its gates in time",
        Why::Opened => "its gates opened before all others were closed: the hold was too short",
        Why::Silent => "did not answer after it was let go",
        Why::Lost => "its history began anew before the marker was durable",
    }
    .to_owned()
}

struct Shared {
    office: Arc<Office>,
    busy: Mutex<BTreeSet<i64>>,
    free: Condvar,
    stop: AtomicBool,
}

/// What can be done with groups. Dropping it ends the schedule; barriers that are under way end first.
pub struct Groups {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Groups {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Groups(..)")
    }
}

fn failed(e: impl std::fmt::Display) -> Failure {
    Failure::new(Code::Failed, e.to_string())
}

/// One barrier of a group at a time.
struct Busy<'a>(&'a Shared, i64);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
        self.0.free.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<i64>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn occupy(&self, group: i64, wait: Duration) -> Option<Busy<'_>> {
        let until = Instant::now() + wait;
        let mut busy = self.lock();
        while !busy.insert(group) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            busy = self.free.wait_timeout(busy, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Some(Busy(self, group))
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

impl Groups {
    /// Starts the schedule.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn start(office: Arc<Office>) -> std::io::Result<Groups> {
        let shared =
            Arc::new(Shared { office, busy: Mutex::default(), free: Condvar::new(), stop: AtomicBool::new(false) });
        let mut threads = Vec::new();
        let news = shared.office.hub.settled();
        let of_thread = Arc::clone(&shared);
        let settle = move || schedule::settle(&of_thread, &news);
        threads.push(thread::Builder::new().name("settle".to_owned()).spawn(settle)?);
        let of_thread = Arc::clone(&shared);
        threads.push(thread::Builder::new().name("schedule".to_owned()).spawn(move || schedule::run(&of_thread))?);
        let of_thread = Arc::clone(&shared);
        threads.push(thread::Builder::new().name("steward".to_owned()).spawn(move || steward::run(&of_thread))?);
        Ok(Groups { shared, threads })
    }

    fn catalogue(&self) -> &Catalogue {
        &self.shared.office.catalogue
    }

    fn change(
        &self,
        who: &str,
        make: impl FnOnce(&crate::catalogue::Change<'_>) -> Result<(), CatalogueError>,
    ) -> Result<(), Failure> {
        Ok(self.catalogue().change(who, make)?)
    }

    /// Makes a group with these machines.
    ///
    /// # Errors
    /// With what does not fit; nothing is made then.
    pub fn create(&self, who: &str, new: &NewGroup, machines: &[String]) -> Result<GroupView, Failure> {
        self.change(who, |change| {
            change.create_group(new)?;
            change.add_to_group(&new.name, machines)
        })?;
        self.show(&new.name)
    }

    /// Changes interval, hold and policy, from the next point on.
    ///
    /// # Errors
    /// If there is no such group, or something is not allowed.
    pub fn set(&self, who: &str, new: &NewGroup) -> Result<GroupView, Failure> {
        self.change(who, |change| change.set_group(new))?;
        self.show(&new.name)
    }

    /// Removes a group with its points.
    ///
    /// # Errors
    /// If there is none.
    pub fn delete(&self, who: &str, name: &str) -> Result<(), Failure> {
        self.change(who, |change| change.remove_group(name))
    }

    /// Adds machines, from the next point on. Nothing else changes for them.
    ///
    /// # Errors
    /// If one of them is not known or in another group; then none is added.
    pub fn add(&self, who: &str, name: &str, machines: &[String]) -> Result<GroupView, Failure> {
        self.change(who, |change| change.add_to_group(name, machines))?;
        self.show(name)
    }

    /// Takes machines out, from the next point on.
    ///
    /// # Errors
    /// If one of them is not in the group; then none is taken out.
    pub fn remove(&self, who: &str, name: &str, machines: &[String]) -> Result<GroupView, Failure> {
        self.change(who, |change| change.remove_from_group(name, machines))?;
        self.show(name)
    }

    /// Takes machines out and adds others, from the next point on.
    ///
    /// # Errors
    /// If one of them is not in the group, not known, or in another group; then nothing is changed.
    pub fn change_machines(
        &self,
        who: &str,
        name: &str,
        add: &[String],
        remove: &[String],
    ) -> Result<GroupView, Failure> {
        self.change(who, |change| {
            change.remove_from_group(name, remove)?;
            change.add_to_group(name, add)
        })?;
        self.show(name)
    }

    /// All groups.
    ///
    /// # Errors
    /// Those of the catalogue.
    pub fn list(&self) -> Result<Vec<GroupView>, Failure> {
        let here = self.shared.office.hub_sessions();
        let mut out = Vec::new();
        for mut group in self.catalogue().groups()? {
            for member in &mut group.members {
                member.connected = here.keys().any(|id| id.to_string() == member.id);
            }
            let (points, _) = self.catalogue().group_points(&group.name, None, 1000)?;
            let is_point = |p: &&Point| matches!(p.state, PointState::Complete | PointState::Partial);
            let mut holds: Vec<u64> = points.iter().filter(is_point).map(|p| p.held_us).collect();
            holds.sort_unstable();
            let of = |share: usize| holds.get((holds.len() * share / 100).min(holds.len().saturating_sub(1)));
            let (hold_p50_us, hold_p99_us) = (of(50).copied().unwrap_or(0), of(99).copied().unwrap_or(0));
            out.push(GroupView {
                last: points.iter().rfind(is_point).cloned(),
                hold_p50_us,
                hold_p99_us,
                hold_max_us: holds.last().copied().unwrap_or(0),
                counted: u64::try_from(holds.len()).unwrap_or(u64::MAX),
                newest: points.into_iter().next_back(),
                group,
            });
        }
        Ok(out)
    }

    /// One group.
    ///
    /// # Errors
    /// If there is none.
    pub fn show(&self, name: &str) -> Result<GroupView, Failure> {
        let found = self.list()?.into_iter().find(|v| v.group.name == name);
        found.ok_or_else(|| Failure::new(Code::NotFound, format!("there is no group '{name}'")))
    }

    /// The newest points of a group, or the one of this name.
    ///
    /// # Errors
    /// If there is no such group or point.
    pub fn points(&self, group: &str, point: Option<&str>, most: u32) -> Result<Points, Failure> {
        let (points, gaps) = self.catalogue().group_points(group, point, most)?;
        Ok(Points { group: group.to_owned(), points, gaps })
    }

    /// Pins a point, or leaves it to the policy again.
    ///
    /// # Errors
    /// If there is no such group, or no such point that can be restored.
    pub fn pin(&self, who: &str, group: &str, point: &str, pinned: bool) -> Result<Points, Failure> {
        self.change(who, |change| change.pin_group_point(group, point, pinned))?;
        self.points(group, Some(point), 1)
    }

    /// Removes a point.
    ///
    /// # Errors
    /// If there is none, or the group is on hold.
    pub fn remove_point(&self, who: &str, group: &str, point: &str) -> Result<(), Failure> {
        self.change(who, |change| change.remove_group_point(group, point))
    }

    /// Has nothing go of a group and its machines, or leaves it to the policy again.
    ///
    /// # Errors
    /// If there is no such group.
    pub fn hold(&self, who: &str, group: &str, hold: bool) -> Result<GroupView, Failure> {
        self.change(who, |change| change.hold_group(group, hold))?;
        self.show(group)
    }

    /// Which points of a group would stay by a policy, or do by its own, and why.
    ///
    /// # Errors
    /// If there is no such group or policy.
    pub fn kept(&self, group: &str, policy: Option<&str>) -> Result<KeptPoints, Failure> {
        let (office, view) = (&self.shared.office, self.show(group)?.group);
        let policy = policy.or(view.policy.as_deref());
        let all = steward::candidates(office, view.id)?;
        let mut chosen = keep::choose(&steward::tiers(office, policy)?, &all, Time::now().0);
        let of = |p: crate::catalogue::keeping::LivePoint| {
            let mut kept: Vec<String> =
                chosen.remove(&p.id).unwrap_or_default().into_iter().map(str::to_owned).collect();
            if view.on_hold {
                kept.push("hold".to_owned());
            }
            KeptPoint { name: p.name, time: Time(p.time), kept }
        };
        let points = self.catalogue().live_points(view.id)?.into_iter().map(of).collect();
        Ok(KeptPoints { group: group.to_owned(), policy: policy.map(str::to_owned), points })
    }

    /// Makes a point now, and waits until it is durable everywhere. `app`: with applications quiet around it.
    ///
    /// # Errors
    /// If it failed, with the names of those who are missing.
    pub fn point(&self, who: &str, group: &str, name: &str, app: bool) -> Result<Point, Failure> {
        crate::when::check_point_name(name).map_err(|e| Failure::new(Code::BadRequest, e.to_string()))?;
        let all = self.catalogue().groups()?;
        let none = || Failure::new(Code::NotFound, format!("there is no group '{group}'"));
        let found = all.into_iter().find(|g| g.name == group).ok_or_else(none)?;
        let there = self.catalogue().group_points(group, Some(name), 1);
        // The name of one that failed is free.
        if there.is_ok_and(|(points, _)| points.iter().any(|p| p.state != PointState::Failed)) {
            return Err(Failure::new(Code::Conflict, format!("group '{group}' has a point '{name}' already")));
        }
        self.change(who, |change| change.log("create-point", &format!("group {group}"), name))?;
        let busy = self.shared.occupy(found.id, BUSY).ok_or_else(|| failed("the barrier under way does not end"))?;
        run::run(&self.shared.office, &found, run::Wish { name, auto: false, app })?;
        drop(busy);
        let until = Instant::now() + SETTLE;
        loop {
            let (mut points, _) = self.catalogue().group_points(group, Some(name), 1)?;
            let point = points.pop().ok_or_else(|| failed("the point is gone"))?;
            match point.state {
                PointState::Complete | PointState::Partial => return Ok(point),
                PointState::Failed | PointState::Expired => {
                    let who: Vec<String> = point.missing.iter().map(|m| format!("{}: {}", m.machine, m.why)).collect();
                    return Err(failed(format!("no point: {}", who.join("; "))));
                }
                PointState::Settling if Instant::now() > until || self.shared.stopping() => {
                    return Err(Failure::new(
                        Code::NotReady,
                        format!("point '{name}' is held and shows once the appliances have caught up"),
                    ));
                }
                PointState::Settling => thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.office.hub.stop();
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
        let mut busy = self.shared.lock();
        while !busy.is_empty() {
            busy = self.shared.free.wait(busy).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
