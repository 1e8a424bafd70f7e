//! `afterimage restore`: a volume as it was, into a file, a block device or a pipe.
//!
//! The daemon serves the moment over the control connection (NBD); what reads as zeroes is not read, and in
//! files not written. A file or device is made durable before the command says that it is done.

use crate::image::Image;
use crate::problem::Problem;
use crate::progress::{Progress, rate};
use crate::qcow2;
use afterimage_mgmt::client::ControlClient;
use afterimage_mgmt::protocol::Position;
use afterimage_mgmt::units::format_size;
use afterimage_mgmt::when::When;
use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Instant;

/// So much of a file is written before its disk is told to begin.
const SYNC_EVERY: usize = 32 << 20;
/// Zeroes shorter than this are not worth a hole.
const HOLE: usize = 4096;

/// How the image is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// The bytes of the disk.
    Raw,
    /// QEMU's format, version 3, only the parts that hold data.
    Qcow2,
}

/// What is asked.
#[derive(Debug)]
pub struct Options {
    /// The volume.
    pub volume: String,
    /// The moment.
    pub at: When,
    /// Where to, `-` for standard output.
    pub to: PathBuf,
    /// How.
    pub format: Format,
    /// Overwrite what is there.
    pub yes: bool,
}

/// Restores, and returns what was done in words.
///
/// # Errors
/// If the moment cannot be opened, the target not be written, or is something that must not be overwritten.
pub fn restore(data: &Path, options: &Options) -> Result<String, Problem> {
    let mut control = ControlClient::connect(data)?;
    let protected: Vec<PathBuf> = control.status()?.volumes.into_iter().map(|v| v.path.into()).collect();
    let to_stdout = options.to.as_os_str() == "-";
    if !to_stdout {
        check_target(options, &protected)?;
    }
    let started = Instant::now();
    let (position, mut image) = Image::open(data, &options.volume, &options.at)?;
    let ranges = image.data_ranges()?;
    let bytes =
        if to_stdout { to_pipe(&mut image, &ranges, options.format)? } else { to_path(&mut image, &ranges, options)? };
    let place = if to_stdout { "standard output".to_owned() } else { options.to.display().to_string() };
    Ok(report(&position, bytes, &place, started))
}

fn report(position: &Position, bytes: u64, place: &str, started: Instant) -> String {
    let at = position.time.map_or_else(String::new, |t| format!(" ({})", t.short()));
    let elapsed = started.elapsed();
    format!(
        "restored {} as it was after write @{}{at} to {place}: {} of data in a disk of {}, {:.1} s, {}/s",
        position.volume,
        position.seq,
        format_size(bytes),
        format_size(position.size),
        elapsed.as_secs_f64(),
        format_size(rate(bytes, elapsed))
    )
}

fn is_same_disk(a: &Metadata, b: &Metadata) -> bool {
    if a.file_type().is_block_device() || b.file_type().is_block_device() {
        return a.file_type().is_block_device() && b.file_type().is_block_device() && a.rdev() == b.rdev();
    }
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// An agent holds a lock on each of its disks, and this process may be asking an appliance that knows nothing of them.
fn is_locked(path: &Path) -> bool {
    let Ok(file) = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path) else { return false };
    matches!(Flock::lock(file, FlockArg::LockExclusiveNonblock), Err((_, nix::errno::Errno::EWOULDBLOCK)))
}

