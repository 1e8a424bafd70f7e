//! The binary as users run it, in a folder of its own.

#![allow(clippy::unwrap_used, reason = "a test panics when it fails, and says where")]
#![allow(unreachable_pub, reason = "a module shared by test programs")]
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::missing_panics_doc, reason = "a test panics when it fails")]

use serde_json::Value;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub const MIB: u64 = 1 << 20;
/// Longer than anything takes on a machine that is shared.
const PATIENCE: Duration = Duration::from_secs(120);

/// A child that is killed when it goes out of scope.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Killed {
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }
}

pub struct Lab {
    pub dir: TempDir,
    pub up: Option<Killed>,
    pub args: Vec<String>,
}

/// A command with our environment: no data folder of the user's, and dead when the test dies.
pub fn command(program: &str) -> Command {
    let mut c = Command::new(program);
    c.env_remove("AFTERIMAGE_DATA").env_remove("XDG_DATA_HOME").env("NO_COLOR", "1").stdin(Stdio::null());
    let die_with_us =
        || nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(std::io::Error::from);
    // SAFETY: between fork and exec only prctl is called, which is async-signal-safe.
    unsafe { c.pre_exec(die_with_us) };
    c
}

pub fn ours() -> Command {
    command(env!("CARGO_BIN_EXE_afterimage"))
}

pub fn load() -> Command {
    command(env!("CARGO_BIN_EXE_afterimage-load"))
}

#[track_caller]
pub fn wait_until(what: &str, mut reached: impl FnMut() -> bool) {
    let start = Instant::now();
    while !reached() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs to the end and returns standard output; anything but success is a failure.
#[track_caller]
pub fn good(c: &mut Command) -> String {
    let out = c.output().unwrap();
    assert!(out.status.success(), "{c:?}: {}", both(&out));
    String::from_utf8(out.stdout).unwrap()
}

/// Runs to the end, which must be this exit code, and returns standard error.
#[track_caller]
pub fn bad(c: &mut Command, code: i32) -> String {
    let out = c.output().unwrap();
    assert_eq!(out.status.code(), Some(code), "{c:?}: {}", both(&out));
    String::from_utf8(out.stderr).unwrap()
}

pub fn both(out: &Output) -> String {
    format!("{}\n{}\n{}", out.status, String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

impl Lab {
    pub fn new() -> Lab {
        Lab { dir: tempfile::tempdir().unwrap(), up: None, args: Vec::new() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn data(&self) -> PathBuf {
        self.path("data")
    }

    pub fn disk(&self, name: &str, size: u64) -> PathBuf {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(size).unwrap();
        path
    }

    /// `afterimage up` with these arguments, until it answers.
    pub fn up(&mut self, args: &[&str]) {
        self.args = args.iter().map(|a| (*a).to_owned()).collect();
        self.up_again();
    }

    /// The same command line once more.
    pub fn up_again(&mut self) {
        self.up_with_ring("16MiB");
    }

    /// The same, asking for a ring of this size.
    pub fn up_with_ring(&mut self, ring: &str) {
        let log = File::options().create(true).append(true).open(self.path("up.log")).unwrap();
        let mut c = ours();
        c.arg("up").arg("--data").arg(self.data()).args(["--ring", ring]).args(&self.args);
        let child = c.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let pid = u64::from(child.id());
        self.up = Some(Killed(child));
        wait_until("status answers", || {
            if let Some(ended) = self.up.as_mut().unwrap().0.try_wait().unwrap() {
                panic!("up ended with {ended}: {}", self.log());
            }
            let out = self.cli(&["status", "--json"]).output().unwrap();
            out.status.success() && serde_json::from_slice::<Value>(&out.stdout).unwrap()["pid"] == pid
        });
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("up.log")).unwrap_or_default()
    }

    /// A user's command on this data folder.
    pub fn cli(&self, args: &[&str]) -> Command {
        let mut c = ours();
        c.args(args).env("AFTERIMAGE_DATA", self.data());
        c
    }

    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&good(self.cli(args).arg("--json"))).unwrap()
    }

    pub fn volume(&self, name: &str) -> Value {
        let status = self.json(&["status"]);
        status["volumes"].as_array().unwrap().iter().find(|v| v["name"] == name).unwrap().clone()
    }

    pub fn live(&self, name: &str) {
        good(&mut self.cli(&["wait", name, "--timeout", "120s"]));
    }

    pub fn durable(&self, name: &str) -> u64 {
        good(&mut self.cli(&["wait", name, "--for", "durable", "--timeout", "120s"]));
        self.volume(name)["seq_durable"].as_u64().unwrap()
    }

    pub fn uri(&self, name: &str) -> String {
        format!("nbd+unix:///{name}?socket={}", self.data().join("nbd.sock").display())
    }

    /// Commands that only read open the disk read-only, so that this works on exports, too.
    pub fn qemu_io(&self, uri: &str, commands: &[&str]) -> String {
        let mut c = command("qemu-io");
        c.args(["-f", "raw"]);
        if commands.iter().all(|text| text.starts_with("read")) {
            c.arg("-r");
        }
        for text in commands {
            c.args(["-c", text]);
        }
        good(c.arg(uri))
    }

    pub fn restore(&self, name: &str, at: &str, to: &str) -> PathBuf {
        let to = self.path(to);
        good(self.cli(&["restore", name, "--at", at, "--to"]).arg(&to));
        to
    }

    /// SIGTERM, and the exit code.
    pub fn down(&mut self) -> Option<i32> {
        let mut up = self.up.take().unwrap();
        up.signal(nix::sys::signal::Signal::SIGTERM);
        up.0.wait().unwrap().code()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.up = None;
    }
}

#[track_caller]
pub fn same(a: &Path, b: &Path) {
    assert!(std::fs::read(a).unwrap() == std::fs::read(b).unwrap(), "{} and {} differ", a.display(), b.display());
}
