//! Threads, by name.

use super::{At, World, simulated};
use std::io;
use std::panic::Location;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What a simulated thread leaves behind.
type Slot<T> = Arc<Mutex<Option<T>>>;

/// A thread of the system, or one of a simulation.
#[derive(Debug)]
enum Handle<H, T> {
    Real(H),
    Simulated(u64, Slot<T>),
}

/// A thread that can be waited for.
#[derive(Debug)]
pub struct JoinHandle<T>(Handle<std::thread::JoinHandle<T>, T>);

impl<T> JoinHandle<T> {
    /// Waits for its end.
    ///
    /// # Errors
    /// What it panicked with.
    #[track_caller]
    pub fn join(self) -> std::thread::Result<T> {
        match self.0 {
            Handle::Real(handle) => handle.join(),
            Handle::Simulated(id, slot) => result(id, &slot, Location::caller()),
        }
    }

    /// Ends its wait in [`park_timeout`].
    pub fn unpark(&self) {
        match &self.0 {
            Handle::Real(handle) => handle.thread().unpark(),
            Handle::Simulated(id, _) => simulated().into_iter().for_each(|world| world.unpark(*id)),
        }
    }
}

/// Waits until the thread is unparked, or for `timeout`; may return early.
#[track_caller]
pub fn park_timeout(timeout: Duration) {
    match simulated() {
        Some(world) => world.park(timeout, Location::caller()),
        None => std::thread::park_timeout(timeout),
    }
}

fn join(id: u64, at: At) {
    simulated().into_iter().for_each(|world| world.join(id, at));
}

fn result<T>(id: u64, slot: &Slot<T>, at: At) -> std::thread::Result<T> {
    join(id, at);
    let left = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
    left.ok_or_else(|| Box::new("it died with its host") as _)
}

/// `f`, and where what it returns will be.
fn prepare<'a, T: Send + 'a>(f: impl FnOnce() -> T + Send + 'a) -> (Box<dyn FnOnce() + Send + 'a>, Slot<T>) {
    let slot: Slot<T> = Slot::default();
    let theirs = Arc::clone(&slot);
    let f = move || {
        let out = f();
        *theirs.lock().unwrap_or_else(PoisonError::into_inner) = Some(out);
    };
    (Box::new(f), slot)
}

/// Starts a thread.
///
/// # Errors
/// If the system has no resources for it.
pub fn spawn<T: Send + 'static>(name: &str, f: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    if let Some(world) = simulated() {
        let (f, slot) = prepare(f);
        return Ok(JoinHandle(Handle::Simulated(world.spawn(name, f), slot)));
    }
    let handle = std::thread::Builder::new().name(name.into()).spawn(f)?;
    Ok(JoinHandle(Handle::Real(handle)))
}

/// As [`std::thread::Scope`].
#[derive(Debug)]
pub struct Scope<'scope, 'env: 'scope> {
    inner: &'scope std::thread::Scope<'scope, 'env>,
    started: Mutex<Vec<u64>>,
    at: At,
}

/// A thread of a scope.
#[derive(Debug)]
pub struct ScopedJoinHandle<'scope, T>(Handle<std::thread::ScopedJoinHandle<'scope, T>, T>);

impl<T> ScopedJoinHandle<'_, T> {
    /// Waits for its end.
    ///
    /// # Errors
    /// What it panicked with.
    #[track_caller]
    pub fn join(self) -> std::thread::Result<T> {
        match self.0 {
            Handle::Real(handle) => handle.join(),
            Handle::Simulated(id, slot) => result(id, &slot, Location::caller()),
        }
    }
}

impl<'scope> Scope<'scope, '_> {
    /// Starts a thread that ends before the scope does.
    ///
    /// # Errors
    /// If the system has no resources for it.
    pub fn spawn<T: Send + 'scope>(
        &self,
        name: &str,
        f: impl FnOnce() -> T + Send + 'scope,
    ) -> io::Result<ScopedJoinHandle<'scope, T>> {
        if let Some(world) = simulated() {
            let (f, slot) = prepare(f);
            return Ok(ScopedJoinHandle(Handle::Simulated(self.start(world, name, f), slot)));
        }
        let builder = std::thread::Builder::new().name(name.into());
        Ok(ScopedJoinHandle(Handle::Real(builder.spawn_scoped(self.inner, f)?)))
    }

    fn start(&self, world: &'static dyn World, name: &str, f: Box<dyn FnOnce() + Send + 'scope>) -> u64 {
        // SAFETY: the scope waits for the end of its threads before it returns or unwinds (its destructor does), so what the
        // thread borrows lives longer than the thread. A simulated thread that never ends (its host has died) never runs
        // again either, and nor does the scope that waits for it.
        let f: Box<dyn FnOnce() + Send + 'static> = unsafe { std::mem::transmute(f) };
        let id = world.spawn(name, f);
        self.started.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        id
    }
}

impl Drop for Scope<'_, '_> {
    fn drop(&mut self) {
        let started = std::mem::take(&mut *self.started.lock().unwrap_or_else(PoisonError::into_inner));
        started.into_iter().for_each(|id| join(id, self.at));
    }
}

/// Runs `f`, whose threads may borrow what lives outside of it, and waits for their end.
#[track_caller]
pub fn scope<'env, T>(f: impl for<'scope> FnOnce(&Scope<'scope, 'env>) -> T) -> T {
    let at = Location::caller();
    std::thread::scope(|inner| {
        let scope = Scope { inner, started: Mutex::default(), at };
        f(&scope)
    })
}
