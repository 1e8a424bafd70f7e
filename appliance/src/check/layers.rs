//! Checking layers.

use super::{Checker, Hit, Keys, layer_damage, push_hit};
use crate::history::cursor::ColumnCursor;
use crate::history::layer::Layer;
use crate::history::{HistoryError, PageCache};
use afterimage_format::BLOCK_SIZE;
use afterimage_format::layer::{FOOTER_LEN, HEADER_LEN, LayerHeader, LayerMeta, PAGE_HEADER_LEN};
use afterimage_format::manifest::VolumeMeta;
use xxhash_rust::xxh3::xxh3_64;

impl Checker<'_> {
    pub(super) fn layers(&mut self, volume: &VolumeMeta) {
        for meta in &volume.layers {
            self.report.layers += 1;
            let path = self.dir.join("layers").join(meta.file_name());
            self.report.bytes += meta.file_len;
            let before = self.report.damages.len();
            if let Err((offset, what)) = checksums(&path, meta) {
                let hits = vec![whole(volume, meta)];
                self.damage(path.clone(), offset, what, hits);
            }
            if let Some(key) = self.key {
                let open = Layer::open(
                    &self.dir.join("layers"),
                    &volume.id,
                    meta,
                    &Keys(key.clone()),
                    &PageCache::new(1 << 20),
                );
                // What checksums have found already is not said twice, but made exact.
                match open {
                    Ok(layer) => self.layer(volume, &path, &layer, before),
                    Err(e) if self.report.damages.len() == before => self.layer_error(volume, &path, meta, &e),
                    Err(_) => {}
                }
            }
        }
    }

    fn layer_error(&mut self, volume: &VolumeMeta, path: &std::path::Path, meta: &LayerMeta, e: &HistoryError) {
        let hit = layer_hit(volume, e).unwrap_or_else(|| whole(volume, meta));
        self.damage(path.into(), 0, e.to_string(), vec![hit]);
    }

    fn layer(&mut self, volume: &VolumeMeta, path: &std::path::Path, layer: &Layer, before: usize) {
        let pages = layer.token_pages() + layer.time_pages();
        let mut hits: Vec<Hit> = Vec::new();
        let mut first = None;
        for page in 0..pages {
            if let Err(e) = layer.page(page, false) {
                if let Some(hit) = layer_hit(volume, &e) {
                    push_hit(&mut hits, hit);
                }
                first.get_or_insert(e.to_string());
            }
        }
        if let Some(what) = first {
            match self.report.damages.get_mut(before) {
                Some(d) => d.hits = hits,
                None => self.damage(path.into(), 0, what, hits),
            }
            return;
        }
        if let Err(e) = self.layer_references(volume, path, layer) {
            self.layer_error(volume, path, layer.meta(), &e);
        }
    }

    fn layer_references(
        &mut self,
        volume: &VolumeMeta,
        path: &std::path::Path,
        layer: &Layer,
    ) -> Result<(), HistoryError> {
        let Some(mut cursor) = ColumnCursor::new(layer)? else { return Ok(()) };
        loop {
            let (block, end) = (cursor.from, cursor.end());
            cursor.each_version(|seq, place| {
                self.reference(&volume.name, path, block, end - block, seq, place);
                Ok(())
            })?;
            if !cursor.advance(end)? {
                return Ok(());
            }
        }
    }
}

fn whole(volume: &VolumeMeta, meta: &LayerMeta) -> Hit {
    let block = BLOCK_SIZE as u64;
    Hit {
        volume: volume.name.clone(),
        offset: meta.first_block * block,
        len: (meta.end_block - meta.first_block) * block,
        seqs: (meta.after_seq + 1, meta.last_seq),
    }
}

fn layer_hit(volume: &VolumeMeta, e: &HistoryError) -> Option<Hit> {
    let (first, end, from, to) = layer_damage(e)?;
    let block = BLOCK_SIZE as u64;
    let (offset, len) = (first.saturating_mul(block), end.saturating_sub(first).saturating_mul(block));
    Some(Hit { volume: volume.name.clone(), offset, len, seqs: (from, to) })
}

/// What can be checked without a key: header, footer, and the checksum of every page.
fn checksums(path: &std::path::Path, meta: &LayerMeta) -> Result<(), (u64, String)> {
    let bytes = afterimage_base::world::fs::read(path).map_err(|e| (0, format!("it cannot be read: {e}")))?;
    if bytes.len() as u64 != meta.file_len {
        return Err((0, format!("the file has {} bytes, the manifest says {}", bytes.len(), meta.file_len)));
    }
    let header = bytes.first_chunk::<HEADER_LEN>().ok_or((0, "it has no header".to_string()))?;
    LayerHeader::decode(header).map_err(|e| (0, e.to_string()))?;
    let footer_at = bytes.len().saturating_sub(FOOTER_LEN);
    let footer = bytes.last_chunk::<FOOTER_LEN>().ok_or((0, "it has no footer".to_string()))?;
    let own = LayerMeta::from_footer(footer).map_err(|e| (footer_at as u64, e.to_string()))?;
    if own != *meta {
        return Err((footer_at as u64, "it is another layer than the manifest says".into()));
    }
    let mut at = HEADER_LEN;
    let index_at = usize::try_from(meta.index_at).unwrap_or(usize::MAX);
    while at < footer_at {
        let bad = |what: &str| (at as u64, what.to_string());
        let page = bytes.get(at..footer_at).ok_or_else(|| bad("a page is cut off"))?;
        let len = page.get(12..16).and_then(|b| b.first_chunk::<4>()).ok_or_else(|| bad("a page is cut off"))?;
        let end = PAGE_HEADER_LEN + usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
        let page = page.get(..end).ok_or_else(|| bad("a page reaches past its place"))?;
        let sum = page.first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b));
        if xxh3_64(&page[8..]) != sum {
            return Err(bad("the checksum of a page does not match"));
        }
        if at > index_at {
            return Err(bad("there is a page behind the index"));
        }
        at += end;
    }
    Ok(())
}
