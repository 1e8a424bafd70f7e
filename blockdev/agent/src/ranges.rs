//! The table of writes in flight: who touches which range, and who waits for whom (I1).
//!
//! The disk is cut into regions of 256 KiB, which are dealt out to 128 stripes. A write locks the stripes
//! that it touches, lowest first, takes its seq while it holds them all, and registers its range in each.
//! If it overlaps ranges that were registered before, it may not go to the disk until the last of them has
//! been released. So for overlapping writes the order of seqs, of registration and of reaching the disk is
//! the same.
//!
//! | lock | taken | held while |
//! |---|---|---|
//! | stripes | after the gate, in ascending order | seqs are taken and the range is registered or released; never during I/O |
//! | mailbox of a waiter | under stripes | one entry is added |
//!
//! A waiter counts its blockers once per stripe in which it meets them, and each release counts down once per
//! stripe, so no stripe needs to know of another. The release that reaches zero tells the waiter's mailbox.
//! Waiters cannot wait in a circle: registration is atomic over all stripes of a write, so "was
//! registered before" is one order for all stripes.

use crate::mailbox::{Mail, Mailbox};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const REGION_SHIFT: u32 = 18;
const STRIPES: u32 = 128;

/// A registered range `start..end`, named by an id that no other range in flight has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) id: u64,
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// The write is in the dirty map, not in the ring.
    pub(crate) dirty: bool,
}

impl Claim {
    fn overlaps(&self, other: &Claim) -> bool {
        self.start < other.end && other.start < self.end
    }

    fn stripes(&self) -> u128 {
        stripes_of(self.start, self.end)
    }
}

struct Waiter {
    blockers: AtomicUsize,
    mailbox: Arc<Mailbox>,
    job: usize,
}

struct Entry {
    claim: Claim,
    /// None if it never had to wait.
    waiter: Option<Arc<Waiter>>,
}

/// On cache lines of its own, so that neighbours do not slow one another down.
#[repr(align(128))]
#[derive(Default)]
struct Stripe(Mutex<Vec<Entry>>);

/// See the module.
pub(crate) struct Ranges {
    stripes: Box<[Stripe]>,
}

/// The stripes of one range, locked.
#[must_use]
pub(crate) struct Locked<'a> {
    first: MutexGuard<'a, Vec<Entry>>,
    more: Vec<MutexGuard<'a, Vec<Entry>>>,
}

fn stripes_of(start: u64, end: u64) -> u128 {
    let (first, last) = (start >> REGION_SHIFT, (end - 1) >> REGION_SHIFT);
    if last - first >= u64::from(STRIPES) - 1 {
        return u128::MAX;
    }
    (first..=last).fold(0, |mask, region| mask | 1 << (region % u64::from(STRIPES)))
}

impl Ranges {
    pub(crate) fn new() -> Ranges {
        Ranges { stripes: (0..STRIPES).map(|_| Stripe::default()).collect() }
    }

    /// Locks the stripes of `start..end`, which is not empty.
    pub(crate) fn lock(&self, start: u64, end: u64) -> Locked<'_> {
        debug_assert!(start < end, "an empty range cannot be locked");
        let mut mask = stripes_of(start, end);
        let mut next = || {
            let stripe = &self.stripes[mask.trailing_zeros() as usize];
            mask &= mask - 1;
            (stripe.0.lock().unwrap_or_else(PoisonError::into_inner), mask != 0)
        };
        let (first, mut more_to_come) = next();
        let mut more = Vec::new();
        while more_to_come {
            let (guard, again) = next();
            more.push(guard);
            more_to_come = again;
        }
        Locked { first, more }
    }

    /// Ends a claim and tells those who waited for it alone.
    pub(crate) fn release(&self, claim: &Claim) {
        let mut mask = claim.stripes();
        while mask != 0 {
            let stripe = &self.stripes[mask.trailing_zeros() as usize];
            mask &= mask - 1;
            release_in(&mut stripe.0.lock().unwrap_or_else(PoisonError::into_inner), claim);
        }
    }

    /// Whether no write is in flight.
    pub(crate) fn is_empty(&self) -> bool {
        self.stripes.iter().all(|s| s.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty())
    }
}

fn release_in(entries: &mut Vec<Entry>, claim: &Claim) {
    let Some(at) = entries.iter().position(|e| e.claim.id == claim.id) else {
        debug_assert!(false, "claim {claim:?} is not registered");
        return;
    };
    // Order is kept: whoever stands behind was registered later.
    entries.remove(at);
    for waiter in entries[at..].iter().filter(|e| e.claim.overlaps(claim)).filter_map(|e| e.waiter.as_ref()) {
        if waiter.blockers.fetch_sub(1, Ordering::AcqRel) == 1 {
            waiter.mailbox.post(Mail::Granted(waiter.job));
        }
    }
}

impl Locked<'_> {
    fn all(&mut self) -> impl Iterator<Item = &mut Vec<Entry>> {
        std::iter::once(&mut *self.first).chain(self.more.iter_mut().map(|g| &mut **g))
    }

    /// Registers `claim`, whose stripes these are. True if it may go to the disk at once; otherwise
    /// [`Mail::Granted`] with `job` comes to `mailbox`.
    pub(crate) fn register(&mut self, claim: Claim, mailbox: &Arc<Mailbox>, job: usize) -> bool {
        let blockers: usize =
            self.all().map(|entries| entries.iter().filter(|e| e.claim.overlaps(&claim)).count()).sum();
        let waiter = (blockers != 0)
            .then(|| Arc::new(Waiter { blockers: AtomicUsize::new(blockers), mailbox: Arc::clone(mailbox), job }));
        for entries in self.all() {
            entries.push(Entry { claim, waiter: waiter.clone() });
        }
        blockers == 0
    }

    /// Whether no write to `start..end`, whose stripes these are, is in flight.
    pub(crate) fn is_free(&mut self, start: u64, end: u64) -> bool {
        !self.all().any(|entries| entries.iter().any(|e| e.claim.start < end && start < e.claim.end))
    }

    /// Whether anything stands behind `claim`.
    pub(crate) fn behind(&mut self, claim: &Claim) -> bool {
        self.all().any(|entries| {
            let behind = entries.iter().skip_while(|e| e.claim.id != claim.id).skip(1);
            behind.into_iter().any(|e| e.claim.overlaps(claim))
        })
    }

    /// Whether a write that is in the dirty map only stands behind `claim`.
    pub(crate) fn dirty_behind(&mut self, claim: &Claim) -> bool {
        self.all().any(|entries| {
            let behind = entries.iter().skip_while(|e| e.claim.id != claim.id).skip(1);
            behind.into_iter().any(|e| e.claim.dirty && e.claim.overlaps(claim))
        })
    }
}

#[cfg(test)]
#[path = "ranges_tests.rs"]
mod tests;
