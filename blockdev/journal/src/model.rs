//! The concurrent core under a model checker: the very files of `live`, compiled a second time over shuttle's atomics
//! and plain memory, run through thousands of random and PCT schedules. Then each part of the protocol is broken
//! on purpose, and the same checks have to see it.
//!
//! Shuttle explores interleavings of sequentially consistent steps. That the orderings are strong enough on weaker
//! machines is argued beside each one, not checked here.

#![expect(clippy::cast_possible_truncation, reason = "numbers of a test are small")]

use crate::error::ReserveError;
use crate::head::{Point, Shape};
use afterimage_format::record::{Kind, Record};
use afterimage_format::ring::{RingHeader, Tail};
use core::{Core, Fault, Start, marker, to_bytes};
use shuttle::thread;
use std::sync::Arc;
use sync::{AtomicU64, Memory, Ordering};

#[path = "live/core.rs"]
#[allow(dead_code, reason = "the model does not use all of it")]
mod core;
#[path = "live/parker.rs"]
mod parker;

mod sync {
    pub(crate) use shuttle::sync::Mutex;
    use shuttle::sync::MutexGuard;
    pub(crate) use shuttle::sync::atomic::{AtomicU64, Ordering, fence};
    pub(crate) use std::sync::PoisonError;

    /// Shuttle's condvar, called as that of the world.
    #[derive(Default)]
    pub(crate) struct Condvar(shuttle::sync::Condvar);

    impl Condvar {
        pub(crate) fn wait_timeout<'a, T>(
            &self,
            _mutex: &'a Mutex<T>,
            guard: MutexGuard<'a, T>,
            timeout: std::time::Duration,
        ) -> MutexGuard<'a, T> {
            self.0.wait_timeout(guard, timeout).unwrap().0
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    /// Header and slots of a ring file in plain memory.
    pub(crate) struct Memory {
        header: Vec<AtomicU64>,
        slots: Vec<[AtomicU64; 8]>,
    }

    impl Memory {
        pub(crate) fn new(slots: u64) -> Memory {
            let word = || AtomicU64::new(0);
            let slot = |_| std::array::from_fn(|_| word());
            Memory { header: (0..64).map(|_| word()).collect(), slots: (0..slots).map(slot).collect() }
        }

        pub(crate) fn header(&self, index: usize) -> &AtomicU64 {
            &self.header[index]
        }

        pub(crate) fn slot(&self, index: u64) -> &[AtomicU64; 8] {
            &self.slots[index as usize]
        }
    }
}

const SHAPE: Shape = Shape { slots: 8, pages: 5 };
const WRITERS: u64 = 2;
const EACH: u64 = 4;

/// A ring and, for each seq, what happened to it outside of the ring.
struct World {
    core: Core,
    /// For each page the seq that was written there last.
    pages: Vec<AtomicU64>,
    on_disk: Vec<AtomicU64>,
    at_appliance: Vec<AtomicU64>,
}

impl World {
    fn new(fault: Fault) -> Arc<World> {
        let header = RingHeader { volume: [1; 16], ring: [2; 16], slots: SHAPE.slots, pages: SHAPE.pages };
        let tail = Tail { turn: 0, seq: 1, pages: 0, freed_seq: 0, freed_digest: 0 };
        let start = Start { tail, head: Point { seq: 1, pages: 0 }, lap_end: 0, closed: false };
        let mut core = Core::new(Memory::new(SHAPE.slots), header, &start);
        core.fault = fault;
        let words = |n| (0..n).map(|_| AtomicU64::new(0)).collect();
        Arc::new(World { core, pages: words(SHAPE.pages), on_disk: words(64), at_appliance: words(64) })
    }

