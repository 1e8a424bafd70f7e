//! A machine as a domain of libvirt (`virsh define`), for those who start machines themselves.
//!
//! After <https://libvirt.org/formatdomain.html>. What the description has and libvirt cannot say is not left out in silence:
//! it stands in a comment.

use crate::target::machine::{Board, Bus, Clock, Firmware, Machine};
use crate::target::network::{CardModel, Purpose, Target};
use crate::target::qemu::{DiskPlace, RECONNECT};
use std::fmt::Write;

/// Text between or inside the marks of XML.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            // XML 1.0 has no way to say them.
            c if c.is_control() && !matches!(c, '\n' | '\t') => {}
            c => out.push(c),
        }
    }
    out
}

/// A name of a disk in the guest, as libvirt wants one: `vda`, `sdb`.
fn device(prefix: &str, n: usize) -> String {
    let letter = char::from(b'a' + u8::try_from(n % 26).unwrap_or(0));
    format!("{prefix}{letter}")
}

/// The XML. `disks` are the places of the machine's disks, in its order; unix sockets must have absolute paths.
#[must_use]
pub fn domain(machine: &Machine, disks: &[DiskPlace], purpose: Purpose, kvm: bool, seed: u32) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut out, machine, disks, (purpose, kvm, seed));
    out
}

fn write(
    out: &mut String,
    m: &Machine,
    disks: &[DiskPlace],
    (purpose, kvm, seed): (Purpose, bool, u32),
) -> std::fmt::Result {
    writeln!(out, "<domain type='{}'>", if kvm { "kvm" } else { "qemu" })?;
    writeln!(out, "  <name>{}</name>", escaped(&m.name))?;
    if let Some(uuid) = m.uuid {
        writeln!(out, "  <uuid>{uuid}</uuid>")?;
    }
    writeln!(out, "  <memory unit='MiB'>{}</memory>", m.memory.0 >> 20)?;
    writeln!(out, "  <vcpu>{}</vcpu>", m.processors)?;
    system(out, m)?;
    writeln!(out, "  <features><acpi/><apic/></features>")?;
    if kvm {
        writeln!(out, "  <cpu mode='host-passthrough'/>")?;
    }
    writeln!(out, "  <clock offset='{}'/>", if m.clock == Clock::Utc { "utc" } else { "localtime" })?;
    writeln!(out, "  <on_crash>preserve</on_crash>")?;
    writeln!(out, "  <devices>")?;
    write_disks(out, m, disks)?;
    cards(out, m, purpose, seed)?;
    if m.console.serial {
        writeln!(out, "    <serial type='pty'/>")?;
    }
    if m.console.screen {
        writeln!(out, "    <graphics type='vnc' listen='127.0.0.1'/>")?;
        writeln!(out, "    <video><model type='vga'/></video>")?;
    }
    if m.guest_agent {
        writeln!(out, "    <channel type='unix'>")?;
        writeln!(out, "      <target type='virtio' name='org.qemu.guest_agent.0'/>")?;
        writeln!(out, "    </channel>")?;
    }
    writeln!(out, "  </devices>")?;
    for word in &m.extra {
        // Two dashes would end the comment.
        writeln!(out, "  <!-- argument of QEMU that is not in here: {} -->", escaped(word).replace('-', "&#45;"))?;
    }
    writeln!(out, "</domain>")
}

fn system(out: &mut String, m: &Machine) -> std::fmt::Result {
    let uefi = m.firmware == Firmware::Uefi;
    writeln!(out, "  <os{}>", if uefi && m.firmware_code.is_none() { " firmware='efi'" } else { "" })?;
    let board = if m.board == Board::Q35 { "q35" } else { "pc" };
    writeln!(out, "    <type arch='x86_64' machine='{board}'>hvm</type>")?;
    if let Some(code) = m.firmware_code.as_ref().filter(|_| uefi) {
        let code = escaped(&code.display().to_string());
        writeln!(out, "    <loader readonly='yes' type='pflash'>{code}</loader>")?;
        if let Some(variables) = &m.firmware_variables {
            writeln!(out, "    <nvram template='{}'/>", escaped(&variables.display().to_string()))?;
        }
    }
    if let Some(kernel) = &m.kernel {
        writeln!(out, "    <kernel>{}</kernel>", escaped(&kernel.image.display().to_string()))?;
        if let Some(initrd) = &kernel.initrd {
            writeln!(out, "    <initrd>{}</initrd>", escaped(&initrd.display().to_string()))?;
        }
        writeln!(out, "    <cmdline>{}</cmdline>", escaped(&kernel.arguments))?;
    }
    writeln!(out, "  </os>")
}

