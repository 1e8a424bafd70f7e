//! The kernel of the guest that reads file systems: one that Linux distributions ship, with the few modules that it needs.
//!
//! It is taken once, from this host or from a package, and kept in `DATA/guest`: `vmlinuz`, `modules.cpio` (an archive for the
//! initramfs, in the order of loading) and `version`.

use super::inside::MODULES;
use super::scratch::Scratch;
use crate::problem::Problem;
use afterimage_base::cpio::{self, Entry};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Modules that are wanted, those that they name as needed come before them. Sums that file systems look up by name at run time
/// stand in no list of dependencies. What is built into a kernel has no file.
const WANTED: [&str; 17] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "crc32c_generic",
    "crc32c_cryptoapi",
    "crc32_generic",
    "libcrc32c",
    "crc32c_intel",
    "nls_utf8",
    "nls_ascii",
    "nls_iso8859_1",
    "nls_cp437",
    "ext4",
    "xfs",
    "vfat",
    "ntfs3",
    "crc16",
];
/// Without these something cannot be read: the module, and what.
const NEEDED: [(&str, &str); 5] =
    [("virtio_blk", "any disk"), ("ext4", "ext4"), ("xfs", "xfs"), ("vfat", "fat"), ("ntfs3", "ntfs")];
/// Names in a list of folders are looked through so deep.
const DEEP: usize = 12;

/// A kernel that is kept.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Kernel {
    /// Its version.
    pub version: String,
    /// The kernel.
    pub image: PathBuf,
    /// Its modules.
    pub modules: PathBuf,
    /// What it cannot read.
    pub lacks: Vec<String>,
}

fn kept(data: &Path) -> PathBuf {
    data.join("guest")
}

/// The kernel that is kept in the data folder; if there is none yet, one of this host is taken.
///
/// # Errors
/// If there is none, with what to do.
pub fn find(data: &Path) -> Result<Kernel, Problem> {
    if let Some(kernel) = read(data)? {
        return Ok(kernel);
    }
    take_from_root(data, Path::new("/")).map_err(|e| {
        Problem::failed(format!(
            "files are read by a small guest, which needs a Linux kernel, and this host has none for it ({e}): \
             `afterimage target kernel PACKAGE.deb` takes one from a package, `afterimage target kernel --download` \
             from Debian"
        ))
    })
}

/// The kernel that is kept, if there is one.
///
/// # Errors
/// If it cannot be read.
pub fn read(data: &Path) -> Result<Option<Kernel>, Problem> {
    let folder = kept(data);
    let path = folder.join("version");
    let text = match std::fs::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|e| Problem::file(&path, &e))?,
    };
    let mut lines = text.lines().map(str::to_owned);
    let version = lines.next().unwrap_or_default();
    let (image, modules) = (folder.join("vmlinuz"), folder.join("modules.cpio"));
    Ok(Some(Kernel { version, image, modules, lacks: lines.collect() }))
}

/// Takes a kernel from a Debian package, or from a folder that holds `boot/vmlinuz-VERSION` and `lib/modules/VERSION`.
///
/// # Errors
/// If there is none in it.
pub fn take(data: &Path, from: &Path) -> Result<Kernel, Problem> {
    if from.is_dir() {
        return take_from_root(data, from);
    }
    let unpacked = Scratch::new(data)?;
    run(Command::new("dpkg-deb").arg("-x").arg(from).arg(unpacked.path()))?;
    take_from_root(data, unpacked.path())
}

/// Downloads Debian's kernel and takes it.
///
/// # Errors
/// If that fails, with what `apt-get` says.
pub fn download(data: &Path) -> Result<Kernel, Problem> {
    let listed = run(Command::new("apt-cache").args(["depends", "--important", "linux-image-amd64"]))?;
    let listed = String::from_utf8_lossy(&listed).into_owned();
    let mut names = listed.lines().filter_map(|l| l.trim().strip_prefix("Depends: "));
    let package = names.find(|n| n.starts_with("linux-image-"));
    let package =
        package.ok_or_else(|| Problem::failed("apt knows no linux-image-amd64: run `apt-get update` first"))?;
    let folder = Scratch::new(data)?;
    run(Command::new("apt-get").args(["download", "-q", package]).current_dir(folder.path()))?;
    let found = std::fs::read_dir(folder.path())?.flatten().map(|e| e.path());
    let deb = found.into_iter().find(|p| p.extension().is_some_and(|e| e == "deb"));
    take(data, &deb.ok_or_else(|| Problem::failed(format!("apt-get downloaded no {package}")))?)
}

