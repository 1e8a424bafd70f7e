//! The thread that brings a volume back to live: notices a closed ring, reopens it, copies, ends the sync.

use crate::machine::Mode;
use crate::shared::Shared;
use crate::sync::{Step, Sync};
use std::sync::Arc;
use std::time::Duration;

/// How long the keeper waits, unless something rings its bell, with nothing to do,
const IDLE: Duration = Duration::from_millis(500);
/// for the appliance or room in the ring,
const SOON: Duration = Duration::from_millis(20);
/// and after a region that could not be read.
const TROUBLE: Duration = Duration::from_secs(1);

/// Runs until the volume stops.
pub(crate) fn run(shared: &Arc<Shared>, mut sync: Sync) {
    while !shared.stopping() {
        shared.notice_closed();
        shared.serve_desk();
        shared.keep_books();
        let mode = shared.state().mode;
        let wait = match mode {
            Mode::Live => {
                shared.mark_fence();
                Some(IDLE)
            }
            Mode::Dirty if shared.try_reopen() => {
                sync.begin();
                None
            }
            Mode::Dirty => Some(SOON),
            Mode::Sync => match sync.step() {
                Step::Copied => None,
                Step::Wait => Some(SOON),
                Step::Pause(rest) => Some(rest),
                Step::Empty => (!shared.try_end_sync()).then_some(SOON),
                Step::Failed => Some(TROUBLE),
            },
        };
        if let Some(wait) = wait {
            shared.p.bell.wait(wait);
        }
    }
}
