//! An NBD server for any [`BlockDevice`](afterimage_base::block::BlockDevice), and a small client for our tools.
//!
//! The protocol is that of the NBD project's `doc/proto.md`: fixed newstyle handshake, simple and structured
//! replies, `base:allocation`, and the extended headers of its branch `extension-ext-header`.

mod address;
pub mod client;
mod export;
pub mod limits;
mod server;

pub use address::{Address, BadAddress, Listen};
pub use export::{Export, ExportTable, Exports};
pub use limits::Limits;
pub use server::{Server, Stats};
