//! Options and requests with any fields, put together so that the server can follow, sent in pieces. Every reply is checked
//! against a plain array, and the last request reads all of the disk: whatever came before, nobody has lost his place.

use super::nbd::{LONGEST, SIZE, export, limits};
use super::wires::Wires;
use crate::input::Input;
use afterimage_nbd::{Mode, Stop, serve_connection};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

const OPTION: &[u8] = b"IHAVEOPT";
const PART: usize = 8192;

/// What a request must be answered with, if it succeeds.
struct Asked {
    cookie: u64,
    command: u16,
    offset: u64,
    len: u64,
    fill: u8,
    /// It must succeed.
    sure: bool,
}

struct Talk {
    bytes: Vec<u8>,
    mode: Mode,
    allocation: bool,
    asked: VecDeque<Asked>,
}

fn be(bytes: &mut Vec<u8>, parts: &[(u64, usize)]) {
    for (value, width) in parts {
        bytes.extend_from_slice(&value.to_be_bytes()[8 - width..]);
    }
}

impl Talk {
    fn option(&mut self, code: u32, data: &[u8]) {
        self.bytes.extend_from_slice(OPTION);
        be(&mut self.bytes, &[(code.into(), 4), (data.len() as u64, 4)]);
        self.bytes.extend_from_slice(data);
    }

    fn named(name: &[u8], rest: &[u8]) -> Vec<u8> {
        let mut data = Vec::new();
        be(&mut data, &[(name.len() as u64, 4)]);
        data.extend_from_slice(name);
        data.extend_from_slice(rest);
        data
    }

    /// The handshake: some options, some of them nonsense, and at last GO.
    fn shake(&mut self, input: &mut Input<'_>) {
        be(&mut self.bytes, &[(3, 4)]);
        for _ in 0..input.below(8) {
            match input.below(8) {
                0 => self.option(3, &[]),
                1 => self.option(6, &Self::named(b"disk", &[0, 1, 0, 3])),
                2 => {
                    let (code, n) = (u32::from(input.byte()) + 12, input.below(40));
                    let data = input.take(n).to_vec();
                    self.option(code, &data);
                }
                3 => {
                    let n = input.below(60);
                    let data = input.take(n).to_vec();
                    // None that ends the handshake or changes what replies look like.
                    self.option([3, 5, 6, 9][input.below(4)], &data);
                }
                4 => self.option(9, &Self::named(b"disk", &[0, 0, 0, 0])),
                5 => self.option(6, &Self::named(b"nobody", &[0, 0])),
                _ => {}
            }
        }
        match input.below(3) {
            0 => {}
            1 => {
                self.option(8, &[]);
                self.mode = Mode::Structured;
            }
            _ => {
                self.option(11, &[]);
                self.mode = Mode::Extended;
            }
        }
        if self.mode != Mode::Simple && input.one_in(2) {
            let query = [&[0, 0, 0, 1][..], &Self::named(b"base:allocation", &[])].concat();
            self.option(10, &Self::named(b"disk", &query));
            self.allocation = true;
        }
        self.option(7, &Self::named(b"disk", &[0, 0]));
    }

    /// A request of any kind with any fields, and its payload. False if the server has to cut us off.
    fn request(&mut self, input: &mut Input<'_>) -> bool {
        let command = if input.one_in(8) { input.short() } else { [0, 0, 1, 1, 3, 4, 5, 6, 7][input.below(9)] };
        let flags = match input.below(4) {
            0 => input.short(),
            1 => u16::from(input.byte()),
            _ => 0,
        };
        let flags = if self.mode == Mode::Extended && command == 1 && !input.one_in(8) { flags | 32 } else { flags };
        let plain = !input.one_in(4);
        let (mut offset, mut len) = (input.number(), input.number());
        if plain {
            offset = offset.wrapping_mul(512) % SIZE as u64;
            len = len.wrapping_mul(512) % (SIZE as u64 - offset).min(LONGEST.into());
        }
        if command == 3 && plain {
            (offset, len) = (0, 0);
        }
        if self.mode != Mode::Extended {
            len &= 0xffff_ffff;
        }
        if command == 2 {
            return false;
        }
        let fill = input.byte();
        self.ask(Asked { cookie: 0, command, offset, len, fill, sure: false }, flags)
    }

    fn ask(&mut self, mut asked: Asked, flags: u16) -> bool {
        let extended = self.mode == Mode::Extended;
        asked.cookie = 0x1000 + self.asked.len() as u64 * 3;
        let magic = if extended { 0x21e4_1c71 } else { 0x2560_9513 };
        let Asked { cookie, command, offset, len, fill, .. } = asked;
        be(&mut self.bytes, &[(magic, 4), (flags.into(), 2), (command.into(), 2), (cookie, 8), (offset, 8)]);
        be(&mut self.bytes, &[(len, if extended { 8 } else { 4 })]);
        let payload = command == 1 || (extended && flags & 32 != 0);
        if payload && len > 64 << 20 {
            return false;
        }
        if payload {
            // More than the server takes is dropped by it; a little of that is enough.
            if len > 4 * u64::from(LONGEST) {
                return false;
            }
            self.bytes.resize(self.bytes.len() + len as usize, fill);
        }
        self.asked.push_back(asked);
        true
    }
}

