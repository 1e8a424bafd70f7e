//! The description of a machine: what hardware its guest is to find.
//!
//! ```toml
//! version = 1
//! name = "web"
//! memory = "2GiB"
//! processors = 2
//! firmware = "bios"               # or "uefi"
//!
//! [[disk]]                        # in this order; the first one is booted from
//! volume = "web"
//! bus = "virtio"                  # or "scsi", "ide"
//!
//! [[network]]                     # a network of the place that the machine comes from
//! name = "lan"
//! target = "bridge:br0"           # what stands for it here: "bridge:NAME", "user" or "isolated"
//! test = "isolated"               # the same in a test
//!
//! [[card]]
//! network = "lan"
//! mac = "52:54:00:12:34:56"
//! ```
//!
//! docs/recovery.md has all keys. One that is not known is an error, and so is another version.

use crate::target::network::{Card, Network};
use crate::units::{format_size, parse_size};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::collections::BTreeSet;
use std::path::PathBuf;
use thiserror::Error;
use uuid::Uuid;

/// The version of the file.
pub const VERSION: u32 = 1;
/// Longest file in bytes; a machine with all that is allowed needs less.
pub const MAX_FILE: u64 = 256 << 10;
/// Most disks: that many have places on a bus and names in a guest (`vda` to `vdz`).
pub const MAX_DISKS: usize = 26;
/// Most cards: what a machine of QEMU has slots for beside its disks.
pub const MAX_CARDS: usize = 8;
/// Most places of the ide bus: the ports of the chip of a q35.
const MAX_IDE: usize = 6;
const MAX_EXTRA: usize = 256;

/// Why a description cannot be used.
#[derive(Debug, Error)]
pub enum MachineError {
    /// Not TOML, or not these keys.
    #[error("the description of a machine was not understood: {0}")]
    Toml(#[from] toml::de::Error),
    /// Of another version.
    #[error(
        "the description of machine {name} is of version {found}, this program reads version {VERSION}: use the program that wrote it"
    )]
    Version {
        /// The machine.
        name: String,
        /// What the file says.
        found: u32,
    },
    /// Something in it cannot be.
    #[error("machine {name}: {what}")]
    Invalid {
        /// The machine.
        name: String,
        /// What is wrong, and what would be right.
        what: String,
    },
}

/// A size in bytes, written as `2GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        // Every digit counts: what is no whole number of a unit is written in bytes.
        let text = format_size(self.0).replace(' ', "");
        let exact = parse_size(&text) == Ok(self.0);
        s.serialize_str(&if exact { text } else { self.0.to_string() })
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        parse_size(&String::deserialize(d)?).map(Size).map_err(de::Error::custom)
    }
}

/// What starts before the guest's system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    /// A PC's BIOS (SeaBIOS).
    #[default]
    Bios,
    /// UEFI (OVMF); its variables begin anew with each start.
    Uefi,
}

/// The board.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Board {
    /// With PCI Express; what new machines have.
    #[default]
    Q35,
    /// The older one (i440FX).
    Pc,
}

/// How the guest's instructions are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accelerator {
    /// With KVM where it works, else emulated.
    #[default]
    Auto,
    /// By the processor (KVM).
    Kvm,
    /// Emulated: ten times slower, and anywhere.
    Tcg,
}

/// What time the guest's clock shows at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clock {
    /// UTC: Linux.
    #[default]
    Utc,
    /// This host's local time: Windows.
    Local,
}

/// How a disk is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bus {
    /// virtio-blk.
    #[default]
    Virtio,
    /// virtio-scsi.
    Scsi,
    /// The board's SATA or IDE ports: any guest has the driver.
    Ide,
}

/// A disk of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Disk {
    /// The volume.
    pub volume: String,
    /// How it is connected.
    #[serde(default)]
    pub bus: Bus,
}

/// A kernel that is started without a boot loader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Kernel {
    /// The file of the kernel.
    pub image: PathBuf,
    /// The file of the first file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// The command line.
    #[serde(default)]
    pub arguments: String,
}

