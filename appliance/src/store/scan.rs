//! Walking through a segment frame by frame: recovery, replay, check, dump.
//!
//! What counts in a segment that was open when its process died, by what the walk meets:
//!
//! | from its beginning | means | action |
//! |---|---|---|
//! | damaged or foreign header | it never began, or the disk lost it | nothing counts |
//! | whole frames, the last commit frame at `c`, then anything not whole | a batch was under way, never acknowledged | what ends with `c` counts |
//! | whole frames, then a whole directory and footer | it was sealed and the manifest did not learn of it | all counts, it is sealed |
//! | whole frames without a commit frame | nothing in it was acknowledged | nothing counts |
//!
//! A frame is whole if its header, checksum and counter fit. The order in which the disk wrote unsynced pages does not matter:
//! a commit frame counts only if everything before it is whole.

use super::{StoreError, io_error};
use crate::keys::SegmentKey;
use crate::reduce::frame::{OpenError, Opener, verify};
use afterimage_base::world::fs::File;
use afterimage_format::manifest::SegmentState;
use afterimage_format::place::MAX_SEGMENT;
use afterimage_format::segment::{
    DirEntry, FOOTER_LEN, FRAME_HEADER_LEN, Footer, FrameHeader, FrameKind, HEADER_LEN, SegmentHeader,
};
use std::path::{Path, PathBuf};

/// A frame met on the walk.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    /// Its offset in the segment.
    pub offset: u64,
    /// Its header.
    pub header: FrameHeader,
}

/// Walks through a segment file.
#[derive(Debug)]
pub struct Scan {
    path: PathBuf,
    file: File,
    /// The segment's header.
    pub header: SegmentHeader,
    /// Where the walk ends.
    pub end: u64,
    at: u64,
    counters: [u32; 3],
    /// After damage the next frame of each kind may have any counter.
    lenient: [bool; 3],
    frame: Vec<u8>,
}

/// Reads and checks the header of the segment file at `path`.
///
/// # Errors
/// [`StoreError::Io`] if it cannot be read, [`StoreError::Damaged`] if it is not the header of segment `number`.
pub fn open(path: &Path, number: u32) -> Result<(File, SegmentHeader, u64), StoreError> {
    let file = File::open(path).map_err(io_error(path, "open it"))?;
    let len = file.metadata().map_err(io_error(path, "ask its size"))?.len;
    let damaged = |what: String| StoreError::Damaged { segment: number, offset: 0, what };
    let mut head = [0; HEADER_LEN];
    if len < HEADER_LEN as u64 {
        return Err(damaged(format!("the file has {len} bytes, less than a header")));
    }
    file.read_exact_at(&mut head, 0).map_err(io_error(path, "read its header"))?;
    let header = SegmentHeader::decode(&head).map_err(|e| damaged(e.to_string()))?;
    if header.number != number {
        return Err(damaged(format!("the file holds segment {}", header.number)));
    }
    Ok((file, header, len))
}

impl Scan {
    /// Opens the segment file at `path` for a walk up to `end` (or its own end, if that is less).
    ///
    /// # Errors
    /// As [`open`].
    pub fn open(path: &Path, number: u32, end: u64) -> Result<Scan, StoreError> {
        let (file, header, len) = open(path, number)?;
        let (path, end) = (path.to_path_buf(), end.min(len).min(MAX_SEGMENT + MAX_SEGMENT / 8));
        Ok(Scan {
            path,
            file,
            header,
            end,
            at: HEADER_LEN as u64,
            counters: [0; 3],
            lenient: [false; 3],
            frame: Vec::new(),
        })
    }

