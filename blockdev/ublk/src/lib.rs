//! Any [`BlockDevice`](afterimage_base::block::BlockDevice) as `/dev/ublkbN` of this machine's Linux kernel (6.0 and later).
//!
//! The kernel's driver hands requests to queues; each queue is a thread here, with a ring (io_uring) over which it takes
//! requests and answers them, and with a [`Queue`](afterimage_base::block::Queue) of the device. Where the kernel has user copy
//! (6.5 and later) the payload of a write is copied once, from the pages of whoever wrote to the place where the device
//! keeps it.
//!
//! | module | what |
//! |---|---|
//! | `abi` | the bytes exchanged with the driver |
//! | `control` | commands about devices |
//! | `ring` | what a queue shares with the driver |
//! | `queue` | a queue's thread |
//! | [`device`] | making, taking over, leaving and removing a device |
//!
//! # When the server dies
//! A recoverable device outlives its server. The driver keeps what was asked and not answered, whoever uses the disk waits,
//! and [`Device::take_over`] goes on: the driver then asks *again* what the old server may have done already. So a write may be
//! done twice. It is harmless as long as the device does nothing else in between than what users were told or may be told:
//! see docs/invariants.md (I2).

mod abi;
mod control;
pub mod device;
mod error;
mod features;
mod memory;
mod queue;
mod ring;

pub use device::{About, Device, Options, Origin, disk_path, probe};
pub use error::Error;
pub use features::Features;
