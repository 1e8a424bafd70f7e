//! Checking segments.

use super::Checker;
use crate::keys::SegmentKey;
use crate::reduce::block::Fingerprinter;
use crate::reduce::frame::Opener;
use crate::store::scan::{Found, Scan};
use crate::store::{StoreError, file_name};
use afterimage_format::BLOCK_SIZE;
use afterimage_format::commit::Commit;
use afterimage_format::manifest::{SegmentMeta, SegmentState};
use afterimage_format::place::{FRAME_ALIGN, Place};
use afterimage_format::segment::{DirEntry, FRAME_HEADER_LEN, FrameKind};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// The file of a segment.
pub(super) fn path(dir: &Path, number: u32) -> PathBuf {
    dir.join("segments").join(file_name(number))
}

/// The data frames of the vault, and what is damaged of them.
#[derive(Debug, Default)]
pub(super) struct Frames {
    good: HashMap<(u32, u64), u16>,
    /// Damaged ranges of segments: from each offset up to another.
    bad: BTreeMap<(u32, u64), u64>,
    present: BTreeSet<u32>,
    commits: Vec<(u32, Commit)>,
}

impl Frames {
    /// Whether `count` blocks from `place` on are there and whole; else why not, if it is not a damage that is known.
    pub(super) fn find(&self, place: Place, count: u64) -> Result<(), Option<String>> {
        let frame = (place.segment(), place.offset());
        match self.good.get(&frame) {
            Some(blocks) if u64::from(place.slot()) + count <= u64::from(*blocks) => Ok(()),
            Some(blocks) => Err(Some(format!("the frame has only {blocks} blocks"))),
            None if !self.present.contains(&frame.0) => Err(Some("there is no such segment".into())),
            None => Err(Some("no frame begins".into())),
        }
    }

    /// Whether the frame is in a range known as damaged.
    pub(super) fn is_damaged(&self, frame: (u32, u64)) -> bool {
        let before = self.bad.range((frame.0, 0)..=frame).next_back();
        before.is_some_and(|((_, _), to)| frame.1 < *to)
    }

    /// Whether the damage that begins at `from` covers the frame at `offset`.
    pub(super) fn covers(&self, segment: u32, from: u64, offset: u64) -> bool {
        self.bad.get(&(segment, from)).is_some_and(|to| (from..*to).contains(&offset))
    }
}

/// What is known of a segment that is being checked.
struct Walk<'a> {
    meta: &'a SegmentMeta,
    path: PathBuf,
    scan: Scan,
    key: Option<SegmentKey>,
    directory: Option<Vec<DirEntry>>,
    opener: Opener,
    content: Vec<u8>,
}

