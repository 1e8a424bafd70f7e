//! The manifest of a vault: what exists. Small, and replaced as a whole.
//!
//! ```text
//! offset  size  field
//!      0     4  magic "AIM1"
//!      4     4  version
//!      8     8  length of the body
//!     16     8  xxh3-64 of bytes 0..16 and the body
//!     24        body
//! ```
//!
//! The body is the fields of [`Manifest`] in the order in which they stand there: numbers as LEB128, ids and
//! checksums as they are, texts with a `u16` length before them, lists with their length before them. In version 1 a volume has
//! a number of no meaning behind `layered_to`, and no `sizes`; before version 3 a point has only its first four fields, and a volume
//! no `retention` and no `fork`; before version 4 it has no `epoch` and no `fence`. A segment or layer file
//! that no manifest names is rubbish. Data is durable before the layer that names it, and the layer before the manifest.

use crate::codec::{DecodeError, Reader, Writer};
use crate::fence::Fence;
use crate::layer::LayerMeta;
use crate::record::{MAX_NAME, MAX_NOTE};
use xxhash_rust::xxh3::Xxh3;

/// First four bytes of a manifest.
pub const MAGIC: u32 = u32::from_le_bytes(*b"AIM1");
/// The version written. Version 1, without sizes and with a number that nobody used, version 2, without retention and branches, and
/// version 3, without epochs and fences, are read too.
pub const VERSION: u32 = 4;
const FIRST_VERSION: u32 = 1;
/// Retention of each volume, notes of points, branches.
const RETENTION_VERSION: u32 = 3;
/// Epochs, fences and what old primaries had.
const FENCE_VERSION: u32 = 4;
/// Bytes before the body.
pub const HEADER_LEN: usize = 24;
const WHAT: &str = "manifest";

/// How the vault key is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyWrap {
    /// In a file of its own, as it is.
    File,
    /// In this manifest, sealed with AES-256-GCM under a key that argon2id makes from a passphrase.
    Passphrase {
        /// Memory of argon2id in KiB.
        memory_kib: u32,
        /// Passes of argon2id.
        passes: u32,
        /// Lanes of argon2id.
        lanes: u32,
        /// Salt of argon2id.
        salt: [u8; 16],
        /// The sealed vault key and its tag. The nonce is zero: the wrapping key, made from a fresh salt, seals once.
        sealed: [u8; 48],
    },
}

/// What became of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SegmentState {
    /// It is being written, or was when the process died. Its length is found by reading it.
    Open = 0,
    /// It takes no more and has no footer: what counts is its first `length` bytes.
    Closed = 1,
    /// It ends with a directory and a footer.
    Sealed = 2,
}

/// A segment that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentMeta {
    /// Its number, from 1, never used again.
    pub number: u32,
    /// The volume whose stream it holds, or whose blocks it holds in the order of the disk (`last_seq` is 0 then); zero for
    /// blocks copied by collection, and for copies that are not whole yet: a start removes those.
    pub volume: [u8; 16],
    /// What became of it.
    pub state: SegmentState,
    /// Bytes that count; 0 while it is open.
    pub length: u64,
    /// Seq of the last record in its commit frames, 0 if there is none or it is open. Once layers hold that seq, its
    /// commit frames are not needed.
    pub last_seq: u64,
}

/// A recovery point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointMeta {
    /// Its name.
    pub name: String,
    /// The seq that the volume is at.
    pub seq: u64,
    /// Nanoseconds since 1970.
    pub time: u64,
    /// Made by policy: may be thinned away.
    pub auto: bool,
    /// When the appliance first saw it, by its own clock, in nanoseconds since 1970; 0 if it has not looked yet.
    pub seen: u64,
    /// Kept because somebody said so.
    pub pinned: bool,
    /// How it was made, as the agent tells it (JSON); empty if there is nothing to tell.
    pub note: String,
}

impl PointMeta {
    /// A point that was just made.
    #[must_use]
    pub const fn new(name: String, seq: u64, time: u64, auto: bool) -> PointMeta {
        PointMeta { name, seq, time, auto, seen: 0, pinned: false, note: String::new() }
    }
}

