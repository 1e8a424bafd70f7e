//! Groups and their points.
//!
//! What people change is in the audit log like everything else. What mgmt sees by itself, the points, is a record of its own and goes
//! through [`Catalogue::note`].
//!
//! A point is written when it is decided, never before: a kill of mgmt in the middle of a barrier leaves nothing. It is `settling`, and
//! shown to nobody as a point, until every marker is durable; that, too, is one transaction.

use super::{Catalogue, CatalogueError, Change, Member, rows};
use crate::groups::{Gap, Group, GroupMember, Missing, NewGroup, Point, PointState, Restorable};
use afterimage_base::barrier::{Outcome, Part, Why, settle};
use afterimage_format::coord::group::{Held, Marker, Named};
use afterimage_trust::Role;
use afterimage_trust::identity::{hex, unhex};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior};
use std::collections::BTreeMap;
use uuid::Uuid;

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

/// Points that may wait for their markers, for each group: more are of no use to anybody.
const MOST_SETTLING: i64 = 1000;

/// A barrier that has ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Of which group.
    pub group: i64,
    /// The point's name.
    pub name: String,
    /// Made by the schedule.
    pub auto: bool,
    /// Which barrier.
    pub of: Named,
    /// When it began, nanoseconds since 1970.
    pub time: i64,
    /// The longest that a gate was closed, microseconds.
    pub held_us: i64,
    /// All members: id, name, and their markers, or why there are none.
    pub members: Vec<(String, String, Result<Vec<Marker>, String>)>,
    /// Whether a point of some was wanted.
    pub partial: bool,
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

fn find(db: &Connection, name: &str) -> Result<i64, CatalogueError> {
    let id = db.query_row("SELECT id FROM groups WHERE name = ?1", [name], |r| r.get(0)).optional()?;
    id.ok_or_else(|| {
        CatalogueError::NotFound(format!("there is no group '{name}': `afterimage group ls` shows what there is"))
    })
}

fn machine(db: &Connection, what: &str) -> Result<Member, CatalogueError> {
    let by_name = rows::find(db, Role::Agent, "name", what)?;
    by_name.map_or_else(|| rows::find(db, Role::Agent, "id", what), |m| Ok(Some(m)))?.ok_or_else(|| {
        CatalogueError::NotFound(format!("there is no machine '{what}': it has to join first (`afterimage mgmt ls`)"))
    })
}

