//! The disk of a fenced agent, reached through its session: what a failback writes to ([`afterimage_format::failback`]).
//!
//! The session of a fenced volume's tail puts its [`AgentDisk`] where it is found by that volume's name. Whoever borrows it (one at a time)
//! gets a [`Lease`], sends requests, and takes answers, which come in the order of the requests. Ids are given anew on the way, so an
//! answer to what an earlier borrower asked reaches nobody. At the session's end the lease is good for nothing any more.

use super::session::Out;
use crate::appliance::{Appliance, ApplianceError};
use crate::fence::FenceError;
use afterimage_base::world::sync::Condvar;
use afterimage_format::codec::DecodeError;
use afterimage_format::failback::{MAX_REQUESTS, id_of, renamed};
use afterimage_format::fence::Fence;
use afterimage_format::wire::MessageType;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Whether the disk of a volume's agent can be reached.
#[derive(Debug, Clone, Default)]
pub(crate) enum Reach {
    /// The agent is not there, or may take writes.
    #[default]
    Away,
    /// It does not speak of its disk.
    Old,
    /// It can.
    Here(Arc<AgentDisk>),
}

#[derive(Default)]
struct Desk {
    /// The session is over.
    ended: bool,
    /// Somebody has the lease.
    lent: bool,
    /// The borrower wants no more answers.
    closed: bool,
    next: u64,
    /// The borrower's id of each request under way; none if its borrower is gone.
    asked: BTreeMap<u64, Option<u64>>,
    answers: VecDeque<(MessageType, Vec<u8>)>,
}

/// See the module.
pub(crate) struct AgentDisk {
    epoch: u64,
    size: u64,
    out: Mutex<Option<Arc<Out>>>,
    desk: Mutex<Desk>,
    changed: Condvar,
}

impl std::fmt::Debug for AgentDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AgentDisk(epoch {}, {} bytes)", self.epoch, self.size)
    }
}

impl AgentDisk {
    pub(super) fn new(epoch: u64, size: u64, out: &Arc<Out>) -> Arc<AgentDisk> {
        let out = Mutex::new(Some(Arc::clone(out)));
        Arc::new(AgentDisk { epoch, size, out, desk: Mutex::default(), changed: Condvar::new() })
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an answer of the agent.
    ///
    /// # Errors
    /// If it answers nothing.
    pub(super) fn answered(&self, kind: MessageType, body: Vec<u8>) -> Result<(), String> {
        let text = |e: DecodeError| e.to_string();
        let id = id_of(&body).map_err(text)?;
        let mut desk = self.desk();
        match desk.asked.remove(&id) {
            None => return Err("an answer about the disk that nobody has asked for".into()),
            Some(None) => {}
            Some(Some(theirs)) => desk.answers.push_back((kind, renamed(body, theirs).map_err(text)?)),
        }
        self.changed.notify_all();
        Ok(())
    }

    /// The session is over.
    pub(super) fn end(&self) {
        self.desk().ended = true;
        // Who still has a lease must not keep the connection open.
        drop(self.out.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.changed.notify_all();
    }
}

/// The disk of a fenced agent, borrowed.
#[derive(Debug)]
pub struct Lease(Arc<AgentDisk>);

impl Lease {
    fn of(disk: Arc<AgentDisk>) -> Option<Lease> {
        let mut desk = disk.desk();
        if std::mem::replace(&mut desk.lent, true) {
            return None;
        }
        desk.closed = false;
        drop(desk);
        Some(Lease(disk))
    }

    /// Epoch of the fence, which each request names.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.0.epoch
    }

    /// Size of the disk in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.0.size
    }

    /// Sends a request; waits while [`MAX_REQUESTS`] are under way, or answered and not taken.
    ///
    /// # Errors
    /// In words, if it is none, the session is over, or the lease was closed.
    pub fn send(&self, kind: MessageType, body: Vec<u8>) -> Result<(), String> {
        if !matches!(kind, MessageType::DiskQuery | MessageType::DiskWrite | MessageType::DiskSync) {
            return Err("this is no request about a disk".into());
        }
        let theirs = id_of(&body).map_err(|e| e.to_string())?;
        let mut desk = self.0.desk();
        while desk.asked.len() + desk.answers.len() >= MAX_REQUESTS && !desk.ended && !desk.closed {
            desk = self.0.changed.wait(&self.0.desk, desk);
        }
        if desk.closed {
            return Err("nobody takes the answers any more".into());
        }
        let id = desk.next;
        desk.next += 1;
        // Before it leaves: the answer may be quick.
        desk.asked.insert(id, Some(theirs));
        drop(desk);
        let out = self.0.out.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let out = out.ok_or("the session of the agent is over")?;
        let body = renamed(body, id).map_err(|e| e.to_string())?;
        super::session::send(&out, kind, &body).map_err(|e| e.to_string())
    }

    /// The next answer; none when the session is over, or the lease was closed.
    #[must_use]
    pub fn receive(&self) -> Option<(MessageType, Vec<u8>)> {
        let mut desk = self.0.desk();
        loop {
            if desk.closed {
                return None;
            }
            if let Some(answer) = desk.answers.pop_front() {
                self.0.changed.notify_all();
                return Some(answer);
            }
            if desk.ended {
                return None;
            }
            desk = self.0.changed.wait(&self.0.desk, desk);
        }
    }

    /// Ends [`receive`](Self::receive) and [`send`](Self::send) in other threads.
    pub fn close(&self) {
        self.0.desk().closed = true;
        self.0.changed.notify_all();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut desk = self.0.desk();
        desk.lent = false;
        desk.answers.clear();
        desk.asked.values_mut().for_each(|theirs| *theirs = None);
    }
}

impl Appliance {
    /// Borrows the disk of a fenced volume's agent.
    ///
    /// # Errors
    /// [`ApplianceError::Fence`] if the volume is not fenced, its agent cannot be reached, or somebody has borrowed its disk.
    pub fn agent_disk(&self, name: &str) -> Result<Lease, ApplianceError> {
        let volume = self.volume(name)?;
        let refused = |why| ApplianceError::Fence(name.to_owned(), why);
        if volume.standing().state() != Fence::Closed {
            return Err(refused(FenceError::Open));
        }
        match self.registry.tail_of(&volume).map(|tail| tail.agent_disk()).unwrap_or_default() {
            Reach::Away => Err(refused(FenceError::Away)),
            Reach::Old => Err(refused(FenceError::Old)),
            Reach::Here(disk) => Lease::of(disk).ok_or_else(|| refused(FenceError::Lent)),
        }
    }
}

#[cfg(test)]
#[path = "failback_tests.rs"]
mod tests;
