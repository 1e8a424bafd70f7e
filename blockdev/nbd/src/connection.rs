//! One connection past its handshake, on one thread: receive what is there, submit all of it, collect what has
//! finished, send all replies with one call, and wait only when there is nothing to do.

use crate::command::Refusal;
use crate::core::Core;
use crate::input::Input;
use crate::limits::{Limits, MAX_DROPPED_PAYLOAD, SHRINK_AFTER};
use crate::outbox::SLICES;
use crate::proto::{Header, errno};
use crate::reply::Id;
use crate::server::Counters;
use crate::socket::{End, Received, Socket, wait_on};
use crate::stop::Stop;
use nix::poll::{PollFd, PollFlags};
use std::io::IoSlice;
use std::os::fd::AsFd;
use std::thread;
use std::time::Instant;

/// See the module.
pub(crate) struct Connection<'a> {
    socket: &'a Socket,
    limits: &'a Limits,
    stop: &'a Stop,
    counters: &'a Counters,
    core: Core,
    input: Input,
    /// A payload that is received only to be refused.
    dropping: Option<Dropping>,
    blocked: Blocked,
    /// The client sends no more requests.
    ended: bool,
    /// It has said so.
    left: bool,
    /// The last receive left nothing in the socket.
    drained: bool,
    /// The processor was offered to others since the last wait.
    yielded: bool,
    receiving: Progress,
    sending: Progress,
    sent: u64,
}

/// Why no further request is taken right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blocked {
    /// The next request has not arrived whole.
    Input,
    /// The next request must wait until others are answered.
    Room,
}

struct Dropping {
    left: u64,
    id: Id,
}

/// What the receive buffer begins with.
enum Next {
    /// Not yet a whole request.
    Short,
    /// (Part of) a payload that was not wanted, now gone.
    Dropped,
    /// A request: its header, the header's length, the length of all of it.
    Whole(Header, usize, usize),
}

/// Since when a count of bytes has not moved; the clock is looked at only when there is nothing else to do.
#[derive(Default)]
struct Progress {
    mark: Option<(u64, Instant)>,
}

impl Progress {
    fn since(&mut self, count: u64, now: Instant) -> Instant {
        match self.mark {
            Some((c, since)) if c == count => since,
            _ => {
                self.mark = Some((count, now));
                now
            }
        }
    }
}

impl<'a> Connection<'a> {
    pub(crate) fn new(
        socket: &'a Socket,
        core: Core,
        limits: &'a Limits,
        stop: &'a Stop,
        counters: &'a Counters,
    ) -> Self {
        Self {
            socket,
            limits,
            stop,
            counters,
            core,
            input: Input::new(),
            dropping: None,
            blocked: Blocked::Input,
            ended: false,
            left: false,
            drained: false,
            yielded: false,
            receiving: Progress::default(),
            sending: Progress::default(),
            sent: 0,
        }
    }

    /// Serves until the client leaves or must leave. Requests that the device has are waited for in any case,
    /// when the queue is dropped.
    pub(crate) fn run(&mut self) -> Result<(), End> {
        loop {
            self.receive()?;
            if self.take_requests()? {
                self.core.queue().kick();
            }
            let reaped = self.core.reap() > 0;
            let sent = self.send();
            self.counters.add(&mut self.core.counts);
            if self.is_finished() {
                return Ok(());
            }
            let go_on = match self.blocked {
                Blocked::Input => !self.drained,
                Blocked::Room => reaped || sent,
            };
            if self.is_closing() || !go_on && !self.yield_for_the_rest() {
                self.wait()?;
            }
        }
    }

    /// Whether the client said goodbye, and did not just vanish.
    pub(crate) const fn was_left(&self) -> bool {
        self.left
    }

    /// When a request has arrived in part, lets others run once before going to sleep: libraries send header and
    /// payload apart, and the rest mostly comes before a sleep and a wake-up are paid for.
    fn yield_for_the_rest(&mut self) -> bool {
        if self.yielded || self.blocked != Blocked::Input || self.input.is_empty() {
            return false;
        }
        thread::yield_now();
        (self.yielded, self.drained) = (true, false);
        true
    }