fn write_disks(out: &mut String, m: &Machine, disks: &[DiskPlace]) -> std::fmt::Result {
    let mut used = [0; 2];
    for (i, (disk, place)) in m.disks.iter().zip(disks).enumerate() {
        let (bus, prefix, row) = match disk.bus {
            Bus::Virtio => ("virtio", "vd", 0),
            Bus::Scsi => ("scsi", "sd", 1),
            // A q35 has no IDE but SATA.
            Bus::Ide if m.board == Board::Q35 => ("sata", "sd", 1),
            Bus::Ide => ("ide", "hd", 0),
        };
        let name = device(prefix, used[row]);
        used[row] += 1;
        let (export, host) = match place {
            DiskPlace::Unix { socket, export } => {
                (export, format!("<host transport='unix' socket='{}'/>", escaped(&socket.display().to_string())))
            }
            DiskPlace::Tcp { host, port, export } => {
                (export, format!("<host name='{}' port='{port}'/>", escaped(host)))
            }
        };
        writeln!(out, "    <disk type='network' device='disk'>")?;
        writeln!(out, "      <driver name='qemu' type='raw' cache='none' discard='unmap'/>")?;
        writeln!(out, "      <source protocol='nbd' name='{}'>", escaped(export))?;
        writeln!(out, "        {host}\n        <reconnect delay='{RECONNECT}'/>")?;
        writeln!(out, "      </source>")?;
        writeln!(out, "      <target dev='{name}' bus='{bus}'/>\n      <boot order='{}'/>", i + 1)?;
        writeln!(out, "    </disk>")?;
    }
    if m.disks.iter().any(|d| d.bus == Bus::Scsi) {
        writeln!(out, "    <controller type='scsi' model='virtio-scsi'/>")?;
    }
    Ok(())
}

fn cards(out: &mut String, m: &Machine, purpose: Purpose, seed: u32) -> std::fmt::Result {
    for (i, card) in m.cards.iter().enumerate() {
        let target = card.target(&m.networks, purpose);
        let mac = card.mac_here(&target, purpose, seed.wrapping_add(u32::try_from(i).unwrap_or(0)));
        let model = if card.model == CardModel::Virtio { "virtio" } else { "e1000e" };
        match &target {
            Target::Bridge(name) => {
                writeln!(out, "    <interface type='bridge'>\n      <source bridge='{}'/>", escaped(name))?;
            }
            Target::User => writeln!(out, "    <interface type='user'>")?,
            // A network that is in no file has to be defined first: libvirt says so at the start.
            Target::Isolated => {
                writeln!(
                    out,
                    "    <!-- a network without a way out: virsh net-define one of this name, without forward -->"
                )?;
                writeln!(out, "    <interface type='network'>\n      <source network='afterimage-isolated'/>")?;
            }
        }
        writeln!(out, "      <mac address='{mac}'/>\n      <model type='{model}'/>\n    </interface>")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_users_stay_texts() {
        let mut machine = Machine::parse(
            "version = 1\nname = \"m\"\nguest-agent = true\nextra = [\"--x\"]\n[[disk]]\nvolume = \"a'<b\"\nbus = \"ide\"\n\
             [[disk]]\nvolume = \"c\"\nbus = \"scsi\"\n[[network]]\nname = \"lan\"\n[[card]]\nnetwork = \"lan\"",
        )
        .unwrap();
        machine.console.screen = true;
        let disks = [
            DiskPlace::Unix { socket: "/run/a&b.sock".into(), export: "a'<b".to_owned() },
            DiskPlace::Tcp { host: "::1".to_owned(), port: 10809, export: "c".to_owned() },
        ];
        let xml = domain(&machine, &disks, Purpose::Test, false, 3);
        for part in [
            "<domain type='qemu'>",
            "name='a&apos;&lt;b'",
            "socket='/run/a&amp;b.sock'",
            "<target dev='sda' bus='sata'/>",
            "<target dev='sdb' bus='scsi'/>",
            "<host name='::1' port='10809'/>",
            "source network='afterimage-isolated'",
            "<mac address='52:54:00:00:00:03'/>",
            "not in here: &#45;&#45;x -->",
        ] {
            assert!(xml.contains(part), "{part} in {xml}");
        }
        // What is opened is closed, in order.
        let mut open = Vec::new();
        for tag in xml.split('<').skip(1).map(|t| t.split('>').next().unwrap()).filter(|t| !t.starts_with('!')) {
            match tag.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop(), Some(name)),
                None if tag.ends_with('/') => {}
                None => open.push(tag.split(' ').next().unwrap()),
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }
}
