//! The appliance: receives the writes of protected volumes, reduces, seals and stores them, and shows each
//! volume as it was after any of them.
//!
//! | module | what |
//! |---|---|
//! | [`keys`] | the vault key and what is derived from it |
//! | [`room`] | room on the vault's disk, and getting out of a full one |
//! | [`vault`] | the data folder: lock, manifest, its one owner |
//! | [`store`] | segments: writing, reading, recovery |
//! | [`reduce`] | splitting, dedupe, compression, sealing |
//! | [`ingest`] | sessions of agents |
//! | [`history`] | versions, layers, points, retention |
//! | [`branch`] | second futures of a volume, read and written as disks |
//! | [`export`] | a volume at a seq as a block device |
//! | [`collect`] | retention, and giving room back |
//! | [`check`] | offline verification and dump |
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests run in the real world"))]

pub mod branch;
pub mod check;
pub mod collect;
pub mod export;
pub mod history;
pub mod ingest;
pub mod keys;
pub mod reduce;
pub mod room;
pub mod store;
pub mod vault;

mod appliance;
mod config;
mod fence;
mod info;
mod owners;
mod registry;
mod retention;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod trouble_tests;

pub use afterimage_format::fence::Fence;
pub use afterimage_format::manifest::{ForkKind, ForkMeta, PointMeta};
pub use appliance::{Appliance, ApplianceError, StartReport};
pub use branch::{BranchError, BranchInfo};
pub use config::ApplianceConfig;
pub use fence::{FenceError, Fenced, Standing};
pub use history::thin::{Policy, Why};
pub use info::{StoreInfo, VolumeInfo};
pub use ingest::failback::Lease;
pub use keys::KeySource;
pub use retention::{Freed, Kept, PointChange};
pub use room::{MinFree, Space};
