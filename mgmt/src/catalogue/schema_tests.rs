use super::*;
use crate::catalogue::{ApiRole, Catalogue};
use crate::groups::PointState;
use rusqlite::params;
use std::path::Path;

const VAULT: &str = "00000000-0000-0000-0000-000000000099";
const MACHINE: &str = "00000000-0000-0000-0000-000000000001";
const GUEST: &str = "00000000-0000-0000-0000-000000000007";
const VOLUME: &str = "00000000-0000-0000-0000-000000000011";
/// The year 2200.
const LATER: i64 = 7_258_118_400;

/// What a program of each version may have left, in the columns that it knew.
fn fill(db: &Connection, version: usize) {
    let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| {
        db.execute(sql, values).unwrap_or_else(|e| panic!("version {version}: {sql}: {e}"));
    };
    run("INSERT INTO settings VALUES ('epoch', '6')", &[]);
    run("INSERT INTO appliances VALUES (?1, 'vault', 'host-v', 10, NULL)", params![VAULT]);
    run("INSERT INTO machines VALUES (?1, 'web', 'host-w', ?2, 11, NULL)", params![MACHINE, VAULT]);
    run("INSERT INTO tokens VALUES (1, x'aa', 'agent', 'mail', NULL, ?1, 10, ?2, NULL, NULL)", params![VAULT, LATER]);
    run("INSERT INTO certificates VALUES ('0a', 'agent', ?1, 'web', 1, ?2, 1, 5)", params![MACHINE, LATER]);
    run("INSERT INTO audit VALUES (1, 11, 'me', 'join', 'agent web', 'from host-w')", &[]);
    if version < 2 {
        return;
    }
    run("INSERT INTO guests VALUES (?1, 'db', ?2, 12)", params![GUEST, MACHINE]);
    run(
        "INSERT INTO volumes VALUES (?1, ?2, ?3, 'data', '/dev/vdb', 4096, 'live', 13, NULL)",
        params![MACHINE, VOLUME, GUEST],
    );
    run("INSERT INTO policies VALUES ('gold', 7200, 1, 2, 3, 4, 5, 6, 1, 14, 15)", &[]);
    run("INSERT INTO protections VALUES (?1, 'gold', '{}', 16, 17)", params![MACHINE]);
    run("INSERT INTO jobs VALUES (3, 'protect', 'machine web', 'me', 'done', 'by policy gold', 18, 19)", &[]);
    run("INSERT INTO events VALUES (8, 20, 'warning', 'away', 'machine web', 'it is away')", &[]);
    run("INSERT INTO api_tokens VALUES (2, x'bb', 'grafana', 'viewer', 21, ?1, NULL)", params![LATER]);
    if version < 3 {
        return;
    }
    run("INSERT INTO groups (id, name, every, hold_ms, partial, created) VALUES (4, 'shop', 30, 50, 1, 22)", &[]);
    run("INSERT INTO group_members VALUES (?1, 4, 23)", params![MACHINE]);
    let point =
        "INSERT INTO group_points (id, grp, name, auto, state, epoch, number, time, until, tries, held_us, partial)
                 VALUES (?1, 4, ?2, 1, ?3, 6, ?1, 24, 25, 1, 26, 0)";
    run(point, params![1, "p1", "complete"]);
    run(point, params![2, "p2", "settling"]);
    for (n, state) in [(1, 1), (2, 0)] {
        run("INSERT INTO group_parts VALUES (?1, ?2, 'web', NULL)", params![n, MACHINE]);
        let marker = "INSERT INTO group_markers VALUES (?1, ?2, ?3, 'data', '0707070707070707', ?4, 24, ?5)";
        run(marker, params![n, MACHINE, VOLUME, n * 10, state]);
    }
    run("INSERT INTO group_gaps VALUES (1, 4, 27, 28, 'mgmt was not running')", &[]);
    if version < 4 {
        return;
    }
    run("UPDATE groups SET policy = 'gold', app_minutes = 9, on_hold = 1", &[]);
    run("UPDATE group_points SET pinned = 1 WHERE id = 1", &[]);
    run("INSERT INTO group_pins VALUES (?1, 10, ?2, 4, 1, 'shop/p1', 24, 0)", params![VOLUME, VAULT]);
    if version < 5 {
        return;
    }
    let seen = r#"{"id":"j1","what":"failover","subject":"web","stage":"running","outcome":null,"trouble":null,"committed":true,
                   "waits_for":null,"part_of":null,"created":"2026-03-01T14:30:00Z","until":null}"#;
    run("INSERT INTO recoveries VALUES (1, ?1, 'j1', ?2, 29)", params![VAULT, seen]);
}

/// A database as a program of this version left it.
fn old(path: &Path, version: usize) {
    let db = Connection::open(path).unwrap();
    db.pragma_update(None, "journal_mode", "WAL").unwrap();
    db.pragma_update(None, "foreign_keys", "ON").unwrap();
    for step in &STEPS[..version] {
        db.execute_batch(step).unwrap();
    }
    db.pragma_update(None, "user_version", i64::try_from(version).unwrap()).unwrap();
    fill(&db, version);
}

