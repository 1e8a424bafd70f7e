//! Threads for which the writes of guests wait.
//!
//! From the first gate that a barrier closes until the last one opens, writes wait for a few threads that do little: they hear a
//! message, close a gate, answer. Behind all the others that want a processor each of their wakings can take as long as several slices of
//! time, and the slowest machine of a group counts. So these come first, by real-time scheduling at its lowest priority (sched(7)), as long as they
//! wait for such a message or act on it. Other daemons on whose answer a cluster waits do the same.
//!
//! It needs `CAP_SYS_NICE`, or a limit of real-time priority of at least 1 (`LimitRTPRIO=1` in the units). Without it, everything works and waits
//! its turn.

use super::simulated;
use nix::errno::Errno;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

/// The lowest there is above ordinary threads.
const PRIORITY: i32 = 1;

thread_local! {
    static IS: Cell<bool> = const { Cell::new(false) };
}

/// Whether it was refused already.
static REFUSED: AtomicBool = AtomicBool::new(false);

/// From now on this thread comes before others, or not any more. What it starts does not.
pub fn urgent(on: bool) {
    if IS.get() == on || REFUSED.load(Ordering::Relaxed) || simulated().is_some() {
        return;
    }
    let policy = if on { libc::SCHED_RR } else { libc::SCHED_OTHER };
    match set(policy) {
        Ok(()) => IS.set(on),
        // Nobody has to know: the hold times are in the metrics.
        Err(_) => REFUSED.store(on, Ordering::Relaxed),
    }
}

fn set(policy: i32) -> nix::Result<()> {
    let priority = if policy == libc::SCHED_RR { PRIORITY } else { 0 };
    let param = libc::sched_param { sched_priority: priority };
    // SAFETY: 0 is the calling thread, and the parameters outlive the call, which only reads them. The flag is set both ways: who may
    // not raise a thread may not take it away either.
    Errno::result(unsafe { libc::sched_setscheduler(0, policy | libc::SCHED_RESET_ON_FORK, &raw const param) })
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> i32 {
        // SAFETY: the call takes no pointer; 0 is the calling thread.
        unsafe { libc::sched_getscheduler(0) & !libc::SCHED_RESET_ON_FORK }
    }

    #[test]
    fn a_thread_is_urgent_for_a_while_and_what_it_starts_is_not() {
        std::thread::spawn(|| {
            urgent(true);
            // Where that is not allowed nothing has happened.
            let may = !REFUSED.load(Ordering::Relaxed);
            assert_eq!(policy(), if may { libc::SCHED_RR } else { libc::SCHED_OTHER });
            assert_eq!(std::thread::spawn(policy).join().unwrap(), libc::SCHED_OTHER);
            urgent(true);
            urgent(false);
            assert_eq!(policy(), libc::SCHED_OTHER);
        })
        .join()
        .unwrap();
    }
}
