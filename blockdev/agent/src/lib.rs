//! The protected side behind the front end: from a checked request to disk, ring and appliance.
//!
//! | module | what |
//! |---|---|
//! | [`disk`] | the real disk: opening, identity, engine per queue |
//! | `ranges` | the table of writes in flight, which makes seq order the order on the disk |
//! | `protect`, `job`, `queue` | the interceptor: gate, seq, ring, disk, completion |
//! | `device` | the same as a block device, with and without protection |
//! | `intent` | the write-intent map: who waits for a mark, and when marks go |
//! | `machine` | what a volume is doing, as a table |
//! | `continuity` | whether the appliance holds the same history, as a table |
//! | `fence` | refusing writes while the machine runs elsewhere |
//! | `failback` | what the machine wrote there comes back to the disk |
//! | [`resize`] | changes of the size |
//! | `ages` | how old a seq is, whatever the clock does |
//! | `keeper`, `sync` | the thread that leaves dirty mode and copies dirty regions |
//! | `compare`, `asker` | the copy by comparison, and the questions to the appliance |
//! | `pace` | how a copy gives way to the guest |
//! | [`verify`] | comparing disk and newest history without stopping the guest |
//! | `sender`, `session` | the thread that sends the ring to the appliance |
//! | [`connect`] | how the appliance is reached |
//! | [`barrier`] | this machine's part in the barriers of its group |
//! | [`app`] | app-consistent points: scripts, freeze, thaw |
//! | [`volume`], [`agent`] | opening, recovery, points, status, stop |
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests run in the real world"))]

pub mod agent;
mod ages;
pub mod api;
pub mod app;
mod asker;
pub mod barrier;
mod breaks;
mod compare;
pub mod connect;
mod continuity;
mod device;
pub mod disk;
mod failback;
mod fence;
mod few;
#[doc(hidden)]
pub mod fuzzing;
mod intent;
mod job;
mod keeper;
mod machine;
mod mailbox;
mod meta;
mod open;
mod pace;
mod protect;
mod queue;
mod ranges;
pub mod resize;
mod sender;
mod session;
mod shared;
mod slab;
mod sync;
pub mod verify;
pub mod volume;

#[cfg(test)]
mod kit;
#[cfg(test)]
mod tests;

pub use agent::Agent;
pub use api::{
    AgentConfig, AgentError, ForeignWrite, IntentConfig, PointError, RecoveryReport, SyncStatus, VolumeConfig,
    VolumeState, VolumeStatus,
};
pub use connect::{Connection, Connector, connector, secure_connector, unix_connector};
pub use device::PlainDisk;
pub use disk::{CacheMode, DiskError};
pub use fence::FencePolicy;
pub use resize::{ResizeError, Resized};
pub use verify::{VerifyError, VerifyOptions, VerifyProgress, VerifyReport};
pub use volume::{Volume, create_points};
