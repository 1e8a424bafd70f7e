use super::*;

const WHOLE: &str = r#"
version = 1
name = "web"
uuid = "0b8f0e3e-9d2f-4a53-8ad5-2f1d8c7a6b5e"
memory = "1.5GiB"
processors = 2
firmware = "uefi"
firmware-code = "/fw/code.fd"
firmware-variables = "/fw/vars.fd"
board = "q35"
accelerator = "tcg"
clock = "local"
guest-agent = true
extra = ["-device", "virtio-rng-pci"]

[console]
serial = true
screen = true
booted = "login:"

[kernel]
image = "/boot/vmlinuz"
arguments = "console=ttyS0"

[[disk]]
volume = "web"

[[disk]]
volume = "web-data"
bus = "scsi"

[[network]]
name = "lan"
target = "bridge:br0"

[[card]]
network = "lan"
mac = "52:54:00:12:34:56"
address = "192.168.7.15/24"
gateway = "192.168.7.1"
"#;

#[test]
fn a_description_comes_back_the_same() {
    let machine = Machine::parse(WHOLE).unwrap();
    assert_eq!((machine.memory, machine.disks.len()), (Size(3 << 29), 2));
    assert_eq!(Machine::parse(&machine.to_toml().unwrap()).unwrap(), machine);
    let plain = Machine::of_volume("disk");
    assert_eq!(Machine::parse(&plain.to_toml().unwrap()).unwrap(), plain);
    assert_eq!(Machine::parse("version = 1\nname = \"disk\"\n[[disk]]\nvolume = \"disk\"").unwrap(), plain);
}

#[test]
fn what_cannot_be_is_named() {
    for (from, to, says) in [
        ("version = 1", "version = 2", "version 2"),
        ("processors = 2", "processors = 0", "processors"),
        ("processors = 2", "procesors = 2", "procesors"),
        ("1.5GiB", "1.5MB", "not a size"),
        ("1.5GiB", "1MiB", "memory"),
        ("name = \"web\"", "name = \"../web\"", "no name"),
        ("web-data", "web", "twice"),
        ("/boot/vmlinuz", "vmlinuz", "absolute"),
        ("firmware = \"uefi\"", "firmware = \"bios\"", "uefi"),
        ("network = \"lan\"", "network = \"wan\"", "'wan'"),
        ("192.168.7.1\"", "192.168.8.1\"", "gateway"),
        ("bridge:br0", "bridge:br0,x", "bridge:NAME"),
        ("serial = true", "serial = false", "booted"),
        ("bus = \"scsi\"", "bus = \"nvme\"", "nvme"),
    ] {
        assert!(WHOLE.contains(from), "{from}");
        let error = Machine::parse(&WHOLE.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(error.contains(says), "{from} -> {to}: {error}");
    }
    assert!(Machine::parse("version = 1\nname = \"x\"\ndisk = []").unwrap_err().to_string().contains("0 disks"));
    assert!(Machine::parse("").is_err());
}
