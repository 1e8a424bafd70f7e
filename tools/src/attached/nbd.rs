//! The kernel's NBD client, set up by `nbd-client`.

use super::memory::Note;
use super::usage::load_module;
use afterimage_nbd::Address;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long a device may take to have its size.
const PATIENCE: Duration = Duration::from_secs(10);

/// The node of a device.
pub(super) fn path(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/nbd{number}"))
}

fn sysfs(number: u32) -> PathBuf {
    PathBuf::from(format!("/sys/block/nbd{number}"))
}

fn sectors(number: u32) -> u64 {
    let text = std::fs::read_to_string(sysfs(number).join("size")).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// A device that nobody has connected.
pub(super) fn free() -> Result<u32, String> {
    load_module("nbd", &sysfs(0));
    if !sysfs(0).exists() {
        return Err(
            "the kernel's module nbd is not loaded and cannot be: load it with `modprobe nbd` (in Debian it is part of the \
             kernel's package)"
                .to_owned(),
        );
    }
    (0..256)
        .take_while(|n| sysfs(*n).exists())
        .find(|n| !sysfs(*n).join("pid").exists() && sectors(*n) == 0)
        .ok_or_else(|| {
            "all devices of the kernel's NBD client are connected: load the module nbd with a larger nbds_max"
                .to_owned()
        })
}

fn run(arguments: &[&str]) -> Result<(), String> {
    // Debian puts it where only an administrator's PATH leads.
    let program = ["/usr/sbin/nbd-client", "/sbin/nbd-client"].into_iter().find(|p| Path::new(p).exists());
    let out = Command::new(program.unwrap_or("nbd-client")).args(arguments).stdin(Stdio::null()).output();
    match out {
        Ok(out) if out.status.success() => Ok(()),
        Ok(out) => Err(format!("nbd-client {}: {}", arguments.join(" "), String::from_utf8_lossy(&out.stderr).trim())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err("the program nbd-client is not there: install the package nbd-client".to_owned())
        }
        Err(e) => Err(format!("nbd-client: {e}")),
    }
}

/// Connects the device of a note.
pub(super) fn connect(note: &Note, at: &Address) -> Result<(), String> {
    let device = path(note.number).display().to_string();
    let connections = note.queues.to_string();
    let (host, port);
    let mut arguments = match at {
        Address::Unix(socket) => {
            host = socket.display().to_string();
            vec!["-unix", &host, &device]
        }
        Address::Tcp(address) => {
            (host, port) = (address.ip().to_string(), address.port().to_string());
            vec![&*host, &*port, &*device]
        }
    };
    arguments.extend(["-name", &note.volume, "-connections", &connections]);
    if !note.writable {
        arguments.push("-readonly");
    }
    run(&arguments)?;
    let start = Instant::now();
    while sectors(note.number) == 0 {
        if start.elapsed() > PATIENCE {
            disconnect(note.number);
            return Err(format!("{device} has no size: nbd-client did not connect it"));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Disconnects a device, whoever uses it.
pub(super) fn disconnect(number: u32) {
    let device = path(number).display().to_string();
    if sysfs(number).join("pid").exists()
        && let Err(e) = run(&["-d", &device])
    {
        tracing::warn!("{e}");
    }
}

/// Why a device is not served; `None` if it is.
pub(super) fn trouble(number: u32) -> Option<String> {
    (!sysfs(number).join("pid").exists()).then(|| "the kernel's NBD client has disconnected it".to_owned())
}
