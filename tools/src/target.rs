//! `afterimage target`: descriptions of machines, and whether this host can run them.
//!
//! Descriptions are files: `DATA/machines/NAME.toml`.

pub mod args;

use crate::files::kernel;
use crate::problem::Problem;
use crate::show::{put, put_json, table};
use crate::target::args::{AddArgs, CheckArgs, DescribeArgs, Form, KernelArgs, ListArgs, TargetCommand};
use afterimage_base::crashsafe;
use afterimage_mgmt::client::{ClientError, ControlClient};
use afterimage_mgmt::target::accelerator::kvm_works;
use afterimage_mgmt::target::domain::domain;
use afterimage_mgmt::target::machine::{Accelerator, Firmware, MAX_FILE, Machine, MachineError};
use afterimage_mgmt::target::network::{Purpose, Target};
use afterimage_mgmt::target::qemu::{DiskPlace, PROGRAM, Start, shell, uefi_files};
use serde::Serialize;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

fn failed(e: impl std::fmt::Display) -> Problem {
    Problem::failed(e.to_string())
}

/// Runs the command.
///
/// # Errors
/// As the command says.
pub fn run(command: TargetCommand) -> Result<(), Problem> {
    match command {
        TargetCommand::Add(a) => add(&a),
        TargetCommand::Ls(a) => list(&a),
        TargetCommand::Rm(a) => {
            let path = path_of(&a.data.folder()?, &a.name)?;
            std::fs::remove_file(&path).map_err(|e| Problem::file(&path, &e))
        }
        TargetCommand::Describe(a) => describe(&a),
        TargetCommand::Check(a) => check(&a),
        TargetCommand::Kernel(a) => kernel_of(&a),
    }
}

/// `target kernel`.
fn kernel_of(a: &KernelArgs) -> Result<(), Problem> {
    let data = a.data.folder()?;
    let kernel = match &a.from {
        Some(from) => kernel::take(&data, from)?,
        None if a.download => kernel::download(&data)?,
        None => kernel::find(&data)?,
    };
    if a.json {
        return put_json(&kernel);
    }
    let lacks = if kernel.lacks.is_empty() { String::new() } else { format!(", but not {}", kernel.lacks.join(", ")) };
    put(&format!(
        "`afterimage files` reads ext2, ext3, ext4, xfs, fat and ntfs with kernel {}{lacks}\n",
        kernel.version
    ))
}

fn machines(data: &Path) -> PathBuf {
    data.join("machines")
}

/// Where the description of a machine of this name is.
fn path_of(data: &Path, name: &str) -> Result<PathBuf, Problem> {
    // A machine of that name says whether it is one.
    Machine::of_volume(name).check().map_err(|e| Problem::usage(e.to_string()))?;
    Ok(machines(data).join(format!("{name}.toml")))
}

fn read(path: &Path) -> Result<Machine, Problem> {
    let mut text = String::new();
    let file = File::open(path).map_err(|e| Problem::file(path, &e))?;
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|e| Problem::file(path, &e))?;
    if text.len() as u64 > MAX_FILE {
        return Err(Problem::failed(format!("{} is no description of a machine: it is too long", path.display())));
    }
    Machine::parse(&text).map_err(|e: MachineError| Problem::failed(format!("{}: {e}", path.display())))
}

/// Whether a machine of this name is described in the data folder.
#[must_use]
pub fn is_described(data: &Path, name: &str) -> bool {
    path_of(data, name).is_ok_and(|path| path.exists())
}

/// The machine that `what` names: a file (with a slash, or `.toml` at the end), one that is described in the data folder, or a
/// plain one for the volume of that name.
///
/// # Errors
/// If its description cannot be used.
pub fn find(data: &Path, what: &str) -> Result<Machine, Problem> {
    if what.contains('/') || what.ends_with(".toml") {
        return read(Path::new(what));
    }
    let path = path_of(data, what)?;
    if path.exists() { read(&path) } else { Ok(Machine::of_volume(what)) }
}

fn add(a: &AddArgs) -> Result<(), Problem> {
    let data = a.data.folder()?;
    let machine = read(&a.file)?;
    let path = path_of(&data, &machine.name)?;
    crashsafe::create_folders(&machines(&data)).map_err(|e| Problem::file(&machines(&data), &e))?;
    let text = machine.to_toml().map_err(failed)?;
    crashsafe::replace(&path, text.as_bytes()).map_err(|e| Problem::file(&path, &e))?;
    put(&format!("machine {} is described in {}\n", machine.name, path.display()))
}

