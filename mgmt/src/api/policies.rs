//! Routes: policies.

use super::problem::Problem;
use super::routes::{Call, Gives, Method, Reply, Route, reply, schema};
use super::types::{List, NewPolicy, Policy, PolicyChange};
use super::view::{machines, time};
use crate::catalogue::{ApiRole, PolicyRow, PolicySettings};
use crate::office::Office;

pub(super) const ROUTES: &[Route] = &[
    Route {
        method: Method::Get,
        path: "/v1/policies",
        id: "policies",
        role: ApiRole::Viewer,
        about: "Policies",
        query: &[],
        takes: None,
        gives: Gives::Json(200, schema::<List<Policy>>),
        run: list,
    },
    Route {
        method: Method::Post,
        path: "/v1/policies",
        id: "create-policy",
        role: ApiRole::Operator,
        about: "Makes a policy",
        query: &[],
        takes: Some(schema::<NewPolicy>),
        gives: Gives::Json(201, schema::<Policy>),
        run: create,
    },
    Route {
        method: Method::Get,
        path: "/v1/policies/{policy}",
        id: "policy",
        role: ApiRole::Viewer,
        about: "A policy",
        query: &[],
        takes: None,
        gives: Gives::Json(200, schema::<Policy>),
        run: |call| reply(&view(call.office, call.office.catalogue.policy(call.part(0))?)?),
    },
    Route {
        method: Method::Patch,
        path: "/v1/policies/{policy}",
        id: "set-policy",
        role: ApiRole::Operator,
        about: "Changes a policy: what is left out stays",
        query: &[],
        takes: Some(schema::<PolicyChange>),
        gives: Gives::Json(200, schema::<Policy>),
        run: set,
    },
    Route {
        method: Method::Delete,
        path: "/v1/policies/{policy}",
        id: "remove-policy",
        role: ApiRole::Operator,
        about: "Removes a policy that protects nothing",
        query: &[],
        takes: None,
        gives: Gives::Nothing,
        run: |call| {
            call.office.catalogue.change(&call.who, |change| change.remove_policy(call.part(0)))?;
            Ok(Reply::Nothing)
        },
    },
];

fn view(office: &Office, row: PolicyRow) -> Result<Policy, Problem> {
    let users = machines(office)?.into_iter().filter(|m| m.policy.as_ref() == Some(&row.name)).map(|m| m.name);
    let groups =
        office.catalogue.groups()?.into_iter().filter(|g| g.policy.as_ref() == Some(&row.name)).map(|g| g.name);
    Ok(Policy {
        machines: users.collect(),
        groups: groups.collect(),
        name: row.name,
        settings: row.settings,
        created: time(row.created),
        changed: time(row.changed),
    })
}

fn list(call: &Call<'_>) -> Result<Reply, Problem> {
    let rows = call.office.catalogue.policies()?.into_iter();
    let items = rows.map(|row| view(call.office, row)).collect::<Result<_, _>>()?;
    reply(&List { items })
}

fn create(call: &Call<'_>) -> Result<Reply, Problem> {
    let new: NewPolicy = call.json()?;
    let mut settings = PolicySettings::default();
    new.settings.apply(&mut settings);
    let row = call.office.catalogue.change(&call.who, |change| change.create_policy(&new.name, &settings))?;
    reply(&view(call.office, row)?)
}

fn set(call: &Call<'_>) -> Result<Reply, Problem> {
    let wish: PolicyChange = call.json()?;
    let row =
        call.office.catalogue.change(&call.who, |change| change.change_policy(call.part(0), |s| wish.apply(s)))?;
    reply(&view(call.office, row)?)
}
