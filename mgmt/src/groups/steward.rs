//! Brings what policies say to where it is done: how much of a volume is kept to its appliance, how often points are made to its agent, and
//! which seqs points of groups need to the appliances.
//!
//! All of it is a comparison of what should be with what the other side was told last, made again and again: a change of policy, a
//! member that comes back and a mgmt that was away need nothing else.

use super::keep::{Candidate, Tiers, choose, to_pin};
use super::{Group, Shared};
use crate::catalogue::keeping::Pin;
use crate::catalogue::{CatalogueError, NewEvent, PolicySettings, Severity};
use crate::members::{Done, Managed, MemberAsk, SeqKept, VolumeRetention, VolumeSchedule, VolumeSeqs};
use crate::office::Office;
use crate::retention::RetentionChange;
use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Between two rounds at least. A round that takes long has a longer rest behind it.
const REST: Duration = Duration::from_secs(2);
const REST_FACTOR: u32 = 20;
const TICK: Duration = Duration::from_millis(100);
/// How long a member may take to answer.
const LIMIT: Duration = Duration::from_secs(30);
/// Seqs in one message.
const MOST_PINS: u32 = 2000;

/// What was told to whom, and in which session of his.
#[derive(Default)]
struct Told {
    retention: BTreeMap<String, (u64, VolumeRetention)>,
    /// To each appliance, of which volumes anything is said.
    all: BTreeMap<String, (u64, BTreeSet<String>)>,
    schedules: BTreeMap<Uuid, (u64, Vec<VolumeSchedule>)>,
}

/// What should be of one volume.
struct Rule {
    object: String,
    agent: String,
    vault: String,
    kept: VolumeRetention,
    schedule: Option<VolumeSchedule>,
}

/// What both want is had: the longer window, and the larger numbers.
fn both(a: &PolicySettings, b: &PolicySettings) -> PolicySettings {
    PolicySettings {
        window_seconds: a.window_seconds.max(b.window_seconds),
        hourly: a.hourly.max(b.hourly),
        daily: a.daily.max(b.daily),
        weekly: a.weekly.max(b.weekly),
        monthly: a.monthly.max(b.monthly),
        ..a.clone()
    }
}

/// What should be of every volume of which anybody has said something.
fn rules(office: &Office, groups: &[Group]) -> Result<Vec<Rule>, CatalogueError> {
    let catalogue = &office.catalogue;
    let policies: BTreeMap<String, PolicySettings> =
        catalogue.policies()?.into_iter().map(|p| (p.name, p.settings)).collect();
    let own: BTreeMap<String, String> = catalogue.protections()?.into_iter().map(|p| (p.machine, p.policy)).collect();
    let agents: BTreeMap<String, (String, String)> =
        catalogue.members()?.into_iter().map(|m| (m.id, (m.name, m.vault))).collect();
    let mut out = Vec::new();
    for v in catalogue.volumes()? {
        let Some((machine, vault)) = agents.get(&v.agent) else { continue };
        let group = groups.iter().find(|g| g.members.iter().any(|m| m.id == v.agent));
        let named = [own.get(v.guest.as_ref().unwrap_or(&v.agent)), group.and_then(|g| g.policy.as_ref())];
        let named: Vec<&String> = named.into_iter().flatten().collect();
        let settings = named
            .iter()
            .filter_map(|name| policies.get(*name))
            .fold(None::<PolicySettings>, |a, b| Some(a.map_or_else(|| b.clone(), |a| both(&a, b))));
        let hold = group.and_then(|g| (g.on_hold || g.released).then_some(g.on_hold));
        let by_policy = settings.as_ref().map(PolicySettings::retention).unwrap_or_default();
        let change = RetentionChange { hold, ..by_policy };
        // Points of a machine in a group are the group's.
        let schedule = settings.as_ref().filter(|_| group.is_none()).map(|s| VolumeSchedule {
            id: v.id.clone(),
            crash_seconds: s.crash_interval_seconds,
            app_minutes: s.app_interval_minutes,
        });
        if !change.is_empty() {
            let policies: BTreeSet<&String> = named.into_iter().collect();
            let by = Managed {
                policies: policies.into_iter().cloned().collect(),
                on_hold: group.filter(|g| g.on_hold).map(|g| g.name.clone()),
            };
            let object = format!("volume {machine}/{}", v.name);
            let kept = VolumeRetention { id: v.id, change, by };
            out.push(Rule { object, agent: v.agent, vault: vault.clone(), kept, schedule });
        }
    }
    Ok(out)
}

