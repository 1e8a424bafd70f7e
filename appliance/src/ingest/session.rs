//! A session: handshake, receiving, keep-alive.

use super::batch::{Batch, Cursor};
use super::compare::{Asked, Comparer, QUEUE};
use super::failback::{AgentDisk, Reach};
use super::progress::Progress;
use super::secure::Greet;
use super::stages::{Received, Stages, UnderWay, lock};
use super::volume::{SessionTurn, Volume};
use super::{SessionError, Shared};
use crate::fence::{Standing, is_tail};
use afterimage_base::world;
use afterimage_base::world::channel::{Receiver, Sender, bounded};
use afterimage_base::world::sync::LongMutex;
use afterimage_base::world::thread;
use afterimage_format::compare::{HashQuery, Hashes, MAX_HASHES_BODY};
use afterimage_format::fence::Fence;
use afterimage_format::record::MAX_VOLUME;
use afterimage_format::wire::{
    Ack, FAILBACK_VERSION, Fill, HASH_VERSION, HEADER_LEN, Header, Hello, MAX_BODY, MessageType, OLDEST_VERSION, Quiet,
    Refuse, VERSION, Welcome,
};
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a peer may take for its whole Hello, however steadily it sends.
pub(super) const HELLO_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 10 });
/// After this long without a message the peer is asked for a sign of life.
const PING_AFTER: Duration = Duration::from_secs(10);
/// A peer that is silent for this long, or stalls in a message, is gone.
const SILENCE_LIMIT: Duration = Duration::from_secs(40);
/// How long a message may stay unsent because the peer does not read.
pub const WRITE_LIMIT: Duration = Duration::from_secs(20);
/// Reads give up this often to look at the clock.
pub const TICK: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 2 });
/// While the next stage is busy, this long is waited for more to join a batch.
const GATHER: Duration = Duration::from_millis(2);
/// Largest body of a batch: what one message may have.
const MAX_BATCH: usize = MAX_BODY;

/// A connection, whatever carries it. Reads give up after [`TICK`], writes after [`WRITE_LIMIT`].
pub struct Connection {
    /// Who is at the other end, for the log.
    pub peer: String,
    /// Its address, if it has one; what is open is limited for each.
    pub address: Option<std::net::IpAddr>,
    /// The receiving side.
    pub reader: Box<dyn Read + Send>,
    /// The sending side.
    pub writer: Box<dyn Write + Send>,
    /// Waits until there is something to read, or so long; tells which.
    pub readable: Box<dyn Fn(Duration) -> bool + Send>,
    /// Ends the receiving side, also while it is being read.
    pub interrupt: Arc<dyn Fn() + Send + Sync>,
    /// Whose disks it may bring: the machine that its certificate names. Without one, any.
    pub machine: Option<Machine>,
    /// What has to come before anything else.
    pub greet: Option<Greet>,
}

impl Connection {
    /// Asks who the peer is, where that has to be asked.
    ///
    /// # Errors
    /// Who it is, as far as it said, and why it is refused.
    pub(super) fn greeted(mut self) -> Result<Connection, String> {
        match self.greet.take() {
            Some(greet) => greet(self),
            None => Ok(self),
        }
    }
}

/// Who a connection is from, where that was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Its id.
    pub id: [u8; 16],
    /// Its name, for people.
    pub name: String,
    /// Serial number of the certificate that said so.
    pub serial: Vec<u8>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connection({})", self.peer)
    }
}

/// The volumes, found or registered by a Hello.
pub trait Volumes: Send + Sync {
    /// The volume that a checked Hello names.
    ///
    /// # Errors
    /// [`SessionError::Volume`] and others, with the reason for the peer.
    fn of_hello(&self, hello: &Hello, machine: Option<&Machine>) -> Result<Arc<Volume>, SessionError>;

    /// Where the records of this agent would go, if its volume is fenced and it can be told so. Changes nothing.
    fn fenced(&self, hello: &Hello, machine: Option<&Machine>) -> Option<(Arc<Volume>, Standing)>;
}

/// Held while the peer is slow to read.
pub(super) type Out = LongMutex<Box<dyn Write + Send>>;

