//! Around the barrier of an app-consistent point: all machines make their applications quiet, then all freeze, then comes the barrier, and all thaw.
//!
//! What came before freezing (scripts) ends everywhere before anybody freezes, so that a slow script costs no other machine frozen time.
//! Each step has the limit that the machine's own settings give it; a machine that hears nothing more of mgmt thaws by itself.

use super::{Group, GroupApp, MachineApp, VolumeApp};
use crate::members::{MemberAsk, Quieted};
use crate::office::Office;
use serde::de::DeserializeOwned;
use std::thread;
use std::time::Duration;
use uuid::Uuid;

/// Longer than any script or freeze may take: the member's own limits come first.
const LIMIT: Duration = Duration::from_secs(900);

struct Machine {
    id: Uuid,
    name: String,
    quiet: Result<Quieted, String>,
}

/// Machines of a group whose applications are quiet, or on their way there. Those of one that is dropped thaw by themselves.
pub(super) struct Quiet<'a> {
    office: &'a Office,
    machines: Vec<Machine>,
}

/// Asks all who can be asked at the same time.
fn each<T: DeserializeOwned + Send>(
    office: &Office,
    machines: &[Machine],
    ask: impl Fn(&Machine) -> Option<MemberAsk> + Sync,
) -> Vec<Option<Result<T, String>>> {
    thread::scope(|scope| {
        let ask = &ask;
        let asked: Vec<_> = machines
            .iter()
            .map(|m| {
                scope.spawn(move || {
                    let name = format!("machine {}", m.name);
                    ask(m).map(|q| office.ask::<T>(&m.id, &name, &q, LIMIT).map_err(|e| e.to_string()))
                })
            })
            .collect();
        asked.into_iter().map(|t| t.join().unwrap_or_else(|_| Some(Err("it panicked".to_owned())))).collect()
    })
}

impl Quiet<'_> {
    /// Makes the applications of all machines quiet, as far as that goes.
    pub(super) fn begin<'a>(office: &'a Office, group: &Group, point: &str) -> Quiet<'a> {
        let machine = |m: &super::GroupMember| Machine {
            id: Uuid::try_parse(&m.id).unwrap_or_default(),
            name: m.name.clone(),
            quiet: Err(String::new()),
        };
        let mut machines: Vec<Machine> = group.members.iter().map(machine).collect();
        let begun = each(office, &machines, |_| Some(MemberAsk::Quiet { point: point.to_owned() }));
        for (m, quiet) in machines.iter_mut().zip(begun) {
            m.quiet = quiet.unwrap_or_else(|| Err(String::new()));
        }
        let frozen = each::<Quieted>(office, &machines, |m| {
            m.quiet.as_ref().ok().map(|q| MemberAsk::Freeze { id: q.id.clone() })
        });
        for (m, done) in machines.iter_mut().zip(frozen) {
            if let Some(Err(e)) = done {
                m.quiet = Err(e);
            }
        }
        Quiet { office, machines }
    }

    /// Thaws all, and says how it went.
    pub(super) fn end(self) -> GroupApp {
        let thawed = each::<Vec<VolumeApp>>(self.office, &self.machines, |m| {
            m.quiet.as_ref().ok().map(|q| MemberAsk::Thaw { id: q.id.clone() })
        });
        let machines = self.machines.into_iter().zip(thawed).map(|(m, done)| {
            let done = done.unwrap_or_else(|| Err(m.quiet.err().unwrap_or_default()));
            let (volumes, error) = done.map_or_else(|e| (Vec::new(), Some(e)), |volumes| (volumes, None));
            MachineApp { machine: m.name, error, volumes }
        });
        verdict(machines.collect())
    }
}

/// Why a machine's part is not app-consistent; `None` if it is.
fn why(m: &MachineApp) -> Option<String> {
    if let Some(error) = &m.error {
        return Some(error.clone());
    }
    if m.volumes.is_empty() {
        return Some("nothing says how its applications become quiet".to_owned());
    }
    let bad = m.volumes.iter().find(|v| v.made.consistency != "app")?;
    Some(format!("volume {}: {}", bad.volume, bad.made.reason.as_deref().unwrap_or("it was not quiet")))
}

fn verdict(machines: Vec<MachineApp>) -> GroupApp {
    let reason = machines.iter().find_map(|m| why(m).map(|why| format!("{}: {why}", m.machine)));
    let consistency = if reason.is_none() { "app" } else { "crash" };
    GroupApp { consistency: consistency.to_owned(), reason, machines }
}

/// Why a machine wants no point at all, if so: a step of it has failed, and its settings say that there is none then.
pub(super) fn refuses(app: &GroupApp, machine: &str) -> Option<String> {
    let m = app.machines.iter().find(|m| m.machine == machine)?;
    let bad = m.volumes.iter().find(|v| v.made.consistency == "failed")?;
    Some(format!("volume {}: {}", bad.volume, bad.made.reason.as_deref().unwrap_or("it was not quiet")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::AppPoint;

    fn machine(name: &str, volumes: &[&str]) -> MachineApp {
        let volume = |word: &&str| VolumeApp {
            volume: "d".to_owned(),
            made: AppPoint {
                consistency: (*word).to_owned(),
                reason: (*word != "app").then(|| "freeze: busy".to_owned()),
                frozen_ms: 1,
                steps: Vec::new(),
            },
        };
        MachineApp { machine: name.to_owned(), error: None, volumes: volumes.iter().map(volume).collect() }
    }

    #[test]
    fn a_point_is_app_consistent_only_if_every_machine_says_so() {
        let of = |m: &[MachineApp]| verdict(m.to_vec());
        assert_eq!(of(&[machine("a", &["app"]), machine("b", &["app", "app"])]).consistency, "app");
        let one = of(&[machine("a", &["app"]), machine("b", &["app", "crash"])]);
        assert_eq!((&*one.consistency, one.reason.as_deref()), ("crash", Some("b: volume d: freeze: busy")));
        assert!(refuses(&one, "b").is_none());
        assert_eq!(of(&[machine("a", &["app"]), machine("b", &[])]).consistency, "crash");
        let away = MachineApp { error: Some("away".to_owned()), ..machine("b", &[]) };
        assert_eq!(of(&[machine("a", &["app"]), away]).reason.as_deref(), Some("b: away"));
        let no = of(&[machine("a", &["failed"])]);
        assert!(refuses(&no, "a").is_some_and(|why| why.contains("busy")) && refuses(&no, "x").is_none());
    }
}
