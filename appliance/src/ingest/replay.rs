//! Bringing volumes back at start: what commit frames hold and layers do not, and the dedupe index.
//!
//! | commit frames of a volume, by seq | means | action |
//! |---|---|---|
//! | up to the layers' seq | the layers hold it | skip |
//! | the next seq, or a gap record | the history goes on | append |
//! | a later seq, or fewer than the manifest knew | a frame was damaged or lost | a gap begins at the first missing seq, and the agent is told to begin a resync |
//! | not to be read: the disk gives an error | they may be there | the volume takes no more; what comes before can be seen; the next start reads again |

use super::Shared;
use super::progress::{Committed, Progress};
use super::volume::end_segment;
use crate::history::{Run, VolumeHistory};
use crate::keys::SegmentKey;
use crate::reduce::frame::Opener;
use crate::store::scan::{Found, Scan, recover};
use crate::store::{StoreError, file_name, io_error};
use crate::vault::Vault;
use afterimage_base::world;
use afterimage_base::world::fs::{File, OpenOptions};
use afterimage_format::BLOCK_SIZE;
use afterimage_format::commit::Commit;
use afterimage_format::manifest::{GapMeta, SegmentMeta, SegmentState, VolumeMeta};
use afterimage_format::place::Place;
use afterimage_format::record::Kind;
use afterimage_format::segment::{DirEntry, Fingerprint, FrameKind};
use std::sync::atomic::{AtomicBool, Ordering};

/// Ends every segment that was open when the last process died, as the table in [`crate::store::scan`] says.
/// Returns how many were ended. One that the disk does not let end stays open: its volume takes no more.
///
/// # Errors
/// If the manifest cannot be written.
pub fn end_open_segments(vault: &Vault) -> Result<usize, StoreError> {
    let open: Vec<SegmentMeta> =
        vault.read(|m| m.segments.iter().filter(|s| s.state == SegmentState::Open).cloned().collect());
    let mut ended = Vec::new();
    for meta in &open {
        match end_open(vault, meta) {
            Ok(end) => ended.push((meta.number, end)),
            Err(e) if is_loss(&e) || world::broken("unread-is-lost") => return Err(e),
            Err(e) => tracing::error!("segment {} stays open: {e}", meta.number),
        }
    }
    if !ended.is_empty() {
        vault.edit(|m| {
            for (number, end) in &ended {
                match end {
                    Some((state, length, last)) => end_segment(m, *number, *state, *length, *last),
                    None => m.segments.retain(|s| s.number != *number),
                }
            }
        })?;
    }
    Ok(ended.len())
}

type End = (SegmentState, u64, u64);

