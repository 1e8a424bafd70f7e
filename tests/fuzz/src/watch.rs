//! What ends a replay: a panic of any thread, or an input that takes far too long.

use std::panic;
use std::process;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// No input takes a hundredth of this, also on a busy machine.
const LONGEST: Duration = Duration::from_secs(60);

/// Name of the input under way, and since when.
static CURRENT: Mutex<Option<(String, Instant)>> = Mutex::new(None);

fn lock() -> MutexGuard<'static, Option<(String, Instant)>> {
    CURRENT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Name of the input under way.
#[must_use]
pub fn current() -> String {
    lock().as_ref().map_or_else(String::new, |c| c.0.clone())
}

/// Says which input is under way.
pub fn input(name: String) {
    *lock() = Some((name, Instant::now()));
}

/// From now on a panic of any thread, or an input without end, names the input and ends the process.
pub fn start() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        crate::memory::unlimited();
        usual(info);
        eprintln!("FAILED: {}", current());
        process::exit(101);
    }));
    thread::spawn(|| {
        loop {
            thread::sleep(Duration::from_secs(1));
            let late = lock().as_ref().is_some_and(|(_, since)| since.elapsed() > LONGEST);
            if late {
                eprintln!("FAILED: {}: no end after {LONGEST:?}", current());
                process::exit(102);
            }
        }
    });
}
