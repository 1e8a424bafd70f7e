//! mgmt of its own, with an agent and an appliance that have joined it; and what strangers try at their ports.

use crate::binary::path_of;
use crate::data;
use crate::pair::{Pair, Role};
use crate::process::Process;
use crate::tool::{Finished, Tool, tool};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a log does not say by then, it does not say.
const PATIENCE: Duration = Duration::from_secs(60);

/// mgmt.
#[derive(Debug)]
pub struct Mgmt {
    /// Its process; none after [`kill`](Mgmt::kill).
    pub process: Option<Process>,
    /// Its data folder.
    pub data: PathBuf,
    /// The port of coordination.
    pub port: u16,
    /// The port of the API.
    pub api: u16,
    log: PathBuf,
}

/// Our program on a data folder.
#[must_use]
pub fn afterimage(data: &Path) -> Tool {
    tool(path_of("afterimage")).env("AFTERIMAGE_DATA", data).env("NO_COLOR", "1")
}

impl Mgmt {
    /// Starts one with everything in this folder.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn start(dir: &Path) -> Mgmt {
        std::fs::create_dir_all(dir).expect("make a folder");
        let mut mgmt = Mgmt {
            process: None,
            data: dir.join("mgmt"),
            log: dir.join("mgmt.log"),
            port: data::free_port(),
            api: data::free_port(),
        };
        mgmt.run(&[]);
        mgmt
    }

    /// Starts it again, with more options.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn run(&mut self, options: &[&str]) {
        let listen = format!("127.0.0.1:{}", self.port);
        let api = format!("127.0.0.1:{}", self.api);
        let command = afterimage(&self.data).args(["mgmt", "--listen", &listen, "--api", &api]).args(options);
        let mut process = Process::start(command.into_command(), &self.log);
        process.wait_until("mgmt", || afterimage(&self.data).args(["mgmt", "ls"]).run_any().status.success());
        self.process = Some(process);
    }

    /// Kills it.
    ///
    /// # Panics
    /// If it is not running.
    pub fn kill(&mut self) {
        self.process.take().expect("a running mgmt").kill();
    }

    /// A command of `afterimage mgmt` on its own host.
    #[must_use]
    pub fn cli(&self, words: &[&str]) -> Tool {
        afterimage(&self.data).arg("mgmt").args(words)
    }

    /// A token for joining.
    ///
    /// # Panics
    /// If it makes none.
    #[must_use]
    pub fn token(&self, role: &str, name: &str, more: &[&str]) -> String {
        let words = ["token", "create", "--role", role, "--name", name];
        self.cli(&words).args(more).run().stdout.trim().to_owned()
    }

    /// Has a data folder join, however that ends.
    #[must_use]
    pub fn join(&self, data: &Path, role: &str, token: &str) -> Finished {
        let address = format!("127.0.0.1:{}", self.port);
        afterimage(data).env("AFTERIMAGE_TOKEN", token).args([role, "join", &address]).run_any()
    }

    /// Has a data folder join under a name.
    ///
    /// # Panics
    /// If it may not.
    #[track_caller]
    pub fn enrol(&self, data: &Path, role: &str, name: &str, more: &[&str]) {
        let done = self.join(data, role, &self.token(role, name, more));
        assert!(done.status.success(), "{}", done.describe());
    }

    /// A token of its API.
    ///
    /// # Panics
    /// If it makes none.
    #[must_use]
    pub fn api_token(&self, name: &str, role: &str) -> String {
        let made = self.cli(&["api-token", "create", "--name", name, "--role", role]).run();
        made.stdout.trim().to_owned()
    }

    /// What it has printed so far, over all its lives.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// A pair that has joined, and its mgmt. `prepare` has its turn before the agent starts.
///
/// # Panics
/// If one of them does not come up.
#[must_use]
#[track_caller]
pub fn joined(size: u64, prepare: impl FnOnce(&mut Pair, &Mgmt)) -> (Pair, Mgmt) {
    let mut pair = Pair::plan(size, "64MiB");
    let mgmt = Mgmt::start(&pair.path("."));
    mgmt.enrol(&pair.data(Role::Appliance), "appliance", "vault", &[]);
    mgmt.enrol(&pair.data(Role::Agent), "agent", "web", &[]);
    prepare(&mut pair, &mgmt);
    pair.start(Role::Appliance);
    pair.start(Role::Agent);
    pair.wait_live();
    (pair, mgmt)
}

/// Writes the parts of a credentials file as `openssl` takes them.
///
/// # Panics
/// If the folder has not joined.
#[must_use]
pub fn pem_files(data: &Path) -> [String; 2] {
    let text = std::fs::read_to_string(data.join("trust/credentials")).expect("read credentials");
    let all: serde_json::Value = serde_json::from_str(&text).expect("credentials are JSON");
    ["certificate", "key"].map(|part| {
        let path = data.join(format!("{part}.pem"));
        std::fs::write(&path, all[part].as_str().expect("a part of credentials")).expect("write a file");
        path.display().to_string()
    })
}

/// What a client of OpenSSL hears that offers this protocol, and whether TLS was accepted by both sides.
#[must_use]
pub fn openssl(port: u16, protocol: &str, more: &[&str], identity: Option<&[String; 2]>) -> String {
    let mut command = tool("timeout").args(["20", "openssl", "s_client", "-connect", &format!("127.0.0.1:{port}")]);
    command = command.args(["-alpn", protocol, "-ign_eof"]).args(more);
    if let Some([certificate, key]) = identity {
        command = command.args(["-cert", certificate, "-key", key]);
    }
    let done = command.run_any();
    format!("{}{}", done.stdout, done.stderr)
}

/// Waits until a line of the log has all of these words.
///
/// # Panics
/// If that never comes.
#[track_caller]
pub fn hear(read: impl Fn() -> String, words: &[&str]) {
    let until = Instant::now() + PATIENCE;
    while !read().lines().any(|line| words.iter().all(|w| line.contains(w))) {
        assert!(Instant::now() < until, "nothing in the log of {words:?}:\n{}", read());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Sends bytes, and perhaps an end, and returns the answer, all of it.
///
/// # Panics
/// If nobody listens there.
#[must_use]
pub fn say(port: u16, bytes: &[u8], end: bool) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("set a limit");
    // It may be cut off at once.
    let _ = stream.write_all(bytes);
    if end {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}
