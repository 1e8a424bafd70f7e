//! An immutable layer, in memory or in a file, and looking things up in it.

use super::cache::PageCache;
use super::seal::PageSeal;
use super::{DamageKind, HistoryError, LayerKeys};
use afterimage_base::world::fs::File;
use afterimage_format::codec::DecodeError;
use afterimage_format::layer::index::{Fence, Index, walk_timeline};
use afterimage_format::layer::page::{Column, Walker};
use afterimage_format::layer::{FOOTER_LEN, HEADER_LEN, LayerHeader, LayerMeta, PAGE_HEADER_LEN, PageKind};
use afterimage_format::place::Place;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the pages are.
#[derive(Debug)]
pub(crate) enum Pages {
    /// Plain, in memory: token pages, then timeline pages.
    Memory(Vec<Arc<[u8]>>),
    /// It could not be opened, for this reason: nothing is known of what it holds.
    Lost(String),
    /// Sealed, in a file that stays readable while this is held, even when its name is gone.
    File {
        /// The file.
        file: File,
        /// Opens its pages.
        seal: Arc<PageSeal>,
        /// Its path, for messages and for removal.
        path: PathBuf,
    },
}

/// An immutable layer.
#[derive(Debug)]
pub struct Layer {
    meta: LayerMeta,
    index: Index,
    pages: Pages,
    number: u64,
    cache: Arc<PageCache>,
}

fn io(path: &Path, what: &'static str) -> impl FnOnce(std::io::Error) -> HistoryError {
    let path = path.to_path_buf();
    move |source| HistoryError::Io { path, what, source }
}

fn damaged(meta: &LayerMeta, blocks: (u64, u64), what: DamageKind) -> HistoryError {
    HistoryError::Damaged {
        layer: meta.file_name(),
        after_seq: meta.after_seq,
        last_seq: meta.last_seq,
        first_block: blocks.0,
        end_block: blocks.1,
        what,
    }
}

impl Layer {
    /// Puts together a layer that was just built.
    pub(crate) fn assemble(meta: LayerMeta, index: Index, pages: Pages, cache: &Arc<PageCache>) -> Arc<Self> {
        Arc::new(Self { meta, index, pages, number: cache.number_layer(), cache: Arc::clone(cache) })
    }

    /// Opens the file of the layer that `meta` (from the manifest) names, in `dir`.
    ///
    /// # Errors
    /// [`HistoryError::Io`] if it cannot be read, [`HistoryError::Damaged`] if it is not what was written.
    pub fn open(
        dir: &Path,
        volume: &[u8; 16],
        meta: &LayerMeta,
        keys: &dyn LayerKeys,
        cache: &Arc<PageCache>,
    ) -> Result<Arc<Self>, HistoryError> {
        let path = dir.join(meta.file_name());
        let file = File::open(&path).map_err(io(&path, "open"))?;
        let found = file.metadata().map_err(io(&path, "look at"))?.len;
        let bad = |what| damaged(meta, (meta.first_block, meta.end_block), what);
        if found != meta.file_len {
            return Err(bad(DamageKind::Length { found, expected: meta.file_len }));
        }
        let mut header = [0; HEADER_LEN];
        file.read_exact_at(&mut header, 0).map_err(io(&path, "read"))?;
        let mut footer = [0; FOOTER_LEN];
        let footer_at = found.saturating_sub(FOOTER_LEN as u64);
        file.read_exact_at(&mut footer, footer_at).map_err(io(&path, "read"))?;
        let header = LayerHeader::decode(&header).map_err(|e| bad(e.into()))?;
        let own = LayerMeta::from_footer(&footer).map_err(|e| bad(e.into()))?;
        if own != *meta || header != (LayerHeader { id: meta.id, volume: *volume }) {
            return Err(bad(DamageKind::Other));
        }
        let seal = Arc::new(PageSeal::new(&keys.layer_key(&meta.id), header).map_err(bad)?);
        // The footer's check bounds the index, and the file is as long as it says (I12).
        let len = usize::try_from(footer_at - meta.index_at).unwrap_or(0);
        let mut page = vec![0; len];
        file.read_exact_at(&mut page, meta.index_at).map_err(io(&path, "read"))?;
        let plain = seal.open(PageKind::Index, meta.index_page(), &mut page).map_err(bad)?;
        let index = Index::decode(plain, meta).map_err(|e| bad(e.into()))?;
        Ok(Self::assemble(meta.clone(), index, Pages::File { file, seal, path }, cache))
    }

