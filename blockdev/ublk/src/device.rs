//! A device: made or taken over, served by its queues, removed or left for the next process.

use crate::abi::{Info, MAX_DEPTH, MAX_IO, Params, SECTOR, attribute, feature, state};
use crate::control::{ANY, Control};
use crate::error::Error;
use crate::features::Features;
use crate::memory::Mapped;
use crate::queue::{Plan, Worker};
use afterimage_base::block::BlockDevice;
use afterimage_base::writeback::serves_writeback;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long the driver may take to let go of a process that is gone, and to make a device node.
const PATIENCE: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(2);

/// How a device is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Its number, if it should have a certain one.
    pub id: Option<u32>,
    /// Queues, each with a thread. The driver makes them no more than the machine's processors.
    pub queues: u16,
    /// Requests of a queue at one time.
    pub depth: u16,
    /// A word of the owner by which it knows the device again.
    pub mark: u64,
    /// Whether the device outlives this process and waits for the next one, with what it was asked meanwhile.
    pub recoverable: bool,
    /// What the kernel is taken not to have.
    pub without: Features,
}

impl Options {
    /// One queue, recoverable.
    #[must_use]
    pub const fn new(mark: u64) -> Options {
        Options { id: None, queues: 1, depth: 128, mark, recoverable: true, without: Features::NONE }
    }
}

/// What there is to say of a running device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Its number N, as in `/dev/ublkbN`.
    pub id: u32,
    /// Queues.
    pub queues: u16,
    /// Requests of a queue at one time.
    pub depth: u16,
    /// Longest request in bytes.
    pub max_io: u32,
    /// What was asked for, or would be better, and this kernel cannot do.
    pub lacks: Vec<&'static str>,
}

/// How a device was come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It is new.
    Made,
    /// It was there, with what it had been asked.
    TakenOver,
}

/// A served device. Dropping it leaves it to the next process, if it is recoverable.
pub struct Device {
    control: Control,
    info: Info,
    about: About,
    stop: Arc<EventFd>,
    threads: Vec<JoinHandle<(Option<Mapped>, bool)>>,
    file: Option<Arc<File>>,
    shown: Option<Arc<dyn BlockDevice>>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device").field("about", &self.about).finish_non_exhaustive()
    }
}

/// What this kernel can do, before any device is made.
///
/// # Errors
/// [`Error::NoDriver`], [`Error::NotAllowed`].
pub fn probe() -> Result<(), Error> {
    Control::open(Features::NONE).map(drop)
}

/// The node of a disk.
#[must_use]
pub fn disk_path(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{id}"))
}

fn shift(bytes: u32) -> u8 {
    // The shift of a 32-bit number.
    u8::try_from(bytes.max(1).trailing_zeros()).unwrap_or(0)
}

fn sectors(bytes: u64) -> u32 {
    u32::try_from(bytes / SECTOR).unwrap_or(u32::MAX)
}

/// What the driver is to know of a device.
fn params(device: &dyn BlockDevice, max_io: u32) -> Result<Params, Error> {
    let (geometry, topology) = (device.geometry(), device.topology());
    let block = u64::from(topology.logical_block);
    let size = geometry.size / block * block;
    if size == 0 {
        return Err(Error::TooSmall(geometry.size));
    }
    let mut attributes = 0;
    if geometry.read_only {
        attributes |= attribute::READ_ONLY;
    } else {
        // Writes may be in the page cache, or in the disk's: a flush, and only that, makes them durable.
        attributes |= attribute::VOLATILE_CACHE | attribute::FUA;
    }
    if geometry.rotational {
        attributes |= attribute::ROTATIONAL;
    }
    let longest = if geometry.read_only { 0 } else { sectors(1 << 30) };
    Ok(Params {
        attributes,
        logical_shift: shift(topology.logical_block),
        // The driver takes nothing past a page here.
        physical_shift: shift(topology.physical_block.clamp(topology.logical_block, 4096)),
        io_opt_shift: shift(topology.io_opt.max(topology.io_min).max(topology.logical_block)),
        io_min_shift: shift(topology.io_min.max(topology.logical_block)),
        max_sectors: sectors(max_io.into()),
        sectors: size / SECTOR,
        discard_granularity: topology.discard_granularity.max(topology.logical_block),
        max_discard_sectors: if geometry.trim { longest } else { 0 },
        max_write_zeroes_sectors: longest,
    })
}

/// What is asked for.
const fn wanted_of(recoverable: bool) -> u64 {
    let recovery = if recoverable { feature::USER_RECOVERY | feature::USER_RECOVERY_REISSUE } else { 0 };
    feature::USER_COPY | recovery
}

