//! The bytes of Afterimage, and nothing else: no I/O, no clock, no allocation sized by a peer.
//!
//! Every magic number and header of the project is declared in this crate, so that an offline checker
//! needs nothing else to read what a daemon wrote. Each module's documentation is the specification of
//! its bytes; `docs/formats.md` links here. All integers are little-endian.
//!
//! | module | bytes |
//! |---|---|
//! | [`record`] | the 64-byte header of a journal record: a ring slot and a wire record are the same bytes |
//! | [`ring`] | the file of a ring journal |
//! | [`dirtymap`] | the file of a dirty map |
//! | [`intent`] | the file of a write-intent map |
//! | [`wire`] | messages between agent and appliance |
//! | [`place`] | where a block of data lies in the store, in one word |
//! | [`segment`] | files of sealed frames |
//! | [`commit`] | the content of a commit frame: records and where their blocks are |
//! | [`manifest`] | what exists in a vault |
//! | [`fence`] | whether an agent may take writes |
//! | [`compare`] | comparing blocks by hash, over the wire |
//! | [`failback`] | writing to the disk of a fenced agent, over the wire |
//! | [`coord`] | messages between mgmt and the roles: joining, certificates, revocations |
//! | [`codec`] | the bounds-checked reader and writer that all formats are built with |

pub mod codec;
pub mod commit;
pub mod compare;
pub mod coord;
pub mod dirtymap;
pub mod failback;
pub mod fence;
pub mod intent;
pub mod layer;
pub mod manifest;
pub mod place;
pub mod record;
pub mod ring;
pub mod segment;
pub mod wire;

/// Size of a grid block, the unit of dedupe and of history: 4 KiB.
///
/// Chosen with the table "block and frame size" in docs/performance.md: small blocks find more
/// duplicates and match the page that file systems write, large frames compress better.
pub const BLOCK_SIZE: usize = 4096;

/// log2 of [`BLOCK_SIZE`].
pub const BLOCK_SHIFT: u32 = 12;
