//! Why a device cannot be had.

use std::io;
use thiserror::Error;

/// See the module.
#[derive(Debug, Error)]
pub enum Error {
    /// The driver is not there.
    #[error(
        "this kernel offers no ublk: {0} is not there. Load the driver with `modprobe ublk_drv` (Linux 6.0 and later; in Debian it \
         is part of the kernel's package)"
    )]
    NoDriver(&'static str),
    /// The driver may not be used.
    #[error("{0} cannot be opened: {1}. Making block devices needs root")]
    NotAllowed(&'static str, #[source] io::Error),
    /// The driver refused a command.
    #[error("ublk device {id}: the driver refused to {doing}: {source}")]
    Refused {
        /// The device; `u32::MAX` for a new one.
        id: u32,
        /// What was being done.
        doing: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The device of a request's size cannot be shown.
    #[error("the device has {0} bytes, which is less than one of its blocks")]
    TooSmall(u64),
    /// A queue could not start.
    #[error("ublk device {id}, queue {queue}: {source}")]
    Queue {
        /// The device.
        id: u32,
        /// The queue.
        queue: u16,
        /// The system's error.
        source: io::Error,
    },
    /// The old server is still there, or the driver is not done with it.
    #[error("ublk device {0} is still held by another process after {1} s: end that first")]
    Held(u32, u64),
    /// The kernel cannot change a running device's size.
    #[error(
        "this kernel cannot change the size of a ublk device that is in use (Linux 6.16 and later can): unmount /dev/ublkb{0}, \
         detach it and attach it again"
    )]
    NoResize(u32),
    /// Any other error of the system.
    #[error("ublk device {id}: cannot {doing}: {source}")]
    System {
        /// The device.
        id: u32,
        /// What was being done.
        doing: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

impl Error {
    /// The system's error number, if the driver refused.
    pub(crate) fn errno(&self) -> Option<i32> {
        match self {
            Error::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}
