//! `afterimage files`: files of a volume as they were, without starting the machine and without root.
//!
//! | module | what |
//! |---|---|
//! | [`guest`] | the small guest that reads file systems, with the kernel's own drivers |
//! | [`inside`] | what runs in it |
//! | [`wire`] | what both say to each other |
//! | [`copy`] | what it sends becomes files of this host |
//! | [`listing`] | what it sends becomes text or JSON |
//! | [`kernel`], [`program`], [`scratch`] | what it is started from |

pub mod args;
pub mod copy;
pub mod guest;
pub mod inside;
pub mod kernel;
pub mod listing;
pub mod program;
pub mod scratch;
pub mod wire;

use crate::problem::Problem;
use crate::progress::Progress;
use crate::screen;
use crate::show::{put, put_json};
use afterimage_mgmt::client::ControlClient;
use afterimage_mgmt::when::When;
use args::{CopyArgs, FilesArgs, FilesCommand, name_of};
use copy::{Copied, Span, Top, Writer, open_folder};
use guest::Guest;
use nix::unistd::{geteuid, syncfs};
use std::ffi::OsStr;
use std::io::{self, IsTerminal, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use wire::{Ask, Frame, Item, Kind, Name, Partition, Tell};

/// Runs the command.
///
/// # Errors
/// If the moment cannot be opened, its file system not be read, or something of what was asked for not be done.
pub fn run(a: &FilesArgs) -> Result<(), Problem> {
    screen::log(screen::WARN);
    let data = std::fs::canonicalize(a.data.folder()?).map_err(|e| Problem::file(Path::new("data folder"), &e))?;
    let mut moments = vec![resolve(&data, &a.volume, &a.at)?];
    if let FilesCommand::Diff { to, .. } = &a.command {
        moments.push(resolve(&data, &a.volume, to)?);
        if moments[1].1 < moments[0].1 {
            return Err(Problem::usage(format!(
                "the later moment, @{}, is before the earlier one, @{}: exchange --at and --to",
                moments[1].1, moments[0].1
            )));
        }
    }
    if let FilesCommand::Cp(c) = &a.command {
        // Before a guest is started for it.
        place(c, 0)?;
    }
    let mut guest = Guest::start(&data, &moments)?;
    let mount = |guest: &mut Guest, disk| guest.mount(disk, a.partition, !a.no_replay);
    match &a.command {
        FilesCommand::Partitions { json } => return partitions(&mut guest, *json),
        FilesCommand::Ls { path, json } => {
            let partition = mount(&mut guest, 0)?;
            list(&mut guest, &partition, path, *json)?;
        }
        FilesCommand::Cp(c) => {
            mount(&mut guest, 0)?;
            return copy_all(&mut guest, c);
        }
        FilesCommand::Cat { path } => {
            mount(&mut guest, 0)?;
            cat(&mut guest, path)?;
        }
        FilesCommand::Diff { path, content, json, .. } => {
            mount(&mut guest, 0)?;
            mount(&mut guest, 1)?;
            let ask = Ask::Compare { path: name_of(path), content: *content };
            let mut changes = listing::Changes::new(&a.volume, [moments[0].1, moments[1].1], name_of(path));
            guest.ask(&ask, &mut |frame| changes.take(frame))?;
            if *json { put_json(&changes)? } else { put(&changes.text())? }
        }
    }
    unread(&guest)
}

fn resolve(data: &Path, volume: &str, at: &When) -> Result<(String, u64), Problem> {
    Ok((volume.to_owned(), ControlClient::connect(data)?.resolve(volume, at)?.seq))
}

/// What could not be read was printed where it stood; the command has not done all that it was asked for.
fn unread(guest: &Guest) -> Result<(), Problem> {
    match guest.troubles {
        0 => Ok(()),
        n => Err(Problem::failed(format!("{n} files or folders could not be read"))),
    }
}

fn partitions(guest: &mut Guest, json: bool) -> Result<(), Problem> {
    let mut found = Vec::new();
    guest.ask(&Ask::Partitions { disk: 0 }, &mut |frame| {
        if let Frame::Message(Tell::Partition(partition)) = frame {
            found.push(partition);
        }
        Ok(())
    })?;
    if json { put_json(&found) } else { put(&listing::partitions(&found)) }
}

fn list(guest: &mut Guest, partition: &Partition, path: &OsStr, json: bool) -> Result<(), Problem> {
    let path = name_of(path);
    let mut items = Vec::new();
    guest.ask(&Ask::List { path: path.clone() }, &mut |frame| {
        if let Frame::Message(Tell::Item(item)) = frame {
            items.push(item);
        }
        Ok(())
    })?;
    if json { put_json(&listing::List { path, partition, entries: &items }) } else { put(&listing::items(&items)) }
}

fn cat(guest: &mut Guest, path: &OsStr) -> Result<(), Problem> {
    let mut out = io::stdout().lock();
    let mut span: Option<Span> = None;
    let written = |e: io::Error| Problem::failed(format!("standard output: {e}"));
    let none = || Problem::failed("the guest sends data of no file");
    guest.ask(&Ask::Send { path: name_of(path), recursive: false }, &mut |frame| match frame {
        Frame::Message(Tell::Item(Item { kind: Kind::File, size, .. })) if span.is_none() => {
            span = Some(Span::of(size));
            Ok(())
        }
        Frame::Message(Tell::Item(item)) => Err(Problem::failed(format!("{} is no file", item.name))),
        Frame::Data(offset, bytes) => {
            let hole = span.as_mut().ok_or_else(none)?.take(offset, bytes.len())?;
            zeroes(&mut out, hole).and_then(|()| out.write_all(&bytes)).map_err(written)
        }
        Frame::Message(Tell::End) => zeroes(&mut out, span.as_ref().ok_or_else(none)?.rest()).map_err(written),
        // It was printed. What follows would stand in the wrong place.
        Frame::Message(Tell::Trouble { path, .. }) => Err(Problem::failed(format!("{path} could not be read"))),
        other => Err(Problem::failed(format!("the guest sends {other:?} for a file"))),
    })?;
    out.flush().map_err(written)
}

fn zeroes(out: &mut impl Write, mut len: u64) -> io::Result<()> {
    let block = [0; 8 << 10];
    while len > 0 {
        let part = usize::try_from(len).unwrap_or(block.len()).min(block.len());
        out.write_all(&block[..part])?;
        len -= part as u64;
    }
    Ok(())
}

/// The name that a source has in the folder that it is copied into; none if it is the root.
fn last_name(source: &OsStr) -> Result<Option<Name>, Problem> {
    let whole = source.as_bytes();
    let end = whole.iter().rposition(|b| *b != b'/').map_or(0, |at| at + 1);
    let name = whole[..end].rsplit(|b| *b == b'/').next().unwrap_or_default();
    let name = Name(name.to_vec());
    match name.0.is_empty() {
        true => Ok(None),
        false if name.is_entry() => Ok(Some(name)),
        false => Err(Problem::usage(format!("{} is no name that a copy could have", name_of(source)))),
    }
}

/// Where the n-th source goes, and the folder that was opened for it.
fn place(c: &CopyArgs, n: usize) -> Result<(Top, OwnedFd), Problem> {
    let source = c.sources.get(n).ok_or_else(|| Problem::usage("say what to copy"))?;
    let name = last_name(source)?;
    let top = if c.target.is_dir() {
        let folder = open_folder(&c.target)?;
        name.map_or(Top::Into(folder.try_clone()?), |name| Top::Named(folder, name))
    } else {
        if c.sources.len() > 1 {
            return Err(Problem::usage(format!("{} is no folder: several sources need one", c.target.display())));
        }
        let parent = c.target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = c.target.file_name().map(|n| Name(n.as_bytes().to_vec())).filter(Name::is_entry);
        let name = name.ok_or_else(|| Problem::usage(format!("{} names nothing", c.target.display())))?;
        Top::Named(open_folder(parent)?, name)
    };
    let (Top::Named(folder, _) | Top::Into(folder)) = &top;
    let folder = folder.try_clone()?;
    Ok((top, folder))
}

fn copy_all(guest: &mut Guest, c: &CopyArgs) -> Result<(), Problem> {
    let mut total = 0;
    if io::stderr().is_terminal() {
        for source in &c.sources {
            guest.ask(&Ask::Count { path: name_of(source) }, &mut |frame| {
                if let Frame::Message(Tell::Total { bytes, .. }) = frame {
                    total += bytes;
                }
                Ok(())
            })?;
        }
    }
    let mut progress = Progress::new(total);
    let mut all = Copied::default();
    for (n, source) in c.sources.iter().enumerate() {
        let (top, folder) = place(c, n)?;
        let mut writer = Writer::new(top, c.force, geteuid().is_root());
        guest.ask(&Ask::Send { path: name_of(source), recursive: c.recursive }, &mut |frame| {
            if let Frame::Data(_, bytes) = &frame {
                progress.add(bytes.len() as u64);
            }
            writer.take(frame)
        })?;
        all.add(&writer.finish()?);
        // What is reported as copied is there after a power cut, too.
        syncfs(&folder)?;
    }
    drop(progress);
    if c.json {
        put_json(&all)?
    } else {
        eprintln!("{}", listing::copied(&all))
    }
    match all.failed {
        0 => Ok(()),
        n => Err(Problem::failed(format!("{n} files or folders could not be copied"))),
    }
}
