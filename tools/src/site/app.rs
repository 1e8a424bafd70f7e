//! App-consistent points: on demand and by schedule, one at a time for each volume.

use super::{Local, lock, now, whole_seconds};
use crate::app::AppSettings;
use afterimage_agent::app::{Context, Made, Recipe, Verdict, end_leftover, make, mounts};
use afterimage_agent::{PointError, Volume, VolumeState};
use afterimage_mgmt::app::AppPoint;
use afterimage_mgmt::protocol::{Code, Failure, PointInfo};
use afterimage_mgmt::schedule::{Schedule, Seen};
use afterimage_mgmt::units::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The subcommand that holds a freeze.
const GUARD: &str = "freeze-guard";
/// File in a volume's folder: what was begun.
const LEFTOVER: &str = "app";

/// See the module.
pub(super) struct Apps {
    of: BTreeMap<String, AppSettings>,
    schedules: Mutex<BTreeMap<String, Schedule>>,
    /// Volumes of which one is being made.
    busy: Mutex<BTreeSet<String>>,
    free: Condvar,
}

impl Apps {
    pub(super) fn new(of: BTreeMap<String, AppSettings>) -> Apps {
        let schedules = of.iter().map(|(name, s)| (name.clone(), Schedule::new(s.every))).collect();
        Apps { of, schedules: Mutex::new(schedules), busy: Mutex::default(), free: Condvar::new() }
    }

    /// Volumes of which something says how their points are made app-consistent.
    pub(super) fn settings(&self) -> impl Iterator<Item = (&String, &AppSettings)> {
        self.of.iter()
    }

    /// What a policy says of how often; nothing counts for volumes that are not named.
    pub(super) fn set_policy(&self, policy: &BTreeMap<String, Option<Duration>>) {
        for (name, schedule) in lock(&self.schedules).iter_mut() {
            schedule.set_policy(policy.get(name).map(|every| (name.clone(), *every)).into_iter().collect());
        }
        for name in policy.iter().filter(|(name, every)| every.is_some() && !self.of.contains_key(*name)).map(|p| p.0) {
            tracing::warn!(
                "volume {name}: a policy wants app-consistent points, and nothing says how: [volume.app] in the agent's file"
            );
        }
    }

    /// The volume's turn, if no other point of it is being made.
    pub(super) fn turn<'a>(&'a self, volume: &'a str) -> Option<Turn<'a>> {
        self.begin(volume).then_some(Turn(self, volume))
    }

    /// Whether a point of the volume may begin now. It does then.
    fn begin(&self, volume: &str) -> bool {
        lock(&self.busy).insert(volume.to_owned())
    }

    fn end(&self, volume: &str) {
        lock(&self.busy).remove(volume);
        self.free.notify_all();
    }
}

/// Gives the volume's turn back.
pub(super) struct Turn<'a>(&'a Apps, &'a str);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.end(self.1);
    }
}

pub(super) fn leftover(data: &Path, volume: &str) -> PathBuf {
    data.join("agent").join(volume).join(LEFTOVER)
}

/// How this program is started to hold a freeze: the one that runs, also if its file has been replaced.
pub(super) fn guard() -> Vec<OsString> {
    vec!["/proc/self/exe".into(), GUARD.into()]
}

/// The point's note in the words of the control socket.
pub(super) fn shown(note: &str) -> Option<AppPoint> {
    serde_json::from_str(note).ok()
}

impl Local {
    /// Ends what an earlier process has left frozen. It may take as long as it takes.
    pub fn end_leftovers(&self) {
        for served in self.served() {
            let path = leftover(&self.data, served.name());
            if !path.exists() {
                continue;
            }
            let name = served.name().to_owned();
            let busy = self.apps.begin(&name);
            let started = std::thread::Builder::new().name("thaw".to_owned()).spawn(move || end_leftover(&path));
            if let Err(e) = started {
                tracing::error!("volume {name}: nobody can thaw what was left frozen: {e}");
            }
            if busy {
                self.apps.end(&name);
            }
        }
    }

