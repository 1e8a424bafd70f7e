//! What is seen rather than wanted: events, volumes as agents report them, how jobs go.

use super::{Catalogue, CatalogueError, now};
use rusqlite::{Connection, OptionalExtension, Row, Transaction};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Events that are kept; older ones go.
const MOST_EVENTS: i64 = 100_000;
/// Longest text of an event, in characters: some of it comes from members.
const MAX_TEXT: usize = 1000;

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Somebody should look at it.
    Warning,
    /// Protection is not what it should be.
    Error,
}

impl Severity {
    const ALL: [Severity; 3] = [Severity::Info, Severity::Warning, Severity::Error];

    /// Its word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// An event to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// How much it matters.
    pub severity: Severity,
    /// Its kind, a word for programs.
    pub kind: String,
    /// What it is about: `machine web`, `volume web/data`.
    pub object: String,
    /// What happened, for people.
    pub text: String,
}

impl NewEvent {
    /// An event.
    #[must_use]
    pub fn new(severity: Severity, kind: &str, object: &str, text: &str) -> NewEvent {
        let clean = |t: &str| t.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect();
        NewEvent { severity, kind: kind.to_owned(), object: clean(object), text: clean(text) }
    }

    /// The event of a change, which the audit log has, too.
    pub(super) fn change(who: &str, action: &str, object: &str, detail: &str) -> NewEvent {
        let detail = if detail.is_empty() { String::new() } else { format!("; {detail}") };
        NewEvent::new(Severity::Info, "change", object, &format!("{action} {object}: by {who}{detail}"))
    }
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRow {
    /// Grows with every event.
    pub id: i64,
    /// When, seconds since 1970.
    pub time: i64,
    /// What.
    pub event: NewEvent,
}

/// A volume, as its agent reported it last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeRow {
    /// Its id (UUID).
    pub id: String,
    /// The id of its agent.
    pub agent: String,
    /// The id of the guest that it belongs to, if not to the agent's host.
    pub guest: Option<String>,
    /// Its name, one of a kind for its agent.
    pub name: String,
    /// The disk behind it.
    pub path: String,
    /// Bytes.
    pub size: i64,
    /// Its state.
    pub state: String,
    /// Since when mgmt has known it in that state, seconds since 1970.
    pub since: i64,
    /// Since when its agent does not serve it any more.
    pub gone: Option<i64>,
}

/// Something that takes a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRow {
    /// Its number.
    pub id: i64,
    /// What: `protect`.
    pub kind: String,
    /// To what.
    pub object: String,
    /// Who asked for it.
    pub who: String,
    /// `running`, `done` or `failed`.
    pub state: String,
    /// How it goes or went.
    pub text: String,
    /// When it began, seconds since 1970.
    pub created: i64,
    /// When it ended.
    pub ended: Option<i64>,
}

/// A writing down of what was seen.
pub struct Book<'a> {
    pub(super) tx: Transaction<'a>,
    time: i64,
}

impl fmt::Debug for Book<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Book")
    }
}

pub(super) fn newest_event(db: &Connection) -> rusqlite::Result<i64> {
    db.query_row("SELECT coalesce(max(id), 0) FROM events", [], |r| r.get(0))
}

pub(super) fn insert_event(db: &Connection, time: i64, event: &NewEvent) -> rusqlite::Result<()> {
    db.execute(
        "INSERT INTO events (time, severity, kind, object, text) VALUES (?1, ?2, ?3, ?4, ?5)",
        (time, event.severity.as_str(), &event.kind, &event.object, &event.text),
    )?;
    db.execute("DELETE FROM events WHERE id <= ?1", [db.last_insert_rowid() - MOST_EVENTS])?;
    Ok(())
}