    /// One write of `pages` pages, from reservation to the real disk.
    fn write(&self, pages: u64) -> Result<u64, ReserveError> {
        let claim = self.core.reserve(pages, false)?;
        let seq = claim.seq();
        for page in self.pages.iter().skip(claim.first_page(SHAPE) as usize).take(claim.pages() as usize) {
            let before = page.swap(seq, Ordering::SeqCst) as usize;
            let free = before == 0
                || self.on_disk[before].load(Ordering::SeqCst) == 1
                    && self.at_appliance[before].load(Ordering::SeqCst) == 1;
            assert!(free, "{seq} was given pages of {before}, which is still needed");
        }
        let record = Record { len: pages * 4096, payload_hash: seq, ..marker(Kind::Write, 0, seq * 4096, seq) };
        self.core.publish(&claim, record, false);
        self.on_disk[seq as usize].store(1, Ordering::SeqCst);
        self.core.mark_done(seq);
        Ok(seq)
    }

    /// Reads a record as the sender does, twice with time in between.
    fn read(&self, seq: u64) -> Record {
        while !self.core.is_published(seq) {
            thread::yield_now();
        }
        let pin = self.core.pin();
        let words = self.core.read(seq, &pin).expect("published and not freed");
        let record = Record::decode(&to_bytes(&words)).expect("whole");
        assert_eq!(record.seq, seq);
        if record.kind == Kind::Write {
            assert_eq!((record.payload_hash, record.offset), (seq, seq * 4096));
            let n = record.len / 4096;
            let first = ((record.place & 0xffff_ffff_ffff) - n) % SHAPE.pages;
            for page in first..first + n {
                assert_eq!(self.pages[page as usize].load(Ordering::SeqCst), seq, "the payload of {seq} is whole");
            }
        }
        record
    }
}

fn writers(world: &Arc<World>) -> Vec<thread::JoinHandle<()>> {
    let writer = |t: u64| {
        let world = Arc::clone(world);
        thread::spawn(move || {
            for i in 0..EACH {
                while world.write((t + i) % 3).is_err() {
                    thread::yield_now();
                }
            }
        })
    };
    (0..WRITERS).map(writer).collect()
}

/// Writers, a sender that reads and frees, and a second reader that only looks.
fn stream(fault: Fault) {
    let world = World::new(fault);
    let writers = writers(&world);
    let looker = {
        let world = Arc::clone(&world);
        thread::spawn(move || {
            for seq in [1, 3] {
                let pin = world.core.pin();
                if let Some(words) = world.core.read(seq, &pin) {
                    let record = Record::decode(&to_bytes(&words)).expect("whole");
                    let (n, end) = (record.len / 4096, record.place & 0xffff_ffff_ffff);
                    for page in end - n..end {
                        let holds = world.pages[(page % SHAPE.pages) as usize].load(Ordering::SeqCst);
                        assert_eq!(holds, seq, "what is looked at stays");
                    }
                }
            }
        })
    };
    for seq in 1..=WRITERS * EACH {
        world.read(seq);
        world.at_appliance[seq as usize].store(1, Ordering::SeqCst);
        world.core.set_durable(seq);
    }
    for thread in writers.into_iter().chain([looker]) {
        thread.join().expect("checked inside");
    }
    world.core.set_durable(0);
    assert_eq!((world.core.first(), world.core.next().seq), (WRITERS * EACH + 1, WRITERS * EACH + 1));
}

/// Writers, a sender, and somebody who closes the ring and opens it again.
fn gap(fault: Fault) {
    let world = World::new(fault);
    let writers = writers(&world);
    let control = {
        let world = Arc::clone(&world);
        thread::spawn(move || {
            let gap = world.core.close(77);
            assert_eq!(world.core.close(78), gap);
            thread::yield_now();
            assert_eq!(world.core.next().seq, gap, "no seq is taken while the ring is closed");
            loop {
                match world.core.reopen((0, 0), 99, 0) {
                    Ok(seq) => break assert_eq!(seq, gap, "the Gap is the first record"),
                    Err(_) => thread::yield_now(),
                }
            }
        })
    };
    let mut gaps = 0;
    for seq in 1..=WRITERS * EACH + 1 {
        let record = world.read(seq);
        if record.kind == Kind::Gap {
            assert_eq!((record.offset, record.time), (77, 99));
            gaps += 1;
        }
        world.at_appliance[seq as usize].store(1, Ordering::SeqCst);
        world.core.set_durable(seq);
    }
    for thread in writers.into_iter().chain([control]) {
        thread.join().expect("checked inside");
    }
    assert_eq!(gaps, 1);
}

