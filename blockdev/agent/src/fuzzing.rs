//! Ways in for the fuzz targets, to what is not public.

use crate::meta::Meta;
use std::path::Path;

/// Reads a `volume.json`. If it is understood, writes it and reads it again; false if that is another one.
#[must_use]
pub fn volume_json(file: &Path) -> bool {
    let Ok(meta) = Meta::load(file) else { return true };
    meta.store(file).is_ok() && Meta::load(file).is_ok_and(|again| again == meta)
}
