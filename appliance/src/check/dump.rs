//! Looking into a vault, read-only, for people: what the files say of themselves.

use crate::keys::{KeySource, VaultKey};
use crate::reduce::frame::Opener;
use crate::store::scan::Scan;
use crate::store::{StoreError, file_name, io_error};
use crate::vault::{VaultError, read_manifest};
use afterimage_format::commit::Commit;
use afterimage_format::manifest::{Manifest, SegmentState};
use afterimage_format::segment::{FrameHeader, FrameKind, SegmentHeader};
use std::path::Path;

/// A frame of a segment.
#[derive(Debug)]
pub struct DumpedFrame {
    /// Its offset.
    pub offset: u64,
    /// Its header.
    pub header: FrameHeader,
    /// The records of a commit frame, if there is a key.
    pub commit: Option<Commit>,
}

/// The manifest of the vault in `dir`.
///
/// # Errors
/// [`VaultError`] if there is none or it is damaged.
pub fn manifest(dir: &Path) -> Result<Manifest, VaultError> {
    read_manifest(dir)?.ok_or_else(|| VaultError::None(dir.into()))
}

/// Calls `each` with every frame of segment `number`, in order, up to the first that is not whole; that is the error.
///
/// # Errors
/// [`StoreError`] naming where the segment cannot be read on.
pub fn segment(
    dir: &Path,
    number: u32,
    key: Option<&KeySource>,
    mut each: impl FnMut(&SegmentHeader, DumpedFrame),
) -> Result<(), StoreError> {
    let manifest = manifest(dir)?;
    let key = key.map(|k| VaultKey::open(k, &manifest.wrap, &manifest.key_check)).transpose()?;
    let path = dir.join("segments").join(file_name(number));
    let meta = manifest.segments.iter().find(|s| s.number == number);
    let end = meta.filter(|m| m.state != SegmentState::Open).map_or(u64::MAX, |m| m.length);
    let mut scan = Scan::open(&path, number, end)?;
    if let Some(footer) = scan.footer() {
        scan.end = scan.end.min(end).saturating_sub(afterimage_format::segment::FOOTER_LEN as u64);
        debug_assert!(footer.directory <= scan.end);
    }
    let seal = key.map(|k| k.segment(scan.header));
    let mut opener = Opener::new().map_err(io_error(&path, "get memory for reading it"))?;
    let mut content = Vec::new();
    while let Some(found) = scan.next_frame()? {
        let commit = seal.as_ref().filter(|_| found.header.kind == FrameKind::Commit).and_then(|seal| {
            opener.open(seal, scan.bytes(), &mut content).ok()?;
            Commit::decode(&content).ok()
        });
        each(&scan.header, DumpedFrame { offset: found.offset, header: found.header, commit });
    }
    Ok(())
}
