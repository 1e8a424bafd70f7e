//! For tests: an appliance that only remembers, and a load that knows what it did.

mod load;

pub(crate) use load::{Dice, Done, Load, load, loads};

use crate::api::{AgentConfig, VolumeConfig, VolumeState, VolumeStatus};
use crate::connect::{Connection, Connector, over};
use crate::disk::CacheMode;
use crate::{Agent, Volume};
use afterimage_base::clock::SystemClock;
use afterimage_base::net::Stream;
use afterimage_format::compare::{BlockHasher, HashQuery, Hashes, Told};
use afterimage_format::fence::Fence;
use afterimage_format::record::{FLAG_INITIAL, HEADER_LEN, Kind, Record};
use afterimage_format::wire::{
    self, Ack, Fill, Header, Hello, MAX_BODY, MessageType, Quiet, Refuse, RefuseCode, Welcome,
};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// What the appliance holds.
#[derive(Default, Clone)]
pub(crate) struct Kept {
    pub(crate) ring: [u8; 16],
    /// First seq of each ring.
    pub(crate) rings: Vec<(u64, [u8; 16])>,
    pub(crate) log: Vec<(Record, Vec<u8>)>,
}

impl Kept {
    pub(crate) fn durable(&self) -> u64 {
        self.log.last().map_or(0, |(r, _)| r.seq)
    }

    /// Becomes as it was when it had the first `n` records.
    pub(crate) fn go_back(&mut self, n: usize) {
        self.log.truncate(n);
        let durable = self.durable();
        self.rings.retain(|(first, _)| *first <= durable);
        self.ring = self.rings.last().map_or([0; 16], |(_, ring)| *ring);
    }

    /// The image after all records.
    pub(crate) fn image(&self, size: usize) -> Vec<u8> {
        let mut image = vec![0; size];
        for (r, payload) in &self.log {
            let at = usize::try_from(r.offset).unwrap_or(0);
            if let Some(size) = r.new_size() {
                image.resize(usize::try_from(size).unwrap(), 0);
            }
            match r.kind {
                Kind::Write => image[at..at + payload.len()].copy_from_slice(payload),
                Kind::Zero => image[at..at + usize::try_from(r.len).unwrap()].fill(0),
                _ => {}
            }
        }
        image
    }

    /// Whether the last gap has an end.
    pub(crate) fn consistent(&self) -> bool {
        let last = self.log.iter().rev().find(|(r, _)| matches!(r.kind, Kind::Gap | Kind::SyncEnd));
        last.is_some_and(|(r, _)| r.kind == Kind::SyncEnd)
    }

    /// Seq of each gap, and whether it is initial.
    pub(crate) fn gaps(&self) -> Vec<(u64, bool)> {
        let gaps = self.log.iter().filter(|(r, _)| r.kind == Kind::Gap);
        gaps.map(|(r, _)| (r.seq, r.flags & FLAG_INITIAL != 0)).collect()
    }
}

/// How questions for hashes are answered.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answers {
    #[default]
    Right,
    CannotTell,
    Silence,
    /// One hash less than asked for.
    Short,
    /// To another question.
    OtherId,
    /// Twice.
    Twice,
}

/// The appliance. Shared by its sessions.
#[derive(Default)]
pub(crate) struct Appliance {
    pub(crate) kept: Mutex<Kept>,
    /// Connections are refused.
    pub(crate) away: AtomicBool,
    /// Nothing is read or acknowledged.
    pub(crate) stalled: AtomicBool,
    /// After so many messages of data the connection breaks, again and again; 0 for never.
    pub(crate) break_after: AtomicU64,
    /// How full it was told the ring was, at most, in sixteenths.
    pub(crate) fullest: AtomicU64,
    /// What it was told last of a time without writes.
    pub(crate) quiet: Mutex<Option<Quiet>>,
    /// Speaks the first version of the protocol only.
    pub(crate) old: AtomicBool,
    /// What every session is refused with.
    pub(crate) refuse: Mutex<Option<RefuseCode>>,
    /// Sessions that were refused.
    pub(crate) refusals: AtomicU64,
    /// Epoch of the volume, and its fence.
    pub(crate) epoch: AtomicU64,
    pub(crate) fence: AtomicU8,
    /// How questions are answered; see [`Answers`].
    pub(crate) answers: Mutex<Answers>,
    /// Blocks asked about.
    pub(crate) asked: AtomicU64,
    sessions: Mutex<Vec<UnixStream>>,
    pub(crate) complaint: Mutex<Option<String>>,
}