/// What a device with these flags lacks.
fn lacks(wanted: u64, got: u64) -> Vec<&'static str> {
    let all = [
        (feature::USER_RECOVERY, "user recovery: the device ends with this process"),
        (feature::USER_RECOVERY_REISSUE, "reissue: requests under way when this process is killed fail"),
        (feature::USER_COPY, "user copy: payloads are copied once more"),
    ];
    all.iter().filter(|(bit, _)| wanted & bit != 0 && got & bit == 0).map(|(_, text)| *text).collect()
}

fn can_resize(control: &Control) -> bool {
    control.features().is_some_and(|f| f & feature::UPDATE_SIZE != 0)
}

fn open_node(id: u32) -> Result<File, Error> {
    let path = format!("/dev/ublkc{id}");
    let start = Instant::now();
    loop {
        match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => return Ok(file),
            // The node comes a moment after its device, and an old server's hold goes a moment after the server.
            Err(e)
                if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EBUSY | libc::EACCES | libc::ENXIO))
                    && start.elapsed() < PATIENCE =>
            {
                thread::sleep(TICK);
            }
            Err(source) => return Err(Error::System { id, doing: "open its node /dev/ublkcN", source }),
        }
    }
}

impl Device {
    /// Makes a device that shows `device`, and starts it: on return `/dev/ublkbN` can be used.
    ///
    /// # Errors
    /// [`Error`] says what is in the way; the device is gone again then.
    pub fn create(device: &Arc<dyn BlockDevice>, options: &Options) -> Result<Device, Error> {
        let control = Control::open(options.without)?;
        let flags = wanted_of(options.recoverable);
        let max_io = device.topology().max_io.min(device.geometry().max_io).clamp(4096, MAX_IO) / 4096 * 4096;
        let wanted = Info {
            queues: options.queues.max(1),
            depth: options.depth.clamp(1, MAX_DEPTH),
            max_io,
            id: options.id.unwrap_or(ANY),
            flags,
            mark: options.mark,
            ..Info::default()
        };
        let info = control.add(&wanted)?;
        let mut made = Device::new(control, info, flags)?;
        match made.begin(device) {
            Ok(()) => Ok(made),
            Err(e) => {
                drop(made.remove());
                Err(e)
            }
        }
    }

