//! A QEMU guest (with KVM where that works, else emulated, so it runs anywhere), driven by its serial ports. What is in it:
//! vm-images/README.md.
//!
//! ```no_run
//! use afterimage_tests::guest;
//! let disk = std::path::Path::new("disk.raw");
//! let mut vm = guest::machine("web").afterimage().network().image(disk).boot();
//! vm.run("mke2fs -q /dev/vda && mount /dev/vda /mnt");
//! assert_eq!(vm.run("ls /mnt"), "lost+found");
//! vm.kill(); // a power cut
//! ```
//!
//! What fails panics with the command, its output and the end of the kernel's messages. Dropping a guest kills it and removes
//! its files; it dies with the test program, too.

mod console;
mod folder;
mod image;

use crate::process::spawn;
use crate::seats::Seat;
pub use crate::seats::{Seats, reserve as seats};
use crate::tool::{cannot_start, line_of, tail, tool};
use afterimage_base::cpio::Entry;
use console::{Console, Missing};
use folder::Folder;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What /init says when the script is over, and when it takes commands.
const ENDED: &str = "guest: script ended with status ";
const STARTS: &str = "guest: script starts";
const READY: &str = "guest: console is ready";
/// A command that takes longer than this hangs: the guest may be emulated on a loaded machine.
const LIMIT: Duration = Duration::from_secs(300);

/// The plan of a guest.
#[derive(Debug)]
pub struct Builder {
    name: String,
    script: Option<String>,
    arguments: Vec<String>,
    kernel: String,
    memory: u32,
    processors: u32,
    programs: Vec<&'static str>,
    afterimage: bool,
    files: Vec<Entry>,
    seats: Option<Seats>,
}

/// A running guest; dropping it kills it.
#[derive(Debug)]
pub struct Guest {
    name: String,
    child: Child,
    keyboard: ChildStdin,
    console: Arc<Console>,
    port: Option<Port>,
    readers: Vec<JoinHandle<()>>,
    _folder: Folder,
    _seat: Seat,
}

/// The second serial port, on which a shell reads.
#[derive(Debug)]
struct Port {
    to: UnixStream,
    console: Arc<Console>,
    commands: u32,
}

/// How a command in the guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit status.
    pub status: i32,
    /// What it printed, errors too, without the newline at the end.
    pub text: String,
}

/// A command that runs in the guest's background.
#[derive(Debug)]
#[must_use = "nobody notices if it fails"]
pub struct Job(u32);

/// A guest that runs this script (busybox's sh) as root on its first serial port, and powers off: [`Builder::start`].
#[must_use]
pub fn guest(script: &str) -> Builder {
    Builder { script: Some(script.to_owned()), ..machine("guest") }
}

/// A guest of this host name that takes commands: [`Builder::boot`].
#[must_use]
pub fn machine(name: &str) -> Builder {
    Builder {
        name: name.to_owned(),
        script: None,
        arguments: Vec::new(),
        kernel: "console=ttyS0 quiet panic=-1".to_owned(),
        memory: 200,
        processors: 1,
        programs: Vec::new(),
        afterimage: false,
        files: Vec::new(),
        seats: None,
    }
}

/// The folder with the guest's kernel and its root disk (`root.ext4`, to be copied).
#[must_use]
pub fn image_folder() -> &'static Path {
    image::folder()
}

/// Writes an initramfs with SQLite's command line program and these files (path in the guest, content), for a machine that is not
/// started by the laboratory.
///
/// # Panics
/// If it cannot be written.
pub fn write_initramfs_with_sqlite(to: &Path, files: &[(&str, &str)]) {
    let files: Vec<Entry> = files.iter().map(|(path, content)| Entry::file(*path, 0o644, *content)).collect();
    image::write_initrd(to, &["sqlite3"], &files);
}

/// A static `afterimage` of this checkout, as the guests get it.
#[must_use]
pub fn static_program() -> &'static Path {
    image::program()
}

impl Builder {
    /// Gives it a disk that is served over NBD: the next of /dev/vda, /dev/vdb, ...
    #[must_use]
    pub fn disk(self, uri: &str) -> Self {
        // The guest's own cache is the only one: QEMU sends every write and every flush to the server.
        self.drive(&format!("file={},cache=none", uri.replace(',', ",,")))
    }

    /// The same, with an image file of the host; what the guest wrote to it is there after a kill, flushed or not.
    #[must_use]
    pub fn image(self, path: &Path) -> Self {
        self.drive(&format!("file={},cache=writeback", path.display().to_string().replace(',', ",,")))
    }

