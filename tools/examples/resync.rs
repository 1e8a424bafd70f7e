//! What a resync costs, what it saves, and what the guest sees of it; and how fast a verification is.
//!
//! `cargo run --release -p afterimage --example resync [FOLDER] [MIB]`
//!
//! Agent and appliance in one process, over a unix socket on which the bytes are counted. The disk is a file of noise in the page
//! cache. The appliance goes away until the ring is full; then the whole disk is written again, every hundredth block with something
//! else. Once with an appliance that can be asked for hashes, once as if it spoke version 1. The guest's latency is that of
//! one thread with one 4 KiB random write at a time, a millisecond of thought between two.

use afterimage_agent::{
    Agent, AgentConfig, CacheMode, Connection, Connector, VerifyOptions, Volume, VolumeConfig, VolumeState,
    unix_connector,
};
use afterimage_appliance::{Appliance, ApplianceConfig};
use afterimage_base::block::Request;
use afterimage_base::clock::SystemClock;
use afterimage_base::simple::call;
use afterimage_format::wire::{HEADER_LEN, Header, MessageType};
use std::io::{self, IoSlice, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const BLOCK: usize = 4096;
const RING: u64 = 64 << 20;
const THOUGHT: Duration = Duration::from_millis(1);

type Failed = Box<dyn std::error::Error + Send + Sync>;

#[derive(Default)]
struct Link {
    away: AtomicBool,
    old: AtomicBool,
    out: AtomicU64,
    back: AtomicU64,
    close: std::sync::Mutex<Option<Arc<dyn Fn() + Send + Sync>>>,
}

struct Counted {
    inner: Arc<dyn Connector>,
    link: Arc<Link>,
}

struct In(Box<dyn Read + Send>, Arc<Link>);
struct Out(Box<dyn afterimage_agent::connect::VectoredWrite>, Arc<Link>, bool);

impl Read for In {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.0.read(buf)?;
        self.1.back.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

impl Write for Out {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buf)])
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.2 && self.1.old.load(Ordering::Relaxed) {
            // The hello, all in one: it says that version 1 is the newest known.
            let mut body: Vec<u8> = bufs.iter().flat_map(|b| b.iter().copied()).skip(HEADER_LEN).collect();
            body[2..4].copy_from_slice(&1u16.to_le_bytes());
            let mut message = Header::of(MessageType::Hello, &body).encode().to_vec();
            message.extend_from_slice(&body);
            self.2 = false;
            return self.0.write_vectored(&[IoSlice::new(&message)]);
        }
        self.2 = false;
        let n = self.0.write_vectored(bufs)?;
        self.1.out.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Connector for Counted {
    fn connect(&self) -> io::Result<Connection> {
        if self.link.away.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let Connection { reader, writer, closer } = self.inner.connect()?;
        *self.link.close.lock().map_err(|_| io::ErrorKind::Other)? = Some(Arc::clone(&closer));
        let (reader, writer) = (In(reader, Arc::clone(&self.link)), Out(writer, Arc::clone(&self.link), true));
        Ok(Connection { reader: Box::new(reader), writer: Box::new(writer), closer })
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}

struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn fill(&mut self, buf: &mut [u8]) {
        buf.as_chunks_mut::<8>().0.iter_mut().for_each(|c| *c = self.next().to_le_bytes());
    }
}

/// Writes noise, always the same but for a byte of every hundredth block.
fn write_all(volume: &Volume, size: u64, change: u8) -> Result<(), Failed> {
    let (mut chance, mut queue) = (Chance(7), volume.device().open_queue()?);
    let mut buf = vec![0; 1 << 20];
    for at in (0..size).step_by(1 << 20) {
        chance.fill(&mut buf);
        let first = at / BLOCK as u64;
        for (i, block) in (first..).zip(buf.as_chunks_mut::<BLOCK>().0) {
            block[0] ^= if i % 100 == 0 { change } else { 0 };
        }
        call(&mut *queue, Request::Write { offset: at, data: &buf, fua: false })?;
    }
    Ok(())
}

fn wait(volume: &Volume, good: impl Fn(&afterimage_agent::VolumeStatus) -> bool) {
    while !good(&volume.status()) {
        thread::sleep(Duration::from_millis(2));
    }
}

fn settled(volume: &Volume) {
    wait(volume, |s| s.state == VolumeState::Live && s.seq_durable == s.seq_acked && s.connected);
}

/// A guest's latencies until it is told to stop.
fn guest(volume: &Volume, size: u64, stop: &AtomicBool) -> Result<Vec<Duration>, Failed> {
    let (mut chance, mut queue) = (Chance(99), volume.device().open_queue()?);
    let (mut buf, mut all) = (vec![0; BLOCK], Vec::new());
    while !stop.load(Ordering::Relaxed) {
        chance.fill(&mut buf);
        let offset = chance.next() % (size / BLOCK as u64) * BLOCK as u64;
        let start = Instant::now();
        call(&mut *queue, Request::Write { offset, data: &buf, fua: false })?;
        all.push(start.elapsed());
        thread::sleep(THOUGHT);
    }
    Ok(all)
}

fn print_latency(what: &str, mut all: Vec<Duration>) {
    all.sort_unstable();
    let at = |permille: usize| all.get(all.len().saturating_sub(1) * permille / 1000).map_or(0, Duration::as_micros);
    println!(
        "{what:<44} {:>7} writes  p50 {:>6}  p99 {:>6}  p99.9 {:>6}  longest {:>7} microseconds",
        all.len(),
        at(500),
        at(990),
        at(999),
        at(1000)
    );
}

