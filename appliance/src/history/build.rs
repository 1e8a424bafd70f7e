//! Building a layer from sorted tokens and records, into memory or into a file.

use super::cache::PageCache;
use super::layer::{Layer, Pages};
use super::seal::PageSeal;
use super::{HistoryError, LayerKeys, Run};
use afterimage_base::crashsafe::sync_parent;
use afterimage_base::world;
use afterimage_base::world::fs::{self, File, OpenOptions};
use afterimage_format::layer::index::{Fence, Index, TimeFence, TimelineBuilder};
use afterimage_format::layer::page::PageBuilder;
use afterimage_format::layer::{HEADER_LEN, LayerHeader, LayerMeta, PAGE_HEADER_LEN, PAGE_TARGET, PageKind, TAG_LEN};
use std::collections::HashMap;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where finished pages go.
pub(crate) trait PageSink {
    /// Takes a page.
    fn page(&mut self, kind: PageKind, number: u64, plain: &[u8]) -> Result<(), HistoryError>;
}

/// Pages kept in memory.
#[derive(Default)]
pub(crate) struct MemorySink(Vec<Arc<[u8]>>);

impl PageSink for MemorySink {
    fn page(&mut self, _kind: PageKind, _number: u64, plain: &[u8]) -> Result<(), HistoryError> {
        self.0.push(plain.into());
        Ok(())
    }
}

/// Pages sealed into a new file. The file is removed again unless it is finished.
pub(crate) struct FileSink {
    file: BufWriter<File>,
    seal: Arc<PageSeal>,
    path: PathBuf,
    id: [u8; 16],
    written: u64,
    finished: bool,
}

impl FileSink {
    /// Starts a file with a fresh random id in `dir`.
    pub(crate) fn create(dir: &Path, volume: &[u8; 16], keys: &dyn LayerKeys) -> Result<Self, HistoryError> {
        let no_chance =
            |source| HistoryError::Io { path: dir.to_path_buf(), what: "get random bytes for a layer in", source };
        let id = world::random_array().map_err(no_chance)?;
        let header = LayerHeader { id, volume: *volume };
        let path = dir.join(afterimage_format::layer::file_name(&id));
        let io = |what| {
            let path = path.clone();
            move |source| HistoryError::Io { path, what, source }
        };
        let seal = PageSeal::new(&keys.layer_key(&id), header).map_err(|e| io("seal")(std::io::Error::other(e)))?;
        let file = OpenOptions::read_write().create_new().open(&path);
        let file = BufWriter::with_capacity(256 << 10, file.map_err(io("create"))?);
        let mut sink = Self { file, seal: Arc::new(seal), path, id, written: 0, finished: false };
        sink.write(&header.encode())?;
        Ok(sink)
    }