/// See the module.
pub(super) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let read_only = input.one_in(8);
    let cut = usize::from(input.short()) + 1;
    let mut talk = Talk { bytes: Vec::new(), mode: Mode::Simple, allocation: false, asked: VecDeque::new() };
    talk.shake(&mut input);
    let mut whole = true;
    for _ in 0..32 {
        if input.is_empty() || !whole {
            break;
        }
        whole = talk.request(&mut input);
    }
    if whole {
        for part in 0..SIZE.div_ceil(PART) {
            let (offset, len) = (part * PART, PART.min(SIZE - part * PART));
            let asked = Asked { cookie: 0, command: 0, offset: offset as u64, len: len as u64, fill: 0, sure: true };
            whole = talk.ask(asked, 0);
        }
        talk.ask(Asked { cookie: 0, command: 2, offset: 0, len: 0, fill: 0, sure: false }, 0);
        talk.asked.pop_back();
    }
    let said = exchange(read_only, &talk.bytes, cut);
    Judge { talk: &talk, at: after_handshake(&said), said: &said, model: vec![0; SIZE], read_only }
        .judge(talk.asked.iter(), whole);
}

fn exchange(read_only: bool, bytes: &[u8], cut: usize) -> Vec<u8> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut wires = Wires::new(ours);
    std::thread::scope(|scope| {
        let stop = Stop::new().unwrap();
        scope.spawn(move || drop(serve_connection(OwnedFd::from(theirs), export(read_only), &limits(), &stop)));
        for part in bytes.chunks(cut.max(64)) {
            wires.send(part);
        }
        wires.finish()
    })
}

fn number(bytes: &[u8], at: &mut usize, width: usize) -> u64 {
    let found = bytes.get(*at..*at + width).unwrap_or_else(|| panic!("the server ended inside a reply, at byte {at}"));
    *at += width;
    found.iter().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// Where replies to requests begin: behind the ACK of GO.
fn after_handshake(said: &[u8]) -> usize {
    let mut at = 18;
    loop {
        assert_eq!(number(said, &mut at, 8), 0x0003_e889_0455_65a9, "a reply to an option, at byte {at}");
        let (option, kind, len) = (number(said, &mut at, 4), number(said, &mut at, 4), number(said, &mut at, 4));
        at += len as usize;
        assert!(option != 7 || kind == 1 || kind == 3, "GO is refused");
        if option == 7 && kind == 1 {
            return at;
        }
    }
}

struct Judge<'a> {
    talk: &'a Talk,
    said: &'a [u8],
    at: usize,
    model: Vec<u8>,
    read_only: bool,
}

impl Judge<'_> {
    fn judge<'b>(mut self, asked: impl Iterator<Item = &'b Asked>, whole: bool) {
        for asked in asked {
            if !whole && self.at == self.said.len() {
                return;
            }
            let (error, payload) = self.reply(asked);
            if error != 0 {
                assert!(!asked.sure, "a right request failed with {error}");
                continue;
            }
            self.apply(asked, &payload);
        }
        assert!(!whole || self.at == self.said.len(), "something is said that nobody asked for");
    }

    fn next(&mut self, width: usize) -> u64 {
        number(self.said, &mut self.at, width)
    }

    /// The error number, and the payload of a success.
    fn reply(&mut self, asked: &Asked) -> (u64, Vec<u8>) {
        let magic = self.next(4);
        if magic == 0x6744_6698 {
            let error = self.next(4);
            assert_eq!(self.next(8), asked.cookie);
            let len = if error == 0 && asked.command == 0 { asked.len as usize } else { 0 };
            assert!(self.talk.mode == Mode::Simple || (len == 0 && self.talk.mode == Mode::Structured));
            return (error, self.bytes(len));
        }
        let extended = self.talk.mode == Mode::Extended;
        assert_eq!(magic, if extended { 0x6e8a_278c } else { 0x668e_33ef });
        let (flags, kind) = (self.next(2), self.next(2));
        assert_eq!((flags & 1, self.next(8)), (1, asked.cookie), "one chunk for each request");
        if extended {
            assert_eq!(self.next(8), asked.offset);
        }
        let len = self.next(if extended { 8 } else { 4 }) as usize;
        let payload = self.bytes(len);
        match kind {
            0 => assert_eq!(len, 0),
            1 => {
                assert_eq!((asked.command, &payload[..8]), (0, &asked.offset.to_be_bytes()[..]));
                return (0, payload[8..].to_vec());
            }
            5 | 6 => assert!(asked.command == 7 && self.talk.allocation && extended == (kind == 6)),
            0x8001 => {
                let mut at = 0;
                let error = number(&payload, &mut at, 4);
                assert_eq!(number(&payload, &mut at, 2) as usize, len - 6);
                assert_ne!(error, 0);
                return (error, Vec::new());
            }
            kind => panic!("a chunk of type {kind}"),
        }
        (0, Vec::new())
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let found = self.said.get(self.at..self.at + len).expect("the server ended inside a payload").to_vec();
        self.at += len;
        found
    }

    fn apply(&mut self, asked: &Asked, payload: &[u8]) {
        let range = asked.offset as usize..(asked.offset.saturating_add(asked.len)) as usize;
        let changes = matches!(asked.command, 1 | 4 | 6);
        assert!(asked.command <= 7 && !(changes && self.read_only), "command {} is taken", asked.command);
        assert!(asked.command == 7 || range.end <= SIZE, "a request past the end is taken");
        match asked.command {
            0 => assert!(payload == &self.model[range], "wrong bytes"),
            1 => self.model[range].fill(asked.fill),
            4 | 6 => self.model[range].fill(0),
            _ => {}
        }
    }
}
