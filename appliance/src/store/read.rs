//! Reading blocks by place.

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
use std::sync::{Arc, Mutex, PoisonError};

/// Segments that are kept open for reading: well below the usual limit of 1024 descriptors.
const MAX_OPEN: usize = 256;

struct ReadSegment {
    path: PathBuf,
    file: File,
    key: SegmentKey,
}

/// The blocks of a vault.
pub struct Store {
    dir: PathBuf,
    vault: [u8; 16],
    key: VaultKey,
    open: Mutex<HashMap<u32, Arc<ReadSegment>>>,
    cache: FrameCache,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.dir.display())
    }
}

thread_local! {
    // What a reading thread keeps: a decompressor and the bytes of a frame.
    static READER: RefCell<Option<(Opener, Vec<u8>)>> = const { RefCell::new(None) };
}

impl Store {
    /// The store in the folder `dir` of segments, with a cache of `cache_bytes` of decompressed frames.
    #[must_use]
    pub fn new(dir: PathBuf, vault: [u8; 16], key: VaultKey, cache_bytes: usize) -> Self {
        Self { dir, vault, key, open: Mutex::default(), cache: FrameCache::new(cache_bytes) }
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
        let word = place.frame().word();
        if let Some(content) = self.cache.get(word) {
            return Ok(content);
        }
        let content = Arc::new(self.read_frame(place)?);
        self.cache.put(word, &content);
        Ok(content)
    }

    fn read_frame(&self, place: Place) -> Result<Vec<u8>, StoreError> {
        let segment = self.segment(place.segment())?;
        // Taken and put back, as no read may depend on another one's end.
        let (mut opener, mut frame) = match READER.take() {
            Some(reader) => reader,
            None => (Opener::new().map_err(io_error(&segment.path, "get memory for reading it"))?, Vec::new()),
        };
        let content = read_with(&mut opener, &mut frame, &segment, place);
        READER.set(Some((opener, frame)));
        content
    }
}

fn read_with(
    opener: &mut Opener,
    frame: &mut Vec<u8>,
    segment: &ReadSegment,
    place: Place,
) -> Result<Vec<u8>, StoreError> {
    let bound = place.frame_len_bound() as usize;
    if frame.len() < bound {
        frame.resize(bound, 0);
    }
    let n =
        read_up_to(&segment.file, &mut frame[..bound], place.offset()).map_err(io_error(&segment.path, "read it"))?;
    let mut content = Vec::new();
    let opened = opener.open(&segment.key, &mut frame[..n], &mut content).map_err(|e| e.to_string());
    let opened = opened.and_then(|h| match h.kind {
        FrameKind::Data => Ok(()),
        _ => Err("it is no data frame".to_string()),
    });
    let damaged = |what| StoreError::Damaged { segment: place.segment(), offset: place.offset(), what };
    opened.map_err(damaged)?;
    Ok(content)
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
        let mut last: Option<(u64, Content)> = None;
        for (place, block) in places.iter().zip(out.chunks_exact_mut(BLOCK_SIZE)) {
            if place.is_zero() {
                block.fill(0);
                continue;
            }
            let word = place.frame().word();
            let content = match &last {
                Some((w, content)) if *w == word => content,
                _ => &last.insert((word, self.frame(*place)?)).1,
            };
            let at = place.slot() as usize * BLOCK_SIZE;
            let Some(bytes) = content.get(at..at + BLOCK_SIZE) else {
                let what = format!("it has no block {}", place.slot());
                return Err(StoreError::Damaged { segment: place.segment(), offset: place.offset(), what });
            };
            block.copy_from_slice(bytes);
        }
        Ok(())
    }
}
