//! The network as agent and appliance see it.

use super::{BACK, End, Link, Net, Peer, TO, lock};
use crate::model::Tap;
use crate::sched::{Host, MILLI, SECOND};
use afterimage_agent::connect::{Connection as AgentConnection, Connector, READ_TICK, SEND_TIMEOUT, VectoredWrite};
use afterimage_appliance::ingest::listen::Acceptor;
use afterimage_appliance::ingest::session::{Connection, TICK, WRITE_LIMIT};
use std::fmt;
use std::io::{self, IoSlice, Write};
use std::panic::Location;
use std::sync::{Arc, Mutex};

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
            machine: None,
            greet: None,
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
