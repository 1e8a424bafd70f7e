//! The plain model: what clients did, what the wire carried, and so what may be on the disk and what the appliance must show.
//!
//! **Disk.** In each granule of 64 bytes the disk must hold what one of the *candidates* wrote: all operations that covered it, except those
//! that had been answered before another one began that was answered itself. After a power cut an operation supersedes others only if it
//! was flushed.
//!
//! **History.** What the agent sends on the session that the appliance serves is the volume's log, in the order of seqs; a Welcome cuts it off
//! behind the seq that it names. The image of a seq is the log replayed up to there. A seq is valid if the last Gap or SyncEnd at or
//! before it is a SyncEnd.

mod tap;

use crate::disk::SECTOR;
use afterimage_format::record::{Kind, Record};
use afterimage_format::wire::Welcome;
use std::sync::{Mutex, MutexGuard, PoisonError};
pub use tap::Tap;

/// Bytes that are told apart.
pub const GRANULE: usize = 64;
const _: () = assert!(SECTOR.is_multiple_of(GRANULE));

/// What an operation leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Zeroes.
    Zero,
    /// Bytes that no other operation writes.
    Own(u64),
    /// Bytes that others write too.
    Common(u64),
}

impl Mark {
    /// What it writes to granule number `granule` of the disk.
    pub fn fill(self, granule: usize, out: &mut [u8]) {
        let (a, b) = match self {
            Mark::Zero => return out.fill(0),
            Mark::Own(id) => (id << 1 | 1, granule as u64),
            Mark::Common(k) => (k << 1 | 1 | 1 << 60, (granule % 64) as u64),
        };
        // Most of it cannot be compressed, and holds nothing twice: that takes the least time.
        let random = !matches!(self, Mark::Own(id) if id % 16 == 0);
        let mut state = (a ^ b << 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        for (i, word) in out.chunks_mut(8).enumerate() {
            state = state.wrapping_add(0xA076_1D64_78BD_642F).rotate_left(23).wrapping_mul(0xE703_7ED1_A0B4_28DB);
            let value = match i {
                _ if random => state ^ state >> 32,
                _ if i % 2 == 0 => a,
                _ => b ^ (i as u64) << 32,
            };
            word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
        }
    }

    fn is(self, granule: usize, bytes: &[u8]) -> bool {
        let mut want = [0; GRANULE];
        self.fill(granule, &mut want[..bytes.len()]);
        want[..bytes.len()] == *bytes
    }
}

#[derive(Debug, Clone)]
struct Op {
    mark: Mark,
    offset: usize,
    len: usize,
    submitted: u64,
    /// Answered, or settled by a death.
    answered: Option<u64>,
    flushed: bool,
}

/// A record that was sent.
#[derive(Debug, Clone)]
pub struct Sent {
    /// Its header.
    pub record: Record,
    payload: Vec<u8>,
}

/// A log, and the size before its first record.
pub type Past = (Vec<Sent>, usize);

/// What is known of one volume.
pub struct Volume {
    /// Its name.
    pub name: String,
    size: usize,
    ops: Vec<Op>,
    now: u64,
    candidates: Vec<Vec<u32>>,
    durable: Vec<Vec<u32>>,
    unflushed: Vec<u32>,
    /// Errors of syncs that guests were told of when the last flush was answered.
    told: u64,
    /// What began before is not covered by any flush.
    spoilt: u64,
    /// The log, in the order of seqs.
    pub log: Vec<Sent>,
    /// Connection of the session that the appliance serves.
    serving: u64,
    /// Highest seq that the appliance has said to be durable.
    pub acked: u64,
    /// The appliance may have lost what it acknowledged.
    pub forgiven: bool,
    /// The vault was lost: the next Welcome may be behind anything.
    pub lost: bool,
    /// A size that was asked for, without an answer so far.
    asked: Option<usize>,
    /// Size of the volume in the last Hello.
    hello: usize,
    /// Size of the history before its first record.
    first: usize,
    image: Image,
}

/// The log replayed up to somewhere.
struct Image {
    records: usize,
    size: usize,
    bytes: Vec<u8>,
}

/// Bytes by which a volume may grow.
pub const GROWTH: usize = 32 * 4096;

fn granules(offset: usize, len: usize) -> std::ops::Range<usize> {
    offset / GRANULE..(offset + len).div_ceil(GRANULE)
}

impl Volume {
    fn new(name: String, size: usize) -> Volume {
        let most = size + GROWTH;
        let none = vec![vec![0]; most.div_ceil(GRANULE)];
        let zero = Op { mark: Mark::Zero, offset: 0, len: most, submitted: 0, answered: Some(0), flushed: true };
        Volume {
            name,
            size,
            ops: vec![zero],
            now: 1,
            candidates: none.clone(),
            durable: none,
            unflushed: Vec::new(),
            told: 0,
            spoilt: 0,
            log: Vec::new(),
            serving: 0,
            acked: 0,
            forgiven: false,
            lost: false,
            asked: None,
            hello: size,
            first: size,
            image: Image { records: 0, size, bytes: vec![0; most] },
        }
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Most bytes that it may have.
    #[must_use]
    pub fn most(&self) -> usize {
        self.image.bytes.len()
    }

    /// Another size is asked for.
    pub fn ask_size(&mut self, size: usize) {
        self.asked = Some(size);
    }

    /// The answer: the size that it has now.
    pub fn sized(&mut self, size: usize) {
        (self.size, self.asked) = (size, None);
    }

    /// The agent is back, and says a size.
    ///
    /// # Errors
    /// If the volume cannot have that.
    pub fn came_back(&mut self, size: usize, disk: usize) -> Result<(), String> {
        if size != self.size && Some(size) != self.asked && size != disk {
            let (was, asked) = (self.size, self.asked);
            return Err(format!("volume {} has {size} bytes; it had {was}, {asked:?} were asked for", self.name));
        }
        self.sized(size);
        Ok(())
    }

    fn forget_image(&mut self) {
        (self.image.records, self.image.size) = (0, self.first);
        self.image.bytes.fill(0);
    }

    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// An operation begins. `mark` gets its number.
    pub fn begin(&mut self, mark: impl FnOnce(u64) -> Mark, offset: usize, len: usize) -> (u32, Mark) {
        let id = u32::try_from(self.ops.len()).unwrap_or(u32::MAX);
        let mark = mark(u64::from(id));
        let submitted = self.tick();
        self.ops.push(Op { mark, offset, len, submitted, answered: None, flushed: false });
        for g in granules(offset, len) {
            self.candidates[g].push(id);
            self.durable[g].push(id);
        }
        (id, mark)
    }

    /// An operation was answered.
    pub fn answered(&mut self, id: u32, good: bool, durable: bool) {
        let now = self.tick();
        let op = &mut self.ops[id as usize];
        op.answered = Some(now);
        if !good {
            return;
        }
        let op = op.clone();
        for g in granules(op.offset, op.len) {
            supersede(&mut self.candidates[g], &self.ops, id, op.submitted);
        }
        if self.ops[id as usize].submitted > self.spoilt {
            self.unflushed.push(id);
        }
        if durable {
            self.flush_one(id);
        }
    }

    fn flush_one(&mut self, id: u32) {
        let op = self.ops[id as usize].clone();
        if op.flushed {
            return;
        }
        self.ops[id as usize].flushed = true;
        for g in granules(op.offset, op.len) {
            supersede(&mut self.durable[g], &self.ops, id, op.submitted);
        }
    }

    /// A flush begins.
    pub fn begin_flush(&mut self) -> u64 {
        self.tick()
    }

    /// A flush that began then was answered. `told` counts the errors of syncs that guests were told of so far: with a
    /// new one among them, what was written before may never be durable, whatever this flush and later ones say.
    pub fn flushed(&mut self, began: u64, good: bool, told: u64) {
        let news = std::mem::replace(&mut self.told, told) != told;
        if !good || news {
            self.unflushed.clear();
            self.spoilt = self.tick();
            return;
        }
        let (done, rest): (Vec<u32>, Vec<u32>) = std::mem::take(&mut self.unflushed)
            .into_iter()
            .partition(|id| self.ops[*id as usize].answered.is_some_and(|t| t < began));
        self.unflushed = rest;
        done.into_iter().for_each(|id| self.flush_one(id));
    }

    /// The agent is back: what was under way has got to the disk by now, or never will. Checks the disk.
    ///
    /// # Errors
    /// What is there that may not be.
    pub fn settle(&mut self, disk: &[u8], power_cut: bool) -> Result<(), String> {
        let now = self.tick();
        self.ops.iter_mut().filter(|o| o.answered.is_none()).for_each(|o| o.answered = Some(now));
        self.check(disk, power_cut)?;
        let ops = &self.ops;
        for (g, bytes) in disk.chunks(GRANULE).enumerate() {
            if power_cut {
                self.candidates[g] = self.durable[g].clone();
                self.durable[g].retain(|c| ops[*c as usize].mark.is(g, bytes));
            }
            self.candidates[g].retain(|c| ops[*c as usize].mark.is(g, bytes));
        }
        if power_cut {
            self.unflushed.clear();
        }
        Ok(())
    }

    /// Checks what is on the disk.
    ///
    /// # Errors
    /// What is there that may not be.
    pub fn check(&self, disk: &[u8], power_cut: bool) -> Result<(), String> {
        let candidates = if power_cut { &self.durable } else { &self.candidates };
        for (g, bytes) in disk.chunks(GRANULE).enumerate() {
            if !candidates[g].iter().any(|c| self.ops[*c as usize].mark.is(g, bytes)) {
                let may: Vec<String> =
                    candidates[g].iter().map(|c| format!("{c}: {:?}", self.ops[*c as usize])).collect();
                let is: Vec<String> =
                    self.ops.iter().filter(|o| o.mark.is(g, bytes)).map(|o| format!("{o:?}")).collect();
                return Err(format!(
                    "volume {}: byte {} of the disk holds {:02x?}, written by {is:?}, and may only hold what one of these wrote: \
                     {may:?}",
                    self.name,
                    g * GRANULE,
                    &bytes[..16.min(bytes.len())],
                ));
            }
        }
        Ok(())
    }

    /// The vault is again what it was when this was its log.
    pub fn put_back(&mut self, past: &Past) {
        (self.log, self.first) = past.clone();
        (self.serving, self.lost) = (0, true);
        self.forget_image();
    }

    /// What a vault is to be compared with that is as it is now.
    #[must_use]
    pub fn past(&self) -> Past {
        (self.log.clone(), self.first)
    }

    /// Somebody else writes to the disk; what was there is gone, durably.
    pub fn write_behind(&mut self, offset: usize) -> Mark {
        let (id, mark) = self.begin(Mark::Own, offset, GRANULE);
        self.answered(id, true, true);
        mark
    }

    /// Newest seq that was sent.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.log.last().map_or(0, |s| s.record.seq)
    }

