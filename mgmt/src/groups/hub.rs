//! Where the sessions of agents and the barriers meet.
//!
//! An answer counts only if it comes over the session over which was asked: a member that has come back meanwhile is another one.

use crate::office::Office;
use afterimage_format::coord::Kind;
use afterimage_format::coord::group::{Held, Marker, Named, NotHeld, Released, Settled};
use afterimage_trust::messages::send;
use afterimage_trust::stream::TlsWriter;
use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use uuid::Uuid;

/// What a barrier hears of a member.
#[derive(Debug)]
pub(super) enum Answer {
    Held(Vec<Marker>),
    NotHeld(String),
    Released(Released),
    Gone,
}

/// Sent by sessions, which are named by number.
type Line = Sender<(u64, Answer)>;

#[derive(Debug, Default)]
struct State {
    sessions: BTreeMap<u64, (Uuid, TlsWriter)>,
    running: BTreeMap<u64, Line>,
    next: u64,
    settled: Option<Sender<(Uuid, Settled)>>,
}

/// See the module.
#[derive(Debug)]
pub struct Hub {
    epoch: u64,
    state: Mutex<State>,
}

fn bad(e: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, e.to_string())
}

impl Hub {
    /// Of this life of mgmt.
    pub(crate) fn new(epoch: u64) -> Hub {
        Hub { epoch, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session of an agent that knows of barriers.
    pub(crate) fn arrived(&self, number: u64, machine: Uuid, writer: TlsWriter) {
        self.lock().sessions.insert(number, (machine, writer));
    }

    /// It has ended.
    pub(crate) fn left(&self, number: u64) {
        let mut state = self.lock();
        state.sessions.remove(&number);
        for line in state.running.values() {
            // A barrier that has just ended hears nothing any more.
            let _ = line.send((number, Answer::Gone));
        }
    }

    /// A message of a session.
    pub(crate) fn take(&self, number: u64, machine: Uuid, kind: Kind, body: &[u8]) -> io::Result<()> {
        let (of, answer) = match kind {
            Kind::Held => {
                let held = Held::decode(body).map_err(bad)?;
                (held.of, Answer::Held(held.markers))
            }
            Kind::NotHeld => {
                let held = NotHeld::decode(body).map_err(bad)?;
                (held.of, Answer::NotHeld(held.why))
            }
            Kind::Released => {
                let released = Released::decode(body).map_err(bad)?;
                (released.of, Answer::Released(released))
            }
            Kind::Settled => {
                let settled = Settled::decode(body).map_err(bad)?;
                if let Some(line) = &self.lock().settled {
                    // Whoever settles ends last.
                    let _ = line.send((machine, settled));
                }
                return Ok(());
            }
            _ => return Err(bad("it sent a message that is not its to send")),
        };
        let state = self.lock();
        if let Some(line) = state.running.get(&of.number).filter(|_| of.epoch == self.epoch) {
            let _ = line.send((number, answer));
        }
        Ok(())
    }

    /// The newest session of each machine.
    pub(super) fn sessions(&self) -> BTreeMap<Uuid, (u64, TlsWriter)> {
        self.lock().sessions.iter().map(|(n, (id, w))| (*id, (*n, w.clone()))).collect()
    }

    /// A new barrier, and where its answers come.
    pub(super) fn begin(&self) -> (Named, Receiver<(u64, Answer)>) {
        let (line, answers) = channel();
        let mut state = self.lock();
        state.next += 1;
        let number = state.next;
        state.running.insert(number, line);
        (Named { epoch: self.epoch, number }, answers)
    }

    /// Nothing more is wanted of it.
    pub(super) fn end(&self, of: Named) {
        self.lock().running.remove(&of.number);
    }

    /// What becomes of markers comes here from now on.
    pub(super) fn settled(&self) -> Receiver<(Uuid, Settled)> {
        let (line, news) = channel();
        self.lock().settled = Some(line);
        news
    }

    /// Ends whoever settles.
    pub(super) fn stop(&self) {
        self.lock().settled = None;
    }

    /// Asks a machine to tell what becomes of these markers.
    pub(super) fn watch(&self, machine: &Uuid, held: &Held) {
        let session = self.sessions().remove(machine);
        if let Some((_, mut writer)) = session {
            // Who has gone is asked again when it is back.
            let _ = send(&mut writer, Kind::Watch, &held.encode());
        }
    }
}

impl Office {
    /// The agents that have a session which knows of barriers.
    pub(super) fn hub_sessions(&self) -> BTreeMap<Uuid, (u64, TlsWriter)> {
        self.hub.sessions()
    }

    /// Asks a machine that has just come for what is not known of its markers.
    pub(crate) fn watch_pending(&self, machine: &Uuid) {
        match self.catalogue.pending(machine) {
            Ok(all) => all.iter().for_each(|held| self.hub.watch(machine, held)),
            Err(e) => tracing::error!("points that wait for {machine}: {e}"),
        }
    }
}
