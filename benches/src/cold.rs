//! What a read of a point costs when nothing is in memory: reads and bytes of the store, and decodings, for each byte that is
//! served, before and after the segments were brought into disk order.
//!
//! The appliance runs in this process and is asked without NBD, so the figures are the store's alone. Counts do not depend on how
//! busy the machine is.

use crate::cache::write_all_back;
use crate::generate::{Shape, VOLUME, content, put_in_order};
use crate::history::precise;
use afterimage_appliance::{Appliance, ApplianceConfig};
use afterimage_base::block::{Completion, Queue, Request, Submitted};
use afterimage_base::buf::AlignedBuf;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde::Serialize;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of a request.
const REQUEST: usize = 128 << 10;
/// Requests under way at a time.
const DEPTH: usize = 32;
/// Blocks read at random.
const RANDOM: u64 = 4000;

/// One series of reads.
#[derive(Debug, Clone, Serialize)]
pub struct ColdRun {
    /// Whether the segments were in disk order.
    pub ordered: bool,
    /// The point.
    pub seq: u64,
    /// From front to back, or 4 KiB at random places.
    pub sequential: bool,
    /// Bytes that were asked for.
    pub bytes: u64,
    /// Seconds that it took.
    pub seconds: f64,
    /// Reads from segments.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Frames that were decoded.
    pub frames: u64,
}

/// Drops the pages of all files in a folder from memory.
pub(crate) fn drop_pages(folder: &Path) {
    for entry in std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let path = entry.expect("an entry").path();
        let file = File::open(&path).unwrap_or_else(|e| panic!("open {}: {e}", path.display()));
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("drop a file from the cache");
    }
}

fn config(data: &Path) -> ApplianceConfig {
    let mut config = ApplianceConfig::new(data.join("vault"), data.join("appliance.sock"));
    (config.order_rate, config.collect_every) = (0, Duration::MAX);
    config
}

fn start(data: &Path) -> Appliance {
    Appliance::start(config(data)).unwrap_or_else(|e| panic!("{e}"))
}

/// Reads `requests` (offset, length), so many at a time, and gives what came to `take`.
fn read_all(queue: &mut dyn Queue, mut requests: impl Iterator<Item = (u64, usize)>, mut take: impl FnMut(u64, &[u8])) {
    let mut done: Vec<Completion> = Vec::new();
    let mut more = true;
    while more || queue.in_flight() > 0 {
        while more && queue.in_flight() < DEPTH {
            match requests.next() {
                Some((offset, len)) => {
                    let request = Request::Read { offset, buf: AlignedBuf::zeroed(len) };
                    if let Submitted::Done(c) = queue.submit(offset, request) {
                        done.push(c);
                    }
                }
                None => more = false,
            }
        }
        queue.kick();
        queue.reap(&mut done);
        if done.is_empty() {
            std::thread::sleep(Duration::from_micros(50));
        }
        for c in done.drain(..) {
            c.result.expect("a read");
            take(c.tag, &c.buf.expect("its bytes"));
        }
    }
}

/// Reads the neighbouring blocks at `seq`, and compares them with what must be there.
fn read(data: &Path, shape: &Shape, seq: u64, sequential: bool, ordered: bool) -> ColdRun {
    write_all_back();
    drop_pages(&data.join("vault/segments"));
    drop_pages(&data.join("vault/layers"));
    let appliance = start(data);
    let newest = shape.newest(seq);
    let device = appliance.open_at(VOLUME, seq).unwrap_or_else(|e| panic!("{e}"));
    let mut queue = Arc::clone(&device).open_queue().expect("a queue");
    let (start, len) = shape.dense();
    let before = appliance.store().read;
    let began = Instant::now();
    let mut bytes = 0;
    let mut wanted = [0; 4096];
    let mut check = |offset: u64, found: &[u8]| {
        bytes += found.len() as u64;
        // One block of each request: more would take longer than reading.
        let block = (offset - start) / 4096;
        match newest[usize::try_from(block).expect("an index")] {
            0 => wanted.fill(0),
            write => content(write, &mut wanted),
        }
        assert!(found[..4096] == wanted, "block {block} at @{seq} is not what was written");
    };
    if sequential {
        let requests = (start..start + len).step_by(REQUEST);
        let len_of = |at: u64| usize::try_from((start + len - at).min(REQUEST as u64)).expect("a length");
        read_all(&mut *queue, requests.map(|at| (at, len_of(at))), &mut check);
    } else {
        let blocks = shape.blocks / 2;
        let places = (0..RANDOM).map(|n| start + shape.target(n | 1 << 50) % blocks * 4096);
        read_all(&mut *queue, places.map(|at| (at, 4096)), &mut check);
    }
    let seconds = began.elapsed().as_secs_f64();
    let after = appliance.store().read;
    drop((queue, device));
    appliance.stop();
    ColdRun {
        ordered,
        seq,
        sequential,
        bytes,
        seconds,
        reads: after.reads - before.reads,
        read_bytes: after.read_bytes - before.read_bytes,
        frames: after.frames - before.frames,
    }
}

/// Measures everything.
///
/// # Panics
/// If a program fails, or a block is not what was written.
#[must_use]
pub fn measure(dir: &Path, shape: &Shape, mut progress: impl FnMut(&str)) -> Vec<ColdRun> {
    let data = dir.join("data");
    crate::history::fill(dir, shape, false);
    let mut out = Vec::new();
    for ordered in [false, true] {
        if ordered {
            let appliance = start(&data);
            put_in_order(&appliance);
            appliance.stop();
        }
        for seq in [shape.writes / 10, shape.writes / 2, shape.writes] {
            for sequential in [true, false] {
                let run = read(&data, shape, seq, sequential, ordered);
                progress(&line(&run));
                out.push(run);
            }
        }
    }
    out
}

/// A run in words.
#[must_use]
pub fn line(run: &ColdRun) -> String {
    let served = precise(run.bytes);
    format!(
        "@{} {} {}: {:.1} MB/s, {:.2} bytes read and {:.2} frames decoded for a block, {:.0} KiB a read, {} reads",
        run.seq,
        if run.ordered { "in order" } else { "as written" },
        if run.sequential { "sequential" } else { "random" },
        served / 1e6 / run.seconds,
        precise(run.read_bytes) / (served / 4096.0),
        precise(run.frames) / (served / 4096.0),
        precise(run.read_bytes) / 1024.0 / precise(run.reads.max(1)),
        run.reads
    )
}