fn end_open(vault: &Vault, meta: &SegmentMeta) -> Result<Option<End>, StoreError> {
    let path = vault.segments_dir().join(file_name(meta.number));
    // Blocks copied by collection count only once their segment is sealed.
    if meta.volume == [0; 16] {
        return Ok(None);
    }
    let mut scan = match Scan::open(&path, meta.number, u64::MAX) {
        Ok(scan) => scan,
        Err(e @ StoreError::Damaged { .. }) => {
            tracing::error!("{e}; what it held is lost");
            return Ok(Some((SegmentState::Closed, 0, 0)));
        }
        Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            tracing::error!("segment {} is gone; what it held is lost", meta.number);
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    let key = vault.key().segment(scan.header);
    let recovered = recover(&mut scan, &key)?;
    if recovered.committed == 0 {
        return Ok(None);
    }
    let file = OpenOptions::read_write().open(&path).map_err(io_error(&path, "open it"))?;
    let file_end = file.metadata().map_err(io_error(&path, "ask its size"))?.len;
    if file_end > recovered.length {
        tracing::info!(
            "segment {}: {} bytes behind the last commit frame were never acknowledged and are cut off",
            meta.number,
            file_end - recovered.length
        );
        file.set_len(recovered.length).map_err(io_error(&path, "cut off what was never acknowledged"))?;
    }
    // The last frames may be in the page cache only, and what is counted now is acknowledged in the next Welcome (I5).
    if !world::broken("found-unsynced") {
        write_again(&file, recovered.length).map_err(io_error(&path, "make what was found in it durable"))?;
    }
    let mut last = 0;
    let meta = SegmentMeta { state: recovered.state, length: recovered.length, ..meta.clone() };
    each_commit(vault, &meta, |commit| last = last.max(commit.last()))?;
    Ok(Some((recovered.state, recovered.length, last)))
}

/// Writes the first `len` bytes of a file once more, over themselves, and syncs it. A sync alone is not enough: if one has
/// failed before, the kernel may hold pages that count as clean and are not on the disk.
fn write_again(file: &File, len: u64) -> std::io::Result<()> {
    let mut piece = vec![0; 1 << 20];
    let mut at = 0;
    while at < len {
        let n = usize::try_from(len - at).unwrap_or(usize::MAX).min(piece.len());
        file.read_exact_at(&mut piece[..n], at)?;
        file.write_all_at(&piece[..n], at)?;
        at += n as u64;
    }
    file.sync_all()
}

/// Opens every commit frame of a segment, in order. A damaged one is passed over and logged.
fn each_commit(vault: &Vault, meta: &SegmentMeta, mut found: impl FnMut(Commit)) -> Result<(), StoreError> {
    let path = vault.segments_dir().join(file_name(meta.number));
    let mut scan = Scan::open(&path, meta.number, meta.length)?;
    let key = vault.key().segment(scan.header);
    let mut opener = Opener::new().map_err(io_error(&path, "get memory for reading it"))?;
    let mut content = Vec::new();
    for (counter, offset) in (0..).zip(commit_offsets(&mut scan, &key)?) {
        scan.skip(offset, FrameKind::Commit, counter);
        let commit = scan.next_frame().and_then(|f| {
            let damaged = |what: String| StoreError::Damaged { segment: meta.number, offset, what };
            f.filter(|f| f.header.kind == FrameKind::Commit).ok_or_else(|| damaged("it is no commit frame".into()))?;
            opener.open(&key, scan.bytes(), &mut content).map_err(|e| damaged(e.to_string()))?;
            Commit::decode(&content).map_err(|e| damaged(e.to_string()))
        });
        match commit {
            Ok(commit) => found(commit),
            Err(e @ StoreError::Damaged { .. }) => tracing::error!("{e}"),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Where the commit frames are: from the directory if there is one, which damaged data frames do not hide, else by walking.
fn commit_offsets(scan: &mut Scan, key: &SegmentKey) -> Result<Vec<u64>, StoreError> {
    let directory = scan.footer().and_then(|footer| scan.directory(&footer, key).ok());
    if let Some(entries) = directory {
        let commit = |e: &DirEntry| matches!(e, DirEntry::Commit { .. }).then_some(e.offset());
        return Ok(entries.iter().filter_map(commit).collect());
    }
    scan.restart();
    let mut out = Vec::new();
    loop {
        match scan.next_unread() {
            Ok(Some(Found { offset, header })) if header.kind == FrameKind::Commit => out.push(offset),
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(e @ StoreError::Damaged { .. }) => {
                tracing::error!("{e}; what comes behind it in the segment cannot be found");
                break;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(out)
}

/// What commit frames have made of a volume.
#[derive(Debug)]
pub struct Replayed {
    /// Where the volume is.
    pub progress: Progress,
    /// Records were found damaged or lost: a gap has begun.
    pub missing: bool,
    /// The disk could not be read. What comes behind is hidden by a gap, which must not become durable: it may be there.
    pub unread: Option<String>,
}

/// Whether an error says that records are gone, and not merely that they cannot be read now.
fn is_loss(e: &StoreError) -> bool {
    match e {
        // Also a file that ends too early.
        StoreError::Io { source, .. } => {
            matches!(source.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::UnexpectedEof)
        }
        e => matches!(e, StoreError::Damaged { .. }),
    }
}

/// Brings `history`, which holds the layers, up to the last commit frame. Damage is no error, it becomes a gap; nor is a
/// disk that cannot be read, which is said.
pub fn replay(vault: &Vault, meta: &VolumeMeta, history: &VolumeHistory) -> Replayed {
    let mut progress = Progress::of(meta);
    let known = (progress.seq, progress.digest, progress.time, progress.logical);
    // What the manifest knew beyond the layers is noted again from the records.
    progress.seq = meta.layered_to;
    let (mut missing, mut unread) = (false, None);
    let unended = |s: &&SegmentMeta| s.volume == meta.id && s.state == SegmentState::Open;
    if let Some(open) = vault.read(|m| m.segments.iter().find(unended).map(|s| s.number)) {
        unread = Some(format!("segment {open} could not be ended; the log says why"));
    }
    let segments: Vec<SegmentMeta> = vault.read(|m| {
        let own = m.segments.iter().filter(|s| s.volume == meta.id && s.last_seq > meta.layered_to);
        own.cloned().collect()
    });
    for segment in &segments {
        let each = each_commit(vault, segment, |commit| {
            if commit.volume == meta.id && commit.last() > progress.seq {
                missing |= apply(&commit, &mut progress, history, known.0);
            }
        });
        if let Err(e) = each {
            tracing::error!("volume {}: {e}", meta.name);
            if !is_loss(&e) && !world::broken("unread-is-lost") {
                unread = Some(e.to_string());
                break;
            }
        }
    }
    // What retention has let go stays gone, also where its record is still there.
    let named = |seq: u64| meta.points.iter().any(|p| p.seq == seq);
    progress.points.retain(|p| p.seq >= meta.first_seq || !p.auto || named(p.seq));
    if unread.is_some() {
        begin_gap(&mut progress, meta.durable_time);
        if progress.seq < known.0 {
            (progress.seq, progress.digest, progress.time, progress.logical) = known;
        }
        return Replayed { progress, missing: false, unread };
    }
    if progress.seq < known.0 {
        missing = true;
        begin_gap(&mut progress, meta.durable_time);
        (progress.seq, progress.digest, progress.time, progress.logical) = known;
    }
    if missing {
        tracing::error!("volume {}: records are missing; a gap begins and the volume will be compared", meta.name);
        progress.ring = [0; 16];
    }
    Replayed { progress, missing, unread }
}

fn begin_gap(progress: &mut Progress, time: u64) {
    let from_seq = progress.seq + 1;
    if progress.gaps.iter().all(|g| g.to_seq.is_some() && g.from_seq != from_seq) {
        progress.gaps.push(GapMeta { from_seq, from_time: time, to_seq: None, to_time: 0, initial: false });
    }
}

/// Appends what a commit frame holds beyond `progress`. Returns whether something is missing before it.
fn apply(commit: &Commit, progress: &mut Progress, history: &VolumeHistory, known: u64) -> bool {
    let from = progress.seq;
    let new = || commit.records.iter().filter(|r| r.seq > from);
    let first = new().next();
    let missing = first.is_some_and(|r| r.seq != from + 1 && r.kind != Kind::Gap);
    if missing {
        begin_gap(progress, progress.time);
    }
    let times: Vec<(u64, u64)> = new().map(|r| (r.seq, r.time)).collect();
    let runs: Vec<Run> = new()
        .flat_map(|r| commit.runs[r.runs.clone()].iter().map(|b| (r.seq, b)))
        .map(|(seq, b)| Run { block: b.block, count: b.count, seq, place: b.place })
        .collect();
    if let Err(e) = history.append(&times, &runs) {
        tracing::error!("a commit frame does not fit the history: {e}");
        return true;
    }
    for r in new() {
        let (name, kind, flags) = (r.name.as_str(), r.kind, r.flags);
        let size = r.new_size();
        progress.note(&Committed { kind, flags, seq: r.seq, time: r.time, offset: r.offset, size, name });
        if r.kind == Kind::Write && r.seq > known {
            progress.logical += r.len;
        }
    }
    let time = times.last().map_or(progress.time, |t| t.1);
    (progress.seq, progress.digest, progress.time, progress.ring) = (commit.last(), commit.digest, time, commit.ring);
    missing
}

/// Fills the dedupe index from the segments, newest first, until it is done or `stop` is set.
pub fn rebuild_index(shared: &Shared, stop: &AtomicBool) {
    let segments: Vec<SegmentMeta> = shared.vault.read(|m| m.segments.clone());
    for meta in segments.iter().rev().filter(|s| s.state != SegmentState::Open) {
        if stop.load(Ordering::Acquire) {
            return;
        }
        if let Err(e) = remember_segment(shared, meta) {
            // Collection may have removed it meanwhile; damage costs ratio only, and check names it.
            tracing::debug!("segment {} is left out of the dedupe index: {e}", meta.number);
        }
    }
}

fn remember_segment(shared: &Shared, meta: &SegmentMeta) -> Result<(), StoreError> {
    let path = shared.vault.segments_dir().join(file_name(meta.number));
    let mut scan = Scan::open(&path, meta.number, meta.length)?;
    let key = shared.vault.key().segment(scan.header);
    let directory = scan.footer().and_then(|footer| scan.directory(&footer, &key).ok());
    for entry in directory.iter().flatten() {
        if let DirEntry::Data { offset, frame_len, fingerprints } = entry {
            remember(shared, meta.number, *offset, *frame_len, fingerprints);
        }
    }
    if directory.is_some() {
        return Ok(());
    }
    // Without a directory the blocks themselves have to be read.
    scan.restart();
    let mut opener = Opener::new().map_err(io_error(&path, "get memory for reading it"))?;
    let mut content = Vec::new();
    while let Some(found) = scan.next_frame()? {
        if found.header.kind != FrameKind::Data {
            continue;
        }
        let opened = opener.open(&key, scan.bytes(), &mut content);
        opened.map_err(|e| StoreError::Damaged { segment: meta.number, offset: found.offset, what: e.to_string() })?;
        let prints: Vec<Fingerprint> = content.chunks_exact(BLOCK_SIZE).map(|b| shared.fingerprinter.of(b)).collect();
        let frame_len = found.header.sealed_len + 32;
        remember(shared, meta.number, found.offset, frame_len, &prints);
    }
    Ok(())
}

fn remember(shared: &Shared, segment: u32, offset: u64, frame_len: u32, prints: &[Fingerprint]) {
    if let Ok(first) = Place::new(segment, offset, frame_len, 0) {
        let places = (0u64..).map_while(|slot| first.advance(slot));
        shared.remember(segment, prints.iter().zip(places));
    }
}
