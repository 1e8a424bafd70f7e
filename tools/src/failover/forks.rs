//! Disks of test failovers: writable exports of the running process. What is written to one is a branch that is dropped at its end,
//! and it ends with the job's process, however that ends; so nothing has to be dropped.

use afterimage_mgmt::client::{ControlClient, ExportGuard};
use afterimage_mgmt::failover::job::Fork;
use afterimage_mgmt::failover::source::{DiskSource, Served};
use afterimage_mgmt::protocol::Access;
use afterimage_mgmt::target::qemu::DiskPlace;
use afterimage_mgmt::when::When;
use afterimage_nbd::Address;
use afterimage_nbd::client::Client;
use std::fs::Permissions;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// What is read first.
const FIRST: usize = 4096;

/// The exports of the process that runs on a data folder.
#[derive(Debug)]
pub struct Exports {
    data: PathBuf,
}

impl Exports {
    /// Those of this folder.
    #[must_use]
    pub fn of(data: &Path) -> Exports {
        Exports { data: data.to_owned() }
    }
}

/// An export, until it is dropped.
#[derive(Debug)]
struct Export {
    volume: String,
    socket: PathBuf,
    guard: ExportGuard,
    gone: Arc<AtomicBool>,
}

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}

impl DiskSource for Exports {
    fn fork(&self, fork: &Fork, socket: &Path) -> Result<Box<dyn Served>, String> {
        let bind = || -> io::Result<UnixListener> {
            let listener = UnixListener::bind(socket)?;
            std::fs::set_permissions(socket, Permissions::from_mode(0o600))?;
            Ok(listener)
        };
        let listener = bind().map_err(|e| format!("{}: {e}", socket.display()))?;
        let control = ControlClient::connect(&self.data).map_err(text)?;
        let (_, guard) =
            control.export(&fork.volume, &When::Seq(fork.seq), Access::Scratch, &listener).map_err(text)?;
        let gone = Arc::new(AtomicBool::new(false));
        let connection = guard.connection().try_clone().map_err(text)?;
        let told = Arc::clone(&gone);
        let watch = move || watch(connection, &told);
        thread::Builder::new().name("export".to_owned()).spawn(watch).map_err(text)?;
        Ok(Box::new(Export { volume: fork.volume.clone(), socket: socket.to_owned(), guard, gone }))
    }

    fn drop_fork(&self, _: &Fork) -> Result<(), String> {
        Ok(())
    }
}

/// The running process says nothing on this connection any more: what can be read is its end.
fn watch(mut connection: UnixStream, gone: &AtomicBool) {
    drop(connection.read(&mut [0]));
    gone.store(true, Ordering::Relaxed);
}

impl Served for Export {
    fn place(&self) -> DiskPlace {
        DiskPlace::Unix { socket: self.socket.clone(), export: self.volume.clone() }
    }

    fn read_first(&self) -> Result<(), String> {
        let failed = |e| format!("volume {}: {e}", self.volume);
        let mut client = Client::connect(&Address::Unix(self.socket.clone()), &self.volume).map_err(failed)?;
        let len = usize::try_from(client.size()).unwrap_or(FIRST).min(FIRST);
        client.read(0, &mut vec![0; len]).map_err(failed)
    }

    fn gone(&self) -> Option<String> {
        let gone = self.gone.load(Ordering::Relaxed);
        gone.then(|| format!("the afterimage process has ended, and with it the disk {}", self.volume))
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        // The watching thread has a copy of the connection, which would keep it open.
        drop(self.guard.connection().shutdown(Shutdown::Both));
    }
}
