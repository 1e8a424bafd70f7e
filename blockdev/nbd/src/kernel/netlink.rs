//! Commands to the kernel's NBD client over generic netlink.

use super::KernelError;
use super::message::{Answer, CONTROL, MOST, Message, answers, attribute, command, control, find};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// A device as the kernel is to make it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setup<'a> {
    pub(super) number: u32,
    pub(super) size: u64,
    pub(super) block: u32,
    pub(super) flags: u16,
    pub(super) backend: &'a str,
    /// In seconds; see [`attribute::TIMEOUT`] and [`attribute::DEAD_CONN_TIMEOUT`].
    pub(super) times: (u64, u64),
}

/// A socket to the kernel's NBD client.
pub(super) struct Netlink {
    socket: OwnedFd,
    family: u16,
    last: u32,
}

impl Netlink {
    /// # Errors
    /// [`KernelError::NoDriver`] if the kernel has no such client.
    pub(super) fn open() -> Result<Netlink, KernelError> {
        let system = |e: Errno| KernelError::System { doing: "open a netlink socket", source: e.into() };
        let kind = (SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkGeneric);
        let socket = socket(AddressFamily::Netlink, kind.0, kind.1, kind.2).map_err(system)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(system)?;
        let mut netlink = Netlink { socket, family: CONTROL, last: 0 };
        let message = netlink.message(control::GET_FAMILY).text(control::FAMILY_NAME, "nbd");
        let mut family = None;
        let errno = netlink.call(message, |attributes| {
            let id = find(attributes, control::FAMILY_ID).and_then(|v| v.try_into().ok());
            family = family.or(id.map(u16::from_ne_bytes));
        })?;
        netlink.family = match (errno, family) {
            (Errno::ENOENT, _) => return Err(KernelError::NoDriver),
            (Errno::UnknownErrno, Some(id)) => id,
            (errno, _) => {
                return Err(KernelError::System { doing: "look for the kernel's NBD client", source: errno.into() });
            }
        };
        Ok(netlink)
    }

    fn message(&mut self, command: u8) -> Message {
        self.last += 1;
        Message::new(self.family, command, self.last)
    }

    /// Sends a message and waits for the end of its answers. 0 is [`Errno::UnknownErrno`].
    fn call(&self, message: Message, mut attributes: impl FnMut(&[u8])) -> Result<Errno, KernelError> {
        let talk = |e: Errno| KernelError::System { doing: "talk to the kernel over netlink", source: e.into() };
        send(self.socket.as_raw_fd(), &message.finish(), MsgFlags::empty()).map_err(talk)?;
        let mut buffer = vec![0; MOST];
        loop {
            let len = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                other => other.map_err(talk)?,
            };
            for answer in answers(&buffer[..len], self.last) {
                match answer {
                    Answer::End(errno) => return Ok(Errno::from_raw(errno)),
                    Answer::Attributes(bytes) => attributes(bytes),
                }
            }
        }
    }

    fn command(&self, number: u32, doing: &'static str, message: Message) -> Result<(), KernelError> {
        match self.call(message, |_| {})? {
            Errno::UnknownErrno => Ok(()),
            Errno::EPERM => Err(KernelError::NotAllowed),
            errno => Err(KernelError::Refused { number, doing, source: errno.into() }),
        }
    }

    /// Makes a device of a connected socket past its handshake.
    pub(super) fn connect(&mut self, setup: &Setup<'_>, socket: BorrowedFd<'_>) -> Result<(), KernelError> {
        let message = self
            .message(command::CONNECT)
            .u32(attribute::INDEX, setup.number)
            .u64(attribute::SIZE_BYTES, setup.size)
            .u64(attribute::BLOCK_SIZE_BYTES, setup.block.into())
            .u64(attribute::SERVER_FLAGS, setup.flags.into())
            .u64(attribute::TIMEOUT, setup.times.0)
            .u64(attribute::DEAD_CONN_TIMEOUT, setup.times.1)
            .text(attribute::BACKEND, setup.backend);
        self.command(setup.number, "connect it", with_socket(message, socket))
    }

    /// Gives a device another socket in the place of one that is dead. Without a dead one nothing happens.
    pub(super) fn reconnect(&mut self, number: u32, backend: &str, socket: BorrowedFd<'_>) -> Result<(), KernelError> {
        let message =
            self.message(command::RECONFIGURE).u32(attribute::INDEX, number).text(attribute::BACKEND, backend);
        self.command(number, "take another connection", with_socket(message, socket))
    }

    /// Gives a device another size.
    pub(super) fn resize(&mut self, number: u32, backend: &str, size: u64) -> Result<(), KernelError> {
        let message =
            self.message(command::RECONFIGURE).u32(attribute::INDEX, number).text(attribute::BACKEND, backend);
        self.command(number, "change its size", message.u64(attribute::SIZE_BYTES, size))
    }

    /// Ends a device. Whoever uses it gets errors.
    pub(super) fn disconnect(&mut self, number: u32) -> Result<(), KernelError> {
        let message = self.message(command::DISCONNECT).u32(attribute::INDEX, number);
        self.command(number, "disconnect it", message)
    }
}

fn with_socket(message: Message, socket: BorrowedFd<'_>) -> Message {
    // Descriptors of an open file are never negative.
    let fd = u32::try_from(socket.as_raw_fd()).unwrap_or(u32::MAX);
    message.nested(attribute::SOCKETS, |m| m.nested(attribute::SOCKET, |m| m.u32(attribute::SOCKET_FD, fd)))
}
