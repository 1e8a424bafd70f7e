//! The stages behind receiving: dedupe and writing, a thread each.
//!
//! Whoever has records cuts them into batches and hands those over in order: a session of an agent, or a branch that is
//! written here ([`crate::branch`]).

use super::batch::{Batch, Before, HashTask, Newest};
use super::plan::{Plan, Planner};
use super::pressure::{PRESSED_FROM, PRESSED_UNTIL, Pressed};
use super::volume::Volume;
use super::write::{BatchWriter, Planned};
use super::{Flight, SessionError, Shared};
use crate::reduce::pool::Ticket;
use crate::store::BlockSource;
use afterimage_base::world;
use afterimage_base::world::channel::{Receiver, Sender, bounded};
use afterimage_base::world::thread::Scope;
use afterimage_format::BLOCK_SIZE;
use afterimage_format::place::Place;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Batches whose memory is kept for reuse.
const SPARE: usize = 3;
/// How often somebody who waits for room looks again.
const ROOM_TICK: Duration = Duration::from_millis(100);

pub(crate) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A batch between receiving and dedupe.
pub(crate) struct Received {
    hashes: Arc<HashTask>,
    ticket: Ticket,
    flight: Flight,
}

/// Batches that have been handed over and whose history is not there yet, oldest first.
#[derive(Debug, Default)]
pub(crate) struct UnderWay(Mutex<VecDeque<Arc<Batch>>>);

impl UnderWay {
    /// Adds the newest.
    pub(crate) fn push(&self, batch: Arc<Batch>) {
        lock(&self.0).push_back(batch);
    }

    /// All of them, newest first. What is in none of them is in the history, or was never handed over.
    pub(crate) fn newest_first(&self) -> Vec<Arc<Batch>> {
        lock(&self.0).iter().rev().cloned().collect()
    }
}

/// The newest version of blocks: in the batches under way, or in history.
pub(crate) struct Recent<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) volume: &'a Volume,
    pub(crate) under_way: &'a UnderWay,
}

impl Before for Recent<'_> {
    fn newest(&self, block: u64, out: &mut [u8]) -> Result<(), SessionError> {
        // First the batches under way, then history: what is in neither the one moment is in the other the next.
        for batch in &self.under_way.newest_first() {
            match batch.newest(block) {
                None => {}
                Some(Newest::Zero) => {
                    out.fill(0);
                    return Ok(());
                }
                Some(Newest::Bytes(bytes)) => {
                    out.copy_from_slice(bytes);
                    return Ok(());
                }
            }
        }
        let mut places = Vec::new();
        // Keeps collection from removing the block between the look-up and the read.
        let _flight = self.shared.flights.start();
        self.volume.history.newest(block, 1, &mut places)?;
        let place = places.first().map_or(Place::ZERO, |p| p.1);
        self.shared.store.read_blocks(&[place], out)?;
        Ok(())
    }
}

/// Hears that everything up to a seq is durable, and how many bytes of batches more that is.
pub(crate) type Durable<'a> = &'a (dyn Fn(u64, usize) -> Result<(), SessionError> + Sync);

/// What the stages share.
pub(crate) struct Stages<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) volume: &'a Volume,
    pub(crate) under_way: &'a UnderWay,
    /// Ends receiving.
    pub(crate) interrupt: &'a (dyn Fn() + Send + Sync),
    pub(crate) durable: Durable<'a>,
    /// Wait for room rather than fail, until this is set.
    pub(crate) patient: Option<&'a AtomicBool>,
    pub(crate) end: Mutex<Option<SessionError>>,
    spare: Mutex<Vec<Batch>>,
    /// Who sends is being held up: what comes is reduced later.
    pressed: Mutex<Option<Pressed>>,
}

