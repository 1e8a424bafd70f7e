//! Reading blocks by place.
//!
//! Who asks for several blocks gets each of their frames with one decoding, wherever in the list they stand, and frames
//! that lie close to each other in a segment with one read. Only the parts of a frame that they are in are decompressed, which is most
//! of what a read costs. What is read for a reader is kept in the cache; what is read to be copied is not.

use super::cache::{Content, FrameCache, Key};
use super::{BlockSource, StoreError, file_name, io_error, scan};
use crate::keys::{SegmentKey, VaultKey};
use crate::reduce::frame::{self, Opener, PART_BLOCKS};
use afterimage_base::world::fs::File;
use afterimage_format::BLOCK_SIZE;
use afterimage_format::place::Place;
use afterimage_format::segment::FrameKind;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Segments that are kept open for reading: well below the usual limit of 1024 descriptors.
const MAX_OPEN: usize = 256;
/// Longest read of several frames: what a disk gives in one go. Bounds the memory of a reading thread.
const MAX_READ: u64 = 1 << 20;
/// Frames so far apart are still read together: reading over them takes less than another request.
const MAX_SKIPPED: u64 = 32 << 10;
struct ReadSegment {
    path: PathBuf,
    file: File,
    key: SegmentKey,
}

/// What reading has cost since the store was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadFigures {
    /// Bytes of blocks that were asked for, zeroes left out.
    pub served_bytes: u64,
    /// Reads from segments.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Frames that were decoded.
    pub frames: u64,
}

#[derive(Default)]
struct Counters {
    served_bytes: AtomicU64,
    reads: AtomicU64,
    read_bytes: AtomicU64,
    frames: AtomicU64,
}

/// The blocks of a vault.
pub struct Store {
    dir: PathBuf,
    vault: [u8; 16],
    key: VaultKey,
    open: Mutex<HashMap<u32, Arc<ReadSegment>>>,
    cache: FrameCache,
    counters: Counters,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.dir.display())
    }
}

/// What a reading thread keeps.
struct Reader {
    opener: Opener,
    bytes: Vec<u8>,
}

thread_local! {
    static READER: RefCell<Option<Reader>> = const { RefCell::new(None) };
    static WANTED: RefCell<Vec<(Place, usize)>> = const { RefCell::new(Vec::new()) };
}

/// A block that is wanted: its place, and which of the output's blocks it is.
type Wanted = (Place, usize);

/// A frame that has to be decoded, and why.
struct Missing<'a> {
    frame: Place,
    group: &'a [Wanted],
    blocks: Range<usize>,
}

/// Takes what a frame holds.
type Take<'a> = dyn FnMut(&Missing<'_>, &Blocks) -> Result<(), StoreError> + 'a;

/// Blocks of a frame: those from `first` on.
struct Blocks {
    first: usize,
    /// These are all.
    whole: bool,
    content: Content,
}

impl Blocks {
    fn copy_out(&self, group: &[Wanted], out: &mut [u8]) -> Result<(), StoreError> {
        for (place, i) in group {
            let at = (place.slot() as usize).checked_sub(self.first).map(|n| n * BLOCK_SIZE);
            let Some(bytes) = at.and_then(|at| self.content.get(at..at + BLOCK_SIZE)) else {
                let what = format!("it has no block {}", place.slot());
                return Err(StoreError::Damaged { segment: place.segment(), offset: place.offset(), what });
            };
            out[i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE].copy_from_slice(bytes);
        }
        Ok(())
    }
}

/// The parts that the blocks of a group, which is sorted, are in: first and last.
fn parts(group: &[Wanted]) -> (usize, usize) {
    let of = |wanted: Option<&Wanted>| wanted.map_or(0, |w| w.0.slot() as usize / PART_BLOCKS);
    (of(group.first()), of(group.last()))
}

impl Store {
    /// The store in the folder `dir` of segments, with a cache of `cache_bytes` of decompressed frames.
    #[must_use]
    pub fn new(dir: PathBuf, vault: [u8; 16], key: VaultKey, cache_bytes: usize) -> Self {
        let counters = Counters::default();
        Self { dir, vault, key, open: Mutex::default(), cache: FrameCache::new(cache_bytes), counters }
    }

    /// What reading has cost so far.
    #[must_use]
    pub fn figures(&self) -> ReadFigures {
        let c = &self.counters;
        let [served_bytes, reads, read_bytes, frames] =
            [&c.served_bytes, &c.reads, &c.read_bytes, &c.frames].map(|n| n.load(Ordering::Relaxed));
        ReadFigures { served_bytes, reads, read_bytes, frames }
    }