/// What of a volume's history is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RetentionMeta {
    /// How far back any write can be chosen, in nanoseconds.
    pub window: u64,
    /// Of points before that: how many hours one is kept for,
    pub hourly: u32,
    /// days,
    pub daily: u32,
    /// weeks,
    pub weekly: u32,
    /// and months.
    pub monthly: u32,
    /// Nothing goes while this is set.
    pub hold: bool,
}

impl RetentionMeta {
    /// A window and nothing before it.
    #[must_use]
    pub const fn window(window: u64) -> RetentionMeta {
        RetentionMeta { window, hourly: 0, daily: 0, weekly: 0, monthly: 0, hold: false }
    }
}

/// A hole in the history: no prefix that ends at `from_seq` or later, and before `to_seq`, is a valid image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GapMeta {
    /// First seq that is hidden: that of the gap record, or the first that it skips.
    pub from_seq: u64,
    /// When the gap began, in nanoseconds since 1970.
    pub from_time: u64,
    /// Seq of the record that ended it; `None` while it is open.
    pub to_seq: Option<u64>,
    /// Time of that record; 0 while it is open.
    pub to_time: u64,
    /// Begins an initial sync: there is no history before it.
    pub initial: bool,
}

/// A change of a volume's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeMeta {
    /// Seq of the record that made it.
    pub from_seq: u64,
    /// Size in bytes from that seq on.
    pub size: u64,
}

/// What a branch has become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ForkKind {
    /// A branch: what its layers do not know is as in its parent at the fork.
    Branch = 1,
    /// The same for what a writable export takes: a start drops it.
    Scratch = 2,
    /// It was promoted: its layers know everything, and the parent is only where it came from.
    Promoted = 3,
    /// What the agent of a fenced volume had that the volume's history has not: only that agent's records go into it (I13).
    Tail = 4,
}

/// Where a branch began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForkMeta {
    /// Id of the volume that it is a branch of.
    pub parent: [u8; 16],
    /// The last seq that is the parent's. The branch's own begin behind it.
    pub seq: u64,
    /// When it was made, in nanoseconds since 1970.
    pub created: u64,
    /// What it is now.
    pub kind: ForkKind,
}

impl ForkMeta {
    /// Whether the branch reads through to its parent.
    #[must_use]
    pub const fn leans(&self) -> bool {
        !matches!(self.kind, ForkKind::Promoted)
    }
}

/// Why the agent of a volume may not take writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FenceMeta {
    /// Draining, or closed.
    pub state: Fence,
    /// Who put it up, and alone takes it down: a failover job.
    pub owner: String,
    /// When, in nanoseconds since 1970.
    pub since: u64,
}

/// A volume and its history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeMeta {
    /// Its id.
    pub id: [u8; 16],
    /// Its name, unique in the vault.
    pub name: String,
    /// Its size in bytes before the first of `sizes`.
    pub size: u64,
    /// Ring id of the session that wrote `durable_seq`.
    pub ring: [u8; 16],
    /// Newest durable seq when this was written; commit frames may hold more.
    pub durable_seq: u64,
    /// Digest of the record at `durable_seq`.
    pub digest: u64,
    /// Time label at `durable_seq`, nanoseconds since 1970.
    pub durable_time: u64,
    /// Bytes that its writes up to `durable_seq` covered, before any reduction.
    pub logical_bytes: u64,
    /// First seq of the window: the oldest one that can be chosen.
    pub first_seq: u64,
    /// Its time.
    pub first_time: u64,
    /// The layers hold every record up to this seq; replay begins behind it.
    pub layered_to: u64,
    /// The layers, oldest first.
    pub layers: Vec<LayerMeta>,
    /// Points at or before `layered_to`, oldest first.
    pub points: Vec<PointMeta>,
    /// Gaps that began at or before `layered_to`, oldest first.
    pub gaps: Vec<GapMeta>,
    /// Changes of its size at or before `layered_to`, oldest first.
    pub sizes: Vec<SizeMeta>,
    /// What is kept; `None` for what the appliance keeps of volumes of which nobody has said more.
    pub retention: Option<RetentionMeta>,
    /// For a branch, where it began. Its parent stands before it in the manifest.
    pub fork: Option<ForkMeta>,
    /// Grows with each fence that is put up, and with each that is taken down.
    pub epoch: u64,
    /// The fence, if there is one.
    pub fence: Option<FenceMeta>,
}

