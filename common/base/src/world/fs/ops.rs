//! What is done with an open file.

use super::{File, Kind, Metadata};
use std::io::{self, IoSlice, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

fn off(offset: u64) -> i64 {
    // A file offset above i64 cannot exist, so the kernel refuses what does not fit.
    i64::try_from(offset).unwrap_or(-1)
}

fn count(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

impl File {
    pub(super) fn of(&self) -> Result<&std::fs::File, &dyn super::SimFile> {
        match &self.0 {
            Kind::Real(f) => Ok(f),
            Kind::Locked(f) => Ok(f),
            Kind::Sim { file, .. } => Err(&**file),
        }
    }

    /// What is known of it.
    ///
    /// # Errors
    /// As [`std::fs::File::metadata`].
    pub fn metadata(&self) -> io::Result<Metadata> {
        match self.of() {
            Ok(f) => f.metadata().map(|m| Metadata::from(&m)),
            Err(f) => Ok(f.metadata()),
        }
    }

    /// Its length in bytes, also of a block device. Moves the position.
    ///
    /// # Errors
    /// As [`Seek::seek`].
    pub fn size(&self) -> io::Result<u64> {
        match self.of() {
            Ok(mut f) => f.seek(SeekFrom::End(0)),
            Err(f) => Ok(f.metadata().len),
        }
    }

    /// As [`FileExt::read_at`].
    ///
    /// # Errors
    /// As [`FileExt::read_at`].
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        match self.of() {
            Ok(f) => f.read_at(buf, offset),
            Err(f) => f.read_at(buf, offset),
        }
    }

    /// As [`FileExt::read_exact_at`].
    ///
    /// # Errors
    /// As [`FileExt::read_exact_at`].
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            match self.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Reads what is in the page cache, without waiting for the disk.
    ///
    /// # Errors
    /// EAGAIN if nothing of it is; anything else if the file system cannot tell.
    pub fn read_cached_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        match self.of() {
            Ok(f) => {
                let iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
                // SAFETY: one vector that describes an exclusive slice.
                count(unsafe { libc::preadv2(f.as_raw_fd(), &raw const iov, 1, off(offset), libc::RWF_NOWAIT) })
            }
            Err(f) => f.read_at(buf, offset),
        }
    }

    /// As [`FileExt::write_at`].
    ///
    /// # Errors
    /// As [`FileExt::write_at`].
    pub fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        match self.of() {
            Ok(f) => f.write_at(data, offset),
            Err(f) => f.write_at(data, offset, false),
        }
    }

    /// As [`FileExt::write_all_at`].
    ///
    /// # Errors
    /// As [`FileExt::write_all_at`].
    pub fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < data.len() {
            match self.write_at(&data[done..], offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// As [`write_at`](Self::write_at), and durable when it returns (`RWF_DSYNC`).
    ///
    /// # Errors
    /// As [`FileExt::write_at`].
    pub fn write_durable_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        match self.of() {
            Ok(f) => {
                let iov = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
                // SAFETY: one vector that describes a slice, which the kernel only reads.
                count(unsafe { libc::pwritev2(f.as_raw_fd(), &raw const iov, 1, off(offset), libc::RWF_DSYNC) })
            }
            Err(f) => f.write_at(data, offset, true),
        }
    }

    /// Writes several buffers at `offset`, one behind the other; returns how many bytes were taken.
    ///
    /// # Errors
    /// As [`FileExt::write_at`].
    pub fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        match self.of() {
            Ok(f) => nix::sys::uio::pwritev(f, bufs, off(offset)).map_err(Into::into),
            Err(f) => {
                let mut all = Vec::with_capacity(bufs.iter().map(|b| b.len()).sum());
                bufs.iter().for_each(|b| all.extend_from_slice(b));
                f.write_at(&all, offset, false)
            }
        }
    }

    /// As [`std::fs::File::set_len`].
    ///
    /// # Errors
    /// As [`std::fs::File::set_len`].
    pub fn set_len(&self, len: u64) -> io::Result<()> {
        match self.of() {
            Ok(f) => f.set_len(len),
            Err(f) => f.set_len(len),
        }
    }

    /// As [`std::fs::File::sync_data`].
    ///
    /// # Errors
    /// As [`std::fs::File::sync_data`]. It is final for the file (I11).
    pub fn sync_data(&self) -> io::Result<()> {
        match self.of() {
            Ok(f) => f.sync_data(),
            Err(f) => f.sync(),
        }
    }

    /// As [`std::fs::File::sync_all`].
    ///
    /// # Errors
    /// As [`std::fs::File::sync_all`]. It is final for the file (I11).
    pub fn sync_all(&self) -> io::Result<()> {
        match self.of() {
            Ok(f) => f.sync_all(),
            Err(f) => f.sync(),
        }
    }

    /// As fallocate(2).
    ///
    /// # Errors
    /// As fallocate(2).
    pub fn fallocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        match self.of() {
            Ok(f) => {
                // SAFETY: only a descriptor that we own and numbers are passed.
                let r = unsafe { libc::fallocate64(f.as_raw_fd(), mode, off(offset), off(len)) };
                count(r as isize).map(drop)
            }
            Err(f) => f.fallocate(mode, offset, len),
        }
    }

    /// As lseek(2), for `SEEK_DATA` and `SEEK_HOLE`: nobody uses the file's position.
    ///
    /// # Errors
    /// As lseek(2).
    pub fn seek_to(&self, offset: u64, whence: i32) -> io::Result<u64> {
        match self.of() {
            Ok(f) => {
                // SAFETY: only a descriptor that we own and numbers are passed.
                let r = unsafe { libc::lseek64(f.as_raw_fd(), off(offset), whence) };
                u64::try_from(r).map_err(|_| io::Error::last_os_error())
            }
            Err(f) => f.seek(offset, whence),
        }
    }

    /// Asks for the range to be read ahead.
    pub fn will_need(&self, offset: u64, len: u64) {
        if let Ok(f) = self.of() {
            // SAFETY: only a descriptor that we own and numbers are passed. A refusal changes nothing.
            let _ = unsafe { libc::posix_fadvise64(f.as_raw_fd(), off(offset), off(len), libc::POSIX_FADV_WILLNEED) };
        }
    }
}

impl Read for File {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Kind::Real(f) => f.read(buf),
            Kind::Locked(f) => f.read(buf),
            Kind::Sim { file, at } => {
                let n = file.read_at(buf, at.load(Ordering::Relaxed))?;
                at.fetch_add(n as u64, Ordering::Relaxed);
                Ok(n)
            }
        }
    }
}

impl Write for File {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Kind::Real(f) => f.write(data),
            Kind::Locked(f) => f.write(data),
            Kind::Sim { file, at } => {
                let n = file.write_at(data, at.load(Ordering::Relaxed), false)?;
                at.fetch_add(n as u64, Ordering::Relaxed);
                Ok(n)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