    /// The records that begin and end gaps, by seq.
    #[must_use]
    pub fn bounds(&self) -> Vec<(u64, Kind)> {
        let bounds = self.log.iter().map(|s| (s.record.seq, s.record.kind));
        bounds.filter(|(_, kind)| matches!(kind, Kind::Gap | Kind::SyncEnd)).collect()
    }

    /// Whether a seq is a valid image.
    #[must_use]
    pub fn valid(&self, seq: u64) -> bool {
        let end = self.log.partition_point(|s| s.record.seq <= seq);
        let last = self.log[..end].iter().rev().find(|s| matches!(s.record.kind, Kind::Gap | Kind::SyncEnd));
        seq <= self.last() && last.is_some_and(|s| s.record.kind == Kind::SyncEnd)
    }

    /// The image at a seq: as many bytes as the volume had then.
    pub fn image(&mut self, seq: u64) -> &[u8] {
        let end = self.log.partition_point(|s| s.record.seq <= seq);
        if end < self.image.records {
            self.forget_image();
        }
        let Image { records, size, bytes } = &mut self.image;
        for sent in &self.log[*records..end] {
            let at = usize::try_from(sent.record.offset).unwrap_or(usize::MAX);
            match sent.record.kind {
                Kind::Write => bytes[at..at + sent.payload.len()].copy_from_slice(&sent.payload),
                Kind::Zero => bytes[at..at + usize::try_from(sent.record.len).unwrap_or(0)].fill(0),
                _ => {}
            }
            if let Some(new) = sent.record.new_size().and_then(|n| usize::try_from(n).ok()) {
                // What a smaller size drops does not come back.
                bytes[new.min(*size)..].fill(0);
                *size = new;
            }
        }
        *records = end;
        &self.image.bytes[..self.image.size]
    }

