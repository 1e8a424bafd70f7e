//! A machine as the command line of QEMU.
//!
//! All sockets have short names relative to the folder in which QEMU is started: the path of a unix socket has 107
//! bytes at most, and that of a data folder may be longer.

use crate::target::machine::{Board, Bus, Clock, Firmware, Machine};
use crate::target::network::{CardModel, Purpose};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::{Path, PathBuf};

/// The program.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// Names of sockets and files in the folder.
pub const QMP_SOCKET: &str = "qmp.sock";
/// The serial port.
pub const SERIAL_SOCKET: &str = "serial.sock";
/// QEMU's guest agent.
pub const AGENT_SOCKET: &str = "agent.sock";
/// The variables of a UEFI.
pub const VARIABLES: &str = "uefi-variables.fd";
/// Seconds for which the guest waits, without an error, for a disk whose server has gone.
pub const RECONNECT: u32 = 60;

/// Where distributions put a UEFI: code, and variables to begin with.
const UEFI: [(&str, &str); 4] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
];

/// Where a disk is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum DiskPlace {
    /// NBD at a unix socket.
    Unix {
        /// The socket.
        socket: PathBuf,
        /// The export's name.
        export: String,
    },
    /// NBD over TCP.
    Tcp {
        /// The server.
        host: String,
        /// Its port.
        port: u16,
        /// The export's name.
        export: String,
    },
}

/// What is decided at the start, beside the description.
#[derive(Debug, Clone)]
pub struct Start<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// Its disks, in its order.
    pub disks: &'a [DiskPlace],
    /// What it is started for.
    pub purpose: Purpose,
    /// Whether KVM is used.
    pub kvm: bool,
    /// Of this start: for MACs that are new.
    pub seed: u32,
    /// TCP ports of the guest that are reached from this host, on the first card that is not on a bridge.
    pub ports: &'a [u16],
}

/// The files of a UEFI: what the description says, or where they are found.
///
/// # Errors
/// What is missing.
pub fn uefi_files(machine: &Machine) -> Result<(PathBuf, PathBuf), String> {
    let found = UEFI.iter().find(|(code, variables)| Path::new(code).exists() && Path::new(variables).exists());
    let (code, variables) = found.map_or((None, None), |(c, v)| (Some(PathBuf::from(c)), Some(PathBuf::from(v))));
    let missing = |key: &str| {
        format!("machine {}: no UEFI was found on this host: install ovmf, or say where it is with {key}", machine.name)
    };
    Ok((
        machine.firmware_code.clone().or(code).ok_or_else(|| missing("firmware-code"))?,
        machine.firmware_variables.clone().or(variables).ok_or_else(|| missing("firmware-variables"))?,
    ))
}

/// A value inside an option of QEMU: commas are doubled.
fn escaped(text: &str) -> String {
    text.replace(',', ",,")
}