impl VolumeMeta {
    /// A volume without history.
    #[must_use]
    pub fn new(id: [u8; 16], name: String, size: u64) -> Self {
        Self {
            id,
            name,
            size,
            ring: [0; 16],
            durable_seq: 0,
            digest: 0,
            durable_time: 0,
            logical_bytes: 0,
            first_seq: 0,
            first_time: 0,
            layered_to: 0,
            layers: Vec::new(),
            points: Vec::new(),
            gaps: Vec::new(),
            sizes: Vec::new(),
            retention: None,
            fork: None,
            epoch: 0,
            fence: None,
        }
    }

    /// Up to which seq other layers than its own answer: the first of its own begins behind it.
    #[must_use]
    pub fn leans_to(&self) -> u64 {
        self.fork.filter(ForkMeta::leans).map_or(0, |f| f.seq)
    }
}

/// Everything that exists in a vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The vault's id.
    pub vault: [u8; 16],
    /// Grows with every replacement.
    pub edition: u64,
    /// How the key is kept.
    pub wrap: KeyWrap,
    /// A keyed hash that tells the right key from a wrong one.
    pub key_check: [u8; 16],
    /// Number of the next segment.
    pub next_segment: u32,
    /// The segments, by number.
    pub segments: Vec<SegmentMeta>,
    /// The volumes.
    pub volumes: Vec<VolumeMeta>,
}

fn checksum(header: &[u8], body: &[u8]) -> u64 {
    let mut h = Xxh3::new();
    h.update(header);
    h.update(body);
    h.digest()
}

impl Manifest {
    /// The file's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(256 + self.segments.len() * 32);
        body.extend_from_slice(&self.vault);
        body.put_varint(self.edition);
        put_wrap(&mut body, &self.wrap);
        body.extend_from_slice(&self.key_check);
        body.put_varint(u64::from(self.next_segment));
        put_list(&mut body, &self.segments, put_segment);
        put_list(&mut body, &self.volumes, put_volume);
        let mut out = Vec::with_capacity(HEADER_LEN + body.len());
        out.put_u32(MAGIC);
        out.put_u32(VERSION);
        out.put_u64(body.len() as u64);
        let sum = checksum(&out, &body);
        out.put_u64(sum);
        out.extend_from_slice(&body);
        out
    }

    /// Checks and reads a manifest.
    ///
    /// # Errors
    /// [`DecodeError`]: the version is looked at before the checksum, so that a newer file is named as what it is.
    pub fn decode(bytes: &[u8]) -> Result<Manifest, DecodeError> {
        let mut r = Reader::new(WHAT, bytes);
        if r.u32()? != MAGIC {
            return Err(DecodeError::Magic { what: WHAT });
        }
        let version = r.u32()?;
        if !(FIRST_VERSION..=VERSION).contains(&version) {
            return Err(DecodeError::Version { what: WHAT, found: version, known: VERSION });
        }
        let (len, sum) = (r.u64()?, r.u64()?);
        let body = r.rest();
        if body.len() as u64 != len {
            let need = usize::try_from(len).unwrap_or(usize::MAX);
            return Err(DecodeError::Truncated { what: WHAT, need, have: body.len() });
        }
        if checksum(&bytes[..16], body) != sum {
            return Err(DecodeError::Checksum { what: WHAT });
        }
        let manifest = Manifest {
            vault: r.array()?,
            edition: r.varint()?,
            wrap: wrap(&mut r)?,
            key_check: r.array()?,
            next_segment: narrow(r.varint()?, "next segment")?,
            segments: list(&mut r, segment)?,
            volumes: list(&mut r, |r| volume(r, version))?,
        };
        r.end()?;
        Ok(manifest)
    }

    /// The volume with this id.
    #[must_use]
    pub fn volume(&self, id: &[u8; 16]) -> Option<&VolumeMeta> {
        self.volumes.iter().find(|v| v.id == *id)
    }

    /// The seqs of a volume at which branches begin that read through to it: they stay readable whatever the window says (I10).
    pub fn fork_seqs<'a>(&'a self, id: &'a [u8; 16]) -> impl Iterator<Item = u64> + 'a {
        let forks = self.volumes.iter().filter_map(|v| v.fork);
        forks.filter(|f| f.leans() && f.parent == *id).map(|f| f.seq)
    }
}

