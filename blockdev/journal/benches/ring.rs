//! Cost of a place in the ring: reserve, fill with 4 KiB, publish, mark done, with 1, 2 and 4 writers, a sender
//! freeing beside them. Pages are there beforehand. Once with the checksum of the payload, which publishing includes,
//! and once without a payload, which is the cost of the ring alone.
#![allow(clippy::disallowed_methods, reason = "it runs in the real world")]
#![expect(missing_docs, reason = "criterion's macros make undocumented items")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot set up has nothing else to do")]

use afterimage_format::record::Kind;
use afterimage_journal::{Ring, RingConfig};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use std::sync::Barrier;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

fn append(ring: &Ring, kind: Kind, data: &[u8]) {
    loop {
        if let Ok(mut r) = ring.reserve(kind, 0, 0, 4096, data.len()) {
            r.payload_mut().copy_from_slice(data);
            let seq = r.publish(1);
            ring.mark_done(seq);
            return;
        }
        thread::yield_now();
    }
}

/// Time for `each` appends by every one of `writers` threads.
fn run(ring: &Ring, writers: usize, each: u64, kind: Kind, data: &[u8]) -> Duration {
    let (stop, barrier) = (AtomicBool::new(false), Barrier::new(writers + 1));
    thread::scope(|s| {
        s.spawn(|| {
            while !stop.load(Relaxed) {
                ring.set_durable(ring.next() - 1);
                thread::sleep(Duration::from_micros(200));
            }
        });
        let writer = || {
            barrier.wait();
            (0..each).for_each(|_| append(ring, kind, data));
            barrier.wait();
        };
        (0..writers).for_each(|_| drop(s.spawn(writer)));
        barrier.wait();
        let start = Instant::now();
        barrier.wait();
        stop.store(true, Relaxed);
        start.elapsed()
    })
}

fn appends(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let ring = Ring::create(&dir.path().join("ring"), RingConfig { bytes: 256 << 20 }, [1; 16], 1).unwrap();
    ring.prefault(&AtomicBool::new(false)).unwrap();
    let data = vec![0x5a; 4096];
    for (name, kind, data) in [("write 4 KiB", Kind::Write, &data[..]), ("zero, no payload", Kind::Zero, &[])] {
        let mut group = c.benchmark_group(name);
        group.sample_size(20).measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_secs(1));
        for writers in [1usize, 2, 4] {
            group.bench_function(BenchmarkId::new("writers", writers), |b| {
                b.iter_custom(|n| run(&ring, writers, n.div_ceil(writers as u64), kind, data));
            });
        }
    }
    c.bench_function("xxh3 of 4 KiB", |b| b.iter(|| xxhash_rust::xxh3::xxh3_64(std::hint::black_box(&data))));
    c.bench_function("copy of 4 KiB", |b| {
        let mut to = vec![0; 4096];
        b.iter(|| std::hint::black_box(&mut to).copy_from_slice(std::hint::black_box(&data)));
    });
}

criterion_group!(benches, appends);
criterion_main!(benches);
