//! Lines of JSON over a socket, with a limit on their length.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, BufRead, BufReader, Read, Write};
use thiserror::Error;

/// Longest request: a volume's and a point's name and little more.
pub const MAX_REQUEST: usize = 64 << 10;
/// Longest line of an answer: a thousand volumes' status, or a part of a diff.
pub const MAX_REPLY: usize = 8 << 20;

/// Why a line could not be read or written.
#[derive(Debug, Error)]
pub enum LineError {
    /// The connection failed, timed out, or ended in the middle of a line.
    #[error("the control connection failed: {0}")]
    Io(#[from] io::Error),
    /// Longer than allowed.
    #[error("a line of more than {0} bytes")]
    TooLong(usize),
    /// Not the JSON that was expected.
    #[error("not understood: {0}")]
    Json(#[from] serde_json::Error),
}

/// Reads lines of at most `limit` bytes.
#[derive(Debug)]
pub struct LineReader<R> {
    inner: BufReader<R>,
    limit: usize,
}

impl<R: Read> LineReader<R> {
    /// A reader with this limit.
    #[must_use]
    pub fn new(inner: R, limit: usize) -> Self {
        Self { inner: BufReader::with_capacity(8 << 10, inner), limit }
    }

    /// The next line's object, or `None` at the end of the connection.
    ///
    /// # Errors
    /// [`LineError`]; after [`LineError::Json`] the next line can be read.
    pub fn read<T: DeserializeOwned>(&mut self) -> Result<Option<T>, LineError> {
        let mut line = Vec::new();
        let most = u64::try_from(self.limit).unwrap_or(u64::MAX).saturating_add(1);
        (&mut self.inner).take(most).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(None);
        }
        if line.len() > self.limit {
            return Err(LineError::TooLong(self.limit));
        }
        if line.last() != Some(&b'\n') {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(Some(serde_json::from_slice(&line)?))
    }

    /// The connection itself, if nothing was read beyond the last line.
    pub fn into_inner(self) -> Option<R> {
        self.inner.buffer().is_empty().then(|| self.inner.into_inner())
    }
}

/// Writes one object as a line.
///
/// # Errors
/// [`LineError::Io`].
pub fn write_line<T: Serialize>(mut out: impl Write, value: &T) -> Result<(), LineError> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    out.write_all(&line)?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_refused_before_it_is_held() {
        let endless = io::repeat(b'x');
        let mut r = LineReader::new(endless, 1000);
        assert!(matches!(r.read::<u32>(), Err(LineError::TooLong(1000))));
    }

    #[test]
    fn lines_come_one_by_one_and_a_cut_line_is_an_error() {
        let mut r = LineReader::new(&b"1\nnonsense\n2\n3"[..], 100);
        assert_eq!(r.read::<u32>().unwrap(), Some(1));
        assert!(matches!(r.read::<u32>(), Err(LineError::Json(_))));
        assert_eq!(r.read::<u32>().unwrap(), Some(2));
        assert!(matches!(r.read::<u32>(), Err(LineError::Io(_))));
        assert_eq!(LineReader::new(&b""[..], 100).read::<u32>().unwrap(), None);
    }

    #[test]
    fn bytes_behind_a_line_are_not_lost_in_silence() {
        let mut r = LineReader::new(&b"1\nNBD"[..], 100);
        r.read::<u32>().unwrap();
        assert!(r.into_inner().is_none());
    }
}
