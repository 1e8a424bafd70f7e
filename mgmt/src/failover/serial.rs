//! What a guest prints on its serial port: kept in memory as far as checks need it, and in a file.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Most that is held, and most that is kept in the file: a boot prints a tenth of it. Of what is held the older half goes
/// first; the file keeps the beginning.
const MAX: usize = 4 << 20;

/// What was printed so far.
#[derive(Debug, Clone, Default)]
pub struct Serial {
    held: Arc<Mutex<Vec<u8>>>,
}

impl Serial {
    /// Connects to the port's socket and reads from now on, until QEMU ends; also into the file.
    ///
    /// # Errors
    /// If nobody listens, or the file cannot be made.
    pub fn follow(socket: &Path, file: &Path) -> io::Result<Serial> {
        let stream = UnixStream::connect(socket)?;
        let (serial, file) = (Serial::default(), File::create(file)?);
        let held = serial.clone();
        thread::Builder::new().name("serial".to_owned()).spawn(move || held.read(stream, file))?;
        Ok(serial)
    }

    fn read(&self, mut from: impl Read, mut to: impl Write) {
        let (mut part, mut room) = ([0; 4096], MAX);
        while let Ok(n @ 1..) = from.read(&mut part) {
            let keep = n.min(room);
            // A full disk costs the file its end and the guest nothing.
            room = if to.write_all(&part[..keep]).is_ok() { room - keep } else { 0 };
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            if held.len() + n > MAX {
                held.drain(..MAX / 2);
            }
            held.extend_from_slice(&part[..n]);
        }
    }

    /// Whether this was printed.
    #[must_use]
    pub fn has(&self, text: &str) -> bool {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.windows(text.len().max(1)).any(|w| w == text.as_bytes())
    }

    /// The last line with something in it, for a message.
    #[must_use]
    pub fn last_line(&self) -> String {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let end = String::from_utf8_lossy(&held[held.len().saturating_sub(400)..]).into_owned();
        let line = end.lines().map(str::trim).rfind(|l| !l.is_empty()).unwrap_or_default();
        line.chars().filter(|c| !c.is_control()).take(120).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_and_kept_has_an_end() {
        let (serial, mut file) = (Serial::default(), Vec::new());
        let mut text = b"first\n".to_vec();
        text.resize(2 * MAX, b'x');
        text.extend_from_slice(b"\nlo\x1bgin: \n \n");
        serial.read(&text[..], &mut file);
        assert_eq!(file[..], text[..MAX]);
        assert!(serial.held.lock().unwrap().len() <= MAX && !serial.has("first"));
        assert!(serial.has("gin: ") && !serial.has("Login"));
        assert_eq!(serial.last_line(), "login:");
    }
}
