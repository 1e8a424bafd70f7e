//! One barrier.

use super::hub::Answer;
use super::{Group, reason};
use crate::catalogue::CatalogueError;
use crate::catalogue::groups::Ended;
use crate::office::Office;
use afterimage_base::barrier::{Action, Coordinator, Event, Part, Why};
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
    markers: Vec<Marker>,
    why: Option<String>,
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

/// Makes a point of the group, or fails, and keeps which. What is decided is not visible before its markers are durable.
pub(super) fn run(office: &Office, group: &Group, name: &str, auto: bool) -> Result<(), CatalogueError> {
    if group.members.is_empty() {
        return Err(CatalogueError::Refused(format!("group '{}' has no machines", group.name)));
    }
    if office.catalogue.is_behind(group.id)? {
        return Err(CatalogueError::Refused(format!(
            "group '{}': too many points wait for the appliances already",
            group.name
        )));
    }
    let mut sessions = office.hub_sessions();
    let parties: Vec<Party> = group
        .members
        .iter()
        .map(|m| {
            let id = Uuid::try_parse(&m.id).unwrap_or_default();
            Party { id, session: sessions.remove(&id), markers: Vec::new(), why: None }
        })
        .collect();
    let here: Vec<bool> = parties.iter().map(|p| p.session.is_some()).collect();
    let time = nanos();
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
    keep(office, group, &barrier, coordinator.parts(), (name, auto, time))
}

fn keep(
    office: &Office,
    group: &Group,
    barrier: &Barrier,
    parts: &[Part],
    (name, auto, time): (&str, bool, i64),
) -> Result<(), CatalogueError> {
    let member = |i: usize| {
        let party = &barrier.parties[i];
        let result = match parts[i] {
            Part::Out(Why::Refused) => Err(party.why.clone().unwrap_or_else(|| reason(Why::Refused))),
            Part::Out(why) => Err(reason(why)),
            _ => Ok(party.markers.clone()),
        };
        (group.members[i].id.clone(), group.members[i].name.clone(), result)
    };
    let ended = Ended {
        group: group.id,
        name: name.to_owned(),
        auto,
        of: barrier.of,
        time,
        held_us: barrier.held_us.into(),
        members: (0..parts.len()).map(member).collect(),
        partial: group.partial,
    };
    office.catalogue.keep_point(&ended, barrier.decided)?;
    if barrier.decided {
        for (party, part) in barrier.parties.iter().zip(parts) {
            if *part == Part::Stayed {
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