fn check_target(options: &Options, protected: &[PathBuf]) -> Result<(), Problem> {
    let name = options.to.display();
    let there = match std::fs::metadata(&options.to) {
        Ok(there) => there,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Problem::file(&options.to, &e)),
    };
    let is_protected = |p: &PathBuf| std::fs::metadata(p).is_ok_and(|m| is_same_disk(&m, &there));
    if protected.iter().any(is_protected) {
        return Err(Problem::failed(format!(
            "{name} is the disk of a volume that is protected right now: restore to another path, stop `afterimage up`, and \
             put it in place then"
        )));
    }
    if is_locked(&options.to) {
        return Err(Problem::failed(format!(
            "{name} is in use by another process, which holds a lock on it (the disk of a volume that is protected right now?): \
             restore to another path"
        )));
    }
    let kind = there.file_type();
    if kind.is_dir() {
        return Err(Problem::failed(format!("{name} is a directory: name a file in it")));
    }
    if kind.is_block_device() {
        if options.format == Format::Qcow2 {
            return Err(Problem::usage(format!("{name} is a block device: it takes --format raw only")));
        }
        if !options.yes {
            return Err(Problem::failed(format!(
                "{name} is a block device: all that is on it would be lost; add --yes if it may"
            )));
        }
    } else if kind.is_file() && there.len() > 0 && !options.yes {
        return Err(Problem::failed(format!(
            "{name} is there already, {} long: it would be lost; add --yes if it may",
            format_size(there.len())
        )));
    }
    Ok(())
}

fn total(ranges: &[(u64, u64)]) -> u64 {
    ranges.iter().map(|(_, len)| len).sum()
}

fn write_qcow2(image: &mut Image, ranges: &[(u64, u64)], out: &mut dyn Write) -> Result<u64, Problem> {
    let layout = qcow2::Layout::new(image.size(), ranges);
    layout.write_metadata(out)?;
    let bytes = layout.data().map(|(_, len)| len).sum();
    let mut progress = Progress::new(bytes);
    image.read_ranges(layout.data(), |_, data| {
        out.write_all(data)?;
        progress.add(data.len() as u64);
        Ok(())
    })?;
    out.flush()?;
    Ok(bytes)
}

fn zeroes(out: &mut dyn Write, mut len: u64) -> io::Result<()> {
    let block = vec![0; 64 << 10];
    while len > 0 {
        let n = len.min(block.len() as u64);
        out.write_all(&block[..usize::try_from(n).unwrap_or(0)])?;
        len -= n;
    }
    Ok(())
}

fn to_pipe(image: &mut Image, ranges: &[(u64, u64)], format: Format) -> Result<u64, Problem> {
    let mut out = BufWriter::with_capacity(1 << 20, io::stdout().lock());
    if format == Format::Qcow2 {
        return write_qcow2(image, ranges, &mut out);
    }
    let mut progress = Progress::new(total(ranges));
    let (mut at, size) = (0, image.size());
    image.read_ranges(ranges.iter().copied(), |offset, data| {
        zeroes(&mut out, offset - at)?;
        out.write_all(data)?;
        at = offset + data.len() as u64;
        progress.add(data.len() as u64);
        Ok(())
    })?;
    zeroes(&mut out, size - at)?;
    out.flush()?;
    Ok(total(ranges))
}

fn to_path(image: &mut Image, ranges: &[(u64, u64)], options: &Options) -> Result<u64, Problem> {
    let to = &options.to;
    let problem = |e: io::Error| Problem::file(to, &e);
    let new = !to.exists();
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(to).map_err(problem)?;
    let kind = file.metadata().map_err(problem)?.file_type();
    let result = if kind.is_file() {
        file.set_len(0).map_err(problem)?;
        to_file(image, ranges, options.format, &file)
    } else if kind.is_block_device() {
        to_device(image, ranges, &file, to)
    } else {
        Err(Problem::failed(format!("{} is neither a file nor a block device", to.display())))
    };
    if result.is_err() && new {
        drop(std::fs::remove_file(to));
    }
    let bytes = result.map_err(|p| Problem { text: format!("{}: {}", to.display(), p.text), ..p })?;
    file.sync_all().map_err(problem)?;
    if kind.is_file() {
        afterimage_base::crashsafe::sync_parent(to).map_err(problem)?;
    }
    Ok(bytes)
}

fn to_file(image: &mut Image, ranges: &[(u64, u64)], format: Format, file: &File) -> Result<u64, Problem> {
    if format == Format::Qcow2 {
        return write_qcow2(image, ranges, &mut BufWriter::with_capacity(1 << 20, file));
    }
    file.set_len(image.size())?;
    let mut progress = Progress::new(total(ranges));
    syncing(file, |written| {
        image.read_ranges(ranges.iter().copied(), |offset, data| {
            write_sparse(file, offset, data)?;
            written(data.len());
            progress.add(data.len() as u64);
            Ok(())
        })
    })?;
    Ok(total(ranges))
}