pub(super) fn send(out: &Out, kind: MessageType, body: &[u8]) -> Result<(), SessionError> {
    let mut message = Vec::with_capacity(HEADER_LEN + body.len());
    message.extend_from_slice(&Header::of(kind, body).encode());
    message.extend_from_slice(body);
    let mut out = out.lock();
    out.write_all(&message).and_then(|()| out.flush()).map_err(|e| SessionError::Connection(e.to_string()))
}

/// Serves one connection until it ends.
pub fn serve(shared: &Shared, volumes: &dyn Volumes, connection: Connection) {
    let Connection { peer, address: _, reader, writer, readable, interrupt, machine, greet: _ } = connection;
    let out: Arc<Out> = Arc::new(LongMutex::new(writer));
    let mut input = Input { reader, readable, out: &out, heard: world::now(), asked: false, until: None };
    let end = match handshake(shared, &mut input, volumes, machine.as_ref()) {
        Ok((hello, volume)) => {
            shared.sessions.fetch_add(1, Ordering::Relaxed);
            let end = run(shared, &volume, &hello, (input, &out), &interrupt);
            shared.sessions.fetch_sub(1, Ordering::Relaxed);
            tracing::info!("volume {}: session of {peer} ended: {end}", volume.name);
            end
        }
        Err(e) => {
            tracing::warn!("{peer}: {e}");
            e
        }
    };
    if let Some(Refuse { code, text }) = end.refuse() {
        // The peer may be gone already; it has been logged.
        drop(send(&out, MessageType::Refuse, &Refuse { code, text }.encode()));
    }
}

fn handshake(
    shared: &Shared,
    input: &mut Input<'_>,
    volumes: &dyn Volumes,
    machine: Option<&Machine>,
) -> Result<(Hello, Arc<Volume>), SessionError> {
    let malformed = |e: afterimage_format::codec::DecodeError| SessionError::Malformed(e.to_string());
    input.until = Some(world::now() + HELLO_LIMIT);
    let header = input.header(HELLO_LIMIT, false)?.ok_or(SessionError::Gone)?;
    if header.kind != MessageType::Hello || header.body_len > 4096 {
        return Err(SessionError::Malformed("the first message is no Hello".into()));
    }
    let mut body = Vec::new();
    input.body(header.body_len, &mut body, HELLO_LIMIT)?;
    input.until = None;
    header.verify(&body).map_err(malformed)?;
    let hello = Hello::decode(&body).map_err(malformed)?;
    if hello.oldest > VERSION || hello.newest < OLDEST_VERSION || hello.oldest > hello.newest {
        return Err(SessionError::Version(format!(
            "the agent speaks protocol versions {} to {}, this appliance {OLDEST_VERSION} to {VERSION}; \
             update the older side",
            hello.oldest, hello.newest
        )));
    }
    if hello.size == 0 || hello.size > MAX_VOLUME {
        return Err(SessionError::Volume(format!("a volume of {} bytes is not possible", hello.size)));
    }
    if hello.name.is_empty() || hello.name.chars().any(char::is_control) || hello.volume == [0; 16] {
        return Err(SessionError::Volume("a volume needs a name without control characters, and an id".into()));
    }
    if let Some(obstacle) = shared.obstacle() {
        // That it is to take no writes any more does not wait until there is room for what it has.
        if let Some((volume, standing)) = volumes.fenced(&hello, machine) {
            let welcome = welcome(&hello, &volume.progress(), 0, (standing.epoch, standing.state()));
            send(input.out, MessageType::Welcome, &welcome.encode())?;
        }
        return Err(obstacle);
    }
    let volume = volumes.of_hello(&hello, machine)?;
    if let Some(why) = volume.failure() {
        return Err(SessionError::Failed(why));
    }
    Ok((hello, volume))
}

/// What an agent is told of a volume that stands here, and of its fence.
fn welcome(hello: &Hello, progress: &Progress, credit: u64, (epoch, fence): (u64, Fence)) -> Welcome {
    Welcome {
        // The handshake has found that there is one in common.
        version: hello.newest.min(VERSION),
        ring: progress.ring,
        durable: progress.seq,
        digest: progress.digest,
        credit,
        epoch,
        fence,
    }
}