/// What a guest shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Console {
    /// A serial port.
    #[serde(default = "yes")]
    pub serial: bool,
    /// A screen; screenshots need it.
    #[serde(default)]
    pub screen: bool,
    /// Text on the serial port by which one sees that the guest has booted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booted: Option<String>,
}

impl Default for Console {
    fn default() -> Self {
        Self { serial: true, screen: false, booted: None }
    }
}

const fn yes() -> bool {
    true
}

const fn is_false(value: &bool) -> bool {
    !*value
}

/// A machine. What it says was checked ([`Machine::check`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Machine {
    /// [`VERSION`].
    pub version: u32,
    /// Its name.
    pub name: String,
    /// What its firmware tells the guest as the machine's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// Its memory.
    #[serde(default = "default_memory")]
    pub memory: Size,
    /// Its processors.
    #[serde(default = "one")]
    pub processors: u32,
    /// What starts first.
    #[serde(default)]
    pub firmware: Firmware,
    /// The file of a UEFI; found by itself if it is where distributions put it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware_code: Option<PathBuf>,
    /// The file with its variables as they are to be at the start; it is copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware_variables: Option<PathBuf>,
    /// The board.
    #[serde(default)]
    pub board: Board,
    /// How its instructions are run.
    #[serde(default)]
    pub accelerator: Accelerator,
    /// Its clock.
    #[serde(default)]
    pub clock: Clock,
    /// Whether QEMU's guest agent runs in it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub guest_agent: bool,
    /// More arguments of QEMU, as they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra: Vec<String>,
    /// What it shows.
    #[serde(default)]
    pub console: Console,
    /// A kernel without a boot loader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Kernel>,
    /// Its disks.
    #[serde(rename = "disk")]
    pub disks: Vec<Disk>,
    /// The networks that it knows.
    #[serde(default, rename = "network", skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<Network>,
    /// Its cards.
    #[serde(default, rename = "card", skip_serializing_if = "Vec::is_empty")]
    pub cards: Vec<Card>,
}

const fn default_memory() -> Size {
    Size(1 << 30)
}

const fn one() -> u32 {
    1
}

impl Machine {
    /// The machine for a single volume, until somebody says more: 1 GiB, one processor, BIOS, no network.
    #[must_use]
    pub fn of_volume(volume: &str) -> Machine {
        Machine {
            version: VERSION,
            name: volume.to_owned(),
            uuid: None,
            memory: default_memory(),
            processors: one(),
            firmware: Firmware::default(),
            firmware_code: None,
            firmware_variables: None,
            board: Board::default(),
            accelerator: Accelerator::default(),
            clock: Clock::default(),
            guest_agent: false,
            extra: Vec::new(),
            console: Console::default(),
            kernel: None,
            disks: vec![Disk { volume: volume.to_owned(), bus: Bus::default() }],
            networks: Vec::new(),
            cards: Vec::new(),
        }
    }

