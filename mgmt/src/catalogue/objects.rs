//! Policies, guests, and machines that are protected.

use super::rows::check_name;
use super::{Catalogue, CatalogueError, Change};
use crate::retention::RetentionChange;
use rusqlite::{Connection, OptionalExtension, Row};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// How far back any write can be kept, in seconds: ten years.
const MAX_WINDOW: u64 = 3650 * 86_400;
/// Most points of one kind.
const MAX_KEPT: u32 = 10_000;
/// Longest time between points that are consistent for a crash, in seconds.
const MAX_CRASH: u32 = 86_400;
/// Longest time between points that are consistent for applications, in minutes.
const MAX_APP: u32 = 10_080;

/// What a policy says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PolicySettings {
    /// How far back any write can be chosen, in seconds.
    pub window_seconds: u64,
    /// Hourly points that are kept beyond the window.
    pub hourly: u32,
    /// Daily ones.
    pub daily: u32,
    /// Weekly ones.
    pub weekly: u32,
    /// Monthly ones.
    pub monthly: u32,
    /// Time between points that are consistent for a crash, in seconds; 0 makes none.
    pub crash_interval_seconds: u32,
    /// Time between points that are consistent for applications, in minutes; 0 makes none.
    pub app_interval_minutes: u32,
    /// Whether a group's point is kept without members that failed, marked as partial.
    pub allow_partial: bool,
}

impl Default for PolicySettings {
    fn default() -> PolicySettings {
        PolicySettings {
            window_seconds: 86_400,
            hourly: 0,
            daily: 0,
            weekly: 0,
            monthly: 0,
            crash_interval_seconds: 60,
            app_interval_minutes: 0,
            allow_partial: false,
        }
    }
}

impl PolicySettings {
    /// Whether all is within bounds.
    ///
    /// # Errors
    /// [`CatalogueError::Refused`] names what is not.
    pub fn check(&self) -> Result<(), CatalogueError> {
        let bound = |what: &str, value: u64, low: u64, high: u64| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            Err(CatalogueError::Refused(format!("{what} is {value}: from {low} to {high} is possible")))
        };
        bound("window_seconds", self.window_seconds, 60, MAX_WINDOW)?;
        for (what, value) in
            [("hourly", self.hourly), ("daily", self.daily), ("weekly", self.weekly), ("monthly", self.monthly)]
        {
            bound(what, value.into(), 0, MAX_KEPT.into())?;
        }
        bound("crash_interval_seconds", self.crash_interval_seconds.into(), 0, MAX_CRASH.into())?;
        bound("app_interval_minutes", self.app_interval_minutes.into(), 0, MAX_APP.into())
    }

    /// What it says of what is kept.
    #[must_use]
    pub fn retention(&self) -> RetentionChange {
        RetentionChange {
            window_seconds: Some(self.window_seconds),
            hourly: Some(self.hourly),
            daily: Some(self.daily),
            weekly: Some(self.weekly),
            monthly: Some(self.monthly),
            ..RetentionChange::default()
        }
    }

    fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRow {
    /// Its name.
    pub name: String,
    /// What it says.
    pub settings: PolicySettings,
    /// When it was made, seconds since 1970.
    pub created: i64,
    /// When it was changed.
    pub changed: i64,
}

/// One of several machines whose disks one agent serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestRow {
    /// Its id (UUID).
    pub id: String,
    /// Its name.
    pub name: String,
    /// The id of the agent.
    pub agent: String,
    /// When it was named, seconds since 1970.
    pub created: i64,
}

/// A machine that is protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProtectionRow {
    /// The id of the machine: an agent or a guest.
    pub machine: String,
    /// The name of its policy.
    pub policy: String,
    /// What it becomes elsewhere, JSON.
    pub target: String,
    /// Since when, seconds since 1970.
    pub created: i64,
    /// When that was changed.
    pub changed: i64,
}

const POLICY: &str =
    "name, window, hourly, daily, weekly, monthly, crash_seconds, app_minutes, allow_partial, created, changed";

