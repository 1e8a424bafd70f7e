//! What can be asked. The tables of the modules below are all there is: requests are answered from them, and docs/openapi.json is
//! made from them.

use super::problem::{Kind, Problem};
use super::{events, groups, machines, members, policies, recoveries, tokens};
use crate::catalogue::ApiRole;
use crate::office::Office;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Every table. One more line here is one more set of routes.
const TABLES: &[&[Route]] = &[
    events::ROUTES,
    groups::ROUTES,
    machines::ROUTES,
    members::ROUTES,
    policies::ROUTES,
    recoveries::ROUTES,
    tokens::ROUTES,
];

/// An HTTP method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Looks.
    Get,
    /// Makes, or does.
    Post,
    /// Changes.
    Patch,
    /// Removes.
    Delete,
}

impl Method {
    /// As HTTP writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Patch => "PATCH",
            Method::Delete => "DELETE",
        }
    }
}

/// The schema of a type.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// [`SchemaOf`] `T`.
pub fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// What a route answers with.
#[derive(Debug, Clone, Copy)]
pub enum Gives {
    /// JSON, and the status.
    Json(u16, SchemaOf),
    /// Text of this media type.
    Text(&'static str),
    /// 204.
    Nothing,
}

/// A parameter of the query.
#[derive(Debug, Clone, Copy)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
    /// Whether it is a number; else text.
    pub number: bool,
}

/// Something that can be asked.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    /// How.
    pub method: Method,
    /// Where; `{name}` stands for one part of the path.
    pub path: &'static str,
    /// Its name in the description.
    pub id: &'static str,
    /// Who may.
    pub role: ApiRole,
    /// What it does.
    pub about: &'static str,
    /// What may stand in the query.
    pub query: &'static [Parameter],
    /// What the body is; without it there is none.
    pub takes: Option<SchemaOf>,
    /// What comes back.
    pub gives: Gives,
    /// Does it.
    pub run: fn(&Call<'_>) -> Result<Reply, Problem>,
}

/// A request, taken apart.
#[derive(Debug)]
pub struct Call<'a> {
    /// Who answers.
    pub office: &'a Office,
    /// Who asks, for the audit log.
    pub who: String,
    /// What he may do.
    pub role: ApiRole,
    /// The parts of the path that the route leaves open, in order.
    pub path: Vec<String>,
    /// The query.
    pub query: Vec<(String, String)>,
    /// The body.
    pub body: &'a [u8],
}

/// An answer.
#[derive(Debug)]
pub enum Reply {
    /// JSON.
    Json(Value),
    /// Text.
    Text(String),
    /// None.
    Nothing,
}

/// An answer in JSON.
///
/// # Errors
/// If it cannot be written so.
pub fn reply<T: Serialize>(value: &T) -> Result<Reply, Problem> {
    serde_json::to_value(value).map(Reply::Json).map_err(|e| Problem::new(Kind::Failed, e.to_string()))
}

impl Call<'_> {
    /// A part of the path.
    #[must_use]
    pub fn part(&self, n: usize) -> &str {
        self.path.get(n).map_or("", String::as_str)
    }

    /// A parameter of the query.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// A number in the query.
    ///
    /// # Errors
    /// If it is none.
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Problem> {
        let bad = |t: &str| Problem::new(Kind::BadRequest, format!("{name}={t}: this has to be a number"));
        self.parameter(name).map(|t| t.parse().map_err(|_| bad(t))).transpose()
    }

    /// The body.
    ///
    /// # Errors
    /// If it is not what is asked for.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        // What may be left out altogether may be an empty body, too.
        let body = if self.body.is_empty() { b"{}" } else { self.body };
        Ok(serde_json::from_slice(body)?)
    }
}

/// All routes.
pub fn all() -> impl Iterator<Item = &'static Route> {
    TABLES.iter().flat_map(|table| table.iter())
}

/// Whether a path is the route's, and what stands in its open parts.
fn fits(route: &str, path: &[&str]) -> Option<Vec<String>> {
    let pattern: Vec<&str> = route.split('/').skip(1).collect();
    if pattern.len() != path.len() {
        return None;
    }
    let mut open = Vec::new();
    for (want, have) in pattern.iter().zip(path) {
        if want.starts_with('{') {
            open.push(decode(have).filter(|t| !t.is_empty())?);
        } else if want != have {
            return None;
        }
    }
    Some(open)
}

/// The route of a request.
///
/// # Errors
/// If there is none, or only with another method.
pub fn find(method: &str, path: &str) -> Result<(&'static Route, Vec<String>), Problem> {
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let mut others = Vec::new();
    for route in all() {
        let Some(open) = fits(route.path, &parts) else { continue };
        if route.method.as_str() == method {
            return Ok((route, open));
        }
        others.push(route.method.as_str());
    }
    if others.is_empty() {
        return Err(Problem::new(Kind::NotFound, "there is nothing at this path: /v1/openapi.json says what there is"));
    }
    Err(Problem::new(Kind::Method, format!("here only {} is possible", others.join(", "))))
}

/// A part of a URL without its escapes; `None` if it is no text.
fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        out.push(match b {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            b'+' => b' ',
            b => b,
        });
    }
    String::from_utf8(out).ok().filter(|t| !t.chars().any(char::is_control))
}

/// The parameters of a query.
///
/// # Errors
/// If one cannot be read, or is not one of the route's: a misspelt one must not go by unseen.
pub fn query(route: &Route, text: &str) -> Result<Vec<(String, String)>, Problem> {
    let bad = |what: &str| Problem::new(Kind::BadRequest, format!("the query's '{what}' is not known here"));
    let mut out = Vec::new();
    for pair in text.split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (name, value) = decode(name).zip(decode(value)).ok_or_else(|| bad("(not text)"))?;
        if route.query.iter().all(|p| p.name != name) {
            return Err(bad(&name));
        }
        out.push((name, value));
    }
    Ok(out)
}
