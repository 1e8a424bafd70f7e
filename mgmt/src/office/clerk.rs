//! What sessions leave to be written down: the catalogue waits for a disk, and what an agent says of a barrier, which other machines' writes
//! wait for, must not wait behind its report.
//!
//! Reports are written in the order in which they came. An answer goes before all of them, but for its own member's: who asked wants to find what
//! it speaks of, and may have machines frozen meanwhile.

use super::Office;
use crate::protocol::Status;
use afterimage_format::coord::Asked;
use afterimage_trust::identity::Identity;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often the list of revocations is read without anybody's word that it is new.
const REFRESH: Duration = Duration::from_secs(5);

/// Something to be done.
#[derive(Debug)]
enum Task {
    /// A member says how it is.
    Report(Box<(Identity, String, Status)>),
    /// What a session has brought for who asked.
    Answer(u64, Asked),
}

#[derive(Debug, Default)]
struct Tray {
    tasks: VecDeque<Task>,
    stop: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Clerk {
    tray: Mutex<Tray>,
    changed: Condvar,
}

impl Clerk {
    fn lock(&self) -> MutexGuard<'_, Tray> {
        self.tray.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a report. Of each member one waits at most, the newest, where the oldest was.
    pub(super) fn report(&self, identity: Identity, name: &str, status: Status) {
        let mut tray = self.lock();
        for task in &mut tray.tasks {
            if let Task::Report(report) = task
                && report.0 == identity
            {
                report.2 = status;
                return;
            }
        }
        tray.tasks.push_back(Task::Report(Box::new((identity, name.to_owned(), status))));
        drop(tray);
        self.changed.notify_all();
    }

    /// Leaves the answer that a member's session has brought.
    pub(super) fn answer(&self, identity: &Identity, session: u64, answer: Asked) {
        let mut tray = self.lock();
        let its = |task: &Task| matches!(task, Task::Report(report) if report.0 == *identity);
        let report = tray.tasks.iter().position(its).and_then(|at| tray.tasks.remove(at));
        tray.tasks.push_front(Task::Answer(session, answer));
        if let Some(report) = report {
            tray.tasks.push_front(report);
        }
        drop(tray);
        self.changed.notify_all();
    }

    /// From now on somebody works at it.
    pub(super) fn begin(&self) {
        self.lock().stop = false;
    }

    /// Has what is there brought to its end, and then who works at it.
    pub(super) fn stop(&self) {
        self.lock().stop = true;
        self.changed.notify_all();
    }

    /// The next task; `None` at `until`, or when it is over.
    fn next(&self, until: Instant) -> Result<Option<Task>, ()> {
        let mut tray = self.lock();
        loop {
            if let Some(task) = tray.tasks.pop_front() {
                return Ok(Some(task));
            }
            if tray.stop {
                return Err(());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            tray = self.changed.wait_timeout(tray, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Works until it is told to stop.
pub(super) fn run(office: &Arc<Office>) {
    let mut due = Instant::now() + REFRESH;
    loop {
        match office.clerk.next(due) {
            Ok(Some(Task::Report(report))) => office.write_down(&report.0, &report.1, &report.2),
            Ok(Some(Task::Answer(session, answer))) => office.answered(session, answer),
            Ok(None) => {}
            Err(()) => return,
        }
        if Instant::now() >= due {
            due = Instant::now() + REFRESH;
            office.refresh();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use afterimage_trust::identity::Role;
    use uuid::Uuid;

    #[test]
    fn a_report_takes_the_place_of_one_that_waits_and_an_answer_waits_for_its_own_alone() {
        let clerk = Clerk::default();
        let identity = |n: u128| Identity { role: Role::Agent, id: Uuid::from_u128(n), vault: Uuid::nil() };
        let text = "{\"v\":1,\"version\":\"\",\"pid\":0,\"data\":\"\",\"started\":\"2026-01-01T00:00:00Z\",\"time\":\"2026-01-01T00:00:00Z\",\
                    \"window_seconds\":0,\"clients\":0,\"volumes\":[]}";
        let empty: Status = serde_json::from_str(text).unwrap();
        let status = |pid: u32| Status { pid, ..empty.clone() };
        let answer = || Asked { number: 1, json: Vec::new() };
        clerk.report(identity(1), "a", status(1));
        clerk.report(identity(2), "b", status(2));
        clerk.report(identity(3), "c", status(3));
        clerk.answer(&identity(2), 70, answer());
        clerk.answer(&identity(4), 71, answer());
        clerk.report(identity(1), "a", status(4));
        clerk.stop();
        let mut seen = Vec::new();
        while let Ok(Some(task)) = clerk.next(Instant::now()) {
            seen.push(match task {
                Task::Report(report) => report.2.pid,
                Task::Answer(session, _) => u32::try_from(session).unwrap(),
            });
        }
        assert_eq!(seen, [71, 2, 70, 4, 3]);
    }
}
