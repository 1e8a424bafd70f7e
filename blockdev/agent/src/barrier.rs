//! This machine's part in the barriers of its group: on a word of mgmt all gates are closed, all volumes marked, and all gates opened again.
//!
//! What is decided is the state machine's ([`afterimage_base::barrier::Member`]); this is its I/O. One thread does everything, so nothing comes
//! between closing and what follows. Gates open by themselves when the time that mgmt gave is over, whatever has become of mgmt, and when
//! the session ends.
//!
//! A marker is a record without an effect (`Void`), whose seq was taken while all gates of the machine were closed. What mgmt keeps is the seq, and the
//! id of the journal in which it was given: a journal that is made anew, or a history that begins anew behind it, has lost the marker.

use crate::agent::Agent;
use crate::api::{PointError, VolumeState};
use crate::machine::Mode;
use crate::shared::Shared;
use crate::volume::Volume;
use afterimage_base::barrier::{Deed, Id, Member, Said, Step};
use afterimage_base::gate::Hold;
use afterimage_base::world::sync::Condvar;
use afterimage_base::world::{self, thread};
use afterimage_format::coord::Kind as Message;
use afterimage_format::coord::group::{Held, MAX_MARKERS, Marker, Named, NotHeld, Prepare, Released, Settled};
use afterimage_format::record::Kind;
use afterimage_journal::ReserveError;
use afterimage_trust::session::{Attendant, Outbox};
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often markers are looked at that are not durable yet.
const LOOK: Duration = Duration::from_millis(10);
/// How often otherwise anything is looked at.
const IDLE: Duration = Duration::from_millis(500);
/// Messages that may wait: mgmt sends few.
const MOST_WAITING: usize = 4096;
/// Markers that are watched at a time.
const MOST_WATCHED: usize = 1 << 17;

enum Event {
    Begin(Outbox),
    Prepare(Prepare),
    Release(Named),
    Watch(Held),
    End,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<Event>,
    stop: bool,
}

struct Inner {
    queue: Mutex<Queue>,
    changed: Condvar,
    /// From a Prepare until gates are open again.
    busy: AtomicBool,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, event: Event) -> io::Result<()> {
        let mut queue = self.lock();
        if queue.events.len() >= MOST_WAITING {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it sends more than can be done"));
        }
        queue.events.push_back(event);
        drop(queue);
        self.changed.notify_all();
        Ok(())
    }

    /// The next event, if one comes by then.
    fn next(&self, until: Instant) -> Option<Event> {
        let mut queue = self.lock();
        loop {
            if let Some(event) = queue.events.pop_front() {
                return Some(event);
            }
            let left = until.saturating_duration_since(world::now());
            if queue.stop || left.is_zero() {
                return None;
            }
            queue = self.changed.wait_timeout(&self.queue, queue, left);
        }
    }
}

/// See the module. Dropping it opens what is closed, and ends the thread.
pub struct Barriers {
    inner: Arc<Inner>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

impl Barriers {
    /// For all volumes that the agent has whenever a barrier comes.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn start(agent: &Arc<Agent>) -> io::Result<Barriers> {
        let inner = Arc::new(Inner { queue: Mutex::default(), changed: Condvar::new(), busy: AtomicBool::new(false) });
        let (of_thread, agent) = (Arc::clone(&inner), Arc::clone(agent));
        let desk = move || {
            Desk { inner: &of_thread, agent: &agent, member: Member::default(), out: None, watched: Vec::new() }.run()
        };
        let thread = Mutex::new(Some(thread::spawn("barrier", desk)?));
        Ok(Barriers { inner, thread })
    }

    /// Ends it, so that nothing holds the agent any more.
    pub fn stop(&self) {
        self.inner.lock().stop = true;
        self.inner.changed.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the thread of barriers has panicked");
        }
    }
}

impl Drop for Barriers {
    fn drop(&mut self) {
        self.stop();
    }
}

fn bad(e: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, e.to_string())
}

impl Attendant for Barriers {
    fn begin(&self, out: Outbox) {
        // Nothing else is waiting then.
        let _ = self.inner.push(Event::Begin(out));
    }

    fn take(&self, kind: Message, body: &[u8]) -> io::Result<()> {
        self.inner.push(match kind {
            Message::Prepare => {
                let prepare = Prepare::decode(body).map_err(bad)?;
                self.inner.busy.store(true, Ordering::Release);
                Event::Prepare(prepare)
            }
            Message::Release => Event::Release(Named::decode(body).map_err(bad)?),
            Message::Watch => Event::Watch(Held::decode(body).map_err(bad)?),
            _ => return Err(bad("it sent a message that is not its to send")),
        })
    }

    fn is_busy(&self) -> bool {
        self.inner.busy.load(Ordering::Acquire)
    }

