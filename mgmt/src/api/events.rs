//! Routes: mgmt itself, its metrics and description; events, jobs, audit log.

use super::openapi;
use super::problem::{Kind, Problem};
use super::routes::{Call, Gives, Method, Parameter, Reply, Route, reply, schema};
use super::types::{AuditLine, Event, Events, Job, List, MgmtStatus};
use super::view::{members, time};
use crate::catalogue::{ApiRole, JobRow};
use crate::units::Time;
use afterimage_trust::Role;

/// Most lines of one answer.
const MOST: u32 = 1000;
/// Lines of an answer if nothing is said.
const USUAL: u32 = 100;
/// Longest wait for an event, in seconds.
pub(super) const MAX_WAIT: u64 = 60;

pub(super) const LIMIT: Parameter =
    Parameter { name: "limit", about: "At most so many (100, at most 1000)", number: true };

pub(super) const ROUTES: &[Route] = &[
    Route {
        method: Method::Get,
        path: "/v1/status",
        id: "status",
        role: ApiRole::Viewer,
        about: "mgmt itself, and who is asking",
        query: &[],
        takes: None,
        gives: Gives::Json(200, schema::<MgmtStatus>),
        run: status,
    },
    Route {
        method: Method::Get,
        path: "/v1/openapi.json",
        id: "openapi",
        role: ApiRole::Viewer,
        about: "This description",
        query: &[],
        takes: None,
        gives: Gives::Json(200, schema::<serde_json::Value>),
        run: |_| Ok(Reply::Json(openapi::document())),
    },
    Route {
        method: Method::Get,
        path: "/metrics",
        id: "metrics",
        role: ApiRole::Viewer,
        about: "mgmt, and all volumes as their agents and appliances report them, as metrics",
        query: &[],
        takes: None,
        gives: Gives::Text("text/plain; version=0.0.4"),
        run: |call| Ok(Reply::Text(crate::metrics::of_office(call.office)?)),
    },
    Route {
        method: Method::Get,
        path: "/v1/events",
        id: "events",
        role: ApiRole::Viewer,
        about: "Events, oldest first; without `after` the newest. With `wait` the answer comes when there is one",
        query: &[
            Parameter { name: "after", about: "Only those after the one with this number", number: true },
            LIMIT,
            Parameter { name: "wait", about: "Wait so many seconds (at most 60) if there is none yet", number: true },
        ],
        takes: None,
        gives: Gives::Json(200, schema::<Events>),
        run: events,
    },
    Route {
        method: Method::Get,
        path: "/v1/jobs",
        id: "jobs",
        role: ApiRole::Viewer,
        about: "Jobs, the newest first",
        query: &[LIMIT],
        takes: None,
        gives: Gives::Json(200, schema::<List<Job>>),
        run: |call| reply(&List { items: call.office.catalogue.jobs(limit(call)?)?.into_iter().map(job).collect() }),
    },
    Route {
        method: Method::Get,
        path: "/v1/jobs/{job}",
        id: "job",
        role: ApiRole::Viewer,
        about: "A job",
        query: &[],
        takes: None,
        gives: Gives::Json(200, schema::<Job>),
        run: one_job,
    },
    Route {
        method: Method::Get,
        path: "/v1/audit",
        id: "audit",
        role: ApiRole::Admin,
        about: "Who changed what, and when; the newest lines, oldest first",
        query: &[LIMIT],
        takes: None,
        gives: Gives::Json(200, schema::<List<AuditLine>>),
        run: audit,
    },
];

pub(super) fn limit(call: &Call<'_>) -> Result<u32, Problem> {
    Ok(call.number("limit")?.unwrap_or(USUAL).clamp(1, MOST))
}

fn status(call: &Call<'_>) -> Result<Reply, Problem> {
    let all = members(call.office)?;
    let count = |role: Role, connected: bool| {
        let of = |m: &&super::view::Known| m.member.role == role.as_str() && m.member.revoked.is_none();
        let n = all.iter().filter(of).filter(|m| m.connected || !connected).count();
        u64::try_from(n).unwrap_or(u64::MAX)
    };
    reply(&MgmtStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        time: Time::now(),
        agents: count(Role::Agent, false),
        agents_connected: count(Role::Agent, true),
        appliances: count(Role::Appliance, false),
        appliances_connected: count(Role::Appliance, true),
        caller: call.who.clone(),
        role: call.role,
    })
}

/// After which event the caller wants to hear of others.
pub(super) fn after(call: &Call<'_>) -> Result<i64, Problem> {
    match call.number::<i64>("after")? {
        Some(after) => Ok(after),
        None => Ok(call.office.catalogue.events_before(limit(call)?)?),
    }
}

fn events(call: &Call<'_>) -> Result<Reply, Problem> {
    let after = after(call)?;
    let rows = call.office.catalogue.events(after, limit(call)?)?;
    let next = rows.last().map_or(after, |row| row.id);
    let events = rows.into_iter().map(|row| Event {
        id: row.id,
        time: time(row.time),
        severity: row.event.severity,
        kind: row.event.kind,
        object: row.event.object,
        text: row.event.text,
    });
    reply(&Events { events: events.collect(), next })
}

fn job(row: JobRow) -> Job {
    Job {
        id: row.id,
        kind: row.kind,
        object: row.object,
        who: row.who,
        state: row.state,
        text: row.text,
        created: time(row.created),
        ended: row.ended.map(time),
    }
}

fn one_job(call: &Call<'_>) -> Result<Reply, Problem> {
    let none = || Problem::new(Kind::NotFound, format!("there is no job {}", call.part(0)));
    let id = call.part(0).parse().map_err(|_| none())?;
    reply(&job(call.office.catalogue.job(id)?.ok_or_else(none)?))
}

fn audit(call: &Call<'_>) -> Result<Reply, Problem> {
    let rows = call.office.catalogue.audit(limit(call)?)?.into_iter();
    let line = |r: crate::catalogue::AuditRow| AuditLine {
        id: r.id,
        time: time(r.time),
        who: r.who,
        action: r.action,
        object: r.object,
        detail: r.detail,
    };
    reply(&List { items: rows.map(line).collect() })
}