    fn drive(self, what: &str) -> Self {
        let drive = format!("{what},format=raw,if=virtio,discard=unmap");
        self.arguments(["-drive", &drive])
    }

    /// Gives it a network card: the host is 10.0.2.2.
    #[must_use]
    pub fn network(self) -> Self {
        self.arguments(["-nic", "user,model=virtio-net-pci"])
    }

    /// The same, with TCP ports of the host's loopback that lead to ports of the guest: (host, guest).
    #[must_use]
    pub fn network_with_ports(self, ports: &[(u16, u16)]) -> Self {
        let forward = ports.iter().map(|(host, guest)| format!(",hostfwd=tcp:127.0.0.1:{host}-10.0.2.15:{guest}"));
        let nic = format!("user,model=virtio-net-pci{}", forward.collect::<String>());
        self.arguments(["-nic", &nic])
    }

    /// Adds arguments of QEMU.
    #[must_use]
    pub fn arguments<'a>(mut self, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        self.arguments.extend(arguments.into_iter().map(str::to_owned));
        self
    }

    /// Boots from a root disk instead of the initramfs: one of the disks, `/dev/vda`. Files that were handed over
    /// are not there then.
    #[must_use]
    pub fn root(mut self, device: &str) -> Self {
        self.kernel.push_str(" root=");
        self.kernel.push_str(device);
        self
    }

    /// Its memory in MiB, besides what the files take that it starts with.
    #[must_use]
    pub fn memory(mut self, mib: u32) -> Self {
        self.memory = mib;
        self
    }

    /// Its processors.
    #[must_use]
    pub fn processors(mut self, count: u32) -> Self {
        self.processors = count;
        self
    }

    /// Puts fio into it.
    #[must_use]
    pub fn fio(mut self) -> Self {
        self.programs.push("fio");
        self
    }

    /// Puts SQLite's command line program into it.
    #[must_use]
    pub fn sqlite(mut self) -> Self {
        self.programs.push("sqlite3");
        self
    }

    /// Gives it QEMU's guest agent, /sbin/qemu-ga, and the port on which that listens; on the host it is reached by this socket.
    #[must_use]
    pub fn guest_agent(mut self, socket: &Path) -> Self {
        self.programs.push("qemu-ga");
        let port = format!("socket,path={},server=on,wait=off,id=qga", socket.display());
        let name = "virtserialport,chardev=qga,name=org.qemu.guest_agent.0";
        self.arguments(["-device", "virtio-serial", "-chardev", &port, "-device", name])
    }

    /// Puts our program into it: /bin/afterimage.
    #[must_use]
    pub fn afterimage(mut self) -> Self {
        self.afterimage = true;
        self
    }

    /// Hands a file over.
    #[must_use]
    pub fn file(mut self, path: &str, content: impl Into<Vec<u8>>) -> Self {
        self.files.push(Entry::file(path, 0o644, content));
        self
    }

    /// Hands a file of the host over, with its permissions.
    ///
    /// # Panics
    /// If it cannot be read.
    #[must_use]
    #[track_caller]
    pub fn copy(mut self, from: &Path, path: &str) -> Self {
        let read = || Ok::<_, std::io::Error>((from.metadata()?.permissions().mode() & 0o777, std::fs::read(from)?));
        let (mode, content) = read().unwrap_or_else(|e| panic!("read {}: {e}", from.display()));
        self.files.push(Entry::file(path, mode, content));
        self
    }

    /// Takes one of the reserved seats; see [`seats`].
    #[must_use]
    pub fn seat(mut self, seats: &Seats) -> Self {
        self.seats = Some(seats.clone());
        self
    }

    /// Boots it, and waits until the script starts.
    ///
    /// # Panics
    /// If it does not boot.
    #[must_use]
    #[track_caller]
    pub fn start(self) -> Guest {
        let guest = self.power_on();
        guest.wait_for(STARTS);
        guest
    }

    /// Boots it, and waits until it takes commands.
    ///
    /// # Panics
    /// If it does not boot.
    #[must_use]
    #[track_caller]
    pub fn boot(mut self) -> Guest {
        self.kernel.push_str(" afterimage=console");
        let mut guest = self.power_on();
        guest.wait_for(READY);
        guest.run("true");
        guest
    }

    #[track_caller]
    fn power_on(mut self) -> Guest {
        if self.afterimage {
            self = self.copy(image::program(), "/bin/afterimage");
        }
        let accelerator = image::accelerator();
        let seat = self.seats.as_ref().map_or_else(Seat::alone, Seats::sit);
        let folder = Folder::new();
        let initrd = folder.path().join("initrd");
        let packed = image::write_initrd(&initrd, &self.programs, &self.files).div_ceil(1 << 20);
        let socket = folder.path().join("port");
        // The archive is unpacked into a file system that may fill half of the memory (rootfs is a tmpfs).
        let memory = u64::from(self.memory) + 2 * packed;
        let mut command = tool("qemu-system-x86_64")
            .args(accelerator)
            .args(["-m", &memory.to_string(), "-smp", &self.processors.to_string()])
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"])
            .args(["-serial", &format!("unix:{},server=on,wait=off", socket.display())])
            .args(["-append", &format!("{} afterimage.name={}", self.kernel, self.name)])
            .arg("-kernel")
            .arg(image::folder().join("vmlinuz"))
            .arg("-initrd")
            .arg(&initrd)
            .args(&self.arguments);
        if let Some(script) = &self.script {
            let path = folder.path().join("script");
            std::fs::write(&path, script).expect("write a script file");
            command = command.arg("-fw_cfg").arg(format!("name=opt/afterimage/script,file={}", path.display()));
        }
        let mut command = command.into_command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let line = line_of(&command);
        let mut child = spawn(command).unwrap_or_else(|e| cannot_start(&line, &e));
        let keyboard = child.stdin.take().expect("the guest's keyboard");
        let (console, reader) = Console::start(child.stdout.take().expect("the guest's screen"));
        let mut guest = Guest {
            name: self.name,
            child,
            keyboard,
            console,
            port: None,
            readers: vec![reader],
            _folder: folder,
            _seat: seat,
        };
        if self.script.is_none() {
            guest.connect(&socket);
        }
        guest
    }
}

