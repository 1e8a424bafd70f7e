//! The write-intent map at work: who waits for a mark, and who makes it durable.
//!
//! A write that finds a region cold leaves gate and stripes again, holding neither seq nor claim, and waits at the desk. The
//! marker thread takes all that wait, marks their regions with one `fdatasync`, and tells their mailboxes; each write then
//! begins anew. Warm regions cost one load. Taking marks away is another thread's business (`clear`).
//!
//! The first error of the file is final (I11). The guest goes on (I4): the file is removed, so that after a power cut the whole
//! disk is compared, and the volume says so until it is opened again.

use crate::api::IntentConfig;
use crate::mailbox::{Mail, Mailbox};
use crate::protect::Bell;
use afterimage_base::crashsafe::sync_parent;
use afterimage_base::world::fs;
use afterimage_base::world::sync::Condvar;
#[cfg(test)]
use afterimage_journal::intent::Medium;
use afterimage_journal::{IntentError, IntentMap};
use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

pub(crate) mod clear;

#[cfg(test)]
type Wrapping = Arc<dyn Fn(Box<dyn Medium>, &std::path::Path) -> Box<dyn Medium> + Send + Sync>;

/// What a test puts between maps and their files.
#[cfg(test)]
#[derive(Clone, Default)]
pub(crate) struct Wrap(pub(crate) Option<Wrapping>);

#[cfg(test)]
impl std::fmt::Debug for Wrap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Wrap").finish()
    }
}

#[cfg(test)]
impl PartialEq for Wrap {
    fn eq(&self, other: &Wrap) -> bool {
        self.0.is_none() == other.0.is_none()
    }
}

#[cfg(test)]
impl Eq for Wrap {}

/// The map with what a test puts between it and its file.
#[cfg(test)]
fn wrapped(map: IntentMap, config: &IntentConfig) -> IntentMap {
    match &config.wrap.0 {
        Some(wrap) => {
            let path = map.path().to_path_buf();
            map.through(|m| wrap(m, &path))
        }
        None => map,
    }
}

#[cfg(not(test))]
fn wrapped(map: IntentMap, _: &IntentConfig) -> IntentMap {
    map
}

/// So many regions at most are marked ahead of somebody who writes from front to back.
const MOST_AHEAD: u64 = 16;
/// Writing one region after the other is believed after so many.
const BELIEVED: u64 = 2;

struct Ask {
    start: u64,
    end: u64,
    waiter: Option<(Arc<Mailbox>, usize)>,
}

#[derive(Default)]
struct Desk {
    asks: Vec<Ask>,
    ended: bool,
}

/// A map, and the one that took its place when the volume got another size. What was replaced stays in memory, a byte for a
/// region, until the volume is closed: sizes change seldom, and a writer finds the newest with one load.
struct Link {
    map: IntentMap,
    next: OnceLock<Box<Link>>,
}

/// See the module.
pub(crate) struct Intent {
    first: Link,
    pub(crate) config: IntentConfig,
    /// Wakes the clearer.
    pub(crate) bell: Bell,
    name: String,
    desk: Mutex<Desk>,
    asked: Condvar,
    trouble: Mutex<Option<String>>,
}

impl Intent {
    pub(crate) fn new(name: &str, map: IntentMap, config: IntentConfig) -> Intent {
        let map = wrapped(map, &config);
        Intent {
            first: Link { map, next: OnceLock::new() },
            config,
            bell: Bell::default(),
            name: name.to_owned(),
            desk: Mutex::default(),
            asked: Condvar::new(),
            trouble: Mutex::new(None),
        }
    }

    fn newest(&self) -> &Link {
        let mut link = &self.first;
        while let Some(next) = link.next.get() {
            link = next;
        }
        link
    }

    /// The map in force.
    pub(crate) fn map(&self) -> &IntentMap {
        &self.newest().map
    }

