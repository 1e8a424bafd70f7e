//! One connection to the appliance: hello, then records out and acknowledgements in.
//!
//! Two threads: the sender writes, a reader takes what comes. An acknowledgement is applied only up to what has left
//! completely, so no peer can make us give back ring memory that is being sent.

use crate::breaks::Break;
use crate::connect::{Connection, VectoredWrite};
use crate::continuity::{Base, Continuity};
use crate::shared::Shared;
use afterimage_base::world;
use afterimage_base::world::thread;
use afterimage_format::codec::DecodeError;
use afterimage_format::compare::{Hashes, MAX_HASHES_BODY};
use afterimage_format::failback::{MAX_REQUESTS, MAX_WRITE_BODY};
use afterimage_format::record::{FLAG_NOTE, HEADER_LEN as RECORD_LEN, Kind, Record};
use afterimage_format::wire::{
    Ack, FILL_VERSION, Fill, HASH_VERSION, HEADER_LEN, Header, Hello, MAX_BODY, MessageType, NOTE_VERSION,
    OLDEST_VERSION, QUIET_VERSION, Quiet, Refuse, SIZE_VERSION, VERSION, Welcome,
};
use afterimage_journal::{RecordRef, RingError};
use std::collections::VecDeque;
use std::io::{self, IoSlice, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use thiserror::Error;

/// Time for the appliance's answer to Hello: it may have to open a history first.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(30);
/// A Ping goes out this often,
const PING_EVERY: Duration = Duration::from_secs(5);
/// and a peer that was not heard for this long is given up.
const SILENCE: Duration = Duration::from_secs(30);
/// How long the sender waits for records before it looks at other things.
const TICK: Duration = Duration::from_millis(100);
/// With few records waiting the sender lets this much time pass, so that small writes share a batch and a wake-up.
const GATHER: Duration = Duration::from_millis(2);
/// This many records are enough not to wait for more.
const ENOUGH: u64 = 256;
/// How often the appliance hears that nobody writes, so that a moment since the last write can be chosen.
const QUIET_EVERY: Duration = Duration::from_secs(2);
/// How long the sender waits for credit, or for the state that tells it where to begin.
const LINGER: Duration = Duration::from_millis(1);
/// The keeper hears of what became durable at most this often.
const TELL_EVERY: Duration = Duration::from_millis(10);
/// Records of one batch: two buffers each and one before them fit the 1024 that one system call takes.
const MAX_RECORDS: usize = 500;
/// Longest message of the appliance.
const MAX_ANSWER: usize = if MAX_HASHES_BODY > MAX_WRITE_BODY { MAX_HASHES_BODY } else { MAX_WRITE_BODY };

/// Why a session ended.
#[derive(Debug, Error)]
pub(crate) enum SessionError {
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    #[error("the appliance does not speak our protocol: {0}")]
    Decode(#[from] DecodeError),
    #[error("the appliance broke the protocol: {0}")]
    Protocol(&'static str),
    #[error("the appliance is too old for what the journal holds: update it")]
    TooOld,
    #[error("the appliance was silent for {} seconds", SILENCE.as_secs())]
    Silent,
    #[error("refused by the appliance: {}", .0.text)]
    Refused(Refuse),
    #[error("the ring was damaged by somebody else: {0}")]
    Ring(RingError),
    #[error("volume.json cannot be written, so what the appliance says of the fence is not heeded yet")]
    Unheeded,
    #[error("the disk cannot take the place of the volume's former one yet: {0}")]
    Adopt(&'static str),
    #[error("the volume stops")]
    Stopping,
}

struct Link {
    credit: AtomicU64,
    /// Highest seq that may be acknowledged, as its record is on the way.
    sending: AtomicU64,
    /// Highest seq whose record has left.
    sent: AtomicU64,
    acked: AtomicU64,
    pong: Mutex<Option<u64>>,
    /// Answers to requests of a failback that have not left.
    answers: Mutex<VecDeque<(MessageType, Vec<u8>)>>,
    /// When the keeper was told last.
    told: Mutex<Instant>,
    dead: AtomicBool,
    end: Mutex<Option<SessionError>>,
}

impl Link {
    fn next_answer(&self) -> Option<(MessageType, Vec<u8>)> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn answer(&self, answer: (MessageType, Vec<u8>)) -> Result<(), SessionError> {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= MAX_REQUESTS {
            return Err(SessionError::Protocol("it asked for more of the disk than is allowed at a time"));
        }
        answers.push_back(answer);
        Ok(())
    }
}

struct Writer<'a> {
    out: &'a mut dyn VectoredWrite,
    spent: u64,
    /// How full the ring was when the appliance was told last, in sixteenths; `None` if it would not understand.
    told: Option<u8>,
    /// What the appliance speaks.
    version: u16,
}

impl Writer<'_> {
    fn write_all(&mut self, mut bufs: &mut [IoSlice<'_>]) -> io::Result<()> {
        IoSlice::advance_slices(&mut bufs, 0);
        while !bufs.is_empty() {
            match self.out.write_vectored(bufs) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => IoSlice::advance_slices(&mut bufs, n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn message(&mut self, kind: MessageType, body: &[u8]) -> io::Result<()> {
        let header = Header::of(kind, body).encode();
        self.write_all(&mut [IoSlice::new(&header), IoSlice::new(body)])
    }

    /// Says how full the ring is, if that is news: the appliance then knows whether there is time to reduce what it gets.
    fn fill(&mut self, fill: Fill) -> io::Result<()> {
        if self.told.is_none_or(|told| told == fill.sixteenths()) {
            return Ok(());
        }
        self.told = Some(fill.sixteenths());
        self.message(MessageType::Fill, &fill.encode())
    }

    fn data(&mut self, records: &[RecordRef<'_>], len: usize) -> io::Result<()> {
        let header = Header::data(len).encode();
        let mut bufs = Vec::with_capacity(records.len() * 2 + 1);
        bufs.push(IoSlice::new(&header));
        for record in records {
            bufs.push(IoSlice::new(&record.header));
            bufs.push(IoSlice::new(record.payload()));
        }
        self.spent += len as u64;
        self.write_all(&mut bufs)
    }
}

/// Runs one session until it ends. `progress` is set once the appliance has taken something.
pub(crate) fn run(shared: &Shared, connection: Connection, progress: &mut bool) -> Result<(), SessionError> {
    let Connection { mut reader, mut writer, closer } = connection;
    let mut writer = Writer { out: &mut *writer, spent: 0, told: None, version: 0 };
    let (welcome, at) = greet(shared, &mut *reader, &mut writer)?;
    let link = Link {
        credit: AtomicU64::new(welcome.credit),
        sending: AtomicU64::new(welcome.durable),
        sent: AtomicU64::new(welcome.durable),
        acked: AtomicU64::new(welcome.durable),
        pong: Mutex::new(None),
        answers: Mutex::default(),
        told: Mutex::new(world::now()),
        dead: AtomicBool::new(false),
        end: Mutex::new(None),
    };
    shared.asker.begin(welcome.version >= HASH_VERSION);
    writer.told = (welcome.version >= FILL_VERSION).then_some(0);
    writer.version = welcome.version;
    shared.connected.store(true, Ordering::Release);
    shared.p.bell.ring();
    if at.is_some_and(|at| at >= shared.p.ring.next()) {
        // Nothing is left that it could refuse; otherwise its first Ack is the proof.
        shared.state().forgive();
    }
    let result = thread::scope(|scope| {
        let started = scope.spawn("acks", || {
            if let Err(e) = read_all(shared, &mut *reader, &link) {
                *link.end.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
            }
            link.dead.store(true, Ordering::Release);
            if !shared.stopping() {
                // The sender may hang in a write to a peer that does not read any more.
                closer();
            }
            shared.p.ring.wake_sender();
        });
        let result = started.map_err(SessionError::Io).and_then(|_| send_all(shared, &mut writer, &link, at));
        if shared.stopping() {
            // The peer may be gone already.
            let _ = writer.message(MessageType::Bye, &[]);
        }
        link.dead.store(true, Ordering::Release);
        closer();
        result
    });
    shared.connected.store(false, Ordering::Release);
    shared.asker.end();
    *progress = link.acked.load(Ordering::Acquire) > welcome.durable;
    // What the reader saw explains better than the broken pipe that it caused.
    match link.end.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(
            e @ (SessionError::Refused(_) | SessionError::Protocol(_) | SessionError::Decode(_) | SessionError::Silent),
        ) => Err(e),
        Some(e) if result.is_ok() => Err(e),
        _ => result,
    }
}

fn greet(
    shared: &Shared,
    reader: &mut dyn Read,
    writer: &mut Writer<'_>,
) -> Result<(Welcome, Option<u64>), SessionError> {
    let ring = &shared.p.ring;
    let (epoch, adopts) = {
        let state = shared.state();
        (state.meta.epoch, state.meta.adopting)
    };
    let hello = Hello {
        oldest: OLDEST_VERSION,
        newest: VERSION,
        volume: shared.id,
        ring: ring.id(),
        size: shared.core.disk.size(),
        first: ring.first(),
        next: ring.next(),
        name: shared.p.name.clone(),
        epoch,
        adopts,
    };
    writer.message(MessageType::Hello, &hello.encode())?;
    let until = world::now() + WELCOME_TIMEOUT;
    let (kind, body) = receive(shared, reader, &mut || world::now() > until)?;
    let welcome = match kind {
        MessageType::Welcome => Welcome::decode(&body)?,
        MessageType::Refuse => return Err(SessionError::Refused(Refuse::decode(&body)?)),
        _ => return Err(SessionError::Protocol("its first message is no Welcome")),
    };
    if !(OLDEST_VERSION..=VERSION).contains(&welcome.version) {
        return Err(SessionError::Protocol("it chose a version that was not offered"));
    }
    shared.peer.store(welcome.version, Ordering::Release);
    shared.heed(&welcome)?;
    let mut judged = shared.judge(&welcome);
    if judged == Continuity::Forked && shared.p.breaks.has(Break::IgnoreFork) {
        judged = Continuity::At(ring.first());
    }
    if judged == Continuity::Forked {
        let why = if welcome.durable == 0 {
            "the appliance has no history of this volume any more: its store is new or was lost. The whole disk is \
             copied again, as for the first time"
                .to_owned()
        } else {
            format!(
                "the appliance's history (durable up to seq {}) is not the one that this ring goes on with; perhaps \
                 its store was restored from an older copy: the whole disk is copied again",
                welcome.durable
            )
        };
        tracing::error!("volume {}: {why}", shared.p.name);
        shared.start_over(&why, Some(Base::of(&welcome)));
        return Ok((welcome, None));
    }
    let Continuity::At(at) = judged else { return Ok((welcome, None)) };
    shared.durable.store(at - 1, Ordering::Release);
    if at == welcome.durable + 1 {
        shared.free(welcome.durable);
    }
    Ok((welcome, Some(at)))
}

fn send_all(shared: &Shared, writer: &mut Writer<'_>, link: &Link, at: Option<u64>) -> Result<(), SessionError> {
    let ring = &shared.p.ring;
    let mut at = at;
    let (mut last_ping, mut last_quiet) = (world::now(), world::now());
    while !link.dead.load(Ordering::Acquire) {
        if shared.stopping() {
            return Err(SessionError::Stopping);
        }
        let pong = link.pong.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(n) = pong {
            writer.message(MessageType::Pong, &n.to_le_bytes())?;
        }
        while let Some((kind, body)) = link.next_answer() {
            writer.message(kind, &body)?;
        }
        if world::since(last_ping) >= PING_EVERY {
            last_ping = world::now();
            writer.message(MessageType::Ping, &writer.spent.to_le_bytes())?;
        }
        while let Some(query) = shared.asker.outgoing() {
            writer.message(MessageType::HashQuery, &query.encode())?;
        }
        // Some records may have been waiting for the disk when they became durable.
        shared.free(0);
        let Some(next) = at else {
            at = shared.state().meta.base.and_then(|b| b.gap);
            if at.is_none() {
                world::sleep(LINGER);
            }
            continue;
        };
        if ring.first() > next {
            // It was durable once, and then not any more: the next hello finds out what that means.
            return Err(SessionError::Protocol("it wants records again that it had acknowledged"));
        }
        if !ring.wait_published(next, TICK) {
            if world::since(last_quiet) >= QUIET_EVERY {
                last_quiet = world::now();
                if let Some(quiet) = quiet(shared, next).filter(|_| writer.version >= QUIET_VERSION) {
                    writer.message(MessageType::Quiet, &quiet.encode())?;
                }
            }
            continue;
        }
        if ring.next() - next < ENOUGH {
            world::sleep(GATHER);
        }
        at = Some(send_batch(shared, writer, link, next)?);
    }
    Ok(())
}

/// That `next` has not been given to any write, and when, if that is so.
pub(crate) fn quiet(shared: &Shared, next: u64) -> Option<Quiet> {
    let (ring, time) = (&shared.p.ring, shared.p.clock.wall());
    // Behind the clock: a write that takes its seq from now on has a later time, and one without a seq finds the ring closed, which
    // ends with a Gap.
    let closed = ring.is_closed() && !shared.p.breaks.has(Break::QuietClosed);
    (ring.next() == next && !closed).then(|| Quiet { seq: next.saturating_sub(1), time })
}

/// The oldest version of the protocol that has such a record. None is made for an appliance that is known to be older, but
/// it may be known too late, or be put in another's place.
const fn needs(record: &Record) -> u16 {
    if matches!(record.kind, Kind::Point) && record.flags & FLAG_NOTE != 0 {
        NOTE_VERSION
    } else if record.new_size().is_some() {
        SIZE_VERSION
    } else {
        OLDEST_VERSION
    }
}

/// Sends what is published from `next` on and fits batch and credit. Returns the seq after the last sent.
fn send_batch(shared: &Shared, writer: &mut Writer<'_>, link: &Link, next: u64) -> Result<u64, SessionError> {
    let room = link.credit.load(Ordering::Acquire).saturating_sub(writer.spent);
    let room = usize::try_from(room).unwrap_or(usize::MAX).min(MAX_BODY);
    let (mut records, mut len, mut seq) = (Vec::new(), 0, next);
    while records.len() < MAX_RECORDS {
        let Some(record) = shared.p.ring.record(seq).map_err(SessionError::Ring)? else { break };
        if writer.version < needs(&record.record) {
            if records.is_empty() {
                return Err(SessionError::TooOld);
            }
            break;
        }
        let more = RECORD_LEN + record.payload().len();
        if len + more > room {
            break;
        }
        len += more;
        seq += 1;
        records.push(record);
    }
    if records.is_empty() {
        // No credit: an Ack brings it.
        world::sleep(LINGER);
        return Ok(next);
    }
    writer.fill(Fill { used: shared.p.ring.used_bytes(), size: shared.p.ring.capacity_bytes() })?;
    link.sending.store(seq - 1, Ordering::Release);
    writer.data(&records, len)?;
    drop(records);
    link.sent.store(seq - 1, Ordering::Release);
    apply(shared, link);
    Ok(seq)
}

/// Gives back what is acknowledged and has left.
fn apply(shared: &Shared, link: &Link) {
    let durable = link.acked.load(Ordering::Acquire).min(link.sent.load(Ordering::Acquire));
    if durable > shared.durable.fetch_max(durable, Ordering::AcqRel) {
        shared.free(durable);
        // In a sync it looks for itself as often.
        let mut told = link.told.lock().unwrap_or_else(PoisonError::into_inner);
        if world::since(*told) >= TELL_EVERY {
            *told = world::now();
            drop(told);
            shared.p.bell.ring();
        }
    }
}

fn read_all(shared: &Shared, reader: &mut dyn Read, link: &Link) -> Result<(), SessionError> {
    let mut notes = true;
    loop {
        let heard = world::now();
        let mut over = || world::since(heard) > SILENCE || link.dead.load(Ordering::Acquire);
        let (kind, body) = match receive(shared, reader, &mut over) {
            Err(SessionError::Silent) if link.dead.load(Ordering::Acquire) => return Ok(()),
            received => received?,
        };
        match kind {
            MessageType::Ack => {
                let ack = Ack::decode(&body)?;
                if ack.durable > link.sending.load(Ordering::Acquire) {
                    return Err(SessionError::Protocol("it acknowledged what was never sent"));
                }
                link.credit.fetch_max(ack.credit, Ordering::AcqRel);
                link.acked.fetch_max(ack.durable, Ordering::AcqRel);
                if std::mem::take(&mut notes) {
                    shared.state().forgive();
                }
                apply(shared, link);
            }
            MessageType::Ping => {
                let n = body.as_slice().try_into().map_err(|_| SessionError::Protocol("a Ping has no number"))?;
                *link.pong.lock().unwrap_or_else(PoisonError::into_inner) = Some(u64::from_le_bytes(n));
                shared.p.ring.wake_sender();
            }
            MessageType::Pong => {}
            MessageType::Hashes => {
                shared.asker.answer(Hashes::decode(&body)?).map_err(SessionError::Protocol)?;
                shared.p.bell.ring();
            }
            MessageType::Refuse => return Err(SessionError::Refused(Refuse::decode(&body)?)),
            kind => {
                link.answer(shared.failback(kind, &body)?)?;
                shared.p.ring.wake_sender();
            }
        }
    }
}

/// Receives one message. [`SessionError::Silent`] when `over` says so before it is complete.
fn receive(
    shared: &Shared,
    reader: &mut dyn Read,
    over: &mut dyn FnMut() -> bool,
) -> Result<(MessageType, Vec<u8>), SessionError> {
    let mut over = || over() || shared.stopping();
    let mut head = [0; HEADER_LEN];
    read_exact(reader, &mut head, &mut over)?;
    let header = Header::decode(&head)?;
    if header.body_len > MAX_ANSWER {
        return Err(SessionError::Protocol("its message is too long"));
    }
    let mut body = vec![0; header.body_len];
    read_exact(reader, &mut body, &mut over)?;
    header.verify(&body)?;
    Ok((header.kind, body))
}

fn read_exact(reader: &mut dyn Read, buf: &mut [u8], over: &mut dyn FnMut() -> bool) -> Result<(), SessionError> {
    let mut done = 0;
    while done < buf.len() {
        match reader.read(&mut buf[done..]) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            // A peer that sends a byte now and then is not silent, and yet it does not get on.
            Ok(_) if over() => return Err(SessionError::Silent),
            Ok(n) => done += n,
            Err(e) => match e.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut if over() => return Err(SessionError::Silent),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {}
                _ => return Err(e.into()),
            },
        }
    }
    Ok(())
}