impl Guest {
    #[track_caller]
    fn connect(&mut self, socket: &Path) {
        let end = Instant::now() + LIMIT;
        let to = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(e) => {
                    let running = self.child.try_wait().expect("wait for the guest").is_none();
                    assert!(running && Instant::now() < end, "QEMU does not listen ({e}):\n{}", self.screen());
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        };
        let (console, reader) = Console::start(to.try_clone().expect("share the guest's port"));
        self.readers.push(reader);
        self.port = Some(Port { to, console, commands: 0 });
    }

    /// Runs a shell script (busybox's sh; it ends at the first command that fails) in the guest; it must succeed. Returns what it
    /// printed.
    ///
    /// # Panics
    /// If it fails, or takes more than five minutes.
    #[track_caller]
    pub fn run(&mut self, script: &str) -> String {
        self.run_within(LIMIT, script)
    }

    /// The same with another limit.
    ///
    /// # Panics
    /// If it fails, or takes longer.
    #[track_caller]
    pub fn run_within(&mut self, limit: Duration, script: &str) -> String {
        let Output { status, text } = self.run_any(limit, script);
        assert!(status == 0, "{}", self.explain(&format!("failed with status {status}"), script, &text));
        text
    }

    /// Runs a script, however it ends.
    ///
    /// # Panics
    /// If it takes longer than `limit`, or the guest ends.
    #[track_caller]
    pub fn run_any(&mut self, limit: Duration, script: &str) -> Output {
        let port = self.port.as_mut().expect("the guest was booted to take commands");
        port.commands += 1;
        let (n, from) = (port.commands, port.console.len());
        let typed = format!(
            "cat >/run/lab.{n} <<'=lab.{n}='\n{script}\n=lab.{n}=\n\
             sh -e /run/lab.{n} </dev/null >/dev/ttyS1 2>&1\nprintf '\\n=lab.{n}= %d\\n' $? >/dev/ttyS1\n\
             rm /run/lab.{n}\n"
        );
        let sent = port.to.write_all(typed.as_bytes());
        let marker = format!("=lab.{n}= ");
        let found = sent.map_err(|_| Missing::Ended).and_then(|()| {
            let is_end = |line: &str| line.strip_prefix(&marker).is_some_and(|s| s.parse::<i32>().is_ok());
            port.console.wait(from, Some(limit), is_end)
        });
        let mut lines = port.console.lines().split_off(from);
        match found {
            Ok(at) => {
                let status = lines[at - from].strip_prefix(&marker).and_then(|s| s.parse().ok()).unwrap_or(-1);
                lines.truncate(at - from);
                // The newline in front of the marker ends a last line that has none of its own.
                while lines.last().is_some_and(String::is_empty) {
                    lines.pop();
                }
                Output { status, text: lines.join("\n") }
            }
            Err(missing) => {
                let how = match missing {
                    Missing::Ended => "did not end, but the guest did".to_owned(),
                    Missing::Late => format!("did not end within {} s", limit.as_secs()),
                };
                panic!("{}", self.explain(&how, script, &lines.join("\n")))
            }
        }
    }

