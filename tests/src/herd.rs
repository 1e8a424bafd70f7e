//! Several agents with one appliance and mgmt, all joined, each agent's way to mgmt through a proxy of its own.

use crate::binary::path_of;
use crate::daemon::{DEADLINE, parse};
use crate::data;
use crate::process::{Process, kill_in};
use crate::proxy::{Proxy, proxy};
use crate::tool::{Tool, tool};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Bytes of each disk, if nothing else is said.
pub const SIZE: u64 = 1 << 20;
/// The group.
pub const GROUP: &str = "herd";

/// What is other than usual.
#[derive(Debug, Clone, Copy, Default)]
pub struct Special {
    /// What agents and mgmt do wrong on purpose.
    pub broken: Option<&'static str>,
    /// More lines of the appliance's file.
    pub appliance: &'static str,
    /// Lines of each volume's table in the agents' files: they are started with files then. `{I}` stands for the agent's number, `{DIR}` for the folder
    /// of everything.
    pub volume: Option<&'static str>,
    /// Nothing lies between agents and mgmt, and there are no proxies: for figures.
    pub direct: bool,
    /// Bytes of each disk.
    pub size: Option<u64>,
}

/// See the module.
#[derive(Debug)]
pub struct Herd {
    agents: Vec<Option<Process>>,
    mgmt: Option<Process>,
    appliance: Option<Process>,
    /// Agents' ways to mgmt, unless they are direct.
    pub proxies: Vec<Proxy>,
    disks: usize,
    special: Special,
    wire: u16,
    port: u16,
    dir: tempfile::TempDir,
}

impl Drop for Herd {
    fn drop(&mut self) {
        kill_in(&self.dir.path().join("appliance/failover"));
    }
}

fn afterimage(data: &Path) -> Tool {
    tool(path_of("afterimage")).env("AFTERIMAGE_DATA", data).env("NO_COLOR", "1")
}

fn ready(process: &mut Process, data: &Path, what: &str) {
    let id = u64::from(process.id());
    process.wait_until(what, || {
        let done = afterimage(data).args(["status", "--json"]).run_any();
        done.status.success() && parse(&done)["pid"] == id
    });
}

impl Herd {
    /// So many agents, each with so many disks, in one group with these options. `broken` is what agents and mgmt do wrong on purpose.
    #[must_use]
    pub fn new(agents: usize, disks: usize, options: &[&str], broken: Option<&'static str>) -> Herd {
        Herd::special(agents, disks, options, Special { broken, ..Special::default() })
    }

    /// The same with what is other than usual.
    ///
    /// # Panics
    /// If one of them does not come up.
    #[must_use]
    pub fn special(agents: usize, disks: usize, options: &[&str], special: Special) -> Herd {
        let dir = tempfile::Builder::new().prefix("afterimage-herd-").tempdir().expect("make a folder");
        let (port, wire) = (data::free_port(), data::free_port());
        let mgmt = start_mgmt(dir.path(), port, special.broken);
        let join = |data: &Path, role: &str, name: &str, port: u16| {
            let token = afterimage(&dir.path().join("mgmt"))
                .args(["mgmt", "token", "create", "--role", role, "--name", name])
                .run();
            let token = token.stdout.trim().to_owned();
            afterimage(data).env("AFTERIMAGE_TOKEN", token).args([role, "join", &format!("127.0.0.1:{port}")]).run();
        };
        let vault = dir.path().join("appliance");
        join(&vault, "appliance", "vault", port);
        let config = dir.path().join("appliance.toml");
        let text =
            format!("listen = [\"tcp:127.0.0.1:{wire}\"]\nconnections_per_address = 1000\n{}\n", special.appliance);
        std::fs::write(&config, text).expect("write a configuration file");
        let appliance = start_appliance(dir.path());
        let mut herd = Herd {
            agents: Vec::new(),
            mgmt: Some(mgmt),
            appliance: Some(appliance),
            proxies: Vec::new(),
            disks,
            special,
            wire,
            port,
            dir,
        };
        for i in 0..agents {
            let proxy = (!special.direct).then(|| proxy(port, i as u64 + 1));
            let token = herd.mgmt_cli(&["mgmt", "token", "create", "--name", &format!("m{i}")]).run();
            let token = token.stdout.trim().to_owned();
            let address = format!("127.0.0.1:{}", proxy.as_ref().map_or(port, |proxy| proxy.port));
            afterimage(&herd.data(i)).env("AFTERIMAGE_TOKEN", token).args(["agent", "join", &address]).run();
            herd.proxies.extend(proxy);
            for d in 0..disks {
                data::sparse(&herd.image(i * disks + d), special.size.unwrap_or(SIZE));
            }
            herd.agents.push(None);
            herd.start_agent(i);
        }
        let names: Vec<String> = (0..agents).map(|i| format!("m{i}")).collect();
        herd.mgmt_cli(&["group", "create", GROUP]).args(&names).args(options).run();
        (0..agents).for_each(|i| herd.wait_live(i));
        herd
    }