    fn segment(&self, number: u32) -> Result<Arc<ReadSegment>, StoreError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(s) = open.get(&number) {
            return Ok(Arc::clone(s));
        }
        let path = self.dir.join(file_name(number));
        let (file, header, _) = scan::open(&path, number)?;
        if header.vault != self.vault {
            return Err(StoreError::Damaged { segment: number, offset: 0, what: "it belongs to another vault".into() });
        }
        if open.len() >= MAX_OPEN {
            // Which one goes hardly matters: opening one again costs a system call and a read of its header.
            let any = open.keys().next().copied();
            any.map(|n| open.remove(&n));
        }
        let segment = Arc::new(ReadSegment { path, file, key: self.key.segment(header) });
        open.insert(number, Arc::clone(&segment));
        Ok(segment)
    }

    /// Lets go of a segment that was removed.
    pub fn forget(&self, number: u32) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
    }

    /// As [`BlockSource::read_blocks`], for who copies blocks: the cache is asked and left as it is.
    ///
    /// # Errors
    /// [`StoreError`] naming segment and offset.
    pub fn read_to_copy(&self, places: &[Place], out: &mut [u8]) -> Result<(), StoreError> {
        self.read(places, out, false)
    }

    fn read(&self, places: &[Place], out: &mut [u8], keep: bool) -> Result<(), StoreError> {
        let mut wanted = WANTED.take();
        wanted.clear();
        for (i, place) in places.iter().enumerate() {
            if place.is_zero() {
                out[i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE].fill(0);
            } else {
                wanted.push((*place, i));
            }
        }
        self.counters.served_bytes.fetch_add((wanted.len() * BLOCK_SIZE) as u64, Ordering::Relaxed);
        wanted.sort_unstable();
        let done = self.read_wanted(&wanted, out, keep);
        WANTED.set(wanted);
        done
    }

    /// Fills the blocks of `out` that `wanted`, which is sorted, says.
    fn read_wanted(&self, wanted: &[Wanted], out: &mut [u8], keep: bool) -> Result<(), StoreError> {
        let mut missing: Vec<Missing<'_>> = Vec::new();
        for group in wanted.chunk_by(|a, b| a.0.frame() == b.0.frame()) {
            let frame = group[0].0.frame();
            if let Some(blocks) = self.cached(frame, group) {
                blocks.copy_out(group, out)?;
                continue;
            }
            let (first, last) = parts(group);
            missing.push(Missing { frame, group, blocks: first * PART_BLOCKS..(last + 1) * PART_BLOCKS });
        }
        let mut rest = &missing[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(together(rest));
            rest = later;
            self.fetch(now, &mut |missing, blocks| {
                blocks.copy_out(missing.group, out)?;
                if keep {
                    self.keep(missing.frame, blocks);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The blocks of `group` from the cache.
    fn cached(&self, frame: Place, group: &[Wanted]) -> Option<Blocks> {
        let (first, last) = parts(group);
        if first == last
            && let Some(content) = self.cache.get(Key::part(frame.word(), u8::try_from(first).ok()?))
        {
            return Some(Blocks { first: first * PART_BLOCKS, whole: false, content });
        }
        self.cache.get(Key::whole(frame.word())).map(|content| Blocks { first: 0, whole: true, content })
    }

    /// Keeps what was decoded: all of the frame, or one part of it. Who reads several parts and not all comes by once.
    fn keep(&self, frame: Place, blocks: &Blocks) {
        let Blocks { first, whole, content } = blocks;
        if *whole {
            self.cache.put(Key::whole(frame.word()), content);
        } else if let Ok(part) = u8::try_from(first / PART_BLOCKS)
            && first.is_multiple_of(PART_BLOCKS)
            && content.len() <= PART_BLOCKS * BLOCK_SIZE
        {
            self.cache.put(Key::part(frame.word(), part), content);
        }
    }

    /// Reads frames of one segment, sorted and close to each other, with one read if that is possible, and hands
    /// what they hold to `take`.
    fn fetch(&self, frames: &[Missing<'_>], take: &mut Take<'_>) -> Result<(), StoreError> {
        let Some(first) = frames.first() else { return Ok(()) };
        let segment = self.segment(first.frame.segment())?;
        // Taken and put back, as no read may depend on another one's end.
        let mut reader = match READER.take() {
            Some(reader) => reader,
            None => {
                let opener = Opener::new().map_err(io_error(&segment.path, "get memory for reading it"))?;
                Reader { opener, bytes: Vec::new() }
            }
        };
        let fetched = self.fetch_with(&mut reader, &segment, frames, take);
        READER.set(Some(reader));
        fetched
    }

    fn fetch_with(
        &self,
        reader: &mut Reader,
        segment: &ReadSegment,
        frames: &[Missing<'_>],
        take: &mut Take<'_>,
    ) -> Result<(), StoreError> {
        let (Some(first), Some(last)) = (frames.first(), frames.last()) else { return Ok(()) };
        let start = first.frame.offset();
        let whole = last.frame.offset() + u64::from(last.frame.frame_len_bound()) - start;
        match self.load(segment, &mut reader.bytes, start, whole) {
            Ok(n) => {
                for missing in frames {
                    let from = usize::try_from(missing.frame.offset() - start).unwrap_or(usize::MAX).min(n);
                    let to = n.min(from + missing.frame.frame_len_bound() as usize);
                    take(missing, &self.open_frame(segment, reader, missing, from..to)?)?;
                }
                Ok(())
            }
            // A bad sector of one frame, or between two, takes no other with it.
            Err(_) if frames.len() > 1 => {
                for missing in frames {
                    let n = self.load_frame(segment, reader, missing.frame)?;
                    take(missing, &self.open_frame(segment, reader, missing, 0..n)?)?;
                }
                Ok(())
            }
            Err(e) => Err(io_error(&segment.path, "read it")(e)),
        }
    }

    /// Reads one frame and what may lie behind it.
    fn load_frame(&self, segment: &ReadSegment, reader: &mut Reader, frame: Place) -> Result<usize, StoreError> {
        let read = self.load(segment, &mut reader.bytes, frame.offset(), u64::from(frame.frame_len_bound()));
        read.map_err(io_error(&segment.path, "read it"))
    }

    /// Reads up to `len` bytes from `offset` on to the beginning of `bytes`; the file may end before.
    fn load(&self, segment: &ReadSegment, bytes: &mut Vec<u8>, offset: u64, len: u64) -> std::io::Result<usize> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if bytes.len() < len {
            bytes.resize(len, 0);
        }
        let n = read_up_to(&segment.file, &mut bytes[..len], offset)?;
        self.counters.reads.fetch_add(1, Ordering::Relaxed);
        self.counters.read_bytes.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }

    fn open_frame(
        &self,
        segment: &ReadSegment,
        reader: &mut Reader,
        missing: &Missing<'_>,
        at: Range<usize>,
    ) -> Result<Blocks, StoreError> {
        let frame = missing.frame;
        let damaged = |what| StoreError::Damaged { segment: frame.segment(), offset: frame.offset(), what };
        let mut content = Vec::new();
        let opened = reader.opener.open_part(&segment.key, &mut reader.bytes[at], &missing.blocks, &mut content);
        match opened {
            Ok((header, first)) if header.kind == FrameKind::Data => {
                self.counters.frames.fetch_add(1, Ordering::Relaxed);
                let whole = content.len() == header.plain_len as usize;
                Ok(Blocks { first, whole, content: Arc::new(content) })
            }
            Ok(_) => Err(damaged("it is no data frame".into())),
            Err(e) => {
                // Opening has changed its bytes. Those of the file tell a flipped bit from a forged frame.
                let n = self.load_frame(segment, reader, frame)?;
                let why = frame::verify(&reader.bytes[..n]).err().unwrap_or(e);
                Err(damaged(why.to_string()))
            }
        }
    }
}

/// How many of the first frames of `missing` are read together.
fn together(missing: &[Missing<'_>]) -> usize {
    let Some(Missing { frame: first, .. }) = missing.first() else { return 0 };
    let end = |p: Place| p.offset() + u64::from(p.frame_len_bound());
    let close = |pair: &[Missing<'_>]| {
        let (before, next) = (pair[0].frame, pair[1].frame);
        next.segment() == first.segment()
            && next.offset() <= end(before) + MAX_SKIPPED
            && end(next) - first.offset() <= MAX_READ
    };
    1 + missing.windows(2).take_while(|pair| close(pair)).count()
}

/// Reads until `buf` is full or the file ends.
fn read_up_to(file: &File, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

impl BlockSource for Store {
    fn read_blocks(&self, places: &[Place], out: &mut [u8]) -> Result<(), StoreError> {
        self.read(places, out, true)
    }
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
