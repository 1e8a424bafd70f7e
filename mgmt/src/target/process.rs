//! Processes that are known by more than their number, and that die with who started them.
//!
//! The number of a process is used again after its end. Number, start time and boot together name one process for ever, so a
//! file that holds them can be read after any crash.
//!
//! A program is started behind a gate: a shell waits for a line and then becomes the program, with the same number. Who starts it can make
//! its name durable before it does anything. If the starter dies first, the line never comes, and the shell ends.

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

/// What a shell runs to wait at the gate.
const GATE: &str = "read -r go && exec \"$0\" \"$@\" </dev/null";

/// A process, for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessId {
    /// Its number.
    pub pid: i32,
    /// When it was started, in the kernel's ticks since boot.
    pub started: u64,
    /// The boot.
    pub boot: String,
}

/// State and start time from `/proc/PID/stat`; see proc(5).
fn stat(pid: i32) -> io::Result<(u8, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat was not understood");
    // The name stands in parentheses and may hold any byte, a parenthesis too.
    let (_, rest) = text.rsplit_once(") ").ok_or_else(bad)?;
    let mut fields = rest.split(' ');
    let state = fields.next().and_then(|s| s.bytes().next()).ok_or_else(bad)?;
    // State is field 3, the start time field 22.
    let started = fields.nth(18).and_then(|s| s.parse().ok()).ok_or_else(bad)?;
    Ok((state, started))
}

fn boot() -> io::Result<String> {
    Ok(format!("{:032x}", afterimage_base::world::boot_id()?))
}

impl ProcessId {
    /// Of a process that is there.
    ///
    /// # Errors
    /// If it is not.
    pub fn of(pid: i32) -> io::Result<ProcessId> {
        Ok(ProcessId { pid, started: stat(pid)?.1, boot: boot()? })
    }

    /// Whether it is still there. One that has ended and that nobody has asked after is not.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn is_alive(&self) -> io::Result<bool> {
        if boot()? != self.boot {
            return Ok(false);
        }
        match stat(self.pid) {
            Ok((state, started)) => Ok(started == self.started && !matches!(state, b'Z' | b'X')),
            Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Kills it. No other process is hit, also if its number was used again meanwhile.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn kill(&self) -> io::Result<()> {
        // SAFETY: the call takes no pointer.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid, 0) };
        let Ok(fd) = i32::try_from(fd).map_err(io::Error::other) else { return Ok(()) };
        if fd < 0 {
            return gone(Errno::last());
        }
        // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
        let process = unsafe { OwnedFd::from_raw_fd(fd) };
        // The descriptor holds on to one process: if that is ours now, it stays so.
        if !self.is_alive()? {
            return Ok(());
        }
        let none = std::ptr::null::<libc::siginfo_t>();
        let kill = Signal::SIGKILL as i32;
        // SAFETY: the call takes a null pointer as "no further information".
        let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), kill, none, 0) };
        if sent < 0 { gone(Errno::last()) } else { Ok(()) }
    }
}

fn gone(e: Errno) -> io::Result<()> {
    if e == Errno::ESRCH { Ok(()) } else { Err(e.into()) }
}

/// A program behind its gate. Dropped there, it never starts.
#[derive(Debug)]
pub struct AtGate {
    child: Child,
    gate: ChildStdin,
    id: ProcessId,
}

/// Starts a program in `folder` as far as the gate. It is killed when the *thread* that calls this ends, however that ends. What it
/// prints goes to `output`.
///
/// # Errors
/// If it cannot be started.
pub fn prepare(program: &str, arguments: &[String], folder: &Path, output: &File) -> io::Result<AtGate> {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", GATE, program]).args(arguments).current_dir(folder).stdin(Stdio::piped());
    command.stdout(output.try_clone()?).stderr(output.try_clone()?);
    let parent = nix::unistd::getpid();
    // SAFETY: between fork and exec only system calls are made, nothing is allocated and no lock is taken.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            // It may have died before this was said.
            if nix::unistd::getppid() == parent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
        });
    }
    let mut child = command.spawn()?;
    let found = i32::try_from(child.id()).map_err(io::Error::other).and_then(ProcessId::of);
    match (found, child.stdin.take()) {
        (Ok(id), Some(gate)) => Ok(AtGate { child, gate, id }),
        (found, _) => {
            drop(child.kill());
            child.wait()?;
            Err(found.err().unwrap_or_else(|| io::Error::other("the program has no standard input")))
        }
    }
}

impl AtGate {
    /// Which process it is, and will be.
    #[must_use]
    pub const fn id(&self) -> &ProcessId {
        &self.id
    }

    /// Opens the gate.
    ///
    /// # Errors
    /// If it has ended.
    pub fn open(mut self) -> io::Result<Child> {
        self.gate.write_all(b"go\n")?;
        Ok(self.child)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn wait(what: impl Fn() -> bool) {
        let start = Instant::now();
        while !what() {
            assert!(start.elapsed() < Duration::from_secs(60), "never came");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn touch(dir: &Path) -> AtGate {
        let words = ["-c", "echo ran >ran; exec sleep 600"].map(str::to_owned);
        prepare("/bin/sh", &words, dir, &File::create(dir.join("out")).unwrap()).unwrap()
    }

    #[test]
    fn nothing_runs_before_the_gate_opens_and_the_name_stays() {
        let dir = tempfile::tempdir().unwrap();
        let waiting = touch(dir.path());
        let id = waiting.id().clone();
        assert!(id.is_alive().unwrap() && !dir.path().join("ran").exists());
        let mut child = waiting.open().unwrap();
        wait(|| dir.path().join("ran").exists());
        assert_eq!(ProcessId::of(id.pid).unwrap(), id);
        id.kill().unwrap();
        // Ended, and not yet asked after: that is not alive.
        wait(|| !id.is_alive().unwrap());
        id.kill().unwrap();
        child.wait().unwrap();
        id.kill().unwrap();
    }

    #[test]
    fn who_dies_before_the_gate_opens_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let AtGate { mut child, gate, .. } = touch(dir.path());
        drop(gate);
        assert!(!child.wait().unwrap().success());
        assert!(!dir.path().join("ran").exists());
    }

    #[test]
    fn a_number_that_was_used_again_is_not_killed() {
        let own = ProcessId::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.is_alive().unwrap());
        for other in [ProcessId { started: own.started + 1, ..own.clone() }, ProcessId { boot: String::new(), ..own }] {
            assert!(!other.is_alive().unwrap());
            // The test would not go on.
            other.kill().unwrap();
        }
    }
}
