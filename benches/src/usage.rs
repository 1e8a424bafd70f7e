//! What a command takes: time, CPU time of it and its children, peak memory; on chosen processors.

use afterimage_tests::tool::{Tool, tool};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// The first word with which this program asks itself to run a command and to measure it.
const WORD: &str = "usage-of";

/// What one command took.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Seconds from its start to its end.
    pub seconds: f64,
    /// CPU seconds, its children's too.
    pub cpu_seconds: f64,
    /// Most memory that one of its processes had, in bytes.
    pub peak: u64,
}

/// On which processors something runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cores {
    /// Processor 1 alone; whoever feeds it is on processor 0, as if it were another host.
    One,
    /// All.
    All,
}

impl Cores {
    /// For a table.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::One => "one core",
            Self::All => "both cores",
        }
    }
}

/// Runs `work`, and starts what it starts, on one processor if `cores` says so: number `cpu`.
///
/// # Panics
/// If the system does not allow it.
pub fn on<T>(cores: Cores, cpu: usize, work: impl FnOnce() -> T) -> T {
    if cores == Cores::All {
        return work();
    }
    let me = Pid::from_raw(0);
    let before = sched_getaffinity(me).expect("ask for the processors");
    let mut one = CpuSet::new();
    one.set(cpu).expect("a processor");
    sched_setaffinity(me, &one).expect("choose a processor");
    let result = work();
    sched_setaffinity(me, &before).expect("choose all processors again");
    result
}

/// A command that runs `program` and leaves what it took in `note`, for [`taken`].
///
/// # Panics
/// If the path of the running program is not known.
#[must_use]
pub fn measured(program: impl AsRef<std::ffi::OsStr>, note: &Path) -> Tool {
    let me = std::env::current_exe().expect("the path of the running program");
    tool(me).arg(WORD).arg(note).arg(program)
}

/// What a measured command has left.
///
/// # Panics
/// If it left nothing.
#[must_use]
pub fn taken(note: &Path) -> Usage {
    let text = std::fs::read_to_string(note).unwrap_or_else(|e| panic!("read {}: {e}", note.display()));
    serde_json::from_str(&text).expect("a note of what a command took")
}

/// Does what [`measured`] asks for, if that is what this process was started for; does not return then.
///
/// # Panics
/// If the command cannot be started or the note not be written.
pub fn serve() {
    let mut words = std::env::args_os().skip(1);
    if words.next().is_none_or(|w| w != WORD) {
        return;
    }
    let (Some(note), Some(program)) = (words.next(), words.next()) else { return };
    let mut command = Command::new(program);
    command.args(words);
    let start = Instant::now();
    let status = command.status().unwrap_or_else(|e| panic!("start {:?}: {e}", command.get_program()));
    let seconds = start.elapsed().as_secs_f64();
    let used = getrusage(UsageWho::RUSAGE_CHILDREN).expect("ask what children used");
    let micros = used.user_time().num_microseconds() + used.system_time().num_microseconds();
    #[expect(clippy::cast_precision_loss, reason = "times are far below 2^52 microseconds")]
    let cpu_seconds = micros as f64 / 1e6;
    let peak = u64::try_from(used.max_rss()).unwrap_or(0) * 1024;
    let text = serde_json::to_string(&Usage { seconds, cpu_seconds, peak }).expect("a note is JSON");
    std::fs::write(note, text).expect("leave the note");
    // Whoever started us shows what the command said.
    std::process::exit(i32::from(!status.success()));
}
