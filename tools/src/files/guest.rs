//! The guest that reads file systems: started, asked, gone with the command.
//!
//! Its disks are writable exports of the moment, which are thrown away: a file system that was in use has a journal, and only with
//! that replayed do files hold what a mount would show. Nothing of the disk is looked at by this process: what a file
//! system made to deceive could take over is a machine without network, whose only door is a port ([`super::wire`]).

use super::scratch::Scratch;
use super::wire::{self, Ask, Frame, Name, Partition, Tell};
use super::{kernel, program};
use crate::failover::forks::Exports;
use crate::problem::Problem;
use crate::{screen, signals};
use afterimage_base::cpio::{self, Entry};
use afterimage_base::crashsafe;
use afterimage_mgmt::failover::job::Fork;
use afterimage_mgmt::failover::source::{DiskSource, Served};
use afterimage_mgmt::target::accelerator::kvm_works_here;
use afterimage_mgmt::target::process::prepare;
use afterimage_mgmt::target::qemu::{DiskPlace, PROGRAM, accelerator, blockdev};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// An emulated guest on a loaded host needs a quarter of a minute.
const BOOT: Duration = Duration::from_secs(180);
/// The guest says something every two seconds, but while the kernel mounts: then a journal is replayed.
const SILENCE: Duration = Duration::from_secs(600);
/// Memory beside the initramfs.
const MEMORY: u64 = 384 << 20;
const PORT_SOCKET: &str = "port.sock";
const CONSOLE: &str = "console.log";

/// The running guest. What is dropped first is named first.
pub struct Guest {
    child: Child,
    from: BufReader<UnixStream>,
    to: UnixStream,
    interrupted: Arc<AtomicBool>,
    _disks: Vec<Box<dyn Served>>,
    scratch: Scratch,
    /// What could not be read, and was said.
    pub troubles: u64,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest").field("scratch", &self.scratch).finish_non_exhaustive()
    }
}

/// Writes the archive from which the guest starts.
fn write_initramfs(to: &Path, modules: &Path) -> Result<u64, Problem> {
    let mut out = BufWriter::new(File::create(to)?);
    io::copy(&mut File::open(modules).map_err(|e| Problem::file(modules, &e))?, &mut out)?;
    // Without a console and /dev/null before it runs, a program of this kind does not start.
    let mut entries = vec![Entry::characters("/dev/console", 5, 1), Entry::characters("/dev/null", 1, 3)];
    entries.extend(["/proc", "/sys", "/mounted"].map(Entry::folder));
    entries.extend(program::files()?);
    cpio::write(&mut out, &entries)?;
    out.flush()?;
    Ok(to.metadata()?.len())
}

