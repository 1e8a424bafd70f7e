//! The network between agent and appliance: connections of two pipes each, with delays, and what goes wrong with them.
//!
//! What is written is read in order, after a delay. A connection can be cut at once on both sides, on one side while what is under way
//! still arrives (late), or go silent without a word. A peer's death ends its connections, a power cut silences them.

mod ends;
mod link;

use crate::sched::{Host, SECOND, Sim};
pub use ends::{Dial, Door};
use link::Link;
pub use link::Peer;
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read, Write};
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
        // More than was taken now, if a Hello was held back until it was whole.
        p.bytes += bytes.len();
        if p.silent {
            return Ok(n);
        }
        let at = p.under_way.back().map_or(0, |(at, _)| *at).max(now + delay);
        p.under_way.push_back((at, bytes));
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
