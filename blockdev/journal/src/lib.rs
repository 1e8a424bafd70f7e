//! What the protected side keeps of every write until the appliance has it.
//!
//! | module | what |
//! |---|---|
//! | [`ring`] | the journal: a lock-free ring for many writers in a mapped file, one consumer, found again after a kill |
//! | [`dirty`] | the dirty map: regions that may differ from the appliance's copy |
//! | [`error`] | why a file was refused |

pub mod dirty;
pub mod error;
pub mod ring;

pub use dirty::DirtyMap;
pub use error::{DirtyMapError, RingError};
pub use ring::{Closed, RecordRef, Recovered, ReopenError, Reservation, ReserveError, Ring, RingConfig};
