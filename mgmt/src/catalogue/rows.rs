//! Members, tokens, certificates, revocations, audit log: what is asked and changed.

use super::{Catalogue, CatalogueError, Change, now, table};
use afterimage_format::coord::{MAX_REVOKED, Revocations};
use afterimage_trust::identity::{Claims, Identity, unhex};
use afterimage_trust::{Role, TrustError};
use rusqlite::{Connection, OptionalExtension, Row};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// A machine or an appliance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Member {
    /// `agent` or `appliance`.
    pub role: String,
    /// Its id; an appliance's is its vault's.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The host that joined.
    pub host: String,
    /// The vault that it has to do with.
    pub vault: String,
    /// When it joined, seconds since 1970.
    pub created: i64,
    /// When it was revoked, if it was.
    pub revoked: Option<i64>,
}

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenRow {
    /// Its number.
    pub id: i64,
    /// What one can join as with it.
    pub role: String,
    /// The name that the member gets, if it was said.
    pub name: Option<String>,
    /// When it was made, seconds since 1970.
    pub created: i64,
    /// When it ends.
    pub expires: i64,
    /// When it was used, if it was.
    pub used: Option<i64>,
    /// By whom.
    pub used_by: Option<String>,
}

/// A certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CertificateRow {
    /// Serial number.
    pub serial: String,
    /// For what.
    pub role: String,
    /// For whom: an id.
    pub member: String,
    /// Its name.
    pub name: String,
    /// Valid until, seconds since 1970.
    pub not_after: i64,
    /// When it was issued.
    pub issued: i64,
    /// When it was revoked, if it was.
    pub revoked: Option<i64>,
}

/// A line of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRow {
    /// Grows by one.
    pub id: i64,
    /// When, seconds since 1970.
    pub time: i64,
    /// Who.
    pub who: String,
    /// Did what.
    pub action: String,
    /// To what.
    pub object: String,
    /// More of it.
    pub detail: String,
}

/// A token to be made.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// What one can join as with it.
    pub role: Role,
    /// The name for the member; that of its host if not said.
    pub name: Option<String>,
    /// The id for the member: to go on as one that was lost.
    pub id: Option<Uuid>,
    /// For a machine: the name of its appliance. The only one, if not said.
    pub appliance: Option<String>,
    /// Whether a member of this name is replaced: its certificates are revoked when the token is used.
    pub replace: bool,
    /// Seconds that it lasts.
    pub ttl: i64,
}

/// A token that was used.
#[derive(Debug, Clone)]
pub struct Redeemed {
    /// Who joins.
    pub identity: Identity,
    /// Under which name.
    pub name: String,
    /// The certificate, DER.
    pub certificate: Vec<u8>,
}

fn member(role: Role, row: &Row<'_>) -> rusqlite::Result<Member> {
    Ok(Member {
        role: role.to_string(),
        id: row.get(0)?,
        name: row.get(1)?,
        host: row.get(2)?,
        vault: row.get(3)?,
        created: row.get(4)?,
        revoked: row.get(5)?,
    })
}

fn columns(role: Role) -> &'static str {
    if role == Role::Agent { "id, name, host, vault, created, revoked" } else { "id, name, host, id, created, revoked" }
}

pub(super) fn find(db: &Connection, role: Role, by: &str, value: &str) -> Result<Option<Member>, CatalogueError> {
    let sql = format!("SELECT {} FROM {} WHERE {by} = ?1", columns(role), table(role)?);
    Ok(db.query_row(&sql, [value], |row| member(role, row)).optional()?)
}

fn uuid(text: &str) -> Result<Uuid, CatalogueError> {
    Uuid::try_parse(text).map_err(|_| CatalogueError::Conflict(format!("the catalogue has the impossible id '{text}'")))
}

/// Names are words for people and file names.
pub(super) fn check_name(name: &str) -> Result<(), CatalogueError> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !name.is_empty() && name.len() <= 64 && name.chars().all(fine) {
        return Ok(());
    }
    Err(CatalogueError::Refused(format!(
        "'{name}' is no name: letters, digits, dots, dashes and underscores, at most 64; say another one with --name"
    )))
}

