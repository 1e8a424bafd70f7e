//! Routes: groups of machines that share recovery points.

use super::problem::{Kind, Problem};
use super::routes::{Call, Gives, Method, Parameter, Reply, Route, reply, schema};
use super::types::List;
use crate::catalogue::ApiRole;
use crate::groups::{EVERY, GroupView, Groups, HOLD_MS, KeptPoints, NewGroup, Point, Points};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Points of an answer if nothing is said, and at most.
const USUAL: u32 = 100;
const MOST: u32 = 1000;

/// A group to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupRequest {
    /// Its name.
    pub name: String,
    /// Names or ids of its machines.
    #[serde(default)]
    pub machines: Vec<String>,
    /// How it makes points.
    #[serde(default)]
    pub how: GroupChange,
}

/// How a group makes points: what is left out stays, or is as usual.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GroupChange {
    /// Seconds between points (60); 0 makes them on demand only.
    pub every_seconds: Option<u64>,
    /// How long gates may be closed, in milliseconds (100).
    pub hold_ms: Option<u32>,
    /// Whether a point of some of the members is wanted if not all can be had (false).
    pub partial: Option<bool>,
    /// Minutes between app-consistent points (0: on demand only).
    pub app_every_minutes: Option<u32>,
    /// The policy that says all that but the hold of gates, and what is kept; empty for none. What a policy says cannot be said by the
    /// group as well.
    pub policy: Option<String>,
    /// Nothing of the group goes, or (`false`) the policy decides again.
    pub on_hold: Option<bool>,
}

/// Machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupMachines {
    /// Names or ids.
    pub machines: Vec<String>,
}

/// Who comes into a group, and who leaves it: all of that, or nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GroupMachinesChange {
    /// Names or ids of those who come.
    pub add: Vec<String>,
    /// Of those who leave.
    pub remove: Vec<String>,
}

/// A point to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPoint {
    /// Its name.
    pub name: String,
    /// With applications quiet around it, on every machine as its agent's settings say.
    #[serde(default)]
    pub app: bool,
}

/// What is to become of a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PointChange {
    /// It stays until it is unpinned, or (`false`) the policy decides again.
    pub pinned: bool,
}

pub(super) const ROUTES: &[Route] = &[
    Route {
        method: Method::Get,
        path: "/v1/groups",
        id: "groups",
        role: ApiRole::Viewer,
        about: "Groups, with their newest points and how long writes were held",
        query: &[],
        takes: None,
        gives: Gives::Json(200, schema::<List<GroupView>>),
        run: |call| reply(&List { items: groups(call)?.list()? }),
    },
    Route {
        method: Method::Post,
        path: "/v1/groups",
        id: "create-group",
        role: ApiRole::Operator,
        about: "Makes a group",
        query: &[],
        takes: Some(schema::<GroupRequest>),
        gives: Gives::Json(201, schema::<GroupView>),
        run: create,
    },
    Route {
        method: Method::Get,
        path: "/v1/groups/{group}",
        id: "group",
        role: ApiRole::Viewer,
        about: "A group",
        query: &[],
        takes: None,
        gives: Gives::Json(200, schema::<GroupView>),
        run: |call| reply(&groups(call)?.show(call.part(0))?),
    },
    Route {
        method: Method::Patch,
        path: "/v1/groups/{group}",
        id: "set-group",
        role: ApiRole::Operator,
        about: "Changes how a group makes points, from the next one on",
        query: &[],
        takes: Some(schema::<GroupChange>),
        gives: Gives::Json(200, schema::<GroupView>),
        run: set,
    },
    Route {
        method: Method::Delete,
        path: "/v1/groups/{group}",
        id: "remove-group",
        role: ApiRole::Operator,
        about: "Removes a group with its points; machines and their history stay",
        query: &[],
        takes: None,
        gives: Gives::Nothing,
        run: |call| groups(call)?.delete(&call.who, call.part(0)).map(|()| Reply::Nothing).map_err(Problem::from),
    },
    Route {
        method: Method::Post,
        path: "/v1/groups/{group}/machines",
        id: "add-to-group",
        role: ApiRole::Operator,
        about: "Adds machines to a group, from the next point on",
        query: &[],
        takes: Some(schema::<GroupMachines>),
        gives: Gives::Json(200, schema::<GroupView>),
        run: |call| {
            let more: GroupMachines = call.json()?;
            reply(&groups(call)?.add(&call.who, call.part(0), &more.machines)?)
        },
    },
    Route {
        method: Method::Patch,
        path: "/v1/groups/{group}/machines",
        id: "change-group-machines",
        role: ApiRole::Operator,
        about: "Adds machines to a group and takes others out, all of them or none, from the next point on",
        query: &[],
        takes: Some(schema::<GroupMachinesChange>),
        gives: Gives::Json(200, schema::<GroupView>),
        run: change_machines,
    },
    Route {
        method: Method::Delete,
        path: "/v1/groups/{group}/machines/{machine}",
        id: "remove-from-group",
        role: ApiRole::Operator,
        about: "Takes a machine out of a group, from the next point on",
        query: &[],
        takes: None,
        gives: Gives::Json(200, schema::<GroupView>),
        run: |call| reply(&groups(call)?.remove(&call.who, call.part(0), &[call.part(1).to_owned()])?),
    },
    Route {
        method: Method::Get,
        path: "/v1/groups/{group}/points",
        id: "group-points",
        role: ApiRole::Viewer,
        about: "The newest points of a group and the gaps between them, the newest last",
        query: &[Parameter { name: "limit", about: "At most so many (100, at most 1000)", number: true }],
        takes: None,
        gives: Gives::Json(200, schema::<Points>),
        run: points,
    },
    Route {
        method: Method::Post,
        path: "/v1/groups/{group}/points",
        id: "create-group-point",
        role: ApiRole::Operator,
        about: "Makes a point of a group now, and answers when it is durable everywhere",
        query: &[],
        takes: Some(schema::<NewPoint>),
        gives: Gives::Json(201, schema::<Point>),
        run: |call| {
            let new: NewPoint = call.json()?;
            reply(&groups(call)?.point(&call.who, call.part(0), &new.name, new.app)?)
        },
    },
    Route {
        method: Method::Get,
        path: "/v1/groups/{group}/points/{point}",
        id: "group-point",
        role: ApiRole::Viewer,
        about: "A point of a group: where it lies in each volume, and who is missing",
        query: &[],
        takes: None,
        gives: Gives::Json(200, schema::<Points>),
        run: |call| reply(&groups(call)?.points(call.part(0), Some(call.part(1)), 1)?),
    },
    Route {
        method: Method::Patch,
        path: "/v1/groups/{group}/points/{point}",
        id: "change-group-point",
        role: ApiRole::Operator,
        about: "Pins a point of a group, or leaves it to the policy again",
        query: &[],
        takes: Some(schema::<PointChange>),
        gives: Gives::Json(200, schema::<Points>),
        run: |call| {
            let change: PointChange = call.json()?;
            reply(&groups(call)?.pin(&call.who, call.part(0), call.part(1), change.pinned)?)
        },
    },
    Route {
        method: Method::Delete,
        path: "/v1/groups/{group}/points/{point}",
        id: "remove-group-point",
        role: ApiRole::Operator,
        about: "Removes a point of a group; what was kept for it alone is let go",
        query: &[],
        takes: None,
        gives: Gives::Nothing,
        run: |call| {
            groups(call)?.remove_point(&call.who, call.part(0), call.part(1))?;
            Ok(Reply::Nothing)
        },
    },
    Route {
        method: Method::Get,
        path: "/v1/groups/{group}/kept",
        id: "group-kept",
        role: ApiRole::Viewer,
        about: "Which points of a group stay, and why; with `policy`, which would",
        query: &[Parameter { name: "policy", about: "By this policy instead of the group's own", number: false }],
        takes: None,
        gives: Gives::Json(200, schema::<KeptPoints>),
        run: |call| reply(&groups(call)?.kept(call.part(0), call.parameter("policy"))?),
    },
];