    fn explain(&self, how: &str, script: &str, output: &str) -> String {
        format!(
            "guest {}: {how}: {script}\n--- output\n{}\n--- console\n{}",
            self.name,
            tail(output),
            tail(&self.screen())
        )
    }

    /// Starts a script in the guest's background.
    ///
    /// # Panics
    /// If the guest is gone.
    #[track_caller]
    pub fn spawn(&mut self, script: &str) -> Job {
        let id = self.port.as_ref().map_or(0, |p| p.commands);
        self.run(&format!(
            "cat >/run/job.{id} <<'=job.{id}='\n{script}\n=job.{id}=\n\
             {{ setsid sh -e /run/job.{id} </dev/null >/run/job.{id}.log 2>&1; echo $? >/run/job.{id}.status; }} &"
        ));
        Job(id)
    }

    /// Waits for the end of a script in the background; it must succeed. Returns what it printed.
    ///
    /// # Panics
    /// If it fails or takes longer than `limit`.
    #[track_caller]
    pub fn wait(&mut self, job: &Job, limit: Duration) -> String {
        let Job(id) = job;
        self.wait_until(limit, &format!("test -s /run/job.{id}.status"));
        let status = self.run(&format!("cat /run/job.{id}.status"));
        let text = self.run(&format!("cat /run/job.{id}.log"));
        let script = format!("job {id}");
        assert!(status == "0", "{}", self.explain(&format!("failed with status {status}"), &script, &text));
        text
    }

    /// Has a script in the background ended?
    ///
    /// # Panics
    /// If the guest is gone.
    #[track_caller]
    pub fn has_ended(&mut self, job: &Job) -> bool {
        self.run_any(LIMIT, &format!("test -s /run/job.{}.status", job.0)).status == 0
    }

    /// Runs a script again and again until it succeeds.
    ///
    /// # Panics
    /// If it never does.
    #[track_caller]
    pub fn wait_until(&mut self, limit: Duration, script: &str) -> String {
        let end = Instant::now() + limit;
        loop {
            let last = self.run_any(LIMIT, script);
            if last.status == 0 {
                return last.text;
            }
            assert!(Instant::now() < end, "{}", self.explain("never succeeded", script, &last.text));
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// The content of a text file of the guest, for logs.
    ///
    /// # Panics
    /// If it cannot be read.
    #[track_caller]
    pub fn read(&mut self, path: &str) -> String {
        self.run(&format!("cat {path}"))
    }

    /// Waits for a line of the first serial port that holds this text, from the first line on, and returns it.
    ///
    /// # Panics
    /// If the guest ends or falls silent first.
    #[track_caller]
    pub fn wait_for(&self, text: &str) -> String {
        match self.console.wait(0, None, |line| line.contains(text)) {
            Ok(n) => self.console.lines().swap_remove(n),
            Err(Missing::Ended) => panic!("guest {} ended before it said {text:?}:\n{}", self.name, self.screen()),
            Err(Missing::Late) => panic!("guest {} never said {text:?}:\n{}", self.name, self.screen()),
        }
    }

    /// Types a line on the first serial port.
    ///
    /// # Panics
    /// If the guest is gone.
    #[track_caller]
    pub fn type_line(&mut self, line: &str) {
        let sent = writeln!(self.keyboard, "{line}").and_then(|()| self.keyboard.flush());
        sent.unwrap_or_else(|e| panic!("cannot type on the guest's console ({e}):\n{}", self.screen()));
    }

    /// All that the first serial port, with the kernel's messages, has shown so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.console.lines()
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

    /// Shuts it down in order: file systems are synced.
    ///
    /// # Panics
    /// If it does not end.
    #[track_caller]
    pub fn power_off(mut self) {
        let port = self.port.as_mut().expect("the guest was booted to take commands");
        let _ = port.to.write_all(b"sync; umount -a -r; poweroff -f\n");
        let ended = crate::tool::wait(&mut self.child, LIMIT);
        assert!(ended.is_some(), "guest {} does not power off:\n{}", self.name, self.screen());
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
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        if std::thread::panicking() {
            eprintln!("the console of guest {}:\n{}", self.name, self.screen());
            if let Some(port) = &self.port {
                eprintln!("what its commands printed:\n{}", tail(&port.console.lines().join("\n")));
            }
        }
    }
}