    fn end(&self) {
        let mut queue = self.inner.lock();
        // What that session still wanted is nobody's any more.
        queue.events.clear();
        queue.events.push_back(Event::End);
        drop(queue);
        self.inner.changed.notify_all();
    }
}

/// What became of a marker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MarkerState {
    /// It is on its way.
    Pending,
    /// The appliance has it durably, and everything before it.
    Durable,
    /// It will never be: the history began anew.
    Lost,
}

impl Volume {
    /// What became of the marker at `seq` in the journal `ring`.
    #[must_use]
    pub fn marker(&self, ring: &[u8; 16], seq: u64) -> MarkerState {
        let shared = self.shared();
        let state = shared.state();
        // Behind a fork the journal was emptied, and a Gap follows on whatever the appliance had.
        let forked = state.meta.base.is_some_and(|base| base.gap.is_none_or(|gap| seq < gap));
        if *ring != shared.p.ring.id() || forked {
            MarkerState::Lost
        } else if shared.durable.load(Ordering::Acquire) >= seq {
            MarkerState::Durable
        } else {
            MarkerState::Pending
        }
    }
}

struct Watched {
    of: Named,
    marker: Marker,
}

struct Desk<'a> {
    inner: &'a Inner,
    agent: &'a Agent,
    member: Member,
    out: Option<Outbox>,
    watched: Vec<Watched>,
}

const fn id(of: Named) -> Id {
    Id { epoch: of.epoch, number: of.number }
}

impl Desk<'_> {
    fn run(mut self) {
        while !self.inner.lock().stop {
            world::urgent(true);
            let rest = if self.watched.is_empty() || self.out.is_none() { IDLE } else { LOOK };
            match self.inner.next(world::now() + rest) {
                Some(Event::Begin(out)) => {
                    self.watched.clear();
                    (self.member, self.out) = (Member::default(), Some(out));
                    self.inner.busy.store(false, Ordering::Release);
                }
                Some(Event::Prepare(prepare)) => {
                    self.barrier(prepare);
                    self.inner.busy.store(false, Ordering::Release);
                }
                Some(Event::Release(of)) => {
                    for deed in self.member.step(Step::Release(id(of))) {
                        self.answer(of, deed, Duration::ZERO, Err(String::new()));
                    }
                }
                Some(Event::Watch(held)) => {
                    let Held { of, markers } = held;
                    let room = MOST_WATCHED.saturating_sub(self.watched.len());
                    self.watched.extend(markers.into_iter().take(room).map(|marker| Watched { of, marker }));
                }
                Some(Event::End) => {
                    self.member.step(Step::Ended);
                    self.out = None;
                }
                None => {}
            }
            self.look();
        }
    }

    fn send(&mut self, kind: Message, body: &[u8]) {
        if let Some(out) = &mut self.out
            && let Err(e) = out(kind, body)
        {
            tracing::debug!("mgmt could not be answered: {e}");
            self.out = None;
        }
    }

    fn answer(&mut self, of: Named, deed: Deed, held: Duration, marked: Result<&[Marker], String>) {
        let Deed::Say(_, said) = deed else { return };
        let held_us = u32::try_from(held.as_micros()).unwrap_or(u32::MAX);
        match (said, marked) {
            (Said::Held, Ok(markers)) => self.send(Message::Held, &Held { of, markers: markers.to_vec() }.encode()),
            (Said::Held, Err(why)) => self.send(Message::NotHeld, &NotHeld { of, why }.encode()),
            (Said::NotHeld, marked) => {
                let why = marked.err().unwrap_or_default();
                self.send(Message::NotHeld, &NotHeld { of, why }.encode());
            }
            (Said::Stayed(stayed), _) => self.send(Message::Released, &Released { of, stayed, held_us }.encode()),
        }
    }

    /// One barrier, from Prepare until the gates are open again.
    fn barrier(&mut self, prepare: Prepare) {
        let of = prepare.of;
        if self.member.step(Step::Prepare(id(of))).is_empty() {
            return;
        }
        let volumes = self.agent.volumes();
        let limit = Duration::from_micros(prepare.hold_us.into());
        let mut holds = Vec::new();
        let marked = close_and_mark(&volumes, limit, &mut holds);
        let (closed, markers) = match &marked {
            Ok((closed, markers)) => (*closed, Ok(&markers[..])),
            Err(why) => {
                // The guests go on before mgmt hears of it.
                holds.clear();
                (world::now(), Err(why.clone()))
            }
        };
        for deed in self.member.step(Step::Closed(id(of), marked.is_ok())) {
            self.answer(of, deed, Duration::ZERO, markers.clone());
        }
        // Broken on purpose: gates open right behind the marker.
        if world::broken_by_request("no-hold") {
            holds.clear();
        }
        while self.member.is_busy() {
            let (deeds, again) = match self.inner.next(closed + limit) {
                None => (self.member.step(Step::Timer(id(of))), None),
                Some(Event::Release(which)) => (self.member.step(Step::Release(id(which))), None),
                Some(Event::End) => (self.member.step(Step::Ended), Some(Event::End)),
                // It has given this one up.
                Some(other @ (Event::Prepare(_) | Event::Begin(_))) => {
                    (self.member.step(Step::Timer(id(of))), Some(other))
                }
                Some(Event::Watch(held)) => {
                    self.watched.extend(held.markers.into_iter().map(|marker| Watched { of: held.of, marker }));
                    (Vec::new(), None)
                }
            };
            for deed in deeds {
                match deed {
                    Deed::Open => holds.clear(),
                    deed => self.answer(of, deed, world::since(closed), Err(String::new())),
                }
            }
            if let Some(event) = again {
                self.inner.lock().events.push_front(event);
            }
        }
        drop(holds);
        for volume in &volumes {
            volume.shared().p.ring.wake_sender();
        }
    }

    /// Tells mgmt what has become of the markers that it waits for.
    fn look(&mut self) {
        if self.watched.is_empty() || self.out.is_none() {
            return;
        }
        // Nobody's writes wait for that.
        world::urgent(false);
        let volumes = self.agent.volumes();
        let mut settled = Vec::new();
        self.watched.retain(|w| {
            let volume = volumes.iter().find(|v| v.id() == w.marker.volume);
            // A volume that is not served any more has nobody who could send its marker.
            let state = volume.map_or(MarkerState::Lost, |v| v.marker(&w.marker.ring, w.marker.seq));
            if state != MarkerState::Pending {
                settled.push(Settled { of: w.of, volume: w.marker.volume, durable: state == MarkerState::Durable });
            }
            state == MarkerState::Pending
        });
        for settled in settled {
            self.send(Message::Settled, &settled.encode());
        }
    }
}

