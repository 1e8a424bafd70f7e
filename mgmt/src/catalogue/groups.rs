//! Groups.
//!
//! What people change is in the audit log like everything else. What mgmt sees by itself, their points, is a record of its own and goes
//! through [`Catalogue::note`].

use super::{Catalogue, CatalogueError, Change, Member, rows};
use crate::groups::{Group, GroupMember, NewGroup};
use afterimage_trust::Role;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior};
use std::collections::BTreeMap;

/// Times of points are nanoseconds since 1970; every and hold are seconds and milliseconds.
pub(super) const SCHEMA: &str = "
    CREATE TABLE groups (
        id      INTEGER PRIMARY KEY AUTOINCREMENT,
        name    TEXT NOT NULL UNIQUE,
        every   INTEGER NOT NULL,
        hold_ms INTEGER NOT NULL,
        partial INTEGER NOT NULL,
        created INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE group_members (
        machine TEXT PRIMARY KEY REFERENCES machines(id),
        grp     INTEGER NOT NULL REFERENCES groups(id) ON DELETE CASCADE,
        added   INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE group_points (
        id      INTEGER PRIMARY KEY AUTOINCREMENT,
        grp     INTEGER NOT NULL REFERENCES groups(id) ON DELETE CASCADE,
        name    TEXT NOT NULL,
        auto    INTEGER NOT NULL,
        state   TEXT NOT NULL,
        epoch   INTEGER NOT NULL,
        number  INTEGER NOT NULL,
        time    INTEGER NOT NULL,
        until   INTEGER NOT NULL,
        tries   INTEGER NOT NULL,
        held_us INTEGER NOT NULL,
        partial INTEGER NOT NULL,
        UNIQUE (grp, name)
    ) STRICT;
    CREATE INDEX group_points_of ON group_points(epoch, number);
    CREATE INDEX group_points_settling ON group_points(grp) WHERE state = 'settling';
    CREATE INDEX group_points_until ON group_points(grp, until);
    -- Who took part; why says who did not.
    CREATE TABLE group_parts (
        point   INTEGER NOT NULL REFERENCES group_points(id) ON DELETE CASCADE,
        machine TEXT NOT NULL,
        name    TEXT NOT NULL,
        why     TEXT,
        PRIMARY KEY (point, machine)
    ) STRICT;
    -- state: 0 on its way, 1 durable, 2 lost.
    CREATE TABLE group_markers (
        point   INTEGER NOT NULL REFERENCES group_points(id) ON DELETE CASCADE,
        machine TEXT NOT NULL,
        volume  TEXT NOT NULL,
        name    TEXT NOT NULL,
        ring    TEXT NOT NULL,
        seq     INTEGER NOT NULL,
        time    INTEGER NOT NULL,
        state   INTEGER NOT NULL,
        PRIMARY KEY (point, volume)
    ) STRICT;
    CREATE INDEX group_markers_pending ON group_markers(machine) WHERE state = 0;
    CREATE TABLE group_gaps (
        id    INTEGER PRIMARY KEY AUTOINCREMENT,
        grp   INTEGER NOT NULL REFERENCES groups(id) ON DELETE CASCADE,
        since INTEGER NOT NULL,
        until INTEGER NOT NULL,
        why   TEXT NOT NULL
    ) STRICT;
";

pub(super) fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

pub(super) fn find(db: &Connection, name: &str) -> Result<i64, CatalogueError> {
    let id = db.query_row("SELECT id FROM groups WHERE name = ?1", [name], |r| r.get(0)).optional()?;
    id.ok_or_else(|| {
        CatalogueError::NotFound(format!("there is no group '{name}': `afterimage group ls` shows what there is"))
    })
}

fn machine(db: &Connection, what: &str) -> Result<Member, CatalogueError> {
    let by_name = rows::find(db, Role::Agent, "name", what)?;
    if let Some(found) = by_name.map_or_else(|| rows::find(db, Role::Agent, "id", what), |m| Ok(Some(m)))? {
        return Ok(found);
    }
    let sql = "SELECT g.name, m.name FROM guests g JOIN machines m ON m.id = g.agent WHERE g.name = ?1 OR g.id = ?1";
    let guest: Option<(String, String)> = db.query_row(sql, [what], |r| Ok((r.get(0)?, r.get(1)?))).optional()?;
    Err(match guest {
        // A barrier closes the gates of an agent, all of them.
        Some((guest, agent)) => CatalogueError::Refused(format!(
            "machine '{guest}' is some of the disks of agent '{agent}', and a group takes all disks of an agent at one instant: name \
             machine '{agent}'"
        )),
        None => CatalogueError::NotFound(format!(
            "there is no machine '{what}': it has to join first (`afterimage mgmt ls`)"
        )),
    })
}

impl Change<'_> {
    /// Makes a group without members.
    ///
    /// # Errors
    /// If there is one of this name, or something in it is not allowed.
    pub fn create_group(&self, new: &NewGroup) -> Result<(), CatalogueError> {
        new.check().map_err(CatalogueError::Refused)?;
        new.policy.as_ref().map_or(Ok(()), |policy| super::objects::find_policy(&self.tx, policy).map(drop))?;
        let made = self.tx.execute(
            "INSERT INTO groups (name, every, hold_ms, partial, created, policy, app_minutes) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT DO NOTHING",
            (
                &new.name,
                signed(new.every_seconds),
                i64::from(new.hold_ms),
                new.partial,
                self.time,
                &new.policy,
                new.app_every_minutes,
            ),
        )?;
        if made == 0 {
            return Err(CatalogueError::Conflict(format!("there is a group '{}' already", new.name)));
        }
        self.log("create-group", &format!("group {}", new.name), &new.to_string())
    }

    /// Changes interval, hold and policy of a group; its name says which.
    ///
    /// # Errors
    /// If there is none, or something is not allowed.
    pub fn set_group(&self, new: &NewGroup) -> Result<(), CatalogueError> {
        new.check().map_err(CatalogueError::Refused)?;
        new.policy.as_ref().map_or(Ok(()), |policy| super::objects::find_policy(&self.tx, policy).map(drop))?;
        let id = find(&self.tx, &new.name)?;
        self.tx.execute(
            "UPDATE groups SET every = ?2, hold_ms = ?3, partial = ?4, policy = ?5, app_minutes = ?6 WHERE id = ?1",
            (id, signed(new.every_seconds), i64::from(new.hold_ms), new.partial, &new.policy, new.app_every_minutes),
        )?;
        self.log("set-group", &format!("group {}", new.name), &new.to_string())
    }

    /// Removes a group and its points. Machines and their history stay.
    ///
    /// # Errors
    /// If there is none.
    pub fn remove_group(&self, name: &str) -> Result<(), CatalogueError> {
        let id = find(&self.tx, name)?;
        super::keeping::let_group_go(&self.tx, id)?;
        self.tx.execute("DELETE FROM groups WHERE id = ?1", [id])?;
        self.log("remove-group", &format!("group {name}"), "")
    }

    /// Adds machines to a group, from its next point on.
    ///
    /// # Errors
    /// If there is no such group or machine, or the machine is in another group.
    pub fn add_to_group(&self, group: &str, machines: &[String]) -> Result<(), CatalogueError> {
        let id = find(&self.tx, group)?;
        for what in machines {
            let m = machine(&self.tx, what)?;
            let sql = "SELECT g.name FROM group_members m JOIN groups g ON g.id = m.grp WHERE m.machine = ?1";
            let there: Option<String> = self.tx.query_row(sql, [&m.id], |r| r.get(0)).optional()?;
            if let Some(there) = there {
                return Err(CatalogueError::Conflict(format!(
                    "machine '{}' is in group '{there}': a machine is in one group at a time",
                    m.name
                )));
            }
            let sql = "INSERT INTO group_members (machine, grp, added) VALUES (?1, ?2, ?3)";
            self.tx.execute(sql, (&m.id, id, self.time))?;
            self.log("add-to-group", &format!("group {group}"), &m.name)?;
        }
        Ok(())
    }

    /// Takes machines out of a group, from its next point on.
    ///
    /// # Errors
    /// If one of them is not in it.
    pub fn remove_from_group(&self, group: &str, machines: &[String]) -> Result<(), CatalogueError> {
        let id = find(&self.tx, group)?;
        for what in machines {
            let m = machine(&self.tx, what)?;
            let sql = "DELETE FROM group_members WHERE machine = ?1 AND grp = ?2";
            if self.tx.execute(sql, (&m.id, id))? == 0 {
                return Err(CatalogueError::NotFound(format!("machine '{}' is not in group '{group}'", m.name)));
            }
            self.log("remove-from-group", &format!("group {group}"), &m.name)?;
        }
        Ok(())
    }
}

/// A group. What its policy says stands in the place of what it says itself.
const GROUP: &str = "SELECT g.id, g.name, coalesce(p.crash_seconds, g.every), g.hold_ms, coalesce(p.allow_partial, g.partial), g.created,
    g.policy, coalesce(p.app_minutes, g.app_minutes), g.on_hold FROM groups g LEFT JOIN policies p ON p.name = g.policy ORDER BY g.name";

fn group_of(row: &Row<'_>) -> rusqlite::Result<Group> {
    Ok(Group {
        id: row.get(0)?,
        name: row.get(1)?,
        every_seconds: unsigned(row.get(2)?),
        hold_ms: u32::try_from(row.get::<_, i64>(3)?).unwrap_or(0),
        partial: row.get(4)?,
        created: row.get(5)?,
        policy: row.get(6)?,
        app_every_minutes: row.get(7)?,
        on_hold: row.get::<_, i64>(8)? == 1,
        released: row.get::<_, i64>(8)? == 2,
        members: Vec::new(),
    })
}

impl Catalogue {
    /// Writes what mgmt has seen by itself: it needs no entry in the audit log, as it is one.
    ///
    /// # Errors
    /// What `make` says, or the database; nothing is changed then.
    pub(crate) fn note<T>(
        &self,
        make: impl FnOnce(&Transaction<'_>) -> Result<T, CatalogueError>,
    ) -> Result<T, CatalogueError> {
        let mut db = self.lock();
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let out = make(&tx)?;
        tx.commit()?;
        Ok(out)
    }

    /// Notes which life of mgmt this is.
    pub(crate) fn set_epoch(&self, epoch: u64) -> Result<(), CatalogueError> {
        self.note(|tx| {
            let sql = "INSERT OR REPLACE INTO settings (key, value) VALUES ('epoch', ?1)";
            tx.execute(sql, [epoch.to_string()])?;
            Ok(())
        })
    }

    /// All groups with their members, by name.
    ///
    /// # Errors
    /// Those of the database.
    pub fn groups(&self) -> Result<Vec<Group>, CatalogueError> {
        let db = self.lock();
        let mut rows = db.prepare_cached(GROUP)?;
        let mut groups = rows.query_map([], group_of)?.collect::<rusqlite::Result<Vec<_>>>()?;
        let sql = "SELECT m.id, m.name FROM group_members g JOIN machines m ON m.id = g.machine WHERE g.grp = ?1 ORDER BY m.name";
        let mut rows = db.prepare_cached(sql)?;
        for group in &mut groups {
            let member = |r: &Row<'_>| Ok(GroupMember { id: r.get(0)?, name: r.get(1)?, connected: false });
            group.members = rows.query_map([group.id], member)?.collect::<rusqlite::Result<_>>()?;
        }
        Ok(groups)
    }

    /// The volumes that each machine of a group is known to have. One that its agent does not serve is among them: it is a part of the
    /// machine until somebody says that it is none any more.
    ///
    /// # Errors
    /// Those of the database.
    pub(crate) fn volumes_of_group(&self, group: i64) -> Result<BTreeMap<String, Vec<KnownVolume>>, CatalogueError> {
        let db = self.lock();
        let sql = "SELECT v.agent, v.id, v.name, v.gone IS NOT NULL FROM volumes v
                   JOIN group_members m ON m.machine = v.agent WHERE m.grp = ?1 ORDER BY v.name";
        let mut rows = db.prepare_cached(sql)?;
        let mut rows = rows.query([group])?;
        let mut out: BTreeMap<String, Vec<KnownVolume>> = BTreeMap::new();
        while let Some(r) = rows.next()? {
            let volume = KnownVolume { id: r.get(1)?, name: r.get(2)?, gone: r.get(3)? };
            out.entry(r.get(0)?).or_default().push(volume);
        }
        Ok(out)
    }
}

/// A volume that a machine is known to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KnownVolume {
    /// Its id (UUID).
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its agent said that it does not serve it any more.
    pub gone: bool,
}

#[cfg(test)]
#[path = "groups_tests.rs"]
mod tests;
