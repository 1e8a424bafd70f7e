//! Routes: machines, volumes, appliances.

use super::groups::{NewPoint, PointChange};
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
use crate::protocol::{PointInfo, PointList};
use crate::retention::{PointAction, Retention, RetentionChange};
use serde::de::DeserializeOwned;
use std::time::Duration;
use uuid::Uuid;

/// How long an appliance may look for its points.
const POINTS_LIMIT: Duration = Duration::from_secs(20);
/// How long an agent may take for a point: its scripts and freezes have limits of their own.
const POINT_LIMIT: Duration = Duration::from_secs(180);

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
        method: Method::Delete,
        path: "/v1/volumes/{volume}",
        id: "drop-volume",
        role: ApiRole::Operator,
        about: "Says that a volume which its agent does not serve any more is no part of its machine; its history stays",
        query: &[],
        takes: None,
        gives: Gives::Nothing,
        run: drop_volume,
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
        method: Method::Post,
        path: "/v1/volumes/{volume}/points",
        id: "create-volume-point",
        role: ApiRole::Operator,
        about: "Has the agent of a volume make a point now, and answers when it is durable",
        query: &[],
        takes: Some(schema::<NewPoint>),
        gives: Gives::Json(201, schema::<PointView>),
        run: create_point,
    },
    Route {
        method: Method::Patch,
        path: "/v1/volumes/{volume}/points/{point}",
        id: "change-volume-point",
        role: ApiRole::Operator,
        about: "Pins a point of a volume, or leaves it to the policy again",
        query: &[],
        takes: Some(schema::<PointChange>),
        gives: Gives::Json(200, schema::<PointView>),
        run: |call| {
            let change: PointChange = call.json()?;
            reply(&change_point(call, if change.pinned { PointAction::Pin } else { PointAction::Unpin })?)
        },
    },
    Route {
        method: Method::Delete,
        path: "/v1/volumes/{volume}/points/{point}",
        id: "remove-volume-point",
        role: ApiRole::Operator,
        about: "Removes a point of a volume",
        query: &[],
        takes: None,
        gives: Gives::Nothing,
        run: |call| change_point(call, PointAction::Remove).map(|_| Reply::Nothing),
    },
    Route {
        method: Method::Get,
        path: "/v1/volumes/{volume}/kept",
        id: "volume-kept",
        role: ApiRole::Viewer,
        about: "What its appliance keeps of a volume, and why; with `policy`, what it would keep and give back",
        query: &[Parameter { name: "policy", about: "By this policy instead of what counts now", number: false }],
        takes: None,
        gives: Gives::Json(200, schema::<Retention>),
        run: kept,
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

fn drop_volume(call: &Call<'_>) -> Result<Reply, Problem> {
    // Another one may have its name by now.
    let gone = view::whole(call.office)?.into_iter().find_map(|m| {
        let volume = m.volumes.iter().find(|v| v.state == "gone" && view::is_named(v, call.part(0)));
        volume.cloned().map(|v| (m, v))
    });
    let (machine, volume) = gone.map_or_else(|| find_volume(call.office, call.part(0)), Ok)?;
    let name = format!("{}/{}", volume.machine, volume.name);
    call.office.catalogue.change(&call.who, |c| c.drop_volume(&machine.agent.to_string(), &volume.id, &name))?;
    Ok(Reply::Nothing)
}

/// Asks the appliance that keeps a volume's history.
fn ask_appliance<T: DeserializeOwned>(
    call: &Call<'_>,
    ask: impl FnOnce(&VolumeView) -> MemberAsk,
) -> Result<(VolumeView, T), Problem> {
    let (machine, volume) = find_volume(call.office, call.part(0))?;
    let appliances = view::appliances(call.office)?;
    let appliance = appliances.iter().find(|a| a.name == machine.machine.appliance);
    let appliance = appliance.ok_or_else(|| Problem::new(Kind::NotFound, "its appliance is not in the catalogue"))?;
    let id = Uuid::try_parse(&appliance.id).unwrap_or_default();
    let name = format!("appliance {}", appliance.name);
    let answer = call.office.ask(&id, &name, &ask(&volume), POINTS_LIMIT)?;
    Ok((volume, answer))
}

fn kept(call: &Call<'_>) -> Result<Reply, Problem> {
    let settings = call.parameter("policy").map(|name| call.office.catalogue.policy(name)).transpose()?;
    let change = settings.map_or_else(RetentionChange::default, |p| p.settings.retention());
    let ask = |v: &VolumeView| MemberAsk::Kept { id: v.id.clone(), change };
    reply(&ask_appliance::<Retention>(call, ask)?.1)
}

fn shown(point: PointInfo) -> PointView {
    let PointInfo { name, seq, time, auto, pinned, app } = point;
    PointView { name, seq, time, auto, pinned, app }
}

fn create_point(call: &Call<'_>) -> Result<Reply, Problem> {
    let new: NewPoint = call.json()?;
    let (machine, volume) = find_volume(call.office, call.part(0))?;
    // The agent does not know its history. While that cannot be asked, the newest of a name is meant by it later.
    let known = ask_appliance::<PointList>(call, |v| MemberAsk::Points { volume: v.name.clone() });
    if known.is_ok_and(|(_, list)| list.points.iter().any(|p| p.name == new.name)) {
        let text = format!("volume {} has a point '{}' already: take another name", volume.name, new.name);
        return Err(Problem::new(Kind::Conflict, text));
    }
    let ask = MemberAsk::CreatePoint { volume: volume.name.clone(), name: new.name, app: new.app };
    let agent = format!("machine {}", machine.machine.agent);
    let point: PointInfo = call.office.ask(&machine.agent, &agent, &ask, POINT_LIMIT)?;
    note(call, "create-point", &volume, &point)?;
    reply(&shown(point))
}

fn change_point(call: &Call<'_>, action: PointAction) -> Result<PointView, Problem> {
    let name = call.part(1);
    let ask = |v: &VolumeView| MemberAsk::ChangePoint { volume: v.name.clone(), name: name.to_owned(), action };
    let (volume, point) = ask_appliance::<PointInfo>(call, ask)?;
    let what = match action {
        PointAction::Pin => "pin-point",
        PointAction::Unpin => "unpin-point",
        PointAction::Remove => "remove-point",
    };
    note(call, what, &volume, &point)?;
    Ok(shown(point))
}

/// Who did that, for the audit log.
fn note(call: &Call<'_>, what: &str, volume: &VolumeView, point: &PointInfo) -> Result<(), Problem> {
    let object = format!("volume {}/{}", volume.machine, volume.name);
    call.office.catalogue.change(&call.who, |change| change.log(what, &object, &point.name))?;
    Ok(())
}

fn points(call: &Call<'_>) -> Result<Reply, Problem> {
    let ask = |v: &VolumeView| MemberAsk::Points { volume: v.name.clone() };
    let (volume, list) = ask_appliance::<PointList>(call, ask)?;
    let points = list.points.into_iter();
    let gaps = list.gaps.into_iter();
    reply(&VolumePoints {
        volume: volume.name,
        first_time: list.window.map(|w| w.first_time),
        last_time: list.window.map(|w| w.last_time),
        points: points.map(shown).collect(),
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
