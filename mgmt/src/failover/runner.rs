//! A job's steps, done: forks, QEMU, its sockets, the checks. Runs in a process of its own, whose working directory is the job's folder.

use crate::failover::check::Check;
use crate::failover::drive::{Hands, Looked, Moment, Moments};
use crate::failover::job::{CheckResult, End, Fork, Job, Step, Verdict};
use crate::failover::serial::Serial;
use crate::failover::source::{DiskSource, Served};
use crate::failover::store::Jobs;
use crate::failover::sweep::{disk_socket, drop_disks, end_process, lift, remove_files, remove_sockets};
use crate::failover::together;
use crate::target::accelerator::kvm_works_here;
use crate::target::machine::{Accelerator, Firmware};
use crate::target::process::{AtGate, ProcessId, prepare};
use crate::target::qemu::{AGENT_SOCKET, DiskPlace, PROGRAM, QMP_SOCKET, SERIAL_SOCKET, Start, VARIABLES, uefi_files};
use crate::target::qmp::Monitor;
use crate::units::Time;
use afterimage_base::clock::{Clock, SystemClock};
use afterimage_base::qemu::GuestAgent;
use nix::sys::signal::Signal;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Between two looks at a guest.
const PACE: Duration = Duration::from_millis(50);
/// How long QEMU may take to open its sockets; a large machine's memory takes a while.
const OPEN: Duration = Duration::from_secs(30);
/// How long a guest agent may take until it is asked anew: one that starts late has lost what came before.
const AGENT: Duration = Duration::from_secs(1);
/// What a guest without any sign of its own has read when it counts as booted.
const BOOTED_READ: u64 = 1 << 20;
/// How long a connection of a TCP check may be on its way.
const CONNECTING: Duration = Duration::from_secs(2);
/// Between two looks whether the disks are back, or an agent has brought all.
const SOURCE: Duration = Duration::from_millis(200);
/// Files in the job's folder with which somebody says what he wants.
pub const COMMIT: &str = "commit";
/// Branches are kept.
pub const KEEP: &str = "keep";
/// The guest is to be down.
pub const HALT: &str = "halt";
/// With a stop: the old primary has its disk again.
pub const BACK: &str = "back";
/// A guest that is down is to run again.
pub const AGAIN: &str = "again";

/// What a job needs from outside.
pub struct Outside<'a> {
    /// Where its disks come from.
    pub source: &'a dyn DiskSource,
    /// The folder of all jobs.
    pub jobs: &'a Path,
    /// Whether a signal says that it is to stop. A signal decides about tests only: for a failover this ends the process instead.
    pub stop: &'a dyn Fn() -> bool,
    /// A place between two steps.
    pub pass: &'a dyn Fn(Step, Moment),
}

/// The hands of a running job.
pub struct Runner<'a> {
    outside: Outside<'a>,
    clock: SystemClock,
    /// Milliseconds between the question for the job and the start of the clock.
    before: u64,
    served: Vec<Box<dyn Served>>,
    at_gate: Option<AtGate>,
    child: Option<Child>,
    qmp: Option<Monitor>,
    serial: Option<Serial>,
}

