//! Passing a file descriptor over a unix socket: one byte with it.
//!
//! So the command that asks for an export makes the socket itself: with its own rights, in its own
//! view of the file system, wherever the daemon runs.

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Sends a copy of `fd`.
///
/// # Errors
/// If the socket does not take it.
pub fn send(socket: impl AsFd, fd: BorrowedFd<'_>) -> io::Result<()> {
    let fds = [fd.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(socket.as_fd().as_raw_fd(), &[IoSlice::new(b"F")], &message, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives one file descriptor. What else came with it is closed.
///
/// # Errors
/// If the connection ended, or a byte came without a file descriptor.
pub fn receive(socket: impl AsFd) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut space = nix::cmsg_space!([RawFd; 4]);
    let mut iov = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut iov, Some(&mut space), flags)?;
    let mut got = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = part {
            // SAFETY: the kernel has just made these descriptors for us; nobody else owns them.
            got.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    if message.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    got.into_iter().next().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no file descriptor was passed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_descriptor_arrives_and_works() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut left, right) = UnixStream::pair().unwrap();
        send(&a, right.as_fd()).unwrap();
        drop(right);
        let mut passed = UnixStream::from(receive(&b).unwrap());
        left.write_all(b"hello").unwrap();
        drop(left);
        let mut text = String::new();
        passed.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn a_byte_without_a_descriptor_and_an_end_are_errors() {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(b"F").unwrap();
        assert_eq!(receive(&b).unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(a);
        assert_eq!(receive(&b).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