/// What it left is there, in the words of the present program.
fn read(c: &Catalogue, version: usize) {
    assert_eq!(c.setting("epoch").unwrap().as_deref(), Some("6"));
    let members: Vec<_> = c.members().unwrap().into_iter().map(|m| (m.name, m.host, m.vault, m.created)).collect();
    let member = |name: &str, host: &str, created| (name.to_owned(), host.to_owned(), VAULT.to_owned(), created);
    assert_eq!(members, [member("vault", "host-v", 10), member("web", "host-w", 11)]);
    let token = c.tokens().unwrap().remove(0);
    assert_eq!((token.name.as_deref(), token.created, token.expires), (Some("mail"), 10, LATER));
    assert_eq!(c.certificates().unwrap()[0].serial, "0a");
    assert_eq!(c.revocations().unwrap().serials, [[10]]);
    let audit = c.audit(1000).unwrap().remove(0);
    assert_eq!((audit.time, &*audit.who, &*audit.action, &*audit.detail), (11, "me", "join", "from host-w"));
    if version < 2 {
        return;
    }
    let guest = c.guests().unwrap().remove(0);
    assert_eq!((&*guest.name, &*guest.agent), ("db", MACHINE));
    let volume = c.volumes().unwrap().remove(0);
    assert_eq!((&*volume.name, volume.guest.as_deref(), volume.size, volume.gone), ("data", Some(GUEST), 4096, None));
    let gold = c.policy("gold").unwrap();
    let s = &gold.settings;
    assert_eq!((s.window_seconds, s.hourly, s.daily, s.weekly, s.monthly), (7200, 1, 2, 3, 4));
    let (crash, app, partial) = (s.crash_interval_seconds, s.app_interval_minutes, s.allow_partial);
    assert_eq!((crash, app, partial, gold.changed), (5, 6, true, 15));
    assert_eq!(c.protections().unwrap()[0].policy, "gold");
    let job = c.job(3).unwrap().unwrap();
    assert_eq!((&*job.state, &*job.text, job.ended), ("done", "by policy gold", Some(19)));
    let event = c.events(7, 1).unwrap().remove(0);
    assert_eq!((event.id, &*event.event.kind, &*event.event.text), (8, "away", "it is away"));
    let token = c.api_tokens().unwrap().remove(0);
    assert_eq!((&*token.name, token.role, token.expires), ("grafana", ApiRole::Viewer, LATER));
    if version < 3 {
        return;
    }
    let group = c.groups().unwrap().into_iter().find(|g| g.name == "shop").unwrap();
    assert_eq!((group.hold_ms, group.created, &*group.members[0].name), (50, 22, "web"));
    // What is new in version 4 is as if nobody had said anything.
    let of_group = (group.policy.as_deref(), group.every_seconds, group.app_every_minutes, group.on_hold);
    assert_eq!(of_group, if version < 4 { (None, 30, 0, false) } else { (Some("gold"), 5, 6, true) });
    let (points, gaps) = c.group_points("shop", None, 10).unwrap();
    assert_eq!((&*points[0].name, points[0].state, points[0].held_us), ("p1", PointState::Complete, 26));
    assert_eq!((points[0].pinned, points[0].app.is_none()), (version >= 4, true));
    let part = &points[0].volumes[0];
    assert_eq!((&*part.volume, part.seq, part.appliance.as_deref()), ("data", 10, Some("vault")));
    assert!(points[1].state == PointState::Settling && points[1].volumes.is_empty());
    assert_eq!((gaps[0].since.0, &*gaps[0].why), (27, "mgmt was not running"));
    let due = c.pins_due(VAULT, 10).unwrap();
    assert_eq!(due.len(), usize::from(version >= 4));
    if version < 5 {
        return;
    }
    let recovery = c.recoveries(Some(VAULT), 10).unwrap().remove(0);
    assert_eq!((&*recovery.recovery.subject, recovery.recovery.committed, recovery.changed), ("web", true, 29));
}

#[test]
fn what_every_older_version_left_is_read_and_gone_on_with() {
    for version in 1..=VERSION {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.sqlite");
        old(&path, version);
        // Once brought up to date it is like any other: also the second time.
        for _ in 0..2 {
            let c = Catalogue::open(&path).unwrap_or_else(|e| panic!("version {version}: {e}"));
            read(&c, version);
            let now: i64 = c.lock().pragma_query_value(None, "user_version", |r| r.get(0)).unwrap();
            assert_eq!(usize::try_from(now), Ok(VERSION));
        }
        // It does what a new one does.
        let c = Catalogue::open(&path).unwrap();
        let settings = crate::catalogue::PolicySettings::default();
        c.change("me", |change| {
            change.create_policy("new", &settings)?;
            change.protect((MACHINE, "web"), "new", "{}")?;
            change.create_group(&crate::groups::NewGroup {
                name: "late".to_owned(),
                every_seconds: 1,
                hold_ms: 100,
                partial: false,
                app_every_minutes: 0,
                policy: Some("new".to_owned()),
            })?;
            if version >= 3 {
                change.remove_from_group("shop", &["web".to_owned()])?;
            }
            change.add_to_group("late", &["web".to_owned()])
        })
        .unwrap_or_else(|e| panic!("version {version}: {e}"));
        let late = c.groups().unwrap().remove(0);
        assert_eq!((&*late.name, &*late.members[0].name), ("late", "web"));
    }
}

#[test]
fn a_step_that_fails_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.sqlite");
    old(&path, 1);
    // A table that the second step wants to make is there already, made by nobody knows whom.
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE events (x TEXT) STRICT").unwrap();
    assert!(Catalogue::open(&path).is_err());
    let db = Connection::open(&path).unwrap();
    let version: i64 = db.pragma_query_value(None, "user_version", |r| r.get(0)).unwrap();
    let tables: i64 = db
        .query_row("SELECT count(*) FROM sqlite_master WHERE name IN ('guests', 'volumes')", [], |r| r.get(0))
        .unwrap();
    assert_eq!((version, tables), (1, 0), "all of it or nothing");
    db.execute_batch("DROP TABLE events").unwrap();
    drop(db);
    read(&Catalogue::open(&path).unwrap(), 1);
}
