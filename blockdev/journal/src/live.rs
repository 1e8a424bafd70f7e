//! The concurrent part of the ring, on the real atomics and a mapped file.
//!
//! The files below this module name no atomic and no memory themselves, they take both from `super::sync`. The
//! model (in tests) compiles the same files a second time over shuttle's atomics and plain memory.

pub(crate) mod core;
pub(crate) mod parker;

/// What the files of this module are built on.
pub(crate) mod sync {
    pub(crate) use crate::map::Map as Memory;
    pub(crate) use afterimage_base::world::sync::Condvar;
    pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};
    pub(crate) use std::sync::{Mutex, PoisonError};
}
