//! What a guest is booted from: the builds of vm-images/build.sh, and whether KVM can run them.

use crate::binary::{repository, target_and_profile};
use crate::tool::{Tool, tool};
use afterimage_base::cpio::{self, Entry};
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

const BUILD: Duration = Duration::from_secs(1800);
/// A guest under a KVM that works is up in a second or two.
const KVM_BOOT: Duration = Duration::from_secs(10);

fn recipe() -> Tool {
    let (target, profile) = target_and_profile();
    // What is measured is to be a release, whatever measures it.
    let profile = std::env::var("AFTERIMAGE_VM_PROFILE").unwrap_or(profile);
    let recipe = tool(repository().join("vm-images/build.sh")).deadline(BUILD);
    recipe.env("CARGO_TARGET_DIR", target).env("AFTERIMAGE_VM_PROFILE", profile)
}

/// The folder with kernel, initramfs and root disk, which are built if need be.
pub(crate) fn folder() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let built = recipe().run();
        PathBuf::from(built.stdout.trim_end())
    })
}

/// A static `afterimage`, of this checkout and this profile, or that of `AFTERIMAGE_VM_PROFILE`.
pub(crate) fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let built = recipe().arg("--binary").run();
        PathBuf::from(built.stdout.trim_end())
    })
}

/// Puts the archive of a guest's start together, with these programs; returns its size in bytes.
pub(crate) fn write_initrd(to: &Path, programs: &[&str], files: &[Entry]) -> u64 {
    let write = || -> std::io::Result<u64> {
        let mut out = BufWriter::new(File::create(to)?);
        let archives = programs.iter().map(|name| format!("{name}.cpio"));
        for part in std::iter::once("initramfs".to_owned()).chain(archives) {
            std::io::copy(&mut File::open(folder().join(part))?, &mut out)?;
        }
        cpio::write(&mut out, files)?;
        out.into_inner()?.metadata().map(|file| file.len())
    };
    write().unwrap_or_else(|e| panic!("write {}: {e}", to.display()))
}

/// QEMU's accelerator and processor. KVM is used only where this guest was seen to boot with it: there are machines that have
/// /dev/kvm and cannot run a kernel as it comes. `AFTERIMAGE_VM_ACCEL` (tcg or kvm) says it without a trial.
pub(crate) fn accelerator() -> [&'static str; 4] {
    static KVM: OnceLock<bool> = OnceLock::new();
    let kvm = *KVM.get_or_init(|| match std::env::var("AFTERIMAGE_VM_ACCEL").as_deref() {
        Ok("kvm") => true,
        Ok("tcg") => false,
        Ok(other) => panic!("AFTERIMAGE_VM_ACCEL is {other}, and neither tcg nor kvm"),
        Err(_) => kvm_works(),
    });
    if kvm { ["-accel", "kvm", "-cpu", "host"] } else { ["-accel", "tcg,thread=multi", "-cpu", "max"] }
}

/// Found out once for each build of the guest and each boot of this machine.
fn kvm_works() -> bool {
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return false;
    }
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let known = folder().join(format!("kvm-{}", boot.trim()));
    if let Ok(text) = std::fs::read_to_string(&known) {
        return text == "works";
    }
    let works = boots_with_kvm();
    let fresh = known.with_extension(std::process::id().to_string());
    let kept =
        std::fs::write(&fresh, if works { "works" } else { "fails" }).and_then(|()| std::fs::rename(&fresh, &known));
    kept.unwrap_or_else(|e| panic!("write {}: {e}", known.display()));
    works
}

fn boots_with_kvm() -> bool {
    let script = tempfile::NamedTempFile::new().expect("make a script file");
    std::fs::write(script.path(), "echo a guest is running").expect("write a script file");
    let image = folder();
    let mut command = tool("qemu-system-x86_64")
        .args(["-accel", "kvm", "-cpu", "host", "-m", "256", "-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-serial", "stdio", "-append", "console=ttyS0 quiet panic=-1"])
        .arg("-kernel")
        .arg(image.join("vmlinuz"))
        .arg("-initrd")
        .arg(image.join("initramfs"))
        .arg("-fw_cfg")
        .arg(format!("name=opt/afterimage/script,file={}", script.path().display()))
        .into_command();
    let said = tempfile::tempfile().expect("make a scratch file");
    let output = said.try_clone().expect("share a scratch file");
    command.stdin(Stdio::null()).stdout(output).stderr(Stdio::null());
    let Ok(mut child) = crate::process::spawn(command) else { return false };
    let ended = crate::tool::wait(&mut child, KVM_BOOT);
    ended.is_some() && crate::tool::content(&said).contains("script ended with status 0")
}
