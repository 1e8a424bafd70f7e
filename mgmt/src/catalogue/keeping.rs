//! What is kept of groups' points beyond the window of their volumes: what the appliances are to be told, until they have it.
//!
//! A pin names a seq of a volume. It is written down before an appliance is told, and forgotten after it has said that it has let go, so that
//! neither a kill of mgmt nor an appliance that is away for long leaves anything undone. An appliance lets go of what it is told to, never
//! of what it is not told of: a mgmt that has lost its catalogue costs no history.

use super::groups::{find, signed, unsigned};
use super::{Catalogue, CatalogueError, Change};
use rusqlite::{OptionalExtension, Row, Transaction};
use std::collections::BTreeSet;

/// Policies of groups, app-consistent points of groups, and pins.
pub(super) const SCHEMA: &str = "
    ALTER TABLE groups ADD COLUMN policy TEXT REFERENCES policies(name) ON UPDATE CASCADE;
    ALTER TABLE groups ADD COLUMN app_minutes INTEGER NOT NULL DEFAULT 0;
    -- 0 no, 1 nothing goes, 2 the appliances are to be told that the policy decides again.
    ALTER TABLE groups ADD COLUMN on_hold INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE group_points ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;
    -- How it was made app-consistent, JSON.
    ALTER TABLE group_points ADD COLUMN app TEXT;
    CREATE INDEX group_markers_of ON group_markers(volume, seq);
    -- state: 0 to be kept, 1 kept, 2 to be let go, 3 refused: it is gone.
    CREATE TABLE group_pins (
        volume TEXT NOT NULL,
        seq    INTEGER NOT NULL,
        vault  TEXT NOT NULL,
        grp    INTEGER NOT NULL,
        point  INTEGER NOT NULL,
        name   TEXT NOT NULL,
        time   INTEGER NOT NULL,
        state  INTEGER NOT NULL,
        PRIMARY KEY (volume, seq)
    ) STRICT;
    CREATE INDEX group_pins_due ON group_pins(vault) WHERE state IN (0, 2);
    CREATE INDEX group_pins_of ON group_pins(point);
";

/// A point that can be restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LivePoint {
    pub id: i64,
    pub name: String,
    /// Nanoseconds since 1970.
    pub time: u64,
    pub auto: bool,
    pub pinned: bool,
}

/// A seq that an appliance is to keep, or to let go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pin {
    pub volume: String,
    pub seq: u64,
    pub time: u64,
    pub name: String,
    pub drop: bool,
}

impl Change<'_> {
    /// Pins a point of a group, or leaves it to the policy again.
    ///
    /// # Errors
    /// [`CatalogueError::NotFound`] if there is none that can be restored.
    pub fn pin_group_point(&self, group: &str, point: &str, pinned: bool) -> Result<(), CatalogueError> {
        let id = find(&self.tx, group)?;
        let sql =
            "UPDATE group_points SET pinned = ?3 WHERE grp = ?1 AND name = ?2 AND state IN ('complete', 'partial')";
        if self.tx.execute(sql, (id, point, pinned))? == 0 {
            return Err(CatalogueError::NotFound(format!(
                "group '{group}' has no point '{point}' that can be restored"
            )));
        }
        self.log(if pinned { "pin-point" } else { "unpin-point" }, &format!("group {group}"), point)
    }

    /// Removes a point of a group: what was kept for it alone is let go.
    ///
    /// # Errors
    /// [`CatalogueError::NotFound`]; [`CatalogueError::Conflict`] while the group is on hold.
    pub fn remove_group_point(&self, group: &str, point: &str) -> Result<(), CatalogueError> {
        let id = find(&self.tx, group)?;
        let held: bool = self.tx.query_row("SELECT on_hold = 1 FROM groups WHERE id = ?1", [id], |r| r.get(0))?;
        if held {
            return Err(CatalogueError::Conflict(format!("group '{group}' is on hold: nothing goes")));
        }
        let sql = "SELECT id FROM group_points WHERE grp = ?1 AND name = ?2 AND state <> 'settling'";
        let point_id: Option<i64> = self.tx.query_row(sql, (id, point), |r| r.get(0)).optional()?;
        let point_id = point_id.ok_or_else(|| {
            CatalogueError::NotFound(format!("group '{group}' has no point '{point}' that has ended"))
        })?;
        let_go(&self.tx, point_id)?;
        self.tx.execute("DELETE FROM group_points WHERE id = ?1", [point_id])?;
        self.log("remove-point", &format!("group {group}"), point)
    }

    /// Has nothing go of a group, or leaves it to the policy again.
    ///
    /// # Errors
    /// If there is no such group.
    pub fn hold_group(&self, group: &str, hold: bool) -> Result<(), CatalogueError> {
        let id = find(&self.tx, group)?;
        let sql =
            "UPDATE groups SET on_hold = CASE WHEN ?2 THEN 1 WHEN on_hold = 1 THEN 2 ELSE on_hold END WHERE id = ?1";
        self.tx.execute(sql, (id, hold))?;
        self.log(if hold { "hold-group" } else { "release-group" }, &format!("group {group}"), "")
    }
}

