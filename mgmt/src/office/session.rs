//! One conversation at the coordination port.

use super::{Guest, Office};
use afterimage_base::net::Stream;
use afterimage_base::world;
use afterimage_base::world::sync::Event;
use afterimage_format::coord::{self, Asked, Hello, Join, Joined, Kind, Refuse, Welcome};
use afterimage_trust::identity::{Claims, Identity, Role};
use afterimage_trust::messages::{Inbox, send};
use afterimage_trust::stream::{Tls, TlsWriter, deadline, who};
use afterimage_trust::trust::server_config;
use afterimage_trust::verify::{Anchor, Expect, Guard};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustls::server::Acceptor;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// From the first byte to the first message.
const FIRST: Duration = Duration::from_secs(10);
/// How often a slow handshake looks at the clock.
const TICK: Duration = Duration::from_millis(500);
const SEND_LIMIT: Duration = Duration::from_secs(10);
/// A member that has nothing to say says so this often.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

fn bad(e: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, e.to_string())
}

fn refuse(writer: &mut TlsWriter, why: &str) {
    // The peer may be gone already.
    let _ = send(writer, Kind::Refuse, &Refuse { text: why.to_owned() }.encode());
    writer.goodbye();
}

/// The error of a conversation, with who was at the other end.
fn of(peer: &str) -> impl Fn(io::Error) -> io::Error {
    move |e| io::Error::new(e.kind(), format!("coordination port: {peer}: {e}"))
}

pub(super) fn serve(office: &Arc<Office>, number: u64, stream: &Arc<Stream>, address: &str) -> io::Result<()> {
    let at = of(address);
    stream.set_read_timeout(Some(TICK)).map_err(&at)?;
    stream.set_write_timeout(Some(SEND_LIMIT)).map_err(&at)?;
    let until = deadline(FIRST);
    let accepted = first_message(stream, until).map_err(&at)?;
    let joins = accepted.client_hello().alpn().is_some_and(|mut list| list.any(|p| p == coord::ALPN_JOIN));
    let key = office.own().map_err(|e| at(bad(e)))?;
    let revoked = office.revoked().map_err(|e| at(bad(e)))?;
    let expect = Expect { roles: vec![Role::Agent, Role::Appliance], vault: None, foreign: false };
    let guard = Guard::new(Anchor::Known(office.authority.certificate().to_vec()), expect, revoked);
    let alpn = if joins { coord::ALPN_JOIN } else { coord::ALPN_SESSION };
    let config = server_config((!joins).then(|| Arc::clone(&guard)), key, &[alpn]).map_err(|e| at(bad(e)))?;
    let state = accepted.into_connection(config).map_err(|(e, mut alert)| {
        let _ = alert.write_all(&mut &**stream);
        at(bad(e))
    })?;
    let tls = Tls::handshake(Arc::clone(stream), state.into(), &guard, until);
    let verdict = guard.verdict();
    let peer = who(address, &verdict);
    let at = of(&peer);
    let tls = tls.map_err(&at)?;
    // A peer without any ALPN passes the handshake: it is here for nothing that we know.
    if tls.protocol().as_deref() != Some(alpn) {
        return Err(at(bad("it is here for another protocol")));
    }
    let (reader, mut writer) = tls.split();
    let mut inbox = Inbox::new(reader, coord::MAX_FIRST_BODY);
    let (kind, body) = inbox.wait(until).map_err(&at)?;
    match (joins, kind, verdict.claims) {
        (true, Kind::Join, _) => join(office, address, &body, &mut writer).map_err(&at),
        (false, Kind::Hello, Some(claims)) => {
            let hello = Hello::decode(&body).map_err(|e| at(bad(e)))?;
            attend(office, number, &hello, (address, &claims), inbox, &mut writer).map_err(&at)
        }
        _ => Err(at(bad("its first message is not one to begin with"))),
    }
}

