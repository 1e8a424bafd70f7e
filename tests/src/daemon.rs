//! `afterimage up`, as a user runs it: started, asked for its status, killed, started again.

use crate::binary::{ours, path_of};
use crate::process::Process;
use crate::tool::{Finished, Tool, tool};
use serde_json::Value;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

/// What the appliance has to catch up with is small; what takes longer than this does not come.
pub(crate) const DEADLINE: Duration = Duration::from_secs(300);

/// How a daemon is to be started.
#[derive(Debug)]
pub struct Builder {
    data: PathBuf,
    log: PathBuf,
    volumes: Vec<OsString>,
    options: Vec<OsString>,
    prefix: Vec<OsString>,
}

/// A daemon: running, or between [`kill`](Daemon::kill) and [`start`](Daemon::start).
#[derive(Debug)]
pub struct Daemon {
    how: Builder,
    process: Option<Process>,
}

/// The plan of a daemon whose data folder is `dir`/data and whose output goes to `dir`/up.log.
#[must_use]
pub fn daemon(dir: &Path) -> Builder {
    let (data, log) = (dir.join("data"), dir.join("up.log"));
    Builder { data, log, volumes: Vec::new(), options: Vec::new(), prefix: Vec::new() }
}

impl Builder {
    /// Protects a disk under a name.
    #[must_use]
    pub fn volume(mut self, name: &str, path: &Path) -> Self {
        let mut volume = OsString::from(format!("{name}="));
        volume.push(path);
        self.volumes.push(volume);
        self
    }

    /// Adds options of `up`.
    #[must_use]
    pub fn options<S: Into<OsString>>(mut self, options: impl IntoIterator<Item = S>) -> Self {
        self.options.extend(options.into_iter().map(Into::into));
        self
    }

    /// Puts the data folder elsewhere.
    #[must_use]
    pub fn data(mut self, data: &Path) -> Self {
        data.clone_into(&mut self.data);
        self
    }

    /// Runs our programs through another one: `taskset`, `nsenter`.
    #[must_use]
    pub fn prefix<S: Into<OsString>>(mut self, prefix: impl IntoIterator<Item = S>) -> Self {
        self.prefix = prefix.into_iter().map(Into::into).collect();
        self
    }

    /// Starts it and waits until it answers.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    #[track_caller]
    pub fn start(self) -> Daemon {
        let mut daemon = Daemon { how: self, process: None };
        daemon.start();
        daemon
    }
}

impl Daemon {
    /// Starts it (again), with the same command line, and waits until it answers.
    ///
    /// # Panics
    /// If it is running, or does not come up.
    #[track_caller]
    pub fn start(&mut self) {
        assert!(self.process.is_none(), "the daemon is running already");
        let up = self.command("up").args(&self.how.options).args(&self.how.volumes);
        let mut process = Process::start(up.into_command(), &self.how.log);
        let id = u64::from(process.id());
        process.wait_until("status", || self.try_status().is_some_and(|s| s["pid"] == id));
        self.process = Some(process);
    }

    /// One of the user's commands on this daemon's data: `cli("status")` is `afterimage status --data DIR`.
    #[must_use]
    pub fn cli(&self, command: &str) -> Tool {
        let mut words = command.split(' ');
        let first = self.command(words.next().unwrap_or_default());
        // `point ls`: the option goes behind the last word.
        words.fold(first, Tool::arg)
    }

    fn command(&self, command: &str) -> Tool {
        let mut line = self.how.prefix.iter().cloned().chain([path_of("afterimage").into_os_string()]);
        let program = line.next().unwrap_or_default();
        tool(program).args(line).env("AFTERIMAGE_DATA", &self.how.data).env("NO_COLOR", "1").arg(command)
    }

