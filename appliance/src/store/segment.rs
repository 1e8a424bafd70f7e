//! A segment that is being written.
//!
//! Two threads share it: the *planner* (ingest's dedupe stage, [`OpenSegment`]) reserves room and hands out the counters of data
//! frames, in order; the *writer* ([`SegmentWriter`]) appends what was sealed, commits and syncs. Sealing a data
//! frame therefore needs no knowledge of its offset and can be done on any thread.

use super::{IoHook, IoOp, StoreError, file_name, io_error};
use crate::keys::{SegmentKey, VaultKey, random};
use crate::reduce::frame::Scratch;
use afterimage_base::crashsafe;
use afterimage_base::world;
use afterimage_base::world::fs::{File, OpenOptions};
use afterimage_format::place::{MAX_SEGMENT, Place};
use afterimage_format::segment::{
    DirEntry, FINGERPRINT_LEN, FOOTER_LEN, Fingerprint, Footer, FrameKind, HEADER_LEN, SegmentHeader,
};
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A directory frame is closed at this size: one more entry still fits behind it.
const DIRECTORY_SOFT: usize = 96 << 10;

/// The planner's and the sealing threads' side of a segment.
pub struct OpenSegment {
    /// Its number.
    pub number: u32,
    path: PathBuf,
    file: File,
    key: SegmentKey,
    used: AtomicU64,
    data_frames: AtomicU32,
    hook: Option<IoHook>,
}

impl std::fmt::Debug for OpenSegment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OpenSegment({})", self.number)
    }
}

/// Upper bound of what `blocks` new blocks in `frames` frames, and `commit` bytes of commit content, take in a segment,
/// their directory entries included.
#[must_use]
pub fn worst_case(blocks: u64, frames: u64, commit: u64) -> u64 {
    let directory = blocks * FINGERPRINT_LEN as u64 + frames * 16 + 1024;
    blocks * 4096 + frames * 80 + commit + directory + FOOTER_LEN as u64
}

impl OpenSegment {
    /// Makes the file, with its header, in `dir`; durable under its name when this returns.
    ///
    /// # Errors
    /// Any step; a file half made is rubbish that the next start removes.
    pub fn create(
        dir: &Path,
        vault: [u8; 16],
        number: u32,
        volume: [u8; 16],
        key: &VaultKey,
        hook: Option<IoHook>,
    ) -> Result<Arc<Self>, StoreError> {
        let path = dir.join(file_name(number));
        let header = SegmentHeader { vault, number, salt: random()?, volume };
        let ask = |op| hook.as_ref().map_or(Ok(()), |h| h(op));
        let file = ask(IoOp::Create).and_then(|()| OpenOptions::read_write().create_new().open(&path));
        let file = file.map_err(io_error(&path, "make it"))?;
        file.write_all_at(&header.encode(), 0).map_err(io_error(&path, "write its header"))?;
        file.sync_all().map_err(io_error(&path, "sync it"))?;
        crashsafe::sync_parent(&path).map_err(io_error(&path, "sync its folder"))?;
        Ok(Arc::new(Self {
            number,
            path,
            file,
            key: key.segment(header),
            used: AtomicU64::new(HEADER_LEN as u64),
            data_frames: AtomicU32::new(0),
            hook,
        }))
    }

    /// What seals its frames.
    #[must_use]
    pub const fn key(&self) -> &SegmentKey {
        &self.key
    }

    /// Reserves `bytes` if the segment would stay within `target`, or is empty.
    #[must_use]
    pub fn reserve(&self, bytes: u64, target: u64) -> bool {
        let used = self.used.load(Ordering::Acquire);
        if used > HEADER_LEN as u64 && used + bytes > target.min(MAX_SEGMENT) {
            return false;
        }
        self.used.fetch_add(bytes, Ordering::AcqRel);
        true
    }

