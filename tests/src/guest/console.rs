//! What a guest says on a serial port, line by line, as it comes.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// An emulated guest on a loaded machine is slow; one that says nothing for so long hangs.
const SILENCE: Duration = Duration::from_secs(240);

/// A serial port's output so far. A thread reads it until the guest's end.
#[derive(Debug, Default)]
pub(crate) struct Console {
    state: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    lines: Vec<String>,
    closed: bool,
}

/// Why a wait ended without what it waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Missing {
    /// The port was closed.
    Ended,
    /// Too much time has passed.
    Late,
}

impl Console {
    /// Begins to read a port.
    pub(crate) fn start(port: impl Read + Send + 'static) -> (Arc<Console>, JoinHandle<()>) {
        let console = Arc::new(Console::default());
        let reader = std::thread::spawn({
            let console = Arc::clone(&console);
            move || console.read(port)
        });
        (console, reader)
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, port: impl Read) {
        for line in BufReader::new(port).split(b'\n') {
            let Ok(line) = line else { break };
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            self.lock().lines.push(text);
            self.changed.notify_all();
        }
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// All lines so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lock().lines.clone()
    }

    /// How many lines there are.
    pub(crate) fn len(&self) -> usize {
        self.lock().lines.len()
    }

    /// Waits for a line, from number `from` on, that is `wanted`; says which. `limit` counts from now on, and a port that is
    /// silent for long is given up earlier.
    pub(crate) fn wait(
        &self,
        from: usize,
        limit: Option<Duration>,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<usize, Missing> {
        let (start, mut last_news) = (Instant::now(), Instant::now());
        let mut seen = from;
        let mut state = self.lock();
        loop {
            if let Some(n) = state.lines.iter().skip(seen).position(|l| wanted(l)) {
                return Ok(seen + n);
            }
            if state.lines.len() > seen {
                seen = state.lines.len();
                last_news = Instant::now();
            }
            if state.closed {
                return Err(Missing::Ended);
            }
            if limit.map_or_else(|| last_news.elapsed() > SILENCE, |l| start.elapsed() > l) {
                return Err(Missing::Late);
            }
            let waited = self.changed.wait_timeout(state, Duration::from_millis(500));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