    /// The data folder.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.how.data
    }

    /// What it has printed so far, over all its lives.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.how.log).unwrap_or_default()
    }

    /// The process.
    ///
    /// # Panics
    /// If it is not running.
    #[must_use]
    #[track_caller]
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the daemon is not running")
    }

    fn try_status(&self) -> Option<Value> {
        let finished = self.cli("status").arg("--json").run_any();
        finished.status.success().then(|| parse(&finished))
    }

    /// `status --json`.
    ///
    /// # Panics
    /// If the daemon does not answer.
    #[must_use]
    #[track_caller]
    pub fn status(&self) -> Value {
        parse(&self.cli("status").arg("--json").run())
    }

    /// The part of the status about a volume.
    ///
    /// # Panics
    /// If there is no such volume.
    #[must_use]
    #[track_caller]
    pub fn volume(&self, name: &str) -> Value {
        let status = self.status();
        let found = status["volumes"].as_array().and_then(|all| all.iter().find(|v| v["name"] == name));
        found.unwrap_or_else(|| panic!("no volume {name} in {status}")).clone()
    }

    /// The URI at which a volume is served.
    ///
    /// # Panics
    /// If there is no such volume.
    #[must_use]
    #[track_caller]
    pub fn uri(&self, name: &str) -> String {
        let volume = self.volume(name);
        volume["uri"][0].as_str().unwrap_or_else(|| panic!("no uri in {volume}")).to_owned()
    }

    /// Waits until the volume's status is as wanted, and returns it.
    ///
    /// # Panics
    /// If it never is.
    #[track_caller]
    pub fn wait_volume(&self, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + DEADLINE;
        loop {
            let volume = self.volume(name);
            if wanted(&volume) {
                return volume;
            }
            let log = self.log();
            assert!(Instant::now() < end, "{name} never became {what}: {volume:#}\n--- daemon\n{log}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the initial sync or resync is over.
    ///
    /// # Panics
    /// If it never is.
    #[track_caller]
    pub fn wait_live(&self, name: &str) -> Value {
        self.wait_volume(name, "live", |v| v["state"] == "live" && !v["first_seq"].is_null())
    }

    /// Waits until every acknowledged write is durable at the appliance, and returns the newest seq.
    ///
    /// # Panics
    /// If that never happens.
    #[track_caller]
    pub fn wait_durable(&self, name: &str) -> u64 {
        let caught_up = |v: &Value| v["state"] == "live" && number(v, "seq_durable") >= number(v, "seq_acked");
        number(&self.wait_volume(name, "durable", caught_up), "seq_durable")
    }

    /// Makes a recovery point and returns its seq.
    ///
    /// # Panics
    /// If that fails.
    #[track_caller]
    pub fn point(&self, volume: &str, name: &str) -> u64 {
        self.cli("point create").args([volume, "--name", name]).run();
        let list = parse(&self.cli("point ls").args([volume, "--json"]).run());
        let found = list["points"].as_array().and_then(|all| all.iter().find(|p| p["name"] == name));
        number(found.unwrap_or_else(|| panic!("no point {name} in {list}")), "seq")
    }

    /// Writes a volume as it was to a file.
    ///
    /// # Panics
    /// If that fails.
    #[track_caller]
    pub fn restore(&self, volume: &str, at: &str, to: &Path) {
        self.cli("restore").args([volume, "--at", at, "--to"]).arg(to).run();
    }

    /// Serves a volume as it was, until the result is dropped; with its URI.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    #[track_caller]
    pub fn export(&self, volume: &str, at: &str, socket: &Path, options: &[&str]) -> (Process, String) {
        let listen = format!("unix:{}", socket.display());
        let export = self.cli("export").args([volume, "--at", at, "--listen", &listen]).args(options);
        let mut process = Process::start(export.into_command(), &socket.with_extension("log"));
        process.wait_until("socket", || socket.exists());
        (process, format!("nbd+unix:///{volume}?socket={}", socket.display()))
    }

    /// Kills it with SIGKILL.
    ///
    /// # Panics
    /// If it is not running any more.
    #[track_caller]
    pub fn kill(&mut self) {
        self.process.take().expect("the daemon is not running").kill();
    }

    /// Asks it to stop, and returns how it ended.
    ///
    /// # Panics
    /// If it does not stop.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.process.take().expect("the daemon is not running").terminate()
    }

    /// `afterimage check` of the data folder; the daemon must not be running.
    #[must_use]
    #[track_caller]
    pub fn check(&self) -> Tool {
        ours("afterimage").env("NO_COLOR", "1").arg("check").arg("--data").arg(self.data())
    }
}

/// A number of a status.
///
/// # Panics
/// If it is not there.
#[must_use]
#[track_caller]
pub fn number(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or_else(|| panic!("no number {field} in {value}"))
}

#[track_caller]
pub(crate) fn parse(finished: &Finished) -> Value {
    serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("not JSON ({e}): {}", finished.describe()))
}