impl<'a> Stages<'a> {
    pub(crate) fn new(
        (shared, volume): (&'a Shared, &'a Volume),
        under_way: &'a UnderWay,
        interrupt: &'a (dyn Fn() + Send + Sync),
        durable: Durable<'a>,
    ) -> Stages<'a> {
        let (end, spare, pressed) = (Mutex::default(), Mutex::default(), Mutex::default());
        Stages { shared, volume, under_way, interrupt, durable, patient: None, end, spare, pressed }
    }

    /// Starts the two stages; they end when the sender is dropped.
    pub(crate) fn start<'scope>(
        &'scope self,
        scope: &Scope<'scope, '_>,
        ring: [u8; 16],
    ) -> std::io::Result<Sender<Received>> {
        let (to_dedupe, from_receive) = bounded(1);
        let (to_write, from_dedupe) = bounded(1);
        // More than can be between the two stages, so that telling what is done never waits.
        let (to_forget, from_write) = bounded(16);
        scope.spawn("dedupe", move || dedupe(self, from_receive, to_write, &from_write))?;
        scope.spawn("write", move || write(self, ring, from_dedupe, to_forget))?;
        Ok(to_dedupe)
    }

    /// Where the versions of blocks before a batch are.
    pub(crate) fn recent(&self) -> Recent<'_> {
        Recent { shared: self.shared, volume: self.volume, under_way: self.under_way }
    }

    /// Learns how full the buffer of who sends is, in sixteenths.
    pub(crate) fn heard_of(&self, sixteenths: u8) {
        let mut pressed = lock(&self.pressed);
        match (sixteenths, pressed.is_some()) {
            (PRESSED_FROM.., false) => {
                *pressed = Some(self.shared.pressure.press());
                // The buffer of a branch is small, and fills up now and then.
                if self.patient.is_none() {
                    tracing::info!(
                        "volume {}: the agent's ring fills up; what comes is reduced later",
                        self.volume.name
                    );
                }
            }
            (..PRESSED_UNTIL, true) => *pressed = None,
            _ => {}
        }
    }

    /// The first reason to end is the one that counts.
    pub(crate) fn fail(&self, e: SessionError) {
        lock(&self.end).get_or_insert(e);
        (self.interrupt)();
    }

    /// An empty batch.
    pub(crate) fn empty(&self) -> Batch {
        lock(&self.spare).pop().unwrap_or_default()
    }

    /// Gives a batch, which is among those under way already, to the next stage, its hashing started.
    pub(crate) fn hand_over(&self, batch: Arc<Batch>, next: &Sender<Received>) -> Result<(), SessionError> {
        let flight = self.shared.flights.start();
        let hashes = HashTask::new(batch, self.shared.fingerprinter.clone());
        let ticket = self.shared.pool.start(&hashes, hashes.parts());
        // The stage behind ends only with a reason of its own.
        next.send(Received { hashes, ticket, flight }).map_err(|_| SessionError::Gone)
    }

    fn recycle(&self, plan: Arc<Plan>) {
        let batch = Arc::into_inner(plan).and_then(|p| Arc::into_inner(p.batch));
        if let Some(mut batch) = batch {
            batch.clear();
            let mut spare = lock(&self.spare);
            if spare.len() < SPARE {
                spare.push(batch);
            }
        }
    }

    /// Waits until there is room, for those who are patient.
    fn wait_for_room(&self) {
        let Some(stop) = self.patient else { return };
        while self.shared.room.short().is_some()
            && self.shared.vault.failure().is_none()
            && !stop.load(Ordering::Acquire)
        {
            world::sleep(ROOM_TICK);
        }
    }
}

/// The dedupe stage.
fn dedupe(stages: &Stages<'_>, batches: Receiver<Received>, next: Sender<Planned>, done: &Receiver<Arc<Plan>>) {
    let mut planner = Planner::new(stages.shared, stages.volume);
    let unreduced = || lock(&stages.pressed).is_some();
    for Received { hashes, ticket, flight } in batches.iter() {
        for plan in done.try_iter() {
            planner.finished(&plan);
            stages.recycle(plan);
        }
        let planned = if ticket.wait() {
            planner.plan(&hashes, unreduced())
        } else {
            Err(crate::store::StoreError::Worker.into())
        };
        match planned {
            Ok((plan, ticket)) => {
                if next.send(Planned { plan, ticket, flight }).is_err() {
                    return;
                }
            }
            Err(e) => {
                // What was planned before and is not yet written goes on; then the segment is left.
                drop(next);
                stages.fail(e);
                return;
            }
        }
    }
}

/// The writing stage.
fn write(stages: &Stages<'_>, ring: [u8; 16], batches: Receiver<Planned>, done: Sender<Arc<Plan>>) {
    let mut writer = match BatchWriter::new(stages.shared, stages.volume, ring) {
        Ok(w) => w,
        Err(e) => return stages.fail(e),
    };
    let mut connected = true;
    for Planned { plan, ticket, flight } in batches.iter() {
        stages.wait_for_room();
        if let Err(e) = writer.write(&plan, &ticket) {
            return stages.fail(e);
        }
        lock(&stages.under_way.0).pop_front();
        let (bytes, durable) = (plan.batch.body.len(), plan.batch.records.last().map_or(0, |r| r.record.seq));
        // First the dedupe stage is told to forget the batch, and then collection may go on: a batch that
        // comes later finds the new blocks of this one in the index only, or not at all.
        drop(done.try_send(plan));
        drop(flight);
        // Received is received: what an agent that went away had sent is still written.
        if connected && let Err(e) = (stages.durable)(durable, bytes) {
            connected = false;
            stages.fail(e);
        }
    }
}

const _: () = assert!(BLOCK_SIZE == 4096);