    fn welcome(&mut self, number: u64, w: &Welcome) -> Result<(), String> {
        let name = self.name.clone();
        if w.durable < self.acked && !self.forgiven && !std::mem::take(&mut self.lost) {
            return Err(format!(
                "I5: volume {name}: the appliance had acknowledged seq {} and is now at {}",
                self.acked, w.durable
            ));
        }
        if w.durable > self.last() {
            return Err(format!("volume {name}: the appliance is at seq {}, sent was {}", w.durable, self.last()));
        }
        let end = self.log.partition_point(|s| s.record.seq <= w.durable);
        self.log.truncate(end);
        if w.durable == 0 {
            self.first = self.hello;
        }
        if end < self.image.records || w.durable == 0 {
            self.forget_image();
        }
        if w.ring != [0; 16]
            && self.log.last().is_some_and(|s| s.record.seq != w.durable || s.record.digest() != w.digest)
        {
            return Err(format!("volume {name}: the appliance's record {} is not the one that was sent", w.durable));
        }
        self.acked = w.durable;
        self.serving = number;
        Ok(())
    }

    fn sent(&mut self, number: u64, record: Record, payload: &[u8]) -> Result<(), String> {
        if number != self.serving {
            return Ok(());
        }
        if record.seq != self.last() + 1 && !(record.kind == Kind::Gap && record.seq > self.last()) {
            return Err(format!("volume {}: seq {} was sent behind {}", self.name, record.seq, self.last()));
        }
        self.log.push(Sent { record, payload: payload.to_vec() });
        Ok(())
    }
}

/// Takes away what was answered before `submitted`, but `id` itself.
fn supersede(list: &mut Vec<u32>, ops: &[Op], id: u32, submitted: u64) {
    list.retain(|c| *c == id || ops[*c as usize].answered.is_none_or(|t| t > submitted));
}

/// All volumes.
#[derive(Default)]
pub struct Model {
    volumes: Mutex<Vec<Volume>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Model {
    /// Adds a volume.
    pub fn add(&self, name: &str, size: usize) {
        lock(&self.volumes).push(Volume::new(name.to_owned(), size));
    }

    /// Looks at a volume, or changes it.
    pub fn with<T>(&self, index: usize, f: impl FnOnce(&mut Volume) -> T) -> T {
        f(&mut lock(&self.volumes)[index])
    }

    /// Number of volumes.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.volumes).len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
