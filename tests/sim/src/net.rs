//! The network between agent and appliance: connections of two pipes each, with delays, and what goes wrong with them.
//!
//! What is written is read in order, after a delay. A connection can be cut at once on both sides, on one side while what is under way
//! still arrives (late), or go silent without a word. A peer's death ends its connections, a power cut silences them.

use crate::model::Tap;
use crate::sched::{Host, MILLI, SECOND, Sim};
use afterimage_agent::connect::{Connection as AgentConnection, Connector, READ_TICK, SEND_TIMEOUT, VectoredWrite};
use afterimage_appliance::ingest::listen::Acceptor;
use afterimage_appliance::ingest::session::{Connection, TICK, WRITE_LIMIT};
use afterimage_format::wire::{HEADER_LEN, Header, MessageType, OLDEST_VERSION, VERSION};
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::panic::Location;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes under way on a pipe before its writer waits.
const WINDOW: usize = 256 << 10;

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Both sides hear of it, and what was under way is lost.
    Both,
    /// The agent hears of it; what was under way arrives late, and then nothing.
    Late,
    /// Nobody hears anything any more.
    Silent,
}

/// What the other side of new connections speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// What this code speaks.
    Same,
    /// Only the oldest version.
    Old,
    /// Only versions that nobody knows.
    New,
}

impl Peer {
    /// Makes a Hello that of such a peer.
    fn rewrite(self, message: &mut [u8]) {
        let Some((_, body)) = message.split_at_mut_checked(HEADER_LEN) else { return };
        let (oldest, newest) = match self {
            Peer::Same => return,
            Peer::Old => (OLDEST_VERSION, OLDEST_VERSION),
            Peer::New => (VERSION + 97, VERSION + 98),
        };
        body[..2].copy_from_slice(&oldest.to_le_bytes());
        body[2..4].copy_from_slice(&newest.to_le_bytes());
        let header = Header::of(MessageType::Hello, body).encode();
        message[..HEADER_LEN].copy_from_slice(&header);
    }
}

#[derive(Default)]
struct Pipe {
    /// When it arrives, and what.
    under_way: VecDeque<(u64, Vec<u8>)>,
    taken: usize,
    bytes: usize,
    /// No more comes: the reader finds the end behind what is under way.
    ended: bool,
    /// The writer finds a broken pipe, the reader a reset, at once.
    reset: bool,
    /// What is written is lost.
    silent: bool,
    /// The reader's own side was shut.
    shut: bool,
}

struct Link {
    /// To the appliance, and back.
    pipes: [Mutex<Pipe>; 2],
    tap: Mutex<Tap>,
    lives: [u64; 2],
    number: u64,
    peer: Peer,
    /// The beginning of a Hello that is to be another one.
    hello: Mutex<Option<Vec<u8>>>,
}

impl Link {
    /// What goes on the wire in place of `data`, which the agent sends.
    fn translate(&self, data: &[u8]) -> Vec<u8> {
        let mut held = lock(&self.hello);
        let Some(mut hello) = held.take() else { return data.to_vec() };
        hello.extend_from_slice(data);
        let header = hello.first_chunk().and_then(|h| Header::decode(h).ok());
        let len = header.map_or(usize::MAX, |h| HEADER_LEN + h.body_len);
        if hello.len() < len {
            *held = Some(hello);
            return Vec::new();
        }
        self.peer.rewrite(&mut hello[..len]);
        hello
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What goes wrong now.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// Least and most delay in nanoseconds.
    pub delay: (u64, u64),
    /// Bytes per second.
    pub rate: u64,
    /// No new connections: refused at once, or silence until a timeout.
    pub away: Option<bool>,
    /// In so many of a thousand writes a byte is flipped.
    pub garbage: u64,
}

impl Weather {
    /// A good network.
    pub const FAIR: Weather = Weather { delay: (50_000, 500_000), rate: 1 << 30, away: None, garbage: 0 };
}

struct Inner {
    links: Vec<Arc<Link>>,
    waiting: VecDeque<Arc<Link>>,
    /// Life of the appliance that listens.
    listening: Option<u64>,
    weather: Weather,
    peer: Peer,
    number: u64,
}

/// The network.
pub struct Net {
    sim: &'static Sim,
    inner: Mutex<Inner>,
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the simulated network")
    }
}

const TO: usize = 0;
const BACK: usize = 1;

impl Net {
    /// A network without connections.
    #[must_use]
    pub fn new(sim: &'static Sim) -> Arc<Net> {
        let inner = Inner {
            links: Vec::new(),
            waiting: VecDeque::new(),
            listening: None,
            weather: Weather::FAIR,
            peer: Peer::Same,
            number: 0,
        };
        Arc::new(Net { sim, inner: Mutex::new(inner) })
    }

