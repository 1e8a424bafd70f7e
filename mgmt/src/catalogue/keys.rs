//! Tokens of the API. Only the SHA-256 of a token's 256 random bits is kept.

use super::{Catalogue, CatalogueError};
use rusqlite::OptionalExtension;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What the owner of a token may do. Each role may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ApiRole {
    /// Look at everything.
    Viewer,
    /// Protect machines, make policies, groups and points.
    Operator,
    /// Say who may do what.
    Admin,
}

impl ApiRole {
    /// All, the least first.
    pub const ALL: [ApiRole; 3] = [ApiRole::Viewer, ApiRole::Operator, ApiRole::Admin];

    /// Its word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            ApiRole::Viewer => "viewer",
            ApiRole::Operator => "operator",
            ApiRole::Admin => "admin",
        }
    }
}

impl fmt::Display for ApiRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for ApiRole {
    type Err = String;

    fn from_str(text: &str) -> Result<ApiRole, String> {
        let role = ApiRole::ALL.into_iter().find(|r| r.as_str() == text);
        role.ok_or_else(|| format!("'{text}' is no role of the API: viewer, operator or admin"))
    }
}

/// A token of the API, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiTokenRow {
    /// Its number.
    pub id: i64,
    /// Whose it is: the audit log names it.
    pub name: String,
    /// What its owner may do.
    pub role: ApiRole,
    /// When it was made, seconds since 1970.
    pub created: i64,
    /// When it ends.
    pub expires: i64,
    /// When it was revoked, if it was.
    pub revoked: Option<i64>,
}

const COLUMNS: &str = "id, name, role, created, expires, revoked";

fn row(r: &rusqlite::Row<'_>) -> rusqlite::Result<ApiTokenRow> {
    let role: String = r.get(2)?;
    let role = role
        .parse()
        .map_err(|e: String| rusqlite::Error::FromSqlConversionFailure(2, rusqlite::types::Type::Text, e.into()))?;
    Ok(ApiTokenRow { id: r.get(0)?, name: r.get(1)?, role, created: r.get(3)?, expires: r.get(4)?, revoked: r.get(5)? })
}

impl Catalogue {
    /// Makes a token, of which only the hash is kept.
    ///
    /// # Errors
    /// [`CatalogueError::Refused`] if the name is none.
    pub fn create_api_token(
        &self,
        who: &str,
        hash: &[u8; 32],
        (name, role, ttl): (&str, ApiRole, i64),
    ) -> Result<ApiTokenRow, CatalogueError> {
        super::rows::check_name(name)?;
        self.change(who, |change| {
            let expires = change.time.saturating_add(ttl);
            change.tx.execute(
                "INSERT INTO api_tokens (hash, name, role, created, expires) VALUES (?1, ?2, ?3, ?4, ?5)",
                (&hash[..], name, role.as_str(), change.time, expires),
            )?;
            let id = change.tx.last_insert_rowid();
            change.log("create-api-token", &format!("api-token {id}"), &format!("'{name}' as {role}"))?;
            Ok(ApiTokenRow { id, name: name.to_owned(), role, created: change.time, expires, revoked: None })
        })
    }

    /// The token with this hash, valid or not.
    ///
    /// # Errors
    /// Those of the database.
    pub fn api_token(&self, hash: &[u8; 32]) -> Result<Option<ApiTokenRow>, CatalogueError> {
        let sql = format!("SELECT {COLUMNS} FROM api_tokens WHERE hash = ?1");
        Ok(self.lock().query_row(&sql, [&hash[..]], row).optional()?)
    }

    /// All tokens.
    ///
    /// # Errors
    /// Those of the database.
    pub fn api_tokens(&self) -> Result<Vec<ApiTokenRow>, CatalogueError> {
        let db = self.lock();
        let mut rows = db.prepare(&format!("SELECT {COLUMNS} FROM api_tokens ORDER BY id"))?;
        Ok(rows.query_map([], row)?.collect::<rusqlite::Result<_>>()?)
    }

    /// Lets a token count no more.
    ///
    /// # Errors
    /// [`CatalogueError::NotFound`] if there is none, or it was revoked before.
    pub fn revoke_api_token(&self, who: &str, id: i64) -> Result<(), CatalogueError> {
        self.change(who, |change| {
            let n = change
                .tx
                .execute("UPDATE api_tokens SET revoked = ?1 WHERE id = ?2 AND revoked IS NULL", (change.time, id))?;
            if n == 0 {
                return Err(CatalogueError::NotFound(format!("there is no API token {id} that could be revoked")));
            }
            change.log("revoke-api-token", &format!("api-token {id}"), "")
        })
    }
}