    /// No more requests are wanted: the client has ended, the server stops, or the device goes away.
    fn is_closing(&self) -> bool {
        self.ended || self.core.is_shut_down() || self.stop.deadline().is_some()
    }

    fn is_finished(&self) -> bool {
        self.is_closing() && self.core.in_flight() == 0 && self.core.out.is_empty() && !self.socket.owes()
    }

    fn wants_input(&self) -> bool {
        !self.is_closing() && self.blocked == Blocked::Input
    }

    fn receive(&mut self) -> Result<(), End> {
        if !self.wants_input() || self.drained {
            return Ok(());
        }
        let room = self.input.room();
        let space = room.len();
        match self.socket.recv(room)? {
            Received::Bytes(n) => {
                self.drained = n < space;
                self.input.received(n);
            }
            Received::Nothing => self.drained = true,
            Received::Eof => self.ended = true,
        }
        Ok(())
    }

    /// Starts all requests that have arrived whole and have room; says whether there was one.
    fn take_requests(&mut self) -> Result<bool, End> {
        let mut taken = false;
        while !self.is_closing() {
            self.blocked = Blocked::Room;
            if !self.core.has_room() {
                break;
            }
            match self.next_request()? {
                Next::Dropped => {}
                Next::Short => {
                    self.blocked = Blocked::Input;
                    break;
                }
                Next::Whole(h, head, total) if self.core.has_room_for(&h) => {
                    self.left |= !self.core.execute(&h, &self.input.bytes()[head..total]);
                    self.ended |= self.left;
                    self.input.consume(total);
                    taken = true;
                }
                Next::Whole(..) => break,
            }
        }
        Ok(taken)
    }

    /// Looks at the first request in the receive buffer.
    fn next_request(&mut self) -> Result<Next, End> {
        if self.dropping.is_some() {
            return Ok(self.drop_payload());
        }
        let (mode, bytes) = (self.core.terms.mode, self.input.bytes());
        let head = mode.header_len();
        let Some(header) = bytes.get(..head) else {
            self.input.expect(head);
            return Ok(Next::Short);
        };
        let h = Header::parse(mode, header).ok_or(End::Broken("a request does not begin with the magic number"))?;
        let payload = h.payload_len(mode);
        if payload > MAX_DROPPED_PAYLOAD {
            return Err(End::Broken("a payload of absurd length is announced"));
        }
        if payload > self.core.terms.max_io.into() {
            self.input.consume(head);
            self.dropping = Some(Dropping { left: payload, id: Id { cookie: h.cookie, offset: h.offset } });
            return Ok(Next::Dropped);
        }
        let total = usize::try_from(payload).map_or(usize::MAX, |len| head + len);
        if bytes.len() < total {
            self.input.expect(total);
            return Ok(Next::Short);
        }
        Ok(Next::Whole(h, head, total))
    }

    /// Drops what has arrived of a payload that is not wanted, and refuses its request at the end of it.
    fn drop_payload(&mut self) -> Next {
        let Some(dropping) = &mut self.dropping else {
            return Next::Dropped;
        };
        let n = self.input.bytes().len().min(usize::try_from(dropping.left).unwrap_or(usize::MAX));
        self.input.consume(n);
        dropping.left -= n as u64;
        if dropping.left > 0 {
            return Next::Short;
        }
        self.core.refuse(dropping.id, Refusal(errno::EINVAL, "longer than the largest request of the export"));
        self.dropping = None;
        Next::Dropped
    }

