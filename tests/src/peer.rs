//! Other NBD servers on the same kind of disk: the harness is checked with them, and we are measured against them.

use crate::process::Process;
use crate::tool::{Tool, tool};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `qemu-nbd`.
    QemuNbd,
    /// `nbdkit` with its file plugin.
    Nbdkit,
    /// `nbd-server`.
    NbdServer,
}

/// A running peer.
#[derive(Debug)]
pub struct Peer {
    server: Server,
    uri: String,
}

#[derive(Debug)]
enum Server {
    Foreground(Process),
    /// nbd-server in the foreground serves one client and ends; so it runs as a daemon.
    Background(i32),
}

/// Serves a raw image at `dir`/peer.sock (unix), all through `prefix` (`taskset`), which may be empty.
///
/// # Panics
/// If it does not come up.
#[must_use]
#[track_caller]
pub fn serve(kind: Kind, image: &Path, dir: &Path, prefix: &[&str]) -> Peer {
    let socket = dir.join("peer.sock");
    let _ = std::fs::remove_file(&socket);
    let started = match kind {
        Kind::QemuNbd => start(prefix, "qemu-nbd")
            .args([
                "--persistent",
                "--shared=0",
                "--format=raw",
                "--cache=writeback",
                "--aio=threads",
                "--discard=unmap",
            ])
            .arg("--socket")
            .arg(&socket)
            .arg(image),
        Kind::Nbdkit => start(prefix, "nbdkit")
            .args(["--foreground", "--exit-with-parent", "--unix"])
            .arg(&socket)
            .arg("file")
            .arg(image),
        Kind::NbdServer => return nbd_server(image, &socket, dir, prefix),
    };
    let mut process = Process::start(started.into_command(), &dir.join("peer.log"));
    process.wait_until("socket", || socket.exists());
    Peer { server: Server::Foreground(process), uri: format!("nbd+unix:///?socket={}", socket.display()) }
}

fn nbd_server(image: &Path, socket: &Path, dir: &Path, prefix: &[&str]) -> Peer {
    let (config, pid_file) = (nbd_server_config(image, socket, dir), dir.join("nbd-server.pid"));
    start(prefix, "nbd-server").arg("-C").arg(config).arg("-p").arg(&pid_file).run();
    let uri = format!("nbd+unix:///disk?socket={}", socket.display());
    for _ in 0..1000 {
        let pid = std::fs::read_to_string(&pid_file).ok().and_then(|t| t.trim().parse().ok());
        if let (Some(pid), true) = (pid, socket.exists()) {
            return Peer { server: Server::Background(pid), uri };
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("nbd-server did not come up");
}

impl Peer {
    /// Where it serves.
    #[must_use]
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// The process.
    #[must_use]
    pub fn id(&self) -> u32 {
        match &self.server {
            Server::Foreground(process) => process.id(),
            Server::Background(pid) => pid.unsigned_abs(),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Server::Background(pid) = self.server {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }
}

fn start(prefix: &[&str], program: &str) -> Tool {
    let mut words = prefix.iter().copied().chain([program]);
    tool(words.next().unwrap_or(program)).args(words)
}

fn nbd_server_config(image: &Path, socket: &Path, dir: &Path) -> PathBuf {
    let config = dir.join("nbd-server.conf");
    let (image, socket) = (image.display(), socket.display());
    // It insists on a TCP port beside the socket.
    let port = crate::data::free_port();
    let text = format!(
        "[generic]\nunixsock = {socket}\nlistenaddr = 127.0.0.1\nport = {port}\n[disk]\nexportname = {image}\nflush = true\nfua = true\n"
    );
    std::fs::write(&config, text).expect("write the configuration of nbd-server");
    config
}