fn beside(volume: &Volume, size: u64, what: &str, work: impl FnOnce() -> Result<(), Failed>) -> Result<(), Failed> {
    let stop = AtomicBool::new(false);
    let all = thread::scope(|scope| {
        let running = scope.spawn(|| guest(volume, size, &stop));
        let worked = work();
        stop.store(true, Ordering::Relaxed);
        let all = running.join().map_err(|_| "the guest has panicked")?;
        worked.and(all)
    })?;
    print_latency(what, all);
    Ok(())
}

fn leave(link: &Link, volume: &Volume, size: u64, round: u8) -> Result<(), Failed> {
    link.away.store(true, Ordering::SeqCst);
    if let Some(close) = &*link.close.lock().map_err(|_| "a lock")? {
        close();
    }
    wait(volume, |s| !s.connected);
    // What fills the ring is sent from there in any case.
    write_all(volume, size.min(RING + (32 << 20)), round - 1)?;
    wait(volume, |s| s.state == VolumeState::Dirty);
    write_all(volume, size, round)
}

fn resync(link: &Link, volume: &Volume, old: bool, with_guest: bool, (size, round): (u64, u8)) -> Result<(), Failed> {
    leave(link, volume, size, round)?;
    link.old.store(old, Ordering::SeqCst);
    let dirty = volume.status().dirty_bytes;
    link.away.store(false, Ordering::SeqCst);
    // The ring drains first; from then on it is the sync.
    wait(volume, |s| s.sync.is_some());
    let rest = volume.status().ring_used;
    let (out, back, start) = (link.out.load(Ordering::Relaxed), link.back.load(Ordering::Relaxed), Instant::now());
    let how = if old { "everything sent" } else { "compared by hash" };
    if with_guest {
        beside(volume, size, &format!("beside a resync, {how}"), || {
            settled(volume);
            Ok(())
        })?;
    } else {
        settled(volume);
    }
    println!(
        "resync of {} MiB, {how}{}: {:.2} s, {:.1} MiB to the appliance ({:.1} MiB of it were in the ring), {:.1} MiB back",
        dirty >> 20,
        if with_guest { ", beside a guest" } else { "" },
        start.elapsed().as_secs_f64(),
        (link.out.load(Ordering::Relaxed) - out) as f64 / 1048576.0,
        rest as f64 / 1048576.0,
        (link.back.load(Ordering::Relaxed) - back) as f64 / 1048576.0,
    );
    Ok(())
}

fn main() -> Result<(), Failed> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let size = args.next().map_or(Ok(1024), |m| m.parse::<u64>())? << 20;
    let dir = tempfile::tempdir_in(folder)?;
    run(dir.path(), size)
}

fn run(dir: &Path, size: u64) -> Result<(), Failed> {
    let disk = dir.join("disk");
    std::fs::File::create(&disk)?.set_len(size)?;
    let sock = dir.join("sock");
    let appliance = Appliance::start(ApplianceConfig::new(dir.join("vault"), sock.clone()))?;
    let link = Arc::new(Link::default());
    let connector = Counted { inner: unix_connector(sock), link: Arc::clone(&link) };
    let agent = Agent::new(AgentConfig {
        state_dir: dir.join("agent"),
        connector: Arc::new(connector),
        clock: Arc::new(SystemClock::new()),
    });
    let config = VolumeConfig {
        name: "disk".into(),
        path: disk,
        ring_bytes: RING,
        cache: CacheMode::Writeback,
        foreign: afterimage_agent::ForeignWrite::Ignore,
        resize: false,
        adopt: None,
    };
    let volume = agent.add_volume(config)?;
    wait(&volume, |s| s.state == VolumeState::Live);
    write_all(&volume, size, 0)?;
    settled(&volume);

    for (round, old) in [(1, true), (2, false)] {
        resync(&link, &volume, old, false, (size, round))?;
    }
    let start = Instant::now();
    let report = volume.verify(&VerifyOptions::default(), &mut |_| true)?;
    let rate = size as f64 / 1048576.0 / start.elapsed().as_secs_f64();
    println!("verify: {rate:.0} MiB/s, {} bytes differ, {} could not be compared", report.differing, report.unknown);

    let calm = Duration::from_secs(10);
    beside(&volume, size, "without anything beside it", || {
        thread::sleep(calm);
        Ok(())
    })?;
    beside(&volume, size, "beside a verification", || {
        let report = volume.verify(&VerifyOptions::default(), &mut |_| true)?;
        println!("verify beside a guest: {} bytes differ", report.differing);
        Ok(())
    })?;
    for (round, old) in [(3, true), (4, false)] {
        resync(&link, &volume, old, true, (size, round))?;
    }
    let churn = || -> Result<(), Failed> {
        let mut queue = volume.device().open_queue()?;
        let (mut chance, mut buf, start) = (Chance(3), vec![0; 64 << 10], Instant::now());
        while start.elapsed() < calm {
            chance.fill(&mut buf);
            let offset = chance.next() % (size / buf.len() as u64) * buf.len() as u64;
            call(&mut *queue, Request::Write { offset, data: &buf, fua: false })?;
            thread::sleep(THOUGHT * 5);
        }
        Ok(())
    };
    beside(&volume, size, "churn, the appliance is there", churn)?;
    beside(&volume, size, "churn, it goes away and the ring fills", || {
        link.away.store(true, Ordering::SeqCst);
        if let Some(close) = &*link.close.lock().map_err(|_| "a lock")? {
            close();
        }
        churn()
    })?;
    println!("state then: {}", volume.status().state);
    link.away.store(false, Ordering::SeqCst);
    settled(&volume);
    let report = volume.verify(&VerifyOptions::default(), &mut |_| true)?;
    println!("in the end {} bytes differ", report.differing);
    agent.stop(Duration::from_secs(30));
    appliance.stop();
    Ok(())
}
