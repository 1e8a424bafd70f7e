//! A QEMU guest (emulated, so it runs anywhere) that executes a shell script; its disk is an NBD export. The test reads
//! its serial console and types on it. What is in the guest: vm-images/README.md.

use crate::binary::repository;
use crate::tool::{cannot_start, line_of, tool};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// An emulated guest on a loaded machine is slow; one that says nothing for so long hangs.
const SILENCE: Duration = Duration::from_secs(240);
/// What /init says when the script is over.
const ENDED: &str = "guest: script ended with status ";

/// The plan of a guest.
#[derive(Debug)]
pub struct Builder {
    script: String,
    arguments: Vec<String>,
}

/// A running guest; dropping it kills it.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    keyboard: ChildStdin,
    console: Arc<Console>,
    reader: Option<JoinHandle<()>>,
    _script: tempfile::NamedTempFile,
}

#[derive(Debug, Default)]
struct Console {
    state: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    lines: Vec<String>,
    closed: bool,
}

/// A guest that runs this script (busybox's sh) as root.
#[must_use]
pub fn guest(script: &str) -> Builder {
    Builder { script: script.to_owned(), arguments: Vec::new() }
}

impl Builder {
    /// Gives it a disk: the next of /dev/vda, /dev/vdb, ...
    #[must_use]
    pub fn disk(mut self, uri: &str) -> Self {
        // The guest's own cache is the only one: QEMU sends every write and every flush to the server.
        let drive = format!("file={},format=raw,if=virtio,cache=none,discard=unmap", uri.replace(',', ",,"));
        self.arguments.extend(["-drive".to_owned(), drive]);
        self
    }

    /// Gives it a network card: the host is 10.0.2.2.
    #[must_use]
    pub fn network(mut self) -> Self {
        self.arguments.extend(["-nic".to_owned(), "user,model=virtio-net-pci".to_owned()]);
        self
    }

    /// Boots it, and waits until the script starts.
    ///
    /// # Panics
    /// If it does not boot.
    #[must_use]
    #[track_caller]
    pub fn start(self) -> Guest {
        let image = image();
        let mut script = tempfile::NamedTempFile::new().expect("make a script file");
        script.write_all(self.script.as_bytes()).expect("write a script file");
        let mut command = tool("qemu-system-x86_64")
            .args(["-accel", "tcg", "-cpu", "max", "-m", "256", "-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-serial", "stdio", "-append", "console=ttyS0 quiet panic=-1"])
            .arg("-kernel")
            .arg(image.join("vmlinuz"))
            .arg("-initrd")
            .arg(image.join("initramfs"))
            .arg("-fw_cfg")
            .arg(format!("name=opt/afterimage/script,file={}", script.path().display()))
            .args(&self.arguments)
            .into_command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let line = line_of(&command);
        let mut child = command.spawn().unwrap_or_else(|e| cannot_start(&line, &e));
        let keyboard = child.stdin.take().expect("the guest's keyboard");
        let screen = child.stdout.take().expect("the guest's screen");
        let console = Arc::new(Console::default());
        let reader = std::thread::spawn({
            let console = Arc::clone(&console);
            move || console.read(screen)
        });
        let mut guest = Guest { child, keyboard, console, reader: Some(reader), _script: script };
        guest.wait_for("guest: script starts");
        guest
    }
}

impl Guest {
    /// Waits for a line of the console that holds this text, from the first line on, and returns it.
    ///
    /// # Panics
    /// If the guest ends or falls silent first.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) -> String {
        self.console.wait_for(text)
    }

    /// Types a line on the console.
    ///
    /// # Panics
    /// If the guest is gone.
    #[track_caller]
    pub fn type_line(&mut self, line: &str) {
        let sent = writeln!(self.keyboard, "{line}").and_then(|()| self.keyboard.flush());
        sent.unwrap_or_else(|e| panic!("cannot type on the guest's console ({e}):\n{}", self.screen()));
    }

    /// All that the console has shown so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.console.lock().lines.clone()
    }

    /// The same as one text.
    #[must_use]
    pub fn screen(&self) -> String {
        self.lines().join("\n")
    }

    /// Waits until the script is over; it must have succeeded.
    ///
    /// # Panics
    /// If it failed.
    #[track_caller]
    pub fn wait_success(&mut self) {
        let line = self.wait_for(ENDED);
        assert!(line.trim_end().ends_with(&format!("{ENDED}0")), "the guest's script failed:\n{}", self.screen());
    }

    /// Kills the guest's QEMU, as a power cut would.
    ///
    /// # Panics
    /// If it had ended by itself.
    #[track_caller]
    pub fn kill(mut self) {
        let ended = self.child.try_wait().expect("wait for the guest");
        assert!(ended.is_none(), "the guest had ended by itself:\n{}", self.screen());
        self.child.kill().expect("kill the guest");
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        if std::thread::panicking() {
            eprintln!("the guest's console:\n{}", self.screen());
        }
    }
}

impl Console {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, screen: ChildStdout) {
        for line in BufReader::new(screen).split(b'\n') {
            let Ok(line) = line else { break };
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            self.lock().lines.push(text);
            self.changed.notify_all();
        }
        self.lock().closed = true;
        self.changed.notify_all();
    }

    #[track_caller]
    fn wait_for(&self, text: &str) -> String {
        let mut seen = 0;
        let mut last_news = Instant::now();
        let mut state = self.lock();
        loop {
            if let Some(line) = state.lines[seen..].iter().find(|l| l.contains(text)) {
                return line.clone();
            }
            if state.lines.len() > seen {
                seen = state.lines.len();
                last_news = Instant::now();
            }
            let screen = state.lines.iter().fold(String::new(), |mut all, line| {
                let _ = writeln!(all, "{line}");
                all
            });
            assert!(!state.closed, "the guest ended before it said {text:?}:\n{screen}");
            assert!(last_news.elapsed() < SILENCE, "the guest never said {text:?}:\n{screen}");
            let waited = self.changed.wait_timeout(state, Duration::from_millis(500));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The folder with the guest's kernel and initramfs, which is built if need be.
fn image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let built = tool(repository().join("vm-images/build.sh")).deadline(Duration::from_secs(1800)).run();
        PathBuf::from(built.stdout.trim_end())
    })
}
