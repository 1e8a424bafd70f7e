//! Standard error, shared by log lines and one live line below them.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use tracing_subscriber::EnvFilter;

/// What the live line shows now; `None` if there is none.
static LINE: Mutex<Option<String>> = Mutex::new(None);

const CLEAR: &str = "\r\x1b[K";

/// Whether there is a terminal to keep a live line on.
#[must_use]
pub fn is_live() -> bool {
    io::stderr().is_terminal()
}

/// Shows `text` as the live line, or takes it away.
pub fn live(text: Option<String>) {
    let mut line = LINE.lock().unwrap_or_else(PoisonError::into_inner);
    if *line != text {
        drop(write!(io::stderr(), "{CLEAR}{}", text.as_deref().unwrap_or("")));
        *line = text;
    }
}

/// Writes above the live line.
struct Above;

impl Write for Above {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let line = LINE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut err = io::stderr().lock();
        match line.as_deref() {
            Some(text) => {
                write!(err, "{CLEAR}")?;
                err.write_all(bytes)?;
                write!(err, "{text}")?;
            }
            None => err.write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Sends log lines to standard error: `info` and above, or as `RUST_LOG` says.
pub fn log(default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let colour = is_live() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    // A second start in one process (tests) keeps the first.
    drop(
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_target(false)
            .with_ansi(colour)
            .with_writer(|| Above)
            .try_init(),
    );
}
