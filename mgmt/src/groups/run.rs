//! One barrier.

use super::hub::Answer;
use super::quiet::{self, Quiet};
use super::{Group, GroupApp, GroupMember, PointState, reason};
use crate::catalogue::CatalogueError;
use crate::catalogue::groups::KnownVolume;
use crate::catalogue::points::Ended;
use crate::office::Office;
use afterimage_base::barrier::{Action, Coordinator, Event, Part, Why};
use afterimage_base::world;
use afterimage_format::coord::Kind;
use afterimage_format::coord::group::{Held, Marker, Named, Prepare};
use afterimage_trust::messages::send;
use afterimage_trust::stream::TlsWriter;
use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// How long members may take to say whether they had stayed closed: nobody's writes wait for that.
const SECOND_ROUND: Duration = Duration::from_secs(2);

pub(super) fn nanos() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

struct Party {
    id: Uuid,
    session: Option<(u64, TlsWriter)>,
    /// What it is known to have.
    volumes: Vec<KnownVolume>,
    markers: Vec<Marker>,
    why: Option<String>,
}

impl Party {
    fn new(id: Uuid, session: Option<(u64, TlsWriter)>, volumes: Vec<KnownVolume>) -> Party {
        let mut new = Party { id, session, volumes, markers: Vec::new(), why: None };
        // Nobody's writes wait for a point that cannot be whole.
        let gone: Vec<&str> = new.volumes.iter().filter(|v| v.gone).map(|v| &*v.name).collect();
        if new.session.is_some() && !gone.is_empty() && !broken_any() {
            (new.why, new.session) = (Some(missing(&gone)), None);
        }
        new
    }

    /// What it has closed is everything, or it says what is missing.
    fn is_whole(&self, markers: &[Marker]) -> Result<(), String> {
        let there = |v: &&KnownVolume| markers.iter().all(|m| Uuid::from_bytes(m.volume).to_string() != v.id);
        let names: Vec<&str> = self.volumes.iter().filter(there).map(|v| &*v.name).collect();
        if names.is_empty() || broken_any() { Ok(()) } else { Err(missing(&names)) }
    }
}

fn missing(names: &[&str]) -> String {
    format!(
        "its agent does not serve {}, which belongs to this machine; `afterimage machine drop-volume` if that is so on purpose",
        names.join(", ")
    )
}

/// Whether a machine is whole with whatever its agent serves: the break of I7 that a test of whole processes has to find.
fn broken_any() -> bool {
    world::broken_by_request("any-volumes")
}

struct Barrier {
    of: Named,
    hold: Duration,
    parties: Vec<Party>,
    held_us: u32,
    decided: bool,
}

impl Barrier {
    /// Does what the coordinator says. Who cannot be reached is gone.
    fn act(&mut self, actions: Vec<Action>) -> VecDeque<Event> {
        let mut events = VecDeque::new();
        let prepare =
            Prepare { of: self.of, hold_us: u32::try_from(self.hold.as_micros()).unwrap_or(u32::MAX) }.encode();
        let release = self.of.encode();
        for action in actions {
            let (i, kind, body) = match action {
                Action::Prepare(i) => (i, Kind::Prepare, &prepare),
                Action::Release(i) => (i, Kind::Release, &release),
                Action::Decide => {
                    self.decided = true;
                    continue;
                }
                Action::End(_) => continue,
            };
            let sent = match &mut self.parties[i].session {
                Some((_, writer)) => send(writer, kind, body).is_ok(),
                None => false,
            };
            if !sent {
                events.push_back(Event::Gone(i));
            }
        }
        events
    }

    fn hear(&mut self, session: u64, answer: Answer) -> Option<Event> {
        let i = self.parties.iter().position(|p| p.session.as_ref().is_some_and(|s| s.0 == session))?;
        let party = &mut self.parties[i];
        Some(match answer {
            Answer::Held(markers) if markers.is_empty() => Event::NotHeld(i),
            Answer::Held(markers) => {
                if let Err(why) = party.is_whole(&markers) {
                    party.why = Some(why);
                    // It waits for that, and the others need not wait for it. If it has gone, its gates are open.
                    if let Some((_, writer)) = &mut party.session {
                        let _ = send(writer, Kind::Release, &self.of.encode());
                    }
                    return Some(Event::NotHeld(i));
                }
                party.markers = markers;
                Event::Held(i)
            }
            Answer::NotHeld(why) => {
                party.why = Some(why.chars().filter(|c| !c.is_control()).collect());
                Event::NotHeld(i)
            }
            Answer::Released(r) => {
                self.held_us = self.held_us.max(r.held_us);
                Event::Stayed(i, r.stayed)
            }
            Answer::Gone => Event::Gone(i),
        })
    }
}

/// What is wanted.
#[derive(Clone, Copy)]
pub(super) struct Wish<'a> {
    /// The point's name.
    pub name: &'a str,
    /// It is the schedule that wants it.
    pub auto: bool,
    /// With applications quiet around it.
    pub app: bool,
}

