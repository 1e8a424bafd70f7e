//! Sessions of any agent with a running appliance: right records, wrong ones, nonsense, cut off anywhere, again and again.
//! Whatever comes, what was durable stays right, after a restart too.

use super::wires::Wires;
use crate::agent::{self, Images, SIZE, apply, encode, message};
use crate::input::Input;
use crate::{place, seeds};
use afterimage_appliance::Appliance;
use afterimage_format::record::{FLAG_INITIAL, Kind, Record};
use afterimage_format::wire::{Ack, HEADER_LEN, Header, Hello, MessageType, Refuse, Welcome};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use tempfile::TempDir;

/// Volumes that one appliance gets before there is a new one: a start takes longer than an input.
const VOLUMES: u32 = 50;

struct Running {
    appliance: Option<Appliance>,
    folder: TempDir,
    volumes: u32,
}

static RUNNING: Mutex<Option<Running>> = Mutex::new(None);

fn start(folder: &Path) -> Option<Appliance> {
    Some(Appliance::start(agent::config(folder)).expect("an appliance starts, whatever agents have sent"))
}

/// What an agent has sent to a volume.
struct Sender {
    hello: Hello,
    seq: u64,
    time: u64,
    image: Vec<u8>,
    /// What must be shown at these seqs.
    images: Images,
    /// Nothing sent so far may be refused.
    right: bool,
}

impl Sender {
    fn record(&mut self, input: &mut Input<'_>) -> Vec<u8> {
        let kind = input.below(10);
        let kind = match kind {
            0..=4 => Kind::Write,
            5 | 6 => Kind::Zero,
            7 => Kind::Gap,
            8 => [Kind::Point, Kind::Void][input.below(2)],
            _ => Kind::SyncEnd,
        };
        let kind = if self.seq == 0 {
            Kind::Gap
        } else if self.seq == 1 {
            Kind::SyncEnd
        } else {
            kind
        };
        let data = matches!(kind, Kind::Write | Kind::Zero);
        let len = if data { 1 + usize::from(input.short()) % 9000 } else { 0 };
        let payload = match kind {
            Kind::Write => vec![input.byte(); len],
            Kind::Point => input.take(4).to_vec(),
            _ => Vec::new(),
        };
        let step = if kind == Kind::Gap { 1 + input.below(5) as u64 } else { 1 };
        let mut right = seeds::a_record(kind, self.seq + if self.seq == 0 { 1 } else { step }, payload.len() as u64);
        right.offset = if data { u64::from(input.short()) % (SIZE - len) as u64 } else { 5 };
        right.len = if kind == Kind::Zero { len as u64 } else { right.len };
        right.flags = if self.seq == 0 { FLAG_INITIAL } else { 0 };
        self.time = self.time.wrapping_add(1000);
        right.time = self.time;
        let sent = if input.one_in(6) { odd(right, input) } else { right };
        self.right &= sent == right && (kind != Kind::Point || std::str::from_utf8(&payload).is_ok());
        self.seq = sent.seq;
        if self.right {
            apply(&mut self.image, &sent, &payload);
            self.images.insert(sent.seq, self.image.clone());
        }
        encode(sent, &payload)
    }

    /// The bytes of a session. True if it ends in order.
    fn session(&mut self, input: &mut Input<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut hello = self.hello.clone();
        if input.one_in(8) {
            hello.oldest = input.near(1) as u16;
            hello.newest = input.near(u64::from(hello.newest)) as u16;
            hello.size = input.near(hello.size);
            hello.ring = [input.near(8) as u8; 16];
            hello.name.push_str(&String::from_utf8_lossy(input.take(3)));
            self.right &= hello == self.hello;
        }
        bytes.extend(message(MessageType::Hello, &hello.encode()));
        for _ in 0..12 {
            match input.below(12) {
                _ if input.is_empty() => break,
                0 => bytes.extend(message(MessageType::Ping, &input.array::<8>())),
                1 => {
                    let n = input.below(100);
                    let kind = [MessageType::Ack, MessageType::Pong, MessageType::Welcome, MessageType::Refuse][n % 4];
                    bytes.extend(message(kind, input.take(n)));
                    self.right = false;
                }
                2 => {
                    let n = input.below(64);
                    bytes.extend_from_slice(input.take(n));
                    self.right = false;
                }
                _ => {
                    let body: Vec<u8> = (0..=input.below(4)).flat_map(|_| self.record(input)).collect();
                    bytes.extend(message(MessageType::Data, &body));
                }
            }
        }
        if input.one_in(8) {
            self.right &= !input.edit(&mut bytes, 2);
            // What was changed may lie in the middle of what was right.
            if !self.right {
                self.images.clear();
            }
        }
        bytes
    }
}

