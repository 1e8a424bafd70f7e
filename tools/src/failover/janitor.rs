//! Ends the tests whose process was killed, and has failovers go on, while a daemon runs on the data folder.

use crate::failover::conduct;
use crate::failover::forks::Exports;
use crate::failover::keep;
use afterimage_mgmt::failover::store::Jobs;
use afterimage_mgmt::failover::sweep::sweep;
use crossbeam::channel::{RecvTimeoutError, Sender, bounded};
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// Between two looks: a list of a folder that most data folders do not have.
const EVERY: Duration = Duration::from_secs(5);

/// Looks until it is dropped.
#[derive(Debug)]
pub struct Janitor {
    _end: Sender<()>,
}

impl Janitor {
    /// Starts it.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn start(data: &Path) -> io::Result<Janitor> {
        let (jobs, source, data) = (Jobs::of(data), Exports::of(data), data.to_owned());
        let (end, ended) = bounded::<()>(0);
        thread::Builder::new().name("janitor".to_owned()).spawn(move || {
            loop {
                match sweep(&jobs, &source, &|claim, job| keep::go_on(&data, claim, job)) {
                    Ok(ids) => ids.iter().for_each(|id| tracing::info!("test failover {id} was removed")),
                    Err(e) => tracing::warn!("failovers cannot be looked after: {e}"),
                }
                if let Err(e) = conduct::sweep_plans(&data, &jobs) {
                    tracing::warn!("recovery plans cannot be looked after: {e}");
                }
                if ended.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        })?;
        Ok(Janitor { _end: end })
    }
}
