//! Ours: agent and appliance, a process each.

use super::{Candidate, Run, settle, settle_all, stored};
use crate::cache::cpu_microseconds;
use crate::image::Generations;
use crate::usage::{Cores, on};
use afterimage_tests::data::assert_same;
use afterimage_tests::pair::{Pair, Role};
use afterimage_tests::tool::tool;
use std::path::Path;
use std::time::{Duration, Instant};

/// Large enough that a second generation is taken up by the journal, and no larger: its pages are brought into memory too.
const RING: &str = "1GiB";

/// Measures it.
pub(super) fn measure(dir: &Path, generations: &Generations, cores: Cores) -> Run {
    let mut pair = Pair::plan_in(dir, generations.size, RING);
    tool("cp").arg("--sparse=always").arg(&generations.first).arg(&pair.image).run();
    settle(&pair.image);
    on(cores, 1, || pair.start(Role::Appliance));
    let vault = pair.data(Role::Appliance).join("vault");
    let appliance = pair.process(Role::Appliance).id();
    let mut before = cpu(appliance);
    let mut used = || {
        let now = cpu(appliance);
        let used = now - before;
        before = now;
        used
    };
    let start = Instant::now();
    on(cores, 0, || pair.start(Role::Agent));
    let agent = pair.process(Role::Agent).id();
    pair.wait_durable();
    let first = start.elapsed().as_secs_f64();
    let (first_cpu, first_agent) = (used(), cpu(agent));
    let stored_first = stored(&vault);
    settle(&generations.second);
    let start = Instant::now();
    on(cores, 0, || tool("nbdcopy").arg("--flush").arg(&generations.second).arg(pair.uri()).run());
    let seq = pair.wait_durable();
    let second = start.elapsed().as_secs_f64();
    let (second_cpu, second_agent) = (used(), cpu(agent) - first_agent);
    let stored_second = stored(&vault);
    assert!(pair.stop(Role::Agent).success(), "{}", pair.logs());
    // Not a part of restoring; in the table as what it is.
    used();
    settle_all(&vault);
    let restored = dir.join("restored");
    let start = Instant::now();
    on(cores, 1, || pair.restore(&format!("@{seq}"), &restored));
    let restore_seconds = start.elapsed().as_secs_f64();
    let restore_cpu_seconds = used();
    // A fast store that lost something is no store.
    assert_same(&generations.second, &restored);
    let peak = peak(appliance);
    assert!(pair.stop(Role::Appliance).success(), "{}", pair.logs());
    Run {
        candidate: Candidate::Afterimage,
        cores,
        round: 0,
        seconds: [first, second],
        cpu_seconds: [first_cpu, second_cpu],
        agent_cpu_seconds: Some([first_agent, second_agent]),
        stored: [stored_first, stored_second],
        settled: None,
        restore_seconds,
        restore_cpu_seconds,
        peak,
    }
}

fn cpu(pid: u32) -> f64 {
    Duration::from_micros(cpu_microseconds(pid)).as_secs_f64()
}

/// Most memory that a process has had so far, in bytes.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
}