/// The receiving side of a connection.
struct Input<'a> {
    reader: Box<dyn Read + Send>,
    readable: Box<dyn Fn(Duration) -> bool + Send>,
    out: &'a Out,
    heard: Instant,
    asked: bool,
    /// When what is being received must be complete.
    until: Option<Instant>,
}

impl Input<'_> {
    /// The next message header; `None` if the peer closed the connection between two messages.
    fn header(&mut self, limit: Duration, ping: bool) -> Result<Option<Header>, SessionError> {
        let (mut bytes, mut done) = ([0; HEADER_LEN], 0);
        self.heard = world::now();
        while done < HEADER_LEN {
            self.in_time()?;
            match self.reader.read(&mut bytes[done..]) {
                Ok(0) if done == 0 => return Ok(None),
                Ok(0) => return Err(SessionError::Connection("it was closed inside a message".into())),
                Ok(n) => {
                    done += n;
                    (self.heard, self.asked) = (world::now(), false);
                }
                Err(e) => self.waited(&e, limit, ping)?,
            }
        }
        Header::decode(&bytes).map(Some).map_err(|e| SessionError::Malformed(e.to_string()))
    }

    /// Appends a body of `len` bytes to `out`.
    fn body(&mut self, len: usize, out: &mut Vec<u8>, limit: Duration) -> Result<(), SessionError> {
        let end = out.len() + len;
        out.reserve(len);
        while out.len() < end {
            self.in_time()?;
            let before = out.len();
            // With a limit of time, one read of the system at a time; otherwise as many as it takes.
            let piece = if self.until.is_some() { 1 } else { end - before };
            let result = self.reader.by_ref().take(piece as u64).read_to_end(out);
            if out.len() > before {
                self.heard = world::now();
            }
            match result {
                Ok(n) if n == piece => {}
                Ok(_) => return Err(SessionError::Connection("it was closed inside a message".into())),
                Err(e) => self.waited(&e, limit, false)?,
            }
        }
        Ok(())
    }

    fn in_time(&self) -> Result<(), SessionError> {
        if self.until.is_some_and(|until| world::now() >= until) {
            return Err(SessionError::Connection("its Hello took too long".into()));
        }
        Ok(())
    }

    /// After a read that failed: goes on if it only took too long, and not too long altogether.
    fn waited(&mut self, e: &io::Error, limit: Duration, ping: bool) -> Result<(), SessionError> {
        match e.kind() {
            io::ErrorKind::Interrupted => Ok(()),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                let silent = world::since(self.heard);
                if silent >= limit {
                    return Err(SessionError::Connection(format!("nothing came for {} s", silent.as_secs())));
                }
                if ping && silent >= PING_AFTER && !self.asked {
                    self.asked = true;
                    send(self.out, MessageType::Ping, &1u64.to_le_bytes())?;
                }
                Ok(())
            }
            _ => Err(SessionError::Connection(e.to_string())),
        }
    }
}

