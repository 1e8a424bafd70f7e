//! A disk in memory whose requests end later and in random order, reported through an eventfd, as those of a real
//! disk do.

use super::Random;
use afterimage_base::block::{BlockDevice, BlockError, Completion, Extent, Geometry, Queue, Request, Submitted};
use afterimage_base::buf::AlignedBuf;
use afterimage_base::simple::{MemoryDevice, SimpleDevice};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

pub(crate) struct SlowDevice {
    disk: Arc<MemoryDevice>,
    seed: AtomicU64,
    /// While set, nothing ends.
    pub(crate) frozen: Arc<AtomicBool>,
    /// Requests that have ended, of all queues.
    pub(crate) ended: Arc<AtomicU64>,
    /// While set, requests end with `Shutdown`.
    pub(crate) leaving: Arc<AtomicBool>,
}

impl SlowDevice {
    pub(crate) fn new(size: usize, seed: u64) -> Self {
        let disk = Arc::new(MemoryDevice::new(size));
        Self { disk, seed: seed.into(), frozen: Arc::default(), ended: Arc::default(), leaving: Arc::default() }
    }
}

/// A request that owns its data.
enum Job {
    Read(u64, AlignedBuf),
    Write(u64, Vec<u8>),
    Zero(u64, u64),
    Nothing,
}

struct SlowQueue {
    jobs: Option<Sender<(u64, Job)>>,
    done: Arc<Mutex<Vec<Completion>>>,
    event: Arc<EventFd>,
    worker: Option<JoinHandle<()>>,
    in_flight: usize,
}

impl BlockDevice for SlowDevice {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn open_queue(self: Arc<Self>) -> Result<Box<dyn Queue>, BlockError> {
        let (jobs, work) = channel();
        let event = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).unwrap());
        let done = Arc::new(Mutex::new(Vec::new()));
        let (tx, random) =
            ((Arc::clone(&event), Arc::clone(&done)), Random::new(self.seed.fetch_add(1, Ordering::Relaxed)));
        let worker = spawn(move || self.work(&work, &tx.0, &tx.1, random));
        Ok(Box::new(SlowQueue { jobs: Some(jobs), done, event, worker: Some(worker), in_flight: 0 }))
    }

    fn block_status(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>, BlockError> {
        self.disk.block_status(offset, len, max)
    }
}

impl SlowDevice {
    fn work(&self, jobs: &Receiver<(u64, Job)>, event: &EventFd, done: &Mutex<Vec<Completion>>, mut random: Random) {
        let mut waiting = Vec::new();
        while let Ok(job) = jobs.recv() {
            waiting.push(job);
            sleep(Duration::from_micros(random.below(300)));
            waiting.extend(jobs.try_iter());
            while self.frozen.load(Ordering::Relaxed) {
                sleep(Duration::from_millis(1));
            }
            // Some end now, in any order; the rest waits for more company, if there is any.
            let keep = random.below(4) as usize;
            while waiting.len() > keep {
                let job = waiting.swap_remove(random.below(waiting.len() as u64) as usize);
                self.end(job, event, done);
            }
            while !waiting.is_empty() {
                match jobs.try_recv() {
                    Ok(job) => waiting.push(job),
                    Err(_) => self.end(waiting.swap_remove(0), event, done),
                }
            }
        }
    }

    fn end(&self, (tag, job): (u64, Job), event: &EventFd, done: &Mutex<Vec<Completion>>) {
        let completion = self.run(tag, job);
        done.lock().unwrap().push(completion);
        self.ended.fetch_add(1, Ordering::Relaxed);
        event.write(1).unwrap();
    }

    fn run(&self, tag: u64, job: Job) -> Completion {
        let (result, buf) = match job {
            Job::Read(offset, mut buf) => (self.disk.read_at(offset, &mut buf), Some(buf)),
            Job::Write(offset, data) => (self.disk.write_at(offset, &data), None),
            Job::Zero(offset, len) => (self.disk.zero_at(offset, len), None),
            Job::Nothing => (Ok(()), None),
        };
        let result = if self.leaving.load(Ordering::Relaxed) { Err(BlockError::Shutdown) } else { result };
        Completion { tag, result, buf }
    }
}

impl Queue for SlowQueue {
    fn submit(&mut self, tag: u64, request: Request<'_>) -> Submitted {
        let job = match request {
            Request::Read { offset, buf } => Job::Read(offset, buf),
            Request::Write { offset, data, .. } => Job::Write(offset, data.to_vec()),
            Request::Trim { offset, len, .. } | Request::WriteZeroes { offset, len, .. } => Job::Zero(offset, len),
            Request::Flush | Request::Cache { .. } => Job::Nothing,
        };
        self.in_flight += 1;
        self.jobs.as_ref().unwrap().send((tag, job)).unwrap();
        Submitted::Pending
    }

    fn kick(&mut self) {}

    fn reap(&mut self, out: &mut Vec<Completion>) {
        let _ = nix::unistd::read(&*self.event, &mut [0; 8]);
        let mut done = self.done.lock().unwrap();
        self.in_flight -= done.len();
        out.append(&mut done);
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.event.as_fd())
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl Drop for SlowQueue {
    fn drop(&mut self) {
        self.jobs = None;
        self.worker.take().unwrap().join().unwrap();
    }
}
