//! Reading blocks by place.
//!
//! Who asks for several blocks gets each of their frames with one decoding, wherever in the list they stand, and frames
//! that lie close to each other in a segment with one read. What is read for a reader is kept in the cache; what is
//! read to be copied is not.

use super::cache::{Content, FrameCache};
use super::{BlockSource, StoreError, file_name, io_error, scan};
use crate::keys::{SegmentKey, VaultKey};
use crate::reduce::frame::Opener;
use afterimage_base::world::fs::File;
use afterimage_format::BLOCK_SIZE;
use afterimage_format::place::Place;
use afterimage_format::segment::FrameKind;
use std::cell::RefCell;
use std::collections::HashMap;
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

    /// The decompressed content of the data frame that `place` lies in.
    ///
    /// # Errors
    /// [`StoreError`] naming segment and offset.
    pub fn frame(&self, place: Place) -> Result<Content, StoreError> {
        if let Some(content) = self.cache.get(place.frame().word()) {
            return Ok(content);
        }
        let mut found = None;
        self.fetch(&[place.frame()], &mut |_, content| {
            found = Some(Arc::clone(content));
            Ok(())
        })?;
        let content = found.ok_or(StoreError::Worker)?;
        self.cache.put(place.frame().word(), &content);
        Ok(content)
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
        let mut missing: Vec<(Place, &[Wanted])> = Vec::new();
        for group in wanted.chunk_by(|a, b| a.0.frame() == b.0.frame()) {
            let frame = group[0].0.frame();
            match self.cache.get(frame.word()) {
                Some(content) => copy_out(&content, group, out)?,
                None => missing.push((frame, group)),
            }
        }
        let mut rest = &missing[..];
        while !rest.is_empty() {
            let frames: Vec<Place> = rest[..together(rest)].iter().map(|m| m.0).collect();
            let (now, later) = rest.split_at(frames.len());
            rest = later;
            self.fetch(&frames, &mut |i, content| {
                copy_out(content, now[i].1, out)?;
                if keep {
                    self.cache.put(frames[i].word(), content);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Reads frames of one segment, sorted and close to each other, with one read if that is possible, and hands
    /// each to `take` with its number.
    fn fetch(
        &self,
        frames: &[Place],
        take: &mut dyn FnMut(usize, &Content) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let Some(first) = frames.first() else { return Ok(()) };
        let segment = self.segment(first.segment())?;
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
        frames: &[Place],
        take: &mut dyn FnMut(usize, &Content) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let (Some(first), Some(last)) = (frames.first(), frames.last()) else { return Ok(()) };
        let whole = last.offset() + u64::from(last.frame_len_bound()) - first.offset();
        match self.load(segment, &mut reader.bytes, first.offset(), whole) {
            Ok(n) => {
                for (i, frame) in frames.iter().enumerate() {
                    let from = usize::try_from(frame.offset() - first.offset()).unwrap_or(usize::MAX).min(n);
                    let to = n.min(from + frame.frame_len_bound() as usize);
                    take(i, &self.open_frame(segment, reader, *frame, from..to)?)?;
                }
                Ok(())
            }
            // A bad sector of one frame, or between two, takes no other with it.
            Err(_) if frames.len() > 1 => {
                for (i, frame) in frames.iter().enumerate() {
                    let bound = u64::from(frame.frame_len_bound());
                    let n = self.load(segment, &mut reader.bytes, frame.offset(), bound);
                    let n = n.map_err(io_error(&segment.path, "read it"))?;
                    take(i, &self.open_frame(segment, reader, *frame, 0..n)?)?;
                }
                Ok(())
            }
            Err(e) => Err(io_error(&segment.path, "read it")(e)),
        }
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
        frame: Place,
        at: std::ops::Range<usize>,
    ) -> Result<Content, StoreError> {
        let mut content = Vec::new();
        let opened =
            reader.opener.open(&segment.key, &mut reader.bytes[at], &mut content).map_err(|e| e.to_string()).and_then(
                |h| match h.kind {
                    FrameKind::Data => Ok(()),
                    _ => Err("it is no data frame".to_string()),
                },
            );
        let damaged = |what| StoreError::Damaged { segment: frame.segment(), offset: frame.offset(), what };
        opened.map_err(damaged)?;
        self.counters.frames.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(content))
    }
}

/// How many of the first frames of `missing` are read together.
fn together(missing: &[(Place, &[Wanted])]) -> usize {
    let Some((first, _)) = missing.first() else { return 0 };
    let end = |p: Place| p.offset() + u64::from(p.frame_len_bound());
    let close = |pair: &[(Place, &[Wanted])]| {
        let (before, next) = (pair[0].0, pair[1].0);
        next.segment() == first.segment()
            && next.offset() <= end(before) + MAX_SKIPPED
            && end(next) - first.offset() <= MAX_READ
    };
    1 + missing.windows(2).take_while(|pair| close(pair)).count()
}

fn copy_out(content: &[u8], group: &[Wanted], out: &mut [u8]) -> Result<(), StoreError> {
    for (place, i) in group {
        let at = place.slot() as usize * BLOCK_SIZE;
        let Some(bytes) = content.get(at..at + BLOCK_SIZE) else {
            let what = format!("it has no block {}", place.slot());
            return Err(StoreError::Damaged { segment: place.segment(), offset: place.offset(), what });
        };
        out[i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE].copy_from_slice(bytes);
    }
    Ok(())
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
