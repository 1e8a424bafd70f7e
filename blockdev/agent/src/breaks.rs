//! Deliberate breaks of the invariants, for tests that must see them caught. In a build without tests
//! none of them exists but in a simulation.

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Break {
    /// Overlapping writes do not wait for one another (I1).
    NoRangeLock = 1,
    /// A record is published after the disk has it, not before (I3).
    PublishLate = 2,
    /// Writes do not pass the gate (I6, I7).
    NoGate = 4,
    /// The sync takes a mark away before the record is in the ring (I3).
    ClearEarly = 8,
    /// Writes that find the ring closed mark nothing (I3).
    NoMark = 16,
    /// A refused write opens no gap.
    NoGapOnError = 32,
    /// The sync does not claim the region that it reads (I1).
    SyncUnlocked = 64,
    /// A forked history is gone on with.
    IgnoreFork = 128,
    /// A write goes on before its region is marked durably in the write-intent map.
    WriteCold = 256,
    /// A mark of the write-intent map is taken away before the appliance has what it stood for.
    ClearUndurable = 512,
    /// A mark of the write-intent map is taken away before the disk was synced.
    ClearUnsynced = 1024,
    /// Behind a power cut a history that lacks what clean regions rely on is gone on with.
    IgnoreRelied = 2048,
    /// A comparison counts although the ring was closed meanwhile.
    ClosedIgnored = 4096,
    /// The sync compares without having waited for its claim.
    CompareUnclaimed = 8192,
    /// The sync compares with an older seq than the Gap's.
    WrongSeq = 16384,
    /// The sync sends what it has compared although a live write came in between.
    OvertakeWrites = 32768,
    /// A write that finds the ring full waits until there is room (I4).
    WaitWhenFull = 65536,
    /// Writes are let in although the volume is fenced (I13).
    IgnoreFence = 131_072,
    /// A disk that adopts a volume goes on although that is not fenced (I13).
    AdoptUnfenced = 262_144,
    /// The appliance is told that nothing is written while writes find the ring closed (I6).
    QuietClosed = 524_288,
}

#[cfg(not(test))]
impl Break {
    /// The name under which a simulation asks for it.
    const fn name(self) -> &'static str {
        match self {
            Break::NoRangeLock => "no-range-lock",
            Break::PublishLate => "publish-late",
            Break::NoGate => "no-gate",
            Break::ClearEarly => "clear-early",
            Break::NoMark => "no-mark",
            Break::NoGapOnError => "no-gap-on-error",
            Break::SyncUnlocked => "sync-unlocked",
            Break::IgnoreFork => "ignore-fork",
            Break::WriteCold => "write-cold",
            Break::ClearUndurable => "clear-undurable",
            Break::ClearUnsynced => "clear-unsynced",
            Break::IgnoreRelied => "ignore-relied",
            Break::ClosedIgnored => "closed-ignored",
            Break::CompareUnclaimed => "compare-unclaimed",
            Break::WrongSeq => "wrong-seq",
            Break::OvertakeWrites => "overtake-writes",
            Break::WaitWhenFull => "wait-when-full",
            Break::IgnoreFence => "ignore-fence",
            Break::AdoptUnfenced => "adopt-unfenced",
            Break::QuietClosed => "quiet-closed",
        }
    }
}

/// The breaks of one volume.
#[derive(Debug, Default)]
pub(crate) struct Breaks {
    #[cfg(test)]
    set: std::sync::atomic::AtomicU32,
}

impl Breaks {
    #[cfg(test)]
    pub(crate) fn set(&self, what: Break) {
        self.set.fetch_or(what as u32, std::sync::atomic::Ordering::SeqCst);
    }

    #[cfg(test)]
    pub(crate) fn has(&self, what: Break) -> bool {
        self.set.load(std::sync::atomic::Ordering::Relaxed) & what as u32 != 0
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "the same call as in tests; a simulation breaks whole processes")]
    pub(crate) fn has(&self, what: Break) -> bool {
        afterimage_base::world::simulated().is_some_and(|world| world.broken(what.name()))
    }
}
