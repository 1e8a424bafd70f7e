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
