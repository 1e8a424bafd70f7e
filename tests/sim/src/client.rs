//! The clients: threads of the agent's process, as those of an NBD server are, that put a random load on the volumes.

use crate::hosts::{Lab, lock, named};
use crate::model::{GRANULE, Mark};
use crate::rng::Rng;
use crate::sched::{MILLI, SECOND};
use afterimage_agent::{CacheMode, Volume};
use afterimage_base::block::{BlockDevice, Completion, Queue, Request, Submitted};
use afterimage_base::buf::AlignedBuf;
use afterimage_base::world;
use afterimage_base::world::sync::wait_readable;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Operations in flight of one client.
const DEPTH: usize = 6;

/// So long an operation may take at most, with nothing wrong but the appliance, its network and errors of the disk (I4): the
/// simulated disk answers within milliseconds, clients think for longer.
const LONGEST_WAIT: u64 = SECOND;

enum Flying {
    Write { id: u32, fua: bool },
    Flush { began: u64 },
    Read,
}

struct Client {
    lab: Arc<Lab>,
    volume: usize,
    rng: Rng,
    flying: BTreeMap<u64, Flying>,
    next: u64,
}

/// Starts the clients of all volumes.
pub fn start(lab: &Arc<Lab>, volumes: &[Arc<Volume>]) {
    for (index, volume) in volumes.iter().enumerate() {
        for n in 0..lab.setup.queues {
            let rng = lab.sim.state().rng.fork();
            let (lab, device) = (Arc::clone(lab), volume.device());
            lock(&lab.board).working += 1;
            named(&format!("client {index}.{n}"), move || {
                let board = Arc::clone(&lab);
                Client { lab, volume: index, rng, flying: BTreeMap::new(), next: 0 }.run(&device);
                lock(&board.board).working -= 1;
            });
        }
    }
}

impl Client {
    fn run(&mut self, device: &Arc<dyn BlockDevice>) {
        let Ok(mut queue) = Arc::clone(device).open_queue() else { return };
        let mut done = Vec::new();
        while self.lab.load.load(Ordering::Relaxed) && self.more() {
            let batch = 1 + self.rng.index(4);
            for _ in 0..batch {
                let ended = self.one(&mut *queue);
                done.extend(ended);
            }
            queue.kick();
            let deep = self.rng.index(DEPTH);
            self.reap(&mut *queue, &mut done, deep);
            let think = self.lab.setup.think;
            if self.rng.below(3) == 0 {
                world::sleep(Duration::from_nanos(self.rng.below(think)));
            }
        }
        self.reap(&mut *queue, &mut done, 0);
    }

    fn more(&self) -> bool {
        let mut board = lock(&self.lab.board);
        let begun = &mut board.begun[self.volume];
        *begun += 1;
        *begun <= self.lab.setup.operations
    }

    /// I4: to be called when a wait that began at `since` has ended.
    fn waited(&self, since: u64) {
        let waited = self.lab.sim.state().now - since;
        if waited > LONGEST_WAIT {
            crate::fail(&format!("the guest waited {} ms for one operation", waited / MILLI));
        }
    }

    fn reap(&mut self, queue: &mut dyn Queue, done: &mut Vec<Completion>, most: usize) {
        let mut since = self.lab.sim.state().now;
        loop {
            if !done.is_empty() {
                since = self.lab.sim.state().now;
            }
            for c in done.drain(..) {
                self.ended(&c);
            }
            if self.flying.len() <= most {
                return;
            }
            queue.reap(done);
            if done.is_empty()
                && let Some(fd) = queue.wake_fd()
            {
                wait_readable(fd, Some(Duration::from_secs(5)));
                queue.reap(done);
                self.waited(since);
            }
        }
    }

    fn ended(&mut self, c: &Completion) {
        let good = c.result.is_ok();
        self.lab.sim.state().note(if good { b'+' } else { b'-' }, c.tag);
        let model = &self.lab.model;
        match self.flying.remove(&c.tag) {
            Some(Flying::Write { id, fua }) => model.with(self.volume, |v| v.answered(id, good, good && fua)),
            Some(Flying::Flush { began }) => {
                let lost = self.lab.sim.state().disks.lost;
                model.with(self.volume, |v| v.flushed(began, good, lost));
            }
            Some(Flying::Read) => {}
            None => crate::fail("an operation was answered twice, or never begun"),
        }
    }

    fn range(&mut self) -> (usize, usize) {
        let size = self.lab.model.with(self.volume, |v| v.size());
        let grain = [GRANULE, 512, 4096, 4096][self.rng.index(4)];
        let longest = self.lab.setup.longest.min(size);
        let len = (1 + self.rng.index((longest / grain).max(1))) * grain;
        // A small hot part makes overlaps.
        let span = if self.rng.below(2) == 0 { size.min(64 << 10).max(len) } else { size };
        (self.rng.index((span - len) / grain + 1) * grain, len)
    }

    fn one(&mut self, queue: &mut dyn Queue) -> Option<Completion> {
        self.next += 1;
        let tag = self.next;
        let since = self.lab.sim.state().now;
        let (offset, len) = self.range();
        let at = offset as u64;
        let fua = self.rng.below(20) == 0;
        let (volume, model) = (self.volume, Arc::clone(&self.lab.model));
        let submitted = match self.rng.below(20) {
            0 => {
                let began = model.with(volume, crate::model::Volume::begin_flush);
                self.flying.insert(tag, Flying::Flush { began });
                queue.submit(tag, Request::Flush)
            }
            1 => {
                self.flying.insert(tag, Flying::Read);
                queue.submit(tag, Request::Read { offset: at, buf: AlignedBuf::zeroed(len) })
            }
            kind @ 2..=4 => {
                let (id, _) = model.with(volume, |v| v.begin(|_| Mark::Zero, offset, len));
                self.flying.insert(tag, Flying::Write { id, fua });
                let len = len as u64;
                queue.submit(
                    tag,
                    match kind {
                        2 => Request::Trim { offset: at, len, fua },
                        _ => Request::WriteZeroes { offset: at, len, fua, no_hole: kind == 3, fast: false },
                    },
                )
            }
            kind => {
                let common = self.rng.below(3);
                let mark = |id| if kind == 5 { Mark::Common(common) } else { Mark::Own(id) };
                let (id, mark) = model.with(volume, |v| v.begin(mark, offset, len));
                self.flying.insert(tag, Flying::Write { id, fua });
                let mut data = AlignedBuf::zeroed(len);
                for (i, granule) in data.chunks_mut(GRANULE).enumerate() {
                    mark.fill(offset / GRANULE + i, granule);
                }
                queue.submit(tag, Request::Write { offset: at, data: &data, fua })
            }
        };
        self.waited(since);
        let cache = self.lab.setup.cache == CacheMode::None;
        self.lab.sim.state().note(b'c', at ^ u64::from(cache));
        match submitted {
            Submitted::Done(c) => Some(c),
            Submitted::Pending => None,
        }
    }
}
