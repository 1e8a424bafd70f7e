//! A [`BlockDevice`] as `/dev/nbdN` of this machine's Linux kernel: its NBD client, set up over netlink, on a pair of sockets
//! whose other end is served here. There is no handshake; both ends know what it would say.
//!
//! # When the server dies
//! The kernel keeps the device, whoever uses it waits, and [`Device::take_over`] hands over a new socket. What is asked
//! meanwhile stays queued; what was asked and not answered is sent again [`ANSWER`] after it was asked for the first time. So a write may be
//! done twice, as with ublk, and that is harmless for the same reason (docs/invariants.md, I2), as long as none of the old
//! connection's requests is begun after the new one's first: a dead process begins nothing, and a living one hands over a
//! new socket when the old one is served to its end. **One connection for each device**, because of that: with two, the kernel
//! would ask the second at once again for what the first still has.
//!
//! | module | what |
//! |---|---|
//! | `message` | the bytes |
//! | `netlink` | the commands |

mod message;
mod netlink;

use crate::command::Terms;
use crate::connection::Connection;
use crate::core::Core;
use crate::limits::Limits;
use crate::proto::Mode;
use crate::server::Counters;
use crate::socket::{End, Socket, wait_on};
use crate::stop::Stop;
use afterimage_base::block::BlockDevice;
use afterimage_base::writeback::serves_writeback;
use netlink::{Netlink, Setup};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use thiserror::Error;

/// How long the kernel waits for an answer before it gives a connection up and asks again on the next. A slow disk may take
/// longer, which costs a new connection and the same again.
pub const ANSWER: Duration = Duration::from_secs(10);
/// How long users of a device wait while nobody serves it, before they get errors.
pub const PATIENCE: Duration = Duration::from_secs(600);
/// How long answers may take at the end.
const GRACE: Duration = Duration::from_secs(5);
/// Pauses before a new connection: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// Devices that are looked at for a free one.
const MOST: u32 = 256;

/// Why a device cannot be had.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The module is not there.
    #[error(
        "this kernel has no NBD client: load it with `modprobe nbd` (in Debian the module is part of the kernel's package)"
    )]
    NoDriver,
    /// Only an administrator may.
    #[error("the kernel's NBD client takes commands from root only")]
    NotAllowed,
    /// All devices are in use.
    #[error("all devices of the kernel's NBD client up to /dev/nbd{0} are in use")]
    Full(u32),
    /// The kernel refused a command.
    #[error("/dev/nbd{number}: the kernel refused to {doing}: {source}")]
    Refused {
        /// N of `/dev/nbdN`.
        number: u32,
        /// What was being done.
        doing: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// Any other error of the system.
    #[error("cannot {doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

impl KernelError {
    fn is_busy(&self) -> bool {
        matches!(self, KernelError::Refused { source, .. } if source.raw_os_error() == Some(Errno::EBUSY as i32))
    }
}

/// The node of a device.
#[must_use]
pub fn disk_path(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/nbd{number}"))
}

fn attribute(number: u32, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/sys/block/nbd{number}/{name}")).ok()?;
    Some(text.trim().to_owned())
}

/// Whether anybody has connected the device.
#[must_use]
pub fn is_connected(number: u32) -> bool {
    attribute(number, "pid").is_some()
}

fn backend(mark: u64) -> String {
    format!("afterimage {mark:016x}")
}

/// Whether the device is connected, and its owner's (by its mark).
fn is_of(number: u32, mark: u64) -> bool {
    is_connected(number) && attribute(number, "backend").is_some_and(|b| b == backend(mark))
}

/// What the thread of a device needs.
struct Served {
    device: Arc<dyn BlockDevice>,
    number: u32,
    backend: String,
    stop: Stop,
}

/// A served device. Dropping it leaves it to the next process.
pub struct Device {
    served: Arc<Served>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device").field("number", &self.served.number).finish_non_exhaustive()
    }
}

fn system(doing: &'static str) -> impl Fn(io::Error) -> KernelError {
    move |source| KernelError::System { doing, source }
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    Ok((ours.into(), theirs.into()))
}

fn terms(device: &dyn BlockDevice) -> Terms {
    let geometry = device.geometry();
    Terms { geometry, mode: Mode::Simple, allocation: false, max_io: geometry.max_io.min(Limits::default().request) }
}

impl Served {
    /// Serves a connection to its end. True if the kernel has said goodbye.
    fn serve(&self, socket: OwnedFd) -> Result<bool, End> {
        let limits = Limits::default();
        let queue = Arc::clone(&self.device).open_queue().map_err(|e| End::Io(io::Error::other(e.to_string())))?;
        let core = Core::new(terms(&*self.device), Arc::clone(&self.device), queue, &limits).following();
        let (socket, counters) = (Socket::new(socket), Counters::default());
        let mut connection = Connection::new(&socket, core, &limits, &self.stop, &counters);
        connection.run()?;
        Ok(connection.was_left())
    }

    /// Keeps the device connected until the stop, or until somebody disconnects it.
    fn keep(&self, mut socket: OwnedFd) {
        if let Err(e) = serves_writeback() {
            tracing::debug!("PR_SET_IO_FLUSHER: {e}");
        }
        let mut pause = PAUSES.0;
        loop {
            let began = Instant::now();
            match self.serve(socket) {
                Ok(true) => return,
                Ok(false) => {}
                Err(e) => tracing::info!("/dev/nbd{}: its connection ended: {e}", self.number),
            }
            if began.elapsed() > PAUSES.1 {
                pause = PAUSES.0;
            }
            socket = loop {
                if self.stopped_within(pause) || !is_connected(self.number) {
                    return;
                }
                pause = PAUSES.1.min(pause * 2);
                match self.reconnect() {
                    Ok(socket) => break socket,
                    Err(e) => tracing::warn!("{e}"),
                }
            };
        }
    }

