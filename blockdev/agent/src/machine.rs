//! What a volume is doing, as a table without any I/O.
//!
//! | event, in mode | live | dirty | sync |
//! |---|---|---|---|
//! | ring closed (full, or a disk error) | dirty | dirty | dirty |
//! | fork (the appliance's history is not this ring's) | dirty, start over | dirty, start over | dirty, start over |
//! | appliance ready (connected, and the ring has drained) | - | sync: reopen with a Gap | - |
//! | map empty (and no dirty write in flight) | - | - | live: append SyncEnd |
//!
//! *start over*: close the ring, mark everything dirty, forget what the ring holds. An empty map in dirty
//! mode changes nothing: the history has a hole until a Gap says so and a SyncEnd closes it. A fault of the disk
//! or a final refusal by the appliance does not change the mode, it is shown on top of it until it is gone.

use crate::api::VolumeState;
use serde::{Deserialize, Serialize};

/// Where writes go and what is running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// Writes are in the ring, nothing is missing.
    Live,
    /// The ring is closed, writes are in the dirty map.
    Dirty,
    /// Writes are in the ring behind a Gap, dirty regions are being copied.
    Sync,
}

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The ring was closed.
    Closed,
    /// The appliance holds another history.
    Fork,
    /// The appliance is connected and the ring has room.
    Ready,
    /// No region is marked and no dirty write is in flight.
    MapEmpty,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing.
    Nothing,
    /// Close the ring, mark everything, drop what the ring holds.
    StartOver,
    /// Open the ring with a Gap.
    Reopen,
    /// Append SyncEnd.
    EndSync,
}

/// One row of the table.
pub(crate) const fn step(mode: Mode, event: Event) -> (Mode, Action) {
    match (mode, event) {
        (_, Event::Closed) => (Mode::Dirty, Action::Nothing),
        (_, Event::Fork) => (Mode::Dirty, Action::StartOver),
        (Mode::Dirty, Event::Ready) => (Mode::Sync, Action::Reopen),
        (Mode::Sync, Event::MapEmpty) => (Mode::Live, Action::EndSync),
        (mode, Event::Ready | Event::MapEmpty) => (mode, Action::Nothing),
    }
}

/// The state that people see.
pub(crate) const fn shown(mode: Mode, initial: bool, failed: bool) -> VolumeState {
    match (mode, initial, failed) {
        (_, _, true) => VolumeState::Error,
        (Mode::Live, ..) => VolumeState::Live,
        (_, true, _) => VolumeState::InitialSync,
        (Mode::Dirty, ..) => VolumeState::Dirty,
        (Mode::Sync, ..) => VolumeState::Resync,
    }
}

/// The mode in which a volume comes back, from what its files say.
///
/// | ring closed | sync under way, says volume.json | mode |
/// |---|---|---|
/// | yes | - | dirty |
/// | no | yes | sync |
/// | no | no | live |
///
/// The note in volume.json is made before the ring is reopened and removed after SyncEnd is in the ring, so a kill in
/// between at worst ends a sync twice, which changes nothing.
pub(crate) const fn after_restart(ring_closed: bool, syncing: bool) -> Mode {
    match (ring_closed, syncing) {
        (true, _) => Mode::Dirty,
        (false, true) => Mode::Sync,
        (false, false) => Mode::Live,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODES: [Mode; 3] = [Mode::Live, Mode::Dirty, Mode::Sync];
    const EVENTS: [Event; 4] = [Event::Closed, Event::Fork, Event::Ready, Event::MapEmpty];

    #[test]
    fn the_table_is_what_the_module_says() {
        use Action::{EndSync, Nothing, Reopen, StartOver};
        use Mode::{Dirty, Live, Sync};
        let expected = [
            [(Dirty, Nothing), (Dirty, StartOver), (Live, Nothing), (Live, Nothing)],
            [(Dirty, Nothing), (Dirty, StartOver), (Sync, Reopen), (Dirty, Nothing)],
            [(Dirty, Nothing), (Dirty, StartOver), (Sync, Nothing), (Live, EndSync)],
        ];
        for (mode, row) in MODES.into_iter().zip(expected) {
            for (event, want) in EVENTS.into_iter().zip(row) {
                assert_eq!(step(mode, event), want, "{mode:?} {event:?}");
            }
        }
    }

    #[test]
    fn live_is_reached_only_by_ending_a_sync() {
        for mode in [Mode::Dirty, Mode::Sync] {
            for event in EVENTS {
                let (to, action) = step(mode, event);
                assert!(to != Mode::Live || action == Action::EndSync, "{mode:?} {event:?}");
            }
        }
    }

    #[test]
    fn only_live_is_shown_as_live() {
        for mode in MODES {
            for (initial, failed) in [(false, false), (true, false), (false, true), (true, true)] {
                let state = shown(mode, initial, failed);
                assert!(state != VolumeState::Live || mode == Mode::Live);
                assert_eq!(state == VolumeState::Error, failed);
            }
        }
        assert_eq!(after_restart(false, false), Mode::Live);
        assert_eq!(after_restart(false, true), Mode::Sync);
        assert_eq!(after_restart(true, false), Mode::Dirty);
        assert_eq!(after_restart(true, true), Mode::Dirty);
    }
}
