//! Many requests of several queues at once, compared with what must be read, on a device that is slow, fails and panics.

use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Byte `i` is `i / 4096`; block 7 cannot be read, block 9 panics.
struct Numbers {
    at_once: AtomicUsize,
    most: AtomicUsize,
}

impl SimpleDevice for Numbers {
    fn geometry(&self) -> Geometry {
        Geometry {
            size: 256 * 4096,
            preferred_block: 4096,
            max_io: 1 << 20,
            read_only: true,
            multi_queue: true,
            trim: false,
            fast_zero: false,
            rotational: false,
        }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        let now = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        std::thread::sleep(Duration::from_micros(200));
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        for (i, block) in (offset / 4096..).zip(buf.chunks_mut(4096)) {
            assert!(i != 9, "on purpose");
            if i == 7 {
                return Err(BlockError::Io(libc::EIO));
            }
            block.fill(u8::try_from(i).unwrap());
        }
        Ok(())
    }

    fn write_at(&self, _: u64, _: &[u8]) -> Result<(), BlockError> {
        Err(BlockError::ReadOnly)
    }

    fn zero_at(&self, _: u64, _: u64) -> Result<(), BlockError> {
        Err(BlockError::ReadOnly)
    }

    fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }
}

fn device(threads: usize) -> (Arc<Numbers>, Arc<Parallel>) {
    let numbers = Arc::new(Numbers { at_once: AtomicUsize::new(0), most: AtomicUsize::new(0) });
    let pool = Arc::new(ReadPool::new(threads).unwrap());
    let device = Arc::new(Parallel::new(Arc::clone(&numbers) as Arc<dyn SimpleDevice>, pool, Budget::new(4 << 20)));
    (numbers, device)
}

fn read(queue: &mut dyn Queue, block: u64) {
    let buf = AlignedBuf::zeroed(4096);
    assert!(matches!(queue.submit(block, Request::Read { offset: block * 4096, buf }), Submitted::Pending));
}

fn rounds(device: &Arc<Parallel>, rounds: u64) {
    let mut queue = Arc::clone(device).open_queue().unwrap();
    for round in 0..rounds {
        let blocks: Vec<u64> = (0..40).map(|i| (i * 37 + round * 11) % 256).collect();
        blocks.iter().for_each(|b| read(&mut *queue, *b));
        queue.kick();
        let mut out = Vec::new();
        while queue.in_flight() > 0 {
            queue.reap(&mut out);
            if queue.in_flight() > 0 {
                afterimage_base::world::sync::wait_readable(queue.wake_fd().unwrap(), None);
            }
        }
        let mut seen: Vec<u64> = out.iter().map(|c| c.tag).collect();
        let mut wanted = blocks.clone();
        seen.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(seen, wanted, "each request ends once");
        for c in out {
            assert_eq!(c.result.is_err(), c.tag == 7 || c.tag == 9, "block {}", c.tag);
            let buf = c.buf.expect("a read gives its buffer back");
            assert!(c.result.is_err() || buf.iter().all(|b| u64::from(*b) == c.tag), "block {}", c.tag);
        }
    }
}

#[test]
fn every_read_ends_once_with_its_own_bytes_and_several_run_at_once() {
    let (numbers, device) = device(3);
    std::thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| rounds(&device, 40));
        }
    });
    assert!(numbers.most.load(Ordering::SeqCst) > 1);
}

#[test]
fn without_helpers_the_connection_does_it_alone() {
    let (numbers, device) = device(0);
    rounds(&device, 5);
    assert_eq!(numbers.most.load(Ordering::SeqCst), 1);
}

#[test]
fn a_queue_dropped_with_requests_in_flight_waits_for_them() {
    let (numbers, device) = device(2);
    for _ in 0..20 {
        let mut queue = Arc::clone(&device).open_queue().unwrap();
        (20..60).for_each(|b| read(&mut *queue, b));
        drop(queue);
        assert_eq!(numbers.at_once.load(Ordering::SeqCst), 0);
    }
}