    /// Stands for a layer that cannot be opened: whoever needs it gets an error.
    pub(crate) fn lost(meta: &LayerMeta, why: &HistoryError, cache: &Arc<PageCache>) -> Arc<Self> {
        Self::assemble(meta.clone(), Index::default(), Pages::Lost(why.to_string()), cache)
    }

    /// Why it could not be opened, if so.
    pub(crate) fn broken(&self) -> Option<&str> {
        match &self.pages {
            Pages::Lost(why) => Some(why),
            _ => None,
        }
    }

    /// An error if the layer could not be opened.
    pub(crate) fn sound(&self) -> Result<(), HistoryError> {
        self.broken().map_or(Ok(()), |why| Err(self.damaged(0, DamageKind::Lost(why.to_owned()))))
    }

    /// What the manifest says of it. A layer in memory has a zero id and no file length.
    #[must_use]
    pub fn meta(&self) -> &LayerMeta {
        &self.meta
    }

    /// Whether it is only in memory.
    #[must_use]
    pub fn in_memory(&self) -> bool {
        matches!(self.pages, Pages::Memory(_))
    }

    /// Path of its file.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match &self.pages {
            Pages::Memory(_) | Pages::Lost(_) => None,
            Pages::File { path, .. } => Some(path),
        }
    }

    /// A number unique in this process.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The cache that keeps its pages.
    pub(crate) fn page_cache(&self) -> &Arc<PageCache> {
        &self.cache
    }

    /// Segments referred to, by number, and how many blocks tokens place there.
    #[must_use]
    pub fn segments(&self) -> &[(u32, u64)] {
        &self.index.segments
    }

    /// Whether tokens place blocks in this segment.
    #[must_use]
    pub fn refers_to(&self, segment: u32) -> bool {
        self.index.segments.binary_search_by_key(&segment, |s| s.0).is_ok()
    }

    /// Work it takes to walk through: tokens and records.
    #[must_use]
    pub fn weight(&self) -> u64 {
        self.meta.tokens + self.meta.records
    }

    pub(crate) fn fences(&self) -> &[Fence] {
        &self.index.fences
    }

    /// The blocks that token page `page` can hold; all of them for another page.
    fn page_blocks(&self, page: u64) -> (u64, u64) {
        let at = usize::try_from(page).unwrap_or(usize::MAX);
        let Some(fence) = self.index.fences.get(at) else {
            return (self.meta.first_block, self.meta.end_block);
        };
        let next = self.index.fences.get(at + 1);
        (fence.block, next.map_or(self.meta.end_block, |f| f.block + u64::from(f.continued)))
    }

    /// The error for damage found in page `page`.
    pub(crate) fn damaged(&self, page: u64, what: impl Into<DamageKind>) -> HistoryError {
        damaged(&self.meta, self.page_blocks(page), what.into())
    }

    /// The plain bytes of a page. `keep` says whether the cache may keep it.
    ///
    /// # Errors
    /// [`HistoryError`] if it cannot be read or is damaged.
    pub(crate) fn page(&self, page: u64, keep: bool) -> Result<Arc<[u8]>, HistoryError> {
        let at = usize::try_from(page).unwrap_or(usize::MAX);
        let (file, seal, path) = match &self.pages {
            Pages::Memory(pages) => {
                return pages.get(at).map(Arc::clone).ok_or_else(|| self.damaged(page, DamageKind::Index(page)));
            }
            Pages::File { file, seal, path } => (file, seal, path),
            Pages::Lost(why) => return Err(self.damaged(page, DamageKind::Lost(why.clone()))),
        };
        if let Some(plain) = self.cache.get(self.number, page) {
            return Ok(plain);
        }
        let tokens = self.index.fences.len();
        let (kind, place) = match self.index.fences.get(at) {
            Some(f) => (PageKind::Token, Some((f.at, f.len))),
            None => (PageKind::Timeline, self.index.times.get(at.saturating_sub(tokens)).map(|t| (t.at, t.len))),
        };
        let (offset, len) = place.ok_or_else(|| self.damaged(page, DamageKind::Index(page)))?;
        let mut buffer = vec![0; PAGE_HEADER_LEN + len as usize];
        file.read_exact_at(&mut buffer, offset).map_err(io(path, "read"))?;
        let plain = seal.open(kind, page, &mut buffer).map_err(|e| self.damaged(page, e))?;
        let plain: Arc<[u8]> = plain.into();
        if keep {
            self.cache.put(self.number, page, &plain);
        }
        Ok(plain)
    }

    /// The last token page whose first key is at or before (block, seq).
    pub(crate) fn find(&self, block: u64, seq: u64) -> Option<u64> {
        let after = self.index.fences.partition_point(|f| (f.block, f.seq) <= (block, seq));
        after.checked_sub(1).map(|p| p as u64)
    }

    /// Whether the first column of token page `page` began in the page before.
    pub(crate) fn continued(&self, page: u64) -> bool {
        usize::try_from(page).ok().and_then(|p| self.index.fences.get(p)).is_some_and(|f| f.continued)
    }

    /// Number of token pages.
    pub(crate) fn token_pages(&self) -> u64 {
        self.index.fences.len() as u64
    }

    /// The newest version at or before `seq` of the column that begins with `block`, however many pages it fills.
    pub(crate) fn pick(&self, block: u64, seq: u64, keep: bool) -> Result<Option<Place>, HistoryError> {
        let Some(number) = self.find(block, seq) else { return Ok(None) };
        let page = self.page(number, keep)?;
        let mut walker = Walker::new();
        let mut go = || -> Result<Option<Place>, DecodeError> {
            while let Some(c) = walker.column(&page)? {
                let best = newest_in(&mut walker, &page, &c, seq)?;
                if c.block >= block {
                    return Ok(best.filter(|_| c.block == block));
                }
            }
            Ok(None)
        };
        go().map_err(|e| self.damaged(number, e))
    }

    /// The place of one block at `seq`, or `None` if this layer does not know.
    ///
    /// # Errors
    /// [`HistoryError`] if a page cannot be read or is damaged.
    pub fn lookup(&self, block: u64, seq: u64) -> Result<Option<Place>, HistoryError> {
        if block < self.meta.first_block || block >= self.meta.end_block {
            return Ok(None);
        }
        self.sound()?;
        let Some(number) = self.find(block, seq) else { return Ok(None) };
        let page = self.page(number, true)?;
        let mut walker = Walker::new();
        let mut first = self.continued(number);
        loop {
            let read = walker.column(&page).and_then(|c| match c {
                Some(c) => Ok(Some((c, newest_in(&mut walker, &page, &c, seq)?))),
                None => Ok(None),
            });
            let Some((c, best)) = read.map_err(|e| self.damaged(number, e))? else { return Ok(None) };
            if c.end() > block {
                let best = match best {
                    None if first && c.block <= block => self.pick(c.block, seq, true)?,
                    best => best.filter(|_| c.block <= block),
                };
                return Ok(best.map(|p| super::shifted(p, block - c.block)));
            }
            first = false;
        }
    }

    /// The newest record for which `at_most` holds; it must hold for a beginning of all records.
    ///
    /// # Errors
    /// [`HistoryError`] if a page cannot be read or is damaged.
    pub(crate) fn record_where(&self, at_most: impl Fn(u64, u64) -> bool) -> Result<Option<(u64, u64)>, HistoryError> {
        let after = self.index.times.partition_point(|t| at_most(t.seq, t.time));
        let Some(at) = after.checked_sub(1) else { return Ok(None) };
        let mut best = None;
        self.walk_times(at as u64, true, |seq, time| {
            let good = at_most(seq, time);
            if good {
                best = Some((seq, time));
            }
            good
        })?;
        Ok(best)
    }

    /// Walks through timeline page `page` (from 0) until `each` answers `false`.
    pub(crate) fn walk_times(
        &self,
        page: u64,
        keep: bool,
        each: impl FnMut(u64, u64) -> bool,
    ) -> Result<(), HistoryError> {
        let number = self.token_pages() + page;
        let bytes = self.page(number, keep)?;
        walk_timeline(&bytes, each).map_err(|e| self.damaged(number, e))
    }

    /// Number of timeline pages.
    pub(crate) fn time_pages(&self) -> u64 {
        self.index.times.len() as u64
    }
}

/// Reads the versions of a column in this page; answers the last one at or before `seq`.
#[inline]
pub(crate) fn newest_in(
    walker: &mut Walker,
    page: &[u8],
    column: &Column,
    seq: u64,
) -> Result<Option<Place>, DecodeError> {
    let mut best = None;
    for _ in 0..column.versions {
        let (s, place) = walker.version(page)?;
        if s <= seq {
            best = Some(place);
        }
    }
    Ok(best)
}
