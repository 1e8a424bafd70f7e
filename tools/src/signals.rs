//! SIGTERM and SIGINT as events.

use crate::problem::Problem;
use crossbeam::channel::{Receiver, bounded};
use nix::sys::signal::{SigSet, Signal};
use std::thread;

/// Blocks the signals in this thread and all that it starts from now on, and reports each. Call it before any
/// thread is started.
///
/// # Errors
/// If the system refuses.
pub fn watch() -> Result<Receiver<Signal>, Problem> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGINT);
    set.add(Signal::SIGHUP);
    set.thread_block()?;
    let (send, receive) = bounded(4);
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        while let Ok(signal) = set.wait() {
            if send.send(signal).is_err() {
                return;
            }
        }
    })?;
    Ok(receive)
}
