//! The tables, as steps from one version to the next. A step that has been released is never changed.

use super::CatalogueError;
use rusqlite::{Connection, TransactionBehavior};

/// Step N brings version N to N + 1.
const STEPS: [&str; 1] = ["
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
"];

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
