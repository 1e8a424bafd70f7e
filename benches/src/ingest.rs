//! Two generations of a disk image into an encrypted, deduplicated store, and back out of it: ours, restic, borg; and zstd and
//! QEMU's compressed images, which neither encrypt nor dedupe.
//!
//! What is timed: for the others the whole command, which reads the image file. For ours the first generation is the initial sync,
//! from the start of the agent until every block is durable; the second is what a client does that writes the whole second
//! image to the export, from the first write until all is durable: journal, real disk and network protocol are in it.
//!
//! On *one core* the appliance has processor 1, agent and client have processor 0, as if they were another host; the others have
//! processor 1, and nobody to feed them. On *both cores* nothing is pinned.

pub mod limit;
mod ours;
mod peers;
pub mod table;

use crate::cache::{make_cold, write_all_back};
use crate::image::Generations;
use crate::usage::{Cores, on};
use serde::Serialize;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A program to be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Candidate {
    /// `afterimage agent` and `afterimage appliance`.
    Afterimage,
    /// `restic backup`, with its standard settings.
    Restic,
    /// `borg create`, repokey, lz4, its standard.
    Borg,
    /// `borg create -C zstd,1`.
    BorgZstd,
    /// `zstd -1`.
    Zstd,
    /// `qemu-img convert -c` to qcow2 with zstd.
    QemuImg,
}

/// All of them.
pub const CANDIDATES: [Candidate; 6] = [
    Candidate::Afterimage,
    Candidate::Restic,
    Candidate::Borg,
    Candidate::BorgZstd,
    Candidate::Zstd,
    Candidate::QemuImg,
];

impl Candidate {
    /// Its name in a table.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Afterimage => "afterimage",
            Self::Restic => "restic",
            Self::Borg => "borg, lz4",
            Self::BorgZstd => "borg, zstd 1",
            Self::Zstd => "zstd -1",
            Self::QemuImg => "qemu-img, qcow2 zstd",
        }
    }
}

/// One run: both generations into a new store, and the second out again.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Run {
    /// The program.
    pub candidate: Candidate,
    /// Where it ran.
    pub cores: Cores,
    /// Which round.
    pub round: u32,
    /// Seconds that each generation took.
    pub seconds: [f64; 2],
    /// CPU seconds of each; ours: of the appliance.
    pub cpu_seconds: [f64; 2],
    /// CPU seconds of the agent, the kernel's part of reading and writing the real disk included. Ours only.
    pub agent_cpu_seconds: Option<[f64; 2]>,
    /// Bytes that the store takes on its disk after each.
    pub stored: [u64; 2],
    /// The same once the background has done what it does when it is quiet, and the seconds until then. Ours only.
    pub settled: Option<(u64, f64)>,
    /// Seconds of restoring the second generation to a file and making that durable, the store's files not in memory.
    pub restore_seconds: f64,
    /// CPU seconds of that.
    pub restore_cpu_seconds: f64,
    /// Most memory that one of its processes had, in bytes; ours: the appliance.
    pub peak: u64,
}

/// All that was measured.
#[derive(Debug, Default, Serialize)]
pub struct Results {
    /// Bytes of the image, of the files in it, and that differ.
    pub image: [u64; 3],
    /// The kernels, once a round.
    pub limits: Vec<limit::Limit>,
    /// The runs.
    pub runs: Vec<Run>,
}

/// What is to be measured.
#[derive(Debug)]
pub struct Plan<'a> {
    /// A folder on the file system to measure on.
    pub dir: &'a Path,
    /// The images.
    pub generations: &'a Generations,
    /// The programs.
    pub candidates: Vec<Candidate>,
    /// Where they run.
    pub cores: Vec<Cores>,
    /// Interleaved repetitions.
    pub rounds: u32,
}

/// Measures everything.
///
/// # Panics
/// If a program fails.
#[must_use]
pub fn measure(plan: &Plan<'_>, mut progress: impl FnMut(&Run)) -> Results {
    let g = plan.generations;
    let mut results = Results { image: [g.size, g.content, g.changed], ..Results::default() };
    for round in 0..plan.rounds {
        results.limits.push(on(Cores::One, 1, || limit::measure(&g.first, plan.dir)));
        for candidate in crate::in_turn(&plan.candidates, round) {
            for &cores in &plan.cores {
                let scratch = tempfile::Builder::new().prefix("ingest-").tempdir_in(plan.dir).expect("make a folder");
                let mut run = match candidate {
                    Candidate::Afterimage => ours::measure(scratch.path(), g, cores),
                    _ => peers::measure(candidate, scratch.path(), g, cores),
                };
                run.round = round;
                progress(&run);
                results.runs.push(run);
            }
        }
    }
    results
}

/// The command must find the image in the same state, whoever runs it: on the disk, not in memory.
fn settle(image: &Path) {
    write_all_back();
    make_cold(image);
}

/// The files of a folder are on the disk and not in memory.
fn settle_all(folder: &Path) {
    write_all_back();
    each_file(folder, &mut |path, _| {
        make_cold(path);
    });
}

/// Bytes that a folder takes on its disk.
pub(crate) fn stored(folder: &Path) -> u64 {
    let mut bytes = 0;
    each_file(folder, &mut |path, about| {
        // The reserve is no data: it is for getting out of a full disk.
        if path.file_name().is_none_or(|n| n != "RESERVE") {
            bytes += about.blocks() * 512;
        }
    });
    bytes
}

fn each_file(folder: &Path, found: &mut dyn FnMut(&Path, &std::fs::Metadata)) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(about) if about.is_dir() => each_file(&entry.path(), found),
            Ok(about) if about.is_file() => found(&entry.path(), &about),
            _ => {}
        }
    }
}