/// The members, as they stand now.
fn parties(office: &Office, group: &Group) -> Result<Vec<Party>, CatalogueError> {
    let mut sessions = office.hub_sessions();
    let mut volumes = office.catalogue.volumes_of_group(group.id)?;
    let mut party = |m: &GroupMember| {
        let id = Uuid::try_parse(&m.id).unwrap_or_default();
        Party::new(id, sessions.remove(&id), volumes.remove(&m.id).unwrap_or_default())
    };
    Ok(group.members.iter().map(&mut party).collect())
}

/// Makes a point of the group, or fails, and keeps which. What is decided is not visible before its markers are durable.
pub(super) fn run(office: &Office, group: &Group, wish: Wish<'_>) -> Result<(), CatalogueError> {
    if group.members.is_empty() {
        return Err(CatalogueError::Refused(format!("group '{}' has no machines", group.name)));
    }
    if office.catalogue.is_behind(group.id)? {
        return Err(CatalogueError::Refused(format!(
            "group '{}': too many points wait for the appliances already",
            group.name
        )));
    }
    // Nobody is frozen for what cannot be.
    let hopeful = group.partial || parties(office, group)?.iter().all(|p| p.session.is_some());
    let quiet = (wish.app && hopeful).then(|| Quiet::begin(office, group, wish.name));
    let parties = parties(office, group)?;
    let here: Vec<bool> = parties.iter().map(|p| p.session.is_some()).collect();
    let time = nanos();
    world::urgent(true);
    let (of, answers) = office.hub.begin();
    let hold = Duration::from_millis(group.hold_ms.into());
    let mut barrier = Barrier { of, hold, parties, held_us: 0, decided: false };
    let (mut coordinator, actions) = Coordinator::new(&here, group.partial);
    let mut events = barrier.act(actions);
    let mut limit = Instant::now() + hold;
    while coordinator.outcome().is_none() && !coordinator.is_settling() {
        let event = events.pop_front().or_else(|| {
            match answers.recv_timeout(limit.saturating_duration_since(Instant::now())) {
                Ok((session, answer)) => barrier.hear(session, answer),
                Err(_) => Some(Event::Deadline),
            }
        });
        let Some(event) = event else { continue };
        let first = !coordinator.is_releasing();
        let actions = coordinator.step(event);
        events.extend(barrier.act(actions));
        if first && coordinator.is_releasing() {
            limit = Instant::now() + SECOND_ROUND;
        }
    }
    office.hub.end(of);
    world::urgent(false);
    let app = quiet.map(Quiet::end);
    keep(office, group, &barrier, coordinator.parts(), (wish, time, app))
}

fn keep(
    office: &Office,
    group: &Group,
    barrier: &Barrier,
    parts: &[Part],
    (wish, time, app): (Wish<'_>, i64, Option<GroupApp>),
) -> Result<(), CatalogueError> {
    let Wish { name, auto, .. } = wish;
    let refuses = |i: usize| app.as_ref().and_then(|app| quiet::refuses(app, &group.members[i].name));
    let member = |i: usize| {
        let party = &barrier.parties[i];
        let result = match parts[i] {
            Part::Out(why @ (Why::Refused | Why::Away)) => Err(party.why.clone().unwrap_or_else(|| reason(why))),
            Part::Out(why) => Err(reason(why)),
            _ => refuses(i).map_or_else(|| Ok(party.markers.clone()), Err),
        };
        (group.members[i].id.clone(), group.members[i].name.clone(), result)
    };
    let members: Vec<_> = (0..parts.len()).map(member).collect();
    let (some, all) = (members.iter().any(|m| m.2.is_ok()), members.iter().all(|m| m.2.is_ok()));
    let decided = barrier.decided && (all || group.partial && some);
    let ended = Ended {
        group: group.id,
        name: name.to_owned(),
        auto,
        of: barrier.of,
        time,
        held_us: barrier.held_us.into(),
        members,
        partial: group.partial,
        app,
    };
    office.catalogue.keep_point(&ended, decided)?;
    if barrier.held_us > 0 {
        office.tally.held(&group.name, barrier.held_us.into());
    }
    if !decided {
        office.tally.ended(&group.name, PointState::Failed);
    }
    if decided {
        for ((party, part), (.., result)) in barrier.parties.iter().zip(parts).zip(&ended.members) {
            if *part == Part::Stayed && result.is_ok() {
                office.hub.watch(&party.id, &Held { of: barrier.of, markers: party.markers.clone() });
            }
        }
    } else if !auto || tracing::enabled!(tracing::Level::DEBUG) {
        let who: Vec<String> =
            ended.members.iter().filter_map(|(_, n, m)| Some(format!("{n}: {}", m.as_ref().err()?))).collect();
        tracing::warn!("group {}: no point {name}: {}", group.name, who.join("; "));
    }
    Ok(())
}