impl Checker<'_> {
    pub(super) fn segment(&mut self, meta: &SegmentMeta) {
        self.report.segments += 1;
        let path = path(self.dir, meta.number);
        let end = if meta.state == SegmentState::Open { u64::MAX } else { meta.length };
        let scan = match Scan::open(&path, meta.number, end) {
            Ok(scan) => scan,
            Err(e) => {
                // Every frame in it is out of reach.
                self.frames.present.insert(meta.number);
                self.frames.bad.insert((meta.number, 0), u64::MAX);
                return self.store_error(&path, e);
            }
        };
        self.frames.present.insert(meta.number);
        self.report.bytes += scan.end;
        if meta.state != SegmentState::Open && scan.end < meta.length {
            self.mark(meta.number, &path, scan.end, meta.length, "the file is shorter than the manifest says".into());
        }
        // Copies for a volume are nobody's until they are whole.
        let foreign = scan.header.volume != meta.volume && meta.volume != [0; 16];
        if scan.header.vault != self.manifest.vault || foreign {
            self.damage(path.clone(), 0, "it belongs to another vault or volume", Vec::new());
        }
        let key = self.key.map(|k| k.segment(scan.header));
        let Ok(opener) = Opener::new() else { return };
        let mut walk = Walk { meta, path, scan, key, directory: None, opener, content: Vec::new() };
        self.directory(&mut walk);
        self.walk(&mut walk);
    }

    fn mark(&mut self, segment: u32, path: &Path, from: u64, to: u64, what: String) {
        self.frames.bad.insert((segment, from), to.max(from + 1));
        self.damage(path.into(), from, what, Vec::new());
    }

    /// Reads footer and directory, for finding the way past damaged frames.
    fn directory(&mut self, walk: &mut Walk<'_>) {
        if walk.meta.state != SegmentState::Sealed {
            return;
        }
        let Some(footer) = walk.scan.footer() else {
            return self.damage(walk.path.clone(), walk.scan.end, "its footer is damaged", Vec::new());
        };
        if let Some(key) = &walk.key {
            match walk.scan.directory(&footer, key) {
                Ok(entries) => walk.directory = Some(entries),
                Err(e) => self.store_error(&walk.path, e),
            }
        }
        walk.scan.restart();
    }

    fn walk(&mut self, walk: &mut Walk<'_>) {
        let sealed = walk.meta.state == SegmentState::Sealed;
        if sealed && walk.scan.footer().is_some() {
            walk.scan.end -= afterimage_format::segment::FOOTER_LEN as u64;
        }
        loop {
            let at = walk.scan.position();
            match walk.scan.next_frame() {
                Ok(None) => return,
                Ok(Some(found)) => {
                    self.report.frames += 1;
                    self.padding(walk, &found);
                    if let Err(what) = self.frame(walk, &found) {
                        self.mark(walk.meta.number, &walk.path, at, walk.scan.position(), what);
                    }
                }
                Err(StoreError::Damaged { what, .. }) => {
                    let next = self.resume(walk, at);
                    // An open segment ends where its last batch was torn: that is no damage unless something whole follows.
                    if next.is_some() || walk.meta.state != SegmentState::Open {
                        let to = next.unwrap_or(u64::MAX);
                        self.mark(walk.meta.number, &walk.path, at, to, what);
                    }
                    if next.is_none() {
                        return;
                    }
                }
                Err(e) => return self.store_error(&walk.path.clone(), e),
            }
        }
    }

    /// Finds the next whole frame behind a damaged one, and goes there.
    fn resume(&mut self, walk: &mut Walk<'_>, at: u64) -> Option<u64> {
        let mut next = at + FRAME_ALIGN;
        while next + FRAME_HEADER_LEN as u64 <= walk.scan.end {
            if let Some(header) = walk.scan.whole_at(next) {
                walk.scan.skip(next, header.kind, header.counter);
                walk.scan.expect_any();
                return Some(next);
            }
            next += FRAME_ALIGN;
        }
        None
    }

    fn padding(&mut self, walk: &Walk<'_>, found: &Found) {
        let end = found.offset + FRAME_HEADER_LEN as u64 + u64::from(found.header.sealed_len);
        if !walk.scan.is_zero(end, found.offset + found.header.frame_len()) {
            self.damage(walk.path.clone(), end, "the padding behind a frame is not zero; no data is hit", Vec::new());
        }
    }

    /// Checks what a whole frame holds; needs the key.
    fn frame(&mut self, walk: &mut Walk<'_>, found: &Found) -> Result<(), String> {
        let number = walk.meta.number;
        if found.header.kind == FrameKind::Data {
            self.frames.good.insert((number, found.offset), found.header.blocks);
        }
        let Some(key) = &walk.key else { return Ok(()) };
        let opened = walk.opener.open(key, walk.scan.bytes(), &mut walk.content);
        let checked = opened.map_err(|e| e.to_string()).and_then(|header| match header.kind {
            FrameKind::Data => self.fingerprints(walk, found),
            FrameKind::Commit => {
                let commit = Commit::decode(&walk.content).map_err(|e| e.to_string())?;
                if commit.volume != walk.meta.volume {
                    return Err("the commit frame is of another volume".into());
                }
                self.frames.commits.push((number, commit));
                Ok(())
            }
            FrameKind::Directory => DirEntry::decode_all(&walk.content).map(drop).map_err(|e| e.to_string()),
        });
        if checked.is_err() {
            self.frames.good.remove(&(number, found.offset));
        }
        checked
    }

    fn fingerprints(&mut self, walk: &Walk<'_>, found: &Found) -> Result<(), String> {
        let (Some(key), Some(directory)) = (self.key, &walk.directory) else { return Ok(()) };
        let at = directory.binary_search_by_key(&found.offset, DirEntry::offset);
        let Some(DirEntry::Data { fingerprints, .. }) = at.ok().and_then(|i| directory.get(i)) else {
            return Err("the directory does not know the frame".into());
        };
        let printer = Fingerprinter::new(key.dedupe_key());
        self.report.blocks += fingerprints.len() as u64;
        let same = walk.content.chunks_exact(BLOCK_SIZE).map(|b| printer.of(b)).eq(fingerprints.iter().copied());
        if same { Ok(()) } else { Err("its blocks have other fingerprints than the directory says".into()) }
    }

    /// Follows the references of commit frames that layers do not hold yet.
    pub(super) fn commit_references(&mut self) {
        for (segment, commit) in std::mem::take(&mut self.frames.commits) {
            let Some(volume) = self.manifest.volume(&commit.volume) else { continue };
            let file = path(self.dir, segment);
            for record in commit.records.iter().filter(|r| r.seq > volume.layered_to) {
                for run in commit.runs.get(record.runs.clone()).unwrap_or_default() {
                    self.reference(&volume.name, &file, run.block, run.count, record.seq, run.place);
                }
            }
        }
    }
}
