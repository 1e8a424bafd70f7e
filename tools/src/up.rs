//! `afterimage up`: agent, appliance, NBD server and control socket in one process.

use crate::cli::{Cache, KeyArgs, UpArgs};
use crate::daemon::{Daemon, Settings};
use crate::data::{self, DataDir};
use crate::problem::Problem;
use crate::{notify, screen, show, signals};
use afterimage_agent::{CacheMode, RecoveryReport};
use afterimage_appliance::keys::KeySource;
use afterimage_mgmt::protocol::{State, Status};
use afterimage_mgmt::units::{format_duration, format_size};
use afterimage_nbd::{Address, Listen};
use crossbeam::channel::{RecvTimeoutError, bounded, select};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often status and schedule are looked at.
const TICK: Duration = Duration::from_secs(1);

/// A disk as the command line names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskArg {
    /// The volume's name.
    pub name: String,
    /// The raw image or block device.
    pub path: PathBuf,
}

/// Reads `[NAME=]PATH`. What stands before the first `=` is a name unless it has a slash in it.
///
/// # Errors
/// If no name can be made of the path.
pub fn parse_disk(text: &str) -> Result<DiskArg, Problem> {
    if let Some((name, path)) = text.split_once('=')
        && !name.contains('/')
    {
        if name.is_empty() || path.is_empty() {
            return Err(Problem::usage(format!("'{text}': write NAME=PATH, or the path alone")));
        }
        return Ok(DiskArg { name: name.to_owned(), path: path.into() });
    }
    let path = PathBuf::from(text);
    let name = path.file_stem().map(|n| n.to_string_lossy().into_owned()).filter(|n| !n.is_empty());
    let name = name.ok_or_else(|| {
        Problem::usage(format!("'{text}' has no file name to name the volume after: write NAME=PATH"))
    })?;
    Ok(DiskArg { name, path })
}

/// All disks of the command line.
///
/// # Errors
/// If two of them have one name.
pub fn parse_disks(texts: &[String]) -> Result<Vec<DiskArg>, Problem> {
    let mut seen: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut disks = Vec::new();
    for text in texts {
        let disk = parse_disk(text)?;
        if let Some(other) = seen.insert(disk.name.clone(), disk.path.clone()) {
            return Err(Problem::usage(format!(
                "two volumes would be named '{}' ({} and {}): name one of them, as in OTHER={}",
                disk.name,
                other.display(),
                disk.path.display(),
                disk.path.display()
            )));
        }
        disks.push(disk);
    }
    Ok(disks)
}

/// Where the vault key comes from.
///
/// # Errors
/// If the passphrase file cannot be read.
pub fn key_source(args: &KeyArgs, data: &Path) -> Result<KeySource, Problem> {
    let Some(path) = &args.passphrase_file else {
        return Ok(KeySource::File(args.key_file.clone().unwrap_or_else(|| data.join("vault/key"))));
    };
    let text = std::fs::read_to_string(path).map_err(|e| Problem::file(path, &e))?;
    let phrase = text.lines().next().unwrap_or_default();
    if phrase.is_empty() {
        return Err(Problem::failed(format!("{}: the first line, which is the passphrase, is empty", path.display())));
    }
    Ok(KeySource::Passphrase(phrase.to_owned().into()))
}

fn listeners(listen: Vec<Address>, data: &Path) -> Result<Vec<Listen>, Problem> {
    let mut out = afterimage_nbd::systemd_listeners()?;
    let listen = if listen.is_empty() && out.is_empty() { vec![Address::Unix(data.to_owned())] } else { listen };
    for address in listen {
        out.push(match address {
            Address::Tcp(_) => address.into(),
            Address::Unix(dir) => {
                if dir.exists() && !dir.is_dir() {
                    let text =
                        format!("--listen unix:{}: not a directory; the socket nbd.sock is put into it", dir.display());
                    return Err(Problem::usage(text));
                }
                let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
                made.map_err(|e| Problem::file(&dir, &e))?;
                Listen::Unix(dir.join("nbd.sock"))
            }
        });
    }
    Ok(out)
}

/// What recovery did, in words; `None` for a new volume.
fn recovery(report: Option<&RecoveryReport>) -> Option<String> {
    let r = report?;
    if r.whole_disk {
        let why = r.reason.as_deref().unwrap_or("unknown");
        return Some(format!("the journal could not be used ({why}): the whole disk is compared with its history"));
    }
    if r.intent_regions != 0 {
        let (why, mib) = (r.reason.as_deref().unwrap_or("unknown"), r.intent_bytes.div_ceil(1 << 20));
        return Some(format!("the journal was lost ({why}): the {mib} MiB written to last are compared with history"));
    }
    if r.clean {
        return Some("stopped in order last time".to_owned());
    }
    Some(format!(
        "was killed last time; nothing is lost: {} unfinished writes were written to the disk again, {} had not begun",
        r.redone, r.voided
    ))
}

/// A word on a ring that has another size than was asked for.
fn kept_ring(there: u64, asked: u64) -> Option<String> {
    // A volume without a journal has no ring; a new ring is rounded up to whole pages.
    (there != 0 && there != asked.next_multiple_of(4096)).then(|| {
        format!(
            "warning: its ring keeps its size of {}; --ring {} is for new volumes",
            format_size(there),
            format_size(asked)
        )
    })
}

