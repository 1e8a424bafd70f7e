//! Failovers, tests and plans of this host in a few words, for its status.

use afterimage_mgmt::failover::store::Jobs;
use afterimage_mgmt::failover::summary::Recovery;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// That are told at a time: those that have not ended, and the newest that have.
const MOST: usize = 256;
/// How long one that has ended is told.
const TOLD: Duration = Duration::from_secs(86_400);

/// What was read of each file, and of which file.
type Read = BTreeMap<String, ((u64, SystemTime), Recovery)>;

/// See the module. A file is read again when it is another one.
pub(super) struct Recoveries {
    jobs: Jobs,
    read: Mutex<Read>,
}

impl Recoveries {
    pub(super) fn of(data: &Path) -> Recoveries {
        Recoveries { jobs: Jobs::of(data), read: Mutex::default() }
    }

    /// All that are worth telling, oldest first.
    pub(super) fn now(&self) -> Vec<Recovery> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        // What cannot be read is said by whoever looks after it, and by `failover ls`.
        let ids = self.jobs.ids().unwrap_or_default();
        read.retain(|id, _| ids.contains(id));
        for id in ids {
            let Some(stamp) = self.jobs.stamp(&id) else { continue };
            if read.get(&id).is_some_and(|(of, _)| *of == stamp) {
                continue;
            }
            match self.jobs.summary(&id) {
                Ok(Some(found)) => drop(read.insert(id, (stamp, found))),
                Ok(None) | Err(_) => drop(read.remove(&id)),
            }
        }
        let is_old = |at: &SystemTime| at.elapsed().is_ok_and(|age| age > TOLD);
        let mut told: Vec<&Recovery> =
            read.values().filter(|((_, at), r)| !r.has_ended() || !is_old(at)).map(|(_, r)| r).collect();
        told.sort_by_key(|r| (r.has_ended(), std::cmp::Reverse(r.created)));
        told.truncate(MOST);
        told.sort_by_key(|r| r.created);
        told.into_iter().cloned().collect()
    }
}