/// Reads the first message of TLS, which says what the peer is here for.
fn first_message(stream: &Stream, until: Instant) -> io::Result<rustls::server::Accepted> {
    let mut acceptor = Acceptor::default();
    let mut raw = stream;
    loop {
        match acceptor.read_tls(&mut raw) {
            Ok(0) => return Err(bad("it left without a word of TLS")),
            Ok(_) => {}
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
                ) => {}
            Err(e) => return Err(e),
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(accepted),
            Ok(None) if Instant::now() >= until => return Err(bad("the TLS handshake took too long")),
            Ok(None) => {}
            Err((e, mut alert)) => {
                // The peer may be gone already.
                let _ = alert.write_all(&mut raw);
                return Err(bad(format!("it does not speak TLS 1.3 ({e})")));
            }
        }
    }
}

fn join(office: &Office, address: &str, body: &[u8], writer: &mut TlsWriter) -> io::Result<()> {
    let ask = Join::decode(body).map_err(bad)?;
    match office.join(address, &ask) {
        Ok(redeemed) => {
            let answer = Joined { certificate: redeemed.certificate, name: redeemed.name };
            send(writer, Kind::Joined, &answer.encode())?;
            writer.goodbye();
            Ok(())
        }
        Err(e) => {
            refuse(writer, &e.to_string());
            Err(bad(format!("it may not join: {e}")))
        }
    }
}

/// In the list of those who are connected, as long as it lives.
struct Seat<'a> {
    office: &'a Office,
    number: u64,
    identity: Identity,
    name: String,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.office.guests().remove(&self.number);
        self.office.left(&self.identity, &self.name);
        self.office.hub.left(self.number);
    }
}

fn attend(
    office: &Office,
    number: u64,
    hello: &Hello,
    (address, claims): (&str, &Claims),
    mut inbox: Inbox,
    writer: &mut TlsWriter,
) -> io::Result<()> {
    let (identity, name) = office.admit(address, claims).map_err(|e| {
        refuse(writer, &e.to_string());
        bad(e)
    })?;
    if hello.oldest > coord::VERSION || hello.newest < coord::OLDEST_VERSION || hello.oldest > hello.newest {
        let text = format!(
            "it speaks versions {} to {} of the coordination protocol, mgmt {} to {}: update the older side",
            hello.oldest,
            hello.newest,
            coord::OLDEST_VERSION,
            coord::VERSION
        );
        refuse(writer, &text);
        return Err(bad(text));
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let welcome = Welcome {
        version: hello.newest.min(coord::VERSION),
        keep_alive_ms: u32::try_from(KEEP_ALIVE.as_millis()).unwrap_or(u32::MAX),
        time: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
    };
    send(writer, Kind::Welcome, &welcome.encode())?;
    let bell = Arc::new(Event::new()?);
    let version = welcome.version;
    let (asks, waiting) = (Vec::new(), BTreeMap::new());
    let guest = Guest {
        identity,
        name: name.clone(),
        applied: hello.revocations,
        bell: Arc::clone(&bell),
        version,
        asks,
        waiting,
    };
    office.guests().insert(number, guest);
    let _seat = Seat { office, number, identity, name: name.clone() };
    office.arrived(&identity, &name, address);
    tracing::info!("{identity} '{name}' at {address}: session begins, program {}", hello.program.escape_debug());
    inbox.most = if version >= coord::REPORTS { coord::MAX_BODY } else { coord::MAX_FIRST_BODY };
    if identity.role == Role::Agent && welcome.version >= coord::GROUPS_SINCE {
        office.hub.arrived(number, identity.id, writer.clone());
        office.watch_pending(&identity.id);
    }
    let mut session = Session {
        office,
        number,
        identity,
        name,
        serial: claims.serial.clone(),
        told: hello.revocations,
        inbox,
        writer,
        bell,
    };
    let end = session.run();
    tracing::info!(
        "{} '{}' at {address}: session ended{}",
        session.identity,
        session.name,
        match &end {
            Ok(()) => String::new(),
            Err(e) => format!(": {e}"),
        }
    );
    Ok(())
}

struct Session<'a> {
    office: &'a Office,
    number: u64,
    identity: Identity,
    name: String,
    /// Of the certificate with which it came.
    serial: Vec<u8>,
    /// The list of revocations that it was sent.
    told: u64,
    inbox: Inbox,
    writer: &'a mut TlsWriter,
    bell: Arc<Event>,
}