fn list(a: &ListArgs) -> Result<(), Problem> {
    let folder = machines(&a.data.folder()?);
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(&folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        other => Some(other.map_err(|e| Problem::file(&folder, &e))?),
    };
    for entry in entries.into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|e| e == "toml") {
            match read(&path) {
                Ok(machine) => found.push(machine),
                Err(e) => eprintln!("afterimage: {e}"),
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    if a.json {
        return put_json(&found);
    }
    let head = ["MACHINE", "DISKS", "MEMORY", "PROCESSORS"].map(str::to_owned).to_vec();
    let rows = found.iter().map(|m| {
        let disks: Vec<&str> = m.disks.iter().map(|d| d.volume.as_str()).collect();
        let memory = afterimage_mgmt::units::format_size(m.memory.0);
        vec![m.name.clone(), disks.join(","), memory, m.processors.to_string()]
    });
    put(&table(&std::iter::once(head).chain(rows).collect::<Vec<_>>()))
}

fn describe(a: &DescribeArgs) -> Result<(), Problem> {
    let data = a.data.folder()?;
    let machine = find(&data, &a.what)?;
    let purpose = if a.test { Purpose::Test } else { Purpose::Failover };
    let sockets = std::path::absolute(&a.sockets)?;
    let place =
        |volume: &String| DiskPlace::Unix { socket: sockets.join(format!("{volume}.sock")), export: volume.clone() };
    let disks: Vec<DiskPlace> = machine.disks.iter().map(|d| place(&d.volume)).collect();
    let seed = u32::from_be_bytes(afterimage_base::world::random_array()?);
    let kvm = match machine.accelerator {
        Accelerator::Kvm => true,
        Accelerator::Tcg => false,
        Accelerator::Auto => kvm_here().unwrap_or(false),
    };
    match a.form {
        Form::Toml => put(&machine.to_toml().map_err(failed)?),
        Form::Json => put_json(&machine),
        Form::Qemu => {
            let start = Start { machine: &machine, disks: &disks, purpose, kvm, seed, ports: &[] };
            let mut out = String::from("# Its disks have to be served first, each until the machine has ended:\n");
            for (disk, place) in machine.disks.iter().zip(&disks) {
                if let DiskPlace::Unix { socket, .. } = place {
                    let (volume, socket) = (&disk.volume, socket.display());
                    out.push_str(&format!(
                        "#   afterimage export {volume} --at WHEN --writable --listen unix:{socket}\n"
                    ));
                }
            }
            out.push_str("# It begins stopped: `cont` at its QMP socket lets it run; leave out -S for the same.\n");
            out.push_str(&shell(PROGRAM, &start.arguments().map_err(Problem::failed)?));
            put(&out)
        }
        Form::Libvirt => put(&domain(&machine, &disks, purpose, kvm, seed)),
    }
}

fn kvm_here() -> io::Result<bool> {
    let scratch = tempfile::tempdir()?;
    kvm_works(scratch.path())
}

/// What was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: String,
    ok: bool,
    says: String,
}

fn check(a: &CheckArgs) -> Result<(), Problem> {
    let data = a.data.folder()?;
    let machine = find(&data, &a.what)?;
    let findings = look(&data, &machine);
    let bad = findings.iter().filter(|f| !f.ok).count();
    if a.json {
        put_json(&findings)?;
    } else {
        let row = |f: &Finding| vec![if f.ok { "ok" } else { "PROBLEM" }.to_owned(), f.what.clone(), f.says.clone()];
        put(&table(&findings.iter().map(row).collect::<Vec<_>>()))?;
    }
    match bad {
        0 => Ok(()),
        1 => Err(Problem::failed(format!("machine {} cannot be run here: there is a problem", machine.name))),
        n => Err(Problem::failed(format!("machine {} cannot be run here: there are {n} problems", machine.name))),
    }
}

fn look(data: &Path, machine: &Machine) -> Vec<Finding> {
    let finding = |what: &str, found: Result<String, String>| {
        let ok = found.is_ok();
        Finding { what: what.to_owned(), ok, says: found.unwrap_or_else(|e| e) }
    };
    let mut out = vec![finding("description", Ok(format!("machine {}", machine.name)))];
    let version = Command::new(PROGRAM).arg("--version").output();
    let version = version.map_err(|e| format!("{PROGRAM} cannot be started ({e}): install qemu-system-x86"));
    out.push(finding("qemu", version.map(|o| first_line(&o.stdout))));
    if out.iter().all(|f| f.ok) && machine.accelerator != Accelerator::Tcg {
        let kvm = kvm_here().map_err(|e| e.to_string()).and_then(|works| match (works, machine.accelerator) {
            (true, _) => Ok("works".to_owned()),
            (false, Accelerator::Auto) => {
                Ok("does not work here: the machine is emulated, ten times slower".to_owned())
            }
            (false, _) => Err("does not work here: write accelerator = \"auto\"".to_owned()),
        });
        out.push(finding("kvm", kvm));
    }
    if machine.firmware == Firmware::Uefi {
        let files = uefi_files(machine).and_then(|(code, variables)| {
            readable(&code)?;
            readable(&variables).map(|()| code.display().to_string())
        });
        out.push(finding("uefi", files));
    }
    if let Some(kernel) = &machine.kernel {
        for file in std::iter::once(&kernel.image).chain(&kernel.initrd) {
            out.push(finding("kernel", readable(file).map(|()| file.display().to_string())));
        }
    }
    for card in &machine.cards {
        for purpose in [Purpose::Failover, Purpose::Test] {
            let to = card.target(&machine.networks, purpose);
            let word = if purpose == Purpose::Test { " in a test" } else { "" };
            out.push(finding(&format!("network {}{word}", card.network), network(&to)));
        }
    }
    let status = ControlClient::connect(data).and_then(|mut c| c.status());
    for disk in &machine.disks {
        let found = match &status {
            Ok(s) if s.volumes.iter().any(|v| v.name == disk.volume) => Ok("its history is here".to_owned()),
            Ok(_) => Err("no such volume: `afterimage status` shows those that are there".to_owned()),
            Err(e @ ClientError::NotRunning(_)) => Err(e.to_string()),
            Err(e) => Err(e.to_string()),
        };
        out.push(finding(&format!("volume {}", disk.volume), found));
    }
    out
}

fn first_line(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).lines().next().unwrap_or_default().chars().take(100).collect()
}

fn readable(path: &Path) -> Result<(), String> {
    File::open(path).map(drop).map_err(|e| format!("{}: {e}", path.display()))
}

fn network(to: &Target) -> Result<String, String> {
    match to {
        Target::Bridge(name) if !Path::new("/sys/class/net").join(name).join("bridge").exists() => {
            Err(format!("{to}: this host has no bridge {name}"))
        }
        _ => Ok(to.to_string()),
    }
}