    /// The folder of an agent, where its NBD socket is, too.
    #[must_use]
    pub fn data(&self, agent: usize) -> PathBuf {
        self.dir.path().join(format!("a{agent}"))
    }

    /// A real disk: a raw image.
    #[must_use]
    pub fn image(&self, disk: usize) -> PathBuf {
        self.dir.path().join(format!("d{disk}.raw"))
    }

    /// Waits until all disks that an agent serves are live.
    ///
    /// # Panics
    /// If that does not come.
    pub fn wait_live(&self, agent: usize) {
        let end = Instant::now() + DEADLINE;
        while !self.is_live(agent) {
            assert!(Instant::now() < end, "agent {agent} is not live: {}", self.logs());
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    fn is_live(&self, agent: usize) -> bool {
        let done = afterimage(&self.data(agent)).args(["status", "--json"]).run_any();
        let volumes = done.status.success().then(|| parse(&done)["volumes"].clone());
        volumes.is_some_and(|v| v.as_array().is_some_and(|all| all.iter().all(|v| v["state"] == "live")))
    }

    /// Starts an agent.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start_agent(&mut self, i: usize) {
        self.start_agent_with(i, 0..self.disks);
    }

    /// Starts an agent that serves only these of its disks.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start_agent_with(&mut self, i: usize, disks: std::ops::Range<usize>) {
        let data = self.data(i);
        let mut command = afterimage(&data).args(["agent", "--ring", "8MiB", "--point-every", "0"]);
        command = command.arg("--appliance").arg(format!("tcp:127.0.0.1:{}", self.wire));
        if let Some(what) = self.special.broken {
            command = command.env("AFTERIMAGE_BREAK", what);
        }
        let images = disks.map(|d| self.image(i * self.disks + d));
        if let Some(lines) = self.special.volume {
            let lines = lines.replace("{I}", &i.to_string()).replace("{DIR}", &self.dir.path().display().to_string());
            let tables = images.map(|image| format!("[[volume]]\npath = {image:?}\n{lines}\n"));
            let config = self.dir.path().join(format!("a{i}.toml"));
            std::fs::write(&config, tables.collect::<String>()).expect("write a configuration file");
            command = command.arg("--config").arg(config);
        } else {
            command = images.fold(command, Tool::arg);
        }
        let mut process = Process::start(command.into_command(), &self.dir.path().join(format!("a{i}.log")));
        ready(&mut process, &data, "an agent");
        self.agents[i] = Some(process);
    }

    /// The process of an agent.
    ///
    /// # Panics
    /// If it is not running.
    #[must_use]
    pub fn agent(&self, i: usize) -> &Process {
        self.agents[i].as_ref().expect("a running agent")
    }

