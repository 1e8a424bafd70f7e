//! System calls of a process, counted by `perf stat` in a run of its own: counting disturbs little, but it does.

use afterimage_tests::process::Process;
use afterimage_tests::tool::tool;
use nix::sys::signal::Signal;
use std::path::Path;
use std::time::Duration;

const EVENTS: &str =
    "raw_syscalls:sys_enter,syscalls:sys_enter_fsync,syscalls:sys_enter_fdatasync,syscalls:sys_enter_msync";

/// System calls, and those among them that make something durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// All.
    pub calls: u64,
    /// fsync, fdatasync, msync.
    pub syncs: u64,
}

/// Counts while `work` runs; `None` where that is not allowed.
#[must_use]
pub fn count(pid: u32, dir: &Path, work: impl FnOnce()) -> Option<Counted> {
    let out = dir.join("syscalls.txt");
    if !tool("perf").args(["stat", "-x", ",", "-e", EVENTS, "true"]).run_any().status.success() {
        return None;
    }
    let perf = tool("perf").args(["stat", "-x", ",", "-e", EVENTS, "-o"]).arg(&out).args(["-p", &pid.to_string()]);
    let mut perf = Process::start(perf.into_command(), &dir.join("perf.log"));
    std::thread::sleep(Duration::from_millis(300));
    work();
    perf.signal(Signal::SIGINT);
    // It ends by the signal, after it has written.
    let _ = perf.wait_end();
    parse(&std::fs::read_to_string(out).ok()?)
}

fn parse(text: &str) -> Option<Counted> {
    let lines = text.lines().filter_map(|line| {
        let mut fields = line.split(',');
        let count: u64 = fields.next()?.parse().ok()?;
        Some((fields.nth(1)?.to_owned(), count))
    });
    let mut counted = Counted { calls: 0, syncs: 0 };
    let mut any = false;
    for (event, n) in lines {
        any = true;
        if event.starts_with("raw_syscalls") {
            counted.calls += n;
        } else {
            counted.syncs += n;
        }
    }
    any.then_some(counted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perfs_lines_are_read() {
        let text = "# started on\n\n1234,,raw_syscalls:sys_enter,99,100.00,,\n3,,syscalls:sys_enter_fsync,1,100.00,,\n4,,syscalls:sys_enter_msync,1,100.00,,\n";
        assert_eq!(parse(text), Some(Counted { calls: 1234, syncs: 7 }));
        assert_eq!(parse("<not counted>,,raw_syscalls:sys_enter,0,0.00,,"), None);
    }
}
