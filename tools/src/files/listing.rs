//! What the guest says of files, for people and for programs.

use super::copy::Copied;
use super::guest::shown;
use super::wire::{Change, Frame, Item, Kind, Name, Partition, Stamp, Tell};
use crate::problem::Problem;
use crate::show::table;
use afterimage_mgmt::units::{Time, format_size};
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use std::fmt::Write as _;

/// A time as RFC 3339; one that no calendar has is none.
fn time(stamp: Stamp) -> Option<Time> {
    let nanos = stamp.s.checked_mul(1_000_000_000)?.checked_add(i64::from(stamp.ns))?;
    u64::try_from(nanos).ok().map(Time)
}

/// `rwxr-xr-x` and what stands before it.
fn mode_text(item: &Item) -> String {
    let kind = match item.kind {
        Kind::File => '-',
        Kind::Folder => 'd',
        Kind::Link => 'l',
        Kind::Special => '?',
    };
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = item.mode >> shift;
        text.push(if bits & 4 == 0 { '-' } else { 'r' });
        text.push(if bits & 2 == 0 { '-' } else { 'w' });
        text.push(match (bits & 1 == 1, item.mode & special != 0) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// An entry as JSON: docs/status-json.md.
struct Entry<'a>(&'a Item);

impl Serialize for Entry<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let item = self.0;
        let mut out = s.serialize_struct("entry", 8)?;
        out.serialize_field("name", &item.name)?;
        out.serialize_field("kind", &item.kind)?;
        out.serialize_field("mode", &format!("{:04o}", item.mode))?;
        out.serialize_field("uid", &item.uid)?;
        out.serialize_field("gid", &item.gid)?;
        out.serialize_field("size", &item.size)?;
        out.serialize_field("modified", &time(item.modified))?;
        out.serialize_field("target", &item.target)?;
        out.end()
    }
}

/// What `ls --json` prints.
#[derive(Debug)]
pub struct List<'a> {
    /// What was listed.
    pub path: Name,
    /// The partition it is in.
    pub partition: &'a Partition,
    /// What was found.
    pub entries: &'a [Item],
}

impl Serialize for List<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut out = s.serialize_struct("list", 4)?;
        out.serialize_field("path", &self.path)?;
        out.serialize_field("partition", &self.partition.number)?;
        out.serialize_field("file_system", &self.partition.holds)?;
        out.serialize_field("entries", &self.entries.iter().map(Entry).collect::<Vec<_>>())?;
        out.end()
    }
}

/// A folder, as a table without a head.
#[must_use]
pub fn items(items: &[Item]) -> String {
    let row = |item: &Item| {
        let target = item.target.as_ref().map_or_else(String::new, |t| format!(" -> {t}"));
        let size = if item.kind == Kind::File { format_size(item.size) } else { String::new() };
        let when = time(item.modified).map_or_else(String::new, Time::short);
        let name = format!("{}{target}", item.name);
        vec![mode_text(item), item.uid.to_string(), item.gid.to_string(), size, when, name]
    };
    table(&items.iter().map(row).collect::<Vec<_>>())
}

/// The parts of a disk.
#[must_use]
pub fn partitions(found: &[Partition]) -> String {
    let head = ["PARTITION", "OFFSET", "SIZE", "HOLDS", "FILES"].map(str::to_owned).to_vec();
    let row = |p: &Partition| {
        let number = if p.number == 0 { "the disk".to_owned() } else { p.number.to_string() };
        let holds = p.holds.as_deref().map_or_else(|| "-".to_owned(), shown);
        let files = if p.readable { "yes" } else { "no" };
        vec![number, p.offset.to_string(), format_size(p.size), holds, files.to_owned()]
    };
    table(&std::iter::once(head).chain(found.iter().map(row)).collect::<Vec<_>>())
}

/// What a copy did.
#[must_use]
pub fn copied(c: &Copied) -> String {
    let mut text =
        format!("{} files ({}), {} folders and {} links copied", c.files, format_size(c.bytes), c.folders, c.links);
    if c.special > 0 {
        let _ = write!(text, "; {} devices, pipes and sockets left out", c.special);
    }
    if c.attributes_lost > 0 {
        let _ = write!(text, "; {} extended attributes could not be kept", c.attributes_lost);
    }
    text
}

/// Something that differs.
#[derive(Debug)]
struct Difference {
    path: Name,
    change: Change,
    what: Vec<&'static str>,
    before: Option<Item>,
    after: Option<Item>,
}

impl Serialize for Difference {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut out = s.serialize_struct("difference", 5)?;
        out.serialize_field("path", &self.path)?;
        out.serialize_field("change", &self.change)?;
        out.serialize_field("what", &self.what)?;
        out.serialize_field("before", &self.before.as_ref().map(Entry))?;
        out.serialize_field("after", &self.after.as_ref().map(Entry))?;
        out.end()
    }
}

/// What differs in a folder between two moments; as JSON: docs/status-json.md.
#[derive(Debug, Serialize)]
pub struct Changes {
    volume: String,
    from: u64,
    to: u64,
    path: Name,
    added: u64,
    removed: u64,
    changed: u64,
    differences: Vec<Difference>,
}