impl<'a> Runner<'a> {
    /// Hands for a job that nobody has begun.
    #[must_use]
    pub fn new(outside: Outside<'a>, job: &Job) -> Runner<'a> {
        let clock = SystemClock::new();
        let before = clock.wall().saturating_sub(job.created.0) / 1_000_000;
        Runner { outside, clock, before, served: Vec::new(), at_gate: None, child: None, qmp: None, serial: None }
    }

    /// Milliseconds since the job was asked for.
    fn ms(&self) -> u64 {
        self.before + self.clock.monotonic() / 1_000_000
    }

    /// Whether somebody wants the job to end.
    fn wanted(&self) -> Option<End> {
        let stop = (self.outside.stop)() || Path::new("stop").exists();
        stop.then(|| match Path::new(BACK).exists() {
            true => End::Back,
            false => End::Stopped { keep: Path::new(KEEP).exists() },
        })
    }

    /// Waits until there is somebody who has the disks: a job that goes on does so behind a restart of him, too.
    fn wait_for_source(&self, job: &Job) -> Result<(), String> {
        while job.restarts > 0 && !self.outside.source.is_there() {
            if self.wanted().is_some() {
                return Err("it was stopped before its disks were back".to_owned());
            }
            std::thread::sleep(SOURCE);
        }
        Ok(())
    }

    /// What is in the way of going on.
    fn in_the_way(&mut self) -> Option<End> {
        if let Some(end) = self.wanted() {
            return Some(end);
        }
        if let Some(why) = self.served.iter().find_map(|s| s.gone()) {
            return Some(End::Gone(why));
        }
        match self.child.as_mut().map(Child::try_wait) {
            Some(Ok(Some(status))) => {
                return Some(End::Failed(format!("the guest has ended ({status}): {}", log_end("qemu.log"))));
            }
            Some(Err(e)) => return Some(End::Failed(format!("the guest's process cannot be watched: {e}"))),
            _ => {}
        }
        match self.qmp.as_mut()?.look() {
            Ok(stands) => stands.map(|s| End::Failed(s.0)),
            Err(e) => {
                // Its process says more, in a moment.
                std::thread::sleep(PACE);
                match self.child.as_mut().and_then(|c| c.try_wait().ok().flatten()) {
                    Some(status) => {
                        Some(End::Failed(format!("the guest has ended ({status}): {}", log_end("qemu.log"))))
                    }
                    None => Some(End::Failed(e.to_string())),
                }
            }
        }
    }

    fn kvm(&self, job: &Job) -> Result<bool, String> {
        match job.machine.accelerator {
            Accelerator::Kvm => Ok(true),
            Accelerator::Tcg => Ok(false),
            Accelerator::Auto => {
                kvm_works_here(self.outside.jobs).map_err(|e| format!("{PROGRAM} cannot be tried: {e}"))
            }
        }
    }

    /// Connects to a socket of QEMU as soon as it is there.
    fn connect<T, E: std::fmt::Display>(
        &mut self,
        socket: &str,
        connect: impl Fn(&Path) -> Result<T, E>,
    ) -> Result<T, String> {
        let start = Instant::now();
        loop {
            let error = match connect(Path::new(socket)) {
                Ok(done) => return Ok(done),
                Err(e) => e,
            };
            if let Some(Ok(Some(status))) = self.child.as_mut().map(Child::try_wait) {
                return Err(format!("QEMU did not start ({status}): {}", log_end("qemu.log")));
            }
            if start.elapsed() > OPEN || (self.outside.stop)() {
                return Err(format!("QEMU does not open {socket}: {error}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Looks once; an error says what is seen instead.
    fn look(&mut self, job: &Job, check: &Check) -> Result<Option<String>, String> {
        match check {
            Check::Boot => match (&job.machine.console.booted, job.machine.guest_agent) {
                (Some(text), _) => self.printed(text),
                (None, true) => agent_answers(job),
                (None, false) => match self.qmp()?.bytes_read().map_err(|e| e.to_string())? {
                    n if n >= BOOTED_READ => Ok(None),
                    n => Err(format!("it has read {n} bytes of its disks")),
                },
            },
            Check::Serial(text) => self.printed(text),
            Check::Agent => agent_answers(job),
            Check::Tcp(port) => self.port_is_open(*port),
            Check::Script(_) => Err("is run, not looked at".to_owned()),
            Check::Screenshot => {
                self.qmp()?.screenshot("screen.png").map_err(|e| e.to_string())?;
                Ok(Some("screen.png".to_owned()))
            }
        }
    }

    fn qmp(&mut self) -> Result<&mut Monitor, String> {
        self.qmp.as_mut().ok_or_else(|| "there is no connection to QEMU".to_owned())
    }

    fn printed(&self, text: &str) -> Result<Option<String>, String> {
        let serial = self.serial.as_ref().ok_or("the machine has no serial port")?;
        if serial.has(text) { Ok(None) } else { Err(format!("the last that it printed is '{}'", serial.last_line())) }
    }

    /// QEMU takes a connection at once, whether or not the guest will. Its table says what came of it.
    fn port_is_open(&mut self, port: u16) -> Result<Option<String>, String> {
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let forward = self.qmp()?.forwards().map_err(|e| text(&e))?.into_iter().find(|f| f.guest == port);
        let here = forward.ok_or("the machine has no card that is reached from here")?.here;
        let mut stream = TcpStream::connect_timeout(&here, CONNECTING).map_err(|e| text(&e))?;
        stream.set_read_timeout(Some(PACE)).map_err(|e| text(&e))?;
        let start = Instant::now();
        while start.elapsed() < CONNECTING {
            match stream.read(&mut [0]) {
                Ok(0) => return Err(format!("port {port} is closed")),
                Ok(_) => return Ok(Some(format!("at {here}"))),
                Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
                Err(e) => return Err(format!("port {port}: {e}")),
            }
            if self.qmp()?.is_established(here).map_err(|e| text(&e))? {
                return Ok(Some(format!("at {here}")));
            }
        }
        Err(format!("nobody answers at port {port}"))
    }

    /// Runs a script until it ends, something is in the way, or its time is over.
    fn run_script(&mut self, job: &Job, path: &Path, end: Instant) -> Looked<Verdict> {
        let failed = |why: String| Looked::Done(Verdict::Failed(why));
        let log = match File::options().create(true).append(true).open("script.log") {
            Ok(log) => log,
            Err(e) => return failed(format!("script.log: {e}")),
        };
        let ports = self.qmp.as_mut().and_then(|q| q.forwards().ok()).unwrap_or_default();
        let ports: Vec<String> = ports.iter().map(|f| format!("{}={}", f.guest, f.here)).collect();
        let mut command = Command::new(path);
        command.stdin(Stdio::null()).process_group(0).env("AFTERIMAGE_JOB", &job.id);
        command.env("AFTERIMAGE_MACHINE", &job.machine.name).env("AFTERIMAGE_PORTS", ports.join(" "));
        let child = log.try_clone().and_then(|twin| command.stdout(twin).stderr(log).spawn());
        let mut child = match child {
            Ok(child) => child,
            Err(e) => return failed(format!("{} cannot be run: {e}", path.display())),
        };
        let looked = loop {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => return Looked::Done(Verdict::Passed),
                Ok(Some(status)) => return failed(format!("{status}: {}", log_end("script.log"))),
                Ok(None) => {}
                Err(e) => break failed(e.to_string()),
            }
            if let Some(end) = self.in_the_way() {
                break Looked::Over(end);
            }
            if Instant::now() > end {
                break failed("it did not end in time".to_owned());
            }
            std::thread::sleep(PACE);
        };
        // With all that it has started. It may have ended meanwhile.
        if let Ok(pid) = i32::try_from(child.id()) {
            let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
        }
        drop(child.wait());
        looked
    }
}

fn agent_answers(job: &Job) -> Result<Option<String>, String> {
    if !job.machine.guest_agent {
        return Err("the description of the machine has no guest-agent".to_owned());
    }
    let text = |e: afterimage_base::qemu::QemuError| e.to_string();
    let mut agent = GuestAgent::connect(Path::new(AGENT_SOCKET), AGENT).map_err(text)?;
    agent.call("guest-ping", serde_json::Value::Null, AGENT).map(|_| None).map_err(text)
}

/// The last lines of a log, for a message.
fn log_end(path: &str) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(2000)..]).into_owned();
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    if lines.is_empty() { format!("{path} is empty") } else { lines[lines.len().saturating_sub(3)..].join("; ") }
}

impl Hands for Runner<'_> {
    fn drain(&mut self, job: &Job) -> Looked<()> {
        let failed = |why| Looked::Over(End::Failed(why));
        let source = self.outside.source;
        for disk in &job.disks {
            if let Err(why) = source.is_free(disk).and_then(|()| source.fence(&disk.volume, &job.id, true)) {
                return failed(why);
            }
        }
        let end = Instant::now() + Duration::from_millis(job.drain_limit_ms);
        loop {
            let mut missing = Vec::new();
            for disk in &job.disks {
                match source.is_drained(&disk.volume) {
                    Ok(true) => {}
                    Ok(false) => missing.push(disk.volume.as_str()),
                    Err(why) => return failed(why),
                }
            }
            if missing.is_empty() {
                return together::wait(&Jobs::within(self.outside.jobs), job, end, &|| self.wanted());
            }
            if let Some(end) = self.wanted() {
                return Looked::Over(end);
            }
            if Instant::now() > end {
                let text = format!(
                    "not all that the agent has of {} is there: is it connected, and live? An unplanned failover (without \
                     --planned) takes what there is",
                    missing.join(", ")
                );
                return failed(text);
            }
            std::thread::sleep(SOURCE);
        }
    }

    fn fence(&mut self, job: &Job) -> Result<(Moments, u64), String> {
        let source = self.outside.source;
        job.disks.iter().try_for_each(|disk| source.is_free(disk))?;
        job.disks.iter().try_for_each(|disk| source.fence(&disk.volume, &job.id, false))?;
        // Behind all fences: nothing comes any more.
        let moment = |disk: &Fork| if disk.latest { source.latest(&disk.volume) } else { Ok((disk.seq, disk.time)) };
        Ok((job.disks.iter().map(moment).collect::<Result<_, _>>()?, self.ms()))
    }

    fn fork(&mut self, job: &Job) -> Result<(Vec<DiskPlace>, u64, u64), String> {
        self.wait_for_source(job)?;
        drop(std::fs::remove_file(AGAIN));
        drop(std::fs::remove_file(HALT));
        remove_sockets(job)?;
        for (n, fork) in job.disks.iter().enumerate() {
            let (source, socket) = (self.outside.source, disk_socket(n));
            let socket = Path::new(&socket);
            let served = if job.is_failover() { source.branch(fork, socket)? } else { source.fork(fork, socket)? };
            self.served.push(served);
        }
        let forked = self.ms();
        self.served.iter().try_for_each(|s| s.read_first())?;
        Ok((self.served.iter().map(|s| s.place()).collect(), forked, self.ms()))
    }

    fn start(&mut self, job: &Job) -> Result<(ProcessId, bool, u64), String> {
        let kvm = self.kvm(job)?;
        if job.machine.firmware == Firmware::Uefi {
            let (_, variables) = uefi_files(&job.machine)?;
            std::fs::copy(&variables, VARIABLES).map_err(|e| format!("{}: {e}", variables.display()))?;
        }
        let disks: Vec<DiskPlace> = job.disks.iter().filter_map(|d| d.place.clone()).collect();
        let mut ports: Vec<u16> = Vec::new();
        for check in &job.checks {
            if let Check::Tcp(port) = check {
                ports.push(*port);
            }
        }
        let seed = u32::from_be_bytes(afterimage_base::world::random_array().map_err(|e| e.to_string())?);
        let start = Start { machine: &job.machine, disks: &disks, purpose: job.purpose, kvm, seed, ports: &ports };
        let arguments = start.arguments()?;
        let mut log = File::create("qemu.log").map_err(|e| format!("qemu.log: {e}"))?;
        // Only for people.
        drop(log.write_all(crate::target::qemu::shell(PROGRAM, &arguments).as_bytes()));
        let at_gate = prepare(PROGRAM, &arguments, Path::new("."), &log).map_err(|e| format!("{PROGRAM}: {e}"))?;
        let process = at_gate.id().clone();
        self.at_gate = Some(at_gate);
        Ok((process, kvm, self.ms()))
    }

    fn release(&mut self, job: &Job) -> Result<u64, String> {
        let at_gate = self.at_gate.take().ok_or("the guest's process is not there")?;
        self.child = Some(at_gate.open().map_err(|e| format!("{PROGRAM} did not start: {e}"))?);
        let mut qmp = self.connect(QMP_SOCKET, Monitor::connect)?;
        if job.machine.console.serial {
            self.serial = Some(self.connect(SERIAL_SOCKET, |path| Serial::follow(path, Path::new("serial.log")))?);
        }
        qmp.resume().map_err(|e| e.to_string())?;
        self.qmp = Some(qmp);
        Ok(self.ms())
    }

    fn check(&mut self, job: &Job, check: &Check) -> Looked<CheckResult> {
        let end = Instant::now() + Duration::from_millis(job.check_limit_ms);
        let (verdict, note) = if let Check::Script(path) = check {
            match self.run_script(job, path, end) {
                Looked::Done(verdict) => (verdict, None),
                Looked::Over(end) => return Looked::Over(end),
            }
        } else {
            loop {
                if let Some(end) = self.in_the_way() {
                    return Looked::Over(end);
                }
                match self.look(job, check) {
                    Ok(note) => break (Verdict::Passed, note),
                    Err(why) if Instant::now() > end => break (Verdict::Failed(why), None),
                    Err(_) => std::thread::sleep(PACE),
                }
            }
        };
        Looked::Done(CheckResult { check: check.clone(), verdict, at_ms: self.ms(), note })
    }

    fn hold(&mut self, job: &Job, until: Option<Time>) -> End {
        loop {
            if let Some(end) = self.in_the_way() {
                return end;
            }
            if job.is_failover() && Path::new(HALT).exists() {
                return End::Failed("it was taken down, to go back".to_owned());
            }
            let over = until.is_some_and(|until| self.now() >= until);
            if job.is_failover() && job.committed.is_none() && (over || Path::new(COMMIT).exists()) {
                return End::Commit;
            }
            if over && !job.is_failover() {
                return End::Expired;
            }
            std::thread::sleep(PACE);
        }
    }

    fn stay(&mut self, job: &Job) -> End {
        loop {
            if let Some(end) = self.wanted() {
                return end;
            }
            if Path::new(AGAIN).exists() {
                return End::Start;
            }
            if job.committed.is_none() && Path::new(COMMIT).exists() {
                return End::Commit;
            }
            std::thread::sleep(PACE);
        }
    }

    fn lift(&mut self, job: &Job) -> Result<(), String> {
        lift(self.outside.source, job)
    }

    fn kill(&mut self, job: &Job) -> Result<(), String> {
        (self.qmp, self.serial, self.at_gate) = (None, None, None);
        job.process.as_ref().map_or(Ok(()), end_process)?;
        if let Some(mut child) = self.child.take() {
            // It may not be in the job's file, if that could not be written.
            drop(child.kill());
            child.wait().map_err(|e| format!("the guest's process does not end: {e}"))?;
        }
        self.served.clear();
        Ok(())
    }

    fn drop_forks(&mut self, job: &Job) -> Result<(), String> {
        drop_disks(self.outside.source, job)
    }

    fn remove(&mut self, job: &Job) -> Result<Option<u64>, String> {
        remove_files(Path::new("."), job)?;
        Ok(Some(self.ms()))
    }

    fn now(&self) -> Time {
        Time(self.clock.wall())
    }

    fn pass(&mut self, step: Step, when: Moment) {
        (self.outside.pass)(step, when);
    }
}
