//! A TCP proxy that makes trouble: what lies between agent and appliance, in the hands of a test.
//!
//! Every connection goes by [`Rules`], which can be changed at any time, for all connections or for one of them. Where chance
//! decides (which bit is spoilt), it is seeded.

use crate::data::Chance;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often a connection looks at its rules.
const TICK: Duration = Duration::from_millis(10);

/// What happens to a connection, in both directions. The default is nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rules {
    /// Each piece is held back this long.
    pub delay: Duration,
    /// At most so many bytes per second and direction.
    pub rate: Option<u64>,
    /// Nothing is read any more: the sender's buffers fill up.
    pub stalled: bool,
    /// Everything is read and thrown away, also the end: the peer has vanished without a word.
    pub silent: bool,
    /// One bit in about so many bytes is turned over.
    pub corrupt_one_in: Option<u64>,
    /// Pieces of one byte.
    pub crumbs: bool,
}

#[derive(Debug)]
struct Link {
    number: u64,
    ends: [TcpStream; 2],
    /// Rules of this connection alone, which count instead of the common ones.
    own: Option<Rules>,
}

#[derive(Debug, Default)]
struct State {
    rules: Rules,
    refusing: bool,
    links: Vec<Link>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    target: Mutex<u16>,
    seen: AtomicU64,
    stop: AtomicBool,
    seed: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rules of a connection; `None` once it has been cut.
    fn rules(&self, number: u64) -> Option<Rules> {
        let state = self.lock();
        state.links.iter().find(|l| l.number == number).map(|l| l.own.unwrap_or(state.rules))
    }
}

/// A running proxy; dropping it cuts everything.
#[derive(Debug)]
pub struct Proxy {
    /// The port to connect to.
    pub port: u16,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

/// A proxy in front of a port of this machine.
///
/// # Panics
/// If it cannot listen.
#[must_use]
pub fn proxy(target: u16, seed: u64) -> Proxy {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind a proxy");
    let port = listener.local_addr().expect("the proxy's address").port();
    let shared = Arc::new(Shared {
        state: Mutex::default(),
        target: Mutex::new(target),
        seen: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        seed,
    });
    let accepting = Arc::clone(&shared);
    let acceptor = std::thread::spawn(move || accept(&listener, &accepting));
    Proxy { port, shared, acceptor: Some(acceptor) }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for near in listener.incoming().flatten() {
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        let target = *shared.target.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.lock().refusing {
            continue;
        }
        let Ok(far) = TcpStream::connect(("127.0.0.1", target)) else { continue };
        let number = shared.seen.fetch_add(1, Ordering::AcqRel);
        let (Ok(a), Ok(b)) = (near.try_clone(), far.try_clone()) else { continue };
        // What was sent as a piece arrives as one, and not when the one before it has been acknowledged, up to 40 ms later.
        let _ = near.set_nodelay(true).and_then(|()| far.set_nodelay(true));
        shared.lock().links.push(Link { number, ends: [a, b], own: None });
        for (from, to, way) in [(near.try_clone(), far.try_clone(), 0), (far.try_clone(), near.try_clone(), 1)] {
            let (Ok(from), Ok(to)) = (from, to) else { continue };
            let shared = Arc::clone(shared);
            std::thread::spawn(move || {
                let mut pump = Pump { number, from, to, chance: Chance::new(shared.seed ^ (number * 2 + way)) };
                pump.run(&shared);
                // One end is gone: so is the other, unless nobody is to know.
                if shared.rules(number).is_some_and(|r| !r.silent) {
                    cut(&shared, |n| n == number);
                }
            });
        }
    }
}

fn cut(shared: &Shared, which: impl Fn(u64) -> bool) {
    shared.lock().links.retain(|link| {
        if which(link.number) {
            for end in &link.ends {
                let _ = end.shutdown(Shutdown::Both);
            }
        }
        !which(link.number)
    });
}

/// One direction of one connection.
struct Pump {
    number: u64,
    from: TcpStream,
    to: TcpStream,
    chance: Chance,
}

impl Pump {
    fn run(&mut self, shared: &Shared) {
        if self.from.set_read_timeout(Some(TICK)).is_err() {
            return;
        }
        let mut buf = vec![0; 64 << 10];
        while let Some(rules) = shared.rules(self.number) {
            if rules.stalled {
                std::thread::sleep(TICK);
                continue;
            }
            let most = if rules.crumbs { 1 } else { rules.rate.map_or(buf.len(), |r| piece(r, buf.len())) };
            let n = match self.from.read(&mut buf[..most]) {
                Ok(0) if rules.silent => return std::thread::sleep(TICK),
                Ok(0) => return,
                Ok(n) => n,
                Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => continue,
                Err(_) => return,
            };
            // The rules may have changed while it waited for something to come.
            let Some(rules) = self.rules_that_let_pass(shared) else { return };
            if !rules.delay.is_zero() {
                std::thread::sleep(rules.delay);
            }
            if let Some(rate) = rules.rate {
                std::thread::sleep(Duration::from_secs(n as u64) / u32::try_from(rate.max(1)).unwrap_or(u32::MAX));
            }
            self.spoil(rules, &mut buf[..n]);
            if !shared.rules(self.number).is_some_and(|r| r.silent) && self.to.write_all(&buf[..n]).is_err() {
                return;
            }
        }
    }