fn run(
    shared: &Shared,
    volume: &Arc<Volume>,
    hello: &Hello,
    (input, out): (Input<'_>, &Arc<Out>),
    interrupt: &Arc<dyn Fn() + Send + Sync>,
) -> SessionError {
    let stop = Arc::clone(interrupt);
    let turn = match volume.take_turn(Box::new(move || stop())) {
        Ok(turn) => turn,
        Err(e) => return e,
    };
    if let Err(e) = volume.admits() {
        return e;
    }
    // The one before may have failed the volume.
    if let Some(why) = volume.failure() {
        return SessionError::Failed(why);
    }
    let progress = volume.progress();
    let granted = AtomicU64::new(shared.credit_now());
    let durable_bytes = AtomicU64::new(0);
    let under_way = UnderWay::default();
    let acknowledge = |durable: u64, bytes: usize| {
        let done = durable_bytes.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        let credit = done + shared.credit_now();
        let credit = granted.fetch_max(credit, Ordering::AcqRel).max(credit);
        send(out, MessageType::Ack, &Ack { durable, credit }.encode())
    };
    let stages = Stages::new((shared, volume), &under_way, &**interrupt, &acknowledge);
    let lost = volume.forked && progress.ring == [0; 16];
    let standing = volume.standing();
    let fence = if is_tail(volume.fork()) { Fence::Closed } else { standing.state() };
    let welcome = welcome(hello, &progress, granted.load(Ordering::Relaxed), (standing.epoch, fence));
    if let Err(e) = send(out, MessageType::Welcome, &welcome.encode()) {
        return e;
    }
    tracing::info!("volume {}: session begins behind seq {}", volume.name, progress.seq);
    let speaks = welcome.version >= FAILBACK_VERSION;
    let disk = (fence == Fence::Closed && speaks).then(|| AgentDisk::new(welcome.epoch, hello.size, out));
    if fence == Fence::Closed {
        volume.set_agent_disk(disk.clone().map_or(Reach::Old, Reach::Here));
    }
    let forked = lost || (progress.seq > 0 && progress.ring != hello.ring);
    let cursor = Cursor { seq: progress.seq, time: progress.time, forked, size: progress.size() };
    // Version 1 has no queries.
    let (to_compare, queries) =
        if welcome.version >= HASH_VERSION { Some(bounded(QUEUE)).unzip() } else { (None, None) };
    thread::scope(|s| {
        let started = stages.start(s, hello.ring).and_then(|next| {
            queries.map(|queries| s.spawn("compare", || compare(&stages, out, queries))).transpose()?;
            Ok(next)
        });
        let session =
            Session { volume, stages: &stages, granted: &granted, hello_size: hello.size, disk: disk.as_deref() };
        match started {
            Err(e) => {
                lock(&stages.end).get_or_insert(SessionError::Connection(format!("no thread for it: {e}")));
            }
            Ok(next) => {
                if let Err(e) = receive(&session, input, cursor, &next, to_compare.as_ref()) {
                    lock(&stages.end).get_or_insert(e);
                }
            }
        }
        drop(to_compare);
    });
    volume.set_agent_disk(Reach::Away);
    if let Some(disk) = disk {
        disk.end();
    }
    if lock(&stages.end).as_ref().is_some_and(|e| matches!(e, SessionError::Full(_) | SessionError::Failed(_))) {
        volume.leave_segment(shared);
    }
    ended(&stages, &turn)
}

fn ended(stages: &Stages<'_>, turn: &SessionTurn<'_>) -> SessionError {
    match lock(&stages.end).take().unwrap_or(SessionError::Gone) {
        SessionError::Gone | SessionError::Connection(_) if turn.superseded() => {
            SessionError::Superseded("another session of this volume took over, or the appliance is stopping".into())
        }
        e => e,
    }
}

/// What the receiving stage knows.
struct Session<'a> {
    volume: &'a Volume,
    stages: &'a Stages<'a>,
    /// Bytes that the agent may have sent.
    granted: &'a AtomicU64,
    hello_size: u64,
    /// Its disk, if it is fenced.
    disk: Option<&'a AgentDisk>,
}

