//! Agent and appliance as two processes, started from the example files of the repository with their places changed.

use crate::binary::{path_of, repository};
use crate::daemon::{DEADLINE, number, parse};
use crate::data;
use crate::lab::DISK;
use crate::process::{Process, kill_in};
use crate::tool::{Tool, tool};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Instant;

/// Which process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The protected side.
    Agent,
    /// The one with the history.
    Appliance,
}

impl Role {
    /// The command that starts it, which is the name of its files, too.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Role::Agent => "agent",
            Role::Appliance => "appliance",
        }
    }
}

/// The two processes; what is dropped first is named first.
#[derive(Debug)]
pub struct Pair {
    agent: Option<Process>,
    appliance: Option<Process>,
    /// The real disk: a raw image.
    pub image: PathBuf,
    /// TCP port of the NBD server.
    pub nbd: u16,
    /// TCP port of the appliance.
    pub wire: u16,
    options: Vec<String>,
    dir: tempfile::TempDir,
}

impl Drop for Pair {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("AFTERIMAGE_KEEP").is_some() {
            self.dir.disable_cleanup(true);
            eprintln!("kept: {}", self.dir.path().display());
        }
        // First what would start it again.
        self.appliance = None;
        kill_in(&self.data(Role::Appliance).join("failover"));
    }
}

impl Pair {
    /// An empty disk of this size, and both processes, over TCP; waits until the disk is live.
    ///
    /// # Panics
    /// If it never is.
    #[must_use]
    #[track_caller]
    pub fn new(size: u64) -> Pair {
        let mut pair = Pair::plan(size, "64MiB");
        pair.start(Role::Appliance);
        pair.start(Role::Agent);
        pair.wait_live();
        pair
    }

    /// The same with nothing started, and a ring of this size.
    ///
    /// # Panics
    /// If the folder cannot be made.
    #[must_use]
    #[track_caller]
    pub fn plan(size: u64, ring: &str) -> Pair {
        Pair::plan_in(&std::env::temp_dir(), size, ring)
    }

    /// The same with its folder in `parent`.
    ///
    /// # Panics
    /// If the folder cannot be made.
    #[must_use]
    #[track_caller]
    pub fn plan_in(parent: &Path, size: u64, ring: &str) -> Pair {
        let dir = tempfile::Builder::new().prefix("afterimage-pair-").tempdir_in(parent).expect("make a folder");
        let image = dir.path().join("web.raw");
        data::sparse(&image, size);
        let (nbd, wire) = (data::free_port(), data::free_port());
        let options = vec!["--ring".to_owned(), ring.to_owned()];
        let pair = Pair { agent: None, appliance: None, image, nbd, wire, options, dir };
        pair.write_config(Role::Agent, wire);
        pair.write_config(Role::Appliance, wire);
        pair
    }

    /// Has the agent reach the appliance at another port, from its next start on: that of a proxy.
    ///
    /// # Panics
    /// If the file cannot be written.
    pub fn set_way(&self, port: u16) {
        self.write_config(Role::Agent, port);
    }

    /// Adds an option, or a disk, to the agent's command line from its next start on.
    pub fn add_option(&mut self, option: &str) {
        self.options.push(option.to_owned());
    }

    fn write_config(&self, role: Role, wire: u16) {
        let name = format!("{}.toml", role.word());
        let example = std::fs::read_to_string(repository().join("examples").join(&name)).expect("read an example");
        let text = example
            .replace("/var/lib/afterimage", &self.dir.path().display().to_string())
            .replace("/var/lib/images", &self.dir.path().display().to_string())
            .replace("tcp:127.0.0.1:9443", &format!("tcp:127.0.0.1:{wire}"))
            .replace("tcp:127.0.0.1:10809", &format!("tcp:127.0.0.1:{}", self.nbd))
            .replace("name = \"web\"", &format!("name = \"{DISK}\""));
        std::fs::write(self.path(&name), text).expect("write a configuration file");
    }

    /// A path in the test's own folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The data folder of a role.
    #[must_use]
    pub fn data(&self, role: Role) -> PathBuf {
        self.path(role.word())
    }

    /// What a role has printed so far, over all its lives.
    #[must_use]
    pub fn log(&self, role: Role) -> String {
        std::fs::read_to_string(self.path(&format!("{}.log", role.word()))).unwrap_or_default()
    }

    fn slot(&mut self, role: Role) -> &mut Option<Process> {
        match role {
            Role::Agent => &mut self.agent,
            Role::Appliance => &mut self.appliance,
        }
    }

    /// The process of a role.
    ///
    /// # Panics
    /// If it is not running.
    #[must_use]
    #[track_caller]
    pub fn process(&mut self, role: Role) -> &mut Process {
        self.slot(role).as_mut().unwrap_or_else(|| panic!("the {} is not running", role.word()))
    }

