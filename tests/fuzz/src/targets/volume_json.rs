//! `volume.json`: what must be known of a volume before anything else is opened.

use crate::place;

/// See the module.
pub(super) fn run(bytes: &[u8]) {
    let folder = place::folder();
    let file = folder.path().join("volume.json");
    std::fs::write(&file, bytes).unwrap();
    assert!(afterimage_agent::fuzzing::volume_json(&file), "it is read otherwise than it was written");
}