impl Change<'_> {
    /// Sets a setting.
    ///
    /// # Errors
    /// Those of the database.
    pub fn set(&self, key: &str, value: &str) -> Result<(), CatalogueError> {
        self.tx.execute("INSERT OR REPLACE INTO settings (key, value) VALUES (?1, ?2)", (key, value))?;
        Ok(())
    }

    /// Keeps a certificate that is being issued.
    ///
    /// # Errors
    /// Those of the database.
    pub fn issued(&self, claims: &Claims, identity: &Identity) -> Result<(), CatalogueError> {
        self.tx.execute(
            "INSERT INTO certificates (serial, role, member, name, not_before, not_after, issued) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            (
                claims.serial_text(),
                identity.role.as_str(),
                identity.id.to_string(),
                &claims.name,
                claims.not_before,
                claims.not_after,
                self.time,
            ),
        )?;
        Ok(())
    }

    /// Takes a token. `issue` makes the certificate for whom it is for.
    ///
    /// # Errors
    /// [`CatalogueError::Refused`] with the reason; the token is then as it was.
    pub fn redeem(
        &self,
        hash: &[u8; 32],
        role: Role,
        host: &str,
        issue: impl FnOnce(&Identity, &str) -> Result<Vec<u8>, TrustError>,
    ) -> Result<Redeemed, CatalogueError> {
        let refused = |why: &str| CatalogueError::Refused(why.to_owned());
        let sql = "SELECT id, role, name, member, vault, expires, used, used_by FROM tokens WHERE hash = ?1";
        type Found = (i64, String, Option<String>, Option<String>, Option<String>, i64, Option<i64>, Option<String>);
        let found: Option<Found> = self
            .tx
            .query_row(sql, [&hash[..]], |r| {
                Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?, r.get(5)?, r.get(6)?, r.get(7)?))
            })
            .optional()?;
        let Some((token, made_for, name, id, vault, expires, used, by)) = found else {
            return Err(refused("this token was not made here"));
        };
        if used.is_some() {
            let by = by.unwrap_or_default();
            return Err(refused(&format!("the token was used already, by {by}; if that was not you, revoke {by}")));
        }
        if self.time >= expires {
            return Err(refused("the token has expired: make a new one"));
        }
        if made_for != role.as_str() {
            return Err(refused(&format!("the token is for joining as {made_for}, not as {role}")));
        }
        let name = name.unwrap_or_else(|| host.to_owned());
        check_name(&name)?;
        let there = find(&self.tx, role, "name", &name)?;
        let id = match (&there, id) {
            // A token names the member only if it is to take the place of one.
            (Some(there), Some(id)) if there.id == id => uuid(&id)?,
            (Some(_), _) => {
                return Err(refused(&format!(
                    "there is a {role} '{name}' already: say another name, or let the new host take its place (--replace), when the token is made"
                )));
            }
            (None, Some(id)) => uuid(&id)?,
            (None, None) => Uuid::new_v4(),
        };
        let vault = if role == Role::Agent { uuid(&vault.unwrap_or_default())? } else { id };
        let identity = Identity { role, id, vault };
        if there.is_some() {
            self.revoke_all(&id.to_string())?;
        }
        self.enrol(&identity, &name, host)?;
        let certificate = issue(&identity, &name).map_err(|e| CatalogueError::Refused(e.to_string()))?;
        let claims = Claims::of(&certificate).ok_or_else(|| refused("the certificate made is none"))?;
        self.issued(&claims, &identity)?;
        self.tx.execute("UPDATE tokens SET used = ?1, used_by = ?2 WHERE id = ?3", (self.time, &name, token))?;
        let detail = format!("{identity}, token {token}, certificate {}", claims.serial_text());
        self.log("join", &format!("{role} {name}"), &detail)?;
        Ok(Redeemed { identity, name, certificate })
    }

    /// Adds a member, or puts one back.
    ///
    /// # Errors
    /// Those of the database.
    pub fn enrol(&self, identity: &Identity, name: &str, host: &str) -> Result<(), CatalogueError> {
        let (id, vault) = (identity.id.to_string(), identity.vault.to_string());
        if identity.role == Role::Agent {
            self.tx.execute(
                "INSERT INTO machines (id, name, host, vault, created) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (id) DO UPDATE SET host = ?3, vault = ?4, revoked = NULL",
                (id, name, host, vault, self.time),
            )?;
        } else {
            self.tx.execute(
                "INSERT INTO appliances (id, name, host, created) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (id) DO UPDATE SET host = ?3, revoked = NULL",
                (id, name, host, self.time),
            )?;
        }
        Ok(())
    }

    /// Revokes what is valid of a member's certificates, and says how many that were.
    fn revoke_all(&self, id: &str) -> Result<usize, CatalogueError> {
        let n = self.tx.execute(
            "UPDATE certificates SET revoked = ?1 WHERE member = ?2 AND revoked IS NULL AND not_after > ?1",
            (self.time, id),
        )?;
        if n > 0 {
            self.bump()?;
        }
        Ok(n)
    }

    /// A new number for the list of revocations. It follows the clock, so that it also grows behind a copy of the catalogue
    /// that was put back.
    fn bump(&self) -> Result<u64, CatalogueError> {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let clock = u64::try_from(clock.as_millis()).unwrap_or(0);
        let number = (number(&self.tx)? + 1).max(clock);
        self.set("revocations", &number.to_string())?;
        Ok(number)
    }

    /// Revokes a member and all of its certificates, or one certificate. Returns its name and the number of certificates.
    ///
    /// # Errors
    /// [`CatalogueError::NotFound`] if there is none.
    pub fn revoke(&self, what: &str) -> Result<(String, usize), CatalogueError> {
        for role in [Role::Agent, Role::Appliance] {
            if let Some(member) = find(&self.tx, role, "name", what)?.or(find(&self.tx, role, "id", what)?) {
                let sql = format!("UPDATE {} SET revoked = ?1 WHERE id = ?2", table(role)?);
                self.tx.execute(&sql, (self.time, &member.id))?;
                let n = self.revoke_all(&member.id)?;
                self.log("revoke", &format!("{role} {}", member.name), &format!("{n} certificates"))?;
                return Ok((member.name, n));
            }
        }
        let n = self.tx.execute(
            "UPDATE certificates SET revoked = ?1 WHERE (serial = ?2 OR (role = 'nbd' AND name = ?2)) AND revoked IS NULL",
            (self.time, what),
        )?;
        if n == 0 {
            return Err(CatalogueError::NotFound(format!(
                "there is no machine, appliance, NBD client or valid certificate '{what}': `afterimage mgmt ls` shows what there is"
            )));
        }
        self.bump()?;
        self.log("revoke", &format!("certificate {what}"), &format!("{n} certificates"))?;
        Ok((what.to_owned(), n))
    }
}