impl Change<'_> {
    /// Makes a group without members.
    ///
    /// # Errors
    /// If there is one of this name, or something in it is not allowed.
    pub fn create_group(&self, new: &NewGroup) -> Result<(), CatalogueError> {
        new.check().map_err(CatalogueError::Refused)?;
        let made = self.tx.execute(
            "INSERT INTO groups (name, every, hold_ms, partial, created) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING",
            (&new.name, signed(new.every_seconds), i64::from(new.hold_ms), new.partial, self.time),
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
        let id = find(&self.tx, &new.name)?;
        self.tx.execute(
            "UPDATE groups SET every = ?2, hold_ms = ?3, partial = ?4 WHERE id = ?1",
            (id, signed(new.every_seconds), i64::from(new.hold_ms), new.partial),
        )?;
        self.log("set-group", &format!("group {}", new.name), &new.to_string())
    }

    /// Removes a group and its points. Machines and their history stay.
    ///
    /// # Errors
    /// If there is none.
    pub fn remove_group(&self, name: &str) -> Result<(), CatalogueError> {
        let id = find(&self.tx, name)?;
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

fn group_of(row: &Row<'_>) -> rusqlite::Result<Group> {
    Ok(Group {
        id: row.get(0)?,
        name: row.get(1)?,
        every_seconds: unsigned(row.get(2)?),
        hold_ms: u32::try_from(row.get::<_, i64>(3)?).unwrap_or(0),
        partial: row.get(4)?,
        created: row.get(5)?,
        members: Vec::new(),
    })
}

fn state_of(text: &str) -> PointState {
    match text {
        "complete" => PointState::Complete,
        "partial" => PointState::Partial,
        "settling" => PointState::Settling,
        _ => PointState::Failed,
    }
}

const fn word(state: PointState) -> &'static str {
    match state {
        PointState::Complete => "complete",
        PointState::Partial => "partial",
        PointState::Settling => "settling",
        PointState::Failed => "failed",
    }
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
        let mut rows =
            db.prepare_cached("SELECT id, name, every, hold_ms, partial, created FROM groups ORDER BY name")?;
        let mut groups = rows.query_map([], group_of)?.collect::<rusqlite::Result<Vec<_>>>()?;
        let sql = "SELECT m.id, m.name FROM group_members g JOIN machines m ON m.id = g.machine WHERE g.grp = ?1 ORDER BY m.name";
        let mut rows = db.prepare_cached(sql)?;
        for group in &mut groups {
            let member = |r: &Row<'_>| Ok(GroupMember { id: r.get(0)?, name: r.get(1)?, connected: false });
            group.members = rows.query_map([group.id], member)?.collect::<rusqlite::Result<_>>()?;
        }
        Ok(groups)
    }

    /// When the group's schedule tried last, nanoseconds since 1970; `None` if it never did.
    ///
    /// # Errors
    /// Those of the database.
    pub(crate) fn last_try(&self, group: i64) -> Result<Option<i64>, CatalogueError> {
        let db = self.lock();
        let sql = "SELECT max(until) FROM group_points WHERE grp = ?1 AND auto";
        let point: Option<i64> = db.prepare_cached(sql)?.query_row([group], |r| r.get(0))?;
        let sql = "SELECT max(until) FROM group_gaps WHERE grp = ?1";
        let gap: Option<i64> = db.prepare_cached(sql)?.query_row([group], |r| r.get(0))?;
        Ok(point.max(gap))
    }

    /// Notes a time in which no point was tried.
    pub(crate) fn note_gap(&self, group: i64, since: i64, until: i64, why: &str) -> Result<(), CatalogueError> {
        self.note(|tx| {
            let sql = "INSERT INTO group_gaps (grp, since, until, why) VALUES (?1, ?2, ?3, ?4)";
            tx.execute(sql, (group, since, until, why))?;
            Ok(())
        })
    }

    /// Whether so many points of the group wait for their markers that another one is of no use.
    pub(crate) fn is_behind(&self, group: i64) -> Result<bool, CatalogueError> {
        let db = self.lock();
        let sql = "SELECT count(*) FROM group_points WHERE grp = ?1 AND state = 'settling'";
        let n: i64 = db.prepare_cached(sql)?.query_row([group], |r| r.get(0))?;
        Ok(n >= MOST_SETTLING)
    }

    /// Keeps how a barrier ended, and returns the point's number. `decided`: it was held by all who have markers.
    pub(crate) fn keep_point(&self, ended: &Ended, decided: bool) -> Result<i64, CatalogueError> {
        self.note(|tx| {
            if !decided
                && ended.auto
                && let Some(id) = repeat(tx, ended)?
            {
                return Ok(id);
            }
            let state = word(if decided { PointState::Settling } else { PointState::Failed });
            let made = tx.execute(
                "INSERT INTO group_points (grp, name, auto, state, epoch, number, time, until, tries, held_us, partial)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, 1, ?8, ?9) ON CONFLICT DO NOTHING",
                (
                    ended.group,
                    &ended.name,
                    ended.auto,
                    state,
                    signed(ended.of.epoch),
                    signed(ended.of.number),
                    ended.time,
                    ended.held_us,
                    ended.partial,
                ),
            )?;
            if made == 0 {
                return Err(CatalogueError::Conflict(format!("the group has a point '{}' already", ended.name)));
            }
            let point = tx.last_insert_rowid();
            for (id, name, markers) in &ended.members {
                let why = markers.as_ref().err();
                let sql = "INSERT INTO group_parts (point, machine, name, why) VALUES (?1, ?2, ?3, ?4)";
                tx.prepare_cached(sql)?.execute((point, id, name, why))?;
                for m in markers.iter().flatten().filter(|_| decided) {
                    let sql = "INSERT INTO group_markers (point, machine, volume, name, ring, seq, time, state)
                               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0)";
                    let volume = Uuid::from_bytes(m.volume).to_string();
                    let row = (point, id, volume, &m.name, hex(&m.ring), signed(m.seq), signed(m.time));
                    tx.prepare_cached(sql)?.execute(row)?;
                }
            }
            Ok(point)
        })
    }

    /// Notes what became of markers, and ends the points of which all is known. Returns their names and states.
    pub(crate) fn settle(
        &self,
        news: &[(Uuid, afterimage_format::coord::group::Settled)],
    ) -> Result<Vec<(String, String, PointState)>, CatalogueError> {
        self.note(|tx| {
            let mut points = BTreeMap::new();
            for (machine, s) in news {
                let sql = "UPDATE group_markers SET state = ?5 WHERE machine = ?1 AND volume = ?2 AND state = 0 AND point =
                           (SELECT id FROM group_points WHERE epoch = ?3 AND number = ?4 AND state = 'settling') RETURNING point";
                let volume = Uuid::from_bytes(s.volume).to_string();
                let (epoch, number) = (signed(s.of.epoch), signed(s.of.number));
                let row = (machine.to_string(), volume, epoch, number, if s.durable { 1 } else { 2 });
                let point: Option<i64> = tx.prepare_cached(sql)?.query_row(row, |r| r.get(0)).optional()?;
                points.extend(point.map(|p| (p, ())));
            }
            let mut out = Vec::new();
            for point in points.into_keys() {
                out.extend(finish(tx, point)?);
            }
            Ok(out)
        })
    }

    /// The markers of a machine that are waited for.
    pub(crate) fn pending(&self, machine: &Uuid) -> Result<Vec<Held>, CatalogueError> {
        let db = self.lock();
        let sql = "SELECT p.epoch, p.number, k.volume, k.ring, k.seq, k.time, k.name FROM group_markers k
                   JOIN group_points p ON p.id = k.point WHERE k.machine = ?1 AND k.state = 0 AND p.state = 'settling'
                   ORDER BY p.id";
        let mut rows = db.prepare_cached(sql)?;
        let mut rows = rows.query([machine.to_string()])?;
        let mut out: Vec<Held> = Vec::new();
        while let Some(r) = rows.next()? {
            let of = Named { epoch: unsigned(r.get(0)?), number: unsigned(r.get(1)?) };
            let marker = Marker {
                volume: Uuid::try_parse(&r.get::<_, String>(2)?).unwrap_or_default().into_bytes(),
                ring: unhex(&r.get::<_, String>(3)?).and_then(|b| b.try_into().ok()).unwrap_or_default(),
                seq: unsigned(r.get(4)?),
                time: unsigned(r.get(5)?),
                name: r.get(6)?,
            };
            match out.last_mut().filter(|h| h.of == of) {
                Some(held) => held.markers.push(marker),
                None => out.push(Held { of, markers: vec![marker] }),
            }
        }
        Ok(out)
    }

    /// The newest points of a group, or the one of this name, the newest last, with what was missed in between.
    ///
    /// # Errors
    /// [`CatalogueError::NotFound`] if there is no such group or point.
    pub fn group_points(
        &self,
        group: &str,
        name: Option<&str>,
        most: u32,
    ) -> Result<(Vec<Point>, Vec<Gap>), CatalogueError> {
        let db = self.lock();
        let id = find(&db, group)?;
        let sql = "SELECT id, name, auto, state, time, until, tries, held_us FROM group_points
                   WHERE grp = ?1 AND (?2 IS NULL OR name = ?2) ORDER BY id DESC LIMIT ?3";
        let mut rows = db.prepare_cached(sql)?;
        let mut points = rows.query_map((id, name, most), point_of)?.collect::<rusqlite::Result<Vec<_>>>()?;
        if let (Some(name), true) = (name, points.is_empty()) {
            return Err(CatalogueError::NotFound(format!("group '{group}' has no point '{name}'")));
        }
        points.reverse();
        for point in &mut points {
            parts(&db, point)?;
        }
        let sql = "SELECT since, until, why FROM group_gaps WHERE grp = ?1 ORDER BY id DESC LIMIT ?2";
        let mut rows = db.prepare_cached(sql)?;
        let gap = |r: &Row<'_>| Ok(Gap { since: time(r.get(0)?), until: time(r.get(1)?), why: r.get(2)? });
        let mut gaps = rows.query_map((id, most), gap)?.collect::<rusqlite::Result<Vec<_>>>()?;
        gaps.reverse();
        Ok((points, gaps))
    }

    /// Forgets what is older than `before`, nanoseconds since 1970.
    pub(crate) fn forget_points(&self, before: i64) -> Result<(), CatalogueError> {
        self.note(|tx| {
            tx.execute("DELETE FROM group_points WHERE until < ?1 AND auto", [before])?;
            tx.execute("DELETE FROM group_gaps WHERE until < ?1", [before])?;
            Ok(())
        })
    }
}