    /// Reads and checks a file's text.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn parse(text: &str) -> Result<Machine, MachineError> {
        // The version first: a newer one may have keys that are not known here.
        #[derive(Deserialize)]
        struct Head {
            version: u32,
            #[serde(default)]
            name: String,
        }
        let head: Head = toml::from_str(text)?;
        if head.version != VERSION {
            return Err(MachineError::Version { name: head.name, found: head.version });
        }
        let machine: Machine = toml::from_str(text)?;
        machine.check()?;
        Ok(machine)
    }

    /// The text of a file that says the same.
    ///
    /// # Errors
    /// If it cannot be written as TOML, which no description that was checked is.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string_pretty(self)
    }

    /// Checks what the description says, without a look at this host.
    ///
    /// # Errors
    /// [`MachineError::Invalid`] with the first thing that cannot be.
    pub fn check(&self) -> Result<(), MachineError> {
        self.find_fault().map_or(Ok(()), |what| Err(MachineError::Invalid { name: self.name.clone(), what }))
    }

    fn find_fault(&self) -> Option<String> {
        if !is_word(&self.name, 64) {
            return Some(format!("'{}' is no name: use 1 to 64 letters, digits, dots, dashes, underscores", self.name));
        }
        let mib = 1 << 20;
        if !(16 * mib..=16 << 40).contains(&self.memory.0) || !self.memory.0.is_multiple_of(mib) {
            return Some("its memory must be whole MiB, from 16MiB to 16TiB".to_owned());
        }
        if !(1..=1024).contains(&self.processors) {
            return Some(format!("it cannot have {} processors: write 1 to 1024", self.processors));
        }
        if self.firmware == Firmware::Bios && (self.firmware_code.is_some() || self.firmware_variables.is_some()) {
            return Some("firmware-code and firmware-variables belong to firmware = \"uefi\"".to_owned());
        }
        let paths = [&self.firmware_code, &self.firmware_variables].into_iter().flatten();
        let kernel = self.kernel.iter().flat_map(|k| std::iter::once(&k.image).chain(&k.initrd));
        if let Some(path) = paths.chain(kernel).find(|p| !p.is_absolute()) {
            return Some(format!("{} must be an absolute path", path.display()));
        }
        let words = self.extra.iter().chain(&self.console.booted).chain(self.kernel.iter().map(|k| &k.arguments));
        if words.clone().any(|w| w.contains('\0') || w.len() > 4096) || self.extra.len() > MAX_EXTRA {
            return Some(format!("a text has more than 4096 bytes or a zero in it, or extra more than {MAX_EXTRA}"));
        }
        if self.console.booted.as_ref().is_some_and(|b| b.is_empty() || !self.console.serial) {
            return Some("console.booted is a text on the serial port: it needs serial = true".to_owned());
        }
        self.find_fault_of_disks().or_else(|| self.find_fault_of_cards())
    }

    fn find_fault_of_disks(&self) -> Option<String> {
        if self.disks.is_empty() || self.disks.len() > MAX_DISKS {
            return Some(format!("it has {} disks: 1 to {MAX_DISKS} can be", self.disks.len()));
        }
        let mut seen = BTreeSet::new();
        for disk in &self.disks {
            // The name itself is checked by who has the volume.
            if disk.volume.is_empty() || disk.volume.len() > 255 || disk.volume.chars().any(char::is_control) {
                return Some("a disk has no proper volume".to_owned());
            }
            if !seen.insert(&disk.volume) {
                return Some(format!("volume {} is there twice", disk.volume));
            }
        }
        let ide = self.disks.iter().filter(|d| d.bus == Bus::Ide).count();
        let most = if self.board == Board::Q35 { MAX_IDE } else { 4 };
        (ide > most).then(|| format!("its board has {most} ide ports, not {ide}: use bus = \"scsi\""))
    }

    fn find_fault_of_cards(&self) -> Option<String> {
        if self.cards.len() > MAX_CARDS {
            return Some(format!("it has {} cards: at most {MAX_CARDS} can be", self.cards.len()));
        }
        let mut names = BTreeSet::new();
        for network in &self.networks {
            if !is_word(&network.name, 64) || !names.insert(network.name.as_str()) {
                return Some(format!("network '{}' is no name, or there twice", network.name));
            }
        }
        let mut macs = BTreeSet::new();
        for card in &self.cards {
            if !names.contains(card.network.as_str()) {
                return Some(format!("a card is in network '{}', which no [[network]] describes", card.network));
            }
            if card.mac.is_some_and(|m| !macs.insert(m)) {
                return Some("two cards have the same mac".to_owned());
            }
            if card.gateway.is_some_and(|g| card.address.is_none_or(|a| !a.contains(g))) {
                return Some("the gateway of a card is not in the network of its address".to_owned());
            }
        }
        None
    }
}

/// A short name that needs no quotes anywhere.
pub(crate) fn is_word(text: &str, most: usize) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    !text.is_empty() && text.len() <= most && text.bytes().all(plain) && !text.starts_with(['.', '-'])
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
