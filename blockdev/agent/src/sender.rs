//! The thread that keeps a session with the appliance alive: connects, and after a failure waits and connects again.

use crate::connect::Connector;
use crate::session::{self, SessionError};
use crate::shared::Shared;
use afterimage_base::world;
use afterimage_format::wire::RefuseCode;
use std::sync::Arc;
use std::time::Duration;

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
/// Longest wait after a failure that may pass by itself,
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// after a refusal that somebody has to look at,
const REFUSED_BACKOFF: Duration = Duration::from_secs(5);
/// and after one of a store without room: it is asked again soon, however long it has been full.
const FULL_BACKOFF: Duration = Duration::from_secs(1);
/// A session that lasted longer than any failed attempt to connect may: the next failure is a new one.
const LASTING: Duration = Duration::from_secs(60);
/// How soon a stop is noticed.
const STOP_TICK: Duration = Duration::from_millis(20);
/// So many refusals for continuity in a row, and the history counts as forked.
const CONTINUITY_REFUSALS: u32 = 2;

/// Runs until the volume stops.
pub(crate) fn run(shared: &Arc<Shared>, connector: &dyn Connector) {
    let name = &shared.p.name;
    let mut backoff = FIRST_BACKOFF;
    let mut said = String::new();
    let mut continuity = 0;
    while !shared.stopping() {
        let mut progress = false;
        let begun = world::now();
        let result = connector
            .connect()
            .map_err(SessionError::Io)
            .and_then(|connection| session::run(shared, connection, &mut progress));
        // A session that took nothing because there was nothing to take was one all the same.
        if progress || world::since(begun) >= LASTING {
            (backoff, continuity) = (FIRST_BACKOFF, 0);
            said.clear();
        }
        let error = match result {
            Ok(()) | Err(SessionError::Stopping) => continue,
            Err(e) => e,
        };
        let mut wait = backoff;
        match &error {
            SessionError::Refused(refuse) => {
                let least = refused(shared, refuse.code, &refuse.text, &mut continuity);
                if refuse.code == RefuseCode::Full {
                    backoff = FIRST_BACKOFF;
                    wait = least;
                }
                wait = wait.max(least);
            }
            SessionError::Adopt(_) => {
                shared.state().refused = Some(error.to_string());
                wait = wait.max(REFUSED_BACKOFF);
            }
            SessionError::Ring(e) => shared.start_over(&format!("{e}: the whole disk is copied again"), None),
            _ => {}
        }
        let text = error.to_string();
        if text != said {
            tracing::warn!("volume {name}: {}: {text}; trying again until it works", connector.describe());
            said = text;
        }
        pause(shared, jittered(wait));
        backoff = longer(backoff);
    }
}

/// Notes a refusal. Returns the least time to wait.
fn refused(shared: &Shared, code: RefuseCode, text: &str, continuity: &mut u32) -> Duration {
    match code {
        RefuseCode::Superseded => return Duration::ZERO,
        RefuseCode::Full => {
            // It passes when there is room; until then the volume goes on, if need be in dirty mode.
            shared.state().appliance_note = Some(format!("the appliance has no room: {text}"));
            return FULL_BACKOFF;
        }
        RefuseCode::Continuity => {
            *continuity += 1;
            if *continuity >= CONTINUITY_REFUSALS {
                *continuity = 0;
                shared.start_over("the appliance finds no continuity: the whole disk is copied again", None);
            }
            return Duration::ZERO;
        }
        RefuseCode::Malformed
        | RefuseCode::Version
        | RefuseCode::Volume
        | RefuseCode::Failed
        | RefuseCode::Fenced
        | RefuseCode::Unknown => {
            shared.state().refused = Some(format!("refused by the appliance: {text}"));
        }
    }
    REFUSED_BACKOFF
}

/// The wait after the next failure in a row.
fn longer(backoff: Duration) -> Duration {
    (backoff * 2).min(LONGEST_BACKOFF)
}

/// Between half and all of `wait`, so that many volumes do not come back in step.
fn jittered(wait: Duration) -> Duration {
    let mut byte = [0; 1];
    // Without chance it is the whole of it.
    let share = world::random(&mut byte).map_or(255, |()| u32::from(byte[0]));
    wait / 2 + wait / 2 * share / 255
}

fn pause(shared: &Shared, wait: Duration) {
    let until = world::now() + wait;
    while !shared.stopping() && world::now() < until {
        world::sleep(STOP_TICK.min(wait));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn waits_double_up_to_the_longest_and_begin_small() {
        let waits: Vec<Duration> = std::iter::successors(Some(FIRST_BACKOFF), |w| Some(longer(*w))).take(12).collect();
        assert!(waits.windows(2).all(|w| w[1] == w[0] * 2 || w[1] == LONGEST_BACKOFF), "{waits:?}");
        assert_eq!((waits[0], waits[11]), (FIRST_BACKOFF, LONGEST_BACKOFF));
    }

    #[test]
    fn volumes_that_lost_their_appliance_at_once_do_not_come_back_in_step() {
        let wait = Duration::from_secs(8);
        let waits: BTreeSet<Duration> = (0..200).map(|_| jittered(wait)).collect();
        assert!(waits.iter().all(|w| (wait / 2..=wait).contains(w)), "{waits:?}");
        // 256 are possible.
        assert!(waits.len() > 60, "{waits:?}");
    }
}