fn time(nanos: i64) -> crate::units::Time {
    crate::units::Time(unsigned(nanos))
}

fn point_of(row: &Row<'_>) -> rusqlite::Result<Point> {
    Ok(Point {
        id: row.get(0)?,
        name: row.get(1)?,
        auto: row.get(2)?,
        state: state_of(&row.get::<_, String>(3)?),
        time: time(row.get(4)?),
        until: time(row.get(5)?),
        tries: unsigned(row.get(6)?),
        held_us: unsigned(row.get(7)?),
        missing: Vec::new(),
        volumes: Vec::new(),
    })
}

/// Who is missing in a point, and where it lies in those who are not. A point that is none yet has no places.
fn parts(db: &Connection, point: &mut Point) -> Result<(), CatalogueError> {
    let sql = "SELECT name, why FROM group_parts WHERE point = ?1 AND why IS NOT NULL ORDER BY name";
    let mut rows = db.prepare_cached(sql)?;
    let missing = |r: &Row<'_>| Ok(Missing { machine: r.get(0)?, why: r.get(1)? });
    point.missing = rows.query_map([point.id], missing)?.collect::<rusqlite::Result<_>>()?;
    if !matches!(point.state, PointState::Complete | PointState::Partial) {
        return Ok(());
    }
    let sql = "SELECT p.name, a.name, k.name, k.volume, k.seq, k.time FROM group_markers k
               JOIN group_parts p ON p.point = k.point AND p.machine = k.machine AND p.why IS NULL
               LEFT JOIN machines m ON m.id = k.machine LEFT JOIN appliances a ON a.id = m.vault
               WHERE k.point = ?1 ORDER BY p.name, k.name";
    let mut rows = db.prepare_cached(sql)?;
    let volume = |r: &Row<'_>| {
        Ok(Restorable {
            machine: r.get(0)?,
            appliance: r.get(1)?,
            volume: r.get(2)?,
            id: r.get(3)?,
            seq: unsigned(r.get(4)?),
            time: time(r.get(5)?),
        })
    };
    point.volumes = rows.query_map([point.id], volume)?.collect::<rusqlite::Result<_>>()?;
    Ok(())
}