    fn stopped_within(&self, pause: Duration) -> bool {
        let mut fds = [PollFd::new(self.stop.as_fd(), PollFlags::POLLIN)];
        if wait_on(&mut fds, Instant::now().checked_add(pause)).is_err() {
            thread::sleep(pause);
        }
        self.stop.deadline().is_some()
    }

    /// Hands over a new socket. If the kernel has not seen yet that the old one is dead it takes none, and the new one ends at once.
    fn reconnect(&self) -> Result<OwnedFd, KernelError> {
        let (ours, theirs) = pair().map_err(system("make a pair of sockets"))?;
        Netlink::open()?.reconnect(self.number, &self.backend, theirs.as_fd())?;
        Ok(ours)
    }
}

impl Device {
    /// Makes a device that shows `device`: `number` if that one is free, else another.
    ///
    /// # Errors
    /// [`KernelError`] says what is missing, or in the way.
    pub fn connect(device: &Arc<dyn BlockDevice>, number: Option<u32>, mark: u64) -> Result<Device, KernelError> {
        let mut netlink = Netlink::open()?;
        for number in number.into_iter().chain(0..MOST).filter(|n| !is_connected(*n)) {
            match Device::connect_as(&mut netlink, device, number, mark) {
                Err(e) if e.is_busy() => {}
                other => return other,
            }
        }
        Err(KernelError::Full(MOST - 1))
    }

    fn connect_as(
        netlink: &mut Netlink,
        device: &Arc<dyn BlockDevice>,
        number: u32,
        mark: u64,
    ) -> Result<Device, KernelError> {
        let (ours, theirs) = pair().map_err(system("make a pair of sockets"))?;
        let made = Device::start(device, number, mark, ours)?;
        let backend = backend(mark);
        let setup = Setup {
            number,
            size: whole_blocks(&**device),
            block: device.topology().logical_block,
            flags: terms(&**device).flags(),
            backend: &backend,
            times: (ANSWER.as_secs(), PATIENCE.as_secs()),
        };
        netlink.connect(&setup, theirs.as_fd()).map(|()| made)
    }

    /// Goes on with the device of a process that is gone. `None` if there is no such device, or it is not the owner's (by its
    /// mark), or the kernel cannot tell (before Linux 5.14).
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn take_over(device: &Arc<dyn BlockDevice>, number: u32, mark: u64) -> Result<Option<Device>, KernelError> {
        if !is_of(number, mark) {
            return Ok(None);
        }
        let (ours, theirs) = pair().map_err(system("make a pair of sockets"))?;
        let made = Device::start(device, number, mark, ours)?;
        Netlink::open()?.reconnect(number, &made.served.backend, theirs.as_fd())?;
        Ok(Some(made))
    }

    /// Ends a device that no process serves, if it is the owner's (by its mark). False if there is none.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn remove_left(number: u32, mark: u64) -> Result<bool, KernelError> {
        if !is_of(number, mark) {
            return Ok(false);
        }
        Netlink::open()?.disconnect(number).map(|()| true)
    }

    fn start(device: &Arc<dyn BlockDevice>, number: u32, mark: u64, socket: OwnedFd) -> Result<Device, KernelError> {
        let stop = Stop::new().map_err(system("make an eventfd"))?;
        let served = Arc::new(Served { device: Arc::clone(device), number, backend: backend(mark), stop });
        let keeper = Arc::clone(&served);
        let thread = thread::Builder::new().name(format!("nbd{number}")).spawn(move || keeper.keep(socket));
        let thread = thread.map_err(system("start a thread"))?;
        Ok(Device { served, thread: Some(thread) })
    }

    /// N of `/dev/nbdN`.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.served.number
    }

    /// Whether it is served; not any more after somebody has disconnected it.
    #[must_use]
    pub fn is_served(&self) -> bool {
        is_connected(self.served.number) && self.thread.as_ref().is_some_and(|t| !t.is_finished())
    }

    /// What is asked for and this kernel cannot do.
    #[must_use]
    pub fn lacks(&self) -> Vec<&'static str> {
        let known = attribute(self.served.number, "backend").is_some();
        if known { Vec::new() } else { vec!["names of devices: users see errors when this process ends"] }
    }

    /// Gives it the size that what it shows has now.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn resize(&self) -> Result<(), KernelError> {
        Netlink::open()?.resize(self.served.number, &self.served.backend, whole_blocks(&*self.served.device))
    }

    fn end(&mut self) {
        self.served.stop.request(GRACE);
        if self.thread.take().is_some_and(|t| t.join().is_err()) {
            tracing::error!("the thread of /dev/nbd{} has panicked", self.served.number);
        }
    }

    /// Answers what is under way and leaves the device to the next process: until then whoever uses it waits.
    pub fn leave(mut self) {
        self.end();
    }

    /// Makes the device go away. Whoever uses it gets errors from now on.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn remove(mut self) -> Result<(), KernelError> {
        let gone = match Netlink::open() {
            Ok(mut netlink) => netlink.disconnect(self.served.number),
            Err(e) => Err(e),
        };
        self.end();
        gone
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.end();
    }
}

fn whole_blocks(device: &dyn BlockDevice) -> u64 {
    let block = u64::from(device.topology().logical_block);
    device.geometry().size / block * block
}

#[cfg(test)]
mod tests;
