//! A progress bar with rate and time left, on a terminal only.

use afterimage_mgmt::units::{format_duration, format_size};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

const REDRAW: Duration = Duration::from_millis(200);
const WIDTH: usize = 30;

/// Progress of `total` bytes on standard error.
#[derive(Debug)]
pub struct Progress {
    shown: bool,
    total: u64,
    done: u64,
    start: Instant,
    drawn: Instant,
}

impl Progress {
    /// A bar that begins now.
    #[must_use]
    pub fn new(total: u64) -> Progress {
        let now = Instant::now();
        Progress { shown: std::io::stderr().is_terminal(), total, done: 0, start: now, drawn: now }
    }

    /// `bytes` more are done.
    pub fn add(&mut self, bytes: u64) {
        self.done += bytes;
        if self.shown && self.drawn.elapsed() >= REDRAW {
            self.drawn = Instant::now();
            drop(write!(std::io::stderr(), "\r\x1b[K{}", line(self.done, self.total, self.start.elapsed())));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            drop(write!(std::io::stderr(), "\r\x1b[K"));
        }
    }
}

/// Bytes per second.
#[must_use]
pub fn rate(bytes: u64, time: Duration) -> u64 {
    let nanos = time.as_nanos().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
}

fn line(done: u64, total: u64, time: Duration) -> String {
    let permille = done.min(total) * 1000 / total.max(1);
    let full = usize::try_from(permille).unwrap_or(0) * WIDTH / 1000;
    let speed = rate(done, time);
    let left = match (total.saturating_sub(done)).checked_div(speed) {
        Some(seconds) => format!("{} left", format_duration(Duration::from_secs(seconds.max(1)))),
        None => String::new(),
    };
    format!(
        "[{}{}] {:>3}%  {} of {}  {}/s  {left}",
        "#".repeat(full),
        ".".repeat(WIDTH - full),
        permille / 10,
        format_size(done),
        format_size(total),
        format_size(speed)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_far_how_fast_and_how_long() {
        let text = line(512 << 20, 1 << 30, Duration::from_secs(2));
        assert_eq!(text, "[###############...............]  50%  512 MiB of 1 GiB  256 MiB/s  2s left");
        assert!(line(0, 0, Duration::ZERO).contains("0%"));
        assert!(line(10, 5, Duration::from_secs(1)).contains("100%"));
    }
}