/// The record with other fields.
fn odd(right: Record, input: &mut Input<'_>) -> Record {
    Record {
        seq: input.near(right.seq),
        offset: input.near(right.offset),
        len: if right.payload_len() > 0 { right.len } else { input.near(right.len) },
        time: input.near(right.time),
        flags: input.near(right.flags.into()) as u8,
        place: input.near(0),
        ..right
    }
}

/// Durable seq according to Welcome and Acks, and the text of a refusal.
fn durable(said: &[u8]) -> (u64, String) {
    let (mut at, mut durable, mut credit, mut refused) = (0, 0, 0, String::new());
    while at < said.len() {
        let head = said.get(at..at + HEADER_LEN).expect("the appliance ended inside a message");
        let header = Header::decode(head.try_into().unwrap()).unwrap();
        let body =
            said.get(at + HEADER_LEN..at + HEADER_LEN + header.body_len).expect("the appliance ended inside a message");
        header.verify(body).unwrap();
        at += HEADER_LEN + header.body_len;
        let now = match header.kind {
            MessageType::Welcome => Welcome::decode(body).map(|w| (w.durable, w.credit)).unwrap(),
            MessageType::Ack => Ack::decode(body).map(|a| (a.durable, a.credit)).unwrap(),
            MessageType::Refuse => {
                assert_eq!(at, said.len(), "a Refuse is the last message");
                refused = Refuse::decode(body).unwrap().text;
                continue;
            }
            _ => continue,
        };
        assert!(now.0 >= durable && now.1 >= credit, "durable seq and credit only grow");
        (durable, credit) = now;
    }
    (durable, refused)
}

/// See the module.
pub(super) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut guard = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    if guard.as_ref().is_some_and(|r| r.volumes >= VOLUMES) {
        *guard = None;
    }
    let running = guard.get_or_insert_with(|| {
        let folder = place::folder();
        Running { appliance: start(folder.path()), folder, volumes: 0 }
    });
    running.volumes += 1;
    let (id, restart, sessions) = (running.volumes as u8, input.one_in(8), 1 + input.below(3));
    let name = format!("v{id}");
    let mut hello = agent::hello(id, &name);
    let image = vec![0; SIZE];
    let mut sender =
        Sender { hello: hello.clone(), seq: 0, time: 1_700_000_000, image, images: Images::new(), right: true };
    let mut known = 0;
    for _ in 0..sessions {
        let bytes = sender.session(&mut input);
        let mut wires = Wires::new(UnixStream::connect(running.folder.path().join("sock")).unwrap());
        bytes.chunks(1 << 14).for_each(|part| wires.send(part));
        let (said, refused) = durable(&wires.finish());
        assert!(said >= known || said == 0, "what was durable is so no more");
        known = known.max(said);
        assert!(
            !sender.right || known == sender.seq,
            "what was right is refused: {known} of {}, {refused}",
            sender.seq
        );
        hello.next = known + 1;
    }
    check(running, &name, &sender, known);
    if restart {
        running.appliance = None;
        running.appliance = start(running.folder.path());
        check(running, &name, &sender, known);
    }
}

fn check(running: &Running, name: &str, sender: &Sender, known: u64) {
    let appliance = running.appliance.as_ref().unwrap();
    let durable = appliance.volumes().iter().find(|v| v.name == name).map_or(0, |v| v.durable_seq);
    assert!(durable >= known, "seq {known} was durable, and now {durable} is");
    for (seq, image) in sender.images.range(..=durable) {
        if let Some(shown) = agent::read(appliance, name, *seq) {
            assert!(shown == *image, "seq {seq} is shown wrong");
        }
    }
}