fn policy(r: &Row<'_>) -> rusqlite::Result<PolicyRow> {
    let settings = PolicySettings {
        window_seconds: u64::try_from(r.get::<_, i64>(1)?).unwrap_or(0),
        hourly: r.get(2)?,
        daily: r.get(3)?,
        weekly: r.get(4)?,
        monthly: r.get(5)?,
        crash_interval_seconds: r.get(6)?,
        app_interval_minutes: r.get(7)?,
        allow_partial: r.get(8)?,
    };
    Ok(PolicyRow { name: r.get(0)?, settings, created: r.get(9)?, changed: r.get(10)? })
}

pub(super) fn find_policy(db: &Connection, name: &str) -> Result<PolicyRow, CatalogueError> {
    let sql = format!("SELECT {POLICY} FROM policies WHERE name = ?1");
    db.query_row(&sql, [name], policy).optional()?.ok_or_else(|| {
        CatalogueError::NotFound(format!("there is no policy '{name}': `afterimage policy ls` shows what there is"))
    })
}

impl Change<'_> {
    /// Makes a policy.
    ///
    /// # Errors
    /// [`CatalogueError::Conflict`] if there is one of that name, [`CatalogueError::Refused`] if something is out of bounds.
    pub fn create_policy(&self, name: &str, settings: &PolicySettings) -> Result<PolicyRow, CatalogueError> {
        check_name(name)?;
        settings.check()?;
        if self.has_policy(name)? {
            return Err(CatalogueError::Conflict(format!("there is a policy '{name}' already")));
        }
        self.write_policy(name, settings)?;
        self.log("create-policy", &format!("policy {name}"), &settings.text())?;
        find_policy(&self.tx, name)
    }

    /// Whether there is a policy of that name.
    ///
    /// # Errors
    /// Those of the database.
    pub fn has_policy(&self, name: &str) -> Result<bool, CatalogueError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM policies WHERE name = ?1)";
        Ok(self.tx.query_row(sql, [name], |r| r.get(0))?)
    }

    /// Changes a policy: `change` sees what it says and says what it is to say.
    ///
    /// # Errors
    /// [`CatalogueError::NotFound`], [`CatalogueError::Refused`].
    pub fn change_policy(
        &self,
        name: &str,
        change: impl FnOnce(&mut PolicySettings),
    ) -> Result<PolicyRow, CatalogueError> {
        let mut settings = find_policy(&self.tx, name)?.settings;
        change(&mut settings);
        settings.check()?;
        self.write_policy(name, &settings)?;
        self.log("set-policy", &format!("policy {name}"), &settings.text())?;
        find_policy(&self.tx, name)
    }

    fn write_policy(&self, name: &str, s: &PolicySettings) -> Result<(), CatalogueError> {
        let window = i64::try_from(s.window_seconds).unwrap_or(i64::MAX);
        self.tx.execute(
            "INSERT INTO policies (name, window, hourly, daily, weekly, monthly, crash_seconds, app_minutes, allow_partial, created, changed)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?10)
             ON CONFLICT (name) DO UPDATE SET window = ?2, hourly = ?3, daily = ?4, weekly = ?5, monthly = ?6,
                 crash_seconds = ?7, app_minutes = ?8, allow_partial = ?9, changed = ?10",
            rusqlite::params![
                name,
                window,
                s.hourly,
                s.daily,
                s.weekly,
                s.monthly,
                s.crash_interval_seconds,
                s.app_interval_minutes,
                s.allow_partial,
                self.time
            ],
        )?;
        Ok(())
    }

    /// Removes a policy that nothing uses.
    ///
    /// # Errors
    /// [`CatalogueError::Conflict`] if machines are protected by it.
    pub fn remove_policy(&self, name: &str) -> Result<(), CatalogueError> {
        find_policy(&self.tx, name)?;
        for (sql, whom) in [
            ("SELECT count(*) FROM protections WHERE policy = ?1", "machines: protect them by another one first"),
            (
                "SELECT count(*) FROM groups WHERE policy = ?1",
                "groups: `afterimage group set --policy` gives them another one",
            ),
        ] {
            let users: i64 = self.tx.query_row(sql, [name], |r| r.get(0))?;
            if users > 0 {
                return Err(CatalogueError::Conflict(format!("policy '{name}' is that of {users} {whom}")));
            }
        }
        self.tx.execute("DELETE FROM policies WHERE name = ?1", [name])?;
        self.log("remove-policy", &format!("policy {name}"), "")
    }

    /// Names a guest of an agent, and which of the agent's volumes are its own.
    ///
    /// # Errors
    /// [`CatalogueError::Conflict`] if there is a machine of that name or a volume is another guest's,
    /// [`CatalogueError::NotFound`] if the agent has no such volume.
    pub fn create_guest(&self, name: &str, agent: &str, volumes: &[String]) -> Result<GuestRow, CatalogueError> {
        check_name(name)?;
        let sql = "SELECT EXISTS (SELECT 1 FROM machines WHERE name = ?1 UNION SELECT 1 FROM guests WHERE name = ?1)";
        if self.tx.query_row(sql, [name], |r| r.get(0))? {
            return Err(CatalogueError::Conflict(format!("there is a machine '{name}' already")));
        }
        let row = GuestRow {
            id: Uuid::new_v4().to_string(),
            name: name.to_owned(),
            agent: agent.to_owned(),
            created: self.time,
        };
        self.tx.execute(
            "INSERT INTO guests (id, name, agent, created) VALUES (?1, ?2, ?3, ?4)",
            (&row.id, name, agent, self.time),
        )?;
        for volume in volumes {
            let sql = "SELECT guest FROM volumes WHERE agent = ?1 AND name = ?2 AND gone IS NULL";
            let of: Option<Option<String>> = self.tx.query_row(sql, [agent, volume], |r| r.get(0)).optional()?;
            match of {
                None => return Err(CatalogueError::NotFound(format!("its agent serves no volume '{volume}'"))),
                Some(Some(_)) => {
                    return Err(CatalogueError::Conflict(format!("volume '{volume}' is another machine's already")));
                }
                Some(None) => {}
            }
            let sql = "UPDATE volumes SET guest = ?1 WHERE agent = ?2 AND name = ?3";
            self.tx.execute(sql, (&row.id, agent, volume))?;
        }
        self.log("create-machine", &format!("machine {name}"), &format!("volumes {}", volumes.join(", ")))?;
        Ok(row)
    }

    /// Forgets a guest; its volumes are the agent's own again.
    ///
    /// # Errors
    /// [`CatalogueError::Conflict`] if it is protected.
    pub fn remove_guest(&self, guest: &GuestRow) -> Result<(), CatalogueError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM protections WHERE machine = ?1)";
        if self.tx.query_row(sql, [&guest.id], |r| r.get(0))? {
            return Err(CatalogueError::Conflict(format!(
                "machine '{}' is protected: take it out of protection first",
                guest.name
            )));
        }
        self.tx.execute("DELETE FROM guests WHERE id = ?1", [&guest.id])?;
        self.log("remove-machine", &format!("machine {}", guest.name), "")
    }

    /// Protects a machine by a policy, or by another one than before. `target` is what it becomes elsewhere, JSON.
    ///
    /// # Errors
    /// [`CatalogueError::NotFound`] if there is no such policy.
    pub fn protect(&self, (machine, name): (&str, &str), policy: &str, target: &str) -> Result<(), CatalogueError> {
        find_policy(&self.tx, policy)?;
        self.tx.execute(
            "INSERT INTO protections (machine, policy, target, created, changed) VALUES (?1, ?2, ?3, ?4, ?4)
             ON CONFLICT (machine) DO UPDATE SET policy = ?2, target = ?3, changed = ?4",
            (machine, policy, target, self.time),
        )?;
        self.log("protect", &format!("machine {name}"), &format!("by policy {policy}, as {target}"))
    }

    /// Takes a machine out of protection: its policy counts no more. What was kept is kept.
    ///
    /// # Errors
    /// [`CatalogueError::NotFound`] if it was not protected.
    pub fn unprotect(&self, machine: &str, name: &str) -> Result<(), CatalogueError> {
        if self.tx.execute("DELETE FROM protections WHERE machine = ?1", [machine])? == 0 {
            return Err(CatalogueError::NotFound(format!("machine '{name}' is not protected by any policy")));
        }
        self.log("unprotect", &format!("machine {name}"), "")
    }

    /// Says that a volume which its agent does not serve any more is no part of its machine: groups do without it from now on. Its
    /// history stays with the appliance.
    ///
    /// # Errors
    /// [`CatalogueError::NotFound`], or [`CatalogueError::Conflict`] if the agent serves it.
    pub fn drop_volume(&self, agent: &str, id: &str, name: &str) -> Result<(), CatalogueError> {
        let sql = "SELECT gone IS NOT NULL FROM volumes WHERE agent = ?1 AND id = ?2";
        match self.tx.query_row(sql, [agent, id], |r| r.get(0)).optional()? {
            None => return Err(CatalogueError::NotFound(format!("there is no volume '{name}'"))),
            Some(false) => {
                return Err(CatalogueError::Conflict(format!(
                    "volume '{name}' was served by its agent when mgmt heard of it last: take it out of the agent's command line or \
                     file first"
                )));
            }
            Some(true) => {}
        }
        self.tx.execute("DELETE FROM volumes WHERE agent = ?1 AND id = ?2", [agent, id])?;
        self.log("drop-volume", &format!("volume {name}"), "its machine is complete without it")
    }

    /// Begins a job and returns its number.
    ///
    /// # Errors
    /// Those of the database.
    pub fn begin_job(&self, kind: &str, object: &str, text: &str) -> Result<i64, CatalogueError> {
        self.tx.execute(
            "INSERT INTO jobs (kind, object, who, state, text, created) VALUES (?1, ?2, ?3, 'running', ?4, ?5)",
            (kind, object, self.who, text, self.time),
        )?;
        let id = self.tx.last_insert_rowid();
        self.log("begin-job", &format!("job {id}"), &format!("{kind} {object}"))?;
        Ok(id)
    }
}

