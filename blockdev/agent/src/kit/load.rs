//! A random load on a device that knows what it did, and when.

use afterimage_base::block::{BlockDevice, Completion, Request, Submitted};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

/// One write of a load: its stamp, and when it was submitted and acknowledged on the global clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Done {
    pub(crate) stamp: u64,
    pub(crate) submitted: u64,
    pub(crate) acked: u64,
    pub(crate) ok: bool,
}

#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) seed: u64,
    pub(crate) operations: u64,
    pub(crate) depth: usize,
    /// Bytes from the start of the disk that are touched: few make many overlaps.
    pub(crate) span: u64,
    pub(crate) longest: u64,
    /// One in so many is a trim or zeroes.
    pub(crate) zeroes: u64,
    /// Offsets and lengths are multiples of this.
    pub(crate) grain: u64,
}

impl Load {
    pub(crate) const fn small(seed: u64) -> Load {
        Load { seed, operations: 2000, depth: 8, span: 256 << 10, longest: 32 << 10, zeroes: 6, grain: 512 }
    }
}

static CLOCK: AtomicU64 = AtomicU64::new(1);

/// Puts a random load on the device from one queue. The first 8 bytes of each write are a stamp of its own.
pub(crate) fn load(device: &Arc<dyn BlockDevice>, load: Load) -> Vec<Done> {
    let mut queue = Arc::clone(device).open_queue().unwrap();
    let mut dice = Dice::new(load.seed);
    let mut flying: HashMap<u64, Done> = HashMap::new();
    let (mut done, mut completed) = (Vec::new(), Vec::new());
    let mut data = vec![0; usize::try_from(load.longest).unwrap()];
    let mut finish = |c: Completion, flying: &mut HashMap<u64, Done>| {
        let mut d = flying.remove(&c.tag).expect("a tag that flies");
        (d.acked, d.ok) = (CLOCK.fetch_add(1, Ordering::SeqCst), c.result.is_ok());
        done.push(d);
    };
    for tag in 0..load.operations {
        let len = (1 + dice.below(load.longest / load.grain)) * load.grain;
        let offset = dice.below((load.span - len) / load.grain + 1) * load.grain;
        let zero = dice.below(load.zeroes) == 0;
        let stamp = if zero || len < 8 { 0 } else { load.seed << 32 | (tag + 1) };
        let fua = dice.below(50) == 0;
        let bytes = &mut data[..usize::try_from(len).unwrap()];
        bytes.fill(u8::try_from(stamp % 255).unwrap() + 1);
        if bytes.len() >= 8 {
            bytes[..8].copy_from_slice(&stamp.to_le_bytes());
        }
        let request = match (zero, dice.below(2)) {
            (false, _) => Request::Write { offset, data: bytes, fua },
            (true, 0) => Request::Trim { offset, len, fua },
            (true, _) => Request::WriteZeroes { offset, len, fua, no_hole: dice.below(2) == 0, fast: false },
        };
        let submitted = CLOCK.fetch_add(1, Ordering::SeqCst);
        flying.insert(tag, Done { stamp, submitted, acked: 0, ok: false });
        if let Submitted::Done(c) = queue.submit(tag, request) {
            finish(c, &mut flying);
        }
        queue.kick();
        let last = tag + 1 == load.operations;
        while flying.len() >= load.depth || (last && !flying.is_empty()) {
            poll(&mut [PollFd::new(queue.wake_fd().unwrap(), PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
            queue.reap(&mut completed);
            completed.drain(..).for_each(|c| finish(c, &mut flying));
        }
    }
    assert_eq!(queue.in_flight(), 0);
    done
}

/// The load from several queues at once.
pub(crate) fn loads(device: &Arc<dyn BlockDevice>, queues: u64, of: impl Fn(u64) -> Load + Sync) -> Vec<Done> {
    thread::scope(|scope| {
        let of = &of;
        let threads: Vec<_> = (0..queues).map(|n| scope.spawn(move || load(device, of(n)))).collect();
        threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
    })
}