    /// Waits until no app-consistent point is being made, for `limit` at most.
    pub fn finish_app_points(&self, limit: Duration) {
        let (until, mut busy) = (Instant::now() + limit, lock(&self.apps.busy));
        while !busy.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!("an app-consistent point is still being made: it ends without this process");
                return;
            }
            busy = self.apps.free.wait_timeout(busy, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Makes the automatic app-consistent points that are due, each in a thread of its own.
    pub fn make_due_app_points(self: &Arc<Self>) {
        for name in self.apps.of.keys() {
            let Ok(volume) = self.protected(name) else { continue };
            let status = volume.status();
            let seen = Seen { name, consistent: status.state == VolumeState::Live, seq: status.seq_acked };
            let time = self.clock.elapsed();
            let due = lock(&self.apps.schedules).get(name).is_some_and(|s| s.due(time, seen));
            if !due || lock(&self.apps.busy).contains(name) {
                continue;
            }
            let (site, name) = (Arc::clone(self), name.clone());
            let made = std::thread::Builder::new().name("app-point".to_owned()).spawn(move || {
                if let Err(e) = site.app_point(&name, &format!("app-{}", whole_seconds(now())), true) {
                    tracing::warn!("no automatic app-consistent point: {e}");
                }
            });
            if let Err(e) = made {
                tracing::warn!("no automatic app-consistent point: {e}");
            }
        }
    }

    /// What is to be frozen now: file systems come and go.
    pub(super) fn recipe_now(&self, volume: &str, settings: &AppSettings) -> Recipe {
        let mut recipe = settings.recipe.clone();
        if settings.mounted {
            let devices: Vec<PathBuf> =
                self.devices_of(volume).into_iter().filter(|d| d.seq.is_none()).map(|d| d.device.into()).collect();
            for mount in mounts::mounted_from(&devices) {
                if !recipe.mounts.contains(&mount) {
                    recipe.mounts.push(mount);
                }
            }
        }
        recipe
    }

    /// Makes an app-consistent point, and waits until it is at the appliance with all that there is to tell of it.
    pub(super) fn app_point(&self, name: &str, point: &str, auto: bool) -> Result<PointInfo, Failure> {
        let volume = self.protected(name)?;
        let settings = self.apps.of.get(name).ok_or_else(|| {
            let text = format!(
                "volume {name}: nothing says how its points are made app-consistent: [volume.app] in the agent's file, or \
                 --app-file of `afterimage up`"
            );
            Failure::new(Code::BadRequest, text)
        })?;
        let Some(_turn) = self.apps.turn(name) else {
            let text = format!("volume {name}: an app-consistent point is being made: try again");
            return Err(Failure::new(Code::Busy, text));
        };
        let (recipe, path) = (self.recipe_now(name, settings), leftover(&self.data, name));
        let never = [self.data.clone(), volume.status().path];
        let context = Context { volume: name, point, leftover: &path, guard: &guard(), never: &never };
        let mut at = Err(String::new());
        let made = make(&recipe, context, &mut || {
            at = volume.create_point(point, auto).map_err(|e: PointError| e.to_string());
            at.clone().map(drop)
        });
        self.note(name, &volume, &at.clone().unwrap_or_default(), &made);
        let failed = || {
            let why = made.reason.as_deref().unwrap_or("it was not made");
            Failure::new(Code::Failed, format!("there is no point '{point}' of volume {name}: {why}"))
        };
        let (seq, time) = at.ok().filter(|_| made.verdict() != Verdict::Failed).ok_or_else(failed)?;
        Self::wait_durable(&volume, volume.status().seq_acked, point, seq)?;
        let app = serde_json::to_string(&made).ok().and_then(|text| shown(&text));
        Ok(PointInfo { name: point.to_owned(), seq, time: Time(time), auto, pinned: false, app })
    }

    /// Adds to the point how it was made, and says so in the log.
    fn note(&self, name: &str, volume: &Volume, (seq, _): &(u64, u64), made: &Made) {
        let time = self.clock.elapsed();
        let mut schedules = lock(&self.apps.schedules);
        if let Some(schedule) = schedules.get_mut(name) {
            if *seq == 0 {
                schedule.failed(time, name);
            } else {
                // The note is a record, too: it alone makes no other point due.
                schedule.made(time, name, seq + 1);
                lock(&self.schedule).made(time, name, seq + 1);
            }
        }
        drop(schedules);
        if *seq == 0 {
            return;
        }
        let text = match made.verdict() {
            Verdict::Failed => Ok(String::new()),
            _ => serde_json::to_string(&fitting(made)),
        };
        let noted =
            text.map_err(|e| e.to_string()).and_then(|t| volume.note_point(*seq, &t).map_err(|e| e.to_string()));
        if let Err(e) = noted {
            tracing::warn!("volume {name}: how the point at @{seq} was made is not kept with it: {e}");
        }
        let steps: Vec<String> = made.steps.iter().map(|s| format!("{} {} ms", s.step, s.ms)).collect();
        tracing::info!("volume {name}: point at @{seq}: {} ({})", made.consistency, steps.join(", "));
    }
}

/// Cut to what a note can hold.
fn fitting(made: &Made) -> Made {
    let mut made = made.clone();
    let fits = |m: &Made| serde_json::to_string(m).is_ok_and(|t| t.len() <= afterimage_format::record::MAX_NOTE);
    for most in [300, 100, 0] {
        if fits(&made) {
            break;
        }
        for step in &mut made.steps {
            step.said = step.said.chars().take(most).collect();
        }
        made.reason = made.reason.map(|r| r.chars().take(most.max(50)).collect());
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;
    use afterimage_agent::app::StepResult;

    #[test]
    fn a_note_fits_whatever_scripts_say() {
        let step = |step: &str| StepResult { step: step.to_owned(), ok: false, ms: 5, said: "\u{1}\"ä".repeat(300) };
        let steps = ["pre", "freeze", "marker", "thaw", "post"].map(step).to_vec();
        let made = Made { consistency: "crash".into(), reason: Some("\"".repeat(600)), frozen_ms: 1, steps };
        let text = serde_json::to_string(&fitting(&made)).unwrap();
        assert!(text.len() <= afterimage_format::record::MAX_NOTE);
        let shown = shown(&text).unwrap();
        assert_eq!((shown.consistency.as_str(), shown.steps.len()), ("crash", 5));
        assert!(super::shown("").is_none() && super::shown("{}").is_none());
    }
}
