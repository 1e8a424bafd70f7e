//! `afterimage mount` and `umount`: a block device of a volume, or of the volume as it was, for as long as a mount lasts.
//!
//! A moment is mounted read-only. A file system that was in use at that moment has a journal to replay, and what people look
//! for is what a machine would find that lost its power then. So if there is, or may be, something to replay, the device
//! takes writes, which are forgotten, and the file system is mounted read-only on it. Only a file system that is known
//! to need nothing gets a device that takes no writes; that one outlives a restart of the process.

mod content;

use crate::problem::Problem;
use crate::show;
use afterimage_agent::app::mounts;
use afterimage_mgmt::attach::{AttachOptions, Attached};
use afterimage_mgmt::client::ControlClient;
use afterimage_mgmt::when::When;
use content::Content;
use serde::Serialize;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long the kernel may take to read a table of partitions.
const SCAN: Duration = Duration::from_secs(5);

/// What is to be mounted, and how.
#[derive(Debug)]
pub struct Options {
    /// The volume.
    pub volume: String,
    /// The moment; without it, the disk itself.
    pub at: Option<When>,
    /// A moment that takes writes, which are forgotten.
    pub writable: bool,
    /// The partition, if there are several with file systems.
    pub partition: Option<u32>,
    /// Options for `mount -o`.
    pub options: Option<String>,
    /// Where.
    pub dir: PathBuf,
}

#[derive(Serialize)]
struct Mounted<'a> {
    volume: &'a str,
    seq: Option<u64>,
    dir: String,
    device: String,
    #[serde(rename = "type")]
    kind: &'static str,
    writable: bool,
}

/// A file system that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    path: PathBuf,
    name: &'static str,
    clean: bool,
}

/// Attaches and mounts.
///
/// # Errors
/// What is missing or in the way; nothing stays attached then.
pub fn mount(data: &Path, options: &Options, json: bool) -> Result<(), Problem> {
    let dir = options.dir.canonicalize().map_err(|e| Problem::file(&options.dir, &e))?;
    if !dir.is_dir() {
        return Err(Problem::failed(format!("{} is not a folder", dir.display())));
    }
    let mut client = ControlClient::connect(data)?;
    let past = options.at.is_some();
    let wanted =
        AttachOptions { at: options.at.clone(), writable: options.writable, once: true, ..AttachOptions::default() };
    let mut attached = client.attach(&options.volume, wanted)?;
    let tried = find(Path::new(&attached.device), options.partition).and_then(|mut found| {
        if past && !options.writable && !found.clean {
            let old = attached.clone();
            let at = old.seq.map(When::Seq);
            let wanted = AttachOptions { at, writable: true, once: true, ..AttachOptions::default() };
            attached = client.attach(&options.volume, wanted)?;
            give_back(&mut client, &old);
            found = find(Path::new(&attached.device), options.partition)?;
        }
        run_mount(&found, past && !options.writable, past, options.options.as_deref(), &dir)?;
        Ok(found)
    });
    let found = match tried {
        Ok(found) => found,
        Err(problem) => {
            give_back(&mut client, &attached);
            return Err(problem);
        }
    };
    let writable = !past || options.writable;
    if json {
        let (dir, device) = (dir.display().to_string(), found.path.display().to_string());
        let done = Mounted { volume: &options.volume, seq: attached.seq, dir, device, kind: found.name, writable };
        return show::put(&format!("{}\n", serde_json::to_string(&done)?));
    }
    let when = attached.seq.map_or_else(String::new, |seq| format!(" as it was after write @{seq}"));
    let how = match (past, writable) {
        (false, _) => "",
        (true, true) => ", what is written is forgotten at umount",
        (true, false) => ", read-only",
    };
    let (at, device) = (dir.display(), found.path.display());
    show::put(&format!("{at}: {}{when}, {} on {device}{how}\n", options.volume, found.name))
}

/// Detaches a device that was attached for a mount which is not to be.
fn give_back(client: &mut ControlClient, attached: &Attached) {
    if attached.once
        && let Err(e) = client.detach(&attached.device)
    {
        eprintln!("afterimage: {e}");
    }
}

/// The file system of a device: on the whole of it, or on its only partition that has one, or on the one that is named.
fn find(device: &Path, partition: Option<u32>) -> Result<Found, Problem> {
    let read = |path: &Path| content::look(path).map_err(|e| Problem::file(path, &e));
    let system = |path: &Path, content| match content {
        Content::FileSystem { name, clean } => Some(Found { path: path.to_owned(), name, clean }),
        _ => None,
    };
    let whole = read(device)?;
    if let (None, Some(found)) = (partition, system(device, whole)) {
        return Ok(found);
    }
    let mut known = Vec::new();
    let mut found = Vec::new();
    for number in partitions(device)? {
        let path = PathBuf::from(format!("{}p{number}", device.display()));
        let content = read(&path)?;
        known.push(format!("{number} ({})", describe(content)));
        if partition.is_none_or(|n| n == number) {
            found.extend(system(&path, content));
        }
    }
    let list = known.join(", ");
    match (partition, found.len()) {
        (_, 1) => Ok(found.remove(0)),
        (None, 0) if known.is_empty() => Err(Problem::failed(format!(
            "there is no file system that is known here, but {}; `afterimage attach` makes a block device of the volume",
            describe(whole)
        ))),
        (None, 0) => {
            Err(Problem::failed(format!("none of the partitions has a file system that is known here: {list}")))
        }
        (None, _) => Err(Problem::failed(format!("there are several file systems, name one with --partition: {list}"))),
        (Some(n), _) if known.is_empty() => {
            Err(Problem::failed(format!("there is no partition {n}: the disk has no table of partitions")))
        }
        (Some(n), _) => Err(Problem::failed(format!("partition {n} has no file system that is known here: {list}"))),
    }
}

