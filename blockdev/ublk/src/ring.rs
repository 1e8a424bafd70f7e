//! What a queue shares with the driver: the descriptors of requests, in memory, and a ring for commands about them.

use crate::abi::{DESCRIPTOR_LEN, Descriptor, Io, descriptors_of, io_command};
use io_uring::{IoUring, opcode, squeue, types};
use memmap2::{MmapOptions, MmapRaw};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

/// Entries of a ring besides those of requests: the polls, and their renewal.
const OTHERS: u32 = 8;

/// The driver's descriptors of a queue's requests.
pub(crate) struct Descriptors {
    map: MmapRaw,
    depth: u16,
}

impl Descriptors {
    pub(crate) fn map(device: &File, queue: u16, depth: u16) -> io::Result<Descriptors> {
        let (offset, len) = descriptors_of(queue, depth);
        let map = MmapOptions::new().offset(offset).len(len).map_raw_read_only(device)?;
        Ok(Descriptors { map, depth })
    }

    /// The request that the driver has just delivered as `tag`.
    pub(crate) fn get(&self, tag: u16) -> Option<Descriptor> {
        if tag >= self.depth {
            return None;
        }
        let at = self.map.as_ptr().wrapping_add(usize::from(tag) * DESCRIPTOR_LEN).cast::<[u8; DESCRIPTOR_LEN]>();
        // SAFETY: tag < depth, so the descriptor is inside the map, which lives as long as self. The driver writes it before it
        // delivers the request and not again before the answer; the read is volatile as the memory is shared with the kernel.
        Some(Descriptor::decode(&unsafe { at.read_volatile() }))
    }
}

/// What a completion is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// A request has come (0), or its place was taken back (an error number).
    Request {
        /// Its tag.
        tag: u16,
        /// What the driver says.
        result: i32,
    },
    /// This one of the polled descriptors is readable; whether it is polled still.
    Readable(u8, bool),
}

const POLL: u64 = 1 << 32;

/// The ring of one queue. Made, used and dropped by the queue's thread: the driver takes commands about a queue from one
/// thread only.
pub(crate) struct Ring {
    ring: IoUring,
    device: RawFd,
    queue: u16,
    encode: bool,
}

impl Ring {
    /// For commands to `device`, which must stay open.
    pub(crate) fn new(device: &File, queue: u16, depth: u16, encode: bool) -> io::Result<Ring> {
        let entries = u32::from(depth) + OTHERS;
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_single_issuer()
            .build(entries)
            .or_else(|_| IoUring::builder().build(entries))?;
        Ok(Ring { ring, device: device.as_raw_fd(), queue, encode })
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: commands name memory only through `address` of `command`, whose caller promises that it stays; polls none.
        unsafe { self.ring.submission().push(entry) }.map_err(|_| io::Error::from_raw_os_error(libc::EBUSY))
    }

    /// Adds a command about the request `tag`.
    ///
    /// # Safety
    /// Unless `address` is 0, the memory there must have room for the device's longest request and must stay until the driver has
    /// given the place of `tag` back for good: until this ring is dropped.
    pub(crate) unsafe fn command(&mut self, io: Io, tag: u16, result: i32, address: u64) -> io::Result<()> {
        let entry = opcode::UringCmd16::new(types::Fd(self.device), io.op(self.encode))
            .cmd(io_command(self.queue, tag, result, address))
            .build()
            .user_data(tag.into());
        self.push(&entry)
    }

    /// Polls a descriptor until further notice; events name it by `number`.
    pub(crate) fn poll(&mut self, fd: RawFd, number: u8) -> io::Result<()> {
        let events = u32::from(libc::POLLIN.unsigned_abs());
        let entry = opcode::PollAdd::new(types::Fd(fd), events).multi(true).build();
        self.push(&entry.user_data(POLL | u64::from(number)))
    }

    /// Hands over what was added, and waits for an event if `wait` says so.
    pub(crate) fn enter(&mut self, wait: bool) -> io::Result<()> {
        match self.ring.submit_and_wait(wait.into()) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Passes what has happened to `each`.
    pub(crate) fn events(&mut self, out: &mut Vec<Event>) {
        for entry in self.ring.completion() {
            let user = entry.user_data();
            let low = user.to_le_bytes();
            out.push(if user & POLL != 0 {
                Event::Readable(low[0], io_uring::cqueue::more(entry.flags()))
            } else {
                Event::Request { tag: u16::from_le_bytes([low[0], low[1]]), result: entry.result() }
            });
        }
    }
}
