//! Other NBD servers on the same kind of disk: the harness is checked with them, and we are measured against them.

use crate::process::Process;
use crate::tool::{Tool, tool};
use std::path::{Path, PathBuf};

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
    process: Process,
    uri: String,
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
        Kind::NbdServer => {
            let config = nbd_server_config(image, &socket, dir);
            start(prefix, "nbd-server").args(["-d", "-C"]).arg(config)
        }
    };
    let mut process = Process::start(started.into_command(), &dir.join("peer.log"));
    process.wait_until("socket", || socket.exists());
    let name = if kind == Kind::NbdServer { "disk" } else { "" };
    Peer { process, uri: format!("nbd+unix:///{name}?socket={}", socket.display()) }
}

impl Peer {
    /// Where it serves.
    #[must_use]
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// The process.
    #[must_use]
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

fn start(prefix: &[&str], program: &str) -> Tool {
    let mut words = prefix.iter().copied().chain([program]);
    tool(words.next().unwrap_or(program)).args(words)
}

fn nbd_server_config(image: &Path, socket: &Path, dir: &Path) -> PathBuf {
    let config = dir.join("nbd-server.conf");
    let (image, socket) = (image.display(), socket.display());
    let text = format!(
        "[generic]\nunixsock = {socket}\nlistenaddr = 127.0.0.1\nport = 0\n[disk]\nexportname = {image}\nflush = true\nfua = true\n"
    );
    std::fs::write(&config, text).expect("write the configuration of nbd-server");
    config
}
