//! The description of the API: OpenAPI 3.1, made from the routes and the types. docs/openapi.json is a copy of it, and a test fails
//! when it is not (`afterimage mgmt openapi > docs/openapi.json` makes a new one).

use super::problem;
use super::routes::{Gives, Method, Route, all, schema};
use super::types::ProblemBody;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

fn parameters(route: &Route) -> Vec<Value> {
    let open = route.path.split('/').filter_map(|p| p.strip_prefix('{')?.strip_suffix('}'));
    let path = open.map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }));
    let query = route.query.iter().map(|p| {
        let kind = if p.number { "integer" } else { "string" };
        json!({ "name": p.name, "in": "query", "description": p.about, "schema": { "type": kind } })
    });
    path.chain(query).collect()
}

fn answers(route: &Route, schemas: &mut SchemaGenerator) -> Value {
    let (status, answer) = match route.gives {
        Gives::Json(status, of) => {
            (status, json!({ "description": "Done", "content": { "application/json": { "schema": of(schemas) } } }))
        }
        Gives::Text(media) => {
            (200, json!({ "description": "Done", "content": { media: { "schema": { "type": "string" } } } }))
        }
        Gives::Nothing => (204, json!({ "description": "Done" })),
    };
    let problem = schema::<ProblemBody>(schemas);
    let refused = json!({
        "description": "It was not done; `type` says why",
        "content": { "application/problem+json": { "schema": problem } }
    });
    json!({ status.to_string(): answer, "default": refused })
}

/// The description.
#[must_use]
pub fn document() -> Value {
    let mut schemas =
        SchemaSettings::draft2020_12().with(|s| s.definitions_path = "/components/schemas".into()).into_generator();
    let mut paths: Map<String, Value> = Map::new();
    for route in all() {
        let mut operation = json!({
            "operationId": route.id,
            "summary": route.about,
            "x-role": route.role.as_str(),
            "responses": answers(route, &mut schemas),
        });
        let parameters = parameters(route);
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        if let Some(of) = route.takes {
            let required = route.method != Method::Post || !route.path.ends_with('}');
            operation["requestBody"] =
                json!({ "required": required, "content": { "application/json": { "schema": of(&mut schemas) } } });
        }
        let method = route.method.as_str().to_ascii_lowercase();
        let at = paths.entry(route.path).or_insert_with(|| json!({}));
        at[&method] = operation;
    }
    let kinds: Vec<String> = problem::Kind::ALL.iter().map(|k| format!("urn:afterimage:{}", k.parts().1)).collect();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Afterimage mgmt",
            "version": "1",
            "description": format!(
                "Machines, volumes, policies, jobs and events. Every request carries a token; `x-role` says what it has to be for. \
                 Kinds of errors: {}.", kinds.join(", ")
            ),
        },
        "security": [{ "token": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
            "schemas": schemas.take_definitions(true),
        },
    })
}

/// The same as text, as it is checked in.
#[must_use]
pub fn text() -> String {
    let mut text = serde_json::to_string_pretty(&document()).unwrap_or_default();
    text.push('\n');
    text
}
