//! Reading ahead against what must be read, and what it asks of the device.

use super::*;
use afterimage_base::block::Geometry;
use std::sync::atomic::AtomicU64;

const SIZE: u64 = (20 << 20) + 5000;

/// Byte `i` follows from its place; counts reads and bytes; the piece from `bad` on cannot be read.
#[derive(Default)]
struct Counting {
    reads: AtomicU64,
    bytes: AtomicU64,
    bad: Option<u64>,
}

fn byte(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56).to_le_bytes()[0]
}

impl SimpleDevice for Counting {
    fn geometry(&self) -> Geometry {
        Geometry {
            size: SIZE,
            preferred_block: 4096,
            max_io: 32 << 20,
            read_only: true,
            multi_queue: true,
            trim: false,
            fast_zero: false,
            rotational: false,
        }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        self.geometry().check(offset, buf.len() as u64)?;
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        if self.bad.is_some_and(|bad| offset <= bad && bad < offset + buf.len() as u64) {
            return Err(BlockError::Io(libc::EIO));
        }
        (offset..).zip(buf.iter_mut()).for_each(|(at, b)| *b = byte(at));
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

fn read(ahead: &Ahead, offset: u64, len: u64) -> Result<(), BlockError> {
    let mut buf = vec![0; usize::try_from(len).unwrap()];
    ahead.read(offset, &mut buf)?;
    assert!((offset..).zip(&buf).all(|(at, b)| *b == byte(at)), "{len} bytes at {offset}");
    Ok(())
}

#[test]
fn who_reads_from_front_to_back_is_read_in_pieces_and_once() {
    for (step, ahead_of) in [(128 << 10, 32), (4096, 1), (100_000, 3), (3 << 20, 2)] {
        let device = Arc::new(Counting::default());
        let budget = Budget::new(32 << 20);
        let ahead = Ahead::new(Arc::clone(&device) as _, Arc::clone(&budget));
        let requests: Vec<u64> = (0..SIZE).step_by(step).collect();
        let len = |at: u64| (step as u64).min(SIZE - at);
        let mut noted = 0;
        for (i, at) in requests.iter().enumerate() {
            while noted < requests.len().min(i + ahead_of) {
                ahead.note(requests[noted], len(requests[noted]));
                noted += 1;
            }
            read(&ahead, *at, len(*at)).unwrap();
        }
        let (reads, bytes) = (device.reads.load(Ordering::Relaxed), device.bytes.load(Ordering::Relaxed));
        assert!(bytes <= SIZE + (2 << 20), "steps of {step}: {bytes} bytes were read for {SIZE}");
        assert!(reads <= 2 * SIZE / PIECE + (SURE / step as u64) + 8, "steps of {step}: {reads} reads");
        ahead.close();
        assert_eq!(budget.left.load(Ordering::Relaxed), 32 << 20, "all memory is given back");
    }
}

#[test]
fn who_reads_here_and_there_is_not_read_ahead_of() {
    let device = Arc::new(Counting::default());
    let ahead = Ahead::new(Arc::clone(&device) as _, Budget::new(32 << 20));
    let mut bytes = 0;
    for i in 0u64..300 {
        let at = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (SIZE - 4096);
        ahead.note(at, 4096);
        while ahead.load_one() {}
        read(&ahead, at, 4096).unwrap();
        bytes += 4096;
    }
    assert!(device.bytes.load(Ordering::Relaxed) <= bytes + 2 * PIECE, "next to nothing for nobody");
}

#[test]
fn without_memory_reads_are_served_all_the_same() {
    let device = Arc::new(Counting::default());
    let ahead = Ahead::new(Arc::clone(&device) as _, Budget::new(1 << 20));
    for at in (0..SIZE).step_by(65_536) {
        let len = 65_536.min(SIZE - at);
        ahead.note(at, len);
        read(&ahead, at, len).unwrap();
    }
}

#[test]
fn what_cannot_be_read_fails_who_asks_for_it_and_nobody_else() {
    let bad = 7 * PIECE + 70_000;
    let device = Arc::new(Counting { bad: Some(bad), ..Counting::default() });
    let ahead = Ahead::new(Arc::clone(&device) as _, Budget::new(32 << 20));
    for at in (0..SIZE).step_by(65_536) {
        let len = 65_536.min(SIZE - at);
        ahead.note(at, len);
        while ahead.load_one() {}
        let hit = at <= bad && bad < at + len;
        assert_eq!(read(&ahead, at, len).is_err(), hit, "{len} bytes at {at}");
    }
}

#[test]
fn many_threads_read_one_stream() {
    let device = Arc::new(Counting::default());
    let ahead = Ahead::new(Arc::clone(&device) as _, Budget::new(32 << 20));
    let requests = Mutex::new((0..SIZE).step_by(32 << 10));
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                loop {
                    let at = {
                        let mut requests = requests.lock().unwrap();
                        let Some(at) = requests.next() else { return };
                        ahead.note(at, (32 << 10).min(SIZE - at));
                        at
                    };
                    read(&ahead, at, (32 << 10).min(SIZE - at)).unwrap();
                }
            });
        }
    });
    assert!(device.bytes.load(Ordering::Relaxed) <= SIZE + (3 << 20));
}
