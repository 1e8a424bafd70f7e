//! Offline verification: every checksum, every seal, every fingerprint, every reference.
//!
//! Without the key only lengths and checksums can be checked. With it every damage is traced to the
//! volumes, blocks and seqs that refer to it, through layers and commit frames.

pub mod dump;
mod layers;
mod segments;

use crate::history::{HistoryError, LayerKeys};
use crate::keys::{KeySource, VaultKey};
use crate::store::StoreError;
use crate::vault::{VaultError, lock_offline, read_manifest};
use afterimage_format::BLOCK_SIZE;
use afterimage_format::manifest::Manifest;
use afterimage_format::place::Place;
use segments::Frames;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Ranges of a volume that a damage hits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// The volume.
    pub volume: String,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// The oldest and the newest seq whose version of these bytes is hit.
    pub seqs: (u64, u64),
}

/// One damage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// Where in the file it begins, in bytes.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
    /// What it hits. Empty without the key, or if nothing refers to it.
    pub hits: Vec<Hit>,
    /// The volume whose stream the file holds, if it is a segment of one.
    pub stream_of: Option<String>,
}

/// What was looked at, and what was found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Whether seals, fingerprints and references could be checked.
    pub with_key: bool,
    /// Segments looked at.
    pub segments: usize,
    /// Frames looked at.
    pub frames: u64,
    /// Blocks whose fingerprints were compared.
    pub blocks: u64,
    /// Layers looked at.
    pub layers: usize,
    /// References followed.
    pub references: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What is damaged.
    pub damages: Vec<Damage>,
}

/// The vault key as layers use it.
pub(crate) struct Keys(pub(crate) VaultKey);

impl LayerKeys for Keys {
    fn layer_key(&self, id: &[u8; 16]) -> [u8; 32] {
        self.0.layer_key(id)
    }
}

/// What the parts of a check share.
struct Checker<'a> {
    dir: &'a Path,
    manifest: &'a Manifest,
    key: Option<&'a VaultKey>,
    report: Report,
    frames: Frames,
    /// What refers to damaged frames: by (segment, offset of the frame).
    hits: BTreeMap<(u32, u64), Vec<Hit>>,
}

/// Checks the vault in `dir`, which no process may have open. Changes nothing.
///
/// # Errors
/// [`VaultError`] if the vault is in use, the key is wrong, or a folder cannot be read. Damage is no error: it is in the
/// report, also that of the manifest itself.
pub fn check(dir: &Path, source: Option<&KeySource>) -> Result<Report, VaultError> {
    let _lock = lock_offline(dir)?;
    let manifest = match read_manifest(dir) {
        Ok(Some(m)) => m,
        Ok(None) => return Err(VaultError::Lost(dir.into())),
        Err(VaultError::Manifest { path, source }) => {
            let what = format!("{source}; without the manifest nothing in the vault can be named");
            let damage = Damage { file: path, offset: 0, what, hits: Vec::new(), stream_of: None };
            return Ok(Report { damages: vec![damage], ..Report::default() });
        }
        Err(e) => return Err(e),
    };
    let key = source.map(|s| VaultKey::open(s, &manifest.wrap, &manifest.key_check)).transpose()?;
    let report = Report { with_key: key.is_some(), ..Report::default() };
    let (frames, hits) = (Frames::default(), BTreeMap::new());
    let mut checker = Checker { dir, manifest: &manifest, key: key.as_ref(), report, frames, hits };
    for segment in &manifest.segments {
        checker.segment(segment);
    }
    for volume in &manifest.volumes {
        checker.layers(volume);
    }
    checker.commit_references();
    Ok(checker.finish())
}

impl Checker<'_> {
    fn damage(&mut self, file: PathBuf, offset: u64, what: impl Into<String>, hits: Vec<Hit>) {
        let damage = Damage { file, offset, what: what.into(), hits, stream_of: None };
        // A damaged directory is met by whoever looks for a frame.
        if !self.report.damages.contains(&damage) {
            self.report.damages.push(damage);
        }
    }

    fn store_error(&mut self, file: &Path, e: StoreError) {
        let (offset, what) = match e {
            StoreError::Damaged { offset, what, .. } => (offset, what),
            e => (0, e.to_string()),
        };
        self.damage(file.into(), offset, what, Vec::new());
    }

    /// Follows one reference of a volume: `count` blocks from `block` on have from `seq` on the places from `place` on.
    fn reference(&mut self, volume: &str, file: &Path, block: u64, count: u64, seq: u64, place: Place) {
        if place.is_zero() {
            return;
        }
        self.report.references += 1;
        let frame = (place.segment(), place.offset());
        let hit = Hit {
            volume: volume.into(),
            offset: block.saturating_mul(BLOCK_SIZE as u64),
            len: count.saturating_mul(BLOCK_SIZE as u64),
            seqs: (seq, seq),
        };
        match self.frames.find(place, count) {
            Ok(()) => {}
            Err(Some(what)) if !self.frames.is_damaged(frame) => {
                let what = format!("it refers to segment {}, byte {}, where {what}", frame.0, frame.1);
                self.damage(file.into(), 0, what, vec![hit]);
            }
            Err(_) => push_hit(self.hits.entry(frame).or_default(), hit),
        }
    }

    fn finish(mut self) -> Report {
        for ((segment, offset), hits) in std::mem::take(&mut self.hits) {
            let file = segments::path(self.dir, segment);
            let of_frame = self
                .report
                .damages
                .iter_mut()
                .find(|d| d.file == file && self.frames.covers(segment, d.offset, offset));
            match of_frame {
                Some(d) => hits.into_iter().for_each(|h| push_hit(&mut d.hits, h)),
                None => {
                    let what = "a frame that is referred to cannot be read".to_string();
                    self.report.damages.push(Damage { file, offset, what, hits, stream_of: None });
                }
            }
        }
        for segment in &self.manifest.segments {
            let file = segments::path(self.dir, segment.number);
            let owner = self.manifest.volume(&segment.volume).map(|v| v.name.clone());
            for damage in self.report.damages.iter_mut().filter(|d| d.file == file) {
                damage.stream_of.clone_from(&owner);
            }
        }
        self.report
    }
}

/// Joins neighbouring ranges and widens the seqs.
fn push_hit(hits: &mut Vec<Hit>, hit: Hit) {
    let joins =
        |h: &&mut Hit| h.volume == hit.volume && hit.offset <= h.offset + h.len && h.offset <= hit.offset + hit.len;
    if let Some(h) = hits.iter_mut().find(joins) {
        let end = (h.offset + h.len).max(hit.offset + hit.len);
        h.offset = h.offset.min(hit.offset);
        h.len = end - h.offset;
        h.seqs = (h.seqs.0.min(hit.seqs.0), h.seqs.1.max(hit.seqs.1));
    } else {
        hits.push(hit);
    }
}

fn layer_damage(e: &HistoryError) -> Option<(u64, u64, u64, u64)> {
    match e {
        HistoryError::Damaged { first_block, end_block, after_seq, last_seq, .. } => {
            Some((*first_block, *end_block, *after_seq + 1, *last_seq))
        }
        _ => None,
    }
}

#[cfg(test)]
#[path = "../check_tests.rs"]
mod tests;
