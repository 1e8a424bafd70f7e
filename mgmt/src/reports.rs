//! How members are, as they say: the newest report of each is kept in memory, and what changed since the one before becomes
//! events and the catalogue's list of volumes. Figures that change all the time are in memory only: they come again in seconds.

pub(crate) mod recoveries;

use crate::catalogue::{NewEvent, Severity, VolumeRow};
use crate::protocol::{State, Status, VolumeStatus};
use afterimage_trust::identity::{Identity, Role};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use uuid::Uuid;

/// Volumes of one member that are looked at.
const MOST: usize = 4096;

/// A report.
#[derive(Debug, Clone)]
pub struct Report {
    /// Whose.
    pub identity: Identity,
    /// Its name.
    pub name: String,
    /// What it said.
    pub status: Status,
    /// When it came.
    pub at: Instant,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Reports {
    held: Mutex<BTreeMap<Uuid, Report>>,
}

/// What of a volume is worth a line in the catalogue.
fn face(v: &VolumeStatus) -> (&str, &str, &str, u64, State, Option<&str>) {
    (&v.id, &v.name, &v.path, v.size, v.state, v.reason.as_deref())
}

impl Reports {
    fn held(&self) -> MutexGuard<'_, BTreeMap<Uuid, Report>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a report; true if its volumes are others than before, or in another state, or so its failovers.
    pub(crate) fn keep(&self, identity: &Identity, name: &str, mut status: Status) -> bool {
        status.volumes.truncate(MOST);
        status.recoveries.truncate(recoveries::MOST);
        let mut held = self.held();
        let changed = held.get(&identity.id).is_none_or(|old| {
            let others = old.status.recoveries != status.recoveries;
            let (old, new) = (&old.status.volumes, &status.volumes);
            others || old.len() != new.len() || old.iter().zip(new).any(|(a, b)| face(a) != face(b))
        });
        let report = Report { identity: *identity, name: name.to_owned(), status, at: Instant::now() };
        held.insert(identity.id, report);
        changed
    }

    /// A member has left.
    pub(crate) fn forget(&self, id: &Uuid) {
        self.held().remove(id);
    }

    /// The newest report of a member that is connected.
    #[must_use]
    pub fn of(&self, id: &Uuid) -> Option<Report> {
        self.held().get(id).cloned()
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<Report> {
        self.held().values().cloned().collect()
    }

    /// Where the windows of all volumes begin, as their appliances say: ids and first seqs.
    #[must_use]
    pub fn windows(&self) -> Vec<(String, u64)> {
        let held = self.held();
        let appliances = held.values().filter(|r| r.identity.role == Role::Appliance);
        let volumes = appliances.flat_map(|r| &r.status.volumes);
        volumes.filter_map(|v| v.first_seq.map(|first| (v.id.clone(), first))).collect()
    }

    /// What the appliances say of a volume: the one with this id.
    #[must_use]
    pub fn history_of(&self, volume: &str) -> Option<(String, VolumeStatus)> {
        let held = self.held();
        let appliances = held.values().filter(|r| r.identity.role == Role::Appliance);
        appliances
            .filter_map(|r| r.status.volumes.iter().find(|v| v.id == volume).map(|v| (r.name.clone(), v.clone())))
            .next()
    }
}

fn severity(state: State) -> Severity {
    match state {
        State::Live | State::InitialSync | State::Offline => Severity::Info,
        State::Dirty | State::Resync | State::Unprotected => Severity::Warning,
        State::Fenced | State::Error => Severity::Error,
    }
}

/// Which lines of the list of volumes change with a report, and what there is to tell.
pub(crate) fn changes(
    agent: &str,
    machine: &str,
    known: &[VolumeRow],
    now_there: &[VolumeStatus],
    now: i64,
) -> (Vec<VolumeRow>, Vec<NewEvent>) {
    let (mut rows, mut events) = (Vec::new(), Vec::new());
    for v in now_there.iter().filter(|v| !v.id.is_empty()).take(MOST) {
        let old = known.iter().find(|row| row.id == v.id);
        let object = format!("volume {machine}/{}", v.name);
        let same_state = old.is_some_and(|o| o.state == v.state.as_str() && o.gone.is_none());
        if !same_state {
            let reason = v.reason.as_ref().map_or_else(String::new, |r| format!(": {r}"));
            let was = old.map_or_else(|| "is new and".to_owned(), |o| format!("was {} and", o.state));
            let text = format!("{} of {machine} {was} is {} now{reason}", v.name, v.state);
            events.push(NewEvent::new(severity(v.state), "volume-state", &object, &text));
        }
        let row = VolumeRow {
            id: v.id.clone(),
            agent: agent.to_owned(),
            guest: old.and_then(|o| o.guest.clone()),
            name: v.name.clone(),
            path: v.path.clone(),
            size: i64::try_from(v.size).unwrap_or(i64::MAX),
            state: v.state.as_str().to_owned(),
            since: if same_state { old.map_or(now, |o| o.since) } else { now },
            gone: None,
        };
        if old.is_some_and(|o| o.size != row.size) {
            let text = format!("{} of {machine} has {} bytes now", v.name, v.size);
            events.push(NewEvent::new(Severity::Info, "volume-size", &object, &text));
        }
        if old != Some(&row) {
            rows.push(row);
        }
    }
    for row in known.iter().filter(|row| row.gone.is_none() && now_there.iter().all(|v| v.id != row.id)) {
        let text = format!("{} of {machine} is not served by its agent any more", row.name);
        events.push(NewEvent::new(Severity::Warning, "volume-gone", &format!("volume {machine}/{}", row.name), &text));
        rows.push(VolumeRow { gone: Some(now), ..row.clone() });
    }
    (rows, events)
}

#[cfg(test)]
#[path = "reports_tests.rs"]
mod tests;
