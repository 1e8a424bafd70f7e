//! Where the blocks of a point lie, once one of them was looked for.
//!
//! A look-up goes through every layer that may know the block, and walks through half a page in each. Who looks for one block of
//! a point mostly looks for its neighbours some time, and for itself again. So the first look-up resolves the blocks around it in
//! one walk, and their places are kept beside the pages of layers, in the same cache and within the same limit.
//!
//! A view shows the same for ever and holds the layers that say so, so what is kept never has to be let go for being wrong.

use crate::history::{HistoryError, PageCache, View};
use afterimage_format::place::Place;
use std::sync::Arc;

/// Blocks that are resolved together: 512 KiB of the disk. A walk goes through half a page of each layer, some 200 versions, before
/// it comes to the first of them, so those of four groups of 32 blocks cost less than two walks; and what is kept of a disk is
/// small beside the pages that it was found in.
const GROUP: u64 = 128;
/// Bytes of a place.
const WORD: usize = 8;

/// The places of a view's blocks.
pub(super) struct Places {
    view: Arc<View>,
    /// None if the view has no layer, and so no block that is not zero. The number is this view's.
    kept: Option<(Arc<PageCache>, u64)>,
}

impl Places {
    pub(super) fn new(view: Arc<View>) -> Self {
        let kept = view.page_cache().map(|cache| (Arc::clone(cache), cache.number_layer()));
        Self { view, kept }
    }

    pub(super) fn view(&self) -> &View {
        &self.view
    }

    /// The place of one block.
    pub(super) fn of(&self, block: u64) -> Result<Place, HistoryError> {
        let Some((cache, number)) = &self.kept else { return Ok(Place::ZERO) };
        let (group, within) = (block / GROUP, block % GROUP);
        if let Some(place) = cache.get_found(*number, group).and_then(|words| word(&words, within)) {
            return Ok(place);
        }
        let words = self.resolve(group)?;
        cache.put_found(*number, group, &words);
        // A group is resolved whole.
        word(&words, within).map_or_else(|| self.view.lookup(block), Ok)
    }

    fn resolve(&self, group: u64) -> Result<Arc<[u8]>, HistoryError> {
        let mut runs = Vec::new();
        self.view.resolve(group * GROUP, GROUP, &mut runs)?;
        let places = runs.iter().flat_map(|(n, place)| (0..*n).map_while(|i| place.advance(i)));
        Ok(places.flat_map(|place| place.word().to_le_bytes()).collect())
    }
}

fn word(words: &[u8], n: u64) -> Option<Place> {
    let at = usize::try_from(n).ok()? * WORD;
    let bytes = words.get(at..at + WORD)?.try_into().ok()?;
    Place::from_word(u64::from_le_bytes(bytes)).ok()
}