/// Runs a program; gives what it prints.
fn run(command: &mut Command) -> Result<Vec<u8>, Problem> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|e| Problem::failed(format!("{name} is needed here: {e}")))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Problem::failed(format!("{name} failed: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

/// A kernel that lies in a folder as if that were `/`.
#[derive(Debug)]
struct Candidate {
    version: String,
    image: PathBuf,
    modules: PathBuf,
}

/// `6.10` is newer than `6.9`.
fn natural(version: &str) -> Vec<(u64, String)> {
    let mut parts = Vec::new();
    for part in version.split(['.', '-', '+', '_', '~']) {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        parts.push((part[..digits].parse().unwrap_or(0), part[digits..].to_owned()));
    }
    parts
}

fn candidates(root: &Path) -> Vec<Candidate> {
    let mut found = Vec::new();
    for place in ["lib/modules", "usr/lib/modules"] {
        for entry in std::fs::read_dir(root.join(place)).into_iter().flatten().flatten() {
            let (modules, version) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let images = [root.join(format!("boot/vmlinuz-{version}")), modules.join("vmlinuz")];
            if let Some(image) = images.into_iter().find(|i| File::open(i).is_ok()) {
                found.push(Candidate { version, image, modules });
            }
        }
    }
    found.sort_by_key(|c| std::cmp::Reverse(natural(&c.version)));
    // The one that runs has been seen to work.
    if root == Path::new("/")
        && let Ok(name) = nix::sys::utsname::uname()
    {
        found.sort_by_key(|c| c.version.as_str() != name.release());
    }
    found
}

fn take_from_root(data: &Path, root: &Path) -> Result<Kernel, Problem> {
    let found = candidates(root).into_iter().next().ok_or_else(|| {
        Problem::failed(format!(
            "{} has no kernel that can be read: boot/vmlinuz-VERSION with lib/modules/VERSION",
            root.display()
        ))
    })?;
    let modules = Modules::of(&found.modules);
    let files = modules.wanted()?;
    let lacks: Vec<&str> = NEEDED.iter().filter(|(name, _)| !modules.has(name)).map(|(_, what)| *what).collect();
    if lacks.contains(&"any disk") {
        return Err(Problem::failed(format!(
            "kernel {} has no virtio_blk, the driver of virtual disks",
            found.version
        )));
    }
    let scratch = Scratch::new(data)?;
    let fresh = scratch.path().join("new");
    std::fs::create_dir(&fresh)?;
    std::fs::copy(&found.image, fresh.join("vmlinuz")).map_err(|e| Problem::file(&found.image, &e))?;
    let mut archive = BufWriter::new(File::create(fresh.join("modules.cpio"))?);
    cpio::write(&mut archive, &files)?;
    archive.flush()?;
    let lines: Vec<&str> = std::iter::once(found.version.as_str()).chain(lacks).collect();
    std::fs::write(fresh.join("version"), lines.join("\n") + "\n")?;
    // Whoever reads finds the old one or the new one, or for an instant none and then takes its own.
    match std::fs::rename(kept(data), scratch.path().join("old")) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Problem::file(&kept(data), &e)),
        _ => {}
    }
    std::fs::rename(fresh, kept(data)).map_err(|e| Problem::file(&kept(data), &e))?;
    read(data)?.ok_or_else(|| Problem::failed("the kernel was taken away while it was being kept"))
}

/// The modules of a kernel.
struct Modules {
    files: HashMap<String, PathBuf>,
    built_in: Vec<String>,
}

/// `nls_iso8859-1.ko.xz` is the module `nls_iso8859_1`.
fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let (name, rest) = file.split_once(".ko")?;
    matches!(rest, "" | ".xz" | ".zst" | ".gz").then(|| name.replace('-', "_"))
}

fn collect(folder: &Path, depth: usize, files: &mut HashMap<String, PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        // Links in it lead to sources.
        if entry.file_type().is_ok_and(|t| t.is_dir()) && depth < DEEP {
            collect(&path, depth + 1, files);
        } else if let Some(name) = path.to_str().and_then(module_name) {
            files.insert(name, path);
        }
    }
}

