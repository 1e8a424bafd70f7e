//! Who holds a freeze: a small process of its own, so that a thaw follows whatever becomes of the agent.
//!
//! It is the agent's own program, started anew, and reads one line from its standard input: what to freeze. It freezes, says so on
//! its standard output, and thaws when it is told to, when its standard input ends (the agent was killed), or when the time that
//! something may be frozen is over, whichever comes first. It outlives signals that end the agent's process group, and tries to thaw
//! for as long as it takes. If it is killed itself, the agent thaws; if both are, the next agent finds in the volume's folder
//! what was frozen.
//!
//! ```text
//! in:   {"mounts":["/srv"],"guest_agent":null,"freeze_ms":20000,"hold_ms":10000}
//! out:  {"frozen":1}                      or  {"trouble":"..."}, with all thawed that was frozen
//! in:   thaw
//! out:  {"thawed":"now"}                  or  "before" it was asked;  {"trouble":"..."} if it cannot, and goes on trying
//! ```

use super::freeze::{Frozen, Targets, Thawed};
use super::pipe::{Ready, wait};
use afterimage_base::world;
use nix::sys::signal::{SigHandler, Signal, signal};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Between two tries to thaw.
const AGAIN: Duration = Duration::from_secs(1);
/// What the agent allows beyond the guard's own time, for the way there and back.
const SLACK: Duration = Duration::from_secs(2);
/// Longest line.
const MAX_LINE: u64 = 64 << 10;

/// What a guard is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Ask {
    #[serde(flatten)]
    targets: Targets,
    freeze_ms: u64,
    hold_ms: u64,
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Told {
    Frozen(u64),
    Thawed(When),
    Trouble(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum When {
    Now,
    Before,
}

/// The agent's end.
#[derive(Debug)]
pub(super) struct Guard {
    child: Child,
    to: Option<ChildStdin>,
    from: ChildStdout,
    rest: Vec<u8>,
    targets: Targets,
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

impl Guard {
    /// Has everything frozen; says how much it was. On an error all is thawed again, or the guard that comes with it has still to do so.
    pub(super) fn freeze(
        command: &[OsString],
        targets: &Targets,
        limit: Duration,
        hold: Duration,
    ) -> (Option<Guard>, Result<u64, String>) {
        let failed = |e: io::Error| (None, Err(format!("the process that holds the freeze cannot be started: {e}")));
        let Some((program, arguments)) = command.split_first() else {
            return failed(io::Error::other("it is not said which"));
        };
        let spawned =
            Command::new(program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0).spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(e) => return failed(e),
        };
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            return failed(io::Error::other("it has no pipes"));
        };
        let mut guard = Guard { child, to: Some(to), from, rest: Vec::new(), targets: targets.clone() };
        let ask = Ask { targets: targets.clone(), freeze_ms: millis(limit), hold_ms: millis(hold) };
        let line = serde_json::to_string(&ask).map_err(io::Error::other);
        let said = line.and_then(|line| guard.to.as_mut().map_or(Ok(()), |to| writeln!(to, "{line}")));
        let told = said.map_err(|e| e.to_string()).and_then(|()| guard.hear(limit + SLACK));
        let result = match told {
            Ok(Told::Frozen(count)) => Ok(count),
            Ok(Told::Trouble(why)) => Err(why),
            Ok(Told::Thawed(_)) => Err("it thawed at once".to_owned()),
            Err(e) => Err(e),
        };
        (Some(guard), result)
    }

    fn hear(&mut self, limit: Duration) -> Result<Told, String> {
        let begun = world::now();
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return serde_json::from_slice(&line)
                    .map_err(|e| format!("the process that holds the freeze said {e}"));
            }
            let left = limit.saturating_sub(world::since(begun));
            if self.rest.len() as u64 > MAX_LINE || wait(&self.from, left).map_err(|e| e.to_string())? == Ready::No {
                return Err(format!("no answer within {} ms", limit.as_millis()));
            }
            let mut buf = [0; 4096];
            match self.from.read(&mut buf) {
                Ok(0) => return Err("the process that holds the freeze has died".to_owned()),
                Ok(n) => self.rest.extend_from_slice(&buf[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.to_string()),
            }
        }
    }

    /// Has everything thawed. An error is what is still frozen, perhaps; somebody goes on trying then, and `over` hears of its end.
    pub(super) fn thaw(mut self, limit: Duration, over: impl FnOnce() + Send + 'static) -> Result<Thawed, String> {
        let said = self.to.take().map_or(Ok(()), |mut to| writeln!(to, "thaw"));
        // The pipe has ended with that, too.
        let told = said.map_err(|e| e.to_string()).and_then(|()| self.hear(limit + SLACK));
        let result = match told {
            Ok(Told::Thawed(When::Now)) => Ok(Thawed::Now),
            Ok(Told::Thawed(When::Before)) => Ok(Thawed::Before),
            Ok(Told::Trouble(why)) | Err(why) => Err(why),
            Ok(Told::Frozen(_)) => Err("it froze when it was to thaw".to_owned()),
        };
        // Freezing that takes too long is no reason to wait: it is thawed as soon as it is done.
        if result.is_ok() && self.child.wait().is_ok_and(|s| s.success()) {
            over();
            return result;
        }
        let started = world::thread::spawn("thaw", move || {
            self.see_through();
            over();
        });
        match started {
            Ok(_) => result,
            Err(e) => Err(format!("nobody can see to the thaw: {e}")),
        }
    }

    /// Waits until all is thawed.
    fn see_through(mut self) {
        self.to = None;
        if self.child.wait().is_ok_and(|s| s.success()) {
            return;
        }
        tracing::warn!("the process that held a freeze has died: its work is done here");
        thaw_all(&mut Frozen::left(&self.targets));
    }
}