/// Nothing is kept for a point any more.
fn let_go(tx: &Transaction<'_>, point: i64) -> Result<(), CatalogueError> {
    tx.prepare_cached("DELETE FROM group_pins WHERE point = ?1 AND state = 3")?.execute([point])?;
    tx.prepare_cached("UPDATE group_pins SET state = 2 WHERE point = ?1")?.execute([point])?;
    Ok(())
}

/// The same for all points of a group that goes.
pub(super) fn let_group_go(tx: &Transaction<'_>, group: i64) -> Result<(), CatalogueError> {
    tx.execute("DELETE FROM group_pins WHERE grp = ?1 AND state = 3", [group])?;
    tx.execute("UPDATE group_pins SET state = 2 WHERE grp = ?1", [group])?;
    Ok(())
}

impl Catalogue {
    /// Points of a group that can be restored, oldest first.
    pub(crate) fn live_points(&self, group: i64) -> Result<Vec<LivePoint>, CatalogueError> {
        let db = self.lock();
        let sql = "SELECT id, name, time, auto, pinned FROM group_points
                   WHERE grp = ?1 AND state IN ('complete', 'partial') ORDER BY id";
        let mut rows = db.prepare_cached(sql)?;
        let row = |r: &Row<'_>| {
            Ok(LivePoint {
                id: r.get(0)?,
                name: r.get(1)?,
                time: unsigned(r.get(2)?),
                auto: r.get(3)?,
                pinned: r.get(4)?,
            })
        };
        Ok(rows.query_map([group], row)?.collect::<rusqlite::Result<_>>()?)
    }

    /// Points with a part before `first` in this volume.
    pub(crate) fn points_before(&self, volume: &str, first: u64) -> Result<Vec<i64>, CatalogueError> {
        let db = self.lock();
        let mut rows = db.prepare_cached("SELECT point FROM group_markers WHERE volume = ?1 AND seq < ?2")?;
        Ok(rows.query_map((volume, signed(first)), |r| r.get(0))?.collect::<rusqlite::Result<_>>()?)
    }

    /// Has these points of a group kept, and lets go of its others.
    pub(crate) fn want_kept(&self, group: i64, points: &BTreeSet<i64>) -> Result<(), CatalogueError> {
        let there: BTreeSet<i64> = {
            let db = self.lock();
            let mut rows = db.prepare_cached("SELECT DISTINCT point FROM group_pins WHERE grp = ?1 AND state <> 2")?;
            rows.query_map([group], |r| r.get(0))?.collect::<rusqlite::Result<_>>()?
        };
        if there == *points {
            return Ok(());
        }
        self.note(|tx| {
            for point in points.difference(&there) {
                let sql = "INSERT INTO group_pins (volume, seq, vault, grp, point, name, time, state)
                           SELECT k.volume, k.seq, m.vault, p.grp, p.id, g.name || '/' || p.name, k.time, 0 FROM group_markers k
                           JOIN group_points p ON p.id = k.point JOIN groups g ON g.id = p.grp JOIN machines m ON m.id = k.machine
                           JOIN group_parts a ON a.point = p.id AND a.machine = k.machine AND a.why IS NULL
                           WHERE p.id = ?1 AND p.state IN ('complete', 'partial')
                           ON CONFLICT (volume, seq) DO UPDATE SET state = 0";
                tx.prepare_cached(sql)?.execute([point])?;
            }
            there.difference(points).try_for_each(|point| let_go(tx, *point))
        })
    }

    /// What an appliance is to be told, at most `most` of it.
    pub(crate) fn pins_due(&self, vault: &str, most: u32) -> Result<Vec<Pin>, CatalogueError> {
        let db = self.lock();
        let sql = "SELECT volume, seq, time, name, state = 2 FROM group_pins WHERE vault = ?1 AND state IN (0, 2)
                   ORDER BY volume, seq LIMIT ?2";
        let mut rows = db.prepare_cached(sql)?;
        let row = |r: &Row<'_>| {
            Ok(Pin {
                volume: r.get(0)?,
                seq: unsigned(r.get(1)?),
                time: unsigned(r.get(2)?),
                name: r.get(3)?,
                drop: r.get(4)?,
            })
        };
        Ok(rows.query_map((vault, most), row)?.collect::<rusqlite::Result<_>>()?)
    }

    /// An appliance has done what it was told, but for what it refused. What was meant otherwise meanwhile stays to be told.
    pub(crate) fn pins_done(&self, pins: &[Pin], refused: &BTreeSet<(String, u64)>) -> Result<(), CatalogueError> {
        self.note(|tx| {
            for pin in pins {
                let (volume, seq) = (&pin.volume, signed(pin.seq));
                if pin.drop {
                    let sql = "DELETE FROM group_pins WHERE volume = ?1 AND seq = ?2 AND state = 2";
                    tx.prepare_cached(sql)?.execute((volume, seq))?;
                    continue;
                }
                let state = if refused.contains(&(volume.clone(), pin.seq)) { 3 } else { 1 };
                let sql = "UPDATE group_pins SET state = ?3 WHERE volume = ?1 AND seq = ?2 AND state = 0";
                tx.prepare_cached(sql)?.execute((volume, seq, state))?;
            }
            Ok(())
        })
    }

    /// Points of which an appliance has nothing to keep any more.
    pub(crate) fn lost_points(&self) -> Result<Vec<i64>, CatalogueError> {
        let db = self.lock();
        let sql = "SELECT DISTINCT k.point FROM group_pins k JOIN group_points p ON p.id = k.point
                   WHERE k.state = 3 AND p.state IN ('complete', 'partial')";
        let mut rows = db.prepare_cached(sql)?;
        Ok(rows.query_map([], |r| r.get(0))?.collect::<rusqlite::Result<_>>()?)
    }

    /// These points cannot be restored any more: they are shown as that, and without places.
    pub(crate) fn expire(&self, points: &BTreeSet<i64>) -> Result<(), CatalogueError> {
        if points.is_empty() {
            return Ok(());
        }
        self.note(|tx| {
            for point in points {
                tx.prepare_cached("UPDATE group_points SET state = 'expired' WHERE id = ?1")?.execute([point])?;
                tx.prepare_cached("DELETE FROM group_markers WHERE point = ?1")?.execute([point])?;
                let_go(tx, *point)?;
            }
            Ok(())
        })
    }

    /// The appliances know that a group is not on hold any more.
    pub(crate) fn hold_is_over(&self, group: i64) -> Result<(), CatalogueError> {
        self.note(|tx| {
            tx.execute("UPDATE groups SET on_hold = 0 WHERE id = ?1 AND on_hold = 2", [group])?;
            Ok(())
        })
    }
}

#[cfg(test)]
#[path = "keeping_tests.rs"]
mod tests;
