//! Two generations of a disk image into an encrypted, deduplicated store: ours, restic, borg.
//!
//! What is timed: for restic and borg the whole `backup` or `create` command, which reads the image file. For ours
//! the first generation is the initial sync, from the start of the process until every block is durable; the second is
//! what a client does that writes the whole second image to the export: from the first write until all is durable, so the
//! journal, the real disk and the network protocol are in it.

use crate::cache::{cpu_microseconds, make_cold, write_all_back};
use crate::image::Generations;
use afterimage_tests::daemon::{Daemon, daemon, number};
use afterimage_tests::data::assert_same;
use afterimage_tests::tool::{Tool, tool};
use serde::Serialize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const VOLUME: &str = "disk";
/// Large enough that a second generation is taken up by the journal, and no larger: its pages are brought into memory too.
const RING: &str = "1GiB";

/// A program to be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Candidate {
    /// `afterimage up`.
    Afterimage,
    /// `restic backup`, with its standard settings.
    Restic,
    /// `borg create`, repokey, lz4, its standard.
    Borg,
    /// `borg create -C zstd,1`.
    BorgZstd,
}

/// All of them.
pub const CANDIDATES: [Candidate; 4] = [Candidate::Afterimage, Candidate::Restic, Candidate::Borg, Candidate::BorgZstd];

impl Candidate {
    /// Its name in a table.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Afterimage => "afterimage",
            Self::Restic => "restic",
            Self::Borg => "borg, lz4",
            Self::BorgZstd => "borg, zstd 1",
        }
    }
}

/// One run: both generations into a new store.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// The program.
    pub candidate: Candidate,
    /// Which round.
    pub round: u32,
    /// Seconds that each generation took.
    pub seconds: [f64; 2],
    /// Bytes that the store takes on its disk after each.
    pub stored: [u64; 2],
    /// CPU seconds of the process over both, where it is one process (ours).
    pub cpu_seconds: Option<f64>,
}

/// Measures everything; `dir` lies on the file system to measure on.
///
/// # Panics
/// If a program fails.
#[must_use]
pub fn measure(
    dir: &Path,
    generations: &Generations,
    candidates: &[Candidate],
    rounds: u32,
    mut progress: impl FnMut(&Run),
) -> Vec<Run> {
    let mut runs = Vec::new();
    for round in 0..rounds {
        let mut order = candidates.to_vec();
        if round % 2 == 1 {
            order.reverse();
        }
        for candidate in order {
            let scratch = tempfile::Builder::new().prefix("ingest-").tempdir_in(dir).expect("make a folder");
            let run = match candidate {
                Candidate::Afterimage => ours(scratch.path(), generations, round),
                _ => Repository::new(candidate, scratch.path()).measure(generations, round),
            };
            progress(&run);
            runs.push(run);
        }
    }
    runs
}

/// The command must find the image in the same state, whoever runs it: on the disk, not in memory.
fn settle(image: &Path) {
    write_all_back();
    make_cold(image);
}

fn ours(dir: &Path, generations: &Generations, round: u32) -> Run {
    let disk = dir.join("disk.raw");
    tool("cp").arg("--sparse=always").arg(&generations.first).arg(&disk).run();
    settle(&disk);
    let start = Instant::now();
    let mut daemon = daemon(dir).volume(VOLUME, &disk).options(["--ring", RING]).start();
    daemon.wait_live(VOLUME);
    daemon.wait_durable(VOLUME);
    let first = start.elapsed().as_secs_f64();
    let vault = daemon.data().join("vault");
    let stored_first = stored(&vault);
    settle(&generations.second);
    let start = Instant::now();
    tool("nbdcopy").arg("--flush").arg(&generations.second).arg(daemon.uri(VOLUME)).run();
    daemon.wait_durable(VOLUME);
    let second = start.elapsed().as_secs_f64();
    check(&daemon, dir, generations);
    let cpu = cpu_microseconds(daemon.process().id());
    assert!(daemon.stop().success(), "{}", daemon.log());
    Run {
        candidate: Candidate::Afterimage,
        round,
        seconds: [first, second],
        stored: [stored_first, stored(&vault)],
        cpu_seconds: Some(Duration::from_micros(cpu).as_secs_f64()),
    }
}

/// A fast store that lost something is no store.
fn check(daemon: &Daemon, dir: &Path, generations: &Generations) {
    let restored = dir.join("restored");
    let seq = number(&daemon.volume(VOLUME), "seq_durable");
    daemon.restore(VOLUME, &format!("@{seq}"), &restored);
    assert_same(&generations.second, &restored);
    std::fs::remove_file(&restored).expect("remove the restored image");
}

/// The repository of a backup program.
struct Repository {
    candidate: Candidate,
    path: PathBuf,
    home: PathBuf,
    image: PathBuf,
}

impl Repository {
    fn new(candidate: Candidate, dir: &Path) -> Self {
        let home = dir.join("home");
        std::fs::create_dir(&home).expect("make a folder");
        Self { candidate, path: dir.join("repository"), home, image: dir.join("disk.raw") }
    }

    /// The program, with everything that it keeps in the scratch folder.
    fn program(&self) -> Tool {
        let (repository, home) = (&self.path, &self.home);
        let program = if self.candidate == Candidate::Restic { "restic" } else { "borg" };
        tool(program)
            .deadline(Duration::from_secs(3600))
            .env("HOME", home)
            .env("RESTIC_REPOSITORY", repository)
            .env("RESTIC_PASSWORD", "correct horse")
            .env("RESTIC_CACHE_DIR", home.join("cache"))
            .env("BORG_REPO", repository)
            .env("BORG_PASSPHRASE", "correct horse")
            .env("BORG_BASE_DIR", home)
    }

    fn measure(self, generations: &Generations, round: u32) -> Run {
        match self.candidate {
            Candidate::Restic => self.program().args(["init", "--quiet"]).run(),
            _ => self.program().args(["init", "--encryption=repokey-blake2"]).run(),
        };
        let (mut seconds, mut kept) = ([0.0; 2], [0; 2]);
        for (n, generation) in [&generations.first, &generations.second].into_iter().enumerate() {
            tool("cp").arg("--sparse=always").arg(generation).arg(&self.image).run();
            settle(&self.image);
            let start = Instant::now();
            self.save(n);
            seconds[n] = start.elapsed().as_secs_f64();
            kept[n] = stored(&self.path);
        }
        Run { candidate: self.candidate, round, seconds, stored: kept, cpu_seconds: None }
    }

    fn save(&self, generation: usize) {
        let archive = format!("::generation{generation}");
        let command = match self.candidate {
            Candidate::Restic => self.program().args(["backup", "--quiet"]),
            Candidate::BorgZstd => self.program().args(["create", "--compression", "zstd,1", &archive]),
            _ => self.program().args(["create", "--compression", "lz4", &archive]),
        };
        command.arg(&self.image).run();
    }
}

/// Bytes that a folder takes on its disk.
pub(crate) fn stored(folder: &Path) -> u64 {
    let mut bytes = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(about) if about.is_dir() => folders.push(entry.path()),
                // The reserve is no data: it is for getting out of a full disk.
                Ok(_) if entry.file_name() == "RESERVE" => {}
                Ok(about) => bytes += about.blocks() * 512,
                Err(_) => {}
            }
        }
    }
    bytes
}