    /// Starts a role and waits until it answers.
    ///
    /// # Panics
    /// If it is running, or does not come up.
    #[track_caller]
    pub fn start(&mut self, role: Role) {
        assert!(self.slot(role).is_none(), "the {} is running already", role.word());
        let mut command = tool(path_of("afterimage")).env("NO_COLOR", "1").arg(role.word());
        command = command.arg("--config").arg(self.path(&format!("{}.toml", role.word())));
        if role == Role::Agent {
            command = command.args(&self.options);
        }
        let mut process = Process::start(command.into_command(), &self.path(&format!("{}.log", role.word())));
        let id = u64::from(process.id());
        process.wait_until("status", || self.try_status(role).is_some_and(|s| s["pid"] == id));
        *self.slot(role) = Some(process);
    }

    /// Kills a role with SIGKILL.
    ///
    /// # Panics
    /// If it is not running any more.
    #[track_caller]
    pub fn kill(&mut self, role: Role) {
        self.slot(role).take().unwrap_or_else(|| panic!("the {} is not running", role.word())).kill();
    }

    /// Asks a role to stop, and returns how it ended.
    ///
    /// # Panics
    /// If it does not stop.
    #[track_caller]
    pub fn stop(&mut self, role: Role) -> ExitStatus {
        self.slot(role).take().unwrap_or_else(|| panic!("the {} is not running", role.word())).terminate()
    }

    /// One of the user's commands on a role's data folder.
    #[must_use]
    pub fn cli(&self, role: Role, command: &str) -> Tool {
        let first = tool(path_of("afterimage")).env("AFTERIMAGE_DATA", self.data(role)).env("NO_COLOR", "1");
        command.split(' ').fold(first, Tool::arg)
    }

    fn try_status(&self, role: Role) -> Option<Value> {
        let finished = self.cli(role, "status --json").run_any();
        finished.status.success().then(|| parse(&finished))
    }

    /// The volume as a role's status shows it, if there is one and it answers.
    #[must_use]
    pub fn try_volume(&self, role: Role) -> Option<Value> {
        let status = self.try_status(role)?;
        status["volumes"].as_array().and_then(|all| all.iter().find(|v| v["name"] == DISK)).cloned()
    }

    /// Waits until a role shows the volume as wanted, and returns it.
    ///
    /// # Panics
    /// If it never does.
    #[track_caller]
    pub fn wait_volume(&self, role: Role, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + DEADLINE;
        loop {
            let volume = self.try_volume(role);
            if let Some(volume) = volume.as_ref().filter(|v| wanted(v)) {
                return volume.clone();
            }
            assert!(Instant::now() < end, "never became {what}: {volume:#?}\n{}", self.logs());
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    /// What both have printed, for a panic.
    #[must_use]
    pub fn logs(&self) -> String {
        let of = |role: Role| format!("--- {}\n{}", role.word(), crate::tool::tail(&self.log(role)));
        format!("{}\n{}", of(Role::Agent), of(Role::Appliance))
    }

    /// Waits until every write can be chosen again.
    ///
    /// # Panics
    /// If that never happens.
    #[track_caller]
    pub fn wait_live(&self) {
        self.wait_volume(Role::Agent, "live", |v| v["state"] == "live");
        self.wait_volume(Role::Appliance, "live", |v| v["state"] == "live" && !v["first_seq"].is_null());
    }

    /// Waits until every acknowledged write is durable at the appliance, and returns the newest seq.
    ///
    /// # Panics
    /// If that never happens.
    #[track_caller]
    pub fn wait_durable(&self) -> u64 {
        let caught_up = |v: &Value| v["state"] == "live" && number(v, "seq_durable") >= number(v, "seq_acked");
        number(&self.wait_volume(Role::Agent, "durable", caught_up), "seq_durable")
    }

    /// Where the disk is served.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("nbd://127.0.0.1:{}/{DISK}", self.nbd)
    }

    /// Writes the volume as it was to a file.
    ///
    /// # Panics
    /// If that fails.
    #[track_caller]
    pub fn restore(&self, at: &str, to: &Path) {
        self.cli(Role::Appliance, "restore").args([DISK, "--at", at, "--yes", "--to"]).arg(to).run();
    }

    /// Once all is durable at the appliance, the newest image restored from there must be what the disk holds.
    ///
    /// # Panics
    /// If it is not.
    #[track_caller]
    pub fn assert_history_is_the_disk(&self) {
        let seq = self.wait_durable();
        let restored = self.path("restored-latest");
        self.restore(&format!("@{seq}"), &restored);
        data::assert_same(&self.image, &restored);
        std::fs::remove_file(&restored).expect("remove a restored image");
    }
}
