//! A program that runs on beside the test. What it prints is kept in a file; when its owner drops it, it is killed.

use crate::tool::{cannot_start, line_of, tail, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

/// What takes longer than this hangs.
const DEADLINE: Duration = Duration::from_secs(120);

/// A running program.
#[derive(Debug)]
pub struct Process {
    child: Child,
    line: String,
    log: PathBuf,
}

impl Process {
    /// Starts it. Its output goes to the end of `log`, which is made if need be.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn start(mut command: Command, log: &Path) -> Self {
        let line = line_of(&command);
        let file = File::options().create(true).append(true).open(log).expect("open the log of a process");
        let twin = file.try_clone().expect("share the log of a process");
        command.stdin(Stdio::null()).stdout(file).stderr(twin);
        let child = spawn(command).unwrap_or_else(|e| cannot_start(&line, &e));
        Self { child, line, log: log.to_owned() }
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `ready` says so.
    ///
    /// # Panics
    /// If the program ends first, or it takes for ever.
    #[track_caller]
    pub fn wait_until(&mut self, what: &str, mut ready: impl FnMut() -> bool) {
        let end = Instant::now() + DEADLINE;
        while !ready() {
            if let Some(status) = self.child.try_wait().expect("wait for a child") {
                panic!("ended ({status}) before it was ready ({what}): {}", self.describe());
            }
            assert!(Instant::now() < end, "never became ready ({what}): {}", self.describe());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until it has ended by itself, and returns how.
    ///
    /// # Panics
    /// If it does not end.
    #[track_caller]
    pub fn wait_end(&mut self) -> ExitStatus {
        wait(&mut self.child, DEADLINE).unwrap_or_else(|| panic!("does not end: {}", self.describe()))
    }

    /// Is it still running?
    ///
    /// # Panics
    /// If the system does not say.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("wait for a child").is_none()
    }

    /// Kills it, with SIGKILL, and waits for its end.
    ///
    /// # Panics
    /// If it had ended before: a daemon that dies on its own is a failure.
    #[track_caller]
    pub fn kill(mut self) {
        if let Some(status) = self.child.try_wait().expect("wait for a child") {
            panic!("had ended by itself ({status}): {}", self.describe());
        }
        self.child.kill().expect("kill a child");
        self.child.wait().expect("wait for a child");
    }

    /// Asks it to end, with SIGTERM, and returns how it did.
    ///
    /// # Panics
    /// If it does not end.
    #[track_caller]
    pub fn terminate(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        wait(&mut self.child, DEADLINE).unwrap_or_else(|| panic!("does not end on SIGTERM: {}", self.describe()))
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If that fails.
    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).expect("a process id is an i32");
        kill(Pid::from_raw(id), signal).expect("signal a child");
    }

    /// Command line and the end of what it printed, for a panic.
    #[must_use]
    pub fn describe(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        format!("{}\n--- output\n{}", self.line, tail(&String::from_utf8_lossy(&log)))
    }
}

/// Starts a program that dies with this one, even if this one is killed.
///
/// The kernel sends the signal when the *thread* that started the child ends, and a test's thread ends with its test; so
/// one thread starts them all and never ends.
pub(crate) fn spawn(mut command: Command) -> io::Result<Child> {
    type Order = (Command, Sender<io::Result<Child>>);
    static STARTER: OnceLock<Sender<Order>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (send, orders) = channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in orders {
                let _ = answer.send(command.spawn());
            }
        });
        send
    });
    let parent = nix::unistd::getpid();
    // SAFETY: between fork and exec only system calls are made, nothing is allocated and no lock is taken.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            // It may have died before this was said.
            if nix::unistd::getppid() == parent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
        });
    }
    let (answer, child) = channel();
    let gone = |_| io::Error::other("the thread that starts programs has ended");
    starter.send((command, answer)).map_err(|_| gone(()))?;
    child.recv().map_err(|_| gone(()))?
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("a process of the failed test: {}", self.describe());
        }
    }
}

/// Waits until something is so.
///
/// # Panics
/// If it never is.
#[track_caller]
pub fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < DEADLINE, "never came: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Processes that work in a folder.
///
/// # Panics
/// If the processes cannot be listed.
#[must_use]
pub fn processes_in(folder: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir("/proc").expect("list processes").flatten().map(|e| e.path());
    all.filter(|p| std::fs::read_link(p.join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder))).collect()
}

/// Waits until no process works in a folder: that of a job ends a little later than it has written down that the job has ended.
///
/// # Panics
/// If one goes on.
#[track_caller]
pub fn wait_idle(folder: &Path) {
    wait_until(&format!("no process in {}", folder.display()), || processes_in(folder).is_empty());
}

/// Kills what works in a folder: a failover goes on without the daemon, so that of a test that failed would go on without its folder.
pub fn kill_in(folder: &Path) {
    for process in processes_in(folder) {
        let id = process.file_name().and_then(|name| name.to_str()?.parse().ok());
        let _ = id.map(|id| kill(Pid::from_raw(id), Signal::SIGKILL));
    }
}