pub(crate) struct To(pub(crate) Arc<Appliance>);

impl Connector for To {
    fn connect(&self) -> io::Result<Connection> {
        if self.0.away.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = UnixStream::pair()?;
        self.0.sessions.lock().unwrap().push(theirs.try_clone()?);
        let appliance = Arc::clone(&self.0);
        thread::spawn(move || {
            // Broken connections are part of the tests; what the agent did wrong is in `complaint`.
            if let Ok(end) = theirs.try_clone() {
                let _ = appliance.serve(theirs);
                let _ = end.shutdown(std::net::Shutdown::Both);
            }
        });
        over(Stream::Unix(ours))
    }

    fn describe(&self) -> String {
        "the test".into()
    }
}

fn send(s: &mut UnixStream, kind: MessageType, body: &[u8]) -> io::Result<()> {
    let header = Header::of(kind, body).encode();
    let mut all = header.to_vec();
    all.extend_from_slice(body);
    s.write_all(&all)
}

fn receive(s: &mut UnixStream) -> io::Result<(MessageType, Vec<u8>)> {
    let mut head = [0; wire::HEADER_LEN];
    s.read_exact(&mut head)?;
    let header = Header::decode(&head).map_err(io::Error::other)?;
    let mut body = vec![0; header.body_len];
    s.read_exact(&mut body)?;
    header.verify(&body).map_err(io::Error::other)?;
    Ok((header.kind, body))
}

impl Appliance {
    pub(crate) fn new() -> Arc<Appliance> {
        Arc::default()
    }

