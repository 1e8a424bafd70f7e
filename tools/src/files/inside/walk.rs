//! Folders and files of a mounted file system.

use super::{Port, Refusal, root};
use crate::files::wire::{Item, Kind, MAX_ATTRIBUTES, MAX_DATA, MAX_DEPTH, Name, Stamp, Tell};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::unistd::{Whence, lseek};
use std::ffi::{CString, OsStr, OsString};
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A path of the file system of a disk, without links in it; the file system's root is its own `/`. A link at its end is followed,
/// or not.
pub(super) fn resolve(disk: usize, path: &Name, follow: bool) -> Result<PathBuf, Refusal> {
    let find = || -> nix::Result<PathBuf> {
        let top = File::open(root(disk)).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))?;
        let within = path.0.as_slice();
        let within = &within[within.iter().take_while(|b| **b == b'/').count()..];
        let within = OsStr::from_bytes(if within.is_empty() { b"." } else { within });
        let flags = if follow { OFlag::O_PATH } else { OFlag::O_PATH | OFlag::O_NOFOLLOW };
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let found = openat2(&top, within, how)?;
        let link = format!("/proc/self/fd/{}", found.as_raw_fd());
        nix::fcntl::readlink(link.as_str()).map(PathBuf::from)
    };
    find().map_err(|e| Refusal::failed(format!("{path}: {}", e.desc())))
}

fn stamp(s: i64, ns: i64) -> Stamp {
    Stamp { s, ns: u32::try_from(ns).ok().filter(|n| *n < 1_000_000_000).unwrap_or(0) }
}

/// What `meta` and the file behind it say.
pub(super) fn item(path: &Path, meta: &Metadata, with_attributes: bool) -> io::Result<Item> {
    let kind = match meta.file_type() {
        t if t.is_dir() => Kind::Folder,
        t if t.is_file() => Kind::File,
        t if t.is_symlink() => Kind::Link,
        _ => Kind::Special,
    };
    let target = if kind == Kind::Link { Some(std::fs::read_link(path)?) } else { None };
    let wanted = with_attributes && matches!(kind, Kind::File | Kind::Folder);
    Ok(Item {
        name: Name(path.file_name().unwrap_or_default().as_bytes().to_vec()),
        kind,
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        size: if kind == Kind::File { meta.size() } else { 0 },
        modified: stamp(meta.mtime(), meta.mtime_nsec()),
        accessed: stamp(meta.atime(), meta.atime_nsec()),
        target: target.map(|t| Name(t.into_os_string().into_vec())),
        attributes: if wanted { attributes(path)? } else { Vec::new() },
    })
}