    /// Waits until the connection is not stalled; `None` once it has been cut.
    fn rules_that_let_pass(&self, shared: &Shared) -> Option<Rules> {
        loop {
            let rules = shared.rules(self.number)?;
            if !rules.stalled {
                return Some(rules);
            }
            std::thread::sleep(TICK);
        }
    }

    fn spoil(&mut self, rules: Rules, bytes: &mut [u8]) {
        let Some(one_in) = rules.corrupt_one_in else { return };
        for byte in bytes {
            if self.chance.below(one_in) == 0 {
                *byte ^= 1 << self.chance.below(8);
            }
        }
    }
}

/// A fiftieth of a second's worth.
fn piece(rate: u64, most: usize) -> usize {
    usize::try_from(rate / 50).unwrap_or(most).clamp(1, most)
}

impl Proxy {
    /// Changes the rules of all connections, also of those to come.
    pub fn change(&self, change: impl FnOnce(&mut Rules)) {
        change(&mut self.shared.lock().rules);
    }

    /// Gives the connections that are there now rules of their own; those to come are not concerned.
    pub fn change_present(&self, change: impl Fn(&mut Rules)) {
        let mut state = self.shared.lock();
        let common = state.rules;
        for link in &mut state.links {
            change(link.own.get_or_insert(common));
        }
    }

    /// The same for the oldest connection alone.
    ///
    /// # Panics
    /// If there is none.
    pub fn change_oldest(&self, change: impl FnOnce(&mut Rules)) {
        let mut state = self.shared.lock();
        let common = state.rules;
        let link = state.links.iter_mut().min_by_key(|l| l.number).expect("a connection");
        change(link.own.get_or_insert(common));
    }

    /// Closes new connections at once, or no more.
    pub fn refuse(&self, refuse: bool) {
        self.shared.lock().refusing = refuse;
    }

    /// Cuts all connections that are there.
    pub fn cut(&self) {
        cut(&self.shared, |_| true);
    }

    /// Connections so far.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.shared.seen.load(Ordering::Acquire)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.cut();
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo() -> u16 {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut buf = [0; 1024];
                    while let Ok(n @ 1..) = stream.read(&mut buf) {
                        if stream.write_all(&buf[..n]).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        port
    }

    fn ask(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
        stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        stream.write_all(bytes)?;
        let mut back = vec![0; bytes.len()];
        stream.read_exact(&mut back)?;
        Ok(back)
    }

    #[test]
    fn every_trouble_is_made() {
        let proxy = proxy(echo(), 1);
        let connect = || TcpStream::connect(("127.0.0.1", proxy.port)).unwrap();
        let mut plain = connect();
        assert_eq!(ask(&mut plain, b"hello").unwrap(), b"hello");
        proxy.change_oldest(|r| r.stalled = true);
        assert!(ask(&mut plain, b"x").is_err());
        let mut other = connect();
        assert_eq!(ask(&mut other, b"other").unwrap(), b"other");
        proxy.change(|r| r.corrupt_one_in = Some(1));
        assert_ne!(ask(&mut other, b"other").unwrap(), b"other");
        proxy.change(|r| *r = Rules { crumbs: true, ..Rules::default() });
        assert_eq!(ask(&mut other, b"crumbs").unwrap(), b"crumbs");
        proxy.change_present(|r| r.silent = true);
        let silent = ask(&mut other, b"x").unwrap_err();
        assert!(matches!(silent.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut), "{silent}");
        proxy.change(|r| *r = Rules::default());
        let mut late = connect();
        assert_eq!(ask(&mut late, b"late").unwrap(), b"late");
        proxy.cut();
        assert!(ask(&mut late, b"x").is_err());
        proxy.refuse(true);
        assert!(ask(&mut connect(), b"x").is_err());
        assert_eq!(proxy.seen(), 3);
    }
}