fn describe(content: Content) -> &'static str {
    match content {
        Content::FileSystem { name, .. } => name,
        Content::Other(what) => what,
        Content::Unknown => "nothing that is known",
    }
}

/// The numbers of a device's partitions.
fn partitions(device: &Path) -> Result<Vec<u32>, Problem> {
    let name = device.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let folder = PathBuf::from("/sys/class/block").join(name);
    let wanted = content::has_partition_table(device).map_err(|e| Problem::file(device, &e))?;
    let start = Instant::now();
    loop {
        let entries = std::fs::read_dir(&folder).map_err(|e| Problem::file(&folder, &e))?;
        let names = entries.flatten().filter_map(|e| e.file_name().into_string().ok());
        let number = |n: String| n.strip_prefix(name)?.strip_prefix('p')?.parse().ok();
        let mut found: Vec<u32> = names.filter_map(number).collect();
        let ready = found.iter().all(|n| Path::new(&format!("{}p{n}", device.display())).exists());
        if (ready && (!found.is_empty() || !wanted)) || start.elapsed() > SCAN {
            found.sort_unstable();
            return Ok(found);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn run_mount(found: &Found, read_only: bool, past: bool, more: Option<&str>, dir: &Path) -> Result<(), Problem> {
    let mut options = vec![if read_only { "ro" } else { "rw" }];
    // The disk itself may be mounted, too, and has the same id.
    options.extend((past && found.name == "xfs").then_some("nouuid"));
    options.extend(more);
    let mut command = Command::new("mount");
    command.args(["-t", found.name, "-o", &options.join(",")]).arg(&found.path).arg(dir);
    let hint = || match found.name {
        name if is_known(name) => String::new(),
        name => {
            format!(". This kernel does not know {name}: `modprobe {name}`, or install the package with its modules")
        }
    };
    run(command).map_err(|e| Problem::failed(format!("{}: {e}{}", dir.display(), hint())))
}

fn is_known(name: &str) -> bool {
    let list = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    list.lines().any(|l| l.split_whitespace().last() == Some(name))
}

/// Runs a program; what it says on errors is the error.
fn run(mut command: Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    match command.stdin(Stdio::null()).output() {
        Ok(out) if out.status.success() => Ok(()),
        Ok(out) => Err(String::from_utf8_lossy(&out.stderr).trim().to_owned()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(format!("the program {name} is not there: install the package mount"))
        }
        Err(e) => Err(format!("{name}: {e}")),
    }
}

#[derive(Serialize)]
struct Unmounted {
    dir: String,
    device: String,
    detached: bool,
}

/// Unmounts, and detaches the device that was attached for that.
///
/// # Errors
/// If nothing of ours is mounted there, or it is in use.
pub fn umount(data: &Path, dir: &Path, json: bool) -> Result<(), Problem> {
    let dir = dir.canonicalize().map_err(|e| Problem::file(dir, &e))?;
    let top = mounts::mounts().into_iter().rfind(|m| m.point == dir);
    let top = top.ok_or_else(|| Problem::failed(format!("nothing is mounted at {}", dir.display())))?;
    let mut client = ControlClient::connect(data)?;
    let devices: Vec<Attached> = client.status()?.volumes.into_iter().flat_map(|v| v.devices).collect();
    let on = |d: &Attached| mounts::mounts_of(&[PathBuf::from(&d.device)]);
    let attached = devices.into_iter().find(|d| on(d).contains(&top)).ok_or_else(|| {
        let (dir, source) = (dir.display(), top.source.display());
        Problem::failed(format!(
            "what is mounted at {dir} is {source}, and not attached by this process: use `umount {dir}`"
        ))
    })?;
    let mut command = Command::new("umount");
    command.arg(&dir);
    run(command).map_err(|e| Problem::failed(format!("{}: {e}", dir.display())))?;
    // Another partition of it may be mounted still.
    let detached = attached.once && on(&attached).is_empty();
    if detached {
        client.detach(&attached.device)?;
    }
    let device = attached.device;
    if json {
        let done = Unmounted { dir: dir.display().to_string(), device, detached };
        return show::put(&format!("{}\n", serde_json::to_string(&done)?));
    }
    let rest = if detached { "is detached" } else { "stays attached" };
    show::put(&format!("{} is unmounted, {device} {rest}\n", dir.display()))
}