/// An empty ring jumps ahead while writers try and a reader looks.
fn jump() {
    let world = World::new(Fault::None);
    world.core.close(5);
    let writer = {
        let world = Arc::clone(&world);
        thread::spawn(move || {
            let seq = loop {
                match world.core.reserve(1, false) {
                    Ok(claim) => break claim.seq(),
                    Err(e) => assert_eq!(e, ReserveError::Closed),
                }
                thread::yield_now();
            };
            assert_eq!(seq, (9 << 32) + 6, "behind the Gap");
        })
    };
    let looker = {
        let world = Arc::clone(&world);
        thread::spawn(move || {
            let next = world.core.next().seq;
            assert!([1, (9 << 32) + 5, (9 << 32) + 6, (9 << 32) + 7].contains(&next), "{next}");
        })
    };
    assert_eq!(world.core.reopen((0, 0), 6, (9 << 32) + 5), Ok((9 << 32) + 5));
    for thread in [writer, looker] {
        thread.join().expect("checked inside");
    }
}

/// Work that comes while the sender goes to sleep wakes it. A lost wake-up is a deadlock, which shuttle reports.
fn parking(look_again: bool) {
    let shared = Arc::new((parker::Parker::default(), AtomicU64::new(0)));
    let writer = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            for _ in 0..3 {
                shared.1.fetch_add(1, Ordering::SeqCst);
                shared.0.wake();
            }
        })
    };
    let there = |n: u64| shared.1.load(Ordering::SeqCst) >= n;
    for n in 1..=3 {
        while !there(n) {
            // Shuttle's waits never time out; what counts is that the time is not over before the wait.
            shared.0.sleep_unless(std::time::Duration::from_secs(1 << 20), || look_again && there(n));
        }
    }
    writer.join().expect("no panic");
}

/// Runs `scenario` through random and PCT schedules.
fn explore(iterations: usize, scenario: impl Fn() + Clone + Send + Sync + 'static) {
    shuttle::check_random(scenario.clone(), iterations);
    shuttle::check_pct(scenario, iterations, 3);
}

/// Asserts that some schedule finds the break, by a failed check or a deadlock.
fn caught(scenario: impl Fn() + Clone + Send + Sync + std::panic::UnwindSafe + 'static) {
    let panic = std::panic::catch_unwind(move || explore(4000, scenario)).expect_err("the break is not seen");
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    let text = text.unwrap_or("");
    assert!(text.contains("panicked in task") || text.contains("deadlock"), "not by its length or otherwise: {text}");
}

#[test]
fn records_are_whole_and_places_never_overlap() {
    explore(1500, || stream(Fault::None));
}

#[test]
fn a_gap_is_exact() {
    explore(1500, || gap(Fault::None));
}

#[test]
fn a_jump_is_seen_whole() {
    explore(1500, jump);
}

#[test]
fn no_wake_up_is_lost() {
    explore(1500, || parking(true));
}

#[test]
fn broken_on_purpose_head_in_two_steps() {
    caught(|| stream(Fault::SplitHead));
}

#[test]
fn broken_on_purpose_publish_before_fill() {
    caught(|| stream(Fault::PublishFirst));
}

#[test]
fn broken_on_purpose_free_before_done() {
    caught(|| stream(Fault::FreeUndone));
}

#[test]
fn broken_on_purpose_free_while_looked_at() {
    caught(|| stream(Fault::FreePinned));
}

#[test]
fn broken_on_purpose_closed_bit_apart_from_the_swap() {
    caught(|| gap(Fault::CloseSeenOnce));
}

#[test]
fn broken_on_purpose_open_before_the_gap() {
    caught(|| gap(Fault::OpenFirst));
}

#[test]
fn broken_on_purpose_sleep_without_a_second_look() {
    caught(|| parking(false));
}
