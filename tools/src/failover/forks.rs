//! Disks of failovers: exports of the running process. For a test, what is written to one is a branch that is dropped at its end,
//! and it ends with the job's process, however that ends; so nothing has to be dropped. For a failover they are branches that stay.

use afterimage_mgmt::client::{ClientError, ControlClient, ExportGuard};
use afterimage_mgmt::failover::job::Fork;
use afterimage_mgmt::failover::source::{DiskSource, Served};
use afterimage_mgmt::protocol::{Access, BranchAsk, BranchStatus, Code, FenceAsk};
use afterimage_mgmt::target::qemu::DiskPlace;
use afterimage_mgmt::units::Time;
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
use std::time::{Duration, Instant};

/// How long the export of a branch may take to end.
const LEAVE: Duration = Duration::from_secs(10);
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

impl Exports {
    /// Has a volume, a moment of one or a branch served at this socket.
    fn serve(&self, (volume, at): (&str, &When), access: Access, socket: &Path) -> Result<Box<dyn Served>, String> {
        let bind = || -> io::Result<UnixListener> {
            let listener = UnixListener::bind(socket)?;
            std::fs::set_permissions(socket, Permissions::from_mode(0o600))?;
            Ok(listener)
        };
        let listener = bind().map_err(|e| format!("{}: {e}", socket.display()))?;
        let control = ControlClient::connect(&self.data).map_err(text)?;
        let (_, guard) = control.export(volume, at, access, &listener).map_err(text)?;
        let gone = Arc::new(AtomicBool::new(false));
        let connection = guard.connection().try_clone().map_err(text)?;
        let told = Arc::clone(&gone);
        let watch = move || watch(connection, &told);
        thread::Builder::new().name("export".to_owned()).spawn(watch).map_err(text)?;
        Ok(Box::new(Export { volume: volume.to_owned(), socket: socket.to_owned(), guard, gone }))
    }

    fn control(&self) -> Result<ControlClient, String> {
        ControlClient::connect(&self.data).map_err(text)
    }

    /// Makes a branch, if it is not there.
    ///
    /// # Errors
    /// If it cannot be made, or one of that name begins elsewhere.
    pub fn make_branch(&self, fork: &Fork) -> Result<(), String> {
        let name = branch_of(fork);
        let mut control = self.control()?;
        match found(&mut control, &name)? {
            None => {
                let (volume, at, name) = (fork.volume.clone(), When::Seq(fork.seq), fork.name.clone());
                let _: BranchStatus = control.branch(BranchAsk::Create { volume, at, name }).map_err(text)?;
                Ok(())
            }
            Some(other) if other.fork_seq != fork.seq => Err(format!(
                "branch {name} was made meanwhile and begins behind @{}, not behind @{}: give another name with --branch",
                other.fork_seq, fork.seq
            )),
            // Made by an earlier process of this job.
            Some(_) => Ok(()),
        }
    }
}

/// The full name of a failover's branch.
fn branch_of(fork: &Fork) -> String {
    format!("{}/{}", fork.volume, fork.name)
}

/// An answer, or nothing if what was asked about is not there.
fn if_there<T>(answer: Result<T, ClientError>) -> Result<Option<T>, String> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(ClientError::Refused(f)) if f.code == Code::NotFound => Ok(None),
        Err(e) => Err(text(e)),
    }
}

/// The branch of this name.
fn found(control: &mut ControlClient, name: &str) -> Result<Option<BranchStatus>, String> {
    if_there(control.branch(BranchAsk::Show { name: name.to_owned() }))
}

/// Sees to it that there is no branch of this full name.
///
/// # Errors
/// If there is one.
pub fn is_free(control: &mut ControlClient, name: &str) -> Result<(), String> {
    match found(control, name)? {
        None => Ok(()),
        Some(_) => Err(format!("there is a branch {name} already: give another name with --branch, or drop that one")),
    }
}

impl DiskSource for Exports {
    fn is_there(&self) -> bool {
        ControlClient::connect(&self.data).is_ok_and(|mut c| c.status().is_ok())
    }

    fn fence(&self, volume: &str, owner: &str, drain: bool) -> Result<(), String> {
        let (volume, owner) = (volume.to_owned(), owner.to_owned());
        self.control()?.fence(FenceAsk::Up { volume, owner, drain }).map(drop).map_err(text)
    }

    fn lift(&self, volume: &str, owner: &str) -> Result<(), String> {
        let mut control = self.control()?;
        let fence = if_there(control.fence(FenceAsk::Show { volume: volume.to_owned() }))?;
        // One that failed because of another's fence has nothing to take down.
        if fence.is_none_or(|f| f.owner.as_deref() != Some(owner)) {
            return Ok(());
        }
        let ask = FenceAsk::Down { volume: volume.to_owned(), owner: owner.to_owned() };
        control.fence(ask).map(drop).map_err(text)
    }

    fn latest(&self, volume: &str) -> Result<(u64, Option<Time>), String> {
        let position = self.control()?.resolve(volume, &When::Latest).map_err(text)?;
        Ok((position.seq, position.time))
    }

    fn is_drained(&self, volume: &str) -> Result<bool, String> {
        let mut control = self.control()?;
        // The epoch of now: an agent that knows a later one raises it when it comes.
        let fence = control.fence(FenceAsk::Show { volume: volume.to_owned() }).map_err(text)?;
        let point = format!("fenced-{}", fence.epoch);
        let points = control.points(volume).map_err(text)?;
        let newest = points.window.map(|w| w.last_seq);
        Ok(points.points.iter().any(|p| p.name == point && Some(p.seq) == newest))
    }

    fn is_free(&self, fork: &Fork) -> Result<(), String> {
        is_free(&mut self.control()?, &branch_of(fork))
    }

    fn branch(&self, fork: &Fork, socket: &Path) -> Result<Box<dyn Served>, String> {
        self.make_branch(fork)?;
        self.serve((&branch_of(fork), &When::Latest), Access::Branch, socket)
    }

    fn drop_branch(&self, fork: &Fork) -> Result<(), String> {
        let name = branch_of(fork);
        // One that begins elsewhere is not the job's: it had the name before the job could take it.
        if found(&mut self.control()?, &name)?.is_none_or(|b| b.fork_seq != fork.seq) {
            return Ok(());
        }
        let ask = || BranchAsk::Drop { name: name.clone() };
        let start = Instant::now();
        loop {
            match self.control()?.branch::<BranchStatus>(ask()) {
                // Its export ends behind the connection that it hangs on.
                Err(ClientError::Refused(f)) if f.code == Code::Conflict && start.elapsed() < LEAVE => {
                    thread::sleep(Duration::from_millis(20));
                }
                other => return if_there(other).map(drop),
            }
        }
    }

    fn fork(&self, fork: &Fork, socket: &Path) -> Result<Box<dyn Served>, String> {
        self.serve((&fork.volume, &When::Seq(fork.seq)), Access::Scratch, socket)
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
