//! What the guest sends becomes files below one folder of this host.
//!
//! The guest is not trusted ([`super::wire`]). Whatever it sends, in whatever order: everything is made in a folder that this made or
//! was given, through its descriptor, under one name without a slash; nothing is made through a link; and a file is filled only
//! where it says that it has data.

use super::wire::{Frame, Item, Kind, MAX_DEPTH, Name, Tell};
use crate::problem::Problem;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{Mode, UtimensatFlags, fchmod, futimens, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, symlinkat, unlinkat};
use serde::Serialize;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

/// Where the top goes.
#[derive(Debug)]
pub enum Top {
    /// Into this folder, under this name.
    Named(OwnedFd, Name),
    /// What it holds goes into this folder.
    Into(OwnedFd),
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Copied {
    /// Files.
    pub files: u64,
    /// Folders that were made.
    pub folders: u64,
    /// Symbolic links.
    pub links: u64,
    /// Bytes of files, without holes.
    pub bytes: u64,
    /// Devices, pipes and sockets that were left out.
    pub special: u64,
    /// Extended attributes that could not be given to the copy.
    pub attributes_lost: u64,
    /// What could not be copied.
    pub failed: u64,
}

impl Copied {
    /// Adds what was done of another source.
    pub const fn add(&mut self, other: &Copied) {
        self.files += other.files;
        self.folders += other.folders;
        self.links += other.links;
        self.bytes += other.bytes;
        self.special += other.special;
        self.attributes_lost += other.attributes_lost;
        self.failed += other.failed;
    }
}

/// How data may come: forwards, and within the size.
#[derive(Debug)]
pub struct Span {
    size: u64,
    at: u64,
}

impl Span {
    /// Of a file of this size.
    #[must_use]
    pub const fn of(size: u64) -> Span {
        Span { size, at: 0 }
    }

    /// Takes data at an offset; gives the length of the hole before it.
    ///
    /// # Errors
    /// If it cannot be there.
    pub fn take(&mut self, offset: u64, len: usize) -> Result<u64, Problem> {
        let end = offset.checked_add(len as u64).filter(|end| *end <= self.size);
        let (hole, end) = offset.checked_sub(self.at).zip(end).ok_or_else(|| lie("data outside of a file"))?;
        self.at = end;
        Ok(hole)
    }

    /// What is left: a hole.
    #[must_use]
    pub const fn rest(&self) -> u64 {
        self.size.saturating_sub(self.at)
    }
}

fn lie(what: &str) -> Problem {
    Problem::failed(format!("the guest that reads the file system says what cannot be: {what}"))
}

#[derive(Debug)]
struct Folder {
    /// Without one, what is in it is left out.
    fd: Option<OwnedFd>,
    /// What it is to become, if it was made.
    item: Option<Item>,
    /// For messages.
    name: Name,
}

#[derive(Debug)]
struct Open {
    /// Without one, its data are left out.
    file: Option<File>,
    item: Item,
    span: Span,
}

/// Takes what the guest sends of one top.
#[derive(Debug)]
pub struct Writer {
    top: Top,
    begun: bool,
    force: bool,
    /// Whether owners can be given.
    root: bool,
    folders: Vec<Folder>,
    open: Option<Open>,
    /// What was done.
    pub copied: Copied,
    /// Broken on purpose: follows links.
    #[cfg(test)]
    trusting: bool,
}

type Step = Result<(), Problem>;

impl Writer {
    /// Of a top. What is there already is replaced only with `force`; folders are joined.
    #[must_use]
    pub fn new(top: Top, force: bool, root: bool) -> Writer {
        let copied = Copied::default();
        Writer {
            top,
            begun: false,
            force,
            root,
            folders: Vec::new(),
            open: None,
            copied,
            #[cfg(test)]
            trusting: false,
        }
    }

    /// Does what the guest says.
    ///
    /// # Errors
    /// If the guest says what cannot be, or this host cannot write any more.
    pub fn take(&mut self, frame: Frame<Tell>) -> Step {
        match frame {
            Frame::Message(Tell::Item(item)) => self.item(item),
            Frame::Data(offset, bytes) => self.data(offset, &bytes),
            Frame::Message(Tell::End) => self.end(),
            Frame::Message(Tell::Leave) => self.leave(),
            Frame::Message(Tell::Trouble { .. }) => {
                self.copied.failed += 1;
                self.discard();
                Ok(())
            }
            Frame::Message(other) => Err(lie(&format!("{other:?} in a copy"))),
        }
    }

    /// The guest says that this was all.
    ///
    /// # Errors
    /// If it cannot be.
    pub fn finish(self) -> Result<Copied, Problem> {
        if self.open.is_some() || !self.folders.is_empty() || !(self.begun || self.copied.failed > 0) {
            return Err(lie("the end of a copy that is not complete"));
        }
        Ok(self.copied)
    }