/// Thaws until it is done.
pub(super) fn thaw_all(frozen: &mut Frozen) {
    let mut said = false;
    while let Err(e) = frozen.thaw() {
        if !std::mem::replace(&mut said, true) {
            tracing::error!("{e}: it is tried again every second");
        }
        world::sleep(AGAIN);
    }
    if said {
        tracing::info!("all is thawed now");
    }
}

enum Event {
    Frozen(Frozen, Result<u64, String>),
    Line(String),
    End,
}

fn say(told: &Told) {
    // Nobody may be there to hear it any more.
    if let Ok(line) = serde_json::to_string(told) {
        let mut out = io::stdout().lock();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}

/// The guard's end: what the program does that was started for it. Returns its exit code.
#[must_use]
pub fn run() -> u8 {
    for end in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGPIPE] {
        // SAFETY: ignoring a signal runs no code of ours.
        let _ = unsafe { signal(end, SigHandler::SigIgn) };
    }
    let (tell, events) = channel();
    let lines = tell.clone();
    let reader = std::thread::Builder::new().name("orders".to_owned()).spawn(move || {
        for line in io::stdin().lock().take(MAX_LINE).lines() {
            if line.is_err() || line.is_ok_and(|l| lines.send(Event::Line(l)).is_err()) {
                break;
            }
        }
        let _ = lines.send(Event::End);
    });
    let ask = match (reader, events.recv()) {
        (Ok(_), Ok(Event::Line(line))) => serde_json::from_str::<Ask>(&line).map_err(|e| e.to_string()),
        (Err(e), _) => Err(e.to_string()),
        _ => Err("nothing was asked".to_owned()),
    };
    let ask = match ask {
        Ok(ask) => ask,
        Err(e) => {
            say(&Told::Trouble(e));
            return 0;
        }
    };
    let (limit, hold) = (Duration::from_millis(ask.freeze_ms), Duration::from_millis(ask.hold_ms));
    // In a thread: a file system with much to write takes long, and cannot be told to stop.
    let freezing = std::thread::Builder::new().name("freeze".to_owned()).spawn(move || {
        let mut frozen = Frozen::default();
        let result = frozen.freeze(&ask.targets, limit);
        let _ = tell.send(Event::Frozen(frozen, result));
    });
    if let Err(e) = freezing {
        say(&Told::Trouble(e.to_string()));
        return 0;
    }
    match frozen_within(&events, limit) {
        Ok((frozen, Ok(count))) => {
            say(&Told::Frozen(count));
            hold_on(&events, frozen, hold);
        }
        Ok((mut frozen, Err(why))) => {
            thaw_all(&mut frozen);
            say(&Told::Trouble(why));
            // The answer to the thaw that follows.
            let _ = events.recv();
            say(&Told::Thawed(When::Before));
        }
        Err(why) => {
            say(&Told::Trouble(why));
            // However long it takes: then it is thawed.
            while let Ok(event) = events.recv() {
                if let Event::Frozen(mut frozen, _) = event {
                    thaw_all(&mut frozen);
                    break;
                }
            }
            say(&Told::Thawed(When::Before));
        }
    }
    0
}

type Result1 = (Frozen, Result<u64, String>);

/// Waits for the freeze; an error if it comes too late, or nobody wants it any more.
fn frozen_within(events: &Receiver<Event>, limit: Duration) -> Result<Result1, String> {
    let until = Instant::now() + limit;
    match events.recv_timeout(until.saturating_duration_since(Instant::now())) {
        Ok(Event::Frozen(frozen, result)) => Ok((frozen, result)),
        Ok(_) => Err("it was to thaw before it had frozen".to_owned()),
        Err(_) => Err(format!("not frozen within {} ms", limit.as_millis())),
    }
}

/// Holds until somebody says so, or is gone, or time is up; then thaws.
fn hold_on(events: &Receiver<Event>, mut frozen: Frozen, hold: Duration) {
    let late = matches!(events.recv_timeout(hold), Err(RecvTimeoutError::Timeout));
    let mut thawed = frozen.thaw();
    if let Err(why) = &thawed {
        say(&Told::Trouble(why.clone()));
        thaw_all(&mut frozen);
        thawed = Ok(Thawed::Now);
    }
    let when = if late || thawed == Ok(Thawed::Before) { When::Before } else { When::Now };
    if late {
        let _ = events.recv();
    }
    say(&Told::Thawed(when));
}

#[cfg(test)]
#[path = "guard_tests.rs"]
mod tests;
