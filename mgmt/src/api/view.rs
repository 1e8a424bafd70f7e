//! Machines, volumes and appliances as the API shows them: the catalogue, and what members report now.

use super::problem::{Kind, Problem};
use super::types::{ApplianceView, Machine, MachineKind, Target, VolumeHistory, VolumeNow, VolumeView};
use crate::catalogue::{Member, VolumeRow};
use crate::office::Office;
use crate::protocol::{Status, VolumeStatus};
use crate::units::Time;
use afterimage_trust::Role;
use std::collections::BTreeMap;
use uuid::Uuid;

/// States, the worst first: a machine is in that of its worst volume.
const WORST: [&str; 8] = ["error", "away", "dirty", "resync", "initial-sync", "unprotected", "offline", "live"];

/// Seconds since 1970 as a time.
#[must_use]
pub fn time(seconds: i64) -> Time {
    Time(u64::try_from(seconds).unwrap_or(0).saturating_mul(1_000_000_000))
}

/// An agent or appliance.
#[derive(Debug, Clone)]
pub struct Known {
    /// What the catalogue has.
    pub member: Member,
    /// Whether it is connected.
    pub connected: bool,
    /// What it reports, if it does.
    pub status: Option<Status>,
}

/// All agents and appliances.
///
/// # Errors
/// Those of the catalogue.
pub fn members(office: &Office) -> Result<Vec<Known>, Problem> {
    let connected: Vec<String> = office.connected().into_iter().map(|(who, ..)| who.id.to_string()).collect();
    let known = |member: Member| {
        let id = Uuid::try_parse(&member.id).unwrap_or_default();
        Known { connected: connected.contains(&member.id), status: office.reports.of(&id).map(|r| r.status), member }
    };
    Ok(office.catalogue.members()?.into_iter().map(known).collect())
}

/// A machine with what belongs to it.
#[derive(Debug, Clone)]
pub struct Whole {
    /// What the API shows.
    pub machine: Machine,
    /// The id of its agent.
    pub agent: Uuid,
    /// Its volumes.
    pub volumes: Vec<VolumeView>,
}

fn volume(row: &VolumeRow, machine: &str, agent: &Known, appliance: &str, office: &Office) -> VolumeView {
    let now: Option<&VolumeStatus> =
        agent.status.as_ref().and_then(|s| s.volumes.iter().find(|v| v.id == row.id)).filter(|_| agent.connected);
    let state = match (row.gone, now) {
        (Some(_), _) => "gone".to_owned(),
        (None, None) => "away".to_owned(),
        (None, Some(v)) => v.state.as_str().to_owned(),
    };
    let history = office.reports.history_of(&row.id).map(|(_, v)| VolumeHistory {
        points: v.points,
        stored_bytes: v.stored_bytes,
        logical_bytes: v.logical_bytes,
        first_time: v.first_time,
        durable_time: v.durable_time,
    });
    VolumeView {
        name: row.name.clone(),
        id: row.id.clone(),
        machine: machine.to_owned(),
        agent: agent.member.name.clone(),
        appliance: appliance.to_owned(),
        path: row.path.clone(),
        size: u64::try_from(row.size).unwrap_or(0),
        state,
        last_state: row.state.clone(),
        since: time(row.since),
        reason: now.and_then(|v| v.reason.clone()),
        now: now.map(|v| VolumeNow {
            connected: v.connected,
            seq_acked: v.seq_acked,
            seq_durable: v.seq_durable,
            lag_seconds: v.lag_seconds,
            lag_bytes: v.lag_bytes,
            ring_bytes: v.ring_bytes,
            ring_used: v.ring_used,
            dirty_bytes: v.dirty_bytes,
            sync_bytes_per_second: v.sync.as_ref().map(|s| s.bytes_per_second),
            uri: v.uri.clone(),
        }),
        history,
    }
}

/// The state of a machine with these volumes.
fn worst(volumes: &[VolumeView]) -> String {
    let there = |word: &&&str| volumes.iter().any(|v| v.state == **word);
    WORST.iter().find(there).map_or_else(|| "none".to_owned(), |word| (*word).to_owned())
}

fn machine(
    (id, name, kind, created): (&str, &str, MachineKind, i64),
    agent: &Known,
    appliance: &str,
    volumes: &[VolumeView],
) -> Machine {
    let served: Vec<&VolumeView> = volumes.iter().filter(|v| v.state != "gone").collect();
    let now: Option<Vec<&VolumeNow>> = served.iter().map(|v| v.now.as_ref()).collect();
    Machine {
        name: name.to_owned(),
        id: id.to_owned(),
        kind,
        agent: agent.member.name.clone(),
        host: agent.member.host.clone(),
        appliance: appliance.to_owned(),
        connected: agent.connected,
        state: worst(volumes),
        volumes: u64::try_from(served.len()).unwrap_or(u64::MAX),
        size: served.iter().map(|v| v.size).sum(),
        lag_seconds: now.as_ref().map(|n| n.iter().map(|v| v.lag_seconds).fold(0.0, f64::max)),
        lag_bytes: now.as_ref().map(|n| n.iter().map(|v| v.lag_bytes).sum()),
        policy: None,
        target: None,
        created: time(created),
        revoked: agent.member.revoked.map(time),
    }
}