    fn key(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// What goes wrong from now on.
    pub fn set(&self, weather: Weather) {
        lock(&self.inner).weather = weather;
    }

    /// What the other side of new connections speaks from now on.
    pub fn set_peer(&self, peer: Peer) {
        lock(&self.inner).peer = peer;
    }

    /// Ends every connection.
    pub fn cut(&self, how: Cut) {
        let links = lock(&self.inner).links.clone();
        for link in links {
            self.cut_one(&link, how);
        }
    }

    fn cut_one(&self, link: &Link, how: Cut) {
        let late = {
            let mut s = self.sim.state();
            s.rng.between(0, 20) * SECOND + s.rng.below(SECOND)
        };
        for (i, pipe) in link.pipes.iter().enumerate() {
            let mut p = lock(pipe);
            match how {
                Cut::Both => p.reset = true,
                Cut::Silent => p.silent = true,
                Cut::Late if i == BACK => p.reset = true,
                Cut::Late => {
                    p.silent = true;
                    p.under_way.iter_mut().for_each(|(at, _)| *at += late);
                }
            }
            drop(p);
            self.sim.notify(std::ptr::from_ref(pipe).addr(), true);
        }
    }

    /// A host's process is gone: its connections end, or (without power) are silent.
    pub fn died(&self, host: Host, silent: bool) {
        let links = lock(&self.inner).links.clone();
        let life = self.sim.state().hosts[host as usize].life;
        let side = host as usize - 1;
        for link in links.iter().filter(|l| l.lives[side] < life) {
            if silent {
                self.cut_one(link, Cut::Silent);
            } else {
                let (out, back) = (&link.pipes[side], &link.pipes[1 - side]);
                lock(out).ended = true;
                lock(back).reset = true;
                for pipe in [out, back] {
                    self.sim.notify(std::ptr::from_ref(pipe).addr(), true);
                }
            }
        }
        let mut inner = lock(&self.inner);
        inner.links.retain(|l| l.lives[side] >= life);
        if host == Host::Appliance {
            inner.listening = None;
            inner.waiting.clear();
        }
    }

    fn reader(self: &Arc<Self>, link: &Arc<Link>, pipe: usize, tick: Duration) -> End {
        End { net: Arc::clone(self), link: Arc::clone(link), pipe, tick }
    }
}

/// One end of a pipe.
struct End {
    net: Arc<Net>,
    link: Arc<Link>,
    pipe: usize,
    tick: Duration,
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

impl End {
    fn pipe(&self) -> &Mutex<Pipe> {
        &self.link.pipes[self.pipe]
    }

    fn key(&self) -> usize {
        std::ptr::from_ref(self.pipe()).addr()
    }

