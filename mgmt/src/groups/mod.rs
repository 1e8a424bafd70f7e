//! Groups of machines that share recovery points, and the barriers that make these.
//!
//! | module | what |
//! |---|---|
//! | this | what users and the API ask: plain functions on [`Groups`] |
//! | `hub` | who is connected, and which barrier waits for whose answer |
//! | `run` | one barrier: the state machine of [`afterimage_base::barrier`] with its messages and times |
//! | `schedule` | barriers by interval, and the gaps in which there were none |

mod hub;
mod run;
mod schedule;

pub use hub::Hub;

use crate::catalogue::{Catalogue, CatalogueError};
use crate::office::Office;
use crate::protocol::{Code, Failure};
use crate::units::Time;
use afterimage_base::barrier::Why;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
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

/// A group to be made, or how one is to be from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NewGroup {
    /// Its name.
    pub name: String,
    /// Seconds between points; 0 makes them on demand only.
    pub every_seconds: u64,
    /// How long gates may be closed, in milliseconds.
    pub hold_ms: u32,
    /// Whether a point of some of the members is wanted if not all can be had.
    pub partial: bool,
}

impl NewGroup {
    pub(crate) fn check(&self) -> Result<(), String> {
        let fine = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(fine) {
            return Err(format!(
                "'{}' is no name of a group: letters, digits, dots, dashes and underscores, at most 64",
                self.name
            ));
        }
        if self.every_seconds > 86_400 * 7 {
            return Err("the interval of a group is a week at most; 0 makes points on demand only".into());
        }
        if !(1..=10_000).contains(&self.hold_ms) {
            return Err("gates are held for 1 ms to 10 s".into());
        }
        Ok(())
    }
}

impl std::fmt::Display for NewGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.every_seconds {
            0 => f.write_str("on demand")?,
            n => write!(f, "every {n} s")?,
        }
        write!(f, ", hold {} ms, partial points {}", self.hold_ms, if self.partial { "wanted" } else { "not wanted" })
    }
}

/// A machine of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GroupMember {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Whether it has a session that knows of barriers.
    pub connected: bool,
}

/// A group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Group {
    /// Number in the catalogue.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// Seconds between points; 0: on demand only.
    pub every_seconds: u64,
    /// How long gates may be closed, in milliseconds.
    pub hold_ms: u32,
    /// Whether points of some are wanted.
    pub partial: bool,
    /// When it was made, seconds since 1970.
    pub created: i64,
    /// Its machines, by name.
    pub members: Vec<GroupMember>,
}

/// How a point stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PointState {
    /// All gates were closed at one instant; not every marker is durable yet, so it is no point yet.
    Settling,
    /// A point of all members.
    Complete,
    /// A point of those who are not missing.
    Partial,
    /// No point.
    Failed,
}

/// A member that has no part in a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Missing {
    /// Its name.
    pub machine: String,
    /// Why.
    pub why: String,
}

/// Where a point lies in one volume: `--at @SEQ` there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Restorable {
    /// The machine.
    pub machine: String,
    /// The appliance that has the history.
    pub appliance: Option<String>,
    /// The volume.
    pub volume: String,
    /// Its id.
    pub id: String,
    /// The seq: its prefix up to there is this volume's part of the point.
    pub seq: u64,
    /// When the agent wrote the marker, by its own clock.
    pub time: Time,
}

/// A point of a group, or what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Point {
    /// Number in the catalogue.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// How it stands.
    pub state: PointState,
    /// Made by the schedule.
    pub auto: bool,
    /// When its barrier began.
    pub time: Time,
    /// For a failed one that stands for several: when the last of them began.
    pub until: Time,
    /// How many it stands for.
    pub tries: u64,
    /// The longest that a gate was closed for it, in microseconds.
    pub held_us: u64,
    /// Who has no part in it.
    pub missing: Vec<Missing>,
    /// Where it lies; empty unless it is complete or partial.
    pub volumes: Vec<Restorable>,
}

/// A time in which no point was tried though the interval wanted some.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Gap {
    /// From then,
    pub since: Time,
    /// to then.
    pub until: Time,
    /// Why.
    pub why: String,
}

/// The points of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Points {
    /// The group.
    pub group: String,
    /// The points, the newest last.
    pub points: Vec<Point>,
    /// The gaps between them.
    pub gaps: Vec<Gap>,
}

