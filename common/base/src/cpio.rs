//! Archives that the kernel unpacks into an initramfs, one behind the other ("newc", Documentation/driver-api/early-userspace/
//! buffer-format.rst): how files are handed to a guest.

use std::collections::BTreeSet;
use std::io::{self, Write};

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_777;
const CHARACTERS: u32 = 0o020_600;

/// A file for the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Absolute path in the guest.
    pub path: String,
    /// Type and permission bits.
    mode: u32,
    /// Its content, or where a link leads.
    content: Vec<u8>,
    /// Numbers of a device.
    device: (u32, u32),
}

impl Entry {
    /// A file with these permission bits.
    pub fn file(path: impl Into<String>, permissions: u32, content: impl Into<Vec<u8>>) -> Entry {
        Entry { path: path.into(), mode: FILE | permissions, content: content.into(), device: (0, 0) }
    }

    /// A symbolic link.
    pub fn link(path: impl Into<String>, to: impl Into<Vec<u8>>) -> Entry {
        Entry { path: path.into(), mode: LINK, content: to.into(), device: (0, 0) }
    }

    /// An empty folder.
    pub fn folder(path: impl Into<String>) -> Entry {
        Entry { path: path.into(), mode: FOLDER, content: Vec::new(), device: (0, 0) }
    }

    /// A character device.
    pub fn characters(path: impl Into<String>, major: u32, minor: u32) -> Entry {
        Entry { path: path.into(), mode: CHARACTERS, content: Vec::new(), device: (major, minor) }
    }
}

/// Writes an archive of these files and the folders that they lie in.
///
/// # Errors
/// If it cannot be written, or a file is too long for the format.
pub fn write<'a>(out: &mut impl Write, files: impl IntoIterator<Item = &'a Entry>) -> io::Result<()> {
    let mut folders = BTreeSet::new();
    let mut number = 0;
    let mut put = |file: &Entry| {
        // Files of more than one name are told by these; ours have one.
        number += 1;
        entry(out, number, file)
    };
    for file in files {
        let path = file.path.trim_start_matches('/');
        for (end, _) in path.match_indices('/') {
            if folders.insert(path[..end].to_owned()) {
                put(&Entry::folder(&path[..end]))?;
            }
        }
        if file.mode != FOLDER || folders.insert(path.to_owned()) {
            put(file)?;
        }
    }
    put(&Entry { path: "TRAILER!!!".to_owned(), mode: 0, content: Vec::new(), device: (0, 0) })
}

fn entry(out: &mut impl Write, number: u32, file: &Entry) -> io::Result<()> {
    let too_long = |_| io::Error::other(format!("{} is too long for a cpio archive", file.path));
    let name = file.path.trim_start_matches('/');
    let len = u32::try_from(file.content.len()).map_err(too_long)?;
    let name_len = u32::try_from(name.len() + 1).map_err(too_long)?;
    let (major, minor) = file.device;
    // ino, mode, uid, gid, nlink, mtime, size, device (2), device of a node (2), length of the name, check
    let fields = [number, file.mode, 0, 0, 1, 0, len, 0, 0, major, minor, name_len, 0];
    out.write_all(b"070701")?;
    for field in fields {
        write!(out, "{field:08x}")?;
    }
    out.write_all(name.as_bytes())?;
    out.write_all(&[0])?;
    pad(out, 6 + 8 * fields.len() + name.len() + 1)?;
    out.write_all(&file.content)?;
    pad(out, file.content.len())
}

fn pad(out: &mut impl Write, len: usize) -> io::Result<()> {
    out.write_all(&[0; 3][..len.next_multiple_of(4) - len])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn another_program_reads_what_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let files =
            [Entry::file("/a/b/file", 0o640, "text"), Entry::link("/a/link", "b/file"), Entry::folder("/a/empty")];
        let mut archive = Vec::new();
        write(&mut archive, &files).unwrap();
        let mut cpio = Command::new("cpio");
        cpio.args(["--quiet", "-i", "-m"]).current_dir(dir.path()).stdin(Stdio::piped());
        let mut cpio = cpio.spawn().unwrap();
        cpio.stdin.take().unwrap().write_all(&archive).unwrap();
        assert!(cpio.wait().unwrap().success());
        assert_eq!(std::fs::read_to_string(dir.path().join("a/link")).unwrap(), "text");
        assert!(dir.path().join("a/empty").is_dir());
    }
}
