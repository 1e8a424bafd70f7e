//! The results: one JSON file, and the tables of docs/performance.md.

use crate::figures::{figure, median, spread};
use crate::{branch, growth, history, ingest, lag, outage, write_path};
use afterimage_tests::tool::tool;
use serde::Serialize;
use std::fmt::Write as _;
use std::path::Path;

/// Where and with what it was measured.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// The processor.
    pub processor: String,
    /// Cores.
    pub cores: usize,
    /// Memory in bytes.
    pub memory: u64,
    /// The kernel.
    pub kernel: String,
    /// The file system measured on.
    pub file_system: String,
    /// First lines of the peers' own version messages.
    pub programs: Vec<String>,
}

/// All results of a run.
#[derive(Debug, Serialize)]
pub struct Results {
    /// Version of this shape.
    pub v: u32,
    /// The machine.
    pub machine: Machine,
    /// Runs of the write path.
    pub write_path: Vec<write_path::Run>,
    /// Runs of the ingest comparison.
    pub ingest: Option<ingest::Results>,
    /// The long history.
    pub history: Option<history::Results>,
    /// Runs with the appliance away.
    pub outage: Vec<outage::Run>,
    /// What reading points costs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cold: Vec<crate::cold::ColdRun>,
    /// Behind at a given churn.
    pub lag: Option<lag::Results>,
    /// Many volumes.
    pub growth: Vec<growth::Run>,
    /// A branch in pairs with an overlay.
    pub branch: Vec<branch::Pair>,
}