fn number(db: &Connection) -> Result<u64, CatalogueError> {
    let sql = "SELECT value FROM settings WHERE key = 'revocations'";
    let text: Option<String> = db.query_row(sql, [], |row| row.get(0)).optional()?;
    Ok(text.and_then(|t| t.parse().ok()).unwrap_or(0))
}

impl Catalogue {
    /// Makes a token, of which only the hash is kept. Returns its row.
    ///
    /// # Errors
    /// [`CatalogueError::Refused`] or [`CatalogueError::Conflict`] with what does not fit.
    pub fn create_token(&self, who: &str, hash: &[u8; 32], new: &NewToken) -> Result<TokenRow, CatalogueError> {
        self.change(who, |change| {
            let role = new.role;
            table(role)?;
            let mut id = new.id.map(|id| id.to_string());
            if let Some(name) = &new.name {
                check_name(name)?;
                match find(&change.tx, role, "name", name)? {
                    Some(there) if new.replace => id = Some(there.id),
                    Some(_) => {
                        return Err(CatalogueError::Conflict(format!(
                            "there is a {role} '{name}' already: say another name, or --replace if the new host takes its place"
                        )));
                    }
                    None if new.replace => {
                        return Err(CatalogueError::NotFound(format!("there is no {role} '{name}' to be replaced")));
                    }
                    None => {}
                }
            } else if new.replace || id.is_some() {
                return Err(CatalogueError::Refused("who is to be replaced or put back? Say it with --name".into()));
            }
            let vault = if role == Role::Agent { Some(vault_of(&change.tx, new.appliance.as_deref())?) } else { None };
            let expires = change.time.saturating_add(new.ttl);
            change.tx.execute(
                "INSERT INTO tokens (hash, role, name, member, vault, created, expires) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                (&hash[..], role.as_str(), &new.name, id, vault, change.time, expires),
            )?;
            let number = change.tx.last_insert_rowid();
            let name = new.name.as_deref().unwrap_or("(the host's name)");
            change.log("create-token", &format!("token {number}"), &format!("for {role} {name}"))?;
            Ok(TokenRow {
                id: number,
                role: role.to_string(),
                name: new.name.clone(),
                created: change.time,
                expires,
                used: None,
                used_by: None,
            })
        })
    }