    /// Waits until something can be read, or for `limit`.
    #[track_caller]
    fn ready(&self, limit: Duration) -> bool {
        let sim = self.net.sim;
        let until = sim.state().now + nanos(limit);
        loop {
            let now = sim.state().now;
            let p = lock(self.pipe());
            let next = p.under_way.front().map(|(at, _)| *at);
            if p.reset || p.shut || next.is_some_and(|at| at <= now) || (p.ended && next.is_none()) {
                return true;
            }
            drop(p);
            if now >= until {
                return false;
            }
            let wait = next.map_or(until, |at| at.min(until)) - now;
            sim.wait(self.key(), Some(wait.max(1)), Location::caller());
        }
    }
}

impl Read for End {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if !self.ready(self.tick) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let (part, whole) = {
            let mut s = self.net.sim.state();
            (s.rng.index(buf.len().max(1)) + 1, s.rng.below(4) != 0)
        };
        let mut p = lock(self.pipe());
        if p.reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if p.shut {
            return Ok(0);
        }
        let taken = p.taken;
        let Some((_, front)) = p.under_way.front() else { return Ok(0) };
        let rest = &front[taken..];
        let n = rest.len().min(if whole { buf.len() } else { part.min(buf.len()) });
        buf[..n].copy_from_slice(&rest[..n]);
        if n == rest.len() {
            p.under_way.pop_front();
            p.taken = 0;
        } else {
            p.taken += n;
        }
        p.bytes -= n;
        drop(p);
        self.net.sim.notify(self.key(), true);
        Ok(n)
    }
}

impl End {
    #[track_caller]
    fn send(&mut self, data: &[u8]) -> io::Result<usize> {
        let sim = self.net.sim;
        let until = sim.state().now + nanos(self.tick);
        loop {
            let p = lock(self.pipe());
            if p.reset || p.ended {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            if p.bytes < WINDOW {
                break;
            }
            drop(p);
            let now = sim.state().now;
            if now >= until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            sim.wait(self.key(), Some(until - now), Location::caller());
        }
        let weather = lock(&self.net.inner).weather;
        let mut s = sim.state();
        let n = if s.rng.below(4) == 0 { 1 + s.rng.index(data.len()) } else { data.len() };
        let delay = s.rng.between(weather.delay.0, weather.delay.1) + n as u64 * SECOND / weather.rate;
        drop(s);
        lock(&self.link.tap).wrote(self.pipe == TO, &data[..n]);
        let mut s = sim.state();
        let mut bytes = if self.pipe == TO { self.link.translate(&data[..n]) } else { data[..n].to_vec() };
        if bytes.is_empty() {
            return Ok(n);
        }
        if s.rng.permille(weather.garbage) {
            let at = s.rng.index(bytes.len());
            bytes[at] ^= 1 << s.rng.below(8);
            s.count("garbage on the wire");
        }
        let now = s.now;
        s.note(b'>', n as u64);
        drop(s);
        let mut p = lock(self.pipe());
        if p.silent {
            p.bytes += n;
            return Ok(n);
        }
        let at = p.under_way.back().map_or(0, |(at, _)| *at).max(now + delay);
        p.under_way.push_back((at, bytes));
        p.bytes += n;
        drop(p);
        sim.notify(self.key(), true);
        Ok(n)
    }
}

impl Write for End {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.send(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Sender(End);

impl VectoredWrite for Sender {
    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut all = Vec::with_capacity(bufs.iter().map(|b| b.len()).sum());
        bufs.iter().for_each(|b| all.extend_from_slice(b));
        self.0.send(&all)
    }
}

/// The agent's way to the appliance.
pub struct Dial {
    /// The network.
    pub net: Arc<Net>,
    /// What is seen on the wire.
    pub tap: Arc<dyn Fn() -> Tap + Send + Sync>,
}

impl Connector for Dial {
    fn connect(&self) -> io::Result<AgentConnection> {
        let (net, sim) = (&self.net, self.net.sim);
        sim.point("connect");
        let weather = lock(&net.inner).weather;
        if weather.away == Some(false) {
            sim.wait(usize::MAX, Some(5 * SECOND), Location::caller());
            return Err(io::ErrorKind::TimedOut.into());
        }
        sim.wait(usize::MAX, Some(weather.delay.1 + MILLI), Location::caller());
        let lives = {
            let s = sim.state();
            [s.hosts[Host::Agent as usize].life, s.hosts[Host::Appliance as usize].life]
        };
        let mut inner = lock(&net.inner);
        if weather.away.is_some() || inner.listening != Some(lives[1]) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        inner.number += 1;
        let number = inner.number;
        let mut tap = (self.tap)();
        let peer = inner.peer;
        (tap.number, tap.old) = (number, peer == Peer::Old);
        let link = Arc::new(Link {
            pipes: Default::default(),
            tap: Mutex::new(tap),
            lives,
            number,
            peer,
            hello: Mutex::new((peer != Peer::Same).then(Vec::new)),
        });
        inner.links.push(Arc::clone(&link));
        inner.waiting.push_back(Arc::clone(&link));
        drop(inner);
        sim.notify(net.key(), true);
        let closing = Arc::clone(&link);
        let (reader, writer) = (net.reader(&link, BACK, READ_TICK), Sender(net.reader(&link, TO, SEND_TIMEOUT)));
        let closer = move || {
            let sim = crate::sim();
            for (i, pipe) in closing.pipes.iter().enumerate() {
                let mut p = lock(pipe);
                if i == TO {
                    p.ended = true
                } else {
                    p.shut = true
                }
                drop(p);
                sim.notify(std::ptr::from_ref(pipe).addr(), true);
            }
        };
        Ok(AgentConnection { reader: Box::new(reader), writer: Box::new(writer), closer: Arc::new(closer) })
    }

    fn describe(&self) -> String {
        "the simulated appliance".into()
    }
}

/// Where an appliance hears of agents.
pub struct Door(pub Arc<Net>);

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Door {
    /// The appliance listens from now on.
    #[must_use]
    pub fn open(net: &Arc<Net>) -> Door {
        let life = net.sim.state().hosts[Host::Appliance as usize].life;
        lock(&net.inner).listening = Some(life);
        Door(Arc::clone(net))
    }
}

impl Acceptor for Door {
    fn accept(&self) -> io::Result<Option<Connection>> {
        let net = &self.0;
        let link = loop {
            let mut inner = lock(&net.inner);
            if inner.listening.is_none() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            if let Some(link) = inner.waiting.pop_front() {
                break link;
            }
            drop(inner);
            net.sim.wait(net.key(), None, Location::caller());
        };
        let poller = net.reader(&link, TO, TICK);
        let stopping = Arc::clone(&link);
        let interrupt = move || {
            lock(&stopping.pipes[TO]).shut = true;
            crate::sim().notify(std::ptr::from_ref(&stopping.pipes[TO]).addr(), true);
        };
        Ok(Some(Connection {
            peer: format!("connection {}", link.number),
            address: None,
            reader: Box::new(net.reader(&link, TO, TICK)),
            writer: Box::new(Closing(net.reader(&link, BACK, WRITE_LIMIT))),
            readable: Box::new(move |limit| poller.ready(limit)),
            interrupt: Arc::new(interrupt),
        }))
    }

    fn close(&self) {
        lock(&self.0.inner).listening = None;
        self.0.sim.notify(self.0.key(), true);
    }
}

/// The appliance's sending side: when it is dropped, the connection is closed.
struct Closing(End);

impl Write for Closing {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.send(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        for (i, pipe) in self.0.link.pipes.iter().enumerate() {
            let mut p = lock(pipe);
            if i == BACK {
                p.ended = true
            } else {
                p.reset = true
            }
            drop(p);
            self.0.net.sim.notify(std::ptr::from_ref(pipe).addr(), true);
        }
    }
}