    /// Serves agents of other processes at `path`, for as long as the test runs.
    pub(crate) fn listen(appliance: &Arc<Appliance>, path: &std::path::Path) {
        let (listener, appliance) = (std::os::unix::net::UnixListener::bind(path).unwrap(), Arc::clone(appliance));
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                appliance.sessions.lock().unwrap().push(stream.try_clone().unwrap());
                let appliance = Arc::clone(&appliance);
                thread::spawn(move || {
                    let end = stream.try_clone().unwrap();
                    let _ = appliance.serve(stream);
                    let _ = end.shutdown(std::net::Shutdown::Both);
                });
            }
        });
    }

    /// Ends all sessions.
    pub(crate) fn cut(&self) {
        for s in self.sessions.lock().unwrap().drain(..) {
            let _ = s.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Refuses every session from now on, or none.
    pub(crate) fn refuse(&self, code: Option<RefuseCode>) {
        *self.refuse.lock().unwrap() = code;
        self.cut();
    }

    pub(crate) fn kept(&self) -> Kept {
        self.kept.lock().unwrap().clone()
    }

    fn serve(&self, mut s: UnixStream) -> io::Result<()> {
        let (kind, body) = receive(&mut s)?;
        assert_eq!(kind, MessageType::Hello);
        let hello = Hello::decode(&body).map_err(io::Error::other)?;
        let refused = *self.refuse.lock().unwrap();
        if let Some(code) = refused {
            self.refusals.fetch_add(1, Ordering::SeqCst);
            let refuse = Refuse { code, text: "broken on purpose".into() };
            return send(&mut s, MessageType::Refuse, &refuse.encode());
        }
        let mut credit = 2 * MAX_BODY as u64;
        let welcome = {
            let kept = self.kept.lock().unwrap();
            let digest = kept.log.last().map_or(0, |(r, _)| r.digest());
            let ring = if kept.log.is_empty() { [0; 16] } else { kept.ring };
            let version = if self.old.load(Ordering::SeqCst) { 1 } else { hello.newest };
            let fence = Fence::of_byte("test", self.fence.load(Ordering::SeqCst)).unwrap();
            let epoch = self.epoch.load(Ordering::SeqCst);
            Welcome { version, ring, durable: kept.durable(), digest, credit, epoch, fence }
        };
        send(&mut s, MessageType::Welcome, &welcome.encode())?;
        let mut messages = 0;
        let mut seen = Seen { seq: 0, image: Vec::new() };
        loop {
            while self.stalled.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
            let (kind, body) = receive(&mut s)?;
            match kind {
                MessageType::Ping => send(&mut s, MessageType::Pong, &body)?,
                MessageType::Fill => {
                    if self.old.load(Ordering::SeqCst) {
                        *self.complaint.lock().unwrap() = Some("how full the ring is, in version 1".into());
                        return Ok(());
                    }
                    let fill = Fill::decode(&body).map_err(io::Error::other)?;
                    self.fullest.fetch_max(u64::from(fill.sixteenths()), Ordering::SeqCst);
                }
                MessageType::Quiet => {
                    *self.quiet.lock().unwrap() = Some(Quiet::decode(&body).map_err(io::Error::other)?);
                }
                MessageType::Data => {
                    if let Err(e) = self.take(&body, hello.ring) {
                        *self.complaint.lock().unwrap() = Some(e.clone());
                        return Err(io::Error::other(e));
                    }
                    credit += body.len() as u64;
                    messages += 1;
                    if messages == self.break_after.load(Ordering::SeqCst) {
                        return Ok(());
                    }
                    let durable = self.kept.lock().unwrap().durable();
                    send(&mut s, MessageType::Ack, &Ack { durable, credit }.encode())?;
                }
                MessageType::HashQuery => {
                    if self.old.load(Ordering::SeqCst) {
                        *self.complaint.lock().unwrap() = Some("a question in version 1".into());
                        return Ok(());
                    }
                    self.tell(&mut s, &body, &mut seen, hello.size)?;
                }
                _ => return Ok(()),
            }
        }
    }

    fn tell(&self, s: &mut UnixStream, body: &[u8], seen: &mut Seen, size: u64) -> io::Result<()> {
        let size = self.kept().log.iter().rev().find_map(|(r, _)| r.new_size()).unwrap_or(size);
        let q = HashQuery::decode(body, size).map_err(|e| {
            *self.complaint.lock().unwrap() = Some(e.to_string());
            io::Error::other(e)
        })?;
        self.asked.fetch_add(q.blocks(), Ordering::SeqCst);
        if seen.seq != q.seq {
            let mut kept = self.kept();
            if kept.durable() < q.seq {
                *self.complaint.lock().unwrap() = Some(format!("{q:?} is not durable yet"));
            }
            kept.log.retain(|(r, _)| r.seq <= q.seq);
            *seen = Seen { seq: q.seq, image: kept.image(usize::try_from(size).unwrap()) };
        }
        let from = usize::try_from(q.offset).unwrap();
        let part = &seen.image[from..from + usize::try_from(q.len).unwrap()];
        let hasher = BlockHasher::new(q.key);
        let mut hashes: Vec<_> = part.chunks(4096).map(|b| hasher.hash(b)).collect();
        let answers = *self.answers.lock().unwrap();
        let id = if answers == Answers::OtherId { q.id + 1000 } else { q.id };
        let told = match answers {
            Answers::Silence => return Ok(()),
            Answers::CannotTell => Told::Nothing,
            Answers::Short if hashes.len() == 1 => Told::Each([hashes[0], hashes[0]].to_vec()),
            Answers::Short => {
                hashes.pop();
                Told::Each(hashes)
            }
            _ if part.iter().all(|b| *b == 0) => Told::Zero,
            _ => Told::Each(hashes),
        };
        let body = Hashes { id, told }.encode();
        if answers == Answers::Twice {
            send(s, MessageType::Hashes, &body)?;
        }
        send(s, MessageType::Hashes, &body)
    }

    fn take(&self, mut body: &[u8], ring: [u8; 16]) -> Result<(), String> {
        let mut kept = self.kept.lock().unwrap();
        while !body.is_empty() {
            let (head, rest) = body.split_at(HEADER_LEN);
            let record = Record::decode(head.try_into().unwrap()).map_err(|e| e.to_string())?;
            let (payload, rest) = rest.split_at(record.payload_len());
            let next = kept.durable() + 1;
            if record.seq != next && !(record.kind == Kind::Gap && record.seq > next) {
                return Err(format!("seq {} where {next} should be", record.seq));
            }
            let hash = if payload.is_empty() { 0 } else { xxhash_rust::xxh3::xxh3_64(payload) };
            if hash != record.payload_hash {
                return Err(format!("payload of seq {} is damaged", record.seq));
            }
            if kept.ring != ring {
                kept.ring = ring;
                kept.rings.push((record.seq, ring));
            }
            kept.log.push((record, payload.to_vec()));
            body = rest;
        }
        Ok(())
    }
}

/// The image that questions were last asked about.
struct Seen {
    seq: u64,
    image: Vec<u8>,
}

/// A folder with a disk, an agent and an appliance.
pub(crate) struct Lab {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) appliance: Arc<Appliance>,
    pub(crate) size: u64,
    pub(crate) ring_bytes: u64,
    pub(crate) cache: CacheMode,
    pub(crate) foreign: crate::ForeignWrite,
    pub(crate) resize: bool,
    pub(crate) adopt: Option<[u8; 16]>,
}

