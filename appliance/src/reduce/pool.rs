//! The threads that hash, compress and seal: as many as cores, shared by all volumes.
//!
//! A task is cut into parts; parts run in any order on any thread, each writing where only it writes, so what comes out does
//! not depend on the number of threads. A part never waits for another one, so the bounded queue cannot jam.

use super::frame::Scratch;
use afterimage_base::world::channel::{Receiver, Sender, bounded};
use afterimage_base::world::sync::Condvar;
use afterimage_base::world::thread::{self, JoinHandle};
use std::sync::{Arc, Mutex, PoisonError};

/// Parts that may wait for a thread: two of the largest batches.
const QUEUE: usize = 512;

/// Work that can be cut into parts.
pub trait Task: Send + Sync {
    /// Does part `part`.
    fn run(&self, part: usize, scratch: &mut Scratch);
}

struct Job {
    task: Arc<dyn Task>,
    part: usize,
    // Dropped last, after the task: whoever waits finds the task unshared.
    done: PartGuard,
}

#[derive(Default)]
struct Latch {
    left: Mutex<(usize, bool)>,
    changed: Condvar,
}

/// Counts its part as done when dropped, also if the thread panics in it.
struct PartGuard(Arc<Latch>);

impl Drop for PartGuard {
    fn drop(&mut self) {
        let mut left = self.0.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.0 -= 1;
        left.1 |= std::thread::panicking();
        if left.0 == 0 {
            self.0.changed.notify_all();
        }
    }
}

/// Waits for a task.
#[must_use]
pub struct Ticket(Arc<Latch>);

impl Ticket {
    /// Waits until all parts are done; false if one of them was not (a thread died in it).
    #[must_use]
    pub fn wait(&self) -> bool {
        let mut left = self.0.left.lock().unwrap_or_else(PoisonError::into_inner);
        while left.0 > 0 {
            left = self.0.changed.wait(&self.0.left, left);
        }
        !left.1
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ticket(..)")
    }
}

/// See the module.
#[derive(Debug)]
pub struct Pool {
    queue: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts `threads` threads (at least one).
    ///
    /// # Errors
    /// If the system has no resources for a thread or its contexts.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let (queue, jobs) = bounded::<Job>(QUEUE);
        let threads = (0..threads.max(1))
            .map(|i| {
                let (jobs, scratch) = (jobs.clone(), Scratch::new()?);
                thread::spawn(&format!("reduce-{i}"), move || work(&jobs, scratch))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { queue: Some(queue), threads })
    }

    /// Queues the parts `0..parts` of a task. Waits for room in the queue.
    pub fn start(&self, task: &Arc<impl Task + 'static>, parts: usize) -> Ticket {
        let latch = Arc::new(Latch { left: Mutex::new((parts, false)), changed: Condvar::new() });
        for part in 0..parts {
            let job = Job { task: Arc::clone(task) as Arc<dyn Task>, part, done: PartGuard(Arc::clone(&latch)) };
            if let Some(queue) = &self.queue {
                // A queue without threads drops the job, whose guard counts it; that it was not done shows below.
                if queue.send(job).is_err() {
                    latch.left.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
                }
            }
        }
        Ticket(latch)
    }
}

fn work(jobs: &Receiver<Job>, mut scratch: Scratch) {
    while let Ok(Job { task, part, done }) = jobs.recv() {
        // A panic in one part fails its batch and spares the thread: other volumes go on.
        let run = std::panic::AssertUnwindSafe(|| {
            let _done = done;
            task.run(part, &mut scratch);
            drop(task);
        });
        if std::panic::catch_unwind(run).is_err() {
            tracing::error!("a reducer thread panicked; the session that it worked for ends");
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.queue = None;
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Count(Vec<AtomicUsize>);

    impl Task for Count {
        fn run(&self, part: usize, _: &mut Scratch) {
            assert!(part != 13, "unlucky");
            self.0[part].fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn every_part_runs_once_and_a_panic_fails_only_its_task() {
        let pool = Pool::new(3).unwrap();
        let make = |n| Arc::new(Count((0..n).map(|_| AtomicUsize::new(0)).collect()));
        let (good, bad) = (make(13), make(20));
        let tickets = [pool.start(&bad, 20), pool.start(&good, 13)];
        assert_eq!(tickets.map(|t| t.wait()), [false, true]);
        assert!(good.0.iter().all(|c| c.load(Ordering::Relaxed) == 1));
        assert_eq!(Arc::strong_count(&good), 1, "whoever has waited has the task to himself");
        assert!(pool.start(&good, 13).wait());
    }
}
