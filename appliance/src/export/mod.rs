//! A volume as it was at a seq, as a block device.
//!
//! | module | what |
//! |---|---|
//! | [`point`] | the device, read-only |
//! | `places` | where its blocks lie |
//! | [`parallel`] | reads of one connection on several threads |
//! | [`ahead`] | reading ahead |
//! | `open` | opening them, and what changed between two seqs, by the volume's name |

pub mod ahead;
mod open;
pub mod parallel;
mod places;
pub mod point;

pub use point::PointDevice;

/// Whole grid blocks of a device of `size` bytes; the last one may reach past its end.
#[must_use]
pub const fn blocks_of(size: u64) -> u64 {
    size.div_ceil(afterimage_format::BLOCK_SIZE as u64)
}