    fn io(&self, what: &'static str) -> impl FnOnce(std::io::Error) -> HistoryError {
        let path = self.path.clone();
        move |source| HistoryError::Io { path, what, source }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), HistoryError> {
        self.file.write_all(bytes).map_err(self.io("write"))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Makes everything written durable, and the file's name. An error is final for the file (I11): the caller drops it.
    fn sync(&mut self) -> Result<File, HistoryError> {
        self.file.flush().map_err(self.io("write"))?;
        self.file.get_ref().sync_all().map_err(self.io("sync"))?;
        sync_parent(&self.path).map_err(self.io("sync the folder of"))?;
        self.file.get_ref().try_clone().map_err(self.io("keep open"))
    }
}

impl PageSink for FileSink {
    fn page(&mut self, kind: PageKind, number: u64, plain: &[u8]) -> Result<(), HistoryError> {
        let sealed = self.seal.seal(kind, number, plain).map_err(|e| self.io("seal")(std::io::Error::other(e)))?;
        self.write(&sealed)
    }
}

impl Drop for FileSink {
    fn drop(&mut self) {
        if !self.finished {
            // Nothing names it; what cannot be removed now is removed at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Builds a layer: all tokens sorted by (block, seq), then all records.
pub(crate) struct LayerBuilder<S> {
    sink: S,
    page: PageBuilder,
    times: TimelineBuilder,
    index: Index,
    segments: HashMap<u32, u64>,
    at: u64,
    plain: Vec<u8>,
    /// A column known to have one version, perhaps joined from several.
    single: Option<Run>,
    /// The first version of the column being pushed, while it is the only one.
    first: Option<Run>,
    /// First block of the column being pushed.
    column: Option<u64>,
    written: Option<u64>,
    tokens: u64,
    records: u64,
    blocks: (u64, u64),
}

impl<S: PageSink> LayerBuilder<S> {
    pub(crate) fn new(sink: S) -> Self {
        Self {
            sink,
            page: PageBuilder::new(),
            times: TimelineBuilder::default(),
            index: Index::default(),
            segments: HashMap::new(),
            at: HEADER_LEN as u64,
            plain: Vec::new(),
            single: None,
            first: None,
            column: None,
            written: None,
            tokens: 0,
            records: 0,
            blocks: (u64::MAX, 0),
        }
    }

    /// Appends a token. Neighbouring columns with one version each that carry on in place are joined.
    pub(crate) fn push(&mut self, run: Run) -> Result<(), HistoryError> {
        if self.column == Some(run.block) {
            if let Some(first) = self.first.take() {
                self.flush_single()?;
                self.write(first)?;
            }
            return self.write(run);
        }
        self.end_column()?;
        (self.column, self.first) = (Some(run.block), Some(run));
        Ok(())
    }

    fn end_column(&mut self) -> Result<(), HistoryError> {
        let Some(first) = self.first.take() else { return Ok(()) };
        if let Some(single) = &mut self.single
            && carries_on(single, &first)
        {
            single.count += first.count;
            return Ok(());
        }
        self.flush_single()?;
        self.single = Some(first);
        Ok(())
    }

    fn flush_single(&mut self) -> Result<(), HistoryError> {
        self.single.take().map_or(Ok(()), |run| self.write(run))
    }

    fn write(&mut self, run: Run) -> Result<(), HistoryError> {
        if self.page.len() >= PAGE_TARGET {
            self.end_page()?;
        }
        if self.page.is_empty() {
            let continued = self.written == Some(run.block);
            self.index.fences.push(Fence { block: run.block, seq: run.seq, continued, at: 0, len: 0 });
        }
        self.page.push(run.block, run.count, run.seq, run.place);
        self.written = Some(run.block);
        self.tokens += 1;
        self.blocks = (self.blocks.0.min(run.block), self.blocks.1.max(run.end()));
        if !run.place.is_zero() {
            *self.segments.entry(run.place.segment()).or_default() += run.count;
        }
        Ok(())
    }

    fn place_page(&mut self) -> (u64, u32) {
        let len = u32::try_from(self.plain.len() + TAG_LEN).unwrap_or(u32::MAX);
        let at = self.at;
        self.at += PAGE_HEADER_LEN as u64 + u64::from(len);
        (at, len)
    }

    fn end_page(&mut self) -> Result<(), HistoryError> {
        if self.page.is_empty() {
            return Ok(());
        }
        self.plain.clear();
        self.page.finish(&mut self.plain);
        let (at, len) = self.place_page();
        if let Some(f) = self.index.fences.last_mut() {
            (f.at, f.len) = (at, len);
        }
        self.sink.page(PageKind::Token, self.index.fences.len() as u64 - 1, &self.plain)
    }

    /// Ends the tokens; only records may follow.
    pub(crate) fn end_tokens(&mut self) -> Result<(), HistoryError> {
        self.end_column()?;
        self.flush_single()?;
        self.end_page()
    }

    /// Blocks of each segment that its tokens refer to. To be asked when they have ended.
    pub(crate) fn into_segments(self) -> HashMap<u32, u64> {
        self.segments
    }

    /// Appends a record; seqs grow, times do not fall.
    pub(crate) fn record(&mut self, seq: u64, time: u64) -> Result<(), HistoryError> {
        if self.times.len() >= PAGE_TARGET {
            self.end_times()?;
        }
        if self.times.is_empty() {
            self.index.times.push(TimeFence { seq, time, at: 0, len: 0 });
        }
        self.times.push(seq, time);
        self.records += 1;
        Ok(())
    }

    fn end_times(&mut self) -> Result<(), HistoryError> {
        if self.times.is_empty() {
            return Ok(());
        }
        self.plain.clear();
        self.times.finish(&mut self.plain);
        let (at, len) = self.place_page();
        if let Some(t) = self.index.times.last_mut() {
            (t.at, t.len) = (at, len);
        }
        let number = self.index.fences.len() + self.index.times.len() - 1;
        self.sink.page(PageKind::Timeline, number as u64, &self.plain)
    }

    fn end(mut self, range: Range) -> Result<(S, Index, LayerMeta), HistoryError> {
        self.end_tokens()?;
        self.end_times()?;
        let mut segments: Vec<(u32, u64)> = self.segments.into_iter().collect();
        segments.sort_unstable();
        self.index.segments = segments;
        let (first_block, end_block) = if self.tokens == 0 { (0, 0) } else { self.blocks };
        let meta = LayerMeta {
            id: [0; 16],
            after_seq: range.after_seq,
            last_seq: range.last_seq,
            collapsed_to: range.collapsed_to,
            tokens: self.tokens,
            records: self.records,
            first_block,
            end_block,
            token_pages: u32::try_from(self.index.fences.len()).unwrap_or(u32::MAX),
            timeline_pages: u32::try_from(self.index.times.len()).unwrap_or(u32::MAX),
            index_at: self.at,
            file_len: 0,
        };
        Ok((self.sink, self.index, meta))
    }
}

/// The seqs of a layer being built.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Range {
    pub(crate) after_seq: u64,
    pub(crate) last_seq: u64,
    pub(crate) collapsed_to: u64,
}

impl LayerBuilder<MemorySink> {
    /// The layer, in memory.
    pub(crate) fn into_layer(self, range: Range, cache: &Arc<PageCache>) -> Result<Arc<Layer>, HistoryError> {
        let (sink, index, meta) = self.end(range)?;
        Ok(Layer::assemble(meta, index, Pages::Memory(sink.0), cache))
    }
}

impl LayerBuilder<FileSink> {
    /// The layer, durable in its file, which the manifest may name from now on.
    pub(crate) fn into_layer(self, range: Range, cache: &Arc<PageCache>) -> Result<Arc<Layer>, HistoryError> {
        let (mut sink, index, mut meta) = self.end(range)?;
        meta.id = sink.id;
        debug_assert_eq!(meta.index_at, sink.written, "pages lie where the index says");
        let plain = index.encode();
        let footer_len = afterimage_format::layer::FOOTER_LEN;
        meta.file_len = sink.written + (PAGE_HEADER_LEN + plain.len() + TAG_LEN + footer_len) as u64;
        sink.page(PageKind::Index, meta.index_page(), &plain)?;
        sink.write(&meta.footer())?;
        let file = sink.sync()?;
        sink.finished = true;
        let (seal, path) = (Arc::clone(&sink.seal), sink.path.clone());
        Ok(Layer::assemble(meta, index, Pages::File { file, seal, path }, cache))
    }
}

fn carries_on(run: &Run, next: &Run) -> bool {
    run.end() == next.block
        && run.seq == next.seq
        && if run.place.is_zero() { next.place.is_zero() } else { run.place.advance(run.count) == Some(next.place) }
}
