//! `afterimage export`: a volume as it was, served at a socket until the command ends.
//!
//! The command makes the socket and passes it to the running process, which serves it as long as the control
//! connection is there: when the command dies, however it dies, the export ends.

use crate::problem::Problem;
use crate::{show, signals};
use afterimage_mgmt::client::ControlClient;
use afterimage_mgmt::protocol::Access;
use afterimage_mgmt::when::When;
use crossbeam::channel::{bounded, select};
use std::fs::Permissions;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

/// What is asked.
#[derive(Debug)]
pub struct Options {
    /// The volume.
    pub volume: String,
    /// The moment.
    pub at: When,
    /// As what.
    pub access: Access,
    /// The socket.
    pub listen: PathBuf,
}

/// A socket file that goes away with its owner.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

fn bind(path: &Path) -> Result<(UnixListener, SocketFile), Problem> {
    let path = std::path::absolute(path)?;
    if let Ok(there) = std::fs::symlink_metadata(&path) {
        if !there.file_type().is_socket() {
            return Err(Problem::failed(format!(
                "{} is there already and no socket: name another path",
                path.display()
            )));
        }
        if UnixStream::connect(&path).is_ok() {
            return Err(Problem::failed(format!(
                "somebody else listens at {} already: name another path",
                path.display()
            )));
        }
        std::fs::remove_file(&path).map_err(|e| Problem::file(&path, &e))?;
    }
    let listener = UnixListener::bind(&path).map_err(|e| Problem::file(&path, &e))?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(|e| Problem::file(&path, &e))?;
    Ok((listener, SocketFile(path)))
}

/// Serves until a signal or until the daemon ends.
///
/// # Errors
/// If the moment cannot be opened, or the daemon went away.
pub fn export(data: &Path, options: &Options) -> Result<(), Problem> {
    let signals = signals::watch()?;
    let mut control = ControlClient::connect(data)?;
    // Resolved first, so that a bad moment leaves no socket behind even for an instant.
    let position = control.resolve(&options.volume, &options.at)?;
    let (listener, file) = bind(&options.listen)?;
    let (_, guard) = control.export(&options.volume, &When::Seq(position.seq), options.access, &listener)?;
    drop(listener);
    let uri = afterimage_nbd::Address::Unix(file.0.clone()).uri(&options.volume);
    let at = position.time.map_or_else(String::new, |t| format!(" ({})", t.short()));
    let what = match options.access {
        Access::Branch => format!("{}, read and written, now at @{}{at}", options.volume, position.seq),
        Access::Moment => format!("{} as it was after write @{}{at}, read-only", options.volume, position.seq),
        Access::Scratch => {
            let text = "writable, changes are dropped at the end";
            format!("{} as it was after write @{}{at}, {text}", options.volume, position.seq)
        }
    };
    show::put(&format!("{what}:\n{uri}\n"))?;
    let mut connection = guard.connection().try_clone()?;
    let (send, gone) = bounded::<io::Result<usize>>(1);
    thread::Builder::new().name("watch".to_owned()).spawn(move || send.send(connection.read(&mut [0])))?;
    select! {
        recv(signals) -> _ => Ok(()),
        recv(gone) -> _ => Err(Problem::failed("the afterimage process has ended, and this export with it")),
    }
}
