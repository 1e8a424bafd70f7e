//! What was decompressed lately, in bounded memory: whole frames, and parts of frames.
//!
//! Sharded; in each shard a clock: the hand goes round, a frame that was used since its last visit stays, another one goes.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const SHARDS: usize = 16;

/// What was decompressed.
pub type Content = Arc<Vec<u8>>;

/// A frame or a part of one: the frame's word ([`Place::frame`](afterimage_format::place::Place::frame)), and which part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    frame: u64,
    part: Option<u8>,
}

impl Key {
    /// All of a frame.
    #[must_use]
    pub const fn whole(frame: u64) -> Self {
        Self { frame, part: None }
    }

    /// A part of it.
    #[must_use]
    pub const fn part(frame: u64, part: u8) -> Self {
        Self { frame, part: Some(part) }
    }
}

#[derive(Default)]
struct Shard {
    frames: HashMap<Key, (Content, bool)>,
    hand: VecDeque<Key>,
    bytes: usize,
}

/// See the module.
pub struct FrameCache {
    shards: Vec<Mutex<Shard>>,
    limit: usize,
}

impl std::fmt::Debug for FrameCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FrameCache({} bytes)", self.limit * SHARDS)
    }
}

impl FrameCache {
    /// A cache that holds at most `bytes` bytes of content.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), limit: bytes / SHARDS }
    }

    fn shard(&self, key: Key) -> MutexGuard<'_, Shard> {
        // Neighbouring frames differ in the middle of the word; multiplying brings that to the top.
        let hash = key.frame.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60;
        let shard = &self.shards[usize::try_from(hash).unwrap_or(0) % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is kept of it.
    #[must_use]
    pub fn get(&self, key: Key) -> Option<Content> {
        self.shard(key).frames.get_mut(&key).map(|(content, used)| {
            *used = true;
            Arc::clone(content)
        })
    }

    /// Keeps it, letting others go. What is kept under a key stays the same, as frames do.
    pub fn put(&self, key: Key, content: &Content) {
        let mut guard = self.shard(key);
        let shard = &mut *guard;
        if content.len() > self.limit || shard.frames.contains_key(&key) {
            return;
        }
        shard.frames.insert(key, (Arc::clone(content), false));
        shard.hand.push_back(key);
        shard.bytes += content.len();
        while shard.bytes > self.limit {
            let Some(oldest) = shard.hand.pop_front() else { break };
            match shard.frames.get_mut(&oldest) {
                Some((_, used)) if *used => {
                    *used = false;
                    shard.hand.push_back(oldest);
                }
                _ => shard.bytes -= shard.frames.remove(&oldest).map_or(0, |(c, _)| c.len()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_within_its_limit_and_keeps_what_is_used() {
        let cache = FrameCache::new(SHARDS * 10 * 1000);
        for i in 1..=2000u64 {
            cache.put(Key::whole(i << 10), &Arc::new(vec![0; 1000]));
            assert!(cache.get(Key::whole(1 << 10)).is_some(), "used at every step");
        }
        let bytes: usize = cache.shards.iter().map(|s| s.lock().unwrap().bytes).sum();
        assert!(bytes <= SHARDS * 10 * 1000 && bytes > SHARDS * 5 * 1000, "{bytes}");
        assert!(cache.get(Key::part(1 << 10, 0)).is_none(), "a part is another thing than the whole");
        cache.put(Key::whole(9 << 10), &Arc::new(vec![0; 20_000]));
        assert!(cache.get(Key::whole(9 << 10)).is_none_or(|c| c.len() == 1000), "larger than its shard");
    }
}
