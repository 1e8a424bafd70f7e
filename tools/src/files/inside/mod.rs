//! The first process of the guest that reads file systems: it loads the modules of the kernel, waits for disks and port, and
//! answers until the port is closed.
//!
//! It is this program itself, which `afterimage files` packs into the guest's initramfs. What goes wrong here ends it, with that
//! the kernel, and with that the machine; the last words are on the serial port.

mod compare;
mod disk;
mod walk;

use crate::files::wire::{self, Ask, Frame, Name, Tell};
use crate::problem::Problem;
use nix::mount::{MsFlags, mount};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where modules lie in the guest, to be loaded in the order of their names.
pub const MODULES: &str = "/modules";
/// The port to the command, as the kernel names the first port of the first bus.
const PORT: &str = "/dev/vport0p1";
/// An emulated machine on a loaded host finds its disks in a second or two.
const DEVICES: Duration = Duration::from_secs(60);
/// The command hears something at least so often.
const PULSE: Duration = Duration::from_secs(2);

/// Why a request is not done.
#[derive(Debug)]
pub(super) struct Refusal {
    why: String,
    usage: bool,
}

impl Refusal {
    fn usage(why: impl Into<String>) -> Refusal {
        Refusal { why: why.into(), usage: true }
    }

    fn failed(why: impl Into<String>) -> Refusal {
        Refusal { why: why.into(), usage: false }
    }
}

/// The way back to the command. An error is the end of the port.
struct Port {
    file: File,
    told: Instant,
}

impl Port {
    fn tell(&mut self, tell: &Tell) -> io::Result<()> {
        self.told = Instant::now();
        wire::put(&mut self.file, tell)
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.told = Instant::now();
        wire::put_data(&mut self.file, offset, bytes)
    }

    fn trouble(&mut self, path: &Path, e: &io::Error) -> io::Result<()> {
        let mut name = Name(path.as_os_str().as_bytes().to_vec());
        name.0.truncate(wire::MAX_PATH);
        self.tell(&Tell::Trouble { path: name, why: e.to_string() })
    }

    /// Says that this is at work, if nothing was said for a while.
    fn pulse(&mut self) -> io::Result<()> {
        if self.told.elapsed() > PULSE { self.tell(&Tell::Working) } else { Ok(()) }
    }
}

/// Where the file system of a disk is mounted.
fn root(disk: usize) -> PathBuf {
    Path::new("/mounted").join(disk.to_string())
}

/// Answers for `disks` disks until the command closes the port.
///
/// # Errors
/// If this is not the first process of such a guest, or something that it needs is missing.
pub fn run(disks: usize) -> Result<(), Problem> {
    if std::process::id() != 1 {
        return Err(Problem::usage("this is started by `afterimage files`, in a guest of its own"));
    }
    for (kind, at) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>)?;
    }
    load_modules()?;
    for n in 0..disks {
        wait_for(&disk::device(n))?;
        std::fs::create_dir_all(root(n))?;
    }
    wait_for(Path::new(PORT))?;
    let file = File::options().read(true).write(true).open(PORT)?;
    let mut port = Port { file, told: Instant::now() };
    port.tell(&Tell::Hello { version: wire::VERSION })?;
    let mut mounted = Mounted::default();
    loop {
        let ask = match wire::get(&mut port.file)? {
            Frame::Message(ask) => ask,
            Frame::Data(..) => return Err(Problem::failed("data where a request was expected")),
        };
        match answer(ask, &mut mounted, &mut port)? {
            Ok(()) => port.tell(&Tell::Done)?,
            Err(Refusal { why, usage }) => port.tell(&Tell::Refused { why, usage })?,
        }
    }
}

/// What file systems there are.
#[derive(Debug, Default)]
struct Mounted {
    /// Whether one of them keeps no time of change.
    coarse: bool,
}

/// The outer error is the end of the port.
fn answer(ask: Ask, mounted: &mut Mounted, port: &mut Port) -> io::Result<Result<(), Refusal>> {
    match ask {
        Ask::Partitions { disk } => match disk::partitions(disk) {
            Ok(found) => found.into_iter().try_for_each(|p| port.tell(&Tell::Partition(p))).map(Ok),
            Err(e) => Ok(Err(Refusal::failed(format!("the disk cannot be read: {e}")))),
        },
        Ask::Mount { disk, partition, replay } => match disk::mount(disk, partition, replay, &root(disk)) {
            Ok((partition, notes)) => {
                mounted.coarse |= partition.holds.as_deref() == Some(disk::FAT);
                port.tell(&Tell::Mounted { partition, notes }).map(Ok)
            }
            Err(refusal) => Ok(Err(refusal)),
        },
        Ask::List { path } => walk::list(&path, port),
        Ask::Count { path } => walk::count(&path, port),
        Ask::Send { path, recursive } => walk::send(&path, recursive, port),
        Ask::Compare { path, content } => compare::compare(&path, content || mounted.coarse, port),
    }
}

fn load_modules() -> io::Result<()> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(MODULES)?.flatten().map(|e| e.path()).collect();
    files.sort();
    for path in files {
        // Some refuse a processor that they are not for. What is missed is said by what needs it.
        if let Err(e) = nix::kmod::init_module(&std::fs::read(&path)?, c"") {
            drop(writeln!(io::stderr(), "{} was not loaded: {e}", path.display()));
        }
    }
    Ok(())
}

fn wait_for(path: &Path) -> Result<(), Problem> {
    let start = Instant::now();
    while !path.exists() {
        if start.elapsed() > DEVICES {
            return Err(Problem::failed(format!("{} never came: the kernel lacks a driver for it", path.display())));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