/// The receiving stage.
fn receive(
    session: &Session<'_>,
    mut input: Input<'_>,
    mut cursor: Cursor,
    next: &Sender<Received>,
    compare: Option<&Sender<Asked>>,
) -> Result<(), SessionError> {
    let (stages, mut batch) = (session.stages, Batch::default());
    let recent = stages.recent();
    let mut received = 0u64;
    loop {
        let header = match input.header(SILENCE_LIMIT, true) {
            Ok(Some(header)) => header,
            end => {
                // What an agent had sent before it went away counts, although it will not learn of it.
                hand_over(stages, &mut batch, next)?;
                return Err(end.err().unwrap_or(SessionError::Gone));
            }
        };
        let len = header.body_len;
        match header.kind {
            MessageType::Data => {
                received += len as u64;
                if received > session.granted.load(Ordering::Acquire) {
                    return Err(SessionError::Malformed("the agent sent more than its credit".into()));
                }
                if batch.body.len() + len > MAX_BATCH {
                    hand_over(stages, &mut batch, next)?;
                }
                input.body(len, &mut batch.body, SILENCE_LIMIT)?;
                while batch.parse(&mut cursor, &recent)? {
                    let rest = batch.body.split_off(batch.parsed);
                    hand_over(stages, &mut batch, next)?;
                    batch.body.extend_from_slice(&rest);
                }
                let more = || (input.readable)(if next.is_full() { GATHER } else { Duration::ZERO });
                if batch.body.len() >= MAX_BATCH || !more() {
                    hand_over(stages, &mut batch, next)?;
                }
                continue;
            }
            MessageType::Fill if len <= 4096 => {
                let mut body = Vec::new();
                input.body(len, &mut body, SILENCE_LIMIT)?;
                let fill = header.verify(&body).and_then(|()| Fill::decode(&body));
                stages.heard_of(fill.map_err(|e| SessionError::Malformed(e.to_string()))?.sixteenths());
                continue;
            }
            MessageType::Quiet if len <= 4096 => {
                let mut body = Vec::new();
                input.body(len, &mut body, SILENCE_LIMIT)?;
                let quiet = header.verify(&body).and_then(|()| Quiet::decode(&body));
                session.volume.set_quiet(quiet.map_err(|e| SessionError::Malformed(e.to_string()))?);
                continue;
            }
            MessageType::DiskHashes | MessageType::DiskDone if len <= MAX_HASHES_BODY && session.disk.is_some() => {
                let mut body = Vec::new();
                input.body(len, &mut body, SILENCE_LIMIT)?;
                header.verify(&body).map_err(|e| SessionError::Malformed(e.to_string()))?;
                if let Some(disk) = session.disk {
                    disk.answered(header.kind, body).map_err(SessionError::Malformed)?;
                }
                continue;
            }
            MessageType::Ping | MessageType::Pong | MessageType::Bye | MessageType::Refuse | MessageType::HashQuery
                if len <= 4096 => {}
            _ => return Err(SessionError::Malformed("a message that an agent does not send".into())),
        }
        // Whatever has been received comes first: nothing waits while the line is busy with other things.
        hand_over(stages, &mut batch, next)?;
        let mut body = Vec::new();
        input.body(len, &mut body, SILENCE_LIMIT)?;
        header.verify(&body).map_err(|e| SessionError::Malformed(e.to_string()))?;
        match header.kind {
            MessageType::Ping => send(input.out, MessageType::Pong, &body)?,
            MessageType::Bye | MessageType::Refuse => return Err(SessionError::Gone),
            MessageType::HashQuery => ask(&body, [cursor.size, session.hello_size], compare)?,
            _ => {}
        }
    }
}

/// Puts a query into the queue, which has room for all that an agent may have under way.
///
/// The volume has the size that the records said last; the agent may know a newer one, whose record is on its way.
fn ask(body: &[u8], sizes: [u64; 2], compare: Option<&Sender<Asked>>) -> Result<(), SessionError> {
    let Some(compare) = compare else {
        return Err(SessionError::Malformed("hash queries are not part of the version agreed on".into()));
    };
    let query = HashQuery::decode(body, sizes[0]).or_else(|_| HashQuery::decode(body, sizes[1]));
    let query = query.map_err(|e| SessionError::Malformed(e.to_string()))?;
    let more = || SessionError::Malformed("more hash queries than are allowed".into());
    compare.try_send(Asked::now(query)).map_err(|_| more())
}

/// Answers queries until the session ends.
fn compare(stages: &Stages<'_>, out: &Out, queries: Receiver<Asked>) {
    let mut comparer = Comparer::new(stages.shared, stages.volume);
    for asked in queries.iter() {
        if lock(&stages.end).is_some() {
            return;
        }
        let answer = Hashes { id: asked.id(), told: comparer.answer(&asked) };
        if let Err(e) = send(out, MessageType::Hashes, &answer.encode()) {
            return stages.fail(e);
        }
    }
}

/// Gives the batch to the next stage and makes `batch` an empty one.
fn hand_over(stages: &Stages<'_>, batch: &mut Batch, next: &Sender<Received>) -> Result<(), SessionError> {
    if batch.records.is_empty() {
        return Ok(());
    }
    let full = Arc::new(std::mem::replace(batch, stages.empty()));
    stages.under_way.push(Arc::clone(&full));
    stages.hand_over(full, next)
}