    /// A member by its id.
    ///
    /// # Errors
    /// Those of the database.
    pub fn member(&self, role: Role, id: &Uuid) -> Result<Option<Member>, CatalogueError> {
        find(&self.lock(), role, "id", &id.to_string())
    }

    /// All machines and appliances.
    ///
    /// # Errors
    /// Those of the database.
    pub fn members(&self) -> Result<Vec<Member>, CatalogueError> {
        let db = self.lock();
        let mut out = Vec::new();
        for role in [Role::Appliance, Role::Agent] {
            let sql = format!("SELECT {} FROM {} ORDER BY name", columns(role), table(role)?);
            let mut rows = db.prepare(&sql)?;
            for row in rows.query_map([], |row| member(role, row))? {
                out.push(row?);
            }
        }
        Ok(out)
    }

    /// All tokens that are neither used nor expired.
    ///
    /// # Errors
    /// Those of the database.
    pub fn tokens(&self) -> Result<Vec<TokenRow>, CatalogueError> {
        let db = self.lock();
        let mut rows = db.prepare(
            "SELECT id, role, name, created, expires, used, used_by FROM tokens WHERE used IS NULL AND expires > ?1 ORDER BY id",
        )?;
        let rows = rows.query_map([now()], |r| {
            Ok(TokenRow {
                id: r.get(0)?,
                role: r.get(1)?,
                name: r.get(2)?,
                created: r.get(3)?,
                expires: r.get(4)?,
                used: r.get(5)?,
                used_by: r.get(6)?,
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// All certificates that have not expired, the newest last.
    ///
    /// # Errors
    /// Those of the database.
    pub fn certificates(&self) -> Result<Vec<CertificateRow>, CatalogueError> {
        let db = self.lock();
        let mut rows = db.prepare(
            "SELECT serial, role, member, name, not_after, issued, revoked FROM certificates WHERE not_after > ?1 ORDER BY issued, serial",
        )?;
        let rows = rows.query_map([now()], |r| {
            Ok(CertificateRow {
                serial: r.get(0)?,
                role: r.get(1)?,
                member: r.get(2)?,
                name: r.get(3)?,
                not_after: r.get(4)?,
                issued: r.get(5)?,
                revoked: r.get(6)?,
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The list of revocations, without what has expired for more than a day: no clock is so wrong.
    ///
    /// # Errors
    /// Those of the database.
    pub fn revocations(&self) -> Result<Revocations, CatalogueError> {
        let db = self.lock();
        let mut rows = db.prepare(
            "SELECT serial FROM certificates WHERE revoked IS NOT NULL AND not_after > ?1 ORDER BY revoked DESC, serial",
        )?;
        let rows = rows.query_map([now() - 86_400], |r| r.get::<_, String>(0))?;
        let mut serials = Vec::new();
        for row in rows.take(MAX_REVOKED) {
            serials.extend(unhex(&row?));
        }
        Ok(Revocations { number: number(&db)?, serials })
    }

    /// The newest lines of the audit log, the newest last.
    ///
    /// # Errors
    /// Those of the database.
    pub fn audit(&self, most: u32) -> Result<Vec<AuditRow>, CatalogueError> {
        let db = self.lock();
        let mut rows = db.prepare(
            "SELECT id, time, who, action, object, detail FROM (SELECT * FROM audit ORDER BY id DESC LIMIT ?1) ORDER BY id",
        )?;
        let rows = rows.query_map([most], |r| {
            Ok(AuditRow {
                id: r.get(0)?,
                time: r.get(1)?,
                who: r.get(2)?,
                action: r.get(3)?,
                object: r.get(4)?,
                detail: r.get(5)?,
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}

/// The id of the appliance of this name, or of the only one.
fn vault_of(db: &Connection, name: Option<&str>) -> Result<String, CatalogueError> {
    if let Some(name) = name {
        let found = find(db, Role::Appliance, "name", name)?;
        return found
            .map(|m| m.id)
            .ok_or_else(|| CatalogueError::NotFound(format!("there is no appliance '{name}': it has to join first")));
    }
    let mut rows = db.prepare("SELECT id FROM appliances WHERE revoked IS NULL")?;
    let ids = rows.query_map([], |r| r.get(0))?.collect::<rusqlite::Result<Vec<String>>>()?;
    match ids.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(CatalogueError::NotFound(
            "no appliance has joined yet: a machine belongs to one, so it comes first".into(),
        )),
        _ => Err(CatalogueError::Refused("there are several appliances: say which with --appliance NAME".into())),
    }
}
