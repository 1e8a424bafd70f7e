use super::*;
use crate::proto::Mode;
use afterimage_base::block::Geometry;
use afterimage_base::simple::{MemoryDevice, Simple, SimpleDevice};
use std::os::fd::BorrowedFd;
use std::sync::Mutex;

/// A device that keeps every request until the test ends it, with the result that the test wants.
#[derive(Default)]
struct Held {
    requests: Mutex<Vec<(u64, Option<AlignedBuf>)>>,
    finished: Mutex<Vec<Completion>>,
}

struct HeldQueue(Arc<Held>);

impl BlockDevice for Held {
    fn geometry(&self) -> Geometry {
        MemoryDevice::new(1 << 20).geometry()
    }

    fn open_queue(self: Arc<Self>) -> Result<Box<dyn Queue>, BlockError> {
        Ok(Box::new(HeldQueue(self)))
    }
}

impl Queue for HeldQueue {
    fn submit(&mut self, tag: u64, request: Request<'_>) -> Submitted {
        let buf = if let Request::Read { buf, .. } = request { Some(buf) } else { None };
        self.0.requests.lock().unwrap().push((tag, buf));
        Submitted::Pending
    }

    fn kick(&mut self) {}

    fn reap(&mut self, out: &mut Vec<Completion>) {
        out.append(&mut self.0.finished.lock().unwrap());
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn in_flight(&self) -> usize {
        self.0.requests.lock().unwrap().len()
    }
}

fn core(device: Arc<dyn BlockDevice>, limits: &Limits) -> Core {
    let geometry = device.geometry();
    let terms = Terms { geometry, mode: Mode::Simple, allocation: false, max_io: geometry.max_io };
    let queue = Arc::clone(&device).open_queue().unwrap();
    Core::new(terms, device, queue, limits)
}

fn held(limits: &Limits) -> (Core, Arc<Held>) {
    let device = Arc::new(Held::default());
    (core(Arc::clone(&device) as _, limits), device)
}

impl Held {
    /// Ends the oldest request.
    fn end(&self, core: &mut Core, result: Result<(), BlockError>) {
        let (tag, buf) = self.requests.lock().unwrap().remove(0);
        self.finished.lock().unwrap().push(Completion { tag, result, buf });
        assert_eq!(core.reap(), 1);
    }
}

fn header(command: u16, cookie: u64, len: u64) -> Header {
    Header { flags: 0, command, cookie, offset: 0, len }
}

/// The error and cookie of the only reply that waits, which has no data.
fn reply(core: &mut Core) -> (u32, u64) {
    let heads = core.out.heads().clone();
    assert_eq!(heads.len(), 16, "one simple reply");
    core.sent(16);
    (u32::from_be_bytes(heads[4..8].try_into().unwrap()), u64::from_be_bytes(heads[8..].try_into().unwrap()))
}

/// Takes reads of `len` bytes until there is no room; the bytes that their buffers hold.
fn fill(core: &mut Core, len: u64) -> usize {
    let before = core.bytes;
    for cookie in 0..10_000 {
        let h = header(cmd::READ, cookie, len);
        if !core.has_room() || !core.has_room_for(&h) {
            return core.bytes - before;
        }
        assert!(core.execute(&h, &[]));
    }
    panic!("there is always room");
}

#[test]
fn reads_hold_no_more_memory_than_they_may() {
    let limits = Limits { bytes_in_flight: 100_000, requests_in_flight: 1000, ..Limits::default() };
    for (len, most) in [(4096, 24), (1, 24), (50_000, 1), (1 << 20, 1)] {
        let (mut core, device) = held(&limits);
        fill(&mut core, len);
        assert_eq!(core.in_flight(), most, "reads of {len} bytes");
        // Other requests need no memory and may go on.
        assert!(core.has_room_for(&header(cmd::FLUSH, 0, 0)));
        // A finished read counts until its bytes are sent.
        device.end(&mut core, Ok(()));
        assert!(!core.has_room_for(&header(cmd::READ, 0, len)));
        core.sent(16 + usize::try_from(len).unwrap());
        assert!(core.has_room_for(&header(cmd::READ, 0, len)));
        while core.in_flight() > 0 {
            device.end(&mut core, Err(BlockError::Io(5)));
        }
        assert_eq!(core.bytes, 0);
    }
}

#[test]
fn requests_are_limited_by_number_too() {
    let (mut core, device) = held(&Limits { requests_in_flight: 5, ..Limits::default() });
    fill(&mut core, 1);
    assert_eq!(core.in_flight(), 5);
    device.end(&mut core, Ok(()));
    assert!(core.has_room());
}

#[test]
fn replies_that_nobody_takes_leave_no_room() {
    let mut core = core(Arc::new(Simple(Arc::new(MemoryDevice::new(4096)))), &Limits::default());
    let mut n = 0;
    while core.has_room() {
        assert!(core.execute(&header(cmd::FLUSH, 0, 0), &[]));
        n += 16;
    }
    assert_eq!(n, MAX_REPLY_BACKLOG);
    core.sent(16);
    assert!(core.has_room());
}

#[test]
fn a_deaf_client_leaves_no_memory_behind() {
    let (mut core, device) = held(&Limits::default());
    fill(&mut core, 4096);
    device.end(&mut core, Ok(()));
    core.deafen();
    assert!(core.out.is_empty());
    while core.in_flight() > 0 {
        device.end(&mut core, Ok(()));
    }
    assert!(core.out.is_empty() && core.bytes == 0);
}

#[test]
fn errors_of_the_device_have_their_numbers() {
    let (mut core, device) = held(&Limits::default());
    for (command, flags, result, errno) in [
        (cmd::FLUSH, 0, Ok(()), 0),
        (cmd::FLUSH, 0, Err(BlockError::Io(110)), errno::EIO),
        (cmd::TRIM, 0, Err(BlockError::NoSpace), errno::ENOSPC),
        (cmd::TRIM, 0, Err(BlockError::ReadOnly), errno::EPERM),
        (cmd::TRIM, 0, Err(BlockError::Invalid("x")), errno::EINVAL),
        (cmd::WRITE_ZEROES, 0, Err(BlockError::Unsupported), errno::EINVAL),
        (cmd::WRITE_ZEROES, crate::command_flag::FAST_ZERO, Err(BlockError::Unsupported), errno::ENOTSUP),
        (cmd::CACHE, 0, Err(BlockError::Unsupported), 0),
        (cmd::READ, 0, Err(BlockError::Io(5)), errno::EIO),
    ] {
        let len = if command == cmd::FLUSH { 0 } else { 4096 };
        assert!(core.execute(&Header { flags, ..header(command, 9, len) }, &[]));
        device.end(&mut core, result.clone());
        assert_eq!(reply(&mut core), (errno, 9), "command {command}, {result:?}");
    }
}

/// What a faulty device says is not passed on as data.
#[test]
fn a_read_without_its_bytes_is_an_error() {
    let (mut core, device) = held(&Limits::default());
    for wrong in [None, Some(AlignedBuf::zeroed(10))] {
        assert!(core.execute(&header(cmd::READ, 3, 4096), &[]));
        device.requests.lock().unwrap()[0].1 = wrong;
        device.end(&mut core, Ok(()));
        assert_eq!(reply(&mut core), (errno::EIO, 3));
    }
    device.finished.lock().unwrap().push(Completion { tag: 77, result: Ok(()), buf: None });
    assert!(core.execute(&header(cmd::FLUSH, 4, 0), &[]));
    core.reap();
    assert!(core.out.is_empty() && core.in_flight() == 1);
}

#[test]
fn a_leaving_device_gets_no_answer_and_no_more_requests() {
    let (mut core, device) = held(&Limits::default());
    assert!(core.execute(&header(cmd::FLUSH, 1, 0), &[]));
    device.end(&mut core, Err(BlockError::Shutdown));
    assert!(core.is_shut_down() && !core.has_room() && core.out.is_empty());
}