impl Session<'_> {
    fn run(&mut self) -> io::Result<()> {
        let (mut heard, mut told) = (Instant::now(), Instant::now());
        // What is new rings; this is in case that it was missed.
        let mut look = true;
        loop {
            // Before it is looked at what it rang for.
            let rings = self.bell_rings();
            for ask in self.office.questions_for(self.number) {
                send(self.writer, Kind::Ask, &ask.encode())?;
            }
            if rings || look {
                told = Instant::now();
                self.tell()?;
            }
            world::urgent(self.identity.role == Role::Agent);
            if !self.inbox.has_more() && !self.wait(KEEP_ALIVE * 3)? && heard.elapsed() >= KEEP_ALIVE * 3 {
                return Err(bad("it was silent too long"));
            }
            if !self.inbox.is_readable()? {
                continue;
            }
            let Some((kind, body)) = self.inbox.poll()? else { continue };
            heard = Instant::now();
            look = !kind.is_of_groups() && told.elapsed() >= TICK;
            // Writes wait for what a barrier says, and a message of groups may be behind a report: nothing here waits for the catalogue.
            world::urgent(self.identity.role == Role::Agent && (kind.is_of_groups() || kind == Kind::Report));
            match kind {
                Kind::Ping => send(self.writer, Kind::Pong, &body)?,
                Kind::Pong => {}
                Kind::Renew => self.renew(&body)?,
                Kind::Applied => {
                    let number = body.as_slice().try_into().map(u64::from_le_bytes).map_err(|_| bad("no number"))?;
                    if let Some(guest) = self.office.guests().get_mut(&self.number) {
                        guest.applied = number;
                    }
                }
                Kind::Report => self.office.reported(&self.identity, &self.name, &body),
                Kind::Answer => {
                    let answer = Asked::decode(&body).map_err(bad)?;
                    self.office.clerk.answer(&self.identity, self.number, answer);
                }
                Kind::Bye => return Ok(()),
                kind if kind.is_of_groups() => self.office.hub.take(self.number, self.identity.id, kind, &body)?,
                _ => return Err(bad("it sent a message that is not its to send")),
            }
        }
    }

    /// Whether there may be something to send, since the last time.
    fn bell_rings(&self) -> bool {
        let mut fds = [PollFd::new(self.bell.fd(), PollFlags::POLLIN)];
        let rings = poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0);
        if rings {
            self.bell.clear();
        }
        rings
    }

    /// Waits for the peer or the bell; false if neither came.
    fn wait(&self, time: Duration) -> io::Result<bool> {
        let of = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let stream = self.writer.stream();
        let mut fds = [of(stream.as_fd()), of(self.bell.fd())];
        let time = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, time) {
            Ok(n) => Ok(n > 0),
            Err(nix::errno::Errno::EINTR) => Ok(true),
            Err(e) => Err(e.into()),
        }
    }

    /// Sends the list of revocations if there is a newer one; who is on it is sent away.
    fn tell(&mut self) -> io::Result<()> {
        let list = self.office.revocations();
        if list.serials.contains(&self.serial) {
            refuse(self.writer, "the certificate was revoked");
            return Err(bad("its certificate was revoked"));
        }
        // Also when the peer has a higher number, of a catalogue that was lost: it keeps that one then.
        if list.number != self.told {
            self.told = list.number;
            send(self.writer, Kind::Revocations, &list.encode())?;
        }
        Ok(())
    }

    fn renew(&mut self, request: &[u8]) -> io::Result<()> {
        match self.office.renew(&self.identity, &self.name, request) {
            Ok(certificate) => send(self.writer, Kind::Renewed, &certificate),
            Err(e) => {
                refuse(self.writer, &e.to_string());
                Err(bad(e))
            }
        }
    }
}
