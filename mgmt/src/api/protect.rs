//! Protecting a machine: one call, which looks first, then makes what is needed.

use super::problem::{Kind, Problem};
use super::readiness;
use super::types::{Level, MachineKind, NetworkMap, ProtectRequest, Protected, Target};
use super::view::{self, Whole, find};
use crate::catalogue::{NewEvent, PolicySettings, Severity};
use crate::members::{DisksTaken, MemberAsk, Readiness};
use crate::office::Office;
use std::time::Duration;

/// The policy of those who name none.
const DEFAULT_POLICY: &str = "default";
/// How long the agent may take to open disks.
const OPEN_LIMIT: Duration = Duration::from_secs(60);
/// Longest text of an override.
const MAX_TEXT: usize = 256;

/// What a machine becomes elsewhere: by default names from its own settings, each of which can be said instead.
#[must_use]
pub fn target(machine: &Whole, found: Option<&Readiness>, ask: &ProtectRequest, appliance_host: &str) -> Target {
    let (m, old) = (&machine.machine, machine.machine.target.as_ref());
    let pick = |said: &Option<String>, before: Option<&String>, name: String| {
        said.clone().or_else(|| before.cloned()).unwrap_or(name)
    };
    let mut network = ask.network.clone();
    let before = old.map(|t| t.network.clone()).unwrap_or_default();
    let found = found.map(|f| f.networks.as_slice()).unwrap_or_default();
    let by_name = found.iter().map(|n| NetworkMap { source: n.name.clone(), target: n.name.clone() });
    for map in before.into_iter().chain(by_name) {
        if network.iter().all(|n| n.source != map.source) {
            network.push(map);
        }
    }
    Target {
        appliance: m.appliance.clone(),
        store: pick(&ask.store, old.map(|t| &t.store), "vault".to_owned()),
        failover_host: pick(&ask.failover_host, old.map(|t| &t.failover_host), appliance_host.to_owned()),
        failover_name: pick(&ask.failover_name, old.map(|t| &t.failover_name), format!("{}-failover", m.name)),
        network,
    }
}

fn check(ask: &ProtectRequest) -> Result<(), Problem> {
    let own = [&ask.store, &ask.failover_host, &ask.failover_name].into_iter().flatten();
    let networks = ask.network.iter().flat_map(|n| [&n.source, &n.target]);
    for text in own.chain(networks) {
        if text.is_empty() || text.len() > MAX_TEXT || text.chars().any(char::is_control) {
            let what = format!("'{}' is no name", text.escape_debug());
            return Err(Problem::new(Kind::BadRequest, what));
        }
    }
    Ok(())
}

/// See the module.
///
/// # Errors
/// [`Kind::NotReady`] with the findings, if something speaks against it and `force` is not said.
pub fn protect(office: &Office, who: &str, name: &str, ask: &ProtectRequest) -> Result<Protected, Problem> {
    check(ask)?;
    let machine = find(office, name)?;
    if machine.machine.kind == MachineKind::Guest && !ask.disks.is_empty() {
        let text =
            format!("'{name}' is a guest: let {} take the disks, then name the guest with them", machine.machine.agent);
        return Err(Problem::new(Kind::BadRequest, text));
    }
    let policy = ask.policy.clone().or_else(|| machine.machine.policy.clone());
    if let Some(policy) = &policy {
        office.catalogue.policy(policy)?;
    }
    let policy = policy.unwrap_or_else(|| DEFAULT_POLICY.to_owned());
    let disks: Vec<String> = ask.disks.iter().map(|d| d.path.clone()).collect();
    let (findings, found) = readiness::look(office, &machine, &disks);
    let appliances = view::appliances(office)?;
    let appliance = appliances.iter().find(|a| a.name == machine.machine.appliance);
    let host = appliance.map_or("", |a| &a.host);
    let target = target(&machine, found.as_ref(), ask, host);
    let (id, name) = (machine.machine.id.clone(), machine.machine.name.clone());
    let mut out =
        Protected { machine: name.clone(), done: false, policy, target, added: Vec::new(), findings, job: None };
    if ask.dry_run {
        return Ok(out);
    }
    if !readiness::is_ready(&out.findings) && !ask.force {
        let errors: Vec<String> = out
            .findings
            .iter()
            .filter(|f| f.level == Level::Error)
            .map(|f| format!("({}) {}", f.number, f.text))
            .collect();
        let text = format!("machine '{name}' is not ready: {}", errors.join("; "));
        return Err(Problem { findings: out.findings, ..Problem::new(Kind::NotReady, text) });
    }
    let json = serde_json::to_string(&out.target)?;
    let job = office.catalogue.change(who, |change| {
        if out.policy == DEFAULT_POLICY && !change.has_policy(DEFAULT_POLICY)? {
            // It must not be less than what the appliance keeps of all.
            let usual = PolicySettings::default();
            let window = appliance.and_then(|a| a.window_seconds).map_or(usual.window_seconds, |w| w.max(60));
            change.create_policy(DEFAULT_POLICY, &PolicySettings { window_seconds: window, ..usual })?;
        }
        change.protect((&id, &name), &out.policy, &json)?;
        change.begin_job("protect", &format!("machine {name}"), "taking disks under protection")
    })?;
    out.job = Some(job);
    let done = take(office, &machine, ask);
    let (state, text) = match &done {
        Ok(added) if added.is_empty() => ("done", format!("by policy {}", out.policy)),
        Ok(added) => ("done", format!("by policy {}, with new volumes {}", out.policy, added.join(", "))),
        Err(e) => ("failed", e.to_string()),
    };
    let severity = if done.is_ok() { Severity::Info } else { Severity::Error };
    let event =
        NewEvent::new(severity, "job", &format!("job {job}"), &format!("protect machine {name}: {state}, {text}"));
    office.catalogue.record(|book| {
        book.job(job, state, &text, true)?;
        book.event(&event)
    })?;
    out.added = done?;
    out.done = true;
    Ok(out)
}

fn take(office: &Office, machine: &Whole, ask: &ProtectRequest) -> Result<Vec<String>, Problem> {
    if ask.disks.is_empty() {
        return Ok(Vec::new());
    }
    let name = format!("agent {}", machine.machine.agent);
    let wish = MemberAsk::Protect { disks: ask.disks.clone() };
    Ok(office.ask::<DisksTaken>(&machine.agent, &name, &wish, OPEN_LIMIT)?.volumes)
}

/// Takes a machine out of its policy.
///
/// # Errors
/// [`Kind::NotFound`] if it has none.
pub fn unprotect(office: &Office, who: &str, name: &str) -> Result<(), Problem> {
    let machine = find(office, name)?.machine;
    Ok(office.catalogue.change(who, |change| change.unprotect(&machine.id, &machine.name))?)
}