    fn shown(&self, name: &Name) -> String {
        let mut path = String::new();
        for folder in &self.folders {
            path.push_str(&format!("{}/", folder.name));
        }
        format!("{path}{name}")
    }

    /// Says why something is not copied; the rest goes on, unless nothing more can be written.
    fn fails(&mut self, name: &Name, e: Errno) -> Step {
        let path = self.shown(name);
        if matches!(e, Errno::ENOSPC | Errno::EDQUOT | Errno::EROFS | Errno::EIO) {
            return Err(Problem::failed(format!("{path}: {}", e.desc())));
        }
        let hint = match (e, self.force) {
            (Errno::EEXIST, false) => "is there already: --force replaces files",
            (Errno::EEXIST, true) => "is there already, and a folder",
            (Errno::ENOTDIR | Errno::ELOOP, _) => "is there already, and no folder",
            _ => e.desc(),
        };
        eprintln!("afterimage: {path}: {hint}");
        self.copied.failed += 1;
        Ok(())
    }

    fn item(&mut self, item: Item) -> Step {
        if self.open.is_some() || (self.folders.is_empty() && self.begun) {
            return Err(lie("a file in a place where none can be"));
        }
        let first = !self.begun;
        self.begun = true;
        let item = match &self.top {
            Top::Named(_, name) if first => Item { name: name.clone(), ..item },
            Top::Into(fd) if first => {
                let fd = fd.try_clone()?;
                return self.at_top(&item, fd);
            }
            _ => item,
        };
        if self.folders.last().is_some_and(|f| f.fd.is_none()) {
            return self.left_out(item);
        }
        match item.kind {
            Kind::Folder => self.folder(item),
            Kind::File => self.file(item),
            Kind::Link => self.link(&item),
            Kind::Special => {
                eprintln!("afterimage: {}: left out: a device, pipe or socket", self.shown(&item.name));
                self.copied.special += 1;
                Ok(())
            }
        }
    }

    fn at_top(&mut self, item: &Item, fd: OwnedFd) -> Step {
        if item.kind != Kind::Folder {
            return Err(lie("a root that is no folder"));
        }
        self.folders.push(Folder { fd: Some(fd), item: None, name: Name::from(".") });
        Ok(())
    }

    /// Inside of a folder that could not be made.
    fn left_out(&mut self, item: Item) -> Step {
        self.copied.failed += 1;
        match item.kind {
            Kind::Folder => self.push(None, None, item.name),
            Kind::File => {
                let span = Span::of(item.size);
                self.open = Some(Open { file: None, item, span });
                Ok(())
            }
            Kind::Link | Kind::Special => Ok(()),
        }
    }

    fn push(&mut self, fd: Option<OwnedFd>, item: Option<Item>, name: Name) -> Step {
        if self.folders.len() > MAX_DEPTH {
            return Err(lie("folders in folders without end"));
        }
        self.folders.push(Folder { fd, item, name });
        Ok(())
    }

    /// The folder in which the next thing is made.
    fn here(&self) -> Result<BorrowedFd<'_>, Problem> {
        match (self.folders.last(), &self.top) {
            (Some(folder), _) => {
                folder.fd.as_ref().map(AsFd::as_fd).ok_or_else(|| lie("a file in a folder that is not there"))
            }
            (None, Top::Named(fd, _) | Top::Into(fd)) => Ok(fd.as_fd()),
        }
    }