fn uuid(text: &str) -> Uuid {
    Uuid::try_parse(text).unwrap_or_default()
}

impl Told {
    /// Tells appliances what they keep, and of which volumes nobody says that any more.
    fn tell_appliances(&mut self, office: &Office, rules: &[Rule]) -> Result<(), CatalogueError> {
        for vault in office.catalogue.members()?.into_iter().filter(|m| m.role == "appliance").map(|m| m.id) {
            let Some(session) = office.session_of(&uuid(&vault)) else { continue };
            let of_it = || rules.iter().filter(|r| r.vault == vault);
            let is_told = |r: &&Rule| self.retention.get(&r.kept.id).is_some_and(|t| t.0 == session && t.1 == r.kept);
            let news: Vec<&Rule> = of_it().filter(|r| !is_told(r)).collect();
            let all = (session, of_it().map(|r| r.kept.id.clone()).collect::<BTreeSet<_>>());
            if news.is_empty() && self.all.get(&vault) == Some(&all) {
                continue;
            }
            let volumes = news.iter().map(|r| r.kept.clone()).collect();
            let ask = MemberAsk::Retain { volumes, all: Some(all.1.iter().cloned().collect()) };
            match office.ask::<Done>(&uuid(&vault), "the appliance", &ask, LIMIT) {
                Ok(done) => {
                    let mut events = Vec::new();
                    for r in news.into_iter().filter(|r| !done.unknown.contains(&r.kept.id)) {
                        let before = self.retention.insert(r.kept.id.clone(), (session, r.kept.clone()));
                        if before.is_none_or(|b| b.1.change != r.kept.change) {
                            events.push(NewEvent::new(Severity::Info, "policy", &r.object, &said(&r.kept)));
                        }
                    }
                    self.all.insert(vault, all);
                    if !events.is_empty() {
                        office.note(&events);
                    }
                }
                Err(e) => tracing::warn!("what is kept by policy: {e}"),
            }
        }
        Ok(())
    }

    /// Tells agents how often they make points. One of which a policy says nothing any more is told that, too.
    fn tell_agents(&mut self, office: &Office, rules: &[Rule]) {
        let mut wanted: BTreeMap<Uuid, Vec<VolumeSchedule>> = BTreeMap::new();
        for r in rules {
            wanted.entry(uuid(&r.agent)).or_default().extend(r.schedule.clone());
        }
        for agent in self.schedules.keys() {
            wanted.entry(*agent).or_default();
        }
        for (agent, volumes) in wanted {
            let Some(session) = office.session_of(&agent) else { continue };
            let told = self.schedules.get(&agent);
            if told.map_or(volumes.is_empty(), |t| *t == (session, volumes.clone())) {
                continue;
            }
            let ask = MemberAsk::Schedule { volumes: volumes.clone() };
            match office.ask::<Done>(&agent, "the agent", &ask, LIMIT) {
                Ok(_) => drop(self.schedules.insert(agent, (session, volumes))),
                Err(e) => tracing::warn!("how often points are made by policy: {e}"),
            }
        }
    }
}

/// What a policy keeps of a group's points.
pub(super) fn tiers(office: &Office, policy: Option<&str>) -> Result<Tiers, CatalogueError> {
    let Some(policy) = policy else { return Ok(Tiers::default()) };
    let s = office.catalogue.policy(policy)?.settings;
    let window = s.window_seconds.saturating_mul(1_000_000_000);
    Ok(Tiers { hourly: s.hourly, daily: s.daily, weekly: s.weekly, monthly: s.monthly, window })
}

/// The points of a group, with which of them the windows have left.
pub(super) fn candidates(office: &Office, group: i64) -> Result<Vec<Candidate>, CatalogueError> {
    let mut out = BTreeSet::new();
    for (volume, first) in office.reports.windows() {
        out.extend(office.catalogue.points_before(&volume, first)?);
    }
    let of = |p: crate::catalogue::keeping::LivePoint| Candidate {
        id: p.id,
        time: p.time,
        auto: p.auto,
        pinned: p.pinned,
        out: out.contains(&p.id),
    };
    Ok(office.catalogue.live_points(group)?.into_iter().map(of).collect())
}