impl Machine {
    /// This one.
    #[must_use]
    pub fn this(dir: &Path) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let after = |text: &str, key: &str| {
            let line = text.lines().find(|l| l.starts_with(key)).unwrap_or_default();
            line.split(':').nth(1).unwrap_or_default().trim().to_owned()
        };
        let memory = after(&read("/proc/meminfo"), "MemTotal");
        let memory: u64 = memory.split(' ').next().and_then(|k| k.parse().ok()).unwrap_or(0);
        let commands = ["fio", "qemu-nbd", "nbdkit", "nbd-server -V", "restic version", "borg"];
        Self {
            processor: after(&read("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory: memory * 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            file_system: tool("stat").args(["-f", "-c", "%T"]).arg(dir).run_any().stdout.trim().to_owned(),
            programs: commands.iter().map(|c| version(c)).collect(),
        }
    }

    pub(crate) fn describe(&self) -> String {
        let Self { processor, cores, memory, kernel, file_system, programs } = self;
        let gib = memory >> 30;
        let programs = programs.join("; ");
        format!("{processor}, {cores} cores, {gib} GiB, Linux {kernel}, {file_system}. {programs}.")
    }
}

fn version(command: &str) -> String {
    let (program, option) = command.split_once(' ').unwrap_or((command, "--version"));
    let shown = tool(program).arg(option).run_any();
    let text = if shown.stdout.trim().is_empty() { shown.stderr } else { shown.stdout };
    text.lines().next().unwrap_or_default().trim().to_owned()
}

/// The table of the write path.
#[must_use]
pub fn write_path_table(machine: &Machine, plan: &write_path::Plan, runs: &[write_path::Run]) -> String {
    let mut text = format!(
        "{}\n\nMedians of {} interleaved runs of {} MiB or {} s, whichever ends first, fio with its NBD engine over unix sockets, an image \
         of {} MiB whose pages are not cached at the start; ring {}. Pinned: fio and the server on CPU 0; the appliance, another process, on \
         CPU 1, as if it were another host. CPU and system calls are the server's; ours protected is the agent, forwarding included. System \
         calls are counted in a short run of their own.\n",
        machine.describe(),
        plan.rounds,
        plan.bytes >> 20,
        plan.seconds,
        plan.size >> 20,
        plan.ring
    );
    for &pattern in &plan.patterns {
        let unit = if pattern.is_stream() { "MB/s" } else { "IOPS" };
        for &pinned in &plan.places {
            let place = if pinned { "pinned" } else { "not pinned" };
            let _ = writeln!(
                text,
                "\n**{}, {place}**\n\n| server | {unit} | lowest - highest | of ours unprotected | p50 / p99 / p99.9 \u{b5}s | CPU \u{b5}s | system calls | syncs |\n|---|---:|---:|---:|---:|---:|---:|---:|",
                pattern.title()
            );
            let of_place: Vec<&write_path::Run> =
                runs.iter().filter(|r| r.pattern == pattern && r.pinned == pinned).collect();
            let base = median(&write_path::rates(&of_place, write_path::Candidate::Unprotected));
            for &candidate in &plan.candidates {
                text.push_str(&write_path_row(&of_place, candidate, base));
            }
        }
    }
    text
}

fn write_path_row(runs: &[&write_path::Run], candidate: write_path::Candidate, base: f64) -> String {
    let chosen: Vec<&write_path::Run> = runs.iter().copied().filter(|r| r.candidate == candidate).collect();
    let rates = write_path::rates(&chosen, candidate);
    let middle =
        |of: &dyn Fn(&write_path::Run) -> f64| figure(median(&chosen.iter().map(|r| of(r)).collect::<Vec<_>>()));
    let latency = [0, 1, 2].map(|i| middle(&|r| r.latency[i])).join(" / ");
    let counted = chosen.iter().find_map(|r| Some((r.syscalls_per_request?, r.syncs?)));
    format!(
        "| {}{} | {} | {} | {} | {latency} | {} | {} |\n",
        candidate.title(),
        overflowed(&chosen),
        figure(median(&rates)),
        spread(&rates),
        if base > 0.0 { format!("{:.2}", median(&rates) / base) } else { "-".to_owned() },
        middle(&|r| r.cpu_per_request),
        counted.map_or("- | -".to_owned(), |(calls, syncs)| format!("{calls:.2} | {syncs}"))
    )
}

/// A protected run whose ring overflowed measured something else; the table says so.
fn overflowed(runs: &[&write_path::Run]) -> String {
    let count =
        runs.iter().filter(|r| r.state_after.as_deref().is_some_and(|s| s != "live" && s != "unprotected")).count();
    if count == 0 { String::new() } else { format!(" (ring overflowed in {count} of {})", runs.len()) }
}

/// The tables of the long history.
#[must_use]
pub fn history_table(machine: &Machine, plan: &history::Plan, found: &history::Results) -> String {
    let count = |n: u64| figure(precise(n));
    let shape = &plan.shape;
    let mut text = format!(
        "{}\n\nA volume of {} GiB with {} writes of 4 KiB, in random order, to {} blocks ({} MiB, half of them neighbours, half in \
         pieces of 16 MiB all over the volume), through the appliance's socket in {:.0} s; {} MiB stored, {} layers in files. Medians of {} \
         interleaved rounds. Open: until the first 4 KiB have come through a new NBD connection, from the request at the \
         control socket and from the start of the `afterimage export` command; the daemon is killed and started before each series. \
         Reads: fio with its NBD engine, one connection, depth 32, in the neighbouring blocks; qemu-nbd serves a plain sparse \
         image of the same point.\n\n",
        machine.describe(),
        shape.size >> 30,
        count(shape.writes),
        count(shape.blocks),
        shape.blocks >> 8,
        found.fill_seconds,
        count(found.stored >> 20),
        found.layers,
        plan.rounds
    );
    text.push_str("| point | open by request, ms | by command, ms | 4 KiB random, IOPS | qemu-nbd | ratio | 128 KiB sequential, MB/s | qemu-nbd | ratio |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|\n");
    for (seq, title) in history::points(shape) {
        let open = |way| {
            let of = found.opened.iter().filter(|o| o.seq == seq && o.way == way);
            let times: Vec<f64> = of.map(|o| o.milliseconds).collect();
            format!("{} ({})", figure(median(&times)), spread(&times))
        };
        let (request, command) = (open(history::Way::Request), open(history::Way::Command));
        let _ = write!(text, "| @{seq}, {title} | {request} | {command} ");
        for pattern in history::PATTERNS {
            let rate = |server| {
                let of = found.reads.iter().filter(|r| r.seq == seq && r.pattern == pattern && r.server == server);
                let random = pattern == history::Pattern::Random4k;
                median(&of.map(|r| if random { r.iops } else { r.megabytes }).collect::<Vec<_>>())
            };
            let (ours, theirs) = (rate(history::Server::Point), rate(history::Server::QemuNbd));
            if ours > 0.0 && theirs > 0.0 {
                let _ = write!(text, "| {} | {} | {:.2} ", figure(ours), figure(theirs), ours / theirs);
            } else {
                text.push_str("| - | - | - ");
            }
        }
        text.push_str("|\n");
    }
    text
}

#[expect(clippy::cast_precision_loss, reason = "sizes of disks are far below 2^52 bytes")]
pub(crate) fn precise(bytes: u64) -> f64 {
    bytes as f64
}

/// Replaces what stands between `<!-- begin NAME -->` and `<!-- end NAME -->` in a document; appends it where the marks
/// are not there yet.
#[must_use]
pub fn replace_section(document: &str, name: &str, text: &str) -> String {
    let (begin, end) = (format!("<!-- begin {name} -->"), format!("<!-- end {name} -->"));
    let section = format!("{begin}\n{}\n{end}", text.trim());
    match (document.find(&begin), document.find(&end)) {
        (Some(from), Some(to)) if from < to => {
            format!("{}{section}{}", &document[..from], &document[to + end.len()..])
        }
        _ => format!("{}\n\n{section}\n", document.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_appended_and_then_replaced() {
        let once = replace_section("# Performance\n", "table", "old");
        assert_eq!(once, "# Performance\n\n<!-- begin table -->\nold\n<!-- end table -->\n");
        let twice = replace_section(&format!("{once}\nmore\n"), "table", "new\n");
        assert_eq!(twice, "# Performance\n\n<!-- begin table -->\nnew\n<!-- end table -->\n\nmore\n");
    }
}
