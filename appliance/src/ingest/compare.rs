//! Answering hash queries beside ingest.
//!
//! A thread per session takes the queries of a bounded queue and reads history; receiving, writing and acknowledging never wait for
//! it. The view that it reads stays open for as long as queries ask for its seq, which is as long as a sync takes, so the
//! layers that it needs are not merged away under it. Whatever is in the way of an answer (a query that has waited for too long, a
//! seq that is not there or no longer kept, a damaged layer or segment) makes the answer "cannot tell": the agent
//! then sends the blocks.

use super::Shared;
use super::volume::Volume;
use crate::history::View;
use crate::store::BlockSource;
use afterimage_base::world;
use afterimage_format::compare::{BlockHasher, HashQuery, MAX_QUERIES, Told};
use afterimage_format::place::Place;
use afterimage_format::{BLOCK_SHIFT, BLOCK_SIZE};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A query that has waited for so long is not worth reading for: the agent has given it up, or soon will.
const PATIENCE: Duration = Duration::from_secs(5);
/// Blocks read at a time.
const BATCH: usize = 128;
/// Queries that wait: what an agent may have under way.
pub const QUEUE: usize = MAX_QUERIES;

/// A query, and when it came.
#[derive(Debug)]
pub struct Asked {
    query: HashQuery,
    came: Instant,
}

impl Asked {
    /// A query that has just come.
    #[must_use]
    pub fn now(query: HashQuery) -> Asked {
        Asked { query, came: world::now() }
    }

    /// Its id.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.query.id
    }
}

/// What answers the queries of a session.
pub struct Comparer<'a> {
    shared: &'a Shared,
    volume: &'a Volume,
    view: Option<Arc<View>>,
    hasher: BlockHasher,
    runs: Vec<(u64, Place)>,
    places: Vec<Place>,
    bytes: Vec<u8>,
    said: bool,
}

impl<'a> Comparer<'a> {
    /// For a session of this volume.
    #[must_use]
    pub fn new(shared: &'a Shared, volume: &'a Volume) -> Comparer<'a> {
        Comparer {
            shared,
            volume,
            view: None,
            hasher: BlockHasher::new([0; 32]),
            runs: Vec::new(),
            places: Vec::new(),
            bytes: Vec::new(),
            said: false,
        }
    }

    /// The answer to a query, which has been checked against the size of the volume.
    pub fn answer(&mut self, asked: &Asked) -> Told {
        if world::since(asked.came) > PATIENCE {
            return Told::Nothing;
        }
        match self.read(&asked.query) {
            Ok(told) => told,
            Err(why) => {
                // Once for a session: a damaged layer would be named again and again.
                if !std::mem::replace(&mut self.said, true) {
                    tracing::warn!("volume {}: cannot compare by hash: {why}", self.volume.name);
                }
                Told::Nothing
            }
        }
    }

    /// Whether every version that this seq sees is kept.
    fn keeps(&self, seq: u64) -> bool {
        seq > 0 && seq >= self.shared.vault.read(|m| m.volume(&self.volume.id).map_or(0, |v| v.first_seq))
    }

    fn view(&mut self, seq: u64) -> Result<Arc<View>, String> {
        if let Some(view) = self.view.as_ref().filter(|v| v.seq() == seq) {
            return Ok(Arc::clone(view));
        }
        self.view = None;
        let view = self.volume.history.view(seq).map_err(|e| e.to_string())?;
        // Looked at behind the opening: from here on the view holds what it sees.
        if !self.keeps(seq) {
            return Err(format!("seq {seq} is not kept any more"));
        }
        Ok(Arc::clone(self.view.insert(view)))
    }

    fn read(&mut self, query: &HashQuery) -> Result<Told, String> {
        let view = self.view(query.seq)?;
        self.runs.clear();
        view.resolve(query.offset >> BLOCK_SHIFT, query.blocks(), &mut self.runs).map_err(|e| e.to_string())?;
        if self.runs.iter().all(|(_, place)| place.is_zero()) {
            return Ok(Told::Zero);
        }
        if *self.hasher.key() != query.key {
            self.hasher = BlockHasher::new(query.key);
        }
        self.places.clear();
        for (count, place) in &self.runs {
            self.places
                .extend((0..*count).map(|i| if place.is_zero() { *place } else { place.advance(i).unwrap_or(*place) }));
        }
        let mut hashes = Vec::with_capacity(self.places.len());
        for places in self.places.chunks(BATCH) {
            self.bytes.resize(places.len() * BLOCK_SIZE, 0);
            self.shared.store.read_blocks(places, &mut self.bytes).map_err(|e| e.to_string())?;
            let each = places.iter().zip(self.bytes.chunks_exact(BLOCK_SIZE));
            hashes
                .extend(each.map(|(place, b)| if place.is_zero() { self.hasher.zero() } else { self.hasher.hash(b) }));
        }
        Ok(Told::Each(hashes))
    }
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