impl Catalogue {
    /// All policies.
    ///
    /// # Errors
    /// Those of the database.
    pub fn policies(&self) -> Result<Vec<PolicyRow>, CatalogueError> {
        let db = self.lock();
        let mut rows = db.prepare(&format!("SELECT {POLICY} FROM policies ORDER BY name"))?;
        Ok(rows.query_map([], policy)?.collect::<rusqlite::Result<_>>()?)
    }

    /// A policy.
    ///
    /// # Errors
    /// [`CatalogueError::NotFound`] if there is none.
    pub fn policy(&self, name: &str) -> Result<PolicyRow, CatalogueError> {
        find_policy(&self.lock(), name)
    }

    /// All guests.
    ///
    /// # Errors
    /// Those of the database.
    pub fn guests(&self) -> Result<Vec<GuestRow>, CatalogueError> {
        let db = self.lock();
        let mut rows = db.prepare("SELECT id, name, agent, created FROM guests ORDER BY name")?;
        let row = |r: &Row<'_>| Ok(GuestRow { id: r.get(0)?, name: r.get(1)?, agent: r.get(2)?, created: r.get(3)? });
        Ok(rows.query_map([], row)?.collect::<rusqlite::Result<_>>()?)
    }

    /// All machines that are protected.
    ///
    /// # Errors
    /// Those of the database.
    pub fn protections(&self) -> Result<Vec<ProtectionRow>, CatalogueError> {
        let db = self.lock();
        let mut rows = db.prepare("SELECT machine, policy, target, created, changed FROM protections")?;
        let row = |r: &Row<'_>| {
            Ok(ProtectionRow {
                machine: r.get(0)?,
                policy: r.get(1)?,
                target: r.get(2)?,
                created: r.get(3)?,
                changed: r.get(4)?,
            })
        };
        Ok(rows.query_map([], row)?.collect::<rusqlite::Result<_>>()?)
    }
}
