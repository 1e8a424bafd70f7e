//! Runs a program to its end. Whatever goes wrong becomes a panic that shows the command line and what it printed, so that
//! a failing test explains itself.

use crate::binary::repository;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A program that has not ended by then hangs. Generous: the machine may be loaded.
const DEADLINE: Duration = Duration::from_secs(300);
/// How much of a program's output a panic shows at most.
const SHOWN: usize = 8000;

/// A command about to be run.
#[derive(Debug)]
pub struct Tool {
    command: Command,
    deadline: Duration,
}

/// What a finished program left.
#[derive(Debug)]
pub struct Finished {
    /// The command line.
    pub line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// A program of the system, found in `PATH` or where Debian puts the administrator's programs.
pub fn tool(program: impl AsRef<OsStr>) -> Tool {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).env("LC_ALL", "C.UTF-8");
    // What cargo tells the test about itself. A cargo that is started from here would take it for a change, run build scripts
    // that look at it once more (ring's), and compile nearly everything anew, and so would the next one that is not started from here.
    let own = [
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_BIN_",
        "CARGO_CRATE_",
        "CARGO_PRIMARY_",
        "CARGO_TARGET_TMPDIR",
        "OUT_DIR",
    ];
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| own.iter().any(|o| name.starts_with(o))) {
            command.env_remove(name);
        }
    }
    Tool { command, deadline: DEADLINE }
}

/// A program of a newer Debian than this machine may run, which `scripts/newer-clients.sh` keeps: `nbdinfo`, `nbdcopy`,
/// `python3` with libnbd, `qemu-img`, `qemu-io`, `qemu-nbd`, `fio`. They speak NBD with extended headers.
///
/// # Panics
/// If they are not there and cannot be fetched.
#[track_caller]
pub fn newer_tool(program: &str) -> Tool {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let fetched = tool(repository().join("scripts/newer-clients.sh")).deadline(Duration::from_secs(1800)).run();
        Path::new(fetched.stdout.trim_end()).join("bin")
    });
    tool(folder.join(program))
}

impl Tool {
    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Waits longer, or less long, than five minutes before the program counts as hanging.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The command itself, for one that is to run on.
    #[must_use]
    pub fn into_command(self) -> Command {
        self.command
    }

    /// Runs it; it must succeed.
    ///
    /// # Panics
    /// If it cannot be started, fails, or hangs.
    #[track_caller]
    pub fn run(self) -> Finished {
        let finished = self.run_any();
        assert!(finished.status.success(), "{}", finished.describe());
        finished
    }

    /// Runs it; it must fail with this exit code.
    ///
    /// # Panics
    /// If it ends in any other way.
    #[track_caller]
    pub fn run_failing(self, code: i32) -> Finished {
        let finished = self.run_any();
        assert_eq!(finished.status.code(), Some(code), "expected exit code {code}: {}", finished.describe());
        finished
    }

    /// Runs it, however it ends.
    ///
    /// # Panics
    /// If it cannot be started, or hangs.
    #[track_caller]
    pub fn run_any(mut self) -> Finished {
        let line = line_of(&self.command);
        let (stdout, stderr) = (scratch(), scratch());
        self.command.stdin(Stdio::null()).stdout(share(&stdout)).stderr(share(&stderr));
        let mut child = self.command.spawn().unwrap_or_else(|e| cannot_start(&line, &e));
        let status = wait(&mut child, self.deadline);
        let (stdout, stderr) = (content(&stdout), content(&stderr));
        let Some(status) = status else {
            panic!("hangs: {line}\n--- stdout\n{}\n--- stderr\n{}", tail(&stdout), tail(&stderr));
        };
        Finished { line, status, stdout, stderr }
    }
}

impl Finished {
    /// Command, exit status and output, for a panic.
    #[must_use]
    pub fn describe(&self) -> String {
        let Self { line, status, stdout, stderr } = self;
        format!("{line}\n{status}\n--- stdout\n{}\n--- stderr\n{}", tail(stdout), tail(stderr))
    }
}

/// The panic for a program that is not there.
pub(crate) fn cannot_start(line: &str, error: &std::io::Error) -> ! {
    panic!("cannot start ({error}; is it installed? scripts/setup-debian.sh does that): {line}");
}

/// The command as one would type it.
pub(crate) fn line_of(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Waits for a child, and kills it at the deadline.
pub(crate) fn wait(child: &mut Child, deadline: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + deadline;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait().expect("wait for a child") {
            return Some(status);
        }
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// The end of a long text.
pub(crate) fn tail(text: &str) -> &str {
    let mut start = text.len().saturating_sub(SHOWN);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

fn scratch() -> File {
    tempfile::tempfile().expect("make a scratch file")
}

fn share(file: &File) -> Stdio {
    Stdio::from(file.try_clone().expect("share a scratch file"))
}

/// What a program has written to a scratch file.
pub(crate) fn content(mut file: &File) -> String {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).expect("rewind a scratch file");
    file.read_to_end(&mut bytes).expect("read a scratch file");
    String::from_utf8_lossy(&bytes).into_owned()
}