/// All machines with their volumes: one for each agent, and the guests.
///
/// # Errors
/// Those of the catalogue.
pub fn whole(office: &Office) -> Result<Vec<Whole>, Problem> {
    let members = members(office)?;
    let (guests, rows) = (office.catalogue.guests()?, office.catalogue.volumes()?);
    let names: BTreeMap<&str, &str> =
        members.iter().filter(|m| m.member.role == "appliance").map(|m| (&*m.member.id, &*m.member.name)).collect();
    let mut out = Vec::new();
    for agent in members.iter().filter(|m| m.member.role == Role::Agent.as_str()) {
        let member = &agent.member;
        let appliance = names.get(&*member.vault).copied().unwrap_or("");
        let own = (None, &*member.id, &*member.name, MachineKind::Host, member.created);
        let of_it = guests.iter().filter(|g| g.agent == member.id);
        let guests = of_it.map(|g| (Some(g.id.clone()), &*g.id, &*g.name, MachineKind::Guest, g.created));
        for (guest, id, name, kind, created) in std::iter::once(own).chain(guests) {
            let its = rows.iter().filter(|r| r.agent == member.id && r.guest == guest);
            let volumes: Vec<_> = its.map(|row| volume(row, name, agent, appliance, office)).collect();
            let machine = machine((id, name, kind, created), agent, appliance, &volumes);
            out.push(Whole { machine, agent: Uuid::try_parse(&member.id).unwrap_or_default(), volumes });
        }
    }
    for row in office.catalogue.protections()? {
        if let Some(m) = out.iter_mut().find(|m| m.machine.id == row.machine) {
            m.machine.policy = Some(row.policy);
            m.machine.target = serde_json::from_str::<Target>(&row.target).ok();
        }
    }
    Ok(out)
}

/// All machines.
///
/// # Errors
/// Those of the catalogue.
pub fn machines(office: &Office) -> Result<Vec<Machine>, Problem> {
    Ok(whole(office)?.into_iter().map(|w| w.machine).collect())
}

/// A machine by its name or id.
///
/// # Errors
/// [`Kind::NotFound`] if there is none.
pub fn find(office: &Office, name: &str) -> Result<Whole, Problem> {
    let mut all = whole(office)?;
    let found = all.iter().position(|w| w.machine.name == name || w.machine.id == name);
    found.map(|n| all.swap_remove(n)).ok_or_else(|| {
        Problem::new(
            Kind::NotFound,
            format!("there is no machine '{name}': `afterimage machine ls` shows what there is"),
        )
    })
}

/// Whether a volume has this id, is MACHINE/NAME, or has this name.
pub fn is_named(v: &VolumeView, name: &str) -> bool {
    v.id == name || v.name == name || format!("{}/{}", v.machine, v.name) == name
}

/// A volume by its id, by MACHINE/NAME, or by its name if no other has the same.
///
/// # Errors
/// [`Kind::NotFound`] if there is none, [`Kind::Conflict`] if there are several.
pub fn find_volume(office: &Office, name: &str) -> Result<(Whole, VolumeView), Problem> {
    let mut found = Vec::new();
    for machine in whole(office)? {
        for v in &machine.volumes {
            if is_named(v, name) {
                found.push((machine.clone(), v.clone()));
            }
        }
    }
    match found.len() {
        0 => Err(Problem::new(Kind::NotFound, format!("there is no volume '{name}'"))),
        1 => Ok(found.swap_remove(0)),
        n => {
            Err(Problem::new(Kind::Conflict, format!("{n} volumes are named '{name}': say MACHINE/VOLUME, or the id")))
        }
    }
}

/// All appliances.
///
/// # Errors
/// Those of the catalogue.
pub fn appliances(office: &Office) -> Result<Vec<ApplianceView>, Problem> {
    let all = members(office)?.into_iter().filter(|m| m.member.role == Role::Appliance.as_str());
    let view = |m: Known| {
        let status = m.status.as_ref().filter(|_| m.connected);
        let sum = |of: fn(&VolumeStatus) -> u64| status.map(|s| s.volumes.iter().map(of).sum());
        ApplianceView {
            connected: m.connected,
            version: status.map(|s| s.version.clone()),
            listen: status.map(|s| s.listen.clone()).unwrap_or_default(),
            volumes: status.map(|s| u64::try_from(s.volumes.len()).unwrap_or(u64::MAX)),
            stored_bytes: sum(|v| v.stored_bytes),
            logical_bytes: sum(|v| v.logical_bytes),
            window_seconds: status.map(|s| s.window_seconds),
            created: time(m.member.created),
            revoked: m.member.revoked.map(time),
            name: m.member.name,
            id: m.member.id,
            host: m.member.host,
        }
    };
    Ok(all.map(view).collect())
}
