//! What command and guest say to each other over a port of the guest's machine.
//!
//! ```text
//! frame:  length of the rest (u32, little-endian) | kind (u8) | rest
//! kind 0: a JSON object, an [`Ask`] or a [`Tell`]
//! kind 1: offset in the file (u64, little-endian) | bytes of the file
//! ```
//!
//! The guest reads file systems that may have been made to take it over, so what it says is worth no more than what stands in
//! them: lengths are looked at before anything is allocated, and [`Tell::check`] before anything is done.

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::io::{self, Read, Write};

/// Both sides are the same program; this tells it from another port.
pub const VERSION: u32 = 1;
/// Most bytes of a frame.
pub const MAX_FRAME: usize = 1 << 20;
/// Bytes of a file in a frame.
pub const MAX_DATA: usize = 256 << 10;
/// Bytes of a name in a folder, in Linux.
pub const MAX_NAME: usize = 255;
/// Bytes of a path, in Linux.
pub const MAX_PATH: usize = 4096;
/// Folders in folders that are followed: each is an open descriptor here.
pub const MAX_DEPTH: usize = 400;
/// Bytes of the extended attributes of one file that are taken along.
pub const MAX_ATTRIBUTES: usize = 128 << 10;

const JSON: u8 = 0;
const DATA: u8 = 1;

/// A name or path: bytes that need not be UTF-8. As JSON a text where it is UTF-8, else a list of numbers.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Name(pub Vec<u8>);

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// For people: what could move the cursor, and what is no text, is shown as an escape.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    '\\' => f.write_str("\\\\")?,
                    '\n' => f.write_str("\\n")?,
                    '\t' => f.write_str("\\t")?,
                    c if c.is_control() || is_format(c) => write!(f, "{}", c.escape_unicode())?,
                    c => write!(f, "{c}")?,
                }
            }
            chunk.invalid().iter().try_for_each(|b| write!(f, "\\x{b:02x}"))?;
        }
        Ok(())
    }
}

/// Marks that change the direction of what follows, or are not seen: a name could look like another.
const fn is_format(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

impl From<&str> for Name {
    fn from(text: &str) -> Name {
        Name(text.as_bytes().to_vec())
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => s.serialize_str(text),
            Err(_) => s.collect_seq(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Name, D::Error> {
        struct Bytes;
        impl<'de> Visitor<'de> for Bytes {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, or a list of bytes")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Name, E> {
                Ok(Name::from(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Name, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = seq.next_element()? {
                    bytes.push(byte);
                }
                Ok(Name(bytes))
            }
        }
        d.deserialize_any(Bytes)
    }
}

/// What an entry of a folder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A device, a pipe, a socket.
    Special,
}

/// Since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Seconds.
    pub s: i64,
    /// Nanoseconds of them.
    pub ns: u32,
}

/// An entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Its name in its folder.
    pub name: Name,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, with set-uid, set-gid and sticky.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Bytes, of a file.
    pub size: u64,
    /// When its content was changed.
    pub modified: Stamp,
    /// When it was read.
    pub accessed: Stamp,
    /// Where a link leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Name>,
    /// Extended attributes, where they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<(String, Name)>,
}

/// A part of a disk, or (with number 0) the whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// Its number.
    pub number: u32,
    /// Where it begins on the disk, in bytes.
    pub offset: u64,
    /// Its bytes.
    pub size: u64,
    /// What it holds: `ext4`, `lvm`, nothing that is known.
    pub holds: Option<String>,
    /// Whether its files can be read.
    pub readable: bool,
}

/// What the guest is asked. Disks are numbered from 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "ask")]
pub enum Ask {
    /// [`Tell::Partition`] for each part that a disk has.
    Partitions {
        /// The disk.
        disk: usize,
    },
    /// [`Tell::Mounted`].
    Mount {
        /// The disk.
        disk: usize,
        /// The partition, if it is not the only one with files.
        partition: Option<u32>,
        /// Whether a journal is replayed.
        replay: bool,
    },
    /// [`Tell::Item`] for a file, or for what a folder holds.
    List {
        /// The path, from the root of the file system.
        path: Name,
    },
    /// [`Tell::Total`] for what [`Ask::Send`] would send.
    Count {
        /// The path.
        path: Name,
    },
    /// [`Tell::Item`], its data if it is a file, what it holds and [`Tell::Leave`] if it is a folder.
    Send {
        /// The path.
        path: Name,
        /// Folders, too. A link at the end of the path is then sent as such, and otherwise followed.
        recursive: bool,
    },
    /// [`Tell::Changed`] for all that differs between disks 0 and 1.
    Compare {
        /// The path.
        path: Name,
        /// Files are read also where size and times say that nothing was changed.
        content: bool,
    },
}

/// How an entry differs between two moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// It is another.
    Changed,
}

