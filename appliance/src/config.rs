//! How an appliance is run.

use crate::history::thin::Policy;
use crate::ingest::listen::Acceptor;
use crate::keys::KeySource;
use crate::room::MinFree;
use crate::store::IoHook;
use afterimage_base::clock::{Clock, SystemClock};
use afterimage_base::net::Endpoint;
use afterimage_trust::Trust;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How an appliance is to be run.
#[derive(Clone)]
pub struct ApplianceConfig {
    /// The vault's folder.
    pub dir: PathBuf,
    /// Where agents connect.
    pub listen: Vec<Endpoint>,
    /// Where agents come from besides.
    pub acceptor: Option<Arc<dyn Acceptor>>,
    /// Connections taken from one IP address at most.
    pub per_address: usize,
    /// Where the vault key is. [`ApplianceConfig::new`] sets the file `key` in the vault's folder.
    pub key: KeySource,
    /// How far back any write can be chosen.
    pub window: Duration,
    /// Which points before that are kept; its window is not looked at. Of volumes of which nobody has said more.
    pub retention: Policy,
    /// Memory of the dedupe index in bytes, used as it fills.
    pub dedupe_bytes: usize,
    /// Memory for decompressed frames in bytes.
    pub cache_bytes: usize,
    /// Memory for pages of layers in bytes.
    pub layer_cache_bytes: usize,
    /// Threads that hash, compress and seal.
    pub threads: usize,
    /// Threads that help with the reads of exports. More than cores, as they wait for the disk where segments are not in memory.
    pub read_threads: usize,
    /// A segment takes no more at this size in bytes; at most 62 MiB.
    pub segment_size: u64,
    /// Data in bytes that an agent may have sent and that is not durable yet.
    pub credit: u64,
    /// Versions that are kept in memory, per volume, before they are written to a layer; also bounds the replay after a crash.
    pub memory_runs: usize,
    /// How often retention and collection have a turn.
    pub collect_every: Duration,
    /// Bytes of blocks that are brought into disk order in a second, in the background; an eighth of it while ingest is busy.
    /// 0 switches it off.
    pub order_rate: u64,
    /// Full segments of a volume from which on that is done.
    pub order_segments: usize,
    /// Memory for what is read ahead of those who read an export from front to back, all of them together.
    pub ahead_bytes: usize,
    /// The clock that says how old things are, for retention.
    pub clock: Arc<dyn Clock>,
    /// How much of the vault's disk has to be free for ingest. `MinFree::Bytes(0)` keeps no reserve either.
    pub min_free: MinFree,
    /// Asked before each operation on the vault's files, for tests.
    pub io_hook: Option<IoHook>,
    /// Who this appliance is. With it nobody comes in over TCP without TLS and a certificate of the same vault.
    pub trust: Option<Arc<Trust>>,
}

impl ApplianceConfig {
    /// The defaults, for the vault in `dir` and a unix socket at `listen`.
    #[must_use]
    pub fn new(dir: PathBuf, listen: PathBuf) -> Self {
        let key = KeySource::File(dir.join("key"));
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self {
            dir,
            listen: vec![Endpoint::Unix(listen)],
            acceptor: None,
            per_address: 128,
            key,
            window: Duration::from_secs(24 * 3600),
            retention: Policy::window(0),
            dedupe_bytes: 128 << 20,
            cache_bytes: 64 << 20,
            layer_cache_bytes: 48 << 20,
            threads: cores,
            read_threads: (cores * 2).clamp(2, 16),
            segment_size: 60 << 20,
            credit: 24 << 20,
            memory_runs: 256 << 10,
            collect_every: Duration::from_secs(30),
            order_rate: 64 << 20,
            order_segments: 4,
            ahead_bytes: 32 << 20,
            clock: Arc::new(SystemClock::new()),
            min_free: MinFree::Auto,
            io_hook: None,
            trust: None,
        }
    }
}

impl std::fmt::Debug for ApplianceConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ApplianceConfig({})", self.dir.display())
    }
}
