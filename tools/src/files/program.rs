//! This program and the libraries that it runs with, as files for the guest's initramfs.

use afterimage_base::cpio::Entry;
use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Where it lies in the guest.
pub const PATH: &str = "/afterimage";
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const HEADER: usize = 64;

fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..)?.first_chunk().copied()
}

fn number(from: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(bytes(from, at)?)).ok()
}

/// Type, offset and length of each part that a 64-bit ELF loads.
fn parts(elf: &[u8]) -> Option<Vec<(u32, usize, usize)>> {
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, size) = (number(elf, 32)?, usize::from(u16::from_le_bytes(bytes(elf, 54)?)));
    let count = usize::from(u16::from_le_bytes(bytes(elf, 56)?));
    let mut found = Vec::new();
    for n in 0..count {
        let at = table.checked_add(n.checked_mul(size)?)?;
        found.push((u32::from_le_bytes(bytes(elf, at)?), number(elf, at + 8)?, number(elf, at + 32)?));
    }
    Some(found)
}

/// Cuts off what is not loaded (what debuggers read may be most of a program), if this is an ELF that is understood.
fn cut(elf: &mut Vec<u8>) {
    let Some(parts) = parts(elf) else { return };
    let loaded = parts.iter().filter(|(kind, ..)| *kind == PT_LOAD);
    let Some(end) = loaded.filter_map(|(_, at, len)| at.checked_add(*len)).max() else { return };
    if end >= HEADER && end <= elf.len() {
        elf.truncate(end);
        // The table of sections lay behind.
        elf[40..48].fill(0);
        elf[58..64].fill(0);
    }
}

/// The loader that an ELF asks for.
fn interpreter(elf: &[u8]) -> Option<PathBuf> {
    let (_, at, len) = parts(elf)?.into_iter().find(|(kind, ..)| *kind == PT_INTERP)?;
    let text = elf.get(at..at.checked_add(len)?)?.strip_suffix(b"\0")?;
    std::str::from_utf8(text).ok().map(PathBuf::from)
}

/// The libraries that are mapped into this process, under every name that their folder has for them: the loader looks for the
/// name that stands in the program, and that may be a link.
fn libraries() -> io::Result<Vec<(PathBuf, PathBuf)>> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let paths: BTreeSet<&str> = maps.lines().filter_map(|l| l.find('/').map(|at| &l[at..])).collect();
    let mut found = Vec::new();
    for path in paths.into_iter().map(Path::new) {
        let is_library = path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.contains(".so"));
        let Some(folder) = path.parent().filter(|_| is_library) else { continue };
        found.push((path.to_owned(), path.to_owned()));
        for entry in std::fs::read_dir(folder)?.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_symlink())) {
            if std::fs::canonicalize(entry.path()).is_ok_and(|to| to == path) {
                found.push((entry.path(), path.to_owned()));
            }
        }
    }
    Ok(found)
}

/// The files.
///
/// # Errors
/// If one cannot be read.
pub fn files() -> io::Result<Vec<Entry>> {
    let read = |path: &Path| {
        let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
        let mut content = std::fs::read(path).map_err(named)?;
        cut(&mut content);
        Ok::<_, io::Error>((content, path.metadata().map_err(named)?.permissions().mode() & 0o777))
    };
    let (program, _) = read(Path::new("/proc/self/exe"))?;
    let mut places = libraries()?;
    if let Some(loader) = interpreter(&program) {
        let real = std::fs::canonicalize(&loader)?;
        places.push((loader, real));
    }
    let mut entries = vec![Entry::file(PATH, 0o755, program)];
    let mut seen = BTreeSet::new();
    for (place, real) in places {
        if seen.insert(place.clone()) {
            let (content, mode) = read(&real)?;
            entries.push(Entry::file(place.to_string_lossy(), mode, content));
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_program_without_what_is_not_loaded_still_runs() {
        let dir = tempfile::tempdir().unwrap();
        let whole = std::fs::read("/proc/self/exe").unwrap();
        let mut short = whole.clone();
        cut(&mut short);
        assert!(short.len() < whole.len());
        let path = dir.path().join("program");
        std::fs::write(&path, &short).unwrap();
        // Through its loader: another test's child may still hold the file open for writing.
        let loader = interpreter(&short).unwrap();
        assert!(Command::new(loader).arg(&path).arg("--list").output().unwrap().status.success());
        let names: Vec<String> = files().unwrap().into_iter().map(|e| e.path).collect();
        assert!(names.iter().any(|n| n.contains("libc.so")), "{names:?}");
    }

    #[test]
    fn what_is_no_program_is_left_as_it_is() {
        for text in [&b""[..], b"#!/bin/sh", b"\x7fELF\x02\x01", &[0x7f; 70], b"\x7fELF\x01\x01aaaaaaaaaaaaaaa"] {
            let mut kept = text.to_vec();
            cut(&mut kept);
            assert_eq!(kept, text);
            assert!(interpreter(text).is_none());
        }
        let mut wild = b"\x7fELF\x02\x01".to_vec();
        wild.resize(64, 0xff);
        let before = wild.clone();
        cut(&mut wild);
        assert_eq!(wild, before);
    }
}
