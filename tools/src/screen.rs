//! Standard error, shared by log lines and one live line below them.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Log lines of what goes on, and above.
pub const INFO: LevelFilter = LevelFilter::INFO;
/// Log lines of what is wrong, and above.
pub const WARN: LevelFilter = LevelFilter::WARN;

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

/// Sends log lines to standard error: those of `default` and above, or what `RUST_LOG` says (`debug`, or `warn,afterimage_agent=debug`).
pub fn log(default: LevelFilter) {
    let wish = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let filter = wish.and_then(|text| text.parse().ok()).unwrap_or_else(|| Targets::new().with_default(default));
    let colour = is_live() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let lines = fmt::layer().with_target(false).with_ansi(colour).with_writer(|| Above);
    // A second start in one process (tests) keeps the first.
    drop(tracing_subscriber::registry().with(lines).with(filter).try_init());
}
