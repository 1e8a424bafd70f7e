//! Fuzzing: everything that reads what a peer, a disk or a user wrote is fed with what nobody would write.
//!
//! A [`Target`] is a plain function of some bytes. Two programs share them: the engine (libFuzzer, built by
//! `scripts/fuzz.sh` with coverage on stable Rust) looks for new inputs, and `afterimage-fuzz` replays known ones on a normal
//! build, as the test of this package does with the whole corpus.
//!
//! | module | what |
//! |---|---|
//! | [`input`] | the bytes of the engine as numbers, choices and edits |
//! | [`memory`] | a counting allocator: an input that makes us allocate without bound is a failure |
//! | [`watch`] | panics of any thread and endless loops end the process, and name the input |
//! | [`place`] | scratch files in memory |
//! | [`agent`] | a small agent, and what a volume holds after each record |
//! | [`fixture`] | a small real vault |
//! | [`seeds`] | makes the first inputs of each target |
//! | [`targets`] | the targets |
//!
//! Checksums and seals would stop blind changes, so there are two kinds of targets: those that take bytes as they are, and those
//! that build messages, records, frames and pages from the input, with whatever fields, and then put right checksums and seals on
//! them.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a panic is what a target reports with, and its numbers are small"
)]

pub mod agent;
pub mod fixture;
pub mod input;
pub mod memory;
pub mod place;
pub mod seeds;
pub mod targets;
pub mod watch;

use std::path::PathBuf;

/// Something that reads what others wrote.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folder in the corpus.
    pub name: &'static str,
    /// Feeds it. A panic, in any thread, is a finding.
    pub run: fn(&[u8]),
    /// How much more memory than before an input may be in use at once, in bytes.
    pub memory: usize,
    /// Longest input that the engine makes.
    pub longest: usize,
}

/// The target of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Target> {
    targets::ALL.iter().chain(&targets::broken::ALL).find(|t| t.name == name)
}

/// Runs one input under the target's memory limit.
pub fn run(target: &Target, input: &[u8]) {
    memory::limited(target.memory, || (target.run)(input));
}

/// The folder of the corpora in the repository.
#[must_use]
pub fn corpus() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus")
}
