//! Whether KVM works on this host.
//!
//! A host may have `/dev/kvm` and still not run a guest with it: inside some virtual machines a guest stands still at its first
//! instructions. So it is tried: a boot sector of eight bytes of code that ends QEMU with a status nobody else gives. That takes a fifth of a
//! second where KVM works.

use crate::target::qemu::PROGRAM;
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A working KVM needs a small part of it.
const LIMIT: Duration = Duration::from_secs(3);
/// What the boot sector writes to the port becomes twice it plus one.
const STATUS: i32 = 33;
/// `mov al, 16; out 0xf4, al; hlt; jmp back to the hlt`.
const CODE: [u8; 7] = [0xb0, 0x10, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd];
const FLOPPY: usize = 1_474_560;

/// Tries it. `scratch` is a folder for a file that is gone afterwards.
///
/// # Errors
/// If the file cannot be made, or QEMU not be started.
pub fn kvm_works(scratch: &Path) -> io::Result<bool> {
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(false);
    }
    let path = scratch.join("kvm-trial.img");
    let mut image = vec![0; FLOPPY];
    image[..CODE.len()].copy_from_slice(&CODE);
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    std::fs::write(&path, image)?;
    let works = boots(scratch, "kvm-trial.img");
    let removed = std::fs::remove_file(&path);
    works.and_then(|w| removed.map(|()| w))
}

fn boots(folder: &Path, image: &str) -> io::Result<bool> {
    let mut child = Command::new(PROGRAM)
        .args(["-accel", "kvm", "-m", "16", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        .args(["-drive", &format!("file={image},format=raw,if=floppy,readonly=on")])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code() == Some(STATUS));
        }
        if start.elapsed() > LIMIT {
            // It may have ended meanwhile.
            drop(child.kill());
            child.wait()?;
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The same, tried once for each boot of the host: what was found is kept in the folder.
///
/// # Errors
/// As [`kvm_works`], or if the file cannot be written.
pub fn kvm_works_here(folder: &Path) -> io::Result<bool> {
    let (known, boot) = (folder.join("kvm"), format!("{:032x}", afterimage_base::world::boot_id()?));
    if let Some((of, found)) = std::fs::read_to_string(&known).ok().as_deref().and_then(|t| t.trim().split_once(' '))
        && of == boot
    {
        return Ok(found == "works");
    }
    // Beside each other, two that try do not meet.
    let scratch = tempfile_in(folder)?;
    let works = kvm_works(&scratch);
    std::fs::remove_dir_all(&scratch)?;
    let works = works?;
    let text = format!("{boot} {}\n", if works { "works" } else { "fails" });
    afterimage_base::crashsafe::replace(&known, text.as_bytes())?;
    Ok(works)
}

fn tempfile_in(folder: &Path) -> io::Result<std::path::PathBuf> {
    let scratch = folder.join(format!(".new-kvm-{}", std::process::id()));
    std::fs::create_dir_all(&scratch)?;
    Ok(scratch)
}