    /// Where the walk is.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.at
    }

    /// The bytes of the frame found last, header and body.
    pub fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.frame
    }

    /// The next frame, whole and checked against its checksum and counter; `None` at the end of the walk.
    /// After an error the walk can go on only with [`Scan::skip`].
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if what follows is no whole frame.
    pub fn next_frame(&mut self) -> Result<Option<Found>, StoreError> {
        let Some(header) = self.next_header()? else { return Ok(None) };
        let len = FRAME_HEADER_LEN + header.sealed_len as usize;
        self.frame.resize(len, 0);
        self.file.read_exact_at(&mut self.frame, self.at).map_err(io_error(&self.path, "read it"))?;
        verify(&self.frame).map_err(|e| self.damaged(e.to_string()))?;
        Ok(Some(self.advance(header)))
    }

    /// The next frame by its header alone: its body is not read. For passing over data frames.
    ///
    /// # Errors
    /// As [`Scan::next_frame`].
    pub fn next_unread(&mut self) -> Result<Option<Found>, StoreError> {
        let header = self.next_header()?;
        Ok(header.map(|h| self.advance(h)))
    }

    /// Reads and checks the body of a frame that was passed unread.
    ///
    /// # Errors
    /// As [`Scan::next_frame`].
    pub fn fetch(&mut self, found: &Found) -> Result<(), StoreError> {
        self.frame.resize(FRAME_HEADER_LEN + found.header.sealed_len as usize, 0);
        self.file.read_exact_at(&mut self.frame, found.offset).map_err(io_error(&self.path, "read it"))?;
        let number = self.header.number;
        verify(&self.frame).map(drop).map_err(|e| StoreError::Damaged {
            segment: number,
            offset: found.offset,
            what: e.to_string(),
        })
    }

    fn advance(&mut self, header: FrameHeader) -> Found {
        let offset = self.at;
        self.at += header.frame_len();
        self.counters[header.kind as usize - 1] = header.counter.wrapping_add(1);
        Found { offset, header }
    }

    fn next_header(&mut self) -> Result<Option<FrameHeader>, StoreError> {
        if self.at >= self.end {
            return Ok(None);
        }
        let mut head = [0; FRAME_HEADER_LEN];
        if self.end - self.at < FRAME_HEADER_LEN as u64 {
            return Err(self.damaged("the segment ends inside a frame header".into()));
        }
        self.file.read_exact_at(&mut head, self.at).map_err(io_error(&self.path, "read it"))?;
        let header = FrameHeader::decode(&head).map_err(|e| self.damaged(e.to_string()))?;
        let lenient = std::mem::take(&mut self.lenient[header.kind as usize - 1]);
        if !lenient && header.counter != self.counters[header.kind as usize - 1] {
            let want = self.counters[header.kind as usize - 1];
            return Err(self.damaged(format!("its counter is {}, {want} was expected", header.counter)));
        }
        // Padding included: a writer appends it with the frame.
        if self.at + header.frame_len() > self.end {
            return Err(self.damaged("the segment ends inside it".into()));
        }
        Ok(Some(header))
    }

    /// Goes on at another offset, as after damage.
    pub fn skip(&mut self, to: u64, kind: FrameKind, counter: u32) {
        self.at = to;
        self.counters[kind as usize - 1] = counter;
    }

    /// The header of the frame at `offset` if a whole one is there, whatever its counter. For finding the way past damage.
    #[must_use]
    pub fn whole_at(&self, offset: u64) -> Option<FrameHeader> {
        let mut head = [0; FRAME_HEADER_LEN];
        self.file.read_exact_at(&mut head, offset).ok()?;
        let header = FrameHeader::decode(&head).ok()?;
        let mut frame = vec![0; FRAME_HEADER_LEN + header.sealed_len as usize];
        if offset + frame.len() as u64 > self.end {
            return None;
        }
        self.file.read_exact_at(&mut frame, offset).ok()?;
        verify(&frame).ok()
    }

    /// Whether the bytes `from..to` are all zero (or not there).
    #[must_use]
    pub fn is_zero(&self, from: u64, to: u64) -> bool {
        let mut b = [0; 16];
        let len = usize::try_from(to.saturating_sub(from)).unwrap_or(0).min(16);
        self.file.read_at(&mut b[..len], from).is_ok() && b == [0; 16]
    }

    /// Takes the counters of all kinds as they come, after damage.
    pub fn expect_any(&mut self) {
        self.lenient = [true; 3];
    }

    /// Goes back to the first frame.
    pub fn restart(&mut self) {
        self.at = HEADER_LEN as u64;
        self.counters = [0; 3];
    }

    fn damaged(&self, what: String) -> StoreError {
        StoreError::Damaged { segment: self.header.number, offset: self.at, what }
    }

    /// Reads the footer, if the walk's end has one that fits.
    #[must_use]
    pub fn footer(&self) -> Option<Footer> {
        let at = self.end.checked_sub(FOOTER_LEN as u64)?;
        let mut b = [0; FOOTER_LEN];
        self.file.read_exact_at(&mut b, at).ok()?;
        Footer::decode(&b).ok().filter(|f| f.number == self.header.number && f.directory <= at)
    }

    /// Reads the directory that a footer names.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] naming the frame.
    pub fn directory(&mut self, footer: &Footer, key: &SegmentKey) -> Result<Vec<DirEntry>, StoreError> {
        let end = self.end;
        self.end = end.saturating_sub(FOOTER_LEN as u64);
        let out = self.directory_frames(footer, key);
        self.end = end;
        out
    }

    fn directory_frames(&mut self, footer: &Footer, key: &SegmentKey) -> Result<Vec<DirEntry>, StoreError> {
        let (mut out, mut content) = (Vec::new(), Vec::new());
        let mut opener = Opener::new().map_err(io_error(&self.path, "get memory for reading it"))?;
        self.skip(footer.directory, FrameKind::Directory, 0);
        for _ in 0..footer.directory_frames {
            let found = self.next_frame()?.filter(|f| f.header.kind == FrameKind::Directory);
            let found = found.ok_or_else(|| self.damaged("a directory frame is missing".into()))?;
            let fail = |what: String| StoreError::Damaged { segment: key.header().number, offset: found.offset, what };
            opener.open(key, &mut self.frame, &mut content).map_err(|e: OpenError| fail(e.to_string()))?;
            out.extend(DirEntry::decode_all(&content).map_err(|e| fail(e.to_string()))?);
        }
        Ok(out)
    }
}

/// What counts in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovered {
    /// Sealed or closed.
    pub state: SegmentState,
    /// Bytes that count.
    pub length: u64,
    /// Where the commit frames that count end, or 0 if there is none.
    pub committed: u64,
}

/// Finds out what counts in a segment that was open: the table of this module. `key` belongs to its header.
///
/// # Errors
/// [`StoreError::Io`] if the disk cannot be read. Damage is no error: it is where the segment ends.
pub fn recover(scan: &mut Scan, key: &SegmentKey) -> Result<Recovered, StoreError> {
    if let Some(footer) = scan.footer() {
        let length = scan.end;
        if scan.directory(&footer, key).is_ok() && scan.position() + FOOTER_LEN as u64 == length {
            return Ok(Recovered { state: SegmentState::Sealed, length, committed: footer.directory });
        }
        scan.end = length;
        scan.restart();
    }
    let mut committed = 0;
    loop {
        match scan.next_frame() {
            Ok(Some(found)) if found.header.kind == FrameKind::Commit => committed = scan.position(),
            Ok(Some(found)) if found.header.kind == FrameKind::Data => {}
            Ok(_) | Err(StoreError::Damaged { .. }) => break,
            Err(e) => return Err(e),
        }
    }
    Ok(Recovered { state: SegmentState::Closed, length: committed.max(HEADER_LEN as u64), committed })
}