impl Start<'_> {
    /// The arguments. QEMU begins stopped: `cont` over QMP lets the guest run.
    ///
    /// # Errors
    /// If a file of the firmware is missing.
    pub fn arguments(&self) -> Result<Vec<String>, String> {
        let mut out = Arguments::default();
        self.base(&mut out)?;
        self.disks(&mut out);
        self.cards(&mut out);
        self.consoles(&mut out);
        out.0.extend(self.machine.extra.iter().cloned());
        Ok(out.0)
    }

    fn base(&self, out: &mut Arguments) -> Result<(), String> {
        let m = self.machine;
        out.add(&["-name", &format!("guest={},debug-threads=on", m.name), "-S", "-nodefaults", "-no-user-config"]);
        let board = if m.board == Board::Q35 { "q35" } else { "pc" };
        out.add(&["-machine", board]);
        out.add(&accelerator(self.kvm));
        out.add(&["-m", &format!("{}M", m.memory.0 >> 20), "-smp", &m.processors.to_string()]);
        if let Some(uuid) = m.uuid {
            out.add(&["-uuid", &uuid.to_string()]);
        }
        let base = if m.clock == Clock::Utc { "base=utc" } else { "base=localtime" };
        out.add(&["-rtc", base]);
        if m.firmware == Firmware::Uefi {
            let (code, _) = uefi_files(m)?;
            let code = escaped(&code.display().to_string());
            out.add(&["-drive", &format!("if=pflash,unit=0,format=raw,readonly=on,file={code}")]);
            out.add(&["-drive", &format!("if=pflash,unit=1,format=raw,file={VARIABLES}")]);
        }
        if let Some(kernel) = &m.kernel {
            out.add(&["-kernel", &kernel.image.display().to_string(), "-append", &kernel.arguments]);
            if let Some(initrd) = &kernel.initrd {
                out.add(&["-initrd", &initrd.display().to_string()]);
            }
        }
        Ok(())
    }

    fn disks(&self, out: &mut Arguments) {
        if self.machine.disks.iter().any(|d| d.bus == Bus::Scsi) {
            out.add(&["-device", "virtio-scsi-pci,id=scsi0"]);
        }
        let mut ide = 0;
        for (i, (disk, place)) in self.machine.disks.iter().zip(self.disks).enumerate() {
            out.add(&["-blockdev", &blockdev(i, place)]);
            let device = match disk.bus {
                Bus::Virtio => "virtio-blk-pci".to_owned(),
                Bus::Scsi => "scsi-hd,bus=scsi0.0".to_owned(),
                Bus::Ide => {
                    ide += 1;
                    match self.machine.board {
                        Board::Q35 => format!("ide-hd,bus=ide.{}", ide - 1),
                        Board::Pc => format!("ide-hd,bus=ide.{},unit={}", (ide - 1) / 2, (ide - 1) % 2),
                    }
                }
            };
            out.add(&["-device", &format!("{device},drive=disk{i},id=device{i},bootindex={}", i + 1)]);
        }
    }

    fn cards(&self, out: &mut Arguments) {
        let mut ports = self.ports;
        for (i, card) in self.machine.cards.iter().enumerate() {
            let target = card.target(&self.machine.networks, self.purpose);
            let id = format!("net{i}");
            let bridged = matches!(target, crate::target::network::Target::Bridge(_));
            let own = if bridged { &[] } else { std::mem::take(&mut ports) };
            out.add(&["-netdev", &card.netdev(&id, &target, own)]);
            let seed = self.seed.wrapping_add(u32::try_from(i).unwrap_or(0));
            let mac = card.mac_here(&target, self.purpose, seed);
            let model = if card.model == CardModel::Virtio { "virtio-net-pci" } else { "e1000e" };
            out.add(&["-device", &format!("{model},netdev={id},mac={mac}")]);
        }
    }

    fn consoles(&self, out: &mut Arguments) {
        let m = self.machine;
        let socket = |id: &str, path: &str| format!("socket,id={id},path={path},server=on,wait=off");
        out.add(&["-chardev", &socket("qmp", QMP_SOCKET), "-mon", "chardev=qmp,mode=control"]);
        out.add(&["-display", "none"]);
        if m.console.screen {
            out.add(&["-device", "VGA"]);
        }
        if m.console.serial {
            out.add(&["-chardev", &socket("serial", SERIAL_SOCKET), "-serial", "chardev:serial"]);
        }
        if m.guest_agent {
            out.add(&["-device", "virtio-serial-pci", "-chardev", &socket("agent", AGENT_SOCKET)]);
            out.add(&["-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]);
        }
    }
}

/// How the guest is run, and on which processor.
#[must_use]
pub const fn accelerator(kvm: bool) -> [&'static str; 4] {
    if kvm { ["-accel", "kvm", "-cpu", "host"] } else { ["-accel", "tcg,thread=multi", "-cpu", "max"] }
}

/// The backend of the disk with this number, as the value of `-blockdev`; its name is `disk` and the number.
#[must_use]
pub fn blockdev(i: usize, place: &DiskPlace) -> String {
    let (server, export) = match place {
        DiskPlace::Unix { socket, export } => (json!({"type": "unix", "path": socket}), export),
        DiskPlace::Tcp { host, port, export } => {
            (json!({"type": "inet", "host": host, "port": port.to_string()}), export)
        }
    };
    // The guest's own cache is the only one: every flush reaches the server.
    json!({
        "driver": "nbd", "node-name": format!("disk{i}"), "server": server, "export": export,
        "reconnect-delay": RECONNECT, "discard": "unmap", "cache": {"direct": true, "no-flush": false},
    })
    .to_string()
}

#[derive(Debug, Default)]
struct Arguments(Vec<String>);

impl Arguments {
    fn add(&mut self, words: &[&str]) {
        self.0.extend(words.iter().map(|&w| w.to_owned()));
    }
}

/// The command as a shell takes it, an option with its value on each line.
#[must_use]
pub fn shell(program: &str, arguments: &[String]) -> String {
    let mut out = program.to_owned();
    for word in arguments {
        out.push_str(if word.starts_with('-') { " \\\n    " } else { " " });
        out.push_str(&quoted(word));
    }
    out.push('\n');
    out
}

fn quoted(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_=.,:/+@%".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
#[path = "qemu_tests.rs"]
mod tests;
