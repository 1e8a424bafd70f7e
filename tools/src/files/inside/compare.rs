//! Two moments of a file system beside each other: disk 0 is the earlier one.

use super::walk::{attributes, item, names, open, resolve, shown};
use super::{Port, Refusal};
use crate::files::wire::{Change, Kind, MAX_DEPTH, Name, Tell};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

const PIECE: usize = 256 << 10;

struct Comparison<'a> {
    port: &'a mut Port,
    /// All files are read.
    content: bool,
}

/// One side: where it is, and what it is, if it is there.
type Side<'a> = Option<(&'a Path, &'a Metadata)>;

/// [`crate::files::wire::Ask::Compare`].
pub(super) fn compare(path: &Name, content: bool, port: &mut Port) -> io::Result<Result<(), Refusal>> {
    // It may have come or gone between the two; on one side it must be.
    let (before, after) = match (resolve(0, path, true), resolve(1, path, true)) {
        (Err(refusal), Err(_)) => return Ok(Err(refusal)),
        (before, after) => (before.ok(), after.ok()),
    };
    let mut comparison = Comparison { port, content };
    comparison.pair(before.as_deref(), after.as_deref(), Path::new(""), 0).map(Ok)
}

impl Comparison<'_> {
    /// Looks at both sides. What cannot be looked at is said and left out.
    fn pair(&mut self, before: Option<&Path>, after: Option<&Path>, at: &Path, depth: usize) -> io::Result<()> {
        self.port.pulse()?;
        let mut metas = [None, None];
        for (found, path) in metas.iter_mut().zip([before, after]) {
            match path.map(Path::symlink_metadata).transpose() {
                Ok(meta) => *found = meta,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return self.port.trouble(&path.map_or_else(PathBuf::new, shown), &e),
            }
        }
        let [was, is] = &metas;
        let (before, after) = (before.zip(was.as_ref()), after.zip(is.as_ref()));
        if let Err(e) = self.difference(before, after, at)? {
            return self.port.trouble(&Path::new("/").join(at), &e);
        }
        let folder = |side: Side<'_>| side.filter(|(_, m)| m.is_dir()).map(|(p, _)| p.to_owned());
        let (before, after) = (folder(before), folder(after));
        let mut all: BTreeSet<OsString> = BTreeSet::new();
        for path in [&before, &after].into_iter().flatten() {
            match names(path) {
                Ok(_) if depth >= MAX_DEPTH => {
                    self.port.trouble(&shown(path), &io::Error::other("it lies too deep in other folders"))?;
                }
                Ok(found) => all.extend(found),
                Err(e) => return self.port.trouble(&shown(path), &e),
            }
        }
        for name in all {
            let inside = |folder: &Option<PathBuf>| folder.as_ref().map(|f| f.join(&name));
            self.pair(inside(&before).as_deref(), inside(&after).as_deref(), &at.join(&name), depth + 1)?;
        }
        Ok(())
    }

    /// Says how two sides differ, if they do. The inner error is one of the files.
    fn difference(&mut self, before: Side<'_>, after: Side<'_>, at: &Path) -> io::Result<io::Result<()>> {
        let items = || {
            let of = |side: Side<'_>| side.map(|(p, m)| item(p, m, false)).transpose();
            Ok::<_, io::Error>((of(before)?, of(after)?))
        };
        let (old, new) = match items() {
            Ok(items) => items,
            Err(e) => return Ok(Err(e)),
        };
        let path = Name(at.as_os_str().as_bytes().to_vec());
        let mut content = false;
        let mut attributes_differ = false;
        let change = match (&old, &new) {
            (None, None) => return Ok(Ok(())),
            (None, Some(_)) => Change::Added,
            (Some(_), None) => Change::Removed,
            (Some(a), Some(b)) => {
                let same_kind = a.kind == b.kind;
                if same_kind && a.kind == Kind::File {
                    content = match self.data_differ(before, after)? {
                        Ok(differ) => differ,
                        Err(e) => return Ok(Err(e)),
                    };
                }
                if same_kind && matches!(a.kind, Kind::File | Kind::Folder) {
                    attributes_differ = match attributes_differ_in(before, after) {
                        Ok(differ) => differ,
                        Err(e) => return Ok(Err(e)),
                    };
                }
                // The time of a folder says only that something in it came or went, which is said by itself.
                let times = a.kind != Kind::Folder && a.modified != b.modified;
                let same = same_kind && !times && a.mode == b.mode && a.uid == b.uid && a.gid == b.gid;
                if same && a.target == b.target && a.size == b.size && !content && !attributes_differ {
                    return Ok(Ok(()));
                }
                Change::Changed
            }
        };
        let told = Tell::Changed { path, change, before: old, after: new, content, attributes: attributes_differ };
        self.port.tell(&told).map(Ok)
    }

    fn data_differ(&mut self, before: Side<'_>, after: Side<'_>) -> io::Result<io::Result<bool>> {
        let (Some((old, was)), Some((new, is))) = (before, after) else { return Ok(Ok(true)) };
        if was.len() != is.len() {
            return Ok(Ok(true));
        }
        if !self.content && untouched(was, is) {
            return Ok(Ok(false));
        }
        let (old, new) = match open(old).and_then(|o| Ok((o, open(new)?))) {
            Ok(files) => files,
            Err(e) => return Ok(Err(e)),
        };
        let (mut a, mut b) = (vec![0; PIECE], vec![0; PIECE]);
        let mut at = 0;
        while at < was.len() {
            self.port.pulse()?;
            let len = usize::try_from(was.len() - at).unwrap_or(PIECE).min(PIECE);
            if let Err(e) = old.read_exact_at(&mut a[..len], at).and_then(|()| new.read_exact_at(&mut b[..len], at)) {
                return Ok(Err(e));
            }
            if a[..len] != b[..len] {
                return Ok(Ok(true));
            }
            at += len as u64;
        }
        Ok(Ok(false))
    }
}

/// The same file, and no change was noted: neither of its data nor of anything else.
fn untouched(was: &Metadata, is: &Metadata) -> bool {
    let of = |m: &Metadata| (m.ino(), m.ctime(), m.ctime_nsec(), m.mtime(), m.mtime_nsec());
    of(was) == of(is)
}

fn attributes_differ_in(before: Side<'_>, after: Side<'_>) -> io::Result<bool> {
    match (before, after) {
        (Some((old, was)), Some((new, is))) if !untouched(was, is) => Ok(attributes(old)? != attributes(new)?),
        _ => Ok(false),
    }
}
