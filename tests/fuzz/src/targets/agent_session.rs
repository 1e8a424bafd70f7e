//! Sessions of any appliance with an agent that serves a disk: right answers, wrong ones, nonsense, cut off anywhere. Whatever
//! comes, the guest is served, and nothing counts as durable that was never sent.

use crate::agent::message;
use crate::input::Input;
use crate::place;
use afterimage_agent::connect::{Connection, Connector, over};
use afterimage_agent::{Agent, AgentConfig, CacheMode, VolumeConfig};
use afterimage_base::block::{BlockDevice, Request};
use afterimage_base::buf::AlignedBuf;
use afterimage_base::clock::SystemClock;
use afterimage_base::simple::call;
use afterimage_format::fence::Fence;
use afterimage_format::wire::{Ack, HEADER_LEN, Header, Hello, MessageType, Refuse, RefuseCode, Welcome};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

const SIZE: usize = 128 << 10;
/// The smallest ring there is.
const RING: u64 = afterimage_agent::api::MIN_RING_BYTES;
/// How long an appliance waits for what the agent might send next.
const PATIENCE: Duration = Duration::from_millis(5);
/// How long a session may take to begin: behind a refusal the agent waits for seconds.
const BEGIN: Duration = Duration::from_millis(150);

/// What an appliance does in each of its sessions (when there is none left, nobody answers), and how many are under way.
#[derive(Default)]
struct Scripts {
    left: Mutex<(VecDeque<Vec<u8>>, usize)>,
    ended: Condvar,
}

struct Scripted(Arc<Scripts>);

impl Connector for Scripted {
    fn connect(&self) -> io::Result<Connection> {
        let mut left = self.0.left.lock().unwrap_or_else(PoisonError::into_inner);
        let script = left.0.pop_front().ok_or(io::ErrorKind::ConnectionRefused)?;
        left.1 += 1;
        drop(left);
        let (ours, theirs) = UnixStream::pair()?;
        let scripts = Arc::clone(&self.0);
        thread::spawn(move || {
            // The agent may cut the connection when it likes.
            drop(Session::new(theirs).and_then(|s| s.play(&mut Input::new(&script))));
            scripts.left.lock().unwrap_or_else(PoisonError::into_inner).1 -= 1;
            scripts.ended.notify_all();
        });
        over(afterimage_base::net::Stream::Unix(ours))
    }

    fn describe(&self) -> String {
        "a script".into()
    }
}

/// The appliance's end of a session.
struct Session {
    stream: UnixStream,
    hello: Hello,
    /// Highest seq that has come.
    seq: u64,
}

impl Session {
    fn new(mut stream: UnixStream) -> io::Result<Session> {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let (kind, body) = receive(&mut stream)?;
        assert_eq!(kind, MessageType::Hello);
        let hello = Hello::decode(&body).unwrap();
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Session { stream, seq: hello.next - 1, hello })
    }

    fn play(mut self, input: &mut Input<'_>) -> io::Result<()> {
        let known = input.one_in(2);
        let welcome = Welcome {
            version: input.near(1) as u16,
            ring: if known { self.hello.ring } else { [input.near(0) as u8; 16] },
            durable: input.near(if known { self.hello.next - 1 } else { 0 }),
            digest: input.near(0),
            credit: input.near(4 << 20),
            epoch: input.near(0),
            fence: Fence::of_byte("fuzz", input.below(4) as u8).unwrap_or_default(),
        };
        self.say(MessageType::Welcome, &welcome.encode(), input)?;
        for _ in 0..8 {
            if input.is_empty() {
                break;
            }
            self.step(input)?;
        }
        Ok(())
    }

    fn step(&mut self, input: &mut Input<'_>) -> io::Result<()> {
        match input.below(8) {
            0..=2 => {
                self.listen();
                let ack = Ack { durable: input.near(self.seq), credit: input.near(8 << 20) };
                self.say(MessageType::Ack, &ack.encode(), input)
            }
            3 => self.say(MessageType::Ping, &input.array::<8>(), input),
            4 => {
                let code = [RefuseCode::Full, RefuseCode::Failed, RefuseCode::Continuity, RefuseCode::Superseded];
                let text = String::from_utf8_lossy(input.take(9)).into_owned();
                let refuse = Refuse { code: code[input.below(4)], text };
                self.say(MessageType::Refuse, &refuse.encode(), input)
            }
            5 => {
                let kind = [MessageType::Pong, MessageType::Data, MessageType::Hello, MessageType::Bye][input.below(4)];
                let n = input.below(50);
                let body = input.take(n).to_vec();
                self.say(kind, &body, input)
            }
            6 => {
                let n = input.below(40);
                self.stream.write_all(input.take(n))
            }
            _ => {
                self.listen();
                Ok(())
            }
        }
    }

    fn say(&mut self, kind: MessageType, body: &[u8], input: &mut Input<'_>) -> io::Result<()> {
        let mut bytes = message(kind, body);
        if input.one_in(12) {
            input.edit(&mut bytes, 2);
        }
        self.stream.write_all(&bytes)
    }

    /// Takes what comes within a moment.
    fn listen(&mut self) {
        while let Ok((kind, body)) = receive(&mut self.stream) {
            if kind == MessageType::Data {
                let seq = body.get(8..16).map_or(0, |b| u64::from_le_bytes(b.try_into().unwrap()));
                self.seq = self.seq.max(seq);
                break;
            }
        }
    }
}