impl Lab {
    pub(crate) fn new(size: u64) -> Lab {
        let dir = tempfile::tempdir().unwrap();
        std::fs::File::create(dir.path().join("disk")).unwrap().set_len(size).unwrap();
        Lab {
            dir,
            appliance: Appliance::new(),
            size,
            ring_bytes: 16 << 20,
            cache: CacheMode::Writeback,
            foreign: crate::ForeignWrite::default(),
            resize: false,
            adopt: None,
        }
    }

    pub(crate) fn disk(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    pub(crate) fn config(&self) -> AgentConfig {
        AgentConfig {
            state_dir: self.dir.path().join("agent"),
            connector: Arc::new(To(Arc::clone(&self.appliance))),
            clock: Arc::new(SystemClock::new()),
        }
    }

    pub(crate) fn volume_config(&self) -> VolumeConfig {
        VolumeConfig {
            name: "vol".into(),
            path: self.disk(),
            ring_bytes: self.ring_bytes,
            cache: self.cache,
            foreign: self.foreign,
            resize: self.resize,
            adopt: self.adopt,
        }
    }

    pub(crate) fn open(&self) -> (Agent, Arc<Volume>) {
        let agent = Agent::new(self.config());
        let volume = agent.add_volume(self.volume_config()).unwrap();
        (agent, volume)
    }

    pub(crate) fn disk_bytes(&self) -> Vec<u8> {
        std::fs::read(self.disk()).unwrap()
    }

    /// Waits until the volume is live and the appliance has everything; then compares it with the disk.
    pub(crate) fn settle(&self, volume: &Volume) {
        let status = wait(volume, |s| s.state == VolumeState::Live && s.seq_durable == s.seq_acked && s.connected);
        assert_eq!(status.dirty_bytes, 0);
        assert!(volume.shared().core.ranges.is_empty());
        assert_eq!(*self.appliance.complaint.lock().unwrap(), None);
        assert!(self.appliance.kept().consistent());
        self.compare();
    }

    pub(crate) fn compare(&self) {
        if let Some(at) = self.difference() {
            panic!("disk and replica differ at byte {at}");
        }
    }

    pub(crate) fn difference(&self) -> Option<usize> {
        let replica = self.appliance.kept().image(usize::try_from(self.size).unwrap());
        let disk = self.disk_bytes();
        assert_eq!(disk.len(), replica.len(), "sizes");
        disk.iter().zip(&replica).position(|(a, b)| a != b)
    }
}

/// Waits for a state, and fails when it does not come.
pub(crate) fn wait(volume: &Volume, mut good: impl FnMut(&VolumeStatus) -> bool) -> VolumeStatus {
    let until = Instant::now() + Duration::from_secs(180);
    loop {
        let status = volume.status();
        if good(&status) {
            return status;
        }
        assert!(Instant::now() < until, "it did not come: {status:?}");
        thread::sleep(Duration::from_millis(2));
    }
}
