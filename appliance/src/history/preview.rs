//! What a volume would still refer to, if only so much of its history was kept: the walk of a merge, without its result.

use super::HistoryError;
use super::build::{LayerBuilder, PageSink};
use super::compact::{Rules, merge};
use super::layer::Layer;
use super::retention::Keep;
use afterimage_format::layer::PageKind;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Pages that nobody wants.
struct Nowhere;

impl PageSink for Nowhere {
    fn page(&mut self, _kind: PageKind, _number: u64, _plain: &[u8]) -> Result<(), HistoryError> {
        Ok(())
    }
}

/// Blocks of each segment that all of a volume's layers, merged under `keep`, refer to.
///
/// # Errors
/// [`HistoryError`] if a layer cannot be read or is damaged, or `stop` was set.
pub fn references(layers: &[Arc<Layer>], keep: &Keep, stop: &AtomicBool) -> Result<HashMap<u32, u64>, HistoryError> {
    let mut builder = LayerBuilder::new(Nowhere);
    merge(layers, &Rules { keep, moved: None, bottom: true, stop }, &mut builder)?;
    Ok(builder.into_segments())
}