fn receive(stream: &mut UnixStream) -> io::Result<(MessageType, Vec<u8>)> {
    let mut head = [0; HEADER_LEN];
    stream.read_exact(&mut head)?;
    let header = Header::decode(&head).expect("the agent speaks the protocol");
    let mut body = vec![0; header.body_len];
    stream.read_exact(&mut body)?;
    header.verify(&body).expect("the agent's messages are whole");
    Ok((header.kind, body))
}

/// See the module.
pub(super) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let sessions = 1 + input.below(3);
    let writes: Vec<(usize, u8)> = (0..4).map(|_| (input.below(31) * 4096, input.byte())).collect();
    let part = input.rest().len().div_ceil(sessions).max(1);
    let scripts: VecDeque<Vec<u8>> = input.rest().chunks(part).map(<[u8]>::to_vec).collect();
    let scripts = Arc::new(Scripts { left: Mutex::new((scripts, 0)), ended: Condvar::new() });
    let folder = place::folder();
    let disk = folder.path().join("disk");
    std::fs::write(&disk, vec![0; SIZE]).unwrap();
    let agent = Agent::new(AgentConfig {
        state_dir: folder.path().join("agent"),
        connector: Arc::new(Scripted(Arc::clone(&scripts))),
        clock: Arc::new(SystemClock::new()),
    });
    let config = VolumeConfig {
        name: "vol".into(),
        path: disk.clone(),
        ring_bytes: RING,
        cache: CacheMode::Writeback,
        foreign: afterimage_agent::ForeignWrite::Ignore,
        resize: false,
        adopt: None,
    };
    let volume = agent.add_volume(config).unwrap();
    let mut model = vec![0; SIZE];
    write(&volume.device(), &mut model, &writes[..2]);
    let left = scripts.left.lock().unwrap_or_else(PoisonError::into_inner);
    let more = |l: &mut (VecDeque<Vec<u8>>, usize)| !l.0.is_empty() || l.1 > 0;
    let (mut left, _) = scripts.ended.wait_timeout_while(left, BEGIN, more).unwrap();
    left.0.clear();
    let (left, late) = scripts.ended.wait_timeout_while(left, Duration::from_secs(20), |l| l.1 > 0).unwrap();
    assert!(!late.timed_out(), "{} sessions do not end", left.1);
    drop(left);
    write(&volume.device(), &mut model, &writes[2..]);
    let status = volume.status();
    assert!(status.seq_durable <= status.seq_acked, "{status:?}");
    agent.stop(Duration::ZERO);
    finish(&disk, &model);
}

fn write(device: &Arc<dyn BlockDevice>, model: &mut [u8], writes: &[(usize, u8)]) {
    let mut queue = Arc::clone(device).open_queue().unwrap();
    for (offset, fill) in writes {
        let data = AlignedBuf::copy_of(&[*fill; 4096]);
        model[*offset..offset + 4096].fill(*fill);
        call(&mut *queue, Request::Write { offset: *offset as u64, data: &data, fua: false })
            .expect("a write is served");
    }
}

fn finish(disk: &PathBuf, model: &[u8]) {
    assert!(std::fs::read(disk).unwrap() == model, "the disk holds something else than was written");
}
