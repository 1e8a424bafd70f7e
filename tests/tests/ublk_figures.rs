//! Figures of ublk, guest against guest in one run. No test: it asserts nothing about time.
//!
//!     AFTERIMAGE_VM_PROFILE=release cargo test --workspace --test ublk_figures -- --ignored --nocapture

use afterimage_tests::guest::machine;
use afterimage_tests::tool::tool;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

const ROUNDS: u32 = 5;
const SECONDS: u32 = 5;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
#[ignore = "figures for docs/performance.md"]
fn figures() {
    let script = include_str!("../guest/ublk-figures.sh");
    let mut plan = machine("figures").afterimage().fio().processors(2).memory(3584).file("/etc/figures.sh", script);
    let qemu = Path::new("/usr/bin/qemu-nbd");
    plan = plan.copy(qemu, "/bin/qemu-nbd");
    for line in tool("ldd").arg(qemu).run().stdout.lines() {
        if let Some(library) = line.split_whitespace().find(|word| word.starts_with('/')) {
            let name = Path::new(library).file_name().unwrap().to_str().unwrap();
            plan = plan.copy(Path::new(library), &format!("/lib/{name}"));
        }
    }
    let mut vm = plan.boot();
    let command = format!("set +e; export ROUNDS={ROUNDS} SECONDS_EACH={SECONDS}; . /etc/figures.sh");
    let printed = vm.run_within(Duration::from_secs(1800), &command);
    let mut found: BTreeMap<&str, Vec<[f64; 3]>> = BTreeMap::new();
    for line in printed.lines().filter_map(|l| l.strip_prefix("figure ")) {
        let words: Vec<&str> = line.split(' ').collect();
        let numbers = [1, 2, 3].map(|n| words[n].parse().unwrap());
        found.entry(words[0]).or_default().push(numbers);
    }
    assert_eq!(found.len(), 4, "{printed}");
    println!(
        "| 4 KiB random write, depth 32 | IOPS | server, CPU us a write | machine, CPU us a write |\n|---|---:|---:|---:|"
    );
    for (setup, rounds) in &found {
        let of = |n: usize| median(rounds.iter().map(|r| r[n]).collect());
        println!("| {setup} | {:.0} | {:.1} | {:.1} |", of(0), of(1), of(2));
    }
    for how in ["kill", "replace"] {
        let stalls = printed.lines().filter_map(|l| l.strip_prefix("stall ")?.strip_prefix(how)?.trim().parse().ok());
        let mut stalls: Vec<f64> = stalls.collect();
        stalls.sort_by(f64::total_cmp);
        let longest = stalls.last().unwrap_or_else(|| panic!("no stall of {how}: {printed}"));
        println!("a write over {how} of the agent: median {} ms, longest {longest} ms", median(stalls.clone()));
    }
}
