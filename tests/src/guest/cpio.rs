//! An archive that the kernel unpacks into the initramfs behind the one before it ("newc", Documentation/driver-api/
//! early-userspace/buffer-format.rst): how a test hands files to a guest.

use std::collections::BTreeSet;
use std::io::{self, Write};

/// A file for the guest.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Absolute path in the guest.
    pub(crate) path: String,
    /// Permission bits.
    pub(crate) mode: u32,
    /// Its content.
    pub(crate) content: Vec<u8>,
}

/// Writes an archive of these files and the folders that they lie in.
pub(crate) fn write(out: &mut impl Write, files: &[Entry]) -> io::Result<()> {
    let mut folders = BTreeSet::new();
    for file in files {
        let path = file.path.trim_start_matches('/');
        for (end, _) in path.match_indices('/') {
            if folders.insert(&path[..end]) {
                entry(out, &path[..end], 0o040_755, &[])?;
            }
        }
        entry(out, path, 0o100_000 | file.mode, &file.content)?;
    }
    entry(out, "TRAILER!!!", 0, &[])
}

fn entry(out: &mut impl Write, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
    let too_long = |_| io::Error::other("too long for a cpio archive");
    let len = u32::try_from(content.len()).map_err(too_long)?;
    let name_len = u32::try_from(name.len() + 1).map_err(too_long)?;
    // ino, mode, uid, gid, nlink, mtime, size, device (2), device of a node (2), length of the name, check
    let fields = [0, mode, 0, 0, 1, 0, len, 0, 0, 0, 0, name_len, 0];
    out.write_all(b"070701")?;
    for field in fields {
        write!(out, "{field:08x}")?;
    }
    out.write_all(name.as_bytes())?;
    out.write_all(&[0])?;
    pad(out, 6 + 8 * fields.len() + name.len() + 1)?;
    out.write_all(content)?;
    pad(out, content.len())
}

fn pad(out: &mut impl Write, len: usize) -> io::Result<()> {
    out.write_all(&[0; 3][..len.next_multiple_of(4) - len])
}