fn groups(call: &Call<'_>) -> Result<Arc<Groups>, Problem> {
    call.office.groups().ok_or_else(|| Problem::new(Kind::Away, "mgmt is starting or stopping: try again"))
}

/// `old`, changed.
fn changed(old: NewGroup, change: GroupChange) -> Result<NewGroup, Problem> {
    let policy = match change.policy {
        Some(policy) if policy.is_empty() => None,
        Some(policy) => Some(policy),
        None => old.policy,
    };
    let said = [change.every_seconds.is_some(), change.partial.is_some(), change.app_every_minutes.is_some()];
    if let Some(policy) = policy.as_ref().filter(|_| said.contains(&true)) {
        let text = format!("group '{}' goes by policy '{policy}': change that, or let the group have none", old.name);
        return Err(Problem::new(Kind::Conflict, text));
    }
    Ok(NewGroup {
        every_seconds: change.every_seconds.unwrap_or(old.every_seconds),
        hold_ms: change.hold_ms.unwrap_or(old.hold_ms),
        partial: change.partial.unwrap_or(old.partial),
        app_every_minutes: change.app_every_minutes.unwrap_or(old.app_every_minutes),
        name: old.name,
        policy,
    })
}

fn create(call: &Call<'_>) -> Result<Reply, Problem> {
    let new: GroupRequest = call.json()?;
    let usual = NewGroup {
        name: new.name,
        every_seconds: EVERY,
        hold_ms: HOLD_MS,
        partial: false,
        app_every_minutes: 0,
        policy: None,
    };
    let group = changed(usual, new.how)?;
    reply(&groups(call)?.create(&call.who, &group, &new.machines)?)
}

fn set(call: &Call<'_>) -> Result<Reply, Problem> {
    let (all, change) = (groups(call)?, call.json::<GroupChange>()?);
    let old = all.show(call.part(0))?.group;
    if let Some(hold) = change.on_hold {
        all.hold(&call.who, call.part(0), hold)?;
    }
    if change == (GroupChange { on_hold: change.on_hold, ..GroupChange::default() }) {
        return reply(&all.show(call.part(0))?);
    }
    let old = NewGroup {
        name: old.name,
        every_seconds: old.every_seconds,
        hold_ms: old.hold_ms,
        partial: old.partial,
        app_every_minutes: old.app_every_minutes,
        policy: old.policy,
    };
    reply(&all.set(&call.who, &changed(old, change)?)?)
}

fn change_machines(call: &Call<'_>) -> Result<Reply, Problem> {
    let change: GroupMachinesChange = call.json()?;
    if change == GroupMachinesChange::default() {
        return Err(Problem::new(Kind::BadRequest, "nobody is named: say who is to be added or removed"));
    }
    reply(&groups(call)?.change_machines(&call.who, call.part(0), &change.add, &change.remove)?)
}

fn points(call: &Call<'_>) -> Result<Reply, Problem> {
    let most = call.number("limit")?.unwrap_or(USUAL).clamp(1, MOST);
    reply(&groups(call)?.points(call.part(0), None, most)?)
}
