//! A few threads for operations that io_uring has not, or on systems where it is not allowed.

use afterimage_base::world;
use afterimage_base::world::channel::{Receiver, Sender, bounded};
use afterimage_base::world::thread::{self, JoinHandle};
use std::io;
use std::sync::{Mutex, PoisonError};

/// Threads of a pool: trims wait for the file system's journal rather than for a processor.
const THREADS: usize = 4;
/// Operations that wait for a thread; a queue that adds to a full list waits for room.
const WAITING: usize = 1024;

type Task = Box<dyn FnOnce() + Send>;

/// See the module. Threads start when they are first needed and end with the pool.
pub(crate) struct Pool {
    tasks: Sender<Task>,
    inbox: Receiver<Task>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Pool {
    pub(crate) fn new() -> Pool {
        let (tasks, inbox) = bounded(WAITING);
        Pool { tasks, inbox, threads: Mutex::new(Vec::new()) }
    }

    /// Runs `task` on one of the threads.
    ///
    /// # Errors
    /// If not a single thread can be started; the task was not run then.
    pub(crate) fn run(&self, task: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if threads.len() < THREADS && (threads.is_empty() || !self.tasks.is_empty()) {
            let inbox = self.inbox.clone();
            let started = thread::spawn("disk", move || {
                while let Ok(task) = inbox.recv() {
                    world::point("disk operation");
                    task();
                    world::point("disk operation done");
                }
            });
            match started {
                Ok(thread) => threads.push(thread),
                Err(e) if threads.is_empty() => return Err(e),
                Err(_) => {}
            }
        }
        drop(threads);
        // The pool itself holds a receiver, so this cannot fail.
        let _ = self.tasks.send(Box::new(task));
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Without the sender the threads find the channel's end.
        let (dead, _) = bounded(1);
        self.tasks = dead;
        for thread in self.threads.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = thread.join();
        }
    }
}
