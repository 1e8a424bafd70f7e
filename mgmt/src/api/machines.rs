//! Routes: machines, volumes, appliances.

use super::problem::{Kind, Problem};
use super::protect::{protect, unprotect};
use super::readiness;
use super::routes::{Call, Gives, Method, Parameter, Reply, Route, reply, schema};
use super::types::{
    ApplianceView, GapView, List, Machine, NewMachine, PointView, ProtectRequest, Protected, ReadinessReport,
    ReadinessRequest, VolumePoints, VolumeView,
};
use super::view::{self, find, find_volume};
use crate::catalogue::ApiRole;
use crate::members::MemberAsk;
use crate::protocol::PointList;
use std::time::Duration;
use uuid::Uuid;

/// How long an appliance may look for its points.
const POINTS_LIMIT: Duration = Duration::from_secs(20);

pub(super) const ROUTES: &[Route] = &[
    Route {
        method: Method::Get,
        path: "/v1/machines",
        id: "machines",
        role: ApiRole::Viewer,
        about: "Machines: each agent's host, and guests",
        query: &[],
        takes: None,
        gives: Gives::Json(200, schema::<List<Machine>>),
        run: |call| reply(&List { items: view::machines(call.office)? }),
    },
    Route {
        method: Method::Post,
        path: "/v1/machines",
        id: "create-machine",
        role: ApiRole::Operator,
        about: "Names a guest: one of several machines whose disks one agent serves",
        query: &[],
        takes: Some(schema::<NewMachine>),
        gives: Gives::Json(201, schema::<Machine>),
        run: create,
    },
    Route {
        method: Method::Get,
        path: "/v1/machines/{machine}",
        id: "machine",
        role: ApiRole::Viewer,
        about: "A machine",
        query: &[],
        takes: None,
        gives: Gives::Json(200, schema::<Machine>),
        run: |call| reply(&find(call.office, call.part(0))?.machine),
    },
    Route {
        method: Method::Delete,
        path: "/v1/machines/{machine}",
        id: "remove-machine",
        role: ApiRole::Operator,
        about: "Forgets a guest; its volumes belong to the agent's host again",
        query: &[],
        takes: None,
        gives: Gives::Nothing,
        run: remove,
    },
    Route {
        method: Method::Post,
        path: "/v1/machines/{machine}/readiness",
        id: "machine-readiness",
        role: ApiRole::Operator,
        about: "Looks whether a machine can be protected; its agent measures the way to the appliance",
        query: &[],
        takes: Some(schema::<ReadinessRequest>),
        gives: Gives::Json(200, schema::<ReadinessReport>),
        run: ready,
    },
    Route {
        method: Method::Post,
        path: "/v1/machines/{machine}/protect",
        id: "protect-machine",
        role: ApiRole::Operator,
        about: "Protects a machine: looks whether it is ready, and makes what it becomes elsewhere",
        query: &[],
        takes: Some(schema::<ProtectRequest>),
        gives: Gives::Json(200, schema::<Protected>),
        run: |call| reply(&protect(call.office, &call.who, call.part(0), &call.json::<ProtectRequest>()?)?),
    },
    Route {
        method: Method::Delete,
        path: "/v1/machines/{machine}/protect",
        id: "unprotect-machine",
        role: ApiRole::Operator,
        about: "Takes a machine out of its policy; its disks stay served and what was kept is kept",
        query: &[],
        takes: None,
        gives: Gives::Nothing,
        run: |call| unprotect(call.office, &call.who, call.part(0)).map(|()| Reply::Nothing),
    },
    Route {
        method: Method::Get,
        path: "/v1/volumes",
        id: "volumes",
        role: ApiRole::Viewer,
        about: "Volumes, as their agents and appliances report them",
        query: &[Parameter { name: "machine", about: "Only those of this machine", number: false }],
        takes: None,
        gives: Gives::Json(200, schema::<List<VolumeView>>),
        run: volumes,
    },
    Route {
        method: Method::Get,
        path: "/v1/volumes/{volume}",
        id: "volume",
        role: ApiRole::Viewer,
        about: "A volume, by its id, its name, or MACHINE/NAME (with %2F)",
        query: &[],
        takes: None,
        gives: Gives::Json(200, schema::<VolumeView>),
        run: |call| reply(&find_volume(call.office, call.part(0))?.1),
    },
    Route {
        method: Method::Get,
        path: "/v1/volumes/{volume}/points",
        id: "volume-points",
        role: ApiRole::Viewer,
        about: "The recovery points of a volume, as its appliance has them now",
        query: &[],
        takes: None,
        gives: Gives::Json(200, schema::<VolumePoints>),
        run: points,
    },
    Route {
        method: Method::Get,
        path: "/v1/appliances",
        id: "appliances",
        role: ApiRole::Viewer,
        about: "Appliances",
        query: &[],
        takes: None,
        gives: Gives::Json(200, schema::<List<ApplianceView>>),
        run: |call| reply(&List { items: view::appliances(call.office)? }),
    },
    Route {
        method: Method::Get,
        path: "/v1/appliances/{appliance}",
        id: "appliance",
        role: ApiRole::Viewer,
        about: "An appliance",
        query: &[],
        takes: None,
        gives: Gives::Json(200, schema::<ApplianceView>),
        run: appliance,
    },
];

