//! What the protected side keeps of every write until the appliance has it.
//!
//! | module | what |
//! |---|---|
//! | [`ring`] | the journal: a lock-free ring for many writers in a mapped file, found again after a kill |
//! | [`dirty_map`] | the dirty map: regions that may differ from the appliance's copy |
//! | [`intent`] | the write-intent map: regions that may differ from history after a power cut |
//! | [`error`] | why a file was refused |
//!
//! Inside: `dirty` is the file of a dirty map, `live` is the concurrent core (checked by a model in the tests), `head` its arithmetic, `survey` and
//! `recovery` find out what a ring holds, `file` and `map` are files and memory.
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests run in the real world"))]
#![cfg_attr(test, expect(clippy::duplicate_mod, reason = "the model compiles the core a second time"))]

mod dirty;
pub mod dirty_map;
pub mod error;
mod file;
mod head;
pub mod intent;
mod live;
mod map;
mod recovery;
pub mod ring;
mod survey;

#[cfg(test)]
mod model;

pub use dirty::Left;
pub use dirty_map::DirtyMap;
pub use error::{Closed, DirtyMapError, IntentError, ReopenError, ReserveError, RingError};
pub use intent::IntentMap;
pub use ring::{RecordRef, Recovered, Reservation, Ring, RingConfig};