/// Does `work`, which says how much it has written to `file`, and makes that durable meanwhile: at the end little is left to
/// wait for, and the disk writes while the next blocks are decoded.
fn syncing(file: &File, work: impl FnOnce(&mut dyn FnMut(usize)) -> Result<(), Problem>) -> Result<(), Problem> {
    // Room for one: while one sync is under way, a single further one takes what has come since.
    let (wanted, syncs) = sync_channel::<()>(1);
    thread::scope(|scope| {
        let syncer = scope.spawn(move || syncs.iter().try_for_each(|()| file.sync_data()));
        let mut since = 0;
        let done = work(&mut |bytes| {
            since += bytes;
            if since >= SYNC_EVERY {
                since = 0;
                // One is waiting already, or one has failed, which is said below.
                let _ = wanted.try_send(());
            }
        });
        drop(wanted);
        // An error of the disk is told once, to whoever hears it first.
        let synced = syncer.join().unwrap_or_else(|_| Err(io::Error::other("the thread that syncs has panicked")));
        done.and(synced.map_err(Problem::from))
    })
}

/// Writes what is not zero into a file that is zero so far, neighbouring blocks with one call.
fn write_sparse(file: &File, offset: u64, data: &[u8]) -> io::Result<()> {
    let mut from = None;
    for (i, block) in data.chunks(HOLE).enumerate() {
        let at = i * HOLE;
        let zero = block.iter().all(|b| *b == 0);
        match (zero, from) {
            (false, None) => from = Some(at),
            (true, Some(start)) => {
                file.write_all_at(&data[start..at], offset + start as u64)?;
                from = None;
            }
            _ => {}
        }
    }
    from.map_or(Ok(()), |start| file.write_all_at(&data[start..], offset + start as u64))
}

fn zero_device(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let signed = |n: u64| i64::try_from(n).map_err(io::Error::other);
    let flags = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    if len == 0 || fallocate(file, flags, signed(offset)?, signed(len)?).is_ok() {
        return Ok(());
    }
    // Not sector-aligned, or a device that cannot: write them.
    let block = vec![0; 1 << 20];
    let mut at = offset;
    while at < offset + len {
        let n = usize::try_from(offset + len - at).unwrap_or(usize::MAX).min(block.len());
        file.write_all_at(&block[..n], at)?;
        at += n as u64;
    }
    Ok(())
}

fn to_device(image: &mut Image, ranges: &[(u64, u64)], file: &File, path: &Path) -> Result<u64, Problem> {
    let room = (&*file).seek(SeekFrom::End(0))?;
    if room < image.size() {
        return Err(Problem::failed(format!(
            "the device has {}, the volume needs {}: {} is too small",
            format_size(room),
            format_size(image.size()),
            path.display()
        )));
    }
    let mut progress = Progress::new(total(ranges));
    let (mut at, size) = (0, image.size());
    image.read_ranges(ranges.iter().copied(), |offset, data| {
        zero_device(file, at, offset - at)?;
        file.write_all_at(data, offset)?;
        at = offset + data.len() as u64;
        progress.add(data.len() as u64);
        Ok(())
    })?;
    zero_device(file, at, size - at)?;
    Ok(total(ranges))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_writing_keeps_every_byte_and_every_hole() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 << 10).unwrap();
        let mut data = vec![0; 40_000];
        for at in [0, 4095, 12_288, 39_999] {
            data[at] = 7;
        }
        write_sparse(&file, 8192, &data).unwrap();
        let mut back = vec![0; 64 << 10];
        file.read_exact_at(&mut back, 0).unwrap();
        assert_eq!(back[8192..48_192], data[..]);
        assert!(back[..8192].iter().chain(&back[48_192..]).all(|b| *b == 0));
    }
}
