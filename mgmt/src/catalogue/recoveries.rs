//! Failovers, tests and plans, as the hosts of the appliances report them. What was seen stays when a host is away, or has removed its
//! report.

use super::{Book, Catalogue, CatalogueError};
use crate::failover::summary::Recovery;
use rusqlite::Row;

/// `seen` is what was reported, in JSON: fields that a later version adds need no step. `number` is the order in which they were first seen.
pub(super) const SCHEMA: &str = "
    CREATE TABLE recoveries (
        number    INTEGER PRIMARY KEY AUTOINCREMENT,
        appliance TEXT NOT NULL REFERENCES appliances(id),
        id        TEXT NOT NULL,
        seen      TEXT NOT NULL,
        changed   INTEGER NOT NULL,
        UNIQUE (appliance, id)
    ) STRICT;
";

/// Those that are kept; older ones go.
const MOST: i64 = 10_000;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryRow {
    /// The id of its appliance.
    pub appliance: String,
    /// What was reported of it last.
    pub recovery: Recovery,
    /// When that was other than before, seconds since 1970.
    pub changed: i64,
}

fn row(r: &Row<'_>) -> rusqlite::Result<Option<RecoveryRow>> {
    let seen: String = r.get(1)?;
    // Only what this program wrote is in there, or a newer one, whose lines are not for this one.
    let Ok(recovery) = serde_json::from_str(&seen) else { return Ok(None) };
    Ok(Some(RecoveryRow { appliance: r.get(0)?, recovery, changed: r.get(2)? }))
}

impl Book<'_> {
    /// Writes down what was reported of one.
    ///
    /// # Errors
    /// Those of the database.
    pub fn recovery(&self, of: &RecoveryRow) -> Result<(), CatalogueError> {
        let seen = serde_json::to_string(&of.recovery).map_err(|e| CatalogueError::Refused(e.to_string()))?;
        self.tx.execute(
            "INSERT INTO recoveries (appliance, id, seen, changed) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (appliance, id) DO UPDATE SET seen = ?3, changed = ?4",
            (&of.appliance, &of.recovery.id, &seen, of.changed),
        )?;
        self.tx.execute("DELETE FROM recoveries WHERE number <= (SELECT max(number) FROM recoveries) - ?1", [MOST])?;
        Ok(())
    }
}

impl Catalogue {
    /// The newest ones, the newest first; of one appliance, if it is named.
    ///
    /// # Errors
    /// Those of the database.
    pub fn recoveries(&self, appliance: Option<&str>, most: u32) -> Result<Vec<RecoveryRow>, CatalogueError> {
        let db = self.lock();
        let mut rows = db.prepare_cached(
            "SELECT appliance, seen, changed FROM recoveries WHERE ?1 IS NULL OR appliance = ?1 ORDER BY number DESC LIMIT ?2",
        )?;
        let rows = rows.query_map((appliance, most), row)?.collect::<rusqlite::Result<Vec<_>>>()?;
        Ok(rows.into_iter().flatten().collect())
    }
}