    /// Makes a device go away that no process serves, if it is the owner's (by its mark). False if there is none.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn remove_left(id: u32, mark: u64) -> Result<bool, Error> {
        let control = Control::open(Features::NONE)?;
        match control.info(id)? {
            Some(info) if info.mark == mark => Device::new(control, info, info.flags)?.remove().map(|()| true),
            _ => Ok(false),
        }
    }

    /// Takes over the device `id` from a process that is gone. `None` if there is no such device, or it is not the owner's (by
    /// its mark), or cannot be taken over; in the last case it is removed.
    ///
    /// # Errors
    /// [`Error::Held`] if its server is still there, and whatever the driver says.
    pub fn take_over(device: &Arc<dyn BlockDevice>, id: u32, options: &Options) -> Result<Option<Device>, Error> {
        let (control, mark) = (Control::open(options.without)?, options.mark);
        let Some(info) = control.info(id)? else { return Ok(None) };
        if info.mark != mark {
            return Ok(None);
        }
        let mut taken = Device::new(control, info, wanted_of(options.recoverable))?;
        if !taken.recover(device)? {
            taken.remove()?;
            return Ok(None);
        }
        Ok(Some(taken))
    }

    /// Takes the device `id` over, or makes it anew; under another number if somebody else has that one.
    ///
    /// # Errors
    /// As [`create`](Self::create) and [`take_over`](Self::take_over).
    pub fn take_over_or_create(
        device: &Arc<dyn BlockDevice>,
        id: u32,
        options: &Options,
    ) -> Result<(Device, Origin), Error> {
        if let Some(taken) = Device::take_over(device, id, options)? {
            return Ok((taken, Origin::TakenOver));
        }
        let made = match Device::create(device, &Options { id: Some(id), ..*options }) {
            Err(e) if e.errno() == Some(libc::EEXIST) => Device::create(device, &Options { id: None, ..*options }),
            other => other,
        };
        Ok((made?, Origin::Made))
    }

    fn new(control: Control, info: Info, wanted: u64) -> Result<Device, Error> {
        let mut lacks = lacks(wanted, info.flags);
        if !can_resize(&control) {
            lacks.push("resize (Linux 6.16): a changed size shows once it is attached again");
        }
        let Info { id, queues, depth, max_io, .. } = info;
        let about = About { id, queues, depth, max_io, lacks };
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(|e| Error::System {
            id,
            doing: "make an eventfd",
            source: e.into(),
        })?;
        Ok(Device { control, info, about, stop: Arc::new(stop), threads: Vec::new(), file: None, shown: None })
    }

    /// Sets the device up and starts it.
    fn begin(&mut self, device: &Arc<dyn BlockDevice>) -> Result<(), Error> {
        let id = self.info.id;
        self.control.set_params(id, params(&**device, self.info.max_io)?.encode())?;
        self.serve(device)?;
        self.control.start(id)
    }

    /// False if the device is in no state to be taken over.
    fn recover(&mut self, device: &Arc<dyn BlockDevice>) -> Result<bool, Error> {
        let (id, start) = (self.info.id, Instant::now());
        if self.info.flags & feature::USER_RECOVERY == 0 {
            return Ok(false);
        }
        loop {
            match self.control.start_recovery(id) {
                Ok(()) => break,
                // The old process is not quite gone, or the driver not done with what it left.
                Err(e) if e.errno() == Some(libc::EBUSY) => {
                    let Some(info) = self.control.info(id)? else { return Ok(false) };
                    if !matches!(info.state, state::LIVE | state::QUIESCED) {
                        return Ok(false);
                    }
                    if start.elapsed() > PATIENCE {
                        return Err(Error::Held(id, PATIENCE.as_secs()));
                    }
                    thread::sleep(TICK);
                }
                // A process was killed between its start of the recovery and its first queue: the driver waits for queues.
                Err(e) if e.errno() == Some(libc::EINVAL) && self.info.state == state::QUIESCED => break,
                Err(e) if e.errno() == Some(libc::EINVAL) => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        self.serve(device)?;
        self.control.end_recovery(id)?;
        Ok(true)
    }

    /// Starts the queues; on return all of them are ready.
    fn serve(&mut self, device: &Arc<dyn BlockDevice>) -> Result<(), Error> {
        let id = self.info.id;
        let system = |source| Error::System { id, doing: "start its queues", source };
        let file = Arc::new(open_node(id)?);
        self.shown = Some(Arc::clone(device));
        self.file = Some(Arc::clone(&file));
        let (send, ready) = mpsc::sync_channel(usize::from(self.info.queues));
        for number in 0..self.info.queues {
            let plan = Plan {
                device: Arc::clone(device),
                file: Arc::clone(&file),
                number,
                depth: self.info.depth,
                max_io: self.info.max_io,
                encode: self.control.encodes(self.info.flags),
                user_copy: self.info.flags & feature::USER_COPY != 0,
            };
            let (send, stop) = (send.clone(), Arc::clone(&self.stop));
            let started = thread::Builder::new().name(format!("ublk{id}-{number}")).spawn(move || {
                if let Err(e) = serves_writeback() {
                    tracing::debug!("PR_SET_IO_FLUSHER: {e}");
                }
                let stop = stop.as_raw_fd();
                match Worker::new(plan, stop) {
                    Ok(worker) => {
                        drop(send.send(Ok(())));
                        worker.run(stop)
                    }
                    Err(e) => {
                        drop(send.send(Err((number, e))));
                        (None, false)
                    }
                }
            });
            self.threads.push(started.map_err(system)?);
        }
        drop(send);
        for _ in 0..self.info.queues {
            match ready.recv() {
                Ok(Ok(())) => {}
                Ok(Err((queue, source))) => return Err(Error::Queue { id, queue, source }),
                Err(_) => return Err(system(io::Error::other("a queue's thread has panicked"))),
            }
        }
        Ok(())
    }

    /// What there is to say of it.
    #[must_use]
    pub const fn about(&self) -> &About {
        &self.about
    }

    /// Where the disk is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        disk_path(self.info.id)
    }

    /// Whether its queues are served; not any more after somebody else has stopped it.
    #[must_use]
    pub fn is_served(&self) -> bool {
        !self.threads.is_empty() && !self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Gives it the size that what it shows has now.
    ///
    /// # Errors
    /// [`Error::NoResize`] if the kernel cannot do that.
    pub fn resize(&self) -> Result<(), Error> {
        let id = self.info.id;
        let Some(device) = &self.shown else { return Ok(()) };
        if !can_resize(&self.control) {
            return Err(Error::NoResize(id));
        }
        self.control.update_size(id, params(&**device, self.info.max_io)?.sectors)
    }

    /// Ends the queues' threads, once what the device has begun is done and answered.
    fn end_queues(&mut self) {
        if let Err(e) = self.stop.write(1) {
            tracing::error!("ublk device {}: its queues cannot be told to stop: {e}", self.info.id);
        }
        for thread in self.threads.drain(..) {
            // The memory that the driver knew goes when its thread is gone.
            match thread.join() {
                Ok(memory) => drop(memory),
                Err(_) => tracing::error!("ublk device {}: a queue's thread has panicked", self.info.id),
            }
        }
        self.file = None;
    }

    /// Answers what is under way and leaves the device to the next process: until then whoever uses the disk waits.
    pub fn leave(mut self) {
        self.end_queues();
    }

    /// Makes the device go away. Whoever uses the disk gets errors from now on.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn remove(mut self) -> Result<(), Error> {
        let id = self.info.id;
        // The queues go on meanwhile, as the driver waits for what was asked.
        let stopped = self.control.stop(id);
        self.end_queues();
        self.control.delete(id)?;
        stopped
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.end_queues();
    }
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