/// The names in the `depends=` of a module.
fn dependencies(module: &[u8]) -> Vec<String> {
    let mut texts = module.split(|b| *b == 0);
    let found = texts.find_map(|t| t.strip_prefix(b"depends="));
    let text = String::from_utf8_lossy(found.unwrap_or_default()).into_owned();
    text.split(',').filter(|n| !n.is_empty()).map(|n| n.replace('-', "_")).collect()
}

impl Modules {
    fn of(folder: &Path) -> Modules {
        let mut files = HashMap::new();
        collect(folder, 0, &mut files);
        let built_in = std::fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
        Modules { files, built_in: built_in.lines().filter_map(module_name).collect() }
    }

    fn has(&self, name: &str) -> bool {
        self.files.contains_key(name) || self.built_in.iter().any(|b| b == name)
    }

    /// The files in the order in which they are loaded.
    fn wanted(&self) -> Result<Vec<Entry>, Problem> {
        let mut found = Vec::new();
        let mut seen = Vec::new();
        for name in WANTED {
            self.add(name, 0, &mut seen, &mut found)?;
        }
        let numbered = found.into_iter().enumerate();
        Ok(numbered
            .map(|(n, (name, bytes))| Entry::file(format!("{MODULES}/{n:03}-{name}.ko"), 0o400, bytes))
            .collect())
    }

    fn add(
        &self,
        name: &str,
        depth: usize,
        seen: &mut Vec<String>,
        found: &mut Vec<(String, Vec<u8>)>,
    ) -> Result<(), Problem> {
        let Some(path) = self.files.get(name).filter(|_| depth < DEEP && !seen.iter().any(|s| s == name)) else {
            return Ok(());
        };
        seen.push(name.to_owned());
        let bytes = unpacked(path)?;
        for needed in dependencies(&bytes) {
            self.add(&needed, depth + 1, seen, found)?;
        }
        found.push((name.to_owned(), bytes));
        Ok(())
    }
}

fn unpacked(path: &Path) -> Result<Vec<u8>, Problem> {
    let program = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return std::fs::read(path).map_err(|e| Problem::file(path, &e)),
    };
    run(Command::new(program).arg("-dc").arg(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(root: &Path, path: &str, depends: &str) {
        let path = root.join("lib/modules/6.10.1").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, format!("\x7fELF\0license=GPL\0depends={depends}\0name=x\0")).unwrap();
    }

    #[test]
    fn what_a_module_needs_comes_before_it_and_what_is_missing_is_said() {
        let (root, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let none = take(data.path(), root.path()).unwrap_err();
        assert!(none.text.contains("no kernel that can be read"), "{none}");
        for version in ["6.9.9", "6.10.1"] {
            std::fs::create_dir_all(root.path().join("boot")).unwrap();
            std::fs::create_dir_all(root.path().join("lib/modules").join(version)).unwrap();
            std::fs::write(root.path().join(format!("boot/vmlinuz-{version}")), version).unwrap();
        }
        let none = take(data.path(), root.path()).unwrap_err();
        assert!(none.text.contains("kernel 6.10.1 has no virtio_blk"), "{none}");
        module(root.path(), "kernel/fs/ext4/ext4.ko", "jbd2,mbcache,crc-x");
        module(root.path(), "kernel/fs/jbd2/jbd2.ko", "");
        module(root.path(), "kernel/lib/crc-x.ko", "ext4");
        module(root.path(), "kernel/fs/other.ko", "");
        let built_in = "kernel/fs/xfs/xfs.ko\nkernel/drivers/block/virtio_blk.ko\n";
        std::fs::write(root.path().join("lib/modules/6.10.1/modules.builtin"), built_in).unwrap();
        let kernel = take(data.path(), root.path()).unwrap();
        assert_eq!((kernel.version.as_str(), kernel.lacks.join(" ").as_str()), ("6.10.1", "fat ntfs"));
        assert_eq!(std::fs::read_to_string(&kernel.image).unwrap(), "6.10.1");
        let archive = String::from_utf8_lossy(&std::fs::read(&kernel.modules).unwrap()).into_owned();
        for name in ["000-jbd2", "001-crc_x", "002-ext4"] {
            assert!(archive.contains(name), "{name}");
        }
        assert!(!archive.contains("other"));
        // Again: it takes the place of the one that is kept, and nothing else stays.
        assert_eq!(take(data.path(), root.path()).unwrap(), kernel);
        assert_eq!(find(data.path()).unwrap(), kernel);
        assert_eq!(std::fs::read_dir(data.path().join("files")).unwrap().count(), 0);
    }
}
