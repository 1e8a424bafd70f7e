//! `afterimage up`: agent, appliance, NBD server and control socket in one process.

use crate::cli::{KeyArgs, NbdTls, NbdTlsArgs, UpArgs};
use crate::daemon::{AgentSettings, ApplianceSettings, Disk, Reach, Settings};
use crate::data::DataDir;
use crate::problem::Problem;
use crate::{screen, serve, signals};
use afterimage_appliance::keys::KeySource;
use afterimage_nbd::{Address, Listen, Tls};
use afterimage_trust::Trust;
use afterimage_trust::nbd::NbdServerTls;
use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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

/// Sockets passed by systemd, and those that are asked for; by default one in the data folder.
///
/// # Errors
/// If a folder for a socket cannot be made.
pub fn listeners(listen: Vec<Address>, data: &Path) -> Result<Vec<Listen>, Problem> {
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

/// TLS of the NBD server. `trust` knows what was revoked.
///
/// # Errors
/// If the files are not there or do not fit.
pub fn nbd_tls(args: &NbdTlsArgs, trust: Option<Arc<Trust>>) -> Result<Tls, Problem> {
    let rule = args.nbd_tls.unwrap_or(if args.nbd_tls_dir.is_some() { NbdTls::Require } else { NbdTls::Off });
    let Some(dir) = args.nbd_tls_dir.as_deref().filter(|_| rule != NbdTls::Off) else {
        return match rule {
            NbdTls::Off => Ok(Tls::Off),
            _ => Err(Problem::usage("--nbd-tls needs the folder with its certificates: --nbd-tls-dir DIR")),
        };
    };
    let server = NbdServerTls::load(dir, trust).map_err(|e| Problem::failed(e.to_string()))?;
    Ok(if rule == NbdTls::Require { Tls::Require(Arc::new(server)) } else { Tls::Allow(Arc::new(server)) })
}

/// Runs until a signal.
///
/// # Errors
/// If something is in the way of the start.
pub fn run(args: UpArgs) -> Result<(), Problem> {
    let signals = signals::watch()?;
    screen::log(screen::INFO);
    let disks = parse_disks(&args.disks)?;
    let data = DataDir::create(&args.data.folder()?)?;
    let (ring, cache) = (args.ring.0, args.cache.into());
    let names: Vec<&str> = disks.iter().map(|d| d.name.as_str()).collect();
    let apps = crate::app::read(args.app_file.as_deref(), &names)?;
    let agent = AgentSettings {
        disks: disks.into_iter().map(|d| Disk { name: d.name, path: d.path, ring, cache, adopt: None }).collect(),
        listen: listeners(args.listen, data.path())?,
        sync_rate: args.sync_rate,
        point_every: Some(args.point_every).filter(|d| !d.is_zero()),
        foreign: args.on_foreign_write.into(),
        fence: args.on_fence.into(),
        resize: args.resize,
        take_disks: false,
        new_disks: (ring, cache),
        tls: nbd_tls(&args.tls, None)?,
        apps,
        reach: if args.no_protect { Reach::Nowhere } else { Reach::Here },
    };
    let mut appliance = ApplianceSettings::new(args.window, key_source(&args.key, data.path())?);
    appliance.min_free = args.min_free;
    appliance.tiers = args.tiers;
    let appliance = (!args.no_protect).then_some(appliance);
    serve::run(data, Settings { agent: Some(agent), appliance }, &signals)
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
}