    /// Hands out `n` counters for data frames, and returns the first. Their order is the order in which the writer has to append.
    #[must_use]
    pub fn next_frames(&self, n: u32) -> u32 {
        self.data_frames.fetch_add(n, Ordering::AcqRel)
    }

    fn ask(&self, op: IoOp) -> std::io::Result<()> {
        self.hook.as_ref().map_or(Ok(()), |h| h(op))
    }
}

/// The writer's side of a segment. One thread has it.
#[derive(Debug)]
pub struct SegmentWriter {
    segment: Arc<OpenSegment>,
    end: u64,
    /// End of the last synced commit frame, or of the header.
    committed: u64,
    footer: Footer,
    /// Contents of the directory frames so far.
    directory: Vec<Vec<u8>>,
    last_entry: u64,
    pending: Vec<DirEntry>,
}

impl SegmentWriter {
    /// Begins behind the header.
    #[must_use]
    pub fn new(segment: Arc<OpenSegment>) -> Self {
        let footer = Footer {
            number: segment.number,
            directory: 0,
            directory_frames: 0,
            data_frames: 0,
            commit_frames: 0,
            blocks: 0,
            last_seq: 0,
            unreduced: 0,
        };
        let start = HEADER_LEN as u64;
        let directory = vec![Vec::new()];
        Self { segment, end: start, committed: start, footer, directory, last_entry: 0, pending: Vec::new() }
    }

    /// The segment.
    #[must_use]
    pub const fn segment(&self) -> &Arc<OpenSegment> {
        &self.segment
    }

    /// Bytes up to the last synced commit frame.
    #[must_use]
    pub const fn committed(&self) -> u64 {
        self.committed
    }

    /// Data frames noted so far.
    #[must_use]
    pub const fn data_frames(&self) -> u32 {
        self.footer.data_frames
    }

    /// Seq of the last record committed here, 0 if none.
    #[must_use]
    pub const fn last_seq(&self) -> u64 {
        self.footer.last_seq
    }

    /// Places the data frame that will be appended next but `ahead` bytes: `len` is the length of header and body.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if the segment is full, which the planner prevents.
    pub fn place(&self, ahead: u64, len: u32) -> Result<Place, StoreError> {
        let offset = self.end + ahead;
        Place::new(self.segment.number, offset, len, 0).map_err(|e| StoreError::Damaged {
            segment: self.segment.number,
            offset,
            what: e.to_string(),
        })
    }

    /// Notes a data frame for the directory; frames are noted in the order of the file.
    pub fn note_data(&mut self, place: Place, frame_len: u32, fingerprints: Vec<Fingerprint>) {
        self.footer.data_frames += 1;
        self.footer.blocks += u32::try_from(fingerprints.len()).unwrap_or(0);
        self.pending.push(DirEntry::Data { offset: place.offset(), frame_len, fingerprints });
    }

    /// Notes that so many of the blocks noted are as they came: their compression was left for later.
    pub fn note_unreduced(&mut self, blocks: u32) {
        self.footer.unreduced += blocks;
    }

    /// Seals `content` as the next commit frame into `out`; `ahead` bytes are before it in the same batch.
    ///
    /// # Errors
    /// [`StoreError::Key`] if the cipher refuses.
    pub fn seal_commit(
        &mut self,
        scratch: &mut Scratch,
        content: &[u8],
        seqs: (u64, u64),
        ahead: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        let counter = self.footer.commit_frames;
        // Counted before it is used: whatever happens now, this counter seals nothing else (I8).
        self.footer.commit_frames += 1;
        scratch.frame(&self.segment.key, FrameKind::Commit, counter, 0, content, out)?;
        self.pending.push(DirEntry::Commit { offset: self.end + ahead, first: seqs.0, last: seqs.1 });
        Ok(())
    }

