//! An NBD server for any [`BlockDevice`](afterimage_base::block::BlockDevice), a small client for our tools, and the kernel's
//! client ([`kernel`]).
//!
//! The protocol is that of the NBD project's `doc/proto.md`: fixed newstyle handshake, simple and structured
//! replies, `base:allocation`, and the extended headers of its branch `extension-ext-header`.
//!
//! One thread per connection owns a [`Queue`](afterimage_base::block::Queue) of the device. It receives into one
//! large buffer, submits every request that has arrived whole (write payloads are used where they were received),
//! and sends all replies that are ready with one call. A client that stalls in the middle of a payload, or does not
//! read its replies, holds nothing but its own share of memory, and is cut off after a time; see [`limits`].

mod address;
pub mod client;
mod command;
mod connection;
mod core;
mod export;
mod handshake;
mod input;
pub mod kernel;
pub mod limits;
mod listener;
mod options;
mod outbox;
mod pool;
mod proto;
mod reply;
mod secure;
mod server;
mod socket;
mod stop;

pub use address::{Address, BadAddress, Listen};
pub use export::{Export, ExportTable, Exports};
pub use limits::Limits;
pub use listener::systemd_listeners;
pub use proto::{Mode, command_flag, errno, transmission};
pub use secure::Tls;
pub use server::{Server, Stats, serve_connection};
pub use stop::Stop;