fn arguments(kernel: &Path, kvm: bool, initramfs: u64, disks: &[DiskPlace]) -> Vec<String> {
    // The kernel holds the archive and what it unpacked at the same time.
    let memory = (MEMORY + 2 * initramfs) >> 20;
    // An emulated timer on a loaded host is late; the kernel's test of it would end in a panic.
    let kernel_words = "console=ttyS0 quiet panic=-1 no_timer_check";
    let append = format!("rdinit={} {kernel_words} -- files-guest {}", program::PATH, disks.len());
    let mut out: Vec<String> = ["-name", "afterimage-files", "-nodefaults", "-no-user-config", "-no-reboot"]
        .into_iter()
        .chain(["-display", "none", "-nic", "none", "-machine", "pc,usb=off", "-smp", "1"])
        .chain(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"])
        .chain(["-initrd", "initramfs", "-chardev", "file,id=console,path=console.log", "-serial", "chardev:console"])
        .chain(["-device", "virtio-serial-pci", "-chardev", "socket,id=port,path=port.sock"])
        .chain(["-device", "virtserialport,nr=1,chardev=port,name=afterimage.files"])
        .chain(accelerator(kvm))
        .map(str::to_owned)
        .collect();
    out.extend(["-m".to_owned(), format!("{memory}M"), "-kernel".to_owned(), kernel.display().to_string()]);
    out.extend(["-append".to_owned(), append]);
    for (n, place) in disks.iter().enumerate() {
        out.extend(["-blockdev".to_owned(), blockdev(n, place)]);
        out.extend(["-device".to_owned(), format!("virtio-blk-pci,drive=disk{n}")]);
    }
    out
}

/// A text of the guest, as it may be shown.
pub fn shown(text: &str) -> String {
    Name::from(text).to_string()
}

impl Guest {
    /// Starts it on moments of volumes: the name and the seq of each.
    ///
    /// # Errors
    /// If something that it needs is missing, or it does not come up.
    pub fn start(data: &Path, disks: &[(String, u64)]) -> Result<Guest, Problem> {
        let signals = signals::watch()?;
        let kernel = kernel::find(data)?;
        let scratch = Scratch::new(data)?;
        let exports = Exports::of(data);
        let mut served = Vec::new();
        for (n, (volume, seq)) in disks.iter().enumerate() {
            let name = format!("files-{n}");
            let fork = Fork { volume: volume.clone(), seq: *seq, time: None, name, place: None, latest: false };
            let disk = exports.fork(&fork, &scratch.join(&format!("disk{n}.sock")));
            served.push(disk.map_err(|e| Problem::failed(format!("volume {volume}: {e}")))?);
        }
        let initramfs = write_initramfs(&scratch.join("initramfs"), &kernel.modules)?;
        // Where test failovers keep what they found out of this host.
        let known = data.join("failover");
        crashsafe::create_folders(&known).map_err(|e| Problem::file(&known, &e))?;
        let kvm = kvm_works_here(&known)
            .map_err(|e| Problem::failed(format!("{PROGRAM} cannot be started: {e}; install qemu-system-x86")))?;
        // Relative: the path of a socket has 107 bytes at most.
        let places = (0..disks.len())
            .map(|n| DiskPlace::Unix { socket: format!("disk{n}.sock").into(), export: disks[n].0.clone() });
        let places: Vec<DiskPlace> = places.collect();
        let listener = UnixListener::bind(scratch.join(PORT_SOCKET))?;
        let log = File::create(scratch.join("qemu.log"))?;
        let image = std::path::absolute(&kernel.image)?;
        let prepared = prepare(PROGRAM, &arguments(&image, kvm, initramfs, &places), scratch.path(), &log)?;
        let mut child = prepared.open()?;
        let port = match accept(&listener, &mut child) {
            Ok(port) => port,
            Err(e) => {
                drop(child.kill());
                child.wait()?;
                return Err(died(&scratch, &e));
            }
        };
        port.set_read_timeout(Some(BOOT))?;
        let interrupted = Arc::new(AtomicBool::new(false));
        let (told, door) = (Arc::clone(&interrupted), port.try_clone()?);
        std::thread::Builder::new().name("interrupt".to_owned()).spawn(move || {
            if signals.recv().is_ok() {
                told.store(true, Ordering::Relaxed);
                // Who reads or writes there ends, and with that the guest.
                drop(door.shutdown(std::net::Shutdown::Both));
            }
        })?;
        let (from, to) = (BufReader::with_capacity(wire::MAX_FRAME, port.try_clone()?), port);
        let mut guest = Guest { child, from, to, interrupted, _disks: served, scratch, troubles: 0 };
        guest.greeted()?;
        Ok(guest)
    }

    fn greeted(&mut self) -> Result<(), Problem> {
        if screen::is_live() {
            screen::live(Some("starting the guest that reads the file system".to_owned()));
        }
        let hello = self.frame();
        screen::live(None);
        match hello? {
            Frame::Message(Tell::Hello { version: wire::VERSION }) => {
                self.to.set_read_timeout(Some(SILENCE))?;
                Ok(())
            }
            other => Err(Problem::failed(format!("the guest does not say hello but {other:?}"))),
        }
    }

    /// What it says next, checked.
    fn frame(&mut self) -> Result<Frame<Tell>, Problem> {
        let got = wire::get::<Tell>(&mut self.from).and_then(|frame| {
            if let Frame::Message(tell) = &frame {
                tell.check()?;
            }
            Ok(frame)
        });
        got.map_err(|e| self.ended(&e))
    }

    fn ended(&self, e: &io::Error) -> Problem {
        if self.interrupted.load(Ordering::Relaxed) {
            return Problem::failed("interrupted");
        }
        match e.kind() {
            io::ErrorKind::InvalidData => Problem::failed(shown(&e.to_string())),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                died(&self.scratch, &io::Error::other("it has not said anything for too long"))
            }
            _ => died(&self.scratch, e),
        }
    }

    /// Asks for something, and hands each thing that it says to `each`, until it is done. What it cannot read is printed, and
    /// handed on, too.
    ///
    /// # Errors
    /// If it refuses or ends, or as `each` says.
    pub fn ask(&mut self, ask: &Ask, each: &mut dyn FnMut(Frame<Tell>) -> Result<(), Problem>) -> Result<(), Problem> {
        wire::put(&mut self.to, ask).map_err(|e| self.ended(&e))?;
        loop {
            match self.frame()? {
                Frame::Message(Tell::Working) => {}
                Frame::Message(Tell::Done) => return Ok(()),
                Frame::Message(Tell::Refused { why, usage }) => {
                    let why = shown(&why);
                    return Err(if usage { Problem::usage(why) } else { Problem::failed(why) });
                }
                frame => {
                    if let Frame::Message(Tell::Trouble { path, why }) = &frame {
                        self.troubles += 1;
                        screen::live(None);
                        eprintln!("afterimage: {path}: {}", shown(why));
                    }
                    each(frame)?;
                }
            }
        }
    }

    /// Mounts the file system of a disk; prints what the kernel says of it.
    ///
    /// # Errors
    /// If it cannot be mounted.
    pub fn mount(&mut self, disk: usize, partition: Option<u32>, replay: bool) -> Result<Partition, Problem> {
        let mut mounted = None;
        self.ask(&Ask::Mount { disk, partition, replay }, &mut |frame| {
            if let Frame::Message(Tell::Mounted { partition, notes }) = frame {
                notes.iter().for_each(|note| tracing::info!("{}", shown(note)));
                mounted = Some(partition);
            }
            Ok(())
        })?;
        mounted.ok_or_else(|| Problem::failed("the guest does not say what it mounted"))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Nothing in it is to be saved. It may have ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Waits for QEMU to come to the port.
fn accept(listener: &UnixListener, child: &mut Child) -> io::Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let start = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(e),
            Err(_) => {}
        }
        if let Some(status) = child.try_wait()? {
            return Err(io::Error::other(format!("{PROGRAM} ended: {status}")));
        }
        if start.elapsed() > BOOT {
            return Err(io::Error::other(format!("{PROGRAM} does not start")));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Why there is no guest any more: with the last that was said.
fn died(scratch: &Scratch, e: &io::Error) -> Problem {
    let mut last = Vec::new();
    for (name, lines) in [("qemu.log", 3), (CONSOLE, 5)] {
        let text = std::fs::read(scratch.join(name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let said: Vec<String> = text.lines().map(str::trim).filter(|l| !l.is_empty()).map(shown).collect();
        last.extend(said[said.len().saturating_sub(lines)..].iter().map(|l| format!("\n  {l}")));
    }
    Problem::failed(format!("the guest that reads the file system has ended: {e}{}", last.concat()))
}
