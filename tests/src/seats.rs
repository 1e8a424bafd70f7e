//! How many guests run at a time, over all test programs: as many as the machine has processors, or what `AFTERIMAGE_GUESTS` says.
//! More would only wait for each other, and some of them longer than a test may take. A seat is a locked file in the folder
//! of the guest's builds, so it is free again whatever becomes of its owner.

use crate::guest::image_folder;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::cell::RefCell;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A test that has waited so long will not get its seats any more.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Seats for guests that run at the same time.
#[derive(Debug, Clone)]
pub struct Seats(Arc<Mutex<Vec<Flock<File>>>>);

/// The seat of one guest; it goes back to where it came from.
#[derive(Debug)]
pub(crate) struct Seat {
    lock: Option<Flock<File>>,
    home: Home,
}

#[derive(Debug)]
enum Home {
    Seats(Seats),
    /// Taken for this guest alone, counted for the thread that did.
    Own(Arc<AtomicUsize>),
}

thread_local! {
    static OWN: RefCell<Arc<AtomicUsize>> = RefCell::default();
}

/// Waits for as many seats at once; a test with several guests takes them all before the first boots, so that no two
/// tests wait for each other for ever.
///
/// # Panics
/// If there are not so many, or they never become free.
#[must_use]
#[track_caller]
pub fn reserve(count: usize) -> Seats {
    Seats(Arc::new(Mutex::new(take(count))))
}

/// How many there are.
fn total() -> usize {
    match std::env::var("AFTERIMAGE_GUESTS") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("AFTERIMAGE_GUESTS is not a number: {text}")),
        Err(_) => std::thread::available_parallelism().map_or(2, |n| n.get().max(2)),
    }
}

#[track_caller]
fn take(count: usize) -> Vec<Flock<File>> {
    let total = total();
    assert!(count <= total, "{count} guests at a time are not allowed, only {total}: AFTERIMAGE_GUESTS");
    let folder = image_folder().parent().map_or_else(PathBuf::new, Path::to_owned);
    let open = |name: &str| {
        let path = folder.join(name);
        File::options().create(true).append(true).open(&path).unwrap_or_else(|e| panic!("open {}: {e}", path.display()))
    };
    // One takes at a time, so nobody with some of the seats that he needs waits for another such.
    let turn = Flock::lock(open("seats-turn"), FlockArg::LockExclusive)
        .unwrap_or_else(|(_, e)| panic!("wait for a seat: {e}"));
    let end = Instant::now() + PATIENCE;
    let mut free: Vec<File> = (0..total).map(|n| open(&format!("seat-{n}"))).collect();
    let mut taken = Vec::new();
    while taken.len() < count {
        assert!(Instant::now() < end, "no seat for a guest became free");
        for file in std::mem::take(&mut free) {
            if taken.len() == count {
                break;
            }
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => taken.push(lock),
                Err((file, Errno::EWOULDBLOCK)) => free.push(file),
                Err((_, e)) => panic!("lock a seat: {e}"),
            }
        }
        if taken.len() < count {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    drop(turn);
    taken
}

impl Seats {
    #[track_caller]
    pub(crate) fn sit(&self) -> Seat {
        let lock = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        assert!(lock.is_some(), "more guests than seats were reserved");
        Seat { lock, home: Home::Seats(self.clone()) }
    }
}

impl Seat {
    /// A seat for a guest of a test that has no other.
    #[track_caller]
    pub(crate) fn alone() -> Seat {
        let own = OWN.with_borrow(Arc::clone);
        let before = own.fetch_add(1, Ordering::Relaxed);
        assert!(before == 0, "a test with several guests at a time reserves their seats first: guest::seats");
        let mut seat = Seat { lock: None, home: Home::Own(own) };
        seat.lock = take(1).pop();
        seat
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        match (&self.home, self.lock.take()) {
            (Home::Seats(seats), Some(lock)) => seats.0.lock().unwrap_or_else(PoisonError::into_inner).push(lock),
            (Home::Own(count), _) => {
                count.fetch_sub(1, Ordering::Relaxed);
            }
            (Home::Seats(_), None) => {}
        }
    }
}
