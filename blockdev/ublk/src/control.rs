//! Commands about devices, over `/dev/ublk-control`: one at a time, on a ring of its own.
//!
//! Which spelling of commands the kernel takes is found out by asking for its features, a command that exists only in the
//! newer spelling. What an older kernel can do shows when a device is added: it takes the flags away that it does not know.

use crate::abi::{CONTROL, Control as Command, INFO_LEN, Info, PARAMS_LEN, control_command, feature};
use crate::error::Error;
use crate::features::Features;
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

/// A new device, as [`Command::Add`] names it.
pub(crate) const ANY: u32 = u32::MAX;

/// See the module.
pub(crate) struct Control {
    file: File,
    encode: bool,
    features: Option<u64>,
    without: Features,
}

impl Control {
    pub(crate) fn open(without: Features) -> Result<Control, Error> {
        let file = OpenOptions::new().read(true).write(true).open(CONTROL).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::NoDriver(CONTROL),
            // The node without its driver.
            _ if matches!(e.raw_os_error(), Some(libc::ENXIO | libc::ENODEV)) => Error::NoDriver(CONTROL),
            _ => Error::NotAllowed(CONTROL, e),
        })?;
        let mut control = Control { file, encode: true, features: None, without };
        if without.has(feature::ENCODE) {
            control.encode = false;
            return Ok(control);
        }
        let mut bits = [0; 8];
        match control.run(Command::Features, 0, Some(&mut bits), 0) {
            Ok(_) => control.features = Some(without.less(u64::from_ne_bytes(bits))),
            Err(_) => control.encode = false,
        }
        Ok(control)
    }

    /// What the kernel says that it can do; `None` if it cannot say.
    pub(crate) const fn features(&self) -> Option<u64> {
        self.features
    }

    fn run(&self, command: Command, id: u32, buffer: Option<&mut [u8]>, data: u64) -> io::Result<i32> {
        let mut ring: IoUring<squeue::Entry128, cqueue::Entry> = IoUring::builder().build(2)?;
        let (address, len) = buffer.map_or((0, 0), |b| (b.as_mut_ptr().addr() as u64, b.len()));
        let len = u16::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let fd = types::Fd(self.file.as_raw_fd());
        let entry =
            opcode::UringCmd80::new(fd, command.op(self.encode)).cmd(control_command(id, address, len, data)).build();
        // SAFETY: the buffer is borrowed until this function returns, and it returns when the command has ended.
        unsafe { ring.submission().push(&entry) }.map_err(|_| io::Error::from_raw_os_error(libc::EBUSY))?;
        loop {
            match ring.submit_and_wait(1) {
                Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
                Err(e) => return Err(e),
                Ok(_) => {}
            }
            if let Some(done) = ring.completion().next() {
                let result = done.result();
                return if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) };
            }
        }
    }

    fn call(
        &self,
        (command, doing): (Command, &'static str),
        id: u32,
        buffer: Option<&mut [u8]>,
        data: u64,
    ) -> Result<(), Error> {
        self.run(command, id, buffer, data).map(drop).map_err(|source| Error::Refused { id, doing, source })
    }

    /// Adds a device and returns what became of it: flags that the kernel does not know are gone.
    pub(crate) fn add(&self, info: &Info) -> Result<Info, Error> {
        let mut bytes = Info { flags: self.without.less(info.flags), ..*info }.encode();
        self.call((Command::Add, "add it"), info.id, Some(&mut bytes), 0)?;
        Ok(Info::decode(&bytes))
    }

    /// What the driver knows of a device; `None` if there is none.
    pub(crate) fn info(&self, id: u32) -> Result<Option<Info>, Error> {
        let mut bytes = [0; INFO_LEN];
        match self.call((Command::Info, "describe it"), id, Some(&mut bytes), 0) {
            Ok(()) => Ok(Some(Info::decode(&bytes))),
            Err(e) if e.errno() == Some(libc::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(crate) fn set_params(&self, id: u32, mut params: [u8; PARAMS_LEN]) -> Result<(), Error> {
        self.call((Command::SetParams, "take its size and limits"), id, Some(&mut params), 0)
    }

    /// Makes the disk appear. Its first requests come before this returns.
    pub(crate) fn start(&self, id: u32) -> Result<(), Error> {
        self.call((Command::Start, "start it"), id, None, std::process::id().into())
    }

    /// Gives a running device another size.
    pub(crate) fn update_size(&self, id: u32, sectors: u64) -> Result<(), Error> {
        self.call((Command::UpdateSize, "change its size"), id, None, sectors)
    }

    /// Makes the disk go away, once it has answered what it was asked.
    pub(crate) fn stop(&self, id: u32) -> Result<(), Error> {
        self.call((Command::Stop, "stop it"), id, None, 0)
    }

    /// Forgets the device. Waits until nobody has it open any more, its server too.
    pub(crate) fn delete(&self, id: u32) -> Result<(), Error> {
        self.call((Command::Delete, "delete it"), id, None, 0)
    }

    pub(crate) fn start_recovery(&self, id: u32) -> Result<(), Error> {
        self.call((Command::StartRecovery, "hand it over"), id, None, 0)
    }

    pub(crate) fn end_recovery(&self, id: u32) -> Result<(), Error> {
        self.call((Command::EndRecovery, "go on with it"), id, None, std::process::id().into())
    }

    /// Whether commands about requests are spelled in the newer way, for a device with these flags.
    pub(crate) const fn encodes(&self, flags: u64) -> bool {
        self.without.less(flags) & feature::ENCODE != 0
    }
}