    /// Sends what the socket takes; says whether that was anything. A client that is gone is told nothing, but what
    /// it has sent is still done.
    fn send(&mut self) -> bool {
        let mut progress = false;
        if let Err(e) = self.socket.flush() {
            tracing::debug!("replies cannot be delivered: {e}");
            self.core.deafen();
            self.ended = true;
        }
        while !self.core.out.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let used = self.core.out.slices(&mut slices);
            match self.socket.send(&slices[..used]) {
                Ok(0) => break,
                Ok(n) => {
                    self.core.sent(n);
                    self.sent += n as u64;
                    progress = true;
                }
                Err(e) => {
                    tracing::debug!("replies cannot be delivered: {e}");
                    self.core.deafen();
                    return true;
                }
            }
        }
        progress
    }

    /// Waits for the socket, the device, the stop, or the time at which patience ends.
    fn wait(&mut self) -> Result<(), End> {
        self.yielded = false;
        if self.wants_input() && self.socket.holds_more() {
            self.drained = false;
            return Ok(());
        }
        let owes = self.socket.owes();
        let (deadline, patience) = self.deadline(Instant::now());
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLIN, self.wants_input());
        events.set(PollFlags::POLLOUT, owes || !self.core.out.is_empty());
        let (stopping, busy) = (self.stop.deadline().is_some(), self.core.in_flight() > 0);
        let stop = PollFd::new(self.stop.as_fd(), PollFlags::POLLIN);
        let (mut fds, mut n) = ([stop.clone(), stop.clone(), stop], 0);
        let mut add = |fd| {
            fds[n] = fd;
            n += 1;
        };
        if !events.is_empty() {
            add(PollFd::new(self.socket.as_fd(), events));
        }
        if !stopping {
            add(PollFd::new(self.stop.as_fd(), PollFlags::POLLIN));
        }
        if busy {
            let fd = self.core.queue().wake_fd();
            add(PollFd::new(
                fd.ok_or(End::Device("it finishes requests later and has no wake_fd"))?,
                PollFlags::POLLIN,
            ));
        }
        let woken = wait_on(&mut fds[..n], deadline)?;
        let of_socket = if events.is_empty() { PollFlags::empty() } else { fds[0].revents().unwrap_or(events) };
        let readable = of_socket.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR);
        self.drained = !readable && !self.socket.holds_more();
        if woken { Ok(()) } else { self.out_of_patience(patience) }
    }

    fn out_of_patience(&mut self, patience: Patience) -> Result<(), End> {
        match patience {
            Patience::Forever => Ok(()),
            Patience::Shrink => {
                self.input.shrink();
                self.core.pool.shrink();
                Ok(())
            }
            Patience::Payload => Err(End::Silent("in the middle of a request")),
            Patience::Replies => Err(End::Silent("while replies were waiting for it")),
            Patience::Stop => Err(End::Stopped),
        }
    }

    /// The nearest time at which something must happen, and what.
    fn deadline(&mut self, now: Instant) -> (Option<Instant>, Patience) {
        if let Some(deadline) = self.stop.deadline() {
            return (Some(deadline), Patience::Stop);
        }
        let mut nearest = (None, Patience::Forever);
        let mut offer = |at: Option<Instant>, why| {
            if at.is_some() && (nearest.0.is_none() || at < nearest.0) {
                nearest = (at, why);
            }
        };
        if self.wants_input() && (!self.input.is_empty() || self.dropping.is_some()) {
            let since = self.receiving.since(self.input.total(), now);
            offer(since.checked_add(self.limits.payload_time), Patience::Payload);
        } else {
            // The client is not to blame for a silence while its requests are not taken.
            self.receiving.mark = None;
        }
        if !self.core.out.is_empty() || self.socket.owes() {
            let since = self.sending.since(self.sent, now);
            offer(since.checked_add(self.limits.reply_time), Patience::Replies);
        }
        if self.input.is_fat() || self.core.pool.is_fat() {
            offer(now.checked_add(SHRINK_AFTER), Patience::Shrink);
        }
        nearest
    }
}

/// What happens when a wait ends without anything to do.
#[derive(Clone, Copy)]
enum Patience {
    Forever,
    Shrink,
    Payload,
    Replies,
    Stop,
}