/// Decides which points of a group stay.
fn decide(office: &Office, group: &Group) -> Result<(), CatalogueError> {
    if group.on_hold {
        return Ok(());
    }
    let all = candidates(office, group.id)?;
    let chosen = choose(&tiers(office, group.policy.as_deref())?, &all, crate::units::Time::now().0);
    office.catalogue.want_kept(group.id, &to_pin(&chosen))?;
    let gone: BTreeSet<i64> = all.iter().filter(|p| !chosen.contains_key(&p.id)).map(|p| p.id).collect();
    office.catalogue.expire(&gone)
}

/// Tells the appliances which seqs to keep and to let go.
fn pin(office: &Office) -> Result<(), CatalogueError> {
    for appliance in office.catalogue.members()?.into_iter().filter(|m| m.role == "appliance") {
        if office.session_of(&uuid(&appliance.id)).is_none() {
            continue;
        }
        loop {
            let pins = office.catalogue.pins_due(&appliance.id, MOST_PINS)?;
            if pins.is_empty() {
                break;
            }
            let ask = MemberAsk::Keep { volumes: by_volume(&pins) };
            let name = format!("appliance {}", appliance.name);
            match office.ask::<Done>(&uuid(&appliance.id), &name, &ask, LIMIT) {
                Ok(done) => {
                    let mut refused: BTreeSet<(String, u64)> = done.gone.into_iter().collect();
                    let unknown = pins.iter().filter(|p| done.unknown.contains(&p.volume));
                    refused.extend(unknown.map(|p| (p.volume.clone(), p.seq)));
                    office.catalogue.pins_done(&pins, &refused)?;
                }
                Err(e) => {
                    tracing::warn!("what is kept for points of groups: {e}");
                    break;
                }
            }
        }
    }
    office.catalogue.expire(&office.catalogue.lost_points()?.into_iter().collect())
}

fn by_volume(pins: &[Pin]) -> Vec<VolumeSeqs> {
    let mut out: Vec<VolumeSeqs> = Vec::new();
    for p in pins {
        if out.last().is_none_or(|v| v.id != p.volume) {
            out.push(VolumeSeqs { id: p.volume.clone(), keep: Vec::new(), drop: Vec::new() });
        }
        if let Some(volume) = out.last_mut() {
            if p.drop {
                volume.drop.push(p.seq);
            } else {
                volume.keep.push(SeqKept { seq: p.seq, time: p.time, name: p.name.clone() });
            }
        }
    }
    out
}

fn said(kept: &VolumeRetention) -> String {
    let c = &kept.change;
    let of = |n: Option<u32>| n.unwrap_or(0);
    let mut text = match c.window_seconds {
        Some(window) => format!(
            "by policy {} its appliance keeps any write of {window} s, and {}/{}/{}/{} hourly, daily, weekly, monthly points",
            kept.by.policies.join(" and "),
            of(c.hourly),
            of(c.daily),
            of(c.weekly),
            of(c.monthly)
        ),
        None => String::new(),
    };
    if let Some(hold) = c.hold {
        text.push_str(match (text.is_empty(), hold) {
            (true, true) => "nothing of it goes",
            (false, true) => "; nothing of it goes",
            (true, false) => "what is kept of it is as before the hold",
            (false, false) => "; the hold is over",
        });
    }
    text
}

fn round(office: &Office, told: &mut Told) -> Result<(), CatalogueError> {
    let groups = office.catalogue.groups()?;
    let rules = rules(office, &groups)?;
    told.tell_appliances(office, &rules)?;
    told.tell_agents(office, &rules);
    for group in groups.iter().filter(|g| g.released) {
        let of_it = |r: &&Rule| group.members.iter().any(|m| m.id == r.agent);
        if rules
            .iter()
            .filter(of_it)
            .all(|r| told.retention.get(&r.kept.id).is_some_and(|t| t.1.change == r.kept.change))
        {
            office.catalogue.hold_is_over(group.id)?;
        }
    }
    groups.iter().try_for_each(|group| decide(office, group))?;
    pin(office)
}

/// Goes on until mgmt stops.
pub(super) fn run(shared: &Shared) {
    let mut told = Told::default();
    while !shared.stopping() {
        let began = Instant::now();
        if let Err(e) = round(&shared.office, &mut told) {
            tracing::error!("policies: {e}");
        }
        let until = Instant::now() + REST.max(began.elapsed() * REST_FACTOR);
        while !shared.stopping() && Instant::now() < until {
            thread::sleep(TICK);
        }
    }
}
