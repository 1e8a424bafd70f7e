//! Is this image a sound ext4, as a machine would find it after its power was cut?

use crate::tool::tool;
use std::path::Path;

/// Replays the journal, which every mount does, and then lets e2fsck look for errors without repairing any. The image is
/// changed by the replay: hand over a copy.
///
/// # Panics
/// If the file system has an error.
#[track_caller]
pub fn assert_sound(image: &Path, what: &str) {
    // -y answers the question whether to replay; with journal_only nothing else is touched.
    let replay = tool("e2fsck").args(["-E", "journal_only", "-y"]).arg(image).run_any();
    let replayed = matches!(replay.status.code(), Some(0 | 1));
    assert!(replayed, "{what}: the journal cannot be replayed: {}", replay.describe());
    let check = tool("e2fsck").arg("-fn").arg(image).run_any();
    assert!(check.status.success(), "{what}: {}\nreplay before it: {}", check.describe(), replay.stdout);
}

/// The content of a file in an image that nobody has mounted; nothing if it is not there.
#[must_use]
pub fn read_file(image: &Path, path: &str) -> Option<String> {
    let found = tool("debugfs").args(["-R", &format!("cat {path}")]).arg(image).run_any();
    (!found.stderr.contains("File not found")).then_some(found.stdout)
}
