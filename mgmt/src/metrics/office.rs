//! Metrics of mgmt: its own, and those of all members as they report.

use super::{Group, Host, escaped, head, of_store, recoveries, volumes};
use crate::api::problem::Problem;
use crate::api::view::{Known, members, whole};
use crate::office::Office;
use crate::protocol::Status;
use afterimage_trust::Role;
use std::fmt::Write as _;

/// What mgmt alone exports: name, type, help.
const OWN: [(&str, &str, &str); 5] = [
    ("member_connected", "gauge", "Whether an agent or appliance is connected to mgmt"),
    (
        "member_certificate_expires_seconds",
        "gauge",
        "When the newest certificate of a member ends, in seconds since 1970",
    ),
    ("machine_protected", "gauge", "Whether a machine has a policy"),
    ("machine_volumes", "gauge", "Volumes of a machine that its agent serves"),
    ("events_total", "counter", "Events that mgmt has written"),
];

/// Their names.
#[must_use]
pub fn families() -> Vec<String> {
    OWN.iter().map(|(name, ..)| (*name).to_owned()).chain(super::groups::families()).collect()
}

/// The whole text.
///
/// # Errors
/// Those of the catalogue.
pub fn of_office(office: &Office) -> Result<String, Problem> {
    let (all, machines) = (members(office)?, whole(office)?);
    let there = || all.iter().filter(|m| m.member.revoked.is_none());
    let mut out = String::new();
    let certificates = office.catalogue.certificates()?;
    for (name, kind, help) in OWN {
        head(&mut out, name, kind, help);
        for m in there() {
            let who = format!("role=\"{}\",member=\"{}\"", m.member.role, escaped(&m.member.name));
            let valid = certificates.iter().filter(|c| c.member == m.member.id && c.revoked.is_none());
            let value = match name {
                "member_connected" => Some(i64::from(m.connected)),
                "member_certificate_expires_seconds" => valid.map(|c| c.not_after).max(),
                _ => None,
            };
            if let Some(value) = value {
                let _ = writeln!(out, "afterimage_{name}{{{who}}} {value}");
            }
        }
        for m in machines.iter().filter(|m| m.machine.revoked.is_none()) {
            let value = match name {
                "machine_protected" => u64::from(m.machine.policy.is_some()),
                "machine_volumes" => m.machine.volumes,
                _ => continue,
            };
            let _ = writeln!(out, "afterimage_{name}{{machine=\"{}\"}} {value}", escaped(&m.machine.name));
        }
        if name == "events_total" {
            let _ = writeln!(out, "afterimage_{name} {}", *office.catalogue.news().borrow());
        }
    }
    super::groups::put(&mut out, office)?;
    let reports: Vec<_> = there().filter_map(|m| m.status.as_ref().map(|s| (m, s))).collect();
    head(&mut out, "info", "gauge", "1, with what runs as labels");
    let _ = writeln!(out, "afterimage_info{{version=\"{}\",role=\"mgmt\"}} 1", env!("CARGO_PKG_VERSION"));
    for (m, status) in &reports {
        let (role, name, version) = (&m.member.role, escaped(&m.member.name), escaped(&status.version));
        let _ = writeln!(out, "afterimage_info{{version=\"{version}\",role=\"{role}\",member=\"{name}\"}} 1");
    }
    let stores: Vec<_> = reports.iter().filter_map(|(m, s)| s.store.as_ref().map(|s| (m, of_store(s)))).collect();
    for (name, kind, help, _) in
        stores.iter().max_by_key(|(_, list)| list.len()).map(|(_, l)| l.as_slice()).unwrap_or_default()
    {
        head(&mut out, &format!("store_{name}"), kind, help);
        for (m, list) in &stores {
            for (_, _, _, value) in list.iter().filter(|(n, ..)| n == name) {
                let _ = writeln!(out, "afterimage_store_{name}{{appliance=\"{}\"}} {value}", escaped(&m.member.name));
            }
        }
    }
    let hosts: Vec<_> = reports.iter().map(|(m, s)| Host { of: Some(&m.member.name), all: &s.recoveries }).collect();
    recoveries(&mut out, &hosts);
    let label = |role: &str| if role == Role::Agent.as_str() { "machine" } else { "appliance" };
    let group = |(m, s): &(&Known, &Status)| (label(&m.member.role), m.member.name.clone(), s.volumes.clone());
    let owned: Vec<_> = reports.iter().map(group).collect();
    let groups: Vec<_> = owned.iter().map(|(l, name, v)| Group { of: Some((*l, name.as_str())), volumes: v }).collect();
    volumes(&mut out, &groups);
    Ok(out)
}
