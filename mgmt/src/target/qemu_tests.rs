use super::*;

fn places(machine: &Machine) -> Vec<DiskPlace> {
    let place = |(i, d): (usize, &crate::target::machine::Disk)| DiskPlace::Unix {
        socket: format!("disk{i}.sock").into(),
        export: d.volume.clone(),
    };
    machine.disks.iter().enumerate().map(place).collect()
}

fn line(machine: &Machine, ports: &[u16]) -> String {
    let start = Start { machine, disks: &places(machine), purpose: Purpose::Test, kvm: false, seed: 1, ports };
    start.arguments().unwrap().join(" ")
}

#[test]
fn a_plain_volume_is_a_plain_machine() {
    let text = line(&Machine::of_volume("disk"), &[]);
    for part in ["-S", "-m 1024M -smp 1", "-machine q35", "virtio-blk-pci,drive=disk0", r#""reconnect-delay":60"#] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("netdev") && !text.contains("VGA"), "{text}");
}

#[test]
fn every_bus_has_its_place_and_cards_are_isolated() {
    let machine = Machine::parse(
        "version = 1\nname = \"m\"\nboard = \"pc\"\nguest-agent = true\n[console]\nscreen = true\n\
         [[disk]]\nvolume = \"a\"\nbus = \"ide\"\n[[disk]]\nvolume = \"b\"\nbus = \"scsi\"\n\
         [[disk]]\nvolume = \"c,d\"\nbus = \"ide\"\n[[network]]\nname = \"lan\"\ntarget = \"bridge:br0\"\n\
         [[card]]\nnetwork = \"lan\"\n[[card]]\nnetwork = \"lan\"",
    )
    .unwrap();
    let text = line(&machine, &[22]);
    for part in [
        "ide-hd,bus=ide.0,unit=0,drive=disk0,id=device0,bootindex=1",
        "scsi-hd,bus=scsi0.0,drive=disk1",
        "ide-hd,bus=ide.0,unit=1,drive=disk2",
        r#""export":"c,d""#,
        "-netdev user,id=net0,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:0-10.0.2.15:22",
        "-netdev user,id=net1,restrict=on,ipv6=off -device",
        "mac=52:54:00:00:00:02",
        "name=org.qemu.guest_agent.0",
        "-device VGA",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("br0"), "a test is on no bridge: {text}");
}

#[test]
fn a_shell_reads_the_words_again() {
    let words = ["-a", "b c", "it's", "", "{\"x\":1}"].map(str::to_owned);
    let line = shell("echo", &words);
    assert_eq!(line, "echo \\\n    -a 'b c' 'it'\\''s' '' '{\"x\":1}'\n");
}
