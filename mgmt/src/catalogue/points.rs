//! Points of groups: how barriers ended, and what has become of their markers.
//!
//! A point is written when it is decided, never before: a kill of mgmt in the middle of a barrier leaves nothing. It is `settling`, and
//! shown to nobody as a point, until every marker is durable; that, too, is one transaction.

use super::groups::{find, signed, unsigned};
use super::{Catalogue, CatalogueError};
use crate::groups::{Gap, GroupApp, Missing, Point, PointState, Restorable};
use afterimage_base::barrier::{Outcome, Part, Why, settle};
use afterimage_format::coord::group::{Held, Marker, Named};
use afterimage_trust::identity::{hex, unhex};
use rusqlite::{Connection, OptionalExtension, Row, Transaction};
use std::collections::BTreeMap;
use uuid::Uuid;

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
    /// How it was made app-consistent, if that was wanted.
    pub app: Option<GroupApp>,
}

fn state_of(text: &str) -> PointState {
    match text {
        "complete" => PointState::Complete,
        "partial" => PointState::Partial,
        "settling" => PointState::Settling,
        "expired" => PointState::Expired,
        _ => PointState::Failed,
    }
}

const fn word(state: PointState) -> &'static str {
    match state {
        PointState::Complete => "complete",
        PointState::Partial => "partial",
        PointState::Settling => "settling",
        PointState::Failed => "failed",
        PointState::Expired => "expired",
    }
}

impl Catalogue {
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

    /// When the group's schedule made an app-consistent point last, nanoseconds since 1970; `None` if it never did.
    ///
    /// # Errors
    /// Those of the database.
    pub(crate) fn last_app(&self, group: i64) -> Result<Option<i64>, CatalogueError> {
        let db = self.lock();
        let sql = "SELECT max(until) FROM group_points WHERE grp = ?1 AND auto AND app IS NOT NULL";
        Ok(db.prepare_cached(sql)?.query_row([group], |r| r.get(0))?)
    }

    /// When the newest point of a group that can be restored was made, nanoseconds since 1970.
    ///
    /// # Errors
    /// Those of the database.
    pub(crate) fn newest_point(&self, group: i64) -> Result<Option<u64>, CatalogueError> {
        let db = self.lock();
        let sql = "SELECT time FROM group_points WHERE grp = ?1 AND state IN ('complete', 'partial') ORDER BY id DESC LIMIT 1";
        Ok(db.prepare_cached(sql)?.query_row([group], |r| r.get(0)).optional()?.map(unsigned))
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
            let sql = "DELETE FROM group_points WHERE grp = ?1 AND name = ?2 AND state = 'failed'";
            tx.prepare_cached(sql)?.execute((ended.group, &ended.name))?;
            let app = ended.app.as_ref().and_then(|app| serde_json::to_string(app).ok());
            let state = word(if decided { PointState::Settling } else { PointState::Failed });
            let made = tx.execute(
                "INSERT INTO group_points (grp, name, auto, state, epoch, number, time, until, tries, held_us, partial, app)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, 1, ?8, ?9, ?10) ON CONFLICT DO NOTHING",
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
                    &app,
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
                    // From here on the machine is known to have it, whether it was reported yet or not.
                    let volume = Uuid::from_bytes(m.volume).to_string();
                    let sql = "INSERT OR IGNORE INTO volumes (agent, id, name, path, size, state, since)
                               VALUES (?1, ?2, ?3, '', 0, 'live', ?4)";
                    tx.prepare_cached(sql)?.execute((id, &volume, &m.name, super::now()))?;
                    let sql = "INSERT INTO group_markers (point, machine, volume, name, ring, seq, time, state)
                               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0)";
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
        let sql = "SELECT id, name, auto, state, time, until, tries, held_us, pinned, app FROM group_points
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

    /// Forgets what cannot be restored and is older than `before`, nanoseconds since 1970.
    pub(crate) fn forget_points(&self, before: i64) -> Result<(), CatalogueError> {
        self.note(|tx| {
            let sql = "DELETE FROM group_points WHERE until < ?1 AND auto AND state IN ('failed', 'expired')";
            tx.execute(sql, [before])?;
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
        pinned: row.get(8)?,
        app: row.get::<_, Option<String>>(9)?.and_then(|text| serde_json::from_str(&text).ok()),
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
