//! A ring file of whole, half and stale records, then damaged; opened, read, written to, opened again.

use crate::input::Input;
use crate::place;
use afterimage_format::record::{Kind, Record};
use afterimage_format::ring::{DONE, PAGE, RingHeader, SLOT, Tail, word};
use afterimage_journal::{Ring, RingError};
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

const VOLUME: [u8; 16] = [1; 16];
const SLOTS: u64 = 64;

/// The id of this boot, as rings and maps hold it.
pub(super) fn boot() -> [u64; 2] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let id = uuid::Uuid::parse_str(text.trim()).unwrap().as_u128();
    [(id >> 64) as u64, id as u64]
}

struct Maker {
    header: RingHeader,
    file: Vec<u8>,
    tail: Tail,
    /// Pages used.
    end: u64,
    /// Seqs that hold a whole record, and its payload.
    whole: BTreeMap<u64, Vec<u8>>,
    /// Nothing in it is other than a killed process may leave.
    honest: bool,
}

impl Maker {
    fn new(input: &mut Input<'_>) -> Maker {
        let header = RingHeader { volume: VOLUME, ring: [2; 16], slots: SLOTS, pages: 1 + input.below(24) as u64 };
        let turn = input.below(4) as u64;
        let seq = if input.one_in(4) { input.number() } else { 1 + input.below(200) as u64 };
        let pages = if input.one_in(4) { input.number() } else { input.below(200) as u64 };
        let tail = Tail { turn, seq, pages, freed_seq: seq.wrapping_sub(1), freed_digest: 7 };
        let honest = seq > 0 && seq < 1 << 40 && pages < 1 << 40;
        let file = vec![0; header.file_len() as usize];
        let mut maker = Maker { header, file, tail, end: pages, whole: BTreeMap::new(), honest };
        maker.head(input);
        maker
    }