impl<'a> Book<'a> {
    pub(super) fn new(tx: Transaction<'a>) -> Book<'a> {
        Book { tx, time: now() }
    }

    pub(super) fn close(self) -> Result<i64, CatalogueError> {
        let newest = newest_event(&self.tx)?;
        self.tx.commit()?;
        Ok(newest)
    }

    /// Writes an event.
    ///
    /// # Errors
    /// Those of the database.
    pub fn event(&self, event: &NewEvent) -> Result<(), CatalogueError> {
        Ok(insert_event(&self.tx, self.time, event)?)
    }

    /// Writes a line of the list of volumes. Which guest it belongs to stays as it was.
    ///
    /// # Errors
    /// Those of the database.
    pub fn volume(&self, v: &VolumeRow) -> Result<(), CatalogueError> {
        self.tx.execute(
            "INSERT INTO volumes (agent, id, name, path, size, state, since, gone) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
             ON CONFLICT (agent, id) DO UPDATE SET name = ?3, path = ?4, size = ?5, state = ?6, since = ?7, gone = ?8",
            (&v.agent, &v.id, &v.name, &v.path, v.size, &v.state, v.since, v.gone),
        )?;
        Ok(())
    }

    /// How a job goes; with an `end`, how it went.
    ///
    /// # Errors
    /// Those of the database.
    pub fn job(&self, id: i64, state: &str, text: &str, end: bool) -> Result<(), CatalogueError> {
        self.tx.execute(
            "UPDATE jobs SET state = ?2, text = ?3, ended = ?4 WHERE id = ?1",
            (id, state, text, end.then_some(self.time)),
        )?;
        Ok(())
    }

    /// Jobs of a mgmt that was killed have failed.
    ///
    /// # Errors
    /// Those of the database.
    pub fn jobs_were_cut_off(&self) -> Result<usize, CatalogueError> {
        Ok(self.tx.execute(
            "UPDATE jobs SET state = 'failed', text = 'mgmt ended before the job did: ' || text, ended = ?1 WHERE state = 'running'",
            [self.time],
        )?)
    }
}

const VOLUME: &str = "id, agent, guest, name, path, size, state, since, gone";

fn volume(r: &Row<'_>) -> rusqlite::Result<VolumeRow> {
    Ok(VolumeRow {
        id: r.get(0)?,
        agent: r.get(1)?,
        guest: r.get(2)?,
        name: r.get(3)?,
        path: r.get(4)?,
        size: r.get(5)?,
        state: r.get(6)?,
        since: r.get(7)?,
        gone: r.get(8)?,
    })
}

const JOB: &str = "id, kind, object, who, state, text, created, ended";

fn job(r: &Row<'_>) -> rusqlite::Result<JobRow> {
    Ok(JobRow {
        id: r.get(0)?,
        kind: r.get(1)?,
        object: r.get(2)?,
        who: r.get(3)?,
        state: r.get(4)?,
        text: r.get(5)?,
        created: r.get(6)?,
        ended: r.get(7)?,
    })
}

impl Catalogue {
    /// Events after the one with this number, oldest first.
    ///
    /// # Errors
    /// Those of the database.
    pub fn events(&self, after: i64, most: u32) -> Result<Vec<EventRow>, CatalogueError> {
        let db = self.lock();
        let mut rows =
            db.prepare("SELECT id, time, severity, kind, object, text FROM events WHERE id > ?1 ORDER BY id LIMIT ?2")?;
        let rows = rows.query_map((after, most), |r| {
            let word: String = r.get(2)?;
            let severity = Severity::ALL.into_iter().find(|s| s.as_str() == word).unwrap_or(Severity::Info);
            let event = NewEvent { severity, kind: r.get(3)?, object: r.get(4)?, text: r.get(5)? };
            Ok(EventRow { id: r.get(0)?, time: r.get(1)?, event })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The number after which the newest `most` events come.
    ///
    /// # Errors
    /// Those of the database.
    pub fn events_before(&self, most: u32) -> Result<i64, CatalogueError> {
        Ok(newest_event(&self.lock())?.saturating_sub(most.into()).max(0))
    }

    /// All volumes that were ever reported.
    ///
    /// # Errors
    /// Those of the database.
    pub fn volumes(&self) -> Result<Vec<VolumeRow>, CatalogueError> {
        let db = self.lock();
        let mut rows = db.prepare(&format!("SELECT {VOLUME} FROM volumes ORDER BY name, id"))?;
        Ok(rows.query_map([], volume)?.collect::<rusqlite::Result<_>>()?)
    }

    /// Those of one agent.
    ///
    /// # Errors
    /// Those of the database.
    pub fn volumes_of(&self, agent: &str) -> Result<Vec<VolumeRow>, CatalogueError> {
        let db = self.lock();
        let mut rows = db.prepare(&format!("SELECT {VOLUME} FROM volumes WHERE agent = ?1 ORDER BY name, id"))?;
        Ok(rows.query_map([agent], volume)?.collect::<rusqlite::Result<_>>()?)
    }

    /// The newest jobs, the newest first.
    ///
    /// # Errors
    /// Those of the database.
    pub fn jobs(&self, most: u32) -> Result<Vec<JobRow>, CatalogueError> {
        let db = self.lock();
        let mut rows = db.prepare(&format!("SELECT {JOB} FROM jobs ORDER BY id DESC LIMIT ?1"))?;
        Ok(rows.query_map([most], job)?.collect::<rusqlite::Result<_>>()?)
    }

    /// A job.
    ///
    /// # Errors
    /// Those of the database.
    pub fn job(&self, id: i64) -> Result<Option<JobRow>, CatalogueError> {
        let db = self.lock();
        Ok(db.query_row(&format!("SELECT {JOB} FROM jobs WHERE id = ?1"), [id], job).optional()?)
    }
}