/// The result of a call that fills a buffer: how much.
fn filled(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Extended attributes of a file, as far as the file system has any.
pub(super) fn attributes(path: &Path) -> io::Result<Vec<(String, Name)>> {
    let c_path = CString::new(path.as_os_str().as_bytes())?;
    let mut names = vec![0_u8; 64 << 10];
    // SAFETY: the path ends with a zero, and the buffer is as long as is said.
    let listed = unsafe { libc::llistxattr(c_path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    let len = match filled(listed) {
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    let mut value = vec![0_u8; 64 << 10];
    let mut total = 0;
    for name in names[..len].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let Ok(text) = String::from_utf8(name.to_vec()) else { continue };
        let c_name = CString::new(name)?;
        // SAFETY: both texts end with a zero, and the buffer is as long as is said.
        let got = unsafe { libc::lgetxattr(c_path.as_ptr(), c_name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        let len = filled(got)?;
        total += text.len() + len;
        if total > MAX_ATTRIBUTES {
            return Err(io::Error::other("it has more extended attributes than are taken along"));
        }
        found.push((text, Name(value[..len].to_vec())));
    }
    Ok(found)
}

/// The names in a folder, in order.
pub(super) fn names(folder: &Path) -> io::Result<Vec<OsString>> {
    let mut names = std::fs::read_dir(folder)?.map(|e| Ok(e?.file_name())).collect::<io::Result<Vec<_>>>()?;
    names.sort_unstable();
    Ok(names)
}

/// Where something is in the file system, for a message.
pub(super) fn shown(path: &Path) -> PathBuf {
    let within = path.strip_prefix("/mounted").ok().map(|p| p.components().skip(1).collect::<PathBuf>());
    within.map_or_else(|| path.to_owned(), |p| Path::new("/").join(p))
}

fn looked(path: &Path) -> Result<Metadata, Refusal> {
    path.symlink_metadata().map_err(|e| Refusal::failed(format!("{}: {e}", shown(path).display())))
}

/// [`crate::files::wire::Ask::List`].
pub(super) fn list(path: &Name, port: &mut Port) -> io::Result<Result<(), Refusal>> {
    let (found, meta) = match resolve(0, path, true).and_then(|p| looked(&p).map(|m| (p, m))) {
        Ok(found) => found,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let paths = if meta.is_dir() {
        match names(&found) {
            Ok(names) => names.into_iter().map(|n| found.join(n)).collect(),
            Err(e) => return Ok(Err(Refusal::failed(format!("{path}: {e}")))),
        }
    } else {
        vec![found]
    };
    for path in paths {
        match path.symlink_metadata().and_then(|m| item(&path, &m, false)) {
            Ok(item) => port.tell(&Tell::Item(item))?,
            Err(e) => port.trouble(&shown(&path), &e)?,
        }
    }
    Ok(Ok(()))
}

/// [`crate::files::wire::Ask::Count`].
pub(super) fn count(path: &Name, port: &mut Port) -> io::Result<Result<(), Refusal>> {
    let top = match resolve(0, path, false) {
        Ok(found) => found,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let (mut items, mut bytes) = (0, 0);
    let mut next = vec![(top, 0)];
    // What cannot be read is reported by the copy itself.
    while let Some((path, depth)) = next.pop() {
        port.pulse()?;
        let Ok(meta) = path.symlink_metadata() else { continue };
        items += 1;
        if meta.is_file() {
            bytes += meta.size().min(meta.blocks() * 512);
        } else if meta.is_dir() && depth < MAX_DEPTH {
            next.extend(names(&path).unwrap_or_default().into_iter().map(|n| (path.join(n), depth + 1)));
        }
    }
    port.tell(&Tell::Total { items, bytes }).map(Ok)
}

/// [`crate::files::wire::Ask::Send`].
pub(super) fn send(path: &Name, recursive: bool, port: &mut Port) -> io::Result<Result<(), Refusal>> {
    let (top, meta) = match resolve(0, path, !recursive).and_then(|p| looked(&p).map(|m| (p, m))) {
        Ok(found) => found,
        Err(refusal) => return Ok(Err(refusal)),
    };
    if meta.is_dir() && !recursive {
        return Ok(Err(Refusal::usage(format!("{path} is a folder: add -r to copy it"))));
    }
    send_item(&top, 0, port).map(Ok)
}

fn send_item(path: &Path, depth: usize, port: &mut Port) -> io::Result<()> {
    let item = match path.symlink_metadata().and_then(|m| item(path, &m, true)) {
        Ok(item) => item,
        Err(e) => return port.trouble(&shown(path), &e),
    };
    let kind = item.kind;
    if kind == Kind::Folder && depth >= MAX_DEPTH {
        return port.trouble(&shown(path), &io::Error::other("it lies too deep in other folders"));
    }
    // A link's target is at most as long as a path, so this is never too long for a frame.
    port.tell(&Tell::Item(item))?;
    match kind {
        Kind::File => {
            match send_data(path, port)? {
                Ok(()) => {}
                Err(e) => port.trouble(&shown(path), &e)?,
            }
            port.tell(&Tell::End)
        }
        Kind::Folder => {
            match names(path) {
                Ok(names) => names.iter().try_for_each(|n| send_item(&path.join(n), depth + 1, port))?,
                Err(e) => port.trouble(&shown(path), &e)?,
            }
            port.tell(&Tell::Leave)
        }
        Kind::Link | Kind::Special => Ok(()),
    }
}

/// Opens a file that is one: not what came in its place.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

/// The next range of data from an offset on, if there is one. Where holes are not known, all is data.
pub(super) fn next_data(file: &File, from: u64) -> io::Result<Option<(u64, u64)>> {
    let offset = i64::try_from(from).map_err(io::Error::other)?;
    let size = file.metadata()?.len();
    let begin = match lseek(file, offset, Whence::SeekData) {
        Ok(begin) => begin.cast_unsigned(),
        Err(Errno::ENXIO) => return Ok(None),
        Err(Errno::EINVAL) => return Ok((from < size).then_some((from, size))),
        Err(e) => return Err(e.into()),
    };
    let end = lseek(file, begin.cast_signed(), Whence::SeekHole)?.cast_unsigned();
    Ok((begin < end).then_some((begin, end)))
}

/// The inner error is one of the file.
fn send_data(path: &Path, port: &mut Port) -> io::Result<io::Result<()>> {
    let mut buffer = vec![0; MAX_DATA];
    let file = match open(path) {
        Ok(file) => file,
        Err(e) => return Ok(Err(e)),
    };
    let mut at = 0;
    loop {
        let (begin, end) = match next_data(&file, at) {
            Ok(Some(range)) => range,
            Ok(None) => return Ok(Ok(())),
            Err(e) => return Ok(Err(e)),
        };
        at = begin;
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(MAX_DATA).min(MAX_DATA);
            match file.read_at(&mut buffer[..most], at) {
                Ok(0) => return Ok(Ok(())),
                Ok(len) => {
                    port.data(at, &buffer[..len])?;
                    at += len as u64;
                }
                Err(e) => return Ok(Err(e)),
            }
        }
    }
}