fn greeting(daemon: &Daemon, status: &Status, ring: u64) -> String {
    let mut out = format!(
        "afterimage {}, data in {}, any write of the last {} can be chosen\n",
        status.version,
        status.data,
        format_duration(Duration::from_secs(status.window_seconds))
    );
    for v in status.volumes.iter().filter(|v| v.state != State::Offline) {
        let _ = writeln!(out, "{}: {} at {}", v.name, format_size(v.size), v.path);
        if let Some(text) = recovery(daemon.recovered(&v.name).as_ref()) {
            let _ = writeln!(out, "  {text}");
        }
        if let Some(text) = kept_ring(v.ring_bytes, ring) {
            let _ = writeln!(out, "  {text}");
        }
        for uri in &v.uri {
            let _ = writeln!(out, "  {uri}");
        }
    }
    let offline: Vec<&str> = status.volumes.iter().filter(|v| v.state == State::Offline).map(|v| &*v.name).collect();
    if !offline.is_empty() {
        let _ = writeln!(out, "history without a disk: {}", offline.join(", "));
    }
    out
}

fn line(status: &Status) -> String {
    let each = status.volumes.iter().filter(|v| v.state != State::Offline).map(|v| {
        let more = match v.state {
            State::InitialSync | State::Resync => format!(" {} to copy", format_size(v.dirty_bytes)),
            _ => format!(" @{} lag {}", v.seq_durable, show::lag(v)),
        };
        format!("{}: {}{more}", v.name, v.state)
    });
    each.collect::<Vec<_>>().join("  |  ")
}

/// Says what changed since the last tick, where there is no live line to see it.
fn log_changes(status: &Status, before: &mut BTreeMap<String, State>) {
    for v in &status.volumes {
        let old = before.insert(v.name.clone(), v.state);
        if old.is_some_and(|old| old != v.state)
            || (old.is_none() && v.state != State::Live && v.state != State::Offline)
        {
            let reason = v.reason.as_deref().map_or_else(String::new, |r| format!(": {r}"));
            tracing::info!("volume {} is {}{reason}", v.name, v.state);
        }
    }
}

/// Runs until a signal.
///
/// # Errors
/// If something is in the way of the start.
pub fn run(args: UpArgs) -> Result<(), Problem> {
    let signals = signals::watch()?;
    screen::log("info");
    let disks = parse_disks(&args.disks)?;
    let path = args.data.data.map_or_else(data::default_path, Ok)?;
    let data = DataDir::create(&path)?;
    let settings = Settings {
        disks,
        listen: listeners(args.listen, data.path())?,
        window: args.window,
        ring: args.ring,
        cache: match args.cache {
            Cache::Writeback => CacheMode::Writeback,
            Cache::None => CacheMode::None,
        },
        sync_rate: args.sync_rate,
        point_every: Some(args.point_every).filter(|d| !d.is_zero()),
        protect: !args.no_protect,
        key: key_source(&args.key, data.path())?,
    };
    let daemon = Daemon::start(data, settings)?;
    show::put(&greeting(&daemon, &daemon.status()?, args.ring))?;
    notify::notify("READY=1");
    let mut before = BTreeMap::new();
    let signal = loop {
        match signals.recv_timeout(TICK) {
            Ok(signal) => break signal,
            Err(RecvTimeoutError::Disconnected) => return Err(Problem::failed("the signal thread has ended")),
            Err(RecvTimeoutError::Timeout) => {}
        }
        daemon.tick();
        let status = daemon.status()?;
        log_changes(&status, &mut before);
        if screen::is_live() {
            screen::live(Some(line(&status)));
        }
    };
    screen::live(None);
    notify::notify("STOPPING=1");
    tracing::info!("{signal}: stopping; a second signal stops at once");
    let (send, stopped) = bounded(1);
    std::thread::Builder::new().name("stop".to_owned()).spawn(move || send.send(daemon.stop()))?;
    select! {
        recv(stopped) -> complete => {
            if complete != Ok(true) {
                tracing::warn!("the appliance does not have everything yet; the rest waits in the journal for the next start");
            }
            Ok(())
        }
        recv(signals) -> _ => Err(Problem::failed("stopped at once; the next start recovers what was under way")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_named_by_the_user_or_their_file() {
        let disk = |name: &str, path: &str| DiskArg { name: name.to_owned(), path: path.into() };
        for (text, want) in [
            ("web=/images/x.raw", disk("web", "/images/x.raw")),
            ("/images/web.raw", disk("web", "/images/web.raw")),
            ("/dev/vg0/db", disk("db", "/dev/vg0/db")),
            ("./a=b.img", disk("a=b", "./a=b.img")),
        ] {
            assert_eq!(parse_disk(text), Ok(want), "{text}");
        }
        for bad in ["=x", "x=", "", "/", ".."] {
            assert_eq!(parse_disk(bad).unwrap_err().exit, 2, "{bad}");
        }
        let two = parse_disks(&["/a/x.raw".to_owned(), "/b/x.img".to_owned()]).unwrap_err();
        assert!(two.exit == 2 && two.text.contains("two volumes would be named 'x'"), "{two}");
    }

    #[test]
    fn a_ring_of_another_size_is_told() {
        assert_eq!(kept_ring(0, 1 << 20), None);
        assert_eq!(kept_ring(8192, 4097), None);
        let text = kept_ring(16 << 20, 128 << 20).unwrap();
        assert!(text.contains("16 MiB") && text.contains("128 MiB"), "{text}");
    }

    #[test]
    fn recovery_is_told_in_words() {
        assert_eq!(recovery(None), None);
        let r = RecoveryReport { clean: false, redone: 3, voided: 1, ..RecoveryReport::default() };
        assert!(recovery(Some(&r)).unwrap().contains("3 unfinished writes"));
        assert!(recovery(Some(&RecoveryReport { clean: true, ..r })).unwrap().contains("in order"));
    }
}