fn create(call: &Call<'_>) -> Result<Reply, Problem> {
    let new: NewMachine = call.json()?;
    let agent = find(call.office, &new.agent)?.agent.to_string();
    call.office.catalogue.change(&call.who, |change| change.create_guest(&new.name, &agent, &new.volumes))?;
    reply(&find(call.office, &new.name)?.machine)
}

fn remove(call: &Call<'_>) -> Result<Reply, Problem> {
    let id = find(call.office, call.part(0))?.machine.id;
    let guests = call.office.catalogue.guests()?;
    let guest = guests.iter().find(|g| g.id == id).ok_or_else(|| {
        let text = format!("'{}' is the host of an agent: `afterimage mgmt revoke` ends that", call.part(0));
        Problem::new(Kind::Conflict, text)
    })?;
    call.office.catalogue.change(&call.who, |change| change.remove_guest(guest))?;
    Ok(Reply::Nothing)
}

fn ready(call: &Call<'_>) -> Result<Reply, Problem> {
    let ask: ReadinessRequest = call.json()?;
    let machine = find(call.office, call.part(0))?;
    let (findings, _) = readiness::look(call.office, &machine, &ask.disks);
    let ready = readiness::is_ready(&findings);
    reply(&ReadinessReport { machine: machine.machine.name, ready, findings })
}

fn volumes(call: &Call<'_>) -> Result<Reply, Problem> {
    let all = match call.parameter("machine") {
        Some(name) => vec![find(call.office, name)?],
        None => view::whole(call.office)?,
    };
    reply(&List { items: all.into_iter().flat_map(|m| m.volumes).collect::<Vec<VolumeView>>() })
}

fn points(call: &Call<'_>) -> Result<Reply, Problem> {
    let (machine, volume) = find_volume(call.office, call.part(0))?;
    let appliances = view::appliances(call.office)?;
    let appliance = appliances.iter().find(|a| a.name == machine.machine.appliance);
    let appliance = appliance.ok_or_else(|| Problem::new(Kind::NotFound, "its appliance is not in the catalogue"))?;
    let id = Uuid::try_parse(&appliance.id).unwrap_or_default();
    let ask = MemberAsk::Points { volume: volume.name.clone() };
    let list: PointList = call.office.ask(&id, &format!("appliance {}", appliance.name), &ask, POINTS_LIMIT)?;
    let points = list.points.into_iter();
    let gaps = list.gaps.into_iter();
    reply(&VolumePoints {
        volume: volume.name,
        first_time: list.window.map(|w| w.first_time),
        last_time: list.window.map(|w| w.last_time),
        points: points.map(|p| PointView { name: p.name, seq: p.seq, time: p.time, auto: p.auto }).collect(),
        gaps: gaps
            .map(|g| GapView { from_seq: g.from_seq, from_time: g.from_time, to_seq: g.to_seq, to_time: g.to_time })
            .collect(),
    })
}

fn appliance(call: &Call<'_>) -> Result<Reply, Problem> {
    let all = view::appliances(call.office)?;
    let found = all.iter().find(|a| a.name == call.part(0) || a.id == call.part(0));
    reply(found.ok_or_else(|| Problem::new(Kind::NotFound, format!("there is no appliance '{}'", call.part(0))))?)
}