/// What is asked of groups over the control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "group", rename_all = "kebab-case")]
pub enum GroupAsk {
    /// [`Groups::create`]; answers [`GroupView`].
    Create {
        /// How it is to be.
        new: NewGroup,
        /// Names or ids of machines.
        machines: Vec<String>,
    },
    /// [`Groups::set`]; answers [`GroupView`].
    Set {
        /// How it is to be.
        new: NewGroup,
    },
    /// [`Groups::delete`]; answers nothing.
    Delete {
        /// The group.
        name: String,
    },
    /// [`Groups::add`]; answers [`GroupView`].
    Add {
        /// The group.
        name: String,
        /// Names or ids of machines.
        machines: Vec<String>,
    },
    /// [`Groups::remove`]; answers [`GroupView`].
    Remove {
        /// The group.
        name: String,
        /// Names or ids of machines.
        machines: Vec<String>,
    },
    /// [`Groups::list`].
    List,
    /// [`Groups::show`].
    Show {
        /// The group.
        name: String,
    },
    /// [`Groups::point`]; answers [`Point`].
    Point {
        /// The group.
        name: String,
        /// The point's name.
        point: String,
    },
    /// [`Groups::points`].
    Points {
        /// The group.
        name: String,
        /// This point only.
        #[serde(default)]
        point: Option<String>,
        /// How many at most, the newest.
        most: u32,
    },
}

/// A group with figures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GroupView {
    /// The group.
    pub group: Group,
    /// Its newest complete or partial point.
    pub last: Option<Point>,
    /// What the newest barrier came to.
    pub newest: Option<Point>,
    /// How long gates were closed, over the points counted, in microseconds: half of them at most,
    pub hold_p50_us: u64,
    /// 99 of 100 at most,
    pub hold_p99_us: u64,
    /// and the longest.
    pub hold_max_us: u64,
    /// How many points that are.
    pub counted: u64,
}

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

    /// Does what was asked over the control socket, for `who`.
    ///
    /// # Errors
    /// Those of what is asked.
    pub fn answer(&self, who: &str, ask: &GroupAsk) -> Result<serde_json::Value, Failure> {
        fn json<T: Serialize>(value: Result<T, Failure>) -> Result<serde_json::Value, Failure> {
            serde_json::to_value(value?).map_err(failed)
        }
        match ask {
            GroupAsk::Create { new, machines } => json(self.create(who, new, machines)),
            GroupAsk::Set { new } => json(self.set(who, new)),
            GroupAsk::Delete { name } => json(self.delete(who, name)),
            GroupAsk::Add { name, machines } => json(self.add(who, name, machines)),
            GroupAsk::Remove { name, machines } => json(self.remove(who, name, machines)),
            GroupAsk::List => json(self.list()),
            GroupAsk::Show { name } => json(self.show(name)),
            GroupAsk::Point { name, point } => json(self.point(name, point)),
            GroupAsk::Points { name, point, most } => json(self.points(name, point.as_deref(), *most)),
        }
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

    /// Makes a point now, and waits until it is durable everywhere.
    ///
    /// # Errors
    /// If it failed, with the names of those who are missing.
    pub fn point(&self, group: &str, name: &str) -> Result<Point, Failure> {
        crate::when::check_point_name(name).map_err(|e| Failure::new(Code::BadRequest, e.to_string()))?;
        let all = self.catalogue().groups()?;
        let none = || Failure::new(Code::NotFound, format!("there is no group '{group}'"));
        let found = all.into_iter().find(|g| g.name == group).ok_or_else(none)?;
        if self.catalogue().group_points(group, Some(name), 1).is_ok() {
            return Err(Failure::new(Code::Conflict, format!("group '{group}' has a point '{name}' already")));
        }
        let busy = self.shared.occupy(found.id, BUSY).ok_or_else(|| failed("the barrier under way does not end"))?;
        run::run(&self.shared.office, &found, name, false)?;
        drop(busy);
        let until = Instant::now() + SETTLE;
        loop {
            let (mut points, _) = self.catalogue().group_points(group, Some(name), 1)?;
            let point = points.pop().ok_or_else(|| failed("the point is gone"))?;
            match point.state {
                PointState::Complete | PointState::Partial => return Ok(point),
                PointState::Failed => {
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