    /// The volume gets another size. To be called with the gate closed.
    pub(crate) fn resize(&self, size: u64) -> Result<(), IntentError> {
        let link = self.newest();
        if link.map.has_failed() {
            return Ok(());
        }
        let map = wrapped(link.map.resized(size)?, &self.config);
        // One keeper changes sizes, one at a time.
        let _ = link.next.set(Box::new(Link { map, next: OnceLock::new() }));
        Ok(())
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for bytes `start..end` to be marked; [`Mail::Marked`] follows. False if the volume has ended: nobody
    /// would answer.
    pub(crate) fn ask(&self, start: u64, end: u64, waiter: Option<(Arc<Mailbox>, usize)>) -> bool {
        let mut desk = self.desk();
        if desk.ended {
            return false;
        }
        desk.asks.push(Ask { start, end, waiter });
        drop(desk);
        self.asked.notify_one();
        true
    }

    /// The marker thread; runs until [`end`](Self::end).
    pub(crate) fn run(&self) {
        loop {
            let mut desk = self.desk();
            while desk.asks.is_empty() && !desk.ended {
                desk = self.asked.wait(&self.desk, desk);
            }
            let asks = std::mem::take(&mut desk.asks);
            drop(desk);
            if asks.is_empty() {
                return;
            }
            self.serve(&asks);
            for (mailbox, job) in asks.into_iter().filter_map(|a| a.waiter) {
                mailbox.post(Mail::Marked(job));
            }
        }
    }

    fn serve(&self, asks: &[Ask]) {
        let map = self.map();
        let wanted: BTreeSet<u64> = asks.iter().flat_map(|a| map.regions_of(a.start, a.end)).collect();
        let ahead = asks.iter().filter_map(|a| {
            let regions = map.regions_of(a.start, a.end);
            let run = map.run_before(regions.start, MOST_AHEAD);
            (run >= BELIEVED).then(|| regions.end..(regions.end + run).min(map.regions()))
        });
        let all: BTreeSet<u64> = ahead.flatten().chain(wanted.iter().copied()).collect();
        self.note(map.mark(all, |r| wanted.contains(&r)));
    }

    /// Marks what is about to become dirty without a writer having marked it.
    pub(crate) fn mark_now(&self, start: u64, end: u64) {
        let map = self.map();
        self.note(map.mark(map.regions_of(start, end), |_| true));
    }

    /// Marks everything and relies on nothing: the next history may be any.
    pub(crate) fn mark_all(&self) {
        if !self.map().has_failed() {
            self.note(self.map().mark_all());
        }
    }

    /// No more answers; whoever waits still gets one.
    pub(crate) fn end(&self) {
        self.desk().ended = true;
        self.asked.notify_all();
        self.bell.ring();
    }

    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What an error of the file means.
    pub(crate) fn note(&self, result: io::Result<()>) {
        let Err(e) = result else { return };
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if trouble.is_some() {
            return;
        }
        let path = self.map().path();
        let removed = fs::remove_file(path).and_then(|()| sync_parent(path));
        let mut what = format!(
            "the write-intent map {} failed ({e}): the guest goes on, and after a power cut the whole disk is compared",
            path.display()
        );
        if let Err(e) = removed {
            what.push_str(&format!("; it cannot be removed either ({e}): remove it before the next start"));
        }
        tracing::error!("volume {}: {what}", self.name);
        *trouble = Some(what);
    }
}

/// Size of a region for a volume of `size` bytes: the measured one, less for small volumes so that they have some, more for
/// huge ones so that the table of regions stays small.
pub(crate) fn region_for(size: u64, wanted: u64) -> u64 {
    const FEW: u64 = 256;
    const MANY: u64 = 1 << 24;
    const LEAST: u64 = 64 << 10;
    let mut region = wanted;
    while region > LEAST && size / region < FEW {
        region /= 2;
    }
    while size / region >= MANY {
        region *= 2;
    }
    region
}