    /// Kills an agent.
    ///
    /// # Panics
    /// If it is not running.
    pub fn kill_agent(&mut self, i: usize) {
        self.agents[i].take().expect("a running agent").kill();
    }

    /// The process of the appliance.
    ///
    /// # Panics
    /// If it is not running.
    #[must_use]
    pub fn appliance(&self) -> &Process {
        self.appliance.as_ref().expect("a running appliance")
    }

    /// Kills the appliance.
    ///
    /// # Panics
    /// If it is not running.
    pub fn kill_appliance(&mut self) {
        self.appliance.take().expect("a running appliance").kill();
    }

    /// Starts it again.
    pub fn start_appliance(&mut self) {
        self.appliance = Some(start_appliance(self.dir.path()));
    }

    /// The process of mgmt.
    ///
    /// # Panics
    /// If it is not running.
    #[must_use]
    pub fn mgmt(&self) -> &Process {
        self.mgmt.as_ref().expect("a running mgmt")
    }

    /// Kills mgmt.
    ///
    /// # Panics
    /// If it is not running.
    pub fn kill_mgmt(&mut self) {
        self.mgmt.take().expect("a running mgmt").kill();
    }

    /// Starts it again.
    pub fn start_mgmt(&mut self) {
        self.mgmt = Some(start_mgmt(self.dir.path(), self.port, self.special.broken));
    }

    /// The folder of everything.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A command for the appliance.
    #[must_use]
    pub fn appliance_cli(&self, words: &[&str]) -> Tool {
        afterimage(&self.dir.path().join("appliance")).args(words)
    }

    /// A command for mgmt.
    #[must_use]
    pub fn mgmt_cli(&self, words: &[&str]) -> Tool {
        afterimage(&self.dir.path().join("mgmt")).args(words)
    }

    /// All points and gaps of the group.
    #[must_use]
    pub fn points(&self) -> Value {
        parse(&self.mgmt_cli(&["group", "points", GROUP, "--limit", "10000", "--json"]).run())
    }

    /// The first bytes of a volume as it was at a seq.
    ///
    /// # Panics
    /// If it cannot be restored.
    #[must_use]
    pub fn restore(&self, volume: &str, seq: u64) -> Vec<u8> {
        let to = self.dir.path().join("restored");
        let at = format!("@{seq}");
        self.appliance_cli(&["restore", volume, "--at", &at, "--yes", "--to"]).arg(&to).run();
        let bytes = std::fs::read(&to).expect("read a restored image");
        std::fs::remove_file(&to).expect("remove a restored image");
        bytes
    }

    /// What all have printed, for a panic.
    #[must_use]
    pub fn logs(&self) -> String {
        let mut names = vec!["mgmt".to_owned(), "appliance".to_owned()];
        names.extend((0..self.agents.len()).map(|i| format!("a{i}")));
        let mut out = String::new();
        for name in names {
            let text = std::fs::read_to_string(self.dir.path().join(format!("{name}.log"))).unwrap_or_default();
            out.push_str(&format!("--- {name}\n{}\n", crate::tool::tail(&text)));
        }
        out
    }
}

fn start_appliance(dir: &Path) -> Process {
    let vault = dir.join("appliance");
    let command = afterimage(&vault).args(["appliance", "--config"]).arg(dir.join("appliance.toml"));
    let mut process = Process::start(command.into_command(), &dir.join("appliance.log"));
    ready(&mut process, &vault, "the appliance");
    process
}

fn start_mgmt(dir: &Path, port: u16, broken: Option<&str>) -> Process {
    let data = dir.join("mgmt");
    let listen = format!("127.0.0.1:{port}");
    let mut command = afterimage(&data).args(["mgmt", "--api", "none", "--listen", &listen]);
    if let Some(what) = broken {
        command = command.env("AFTERIMAGE_BREAK", what);
    }
    let mut process = Process::start(command.into_command(), &dir.join("mgmt.log"));
    ready(&mut process, &data, "mgmt");
    process
}
