//! Runs known inputs on a normal build, lists the targets, and makes the seeds.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command talks")]

use afterimage_fuzz::memory::Counting;
use afterimage_fuzz::{Target, corpus, find, run, seeds, targets, watch};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const USAGE: &str = "\
afterimage-fuzz list                      the targets
afterimage-fuzz run TARGET [FILE...]      runs these inputs, or the target's whole corpus
afterimage-fuzz seeds [TARGET]            makes the first inputs anew, in the corpus";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["list"] => {
            targets::ALL.iter().for_each(|t| println!("{} {}", t.name, t.longest));
            Ok(())
        }
        ["run", name, ref files @ ..] => replay(name, files),
        ["seeds"] => targets::ALL.iter().try_for_each(make_seeds),
        ["seeds", name] => find(name).ok_or_else(|| no_target(name)).and_then(make_seeds),
        _ => Err(USAGE.to_string()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::from(2)
        }
    }
}

fn no_target(name: &str) -> String {
    format!("there is no target {name}; `afterimage-fuzz list` names them")
}

fn files_in(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let say = |e| format!("{}: {e}", folder.display());
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(say)? {
        files.push(entry.map_err(say)?.path());
    }
    files.sort();
    Ok(files)
}

fn replay(name: &str, files: &[&str]) -> Result<(), String> {
    let target = find(name).ok_or_else(|| no_target(name))?;
    let files = match files {
        [] => files_in(&corpus().join(name))?,
        files => files.iter().map(PathBuf::from).collect(),
    };
    if files.is_empty() {
        return Err(format!("the corpus of {name} is empty"));
    }
    watch::start();
    for file in &files {
        let bytes = std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?;
        watch::input(file.display().to_string());
        run(target, &bytes);
    }
    println!("{name}: {} inputs", files.len());
    Ok(())
}

fn make_seeds(target: &Target) -> Result<(), String> {
    let folder = corpus().join(target.name);
    let say = |e: std::io::Error| format!("{}: {e}", folder.display());
    std::fs::create_dir_all(&folder).map_err(say)?;
    for (i, seed) in seeds::of(target.name).iter().enumerate() {
        std::fs::write(folder.join(format!("seed-{i:02}")), seed).map_err(say)?;
    }
    Ok(())
}
