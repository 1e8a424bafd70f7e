//! Routes: tokens of the API.

use super::key::ApiKey;
use super::problem::{Kind, Problem};
use super::routes::{Call, Gives, Method, Reply, Route, reply, schema};
use super::types::{ApiToken, ApiTokenMade, List, NewApiToken};
use super::view::time;
use crate::catalogue::{ApiRole, ApiTokenRow, CatalogueError};
use crate::office::Office;

/// Longest life of a token, in seconds: ten years.
const MAX_TTL: u64 = 3650 * 86_400;

pub(super) const ROUTES: &[Route] = &[
    Route {
        method: Method::Get,
        path: "/v1/api-tokens",
        id: "api-tokens",
        role: ApiRole::Admin,
        about: "Tokens of this API, without their secrets",
        query: &[],
        takes: None,
        gives: Gives::Json(200, schema::<List<ApiToken>>),
        run: |call| reply(&List { items: call.office.api_tokens()? }),
    },
    Route {
        method: Method::Post,
        path: "/v1/api-tokens",
        id: "create-api-token",
        role: ApiRole::Admin,
        about: "Makes a token; it is shown once",
        query: &[],
        takes: Some(schema::<NewApiToken>),
        gives: Gives::Json(201, schema::<ApiTokenMade>),
        run: |call| reply(&call.office.create_api_token(&call.who, &call.json()?)?),
    },
    Route {
        method: Method::Delete,
        path: "/v1/api-tokens/{token}",
        id: "revoke-api-token",
        role: ApiRole::Admin,
        about: "Lets a token count no more, from now on",
        query: &[],
        takes: None,
        gives: Gives::Nothing,
        run: remove,
    },
];

fn view(row: ApiTokenRow) -> ApiToken {
    ApiToken {
        id: row.id,
        name: row.name,
        role: row.role,
        created: time(row.created),
        expires: time(row.expires),
        revoked: row.revoked.map(time),
    }
}

impl Office {
    /// All tokens of the API.
    ///
    /// # Errors
    /// Those of the catalogue.
    pub fn api_tokens(&self) -> Result<Vec<ApiToken>, CatalogueError> {
        Ok(self.catalogue.api_tokens()?.into_iter().map(view).collect())
    }

    /// Makes a token of the API.
    ///
    /// # Errors
    /// [`CatalogueError::Refused`] with what does not fit.
    pub fn create_api_token(&self, who: &str, new: &NewApiToken) -> Result<ApiTokenMade, CatalogueError> {
        let refused = |text: String| CatalogueError::Refused(text);
        if !(1..=MAX_TTL).contains(&new.ttl_seconds) {
            return Err(refused(format!("a token lasts from a second to {} days", MAX_TTL / 86_400)));
        }
        let key = ApiKey::new(self.authority.certificate()).map_err(|e| refused(e.to_string()))?;
        let ttl = i64::try_from(new.ttl_seconds).unwrap_or(i64::MAX);
        let row = self.catalogue.create_api_token(who, &key.hash(), (&new.name, new.role, ttl))?;
        Ok(ApiTokenMade { token: key.text(), id: row.id, name: row.name, role: row.role, expires: time(row.expires) })
    }
}

fn remove(call: &Call<'_>) -> Result<Reply, Problem> {
    let none = |_| Problem::new(Kind::NotFound, format!("there is no API token {}", call.part(0)));
    call.office.catalogue.revoke_api_token(&call.who, call.part(0).parse().map_err(none)?)?;
    Ok(Reply::Nothing)
}