/// What the guest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "tell")]
pub enum Tell {
    /// It is up.
    Hello {
        /// [`VERSION`].
        version: u32,
    },
    /// A part of a disk.
    Partition(Partition),
    /// A file system can be read.
    Mounted {
        /// Of which partition.
        partition: Partition,
        /// What the kernel had to say.
        notes: Vec<String>,
    },
    /// An entry.
    Item(Item),
    /// The data of a file are complete.
    End,
    /// A folder is complete.
    Leave,
    /// What there is to send.
    Total {
        /// Files, folders, links.
        items: u64,
        /// Bytes of files, without holes.
        bytes: u64,
    },
    /// Something differs.
    Changed {
        /// Its path below the one that was asked for.
        path: Name,
        /// How.
        change: Change,
        /// As it was, if it was there.
        before: Option<Item>,
        /// As it is later, if it is there.
        after: Option<Item>,
        /// Whether its data differ.
        content: bool,
        /// Whether its extended attributes differ.
        attributes: bool,
    },
    /// Something could not be read, and the rest goes on.
    Trouble {
        /// What.
        path: Name,
        /// Why.
        why: String,
    },
    /// It is at work.
    Working,
    /// What was asked cannot be done.
    Refused {
        /// Why.
        why: String,
        /// Whether it was asked wrongly.
        usage: bool,
    },
    /// What was asked is done.
    Done,
}

/// Why something that the guest said is not believed.
fn lie(what: impl fmt::Display) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the guest that reads the file system says what cannot be: {what}"),
    )
}

impl Name {
    /// Whether it can be the name of an entry of a folder.
    #[must_use]
    pub fn is_entry(&self) -> bool {
        let bytes = self.0.as_slice();
        !matches!(bytes, b"" | b"." | b"..") && bytes.len() <= MAX_NAME && !bytes.contains(&b'/') && !bytes.contains(&0)
    }

    fn is_path(&self) -> bool {
        self.0.len() <= MAX_PATH && !self.0.contains(&0)
    }
}

impl Item {
    /// Looks whether it can be one.
    ///
    /// # Errors
    /// What cannot be.
    pub fn check(&self) -> io::Result<()> {
        if !self.name.is_entry() {
            return Err(lie(format!("'{}' as the name of a file", self.name)));
        }
        let sound = self.mode <= 0o7777
            && self.size <= i64::MAX.cast_unsigned()
            && [self.modified, self.accessed].iter().all(|t| t.ns < 1_000_000_000)
            && (self.kind == Kind::Link) == self.target.is_some()
            && self.target.as_ref().is_none_or(|t| t.is_path() && !t.0.is_empty())
            && self.attributes.iter().map(|(n, v)| n.len() + v.0.len()).sum::<usize>() <= MAX_ATTRIBUTES
            && self.attributes.iter().all(|(n, _)| !n.is_empty() && n.len() <= MAX_NAME && !n.contains('\0'));
        if sound { Ok(()) } else { Err(lie(format!("what it says of '{}'", self.name))) }
    }
}

impl Tell {
    /// Looks whether it can be so.
    ///
    /// # Errors
    /// What cannot be.
    pub fn check(&self) -> io::Result<()> {
        match self {
            Tell::Item(item) => item.check(),
            Tell::Changed { path, before, after, .. } => {
                [before, after].into_iter().flatten().try_for_each(Item::check)?;
                if path.is_path() { Ok(()) } else { Err(lie("a path of more than 4096 bytes")) }
            }
            Tell::Trouble { path, .. } if !path.is_path() => Err(lie("a path of more than 4096 bytes")),
            _ => Ok(()),
        }
    }
}

/// A frame that was read.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<T> {
    /// A message.
    Message(T),
    /// Bytes of a file, and where they stand in it.
    Data(u64, Vec<u8>),
}

/// Writes a message.
///
/// # Errors
/// If it cannot be written, or is longer than a frame may be.
pub fn put<T: Serialize>(out: &mut impl Write, message: &T) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    frame(out, JSON, &[&text])
}

/// Writes bytes of a file.
///
/// # Errors
/// If they cannot be written.
pub fn put_data(out: &mut impl Write, offset: u64, bytes: &[u8]) -> io::Result<()> {
    frame(out, DATA, &[&offset.to_le_bytes(), bytes])
}

fn frame(out: &mut impl Write, kind: u8, parts: &[&[u8]]) -> io::Result<()> {
    let len = 1 + parts.iter().map(|p| p.len()).sum::<usize>();
    let head = u32::try_from(len).ok().filter(|_| len <= MAX_FRAME);
    let head = head.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a message that is too long"))?;
    let mut whole = Vec::with_capacity(4 + len);
    whole.extend_from_slice(&head.to_le_bytes());
    whole.push(kind);
    parts.iter().for_each(|p| whole.extend_from_slice(p));
    out.write_all(&whole)
}

/// Reads a frame.
///
/// # Errors
/// If the connection ends or the frame cannot be one.
pub fn get<T: for<'de> Deserialize<'de>>(from: &mut impl Read) -> io::Result<Frame<T>> {
    let mut head = [0; 4];
    from.read_exact(&mut head)?;
    let len = usize::try_from(u32::from_le_bytes(head)).unwrap_or(usize::MAX);
    if !(1..=MAX_FRAME).contains(&len) {
        return Err(lie(format!("a message of {len} bytes")));
    }
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes)?;
    match bytes.split_first() {
        Some((&JSON, text)) => serde_json::from_slice(text).map(Frame::Message).map_err(lie),
        Some((&DATA, rest)) => match rest.split_first_chunk::<8>() {
            Some((offset, data)) if !data.is_empty() => Ok(Frame::Data(u64::from_le_bytes(*offset), data.to_vec())),
            _ => Err(lie("data of no length")),
        },
        _ => Err(lie("a message of a kind that is not known")),
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
pub(super) mod tests;