    /// Appends a batch and makes it durable: data frames, then its commit frames. `reserved` is what the
    /// planner had reserved for it.
    ///
    /// # Errors
    /// [`StoreError::Io`]: nothing more may be written to this segment; see [`SegmentWriter::close`].
    pub fn append(&mut self, frames: &[&[u8]], last_seq: u64, reserved: u64) -> Result<(), StoreError> {
        let total: usize = frames.iter().map(|f| f.len()).sum();
        self.write(frames, total)?;
        let segment = &self.segment;
        if !world::broken("ack-before-sync") {
            let mut synced = segment.ask(IoOp::Sync).and_then(|()| segment.file.sync_data());
            if synced.is_err() && world::broken("sync-again") {
                synced = segment.file.sync_data();
            }
            synced.map_err(io_error(&segment.path, "make it durable"))?;
        }
        self.committed = self.end;
        self.footer.last_seq = last_seq.max(self.footer.last_seq);
        let mut directory = 0;
        for entry in std::mem::take(&mut self.pending) {
            directory += self.note(&entry);
        }
        let actual = total as u64 + directory;
        debug_assert!(actual <= reserved, "a batch took {actual} bytes, {reserved} were reserved");
        self.segment.used.fetch_sub(reserved.saturating_sub(actual), Ordering::AcqRel);
        Ok(())
    }

    fn note(&mut self, entry: &DirEntry) -> u64 {
        let full = self.directory.last().is_none_or(|d| d.len() >= DIRECTORY_SOFT);
        if full {
            self.directory.push(Vec::new());
            self.last_entry = 0;
        }
        let Some(content) = self.directory.last_mut() else { return 0 };
        let before = content.len();
        entry.encode(content, self.last_entry);
        self.last_entry = entry.offset();
        (content.len() - before) as u64
    }

    fn write(&mut self, frames: &[&[u8]], total: usize) -> Result<(), StoreError> {
        let segment = &self.segment;
        let failed = || io_error(&segment.path, "append to it");
        segment.ask(IoOp::Write(total)).map_err(failed())?;
        let mut slices: Vec<IoSlice<'_>> = frames.iter().map(|f| IoSlice::new(f)).collect();
        let mut slices = &mut slices[..];
        while !slices.is_empty() {
            let group = slices.len().min(1024);
            match segment.file.write_vectored_at(&slices[..group], self.end) {
                Ok(0) => return Err(failed()(std::io::ErrorKind::WriteZero.into())),
                Ok(n) => {
                    self.end += n as u64;
                    IoSlice::advance_slices(&mut slices, n);
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(failed()(e)),
            }
        }
        Ok(())
    }

    /// Ends the segment with its directory and footer; returns its length.
    ///
    /// # Errors
    /// [`StoreError::Io`]: it then counts as closed.
    pub fn seal(&mut self, scratch: &mut Scratch) -> Result<u64, StoreError> {
        let mut frames: Vec<Vec<u8>> = Vec::new();
        self.footer.directory = self.end;
        for (i, content) in self.directory.iter().filter(|c| !c.is_empty()).enumerate() {
            let mut frame = Vec::new();
            let counter = u32::try_from(i).unwrap_or(u32::MAX);
            scratch.frame(&self.segment.key, FrameKind::Directory, counter, 0, content, &mut frame)?;
            frames.push(frame);
        }
        self.footer.directory_frames = u32::try_from(frames.len()).unwrap_or(u32::MAX);
        frames.push(self.footer.encode().to_vec());
        let parts: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        self.write(&parts, parts.iter().map(|p| p.len()).sum())?;
        let segment = &self.segment;
        segment.ask(IoOp::Sync).and_then(|()| segment.file.sync_data()).map_err(io_error(&segment.path, "sync it"))?;
        Ok(self.end)
    }

    /// Cuts off what was not committed, for a segment that takes no more. Best effort: what counts is the length in the manifest.
    pub fn close(&self) {
        if let Err(e) = self.segment.file.set_len(self.committed) {
            tracing::warn!("{}: cannot cut off what was not committed: {e}", self.segment.path.display());
        }
    }
}
