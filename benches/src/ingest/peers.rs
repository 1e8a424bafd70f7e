//! What people use today.

use super::{Candidate, Run, settle, settle_all, stored};
use crate::image::Generations;
use crate::usage::{Cores, Usage, measured, on, taken};
use afterimage_tests::tool::{Tool, tool};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The repository of a program, and its place.
struct Repository {
    candidate: Candidate,
    cores: Cores,
    path: PathBuf,
    home: PathBuf,
    image: PathBuf,
    restored: PathBuf,
}

/// Measures one of them.
pub(super) fn measure(candidate: Candidate, dir: &Path, generations: &Generations, cores: Cores) -> Run {
    let home = dir.join("home");
    std::fs::create_dir(&home).expect("make a folder");
    let (path, image, restored) = (dir.join("repository"), dir.join("disk.raw"), dir.join("restored"));
    on(cores, 1, || Repository { candidate, cores, path, home, image, restored }.measure(generations))
}

impl Repository {
    /// The program, with everything that it keeps in the scratch folder.
    fn with_places(&self, tool: Tool) -> Tool {
        let (repository, home) = (&self.path, &self.home);
        tool.deadline(Duration::from_secs(3600))
            .env("HOME", home)
            .env("RESTIC_REPOSITORY", repository)
            .env("RESTIC_PASSWORD", "correct horse")
            .env("RESTIC_CACHE_DIR", home.join("cache"))
            .env("BORG_REPO", repository)
            .env("BORG_PASSPHRASE", "correct horse")
            .env("BORG_BASE_DIR", home)
            .env("BORG_RELOCATED_REPO_ACCESS_IS_OK", "yes")
    }

    fn run(&self, words: &[&str]) -> Usage {
        let note = self.home.join("usage");
        self.with_places(measured(words[0], &note)).args(&words[1..]).run();
        taken(&note)
    }

    fn measure(self, generations: &Generations) -> Run {
        match self.candidate {
            Candidate::Restic => drop(self.with_places(tool("restic")).args(["init", "--quiet"]).run()),
            Candidate::Borg | Candidate::BorgZstd => {
                drop(self.with_places(tool("borg")).args(["init", "--encryption=repokey-blake2"]).run());
            }
            _ => std::fs::create_dir(&self.path).expect("make a folder"),
        }
        let (mut saved, mut kept) = ([Usage::default(); 2], [0; 2]);
        for (n, generation) in [&generations.first, &generations.second].into_iter().enumerate() {
            tool("cp").arg("--sparse=always").arg(generation).arg(&self.image).run();
            settle(&self.image);
            saved[n] = self.save(n);
            kept[n] = stored(&self.path);
        }
        settle_all(&self.path);
        let restored = self.restore();
        Run {
            candidate: self.candidate,
            cores: self.cores,
            round: 0,
            seconds: saved.map(|u| u.seconds),
            cpu_seconds: saved.map(|u| u.cpu_seconds),
            agent_cpu_seconds: None,
            stored: kept,
            settled: None,
            restore_seconds: restored.seconds,
            restore_cpu_seconds: restored.cpu_seconds,
            peak: saved.iter().map(|u| u.peak).max().unwrap_or(0).max(restored.peak),
        }
    }

    fn save(&self, generation: usize) -> Usage {
        let image = self.image.to_str().expect("a path in UTF-8");
        let archive = format!("::generation{generation}");
        let own = self.path.join(format!("generation{generation}"));
        let own = own.to_str().expect("a path in UTF-8");
        let threads = if self.cores == Cores::One { "-T1" } else { "-T0" };
        match self.candidate {
            Candidate::Restic => self.run(&["restic", "backup", "--quiet", image]),
            Candidate::BorgZstd => self.run(&["borg", "create", "--compression", "zstd,1", &archive, image]),
            Candidate::Zstd => self.run(&["zstd", "-q", "-1", threads, image, "-o", own]),
            Candidate::QemuImg => {
                let form = ["-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", "-W", "-m", "8"];
                self.run(&[&["qemu-img", "convert", "-c"], &form[..], &[image, own]].concat())
            }
            _ => self.run(&["borg", "create", "--compression", "lz4", &archive, image]),
        }
    }

    /// Brings the second generation back and makes it durable.
    fn restore(&self) -> Usage {
        let folder = self.restored.display();
        std::fs::create_dir(&self.restored).expect("make a folder");
        let own = self.path.join("generation1");
        let own = own.display();
        let command = match self.candidate {
            Candidate::Restic => format!("restic restore --quiet latest --target '{folder}'"),
            Candidate::Zstd => format!("zstd -q -d '{own}' -o disk"),
            Candidate::QemuImg => format!("qemu-img convert -O raw -W -m 8 '{own}' disk"),
            _ => "borg extract --sparse ::generation1".to_owned(),
        };
        let sync = "find . -type f -exec sync {} +";
        let usage = self.run(&["sh", "-c", &format!("cd '{folder}' && {command} && {sync}")]);
        std::fs::remove_dir_all(&self.restored).expect("remove the restored image");
        usage
    }
}