fn put_list<T>(b: &mut Vec<u8>, items: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    b.put_varint(items.len() as u64);
    for item in items {
        put(b, item);
    }
}

fn list<T>(
    r: &mut Reader<'_>,
    read: impl Fn(&mut Reader<'_>) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let count = r.varint()?;
    // Every item takes at least a byte, so a count beyond what is left is a lie and sizes nothing (I12).
    if count > r.rest().len() as u64 {
        return Err(DecodeError::Field { what: WHAT, field: "count", value: count });
    }
    (0..count).map(|_| read(r)).collect()
}

fn narrow(v: u64, field: &'static str) -> Result<u32, DecodeError> {
    u32::try_from(v).map_err(|_| DecodeError::Field { what: WHAT, field, value: v })
}

fn put_wrap(b: &mut Vec<u8>, w: &KeyWrap) {
    match w {
        KeyWrap::File => b.push(0),
        KeyWrap::Passphrase { memory_kib, passes, lanes, salt, sealed } => {
            b.push(1);
            b.put_varint(u64::from(*memory_kib));
            b.put_varint(u64::from(*passes));
            b.put_varint(u64::from(*lanes));
            b.extend_from_slice(salt);
            b.extend_from_slice(sealed);
        }
    }
}

fn wrap(r: &mut Reader<'_>) -> Result<KeyWrap, DecodeError> {
    match r.u8()? {
        0 => Ok(KeyWrap::File),
        1 => Ok(KeyWrap::Passphrase {
            memory_kib: narrow(r.varint()?, "memory")?,
            passes: narrow(r.varint()?, "passes")?,
            lanes: narrow(r.varint()?, "lanes")?,
            salt: r.array()?,
            sealed: r.array()?,
        }),
        v => Err(DecodeError::Field { what: WHAT, field: "key wrap", value: u64::from(v) }),
    }
}

fn put_segment(b: &mut Vec<u8>, s: &SegmentMeta) {
    b.put_varint(u64::from(s.number));
    b.extend_from_slice(&s.volume);
    b.push(s.state as u8);
    b.put_varint(s.length);
    b.put_varint(s.last_seq);
}

fn segment(r: &mut Reader<'_>) -> Result<SegmentMeta, DecodeError> {
    Ok(SegmentMeta {
        number: narrow(r.varint()?, "segment")?,
        volume: r.array()?,
        state: match r.u8()? {
            0 => SegmentState::Open,
            1 => SegmentState::Closed,
            2 => SegmentState::Sealed,
            v => return Err(DecodeError::Field { what: WHAT, field: "segment state", value: u64::from(v) }),
        },
        length: r.varint()?,
        last_seq: r.varint()?,
    })
}

fn put_volume(b: &mut Vec<u8>, v: &VolumeMeta) {
    b.extend_from_slice(&v.id);
    b.put_string(&v.name);
    b.put_varint(v.size);
    b.extend_from_slice(&v.ring);
    for n in [v.durable_seq, v.digest, v.durable_time, v.logical_bytes] {
        b.put_varint(n);
    }
    for n in [v.first_seq, v.first_time, v.layered_to] {
        b.put_varint(n);
    }
    put_list(b, &v.layers, |b, l| l.encode(b));
    put_list(b, &v.points, |b, p| {
        b.put_string(&p.name);
        b.put_varint(p.seq);
        b.put_varint(p.time);
        b.push(u8::from(p.auto));
        b.put_varint(p.seen);
        b.push(u8::from(p.pinned));
        b.put_string(&p.note);
    });
    put_list(b, &v.gaps, |b, g| {
        for n in [g.from_seq, g.from_time, g.to_seq.unwrap_or(0), g.to_time] {
            b.put_varint(n);
        }
        b.push(u8::from(g.initial));
    });
    put_list(b, &v.sizes, |b, s| {
        b.put_varint(s.from_seq);
        b.put_varint(s.size);
    });
    b.push(u8::from(v.retention.is_some()));
    if let Some(r) = &v.retention {
        b.put_varint(r.window);
        for n in [r.hourly, r.daily, r.weekly, r.monthly] {
            b.put_varint(u64::from(n));
        }
        b.push(u8::from(r.hold));
    }
    b.push(v.fork.map_or(0, |f| f.kind as u8));
    if let Some(f) = &v.fork {
        b.extend_from_slice(&f.parent);
        b.put_varint(f.seq);
        b.put_varint(f.created);
    }
    b.put_varint(v.epoch);
    b.push(v.fence.as_ref().map_or(0, |f| f.state as u8));
    if let Some(f) = &v.fence {
        b.put_string(&f.owner);
        b.put_varint(f.since);
    }
}

fn point(r: &mut Reader<'_>, version: u32) -> Result<PointMeta, DecodeError> {
    let (name, seq, time, auto) = (r.string(MAX_NAME)?, r.varint()?, r.varint()?, r.u8()? != 0);
    let mut point = PointMeta::new(name, seq, time, auto);
    if version >= RETENTION_VERSION {
        (point.seen, point.pinned, point.note) = (r.varint()?, r.u8()? != 0, r.string(MAX_NOTE)?);
    }
    Ok(point)
}

fn retention(r: &mut Reader<'_>) -> Result<Option<RetentionMeta>, DecodeError> {
    if r.u8()? == 0 {
        return Ok(None);
    }
    Ok(Some(RetentionMeta {
        window: r.varint()?,
        hourly: narrow(r.varint()?, "hourly")?,
        daily: narrow(r.varint()?, "daily")?,
        weekly: narrow(r.varint()?, "weekly")?,
        monthly: narrow(r.varint()?, "monthly")?,
        hold: r.u8()? != 0,
    }))
}

fn fork(r: &mut Reader<'_>) -> Result<Option<ForkMeta>, DecodeError> {
    let kind = match r.u8()? {
        0 => return Ok(None),
        1 => ForkKind::Branch,
        2 => ForkKind::Scratch,
        3 => ForkKind::Promoted,
        4 => ForkKind::Tail,
        v => return Err(DecodeError::Field { what: WHAT, field: "fork", value: u64::from(v) }),
    };
    Ok(Some(ForkMeta { parent: r.array()?, seq: r.varint()?, created: r.varint()?, kind }))
}

fn fence(r: &mut Reader<'_>) -> Result<Option<FenceMeta>, DecodeError> {
    let state = Fence::of_byte(WHAT, r.u8()?)?;
    if !state.is_up() {
        return Ok(None);
    }
    Ok(Some(FenceMeta { state, owner: r.string(MAX_NAME)?, since: r.varint()? }))
}

fn volume(r: &mut Reader<'_>, version: u32) -> Result<VolumeMeta, DecodeError> {
    Ok(VolumeMeta {
        id: r.array()?,
        name: r.string(MAX_NAME)?,
        size: r.varint()?,
        ring: r.array()?,
        durable_seq: r.varint()?,
        digest: r.varint()?,
        durable_time: r.varint()?,
        logical_bytes: r.varint()?,
        first_seq: r.varint()?,
        first_time: r.varint()?,
        layered_to: {
            let seq = r.varint()?;
            if version == FIRST_VERSION {
                r.varint()?;
            }
            seq
        },
        layers: list(r, LayerMeta::decode)?,
        points: list(r, |r| point(r, version))?,
        gaps: list(r, |r| {
            Ok(GapMeta {
                from_seq: r.varint()?,
                from_time: r.varint()?,
                to_seq: Some(r.varint()?).filter(|s| *s != 0),
                to_time: r.varint()?,
                initial: r.u8()? != 0,
            })
        })?,
        sizes: if version > FIRST_VERSION {
            list(r, |r| Ok(SizeMeta { from_seq: r.varint()?, size: r.varint()? }))?
        } else {
            Vec::new()
        },
        retention: if version >= RETENTION_VERSION { retention(r)? } else { None },
        fork: if version >= RETENTION_VERSION { fork(r)? } else { None },
        epoch: if version >= FENCE_VERSION { r.varint()? } else { 0 },
        fence: if version >= FENCE_VERSION { fence(r)? } else { None },
    })
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
