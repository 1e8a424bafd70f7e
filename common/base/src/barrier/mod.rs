//! A barrier: the one instant at which the gates of all members of a group are closed. Two state machines without I/O and without a clock.
//!
//! | who | what |
//! |---|---|
//! | [`Coordinator`] | asks all to close, lets all go when the last has closed, and decides when all have said whether they had stayed closed |
//! | [`Member`] | closes, marks, and opens: when it is told to, or when its time is over |
//!
//! ```text
//! coordinator   Prepare ->            Release ->              decision        all markers durable: visible
//! member                  -> Held                 -> Stayed
//! gate                    |=== closed ===========|
//! ```
//!
//! Why a yes of all is enough: *Release* was sent after the last *Held* had come, and who says yes was closed from its *Held* until that *Release*
//! came. So at the moment at which Release was sent all were closed, each with its marker appended: what was acknowledged anywhere before that
//! is before a marker, and what followed from it is behind one. The same holds for any part of the members: a partial point is consistent,
//! too, it only lacks somebody. Messages may be lost, late, doubled and out of order; any of the two may die at any time.
//!
//! The tests go through every interleaving for two and three members (`explore_tests.rs`) and through random ones for 128.

mod coordinator;
mod member;

pub use coordinator::{Action, Coordinator, Event, Outcome, Part, Why, settle};
pub use member::{Deed, Member, Said, Step};

/// Names a barrier. Later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    /// Which life of mgmt.
    pub epoch: u64,
    /// Which barrier of that life.
    pub number: u64,
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.epoch, self.number)
    }
}

#[cfg(test)]
mod explore_tests;
