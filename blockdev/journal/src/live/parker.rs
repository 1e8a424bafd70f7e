//! Where the sender sleeps, and how writers wake it without paying for it while it is awake.
//!
//! The sender raises `parked`, looks once more whether there is work, and sleeps. A writer publishes and then
//! looks at `parked`: one load, behind a full fence. Either the sender's second look sees the record, or the
//! writer's look sees `parked` (the fences forbid that both look first), so no wake-up is lost.

use super::sync::{AtomicU64, Condvar, Mutex, Ordering, PoisonError, fence};
use afterimage_base::world;
use std::time::Duration;

/// See the module. For one sleeper at a time.
#[derive(Default)]
pub(crate) struct Parker {
    parked: AtomicU64,
    /// Counts wake-ups, so that one that comes before the sleep is not lost.
    woken: Mutex<u64>,
    changed: Condvar,
}

impl Parker {
    /// Sleeps unless `ready` says that there is work; ends when woken or after `timeout`.
    pub(crate) fn sleep_unless(&self, timeout: Duration, ready: impl Fn() -> bool) {
        let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *woken;
        self.parked.store(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if !ready() {
            let until = world::now() + timeout;
            while *woken == before {
                let rest = until.saturating_duration_since(world::now());
                if rest.is_zero() {
                    break;
                }
                woken = self.changed.wait_timeout(&self.woken, woken, rest);
            }
        }
        self.parked.store(0, Ordering::SeqCst);
    }

    /// Wakes the sleeper, if there is one.
    pub(crate) fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.parked.load(Ordering::Relaxed) == 0 {
            return;
        }
        // The sleeper holds the lock from before it raises `parked` until it sleeps.
        *self.woken.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.changed.notify_all();
    }
}
