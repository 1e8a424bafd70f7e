//! Routes: failovers, tests and recovery plans of all appliances, as their hosts report them.

use super::events::{LIMIT, limit};
use super::problem::{Kind, Problem};
use super::routes::{Call, Gives, Method, Parameter, Reply, Route, reply, schema};
use super::types::List;
use super::view::{members, time};
use crate::catalogue::ApiRole;
use crate::failover::summary::Recovery;
use crate::units::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A failover, a test of one, or a recovery plan, at an appliance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RecoveryView {
    /// The appliance.
    pub appliance: String,
    /// Whether it is connected to mgmt: if not, this is what it said last.
    pub connected: bool,
    /// When it said something else than before.
    pub changed: Time,
    /// What it said.
    #[serde(flatten)]
    pub recovery: Recovery,
}

/// Among so many of the newest one is looked for by its ID.
const LOOKED_AT: u32 = 10_000;

pub(super) const ROUTES: &[Route] = &[
    Route {
        method: Method::Get,
        path: "/v1/recoveries",
        id: "recoveries",
        role: ApiRole::Viewer,
        about: "Failovers, test failovers and recovery plans, the newest first, as the hosts of the appliances report them",
        query: &[Parameter { name: "appliance", about: "Only those of this appliance", number: false }, LIMIT],
        takes: None,
        gives: Gives::Json(200, schema::<List<RecoveryView>>),
        run: list,
    },
    Route {
        method: Method::Get,
        path: "/v1/recoveries/{recovery}",
        id: "recovery",
        role: ApiRole::Viewer,
        about: "One of them",
        query: &[],
        takes: None,
        gives: Gives::Json(200, schema::<RecoveryView>),
        run: one,
    },
];

fn views(call: &Call<'_>, appliance: Option<&str>, most: u32) -> Result<Vec<RecoveryView>, Problem> {
    let members = members(call.office)?;
    let named = |name: &&str| members.iter().find(|m| m.member.role == "appliance" && m.member.name == **name);
    let id = match appliance {
        None => None,
        Some(name) => {
            let none = || Problem::new(Kind::NotFound, format!("there is no appliance '{name}'"));
            Some(&*named(&name).ok_or_else(none)?.member.id)
        }
    };
    let view = |row: crate::catalogue::RecoveryRow| {
        let of = members.iter().find(|m| m.member.id == row.appliance);
        RecoveryView {
            appliance: of.map(|m| m.member.name.clone()).unwrap_or_default(),
            connected: of.is_some_and(|m| m.connected),
            changed: time(row.changed),
            recovery: row.recovery,
        }
    };
    Ok(call.office.catalogue.recoveries(id, most)?.into_iter().map(view).collect())
}

fn list(call: &Call<'_>) -> Result<Reply, Problem> {
    reply(&List { items: views(call, call.parameter("appliance"), limit(call)?)? })
}

fn one(call: &Call<'_>) -> Result<Reply, Problem> {
    let id = call.part(0);
    let found = views(call, None, LOOKED_AT)?.into_iter().find(|v| v.recovery.id == id);
    reply(&found.ok_or_else(|| Problem::new(Kind::NotFound, format!("no appliance has reported a failover '{id}'")))?)
}
