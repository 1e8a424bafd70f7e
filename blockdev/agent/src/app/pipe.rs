//! Waiting for a pipe.

use afterimage_base::world;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

/// Whether there is something to read (or the end).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ready {
    Yes,
    No,
}

/// Waits until there is something to read, for `limit` at most.
pub(super) fn wait(from: &impl AsFd, limit: Duration) -> io::Result<Ready> {
    let begun = world::now();
    loop {
        let left = limit.saturating_sub(world::since(begun));
        let ms = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        let mut fds = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX)) {
            Ok(0) if left.is_zero() => return Ok(Ready::No),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(Ready::Yes),
            Err(e) => return Err(e.into()),
        }
    }
}
