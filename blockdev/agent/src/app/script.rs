//! A script of the user's: run without a shell, in a process group of its own, with a time limit and little room to talk.

use super::pipe::{Ready, wait};
use afterimage_base::world;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Bytes of what a script prints that are kept: the last ones.
const KEPT: usize = 1024;
/// How often a script that has closed its output is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// How a script went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ran {
    /// Why it did not do well, if so.
    pub(super) trouble: Option<String>,
    /// The end of what it printed, on either channel.
    pub(super) output: String,
}

struct Tail(Vec<u8>);

impl Tail {
    fn add(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        let over = self.0.len().saturating_sub(KEPT);
        self.0.drain(..over);
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).trim().to_owned()
    }
}

fn failed(words: String) -> Ran {
    Ran { trouble: Some(words), output: String::new() }
}

/// Runs `command` (program and arguments) with these variables besides its own.
pub(super) fn run(command: &[String], variables: &[(&str, &str)], limit: Duration) -> Ran {
    let Some((program, arguments)) = command.split_first() else { return failed("there is no program".to_owned()) };
    let (ours, theirs) = match io::pipe() {
        Ok(ends) => ends,
        Err(e) => return failed(format!("no pipe for {program}: {e}")),
    };
    let both = theirs.try_clone().map(|second| (theirs, second));
    let spawned = both.and_then(|(out, err)| {
        Command::new(program)
            .args(arguments)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::from(OwnedFd::from(out)))
            .stderr(Stdio::from(OwnedFd::from(err)))
            .process_group(0)
            .spawn()
    });
    match spawned {
        Ok(child) => watch(child, File::from(OwnedFd::from(ours)), program, limit),
        Err(e) => failed(format!("{program} cannot be run: {e}")),
    }
}

fn watch(mut child: Child, mut from: File, program: &str, limit: Duration) -> Ran {
    let now = world::now();
    let until = now.checked_add(limit).unwrap_or(now);
    let mut tail = Tail(Vec::new());
    let ended = follow(&mut child, &mut from, &mut tail, until);
    let trouble = match ended {
        Ok(Some(status)) if status.success() => None,
        Ok(Some(status)) => Some(format!("{program} ended with {status}")),
        Ok(None) => {
            kill(&mut child);
            Some(format!("{program} took longer than {} ms and was killed", limit.as_millis()))
        }
        Err(e) => {
            kill(&mut child);
            Some(format!("{program} cannot be watched, and was killed: {e}"))
        }
    };
    Ran { trouble, output: tail.text() }
}

/// Takes what it prints until it ends; `None` if that is not by `until`.
fn follow(child: &mut Child, from: &mut File, tail: &mut Tail, until: Instant) -> io::Result<Option<ExitStatus>> {
    let (mut buf, mut open) = ([0; 4096], true);
    loop {
        // The status first: what it printed before it ended is in the pipe then. Its own children may keep the pipe open.
        let status = child.try_wait()?;
        let left = until.saturating_duration_since(world::now());
        let patience = if status.is_some() { Duration::ZERO } else { left.min(LOOK) };
        if !open {
            world::sleep(patience);
        } else if wait(from, patience)? == Ready::Yes {
            let n = from.read(&mut buf)?;
            open = n > 0;
            tail.add(&buf[..n]);
            if n > 0 && !left.is_zero() {
                continue;
            }
        }
        match status {
            Some(status) => return Ok(Some(status)),
            None if left.is_zero() => return Ok(None),
            None => {}
        }
    }
}

/// Ends it and what it has started.
fn kill(child: &mut Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        // It may have ended by itself.
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn sh(script: &str, limit: Duration) -> Ran {
        run(&["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()], &[("AFTERIMAGE_STEP", "pre")], limit)
    }

    #[test]
    fn what_it_says_and_how_it_ends_is_kept() {
        let ran = sh("echo out $AFTERIMAGE_STEP; echo err >&2", LONG);
        assert_eq!(ran, Ran { trouble: None, output: "out pre\nerr".to_owned() });
        let ran = sh("echo no; exit 3", LONG);
        assert!(ran.trouble.unwrap().contains("exit status: 3") && ran.output == "no");
        let ran = sh("kill -9 $$", LONG);
        assert!(ran.trouble.unwrap().contains("signal: 9"));
        let ran = run(&["/no/such/program".to_owned()], &[], LONG);
        assert!(ran.trouble.unwrap().contains("/no/such/program"));
        // No shell comes between: arguments are what they are.
        let ran = run(&["/bin/echo".to_owned(), "$HOME; `id`".to_owned()], &[], LONG);
        assert_eq!(ran.output, "$HOME; `id`");
    }

    #[test]
    fn it_may_talk_for_ever_and_only_the_end_is_kept() {
        let ran = sh("i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done", LONG);
        assert!(ran.trouble.is_none() && ran.output.len() <= KEPT && ran.output.ends_with("19999"), "{ran:?}");
        let ran = sh("printf '\\377\\376bad'", LONG);
        assert!(ran.output.ends_with("bad"));
    }

    #[test]
    fn one_that_hangs_is_killed_with_all_that_it_has_started() {
        let dir = tempfile::tempdir().unwrap();
        let (pids, sign) = (dir.path().join("pids"), "echo begun");
        let script = format!("{sign}; sleep 1000 & echo $! > {0}; exec >&- 2>&-; sleep 1000", pids.display());
        let ran = sh(&script, Duration::from_millis(500));
        assert!(ran.trouble.unwrap().contains("killed") && ran.output == "begun");
        let child: i32 = std::fs::read_to_string(&pids).unwrap().trim().parse().unwrap();
        let until = Instant::now() + LONG;
        // Gone, or a zombie that waits for its new parent.
        let lives = || {
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
        };
        while lives() {
            assert!(Instant::now() < until, "what the script started lives on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn what_it_leaves_in_the_background_holds_up_nobody() {
        let ran = sh("sleep 1000 & echo $!", LONG);
        assert_eq!(ran.trouble, None);
        let child = Pid::from_raw(ran.output.parse().unwrap());
        nix::sys::signal::kill(child, Signal::SIGKILL).unwrap();
    }
}