/// Closes the gates of all volumes and marks each, in this order. What was closed is in `holds`, also if that fails.
fn close_and_mark<'a>(
    volumes: &'a [Arc<Volume>],
    limit: Duration,
    holds: &mut Vec<Hold<'a>>,
) -> Result<(Instant, Vec<Marker>), String> {
    if volumes.is_empty() {
        return Err("this machine has no volumes".to_owned());
    }
    if volumes.len() > MAX_MARKERS {
        return Err(format!("this machine has more than {MAX_MARKERS} volumes"));
    }
    let mut markers = Vec::new();
    let began = at_one_instant(volumes, limit, holds, &mut |volume| {
        markers.push(mark(volume.shared())?);
        Ok(())
    });
    Ok((began.map_err(|e| e.to_string())?, markers))
}

/// Closes the gates of all volumes, and then has each marked. What was closed is in `holds`, also if that fails. Returns when it began.
pub(crate) fn at_one_instant<'a>(
    volumes: &'a [Arc<Volume>],
    limit: Duration,
    holds: &mut Vec<Hold<'a>>,
    mark: &mut dyn FnMut(&Arc<Volume>) -> Result<(), PointError>,
) -> Result<Instant, PointError> {
    let mut sorted: Vec<&Arc<Volume>> = volumes.iter().collect();
    sorted.sort_by_key(|v| v.id());
    // Before the gates: whoever holds a state may be waiting for a disk, and then the guests must not wait too.
    let states: Vec<_> = sorted.iter().map(|v| (v, v.shared().state())).collect();
    for (volume, state) in &states {
        if state.mode != Mode::Live || volume.shared().shown(state) != VolumeState::Live {
            let (volume, state) = (volume.name().to_owned(), volume.shared().shown(state));
            return Err(PointError::NotLive { volume, state });
        }
    }
    let began = world::now();
    for volume in &sorted {
        let hold = volume.shared().p.gate.close_until(began + limit);
        holds.push(hold.ok_or_else(|| PointError::Gate { volume: volume.name().to_owned() })?);
    }
    for volume in &sorted {
        // Broken on purpose: volumes are marked one after the other, with gates open.
        if world::broken_by_request("apart") {
            holds.clear();
            world::sleep(Duration::from_millis(2));
        }
        mark(volume)?;
    }
    drop(states);
    Ok(began)
}

fn mark(shared: &Shared) -> Result<Marker, PointError> {
    let volume = || shared.p.name.clone();
    let place = shared.p.ring.reserve(Kind::Void, 0, 0, 0, 0).map_err(|e| match e {
        ReserveError::Closed => PointError::NotLive { volume: volume(), state: VolumeState::Dirty },
        _ => PointError::Full { volume: volume() },
    })?;
    let time = shared.p.clock.wall();
    let seq = place.publish(time);
    Ok(Marker { volume: shared.id, ring: shared.p.ring.id(), seq, time, name: volume() })
}

#[cfg(test)]
#[path = "tests/barrier.rs"]
mod tests;
