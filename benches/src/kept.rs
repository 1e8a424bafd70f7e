//! A long history that is made once and measured by later builds too: what takes most of the time and of the disk does not
//! change from build to build.
//!
//! The daemon that measures is killed when it is done, so what was in memory only is so again when the next one starts. What that
//! daemon does in the background (merging, ordering) is done for good. Blocks are checked before they are measured.

use crate::generate::Shape;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// A history counts as made when this is there.
const NOTE: &str = "made.json";
/// The window is a day: what is older than this could begin to be let go in the middle of a measurement.
const MOST_AGE: Duration = Duration::from_secs(20 * 3600);

/// What was made.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Made {
    /// The history.
    pub shape: Shape,
    /// Whether it was brought into disk order.
    pub order: bool,
    /// How long it took.
    pub seconds: f64,
    /// When it was done.
    pub at: SystemTime,
}

/// The history in `dir`: what is there, or what `fill` puts there now.
///
/// # Panics
/// If the folder holds another history than the one that is wanted, a part of one, or one that is too old.
pub fn made(dir: &Path, shape: &Shape, order: bool, fill: impl FnOnce()) -> Made {
    let (note, name) = (dir.join(NOTE), dir.display());
    let Ok(text) = std::fs::read_to_string(&note) else {
        assert!(!dir.join("data").exists(), "{name} holds a history that was not finished: remove it");
        let began = Instant::now();
        fill();
        let made = Made { shape: *shape, order, seconds: began.elapsed().as_secs_f64(), at: SystemTime::now() };
        let text = serde_json::to_string(&made).expect("a note is JSON");
        std::fs::write(&note, text).unwrap_or_else(|e| panic!("write {}: {e}", note.display()));
        return made;
    };
    let made: Made = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", note.display()));
    let same = made.shape == *shape && made.order == order;
    assert!(same, "{name} holds another history ({made:?}): ask for that one, or name another folder");
    let age = made.at.elapsed().unwrap_or_default();
    assert!(age < MOST_AGE, "the history in {name} is {} hours old: remove it", age.as_secs() / 3600);
    made
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::catch_unwind;

    #[test]
    fn a_history_is_made_once_and_only_the_one_that_is_asked_for_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape { size: 1 << 40, blocks: 1000, writes: 5000, unflushed: 10 };
        let path = dir.path().to_owned();
        let mut fills = 0;
        let first = made(&path, &shape, true, || fills += 1);
        let again = made(&path, &shape, true, || fills += 1);
        assert!(fills == 1 && again.shape == first.shape && again.at == first.at);
        let refused = |shape: Shape, order: bool| catch_unwind(|| made(&path, &shape, order, || ())).is_err();
        assert!(refused(Shape { writes: 5001, ..shape }, true), "another history");
        assert!(refused(shape, false), "in another order");
        std::fs::create_dir(path.join("data")).unwrap();
        std::fs::remove_file(path.join(NOTE)).unwrap();
        assert!(refused(shape, true), "half of one");
    }
}
