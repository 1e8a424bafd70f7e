//! Threads, by name.

use super::{At, World, simulated};
use std::io;
use std::panic::Location;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A thread that can be waited for.
#[derive(Debug)]
pub struct JoinHandle<T> {
    handle: std::thread::JoinHandle<T>,
    id: Option<u64>,
}

impl<T> JoinHandle<T> {
    /// Waits for its end.
    ///
    /// # Errors
    /// What it panicked with.
    #[track_caller]
    pub fn join(self) -> std::thread::Result<T> {
        join(self.id, Location::caller());
        self.handle.join()
    }
}

impl<T> JoinHandle<T> {
    /// Ends its wait in [`park_timeout`].
    pub fn unpark(&self) {
        match simulated().zip(self.id) {
            Some((world, id)) => world.unpark(id),
            None => self.handle.thread().unpark(),
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

fn join(id: Option<u64>, at: At) {
    if let (Some(world), Some(id)) = (simulated(), id) {
        world.join(id, at);
    }
}

/// Makes the last call of a thread, also when it panics.
struct Turn(&'static dyn World, u64);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.end(self.1);
    }
}

fn run<T>(id: Option<u64>, f: impl FnOnce() -> T) -> T {
    let _turn = simulated().zip(id).map(|(world, id)| {
        world.begin(id);
        Turn(world, id)
    });
    f()
}

/// Starts a thread.
///
/// # Errors
/// If the system has no resources for it.
pub fn spawn<T: Send + 'static>(name: &str, f: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    let id = simulated().map(|world| world.register(name));
    let handle = std::thread::Builder::new().name(name.into()).spawn(move || run(id, f))?;
    Ok(JoinHandle { handle, id })
}

/// As [`std::thread::Scope`].
#[derive(Debug)]
pub struct Scope<'scope, 'env: 'scope> {
    inner: &'scope std::thread::Scope<'scope, 'env>,
    started: Mutex<Vec<u64>>,
}

/// A thread of a scope.
#[derive(Debug)]
pub struct ScopedJoinHandle<'scope, T> {
    handle: std::thread::ScopedJoinHandle<'scope, T>,
    id: Option<u64>,
}

impl<T> ScopedJoinHandle<'_, T> {
    /// Waits for its end.
    ///
    /// # Errors
    /// What it panicked with.
    #[track_caller]
    pub fn join(self) -> std::thread::Result<T> {
        join(self.id, Location::caller());
        self.handle.join()
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
        let id = simulated().map(|world| world.register(name));
        let builder = std::thread::Builder::new().name(name.into());
        let handle = builder.spawn_scoped(self.inner, move || run(id, f))?;
        self.started.lock().unwrap_or_else(PoisonError::into_inner).extend(id);
        Ok(ScopedJoinHandle { handle, id })
    }
}

/// Runs `f`, whose threads may borrow what lives outside of it, and waits for their end.
#[track_caller]
pub fn scope<'env, T>(f: impl for<'scope> FnOnce(&Scope<'scope, 'env>) -> T) -> T {
    let at = Location::caller();
    std::thread::scope(|inner| {
        let scope = Scope { inner, started: Mutex::default() };
        let out = f(&scope);
        let started = scope.started.into_inner().unwrap_or_else(PoisonError::into_inner);
        started.into_iter().for_each(|id| join(Some(id), at));
        out
    })
}