/// What of an entry is another.
fn what(before: &Item, after: &Item, content: bool, attributes: bool) -> Vec<&'static str> {
    let found = [
        (before.kind != after.kind, "kind"),
        (content, "content"),
        (before.target != after.target, "target"),
        (before.mode != after.mode, "mode"),
        ((before.uid, before.gid) != (after.uid, after.gid), "owner"),
        (attributes, "attributes"),
        (before.kind != Kind::Folder && before.modified != after.modified, "modified"),
    ];
    found.into_iter().filter(|(differs, _)| *differs).map(|(_, word)| word).collect()
}

impl Changes {
    /// None so far.
    #[must_use]
    pub fn new(volume: &str, [from, to]: [u64; 2], path: Name) -> Changes {
        let volume = volume.to_owned();
        Changes { volume, from, to, path, added: 0, removed: 0, changed: 0, differences: Vec::new() }
    }

    /// Takes what the guest says.
    ///
    /// # Errors
    /// If it has no place here.
    pub fn take(&mut self, frame: Frame<Tell>) -> Result<(), Problem> {
        match frame {
            Frame::Message(Tell::Changed { path, change, before, after, content, attributes }) => {
                let what = match (&before, &after) {
                    (Some(b), Some(a)) => what(b, a, content, attributes),
                    _ => Vec::new(),
                };
                match change {
                    Change::Added => self.added += 1,
                    Change::Removed => self.removed += 1,
                    Change::Changed => self.changed += 1,
                }
                self.differences.push(Difference { path, change, what, before, after });
                Ok(())
            }
            Frame::Message(Tell::Trouble { .. }) => Ok(()),
            other => Err(Problem::failed(format!("the guest sends {other:?} in a comparison"))),
        }
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let top = self.path.to_string();
        let top = top.trim_end_matches('/');
        let row = |d: &Difference| {
            let change = match d.change {
                Change::Added => "added",
                Change::Removed => "removed",
                Change::Changed => "changed",
            };
            let size = |i: &Option<Item>| i.as_ref().filter(|i| i.kind == Kind::File).map(|i| format_size(i.size));
            let more = match (size(&d.before), size(&d.after)) {
                (Some(b), Some(a)) if b != a => format!("{}, {b} -> {a}", d.what.join(", ")),
                (Some(b), None) if d.change == Change::Removed => b,
                (None, Some(a)) if d.change == Change::Added => a,
                _ => d.what.join(", "),
            };
            let folder = [&d.after, &d.before].into_iter().flatten().next().is_some_and(|i| i.kind == Kind::Folder);
            let below = if d.path.0.is_empty() { String::new() } else { format!("/{}", d.path) };
            vec![change.to_owned(), format!("{top}{below}{}", if folder { "/" } else { "" }), more]
        };
        let mut out = table(&self.differences.iter().map(row).collect::<Vec<_>>());
        let _ = writeln!(
            out,
            "{} between @{} and @{}: {} added, {} removed, {} changed",
            self.volume, self.from, self.to, self.added, self.removed, self.changed
        );
        out
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::tests::item;
    use super::*;

    #[test]
    fn entries_are_shown_as_ls_does() {
        let with = |mode, kind| mode_text(&Item { mode, ..item(b"x", kind) });
        assert_eq!(with(0o755, Kind::Folder), "drwxr-xr-x");
        assert_eq!(with(0o4711, Kind::File), "-rws--x--x");
        assert_eq!(with(0o7640, Kind::File), "-rwSr-S--T");
        let text = items(&[item(b"l\n", Kind::Link), item(b"f", Kind::File)]);
        assert!(
            text.contains("l\\n -> somewhere") && text.contains("1970-01-01") && text.lines().count() == 2,
            "{text}"
        );
        assert!(time(Stamp { s: i64::MAX, ns: 0 }).is_none() && time(Stamp { s: -1, ns: 0 }).is_none());
    }

    #[test]
    fn differences_say_what_is_another() {
        let mut changes = Changes::new("web", [4, 9], "/etc/".into());
        let big = Item { size: 2048, mode: 0o600, ..item(b"f", Kind::File) };
        for (path, change, before, after, content) in [
            ("f", Change::Changed, Some(item(b"f", Kind::File)), Some(big.clone()), true),
            ("new", Change::Added, None, Some(item(b"new", Kind::Folder)), false),
            ("gone", Change::Removed, Some(big), None, false),
        ] {
            let (path, attributes) = (path.into(), false);
            let told = Tell::Changed { path, change, before, after, content, attributes };
            changes.take(Frame::Message(told)).unwrap();
        }
        let text = changes.text();
        assert!(text.contains("/etc/f ") && text.contains("content, mode, 0 B -> 2 KiB"), "{text}");
        assert!(text.contains("/etc/new/") && text.contains("web between @4 and @9: 1 added, 1 removed, 1 changed"));
        let json = serde_json::to_value(&changes).unwrap();
        assert_eq!(json["differences"][0]["what"], serde_json::json!(["content", "mode"]));
        assert_eq!(json["differences"][0]["after"]["mode"], "0600");
        assert!(changes.take(Frame::Message(Tell::Leave)).is_err());
    }
}
