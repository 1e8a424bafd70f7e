//! A bounded cache of opened layer pages, shared by all volumes, and of what was looked up in them, which has a third for itself:
//! a place that was found stands for pages of every layer, and would have to go for them.
//!
//! Pages are kept as they lie in the file, only opened: 11 bytes a version instead of 32, and a walk through half a
//! page costs less than a miss.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

const SHARDS: usize = 16;
/// What is counted for a page besides its bytes: its name, twice, and where it is.
const OVERHEAD: usize = 128;

/// A page's name: the layer's number in this process, and the page's.
type Key = (u64, u64);

struct Slot {
    key: Key,
    page: Arc<[u8]>,
    used: bool,
}

#[derive(Default)]
struct Shard {
    slots: Vec<Slot>,
    by_key: HashMap<Key, usize>,
    hand: usize,
    bytes: usize,
}

/// 16 shards, each with a clock hand.
struct Clock {
    shards: Vec<Mutex<Shard>>,
    shard_limit: usize,
}

/// The cache.
pub struct PageCache {
    pages: Clock,
    found: Clock,
    next_layer: AtomicU64,
}

impl std::fmt::Debug for PageCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let limit = (self.pages.shard_limit + self.found.shard_limit) * SHARDS;
        write!(f, "PageCache({} bytes of {limit})", self.bytes())
    }
}

impl PageCache {
    /// A cache of at most about `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        let found = limit / 3;
        Arc::new(Self { pages: Clock::new(limit - found), found: Clock::new(found), next_layer: AtomicU64::new(1) })
    }

    /// A number for a layer, unique in this cache.
    pub(crate) fn number_layer(&self) -> u64 {
        self.next_layer.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn get(&self, layer: u64, page: u64) -> Option<Arc<[u8]>> {
        self.pages.get((layer, page))
    }

    pub(crate) fn put(&self, layer: u64, page: u64, bytes: &Arc<[u8]>) {
        self.pages.put((layer, page), bytes);
    }

    /// Part `part` of what was found in the view of this number.
    pub(crate) fn get_found(&self, view: u64, part: u64) -> Option<Arc<[u8]>> {
        self.found.get((view, part))
    }

    pub(crate) fn put_found(&self, view: u64, part: u64, bytes: &Arc<[u8]>) {
        self.found.put((view, part), bytes);
    }

    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.pages.bytes() + self.found.bytes()
    }
}

impl Clock {
    fn new(limit: usize) -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::new(Shard::default())).collect(), shard_limit: limit / SHARDS }
    }

    fn shard(&self, key: Key) -> &Mutex<Shard> {
        let mixed = (key.0 ^ key.1.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        &self.shards[usize::try_from(mixed >> 60).unwrap_or(0) % SHARDS]
    }

    fn get(&self, key: Key) -> Option<Arc<[u8]>> {
        let mut shard = self.shard(key).lock().unwrap_or_else(PoisonError::into_inner);
        let at = *shard.by_key.get(&key)?;
        let slot = shard.slots.get_mut(at)?;
        slot.used = true;
        Some(Arc::clone(&slot.page))
    }

    fn put(&self, key: Key, bytes: &Arc<[u8]>) {
        let mut shard = self.shard(key).lock().unwrap_or_else(PoisonError::into_inner);
        let cost = bytes.len() + OVERHEAD;
        if cost > self.shard_limit || shard.by_key.contains_key(&key) {
            return;
        }
        shard.make_room(self.shard_limit - cost);
        shard.bytes += cost;
        let at = shard.slots.len();
        shard.slots.push(Slot { key, page: Arc::clone(bytes), used: false });
        shard.by_key.insert(key, at);
    }

    fn bytes(&self) -> usize {
        self.shards.iter().map(|s| s.lock().unwrap_or_else(PoisonError::into_inner).bytes).sum()
    }
}

impl Shard {
    /// Turns the hand until at most `limit` bytes are held: what was used since it last passed stays once more.
    fn make_room(&mut self, limit: usize) {
        while self.bytes > limit && !self.slots.is_empty() {
            if self.hand >= self.slots.len() {
                self.hand = 0;
            }
            let hand = self.hand;
            if std::mem::take(&mut self.slots[hand].used) {
                self.hand += 1;
                continue;
            }
            let gone = self.slots.swap_remove(hand);
            self.bytes -= gone.page.len() + OVERHEAD;
            self.by_key.remove(&gone.key);
            // The youngest has come here from the end, or comes there next: the hand meets it when it has been round.
            self.hand = match self.slots.get(hand) {
                Some(moved) => {
                    self.by_key.insert(moved.key, hand);
                    hand + 1
                }
                None => 0,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_stays_for_a_round_though_all_is_full() {
        let cache = PageCache::new(SHARDS * 150 * (4096 + OVERHEAD));
        let page: Arc<[u8]> = vec![7; 4096].into();
        (0..SHARDS as u64 * 200).for_each(|n| cache.put(1, n, &page));
        // Half of what it holds: no shard goes round, however the keys fall.
        let new = SHARDS as u64 * 50;
        (0..new).for_each(|n| cache.put(2, n, &page));
        let kept = (0..new).filter(|n| cache.get(2, *n).is_some()).count() as u64;
        assert!(kept > new * 9 / 10, "{kept} of {new}");
    }

    #[test]
    fn it_stays_within_its_limit_and_keeps_what_is_used() {
        let cache = PageCache::new(SHARDS * 150 * 4096);
        let page: Arc<[u8]> = vec![7; 4096].into();
        for n in 0..20_000 {
            cache.put(1, n, &page);
            let _ = cache.get(1, 3);
            assert!(cache.bytes() <= SHARDS * 100 * 4096 || n % 500 != 0);
        }
        assert!(cache.bytes() <= SHARDS * 100 * 4096 && cache.bytes() > SHARDS * 50 * 4096);
        assert!(cache.get(1, 3).is_some(), "a page in use stays");
        assert!(cache.get(2, 3).is_none(), "another layer's page is another page");
        assert!(cache.get_found(1, 3).is_none(), "what is found is no page");
        cache.put_found(1, 3, &page);
        (20_000..40_000).for_each(|n| cache.put(1, n, &page));
        assert!(cache.get_found(1, 3).is_some(), "it does not go for pages");
        for shard in &cache.pages.shards {
            let shard = shard.lock().unwrap();
            assert!(shard.by_key.len() == shard.slots.len());
            assert!(shard.by_key.iter().all(|(k, at)| shard.slots[*at].key == *k));
        }
    }
}
