//! Making little of much: zero blocks, blocks that are known already, and compression.
//!
//! | module | what |
//! |---|---|
//! | [`block`] | is it zero, and what is its fingerprint |
//! | [`index`] | from fingerprint to place: the dedupe index |
//! | [`frame`] | compressing and sealing a frame, and the way back |
//! | [`pool`] | the threads that do it |
//!
//! Blocks are small and frames large: small blocks find more duplicates, large frames compress better and cost less
//! for each block. The table that chose the sizes is in docs/performance.md.

pub mod block;
pub mod frame;
pub mod index;
pub mod pool;

/// Blocks in a frame: 64 KiB before compression.
pub const FRAME_BLOCKS: usize = 16;

/// zstd's level of what comes in: higher ones cost more than they save on blocks of disks, see docs/performance.md.
pub const LEVEL: i32 = 1;

/// Blocks in a frame at least before it ends because they lie far apart.
pub const SCATTERED_FRAME_BLOCKS: usize = 4;

/// How far the blocks of a full frame may lie apart on the disk: 32 MiB.
///
/// Who reads a disk from beginning to end comes to all blocks of a frame within its reach, and needs as many frames
/// at a time as this many bytes hold, whatever was written in which order: half of the cache of frames. A frame that
/// reaches further is decompressed again for nearly each of its blocks, so it has few of them.
pub const FRAME_REACH: u64 = 8192;
