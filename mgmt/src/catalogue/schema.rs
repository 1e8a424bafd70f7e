//! The tables, as steps from one version to the next. A step that has been released is never changed.

use super::CatalogueError;
use rusqlite::{Connection, TransactionBehavior};

/// Step N brings version N to N + 1.
const STEPS: [&str; 5] = ["
    CREATE TABLE settings (
        key   TEXT PRIMARY KEY,
        value TEXT NOT NULL
    ) STRICT;
    -- Times are seconds since 1970, ids are UUIDs, serial numbers hexadecimal digits.
    CREATE TABLE appliances (
        id      TEXT PRIMARY KEY,
        name    TEXT NOT NULL UNIQUE,
        host    TEXT NOT NULL,
        created INTEGER NOT NULL,
        revoked INTEGER
    ) STRICT;
    CREATE TABLE machines (
        id      TEXT PRIMARY KEY,
        name    TEXT NOT NULL UNIQUE,
        host    TEXT NOT NULL,
        vault   TEXT NOT NULL REFERENCES appliances(id),
        created INTEGER NOT NULL,
        revoked INTEGER
    ) STRICT;
    CREATE TABLE tokens (
        id      INTEGER PRIMARY KEY,
        hash    BLOB NOT NULL UNIQUE,
        role    TEXT NOT NULL,
        name    TEXT,
        member  TEXT,
        vault   TEXT,
        created INTEGER NOT NULL,
        expires INTEGER NOT NULL,
        used    INTEGER,
        used_by TEXT
    ) STRICT;
    CREATE TABLE certificates (
        serial     TEXT PRIMARY KEY,
        role       TEXT NOT NULL,
        member     TEXT NOT NULL,
        name       TEXT NOT NULL,
        not_before INTEGER NOT NULL,
        not_after  INTEGER NOT NULL,
        issued     INTEGER NOT NULL,
        revoked    INTEGER
    ) STRICT;
    CREATE INDEX certificates_of ON certificates(member);
    CREATE TABLE audit (
        id     INTEGER PRIMARY KEY AUTOINCREMENT,
        time   INTEGER NOT NULL,
        who    TEXT NOT NULL,
        action TEXT NOT NULL,
        object TEXT NOT NULL,
        detail TEXT NOT NULL
    ) STRICT;
    -- What was done is not undone in the book.
    CREATE TRIGGER audit_stays BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END;
    CREATE TRIGGER audit_is_kept BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END;
", "
    -- What agents report. An agent is a machine itself; a guest is one of several machines whose disks one agent serves.
    CREATE TABLE guests (
        id      TEXT PRIMARY KEY,
        name    TEXT NOT NULL UNIQUE,
        agent   TEXT NOT NULL REFERENCES machines(id),
        created INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE volumes (
        agent TEXT NOT NULL REFERENCES machines(id),
        id    TEXT NOT NULL,
        guest TEXT REFERENCES guests(id) ON DELETE SET NULL,
        name  TEXT NOT NULL,
        path  TEXT NOT NULL,
        size  INTEGER NOT NULL,
        state TEXT NOT NULL,
        since INTEGER NOT NULL,
        gone  INTEGER,
        PRIMARY KEY (agent, id)
    ) STRICT;
    CREATE TABLE policies (
        name          TEXT PRIMARY KEY,
        window        INTEGER NOT NULL,
        hourly        INTEGER NOT NULL,
        daily         INTEGER NOT NULL,
        weekly        INTEGER NOT NULL,
        monthly       INTEGER NOT NULL,
        crash_seconds INTEGER NOT NULL,
        app_minutes   INTEGER NOT NULL,
        allow_partial INTEGER NOT NULL,
        created       INTEGER NOT NULL,
        changed       INTEGER NOT NULL
    ) STRICT;
    -- A machine that is protected: by which policy, and what it becomes elsewhere. `machine` is the id of an agent or a guest.
    CREATE TABLE protections (
        machine TEXT PRIMARY KEY,
        policy  TEXT NOT NULL REFERENCES policies(name) ON UPDATE CASCADE,
        target  TEXT NOT NULL,
        created INTEGER NOT NULL,
        changed INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE jobs (
        id      INTEGER PRIMARY KEY AUTOINCREMENT,
        kind    TEXT NOT NULL,
        object  TEXT NOT NULL,
        who     TEXT NOT NULL,
        state   TEXT NOT NULL,
        text    TEXT NOT NULL,
        created INTEGER NOT NULL,
        ended   INTEGER
    ) STRICT;
    CREATE TABLE events (
        id       INTEGER PRIMARY KEY AUTOINCREMENT,
        time     INTEGER NOT NULL,
        severity TEXT NOT NULL,
        kind     TEXT NOT NULL,
        object   TEXT NOT NULL,
        text     TEXT NOT NULL
    ) STRICT;
    CREATE TABLE api_tokens (
        id      INTEGER PRIMARY KEY AUTOINCREMENT,
        hash    BLOB NOT NULL UNIQUE,
        name    TEXT NOT NULL,
        role    TEXT NOT NULL,
        created INTEGER NOT NULL,
        expires INTEGER NOT NULL,
        revoked INTEGER
    ) STRICT;
", super::groups::SCHEMA, super::keeping::SCHEMA, super::recoveries::SCHEMA];

/// The newest version.
pub(super) const VERSION: usize = STEPS.len();

/// Brings a database to the newest version, all of it or nothing.
pub(super) fn migrate(db: &mut Connection) -> Result<(), CatalogueError> {
    // Immediate: two that open it at once do not both migrate.
    let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: i64 = change.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let from = usize::try_from(version).unwrap_or(usize::MAX);
    if from > VERSION {
        return Err(CatalogueError::Newer { found: version, known: VERSION });
    }
    for step in &STEPS[from..] {
        change.execute_batch(step)?;
    }
    if from < VERSION {
        change.pragma_update(None, "user_version", i64::try_from(VERSION).unwrap_or(i64::MAX))?;
    }
    change.commit()?;
    Ok(())
}

#[cfg(test)]
#[path = "schema_tests.rs"]
mod tests;
