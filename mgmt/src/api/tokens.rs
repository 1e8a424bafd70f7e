//! Routes: tokens of the API.

use super::key::ApiKey;
use super::problem::{Kind, Problem};
use super::routes::{Call, Gives, Method, Reply, Route, reply, schema};
use super::types::{ApiToken, ApiTokenMade, List, NewApiToken};
use super::view::time;
use crate::catalogue::{ApiRole, ApiTokenRow};
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
        run: |call| reply(&List { items: list(call.office)? }),
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
        run: |call| reply(&create(call.office, &call.who, &call.json()?)?),
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

/// All tokens.
pub(crate) fn list(office: &Office) -> Result<Vec<ApiToken>, Problem> {
    Ok(office.catalogue.api_tokens()?.into_iter().map(view).collect())
}

/// Makes one.
pub(crate) fn create(office: &Office, who: &str, new: &NewApiToken) -> Result<ApiTokenMade, Problem> {
    if !(1..=MAX_TTL).contains(&new.ttl_seconds) {
        let text = format!("a token lasts from a second to {} days", MAX_TTL / 86_400);
        return Err(Problem::new(Kind::BadRequest, text));
    }
    let key =
        ApiKey::new(office.authority.certificate()).map_err(|e| Problem::new(Kind::Failed, e.to_string()))?;
    let ttl = i64::try_from(new.ttl_seconds).unwrap_or(i64::MAX);
    let row = office.catalogue.create_api_token(who, &key.hash(), (&new.name, new.role, ttl))?;
    Ok(ApiTokenMade { token: key.text(), id: row.id, name: row.name, role: row.role, expires: time(row.expires) })
}

fn remove(call: &Call<'_>) -> Result<Reply, Problem> {
    let none = |_| Problem::new(Kind::NotFound, format!("there is no API token {}", call.part(0)));
    call.office.catalogue.revoke_api_token(&call.who, call.part(0).parse().map_err(none)?)?;
    Ok(Reply::Nothing)
}