    fn folder(&mut self, item: Item) -> Step {
        let name = OsStr::from_bytes(&item.name.0);
        let here = self.here()?;
        let made = match mkdirat(here, name, Mode::S_IRWXU) {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) => Ok(false),
            Err(e) => Err(e),
        };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        #[cfg(test)]
        let flags = if self.trusting { flags.difference(OFlag::O_NOFOLLOW) } else { flags };
        match made.and_then(|made| Ok((openat(here, name, flags, Mode::empty())?, made))) {
            Ok((fd, made)) => {
                self.copied.folders += u64::from(made);
                let name = item.name.clone();
                self.push(Some(fd), made.then_some(item), name)
            }
            Err(e) => {
                self.fails(&item.name, e)?;
                self.push(None, None, item.name)
            }
        }
    }

    /// Makes something; where something is there already, removes that first if that was asked for.
    fn make<T>(
        &self,
        name: &Name,
        make: impl Fn(BorrowedFd<'_>, &OsStr) -> nix::Result<T>,
    ) -> Result<nix::Result<T>, Problem> {
        let (here, path) = (self.here()?, OsStr::from_bytes(&name.0));
        Ok(match make(here, path) {
            Err(Errno::EEXIST) if self.force => match unlinkat(here, path, UnlinkatFlags::NoRemoveDir) {
                Err(Errno::EISDIR | Errno::EPERM) => Err(Errno::EEXIST),
                removed => removed.and_then(|()| make(here, path)),
            },
            other => other,
        })
    }

    fn file(&mut self, item: Item) -> Step {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let file = match self.make(&item.name, |here, name| openat(here, name, flags, mode))? {
            Ok(fd) => Some(File::from(fd)),
            Err(e) => {
                self.fails(&item.name, e)?;
                None
            }
        };
        let span = Span::of(item.size);
        self.open = Some(Open { file, item, span });
        Ok(())
    }

    fn link(&mut self, item: &Item) -> Step {
        let to = item.target.as_ref().map_or(OsStr::new(""), |t| OsStr::from_bytes(&t.0));
        if let Err(e) = self.make(&item.name, |here, name| symlinkat(to, here, name))? {
            return self.fails(&item.name, e);
        }
        self.copied.links += 1;
        let (here, name) = (self.here()?, OsStr::from_bytes(&item.name.0));
        if self.root {
            fchownat(here, name, owner(item).0, owner(item).1, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        }
        let (read, written) = times(item);
        // A file system need not keep the time of a link.
        let _ = utimensat(here, name, &read, &written, UtimensatFlags::NoFollowSymlink);
        Ok(())
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Step {
        let open = self.open.as_mut().ok_or_else(|| lie("data of no file"))?;
        open.span.take(offset, bytes.len())?;
        if let Some(file) = &open.file {
            let name = &open.item.name;
            file.write_all_at(bytes, offset).map_err(|e| Problem::failed(format!("{name}: {e}")))?;
            self.copied.bytes += bytes.len() as u64;
        }
        Ok(())
    }

    fn end(&mut self) -> Step {
        let open = self.open.as_ref().ok_or_else(|| lie("the end of no file"))?;
        if let Some(file) = &open.file {
            file.set_len(open.item.size).map_err(|e| Problem::failed(format!("{}: {e}", open.item.name)))?;
            let lost = dress(file.as_fd(), &open.item, self.root)?;
            self.copied.attributes_lost += lost;
            self.copied.files += 1;
        }
        self.open = None;
        Ok(())
    }

    fn leave(&mut self) -> Step {
        if self.open.is_some() {
            return Err(lie("the end of a folder inside of a file"));
        }
        let folder = self.folders.pop().ok_or_else(|| lie("the end of no folder"))?;
        if let Folder { fd: Some(fd), item: Some(item), .. } = folder {
            self.copied.attributes_lost += dress(fd.as_fd(), &item, self.root)?;
        }
        Ok(())
    }

    /// Removes what there is of a file that is not whole.
    fn discard(&mut self) {
        let Some(open) = &mut self.open else { return };
        if open.file.take().is_none() {
            return;
        }
        let name = open.item.name.clone();
        if let Ok(here) = self.here() {
            let _ = unlinkat(here, OsStr::from_bytes(&name.0), UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// Whatever ends a copy: half a file looks like a whole one.
impl Drop for Writer {
    fn drop(&mut self) {
        self.discard();
    }
}

fn owner(item: &Item) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(item.uid)), Some(Gid::from_raw(item.gid)))
}

fn times(item: &Item) -> (TimeSpec, TimeSpec) {
    let of = |t: super::wire::Stamp| TimeSpec::new(t.s, i64::from(t.ns));
    (of(item.accessed), of(item.modified))
}

/// Gives a file or folder what it had beside its content; says how many attributes it could not be given.
fn dress(file: BorrowedFd<'_>, item: &Item, root: bool) -> Result<u64, Problem> {
    let failed = |e: Errno| Problem::failed(format!("{}: {}", item.name, e.desc()));
    // A program that runs as its owner does so only for that owner.
    let mode = if root { item.mode } else { item.mode & 0o1777 };
    if root {
        fchown(file, owner(item).0, owner(item).1).map_err(failed)?;
    }
    fchmod(file, Mode::from_bits_truncate(mode)).map_err(failed)?;
    let mut lost = 0;
    for (name, value) in &item.attributes {
        let allowed = root || name.starts_with("user.") || name.starts_with("system.posix_acl_");
        if !allowed || set_attribute(file, name, &value.0).is_err() {
            lost += 1;
        }
    }
    let (read, written) = times(item);
    futimens(file, &read, &written).map_err(failed)?;
    Ok(lost)
}

fn set_attribute(file: BorrowedFd<'_>, name: &str, value: &[u8]) -> io::Result<()> {
    let name = CString::new(name)?;
    // SAFETY: the name ends with a zero, and the value is as long as is said.
    let done = unsafe { libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Opens a folder of this host.
///
/// # Errors
/// If it is none.
pub fn open_folder(path: &std::path::Path) -> Result<OwnedFd, Problem> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty()).map_err(|e| Problem::failed(format!("{}: {}", path.display(), e.desc())))
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
