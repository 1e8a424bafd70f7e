//! What a 4 KiB random write costs through a queue, without any front end: protected, and plain.
//!
//! `cargo run --release -p afterimage-agent --example write_path [FOLDER] [MIB] [SECONDS]`
//!
//! One thread, interleaved rounds of both on files of their own, in the page cache. The appliance is a thread that reads and
//! acknowledges, so that the figure includes forwarding.
#![allow(clippy::disallowed_methods, reason = "it runs in the real world")]

mod sink;

use afterimage_agent::{Agent, AgentConfig, CacheMode, PlainDisk, VolumeConfig, VolumeState, connector};
use afterimage_base::block::{BlockDevice, Queue, Request, Submitted};
use afterimage_base::clock::{Clock, SystemClock};
use afterimage_base::net::Endpoint;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

const ROUNDS: usize = 7;
const BATCH: u64 = 32;

fn image(path: &Path, size: u64) -> io::Result<()> {
    // Written in small pieces: large ones would leave large folios, which make every later small write slow.
    let file = File::create(path)?;
    for at in (0..size).step_by(4096) {
        file.write_all_at(&[1; 4096], at)?;
    }
    file.sync_all()
}

fn cpu() -> io::Result<Duration> {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills a structure of ours.
    if unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut t) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Duration::new(u64::try_from(t.tv_sec).unwrap_or(0), u32::try_from(t.tv_nsec).unwrap_or(0)))
}

/// Wall and CPU microseconds of this thread for one write.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn round(queue: &mut dyn Queue, size: u64, time: Duration) -> io::Result<(f64, f64)> {
    let data = vec![0x5a; 4096];
    let mut x = 0x1234_5678_9abc_def1_u64;
    let (start, cpu_start, mut n) = (Instant::now(), cpu()?, 0u64);
    while start.elapsed() < time {
        for tag in 0..BATCH {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            let offset = (x >> 20) % (size / 4096) * 4096;
            let request = Request::Write { offset, data: &data, fua: false };
            let Submitted::Done(c) = queue.submit(tag, request) else {
                return Err(io::Error::other("a write to the page cache was not answered at once"));
            };
            c.result.map_err(io::Error::other)?;
        }
        queue.kick();
        n += BATCH;
    }
    let per = |d: Duration| d.as_secs_f64() * 1e6 / n as f64;
    Ok((per(start.elapsed()), per(cpu()?.saturating_sub(cpu_start))))
}

fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}

fn main() -> io::Result<()> {
    let mut args = std::env::args().skip(1);
    let parent = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let size = args.next().and_then(|a| a.parse::<u64>().ok()).unwrap_or(256) << 20;
    let time = Duration::from_secs_f64(args.next().and_then(|a| a.parse().ok()).unwrap_or(1.0));
    let dir = tempfile::tempdir_in(parent)?;
    let (protected, plain) = (dir.path().join("protected"), dir.path().join("plain"));
    image(&protected, size)?;
    image(&plain, size)?;
    let socket = dir.path().join("appliance.sock");
    let listener = UnixListener::bind(&socket)?;
    std::thread::spawn(move || {
        for s in listener.incoming().flatten() {
            // The end of a session is the end of the measurement.
            let _ = sink::swallow(s);
        }
    });
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let config =
        AgentConfig { state_dir: dir.path().join("agent"), connector: connector(Endpoint::Unix(socket), true), clock };
    let agent = Agent::new(config);
    let config = VolumeConfig {
        name: "v".into(),
        path: protected,
        ring_bytes: 1 << 30,
        cache: CacheMode::Writeback,
        foreign: afterimage_agent::ForeignWrite::Ignore,
        resize: false,
        adopt: None,
    };
    let volume = agent.add_volume(config).map_err(io::Error::other)?;
    while volume.status().state != VolumeState::Live {
        std::thread::sleep(Duration::from_millis(10));
    }
    // Until the ring's pages are there.
    std::thread::sleep(Duration::from_secs(2));
    let open = |d: Arc<dyn BlockDevice>| d.open_queue().map_err(io::Error::other);
    let mut ours = open(volume.device())?;
    let mut bare = open(PlainDisk::open(&plain, CacheMode::Writeback).map_err(io::Error::other)?)?;
    let (mut a, mut b) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    for _ in 0..ROUNDS {
        for (queue, out) in [(&mut ours, &mut a), (&mut bare, &mut b)] {
            let (wall, cpu) = round(&mut **queue, size, time)?;
            out.0.push(wall);
            out.1.push(cpu);
            println!("{wall:.2} us wall, {cpu:.2} us cpu");
        }
    }
    println!("protected: {:.2} us wall, {:.2} us of this thread's cpu", median(a.0), median(a.1));
    println!("plain:     {:.2} us wall, {:.2} us of this thread's cpu", median(b.0), median(b.1));
    println!("state at the end: {}", volume.status().state);
    drop(ours);
    agent.stop(Duration::from_secs(10));
    Ok(())
}
