//! Agent and appliance as two processes, as a user runs them on two hosts, here over a unix socket; the agent's processor is also
//! the client's, the appliance's another one.

use afterimage_tests::binary::path_of;
use afterimage_tests::process::Process;
use afterimage_tests::tool::{Tool, tool};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What the two have to catch up with is small; what takes longer than this does not come.
const PATIENCE: Duration = Duration::from_secs(300);

/// The processor of client and agent, and that of the appliance, for `taskset`.
pub const NEAR: &str = "0";
/// See [`NEAR`].
pub const FAR: &str = "1";

/// The two processes; the agent ends first.
#[derive(Debug)]
pub struct Site {
    agent: Process,
    appliance: Process,
    dir: PathBuf,
}

/// A command that runs where it is told, or anywhere.
#[must_use]
pub fn on(processor: Option<&str>, program: impl AsRef<std::ffi::OsStr>) -> Tool {
    match processor {
        Some(processor) => tool("taskset").args(["-c", processor]).arg(program),
        None => tool(program),
    }
}

impl Site {
    /// Starts both in `dir`, with these images, and waits until all is live, durable, and all rings are in memory.
    ///
    /// # Panics
    /// If that never happens.
    #[must_use]
    pub fn start(dir: &Path, images: &[PathBuf], ring: &str, pinned: bool) -> Site {
        let socket = dir.join("appliance.sock");
        let listen = format!("unix:{}", socket.display());
        let appliance = on(pinned.then_some(FAR), path_of("afterimage")).args(["appliance", "--listen", &listen]);
        let appliance = appliance.arg("--data").arg(dir.join("appliance"));
        let mut appliance = Process::start(appliance.into_command(), &dir.join("appliance.log"));
        appliance.wait_until("socket", || socket.exists());
        let agent = on(pinned.then_some(NEAR), path_of("afterimage")).args(["agent", "--appliance", &listen]);
        let agent = agent.args(["--ring", ring]).arg("--data").arg(dir.join("agent")).args(images);
        let agent = Process::start(agent.into_command(), &dir.join("agent.log"));
        let site = Site { agent, appliance, dir: dir.to_owned() };
        site.wait("live and durable", |all| {
            all.len() == images.len() && all.iter().all(|v| v["state"] == "live" && v["seq_durable"] == v["seq_acked"])
        });
        while threads(site.agent.id()).iter().any(|name| name.starts_with("prefault")) {
            std::thread::sleep(Duration::from_millis(20));
        }
        site
    }

    /// The agent's process.
    #[must_use]
    pub fn agent(&self) -> u32 {
        self.agent.id()
    }

    /// The appliance's process.
    #[must_use]
    pub fn appliance(&mut self) -> &mut Process {
        &mut self.appliance
    }

    /// The volumes as the agent shows them; nothing while it does not answer.
    #[must_use]
    pub fn volumes(&self) -> Vec<Value> {
        let shown =
            tool(path_of("afterimage")).args(["status", "--json", "--data"]).arg(self.dir.join("agent")).run_any();
        let status: Value = serde_json::from_str(&shown.stdout).unwrap_or_default();
        status["volumes"].as_array().cloned().unwrap_or_default()
    }

    /// Waits until the volumes are as wanted.
    ///
    /// # Panics
    /// If they never are.
    pub fn wait(&self, what: &str, wanted: impl Fn(&[Value]) -> bool) {
        let end = Instant::now() + PATIENCE;
        loop {
            let all = self.volumes();
            if wanted(&all) {
                return;
            }
            assert!(Instant::now() < end, "never became {what}: {all:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Where the volumes are served, in the order of their names.
    ///
    /// # Panics
    /// If one is not.
    #[must_use]
    pub fn uris(&self) -> Vec<String> {
        let of = |v: &Value| v["uri"][0].as_str().unwrap_or_else(|| panic!("no uri in {v}")).to_owned();
        self.volumes().iter().map(of).collect()
    }
}

/// Names of a process's threads.
fn threads(pid: u32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.map(|t| std::fs::read_to_string(t.path().join("comm")).unwrap_or_default()).collect()
}