/// A barrier of the schedule that failed for the same reasons as the one before it makes no new row.
fn repeat(tx: &Transaction<'_>, ended: &Ended) -> Result<Option<i64>, CatalogueError> {
    let sql = "SELECT id FROM group_points WHERE grp = ?1 ORDER BY id DESC LIMIT 1";
    let last: Option<i64> = tx.prepare_cached(sql)?.query_row([ended.group], |r| r.get(0)).optional()?;
    let Some(last) = last else { return Ok(None) };
    let sql = "SELECT machine, why FROM group_parts WHERE point = ?1";
    let mut rows = tx.prepare_cached(sql)?;
    let then = rows.query_map([last], |r| Ok((r.get(0)?, r.get(1)?)))?;
    let then = then.collect::<rusqlite::Result<BTreeMap<String, Option<String>>>>()?;
    let now: BTreeMap<String, Option<String>> =
        ended.members.iter().map(|(id, _, m)| (id.clone(), m.as_ref().err().cloned())).collect();
    if then != now {
        return Ok(None);
    }
    let sql =
        "UPDATE group_points SET until = max(until, ?2), tries = tries + 1 WHERE id = ?1 AND state = 'failed' AND auto";
    Ok((tx.prepare_cached(sql)?.execute((last, ended.time))? == 1).then_some(last))
}

/// Ends a point if all is known of it.
fn finish(tx: &Transaction<'_>, point: i64) -> Result<Option<(String, String, PointState)>, CatalogueError> {
    let sql = "SELECT g.name, p.name, p.partial FROM group_points p JOIN groups g ON g.id = p.grp WHERE p.id = ?1";
    let (group, name, partial): (String, String, bool) =
        tx.prepare_cached(sql)?.query_row([point], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?;
    let sql = "SELECT p.machine, p.why IS NOT NULL, max(k.state), min(k.state) FROM group_parts p
               LEFT JOIN group_markers k ON k.point = p.point AND k.machine = p.machine WHERE p.point = ?1 GROUP BY p.machine";
    let mut rows = tx.prepare_cached(sql)?;
    let part = |r: &Row<'_>| {
        let (machine, out): (String, bool) = (r.get(0)?, r.get(1)?);
        let (most, least): (Option<i64>, Option<i64>) = (r.get(2)?, r.get(3)?);
        Ok((
            machine,
            match (out, most, least) {
                (false, Some(2), _) => Part::Out(Why::Lost),
                (false, Some(1), Some(1)) => Part::Durable,
                (false, Some(_), _) => Part::Stayed,
                _ => Part::Out(Why::Refused),
            },
        ))
    };
    let parts = rows.query_map([point], part)?.collect::<rusqlite::Result<Vec<(String, Part)>>>()?;
    for (machine, _) in parts.iter().filter(|(_, p)| *p == Part::Out(Why::Lost)) {
        let sql = "UPDATE group_parts SET why = ?3 WHERE point = ?1 AND machine = ?2";
        tx.prepare_cached(sql)?.execute((point, machine, crate::groups::reason(Why::Lost)))?;
    }
    let parts: Vec<Part> = parts.into_iter().map(|(_, p)| p).collect();
    let state = match settle(&parts, partial) {
        None => return Ok(None),
        Some(Outcome::Complete) => PointState::Complete,
        Some(Outcome::Partial) => PointState::Partial,
        Some(Outcome::Failed) => PointState::Failed,
    };
    tx.prepare_cached("UPDATE group_points SET state = ?2 WHERE id = ?1")?.execute((point, word(state)))?;
    Ok(Some((group, name, state)))
}

#[cfg(test)]
#[path = "groups_tests.rs"]
mod tests;
