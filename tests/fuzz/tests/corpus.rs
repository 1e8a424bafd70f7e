//! Every input that was ever worth keeping, on a normal build. Each target runs in a process of its own, with its own limits.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use std::process::Command;

fn replay(target: &str) {
    // Gone with what the process has left in it.
    let scratch = afterimage_fuzz::place::folder();
    let mut command = Command::new(env!("CARGO_BIN_EXE_afterimage-fuzz"));
    let out = command.args(["run", target]).env("AFTERIMAGE_FUZZ_SCRATCH", scratch.path()).output().unwrap();
    let (said, wrong) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{said}{wrong}\nrun it alone: cargo run -p afterimage-fuzz -- run {target} FILE");
}

macro_rules! corpora {
    ($($name:ident),* $(,)?) => {
        $(#[test] fn $name() { replay(stringify!($name)); })*

        #[test]
        fn every_target_has_its_test() {
            let known = [$(stringify!($name)),*];
            let all: Vec<&str> = afterimage_fuzz::targets::ALL.iter().map(|t| t.name).collect();
            assert_eq!(all, known);
        }
    };
}

corpora!(
    wire,
    record,
    commit,
    manifest,
    segment_parts,
    layer_parts,
    text,
    nbd_stream,
    nbd_session,
    nbd_client,
    ring,
    dirty_map,
    intent,
    segment,
    layer,
    vault,
    appliance_session,
    agent_session,
    volume_json,
    control,
    coord,
    certificate,
);

/// What the harness is for: it sees a panic in any thread and memory without bound, and names the input.
#[test]
fn what_goes_wrong_is_seen() {
    for (target, what) in [("broken_panic", "on purpose"), ("broken_memory", "memory limit")] {
        let me = env!("CARGO_MANIFEST_DIR").to_string() + "/Cargo.toml";
        let mut command = Command::new(env!("CARGO_BIN_EXE_afterimage-fuzz"));
        let run = command.args(["run", target, &me]).output().unwrap();
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(!run.status.success() && said.contains(what) && said.contains("FAILED"), "{target}: {said}");
    }
}
