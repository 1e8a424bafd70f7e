//! Bounded channels.

use super::simulated;
use super::sync::Condvar;
use crossbeam::channel as real;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What could not be sent: no receiver is left, or (for [`Sender::try_send`]) there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsent<T>(pub T);

/// No sender is left, and nothing that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended;

/// The sending side.
pub struct Sender<T>(Side<real::Sender<T>, SimSender<T>>);

/// The receiving side.
pub struct Receiver<T>(Side<real::Receiver<T>, SimReceiver<T>>);

enum Side<R, S> {
    Real(R),
    Sim(S),
}

/// A channel with room for `room` values, at least one.
#[must_use]
pub fn bounded<T>(room: usize) -> (Sender<T>, Receiver<T>) {
    if simulated().is_none() {
        let (sender, receiver) = real::bounded(room.max(1));
        return (Sender(Side::Real(sender)), Receiver(Side::Real(receiver)));
    }
    let state = State { queue: VecDeque::new(), room: room.max(1), senders: 1, receivers: 1 };
    let shared = Arc::new(Shared { state: Mutex::new(state), sent: Condvar::new(), taken: Condvar::new() });
    (Sender(Side::Sim(SimSender(Arc::clone(&shared)))), Receiver(Side::Sim(SimReceiver(shared))))
}

impl<T> std::fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sender(..)")
    }
}

impl<T> std::fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Receiver(..)")
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self(match &self.0 {
            Side::Real(s) => Side::Real(s.clone()),
            Side::Sim(s) => Side::Sim(s.clone()),
        })
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self(match &self.0 {
            Side::Real(r) => Side::Real(r.clone()),
            Side::Sim(r) => Side::Sim(r.clone()),
        })
    }
}

impl<T> Sender<T> {
    /// Sends, waiting for room.
    ///
    /// # Errors
    /// If no receiver is left.
    #[track_caller]
    pub fn send(&self, value: T) -> Result<(), Unsent<T>> {
        match &self.0 {
            Side::Real(s) => s.send(value).map_err(|e| Unsent(e.0)),
            Side::Sim(s) => s.0.send(value, true),
        }
    }

    /// Sends if there is room.
    ///
    /// # Errors
    /// If there is none, or no receiver is left.
    pub fn try_send(&self, value: T) -> Result<(), Unsent<T>> {
        match &self.0 {
            Side::Real(s) => s.try_send(value).map_err(|e| Unsent(e.into_inner())),
            Side::Sim(s) => s.0.send(value, false),
        }
    }

    /// Whether there is no room now.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match &self.0 {
            Side::Real(s) => s.is_full(),
            Side::Sim(s) => s.0.lock().is_full(),
        }
    }

    /// Whether nothing waits to be received.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match &self.0 {
            Side::Real(s) => s.is_empty(),
            Side::Sim(s) => s.0.lock().queue.is_empty(),
        }
    }
}

impl<T> Receiver<T> {
    /// Receives, waiting for a value.
    ///
    /// # Errors
    /// If nothing is there and no sender is left.
    #[track_caller]
    pub fn recv(&self) -> Result<T, Ended> {
        match &self.0 {
            Side::Real(r) => r.recv().map_err(|_| Ended),
            Side::Sim(r) => r.0.recv(true),
        }
    }

    /// Receives what is there.
    ///
    /// # Errors
    /// If nothing is there.
    pub fn try_recv(&self) -> Result<T, Ended> {
        match &self.0 {
            Side::Real(r) => r.try_recv().map_err(|_| Ended),
            Side::Sim(r) => r.0.recv(false),
        }
    }

    /// All that is there.
    pub fn try_iter(&self) -> impl Iterator<Item = T> + '_ {
        std::iter::from_fn(|| self.try_recv().ok())
    }

    /// All that comes until no sender is left.
    pub fn iter(&self) -> impl Iterator<Item = T> + '_ {
        std::iter::from_fn(|| self.recv().ok())
    }
}

struct State<T> {
    queue: VecDeque<T>,
    room: usize,
    senders: usize,
    receivers: usize,
}

impl<T> State<T> {
    fn is_full(&self) -> bool {
        self.queue.len() >= self.room
    }
}

struct Shared<T> {
    state: Mutex<State<T>>,
    sent: Condvar,
    taken: Condvar,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[track_caller]
    fn send(&self, value: T, wait: bool) -> Result<(), Unsent<T>> {
        let mut state = self.lock();
        while state.is_full() && state.receivers > 0 && wait {
            state = self.taken.wait(&self.state, state);
        }
        if state.receivers == 0 || state.is_full() {
            return Err(Unsent(value));
        }
        state.queue.push_back(value);
        drop(state);
        self.sent.notify_one();
        Ok(())
    }

    #[track_caller]
    fn recv(&self, wait: bool) -> Result<T, Ended> {
        let mut state = self.lock();
        loop {
            if let Some(value) = state.queue.pop_front() {
                drop(state);
                self.taken.notify_one();
                return Ok(value);
            }
            if state.senders == 0 || !wait {
                return Err(Ended);
            }
            state = self.sent.wait(&self.state, state);
        }
    }
}

struct SimSender<T>(Arc<Shared<T>>);

struct SimReceiver<T>(Arc<Shared<T>>);

impl<T> Clone for SimSender<T> {
    fn clone(&self) -> Self {
        self.0.lock().senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T> Clone for SimReceiver<T> {
    fn clone(&self) -> Self {
        self.0.lock().receivers += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for SimSender<T> {
    fn drop(&mut self) {
        self.0.lock().senders -= 1;
        self.0.sent.notify_all();
    }
}

impl<T> Drop for SimReceiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.receivers -= 1;
        // As with the channels of crossbeam: the last receiver takes what nobody will receive with it.
        let unreceived = if state.receivers == 0 { std::mem::take(&mut state.queue) } else { VecDeque::new() };
        drop(state);
        self.0.taken.notify_all();
        drop(unreceived);
    }
}