    fn word(&mut self, index: usize, value: u64) {
        self.file[index * 8..index * 8 + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn head(&mut self, input: &mut Input<'_>) {
        let (header, tail, boot) = (self.header, self.tail, boot());
        self.file[..64].copy_from_slice(&header.encode());
        self.word(word::BOOT, boot[0]);
        self.word(word::BOOT + 1, boot[1]);
        self.word(word::BOOT_CHECK, header.boot_check(boot));
        self.word(word::TURN, tail.turn);
        let at = word::TAILS[usize::from(tail.turn % 2 == 1)];
        for (i, value) in tail.encode(&header.ring).into_iter().enumerate() {
            self.word(at + i, value);
        }
        if input.one_in(4) {
            let closed = input.number();
            self.word(word::CLOSED, closed);
            self.word(word::CLOSED_CHECK, header.closed_check(closed));
        }
    }

    /// The slot of `seq`.
    fn slot(&mut self, seq: u64, input: &mut Input<'_>) {
        match input.below(10) {
            0 | 1 => {}
            2 => {
                // Left from the lap before.
                let old = seq.wrapping_sub(SLOTS);
                let record = Record { place: DONE, ..record(Kind::Zero, old) };
                self.put(seq, &record);
                self.honest &= old > 0 && old < seq;
            }
            3 => {
                let mut record = record(Kind::Write, input.near(seq));
                (record.offset, record.len) = (input.number(), input.number());
                (record.payload_hash, record.place) = (input.number(), input.number());
                self.put(seq, &record);
                self.honest = false;
            }
            kind => self.whole_record(seq, kind, input),
        }
    }

    fn whole_record(&mut self, seq: u64, kind: usize, input: &mut Input<'_>) {
        let kind = [Kind::Write, Kind::Write, Kind::Zero, Kind::Point, Kind::Gap, Kind::SyncEnd][kind - 4];
        let len = match kind {
            Kind::Write => usize::from(input.short()) % 9000,
            Kind::Point => input.below(256),
            _ => 0,
        };
        let n = (len as u64).div_ceil(PAGE);
        let (pages, index) = (self.header.pages, self.end % self.header.pages);
        let end = if n > 0 && index + n > pages {
            self.end.wrapping_add(pages - index + n)
        } else {
            self.end.wrapping_add(n)
        };
        if n > pages || end.wrapping_sub(self.tail.pages) > pages {
            return;
        }
        let payload = vec![input.byte() | 1; len];
        let page = end.wrapping_sub(n) % pages;
        let at = (self.header.data_at() + page * PAGE) as usize;
        self.file[at..at + len].copy_from_slice(&payload);
        let done = matches!(kind, Kind::Point | Kind::Gap | Kind::SyncEnd) || input.one_in(2);
        let mut record = record(kind, seq);
        record.len = if kind == Kind::Zero { 4096 } else { len as u64 };
        record.payload_hash = if len > 0 { xxh3_64(&payload) } else { 0 };
        record.place = (end & ((1 << 48) - 1)) | if done { DONE } else { 0 };
        self.put(seq, &record);
        if input.one_in(6) {
            // Killed right before the store of its seq: still the whole record.
            let at = self.slot_at(seq) + 8;
            self.file[at..at + 8].fill(0);
        }
        self.end = end;
        self.whole.insert(seq, payload);
    }

    fn slot_at(&self, seq: u64) -> usize {
        (PAGE + seq % SLOTS * SLOT) as usize
    }

    fn put(&mut self, seq: u64, record: &Record) {
        let at = self.slot_at(seq);
        self.file[at..at + 64].copy_from_slice(&record.encode());
    }
}

fn record(kind: Kind, seq: u64) -> Record {
    Record { kind, flags: 0, seq, offset: 0, len: 0, time: 1000, payload_hash: 0, place: 0 }
}

/// See the module.
pub(super) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut maker = Maker::new(&mut input);
    let (damaged, first) = (input.one_in(2), maker.tail.seq);
    for seq in (0..SLOTS).map(|i| first.wrapping_add(i)) {
        if input.is_empty() {
            break;
        }
        maker.slot(seq, &mut input);
    }
    if damaged {
        maker.honest &= !input.edit(&mut maker.file, 8);
    }
    let folder = place::folder();
    let path = folder.path().join("ring");
    std::fs::write(&path, &maker.file).unwrap();
    let opened = Ring::open(&path, VOLUME);
    let next = maker.whole.keys().next_back().map_or(first, |last| last.wrapping_add(1));
    match opened {
        Ok((ring, found)) => {
            assert!(!maker.honest || (found.first, found.next) == (first, next), "{found:?}");
            look(&ring, &maker);
            drop(ring);
            again(&path, (found.first, found.next));
        }
        Err(e) => {
            assert!(!maker.honest, "{e}");
            assert!(!matches!(e, RingError::Io { .. } | RingError::InUse { .. }), "{e}");
            let after = std::fs::read(&path).unwrap();
            assert!(after == maker.file, "a refused ring is left as it is");
        }
    }
}

/// What a ring shows is whole, and what was written.
fn look(ring: &Ring, maker: &Maker) {
    for seq in ring.first()..ring.next() {
        let shown = ring.record(seq).unwrap().unwrap();
        let payload = shown.payload();
        assert_eq!((shown.record.seq, shown.record.payload_len()), (seq, payload.len()));
        assert!(payload.is_empty() || xxh3_64(payload) == shown.record.payload_hash, "seq {seq} shows other bytes");
        match maker.whole.get(&seq) {
            Some(was) => assert!(!maker.honest || was == payload, "seq {seq}"),
            None => assert!(!maker.honest || shown.record.kind == Kind::Void, "seq {seq} was never written"),
        }
    }
    if let Ok(mut place) = ring.reserve(Kind::Write, 0, 0, 100, 100) {
        place.payload_mut().fill(9);
        let seq = place.publish(5);
        assert_eq!(ring.record(seq).unwrap().unwrap().payload(), [9; 100]);
        ring.mark_done(seq);
    }
    ring.set_durable(ring.first());
}

/// Recovery ends where it began: a second one finds as much, and what was added since.
fn again(path: &Path, before: (u64, u64)) {
    let (ring, found) = Ring::open(path, VOLUME).unwrap();
    assert!(found.first >= before.0 && found.next >= before.1 && found.voided.is_empty());
    drop(ring);
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&[0xff; 8], 64).unwrap();
    assert!(Ring::open(path, VOLUME).is_err(), "a boot id that is none");
}
